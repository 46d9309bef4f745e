"""The daemon sees with its own eyes that it refuses what it must, and while it does not, it refuses everything.

When it starts, when its rules change and once an hour it drives calls that the configuration forbids
(`config.canaries`) down the path that every call takes. Both ends of that path are a trap: nothing is recorded, counted
or asked, and no server hears anything. What is newest in the log has to be whole, too. When a proof fails people are
told once, and a later one that succeeds ends it.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, Protocol, cast

import msgspec

from aegis_daemon.approvals.pauses import FOLLOWS
from aegis_daemon.audit.chain import Walk, digest
from aegis_daemon.audit.journal import Journal
from aegis_daemon.audit.store import Reader
from aegis_daemon.audit.writer import WriterHandle
from aegis_daemon.config.canaries import ALL_TRIALS, Canaries, Canary
from aegis_daemon.core.call import Call
from aegis_daemon.core.ports import AuditUnavailable, Brake, Fault
from aegis_daemon.core.runtime import Runtime
from aegis_daemon.core.session import Open
from aegis_daemon.core.verdict import Deny, Reason
from aegis_daemon.daemon.reload import InForce
from aegis_daemon.registry.pins import Registry
from aegis_daemon.relay.carry import Shell, Unattended, carry
from aegis_daemon.wire.methods import Rule

_log = logging.getLogger("aegis.proof")
PERIOD_S: Final = 3600.0
AGAIN_S: Final = 60.0
"""After a proof that failed."""
SOON_S: Final = 5.0
"""After the first one, which leaves out what would keep the daemon from starting at once."""
SLICE_S: Final = 0.004
"""How long the proof keeps the loop at a time, but for the longest single call."""
FIRST_TRIALS: Final = 200
RECORDS: Final = 200
"""Of the newest records, how many are looked at."""
PAGE: Final = 8
"""How many at a time: an agent can fill each with a name of a megabyte."""
READ_S: Final = 20.0
SHOWN: Final = 3
_REFUSALS: Final = frozenset({"acl", "pin", "policy", "params", "internal"})
"""Stages whose refusal is one by the rules, or by a fault: a limit, or a person, could say yes the next time."""
ALARM: Final = "Aegis alarm: it could not prove that its rules hold, and executes nothing until it can"
_TEXT: Final = (
    "aegis could not prove that its rules hold, so nothing is executed; repeating the call at once will not work: a "
    "person sees why with `aegis status`"
)


class Proof(msgspec.Struct, frozen=True):
    """What came of one: how many calls of which kind were refused, as they must be, and which were not.

    `own` are failures of the person's own calls; `unseen` policies that forbid something, though no call was found to
    which they apply.
    """

    kinds: dict[str, int]
    failures: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()

    @property
    def calls(self) -> int:
        """Calls that were seen to be refused."""
        return sum(self.kinds.values())

    def wrong(self, *, observe: bool) -> tuple[str, ...]:
        """What keeps the rules from being gone by. Who observes is only finding out what they should be."""
        return self.failures if observe else (*self.failures, *self.own)


class Unproven(Exception):
    """The rules are not gone by, since they do not refuse what they must; the hint says what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class _Trap(Unattended):
    """Both ends of one call, its log, its limits and its people: keeps what becomes of it, and lets nothing out."""

    def __init__(self) -> None:
        self.acl = self.limit = self.approval = self.approver = self.ticket = self.note = ""
        self.position = self.wait_us = self.judged_us = 0
        self.refused: Reason | None = None
        self.passed = False
        """refused, and let pass all the same"""
        self.asked = False
        self.left = False

    # as the log
    def story(self, call: Call) -> _Trap:
        """The records of a call."""
        return self

    def held(self, ticket: str, rule: str) -> None:
        """A person would be asked."""
        self.asked = True

    def intent(self, committed: Callable[[AuditUnavailable | None], None]) -> bool:
        """It would be sent."""
        return True

    def outcome(self, *told: object, **more: object) -> None:
        """It would have ended."""

    def denied(self, reason: Reason, *, would: bool = False) -> None:
        """It was refused."""
        self.refused = self.refused or reason
        self.passed = self.passed or would

    # as limits and lanes
    def reserve(self, claims: object, now: float) -> _Trap:
        """Nothing is counted."""
        return self

    def commit(self, now: float) -> None:
        """See `reserve`."""

    def release(self) -> None:
        """See `reserve`."""

    def enter(self, call: Call) -> None:
        """There is no lane."""

    # as people
    def find(self, hold: object) -> None:
        """Nobody has been asked."""

    def open(self, hold: object, client: str = "") -> Deny:
        """Nobody is."""
        self.asked = True
        return Deny(Reason("approval", "a person would be asked"))

    # as the two ends
    def send(self, permit: object, landing: object) -> None:
        """Nothing leaves."""
        self.left = True
        raise Fault("proof", "nothing leaves", not_executed=True)

    def answer(self, opened: Open, frame: bytes) -> bool:
        """The agent hears of it."""
        return True


def drive(call: Call, runtime: Runtime, now: Callable[[], float]) -> _Trap:
    """What the path of every call makes of this one, by these rules."""
    trap = _Trap()
    part = cast(Any, trap)
    shell = Shell(runtime=runtime, now=now, audit=part, limits=part, lanes=part, desk=part)
    carry(call, Open(call.request_id, call.request_id), part, part, shell)
    return trap


def fault(canary: Canary, runtime: Runtime, now: Callable[[], float]) -> str:
    """How a call that must be refused gets on; "" where it is refused, and by whatever it should be."""
    pipeline = runtime.pipeline
    what = f"{canary.call.method} of `{(canary.call.name or '')[:80]}` on `{canary.call.backend}`"
    told = f"{what} by `{canary.call.principal.agent}`, which {canary.rule} refuses"
    if canary.stage:
        gate = pipeline.gate(canary.stage)
        if gate is None:
            return f"nothing judges {told}: the stage `{canary.stage}` is missing"
        try:
            opinion: object = gate.decide(canary.call, now())
        except Exception:  # the pipeline makes a refusal of it
            opinion = Deny(Reason("internal", ""))
        if type(opinion) is not Deny:
            return f"the stage `{canary.stage}` does not refuse {told}"
    seen = drive(canary.call, runtime, now)
    if seen.refused is None or seen.asked or seen.refused.stage not in _REFUSALS:
        return f"nothing refuses {told}"
    if not pipeline.observe and (seen.left or seen.passed):
        return f"it is refused and goes on: {told}"
    return ""


class Timer(Protocol):
    """What `call_later` gives."""

    def cancel(self) -> None:
        """It does not happen."""
        ...


class Prover:
    """Proves what is in force, now and again, and holds everything back while it cannot.

    :param ready: the rules in force. :param log: what is wrong with the newest records, "" for nothing. :param brake:
    is given what stops calls, None for nothing. :param alarm: tells people; False where it cannot yet.
    """

    def __init__(
        self,
        *,
        ready: Callable[[], InForce],
        pins: Registry,
        log: Callable[[], Awaitable[str]],
        brake: Callable[[Brake | None], None],
        record: Callable[[str, str], None],
        alarm: Callable[[str], bool],
        call_later: Callable[[float, Callable[[], None]], Timer],
        now: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._ready = ready
        self._pins = pins
        self._check_log = log
        self._brake = brake
        self._record = record
        self._alarm = alarm
        self._call_later = call_later
        self._now = now
        self._wall = wall
        self._timer: Timer | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._told = False
        self._proof = Proof({})
        self._wrong: tuple[str, ...] = ()
        self._log_wrong = ""
        self.turn = asyncio.Lock()
        """held while rules are proved, and while others take their place"""
        self.at = 0.0
        """when rules were proved last, in seconds since the epoch"""

    # --- how it stands ------------------------------------------------------------------------------------------

    @property
    def proof(self) -> Proof:
        """The last one."""
        return self._proof

    @property
    def wrong(self) -> tuple[str, ...]:
        """What keeps everything from being executed."""
        return (*self._wrong, self._log_wrong) if self._log_wrong else self._wrong

    @property
    def detail(self) -> str:
        """The same for people, in one line."""
        return _listed(self.wrong)

    def stops(self, call: Call) -> Reason | None:
        """See `core.ports.Brake`: everything but what follows and ends work that runs already."""
        if call.row.rule is not Rule.GOVERNED or call.method in FOLLOWS:
            return None
        return Reason("internal", _TEXT, retryable=True, code="unproven", detail=self.detail[:300])

    # --- proving ------------------------------------------------------------------------------------------------

    async def check(self, force: InForce, *, first: bool = False) -> Proof:
        """What these rules make of what they must refuse, a little at a time. Raises nothing: a fault is a failure."""
        try:
            return await self._check(force, first=first)
        except Exception as error:
            _log.exception("the proof itself failed")
            return Proof({}, (f"the proof itself failed ({type(error).__name__}); see `aegis logs`",))

    async def _check(self, force: InForce, *, first: bool) -> Proof:
        runtime, now = force.runtime, self._now
        tools: dict[str, list[str]] = {}
        for pin in self._pins.rows():
            if pin.kind == "tool":
                tools.setdefault(pin.backend, []).append(pin.name)
        stopped = [(pin.backend, pin.kind, pin.name) for pin in self._pins.stopped()]
        canaries = Canaries(force.config, tools, stopped, trials=FIRST_TRIALS if first else ALL_TRIALS)
        kinds: Counter[str] = Counter()
        failures: list[str] = []
        own: list[str] = []
        runtime.pipeline.forget()  # what is remembered of these calls would prove nothing
        since = now()
        for canary in canaries:
            if now() - since > SLICE_S:
                await asyncio.sleep(0)
                since = now()
            if canary is None or (first and canary.heavy):
                continue
            call = canary.call
            if canary.heavy:
                gate = runtime.pipeline.gate(canary.stage)
                if gate is not None:
                    await asyncio.to_thread(_quietly, gate.decide, call, now())
            if canary.stage == "pin" and not self._pins.stops(call.backend, call.subject or "", call.name or ""):
                continue  # a person has trusted it just now
            why = fault(canary, runtime, now)
            if not why:
                kinds[canary.kind] += 1
            elif canary.own:
                own.append(why)
            else:
                failures.append(why)
        return Proof(dict(kinds), tuple(failures), tuple(own), tuple(canaries.unseen))

    async def candidate(self, force: InForce, *, arm: bool) -> Proof:
        """The proof of rules that are to take the place of those in force. Raises `Unproven`.

        :param arm: they enforce, and those in force only observe: then something has to be seen to be refused.
        """
        proof = await self.check(force)
        wrong = proof.wrong(observe=force.runtime.pipeline.observe)
        if wrong:
            own = " or take it out of `proof`," if proof.own else ""
            raise Unproven(
                f"what must be refused is not: {_listed(wrong)}",
                f"the old configuration stays in force; mend the rule,{own} and repeat it",
            )
        if arm and not proof.calls:
            raise Unproven(
                "nothing that this configuration forbids can be tried, so nobody has seen it refuse anything",
                "write a call that must be refused under `proof`, and repeat it; nothing was changed",
            )
        return proof

    def took(self, proof: Proof) -> None:
        """Rules with this proof are in force from now on."""
        self._settle(proof, self._log_wrong)

    async def prove(self, *, first: bool = False) -> bool:
        """Proves what is in force and the log; whether that holds. The next time is arranged."""
        async with self.turn:
            force = self._ready()
            proof = await self.check(force, first=first)
            self._settle(proof, await self._log_fault())
        if not self._closed:
            if self._timer is not None:
                self._timer.cancel()
            pause = AGAIN_S if self.wrong else SOON_S if first else PERIOD_S
            self._timer = self._call_later(pause, self._again)
        return not self.wrong

    async def _log_fault(self) -> str:
        try:
            return await self._check_log()
        except Exception as error:
            _log.exception("the log could not be looked at")
            return f"the log could not be looked at ({type(error).__name__}); see `aegis logs`"

    def _settle(self, proof: Proof, log_wrong: str) -> None:
        was = bool(self.wrong)
        self._proof, self.at = proof, self._wall()
        self._wrong = proof.wrong(observe=self._ready().runtime.pipeline.observe)
        self._log_wrong = log_wrong
        if self.wrong and not was:
            self._told = False
            self._brake(self)
            _log.error("nothing is executed, since aegis could not prove that its rules hold: %s", self.detail)
            self._record("unproven", self.detail)
        elif was and not self.wrong:
            self._brake(None)
            _log.warning("aegis has proved its rules again: %d calls were refused as they must be", proof.calls)
            self._record("proven", f"{proof.calls} calls were refused as they must be")
        self.tell()

    def tell(self) -> None:
        """People hear of a failure, unless they have."""
        if self.wrong and not self._told:
            self._told = self._alarm(self.detail)

    def _again(self) -> None:
        self._timer = None
        if not self._closed:
            self._task = asyncio.get_running_loop().create_task(self._proved())

    async def _proved(self) -> None:
        await self.prove()

    async def close(self) -> None:
        """Proves no more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


def _listed(wrong: tuple[str, ...]) -> str:
    more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
    return "; ".join(wrong[:SHOWN]) + more


def _quietly(decide: Callable[[Call, float], object], call: Call, now: float) -> None:
    try:
        decide(call, now)
    except Exception:  # noqa: S110  it is asked again on the loop, where a fault counts
        pass


# --- the log ----------------------------------------------------------------------------------------------------------


async def newest_records(journal: Journal, writer: WriterHandle, path: Path) -> str:
    """What is wrong with the newest records of the log; "" where they are linked, unchanged, and end as we wrote them.

    What has not come into the store yet is in the journal, which is looked after elsewhere.
    """
    seq, head = journal.last_seq, journal.head
    try:
        await writer.flush(READ_S)
        ours: tuple[int, str] | None = (seq, head)
    except AuditUnavailable:
        ours = None
    return await asyncio.to_thread(_walk, path, ours)


def _walk(path: Path, ours: tuple[int, str] | None) -> str:
    see = "see `aegis audit verify`, which tells how to keep it as evidence and go on"
    try:
        with Reader(path) as reader:
            newest = ours[0] if ours is not None else reader.last_seq()
            # The bodies beside them may be large, and are for `aegis audit verify`.
            question = "SELECT seq, hash, CAST(record AS BLOB) FROM records WHERE seq > ? ORDER BY seq LIMIT ?"
            seen: list[tuple[int, str]] = []
            walk: Walk | None = None
            at = newest - RECORDS
            while len(seen) < 2 * RECORDS and at < newest:
                found = reader.ask(question, (at, PAGE), until=time.monotonic() + READ_S)
                for seq, head, record in found:
                    if walk is None:
                        if digest(record or b"").hex() != head:
                            return f"record {seq} of the log was changed; {see}"
                        walk = Walk(seq, head)
                    else:
                        walk.step(seq, record or b"", head)
                        if walk.faults:
                            return f"the log is not whole: {walk.faults[0].text}; {see}"
                    seen.append((seq, head))
                if not found:
                    break
                at = seen[-1][0]
    except (OSError, sqlite3.Error) as error:
        return f"the log cannot be read ({error}); {see}"
    if ours is not None and not seen:
        return f"the log is empty, though something was written to it; {see}"
    if ours is not None and ours not in seen:
        return f"record {ours[0]} of the log is not the one that was written; {see}"
    return ""
