"""The tour takes its nine steps in a sandbox, in order, and leaves nothing behind however it ends."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Final, Protocol

import anyio
import msgspec

from aegis_daemon.demo.sandbox import SERVER, Sandbox
from aegis_daemon.demo.stage import Guide, Pace, Stage, connected, started
from aegis_daemon.demo.steps import STEPS, Step

BOUND_S: Final = 45.0
"""The longest that a step takes where nobody is asked."""
LOG_LINES: Final = 6
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Row(msgspec.Struct, frozen=True):
    """One step, as it went. `detail` says what was seen, or what was missed."""

    step: int
    title: str
    ok: bool
    detail: str
    seconds: float


class Leader(Guide, Protocol):
    """A guide that leads from step to step."""

    def welcome(self, home: Path, steps: int) -> None:
        """The sandbox is there."""
        ...

    def begin(self, number: int, step: Step) -> None:
        """A step begins."""
        ...

    def end(self, row: Row) -> None:
        """A step has ended."""
        ...

    async def pause(self, last: bool) -> bool:
        """Whether the person wants to go on, once they say so; `last`: to the end."""
        ...


class Outcome(msgspec.Struct, frozen=True):
    """How the tour went: nine rows, unless it was left early, by the person or by signal `signal` (0: none)."""

    rows: tuple[Row, ...]
    log: tuple[str, ...] = ()
    """the last lines of the daemon's log, where a step failed"""
    left_behind: str | None = None
    """what could not be removed, and how to"""
    signal: int = 0

    @property
    def complete(self) -> bool:
        """Whether no step was left out."""
        return len(self.rows) == len(STEPS)

    @property
    def failed(self) -> Row | None:
        """The first step that did not show what it promised."""
        return next((row for row in self.rows if not row.ok), None)


def tour(leader: Leader, pace: Pace, server: Path = SERVER) -> Outcome:
    """The whole tour. `server` is the program that is governed; it takes the path of its tally.

    Belongs on the main thread: SIGINT, SIGTERM and SIGHUP end it early, and never its tidying up. Raises `OSError`,
    `NotInstalled` where there can be no sandbox.
    """
    rows: list[Row] = []
    log: list[str] = []
    with _Signals() as signals:
        sandbox = Sandbox(f"{pace.delay_min * 1000:.0f}ms", f"{pace.delay_max * 1000:.0f}ms", server)
        try:
            leader.welcome(sandbox.home, len(STEPS))
            asyncio.run(_walk(sandbox, leader, pace, rows, signals))
            if signals.number not in (0, signal.SIGHUP):
                leader.tell("leaving: what runs in the sandbox is ended, and the sandbox removed")
        finally:
            if not all(row.ok for row in rows):
                log = sandbox.log(LOG_LINES)
            left_behind = sandbox.remove()
    return Outcome(tuple(rows), tuple(log), left_behind, signals.number)


async def _walk(sandbox: Sandbox, leader: Leader, pace: Pace, rows: list[Row], signals: _Signals) -> None:
    loop = asyncio.get_running_loop()
    with anyio.CancelScope() as scope:
        signals.on_arrival(lambda: loop.call_soon_threadsafe(scope.cancel))
        try:
            await _steps(sandbox, leader, pace, rows)
        except Exception as error:
            _not_taken(rows, f"the session broke: {reason(error)}")
        finally:
            signals.on_arrival(None)


async def _steps(sandbox: Sandbox, leader: Leader, pace: Pace, rows: list[Row]) -> None:
    await started(sandbox)
    async with connected(sandbox, "demo") as session:
        stage = Stage(sandbox, session, leader, pace)
        for number, step in enumerate(STEPS, 1):
            leader.begin(number, step)
            row = await _step(stage, number, step)
            rows.append(row)
            leader.end(row)
            if not row.ok:
                _not_taken(rows, f"not taken, since step {number} failed")
                return
            if not await leader.pause(number == len(STEPS)):
                return


async def _step(stage: Stage, number: int, step: Step) -> Row:
    began = time.monotonic()
    bound = None if stage.pace.asks else BOUND_S
    try:
        with anyio.fail_after(bound):
            ok, detail = True, await step.run(stage)
    except Exception as error:
        ok, detail = False, reason(error)
    return Row(number, step.title, ok, detail, round(time.monotonic() - began, 3))


def _not_taken(rows: list[Row], why: str) -> None:
    """The rows of the steps that are left."""
    left = range(len(rows) + 1, len(STEPS) + 1)
    rows.extend(Row(number, STEPS[number - 1].title, False, why, 0.0) for number in left)


def reason(error: BaseException) -> str:
    """One line for whatever went wrong, also inside groups of tasks."""
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    if isinstance(error, TimeoutError):
        return "nothing happened any more, for as long as the tour waits"
    return str(error) or type(error).__name__


class _Signals:
    """Signals that end the tour; once it is being tidied up they only are remembered."""

    def __init__(self) -> None:
        self.number = 0
        self._arrived: Callable[[], Any] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        for number in _SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # `nohup` stays in force
                self._before[number] = signal.signal(number, self._came)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def on_arrival(self, call: Callable[[], Any] | None) -> None:
        """Calls it, at once where a signal came before; None: calls nobody any more."""
        self._arrived = call
        if self.number and call is not None:
            call()

    def _came(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        if self._arrived is not None:
            self._arrived()
