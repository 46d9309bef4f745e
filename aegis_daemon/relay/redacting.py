"""An answer of a tool with transforms is cleaned before anything else looks at it, and so is what its tasks say later.

What a task is about is remembered, within bounds. A task that is not remembered may be any tool's: everything that any
transform takes out is taken out of it.
"""

from __future__ import annotations

from typing import Any, Final

from aegis_daemon.core.call import Call
from aegis_daemon.policy.transforms import UNKNOWN, Transforms, Unredacted
from aegis_daemon.relay.questions import Withheld
from aegis_daemon.wire.jsonrpc import Answer
from aegis_daemon.wire.methods import Direction

TASKS: Final = 4096
LARGE: Final = 16 << 10
"""Arguments of more bytes are not remembered for a task."""
_ABOUT_TASKS: Final = frozenset({"tasks/get", "tasks/result", "tasks/update", "tasks/cancel"})

Key = tuple[str, str, str]


class Redacting:
    """What tasks are about: by agent, backend and the server's id of the task, the tool and its arguments."""

    def __init__(self) -> None:
        self._tasks: dict[Key, tuple[str, Any]] = {}

    def began(self, call: Call, task: str) -> None:
        """The call goes on as this task."""
        if call.name is None or len(call.content_text) > LARGE:
            return
        if len(self._tasks) >= TASKS:
            del self._tasks[next(iter(self._tasks))]
        self._tasks[call.principal.agent, call.backend, task] = (call.name, call.arguments)

    def answer(self, call: Call, answer: Answer, transforms: Transforms) -> Answer:
        """The answer as everybody may see it. Raises `Withheld`."""
        if call.direction is Direction.TO_CLIENT:
            return answer
        if call.method == "tools/call":
            found, arguments = transforms.of(call.backend, call.name or ""), call.arguments
        elif call.method in _ABOUT_TASKS:
            key = (call.principal.agent, call.backend, call.name or "")
            tool, arguments = self._tasks.get(key, (None, UNKNOWN))
            found = transforms.any() if tool is None else transforms.of(call.backend, tool)
        else:
            return answer
        try:
            for transform in found:
                answer = transform.answer(arguments, answer)
        except Unredacted as error:
            raise Withheld("not_redacted", f"{error}, so it is withheld; outcome unknown") from error
        return answer

    def task(self, agent: str, backend: str, params: dict[str, Any], transforms: Transforms) -> dict[str, Any] | None:
        """What a server says of a task unasked, as everybody may see it; None where it must not be seen."""
        id = params.get("taskId")
        tool, arguments = self._tasks.get((agent, backend, id if type(id) is str else ""), (None, UNKNOWN))
        found = transforms.any() if tool is None else transforms.of(backend, tool)
        try:
            for transform in found:
                params = transform.value(arguments, params)
        except Unredacted:
            return None
        return params
