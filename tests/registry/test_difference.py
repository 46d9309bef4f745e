"""A person who reads a difference sees all of it, and nothing in it moves what stands around it."""

from __future__ import annotations

import time

import pytest

from aegis_daemon.core.canonical import canonical
from aegis_daemon.registry.difference import COMPARED, MOST_LINES, REST, WIDEST, lines, unified
from aegis_daemon.registry.likeness import skeleton


def text(**fields: object) -> str:
    return canonical(fields).decode()


def test_a_change_stands_in_its_own_lines() -> None:
    found = unified(text(name="pay", description="one\ntwo\nthree"), text(name="pay", description="one\n2\nthree"))
    assert found.lines[:2] == ("--- trusted", "+++ offered")
    assert [line for line in found.lines[2:] if line[0] in "+-"] == ["-two\\n", "+2\\n"]
    assert not found.cut


@pytest.mark.parametrize(
    ("char", "shown"),
    [
        ("\u200b", "\\u200b"), ("\u202e", "\\u202e"), ("\U000e0041", "\\U000e0041"), ("\u2028", "\\u2028"), ("\x1b", "\\u001b"), ("\u0430", "\\u0430"),
        ("\u00a0", "\\xa0"), ("\ufe0f", "\\ufe0f"), ("\u03bf", "\\u03bf"),
    ],
)  # fmt: skip
def test_what_is_unseen_or_misleads_is_written_as_its_escape(char: str, shown: str) -> None:
    found = "\n".join(unified(text(description="pay"), text(description=f"p{char}y")).lines)
    assert f"p{shown}y" in found
    assert char not in found


def test_words_of_another_script_are_left_readable() -> None:
    assert "оплата счёта" in "\n".join(lines(text(description="оплата счёта")))
    assert "naïve Größe" in "\n".join(lines(text(description="naïve Größe")))


def test_nothing_to_compare_with_shows_all_of_it() -> None:
    found = unified("", text(name="pay"))
    assert '+  "name": "pay"' in found.lines
    assert unified(text(name="pay"), text(name="pay")).lines == ()


def test_a_huge_text_is_cut_and_says_so() -> None:
    found = unified(text(a=1), text(a=list(range(MOST_LINES * 2))))
    assert found.cut
    assert len(found.lines) < MOST_LINES + 10
    assert found.lines[-1] == REST
    assert lines(text(a=list(range(MOST_LINES * 2))))[-1] == REST


@pytest.mark.parametrize("before", [0, 5, COMPARED, MOST_LINES * 3])
@pytest.mark.parametrize("wide", [10, WIDEST * 3])
def test_a_change_behind_any_amount_of_text_is_seen(before: int, wide: int) -> None:
    start: dict[str, object] = {"a": list(range(before)), "b": "x" * wide}
    found = unified(text(**start, c="pay ann"), text(**start, c="pay eve"))
    assert [line for line in found.lines[2:] if line[0] in "+-"] == ['-  "c": "pay ann"', '+  "c": "pay eve"']
    within = unified(text(**start), text(**{**start, "b": "x" * wide + "y"}))
    assert any(line.startswith("+") and "y" in line for line in within.lines[2:])
    assert not found.cut
    assert not within.cut


def test_places_are_those_of_the_whole_text() -> None:
    rows = [f"row {number}" for number in range(50)]
    found = unified(text(a=rows), text(a=[*rows[:30], "new", *rows[30:]]))
    assert found.lines[2] == "@@ -30,6 +30,7 @@"


def test_many_lines_that_all_differ_are_shown_without_comparing_each_with_each() -> None:
    old, new = ([f"{side} {number % 40}" for number in range(MOST_LINES - 10)] for side in "ab")
    began = time.process_time()
    found = unified(text(a=old), text(a=new))
    assert time.process_time() - began < 2.0, "a hostile server must not stop the loop"
    assert sum(line.startswith("-") for line in found.lines) == len(old) + 1
    assert sum(line.startswith("+") for line in found.lines) == len(new) + 1
    assert not found.cut


def test_a_word_in_two_scripts_is_shown_in_time_linear_in_its_length() -> None:
    word = "a\u0431" * 300_000
    began = time.process_time()
    found = lines(text(description=word))
    assert time.process_time() - began < 3.0, "it takes half a second; copying the word for each letter, ten"
    assert "".join(found).count("\\u0431") == 300_000


def test_two_thousand_long_names_are_compared_by_their_beginnings() -> None:
    assert skeleton("\u0440ay" + "x" * 1000) == skeleton("pay" + "x" * 1000)
    assert skeleton("pay" + "x" * 1000) == skeleton("pay" + "x" * 1000 + "y"), "no more is looked at of so many"
    assert skeleton("pay" + "x" * 200) != skeleton("pay" + "x" * 100)
