"""A URI fits a template exactly if its expressions may stand for what is between their literal neighbours."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis_daemon.core import templates


@pytest.mark.parametrize(
    ("template", "uri", "fits"),
    [
        ("a:1", "a:1", True),
        ("a:1", "a:12", False),
        ("a:{x}", "a:", True),
        ("a:{x}", "b:1", False),
        ("a:{x}/y", "a:1/2/y", True),
        ("a:{x}/y", "a:/y", True),
        ("a:{x}y", "a:", False),
        ("a{x}a", "a", False),
        ("a{x}b{y}c", "a-b-b-c", True),
        ("a{x}b{y}c", "a--c", False),
        ("{x}", "", True),
        ("{x}{y}", "anything", True),
        ("a{x", "ab", True),
        ("a}{x}", "a}b", True),
    ],
)
def test_a_template_fits_what_it_may_stand_for(template: str, uri: str, fits: bool) -> None:
    assert templates.fits(templates.literals(template), uri) is fits


@given(st.lists(st.text("ab/", max_size=3), min_size=2, max_size=5), st.text("ab/", max_size=12))
def test_a_template_fits_as_a_pattern_would(parts: list[str], uri: str) -> None:
    pattern = ".*".join(map(re.escape, parts))
    assert templates.fits(tuple(parts), uri) is (re.fullmatch(pattern, uri) is not None)


def test_a_hostile_template_costs_nothing() -> None:
    assert not templates.fits(templates.literals("{a}x" * 250 + "y"), "x" * 100_000)
