from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from aegis_daemon.loop.strand import Strand, Waiter


class Stop(Exception):
    pass


class Run:
    """A strand that notes what it meets."""

    def __init__(self, *steps: Awaitable[Any]) -> None:
        self.seen: list[Any] = []
        self.steps = steps
        self.strand = Strand(self.run())

    async def run(self) -> None:
        for step in self.steps:
            try:
                self.seen.append(await step)
            except Stop as stop:
                self.seen.append(stop)
        self.seen.append("end")


def waiters(count: int) -> list[Waiter[Any]]:
    return [Waiter() for _ in range(count)]


def test_a_call_that_waits_for_nothing_runs_to_its_end_at_once() -> None:
    run = Run()
    run.strand.start()
    assert run.seen == ["end"]


def test_what_happened_before_is_not_waited_for() -> None:
    early, failed = waiters(2)
    early.set(1)
    stop = Stop()
    failed.fail(stop)
    assert early.done
    assert failed.done
    run = Run(early, failed, early)
    run.strand.start()
    assert run.seen == [1, stop, 1, "end"]


def test_what_happens_later_runs_the_call_on_before_set_returns() -> None:
    first, second = waiters(2)
    run = Run(first, second)
    run.strand.start()
    assert run.seen == []
    second.set(2)
    assert run.seen == []
    first.set(1)
    assert run.seen == [1, 2, "end"]


def test_it_happens_once_and_the_first_word_counts() -> None:
    waiter: Waiter[int] = Waiter()
    run = Run(waiter)
    run.strand.start()
    waiter.set(1)
    waiter.set(2)
    waiter.fail(Stop())
    assert run.seen == [1, "end"]
    failed: Waiter[int] = Waiter()
    stop = Stop()
    failed.fail(stop)
    failed.set(1)
    run = Run(failed)
    run.strand.start()
    assert run.seen == [stop, "end"]


def test_a_call_may_set_what_another_waits_for_and_that_one_what_it_waits_for_itself() -> None:
    ping, pong = waiters(2)
    seen = []

    async def first() -> None:
        seen.append("first sets")
        ping.set(None)
        await pong
        seen.append("first ends")

    async def second() -> None:
        await ping
        seen.append("second sets")
        pong.set(None)
        seen.append("second ends")

    Strand(second()).start()
    Strand(first()).start()
    assert seen == ["first sets", "second sets", "second ends", "first ends"]


def test_nested_coroutines_are_one_call() -> None:
    waiter: Waiter[int] = Waiter()

    async def inner() -> int:
        return 2 * await waiter

    run = Run(inner())
    run.strand.start()
    waiter.set(21)
    assert run.seen == [42, "end"]


# --- interruptions ----------------------------------------------------------------------------------------------------


def test_an_interruption_is_raised_where_the_call_waits() -> None:
    waiter, later = waiters(2)
    run = Run(waiter, later)
    run.strand.start()
    stop = Stop()
    run.strand.interrupt(stop)
    assert run.seen == [stop]
    waiter.set(1)
    assert run.seen == [stop], "what it no longer waits for does not wake it"
    later.set(2)
    assert run.seen == [stop, 2, "end"]


def test_a_second_interruption_is_raised_at_the_next_wait() -> None:
    run = Run(*waiters(2))
    run.strand.start()
    first, second = Stop(), Stop()
    run.strand.interrupt(first)
    run.strand.interrupt(second)
    assert run.seen == [first, second, "end"]
    run.strand.interrupt(Stop())
    assert run.seen == [first, second, "end"]


def test_a_call_that_is_over_or_was_not_begun_is_not_interrupted() -> None:
    run = Run()
    run.strand.interrupt(Stop())
    run.strand.start()
    run.strand.interrupt(Stop())
    assert run.seen == ["end"]


def test_a_running_call_is_not_interrupted() -> None:
    seen = []
    waiter: Waiter[int] = Waiter()

    async def run() -> None:
        strand.interrupt(Stop())
        seen.append("on")
        seen.append(await waiter)
        strand.interrupt(Stop())
        seen.append("end")

    strand = Strand(run())
    strand.start()
    waiter.set(1)
    assert seen == ["on", 1, "end"]


def test_an_interruption_that_nobody_catches_ends_the_call_quietly(caplog: pytest.LogCaptureFixture) -> None:
    waiter: Waiter[int] = Waiter()
    closed = []

    async def run() -> None:
        try:
            await waiter
        finally:
            closed.append(True)

    strand = Strand(run())
    strand.start()
    strand.interrupt(Stop())
    waiter.set(1)
    assert closed == [True]
    assert caplog.records == []


def test_an_interruption_may_meet_a_new_wait_that_has_happened_already() -> None:
    waiter, done = waiters(2)
    done.set(5)
    run = Run(waiter, done)
    run.strand.start()
    stop = Stop()
    run.strand.interrupt(stop)
    assert run.seen == [stop, 5, "end"]


# --- errors -----------------------------------------------------------------------------------------------------------


async def _breaks(at: Waiter[Any]) -> None:
    await at
    raise RuntimeError("a defect")


async def _breaks_in_turn(at: Waiter[Any]) -> None:
    try:
        await at
    except Stop:
        raise RuntimeError("a defect") from None


@pytest.mark.parametrize(
    "happen",
    [
        lambda waiter, strand: waiter.set(1),
        lambda waiter, strand: waiter.fail(RuntimeError("a defect")),
    ],
)
def test_an_error_nobody_caught_is_logged_and_hurts_nobody_else(
    happen: Callable[[Any, Any], None], caplog: pytest.LogCaptureFixture
) -> None:
    waiter: Waiter[int] = Waiter()
    strand = Strand(_breaks(waiter))
    strand.start()
    happen(waiter, strand)
    assert [(record.levelno, record.name) for record in caplog.records] == [(logging.ERROR, "aegis.strand")]
    assert "a defect" in str(caplog.records[0].exc_info)
    strand.interrupt(Stop())


def test_an_error_at_the_very_beginning_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    waiter: Waiter[int] = Waiter()
    waiter.set(1)
    Strand(_breaks(waiter)).start()
    assert len(caplog.records) == 1


def test_another_error_than_the_interruption_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    strand = Strand(_breaks_in_turn(Waiter()))
    strand.start()
    strand.interrupt(Stop())
    assert len(caplog.records) == 1
