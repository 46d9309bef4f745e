"""Every play of a test is finished when the test is over, and nothing may be left of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playbook import CONFIG, Play


@pytest.fixture
def make_play(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Play]]:
    plays: list[Play] = []

    def make(config: str = CONFIG) -> Play:
        plays.append(Play(config, store=tmp_path / f"tickets{len(plays)}.db"))
        return plays[-1]

    yield make
    for play in plays:
        play.finish()
