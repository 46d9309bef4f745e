from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from making import Clock, tool

from aegis_daemon.approvals.store import TicketStore
from aegis_daemon.approvals.ticket import Ticket, digest
from aegis_daemon.core.ports import AuditUnavailable
from aegis_daemon.core.verdict import Ask, Deny, Hold
from aegis_daemon.daemon import reload as reloading
from aegis_daemon.daemon.orders import MOST_QUOTAS, Orders
from aegis_daemon.limits import Limits
from aegis_daemon.manage import api, shapes

CONFIG = """
approval: {max_grant: 1h}
backends: {files: {}}
queue: {files: {enabled: false, global_rate_limits: {post: 5/1h}}}
agents:
  amy: {backends: {files: {allowed: true, approval_required: [pay], rate_limits: {post: 1/1h}}}}
  bob: {backends: {files: {allowed: true}}}
"""
ASK = Ask("agents.amy.backends.files.approval_required", 600.0)
PAY = tool("pay", {"eur": 5})


class Log:
    """A journal that can be full."""

    boot = "boot-1"

    def __init__(self) -> None:
        self.records: list[Any] = []
        self.full = False

    def append(self, record: Any) -> int:
        if self.full:
            raise AuditUnavailable("the disk is full")
        self.records.append(record)
        return len(self.records)

    def told(self) -> list[str]:
        return [getattr(record, "decision", "") or record.action for record in self.records]


class Disk:
    """A connection that can be full."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self.full = False

    def executescript(self, text: str) -> Any:
        return self._db.executescript(text)

    def execute(self, sql: str, *values: Any) -> Any:
        if self.full and not sql.startswith("SELECT"):
            raise sqlite3.OperationalError("database or disk is full")
        return self._db.execute(sql, *values)


class Room:
    """Orders, and what they told whom."""

    def __init__(self, at: Path) -> None:
        (at / "aegis.yaml").write_text(CONFIG)
        self.force = reloading.read(at / "aegis.yaml")
        self.store = TicketStore(at / "state.db", full=False)
        self.disk, self.log, self.clock = Disk(self.store.db), Log(), Clock(1_000_000.0)
        self.open()

    def open(self) -> None:
        self.brake: Any = "untold"
        self.limits = Limits()
        self.orders = Orders(
            self.disk,  # type: ignore[arg-type]
            self.log,  # type: ignore[arg-type]
            self.limits,
            in_force=lambda: self.force,
            brake=lambda brake: setattr(self, "brake", brake),
            agents=lambda: ["visitor"],
            now=self.clock.now,
            wall=self.clock.now,
        )

    def give(self, **ask: Any) -> None:
        call = PAY
        ticket = Ticket(
            id="K7Q2", call_id=call.id, digest=digest(call, ASK), agent="amy", backend="files", method=call.method,
            name="pay", arguments=msgspec.json.encode(call.content).decode(), rule=ASK.rule, created=0.0, expires=1.0,
        )  # fmt: skip
        self.orders.keep(self.orders.draft(ticket, shapes.GrantAsk(**{"seconds": 60.0, **ask}), "ann"), "cli", "why")

    @property
    def granted(self) -> bool:
        return self.orders.grants.find(Hold(PAY, ASK)) is not None

    def posts(self) -> int:
        """How many calls amy's limit lets through now."""
        (claim,) = (claim for claim in self.force.runtime.claims if claim.agent == "amy")
        return sum(not isinstance(self.limits.reserve((claim,), self.clock.at), Deny) for _ in range(20))


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    made = Room(tmp_path)
    yield made
    made.store.close()


def test_a_grant_is_recorded_with_who_gave_it_how_and_for_what(room: Room) -> None:
    room.give(free=["eur"], uses=3)
    (record,) = room.log.records
    assert (record.decision, record.by, record.via, record.call) == ("granted", "ann", "cli", PAY.id)
    assert record.ticket == room.orders.granted()[0].id
    for word in ("3 uses", "any `eur`", "why"):
        assert word in record.note
    assert room.granted


def test_what_lets_more_happen_and_cannot_be_recorded_does_not_happen(room: Room) -> None:
    room.orders.pause("amy", "ann", "")
    room.log.full = True
    with pytest.raises(api.Refusal, match="approved, once, but not remembered"):
        room.give()
    with pytest.raises(api.Refusal, match="stays paused"):
        room.orders.resume("amy", "ann")
    with pytest.raises(api.Refusal, match="stays as it is"):
        room.orders.allow_more("amy", "files", "post", 1, None, "ann", "")
    assert not room.granted
    assert room.brake is room.orders.pauses
    assert room.posts() == 1


def test_what_lets_more_happen_and_cannot_be_kept_does_not_happen(room: Room) -> None:
    room.orders.pause("amy", "ann", "")
    room.disk.full = True
    with pytest.raises(api.Refusal):
        room.give()
    with pytest.raises(api.Refusal):
        room.orders.resume("amy", "ann")
    with pytest.raises(api.Refusal):
        room.orders.allow_more("amy", "files", "post", 1, None, "ann", "")
    assert not room.granted
    assert room.brake is room.orders.pauses
    assert room.posts() == 1
    # The log never ends by saying that something holds which does not.
    assert room.log.told()[1:] == ["granted", "revoked", "resume", "resume failed", "quota", "quota failed"]


@pytest.mark.parametrize("full", ["disk", "log"])
def test_what_stops_something_holds_whatever_cannot_be_written(room: Room, full: str) -> None:
    room.give()
    (room.disk if full == "disk" else room.log).full = True
    for stop in (lambda: room.orders.pause(None, "ann", ""), lambda: room.orders.revoke(None, "ann", "cli")):
        if full == "disk":
            with pytest.raises(api.Refusal, match="after a restart"):
                stop()
        else:
            stop()
    assert room.brake is room.orders.pauses
    assert not room.granted
    if full == "disk":
        assert room.log.told() == ["granted", "pause", "revoked"]


def test_revoking_says_which_id_is_no_grants_and_ends_the_others(room: Room) -> None:
    room.give()
    (row,) = room.orders.granted()
    with pytest.raises(api.NotFound, match="`G-ZZZZ` holds; 1 others have ended"):
        room.orders.revoke([row.id, "zzzz"], "ann", "cli")
    assert not room.granted
    assert room.log.told() == ["granted", "revoked"]


def test_an_agent_is_paused_by_its_name_and_by_no_other(room: Room) -> None:
    for wrong, hint in (("amyy", "did you mean `amy`?"), ("nobody-at-all", "`amy`, `bob`, `visitor`")):
        with pytest.raises(api.NotFound) as caught:
            room.orders.pause(wrong, "ann", "")
        assert hint in caught.value.hint
    assert room.brake is None
    room.orders.pause("visitor", "ann", "who is it")
    room.open()
    assert [(row.agent_id, row.note) for row in room.orders.paused()] == [("visitor", "who is it")]
    assert room.brake is room.orders.pauses
    room.orders.pause("visitor", "bob", "")  # whoever has nothing to add takes nothing away
    assert [(row.by, row.note) for row in room.orders.paused()] == [("bob", "who is it")]


def test_resuming_lifts_exactly_what_was_named(room: Room) -> None:
    room.orders.pause("amy", "ann", "")
    with pytest.raises(api.NotFound) as caught:
        room.orders.resume(None, "ann")
    assert "aegis resume amy" in caught.value.hint
    room.orders.pause(None, "ann", "")
    with pytest.raises(api.NotFound) as caught:
        room.orders.resume("bob", "ann")
    assert "everything is" in caught.value.hint
    room.orders.resume(None, "ann")
    assert [row.agent_id for row in room.orders.paused()] == ["amy"]
    room.orders.resume("amy", "ann")
    assert room.brake is None


def test_a_limit_is_raised_until_its_time_is_over_also_by_a_later_daemon(room: Room) -> None:
    made = room.orders.allow_more("amy", "files", "post", 2, 600.0, "ann", "once")
    assert (made.scope, made.max_count, made.extra) == ("agent", 1, 2)
    room.open()
    assert room.posts() == 3
    room.open()
    room.clock.passes(601)
    assert room.posts() == 1
    assert room.orders.allow_more(None, "files", "post", 1, None, "ann", "").max_count == 5


def test_a_limit_that_is_not_there_or_for_too_long_is_not_raised(room: Room) -> None:
    for agent, tool_name, text in (("bob", "post", "no limit of `bob`"), (None, "pay", "no limit over all agents")):
        with pytest.raises(api.NotFound, match=text):
            room.orders.allow_more(agent, "files", tool_name, 1, None, "ann", "")
    with pytest.raises(api.BadRequest, match="longer than the limit's window") as caught:
        room.orders.allow_more("amy", "files", "post", 1, 3601.0, "ann", "")
    assert caught.value.hint == "name at most `1h`"
    for _ in range(MOST_QUOTAS):
        room.orders.allow_more("amy", "files", "post", 1, None, "ann", "")
    with pytest.raises(api.BadRequest, match="already"):
        room.orders.allow_more("amy", "files", "post", 1, None, "ann", "")
