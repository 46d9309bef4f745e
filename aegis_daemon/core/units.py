"""A duration or a rate reads the same however it was written, and prints in two fixed ways.

Durations are float seconds, exact to the microsecond and at most ten years, so that a float holds each of them.
"""

from __future__ import annotations

import difflib
import re
from decimal import Decimal

MICROSECONDS = {
    "ns": Decimal("0.001"),
    "us": Decimal(1),
    "µs": Decimal(1),  # U+00B5, as Go prints it
    "μs": Decimal(1),  # U+03BC, which looks the same
    "ms": Decimal(10**3),
    "s": Decimal(10**6),
    "m": Decimal(60 * 10**6),
    "h": Decimal(3600 * 10**6),
    "d": Decimal(86400 * 10**6),
}
LONGEST_S = 10 * 365 * 86400
"""Ten years: longer ones are slips, and clocks and timers need some bound."""

_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)([a-zµμ]+)")
_WORDS = {"second": "s", "sec": "s", "minute": "m", "min": "m", "hour": "h", "hr": "h", "day": "d", "week": "7d"}
_RATE = re.compile(r"\s*([0-9]{1,12})\s*/\s*([0-9].*?|[a-z]{1,2})\s*")


class UnitError(ValueError):
    """The text is not a duration or rate; `hint` is the next step."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def parse_duration(value: object) -> float:
    """Seconds from `300s`, `24h`, `1h30m`, `1d`, `500ms`, `1.5h` (Go's grammar plus `d`), or from a number of seconds.

    :raises UnitError: not a duration, negative, or longer than ten years.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        micros = Decimal(repr(value)) * 10**6 if value == value and abs(value) != float("inf") else Decimal("NaN")
        shown = str(value)
    elif isinstance(value, str):
        shown = value
        micros = _micros(value.strip())
    else:
        raise UnitError(f"{_shown(value)} is not a duration", "write it like `300s`, `24h`, `1h30m` or `1d`")
    if micros.is_nan():
        raise UnitError(f"`{shown[:60]}` is not a duration", _duration_hint(shown))
    if micros < 0:
        raise UnitError(f"`{shown[:60]}` is negative", "write a duration like `20s`, or `0s` for none")
    if micros > LONGEST_S * 10**6:
        raise UnitError(f"`{shown[:60]}` is longer than ten years", "write a shorter duration, like `30d`")
    whole = int(micros.to_integral_value())
    if not whole and micros:
        raise UnitError(
            f"`{shown[:60]}` is shorter than a microsecond", "write a duration like `1ms`, or `0s` for none"
        )
    return whole / 10**6


def go_duration(seconds: float) -> str:
    """As Go's `time.Duration` prints itself: `24h0m0s`, `1m0s`, `1.5s`, `500ms`, `20µs`, `0s`."""
    micros = round(seconds * 10**6)
    if not micros:
        return "0s"
    if micros < 1000:
        return f"{micros}µs"
    if micros < 10**6:
        return f"{_plain(Decimal(micros) / 1000)}ms"
    minutes, rest = divmod(micros, 60 * 10**6)
    text = f"{_plain(Decimal(rest) / 10**6)}s"
    if not minutes:
        return text
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{text}" if hours else f"{minutes}m{text}"


def short_duration(seconds: float) -> str:
    """The shortest exact text: `1d`, `1h`, `90m`, `20s`, `500ms`; several units where one would take a large number."""
    micros = round(seconds * 10**6)
    if not micros:
        return "0s"
    sizes = [(unit, int(MICROSECONDS[unit])) for unit in ("d", "h", "m", "s", "ms", "µs")]
    for unit, size in sizes:
        if not micros % size and micros // size < 1000:
            return f"{micros // size}{unit}"
    text = ""
    for unit, size in sizes:
        count, micros = divmod(micros, size)
        text += f"{count}{unit}" if count else ""
    return text


def parse_rate(text: str) -> tuple[float, int]:
    """Window in seconds and count from `10/minute`, `1 per 2 days`, `1/day`, and also `10/h`, `5/2h`, `3/90s`.

    :raises UnitError: not one rate (several in one text are refused too).
    """
    hint = "write it like `10/minute`, `1/day` or `5/2h`, or as `{ window: 24h, max_count: 1 }`"
    if own := _RATE.fullmatch(text):
        try:
            return parse_duration(own[2] if own[2][0].isdigit() else f"1{own[2]}"), int(own[1])
        except UnitError:
            pass  # perhaps `5/2 hours`
    from limits import parse_many  # here, since it takes longer to import than most configs to load

    try:
        found = parse_many(text)
    except ValueError:
        raise UnitError(f"`{text[:60]}` is not a rate", hint) from None
    if len(found) != 1:
        raise UnitError(f"`{text[:60]}` holds {len(found)} rates", "write one window for each tool")
    window = found[0].get_expiry()
    if window > LONGEST_S:
        raise UnitError(f"the window of `{text[:60]}` is longer than ten years", "write a shorter one, like `30d`")
    return float(window), found[0].amount


def _micros(text: str) -> Decimal:
    if text == "0":
        return Decimal(0)
    sign = 1
    if text[:1] == "-":
        sign, text = -1, text[1:]
    total, at = Decimal(0), 0
    while at < len(text) and len(text) < 100:
        part = _PART.match(text, at)
        if part is None or part[2] not in MICROSECONDS:
            return Decimal("NaN")
        total += Decimal(part[1]) * MICROSECONDS[part[2]]
        at = part.end()
    return sign * total if at else Decimal("NaN")


def _duration_hint(text: str) -> str:
    compact = text.strip().lower()
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", compact):
        return f"did you mean `{compact}s`?"
    if worded := re.fullmatch(r"([0-9]+)\s*([a-z]+?)s?", compact):
        for word in difflib.get_close_matches(worded[2], _WORDS, 1, 0.75) or ():
            unit = _WORDS[word]
            return f"did you mean `{int(worded[1]) * 7}d`?" if word == "week" else f"did you mean `{worded[1]}{unit}`?"
    squeezed = re.sub(r"\s+", "", compact)
    if not _micros(squeezed).is_nan():
        return f"did you mean `{squeezed}`?"
    return "write it like `300s`, `24h`, `1h30m` or `1d`"


def _plain(number: Decimal) -> str:
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return "a mapping" if isinstance(value, dict) else "a list" if isinstance(value, list) else f"`{value}`"
