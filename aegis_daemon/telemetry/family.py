"""Numbers of one name are a family: what they are, the labels that tell them apart, and a value for each.

It is written in the two forms that Prometheus reads: its own text format 0.0.4, and OpenMetrics 1.0, which differ in
where `_total` stands and in how a text ends.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

Labels = tuple[str, ...]


class Spread(msgspec.Struct, frozen=True):
    """A histogram's value: how many lie in each step (one more than there are bounds), and their sum."""

    counts: list[int]
    sum: float


class Family(msgspec.Struct, frozen=True):
    """`name` is without `_total`. `bounds` are a histogram's upper bounds, in `unit`. `otel` is its name over there."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: Labels = ()
    values: list[tuple[Labels, int | float]] = []
    spreads: list[tuple[Labels, Spread]] = []
    bounds: tuple[float, ...] = ()
    unit: str = ""
    otel: str = ""
    otel_labels: Labels = ()


def exposition(families: Iterable[Family], *, openmetrics: bool) -> str:
    """All of them as one text, which an unknown label value cannot break."""
    lines: list[str] = []
    for family in families:
        name = family.name
        head = name if openmetrics or family.kind != "counter" else f"{name}_total"
        lines.append(f"# HELP {head} {_help(family.help)}")
        lines.append(f"# TYPE {head} {family.kind}")
        if openmetrics and family.unit and name.endswith(f"_{family.unit}"):
            lines.append(f"# UNIT {head} {family.unit}")
        sample = f"{name}_total" if family.kind == "counter" else name
        lines += [f"{sample}{_braced(family.labels, labels)} {_number(value)}" for labels, value in family.values]
        for labels, spread in family.spreads:
            below = 0
            for bound, count in zip((*map(_number, family.bounds), "+Inf"), spread.counts, strict=True):
                below += count
                lines.append(f"{name}_bucket{_braced((*family.labels, 'le'), (*labels, bound))} {below}")
            braced = _braced(family.labels, labels)
            lines.append(f"{name}_sum{braced} {_number(spread.sum)}")
            lines.append(f"{name}_count{braced} {below}")
    if openmetrics:
        lines.append("# EOF")
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    """Integers as they are; a bound of a histogram has a point in both forms, so that it stays one series."""
    return repr(value)


def _braced(names: Labels, values: Labels) -> str:
    if not names:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(text)}"' for name, text in zip(names, values, strict=True)) + "}"


def _escaped(text: str) -> str:
    """Exposition formats: backslash, quote and line feed alone are special; half a surrogate pair is no UTF-8."""
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", " ")
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def _help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", " ")
