"""JSONTestSuite through the strict gate: nothing that is not JSON passes, and what passes reads the same everywhere."""

from __future__ import annotations

import functools
import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from corpora import corpus, program

from aegis_daemon.wire.jsonrpc import PARSE_ERROR, Frame, WireFault, parse, parse_from_server

INPUTS = 318
SAFE = 2**53 - 1
"""The largest integer that a reader with doubles alone keeps."""


@functools.cache
def inputs() -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in sorted((corpus("json") / "test_parsing").glob("*.json"))}
    assert len(found) == INPUTS
    return found


def as_argument(text: bytes) -> bytes:
    return b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"t","arguments":{"a":' + text + b"}}}"


def accepted(wrap: Callable[[bytes], bytes]) -> dict[str, Frame]:
    frames = {}
    for name, text in inputs().items():
        try:
            frames[name] = parse(wrap(text))
        except WireFault:
            pass
    return frames


def test_none_of_the_inputs_is_a_frame_by_itself() -> None:
    assert accepted(lambda text: text) == {}


def test_nothing_that_is_not_json_passes_as_an_argument() -> None:
    assert [name for name in accepted(as_argument) if name.startswith("n_")] == []


REFUSED_THOUGH_JSON = {
    "y_object_duplicated_key.json",
    "y_object_duplicated_key_and_value.json",
}


def test_all_json_passes_as_an_argument_but_what_two_readers_take_differently() -> None:
    passed = accepted(as_argument)
    refused = {name for name in inputs() if name.startswith("y_") and name not in passed}
    assert refused == REFUSED_THOUGH_JSON


def test_what_is_refused_because_it_is_no_json_is_told_so() -> None:
    for name, text in inputs().items():
        if name.startswith("n_") and not name.startswith(("n_structure_100000", "n_structure_open_array_object")):
            with pytest.raises(WireFault) as caught:
                parse(as_argument(text))
            assert caught.value.code == PARSE_ERROR, name


def test_what_passes_is_forwarded_as_the_value_that_python_reads_in_the_original() -> None:
    passed = accepted(as_argument)
    assert len(passed) > 90
    for name, frame in passed.items():
        assert json.loads(frame.encoded()) == json.loads(as_argument(inputs()[name])), name


def _safe(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_safe, value.values()))
    if isinstance(value, list):
        return all(map(_safe, value))
    return not isinstance(value, int) or abs(value) <= SAFE


READ_IN_NODE = """
const lines = require('fs').readFileSync(0, 'utf8').split('\\n').filter(Boolean)
for (const line of lines) console.log(JSON.stringify(JSON.parse(line)))
"""


def test_what_passes_is_read_in_node_as_the_same_value() -> None:
    frames = {name: frame for name, frame in accepted(as_argument).items() if _safe(frame.value)}
    assert len(frames) > 85
    sent = b"\n".join(frame.encoded() for frame in frames.values())
    done = subprocess.run(
        [program("node"), "-e", READ_IN_NODE], input=sent, capture_output=True, check=True, timeout=20
    )
    read = done.stdout.decode().removesuffix("\n").split("\n")
    assert len(read) == len(frames)
    for (name, frame), line in zip(frames.items(), read, strict=True):
        assert json.loads(line) == frame.value, name


def test_a_servers_answer_that_is_not_json_never_reaches_the_client() -> None:
    for shape in (b'{"jsonrpc":"2.0","id":7,"result":%b}', b'{"id":7, "jsonrpc":"2.0", "result": %b }'):
        for name, text in inputs().items():
            if name.startswith("n_"):
                with pytest.raises(WireFault):
                    parse_from_server(shape.replace(b"%b", text))
