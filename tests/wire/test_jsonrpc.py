"""What holds for every frame there is."""

from __future__ import annotations

import gc
import itertools
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aegis_daemon.core.call import Call
from aegis_daemon.core.principal import Principal
from aegis_daemon.wire import jsonrpc
from aegis_daemon.wire.jsonrpc import (
    ENVELOPE_KEYS,
    PARAM_KEYS,
    Answer,
    Frame,
    Kind,
    WireFault,
    encode,
    error_frame,
    fold,
    guess_id,
    id_text,
    notification_frame,
    parse,
    parse_from_server,
    request_frame,
    result_frame,
)
from aegis_daemon.wire.methods import TO_SERVER, Direction, Era

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
NUMBERS = st.one_of(
    st.integers(-(10**40), 10**40),
    st.integers(-5, 5),
    st.floats(allow_nan=False, allow_infinity=False),
)
SPELLINGS = st.sampled_from(
    ["Name", "METHOD", "id\0", "\uff49d", "met\u200bhod", "ur\u0131", "Uri", "_Meta", "\u017f", "\u212a", "k"]
)
KEYS = st.one_of(st.sampled_from(sorted(ENVELOPE_KEYS | PARAM_KEYS)), TEXT, SPELLINGS)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=12,
)
IDS = st.one_of(st.integers(), TEXT, st.sampled_from([None, 1.5, True, 10**300, "x" * 300]))
ENVELOPES = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.sampled_from(["2.0", "2.0", "2.0", "1.0"]),
        "id": IDS,
        "method": st.one_of(st.sampled_from(["tools/call", "ping", "notifications/x"]), VALUES),
        "params": st.one_of(st.dictionaries(KEYS, VALUES, max_size=4), VALUES),
        "result": VALUES,
        "error": st.one_of(st.just({"code": 1, "message": "x"}), VALUES),
        "Id": VALUES,
        "x-unknown": VALUES,
    },
)
REQUESTS = st.fixed_dictionaries(
    {
        "jsonrpc": st.just("2.0"),
        "id": st.one_of(st.integers(), TEXT),
        "method": TEXT,
        "params": st.dictionaries(TEXT, VALUES, max_size=4),
    },
    optional={"x-unknown": VALUES},
)
TOKENS = st.sampled_from(
    [
        b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b" ", b"\r", b'"jsonrpc":"2.0"', b'"id":', b'"id":1',
        b'"method":', b'"method":"tools/call"', b'"params":{', b'"result":', b'"error":', b'"name":"t"',
        b'{"code":1,"message":"m"}',
        b'"\\ud800"', b'"\\u0000"', b"\xff", b"\xef\xbb\xbf", b"1", b"-0", b"1.5", b"1e400", b"NaN", b"null", b"true",
        b"9" * 320, b"9" * 5000, b"[" * 70, b"{}", b'"Method"', b'"a"', b"\xe2\x80\xa8", b'{"jsonrpc":"2.0","id":',
        b',"result":', b',"jsonrpc":"2.0","id":',
    ]
)  # fmt: skip


def judged(raw: bytes) -> tuple[Any, ...]:
    """All that the rest of the daemon learns of a frame, but its size."""
    try:
        frame = parse(raw)
    except WireFault as fault:
        return fault.code, fault.id, fault.text
    return frame.kind, frame.id, frame.method, frame.params, frame.encoded(), frame.encoded(99)


def escaped(value: Any) -> str:
    """JSON text with every character of every string as \\uXXXX."""
    if isinstance(value, dict):
        return "{" + " ,".join(f"{escaped(key)}\t:{escaped(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[\n" + ",".join(map(escaped, value)) + "]"
    if isinstance(value, str):
        units = value.encode("utf-16-be", "surrogatepass").hex()
        return '"' + "".join("\\u" + units[at : at + 4] for at in range(0, len(units), 4)) + '"'
    return json.dumps(value)


@given(st.one_of(st.binary(max_size=200), st.lists(TOKENS, max_size=14).map(b"".join)))
@example(b'{"jsonrpc":"2.0","id":"\\ud800","method":"ping"}')
@example(b'{"jsonrpc":"2.0","id":' + b"9" * 5000 + b',"result":1}')
def test_any_bytes_are_a_frame_or_a_fault_and_nothing_else(raw: bytes) -> None:
    try:
        assert isinstance(parse(raw), Frame)
    except WireFault:
        pass
    try:
        assert isinstance(parse_from_server(raw), Frame | Answer)
    except WireFault:
        pass


@given(REQUESTS, st.data())
def test_a_damaged_frame_is_a_frame_or_a_fault_and_nothing_else(value: dict[str, Any], data: st.DataObject) -> None:
    raw = bytearray(encode(value))
    at = data.draw(st.integers(0, len(raw)))
    raw[at : at + data.draw(st.integers(0, 4))] = data.draw(TOKENS)
    for read in (parse, parse_from_server):
        try:
            read(bytes(raw))
        except WireFault:
            pass


@given(ENVELOPES)
def test_the_fast_and_the_slow_way_judge_alike(value: dict[str, Any]) -> None:
    assert judged(encode(value)) == judged(escaped(value).encode()) == judged(json.dumps(value, indent=1).encode())


def test_a_frame_in_the_usual_spelling_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(jsonrpc, "_read_slowly")
    raw = '{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"é","arguments":{"a":[1,2.5,null]}}}'.encode()
    assert parse(raw).encoded() == raw


@given(ENVELOPES, st.data())
def test_a_repeated_key_is_refused_wherever_it_is(value: dict[str, Any], data: st.DataObject) -> None:
    text = json.dumps({**value, "deep": [{"k": 1}]})
    key = data.draw(st.sampled_from(["k", *value]))
    assert text.count(f'"{key}": ') >= 1
    doubled = text.replace(f'"{key}": ', f'"{key}": 0, "{key}": ', 1).encode()
    with pytest.raises(WireFault):
        parse(doubled)


@given(REQUESTS, st.one_of(st.integers(), TEXT))
def test_what_is_accepted_is_forwarded_as_the_same_value(value: dict[str, Any], new: int | str) -> None:
    try:
        frame = parse(encode(value))
    except WireFault:
        return
    assert frame.value == value
    assert json.loads(frame.encoded()) == value
    again = parse(frame.encoded())
    assert (again.kind, again.id, again.method, again.params) == (frame.kind, frame.id, frame.method, frame.params)
    assert again.encoded() == frame.encoded()
    assert json.loads(frame.encoded(new)) == {**value, "id": new}
    assert len(frame.encoded().decode().splitlines()) <= 1


@given(
    st.one_of(st.integers(-(2**63), 2**63 - 1), TEXT),
    TEXT,
    st.dictionaries(TEXT, VALUES, max_size=4),
    st.integers(1, 2**31),
)
@example(1, "a", {',"arguments":': ',"arguments":{}'}, 2)
@example("\\", ',"arguments":', {}, 2)
def test_what_is_forwarded_and_recorded_of_a_usual_call_is_our_own_encoding(
    id: int | str, name: str, arguments: dict[str, Any], number: int
) -> None:
    value = {"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": name, "arguments": arguments}}
    try:
        frame = parse(encode(value))
    except WireFault:
        return
    assert frame.encoded(number) == encode({**value, "id": number})
    row = TO_SERVER["tools/call"]
    made = Call(
        "0" * 32, id, "s1", Principal("amy"), Direction.TO_SERVER, row, "tool", name, "files", Era.LEGACY, frame
    )
    assert made.content_text == msgspec.json.encode(arguments)


def test_what_is_recorded_of_a_call_without_a_readable_name_is_its_arguments() -> None:
    params = {"name": {"x": 1, "arguments": {"path": "/tmp/harmless"}}, "arguments": {"path": "/etc/shadow"}}
    frame = parse(encode({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}))
    row = TO_SERVER["tools/call"]
    made = Call("0" * 32, 1, "s1", Principal("amy"), Direction.TO_SERVER, row, None, None, "files", Era.LEGACY, frame)
    assert made.content_text == b'{"path":"/etc/shadow"}'


@given(VALUES)
def test_every_encoding_is_one_line_of_the_same_value(value: Any) -> None:
    text = encode(value)
    assert b"\n" not in text
    assert json.loads(text) == value


@given(TEXT)
def test_folding_twice_is_folding_once(key: str) -> None:
    assert fold(fold(key)) == fold(key)


@given(st.sampled_from(sorted(ENVELOPE_KEYS | PARAM_KEYS)), st.data())
def test_a_known_key_in_other_case_or_with_something_invisible_folds_to_it(key: str, data: st.DataObject) -> None:
    odd = "".join(data.draw(st.sampled_from([c.lower(), c.upper(), c + "\u200b", "\0" + c, c + "\ufe0f"])) for c in key)
    assert fold(odd) == fold(key)


# --- answers ----------------------------------------------------------------------------------------------------------

BODIES = [b"{}", b"null", b'{"a":[1,2.50,"\\u00e9 \xc3\xa9"],"b":{"c":  1}}', b'"\xe2\x80\xa8"', b"1e400", b"[ ]"]
SPACES = [b"", b" ", b"\t "]


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("order", [",".join(keys) for keys in itertools.permutations(["jsonrpc", "id", "body", "x"])])
def test_an_answer_passes_byte_for_byte_under_another_id(order: str, space: bytes) -> None:
    for word, body in [*((b"result", body) for body in BODIES), (b"error", b'{"message":"no", "code":-1,"data":[1]}')]:
        parts = {
            "jsonrpc": b'"jsonrpc":%b"2.0"' % space,
            "id": b'"id":%b41' % space,
            "body": b'"%b":%b%b' % (word, space, body),
            "x": b'"x":%b[1]' % space,
        }
        raw = b"{" + (b"," + space).join(parts[key] for key in order.split(",")) + b"}"
        answer = parse_from_server(raw)
        assert isinstance(answer, Answer)
        assert (answer.id, answer.ok) == (41, word == b"result")
        assert answer.body.strip() == body
        sent = answer.with_id(b'"mine"')
        assert body in sent
        pairs = json.loads(sent, object_pairs_hook=list)
        kept = [(key, "mine" if key == "id" else value) for key, value in json.loads(raw, object_pairs_hook=list)]
        assert pairs == kept
        if not space:
            assert sent == raw.replace(b'"id":41', b'"id":"mine"')


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("id", [1, 0, -1, 2**70, "", "a", 'a"b\\', "é", "\u2028"])
def test_the_two_usual_spellings_are_taken_without_decoding_the_body(
    id: int | str, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(jsonrpc, "_parse_server_slowly")
    text = id_text(id)
    for raw in (
        b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (text, body),
        b'{"result":%b,"jsonrpc":"2.0","id":%b}' % (body, text),
    ):
        answer = parse_from_server(raw)
        assert isinstance(answer, Answer)
        assert (answer.id, answer.ok, answer.body) == (id, True, body)
        assert type(answer.id) is type(id)
        assert answer.with_id(text) == raw


@given(VALUES, st.one_of(st.integers(), TEXT))
def test_our_own_frames_are_read_as_they_were_meant(value: Any, id: int | str) -> None:
    answer = parse_from_server(result_frame(id_text(id), encode(value)))
    assert isinstance(answer, Answer)
    assert (answer.id, answer.ok, answer.value()) == (id, True, value)
    fault = parse_from_server(error_frame(id_text(id), -32603, "no", {"by": "aegis"}))
    assert isinstance(fault, Answer)
    assert (fault.id, fault.ok) == (id, False)
    assert fault.value() == {"code": -32603, "message": "no", "data": {"by": "aegis"}}


def test_our_own_requests_and_notifications_are_read_as_they_were_meant() -> None:
    request = parse(request_frame(7, "ping", {}))
    note = parse(notification_frame("notifications/x", {"a": 1}))
    assert (request.kind, request.id, request.method) == (Kind.REQUEST, 7, "ping")
    assert (note.kind, note.method, note.params) == (Kind.NOTIFICATION, "notifications/x", {"a": 1})
    assert json.loads(error_frame(b"null", -32700, "x")) == {
        "jsonrpc": "2.0", "id": None, "error": {"code": -32700, "message": "x"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("head", "tail", "id"),
    [
        (b'{"jsonrpc":"2.0","id":17,"result":{"a', b'zzz"}}', 17),
        (b'{"result":{"a":"', b'zz"},"jsonrpc":"2.0","id":17}', 17),
        (b'{"result":{"a":"', b'zz"}}', None),
        (b'{"jsonrpc":"2.0","id":"17","result":{"a', b"", None),
        (b'{"jsonrpc":"2.0","id":-1,"result":{"a', b"", None),
        (b'{"jsonrpc":"2.0","id":', b"", None),
        (b"", b"", None),
    ],
)
def test_the_call_of_a_frame_that_was_too_long_is_told_from_its_ends(head: bytes, tail: bytes, id: int | None) -> None:
    assert guess_id(head, tail) == id


@pytest.mark.parametrize(
    "read",
    [
        lambda: parse(b'{ "jsonrpc":"2.0","method":"notifications/x","params":{"a":"long"}}'),
        lambda: parse_from_server(b'{ "jsonrpc":"2.0","id":1,"result":{"a":"long"}}'),
    ],
)
def test_what_was_read_slowly_is_let_go_of_at_once(read: Callable[[], object]) -> None:
    read()
    gc.collect()
    gc.disable()
    try:
        read()
        assert gc.collect() == 0
    finally:
        gc.enable()
