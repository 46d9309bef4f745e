from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .stage import Client, Daemon


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home directory for Aegis; its socket's path must be short."""
    return tmp_path


@pytest.fixture
def daemon(home: Path) -> Iterator[Daemon]:
    running = Daemon(home)
    yield running
    running.close()


@pytest.fixture
def client(home: Path) -> Iterator[Callable[..., Client]]:
    """Makes agents, and ends them."""
    made: list[Client] = []

    def make(*words: str, **more: Any) -> Client:
        made.append(Client(home, *(words or ("--no-autostart", "server")), **more))
        return made[-1]

    yield make
    for each in made:
        each.close()
