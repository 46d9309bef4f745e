"""What a path names is gone wherever the answer says it, and what no path can reach is withheld."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis_daemon.policy.transforms import (
    REDACTED,
    UNKNOWN,
    WITHHELD,
    BadPath,
    Transform,
    Transforms,
    Unredacted,
    compile_path,
)
from aegis_daemon.wire.jsonrpc import Answer, parse_from_server

EMAIL = Transform("t", ["$.response.assignee.email"])
ISSUE = {"id": 7, "assignee": {"name": "Ann", "email": "ann@secret.example"}}
CLEAN = {"id": 7, "assignee": {"name": "Ann", "email": REDACTED}}


def told(result: Any, transform: Transform = EMAIL, arguments: Any = None) -> Any:
    body = json.dumps(result).encode()
    return json.loads(transform.result({} if arguments is None else arguments, body))


def text(value: Any) -> dict[str, Any]:
    return {"type": "text", "text": value if isinstance(value, str) else json.dumps(value)}


def test_the_same_is_taken_out_of_structured_content_and_of_json_text() -> None:
    made = told({"content": [text(ISSUE)], "structuredContent": ISSUE, "isError": False})
    assert made["structuredContent"] == CLEAN
    assert json.loads(made["content"][0]["text"]) == CLEAN
    assert made["isError"] is False


def test_a_resource_that_holds_json_is_cleaned_too() -> None:
    resource = {"uri": "x:/1", "mimeType": "application/json", "text": json.dumps(ISSUE)}
    (item,) = told({"content": [{"type": "resource", "resource": resource}]})["content"]
    assert json.loads(item["resource"]["text"]) == CLEAN
    assert item["resource"]["uri"] == "x:/1"


@pytest.mark.parametrize(
    "item",
    [
        text("Assignee: ann@secret.example"), text("```json\n" + json.dumps(ISSUE) + "\n```"), text(json.dumps(json.dumps(ISSUE))),
        text('{"assignee":{"email":"ann@secret.example","email":1}}'), text('{"assignee":{"email":"ann@secret.example"'),
        text('{"assignee":{"email":NaN}} ann@secret.example'), text("\ufeff" + json.dumps(ISSUE)), {"type": "text", "text": ISSUE},
        {"type": "image", "data": "ann@secret.example", "mimeType": "image/png"}, {"type": "audio", "data": "ann@secret.example", "mimeType": "x"},
        {"type": "resource_link", "uri": "mailto:ann@secret.example", "name": "x"}, {"type": "unknown", "x": "ann@secret.example"},
        {"type": "resource", "resource": {"uri": "x:/1", "blob": "ann@secret.example"}}, {"type": "resource", "resource": "ann@secret.example"},
        {"type": "text", "text": json.dumps(ISSUE), "Text": "ann@secret.example"},
    ],
)  # fmt: skip
def test_content_that_no_path_reaches_is_withheld_unless_the_rule_lets_it_pass(item: dict[str, Any]) -> None:
    assert told({"content": [item]})["content"] == [{"type": "text", "text": WITHHELD}]
    loose = Transform("t", ["$.response.assignee.email"], pass_unreadable=True)
    assert told({"content": [item]}, loose)["content"] == [item]


@pytest.mark.parametrize(
    "more",
    [
        {"extra": "ann@secret.example"}, {"extra": {"x": "ann@secret.example"}}, {"extra": ["ann@secret.example"]}, {"isError": "ann@secret.example"},
        {"_meta": {"x": "ann@secret.example"}}, {"_meta": {"com.example/x": ISSUE}}, {"task": {"taskId": "t", "statusMessage": "ann@secret.example"}},
        {"task": {"taskId": "t", "extra": "ann@secret.example"}}, {"result": {"content": [], "extra": "ann@secret.example"}}, {"ttl": "ann@secret.example"},
    ],
)  # fmt: skip
def test_what_the_protocol_does_not_know_is_left_out_unless_the_rule_lets_it_pass(more: dict[str, Any]) -> None:
    assert "secret" not in json.dumps(told({"content": [], **more}))
    loose = Transform("t", ["$.response.assignee.email"], pass_unreadable=True)
    if "assignee" not in json.dumps(more):
        assert told({"content": [], **more}, loose) == {"content": [], **more}


def test_what_the_protocol_does_know_is_kept() -> None:
    meta = {"io.modelcontextprotocol/related-task": {"taskId": "t"}}
    result = {"content": [], "isError": False, "resultType": "input_required", "requestState": "opaque", "_meta": meta,
              "inputRequests": {"a": {"method": "roots/list"}}}  # fmt: skip
    assert told(result) == result
    task = {"taskId": "t", "status": "working", "ttl": 60000, "pollInterval": 500, "createdAt": "2026-01-01T00:00:00Z"}
    assert told({"task": task}) == {"task": task}


def test_what_is_not_part_of_the_protocol_says_nothing_either() -> None:
    made = told({"content": [{**text(ISSUE), "_meta": {"x": "ann@secret.example"}}], "_meta": ISSUE, "isError": True})
    assert "secret" not in json.dumps(made)
    assert made["isError"] is True


@pytest.mark.parametrize("body", [b"[]", b"5", b"{", b'{"content":1}', b'{"content":[1]}', b'{"content":[],"content":[]}', b'{"Content":[]}',
                                  b'{"structuredContent":{"a":1,"a":2}}', b'{"content":[],"structured\\u0043ontent":{},"StructuredContent":{}}',
                                  b'{"x":1e999}', b'\xff'])  # fmt: skip
def test_an_answer_that_cannot_be_read_in_one_way_is_withheld(body: bytes) -> None:
    with pytest.raises(Unredacted):
        EMAIL.result({}, body)


def test_an_answer_in_which_nothing_is_named_keeps_its_bytes() -> None:
    body = b'{ "content" : [ {"type":"text","text":"{ \\"id\\": 7.50 }"} ],"structuredContent":{"id":7.50}}'
    assert EMAIL.result({}, body) is body


def test_numbers_and_the_order_of_keys_survive_beside_what_is_taken_out() -> None:
    value = {"z": 9007199254740993, "a": 0.1, "assignee": {"email": 1, "t": True}, "n": None}
    made = told({"structuredContent": value})["structuredContent"]
    assert json.dumps(made) == json.dumps({**value, "assignee": {"email": REDACTED, "t": True}})
    body = b'{"structuredContent":{"assignee":{"email":1},"n":123456789012345678901234567890}}'
    assert EMAIL.result({}, body) == body.replace(b'"email":1', b'"email":"[redacted]"')


def test_errors_keep_their_code_and_say_nothing() -> None:
    frame = b'{"jsonrpc":"2.0","id":3,"error":{"code":-5,"message":"dup ann@secret.example","data":{"assignee":{"email":"ann@secret.example"}},"x":"ann@secret.example"}}'
    answer = parse_from_server(frame)
    assert isinstance(answer, Answer)
    made = json.loads(EMAIL.answer({}, answer).with_id(b"9"))
    assert made == {
        "jsonrpc": "2.0",
        "id": 9,
        "error": {"code": -5, "message": WITHHELD, "data": {"assignee": {"email": REDACTED}}},
    }
    plain = parse_from_server(b'{"jsonrpc":"2.0","id":3,"error":{"code":-5,"message":"m","data":"ann@secret.example"}}')
    assert isinstance(plain, Answer)
    assert b"secret" not in EMAIL.answer({}, plain).with_id(b"9")


@pytest.mark.parametrize("frame", [b'{"jsonrpc":"2.0","id":1,"result":%s}', b'{"result":%s,"jsonrpc":"2.0","id":1}', b'{"id":1, "x":"\\"result\\":{}", "result" : %s,"jsonrpc":"2.0"}'])  # fmt: skip
def test_the_frame_around_a_cleaned_result_stays_as_it_was(frame: bytes) -> None:
    body = json.dumps({"structuredContent": ISSUE}, separators=(",", ":")).encode()
    answer = parse_from_server(frame % body)
    assert isinstance(answer, Answer)
    made = EMAIL.answer({}, answer)
    assert json.loads(made.with_id(b"1")) == {**json.loads(frame % body), "result": {"structuredContent": CLEAN}}
    assert json.loads(made.body) == {"structuredContent": CLEAN}


def test_paths_may_name_places_anywhere_and_look_at_what_was_asked() -> None:
    anywhere = Transform("t", ["$..token", "$.response.items[*].ssn", "$.response[?@.owner != $.request.me].body"])
    value = {
        "a": {"token": {"deep": 1}},
        "items": [{"ssn": 1, "n": 2}, {"token": 3}],
        "p": {"owner": "me", "body": 1},
        "q": {"owner": "x", "body": 2},
    }
    made = told({"structuredContent": value}, anywhere, {"me": "me", "token": "mine"})["structuredContent"]
    assert made == {"a": {"token": REDACTED}, "items": [{"ssn": REDACTED, "n": 2}, {"token": REDACTED}],
                    "p": {"owner": "me", "body": 1}, "q": {"owner": "x", "body": REDACTED}}  # fmt: skip
    assert anywhere.logged({"me": "me", "token": "mine"}) == {"me": "me", "token": REDACTED}
    with pytest.raises(Unredacted):
        anywhere.result(UNKNOWN, b'{"structuredContent":{"a":1}}')


def test_a_path_may_name_all_there_is() -> None:
    for path in ("$.response", "$", "$.*", "$.response.*"):
        everything = Transform("t", [path])
        made = told({"content": [text(ISSUE)], "structuredContent": ISSUE}, everything)
        assert "secret" not in json.dumps(made)
        assert type(made["structuredContent"]) is dict
    assert Transform("t", ["$.request"]).logged({"a": 1}) == REDACTED


def test_a_place_named_twice_and_one_below_another_are_replaced_once() -> None:
    both = Transform("t", ["$.response.a.b", "$.response.a", "$.response..b", "$.response.a.b.c"])
    assert told({"structuredContent": {"a": {"b": {"c": 1}}, "d": [{"b": 1}]}}, both)["structuredContent"] == {
        "a": REDACTED,
        "d": [{"b": REDACTED}],
    }


def test_tasks_that_hold_a_result_are_cleaned_within() -> None:
    task = {
        "taskId": "t",
        "status": "completed",
        "statusMessage": "for ann@secret.example",
        "result": {"content": [text(ISSUE)], "structuredContent": ISSUE},
    }
    made = told(task)
    assert (made["taskId"], made["status"]) == ("t", "completed")
    assert made["result"]["structuredContent"] == CLEAN
    assert "secret" not in json.dumps(made)
    failed = told({"taskId": "t", "status": "failed", "error": {"code": 1, "message": "ann@secret.example"}})
    assert "secret" not in json.dumps(failed)


@pytest.mark.parametrize(
    ("path", "at"),
    [("", 1), ("response.a", 1), ("$.response[", 12), ("$.respons.a", 2), ("$.response.a..", None), ("$.response[?match(@.a, 'x')]", None),
     ("$.response[?search(@.a, 'x')]", None), ("$.response.~", None), ("$['x'].a", 2), ("$.response[?@.a =~ /x/]", None), ("$.response[99999999999999999999]", None),
     ("$" + "[" * 3000, None), ("$.response..a..b", 14), ("$..*..*", 5), ("$.response[?@..a]", 12), ("$.response[?@.a && !@[?@.b]]", 12),
     ("$.response[?@.a == 1 || count(@.*) > 1]", 12), ("$..[?count($.response..a) > 1]", 5)],
)  # fmt: skip
def test_a_path_that_cannot_be_used_says_where(path: str, at: int | None) -> None:
    with pytest.raises(BadPath) as error:
        compile_path(path)
    assert error.value.at >= 1
    assert at is None or error.value.at == at


def test_transforms_are_found_by_the_tools_name_and_by_its_name_on_one_backend() -> None:
    table = Transforms([Transform("get", ["$.response.a"]), Transform("jira.get", ["$.response.b"])])
    assert [one.tool for one in table.of("jira", "get")] == ["get", "jira.get"]
    assert [one.tool for one in table.of("x", "get")] == ["get"]
    assert table.of("jira", "put") == ()
    assert len(table.any()) == 2


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["email", "a", "b", "Email", "content"]), inner, max_size=4)
    ),
    max_leaves=12,
)


def _emails(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [item for key, item in value.items() if key == "email"] + [
            one for key, item in value.items() if key != "email" for one in _emails(item)
        ]
    return [one for item in value for one in _emails(item)] if isinstance(value, list) else []


@given(_json, st.booleans(), st.booleans())
@settings(max_examples=300, deadline=None)
def test_wherever_a_value_stands_it_is_replaced_and_all_else_stays(value: Any, structured: bool, spaced: bool) -> None:
    every = Transform("t", ["$.response..email"])
    shown = json.dumps(value, indent=1 if spaced else None)
    result: dict[str, Any] = {"content": [{"type": "text", "text": shown}]}
    if structured and isinstance(value, dict):
        result["structuredContent"] = value
    made = told(result, every)
    found = made["content"][0]["text"]
    if not isinstance(value, dict | list):
        assert found == WITHHELD
        return
    assert all(one == REDACTED for one in _emails(json.loads(found)))
    if not _emails(value):
        assert found == shown
    if "structuredContent" in result:
        assert made["structuredContent"] == json.loads(found)
    assert told(made, every) == made, "what is clean stays as it is"


def test_an_answer_too_large_to_be_cleaned_in_time_is_withheld() -> None:
    many = {"items": [{"email": 1}] * 25_000}
    for result in ({"structuredContent": many}, {"content": [text(many)]}, {"content": [text([1] * 4_000)] * 6}):
        with pytest.raises(Unredacted):
            told(result)
    with pytest.raises(Unredacted):
        told({"content": [], "structuredContent": {"x": "y" * (2 << 20)}})
    assert told({"structuredContent": {"x": "y" * (1 << 20)}})
