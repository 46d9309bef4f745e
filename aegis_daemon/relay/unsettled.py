"""What calls of one session owe beyond their answers: tasks of its server, and answers that ask for input. Paid once.

A task is settled when it ends, or its time does; an answer that asks for input keeps the claims of its call for the
retry, and they count where none comes: what the server did before it asked may have had its effect.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import Any, Final, Protocol

import msgspec

from aegis_daemon.core.call import Call
from aegis_daemon.relay.answers import Task
from aegis_daemon.relay.carry import CONTINUE_S, Kept, Settle, Shell

TASK_S: Final = 3600.0
"""How long a task is followed that names no time of its own, and the longest that any is."""
TASKS: Final = 256
"""How many tasks one session may have open."""
KEPT: Final = 256
"""How many `input_required` answers of one session may wait for their retry."""


class Timer(Protocol):
    """What `call_later` gives back."""

    def cancel(self) -> None:
        """Never fires."""
        ...


class Unsettled:
    """All that one session's calls still owe."""

    def __init__(self, shell: Shell, call_later: Callable[[float, Callable[[], None]], Timer]) -> None:
        self._shell = shell
        self._call_later = call_later
        self.suspended: dict[bytes, tuple[Kept, Timer]] = {}
        self._tasks: dict[str, tuple[Settle, float]] = {}

    # --- answers that ask for input -----------------------------------------------------------------------------

    def continued(self, call: Call) -> Kept | None:
        """What was kept for this call, which shows the state that it was given; once."""
        found = self.suspended.pop(_continuation(call, call.frame.params.get("requestState")), None)
        if found is None:
            return None
        kept, timer = found
        timer.cancel()
        return kept

    def suspend(self, call: Call, state: Any, kept: Kept) -> None:
        """Keeps it for the retry that shows this state, for ten minutes at most."""
        key = _continuation(call, state)
        if key in self.suspended or len(self.suspended) >= KEPT:
            self._lapsed(kept)
            return

        def lapse() -> None:
            self.suspended.pop(key, None)
            self._lapsed(kept)

        self.suspended[key] = (kept, self._call_later(CONTINUE_S, lapse))

    def _lapsed(self, kept: Kept) -> None:
        if kept.lease is not None:
            kept.lease.commit(self._shell.now())

    # --- tasks --------------------------------------------------------------------------------------------------

    def follow(self, task: Task, settle: Settle) -> None:
        """A call goes on as this task."""
        if task.taskId in self._tasks or len(self._tasks) >= TASKS:
            settle("unknown", message="the task cannot be followed: its id is in use, or too many are open")
            return
        ttl = task.ttl if task.ttl is not None else task.ttlMs
        seconds = TASK_S if ttl is None else min(max(ttl / 1000, 1.0), TASK_S)
        self._tasks[task.taskId] = (settle, self._shell.now() + seconds)

    def seen(self, body: bytes) -> None:
        """The server said this of a task, in JSON."""
        try:
            task = msgspec.json.decode(body, type=Task)
        except (msgspec.DecodeError, ValueError, RecursionError):
            return
        # A cancelled task may have had its effect, so it counts.
        ending = {"completed": "success", "failed": "error", "cancelled": "unknown"}.get(task.status)
        if ending is not None:
            self.ended(task.taskId, ending, body)

    def ended(self, task_id: str, status: str, body: bytes) -> None:
        """The task is over; `status` as in an outcome."""
        found = self._tasks.pop(task_id, None)
        if found is not None:
            found[0](status, body)

    def sweep(self, now: float) -> None:
        """Settles tasks whose time is over."""
        if not self._tasks:
            return
        for task_id, (settle, until) in list(self._tasks.items()):
            if until <= now:
                del self._tasks[task_id]
                settle("unknown", message="the task's time was over before it ended")

    def end_tasks(self, why: str) -> None:
        """The server that had them is gone."""
        tasks, self._tasks = self._tasks, {}
        for settle, _ in tasks.values():
            settle("unknown", message=why)

    def close(self, why: str) -> None:
        """The session ends."""
        self.lapse()
        self.end_tasks(why)

    def lapse(self) -> None:
        """No retry takes up what was kept: what was agreed to for one server holds for no other."""
        for kept, timer in self.suspended.values():
            timer.cancel()
            self._lapsed(kept)
        self.suspended.clear()


def _continuation(call: Call, state: Any) -> bytes:
    """What a retry of an `input_required` answer shares with its first call, and the state it was given: a digest."""
    params = {
        key: value for key, value in call.frame.params.items() if key not in ("_meta", "inputResponses", "requestState")
    }
    return sha256(msgspec.json.encode([call.method, params, state], order="sorted")).digest()
