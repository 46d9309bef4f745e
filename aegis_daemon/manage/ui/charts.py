"""Pictures of numbers as inline SVG: each says in words what it shows, and takes its colours from the page's style.

Pure. No picture holds a script, a style or a reference to anything; every text in one has been escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, log10
from typing import Final

from markupsafe import Markup, escape

from aegis_daemon.core.text import visible
from aegis_daemon.manage import shapes

ENDINGS: Final = (
    ("success", "ran"),
    ("error", "failed"),
    ("denied", "refused"),
    ("unknown", "outcome unknown"),
    ("waiting", "waits"),
)
"""How calls end, from the bottom of a bar to its top."""
WAITS: Final = (
    (10, "10 s"), (30, "30 s"), (60, "1 min"), (120, "2 min"), (300, "5 min"), (600, "10 min"), (float("inf"), "more"),
)  # fmt: skip
DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


def bars(hours: Sequence[shapes.HourBar], labels: Sequence[str]) -> Markup:
    """How the calls of each hour ended; `labels` name the hours as the reader's clock has them."""
    most = max((_sum(hour) for hour in hours), default=0)
    top = _round_up(most)
    width, height, floor = 480.0, 132.0, 112.0
    step = width / max(1, len(hours))
    parts = [f'<line class="rule" x1="0" y1="{floor + 0.5}" x2="{width}" y2="{floor + 0.5}"/>']
    if most:
        parts.append('<line class="rule faint" x1="0" y1="12.5" x2="480" y2="12.5"/>')
        parts.append(f'<text class="tick" x="0" y="9">{top}</text>')
    for at, (hour, label) in enumerate(zip(hours, labels, strict=True)):
        x = at * step
        told = ", ".join(f"{count} {word}" for name, word in ENDINGS if (count := getattr(hour, name)))
        parts.append(f"<g><title>{_text(label)}: {told or 'no calls'}</title>")
        parts.append(f'<rect class="hit" x="{x:.1f}" y="0" width="{step:.1f}" height="{floor}"/>')
        y = floor
        for name, _ in ENDINGS:
            count = getattr(hour, name)
            if not count:
                continue
            tall = max(1.5, (floor - 12) * count / top)
            y -= tall
            parts.append(
                f'<rect class="c-{name}" x="{x + 2:.1f}" y="{max(0.0, y):.1f}" width="{step - 4:.1f}" '
                f'height="{tall:.1f}" rx="1"/>'
            )
        parts.append("</g>")
        if at % 6 == 0:
            parts.append(f'<text class="tick" x="{x + 2:.1f}" y="{height - 6}">{_text(label)}</text>')
    total = sum(map(_sum, hours))
    refused = sum(hour.denied for hour in hours)
    return _svg("bars", width, height, "Calls by hour", f"{total} calls in 24 hours, {refused} of them refused.", parts)


def spread(row: shapes.ToolRow, rows: Sequence[shapes.ToolRow]) -> Markup:
    """From the median of a tool to its slowest twentieth, on one scale for all `rows`, which grows by powers."""
    known = [each for one in rows for each in (one.p50_us, one.p95_us) if each]
    if not row.p50_us or not row.p95_us or not known:
        return Markup("")
    low, high = log10(min(known)), log10(max(known))

    def place(micros: int) -> float:
        return 6 + 188 * (log10(micros) - low) / ((high - low) or 1)

    start, end = place(row.p50_us), max(place(row.p95_us), place(row.p50_us) + 1)
    parts = [
        '<line class="rule" x1="0" y1="8" x2="200" y2="8"/>',
        f'<line class="span" x1="{start:.1f}" y1="8" x2="{end:.1f}" y2="8"/>',
        f'<circle class="dot" cx="{start:.1f}" cy="8" r="4"/>',
    ]
    told = f"Half within {row.p50_us / 1000:.1f} ms, nineteen of twenty within {row.p95_us / 1000:.1f} ms."
    return _svg("spread", 200, 16, f"Latency of {row.tool_name}", told, parts)


def histogram(seconds: Sequence[float]) -> Markup:
    """How long people took to decide."""
    counts = [0] * len(WAITS)
    for one in seconds:
        counts[next(at for at, (most, _) in enumerate(WAITS) if one <= most)] += 1
    top = max(1, *counts)
    width, height, floor = 400.0, 140.0, 116.0
    step = width / len(counts)
    parts = [f'<line class="rule" x1="0" y1="{floor + 0.5}" x2="{width}" y2="{floor + 0.5}"/>']
    for at, (count, (_, label)) in enumerate(zip(counts, WAITS, strict=True)):
        x, tall = at * step, (floor - 16) * count / top
        word = "longer" if label == "more" else f"up to {label}"
        parts.append(f"<g><title>{word}: {count}</title>")
        parts.append(f'<rect class="hit" x="{x:.1f}" y="0" width="{step:.1f}" height="{floor}"/>')
        if count:
            tall = max(2.0, tall)
            parts.append(
                f'<rect class="c-accent" x="{x + 4:.1f}" y="{floor - tall:.1f}" width="{step - 8:.1f}" '
                f'height="{tall:.1f}" rx="2"/>'
                f'<text class="tick mid" x="{x + step / 2:.1f}" y="{floor - tall - 4:.1f}">{count}</text>'
            )
        parts.append(f'<text class="tick mid" x="{x + step / 2:.1f}" y="{height - 8}">{label}</text></g>')
    half = sorted(seconds)[len(seconds) // 2] if seconds else 0
    told = f"{len(seconds)} decisions in seven days; half of them within {ceil(half)} seconds."
    return _svg("histogram", width, height, "Time to decide", told, parts)


def heat(week: Sequence[Sequence[int]]) -> Markup:
    """When calls come, by weekday and hour."""
    most = max((count for day in week for count in day), default=0)
    size, left = 16.0, 30.0
    parts = []
    for row, day in enumerate(week):
        parts.append(f'<text class="tick" x="0" y="{row * size + 12}">{DAYS[row]}</text>')
        for hour, count in enumerate(day):
            level = 0 if not count else min(5, 1 + int(4.999 * count / most))
            parts.append(
                f'<rect class="heat h{level}" x="{left + hour * size:.0f}" y="{row * size:.0f}" width="14" height="14" '
                f'rx="3"><title>{DAYS[row]} {hour:02}:00: {count} calls</title></rect>'
            )
    parts += [
        f'<text class="tick" x="{left + hour * size}" y="{7 * size + 12}">{hour:02}</text>' for hour in range(0, 24, 6)
    ]
    told = f"Calls of the last seven days by weekday and hour; the busiest hour had {most}."
    return _svg("week", left + 24 * size, 7 * size + 18, "The week", told, parts)


def gauge(current: int, reserved: int, most: int, name: str, unit: str = "") -> Markup:
    """How full a window is: what has run, and what is under way. `unit` stands behind the numbers."""
    used = 100.0 * min(1.0, current / most) if most else 100.0
    held = 100.0 * min(1.0, (current + reserved) / most) if most else 100.0
    arc = 'd="M8 44 A36 36 0 0 1 80 44" pathLength="100"'
    kind = "full" if held >= 100 else "near" if held >= 80 else "calm"
    parts = [f'<path class="track" {arc}/>']
    if held > used:
        parts.append(f'<path class="held {kind}" {arc} stroke-dasharray="{held:.1f} 200"/>')
    if used:
        parts.append(f'<path class="used {kind}" {arc} stroke-dasharray="{used:.1f} 200"/>')
    parts.append(f'<text class="gauge-n" x="44" y="43">{current + reserved}{unit}</text>')
    told = f"{current}{unit} of {most}{unit} used" + (f", {reserved}{unit} under way" if reserved else "") + "."
    return _svg("gauge", 88, 52, f"Limit of {name}", told, parts)


def mix(row: shapes.ToolRow) -> Markup:
    """How one tool's calls ended, as shares of a line."""
    parts, x = [], 0.0
    for name, _ in ENDINGS:
        wide = 100.0 * getattr(row, name) / max(1, row.count)
        if wide:
            parts.append(f'<rect class="c-{name}" x="{x:.1f}" y="0" width="{wide:.1f}" height="8"/>')
        x += wide
    told = ", ".join(f"{count} {word}" for name, word in ENDINGS if (count := getattr(row, name)))
    return _svg("mix", 100, 8, f"How calls of {row.tool_name} ended", f"{told}.", parts, stretch=True)


def _svg(
    kind: str, width: float, height: float, title: str, told: str, parts: Sequence[str], *, stretch: bool = False
) -> Markup:
    ratio = ' preserveAspectRatio="none"' if stretch else ""
    return Markup(  # noqa: S704 - every text in it went through `_text`, the rest are our own numbers and words
        f'<svg class="chart {kind}" viewBox="0 0 {width:g} {height:g}"{ratio} role="img">'
        f"<title>{_text(title)}</title><desc>{_text(told)}</desc>{''.join(parts)}</svg>"
    )


def _text(text: str) -> str:
    return str(escape(visible(text)))


def _sum(hour: shapes.HourBar) -> int:
    return hour.success + hour.error + hour.denied + hour.unknown + hour.waiting


def _round_up(most: int) -> int:
    """The next number that is easy to read."""
    if most <= 5:
        return max(1, most)
    size = 10 ** int(log10(most))
    return next(int(size * part) for part in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if size * part >= most)
