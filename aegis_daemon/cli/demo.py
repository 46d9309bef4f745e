"""`aegis demo`: leads a person, or a script, through the tour; 0 only where every step showed what it promised."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from aegis_daemon.cli.console import DONE, USAGE, WRONG, Problem, complain, emit, rich, say, show, visible
from aegis_daemon.cli.options import Json, new_app

if TYPE_CHECKING:
    from rich.console import Console

    from aegis_daemon.demo.steps import Step
    from aegis_daemon.demo.tour import Outcome, Row

app = new_app()
NEXT: Final = """\
Now with a server of your own:
  1. aegis config init             writes a policy to start from, with comments
  2. aegis-wrap npx -y @modelcontextprotocol/server-filesystem ~/project
                                   in your agent's configuration: its server's command, with `aegis-wrap` before it
  3. aegis pending --watch         what waits for you; `aegis approve ID` lets it run
     aegis audit search            what was asked, what was decided, what came of it"""


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
    from aegis_daemon.demo.steps import AUTO, PERSON
    from aegis_daemon.demo.tour import tour

    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        try:
            outcome = tour(Leader(asks=not auto), AUTO if auto else PERSON)
        except NotInstalled as error:
            raise Problem(str(error)) from None
        code = _told(outcome)
    if as_json:
        from msgspec import to_builtins

        emit(to_builtins(outcome.rows))
    return code


def _told(outcome: Outcome) -> int:
    """The exit status, once the end was told."""
    if outcome.signal == signal.SIGHUP:
        return 128 + outcome.signal  # nobody is there any more to be told
    failed = outcome.failed
    if failed is not None:
        complain(f"step {failed.step} ({failed.title}) did not show what it promised: {failed.detail}")
        for line in outcome.log:
            say(f"  {visible(line)}")
    if outcome.left_behind is not None:
        complain(outcome.left_behind)
    else:
        print("\nThe sandbox and everything in it is gone.")
    if outcome.signal:
        return 128 + outcome.signal
    if failed is not None or outcome.left_behind is not None:
        return WRONG
    if not outcome.complete:
        say(f"left after step {len(outcome.rows)}; `aegis demo` begins again")
        return WRONG
    print(NEXT)
    return DONE


class Leader:
    """Says what happens on stdout, with Rich on a terminal; asks on stdin. See `tour.Leader`."""

    def __init__(self, asks: bool) -> None:
        self._asks = asks
        self._rich: Console | None = rich() if sys.stdout.isatty() else None

    def welcome(self, home: Path, steps: int) -> None:
        """Where the tour takes place."""
        self._line("Aegis, a tour in " + str(steps) + " steps", "bold")
        self._line(f"A sandbox at {home}: a daemon of its own, a small server of five tools, and the official MCP")
        self._line("client, which starts the server through `aegis-wrap`. Nothing of yours is touched, nothing stays.")
        if self._asks:
            self._line(f"The policy is in {home}/aegis.yaml, if you want to read it in a second terminal.")

    def begin(self, number: int, step: Step) -> None:
        """What will be seen."""
        self._line(f"\n{number}  {step.title}", "bold cyan")
        for line in step.explained:
            self._line(f"   {line}")

    def tell(self, text: str) -> None:
        """What is seen."""
        self._line(f"     {visible(text)}", "dim")

    def table(self, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
        """As every list of `aegis`."""
        show(rows, columns, "nothing was recorded")

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
        self._line(f"   [{question}]", "yellow")
        await anyio.wait_readable(sys.stdin)
        return bool(os.read(sys.stdin.fileno(), 4096))

    def _line(self, text: str, style: str = "") -> None:
        if self._rich is None:
            print(text, flush=True)
        else:
            # A terminal breaks long lines itself; broken here, a command could not be copied.
            self._rich.print(text, style=style, soft_wrap=True)
