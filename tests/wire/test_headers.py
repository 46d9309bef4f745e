from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp.shared import inbound

from aegis_daemon.wire import headers
from aegis_daemon.wire.headers import BadAnnotation, Param, annotated, decoded, derive, encoded, mismatch
from aegis_daemon.wire.jsonrpc import Frame, parse

META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}
SCHEMA = {
    "type": "object",
    "properties": {
        "region": {"type": "string", "x-mcp-header": "Region"},
        "count": {"type": "integer", "x-mcp-header": "Count"},
        "deep": {"type": "object", "properties": {"sure": {"type": "boolean", "x-mcp-header": "Sure"}}},
    },
}
PARAMS = annotated({"name": "t", "inputSchema": SCHEMA})
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def request(method: str, params: dict[str, Any], id: Any = 1) -> Frame:
    frame = {"jsonrpc": "2.0", "id": id, "method": method, "params": {"_meta": META, **params}}
    return parse(msgspec.json.encode({key: value for key, value in frame.items() if value is not None}))


def call(arguments: Any = None, name: Any = "t") -> Frame:
    return request("tools/call", {"name": name, "arguments": {} if arguments is None else arguments})


def without(lines: list[tuple[str, str]], name: str) -> list[tuple[str, str]]:
    return [line for line in lines if line[0] != name]


@given(st.one_of(texts, texts.map(lambda text: f"=?base64?{text}?=")))
def test_a_value_is_encoded_as_the_official_sdk_does(text: str) -> None:
    assert encoded(text) == inbound.encode_header_value(text)
    assert decoded(encoded(text)) == text
    assert encoded(text).isprintable()
    assert encoded(text).isascii()


@given(st.text(st.sampled_from("=?base64QUJDw5/ \n-_"), max_size=30).map(lambda text: f"=?base64?{text}?="))
def test_what_no_encoder_writes_equals_nothing(text: str) -> None:
    assert decoded(text) == inbound.decode_header_value(text) or "\n" in text


@pytest.mark.parametrize(
    ("method", "params", "name"),
    [
        ("tools/call", {"name": "a b"}, "a b"),
        ("prompts/get", {"name": "größer"}, "=?base64?Z3LDtsOfZXI=?="),
        ("resources/read", {"uri": "file:///x"}, "file:///x"),
        ("tasks/get", {"taskId": "t1"}, "t1"),
        ("tasks/cancel", {"taskId": "t1"}, "t1"),
        ("tools/list", {"name": "x"}, None),
        ("completion/complete", {"name": "x"}, None),
        ("tools/call", {"name": 5}, None),
    ],
)
def test_a_request_repeats_its_version_method_and_name(method: str, params: dict[str, Any], name: str | None) -> None:
    expected = [("MCP-Protocol-Version", "2026-07-28"), ("Mcp-Method", method)]
    assert derive(request(method, params)) == [*expected, *([] if name is None else [("Mcp-Name", name)])]


def test_annotated_arguments_are_mirrored_where_they_are_there() -> None:
    lines = derive(call({"region": "Zürich", "count": -7, "deep": {"sure": True}, "other": "x"}), PARAMS)
    assert dict(lines[3:]) == {
        "Mcp-Param-Region": "=?base64?WsO8cmljaA==?=",
        "Mcp-Param-Count": "-7",
        "Mcp-Param-Sure": "true",
    }
    assert len(derive(call({"region": None, "deep": [], "count": {"a": 1}}), PARAMS)) == 3


def test_no_argument_can_write_a_header_of_its_own() -> None:
    for name, value in derive(call({"region": "x\r\nAuthorization: y"}, "a\r\nb"), PARAMS):
        assert "\r" not in name + value
        assert "\n" not in name + value


arguments = st.dictionaries(
    st.sampled_from(["region", "count", "deep"]),
    st.one_of(
        texts, st.integers(), st.booleans(), st.none(), st.floats(-1e6, 1e6), st.lists(st.none(), max_size=1),
        st.fixed_dictionaries({"sure": st.one_of(st.booleans(), texts)}),
    ),
)  # fmt: skip


@given(arguments)
def test_what_is_derived_is_what_the_official_sdk_sends_and_accepts(arguments: dict[str, Any]) -> None:
    frame = call(arguments)
    lines = derive(frame, PARAMS)
    # The frame's numbers are what both ends read; a float like 7.0 stays one.
    given = frame.params["arguments"]
    assert dict(lines[3:]) == inbound.mcp_param_headers(inbound.x_mcp_header_map(SCHEMA), given)
    assert inbound.validate_mcp_param_headers(SCHEMA, given, dict(lines)) is None
    assert mismatch(frame, lines, PARAMS) is None


@given(
    arguments, st.dictionaries(st.sampled_from(["Region", "Count", "Sure"]), st.one_of(texts, st.integers().map(str)))
)
def test_a_mismatch_is_one_where_the_official_sdk_sees_one(arguments: dict[str, Any], more: dict[str, str]) -> None:
    frame = call(arguments)
    values = {f"Mcp-Param-{name}": encoded(value) for name, value in more.items()}
    theirs = inbound.validate_mcp_param_headers(SCHEMA, frame.params["arguments"], values)
    ours = mismatch(frame, [*derive(frame), *values.items()], PARAMS)
    assert (theirs is None) == (ours is None), (theirs, ours)


@pytest.mark.parametrize("value", ["42", "42.0", "42.00"])
def test_integers_are_compared_as_numbers(value: str) -> None:
    frame = call({"count": 42})
    assert mismatch(frame, [*derive(frame), ("mcp-param-count", value)], PARAMS) is None


@pytest.mark.parametrize("value", ["42.5", "4.2e1", "0x2a", "", "=?base64?NDI?=", " 4 2", "9" * 5000])
def test_other_spellings_of_an_integer_differ(value: str) -> None:
    frame = call({"count": 42})
    assert mismatch(frame, [*derive(frame), ("mcp-param-count", value)], PARAMS) is not None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda lines: without(lines, "Mcp-Method"), "`Mcp-Method` is missing"),
        (lambda lines: without(lines, "Mcp-Name"), "`Mcp-Name` is missing"),
        (lambda lines: without(lines, "MCP-Protocol-Version"), "`MCP-Protocol-Version` is missing"),
        (lambda lines: [*without(lines, "Mcp-Method"), ("mcp-method", "tools/list")], "`Mcp-Method` differs"),
        (lambda lines: [*without(lines, "Mcp-Name"), ("MCP-NAME", "other")], "`Mcp-Name` differs"),
        (lambda lines: [*without(lines, "Mcp-Name"), ("MCP-NAME", "=?base64?dA?=")], "`Mcp-Name` differs"),
        (lambda lines: [*lines, ("mcp-name", "t")], "`mcp-name` came twice"),
        (lambda lines: [*lines, ("mcp-method", "tools/call")], "`mcp-method` came twice"),
        (lambda lines: [*lines, ("mcp-param-region", "x")], "`Mcp-Param-Region` is there"),
        (lambda lines: [*lines, ("Mcp-Param-Count", "1"), ("mcp-param-count", "1")], "`Mcp-Param-Count` came twice"),
    ],
)
def test_the_text_names_the_header(change: Any, says: str) -> None:
    frame = call({})
    assert mismatch(frame, derive(frame), PARAMS) is None
    text = mismatch(frame, change(derive(frame)), PARAMS)
    assert text is not None
    assert says in text


def test_names_of_headers_are_compared_without_case_and_values_with_it() -> None:
    frame = call({})
    assert mismatch(frame, [(name.upper(), f" {value}\t") for name, value in derive(frame)]) is None
    assert mismatch(frame, [(name, value.upper()) for name, value in derive(frame)]) is not None


def test_a_tasks_name_is_checked_where_it_is_sent() -> None:
    frame = request("tasks/get", {"taskId": "t1"})
    lines = derive(frame)
    assert mismatch(frame, lines) is None
    assert mismatch(frame, without(lines, "Mcp-Name")) is None
    assert mismatch(frame, [*without(lines, "Mcp-Name"), ("Mcp-Name", "t2")]) is not None


def test_a_notification_may_go_without_but_not_with_false_ones() -> None:
    frame = request("notifications/progress", {}, None)
    assert mismatch(frame, []) is None
    assert mismatch(frame, derive(frame)) is None
    assert mismatch(frame, [("Mcp-Method", "tools/call")]) is not None


# --- annotations


def test_annotations_are_read_along_properties_alone() -> None:
    assert set(PARAMS) == {
        Param(("region",), "Mcp-Param-Region", "string"),
        Param(("count",), "Mcp-Param-Count", "integer"),
        Param(("deep", "sure"), "Mcp-Param-Sure", "boolean"),
    }
    assert annotated({"name": "t"}) == ()
    assert annotated({"name": "t", "inputSchema": [1]}) == ()
    data = {"type": "object", "default": {"x-mcp-header": "No"}, "enum": [{"x-mcp-header": "No"}]}
    assert annotated({"inputSchema": data}) == ()


@pytest.mark.parametrize(
    "schema",
    [
        {"x-mcp-header": "Root"},
        {"items": {"x-mcp-header": "A", "type": "string"}},
        {"anyOf": [{"properties": {"a": {"x-mcp-header": "A", "type": "string"}}}]},
        {"$defs": {"x": {"properties": {"a": {"x-mcp-header": "A", "type": "string"}}}}},
        {"properties": {"a": {"x-mcp-header": "A", "type": "number"}}},
        {"properties": {"a": {"x-mcp-header": "A", "type": ["string"]}}},
        {"properties": {"a": {"x-mcp-header": "A"}}},
        {"properties": {"a": {"x-mcp-header": "", "type": "string"}}},
        {"properties": {"a": {"x-mcp-header": "a b", "type": "string"}}},
        {"properties": {"a": {"x-mcp-header": "a\r\nb", "type": "string"}}},
        {"properties": {"a": {"x-mcp-header": 5, "type": "string"}}},
        {
            "properties": {
                "a": {"x-mcp-header": "A", "type": "string"},
                "b": {"x-mcp-header": "a", "type": "string"},
            }
        },
    ],
)
def test_annotations_that_break_the_rules_are_refused_as_by_the_official_sdk(schema: Any) -> None:
    assert inbound.find_invalid_x_mcp_header(schema) is not None
    with pytest.raises(BadAnnotation):
        annotated({"inputSchema": schema})


leaves = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["string", "integer", "boolean", "number", "object", 5]),
        "x-mcp-header": st.sampled_from(["A", "B", "a", "", "x y", 5]),
    },
)
schemas = st.recursive(
    leaves,
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "properties": st.dictionaries(st.sampled_from("pq"), inner),
            "items": inner,
            "allOf": st.lists(inner, max_size=2),
            "$defs": st.dictionaries(st.sampled_from("pq"), inner),
            "default": inner,
            "x-mcp-header": st.just("C"),
        },
    ),
    max_leaves=6,
)


@given(schemas)
def test_a_schema_means_what_the_official_sdk_takes_it_for(schema: Any) -> None:
    try:
        found = {param.path: param.header for param in annotated({"inputSchema": schema})}
    except BadAnnotation:
        assert inbound.find_invalid_x_mcp_header(schema) is not None
    else:
        assert inbound.find_invalid_x_mcp_header(schema) is None
        theirs = inbound.x_mcp_header_map(schema)
        assert found == {path: f"Mcp-Param-{token}" for path, token in theirs.items()}


def test_a_schema_of_any_depth_is_read() -> None:
    schema: dict[str, Any] = {"type": "string", "x-mcp-header": "Deep"}
    for _ in range(5000):
        schema = {"properties": {"a": schema}}
    assert len(annotated({"inputSchema": schema})[0].path) == 5000


def test_the_era_of_a_frame_is_what_it_says() -> None:
    assert headers.is_modern(call())
    assert not headers.is_modern(parse(b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{}}'))
    assert not headers.is_modern(parse(b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"_meta":[]}}'))
