"""Durations and rates mean the same however they are written, and print in two fixed ways."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis_daemon.core.units import LONGEST_S, UnitError, go_duration, parse_duration, parse_rate, short_duration

MICROS = st.integers(0, LONGEST_S * 10**6)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("300s", 300.0),
        ("24h", 86400.0),
        ("1h30m", 5400.0),
        ("1d", 86400.0),
        ("1d12h", 129600.0),
        ("500ms", 0.5),
        ("1.5h", 5400.0),
        (".5s", 0.5),
        ("20us", 2e-05),
        ("20µs", 2e-05),
        ("1500ns", 2e-06),
        ("0", 0.0),
        ("0s", 0.0),
        (" 10s ", 10.0),
        (45, 45.0),
        (0.25, 0.25),
        (0, 0.0),
    ],
)
def test_a_duration_is_read_as_go_reads_it_and_a_number_is_seconds(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("10", "`10` is not a duration", "did you mean `10s`?"),
        ("10 minutes", "`10 minutes` is not a duration", "did you mean `10m`?"),
        ("2 weeks", "`2 weeks` is not a duration", "did you mean `14d`?"),
        ("1 h 30 m", "`1 h 30 m` is not a duration", "did you mean `1h30m`?"),
        ("1H", "`1H` is not a duration", "did you mean `1h`?"),
        ("soon", "`soon` is not a duration", "write it like `300s`, `24h`, `1h30m` or `1d`"),
        ("", "`` is not a duration", "write it like `300s`, `24h`, `1h30m` or `1d`"),
        ("s", "`s` is not a duration", "write it like `300s`, `24h`, `1h30m` or `1d`"),
        ("1h-5m", "`1h-5m` is not a duration", "write it like `300s`, `24h`, `1h30m` or `1d`"),
        ("-5s", "`-5s` is negative", "write a duration like `20s`, or `0s` for none"),
        (-1, "`-1` is negative", "write a duration like `20s`, or `0s` for none"),
        ("11000d", "`11000d` is longer than ten years", "write a shorter duration, like `30d`"),
        (1e300, "`1e+300` is longer than ten years", "write a shorter duration, like `30d`"),
        ("1ns", "`1ns` is shorter than a microsecond", "write a duration like `1ms`, or `0s` for none"),
        (float("nan"), "`nan` is not a duration", "write it like `300s`, `24h`, `1h30m` or `1d`"),
        (float("inf"), "`inf` is not a duration", "write it like `300s`, `24h`, `1h30m` or `1d`"),
        (True, "`true` is not a duration", "write it like `300s`, `24h`, `1h30m` or `1d`"),
        (None, "nothing is not a duration", "write it like `300s`, `24h`, `1h30m` or `1d`"),
        ([], "a list is not a duration", "write it like `300s`, `24h`, `1h30m` or `1d`"),
    ],
)
def test_what_is_no_duration_is_refused_with_the_next_step(text: object, message: str, hint: str) -> None:
    with pytest.raises(UnitError) as caught:
        parse_duration(text)
    assert (caught.value.message, caught.value.hint) == (message, hint)


@pytest.mark.parametrize(
    ("seconds", "go", "short"),
    [
        (86400, "24h0m0s", "1d"),
        (3600, "1h0m0s", "1h"),
        (5400, "1h30m0s", "90m"),
        (60, "1m0s", "1m"),
        (20, "20s", "20s"),
        (90, "1m30s", "90s"),
        (1.5, "1.5s", "1s500ms"),
        (0.5, "500ms", "500ms"),
        (0.0015, "1.5ms", "1ms500µs"),
        (2e-05, "20µs", "20µs"),
        (0, "0s", "0s"),
        (604800, "168h0m0s", "7d"),
        (129600, "36h0m0s", "36h"),
        (5430, "1h30m30s", "1h30m30s"),
        (100000, "27h46m40s", "1d3h46m40s"),
    ],
)
def test_durations_print_as_go_prints_them_and_in_short(seconds: float, go: str, short: str) -> None:
    assert go_duration(seconds) == go
    assert short_duration(seconds) == short


@given(MICROS)
def test_what_is_printed_reads_back_as_the_same_duration(micros: int) -> None:
    seconds = micros / 10**6
    assert parse_duration(go_duration(seconds)) == seconds
    assert parse_duration(short_duration(seconds)) == seconds


@given(MICROS)
def test_a_number_of_seconds_keeps_its_value(micros: int) -> None:
    assert parse_duration(micros / 10**6) == micros / 10**6


@given(st.text(max_size=20) | st.text("0123456789.dhmsunµ -", max_size=12))
def test_any_text_is_a_duration_within_bounds_or_refused(text: str) -> None:
    try:
        seconds = parse_duration(text)
    except UnitError:
        return
    assert 0 <= seconds <= LONGEST_S


@pytest.mark.parametrize(
    ("text", "window", "count"),
    [
        ("10/minute", 60, 10),
        ("1/day", 86400, 1),
        ("1 per 2 days", 172800, 1),
        ("10/h", 3600, 10),
        ("5/2h", 7200, 5),
        ("5/2 hours", 7200, 5),
        ("3 / 90s", 90, 3),
        ("2/1h30m", 5400, 2),
        ("1/month", 30 * 86400, 1),
    ],
)
def test_short_rates_are_read_with_words_and_with_durations(text: str, window: float, count: int) -> None:
    assert parse_rate(text) == (window, count)


@pytest.mark.parametrize(
    "text", ["10", "10/minut", "a/day", "1/day;2/hour", "", "/", "1/", "1/1000years", "1/-5s", "1//day"]
)
def test_what_is_not_one_rate_is_refused(text: str) -> None:
    with pytest.raises(UnitError):
        parse_rate(text)
