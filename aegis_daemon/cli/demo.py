"""`aegis demo`: leads a person, or a script, through the tour; 0 only where every step showed what it promised."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from aegis_daemon.cli.console import DONE, USAGE, WRONG, Problem, complain, confirm, emit, rich, say, show, visible
from aegis_daemon.cli.options import Json, new_app

if TYPE_CHECKING:
    from rich.console import Console

    from aegis_daemon.demo.steps import Step
    from aegis_daemon.demo.tour import Outcome, Row

app = new_app()
NEXT: Final = (
    (
        "aegis setup",
        "finds your agents and their servers, proposes rules, shows each change before it makes it, and keeps the way "
        "back",
    ),
    ("aegis pending --watch", "what waits for you; `aegis approve ID` lets it run"),
    ("aegis audit search", "what was asked, what was decided, what came of it"),
)
"""command → what a person has of it"""


@app.command()
def demo(
    auto: Annotated[
        bool, typer.Option("--auto", help="Ask nobody: the tour approves by itself and goes on at once.")
    ] = False,
    as_json: Json = False,
) -> int:
    """A five-minute tour in a sandbox: nothing of yours is touched, and nothing stays."""
    if not auto and not (sys.stdin.isatty() and (sys.stderr if as_json else sys.stdout).isatty()):
        raise Problem("the tour asks on a terminal, and this is none", "pass `--auto`: it then asks nobody", USAGE)
    from aegis_daemon.demo.sandbox import NotInstalled
    from aegis_daemon.demo.stage import AUTO, PERSON
    from aegis_daemon.demo.tour import tour

    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        try:
            outcome = tour(Leader(asks=not auto), AUTO if auto else PERSON)
        except NotInstalled as error:
            raise Problem(str(error)) from None
        code = _told(outcome)
    if code == DONE and not (auto or as_json):
        _set_up()
    if as_json:
        from msgspec import to_builtins

        emit(to_builtins(outcome.rows))
    return code


def _told(outcome: Outcome) -> int:
    """The exit status, once the end was told."""
    if outcome.signal == signal.SIGHUP:
        return 128 + outcome.signal  # nobody is there any more to be told
    failed = None if outcome.signal else outcome.failed  # what breaks off with the signal is no fault
    if failed is not None:
        complain(f"step {failed.step} ({failed.title}) did not show what it promised: {failed.detail}")
        for line in outcome.log:
            say(f"  {visible(line)}")
    if outcome.left_behind is not None:
        complain(outcome.left_behind)
    else:
        whole = "All nine steps showed what they promised.\n" if outcome.complete and outcome.failed is None else ""
        print(f"\n{whole}The sandbox and everything in it is gone.")
    done = sum(row.ok for row in outcome.rows)
    if outcome.signal or (failed is None and not outcome.complete):
        say(f"left after step {done}" if done else "left before the first step was over")
    if outcome.signal:
        return 128 + outcome.signal
    if failed is not None or outcome.left_behind is not None or not outcome.complete:
        return WRONG
    _show_next()
    return DONE


def _show_next() -> None:
    """The commands to go on with, as wide as the terminal."""
    print("\nWire a real agent?")
    indent = max(len(command) for command, _ in NEXT) + 5
    width = min(100, max(shutil.get_terminal_size((100, 24)).columns, indent + 20))
    for command, why in NEXT:
        print(textwrap.fill(why, width, initial_indent=f"  {command}".ljust(indent), subsequent_indent=" " * indent))


def _set_up() -> None:
    """Goes on to `aegis setup` where the person says so."""
    try:
        wanted = confirm("wire a real agent now, with `aegis setup`?")
    except typer.Abort:  # the tour is over: whoever leaves here left nothing out
        say()
        return
    if wanted:
        sys.stdout.flush()
        own = os.path.abspath(sys.argv[0])
        os.execv(own, [own, "setup"])  # noqa: S606  the command that runs now


class Leader:
    """Says what happens on stdout, with Rich on a terminal; asks on stdin. See `tour.Leader`."""

    def __init__(self, asks: bool, console: Console | None = None) -> None:
        self._asks = asks
        self._gone = False
        """whether nobody reads any more"""
        self._rich = console or (rich() if sys.stdout.isatty() else None)

    def welcome(self, home: Path, steps: int) -> None:
        """Where the tour takes place."""
        self._line("Aegis, a tour in " + str(steps) + " steps", "bold")
        self._paragraph(
            f"A sandbox at {home}: a daemon of its own, a small server of five tools, and the official MCP",
            "client, which starts the server through `aegis-wrap`. Nothing of yours is touched, nothing stays.",
        )
        if self._asks:
            self._paragraph(
                f"The policy is in {home}/aegis.yaml. What is shown to be typed works in a second",
                "terminal, while the tour stands at that step. Read as long as you like: nothing runs out.",
            )

    def begin(self, number: int, step: Step) -> None:
        """What will be seen."""
        self._line(f"\n{number}  {step.title}", "bold cyan")
        first, second = step.explained
        if second.startswith("Rule"):
            self._line(f"   {first}")
            self._line(f"   {second}")
        else:
            self._paragraph(f"   {first}", f"   {second}")

    def tell(self, text: str) -> None:
        """What is seen."""
        self._line(f"     {visible(text)}", "dim")

    def offer(self, what: str, *commands: str) -> None:
        """What may be typed, each on a line of its own that is never broken."""
        self._line(f"     {visible(what)}:", "dim")
        for command in commands:
            self._line(f"       {visible(command)}", "yellow", whole=True)

    def table(self, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
        """As every list of `aegis`, without what tells least where the terminal is too narrow for all of it."""
        kept = dict(columns)
        for field in ("by", "waited", "why") if self._rich is not None else ():
            widths = [max(map(len, (kept[one], *(str(row[one]) for row in rows)))) for one in kept]
            if self._rich is not None and sum(widths) + 3 * len(widths) > self._rich.width:
                kept.pop(field, None)
        self._put(lambda: show(rows, kept, "nothing was recorded"))

    def end(self, row: Row) -> None:
        """What was seen."""
        word = "ok" if row.ok else "failed"
        self._line(f"   {word}: {visible(row.detail)} ({row.seconds:.1f} s)", "green" if row.ok else "bold red")

    async def pause(self, last: bool) -> bool:
        """Enter goes on; the end of input leaves."""
        if not self._asks:
            return True
        return await self.agree("Enter removes the sandbox" if last else "Enter goes on, Ctrl-C leaves")

    async def agree(self, question: str) -> bool:
        """Enter says yes; the end of input says no."""
        import termios

        import anyio

        # What was typed before the question is no answer to it.
        termios.tcflush(sys.stdin, termios.TCIFLUSH)
        self._line(f"   [{question}]", "yellow", end=" ")  # the person's own Enter ends the line
        said = b""
        try:
            await anyio.wait_readable(sys.stdin)
            said = os.read(sys.stdin.fileno(), 4096)
        finally:
            if not said.endswith(b"\n"):
                self._line("")
        return bool(said)

    def _paragraph(self, *lines: str) -> None:
        """As it is written, or as wide as the terminal."""
        if self._rich is None:
            self._put(lambda: print("\n".join(lines), flush=True))
        else:
            self._line(" ".join([lines[0], *map(str.strip, lines[1:])]))

    def _line(self, text: str, style: str = "", *, whole: bool = False, end: str = "\n") -> None:
        screen = self._rich
        if screen is None:
            self._put(lambda: print(text, end=end, flush=True))
        elif whole:
            # The terminal breaks it itself; broken here, it could not be copied.
            screen.print(text, style=style, soft_wrap=True)
        else:
            for line in text.split("\n"):
                screen.print(_fitted(line, screen.width), style=style, soft_wrap=True, end=end)

    def _put(self, write: Callable[[], None]) -> None:
        """Writes, as long as somebody reads: who closes the pipe has enough, as one who closes the terminal."""
        if self._gone:
            return
        try:
            write()
        except BrokenPipeError:
            self._gone = True
            signal.raise_signal(signal.SIGHUP)


def _fitted(line: str, width: int) -> str:
    """Prose over as many lines as it takes, at least twenty columns wide, below where it begins."""
    indent = " " * (len(line) - len(line.lstrip()))
    return textwrap.fill(
        line, max(width, len(indent) + 20), subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )
