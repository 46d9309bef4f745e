"""A grant lets calls of one shape run for a while without a person, and never a call outside that shape or that while.

The shape is the call that a person approved: tenant, agent, backend, method, tool, deciding rule and every parameter
but `_meta`, and the server where the agent's end handed it over. Top-level arguments that were left free may have any
value, and must be there as they were in that call; with `*` free the arguments may be any. Values are compared as
canonical JSON: `1`, `1.0` and `true` are three things.
What is known of a call comes from its ticket, and is proven by the ticket's digest.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Final

import msgspec

from aegis_daemon.approvals.ticket import Ticket, new_id, params_of, spoken
from aegis_daemon.core.units import short_duration
from aegis_daemon.core.verdict import Hold

_log = logging.getLogger("aegis.approvals")
ANY: Final = "*"
USES: Final = 100
"""Calls that a grant is for where nobody says how many."""
MOST: Final = 500
"""Grants that may hold at once."""
LARGEST: Final = 64 * 1024
"""Characters of the arguments of a call that can be remembered."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS grants (
  id TEXT PRIMARY KEY, tenant TEXT NOT NULL, agent TEXT NOT NULL, backend TEXT NOT NULL, method TEXT NOT NULL,
  tool TEXT NOT NULL, rule TEXT NOT NULL, params TEXT NOT NULL, free TEXT NOT NULL, by TEXT NOT NULL,
  created REAL NOT NULL, expires REAL NOT NULL, boot TEXT NOT NULL, ends REAL NOT NULL, uses_left INTEGER NOT NULL,
  from_call TEXT NOT NULL, pin TEXT NOT NULL DEFAULT '', server TEXT NOT NULL DEFAULT '',
  command TEXT NOT NULL DEFAULT '', cwd TEXT NOT NULL DEFAULT ''
) STRICT;
"""
_ADDED: Final = ("pin", "server", "command", "cwd")
"""Columns that files of earlier versions lack: what they hold is for no server that is handed over."""
Key = tuple[str, str, str, str, str, str, str, str]


class NotGiven(Exception):
    """Why there is no such grant, and the next step."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """One remembered approval. `params` is JSON text of the approved call's parameters without `_meta`.

    `created` and `expires` are seconds since the epoch, `ends` the same end on the boot clock of `boot`.
    """

    id: str
    tenant: str
    agent: str
    backend: str
    method: str
    tool: str
    rule: str
    params: str
    free: tuple[str, ...]
    by: str
    created: float
    expires: float
    boot: str
    ends: float
    uses_left: int
    from_call: str
    pin: str = ""
    """what the tool was when the grant was given, as in a ticket's digest"""
    server: str = ""
    """which server was handed over, how it is started and where: as in a ticket"""
    command: str = ""
    cwd: str = ""

    @property
    def key(self) -> Key:
        """What is compared before the parameters are."""
        return (self.tenant, self.agent, self.backend, self.method, self.tool, self.rule, self.pin, self.server)

    @property
    def arguments(self) -> str:
        """The arguments of the approved call, as JSON text."""
        return msgspec.json.encode(msgspec.json.decode(self.params).get("arguments", {})).decode()


_COLUMNS = Grant.__struct_fields__


def shape(params: Mapping[str, Any], free: Sequence[str]) -> bytes | None:
    """What two calls of one tool must have in common where `free` arguments do not matter; None: they have no shape."""
    kept = {key: value for key, value in params.items() if key != "_meta"}
    if free and "arguments" in kept:
        arguments = kept.pop("arguments")
        if type(arguments) is not dict:
            return None
        if ANY not in free:
            kept["arguments"] = {key: None if key in free else value for key, value in arguments.items()}
    return msgspec.json.encode(kept, order="sorted")


def seconds_left(
    created: float, expires: float, boot: str, ends: float, *, now: float, today: float, here: str
) -> float:
    """How long something that was to end then still holds, in a daemon that finds it; never longer than it was given.

    Within one boot (`here`) the boot clock decides as well as the calendar. After another one a calendar that stands
    before the beginning was set back, so nobody knows, and it is over.
    """
    left = min(expires - today, expires - created)
    if boot == here:
        left = min(left, ends - now)
    elif today < created:
        return 0.0
    return max(0.0, left)


class _Held:
    """A grant in force: `ends` on this boot's clock, and the shape that a call is compared with."""

    __slots__ = ("by", "ends", "grant", "id", "shape", "uses_left")

    def __init__(self, grant: Grant, ends: float) -> None:
        self.grant = grant
        self.id = grant.id
        self.by = grant.by
        self.ends = ends
        self.shape = shape(msgspec.json.decode(grant.params), grant.free)
        self.uses_left = grant.uses_left


class Grants:
    """All grants. `now` gives seconds on the boot clock, `wall` since the epoch, `boot` names this boot.

    `longest` is `approval.max_grant`, in seconds; see `bound`.
    """

    def __init__(
        self,
        db: sqlite3.Connection,
        *,
        now: Callable[[], float],
        wall: Callable[[], float],
        boot: str,
        longest: float,
    ) -> None:
        """Takes over what an earlier daemon left. Raises `sqlite3.Error`."""
        self._db = db
        self._now = now
        self._wall = wall
        self._boot = boot
        self._held: dict[str, _Held] = {}
        self._alike: dict[Key, list[_Held]] = {}
        self._spent: dict[str, _Held] = {}
        """used up, while calls may still stand in line that took their use"""
        self._unwritten: set[str] = set()
        """revoked ones that the disk may still know"""
        db.executescript(_SCHEMA)
        there = {column[1] for column in db.execute("PRAGMA table_info(grants)")}
        for column in _ADDED:
            if column not in there:
                db.execute(f"ALTER TABLE grants ADD COLUMN {column} TEXT NOT NULL DEFAULT ''")
        db.execute("DELETE FROM grants WHERE uses_left <= 0 OR expires <= ?", (wall(),))
        for row in db.execute(f"SELECT {','.join(_COLUMNS)} FROM grants ORDER BY created").fetchall():  # noqa: S608
            fields = dict(zip(_COLUMNS, row, strict=True))
            fields["free"] = tuple(msgspec.json.decode(fields["free"]))
            grant = Grant(**fields)
            left = seconds_left(
                grant.created, grant.expires, grant.boot, grant.ends, now=now(), today=wall(), here=boot
            )
            if left > 0:
                self._hold(grant, now() + left)
        self.bound(longest)

    def bound(self, longest: float) -> None:
        """From now on nothing is remembered for longer, in seconds. What was is cut to it for good; 0 ends it all."""
        self.longest = longest
        for held in (*self._held.values(), *self._spent.values()):
            over = held.grant.expires - held.grant.created - longest
            if over <= 0:
                continue
            held.ends -= over
            cut = held.grant = msgspec.structs.replace(
                held.grant, expires=held.grant.expires - over, ends=held.grant.ends - over
            )
            try:
                self._db.execute(
                    "UPDATE grants SET expires = ?, ends = ? WHERE id = ?", (cut.expires, cut.ends, cut.id)
                )
            except sqlite3.Error as error:
                _log.error("a grant was cut, and a later daemon may not know it: %s", error)
        self._prune()

    # --- the call's side ----------------------------------------------------------------------------------------

    def find(self, hold: Hold) -> Any:
        """The grant under which the call needs nobody's word, or None. Where several people must agree there is none.

        What it gives has `id` and `by`.
        """
        if not self._held or hold.ask.people > 1:
            return None
        call = hold.call
        who = call.principal
        ask = hold.ask
        key = (who.tenant, who.agent, call.backend, call.method, call.name or "", ask.rule, ask.pin, call.server)
        alike = self._alike.get(key)
        for held in tuple(alike or ()):
            if self._holds(held) and held.shape is not None and shape(call.frame.params, held.grant.free) == held.shape:
                return held
        return None

    def covers(self, grant: Grant, ticket: Ticket) -> bool:
        """Whether the ticket's call is of the grant's shape."""
        if (grant.agent, grant.backend, grant.method, grant.tool, grant.rule, grant.pin, grant.server) != (
            ticket.agent, ticket.backend, ticket.method, ticket.name, ticket.rule, ticket.pin, ticket.server,
        ) or ticket.people > 1:  # fmt: skip
            return False
        held = self._held.get(grant.id)
        try:
            params = _params(ticket, grant.tenant)
        except NotGiven:
            return False
        return held is not None and held.shape is not None and shape(params, grant.free) == held.shape

    def use(self, grant: Any) -> bool:
        """Takes one use, on disk; False where there is none, or that cannot be kept."""
        held = self._held.get(grant.id)
        if held is None or held is not grant or not self._holds(held):
            return False
        try:
            done = self._db.execute(
                "UPDATE grants SET uses_left = uses_left - 1 WHERE id = ? AND uses_left > 0", (held.id,)
            )
        except sqlite3.Error as error:
            _log.error("the use of a grant could not be written: %s", error)
            return False
        if done.rowcount != 1:
            self._drop(held)
            return False
        held.uses_left -= 1
        if held.uses_left <= 0:
            self._drop(held)
            self._spent[held.id] = held
        return True

    def use_of(self, id: str) -> bool:
        """As `use`, by id."""
        held = self._held.get(id)
        return held is not None and self.use(held)

    def holds(self, id: str) -> bool:
        """Whether a call that took a use may still go: the grant was not revoked, and its time is not over."""
        held = self._held.get(id) or self._spent.get(id)
        return held is not None and self._in_time(held)

    # --- the person's side --------------------------------------------------------------------------------------

    def draft(
        self,
        ticket: Ticket,
        tenant: str,
        *,
        by: str,
        seconds: float,
        free: Sequence[str] = (),
        any_arguments: bool = False,
        uses: int | None = None,
    ) -> Grant:
        """The grant that would remember the approval of this ticket; it does not hold before `keep`.

        Raises `NotGiven`.
        """
        if self.longest <= 0:
            raise NotGiven("approvals are not remembered here (`approval.max_grant: 0s`)", "approve the call alone")
        if seconds > self.longest:
            longest = short_duration(self.longest)
            raise NotGiven(
                f"`{short_duration(seconds)}` is longer than an approval is remembered "
                f"(`approval.max_grant: {longest}`)",
                f"name at most `{longest}`",
            )
        if ticket.method != "tools/call":
            raise NotGiven(f"a `{ticket.method}` is not remembered: only calls of tools are", "approve it alone")
        if ticket.people > 1:
            raise NotGiven("where two people must agree, they agree to each call", "approve the call alone")
        if len(ticket.arguments) > LARGEST:
            raise NotGiven(f"arguments of more than {LARGEST // 1024} KB are not remembered", "approve the call alone")
        params = _params(ticket, tenant)
        arguments = params.get("arguments", {})
        names = (ANY,) if any_arguments else tuple(dict.fromkeys(free))
        if names and type(arguments) is not dict:
            raise NotGiven("the call's arguments have no names", "approve it as it is")
        for name in names if not any_arguments else ():
            if name not in arguments:
                near = get_close_matches(name, arguments, 1)
                known = ", ".join(f"`{known}`" for known in arguments) or "none"
                raise NotGiven(
                    f"the call has no argument `{name}`", f"did you mean `{near[0]}`?" if near else f"it has: {known}"
                )
            if name == ANY:
                raise NotGiven(f"`{ANY}` stands for all arguments", "say `--any-arguments` where that is meant")
        created = self._wall()
        self._prune()
        if len(self._held) >= MOST:
            raise NotGiven(f"{MOST} grants hold already", "end some with `aegis grants revoke`")
        return Grant(
            id="G-" + new_id({id[2:] for id in (*self._held, *self._spent, *self._unwritten)}),
            tenant=tenant,
            agent=ticket.agent,
            backend=ticket.backend,
            method=ticket.method,
            tool=ticket.name,
            rule=ticket.rule,
            params=msgspec.json.encode(params).decode(),
            free=names,
            by=by,
            created=created,
            expires=created + seconds,
            boot=self._boot,
            ends=self._now() + seconds,
            uses_left=USES if uses is None else uses,
            from_call=ticket.call_id,
            pin=ticket.pin,
            server=ticket.server,
            command=ticket.command,
            cwd=ticket.cwd,
        )

    def keep(self, grant: Grant) -> None:
        """It holds from now on, also for a daemon that comes later. Raises `sqlite3.Error`, and it does not hold."""
        values = [
            msgspec.json.encode(grant.free).decode() if name == "free" else getattr(grant, name) for name in _COLUMNS
        ]
        marks = ",".join("?" * len(_COLUMNS))
        self._db.execute("DELETE FROM grants WHERE uses_left <= 0 OR expires <= ?", (self._wall(),))
        self._db.execute(f"INSERT OR REPLACE INTO grants ({','.join(_COLUMNS)}) VALUES ({marks})", values)  # noqa: S608
        self._hold(grant, grant.ends)

    def rows(self) -> list[Grant]:
        """Grants that hold, oldest first, with the uses that they have left."""
        self._prune()
        return [msgspec.structs.replace(held.grant, uses_left=held.uses_left) for held in self._held.values()]

    def revoke(self, ids: Sequence[str] | None) -> tuple[list[Grant], list[str]]:
        """Ends grants, None: all of them. Gives those that it ended, and the ids that are no grant's.

        Raises `sqlite3.Error` where a later daemon might still know one; for this one they have ended all the same.
        """
        self._prune()
        wanted = [*self._held, *self._spent, *self._unwritten] if ids is None else list(dict.fromkeys(map(named, ids)))
        ended, unknown = [], []
        for id in wanted:
            held = self._held.get(id)
            if held is not None:
                ended.append(msgspec.structs.replace(held.grant, uses_left=held.uses_left))
                self._drop(held)
                self._unwritten.add(id)
            elif self._spent.pop(id, None) is None and id not in self._unwritten:
                unknown.append(id)
        for id in tuple(self._unwritten):
            self._db.execute("DELETE FROM grants WHERE id = ?", (id,))
            self._unwritten.discard(id)
        return ended, unknown

    # --- inside -------------------------------------------------------------------------------------------------

    def _in_time(self, held: _Held) -> bool:
        return self._now() < held.ends and self._wall() < held.grant.expires

    def _holds(self, held: _Held) -> bool:
        """Whether its time is not over. If it is, it ends now."""
        if self._in_time(held):
            return True
        self._drop(held)
        return False

    def _hold(self, grant: Grant, ends: float) -> None:
        held = self._held[grant.id] = _Held(grant, ends)
        self._alike.setdefault(grant.key, []).append(held)

    def _drop(self, held: _Held) -> None:
        if self._held.pop(held.id, None) is None:
            return
        alike = self._alike[held.grant.key]
        alike.remove(held)
        if not alike:
            del self._alike[held.grant.key]

    def _prune(self) -> None:
        for held in tuple(self._held.values()):
            self._holds(held)
        self._spent = {id: held for id, held in self._spent.items() if self._in_time(held)}


def named(text: str) -> str:
    """A grant's id as typed by a person: `g-k7q2`, `K7Q2`."""
    id = spoken(text)
    return id if id.startswith("G-") else f"G-{id}"


def _params(ticket: Ticket, tenant: str) -> dict[str, Any]:
    """The parameters of the ticket's call. Raises `NotGiven`."""
    found = params_of(ticket, tenant)
    if found is None:
        raise NotGiven("this call cannot be remembered: its rules have changed since it was made", "approve it alone")
    return found
