"""The two clocks: one that only goes forward, sleep included, for windows and waits, and the calendar's for people."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

# A partial of the C function, since the path of a call asks several times (a Python function around it costs twice).
if sys.platform == "linux":
    monotonic: Callable[[], float] = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
else:  # macOS: its monotonic clock stops during sleep, so a window lasts longer there, never shorter
    monotonic = time.monotonic
wall: Callable[[], float] = time.time


def micros() -> tuple[int, int]:
    """(microseconds since the epoch, microseconds on the monotonic clock), as the audit log wants them."""
    return int(wall() * 1e6), int(monotonic() * 1e6)


def instant(seconds: float) -> str:
    """Seconds since the epoch as RFC 3339, UTC, milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
