"""The real governor over a real desk, limits, lanes and log, without agents; and two ways to reach its web side."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

import msgspec
from making import tool

from aegis_daemon.approvals import links
from aegis_daemon.approvals.changes import Changes
from aegis_daemon.approvals.desk import Desk
from aegis_daemon.approvals.store import TicketStore
from aegis_daemon.approvals.ticket import Ticket
from aegis_daemon.audit.journal import Journal
from aegis_daemon.audit.record import Intent, Outcome
from aegis_daemon.audit.writer import WriterHandle
from aegis_daemon.backends.children import Nursery
from aegis_daemon.config.schema import Secret
from aegis_daemon.core.principal import Principal
from aegis_daemon.core.verdict import Ask, Hold
from aegis_daemon.daemon import governor as governing
from aegis_daemon.daemon import reading
from aegis_daemon.daemon import reload as reloading
from aegis_daemon.daemon.governor import Governor
from aegis_daemon.daemon.orders import Orders
from aegis_daemon.lanes import Lanes
from aegis_daemon.limits import Limits
from aegis_daemon.loop.clock import monotonic, wall
from aegis_daemon.loop.descriptor import Outbox
from aegis_daemon.manage import shapes
from aegis_daemon.manage.web import Access, Paging, Web
from aegis_daemon.transports.guard import Guard
from aegis_daemon.transports.http import Port

API_TOKEN, READ_TOKEN, APPROVER_KEY = "api-token-0123456789", "read-token-0123456789", "a" * 64
LINKS_KEY = b"l" * 32
BASE = "https://aegis.example"
OUR_ORIGIN = "http://127.0.0.1:18070"
CONFIG = """
backends: {files: {}, blog: {}, idle: {}}
queue:
  blog: {enabled: true, global_rate_limits: {publish: 15/1h}}
  idle: {enabled: true, global_rate_limits: {publish: 9/1h}}
agents:
  amy:
    display_name: Amy
    backends:
      files: {allowed: true, tool_denylist: [delete_all], rate_limits: {read: 5/1m}}
      blog: {allowed: true, approval_required: [publish], rate_limits: {publish: 1/24h}}
      idle: {}
  bob: {backends: {files: {allowed: true, tool_allowlist: [read]}}}
"""


class House:
    """Everything that a person can reach over HTTP, and what happened to it."""

    def __init__(self, at: Path, config: str = CONFIG, *, logging: bool = False) -> None:
        loop = asyncio.get_running_loop()
        self.at = at
        self.file = at / "aegis.yaml"
        self.file.write_text(config, encoding="utf-8")
        self.force = reloading.read(self.file)
        self.events: list[tuple[str, str]] = []
        self.access = Access(api_token=Secret(API_TOKEN), read_token=Secret(READ_TOKEN))
        self.paging = Paging()
        self.backends: Any = {"files": "healthy", "blog": "no_health_url"}
        self.probes = 0
        self.reloads = 0
        self.store = TicketStore(at / "state.db", full=False)
        self.desk = Desk(
            self.store,
            wall=wall,
            call_later=loop.call_later,
            on_event=self._happened,
            max_pending=10_000,
        )
        self.limits = Limits()
        self.lanes = Lanes(monotonic, loop.call_later)
        self.lanes.configure(dict(self.force.runtime.lanes))
        self.journal = Journal(at / "journal", durability="process", loop=loop, db_path=at / "audit.db")
        self.journal.open()
        self.writer = WriterHandle(self.journal, at / "audit.db", loop) if logging else None
        self.brake: Any = None
        self.orders = Orders(
            self.store.db, self.journal, self.limits, in_force=lambda: self.force, brake=self._brake,
        )  # fmt: skip
        self.governor = Governor(
            socket="", in_force=lambda: self.force, reload=self._reload, stop=lambda restart: None, sessions=[],
            desk=self.desk, limits=self.limits, lanes=self.lanes, journal=self.journal, writer=self.writer,
            nursery=Nursery(), key=APPROVER_KEY, audit_db=at / "audit.db" if logging else None, links_key=LINKS_KEY,
            orders=self.orders, changes=Changes(self.store.db),
        )  # fmt: skip
        self.web = Web(
            self.governor,
            access=lambda: self.access,
            paging=lambda: self.paging,
            probe=self._probe,
            refuses=Guard(["aegis.example"]).refuses,
        )

    async def close(self) -> None:
        if self.writer is not None:
            await self.writer.close()
        self.journal.close()
        for timer in self.desk._timers.values():
            timer.cancel()
        self.store.close()

    def _brake(self, brake: Any) -> None:
        self.brake = brake

    def _happened(self, event: str, ticket: Ticket) -> None:
        self.events.append((event, ticket.id))
        self.governor.happened(event, ticket)

    async def _reload(self, *_: str) -> shapes.Reloaded:
        self.force = reloading.read(self.file)
        self.reloads += 1
        return shapes.Reloaded(message="config reloaded", changed=("agents",))

    async def _probe(self) -> Mapping[str, str]:
        self.probes += 1
        await asyncio.sleep(0)
        if isinstance(self.backends, Exception):
            raise self.backends
        return self.backends  # type: ignore[no-any-return]

    def asks(self, arguments: Any = None, *, name: str = "publish", timeout: float = 600.0) -> Ticket:
        """An agent's call that waits for a person."""
        call = tool(name, {"text": "hi"} if arguments is None else arguments, backend="blog")
        ticket = self.desk.open(Hold(call, Ask("agents.amy.backends.blog.approval_required", timeout), ()))
        assert isinstance(ticket, Ticket)
        self.desk.attach(ticket, call)
        return ticket

    def link(self, ticket: Ticket, action: Any) -> str:
        """The link as a message has it, without the base."""
        return links.url(LINKS_KEY, BASE, ticket, action).removeprefix(BASE)

    def records(self, count: int, **more: Any) -> None:
        """Calls that ran, the last of them the newest."""
        for _ in range(count):
            call = tool("read")
            facts: dict[str, Any] = {
                "acl": "allowed", "agent": "amy", "approval": "not_required", "backend": "files", "call": call.id,
                "era": "legacy", "method": "tools/call", "name": "read", "principal": Principal("amy").agent,
                "request": "7", "session": "s1",
            }  # fmt: skip
            self.journal.append(Intent(**{**facts, **more}), b'{"path":"/x"}')
            self.journal.append(Outcome(call=call.id, consumed=True, duration_us=2500, status="success"))

    def state(self) -> Any:
        """What only a decision, a reload or a call changes."""
        tickets = [(t.id, t.state, t.by, t.note, t.attended) for t in self.desk._open.values()]
        windows = [(row.tool, row.current, row.reserved) for row in self.governor.limits(None, None, None)]
        return tickets, windows, self.journal.last_seq, self.reloads, self.force.runtime.digest, list(self.events)


@asynccontextmanager
async def open_house(at: Path, *, logging: bool = False) -> AsyncIterator[House]:
    """`logging`: whether the log can be read, for which a process has to run.

    Pages show what the log's store has when it is late, for the impatient; here all of it is waited for.
    """
    patient = (
        patch.object(reading, "FLUSH_S", 60.0),
        patch.object(reading, "WAIT_S", 90.0),
        patch.object(governing, "AUDIT_FLUSH_S", 60.0),
        patch.object(governing, "AUDIT_WAIT_S", 90.0),
    )
    with ExitStack() as patched:
        for each in patient:
            patched.enter_context(each)
        house = House(at, logging=logging)
        try:
            yield house
        finally:
            await house.close()


class Answer(msgspec.Struct):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json"
        return json.loads(self.body)

    @property
    def text(self) -> str:
        assert self.headers["content-type"] == "text/html; charset=utf-8"
        return self.body.decode()


async def ask(
    app: Any,
    method: str,
    target: str,
    *,
    token: str | None = None,
    headers: Mapping[str, str] | Sequence[tuple[str, str]] = (),
    body: bytes | None = None,
    peer: str = "127.0.0.1",
    parts: Any = None,
) -> Answer:
    """One request, as a server hands it on (ASGI 3). `parts` are messages that stand for the body."""
    split = urlsplit(target)
    pairs = list(headers.items() if isinstance(headers, Mapping) else headers)
    if not any(name == "host" for name, _ in pairs):
        pairs.append(("host", urlsplit(OUR_ORIGIN).netloc))
    if token is not None:
        pairs.append(("authorization", f"Bearer {token}"))
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": split.path, "raw_path": split.path.encode(), "query_string": split.query.encode(), "root_path": "",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in pairs],
        "client": (peer, 50000), "server": ("127.0.0.1", 18070),
    }  # fmt: skip
    coming = list(parts or [{"type": "http.request", "body": body or b"", "more_body": False}])
    sent: list[Any] = []

    async def receive() -> Any:
        if not coming:
            await asyncio.Event().wait()
        return coming.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    await asyncio.wait_for(app(scope, receive, send), 10)
    start, rest = sent[0], sent[1:]
    made = {name.decode(): value.decode() for name, value in start["headers"]}
    assert len(made) == len(start["headers"]), "a header is sent twice"
    return Answer(start["status"], made, b"".join(part.get("body", b"") for part in rest))


@contextmanager
def served(at: Path) -> Iterator[tuple[str, House, Any]]:
    """The same behind the real front on a port of its own, in a thread: its address, the house, `do(function)` on its loop."""
    ready = threading.Event()
    held: dict[str, Any] = {}

    async def run() -> None:
        async with open_house(at, logging=True) as house:
            port = Port(
                asyncio.get_running_loop(), Outbox(asyncio.get_running_loop()), house.web.app, Guard(),
                serve=lambda exchange: exchange.reply(404), upgraded=lambda *_: False,
            )  # fmt: skip
            await port.open("127.0.0.1", 0)
            end = asyncio.Event()
            held.update(house=house, end=end, loop=asyncio.get_running_loop(), address=port.address)
            ready.set()
            await end.wait()
            await port.close(1.0)

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        assert ready.wait(20)

        def do(function: Any) -> Any:
            async def call() -> Any:
                return function()

            return asyncio.run_coroutine_threadsafe(call(), held["loop"]).result(10)

        yield f"http://{held['address']}", held["house"], do
    finally:
        if "end" in held:
            held["loop"].call_soon_threadsafe(held["end"].set)
        thread.join(20)
        assert not thread.is_alive()
