"""The live view of `aegis pending --watch`: what waits, how long it still may, and a decision in two keys.

`Board` is the view without a terminal: events and keys go in, a picture and decisions come out. A decision takes a
key and a `y`, with the whole call in view, and names the call by its call id.
"""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from aegis_daemon.cli import link
from aegis_daemon.cli.console import Problem, compact, instant, pretty, rich, span, visible
from aegis_daemon.cli.decision import own_key, send, told, what
from aegis_daemon.manage.client import Connection, DaemonAway, Refused

if TYPE_CHECKING:
    from rich.console import RenderableType

KEYS: Final = {"\x1b[A": "up", "k": "up", "\x1b[B": "down", "j": "down"}
URGENT_S: Final = 60
STEADY_S: Final = 1.0
"""How long a choice that nobody made must have been in view before it can be decided."""


class Decision(msgspec.Struct, frozen=True):
    """What a person wants done."""

    ticket: dict[str, Any]
    approve: bool


class Board:
    """The tickets on view, the one that is chosen, and whether its decision is being confirmed."""

    def __init__(self, wanted: Callable[[dict[str, Any]], bool], clock: Callable[[], float] = time.monotonic) -> None:
        self._wanted = wanted
        self._clock = clock
        self._moved = -STEADY_S
        self._size = (40, 120)
        self.tickets: dict[str, dict[str, Any]] = {}
        self.chosen: str | None = None
        self.asking: bool | None = None
        """the decision that a `y` would take"""
        self.notice = ""
        self.connected = False

    def begin(self) -> None:
        """A fresh connection tells everything again."""
        self.tickets.clear()
        self.connected = True

    def apply(self, event: dict[str, Any]) -> bool:
        """Takes an event in; whether it deserves the bell."""
        ticket, call = event["ticket"], event["ticket"]["call_id"]
        if not self._wanted(ticket):
            return False
        known = call in self.tickets
        if ticket["state"] in ("pending", "approved"):
            self.tickets[call] = ticket
        elif known:
            del self.tickets[call]
        if event["event"] in ("decided", "expired"):
            by = f" by {visible(event['by'])}" if event.get("by") else ""
            self.notice = f"{ticket['id']} {ticket['state']}{by}"
        self._choose()
        return not known and ticket["state"] == "pending"

    def press(self, key: str) -> Decision | None:
        """Takes a key in; what is decided by it. Raises `EOFError` for the key that leaves."""
        order = self._order()
        if self.asking is not None:
            approve, self.asking = self.asking, None
            ticket = self.tickets.get(self.chosen or "")
            if key in ("y", "Y") and ticket is not None and ticket["state"] == "pending":
                return Decision(ticket, approve)
            self.notice = "left as it is"
        elif key in ("q", "\x04"):
            raise EOFError
        elif key in KEYS and self.chosen in order:
            step = 1 if KEYS[key] == "down" else -1
            self.chosen = order[(order.index(self.chosen) + step) % len(order)]
        elif key in ("a", "r") and self.chosen in order:
            if self._clock() - self._moved < STEADY_S:
                self.notice = "the list has just changed; look again"
            elif key == "a" and self._shown(self.tickets[self.chosen])[1]:
                self.notice = f"too long to be seen whole here: `aegis approve {self.tickets[self.chosen]['id']}`"
            elif self.tickets[self.chosen]["state"] == "pending":
                self.asking = key == "a"
            else:
                self.notice = f"{self.tickets[self.chosen]['id']} is decided already; it runs once its agent asks again"
        return None

    def draw(self, now: float, height: int = 40, width: int = 120) -> RenderableType:
        """The picture; `height` is how many lines there are for it, `width` how many characters in each."""
        from rich.console import Group
        from rich.text import Text

        self._size = (height, width)
        parts: list[RenderableType] = []
        if not self.connected:
            parts.append(Text("the daemon is away; waiting for it …", "yellow"))
        if self.tickets:
            parts.append(self._table(now, height // 2))
        elif self.connected:
            parts.append(Text("nothing waits for you", "dim"))
        ticket = self.tickets.get(self.chosen or "")
        if ticket is not None:
            parts.extend(self._whole(ticket))
        if self.asking is not None and ticket is not None:
            word = "approve" if self.asking else "reject"
            parts.append(Text(f"{word} {ticket['id']}?  y yes · any other key no", "bold"))
        else:
            keys = "↑↓ choose · a approve · r reject · q leave" if self.tickets else "q leave"
            parts.append(Text(keys, "dim"))
        parts.append(Text(self.notice, "dim"))
        return Group(*parts)

    def _table(self, now: float, height: int) -> RenderableType:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True)
        for heading, ratio in (("", None), ("id", None), ("agent", None), ("call", None), ("arguments", 1)):
            table.add_column(heading, ratio=ratio, no_wrap=True, overflow="ellipsis")
        table.add_column("expires in", justify="right", no_wrap=True)
        order = self._order()
        at = order.index(self.chosen) if self.chosen in order else 0
        room = max(3, height - 4)
        first = max(0, min(at - room // 2, len(order) - room))
        for call in order[first : first + room]:
            ticket = self.tickets[call]
            left = instant(ticket["expires_at"]) - now
            decided = ticket["state"] != "pending"
            note = " (approved)" if decided else "" if ticket["waiting"] else " (client gone)"
            table.add_row(
                "▸" if call == self.chosen else "",
                ticket["id"],
                Text(visible(ticket["agent_id"], 40)),
                Text(visible(what(ticket), 60)),
                Text(compact(ticket["arguments"])[:400]),
                Text(f"{span(left)}{note}", "bold red" if left < URGENT_S else ""),
                style="green" if decided else "bold",
            )
        if len(order) > room:
            table.caption = f"{len(order)} in all"
        return table

    def _whole(self, ticket: dict[str, Any]) -> list[RenderableType]:
        from rich.text import Text

        (head, rule, *rows), more = self._shown(ticket)
        shown = [Text(head, "bold"), Text(rule, "dim"), *map(Text, rows)]
        if more:
            text = f"… {more} more lines: read all of it with `aegis approve {ticket['id']}`"
            shown.append(Text(text, "bold yellow"))
        return list(shown)

    def _shown(self, ticket: dict[str, Any]) -> tuple[list[str], int]:
        """As much of the call as there is room for, each text one line of the screen; and how many lines are not."""
        from rich.cells import chop_cells

        height, width = self._size
        room = max(5, height // 2 - 6)
        head = f"{ticket['id']}  {visible(what(ticket))}  for {visible(ticket['agent_id'])}"
        rows, more = [], 0
        for line in (head, f"rule  {visible(ticket['rule'])}"):
            first, *rest = chop_cells(line, width)
            rows.append(first)
            more += len(rest)
        where = [f"{name}  {visible(ticket[name])}" for name in ("command", "cwd") if ticket.get(name)]
        for line in (*where, *pretty(ticket["arguments"])):
            for row in chop_cells(line, width):
                if len(rows) < room + 2:
                    rows.append(row)
                else:
                    more += 1
        return rows, more

    def _order(self) -> list[str]:
        """What is to be decided comes first; what is approved and only waits to be asked for again, last."""
        return sorted(self.tickets, key=lambda call: self.tickets[call]["state"] != "pending")

    def _choose(self) -> None:
        first = next(iter(self._order()), None)
        known = self.tickets.get(self.chosen or "")
        if self.chosen != first and (known is None or known["state"] != "pending"):
            # Keys meant for the ticket that has gone, or is decided, must not meet the next one.
            self.chosen = first
            self.asking = None
            self._moved = self._clock()


def live(wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Runs the view until its reader leaves. Raises `DaemonAway` where there is no daemon to begin with."""
    from rich.live import Live

    key = own_key()
    board = Board(wanted)
    console = rich()
    daemon: Connection | None = _watch(board)
    retry = 0.0
    with Keyboard() as keyboard, Live(console=console, auto_refresh=False, screen=False, transient=True) as view:
        while True:
            view.update(board.draw(time.time(), console.height, console.width), refresh=True)
            sources = [source for source in (daemon, keyboard) if source is not None and source.fileno() >= 0]
            ready = select.select(sources, [], [], 1.0)[0]
            if daemon is None and time.monotonic() >= retry:
                retry = time.monotonic() + 1.0
                try:
                    daemon = _watch(board)
                except DaemonAway:
                    pass
            elif daemon in ready and daemon is not None:
                events = daemon.arrived()
                if events is None:
                    daemon.close()
                    daemon, board.connected = None, False
                elif sum(board.apply(event) for event in events):
                    console.bell()
            if keyboard in ready:
                for pressed in keyboard.read():
                    try:
                        decision = board.press(pressed)
                    except EOFError:
                        return
                    if decision is not None:
                        board.notice = _decide(decision, key)


def _watch(board: Board) -> Connection:
    daemon = link.connect()
    daemon.subscribe("watch_pending")
    board.begin()
    return daemon


def _decide(decision: Decision, key: str | None) -> str:
    ticket = decision.ticket
    try:
        with link.connect() as daemon:
            row = send(daemon, ticket["call_id"], approve=decision.approve, key=key)
    except (DaemonAway, Refused, Problem) as error:
        return visible(f"{ticket['id']}: {error}")
    return told(row)


class Keyboard:
    """Single keys from the terminal, unechoed, while it lasts; nothing where stdin is no terminal."""

    def __init__(self) -> None:
        self._fd = sys.stdin.fileno() if sys.stdin.isatty() else -1
        self._before: list[Any] = []

    def fileno(self) -> int:
        """For `select`; -1 where there are no keys."""
        return self._fd

    def read(self) -> list[str]:
        """The keys pressed since; an arrow is one key."""
        text = os.read(self._fd, 1024).decode("utf-8", "replace")
        if not text:
            return ["q"]
        keys: list[str] = []
        while text:
            size = 3 if text.startswith("\x1b[") else 1
            keys.append(text[:size])
            text = text[size:]
        return keys

    def __enter__(self) -> Keyboard:
        if self._fd >= 0:
            import termios
            import tty

            self._before = termios.tcgetattr(self._fd)
            tty.setcbreak(self._fd)
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            import termios

            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)
