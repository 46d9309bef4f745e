"""A log's file made by hand: the writer's tables and its way of folding, without a journal, a process or a loop."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from aegis_daemon.audit import store
from aegis_daemon.audit.calls import COLUMNS, Row, fold, read_record
from aegis_daemon.audit.chain import digest
from aegis_daemon.audit.record import GENESIS, Admin, Approval, Denied, Dropped, Intent, Outcome, Record, Start
from aegis_daemon.exports.event import Event
from aegis_daemon.exports.log import Log

BOUND = 20.0
BEGAN = 1_790_000_000_000_000
HOSTILE = "a|b\\c=d\ne\r\nf\x00g\x1b[31mh\u202ei\u2028j\u200bk\x9bl\U000e0041m\"]}'=1+1\x7fé漢"


def call_id(number: int) -> str:
    return f"{number:032x}"


class Book:
    """Adds records; every `add` is committed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        store.ensure_schema(path)
        self.db = sqlite3.connect(path, isolation_level=None)
        self.db.execute("PRAGMA synchronous=OFF")
        self.seq, self.head = 0, GENESIS
        self._open: dict[str, Row] = {}

    def add(self, record: Record, body: bytes | None = None) -> int:
        salt = b"salt" * 4
        record.seq, record.prev, record.v, record.kind = self.seq + 1, self.head, 1, record.KIND
        record.ts, record.tenant, record.boot = BEGAN + record.seq * 1_000_003, "default", "boot"
        if body is not None:
            record.body = sha256(salt + body).hexdigest()  # type: ignore[union-attr]
        text = msgspec.json.encode(record)
        self.seq, self.head = record.seq, digest(text).hex()
        self.db.execute("BEGIN")
        self.db.execute("INSERT INTO records(seq, hash, record) VALUES (?, ?, ?)", (self.seq, self.head, text.decode()))
        if body is not None:
            part = "result" if record.kind == "outcome" else "arguments"
            row = (self.seq, part, salt, body.decode(), len(body))
            self.db.execute("INSERT INTO bodies(seq, part, salt, body, length) VALUES (?, ?, ?, ?, ?)", row)
        found = fold(self._open, read_record(text), body)
        if found is not None:
            names = ", ".join(COLUMNS)
            marks = ",".join("?" * len(COLUMNS))
            self.db.execute(
                f"INSERT OR REPLACE INTO calls({names}) VALUES ({marks})", msgspec.structs.astuple(found[0])
            )
        self.db.execute("COMMIT")
        return self.seq

    def start(self) -> int:
        return self.add(Start(config_digest="c" * 64, pid=7, version="1.2.3"))

    def call(self, number: int, arguments: bytes = b'{"path":"/data/a"}', **more: Any) -> int:
        facts: dict[str, Any] = {
            "acl": "allowed", "agent": "writer", "approval": "not_required", "backend": "files", "era": "legacy",
            "limit": "within", "method": "tools/call", "name": "read_file", "principal": "ann", "request": str(number),
            "session": "s1",
        }  # fmt: skip
        end: dict[str, Any] = {"consumed": True, "duration_us": 1500, "status": "success"}
        for name in list(more):
            if name in Outcome.__struct_fields__ and name not in Intent.__struct_fields__:
                end[name] = more.pop(name)
        result = more.pop("result", b'{"content":[{"type":"text","text":"done"}]}')
        self.add(Intent(call=call_id(number), **{**facts, **more}), arguments)
        return self.add(Outcome(call=call_id(number), **end), result)

    def denied(self, number: int, **more: Any) -> int:
        facts: dict[str, Any] = {
            "acl": "denied", "agent": "writer", "backend": "files", "code": -32001, "method": "tools/call",
            "name": "delete_all", "policy": "no-deletes", "reason": "`delete_all` is denied", "stage": "acl",
        }  # fmt: skip
        return self.add(Denied(call=call_id(number), **{**facts, **more}), b"{}")

    def of_every_kind(self, text: str = "plain") -> None:
        """Every kind of record, in every end, with `text` wherever somebody else's text can be."""
        body = msgspec.json.encode({"text": text, text: [1, 2.5, None, True]})
        self.start()
        self.call(1, body, name=text, agent=text, backend=text, principal=text, session=text, note=text, policy=text)
        self.call(2, body, result=body, status="error", error_code=-32603, error_message=text)
        self.call(3, b"no json " + text.encode(), result=b'{"cut', status="unknown", error_message=text)
        self.call(4, method="resources/read", name="file:///a", approval="approved", approver=text)
        self.call(5, method="tools/list", name="")
        self.denied(6, reason=text, name=text)
        self.denied(7, stage="pin", policy="")
        self.add(Denied(call=call_id(8), agent="w", backend="b", method="tools/call", stage="acl", would=True), body)
        self.call(8, body)
        for decision in ("voted", "approved", "rejected", "expired", "cancelled", "granted", "revoked"):
            self.add(Approval(call=call_id(4), decision=decision, ticket="7K2M", by=text, note=text, via="slack"))
        for action in ("reload", "pause", "resume", "pin", "trust", "drift", "purge", "erase", "stop", "restart", text):
            self.add(Admin(action=action, by=text, detail=text))
        self.add(Dropped(agent=text, backend=text, count=3, direction="to_server", reason=text, session=text))

    def events(self, most: int = 10_000) -> list[Event]:
        found: list[Event] = []
        log, place = Log(self.path), 0
        while (page := log.page(place, most, 1 << 30)).seq > place:
            found += page.events
            place = page.seq
        return found

    @property
    def uids(self) -> list[str]:
        return [event.uid for event in self.events()]


async def until(condition: Callable[[], object], what: str) -> None:
    """For states of other processes and threads that nothing announces."""
    end = asyncio.get_running_loop().time() + BOUND
    while not condition():
        assert asyncio.get_running_loop().time() < end, f"never {what}"
        await asyncio.sleep(0.01)
