"""What may not be written down is replaced before it is hashed: the chain holds, and no byte of it is on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from logging_by_hand import intent, lines_of, opened, outcome

from aegis_daemon.audit.record import RESULT_CAP, Admin
from aegis_daemon.audit.story import Story

pytestmark = pytest.mark.anyio
SECRET = b"correct-horse-battery"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def scrub(text: bytes) -> bytes:
    return text.replace(SECRET, b"[gone]") if SECRET in text else text


def kept(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in directory.glob("seg-*.jnl"))


async def test_records_and_bodies_are_written_without_it(tmp_path: Path) -> None:
    told: list[Any] = []
    with opened(tmp_path) as log:
        log.scrub = scrub
        log.listener = lambda record, ended: told.append(record)
        word = SECRET.decode()
        log.append(intent(1, name=f"db://{word}/x"), b'{"key":"' + SECRET + b'"}')
        log.append(intent(2, request=f'"{word}"'), b"{}")
        log.append(outcome(1, error_message=f"no {word}"), b'{"text":"' + SECRET + b'"}')
        log.append(Admin(action="note", detail=word))
    assert len(lines_of(tmp_path)) == 4
    data = kept(tmp_path)
    assert SECRET not in data
    assert data.count(b"[gone]") == 6
    assert SECRET.decode() not in repr(told), "nor is anybody told of it"


async def test_what_is_cut_at_its_end_holds_no_half_of_it(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        log.scrub = scrub
        for before in range(RESULT_CAP - 30, RESULT_CAP + 5):
            log.append(intent(before), b"{}")
            story = Story(log, None)  # type: ignore[arg-type]
            story.call = _Named(intent(before).call)  # type: ignore[assignment]
            story.outcome("success", 1, consumed=True, result=b"x" * before + SECRET + b"y" * 9000)
    assert SECRET[:8] not in kept(tmp_path)


class _Named:
    def __init__(self, id: str) -> None:
        self.id = id


async def test_a_name_that_was_fine_is_looked_at_again_under_other_rules(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        log.scrub = lambda text: text
        log.append(intent(1, name=SECRET.decode(), request="1"), b"{}")
        log.scrub = scrub
        log.append(intent(2, name=SECRET.decode(), request="2"), b"{}")
    assert kept(tmp_path).count(SECRET) == 1
