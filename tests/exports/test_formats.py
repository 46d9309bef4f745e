from __future__ import annotations

import csv
import io
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from logbook import HOSTILE, Book
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema

from aegis_daemon.exports import cef, event, ocsf, table
from aegis_daemon.exports.event import Call, Event, Record


@cache
def validator(class_uid: int, profiles: tuple[str, ...]) -> Any:
    schema = OcsfJsonSchemaEmbedded(get_ocsf_schema(version="1.8.0"))
    name = schema.lookup_class_name_from_uid(class_uid)
    return Draft202012Validator(schema.get_class_schema(class_name=name, profiles=list(profiles)))


@cache
def activities(class_uid: int) -> dict[str, Any]:
    found = next(one for one in get_ocsf_schema(version="1.8.0")["classes"].values() if one.get("uid") == class_uid)
    return {name: found["attributes"][name]["enum"] for name in ("activity_id", "type_uid", "severity_id")}


def check(made: dict[str, Any]) -> None:
    faults = list(validator(made["class_uid"], tuple(made["metadata"]["profiles"])).iter_errors(made))
    assert faults == [], [(list(fault.path), fault.message[:200]) for fault in faults]
    # What the schema does not tie together.
    assert made["type_uid"] == made["class_uid"] * 100 + made["activity_id"]
    known = activities(made["class_uid"])
    assert str(made["activity_id"]) in known["activity_id"]
    assert known["type_uid"][str(made["type_uid"])]["caption"] == made["type_name"]
    assert known["severity_id"][str(made["severity_id"])]["caption"] == made["severity"]
    if made["activity_id"] != 99:
        assert known["activity_id"][str(made["activity_id"])]["caption"] == made["activity_name"]
    for name in ("action", "disposition"):
        if f"{name}_id" in made and made[f"{name}_id"] != 99:
            enum = validator_enum(made["class_uid"], f"{name}_id")
            assert enum[str(made[f"{name}_id"])]["caption"] == made[name]


def validator_enum(class_uid: int, attribute: str) -> dict[str, Any]:
    found = next(one for one in get_ocsf_schema(version="1.8.0")["classes"].values() if one.get("uid") == class_uid)
    enum: dict[str, Any] = found["attributes"][attribute]["enum"]
    return enum


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(tmp_path / "audit.db")


@pytest.mark.parametrize("text", ["plain", HOSTILE, ""])
def test_every_event_is_valid_ocsf(book: Book, text: str) -> None:
    book.of_every_kind(text)
    made = [json.loads(ocsf.encode(one)) for one in book.events()]
    assert {one["class_uid"] for one in made} == {2004, 3004, 6002, 6003}
    for one in made:
        check(one)
    for one in (event.gap("c", 3, 9, 1, text), event.test("c", 1)):
        check(json.loads(ocsf.encode(one)))
    assert len({one["metadata"]["uid"] for one in made}) == len(made)


def test_a_missing_field_is_noticed_by_the_check_itself(book: Book) -> None:
    book.call(1)
    made = ocsf.ocsf(book.events()[0])
    del made["actor"]
    with pytest.raises(AssertionError):
        check(json.loads(event._encode(made)))
    made = ocsf.ocsf(book.events()[0])
    made["type_uid"] = 600301
    with pytest.raises(AssertionError):
        check(json.loads(event._encode(made)))


def test_a_call_says_who_what_where_and_how_it_ended(book: Book) -> None:
    book.call(1, b'{"path":"/data/a","deep":{"n":[1]}}')
    book.denied(2)
    done, refused = (json.loads(ocsf.encode(one)) for one in book.events())
    assert (done["actor"]["app_uid"], done["actor"]["user"]["uid"]) == ("writer", "ann")
    assert (done["api"]["operation"], done["api"]["service"]["name"]) == ("tools/call", "files")
    assert done["api"]["request"]["data"] == {"path": "/data/a", "deep": {"n": [1]}}
    assert done["resources"] == [{"name": "read_file", "type": "tool", "namespace": "files"}]
    assert (done["action"], done["disposition"], done["status"], done["duration"]) == (
        "Allowed",
        "Allowed",
        "Success",
        1,
    )
    assert done["message_context"]["name"] == "MCP"
    assert done["metadata"]["sequence"] == 2
    assert (refused["action"], refused["disposition"], refused["status"]) == ("Denied", "Blocked", "Failure")
    assert refused["policy"]["uid"] == "no-deletes"
    assert refused["status_detail"] == "`delete_all` is denied"


def test_a_call_that_observe_mode_let_pass_is_one_event_that_says_so(book: Book) -> None:
    book.of_every_kind()
    calls = [one for one in book.events() if one.call is not None]
    assert [one.call.call_id[-1] for one in calls if one.call is not None] == list("12345678")
    made = ocsf.ocsf(calls[-1])
    assert (made["action"], made["disposition"], made["unmapped"]["would"]) == ("Observed", "Logged", True)


UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\U000e0000-\U000e0fff]")


@pytest.mark.parametrize(
    "encode", [event.encode, ocsf.encode, cef.encode, table.encode], ids=["aegis", "ocsf", "cef", "csv"]
)
def test_one_event_is_one_line_in_which_nothing_is_unseen(book: Book, encode: Any) -> None:
    book.of_every_kind(HOSTILE)
    for one in book.events():
        line = encode(one).decode()
        assert not UNSEEN.search(line), line
        assert len(line.splitlines()) == 1


def cef_of(line: str) -> tuple[list[str], dict[str, str]]:
    """As ArcSight reads it: the header's seven parts, and the extension's fields."""
    found_header = re.match(r"((?:(?:\\.|[^\\|])*\|){7})(.*)", line, re.DOTALL)
    assert found_header is not None
    parts = [*re.findall(r"((?:\\.|[^\\|])*)\|", found_header[1]), found_header[2]]
    fields: dict[str, str] = {}
    found = list(re.finditer(r"(?:^| )([A-Za-z0-9]+)=", re.sub(r"\\.", lambda m: "\x01\x01", parts[7])))
    for at, match in enumerate(found):
        end = found[at + 1].start() if at + 1 < len(found) else len(parts[7])
        value = parts[7][match.end() : end]
        fields[match[1]] = re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], value)
    return parts[:7], fields


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@given(texts, texts, texts)
def test_no_text_breaks_a_cef_line(name: str, reason: str, arguments: str) -> None:
    call = Call("c1", agent_id=name, backend_id=name, tool_name=name, method="tools/call", exec_status="denied",
                error_message=reason, arguments=arguments, stage="acl")  # fmt: skip
    made = Event("x-1", "x", 1, "call", 5_000_000, "h", Record(kind="denied"), call)
    line = cef.encode(made).decode()
    assert len(line.splitlines()) == 1
    header, fields = cef_of(line)
    assert header[:2] == ["CEF:0", "Aegis"]
    assert header[6] == "6"
    assert fields["externalId"] == "x-1"
    known = {"rt", "externalId", "deviceExternalId", "cat", "start", "end", "suser", "sourceServiceName", "destinationServiceName",
             "requestMethod", "act", "outcome", "reason"}  # fmt: skip
    assert {key for key in fields if not re.fullmatch(r"(cs|cn|flexString)\d(Label)?", key)} <= known


@given(texts)
def test_what_is_printable_survives_cef_as_it_is(text: str) -> None:
    if not text.isprintable() or text.strip() != text or not text:
        return
    call = Call("c1", agent_id="a", exec_status="error", error_message=text)
    _, fields = cef_of(cef.encode(Event("x-1", "x", 1, "call", 5, "h", Record(), call)).decode())
    from aegis_daemon.core.text import visible

    assert fields["reason"] == visible(text)


@given(
    st.recursive(
        st.none() | st.booleans() | texts | st.integers(-(2**53), 2**53),
        lambda x: st.lists(x, max_size=3) | st.dictionaries(texts, x, max_size=3),
        max_leaves=8,
    )
)
def test_arguments_come_out_of_json_lines_as_they_went_in(value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=1)
    call = Call("c1", exec_status="success", arguments=text)
    one = Event("x-1", "x", 1, "call", 5, "h", Record(), call)
    line = ocsf.encode(one)
    assert b"\n" not in line
    assert json.loads(line)["api"]["request"]["data"] == value or value is None
    assert json.loads(event.encode(one))["arguments"] == text


def test_a_spreadsheet_computes_nothing(book: Book) -> None:
    book.call(1, name="=cmd|' /C calc'!A0", agent=" +1", principal="-2", session="@SUM(1)")
    rows = list(
        csv.DictReader(
            io.StringIO("\n".join([table.header().decode(), *(table.encode(one).decode() for one in book.events())]))
        )
    )
    assert rows[0]["tool_name"].startswith("'=")
    assert (rows[0]["agent_id"], rows[0]["principal"], rows[0]["session"]) == ("' +1", "'-2", "'@SUM(1)")
    assert rows[0]["error_code"] == "0"


def test_making_an_event_twice_gives_the_same(book: Book) -> None:
    book.of_every_kind(HOSTILE)
    for encode in (event.encode, ocsf.encode, cef.encode, table.encode):
        assert [encode(one) for one in book.events()] == [encode(one) for one in book.events(3)]


def test_a_text_cannot_say_something_else_in_cef() -> None:
    lie = "no\\ act=allowed outcome=success\nact=allowed|9|"
    call = Call("c1", agent_id=lie, exec_status="denied", error_message=lie, tool_name=lie, stage="acl")
    header, fields = cef_of(cef.encode(Event("x-1", "x", 1, "call", 5, "h", Record(), call)).decode())
    assert (fields["act"], fields["outcome"]) == ("denied", "denied")
    assert fields["reason"] == fields["cs1"] == fields["sourceServiceName"] == lie
    header, fields = cef_of(cef.encode(Event("x-1", "x", 1, "admin", 5, "h", Record(action="a|9|b\nc\\"))).decode())
    assert header[4:] == [r"admin.a\|9\|b c\\", r"a\|9\|b c\\", "2"]
