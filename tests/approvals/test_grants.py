from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import call as made
from making import tool

from aegis_daemon.approvals.grants import ANY, LARGEST, MOST, USES, Grant, Grants, NotGiven, named, shape
from aegis_daemon.approvals.store import TicketStore
from aegis_daemon.approvals.ticket import CROCKFORD, Ticket, digest
from aegis_daemon.core.call import Call
from aegis_daemon.core.handed import handed
from aegis_daemon.core.verdict import Ask, Hold

RULE = "agents.amy.backends.files.approval_required"
ASK = Ask(RULE, 600.0)
ISSUE = {"repo": "acme/x", "title": "one", "labels": ["a", 1]}


class Refusing:
    """A connection whose disk is full."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self.full = False

    def execute(self, *given: Any) -> Any:
        if self.full and not given[0].startswith("SELECT"):
            raise sqlite3.OperationalError("database or disk is full")
        return self._db.execute(*given)

    def executescript(self, text: str) -> Any:
        return self._db.executescript(text)


class House:
    """Grants over a real file, with a boot clock and a calendar of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mono = 5_000.0
        self.wall = 1_000_000.0
        self.boot = "boot-1"
        self.longest = 8 * 3600.0
        self.open()

    def open(self) -> None:
        self.store = TicketStore(self.path, full=False)
        self.db = Refusing(self.store.db)
        self.grants = Grants(
            self.db,  # type: ignore[arg-type]
            now=lambda: self.mono,
            wall=lambda: self.wall,
            boot=self.boot,
            longest=self.longest,
        )

    def restarts(self) -> None:
        self.store.close()
        self.open()

    def passes(self, seconds: float) -> None:
        self.mono += seconds
        self.wall += seconds

    def give(self, call: Call, ask: Ask = ASK, **options: Any) -> Grant:
        tenant = call.principal.tenant
        grant = self.grants.draft(ticket(call, ask), tenant, **{"by": "ann", "seconds": 900.0, **options})
        self.grants.keep(grant)
        return grant

    def finds(self, call: Call, ask: Ask = ASK) -> Any:
        return self.grants.find(Hold(call, ask))


def ticket(call: Call, ask: Ask = ASK) -> Ticket:
    """As the desk makes it: all that is left of a call."""
    return Ticket(
        id="K7Q2", call_id=call.id, digest=digest(call, ask), agent=call.principal.agent, backend=call.backend,
        method=call.method, name=call.name or "", arguments=msgspec.json.encode(call.content).decode(), rule=ask.rule,
        created=0.0, expires=600.0, people=ask.people, server=call.server,
    )  # fmt: skip


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path / "state.db")
    yield made
    made.store.close()


# --- what it lets through ---------------------------------------------------------------------------------------------


def test_the_same_call_needs_nobody_any_more_and_another_one_does(house: House) -> None:
    grant = house.give(tool("issue", ISSUE))
    found = house.finds(tool("issue", dict(reversed(ISSUE.items()))))
    assert (found.id, found.by) == (grant.id, "ann")
    for other in (
        tool("issue", {**ISSUE, "title": "two"}),
        tool("issue", {**ISSUE, "force": True}),
        tool("issue", {key: value for key, value in ISSUE.items() if key != "title"}),
        tool("issue", {**ISSUE, "labels": ["a", 1.0]}),
        tool("issue", {**ISSUE, "labels": ["a", True]}),
        tool("issue"),
        tool("other", ISSUE),
        tool("issue", ISSUE, agent="bob"),
        tool("issue", ISSUE, backend="mail"),
        tool("issue", ISSUE, tenant="else"),
        made(params={"name": "issue", "arguments": ISSUE, "inputResponses": {"a": 1}}),
        made(params={"name": "issue", "arguments": ISSUE, "task": {"ttl": 1}}),
    ):
        assert house.finds(other) is None
    assert house.finds(tool("issue", ISSUE), Ask("agents.amy.backends.files.other_rule", 600.0)) is None
    assert house.finds(tool("issue", ISSUE), Ask(RULE, 600.0, people=2)) is None


def test_a_grant_for_a_server_that_was_handed_over_is_none_for_another(house: House) -> None:
    dev, prod = (handed(["db"], "/w", {"URL": where}) for where in ("dev", "prod"))
    grant = house.give(tool("issue", ISSUE, handed=dev), free=("title",))
    for _ in range(2):
        assert house.finds(tool("issue", ISSUE, handed=dev)).id == grant.id
        assert house.finds(tool("issue", ISSUE, handed=prod)) is None
        assert house.finds(tool("issue", ISSUE)) is None
        assert house.grants.covers(grant, ticket(tool("issue", ISSUE, handed=dev)))
        assert not house.grants.covers(grant, ticket(tool("issue", ISSUE, handed=prod)))
        house.restarts()
    plain = house.give(tool("other", ISSUE))
    assert house.finds(tool("other", ISSUE, handed=dev)) is None
    assert house.finds(tool("other", ISSUE)).id == plain.id


def test_a_file_of_an_earlier_version_keeps_its_grants_for_what_is_not_handed_over(house: House) -> None:
    grant = house.give(tool("issue", ISSUE))
    for column in ("server", "command", "cwd"):
        house.store.db.execute(f"ALTER TABLE grants DROP COLUMN {column}")
    house.restarts()
    assert house.finds(tool("issue", ISSUE)).id == grant.id
    assert house.finds(tool("issue", ISSUE, handed=handed(["db"], "/", {}))) is None


def test_what_the_protocol_adds_does_not_matter(house: House) -> None:
    house.give(made(params={"name": "issue", "arguments": ISSUE, "_meta": {"progressToken": 1}}))
    assert house.finds(made(params={"arguments": ISSUE, "name": "issue", "_meta": {"other": 2}}))


def test_a_free_argument_may_have_any_value_and_must_be_there(house: House) -> None:
    house.give(tool("issue", ISSUE), free=["title", "title"])
    assert house.finds(tool("issue", {**ISSUE, "title": {"any": ["thing"]}}))
    assert house.finds(tool("issue", {**ISSUE, "title": None}))
    assert house.finds(tool("issue", {**ISSUE, "repo": "acme/y"})) is None
    assert house.finds(tool("issue", {**ISSUE, "title": "x", "more": 1})) is None
    assert house.finds(tool("issue", {"repo": "acme/x", "labels": ["a", 1]})) is None


def test_any_arguments_are_any_arguments_and_nothing_else_is(house: House) -> None:
    house.give(tool("issue", ISSUE), any_arguments=True)
    for arguments in (ISSUE, {}, {"force": True}):
        assert house.finds(tool("issue", arguments))
    assert house.finds(made(params={"name": "issue"}))
    assert house.finds(made(params={"name": "issue", "arguments": [1]})) is None
    assert house.finds(made(params={"name": "issue", "arguments": ISSUE, "inputResponses": {}})) is None
    assert house.finds(tool("other", ISSUE)) is None


@pytest.mark.parametrize(
    "params",
    [
        {"name": "issue"},
        {"name": "issue", "arguments": {}},
        {"name": "issue", "arguments": {"arguments": {}}},
        {"name": "issue", "arguments": {"arguments": {"a": 1}, "inputResponses": {}}},
        {"name": "issue", "arguments": {"a": 1}, "inputResponses": {}},
        {"name": "issue", "inputResponses": {}},
        {"name": "issue", "arguments": [1, 2]},
    ],
)
def test_of_calls_that_look_alike_in_a_ticket_only_the_approved_one_passes(
    house: House, params: dict[str, Any]
) -> None:
    alike: list[dict[str, Any]] = [
        {"name": "issue"},
        {"name": "issue", "arguments": {}},
        {"name": "issue", "arguments": {"arguments": {}}},
        {"name": "issue", "arguments": {"arguments": {"a": 1}, "inputResponses": {}}},
        {"name": "issue", "arguments": {"a": 1}, "inputResponses": {}},
        {"name": "issue", "inputResponses": {}},
        {"name": "issue", "arguments": [1, 2]},
    ]
    house.give(made(params=params))
    assert [other for other in alike if house.finds(made(params=other))] == [params]


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([0.0, 1.0, -1.0, 0.5])
    | st.text("ab1", max_size=2),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
    max_leaves=4,
)
NAMES = st.sampled_from(["a", "b", "c", "d", "*"])
ARGUMENTS = st.dictionaries(NAMES, VALUES, max_size=4)
PARAMS = st.fixed_dictionaries(
    {"name": st.just("t")},
    optional={"arguments": ARGUMENTS, "inputResponses": VALUES, "_meta": st.dictionaries(NAMES, VALUES, max_size=1)},
)


def same(one: Any, other: Any) -> bool:
    """Whether two JSON values are the same, type by type."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def inside(given: dict[str, Any], free: list[str], everything: bool, other: dict[str, Any]) -> bool:
    """What the contract says, in other words than the code's."""
    outer = {"arguments", "_meta"}
    if not same({k: v for k, v in given.items() if k not in outer}, {k: v for k, v in other.items() if k not in outer}):
        return False
    if everything:
        return True
    if ("arguments" in given) != ("arguments" in other):
        return False
    mine, its = given.get("arguments", {}), other.get("arguments", {})
    return mine.keys() == its.keys() and all(name in free or same(mine[name], its[name]) for name in mine)


@given(PARAMS, st.lists(NAMES, max_size=3), st.booleans(), PARAMS, st.data())
def test_no_call_outside_the_shape_is_ever_let_through(
    given: dict[str, Any], free: list[str], everything: bool, other: dict[str, Any], data: st.DataObject
) -> None:
    if data.draw(st.booleans()):  # near misses are rarer than misses
        changed = dict(given)
        if "arguments" in given and data.draw(st.booleans()):
            changed["arguments"] = {**given["arguments"], **data.draw(ARGUMENTS)}
        other = changed
    names = (ANY,) if everything else tuple(name for name in free if name != ANY)
    one, two = shape(given, names), shape(other, names)
    assert (one is not None and one == two) == inside(given, list(names), everything, other)


# --- how long, and how often ------------------------------------------------------------------------------------------


def test_it_ends_when_it_was_said_to(house: House) -> None:
    house.give(tool("issue", ISSUE), seconds=900.0)
    house.passes(899.9)
    assert house.finds(tool("issue", ISSUE))
    house.passes(0.2)
    assert house.finds(tool("issue", ISSUE)) is None
    assert house.grants.rows() == []


@pytest.mark.parametrize("step", [-86400.0, -10.0])
def test_a_calendar_that_is_set_back_lengthens_nothing(house: House, step: float) -> None:
    house.give(tool("issue", ISSUE), seconds=900.0)
    house.passes(600)
    house.wall += step
    assert house.finds(tool("issue", ISSUE))
    house.restarts()
    assert house.finds(tool("issue", ISSUE))
    house.passes(301)
    assert house.finds(tool("issue", ISSUE)) is None
    house.restarts()
    assert house.finds(tool("issue", ISSUE)) is None


def test_after_another_boot_a_calendar_before_its_beginning_ends_it(house: House) -> None:
    house.give(tool("issue", ISSUE), seconds=900.0)
    house.boot, house.mono = "boot-2", 1.0
    house.restarts()
    assert house.finds(tool("issue", ISSUE))
    house.wall -= 1
    house.restarts()
    assert house.finds(tool("issue", ISSUE)) is None


def test_after_another_boot_it_has_what_the_calendar_leaves_it(house: House) -> None:
    house.give(tool("issue", ISSUE), seconds=900.0)
    house.wall += 600
    house.boot, house.mono = "boot-2", 1.0
    house.restarts()
    house.passes(299)
    assert house.finds(tool("issue", ISSUE))
    house.passes(2)
    assert house.finds(tool("issue", ISSUE)) is None


def test_a_calendar_that_is_set_forward_ends_it(house: House) -> None:
    house.give(tool("issue", ISSUE), seconds=900.0)
    house.wall += 901
    assert house.finds(tool("issue", ISSUE)) is None


def test_it_has_so_many_uses_and_no_more_over_restarts(house: House) -> None:
    grant = house.give(tool("issue", ISSUE), uses=5)
    for left in range(4, -1, -1):
        found = house.finds(tool("issue", ISSUE))
        assert house.grants.use(found)
        assert [row.uses_left for row in house.grants.rows()] == ([left] if left else [])
        if left % 2:
            house.restarts()
    assert house.finds(tool("issue", ISSUE)) is None
    house.restarts()
    assert house.finds(tool("issue", ISSUE)) is None
    assert house.give(tool("issue", ISSUE)).uses_left == USES
    assert grant.id not in {row.id for row in house.grants.rows()}


def test_of_two_hundred_calls_ten_uses_let_ten_through(house: House) -> None:
    house.give(tool("issue", ISSUE), uses=10)
    found = house.finds(tool("issue", ISSUE))
    assert sum(house.grants.use(found) for _ in range(200)) == 10


def test_a_use_that_cannot_be_kept_is_none(house: House) -> None:
    house.give(tool("issue", ISSUE))
    found = house.finds(tool("issue", ISSUE))
    house.db.full = True
    assert not house.grants.use(found)
    house.db.full = False
    assert house.grants.use(found)
    assert house.grants.rows()[0].uses_left == USES - 1


def test_another_daemon_finds_what_the_disk_says(house: House) -> None:
    grant = house.give(tool("issue", ISSUE), free=["title"], uses=7)
    house.restarts()
    assert house.grants.rows() == [grant]
    assert house.finds(tool("issue", {**ISSUE, "title": "two"})).id == grant.id


def test_a_shorter_longest_time_cuts_what_was_given_before(house: House) -> None:
    house.give(tool("issue", ISSUE), seconds=3600.0)
    house.passes(600)
    house.grants.bound(1200.0)
    assert house.finds(tool("issue", ISSUE))
    house.passes(601)
    assert house.finds(tool("issue", ISSUE)) is None


@pytest.mark.parametrize("restarts", [False, True])
def test_switching_grants_off_ends_them_for_good(house: House, restarts: bool) -> None:
    house.give(tool("issue", ISSUE))
    house.grants.bound(0.0)
    assert house.grants.rows() == []
    assert house.finds(tool("issue", ISSUE)) is None
    if restarts:
        house.restarts()
    house.grants.bound(8 * 3600.0)
    assert house.finds(tool("issue", ISSUE)) is None, "nobody gave it anew"


def test_a_grant_that_was_cut_does_not_grow_again(house: House) -> None:
    house.give(tool("issue", ISSUE), seconds=3600.0)
    house.grants.bound(60.0)
    house.restarts()  # with the old, longer time
    assert house.finds(tool("issue", ISSUE))
    house.passes(61)
    assert house.finds(tool("issue", ISSUE)) is None


def test_a_grant_is_cut_at_once_whatever_the_disk_says(house: House) -> None:
    house.give(tool("issue", ISSUE))
    house.db.full = True
    house.grants.bound(0.0)
    assert house.finds(tool("issue", ISSUE)) is None


# --- revoked ----------------------------------------------------------------------------------------------------------


def test_a_revoked_grant_is_gone_also_for_later_daemons(house: House) -> None:
    one, two = house.give(tool("issue", ISSUE)), house.give(tool("other", ISSUE))
    ended, unknown = house.grants.revoke([one.id.lower()[2:], "G-ZZZZ"])
    assert ([grant.id for grant in ended], unknown) == ([one.id], ["G-ZZZZ"])
    for _ in range(2):
        assert house.finds(tool("issue", ISSUE)) is None
        assert house.finds(tool("other", ISSUE)).id == two.id
        house.restarts()
    assert [grant.id for grant in house.grants.revoke(None)[0]] == [two.id]
    assert house.grants.rows() == []


def test_a_grant_whose_revoking_cannot_be_kept_has_ended_all_the_same(house: House) -> None:
    grant = house.give(tool("issue", ISSUE))
    house.db.full = True
    with pytest.raises(sqlite3.Error):
        house.grants.revoke([grant.id])
    assert house.finds(tool("issue", ISSUE)) is None
    house.db.full = False
    assert house.grants.revoke([grant.id]) == ([], [])  # the disk follows, once it can
    house.restarts()
    assert house.finds(tool("issue", ISSUE)) is None


def test_a_call_in_line_may_still_go_while_its_grant_was_not_taken_back(house: House) -> None:
    grant = house.give(tool("issue", ISSUE), uses=1)
    assert house.grants.use(house.finds(tool("issue", ISSUE)))
    assert house.grants.holds(grant.id)  # used up by this very call
    house.grants.revoke(None)
    assert not house.grants.holds(grant.id)
    later = house.give(tool("issue", ISSUE))
    house.passes(901)
    assert not house.grants.holds(later.id)


# --- not given --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "options", "text"),
    [
        (tool("issue", ISSUE), {"seconds": 8 * 3600 + 1.0}, "longer than an approval is remembered"),
        (tool("issue", ISSUE), {"free": ["titel"]}, "no argument `titel`"),
        (tool("issue", {"*": 1}), {"free": ["*"]}, "stands for all arguments"),
        (made(params={"name": "issue", "arguments": [1]}), {"free": ["a"]}, "have no names"),
        (made(params={"name": "issue", "arguments": [1]}), {"any_arguments": True}, "have no names"),
        (made("resources/read", {"uri": "file:///x"}), {}, "only calls of tools"),
        (tool("issue", {"x": "y" * LARGEST}), {}, "more than 64 KB"),
    ],
)
def test_what_cannot_be_remembered_is_said_and_nothing_is(
    house: House, call: Call, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(NotGiven, match=text):
        house.give(call, **options)
    assert house.grants.rows() == []


def test_a_misspelt_argument_hears_the_nearest_one(house: House) -> None:
    with pytest.raises(NotGiven) as caught:
        house.give(tool("issue", ISSUE), free=["titel"])
    assert caught.value.hint == "did you mean `title`?"


def test_where_two_must_agree_nothing_is_remembered(house: House) -> None:
    with pytest.raises(NotGiven, match="two people"):
        house.give(tool("issue", ISSUE), Ask(RULE, 600.0, people=2))


def test_where_grants_are_switched_off_there_are_none(house: House) -> None:
    house.grants.bound(0.0)
    with pytest.raises(NotGiven, match="max_grant"):
        house.give(tool("issue", ISSUE), seconds=1.0)


def test_a_ticket_that_is_not_what_was_asked_gives_no_grant(house: House) -> None:
    forged = ticket(tool("issue", ISSUE))
    forged.arguments = json.dumps({**ISSUE, "title": "two"})
    with pytest.raises(NotGiven, match="cannot be remembered"):
        house.grants.draft(forged, "default", by="ann", seconds=1.0)
    with pytest.raises(NotGiven, match="cannot be remembered"):
        house.grants.draft(ticket(tool("issue", ISSUE)), "else", by="ann", seconds=1.0)


def test_there_may_be_so_many_and_no_more(house: House) -> None:
    for number in range(MOST):
        house.give(tool("issue", {"n": number}), seconds=60.0)
    with pytest.raises(NotGiven, match="hold already"):
        house.give(tool("issue", ISSUE))
    house.passes(61)
    house.give(tool("issue", ISSUE))


def test_one_that_cannot_be_kept_does_not_hold(house: House) -> None:
    draft = house.grants.draft(ticket(tool("issue", ISSUE)), "default", by="ann", seconds=1.0)
    house.db.full = True
    with pytest.raises(sqlite3.Error):
        house.grants.keep(draft)
    assert house.finds(tool("issue", ISSUE)) is None


def test_ids_read_well_however_they_are_typed(house: House) -> None:
    id = house.give(tool("issue", ISSUE)).id
    assert id[:2] == "G-"
    assert len(id) == 6
    assert set(id[2:]) <= set(CROCKFORD)
    typed: list[Callable[[str], str]] = [str.lower, str.upper, lambda text: text[2:], lambda text: f" {text} "]
    assert {named(change(id)) for change in typed} == {id}
    assert named("g-oil0") == "G-0110"


# --- calls that wait already ------------------------------------------------------------------------------------------


def test_a_waiting_call_of_the_shape_is_covered_and_no_other(house: House) -> None:
    grant = house.give(tool("issue", ISSUE), free=["title"])
    assert house.grants.covers(grant, ticket(tool("issue", {**ISSUE, "title": "two"})))
    for other in (
        ticket(tool("issue", {**ISSUE, "repo": "acme/y"})),
        ticket(tool("other", ISSUE)),
        ticket(tool("issue", ISSUE, agent="bob")),
        ticket(tool("issue", ISSUE, tenant="else")),
        ticket(tool("issue", ISSUE), Ask(RULE, 600.0, people=2)),
        ticket(tool("issue", ISSUE), Ask("else", 600.0)),
    ):
        assert not house.grants.covers(grant, other)
