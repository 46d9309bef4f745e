"""Every channel hears of every new ask, in its own time: none waits for another, and no decision waits for any.

A message is tried three times. What fails is logged by the channel's name, since an address may be a secret.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import msgspec

from aegis_daemon.approvals import links
from aegis_daemon.approvals.channels.notice import Channel, Notice
from aegis_daemon.approvals.ticket import PENDING, Ticket
from aegis_daemon.core.ports import Fault

_log = logging.getLogger("aegis.approvals")
TRIES: Final = 3
TIMEOUT_S: Final = 10.0
PAUSES_S: Final = (1.0, 4.0)
"""Before the second and the third try, each up to half longer at random."""
AT_ONCE: Final = 8
"""Messages under way to one channel; the others wait for these."""
WAITING_MAX: Final = 1024
"""Messages not yet delivered, over all channels; what would be more is logged and not sent."""
_AGAIN: Final = frozenset({408, 425, 429})


Sender = Callable[[str, Mapping[str, str], bytes], Awaitable[tuple[int, bytes]]]
"""Posts a body with headers to an address; gives the answer's status and (the beginning of) its body, or raises."""


class Settings(msgspec.Struct, frozen=True):
    """What a reload may change: `base` begins the links, `codes` says whether messages show the page's code."""

    channels: tuple[Channel, ...] = ()
    base: str = ""
    codes: bool = False


class Notifier:
    """Give `happened` the desk's events; swap `settings` whole on a reload.

    `wall` gives seconds since the epoch; `sleep` takes seconds.
    """

    def __init__(
        self,
        key: bytes,
        post: Sender,
        *,
        wall: Callable[[], float],
        settings: Settings = Settings(),  # noqa: B008  frozen
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.settings = settings
        self._key = key
        self._post = post
        self._wall = wall
        self._sleep = sleep
        self._tasks: set[asyncio.Task[None]] = set()
        self._room: dict[str, asyncio.Semaphore] = {}

    def happened(self, event: str, ticket: Ticket) -> None:
        """One of the desk's events; only `opened` makes news. Returns at once. Needs a running loop."""
        if event != "opened":
            return
        settings = self.settings
        for channel in settings.channels:
            if len(self._tasks) >= WAITING_MAX:
                _log.error("the %s channel is not told of `%s`: too many messages wait", channel.name, ticket.id)
                continue
            task = asyncio.ensure_future(self._tell(channel, ticket, self.notice(ticket)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def notice(self, ticket: Ticket) -> Notice:
        """What is said of a ticket."""
        settings = self.settings
        return Notice(
            id=ticket.id,
            call_id=ticket.call_id,
            agent=ticket.agent,
            backend=ticket.backend,
            tool=ticket.name,
            arguments=ticket.arguments,
            created=ticket.created,
            approve_url=links.url(self._key, settings.base, ticket, "approve"),
            reject_url=links.url(self._key, settings.base, ticket, "reject"),
            code=links.code(self._key, links.binding(ticket)) if settings.codes else "",
        )

    async def close(self) -> None:
        """Gives up what has not been delivered."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _tell(self, channel: Channel, ticket: Ticket, notice: Notice) -> None:
        room = self._room.setdefault(channel.name, asyncio.Semaphore(AT_ONCE))
        why = ""
        for attempt in range(TRIES):
            if attempt:
                await self._sleep(PAUSES_S[attempt - 1] * random.uniform(1.0, 1.5))  # noqa: S311  no secret
            async with room:
                if ticket.state != PENDING:
                    return  # nobody needs to be asked any more
                why, again = await self._try(channel, notice)
            if not why:
                return
            if not again:
                break
        _log.warning("the %s channel was not told of `%s`: %s", channel.name, ticket.id, why)

    async def _try(self, channel: Channel, notice: Notice) -> tuple[str, bool]:
        """Why it failed, empty where it did not, and whether another try may help."""
        try:
            made = channel.post(notice, self._wall())
            async with asyncio.timeout(TIMEOUT_S):
                status, body = await self._post(made.url, made.headers, made.body)
            fault = channel.fault(status, body)
        except TimeoutError:
            return f"no answer within {TIMEOUT_S:.0f} s", True
        except Fault as trouble:
            return f"it cannot be reached ({trouble.reason})", True
        except Exception as error:  # a channel's fault is its own; the text may hold the address, the kind does not
            return f"it cannot be reached ({type(error).__name__})", True
        return fault or "", not 400 <= status < 500 or status in _AGAIN
