from __future__ import annotations

import _thread
import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from making import until

from aegis_daemon.loop import aside
from aegis_daemon.loop.aside import Aside

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def test_whoever_sticks_all_of_theirs_waits_alone(run: Run) -> None:
    async def play() -> None:
        made, freed, done = Aside(asyncio.get_running_loop()), threading.Event(), []
        for _ in range(aside.THREADS + 3):
            made.do(1, freed.wait, lambda result: done.append(1))
        assert made.behind(1) == 3
        made.do(2, lambda: 7, lambda result: done.append(result))
        await until(lambda: done)
        assert done == [7]
        assert made.behind(1) == 3
        freed.set()
        await until(lambda: len(done) == aside.THREADS + 4)
        assert made.behind(1) == 0
        assert not made._lanes

    run(play())


def test_descriptors_count_until_they_are_let_go_of(run: Run) -> None:
    async def play() -> None:
        made, freed = Aside(asyncio.get_running_loop()), threading.Event()
        for _ in range(aside.THREADS + 1):
            made.do(1, freed.wait, fds=5)
        made.do(2, freed.wait)
        assert made.held == 5 * (aside.THREADS + 1) + 1
        freed.set()
        await until(lambda: not made._lanes)
        assert made.held == 0

    run(play())


def test_work_that_fails_is_over_too(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def play() -> None:
        made, done = Aside(asyncio.get_running_loop()), []

        def fails() -> None:
            raise ValueError("this one")

        made.do(1, fails, done.append)
        await until(lambda: done)
        assert done == [None]
        assert not made._lanes

    run(play())
    assert "this one" in caplog.text


def test_no_thread_to_spare_is_tried_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play() -> None:
        made, done = Aside(asyncio.get_running_loop()), []
        monkeypatch.setattr(aside, "RETRY_S", 0.01)

        def none(*what: object) -> int:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(_thread, "start_new_thread", none)
            made.do(1, lambda: 1, done.append)
            made.do(1, lambda: 2, done.append)
            await asyncio.sleep(0.05)
            assert not done
        await until(lambda: len(done) == 2)
        assert sorted(done) == [1, 2]
        assert not made._lanes

    run(play())
