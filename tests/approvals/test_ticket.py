from __future__ import annotations

import json
import os
import sqlite3
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import Clock, call, tool

from aegis_daemon.approvals.desk import Desk
from aegis_daemon.approvals.store import _STEPS, TicketStore
from aegis_daemon.approvals.ticket import Ticket, Vote, digest, new_id, spoken
from aegis_daemon.core.handed import handed
from aegis_daemon.core.verdict import Ask, Hold

ASK = Ask("rule", 60.0)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([1.0, -0.5, "1", "", "a", "é"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.dictionaries(st.sampled_from("abcd"), VALUES, max_size=3),
    st.dictionaries(st.sampled_from("abcd"), VALUES, max_size=3),
)
def test_two_calls_have_one_digest_exactly_when_their_arguments_are_the_same(one: Any, two: Any) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(two, sort_keys=True)
    assert (digest(tool("post", one), ASK) == digest(tool("post", two), ASK)) is same


def test_the_order_of_keys_and_meta_do_not_matter_and_all_else_does() -> None:
    usual = call(params={"name": "post", "arguments": {"a": 1, "b": {"x": 1, "y": 2}}})
    alike = [
        call(params={"arguments": {"b": {"y": 2, "x": 1}, "a": 1}, "name": "post"}, id="other"),
        call(params={"name": "post", "arguments": {"a": 1, "b": {"x": 1, "y": 2}}, "_meta": {"progressToken": 1}}),
    ]
    assert {digest(one, ASK) for one in alike} == {digest(usual, ASK)}
    arguments = {"a": 1, "b": {"x": 1, "y": 2}}
    others = [
        tool("post", arguments, agent="bob"),
        tool("post", arguments, backend="mail"),
        tool("post", arguments, tenant="t2"),
        tool("posts", arguments),
        tool("post", {**arguments, "c": None}),
        tool("post", {**arguments, "a": 1.0}),
        tool("post", {**arguments, "a": "1"}),
        tool("post", {**arguments, "a": True}),
        tool("post", {**arguments, "b": {"x": 1}}),
        call(params={"name": "post", "arguments": arguments, "task": {"ttl": 1}}),
        call("prompts/get", {"name": "post", "arguments": arguments}),
        tool("post", arguments, handed=handed(["a"], "/", {})),
        tool("post", arguments, handed=handed(["a"], "/b", {})),
    ]
    digests = [digest(one, ASK) for one in (usual, *others)] + [digest(usual, Ask("another", 60.0))]
    assert len(set(digests)) == len(digests)
    assert digest(usual, Ask("rule", 999.0)) == digest(usual, ASK)


def test_an_id_grows_when_short_ones_are_scarce() -> None:
    class Short:
        def __contains__(self, id: object) -> bool:
            return len(str(id)) == 4

    assert len(new_id(Short())) == 5


def test_an_id_that_cannot_be_had_is_an_error_and_no_loop() -> None:
    class Everything:
        def __contains__(self, id: object) -> bool:
            return True

    with pytest.raises(RuntimeError):
        new_id(Everything())


@pytest.mark.parametrize(("typed", "id"), [("ab12", "AB12"), (" oiL0 ", "0110"), ("7KQZ", "7KQZ")])
def test_an_id_may_be_typed_as_it_is_heard(typed: str, id: str) -> None:
    assert spoken(typed) == id


def test_the_store_is_its_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = TicketStore(tmp_path / "state.db", full=True)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    store.close()
    assert set(modes.values()) == {0o600}, modes


def test_people_see_everything_that_a_call_of_a_tool_brings_with_it() -> None:
    usual = {"name": "pay", "arguments": {"to": "bob"}}
    assert call(params=usual).content == {"to": "bob"}
    assert call(params={**usual, "_meta": {"progressToken": 1}}).content == {"to": "bob"}
    answers = {"amount": {"action": "accept", "content": {"amount": 1_000_000}}}
    more = {"inputResponses": answers, "requestState": "s"}
    assert call(params={**usual, **more}).content == {"arguments": {"to": "bob"}, **more}
    assert call("prompts/get", {"name": "p", "arguments": {"a": "1"}}).content == {"name": "p", "arguments": {"a": "1"}}


# --- files of other versions ------------------------------------------------------------------------------------------

FORMER = """
CREATE TABLE tickets (
  call_id TEXT PRIMARY KEY, id TEXT NOT NULL, digest TEXT NOT NULL, agent TEXT NOT NULL, backend TEXT NOT NULL,
  method TEXT NOT NULL, name TEXT NOT NULL, arguments TEXT NOT NULL, rule TEXT NOT NULL, created REAL NOT NULL,
  expires REAL NOT NULL, claims TEXT NOT NULL, state TEXT NOT NULL, by TEXT NOT NULL, note TEXT NOT NULL, outcome BLOB
) STRICT;
CREATE INDEX tickets_state ON tickets (state, created);
"""
ROW = (
    "c" * 32, "AB12", "d" * 64, "amy", "files", "tools/call", "post", '{"text":"hi"}', "rule", 1.0, 601.0,
    '[{"scope":"agent","agent":"amy","backend":"files","tool":"post","window_s":60.0,"max_count":1}]',
    "approved", "ann", "fine", None,
)  # fmt: skip


def former(path: Path) -> None:
    """A file as the first version left it."""
    db = sqlite3.connect(path)
    db.executescript(FORMER)
    db.execute(f"INSERT INTO tickets VALUES ({','.join('?' * len(ROW))})", ROW)
    db.commit()
    db.close()


def test_a_file_of_the_first_version_keeps_its_tickets(tmp_path: Path) -> None:
    former(tmp_path / "state.db")
    for _ in range(2):
        store = TicketStore(tmp_path / "state.db", full=True)
        (ticket,) = store.open_tickets()
        assert (ticket.id, ticket.state, ticket.by, ticket.claims[0].tool) == ("AB12", "approved", "ann", "post")
        assert (ticket.people, ticket.votes, ticket.client, ticket.via, ticket.task) == (1, (), "", "", "")
        assert (ticket.server, ticket.command, ticket.cwd) == ("", "", "")
        ticket.votes = (Vote("user:ann", "ann", "cli", "fine", 5.0),)
        store.put(ticket)
        assert store.open_tickets()[0].votes == ticket.votes
        assert store.take(ticket)
        assert not store.take(ticket)
        ticket.votes = ()
        store.put(ticket)
        store.close()


def test_a_file_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    former(tmp_path / "state.db")
    db = sqlite3.connect(tmp_path / "state.db")
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(sqlite3.DatabaseError, match="later version"):
        TicketStore(tmp_path / "state.db", full=True)
    db = sqlite3.connect(tmp_path / "state.db")
    assert db.execute("SELECT count(*) FROM pragma_table_info('tickets')").fetchone() == (len(ROW),)
    db.close()


def test_a_change_of_the_file_that_fails_half_way_has_not_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    former(tmp_path / "state.db")
    monkeypatch.setattr("aegis_daemon.approvals.store._STEPS", (f"{_STEPS[0]} SELECT nothing;",))
    with pytest.raises(sqlite3.OperationalError):
        TicketStore(tmp_path / "state.db", full=True)
    monkeypatch.undo()
    store = TicketStore(tmp_path / "state.db", full=True)
    assert len(store.open_tickets()) == 1
    store.close()


@pytest.mark.parametrize(
    "params",
    [
        {"name": "post", "arguments": {"a": 1, "b": [1.0, None, 2**70]}},
        {"name": "post"},
        {"name": "post", "arguments": {}},
        {"name": "post", "arguments": {"arguments": {}, "x": 1}},
        {"name": "post", "arguments": {}, "inputResponses": {"q": 1}},
        {"name": "post", "requestState": "s"},
    ],
)
def test_what_a_ticket_keeps_gives_the_call_again_as_it_was(tmp_path: Path, params: dict[str, Any]) -> None:
    store = TicketStore(tmp_path / "state.db", full=False)
    asked = call(params={**params, "_meta": {"progressToken": 1}}, handed=handed(["a", "b c"], "/w", {}))
    desk = Desk(store, wall=lambda: 0.0, call_later=Clock().call_later, on_event=lambda event, ticket: None)
    ticket = desk.open(Hold(asked, ASK))
    assert isinstance(ticket, Ticket)
    (kept,) = store.open_tickets()
    assert desk.params(kept, "default") == params
    assert (kept.server, kept.command, kept.cwd) == (asked.server, "a 'b c'", "/w")
    assert desk.params(msgspec.structs.replace(kept, server=""), "default") is None
    assert desk.params(kept, "another tenant") is None
    kept.arguments = '{"a":2}'
    assert desk.params(kept, "default") is None
    store.close()
