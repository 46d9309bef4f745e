"""A record that nothing waits for is written with the next one, or soon after, and never out of order."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from aegis_daemon.audit.journal import Journal
from aegis_daemon.audit.record import Intent, Outcome


def intent(call: str) -> Intent:
    return Intent(agent="amy", backend="files", call=call * 32, method="tools/call", name="look")


def outcome(call: str) -> Outcome:
    return Outcome(call=call * 32, status="success")


def journal(directory: Path) -> Journal:
    return Journal(directory, durability="process", loop=asyncio.get_running_loop())


async def after_a_kill(directory: Path) -> list[str]:
    """The calls without an end, as the next daemon finds them. The lock goes with the process; here it is let go."""
    again = journal(directory)
    try:
        return [record.call[0] for record in again.open().open_intents]
    finally:
        again.close()


def test_a_kill_before_it_is_written_leaves_the_call_unknown_and_what_came_before_it_whole(tmp_path: Path) -> None:
    async def run() -> None:
        log = journal(tmp_path / "j")
        log.open()
        log.append(intent("a"))
        log.append(outcome("a"))
        log.append(intent("b"))
        assert log.append(outcome("b"), b"{}", later=True) == log.last_seq > log.durable_seq
        log._held.clear()  # what a kill takes with it
        log._held_size = 0
        log.close()
        assert await after_a_kill(tmp_path / "j") == ["b"]

    asyncio.run(run())


def test_it_is_written_before_the_next_record(tmp_path: Path) -> None:
    async def run() -> None:
        log = journal(tmp_path / "j")
        log.open()
        log.append(intent("a"))
        log.append(outcome("a"), later=True)
        assert log.append(intent("b")) == log.durable_seq == 3
        log._held.clear()
        log.close()
        assert await after_a_kill(tmp_path / "j") == ["b"]

    asyncio.run(run())


@pytest.mark.parametrize("way", ["time", "flush", "close"])
def test_it_is_written_without_a_next_record_too(tmp_path: Path, way: str) -> None:
    async def run() -> None:
        log = journal(tmp_path / "j")
        log.open()
        log.append(intent("a"))
        seq = log.append(outcome("a"), later=True)
        if way == "time":
            async with asyncio.timeout(5):
                while log.durable_seq < seq:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
        elif way == "flush":
            assert log.checkpoint() == seq
        log.close()
        assert await after_a_kill(tmp_path / "j") == []

    asyncio.run(run())
