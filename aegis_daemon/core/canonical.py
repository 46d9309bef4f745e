"""Two JSON values have the same canonical text exactly if they are the same value (RFC 8785).

One departure: an integer beyond 2**53 keeps all its digits, where the RFC would have it rounded. Schemas hold such
numbers (the largest of 64 bits), and two that differ must not get one text.
"""

from __future__ import annotations

import json
from typing import Any

_text = json.JSONEncoder(ensure_ascii=False).encode


def canonical(value: Any) -> bytes:
    """The canonical text of a decoded JSON value: keys by UTF-16 code units, numbers as ECMAScript writes them.

    Raises `ValueError` for what is no JSON (infinities, half of a surrogate pair).
    """
    parts: list[str] = []
    _write(value, parts)
    return "".join(parts).encode()


def _write(value: Any, parts: list[str]) -> None:
    kind = type(value)
    if kind is str:
        parts.append(_text(value))
    elif kind is dict:
        lead = "{"
        for key in sorted(value, key=_units):
            parts.append(f"{lead}{_text(key)}:")
            _write(value[key], parts)
            lead = ","
        parts.append("}" if lead == "," else "{}")
    elif kind is list:
        lead = "["
        for item in value:
            parts.append(lead)
            _write(item, parts)
            lead = ","
        parts.append("]" if lead == "," else "[]")
    elif kind is float:
        parts.append(number(value))
    elif kind is int:
        parts.append(str(value))
    elif value is None or kind is bool:
        parts.append("null" if value is None else "true" if value else "false")
    else:
        raise ValueError(f"a {kind.__name__} is no JSON value")


def _units(key: str) -> bytes:
    return key.encode("utf-16-be", "surrogatepass")


def number(value: float) -> str:
    """A finite double as ECMAScript's `Number.prototype.toString` has it. Raises `ValueError`."""
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError("infinities and NaN are no JSON")
    if value == 0:
        return "0"  # minus zero, too
    # Both languages write the shortest digits that read back as the same double; only the layout differs.
    sign = "-" if value < 0 else ""
    mantissa, _, exponent = repr(abs(value)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    point = len(whole) + int(exponent or 0)
    digits = whole + fraction
    point -= len(digits) - len(digits.lstrip("0"))
    digits = digits.strip("0")
    count = len(digits)
    if count <= point <= 21:
        return sign + digits + "0" * (point - count)
    if 0 < point <= 21:
        return f"{sign}{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    more = f".{digits[1:]}" if count > 1 else ""
    return f"{sign}{digits[0]}{more}e{'+' if point > 0 else '-'}{abs(point - 1)}"
