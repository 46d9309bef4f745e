"""What a server says of a tool, a prompt, a template or itself holds from first sight until a person trusts another.

Each is known by the SHA-256 of its whole object in canonical JSON, as the server gave it (RFC 8785). One that is
offered differently, on whatever page and to whomever, is stopped for every agent, and stays so when it is offered as
before again: who changes back and forth has shown what it does. Only `trust` lets it be used.

A page of a list is walked through once; its digest tells that nothing on it is new. `shown` is called on the daemon's
loop, and so is everything else here.
"""

from __future__ import annotations

import logging
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from hashlib import sha256
from itertools import islice, takewhile
from typing import Any, Final

import msgspec

from aegis_daemon.core.canonical import canonical
from aegis_daemon.core.names import LONGEST_NAME, bare, meanings
from aegis_daemon.core.ports import AuditUnavailable
from aegis_daemon.core.templates import fits, literals
from aegis_daemon.core.text import visible
from aegis_daemon.registry.likeness import skeleton, telling
from aegis_daemon.wire.jsonrpc import WireFault, fold, read

_log = logging.getLogger("aegis.pins")
MOST: Final = 2000
"""Things of one server that are remembered; it has no more that could be used."""
BACKENDS: Final = 512
"""Servers of which anything is remembered: where `defaults.unlisted` is `observe`, an agent names them."""
LARGEST: Final = 256 << 10
"""Bytes of the largest object whose text is kept beside its hash, for people to read."""
MOST_TEXT: Final = 32 << 20
"""Bytes of such texts of one server."""
ALIKE: Final = 8
"""Look-alikes of one name that are told."""
REPEATS: Final = 8
"""How often one page may hold one name; names are unique, so a page with more is withheld."""
PAGES: Final = 64
"""Pages of one server's lists that are known by their digest."""
DRIFTS: Final = 16
"""Changes of one page that get a record each; the others are counted."""
SHORTEST: Final = 16
"""Hex digits of a hash that name it."""

TRUSTED: Final = "trusted"
CHANGED: Final = "changed"
HELD: Final = "held"

LISTS: Final = {
    "tools/list": ("tool", "tools", "name"),
    "prompts/list": ("prompt", "prompts", "name"),
    "resources/templates/list": ("template", "resourceTemplates", "uriTemplate"),
}
"""List → what its items are, the key that holds them, and the key of an item's name."""
HANDSHAKES: Final = ("initialize", "server/discover")
INSTRUCTIONS: Final = "instructions"
KINDS: Final = ("tool", "prompt", "template", INSTRUCTIONS)
NAMED: Final = ("tool", "prompt")
"""Those that people and models tell apart by a name."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS pins (
  backend TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL, state TEXT NOT NULL, trusted TEXT NOT NULL,
  turn INTEGER NOT NULL, offered TEXT NOT NULL, drifted TEXT NOT NULL, seen REAL NOT NULL, changed REAL NOT NULL,
  by TEXT NOT NULL, text TEXT NOT NULL, odd_text TEXT NOT NULL, told TEXT NOT NULL DEFAULT '',
  PRIMARY KEY (backend, kind, name)
) STRICT;
"""
Key = tuple[str, str, str]


class Moved(Exception):
    """The hash is not that of what is offered now, which `offered` is."""

    def __init__(self, offered: str) -> None:
        super().__init__(offered)
        self.offered = offered


class Pin(msgspec.Struct):
    """One thing of one server. Only `Registry` changes it. Times are seconds since the epoch.

    `trusted` are the hashes that may be used, the newest last; `offered` is what the server said last, `drifted` the
    last hash that was not trusted, `told` the last one that people were sent a message about. `turn` counts how often
    a person has trusted another one, and `by` is who.
    """

    backend: str
    kind: str
    name: str
    state: str
    trusted: tuple[str, ...]
    turn: int
    offered: str
    drifted: str
    seen: float
    changed: float = 0.0
    by: str = ""
    told: str = ""

    @property
    def key(self) -> Key:
        """What it is found by."""
        return (self.backend, self.kind, self.name)

    @property
    def id(self) -> str:
        """Names it in addresses: nothing that its server chose stands in one."""
        return sha256(msgspec.json.encode(self.key)).hexdigest()[:32]

    @property
    def binding(self) -> str:
        """What an approval is bound to: nothing for the first pin, else which one in turn, and its hash."""
        return f"{self.turn}:{self.trusted[-1]}" if self.turn and self.trusted else ""

    @property
    def title(self) -> str:
        """How people call it; safe to print."""
        if self.kind == INSTRUCTIONS:
            return f"the instructions of `{self.backend}`"
        return f"the {self.kind} `{visible(telling(self.name[:200]))}` of `{self.backend}`"


class _Sighting(msgspec.Struct):
    kind: str
    name: str
    hash: str
    text: bytes


_Item = tuple[str, str, Any]
"""kind, name, and the object itself"""


class Registry:
    """All pins; see `core.ports.Pins`.

    :param db: state.db. :param record: writes (action, by, detail) to the audit log, or raises `AuditUnavailable`.
    :param on_change: something is stopped or usable that was not, of this backend. :param on_seen: something of it is
        pinned that was not, or as something else: rules that go by what tools are like are looked at anew.
    :param on_news: there is something in `untold`.
    """

    def __init__(
        self,
        db: sqlite3.Connection,
        *,
        wall: Callable[[], float],
        record: Callable[[str, str, str], object],
        on_change: Callable[[str], None] = lambda backend: None,
        on_seen: Callable[[str], None] = lambda backend: None,
        on_news: Callable[[], None] = lambda: None,
        hold: bool = False,
        recheck_s: float = 3600.0,
    ) -> None:
        """Takes over what an earlier daemon left. Raises `sqlite3.Error`."""
        self._db = db
        self._wall = wall
        self._record = record
        self._on_change = on_change
        self._on_seen = on_seen
        self._on_news = on_news
        self.hold = hold
        self.recheck_s = recheck_s
        self._pins: dict[Key, Pin] = {}
        self._counts: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self._ids: dict[str, Pin] = {}
        self._stopped: dict[Key, Pin] = {}
        self._alike: dict[tuple[str, str], list[Pin]] = {}
        """by kind and skeleton, the first seen first"""
        self._bare: set[Key] = set()
        """backend, kind and what a careless server takes the name for"""
        self._same: dict[tuple[str, str], list[Pin]] = {}
        """by kind and name, likewise"""
        self._templates: dict[str, dict[str, tuple[str, ...]]] = {}
        """of each backend that has any, the stopped ones"""
        self._crowded: dict[str, str] = {}
        """backends that have more than is remembered, and of what"""
        self._pages: dict[str, dict[tuple[str, bytes], bool]] = {}
        """of each backend, pages that hold nothing new, and whether the list ends there"""
        db.executescript(_SCHEMA)
        if not any(row[1] == "told" for row in db.execute("PRAGMA table_info(pins)")):  # made by an earlier version
            db.execute("ALTER TABLE pins ADD COLUMN told TEXT NOT NULL DEFAULT ''")
        for row in db.execute(f"SELECT {', '.join(Pin.__struct_fields__)} FROM pins ORDER BY seen, rowid"):  # noqa: S608
            fields = dict(zip(Pin.__struct_fields__, row, strict=True))
            fields["trusted"] = tuple(msgspec.json.decode(fields["trusted"]))
            self._keep(Pin(**fields))
        for backend, size in db.execute(
            "SELECT backend, SUM(LENGTH(CAST(text AS BLOB)) + LENGTH(CAST(odd_text AS BLOB))) FROM pins GROUP BY 1"
        ):
            self._bytes[backend] = size

    # --- the call's side ----------------------------------------------------------------------------------------

    def stops(self, backend: str, subject: str, name: str) -> str:
        """See `core.ports.Pins`."""
        if subject == "resource":
            return self._stops_resource(backend, name)
        pin = self._pins.get((backend, subject, name))
        if pin is None:
            why = self._unknown(backend, name)
            return why or ("alike" if (backend, subject, bare(name)) in self._bare else "unseen")
        return "" if pin.state == TRUSTED else pin.state

    def _unknown(self, backend: str, name: str) -> str:
        """Why something of which nothing is known never will be."""
        if len(name) > LONGEST_NAME:
            return "long"
        return "crowded" if self._counts[backend] >= MOST or self._is_one_too_many(backend) else ""

    def _is_one_too_many(self, backend: str) -> bool:
        return len(self._counts) >= BACKENDS and backend not in self._counts

    def _stops_resource(self, backend: str, name: str) -> str:
        stopped = self._templates.get(backend)
        if stopped:
            spellings: tuple[str, ...] = (name,)
            if (backend, "template", name) not in self._pins:
                # In another spelling, too: `FILE:///logs/%61` is of a changed `file:///logs/{name}`.
                try:
                    spellings += meanings(name)
                except ValueError:
                    return "unclear"
            for template, parts in stopped.items():
                if any(one == template or fits(parts, one) for one in spellings):
                    return self._pins[backend, "template", template].state
        if "{" in name and (backend, "template", name) not in self._pins:
            return self._unknown(backend, name)  # a template that a list shows
        return ""

    def trusted(self, backend: str, subject: str, name: str) -> str:
        """See `core.ports.Pins`."""
        pin = self._pins.get((backend, subject, name))
        return pin.binding if pin is not None else ""

    def knows(self, backend: str, subject: str, name: str) -> bool:
        """See `core.ports.Pins`."""
        if subject == "resource":
            return backend in self._templates
        return (backend, subject, name) in self._pins

    # --- what servers say ---------------------------------------------------------------------------------------

    def shown(self, backend: str, method: str, body: bytes) -> bool:
        """See `core.ports.Pins`. Raises `ValueError` where it cannot be read, or not be recorded."""
        if method not in LISTS and method not in HANDSHAKES:
            return False
        page = (method, sha256(body).digest())
        if len(self._pages) > 2 * BACKENDS:
            self._pages.clear()
        pages = self._pages.setdefault(backend, {})
        known = pages.get(page)
        if known is not None:
            return known
        try:
            result = read(body)
        except WireFault as fault:
            raise ValueError(fault.text) from fault
        if type(result) is not dict:
            raise ValueError("a result must be an object")
        complete = result.get("nextCursor") is None
        if not self._saw(backend, _items(method, result)):
            if len(pages) >= PAGES:
                pages.clear()
            pages[page] = complete
        return complete

    def _saw(self, backend: str, items: Sequence[_Item]) -> bool:
        """Takes note; True where anything was new. Raises `ValueError`."""
        known = self._remembered(backend, items)
        new: list[tuple[Pin, _Sighting]] = []
        moved: list[tuple[Pin, _Sighting | None]] = []
        told: list[tuple[Pin, _Sighting]] = []
        stopped = False
        try:
            for seen in known:
                pin = self._pins.get((backend, seen.kind, seen.name))
                if pin is None:
                    pin = self._first(backend, seen)
                    new.append((pin, seen))
                elif seen.hash != pin.offered and not self._is_trusted_in_part(pin, seen):
                    pin.offered = seen.hash
                    if seen.hash in pin.trusted:
                        moved.append((pin, None))
                        continue
                    moved.append((pin, seen))
                    if pin.state == TRUSTED or pin.drifted != seen.hash:  # what goes to and fro is told once
                        told.append((pin, seen))
                    pin.drifted = seen.hash
                    if pin.state == TRUSTED:
                        self._stop(pin)
                        stopped = True
        finally:
            # Where the log is full in the middle of a page, what was stopped before is stopped, on disk and for calls
            # that were judged before.
            self._noted(backend, new, moved, told, stopped=stopped)
        return bool(new or moved)

    def _remembered(self, backend: str, items: Sequence[_Item]) -> list[_Sighting]:
        """Those that have a pin or can get one; of the others nothing is worked out, however many they are."""
        room = 0 if self._is_one_too_many(backend) else MOST - self._counts[backend]
        times: Counter[tuple[str, str]] = Counter()
        kept: list[_Item] = []
        fresh: set[str] = set()
        for item in items:
            kind, name, _ = item
            times[kind, name] += 1
            if times[kind, name] > REPEATS:
                raise ValueError(f"the list has one name more than {REPEATS} times")
            if (backend, kind, name) not in self._pins and name not in fresh:
                if len(name) > LONGEST_NAME:
                    self._tell_crowded(backend, f"a {kind} whose name has more than {LONGEST_NAME} characters")
                    continue
                if len(fresh) >= room:
                    what = f"more than {MOST} tools, prompts and templates, which is all that is remembered of a server"
                    if self._is_one_too_many(backend):
                        what = f"tools, prompts or templates, but {BACKENDS} servers are all that is remembered"
                    self._tell_crowded(backend, what)
                    continue
                fresh.add(name)
            kept.append(item)
        return [_sighting(*item) for item in kept]

    def _tell_crowded(self, backend: str, what: str) -> None:
        if self._crowded.get(backend) == what or len(self._crowded) >= 2 * BACKENDS:
            return
        self._crowded[backend] = what
        _log.warning("`%s` has %s; what is not remembered is not usable", visible(backend[:200]), what)
        self._on_change(backend)

    def _is_trusted_in_part(self, pin: Pin, seen: _Sighting) -> bool:
        """Whether it is the trusted tool as legacy clients get it of a modern server.

        The bridge leaves out an `outputSchema` that is not of objects. Nothing else may be missing, and nothing new.
        """
        if pin.kind != "tool" or pin.state != TRUSTED or pin.offered not in pin.trusted:
            return False
        try:
            text = self.texts(pin)[0]
        except sqlite3.Error:
            return False
        tool = msgspec.json.decode(text) if text else {}
        schema = tool.pop("outputSchema", None)
        if schema is None or (type(schema) is dict and schema.get("type") == "object"):
            return False
        return sha256(canonical(tool)).hexdigest() == seen.hash

    def _noted(
        self,
        backend: str,
        new: list[tuple[Pin, _Sighting]],
        moved: list[tuple[Pin, _Sighting | None]],
        told: list[tuple[Pin, _Sighting]],
        *,
        stopped: bool,
    ) -> None:
        if not new and not moved:
            return
        self._pages.pop(backend, None)
        self._write(new, moved)
        if told:
            self._tell(backend, told)
        if stopped:
            # Not for a second change: a server that changes with each list would have clients list for ever.
            self._on_change(backend)
        if any(pin.state == TRUSTED for pin, _ in new):
            self._on_seen(backend)
        if told or any(pin.state == HELD for pin, _ in new):
            self._on_news()
        alike = [pin for pin, _ in new if self.like(pin)]
        if alike:
            more = f", and so have {len(alike) - 1} more of it" if len(alike) > 1 else ""
            _log.warning(
                "%s has a name like %s%s: see `aegis tools list`", alike[0].title, self.like(alike[0])[0].title, more
            )

    def _first(self, backend: str, seen: _Sighting) -> Pin:
        now = self._wall()
        if self.hold:
            pin = Pin(backend, seen.kind, seen.name, HELD, (), 0, seen.hash, seen.hash, now)
        else:
            pin = Pin(backend, seen.kind, seen.name, TRUSTED, (seen.hash,), 0, seen.hash, "", now)
        like = self.like(pin)
        detail = f"{pin.title} is {seen.hash}" + (", held" if self.hold else "")
        if like:
            detail += f"; its name is like that of {like[0].title}"
        try:
            self._record("pin", "aegis", detail)
        except AuditUnavailable as error:
            raise ValueError(f"what the server has could not be recorded: {error}") from error
        self._keep(pin)
        return pin

    def _keep(self, pin: Pin) -> None:
        self._pins[pin.key] = pin
        self._counts[pin.backend] += 1
        self._ids[pin.id] = pin
        if pin.kind in NAMED:
            self._bare.add((pin.backend, pin.kind, bare(pin.name)))
            self._alike.setdefault((pin.kind, skeleton(pin.name)), []).append(pin)
            self._same.setdefault((pin.kind, pin.name), []).append(pin)
        self._filed(pin)

    def _filed(self, pin: Pin) -> None:
        """Its state is another one."""
        if pin.state == TRUSTED:
            self._stopped.pop(pin.key, None)
        else:
            self._stopped[pin.key] = pin
        if pin.kind != "template":
            return
        stopped = self._templates.setdefault(pin.backend, {})
        if pin.state == TRUSTED:
            stopped.pop(pin.name, None)
        else:
            stopped[pin.name] = literals(pin.name)

    def _stop(self, pin: Pin) -> None:
        pin.state = CHANGED
        pin.changed = self._wall()
        self._filed(pin)

    def _tell(self, backend: str, told: list[tuple[Pin, _Sighting]]) -> None:
        for pin, seen in told[:DRIFTS]:
            was = pin.trusted[-1] if pin.trusted else "nothing"
            _log.warning("%s is not as it was trusted, and is not usable: see `aegis tools diff`", pin.title)
            self._quietly("drift", f"{pin.title}: {was} was trusted, {seen.hash} is offered")
        if len(told) > DRIFTS:
            self._quietly("drift", f"{len(told) - DRIFTS} more of `{backend}` have changed")

    def _quietly(self, action: str, detail: str) -> None:
        # It is stopped; a full disk must not keep it from being so.
        try:
            self._record(action, "aegis", detail)
        except AuditUnavailable as error:
            _log.error("a change could not be recorded: %s", error)

    def _write(self, new: list[tuple[Pin, _Sighting]], moved: list[tuple[Pin, _Sighting | None]]) -> None:
        """To disk. What cannot be kept holds all the same while this daemon runs."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                for pin, seen in new:
                    text = self._text(pin.backend, seen.text)
                    texts = (text, "") if pin.trusted else ("", text)
                    self._db.execute(
                        "INSERT OR REPLACE INTO pins (backend, kind, name, state, trusted, turn, offered, drifted, "
                        "seen, changed, by, text, odd_text) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                        (*pin.key, *_stored(pin), pin.seen, pin.changed, pin.by, *texts),
                    )
                for pin, odd in moved:
                    self._update(pin)
                    if odd is not None:
                        before = self._db.execute(
                            "SELECT odd_text FROM pins WHERE backend = ? AND kind = ? AND name = ?", pin.key
                        ).fetchone()
                        self._bytes[pin.backend] -= len(before[0].encode()) if before is not None else 0
                        self._db.execute(
                            "UPDATE pins SET odd_text = ? WHERE backend = ? AND kind = ? AND name = ?",
                            (self._text(pin.backend, odd.text), *pin.key),
                        )
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            _log.error("what a server has could not be kept, and a later daemon will not know it: %s", error)

    def _text(self, backend: str, text: bytes) -> str:
        if len(text) > LARGEST or self._bytes[backend] + len(text) > MOST_TEXT:
            return ""
        self._bytes[backend] += len(text)
        return text.decode()

    def _update(self, pin: Pin) -> None:
        self._db.execute(
            "UPDATE pins SET state = ?, trusted = ?, turn = ?, offered = ?, drifted = ?, changed = ?, by = ? "
            "WHERE backend = ? AND kind = ? AND name = ?",
            (*_stored(pin), pin.changed, pin.by, *pin.key),
        )

    # --- the person's side --------------------------------------------------------------------------------------

    def rows(self) -> list[Pin]:
        """All of them: backend by backend, each as its server has them."""
        return sorted(self._pins.values(), key=lambda pin: (pin.backend, KINDS.index(pin.kind)))

    def stopped(self) -> list[Pin]:
        """Those that nobody may use."""
        return sorted(self._stopped.values(), key=lambda pin: (pin.backend, KINDS.index(pin.kind)))

    @property
    def waiting(self) -> int:
        """How many they are."""
        return len(self._stopped)

    def untold(self) -> list[Pin]:
        """Of `stopped`, those of which people were sent no message as they are now, or, while held, at all."""
        return [pin for pin in self.stopped() if (pin.told != pin.drifted if pin.state == CHANGED else not pin.told)]

    def told(self, pins: Iterable[tuple[Pin, str]]) -> None:
        """People were sent a message of each, with this hash. What cannot be kept is told again by a later daemon."""
        told = list(pins)
        for pin, hash in told:
            pin.told = hash
        with suppress(sqlite3.Error):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany(
                    "UPDATE pins SET told = ? WHERE backend = ? AND kind = ? AND name = ?",
                    [(hash, *pin.key) for pin, hash in told],
                )
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise

    def crowded(self) -> dict[str, str]:
        """Backends that have what is not remembered, and what that is: since this daemon began."""
        return dict(self._crowded)

    def by_id(self, id: str) -> Pin | None:
        """The one with this id."""
        return self._ids.get(id)

    def find(self, name: str, backend: str | None = None, kind: str | None = None) -> list[Pin]:
        """Those that a person may mean: by name, by `backend.name`, or by the word `instructions`.

        With a backend its exact names come first: a tool of that name hides none, and is hidden by none.
        """
        rows = [
            pin
            for pin in self.rows()
            if (backend is None or pin.backend == backend) and (kind is None or pin.kind == kind)
        ]
        exact = [pin for pin in rows if pin.name == name and backend is not None]
        return exact or [
            pin for pin in rows if name in (pin.name, f"{pin.backend}.{pin.name}") or (pin.kind == name == INSTRUCTIONS)
        ]

    def like(self, pin: Pin) -> list[Pin]:
        """Others of its kind whose names are spelled differently and look like its own; some of them."""
        if pin.kind not in NAMED:
            return []
        others: Iterator[Pin] = iter(self._alike.get((pin.kind, skeleton(pin.name)), ()))
        return list(islice((other for other in others if other.name != pin.name), ALIKE))

    def shadows(self, pin: Pin) -> list[Pin]:
        """Others of its kind that had its very name, on other servers, before it came."""
        if pin.kind not in NAMED:
            return []
        earlier = takewhile(lambda other: other is not pin, self._same.get((pin.kind, pin.name), ()))
        return list(islice(earlier, ALIKE))

    def texts(self, pin: Pin) -> tuple[str, str]:
        """What was trusted and what is not, as canonical JSON; "" where there is none or it could not be kept.

        Each is what its hash says: nobody is shown one text and asked to trust another.
        """
        found = self._db.execute(
            "SELECT text, odd_text FROM pins WHERE backend = ? AND kind = ? AND name = ?", pin.key
        ).fetchone()
        old, new = found if found is not None else ("", "")
        return (old if _hash(old) in pin.trusted else "", new if _hash(new) == pin.drifted else "")

    def trusted_objects(self, backend: str, kind: str = "tool") -> dict[str, Any]:
        """Everything of one kind that may be used, by name, as the server gave it; what was too large is left out."""
        found = self._db.execute(
            "SELECT name, text FROM pins WHERE backend = ? AND kind = ? AND state = ? AND text != ''",
            (backend, kind, TRUSTED),
        )
        return {name: msgspec.json.decode(text) for name, text in found}

    def trusted_object(self, backend: str, kind: str, name: str) -> Any:
        """The same of one of them; None where it may not be used, or was too large."""
        pin = self._pins.get((backend, kind, name))
        text = self.texts(pin)[0] if pin is not None and pin.state == TRUSTED else ""
        return msgspec.json.decode(text) if text else None

    def trust(self, pin: Pin, expect: str, by: str, *, also: bool = False) -> bool:
        """What is offered may be used, if it is what the person saw; `also`: beside what was trusted before.

        False where it was trusted already. Raises `Moved`; `AuditUnavailable` or `sqlite3.Error`, and nothing changed.
        """
        wanted = expect.strip().lower().removeprefix("sha256:")
        if len(wanted) < SHORTEST or not pin.offered.startswith(wanted):
            raise Moved(pin.offered)
        if pin.state == TRUSTED and pin.offered in pin.trusted and (also or len(pin.trusted) == 1):
            return False
        old = tuple(one for one in pin.trusted if one != pin.offered)
        made = msgspec.structs.replace(
            pin,
            state=TRUSTED,
            trusted=(*(old if also else ()), pin.offered),
            turn=pin.turn + 1 if pin.trusted else 0,
            drifted="",
            by=by,
            told="",
        )
        was = f" in place of {', '.join(old)}" if old and not also else ""
        self._record("trust", by, f"{pin.title}: {pin.offered}{was}"[:2000])
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._update(made)
            texts = self._db.execute(
                "SELECT text, odd_text FROM pins WHERE backend = ? AND kind = ? AND name = ?", pin.key
            ).fetchone() or ("", "")
            kept = next((text for text in texts if _hash(text) == pin.offered), "")
            self._db.execute(
                "UPDATE pins SET text = ?, odd_text = '', told = '' WHERE backend = ? AND kind = ? AND name = ?",
                (kept, *pin.key),
            )
            self._db.execute("COMMIT")
            self._bytes[pin.backend] += len(kept.encode()) - sum(len(text.encode()) for text in texts)
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        for field in Pin.__struct_fields__:
            setattr(pin, field, getattr(made, field))
        self._pages.pop(pin.backend, None)
        self._filed(pin)
        self._on_change(pin.backend)
        self._on_seen(pin.backend)
        return True


def _stored(pin: Pin) -> tuple[Any, ...]:
    return (pin.state, msgspec.json.encode(pin.trusted).decode(), pin.turn, pin.offered, pin.drifted)


def _items(method: str, result: dict[str, Any]) -> list[_Item]:
    """Everything of the answer that has a pin. Raises `ValueError`."""
    if method in HANDSHAKES:
        return [(INSTRUCTIONS, "", {key: value for key, value in result.items() if fold(key) == INSTRUCTIONS})]
    kind, holder, key = LISTS[method]
    items = result.get(holder)
    if type(items) is not list:
        raise ValueError(f"the list has no `{holder}`")
    found: list[_Item] = []
    for item in items:
        name = item.get(key) if type(item) is dict else None
        if type(name) is not str:
            raise ValueError(f"an item of `{holder}` has no `{key}`")
        found.append((kind, name, item))
    return found


def _sighting(kind: str, name: str, value: Any) -> _Sighting:
    text = canonical(value)
    return _Sighting(kind, name, sha256(text).hexdigest(), text)


def _hash(text: str) -> str:
    return sha256(text.encode()).hexdigest() if text else ""
