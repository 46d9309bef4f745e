"""The canonical text of a value is the one of RFC 8785, and no other value has it."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis_daemon.core.canonical import canonical, number

# Doubles from 2**53 to 1e21 are written as integers whose last digits no reader need have.
FLOATS = st.floats(allow_nan=False, allow_infinity=False).filter(lambda value: not 2**53 <= abs(value) < 1e21)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | FLOATS | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=20,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [  # RFC 8785, appendix B
        (0.0, "0"),
        (-0.0, "0"),
        (5e-324, "5e-324"),
        (-5e-324, "-5e-324"),
        (1.7976931348623157e308, "1.7976931348623157e+308"),
        (9007199254740992.0, "9007199254740992"),
        (295147905179352830000.0, "295147905179352830000"),
        (9.999999999999997e22, "9.999999999999997e+22"),
        (1e23, "1e+23"),
        (999999999999999700000.0, "999999999999999700000"),
        (1e21, "1e+21"),
        (9.999999999999997e-7, "9.999999999999997e-7"),
        (0.000001, "0.000001"),
        (333333333.33333329, "333333333.3333333"),
        (-0.0000033333333333333333, "-0.0000033333333333333333"),
        (1424953923781206.2, "1424953923781206.2"),
        (1.5, "1.5"),
        (1e-7, "1e-7"),
        (123456.0, "123456"),
    ],
)
def test_a_number_is_written_as_the_standard_says(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, {"a": {1}}, "\ud800", {"\ud800": 1}, b"x"])
def test_what_is_no_json_has_no_text(value: Any) -> None:
    with pytest.raises(ValueError):
        canonical(value)


def test_keys_stand_in_the_order_of_their_utf16_units() -> None:
    # RFC 8785, section 3.2.3
    keys = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
    found = json.loads(canonical(dict.fromkeys(keys)))
    assert list(found) == ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]


def test_the_example_of_the_standard() -> None:
    value = {
        "numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": "\u20ac$\u000f\u000aA'\u0042\u0022\u005c\\\"/",
        "literals": [None, True, False],
    }
    assert canonical(value).decode() == (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"\u20ac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )


def test_large_integers_keep_their_digits() -> None:
    assert canonical(2**64 - 1) == b"18446744073709551615"
    assert canonical(2**64 - 1) != canonical(2**64 - 2)


@given(VALUES)
def test_the_text_reads_back_as_the_value_and_is_its_own_canonical_text(value: Any) -> None:
    text = canonical(value)
    assert json.loads(text) == value
    assert canonical(json.loads(text)) == text


@given(VALUES, VALUES)
def test_two_values_have_one_text_only_if_they_are_equal(one: Any, other: Any) -> None:
    if canonical(one) == canonical(other):
        assert one == other
