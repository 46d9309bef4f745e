from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest
from manage.memory import MemoryGovernor, Served
from typer.testing import CliRunner, Result

from aegis_daemon.cli.main import app


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An installation of its own, with a short path, since sockets need one."""
    with tempfile.TemporaryDirectory(prefix="aegis-") as directory:
        for name in list(os.environ):
            if name.startswith("AEGIS_"):
                monkeypatch.delenv(name)
        monkeypatch.setenv("AEGIS_HOME", directory)
        yield directory


@pytest.fixture
def served(home: str) -> Iterator[Served]:
    """A daemon that answers what its `governor` holds."""
    with Served(MemoryGovernor(), f"{home}/manage.sock") as running:
        yield running


@pytest.fixture
def governor(served: Served) -> MemoryGovernor:
    assert isinstance(served.governor, MemoryGovernor)
    return served.governor


class Aegis:
    """The command in this process, with pipes around it."""

    def __call__(self, *words: str, input: str | None = None) -> Result:
        done = CliRunner().invoke(app, list(words), input=input, prog_name="aegis")
        assert "Traceback" not in done.output
        return done


@pytest.fixture
def aegis(home: str) -> Aegis:
    return Aegis()
