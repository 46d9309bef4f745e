"""What a command prints: data on stdout, prose on stderr, and nothing that could steer the reader's terminal.

Names, arguments and error texts come from agents and servers. `visible` is the one way by which they reach a terminal.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from aegis_daemon.core.text import visible as seen

if TYPE_CHECKING:
    from rich.console import Console

DONE: Final = 0
WRONG: Final = 1
"""the command worked, and found something wrong"""
USAGE: Final = 2
AWAY: Final = 3
"""the daemon is not running"""

CELL_MAX: Final = 100


class Problem(Exception):
    """What a command ends with when it cannot go on: the text, the next step, the exit status."""

    def __init__(self, message: str, hint: str = "", code: int = WRONG) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code


# --- text from elsewhere ----------------------------------------------------------------------------------------------


def visible(text: str, limit: int | None = None) -> str:
    """One line in which every control, bidi, zero-width or otherwise unseen character is written as its escape.

    `limit` cuts to that many characters, the last of them `…`.
    """
    if limit is not None and len(text) > limit:
        text = text[: limit - 1] + "…"  # the escapes below are longer; a cell may grow, an escape is never cut
    return seen(text)


def compact(arguments: str) -> str:
    """JSON text on one line, characters shown rather than escaped where they can be seen."""
    try:
        return visible(json.dumps(json.loads(arguments), ensure_ascii=False, separators=(", ", ": ")))
    except (ValueError, RecursionError):
        return visible(arguments)


def pretty(arguments: str) -> list[str]:
    """JSON text over several lines; each of them is `visible`."""
    try:
        text = json.dumps(json.loads(arguments), ensure_ascii=False, indent=2)
    except (ValueError, RecursionError):
        return [visible(arguments)]
    return [visible(line) for line in text.split("\n")]


# --- time -------------------------------------------------------------------------------------------------------------


def instant(text: str) -> float:
    """Seconds since the epoch of an RFC 3339 text; 0 for none."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return 0.0
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def span(seconds: float) -> str:
    """A duration for people: `3d 4h`, `2h 5m`, `4m 10s`, `9s`."""
    left = max(0, round(seconds))
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2]) or "0s"


def local(text: str) -> str:
    """An RFC 3339 text in the reader's time zone, to the second."""
    found = instant(text)
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found)) if found else visible(text)


# --- where it goes ----------------------------------------------------------------------------------------------------


def say(text: str = "") -> None:
    """One line of prose, on stderr."""
    print(text, file=sys.stderr, flush=True)


def heading(text: str, *, as_json: bool = False) -> None:
    """The line over data: on stdout with it, so that a pipe has both; on stderr where stdout is JSON."""
    if as_json:
        say(text)
    else:
        print(text, flush=True)


def confirm(question: str) -> bool:
    """Whether a person says yes. Enter is no, and what is neither is asked again."""
    import typer

    while True:
        said = str(typer.prompt(f"{question} [y/N]", default="", show_default=False, err=True)).strip().lower()
        if said in ("y", "yes"):
            return True
        if said in ("", "n", "no"):
            return False
        say("  `y` or `n`")


def remedy(error: OSError) -> str:
    """The next step where a file could not be read or written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full: make room on it and repeat"
    if error.errno == errno.EROFS:
        return "that disk cannot be written: mount it for writing, or name another place"
    return "check that the path exists and is yours"


def complain(message: str, hint: str = "") -> None:
    """An error and its next step, on stderr."""
    label = "\x1b[31merror:\x1b[0m" if coloured(sys.stderr) else "error:"
    say(f"{label} {_lines(message)}")
    if hint:
        say(f"  {_lines(hint)}")


def _lines(text: str) -> str:
    return "\n".join(visible(line) for line in text.split("\n"))


def coloured(stream: Any) -> bool:
    """Whether colour is welcome there."""
    return bool(stream.isatty()) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def interactive() -> bool:
    """Whether a person sits at both ends: can be shown something, and asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def rich(stderr: bool = False) -> Console:
    """A Rich console, made where it is needed since it takes long to import. Markup and highlighting are off."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, highlight=False, emoji=False, soft_wrap=False)


def emit(value: Any) -> None:
    """JSON for programs, on stdout. ASCII, so that no byte of it can steer a terminal either."""
    sys.stdout.write(json.dumps(value, separators=(",", ":")) + "\n")
    sys.stdout.flush()


def show(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], empty: str) -> None:
    """Rows for people: a Rich table on a terminal, aligned text elsewhere. `columns` maps fields to headings."""
    if not rows:
        say(empty)
        return
    terminal = sys.stdout.isatty()
    cells = [[cell(row.get(field), CELL_MAX if terminal else None) for field in columns] for row in rows]
    if terminal:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        screen = rich()
        whole = {at for at, field in enumerate(columns) if field in WHOLE}
        cells = _fitted(cells, list(columns.values()), screen.width, whole)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for field, heading in columns.items():
            table.add_column(heading, overflow="fold", no_wrap=field in WHOLE)
        for row in cells:
            table.add_row(*(Text(text) for text in row))
        screen.print(table)
        return
    cells.insert(0, [heading.upper() for heading in columns.values()])
    widths = [min(PADDED, max(len(row[at]) for row in cells)) for at in range(len(columns))]
    for row in cells:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


PADDED: Final = 1000
"""A pipe gets every cell whole, and columns in line, unless one is longer than that."""
WHOLE: Final = frozenset({"call_id", "created_at", "id", "seq", "ticket"})
"""fields that stand on one line however narrow the terminal is: half of one cannot be copied"""
NARROW: Final = 16
"""Columns are not cut below that, so ids stay whole."""


def _fitted(cells: list[list[str]], headings: list[str], room: int, whole: Collection[int] = ()) -> list[list[str]]:
    """The same with the widest columns (but for `whole`) cut until a row takes one line: half an id is of no use."""
    from rich.cells import cell_len, set_cell_size

    widths = [max(map(cell_len, column)) for column in zip(headings, *cells, strict=True)]
    room -= 3 * len(widths)  # what Rich puts between and around them
    free = [at for at in range(len(widths)) if at not in whole]
    while sum(widths) > room and free and max(widths[at] for at in free) > NARROW:
        widths[max(free, key=lambda at: widths[at])] -= 1

    def cut(text: str, width: int) -> str:
        return text if cell_len(text) <= width else set_cell_size(text, width - 1).rstrip() + "…"

    return [[cut(text, width) for text, width in zip(row, widths, strict=True)] for row in cells]


def cell(value: Any, limit: int | None = CELL_MAX) -> str:
    """One value of a table, cut to `limit` characters."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return visible(str(value), limit)


def facts(pairs: Iterable[tuple[str, str]]) -> None:
    """Labelled lines on stdout; a label may be empty to go on with the one before."""
    shown = list(pairs)
    width = max((len(label) for label, _ in shown), default=0)
    for label, text in shown:
        print(f"{label.ljust(width)}  {text}".rstrip())
