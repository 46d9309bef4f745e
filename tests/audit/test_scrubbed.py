"""What may not be written down is replaced before it is hashed: the chain holds, and no byte of it is on the disk."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from logging_by_hand import intent, lines_of, opened, outcome

from aegis_daemon.audit.record import REASON_CAP, REQUEST_CAP, RESULT_CAP, Admin
from aegis_daemon.audit.story import Story
from aegis_daemon.core.past import NAME_CAP
from aegis_daemon.core.verdict import Reason

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


async def test_names_and_ids_as_long_as_a_frame_are_cut_with_their_hash_and_hold_no_half_of_a_secret(
    tmp_path: Path,
) -> None:
    told: list[Any] = []
    real = "é" * NAME_CAP
    names = ["n" * (NAME_CAP - at) + SECRET.decode() + "m" * 300_000 for at in range(SECRET.__len__() + 1)]
    with opened(tmp_path) as log:
        log.scrub = scrub
        log.listener = lambda record, ended: told.append(record)
        for at, name in enumerate((real, *names)):
            who = SimpleNamespace(agent="ann", name="ann")
            story = Story(log, None)  # type: ignore[arg-type]
            story.call = SimpleNamespace(  # type: ignore[assignment]
                id=f"{at:032x}", principal=who, backend="b", era=0, row=SimpleNamespace(name="tools/call"), name=name,
                request_id="i" * 200, session="s", trace="", content_text=b"{}",
            )  # fmt: skip
            story.intent(lambda why: None)
            story.outcome("success", 1, consumed=True)
            story.denied(Reason("acl", f"the tool `{name}` is not allowed"))
    assert SECRET[:8] not in kept(tmp_path)
    assert {record.name for record in told[:3] if record.kind != "outcome"} == {real}
    for record, name in zip([one for one in told if one.kind == "intent"][1:], names, strict=True):
        assert record.name.endswith("…" + sha256(name.encode()).hexdigest()[:16])
    longest = max(len(record.name) for record in told if record.kind == "denied")
    assert longest == NAME_CAP + 17
    assert max(len(record.reason) for record in told if record.kind == "denied") == REASON_CAP + 17
    assert {len(record.request) for record in told if record.kind == "intent"} == {REQUEST_CAP + 17}


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
