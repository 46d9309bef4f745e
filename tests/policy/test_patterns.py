"""A pattern matches a whole text or nothing, and no text makes it slow."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis_daemon.policy.patterns import BadPattern, compile_pattern


def test_the_whole_text_has_to_match() -> None:
    fits = compile_pattern("[a-z]+")
    assert fits("abc")
    for text in ("abc1", "1abc", "abc\n", "\nabc", "", "ABC", "abc\x00", "a\u200bb"):
        assert not fits(text)
    assert compile_pattern("a|ab")("ab")
    assert compile_pattern("(?s).*")("a\nb")
    assert not compile_pattern(".*")("a\nb")


@pytest.mark.parametrize("pattern", ["(", "(?=a)", "(?<!a)b", r"(a)\1", "[z-a]", "a{2000}", "*"])
def test_what_the_engine_has_not_is_an_error_that_says_so(pattern: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadPattern) as error:
        compile_pattern(pattern)
    assert str(error.value)
    assert "".join(capfd.readouterr()) == ""


def test_a_text_made_to_be_slow_is_not() -> None:
    for pattern, text in (("(a+)+b", "a" * 100_000), ("(a|aa)+$", "a" * 100_000 + "!"), ("(.*)*x", "y" * 100_000)):
        fits = compile_pattern(pattern)
        began = time.process_time()
        assert not fits(text)
        assert time.process_time() - began < 5  # years, for an engine that tries one way after the other


@given(st.text(alphabet="abc01-_ \né", max_size=20))
def test_it_says_what_the_standard_engine_says_of_plain_patterns(text: str) -> None:
    for pattern in ("[a-c]+[01]*", "(ab|c)*-?", "[^ ]+"):
        assert compile_pattern(pattern)(text) == (re.fullmatch(pattern, text) is not None)
