"""A helper is told and heard in lines, and one runs for as long as it is wanted, whatever befalls it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest
from making import until

from aegis_daemon.loop.helper import LINE_MAX, Helper

Run = Callable[[Coroutine[Any, Any, Any]], Any]
ECHO = ["cat"]


class Kept:
    """A helper, and what it said of itself."""

    def __init__(self, command: Sequence[str] | None, pauses: Sequence[float] = (0.0,), loop: Any = None) -> None:
        self.command = command
        self.lines: list[str] = []
        self.failures: list[str] = []
        self.begun = self.ended = 0
        self.helper = Helper(
            loop or asyncio.get_running_loop(), lambda: self.command, pauses,
            began=self._began, heard=self.lines.append, failed=self.failures.append, ended=self._ended,
        )  # fmt: skip
        self.helper.begin()

    def _began(self) -> None:
        self.begun += 1
        self.helper.tell(b"hello")

    def _ended(self) -> None:
        self.ended += 1

    async def close(self, within: float = 10.0) -> None:
        await self.helper.close(within, 5.0)
        assert self.helper.pid is None
        assert self.begun == self.ended


def test_it_reads_all_that_it_is_told_however_late(run: Run) -> None:
    async def session() -> None:
        kept = Kept(ECHO)
        assert kept.helper.pid is not None
        os.kill(kept.helper.pid, signal.SIGSTOP)
        told = [f"{number} {'x' * 1000}" for number in range(500)]
        for line in told:
            kept.helper.tell(line.encode())
        assert kept.helper.behind
        os.kill(kept.helper.pid, signal.SIGCONT)
        await until(lambda: len(kept.lines) > len(told))
        assert kept.lines == ["hello", *told]
        assert not kept.helper.behind
        await kept.close()
        assert kept.failures == []

    run(session())


CAUSES = [(signal.SIGKILL, "signal SIGKILL"), *([(40, "signal 40")] if sys.platform == "linux" else [])]


@pytest.mark.parametrize(("cause", "named"), CAUSES)
def test_a_death_is_told_and_another_one_begins(run: Run, cause: int, named: str) -> None:
    async def session() -> None:
        kept = Kept(ECHO)
        first = kept.helper.pid
        assert first is not None
        await until(lambda: kept.lines)
        os.kill(first, cause)
        await until(lambda: len(kept.lines) == 2)
        assert kept.failures == [f"ended with {named} and is started again"]
        assert kept.helper.pid not in (None, first)
        await kept.close()

    run(session())


class Hurried:
    """A loop for which every pause is over at once; `pauses` are those that were wanted."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.pauses: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def call_later(self, delay: float, callback: Callable[..., Any]) -> asyncio.TimerHandle:
        self.pauses.append(delay)
        return self._loop.call_later(0, callback)


def test_pauses_grow_until_it_is_well(run: Run, tmp_path: Any) -> None:
    async def session() -> None:
        loop = Hurried()
        kept = Kept(["false"], (1.0, 2.0, 9.0), loop)
        await until(lambda: len(kept.failures) == 4)
        kept.helper.well()
        kept.command = [str(tmp_path / "nothing")]
        await until(lambda: len(kept.failures) == 6)
        await kept.close()
        assert loop.pauses[:6] == [1.0, 2.0, 9.0, 9.0, 1.0, 2.0]
        assert kept.failures[:4] == ["ended with status 1 and is started again"] * 4
        assert kept.failures[4].startswith("does not start: ")

    run(session())


def test_beginning_anew_is_no_failure_but_a_later_death_is_one(run: Run) -> None:
    async def session() -> None:
        kept = Kept(ECHO)
        first = kept.helper.pid
        kept.helper.begin()
        await until(lambda: kept.begun == 2)
        assert kept.helper.pid != first
        kept.command = None
        kept.helper.begin()
        await until(lambda: kept.ended == 2)
        kept.helper.tell(b"is anybody there?")
        assert (kept.helper.pid, kept.failures) == (None, [])
        kept.command = ECHO
        kept.helper.begin()
        assert kept.helper.pid is not None
        os.kill(kept.helper.pid, signal.SIGKILL)
        await until(lambda: kept.begun == 4)
        assert kept.failures == ["ended with signal SIGKILL and is started again"]
        await kept.close()

    run(session())


def test_one_that_does_not_heed_the_end_of_its_input_is_killed_and_none_follows(run: Run) -> None:
    async def session() -> None:
        kept = Kept(["sh", "-c", "echo up; exec sleep 60"])
        await until(lambda: kept.lines)
        closing = asyncio.ensure_future(kept.close(0.05))
        await asyncio.sleep(0)
        kept.helper.tell(b"too late")
        await closing
        await kept.close()
        kept.helper.begin()
        assert (kept.helper.pid, kept.failures) == (None, [])

    run(session())


def test_a_line_too_long_is_passed_over_and_nothing_else(run: Run) -> None:
    async def session() -> None:
        kept = Kept(["sh", "-c", f"head -c {10 * LINE_MAX} /dev/zero; echo; echo well; cat"])
        await until(lambda: "hello" in kept.lines)
        assert kept.lines == ["well", "hello"]
        await kept.close()

    run(session())
