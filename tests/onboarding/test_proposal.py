"""What is proposed is written as it was shown, with its reasons, and nothing that a file says already is loosened."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis_daemon.config.edit import Anything, Stuck
from aegis_daemon.config.load import loads
from aegis_daemon.core.names import Names
from aegis_daemon.onboarding.proposal import (
    LIMITS,
    Row,
    Way,
    Wrong,
    access,
    changed_rows,
    check,
    fresh,
    propose,
    unruled,
    write,
)
from aegis_daemon.onboarding.risk import CLASSES, Judged, Tool, judge

NAMES = ("delete_a", "run_b", "pay_c", "send_d", "create_e", "frob", "get_g")


def rows(backend: str = "work", names: tuple[str, ...] = NAMES) -> tuple[Row, ...]:
    return propose(backend, judge([Tool(name) for name in names]))


def way(agent: str = "amy", backend: str = "work", names: tuple[str, ...] = NAMES) -> Way:
    return Way(agent, backend, "Amy", {}, rows(backend, names))


def config(text: str):  # type: ignore[no-untyped-def]
    return loads(text, "x", base="/", env=Anything()).config


def actions(given: tuple[Row, ...]) -> dict[str, str]:
    return {row.tool: row.action for row in given}


def test_reads_pass_and_all_else_asks_worst_first() -> None:
    found = rows()
    assert [row.risk for row in found] == list(CLASSES)
    assert actions(found) == {name: "allow" if name == "get_g" else "ask" for name in NAMES}
    assert {row.tool: row.limit for row in found if row.limit} == {
        "get_g": "60/minute", "send_d": LIMITS["message"], "pay_c": LIMITS["money"],
    }  # fmt: skip


def test_a_name_that_looks_like_another_is_let_through_by_no_list() -> None:
    (row,) = propose("work", [Judged("get\u200bx", "unknown", "low", "")])
    assert row.action == "deny"
    assert access((row,)) == {"allowed": True, "tool_allowlist": []}
    assert changed_rows((row,), "unknown allow")[0] == (row,)


def test_a_person_changes_a_class_or_a_tool() -> None:
    found, count, _ = changed_rows(rows(), "write allow")
    assert (actions(found)["create_e"], count) == ("allow", 1)
    found, count, _ = changed_rows(found, "work.*_d deny")
    assert (actions(found)["send_d"], count) == ("deny", 1)
    found, count, _ = changed_rows(found, "delete_a allow")
    assert (actions(found)["delete_a"], count) == ("allow", 1)
    assert [bool(row.chosen) for row in found] == [row.tool in ("create_e", "send_d", "delete_a") for row in found]


def test_what_was_said_of_a_tool_by_its_name_outlives_what_is_said_of_its_class() -> None:
    found = changed_rows(rows(names=("create_a", "create_b", "add_c")), "work.create_a deny")[0]
    found = changed_rows(found, "*_b deny")[0]
    found, count, kept = changed_rows(found, "write allow")
    assert (count, [row.tool for row in kept]) == (1, ["create_a", "create_b"])
    assert actions(found) == {"create_a": "deny", "create_b": "deny", "add_c": "allow"}
    found, count, kept = changed_rows(found, "create_* ask")
    assert (count, [row.tool for row in kept]) == (1, ["create_a"])
    found, count, kept = changed_rows(found, "create_a ask")
    assert (actions(found)["create_a"], count, kept) == ("ask", 1, ())


def test_a_tool_without_a_name_keeps_no_other_from_its_rules() -> None:
    made = write(None, "x", [way(names=("", "get_g"))])
    check(made.text, "x")
    assert config(made.text).agents["amy"].backends["work"].tool_allowlist == ("get_g",)


@pytest.mark.parametrize("name", ["get_*", "get_[a-z]*", "get_?", "get_]"])
def test_a_tool_whose_name_can_have_no_limit_waits_for_a_person_and_shows_none(name: str) -> None:
    (row,) = rows(names=(name,))
    assert (row.risk, row.action, row.limit) == ("read", "ask", "")
    assert "no limit" in row.why
    made = config(write(None, "x", [way(names=(name,))]).text).agents["amy"].backends["work"]
    assert name in Names(made.approval_required)
    assert made.rate_limits == {}
    (said,), count, _ = changed_rows(rows(names=(name,)), f"{name} allow")
    assert (said.action, said.limit, count) == ("allow", "", 1), "a person may, and sees that there is no limit"


@given(st.lists(st.text("*?[]a", max_size=4).map("get_{}".format), min_size=1, max_size=3, unique=True))
def test_what_a_row_says_of_a_limit_is_what_is_written(names: list[str]) -> None:
    found = rows(names=tuple(names))
    assert access(found).get("rate_limits", {}) == {row.tool: row.limit for row in found if row.limit}


def test_a_tool_that_is_listed_twice_is_what_the_worse_of_the_two_is() -> None:
    twice = [Tool("get_x"), Tool("get_x", {"properties": {"sql": {"type": "string"}}}), Tool("get_x")]
    (row,) = propose("work", judge(twice))
    assert (row.risk, row.action) == ("execute", "ask")


@pytest.mark.parametrize("said", ["destroy allow", "execute allow", "money allow", "* allow"])
def test_what_cannot_be_undone_is_let_through_tool_by_tool_alone(said: str) -> None:
    with pytest.raises(Wrong):
        changed_rows(rows(), said)


@pytest.mark.parametrize("said", ["write", "write maybe", "nothing ask", "a b c"])
def test_what_means_nothing_is_told(said: str) -> None:
    with pytest.raises(Wrong):
        changed_rows(rows(), said)


def test_a_first_file_says_what_was_proposed_with_its_reasons() -> None:
    found = changed_rows(rows(), "frob deny")[0]
    made = write(None, "x", [Way("amy", "work", "Amy", {}, found)], mode="observe")
    assert check(made.text, "x") == ()
    said = config(made.text)
    assert said.mode == "observe"
    assert said.agents["amy"].display_name == "Amy"
    one = said.agents["amy"].backends["work"]
    assert one.tool_allowlist == ("delete_a", "run_b", "pay_c", "send_d", "create_e", "get_g")
    assert one.tool_denylist == ("frob",)
    assert one.approval_required == ("delete_a", "run_b", "pay_c", "send_d", "create_e")
    assert set(one.rate_limits) == {"get_g", "send_d", "pay_c"}
    assert '- "delete_a"  # destroy, ask: the word `delete`\n' in made.text
    assert '- "frob"  # unknown, deny (you said so): no word of its name is known\n' in made.text
    assert "get_g: 60/minute\n" in made.text


def test_a_second_time_changes_nothing() -> None:
    made = write(None, "x", [way()])
    again = write(made.text, "x", [way()], rule=lambda one: True)
    assert (again.text, again.steps) == (made.text, ())


def test_what_a_person_wrote_stays_byte_for_byte() -> None:
    text = 'backends: {work: {}}   # mine\nagents:\n    amy:\n        backends:\n            work: {allowed: true, tool_denylist: ["x"]}\n'
    made = write(text, "x", [way(), way("bob")], rule=lambda one: True)
    assert made.kept == ("`amy` has rules for `work` already, and they stay as they are",)
    assert made.text.startswith(text)
    before, after = config(text), config(made.text)
    assert after.agents["amy"] == before.agents["amy"]
    assert after.agents["bob"].backends["work"].tool_allowlist is not None


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_what_wire_wrote_gets_rules_only_where_a_person_agrees(newline: str) -> None:
    text = newline.join([
        "backends: {work: {}}", "agents:", "  amy:", "    backends:", "      work:", "        allowed: true",
        '        approval_required: ["*"]', "# the end", "",
    ])  # fmt: skip
    assert unruled(config(text), "amy", "work")
    kept = write(text, "x", [way()])
    assert kept.text == text
    assert "waits for a person" in kept.kept[0]
    made = write(text, "x", [way()], rule=lambda one: True)
    assert config(made.text).agents["amy"].backends["work"].approval_required == NAMES[:6]
    assert made.text.endswith(f"# the end{newline}")
    assert made.text.count("\n") == made.text.count(newline)


def test_tools_that_a_server_has_got_since_are_added_with_their_reasons() -> None:
    text = write(None, "x", [way(names=NAMES[:5])]).text
    new = Way("amy", "work", "Amy", {}, rows(names=("remove_h", "get_g")))
    made = write(text, "x", [new])
    assert '- "remove_h"  # destroy, ask: the word `remove`' in made.text
    assert '- "get_g"  # read, allow: the word `get`' in made.text
    one = config(made.text).agents["amy"].backends["work"]
    assert one.tool_allowlist == (*NAMES[:5], "remove_h", "get_g")
    assert one.approval_required == (*NAMES[:5], "remove_h")
    assert "get_g" in one.rate_limits


def test_a_file_of_json_stays_one() -> None:
    import json

    made = write('{"mode": "enforce"}', "x", [way()])
    said = json.loads(made.text)
    assert said["agents"]["amy"]["backends"]["work"]["tool_allowlist"] == list(NAMES)


def test_a_server_whose_tools_nobody_knows_asks_each_time() -> None:
    made = write(None, "x", [Way("amy", "work", "", {}, ())])
    assert unruled(config(made.text), "amy", "work")
    assert not fresh(config(made.text), "amy", "work")


def test_secrets_that_are_still_to_be_written_are_no_fault() -> None:
    given = {"url": "${file:secrets/far.url}", "headers": {"Authorization": "${file:secrets/far.authorization}"}}
    ways = [Way("amy", name, "", given, rows(name)) for name in ("far", "near")]
    approval = {("approval", "ntfy", "topic_url"): "${file:secrets/ntfy.topic}"}
    made = write(None, "x", ways, settings=approval)
    assert "${file:secrets/far.url}" in made.text
    assert "${file:secrets/ntfy.topic}" in made.text
    check(made.text, "x")


def test_what_is_written_behind_an_alias_is_left_to_a_person() -> None:
    text = "backends: {work: {}}\nagents:\n  bob: &b {backends: {}}\n  amy: *b\n"
    with pytest.raises(Stuck):
        write(text, "x", [way()])


ODD = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1, max_size=20)


@settings(max_examples=40)
@given(st.lists(ODD, min_size=1, max_size=8, unique=True))
def test_whatever_a_server_calls_its_tools_the_file_means_these_and_nothing_else(names: list[str]) -> None:
    given = rows(names=tuple(names))
    made = write(None, "x", [Way("amy", "work", "", {}, given)])
    check(made.text, "x")
    one = config(made.text).agents["amy"].backends["work"]
    assert list(one.tool_allowlist or ()) == access(given)["tool_allowlist"]
    assert list(one.approval_required) == access(given).get("approval_required", [])
    assert made.text.count("allowed: true") == 1 or any("allowed" in name for name in names)
