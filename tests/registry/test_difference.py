"""A person who reads a difference sees all of it, and nothing in it moves what stands around it."""

from __future__ import annotations

import json

import pytest

from aegis_daemon.core.canonical import canonical
from aegis_daemon.registry.difference import MOST_LINES, WIDEST, lines, unified


def text(**fields: object) -> str:
    return canonical(fields).decode()


def test_a_change_stands_in_its_own_lines() -> None:
    found = unified(text(name="pay", description="one\ntwo\nthree"), text(name="pay", description="one\n2\nthree"))
    assert found[:2] == ["--- trusted", "+++ offered"]
    assert [line for line in found[2:] if line[0] in "+-"] == ["-two\\n", "+2\\n"]


@pytest.mark.parametrize(
    ("char", "shown"),
    [
        ("\u200b", "\\u200b"), ("\u202e", "\\u202e"), ("\U000e0041", "\\U000e0041"), ("\u2028", "\\u2028"), ("\x1b", "\\u001b"), ("\u0430", "\\u0430"),
        ("\u00a0", "\\xa0"), ("\ufe0f", "\\ufe0f"), ("\u03bf", "\\u03bf"),
    ],
)  # fmt: skip
def test_what_is_unseen_or_misleads_is_written_as_its_escape(char: str, shown: str) -> None:
    found = "\n".join(unified(text(description="pay"), text(description=f"p{char}y")))
    assert f"p{shown}y" in found
    assert char not in found


def test_words_of_another_script_are_left_readable() -> None:
    assert "оплата счёта" in "\n".join(lines(text(description="оплата счёта")))
    assert "naïve Größe" in "\n".join(lines(text(description="naïve Größe")))


def test_nothing_to_compare_with_shows_all_of_it() -> None:
    found = unified("", text(name="pay"))
    assert '+  "name": "pay"' in found
    assert unified(text(name="pay"), text(name="pay")) == []


def test_a_huge_text_is_cut_and_says_so() -> None:
    found = unified(text(a=1), text(a=list(range(MOST_LINES * 2)), b="x" * (WIDEST * 3)))
    assert len(found) < 2 * MOST_LINES + 10
    assert any("is not shown" in line for line in found)
    (wide,) = [line for line in lines(text(b="x" * (WIDEST * 3))) if "characters more" in line]
    assert len(wide) < WIDEST + 100
    assert json.loads(text(b="x"))
