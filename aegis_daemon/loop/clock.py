"""The two clocks: one that only goes forward, sleep included, for windows and waits, and the calendar's for people."""

from __future__ import annotations

import sys
import time

if sys.platform == "linux":

    def monotonic() -> float:
        """Seconds since boot, suspend included: no change of the calendar moves it."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

else:  # macOS: its monotonic clock stops during sleep, so a window lasts longer there, never shorter

    def monotonic() -> float:
        """Seconds on the system's monotonic clock."""
        return time.monotonic()


def wall() -> float:
    """Seconds since the epoch, UTC."""
    return time.time()
