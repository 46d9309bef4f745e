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
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any, Final

import msgspec

from aegis_daemon.core.canonical import canonical
from aegis_daemon.core.ports import AuditUnavailable
from aegis_daemon.core.templates import fits, literals
from aegis_daemon.core.text import visible
from aegis_daemon.registry.likeness import skeleton
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
LONGEST_NAME: Final = 1024
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

_SCHEMA = """
CREATE TABLE IF NOT EXISTS pins (
  backend TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL, state TEXT NOT NULL, trusted TEXT NOT NULL,
  turn INTEGER NOT NULL, offered TEXT NOT NULL, drifted TEXT NOT NULL, seen REAL NOT NULL, changed REAL NOT NULL,
  by TEXT NOT NULL, text TEXT NOT NULL, odd_text TEXT NOT NULL, PRIMARY KEY (backend, kind, name)
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
    last hash that was not trusted. `turn` counts how often a person has trusted another one, and `by` is who.
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

    @property
    def key(self) -> Key:
        """What it is found by."""
        return (self.backend, self.kind, self.name)

    @property
    def binding(self) -> str:
        """What an approval is bound to: nothing for the first pin, else which one in turn, and its hash."""
        return f"{self.turn}:{self.trusted[-1]}" if self.turn and self.trusted else ""

    @property
    def title(self) -> str:
        """How people call it; safe to print."""
        if self.kind == INSTRUCTIONS:
            return f"the instructions of `{self.backend}`"
        return f"the {self.kind} `{visible(self.name[:200])}` of `{self.backend}`"


class _Sighting(msgspec.Struct):
    kind: str
    name: str
    hash: str
    text: bytes


class Registry:
    """All pins; see `core.ports.Pins`.

    :param db: state.db. :param record: writes (action, by, detail) to the audit log, or raises `AuditUnavailable`.
    :param on_change: something is stopped or usable that was not, of this backend. :param on_seen: something of it is
        pinned that was not, or as something else: rules that go by what tools are like are looked at anew.
    """

    def __init__(
        self,
        db: sqlite3.Connection,
        *,
        wall: Callable[[], float],
        record: Callable[[str, str, str], object],
        on_change: Callable[[str], None] = lambda backend: None,
        on_seen: Callable[[str], None] = lambda backend: None,
        hold: bool = False,
        recheck_s: float = 3600.0,
    ) -> None:
        """Takes over what an earlier daemon left. Raises `sqlite3.Error`."""
        self._db = db
        self._wall = wall
        self._record = record
        self._on_change = on_change
        self._on_seen = on_seen
        self.hold = hold
        self.recheck_s = recheck_s
        self._pins: dict[Key, Pin] = {}
        self._counts: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self._alike: dict[tuple[str, str], list[Pin]] = {}
        self._templates: dict[str, dict[str, tuple[str, ...]]] = {}
        """of each backend that has any, the stopped ones"""
        self._crowded: set[str] = set()
        self._pages: dict[str, dict[tuple[str, bytes], bool]] = {}
        """of each backend, pages that hold nothing new, and whether the list ends there"""
        db.executescript(_SCHEMA)
        for row in db.execute(f"SELECT {', '.join(Pin.__struct_fields__)} FROM pins ORDER BY seen, rowid"):  # noqa: S608
            fields = dict(zip(Pin.__struct_fields__, row, strict=True))
            fields["trusted"] = tuple(msgspec.json.decode(fields["trusted"]))
            self._keep(Pin(**fields))
        for backend, size in db.execute("SELECT backend, SUM(LENGTH(text) + LENGTH(odd_text)) FROM pins GROUP BY 1"):
            self._bytes[backend] = size

    # --- the call's side ----------------------------------------------------------------------------------------

    def stops(self, backend: str, subject: str, name: str) -> str:
        """See `core.ports.Pins`."""
        if subject == "resource":
            return self._stops_resource(backend, name)
        pin = self._pins.get((backend, subject, name))
        if pin is None:
            return "crowded" if backend in self._crowded or self._is_one_too_many(backend) else "unseen"
        return "" if pin.state == TRUSTED else pin.state

    def _is_one_too_many(self, backend: str) -> bool:
        return len(self._counts) >= BACKENDS and backend not in self._counts

    def _stops_resource(self, backend: str, name: str) -> str:
        stopped = self._templates.get(backend)
        if stopped:
            for template, parts in stopped.items():
                if name == template or fits(parts, name):
                    return self._pins[backend, "template", template].state
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
        if not self._saw(backend, _sightings(method, result)):
            if len(pages) >= PAGES:
                pages.clear()
            pages[page] = complete
        return complete

    def _saw(self, backend: str, sightings: Sequence[_Sighting]) -> bool:
        """Takes note; True where anything was new."""
        new: list[tuple[Pin, _Sighting]] = []
        moved: list[tuple[Pin, _Sighting | None]] = []
        told: list[tuple[Pin, _Sighting]] = []
        crowded = stopped = False
        try:
            for seen in sightings:
                pin = self._pins.get((backend, seen.kind, seen.name))
                if pin is None:
                    if self._is_one_too_many(backend):
                        continue
                    if self._counts[backend] >= MOST or len(seen.name) > LONGEST_NAME:
                        crowded = True
                        continue
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
            self._noted(backend, new, moved, told, crowded=crowded, stopped=stopped)
        return bool(new or moved)

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
        crowded: bool,
        stopped: bool,
    ) -> None:
        if crowded and backend not in self._crowded:
            self._crowded.add(backend)
            _log.warning("`%s` has more than %d tools, prompts and templates; the others are not usable", backend, MOST)
            self._on_change(backend)
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
            _log.warning("%s has a name like %s", pin.title, like[0].title)
        try:
            self._record("pin", "aegis", detail)
        except AuditUnavailable as error:
            raise ValueError(f"what the server has could not be recorded: {error}") from error
        self._keep(pin)
        return pin

    def _keep(self, pin: Pin) -> None:
        self._pins[pin.key] = pin
        self._counts[pin.backend] += 1
        self._alike.setdefault((pin.kind, skeleton(pin.name)), []).append(pin)
        self._templates_of(pin)

    def _templates_of(self, pin: Pin) -> None:
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
        self._templates_of(pin)

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
        return [pin for pin in self.rows() if pin.state != TRUSTED]

    def find(self, name: str, backend: str | None = None, kind: str | None = None) -> list[Pin]:
        """Those that a person may mean: by name, by `backend.name`, or by the word `instructions`."""
        return [
            pin
            for pin in self.rows()
            if (backend is None or pin.backend == backend)
            and (kind is None or pin.kind == kind)
            and (name in (pin.name, f"{pin.backend}.{pin.name}") or (pin.kind == name == INSTRUCTIONS))
        ]

    def like(self, pin: Pin) -> list[Pin]:
        """Others of its kind whose names look like its own, or are it."""
        if pin.kind not in ("tool", "prompt"):
            return []
        return [other for other in self._alike.get((pin.kind, skeleton(pin.name)), ()) if other.key != pin.key]

    def texts(self, pin: Pin) -> tuple[str, str]:
        """What was trusted and what is not, as canonical JSON; "" where there is none or it is too large to be kept."""
        found = self._db.execute(
            "SELECT text, odd_text FROM pins WHERE backend = ? AND kind = ? AND name = ?", pin.key
        ).fetchone()
        return (found[0], found[1]) if found is not None else ("", "")

    def trusted_objects(self, backend: str, kind: str = "tool") -> dict[str, Any]:
        """Everything of one kind that may be used, by name, as the server gave it; what was too large is left out."""
        found = self._db.execute(
            "SELECT name, text FROM pins WHERE backend = ? AND kind = ? AND state = ? AND text != ''",
            (backend, kind, TRUSTED),
        )
        return {name: msgspec.json.decode(text) for name, text in found}

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
        )
        was = f" in place of {', '.join(old)}" if old and not also else ""
        self._record("trust", by, f"{pin.title}: {pin.offered}{was}"[:2000])
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._update(made)
            if pin.offered == pin.drifted:  # else the old text is the right one
                self._db.execute("UPDATE pins SET text = odd_text WHERE backend = ? AND kind = ? AND name = ?", pin.key)
            self._db.execute("UPDATE pins SET odd_text = '' WHERE backend = ? AND kind = ? AND name = ?", pin.key)
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        for field in Pin.__struct_fields__:
            setattr(pin, field, getattr(made, field))
        self._pages.pop(pin.backend, None)
        self._templates_of(pin)
        self._on_change(pin.backend)
        self._on_seen(pin.backend)
        return True


def _stored(pin: Pin) -> tuple[Any, ...]:
    return (pin.state, msgspec.json.encode(pin.trusted).decode(), pin.turn, pin.offered, pin.drifted)


def _sightings(method: str, result: dict[str, Any]) -> list[_Sighting]:
    """Everything of the answer that has a pin. Raises `ValueError`."""
    if method in HANDSHAKES:
        return [_sighting(INSTRUCTIONS, "", {key: value for key, value in result.items() if fold(key) == INSTRUCTIONS})]
    kind, holder, key = LISTS[method]
    items = result.get(holder)
    if type(items) is not list:
        raise ValueError(f"the list has no `{holder}`")
    found = []
    for item in items:
        name = item.get(key) if type(item) is dict else None
        if type(name) is not str:
            raise ValueError(f"an item of `{holder}` has no `{key}`")
        found.append(_sighting(kind, name, item))
    return found


def _sighting(kind: str, name: str, value: Any) -> _Sighting:
    text = canonical(value)
    return _Sighting(kind, name, sha256(text).hexdigest(), text)
