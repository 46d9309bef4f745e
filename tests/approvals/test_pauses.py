from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from making import call, tool

from aegis_daemon.approvals.pauses import EVERYTHING, Pause, Pauses
from aegis_daemon.approvals.quotas import Quotas
from aegis_daemon.approvals.store import TicketStore
from aegis_daemon.wire.methods import TO_CLIENT, TO_SERVER, Direction, Era

PASSES = {
    "initialize", "server/discover", "ping", "logging/setLevel", "tools/list", "resources/list",
    "resources/templates/list", "prompts/list", "tasks/list", "tasks/get", "tasks/cancel", "tasks/result",
}  # fmt: skip
NAMED: dict[str, dict[str, Any]] = {
    "tools/call": {"name": "read"}, "resources/read": {"uri": "x:y"}, "resources/subscribe": {"uri": "x:y"},
    "resources/unsubscribe": {"uri": "x:y"}, "prompts/get": {"name": "p"}, "tasks/get": {"taskId": "t"},
    "tasks/cancel": {"taskId": "t"}, "tasks/result": {"taskId": "t"}, "tasks/update": {"taskId": "t"},
    "completion/complete": {"ref": {"type": "ref/prompt", "name": "p"}},
}  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TicketStore]:
    made = TicketStore(tmp_path / "state.db", full=False)
    yield made
    made.close()


def test_every_call_of_a_paused_agent_is_stopped_and_what_only_follows_passes(store: TicketStore) -> None:
    pauses = Pauses(store.db)
    pauses.pause(Pause("amy", "ann", "", 1.0))
    passed = {
        row.name
        for row in TO_SERVER.values()
        if pauses.stops(call(row.name, NAMED.get(row.name, {}), era=Era.LEGACY if row.legacy else Era.MODERN)) is None
    }
    assert passed == PASSES


def test_what_a_server_asks_of_a_paused_client_is_stopped_too(store: TicketStore) -> None:
    pauses = Pauses(store.db)
    pauses.pause(Pause("amy", "ann", "", 1.0))
    passed = {
        row.name for row in TO_CLIENT.values() if pauses.stops(call(row.name, direction=Direction.TO_CLIENT)) is None
    }
    assert passed == {"ping", "tasks/get", "tasks/cancel", "tasks/result"}


def test_the_pause_of_one_stops_no_other_and_the_pause_of_all_stops_all(store: TicketStore) -> None:
    pauses = Pauses(store.db)
    assert pauses.stops(tool("read")) is None
    pauses.pause(Pause("amy", "ann", "", 1.0))
    assert pauses.stops(tool("read", agent="bob")) is None
    one = pauses.stops(tool("read"))
    assert one is not None
    assert one.stage == "paused"
    assert not one.retryable
    assert "this agent" in one.text
    assert "nothing was executed" in one.text
    assert "ann" not in one.text
    assert "ann" in one.detail
    pauses.pause(Pause(EVERYTHING, "ann", "", 2.0))
    both = pauses.stops(tool("read", agent="bob"))
    assert both is not None
    assert "all agents" in both.text
    assert pauses.resume(EVERYTHING) is not None
    assert pauses.stops(tool("read", agent="bob")) is None
    assert pauses.stops(tool("read")) is not None  # it was stopped by name, and stays


def test_a_later_daemon_finds_the_pauses(store: TicketStore) -> None:
    pauses = Pauses(store.db)
    pauses.pause(Pause("bob", "ann", "why", 1.0))
    pauses.pause(Pause(EVERYTHING, "ann", "panic", 2.0))
    pauses.pause(Pause("bob", "eve", "again", 3.0))
    assert Pauses(store.db).rows() == pauses.rows() == [
        Pause(EVERYTHING, "ann", "panic", 2.0), Pause("bob", "eve", "again", 3.0),
    ]  # fmt: skip
    pauses.resume(EVERYTHING)
    assert pauses.resume("amy") is None
    assert [pause.agent for pause in Pauses(store.db).rows()] == ["bob"]


class Full:
    """A connection that can read."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def executescript(self, text: str) -> Any:
        return self._db.executescript(text)

    def execute(self, sql: str, *values: Any) -> Any:
        if sql.startswith("SELECT"):
            return self._db.execute(sql, *values)
        raise sqlite3.OperationalError("database or disk is full")


def test_on_a_full_disk_a_pause_holds_and_so_does_one_that_is_to_be_lifted(store: TicketStore) -> None:
    pauses = Pauses(Full(store.db))  # type: ignore[arg-type]
    with pytest.raises(sqlite3.Error):
        pauses.pause(Pause("amy", "ann", "", 1.0))
    assert pauses.stops(tool("read")) is not None
    with pytest.raises(sqlite3.Error):
        pauses.resume("amy")
    assert pauses.stops(tool("read")) is not None


# --- extra quota ------------------------------------------------------------------------------------------------------

KEY = ("agent", "amy", "files", "post")


class Time:
    now = 50.0
    wall = 1_000_000.0

    def quotas(self, store: TicketStore, boot: str = "boot-1") -> Quotas:
        return Quotas(store.db, now=lambda: self.now, wall=lambda: self.wall, boot=boot)


def test_a_later_daemon_finds_extra_quota_with_the_time_that_is_left(store: TicketStore) -> None:
    time = Time()
    time.quotas(store).add(KEY, 3, 60.0, "ann")
    time.quotas(store).add(("global", None, "files", "post"), 1, 20.0, "ann")
    time.now += 25
    time.wall += 25
    ((quota, left),) = time.quotas(store).held()
    assert (quota.key, quota.count, left) == (KEY, 3, 35.0)
    time.wall -= 1000  # within one boot its own clock decides
    assert [left for _, left in time.quotas(store).held()] == [35.0]
    assert time.quotas(store, "boot-2").held() == []  # and after another one nobody knows
    time.wall += 2000
    assert time.quotas(store).held() == []
    assert time.quotas(store).count(KEY) == 0
