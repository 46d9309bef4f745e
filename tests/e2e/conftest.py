from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import pytest

from .house import Home

OPEN = """
backends: {work: {}}
agents: {default: {backends: {work: {allowed: true}}}}
"""

if sys.platform != "linux":
    collect_ignore_glob = ["test_*.py"]  # the process table is read from /proc


@pytest.fixture
def homes() -> Iterator[Callable[..., Home]]:
    """Makes installations, and ends them; what one leaves behind fails the test."""
    made: list[Home] = []

    def make(config: str | None = OPEN, *, start: bool = True) -> Home:
        made.append(Home(config))
        return made[-1].launch() if start else made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def home(homes: Callable[..., Home]) -> Home:
    """One that lets the agent `default` do anything on the backend `work`; its daemon runs."""
    return homes()
