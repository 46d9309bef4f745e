from __future__ import annotations

import json
import logging
import sqlite3
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_links import ticket

from aegis_daemon.approvals import changes
from aegis_daemon.approvals.changes import Argument, Changes, compare

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from([0.0, 1.0, 1.5]) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)
ARGUMENTS = st.dictionaries(st.text(max_size=3), VALUES, max_size=5)


def kept() -> Changes:
    return Changes(sqlite3.connect(":memory:", isolation_level=None))


def test_every_argument_is_same_changed_new_or_gone() -> None:
    before, now = '{"a":1,"b":"x","c":[1]}', '{"b":"y","a":1,"d":null}'
    assert compare(now, before) == (
        Argument("b", '"y"', "changed", '"x"'), Argument("a", "1", "same"), Argument("d", "null", "new"),
        Argument("c", "", "gone", "[1]"),
    )  # fmt: skip
    assert [row.change for row in compare(now, None)] == ["", "", ""]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ('{"k":{"a":1,"b":2}}', '{"k":{"b":2,"a":1}}', True),
        ('{"k":[1,2]}', '{"k":[2,1]}', False),
        ('{"k":1}', '{"k":1.0}', False),
        ('{"k":1}', '{"k":true}', False),
        ('{"k":"1"}', '{"k":1}', False),
        ('{"k":null}', '{"k":""}', False),
        ('{"k":12345678901234567890}', '{"k":12345678901234567891}', False),
        ('{"k":"\\u00e9"}', '{"k":"é"}', True),
        ('{"k":"e\u0301"}', '{"k":"é"}', False),
    ],
)
def test_two_values_are_the_same_where_json_says_the_same(one: str, other: str, same: bool) -> None:
    ((row,), (back,)) = compare(one, other), compare(other, one)
    assert (row.change == "same", back.change == "same") == (same, same)


@given(ARGUMENTS, ARGUMENTS)
def test_nothing_that_runs_is_left_out_and_what_is_called_same_is_the_same(now: Any, before: Any) -> None:
    rows = compare(json.dumps(now), json.dumps(before))
    assert [row.name for row in rows if row.change != "gone"] == list(now)
    for row in rows:
        if row.change == "gone":
            assert row.name not in now
            assert json.loads(row.was) == before[row.name]
        else:
            assert json.loads(row.value) == now[row.name]
        if row.change == "same":
            assert json.dumps(now[row.name], sort_keys=True) == json.dumps(before[row.name], sort_keys=True)
        if row.change == "changed":
            assert json.dumps(now[row.name], sort_keys=True) != json.dumps(before[row.name], sort_keys=True)


@pytest.mark.parametrize("text", ["", "[1]", "{", "\x00", "[" * 5000])
def test_arguments_that_are_no_object_are_one_row(text: str) -> None:
    assert compare(text, None) == (Argument("", text),)
    assert [row.change for row in compare(text, '{"a":1}')] == ["new", "gone"]
    assert [row.change for row in compare(text, text)] == ["same"]


def test_the_last_approved_call_of_the_same_agent_backend_and_tool_is_kept() -> None:
    known = kept()
    assert known.last(ticket()) is None
    known.approved(ticket(arguments='{"n":1}', by="ann"), 10.0)
    known.approved(ticket(arguments='{"n":2}', by="bob"), 20.0)
    last = known.last(ticket())
    assert last is not None
    assert (last.arguments, last.by, last.at) == ('{"n":2}', "bob", 20.0)
    for other in ({"agent": "x"}, {"backend": "x"}, {"name": "x"}, {"method": "prompts/get"}):
        assert known.last(ticket(**other)) is None


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "KEPT_MAX", 3)
    monkeypatch.setattr(changes, "ARGUMENTS_MAX", 100)
    known = kept()
    for number in range(5):
        known.approved(ticket(name=f"t{number}"), float(number))
    assert [known.last(ticket(name=f"t{number}")) is not None for number in range(5)] == [
        False,
        False,
        True,
        True,
        True,
    ]
    known.approved(ticket(name="t4", arguments=json.dumps({"t": "x" * 200})), 9.0)
    assert known.last(ticket(name="t4")) is None, "what was approved before is not the last any more"


def test_a_disk_that_fails_only_takes_the_comparison(caplog: pytest.LogCaptureFixture) -> None:
    db = sqlite3.connect(":memory:", isolation_level=None)
    known = Changes(db)
    db.close()
    with caplog.at_level(logging.ERROR, "aegis.approvals"):
        known.approved(ticket(), 1.0)
        assert known.last(ticket()) is None
    assert len(caplog.messages) == 2


def test_a_call_is_not_compared_with_one_that_another_server_ran() -> None:
    changes = kept()
    dev, prod = ticket(), ticket()
    dev.server, prod.server = "d" * 64, "e" * 64
    changes.approved(dev, 1.0)
    assert changes.last(dev) is not None
    assert changes.last(prod) is None
    assert changes.last(ticket()) is None
