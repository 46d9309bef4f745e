"""What a gate may say of a call, and what the pipeline makes of it.

A gate has an `Opinion`; only the pipeline gives a `Verdict`, and only a verdict carries a `Permit`, without which
nothing can be sent (`core.ports.Peer.send` takes nothing else).
"""

from __future__ import annotations

from typing import Final

import msgspec

from aegis_daemon.core.call import Call
from aegis_daemon.wire.jsonrpc import Answer

LOOK: Final = "; a person can look at it with `aegis audit show "
"""What a refusal by a rule ends with, before the call's id."""


class Reason(msgspec.Struct, frozen=True):
    """Why not: a stage of `wire.errors.REFUSALS`, a text for the agent, and more for the log alone."""

    stage: str
    text: str
    retryable: bool = False
    retry_after_ms: int | None = None
    code: str = ""
    """a stable word for `data.reason`, of those in `onboarding.denials`"""
    detail: str = ""
    """what only an approver may read: the rule that decided"""
    policy: str = ""
    """the policy that decided, where its name may be told: its `@id`"""


def unrecorded() -> Reason:
    """The reason where an approval cannot be kept on disk."""
    text = "the approval could not be recorded; not executed; free space and repeat the call"
    return Reason("audit", text, retryable=True, code="audit_unavailable")


class Claim(msgspec.Struct, frozen=True):
    """What a call would consume: one use of a window. `agent` is None for a limit over all agents."""

    scope: str
    agent: str | None
    backend: str
    tool: str
    """the tool's name or the pattern that the limit was written for"""
    window_s: float
    max_count: int
    amount: str = ""
    """what the call would spend of a budget, as a decimal number; "" where calls are counted"""
    most: str = ""
    """the budget, likewise"""


class Ask(msgspec.Struct, frozen=True):
    """What a person is asked: which rule wants it, how long there is, in seconds, and how many must agree."""

    rule: str
    timeout_s: float
    people: int = 1
    pin: str = ""
    """what the approval holds for, filled in by the pipeline: see `Pass.pin`"""


class Pass(msgspec.Struct, frozen=True):
    """No objection, at this price."""

    claims: tuple[Claim, ...] = ()
    pin: str = ""
    """which change of the thing a person has trusted; "" while it is what it was at first"""


class Deny(msgspec.Struct, frozen=True):
    """An objection, which ends the matter."""

    reason: Reason


class Hold(msgspec.Struct, frozen=True):
    """No objection if a person agrees. `claims` is filled in by the pipeline."""

    call: Call
    ask: Ask
    claims: tuple[Claim, ...] = ()


PASS = Pass()
Opinion = Pass | Deny | Hold

_MINT = object()


class Permit:
    """Leave to send one exact frame, once decided. Only `Pipeline` can make one."""

    __slots__ = ("_call",)

    def __init__(self, mint: object, call: Call) -> None:
        if mint is not _MINT:
            raise TypeError("a permit is minted by the pipeline alone")
        self._call = call

    @property
    def call(self) -> Call:
        """What may be sent: this and nothing else."""
        return self._call


class Allow(msgspec.Struct, frozen=True):
    """May go, at this price. `would` names the refusal that observe mode let pass."""

    permit: Permit
    claims: tuple[Claim, ...] = ()
    would: Reason | None = None


Verdict = Allow | Deny | Hold


class Ended(msgspec.Struct, frozen=True):
    """How an approved call ended, for those who waited with it: the server's answer, or why there is none."""

    answer: Answer | None = None
    reason: Reason | None = None


class Decision(msgspec.Struct, frozen=True):
    """What became of an ask: approved, rejected, expired; pending, where the client's patience ended first; or ended.

    `approved` is told to one who waits, who runs the call. The others are told how it `ended`.
    """

    outcome: str
    ticket: str
    by: str = ""
    note: str = ""
    ended: Ended | None = None
