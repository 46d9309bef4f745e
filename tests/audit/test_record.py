from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from corpora import corpus
from hypothesis import given
from hypothesis import strategies as st

from aegis_daemon.audit.record import KINDS, clip

SAFE = (1 << 53) - 1
SHORT = {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r", '"': '\\"', "\\": "\\\\"}


def canonical(value: Any) -> str:
    """RFC 8785 for everything but floats, from the text of the RFC: sections 3.2.2 (values) and 3.2.3 (order)."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        assert -SAFE <= value <= SAFE
        return str(value)
    if isinstance(value, str):
        return '"' + "".join(SHORT.get(c) or (f"\\u{ord(c):04x}" if c < " " else c) for c in value) + '"'
    if isinstance(value, list):
        return "[" + ",".join(canonical(item) for item in value) + "]"
    assert isinstance(value, dict)
    keys = sorted(value, key=lambda key: key.encode("utf-16-be"))
    return "{" + ",".join(f"{canonical(key)}:{canonical(value[key])}" for key in keys) + "}"


@pytest.mark.parametrize("name", ["arrays", "french", "unicode", "weird"])  # the other two hold floats
def test_the_reference_of_this_test_agrees_with_the_published_vectors(name: str) -> None:
    vectors = corpus("jcs") / "testdata"
    value = json.loads((vectors / "input" / f"{name}.json").read_bytes())
    assert canonical(value).encode() == (vectors / "output" / f"{name}.json").read_bytes()


TEXT = st.text(st.characters(exclude_categories=["Cs"])) | st.text("\x00\x07\b\t\n\x0b\f\r\x1f\x7f \"\\/'<>&\u2028é😀")
OF_TYPE = {"str": TEXT, "int": st.integers(-SAFE, SAFE), "bool": st.booleans()}


@st.composite
def filled(draw: st.DrawFn) -> msgspec.Struct:
    struct = KINDS[draw(st.sampled_from(sorted(KINDS)))]
    values = {}
    for field in msgspec.structs.fields(struct):
        kind = "str" if field.name == "status" else field.type.__name__
        if field.required or draw(st.booleans()):
            values[field.name] = draw(OF_TYPE[kind])
    return struct(**values)


@given(filled())
def test_the_compact_encoding_of_every_record_is_its_canonical_form(record: msgspec.Struct) -> None:
    encoded = msgspec.json.encode(record)
    assert encoded == canonical(json.loads(encoded)).encode()
    for name, value in json.loads(encoded).items():
        assert getattr(record, name) == value
    assert b"\n" not in encoded
    assert b"\t" not in encoded


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_fields_stand_in_order_and_hold_no_float(kind: str) -> None:
    fields = msgspec.structs.fields(KINDS[kind])
    names = [field.name for field in fields]
    assert names == sorted(names)
    assert all(name.isascii() for name in names)
    assert {"boot", "kind", "mono", "prev", "seq", "tenant", "ts", "v"} <= set(names)
    assert float not in {field.type for field in fields}


@given(st.text(max_size=60), st.integers(0, 70))
def test_a_clipped_body_is_the_longest_whole_beginning_that_fits(text: str, limit: int) -> None:
    try:
        body = text.encode()
    except UnicodeEncodeError:
        return
    kept = clip(body, limit)
    assert body.startswith(kept)
    assert len(kept) <= limit or not body
    assert text.startswith(kept.decode())
    assert len(body) <= limit or len(kept) > limit - 4
