"""What a person is shown of one ask, wherever it is shown: the call, what is new in it, what is left, who agreed.

A link is followed here as well: its token says which ask it is about, and whoever holds it may learn how that ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final, Literal, cast

import msgspec

from aegis_daemon.approvals import changes, links
from aegis_daemon.approvals import ticket as tickets
from aegis_daemon.approvals.changes import Changes
from aegis_daemon.approvals.desk import Desk, NoSuchTicket
from aegis_daemon.approvals.ticket import Ticket, spoken
from aegis_daemon.loop.clock import wall
from aegis_daemon.manage import api, shapes

REMEMBERED: Final = 1024
"""Asks of which it is known when they were decided and when they ran; of others only how they ended."""
_USE_COMMAND: Final = "see `aegis pending`, and decide there with `aegis approve` or `aegis reject`"
_Ended = Literal["approved", "rejected", "expired", "consumed"]


class Asks:
    """Asks as people see them.

    :param key: that of the links; empty where none are followed. :param row: a ticket as it is listed.
    :param limits: rows of an agent, a backend and a tool. :param shown: arguments as they may be seen.
    """

    def __init__(
        self,
        desk: Desk,
        key: bytes,
        changes: Changes | None,
        *,
        row: Callable[[Ticket], shapes.Ticket],
        limits: Callable[[str | None, str | None, str | None], Sequence[shapes.LimitRow]],
        wall: Callable[[], float] = wall,
        shown: Callable[[str], str] = str,
    ) -> None:
        self._desk = desk
        self._key = key
        self._changes = changes
        self._row = row
        self._limits = limits
        self._wall = wall
        self._shown = shown
        self._times: dict[str, dict[str, float]] = {}

    def happened(self, event: str, ticket: Ticket) -> None:
        """One of the desk's events."""
        if event not in ("approved", "rejected", "expired", "consumed"):
            return
        now = self._wall()
        if event == "approved" and self._changes is not None:
            self._changes.approved(ticket, now)
        while len(self._times) >= REMEMBERED and ticket.call_id not in self._times:
            del self._times[next(iter(self._times))]
        self._times.setdefault(ticket.call_id, {})[event] = now

    def about(self, id: str) -> shapes.Asked:
        """One ask, by its ticket id or call id. Raises `NotFound`."""
        try:
            return self._asked(self._desk.get(spoken(id) if len(id) < 16 else id))
        except NoSuchTicket:
            raise api.NotFound(f"no ticket `{id}` waits", "see `aegis pending`") from None

    def follow(self, id: str, action: str, token: str) -> shapes.Linked:
        """See `manage.api.Governor.follow`."""
        bound = links.read(self._key, id, action, token) if self._key else None
        if bound is None:
            raise api.Forbidden("this link was not made by this daemon, or something was changed in it", _USE_COMMAND)
        ticket = self._named(id, bound.binding)
        if ticket is None:
            raise api.NotFound(f"`{id}` was decided, or expired, and is no longer known", _USE_COMMAND)
        over = self._over(ticket)
        if over is None and bound.expires < self._wall():
            over = shapes.Over(state="expired", at=_instant(ticket.expires))
        return shapes.Linked(asked=self._asked(ticket), over=over, code=links.code(self._key, bound.binding))

    def _named(self, id: str, binding: bytes) -> Ticket | None:
        """The ticket that a link is about; the id alone says little, since it is given out again once it is free."""
        try:
            found = [self._desk.get(id)]
        except NoSuchTicket:
            found = []
        if not found or links.binding(found[0]) != binding:
            found = self._desk.ended(id)
        return next((ticket for ticket in found if links.binding(ticket) == binding), None)

    def _asked(self, ticket: Ticket) -> shapes.Asked:
        last = None
        if self._changes is not None and ticket.state == tickets.PENDING:
            last = self._changes.last(ticket)
        before = last.arguments if last is not None else None
        rows = changes.compare(self._shown(ticket.arguments), None if before is None else self._shown(before))
        true = changes.compare(ticket.arguments, before)
        if len(true) == len(rows):  # two different secrets look the same
            rows = tuple(msgspec.structs.replace(row, change=one.change) for row, one in zip(rows, true, strict=True))
        return shapes.Asked(
            ticket=self._row(ticket),
            arguments=tuple(
                shapes.Argument(name=row.name, value=row.value, change=row.change, was=row.was) for row in rows
            ),
            compared_at=_instant(last.at) if last is not None else None,
            compared_by=last.by if last is not None else "",
            limits=tuple(self._limits(ticket.agent, ticket.backend, ticket.name)),
            holds=ticket.lease is not None,
            votes=tuple(
                shapes.Vote(by=vote.by, via=vote.via, at=_instant(vote.at), note=vote.note) for vote in ticket.votes
            ),
        )

    def _over(self, ticket: Ticket) -> shapes.Over | None:
        """How it ended; None while it can still be decided."""
        if ticket.state == tickets.PENDING:
            return None
        known = self._times.get(ticket.call_id, {})
        at: float | None
        if ticket.state == tickets.EXPIRED:
            at = known.get("expired", ticket.expires)
        else:
            at = known.get("rejected" if ticket.state == tickets.REJECTED else "approved")
            if at is None and ticket.votes and ticket.state != tickets.REJECTED:
                at = ticket.votes[-1].at
        ran = known.get("consumed")
        return shapes.Over(
            state=cast(_Ended, ticket.state),
            by=ticket.by,
            via=ticket.via,
            note=ticket.note,
            at=_instant(at) if at else None,
            ran_at=_instant(ran) if ran else None,
        )


def _instant(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
