"""What a stage is: a gate that judges calls, says what may be seen, and labels what has a price."""

from __future__ import annotations

from typing import Protocol

from aegis_daemon.core.call import Call
from aegis_daemon.core.principal import Principal
from aegis_daemon.core.verdict import Opinion


class Gate(Protocol):
    """`decide` never passes what `visible` hides; `visible` hides only what is denied whatever the arguments."""

    @property
    def name(self) -> str:
        """The stage, as in `wire.errors.REFUSALS`."""
        ...

    @property
    def by_name(self) -> bool:
        """Whether `decide` looks at nothing but the principal, the backend, the method and the name.

        Then its opinion on a call with a name is remembered for as long as the runtime is in force.
        """
        ...

    def decide(self, call: Call, now: float) -> Opinion:
        """The opinion on one call. `now` is monotonic, in seconds."""
        ...

    def visible(self, principal: Principal, backend: str, subject: str, name: str) -> bool:
        """Whether an item of a list may be shown."""
        ...

    def labels(self, principal: Principal, backend: str, tool: str) -> tuple[str, ...]:
        """Words for the front of a tool's description, such as `Rate:1/1d`."""
        ...
