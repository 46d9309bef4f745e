"""While exports are configured, so does their process (`exports/ship.py`) run: started, told, listened to, replaced.

The daemon waits for it in one place alone, at its own end, and there for some seconds at most.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from aegis_daemon.audit import keys
from aegis_daemon.audit.record import Admin
from aegis_daemon.config.schema import Audit, Export, Witness, reveal
from aegis_daemon.core.ports import AuditUnavailable
from aegis_daemon.core.text import visible
from aegis_daemon.loop.clock import wall
from aegis_daemon.loop.helper import Helper

_log = logging.getLogger("aegis.exports")
RESTART_S: Final = (0.2, 1.0, 5.0, 30.0)
CLOSE_S: Final = 6.0
TEST_S: Final = 60.0
_BUCKET: Final = (
    "region", "endpoint", "access_key_id", "secret_access_key", "session_token", "ca_file", "timeout",
)  # fmt: skip
_OWN: Final = {
    "jsonl": ("path", "rotate_mb"),
    "hec": ("url", "token", "ack", "ack_timeout", "index", "source", "sourcetype", "host", "ca_file", "timeout"),
    "syslog": ("address", "facility", "host", "max_bytes", "ca_file", "timeout"),
    "security_lake": ("path", "lake_source", "classes", "account", "every", "bucket", *_BUCKET),
}
"""Of each type: the settings that its sink takes."""
_WITNESS: Final = {
    "file": ("path",),
    "http": ("url", "token", "ca_file", "timeout"),
    "s3": ("bucket", *_BUCKET),
}
"""The same of witnesses."""
_SECRET: Final = frozenset({"access_key_id", "endpoint", "secret_access_key", "session_token", "token", "url"})


TRACES: Final = "otlp/traces"


class Collector(msgspec.Struct, frozen=True):
    """What goes to an OpenTelemetry collector; `settings` are those of `exports.otlp`, secrets included."""

    settings: dict[str, Any]
    traces: bool
    metrics_s: float
    """how often numbers are sent; 0 for never"""


class Row(msgspec.Struct):
    """How one export or witness is doing: the newest record (or checkpoint) that it has, how many more there are."""

    name: str
    role: Literal["export", "witness"]
    type: str
    format: str
    seq: int = 0
    lag: int = 0
    trouble: str = ""
    since: float | None = None
    """when the trouble began (seconds since the epoch)"""


def job(
    audit: Audit, store: Path, cursors: Path, collector: Collector | None = None, key_file: Path | None = None
) -> dict[str, Any] | None:
    """What the process is told first, secrets included; None where there is nothing for it to do."""
    exports = [_target(name, export) for name, export in audit.exports.items()]
    witnesses = [_witness(name, witness) for name, witness in audit.witnesses.items()]
    numbers: dict[str, Any] | None = None
    if collector is not None:
        if collector.traces:
            exports.append(_spans(collector.settings))
        numbers = collector.settings if collector.metrics_s else None
    if not exports and not witnesses and numbers is None:
        return None
    made: dict[str, Any] = {"store": str(store), "cursors": str(cursors), "exports": exports, "witnesses": witnesses}
    if witnesses and key_file is not None:
        made |= {"doubt": f"{keys.doubt.__module__}:{keys.doubt.__name__}", "key_file": str(key_file)}
    return made if numbers is None else {**made, "metrics": numbers}


def _spans(settings: dict[str, Any]) -> dict[str, Any]:
    """Traces go the way of exports, under a name that none of them can have."""
    return {
        "name": TRACES, "type": "otlp", "settings": settings, "format": "aegis", "begin": "now", "bodies": False,
        "keep": False,
    }  # fmt: skip


def _witness(name: str, witness: Witness) -> dict[str, Any]:
    settings = {
        key: reveal(value) if key in _SECRET else value
        for key in _WITNESS[witness.type]
        if (value := getattr(witness, key)) is not None
    }
    return {"name": name, "type": witness.type, "settings": settings}


def _target(name: str, export: Export) -> dict[str, Any]:
    format = export.format or ("cef" if export.type == "syslog" else "ocsf")
    settings: dict[str, Any] = {}
    for key in _OWN[export.type]:
        value = getattr(export, key)
        if value is not None:
            settings[key] = reveal(value) if key in _SECRET else value
    if export.type == "hec":
        settings.setdefault("sourcetype", f"aegis:{format}")
    return {
        "name": name,
        "type": export.type,
        "settings": settings,
        "format": format,
        "begin": export.begin,
        "bodies": export.bodies,
        "keep": export.keep,
    }


class Shipping:
    """The daemon's end of the process; belongs to the loop's thread.

    :param record: appends to the audit log, or raises `AuditUnavailable`. :param key_file: the key that signs
    checkpoints; only what it (or one before it) has signed goes to a witness.
    """

    def __init__(
        self,
        store: Path,
        cursors: Path,
        loop: asyncio.AbstractEventLoop,
        record: Callable[[Admin], object],
        key_file: Path | None = None,
    ) -> None:
        self._store = store
        self._cursors = cursors
        self._loop = loop
        self._record = record
        self._key_file = key_file
        self._job: dict[str, Any] | None = None
        self._rows: dict[str, Row] = {}
        self._helper = Helper(
            loop, self._command, RESTART_S,
            began=self._began, heard=self._heard, failed=self._failed, ended=self._ended,
        )  # fmt: skip
        self._seq = 0
        self._rung = 0
        self._numbers_trouble = ""
        self._tests: dict[str, asyncio.Future[str]] = {}
        self._ids = itertools.count(1)

    def use(self, audit: Audit, collector: Collector | None = None) -> None:
        """These settings are in force from now on."""
        made = job(audit, self._store, self._cursors, collector, self._key_file)
        if made == self._job:
            return
        self._job = made
        self._numbers_trouble = ""
        self._rows = {
            target["name"]: Row(target["name"], "export", target["type"], target["format"])
            for target in (made["exports"] if made is not None else ())
        }
        for target in made["witnesses"] if made is not None else ():
            self._rows[f"witness {target['name']}"] = Row(target["name"], "witness", target["type"], "")
        self._helper.begin()  # whichever one it is goes on at the cursors

    def ring(self, seq: int) -> None:
        """The log's file has this record; nothing happens where nobody wants to know."""
        self._seq = seq
        if seq != self._rung and not self._helper.behind:
            self._rung = seq
            self._helper.tell(b"news %d" % seq)

    def numbers(self, line: bytes) -> None:
        """The daemon's numbers (`exports.otlp.Numbers`, JSON) for the collector; a busy process goes without."""
        if not self._helper.behind:
            self._helper.tell(b"metrics " + line)

    def rows(self) -> list[Row]:
        """How each is doing, in the order of the configuration."""
        for row in self._rows.values():
            if row.role == "witness" or row.trouble or not row.seq:  # its process does not say, or not lately
                row.lag = max(0, self._seq - row.seq)
        return list(self._rows.values())

    def warnings(self) -> list[str]:
        """What a person should know of."""
        said = [f"the collector does not get metrics: {self._numbers_trouble}"] if self._numbers_trouble else []
        return said + [
            f"the {row.role} `{row.name}` is {row.lag} records behind: {row.trouble}"
            if row.role == "export"
            else f"the witness `{row.name}` has no checkpoint behind record {row.seq}: {row.trouble}"
            for row in self.rows()
            if row.trouble
        ]

    async def test(self, name: str) -> str:
        """Sends a test event through one export; gives the trouble, "" for none. Raises `KeyError` for no export."""
        if name not in self._rows and f"witness {name}" in self._rows:
            return f"`{name}` is a witness; witnesses get no test events"
        row = self._rows[name]
        if self._helper.pid is None:
            return row.trouble or "the export process does not run; see `aegis logs`"
        id = str(next(self._ids))
        done = self._tests[id] = self._loop.create_future()
        self._helper.tell(f"test {name} {id}".encode())
        try:
            async with asyncio.timeout(TEST_S):
                why: str = await done
                return why
        except TimeoutError:
            return f"nothing came of it within {TEST_S:.0f} s"
        finally:
            self._tests.pop(id, None)

    async def close(self) -> None:
        """Lets it send what it has (some seconds), then ends it; idempotent. Its cursors say where to go on."""
        await self._helper.close(CLOSE_S, 2)

    # --- its life ----------------------------------------------------------------------------------------------------

    def _command(self) -> list[str] | None:
        return [sys.executable, "-I", "-m", "aegis_daemon.exports.ship"] if self._job is not None else None

    def _began(self) -> None:
        self._rung = self._seq
        self._helper.tell(msgspec.json.encode(self._job))
        self._helper.tell(b"news %d" % self._seq)

    def _ended(self) -> None:
        for done in self._tests.values():
            if not done.done():
                done.set_result("the export process ended")

    def _failed(self, why: str) -> None:
        _log.error("exports: its process %s", why)
        for row in self._rows.values():
            row.trouble = f"its process {why}"
            row.since = row.since or wall()

    # --- what it says ------------------------------------------------------------------------------------------------

    def _heard(self, line: str) -> None:
        """See `exports.ship`; a line that cannot be read is passed over."""
        words = line.split(" ")
        try:
            if words[0] == "sink":
                _, name, _, seq, _, lag, state, *text = words
                self._at(name, int(seq), int(lag), " ".join(text) if state == "trouble" else "")
            elif words[0] == "witness":
                _, name, _, seq, state, *text = words
                self._at(f"witness {name}", int(seq), 0, " ".join(text) if state == "trouble" else "")
            elif words[0] == "gap":
                _, name, first, last, *text = words
                detail = f"the export `{name}` never gets records {first} to {last}: {' '.join(text)}"
                _log.error("%s", detail)
                self._record(Admin(action="export_gap", by="aegis", detail=detail[:500]))
            elif words[0] == "metrics":
                _, state, *text = words
                trouble = " ".join(text) if state == "trouble" else ""
                if trouble and not self._numbers_trouble:
                    _log.warning("the collector does not get metrics: %s", trouble)
                self._numbers_trouble = trouble
            elif words[0] == "tested":
                _, id, state, *text = words
                done = self._tests.get(id)
                if done is not None and not done.done():
                    done.set_result(" ".join(text) if state == "trouble" else "")
        except ValueError:
            _log.error("the export process said something unknown: %s", visible(line[:200]))
        except AuditUnavailable as error:
            _log.error("a gap in an export could not be recorded: %s", error)

    def _at(self, name: str, seq: int, lag: int, trouble: str) -> None:
        row = self._rows.get(name)
        if row is None:
            return
        if trouble and not row.trouble:
            row.since = wall()
            _log.warning("the export `%s` is in trouble: %s", name, trouble)
        elif row.trouble and not trouble:
            row.since = None
            _log.info("the export `%s` is well again", name)
        if not trouble:
            self._helper.well()
        row.seq, row.lag, row.trouble = max(seq, row.seq) if trouble else seq, lag, trouble


def unwell(rows: Sequence[Row]) -> bool:
    """Whether any of them is in trouble."""
    return any(row.trouble for row in rows)
