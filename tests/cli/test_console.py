from __future__ import annotations

import errno
import os
import unicodedata
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from aegis_daemon.cli import console
from aegis_daemon.cli.console import cell, compact, instant, pretty, remedy, span, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("ünï 漢字 🙂", "ünï 漢字 🙂"),
        ("\x1b[2J\x1b]0;pwned\x07", "\\x1b[2J\\x1b]0;pwned\\x07"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("rm \u202egpj.exe", "rm \\u202egpj.exe"),
        ("pay\u200bpal", "pay\\u200bpal"),
        ("a\u2066b\u2069", "a\\u2066b\\u2069"),
        ("\x9b31m", "\\x9b31m"),
        ("\ufeffx\u3164y\ufe0fz", "\\ufeffx\\u3164y\\ufe0fz"),
        ("\U000e0041tag", "\\U000e0041tag"),
        ("\ud800", "\\ud800"),
        ("a\u2028b\xa0c", "a\\u2028b\\xa0c"),
    ],
)
def test_what_cannot_be_seen_is_written_out(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.text())
def test_nothing_that_is_shown_can_steer_a_terminal_or_hide(text: str) -> None:
    for line in (visible(text), compact(text), *pretty(text), cell(text)):
        line.encode()  # no half characters
        assert all(unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") for char in line)


@given(st.text(), st.integers(1, 20))
def test_a_cut_text_is_short_and_no_escape_is_cut(text: str, limit: int) -> None:
    assert len(text[:limit]) <= limit
    shown = visible(text, limit)
    if len(text) > limit:
        assert shown == visible(text[: limit - 1]) + "…"


def test_arguments_show_characters_rather_than_escapes_where_they_can_be_seen() -> None:
    assert compact('{"a":"\\u00fc\\u202e","b":[1,2]}') == '{"a": "ü\\u202e", "b": [1, 2]}'
    assert pretty('{"a":1}') == ["{", '  "a": 1', "}"]
    assert compact("not json\x07") == "not json\\x07"
    assert pretty("[" * 100_000) == ["[" * 100_000]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (-5, "0s"), (59.6, "1m"), (250, "4m 10s"), (90_061, "1d 1h"), (3600, "1h")]
)
def test_spans_are_told_in_two_units(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_instants_without_a_zone_are_utc_and_no_instant_is_none() -> None:
    assert instant("2026-01-01T00:00:00Z") == instant("2026-01-01T00:00:00") == instant("2026-01-01T01:00:00+01:00")
    assert instant("never") == 0.0


@given(st.lists(st.lists(st.text("ab 中é", max_size=90), min_size=4, max_size=4), max_size=6), st.integers(40, 200))
def test_a_row_takes_one_line_as_far_as_ids_stay_whole(cells: list[list[str]], room: int) -> None:
    fitted = console._fitted(cells, ["ID", "CALL", "TOOL", "ARGUMENTS"], room)
    widths = [max(map(cell_len, column)) for column in zip(["ID", "CALL", "TOOL", "ARGUMENTS"], *fitted, strict=True)]
    assert sum(widths) <= room - 12 or max(widths) <= console.NARROW
    for before, after in zip(chain(*cells), chain(*fitted), strict=True):
        assert after == before or (after.endswith("…") and before.startswith(after[:-1]))
        assert cell_len(before) > console.NARROW or after == before


@pytest.mark.parametrize(
    ("number", "hint"),
    [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "cannot be written"), (errno.EACCES, "is yours")],
)
def test_a_file_that_cannot_be_written_comes_with_the_step_for_that(number: int, hint: str) -> None:
    assert hint in remedy(OSError(number, os.strerror(number), "/x"))


def test_a_cell_that_is_long_does_not_move_the_columns_of_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"what": "a" * 300, "count": 1}, {"what": "b", "count": 2}]
    console.show(rows, {"what": "what", "count": "count"}, "")
    head, *lines = capsys.readouterr().out.splitlines()
    assert [line.index(digit) for line, digit in zip(lines, "12", strict=True)] == [head.index("COUNT")] * 2
    assert lines[0].startswith("a" * 300)
