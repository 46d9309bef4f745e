"""A daemon whose rules do not refuse what they must says so, executes nothing, and goes on once they do again."""

from __future__ import annotations

import asyncio
import sqlite3
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from playbook import Log

from aegis_daemon.audit.chain import digest as hashed
from aegis_daemon.audit.record import GENESIS
from aegis_daemon.audit.store import ensure_schema
from aegis_daemon.config.canaries import Canaries, Canary
from aegis_daemon.config.load import digest, loads
from aegis_daemon.config.runtime import build
from aegis_daemon.core.call import Call
from aegis_daemon.core.pipeline import Pipeline, _Judgement
from aegis_daemon.core.ports import Brake
from aegis_daemon.core.principal import Principal
from aegis_daemon.core.runtime import Runtime
from aegis_daemon.core.stage import Gate
from aegis_daemon.core.verdict import PASS, Ask, Hold, Opinion, Reason
from aegis_daemon.daemon import proof as proving
from aegis_daemon.daemon import reload as reloading
from aegis_daemon.daemon.modes import Modes
from aegis_daemon.daemon.proof import AGAIN_S, PERIOD_S, RECORDS, SOON_S, Prover, Unproven, drive, fault
from aegis_daemon.daemon.reload import InForce
from aegis_daemon.limits import Limits
from aegis_daemon.registry.pins import Registry
from aegis_daemon.relay.carry import Flight
from aegis_daemon.stages import ORDER

CONFIG = """
backends: {work: {}}
agents:
  bot: {backends: {work: {allowed: true, tool_denylist: [rm], approval_required: [rm], rate_limits: {rm: 1/1d}}}}
constraints: {pay: {arguments: {amount: {max: 5}}}}
policy:
  text: |
    permit(principal, action, resource);
    @id("never") forbid(principal, action, resource) when { context.target == "wipe" };
"""
OWN = "proof: [{agent: bot, call: work.rm}, {agent: bot, call: work.read, arguments: {a: 1}}]\n"
Run = Callable[[Any], Any]


def ready(text: str = CONFIG) -> InForce:
    config = loads(text, "aegis.yaml").config
    return InForce(config, build(config, digest(config)), None)


def with_gates(force: InForce, *gates: Gate) -> InForce:
    pipeline = force.runtime.pipeline
    for gate in gates:
        pipeline = pipeline.having(gate, ORDER)
    return in_runtime(force, pipeline)


def in_runtime(force: InForce, pipeline: Pipeline) -> InForce:
    return msgspec.structs.replace(force, runtime=msgspec.structs.replace(force.runtime, pipeline=pipeline))


class Asleep:
    """A gate that has stopped to refuse."""

    by_name = True

    def __init__(self, name: str, opinion: Opinion = PASS) -> None:
        self.name = name
        self._opinion = opinion

    def decide(self, call: Call, now: float) -> Opinion:
        return self._opinion

    def visible(self, principal: Principal, backend: str, subject: str, name: str) -> bool:
        return True

    def labels(self, principal: Principal, backend: str, tool: str) -> tuple[str, ...]:
        return ()


def canaries(force: InForce) -> list[Canary]:
    return [one for one in Canaries(force.config, {}) if one is not None]


def faults(force: InForce) -> list[str]:
    return [why for one in canaries(force) if (why := fault(one, force.runtime, lambda: 0.0))]


# --- one call ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["enforce", "observe"])
def test_rules_that_hold_refuse_every_call_that_they_forbid(mode: str) -> None:
    assert faults(ready(f"{CONFIG}mode: {mode}\n")) == []


@pytest.mark.parametrize("mode", ["enforce", "observe"])
@pytest.mark.parametrize("stage", ["acl", "policy"])
def test_a_gate_that_passes_everything_is_seen_though_others_still_refuse(mode: str, stage: str) -> None:
    force = ready(f"{CONFIG}mode: {mode}\n")
    asleep = with_gates(force, Asleep(stage))
    missed = [one for one in canaries(force) if one.stage == stage]
    assert len(missed) == len(faults(asleep)) > 1
    assert f"the stage `{stage}` does not refuse tools/call of" in faults(asleep)[0]


def test_a_gate_that_is_left_out_is_seen() -> None:
    force = ready()
    left = in_runtime(force, Pipeline([gate for gate in force.runtime.pipeline.gates if gate.name != "policy"]))
    assert all("the stage `policy` is missing" in why for why in faults(left))
    assert faults(left)


@pytest.mark.parametrize("mode", ["enforce", "observe"])
def test_a_pipeline_that_loses_a_refusal_is_seen(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pipeline, "_judge", lambda self, call, now: _Judgement())
    force = ready(f"{CONFIG}mode: {mode}\n")
    assert len(faults(force)) == len(canaries(force))
    assert "nothing refuses tools/call" in faults(force)[0]


def test_a_call_that_is_sent_although_it_was_refused_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def sends(self: Flight, reason: Reason) -> None:
        self.story.denied(reason)
        self.depart(None)  # type: ignore[arg-type]

    monkeypatch.setattr(Flight, "_refuse", sends)
    assert all("it is refused and goes on" in why for why in faults(ready()))
    assert faults(ready())


def test_a_person_who_would_be_asked_is_no_refusal() -> None:
    force = ready()
    asking = with_gates(force, Asleep("acl"), Asleep("approval", Hold(canaries(force)[0].call, Ask("a rule", 60.0))))
    by_hand = next(one for one in canaries(force) if one.kind == "tool_denylist")
    anyhow = msgspec.structs.replace(by_hand, stage="")
    assert "nothing refuses" in fault(anyhow, asking.runtime, lambda: 0.0)


def test_a_gate_that_fails_refuses() -> None:
    class Failing(Asleep):
        def decide(self, call: Call, now: float) -> Opinion:
            raise RuntimeError("planted")

    force = with_gates(ready(), Failing("acl"))
    acl = [one for one in canaries(force) if one.stage == "acl"]
    assert [fault(one, force.runtime, lambda: 0.0) for one in acl] == [""] * len(acl)


def test_nothing_leaves_is_counted_or_asked_while_a_call_is_driven() -> None:
    observing = ready(f"{CONFIG}mode: observe\n")
    by_hand = next(one for one in canaries(observing) if one.kind == "tool_denylist")
    seen = drive(by_hand.call, observing.runtime, lambda: 0.0)
    assert seen.refused is not None
    assert (seen.refused.stage, seen.passed, seen.left, seen.asked) == ("acl", True, True, False)


# --- now and again ----------------------------------------------------------------------------------------------------


class Later:
    """What is to happen later, which only a test makes happen."""

    def __init__(self) -> None:
        self.waiting: list[tuple[float, Callable[[], None]]] = []
        self._came = asyncio.Event()

    def __call__(self, delay: float, work: Callable[[], None]) -> Any:
        entry = (delay, work)
        self.waiting.append(entry)
        self._came.set()

        class Timer:
            def cancel(timer) -> None:  # noqa: N805
                if entry in self.waiting:
                    self.waiting.remove(entry)

        return Timer()

    async def passes(self) -> float:
        """Until the next of it has happened; how long that takes."""
        ((delay, work),) = self.waiting
        self.waiting.clear()
        self._came.clear()
        work()
        async with asyncio.timeout(10):
            await self._came.wait()
        return delay


class House:
    """A prover and what it does to the world."""

    def __init__(self, force: InForce) -> None:
        self.force = force
        self.brake: Brake | None = None
        self.records: list[tuple[str, str]] = []
        self.told: list[str] = []
        self.can_tell = True
        self.log = ""
        self.later = Later()
        self.pins = Registry(
            sqlite3.connect(":memory:", isolation_level=None), wall=lambda: 0.0, record=lambda *_: None
        )
        self.prover = Prover(
            ready=lambda: self.force,
            pins=self.pins,
            log=self._log,
            brake=self._brake,
            record=lambda action, detail: self.records.append((action, detail)),
            alarm=self._alarm,
            call_later=self.later,
            now=lambda: 0.0,
            wall=lambda: 1.7e9,
        )

    async def _log(self) -> str:
        return self.log

    def _brake(self, brake: Brake | None) -> None:
        self.brake = brake

    def _alarm(self, text: str) -> bool:
        if self.can_tell:
            self.told.append(text)
        return self.can_tell


@pytest.fixture
def run() -> Iterator[Run]:
    with asyncio.Runner() as runner:
        yield runner.run


def some(runtime: Runtime, method: str = "tools/call") -> Call:
    config = loads(CONFIG, "aegis.yaml").config
    call = next(one.call for one in Canaries(config, {}) if one is not None)
    from aegis_daemon.wire.methods import TO_SERVER

    return msgspec.structs.replace(call, row=TO_SERVER[method])


def test_what_holds_is_proved_at_the_start_soon_again_and_then_every_hour(run: Run) -> None:
    async def all_of_it() -> None:
        house = House(ready())
        assert await house.prover.prove(first=True)
        assert await house.later.passes() == SOON_S
        assert await house.later.passes() == PERIOD_S
        assert await house.later.passes() == PERIOD_S
        assert (house.brake, house.records, house.told) == (None, [], [])
        assert house.prover.proof.calls == len(canaries(house.force))
        await house.prover.close()
        assert house.later.waiting == []

    run(all_of_it())


def test_a_broken_rule_stops_everything_once_told_and_tried_every_minute_until_it_is_mended(run: Run) -> None:
    async def all_of_it() -> None:
        good = ready()
        house = House(with_gates(good, Asleep("policy")))
        assert not await house.prover.prove(first=True)
        brake = house.brake
        assert brake is not None
        reason = brake.stops(some(good.runtime))
        assert reason is not None
        assert (reason.stage, reason.code) == ("internal", "unproven")
        assert "aegis could not prove" in reason.text
        assert "constraints.pay" in reason.detail
        assert brake.stops(some(good.runtime, "tools/list")) is None
        assert brake.stops(some(good.runtime, "tasks/cancel")) is None
        assert await house.later.passes() == AGAIN_S
        assert await house.later.passes() == AGAIN_S
        assert [action for action, _ in house.records] == ["unproven"]
        assert len(house.told) == 1
        assert "the stage `policy` does not refuse" in house.told[0]
        house.force = good
        assert await house.later.passes() == AGAIN_S
        assert house.brake is None
        assert [action for action, _ in house.records] == ["unproven", "proven"]
        assert house.later.waiting[0][0] == PERIOD_S
        await house.prover.close()

    run(all_of_it())


def test_rules_that_broke_meanwhile_are_seen_though_the_pipeline_remembers_what_it_said(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def all_of_it() -> None:
        house = House(ready())
        assert await house.prover.prove()
        monkeypatch.setattr(Pipeline, "_judge", lambda self, call, now: _Judgement())
        assert not await house.prover.prove()
        await house.prover.close()

    run(all_of_it())


def test_people_hear_of_a_failure_as_soon_as_there_is_a_way_to_tell_them(run: Run) -> None:
    async def all_of_it() -> None:
        house = House(with_gates(ready(), Asleep("acl")))
        house.can_tell = False
        await house.prover.prove(first=True)
        assert house.told == []
        house.can_tell = True
        house.prover.tell()
        house.prover.tell()
        assert len(house.told) == 1
        await house.prover.close()

    run(all_of_it())


def test_a_log_that_is_not_whole_stops_everything_until_it_is(run: Run) -> None:
    async def all_of_it() -> None:
        house = House(ready())
        house.log = "record 7 of the log was changed"
        assert not await house.prover.prove()
        assert house.brake is house.prover
        proof = await house.prover.candidate(ready(), arm=False)
        house.prover.took(proof)  # other rules mend no log
        assert house.brake is house.prover
        house.log = ""
        await house.later.passes()
        assert house.brake is None
        await house.prover.close()

    run(all_of_it())


def test_a_proof_that_itself_fails_proves_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def all_of_it() -> None:
        house = House(ready())
        monkeypatch.setattr(proving, "Canaries", None)
        assert not await house.prover.prove()
        assert house.brake is not None
        assert "the proof itself failed" in house.prover.detail
        await house.prover.close()

    run(all_of_it())


def test_other_rules_take_over_only_with_a_proof_and_then_lift_what_the_old_ones_stopped(run: Run) -> None:
    async def all_of_it() -> None:
        good, bad = ready(), with_gates(ready(), Asleep("acl"))
        house = House(bad)
        await house.prover.prove()
        with pytest.raises(Unproven, match="what must be refused is not: the stage `acl` does not refuse"):
            await house.prover.candidate(bad, arm=False)
        proof = await house.prover.candidate(good, arm=True)
        house.force = good
        house.prover.took(proof)
        assert house.brake is None
        await house.prover.close()

    run(all_of_it())


def test_a_call_of_the_persons_own_that_passes_stops_what_enforces_and_only_warns_who_observes(run: Run) -> None:
    async def all_of_it() -> None:
        enforcing, observing = ready(CONFIG + OWN), ready(f"{CONFIG}{OWN}mode: observe\n")
        house = House(observing)
        assert await house.prover.prove()
        assert ["proof.1" in why for why in house.prover.proof.own] == [True]
        with pytest.raises(Unproven, match=r"work.*proof\.1") as caught:
            await house.prover.candidate(enforcing, arm=True)
        assert "take it out of `proof`" in caught.value.hint
        house.force = enforcing
        assert not await house.prover.prove()
        await house.prover.close()

    run(all_of_it())


def test_nobody_arms_what_nobody_has_seen_refuse_anything(run: Run) -> None:
    async def all_of_it() -> None:
        open_to_all = ready("defaults: {unlisted: observe}\n")
        house = House(open_to_all)
        assert await house.prover.prove()  # there is nothing to prove
        await house.prover.candidate(open_to_all, arm=False)
        with pytest.raises(Unproven, match="nothing that this configuration forbids can be tried"):
            await house.prover.candidate(open_to_all, arm=True)
        await house.prover.close()

    run(all_of_it())


def test_a_changed_tool_has_to_be_refused_until_somebody_trusts_it(run: Run) -> None:
    async def all_of_it() -> None:
        house = House(ready())
        for text in (b"one", b"another"):
            house.pins.shown("work", "tools/list", b'{"tools":[{"name":"read","description":"%s"}]}' % text)
        house.force = reloading.pinned(house.force, house.pins)
        assert await house.prover.prove()
        assert house.prover.proof.kinds["pins"] == 1
        house.force = with_gates(house.force, Asleep("pin"))
        assert not await house.prover.prove()
        assert "the stage `pin` does not refuse" in house.prover.detail
        await house.prover.close()

    run(all_of_it())


def test_the_loop_is_given_back_between_the_calls_of_a_large_proof(run: Run) -> None:
    async def all_of_it() -> None:
        house = House(ready())
        clock = iter(range(10**9))
        house.prover._now = lambda: float(next(clock))  # every look at the clock is a second later
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        other = asyncio.ensure_future(others())
        await house.prover.check(house.force)
        other.cancel()
        assert turns >= len(canaries(house.force))

    run(all_of_it())


def test_reloads_wait_for_a_proof_under_way(run: Run) -> None:
    async def all_of_it() -> None:
        house = House(ready())
        async with house.prover.turn:
            proving_now = asyncio.ensure_future(house.prover.prove())
            for _ in range(5):
                await asyncio.sleep(0)
            assert house.prover.at == 0.0
        assert await proving_now
        await house.prover.close()

    run(all_of_it())


def test_limits_tickets_and_the_log_know_nothing_of_a_proof(run: Run) -> None:
    async def all_of_it() -> None:
        log, limits = Log(), Limits()
        force = reloading.counted(ready(), limits.usage)
        house = House(force)
        assert await house.prover.prove()
        (claim,) = force.runtime.claims
        assert (limits.usage(claim, 0.0).current, limits.usage(claim, 0.0).reserved) == (0, 0)
        assert log.records == []
        await house.prover.close()

    run(all_of_it())


# --- the log ----------------------------------------------------------------------------------------------------------


def test_since_when_a_mode_holds_outlives_the_daemon(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
    first = Modes(db, lambda: 100.0)
    assert first.took("observe") == ""
    second = Modes(db, lambda: 200.0)
    assert second.took("observe") == ""
    assert (second.mode, second.since, second.by) == ("observe", 100.0, "")
    assert second.took("enforce", "ann") == "observe"
    third = Modes(db, lambda: 300.0)
    assert (third.mode, third.since, third.by) == ("enforce", 200.0, "ann")


def test_an_empty_log_is_whole_only_where_nothing_was_written(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    ensure_schema(path)
    assert proving._walk(path, None) == ""
    assert "is empty" in proving._walk(path, (3, "00"))
    assert "cannot be read" in proving._walk(tmp_path / "none.db", None)


def test_names_of_a_megabyte_in_the_log_do_not_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    ensure_schema(path)
    head = GENESIS
    with closing(sqlite3.connect(path)) as db:
        for seq in range(1, 2 * RECORDS + 1):
            size = 1 << 20 if seq > RECORDS else 1
            record = msgspec.json.encode({"kind": "denied", "prev": head, "seq": seq, "name": "x" * size})
            head = hashed(record).hex()
            db.execute("INSERT INTO records (seq, hash, record) VALUES (?, ?, ?)", (seq, head, record.decode()))
        db.commit()
    tracemalloc.start()
    try:
        assert proving._walk(path, (2 * RECORDS, head)) == ""
        assert tracemalloc.get_traced_memory()[1] < 64 << 20, "eight of them at a time, not two hundred"
    finally:
        tracemalloc.stop()
    assert "is not the one" in proving._walk(path, (2 * RECORDS, "00"))
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE records SET record = replace(record, 'denied', 'intent') WHERE seq = ?", (2 * RECORDS - 30,))
        db.commit()
    assert "not whole" in proving._walk(path, (2 * RECORDS, head))
