"""What servers changed is told to people through their channels once, in few messages, and no message can trust it.

What was told is kept with each pin, so nothing is told twice over a restart, nor forgotten where nobody could be
reached. A server is written about at most every `PAUSE_S`, all of them at most `HOURLY` times an hour: what comes
faster is told together.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from hashlib import sha256
from typing import Final

from aegis_daemon.approvals.channels.notice import Notice, cut
from aegis_daemon.registry import difference
from aegis_daemon.registry.likeness import telling
from aegis_daemon.registry.pins import CHANGED, HELD, Pin, Registry

_log = logging.getLogger("aegis.pins")
GATHER_S: Final = 5.0
"""What changes within this time is told together."""
PAUSE_S: Final = 600.0
HOURLY: Final = 12
AGAIN_S: Final = 300.0
"""How long after nobody could be reached it is tried again."""
SINGLES: Final = 3
"""So many changes, or servers with something new, get a message each; more are one."""
SHOWN: Final = 6
"""Lines of a difference, or names, that a message shows."""
LINE: Final = 160
_PLAIN = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.\-]{0,127}")
_CHANGED: Final = "Aegis: a server changed what it offers. It cannot be used until a person trusts it"
_NEW: Final = "Aegis: a server offers what nobody has trusted yet. It cannot be used until a person does"


class PinNews:
    """Call `kick` whenever there may be something to tell. Needs a running loop.

    :param tell: sends a message through every channel; whether anybody has it. :param reaches: whether there is any
        channel. :param base: what addresses of the inbox begin with, "" where messages cannot lead there.
    """

    def __init__(
        self,
        pins: Registry,
        *,
        tell: Callable[[Notice], Awaitable[bool]],
        reaches: Callable[[], bool],
        base: Callable[[], str],
        now: Callable[[], float],
        wall: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._pins = pins
        self._tell = tell
        self._reaches = reaches
        self._base = base
        self._now = now
        self._wall = wall
        self._sleep = sleep
        self._sent: deque[float] = deque()
        self._quiet: dict[str, float] = {}
        """backends that were written about, and until when they are not again"""
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def kick(self) -> None:
        """Looks for what is to be told, soon. Returns at once."""
        if not self._closed and self._task is None and self._reaches():
            self._task = asyncio.ensure_future(self._run())
            self._task.add_done_callback(self._over)

    async def close(self) -> None:
        """The end; what was not told is told by a later daemon."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and task.exception() is not None:
            _log.error("people could not be told of what servers changed", exc_info=task.exception())

    async def _run(self) -> None:
        wait: float | None = GATHER_S
        while wait is not None:
            await self._sleep(wait)
            wait = await self._round()

    async def _round(self) -> float | None:
        """Tells what is due. Seconds until it is worth while to look again; None where nothing is left to tell."""
        if not self._reaches():
            return None
        now = self._now()
        self._quiet = {backend: until for backend, until in self._quiet.items() if until > now}
        due = [pin for pin in self._pins.untold() if pin.backend not in self._quiet]
        for notice, about in self._messages(due):
            while self._sent and self._sent[0] <= now - 3600:
                self._sent.popleft()
            if len(self._sent) >= HOURLY:
                return self._sent[0] + 3600 - now
            hashes = [(pin, pin.drifted) for pin in about]  # it may be another by the time that the message is there
            self._sent.append(now)
            if not await self._tell(notice):
                return AGAIN_S
            self._pins.told(hashes)
            self._quiet |= {pin.backend: now + PAUSE_S for pin in about}
        left = {pin.backend for pin in self._pins.untold()}
        if not left:
            return None
        return max(GATHER_S, min(self._quiet.get(backend, now) for backend in left) - now)

    # --- messages -----------------------------------------------------------------------------------------------

    def _messages(self, due: list[Pin]) -> Iterable[tuple[Notice, list[Pin]]]:
        changed = [pin for pin in due if pin.state == CHANGED]
        if len(changed) > SINGLES:
            yield self._digest(_CHANGED, changed, "changed"), changed
        else:
            for pin in changed:
                yield self._single(pin), [pin]
        held: dict[str, list[Pin]] = {}
        for pin in due:
            if pin.state == HELD:
                held.setdefault(pin.backend, []).append(pin)
        for some in [[pin for each in held.values() for pin in each]] if len(held) > SINGLES else held.values():
            yield self._digest(_NEW, some, "new"), some

    def _single(self, pin: Pin) -> Notice:
        rows = [("Backend", pin.backend), ("Kind", pin.kind), ("Name", telling(pin.name))]
        old, new = self._pins.texts(pin)
        lines = difference.unified(old, new).lines[2:] if new else ()
        moved = [line for line in lines if line[:1] in ("+", "-")]
        rows += [({"-": "Was", "+": "Now"}[line[0]], cut(line[1:].strip(), LINE)) for line in moved[:SHOWN]]
        if len(moved) > SHOWN:
            rows.append(("More", f"{len(moved) - SHOWN} lines"))
        rows += [("Hash", pin.drifted), ("Look", _command(pin))]
        return self._notice(_CHANGED, rows, f"/{pin.id}", [pin])

    def _digest(self, headline: str, pins: list[Pin], word: str) -> Notice:
        by_backend: dict[str, list[Pin]] = {}
        for pin in pins:
            by_backend.setdefault(pin.backend, []).append(pin)
        rows = []
        for backend, some in list(by_backend.items())[:SHOWN]:
            names = ", ".join(cut(telling(pin.name) or pin.kind, 40) for pin in some[:SHOWN])
            more = ", …" if len(some) > SHOWN else ""
            rows.append(("Backend", f"{cut(backend, 60)}: {len(some)} {word}: {names}{more}"))
        if len(by_backend) > SHOWN:
            rows.append(("More", f"{len(by_backend) - SHOWN} servers"))
        rows.append(("Look", "aegis tools list --changed"))
        return self._notice(headline, rows, "", pins)

    def _notice(self, headline: str, rows: list[tuple[str, str]], place: str, about: list[Pin]) -> Notice:
        now, base = self._wall(), self._base()
        # The same message has the same id after a restart: receivers can tell that they have it.
        told = sha256("".join(f"{pin.id}{pin.drifted}" for pin in about).encode()).hexdigest()[:32]
        return Notice(
            id="TOOLS", call_id=told, agent="", backend=about[0].backend, tool=about[0].name if len(about) == 1 else "",
            arguments="", created=now, expires=now, approve_url="", reject_url="", test=True, headline=headline,
            rows=tuple(rows), look_url=f"{base}/ui/tools{place}" if base else "",
        )  # fmt: skip


def _command(pin: Pin) -> str:
    """What shows it, for a person to copy: no name stands in it that could be more than a name."""
    name = pin.name or pin.kind
    if not _PLAIN.fullmatch(name) or not _PLAIN.fullmatch(pin.backend):
        return "aegis tools list --changed"
    return f"aegis tools diff {name} --backend {pin.backend} --kind {pin.kind}"
