"""The agents' side of the daemon on a real port, with scripts for servers: what a client sends, what it gets back.

    async with House() as house:
        a = await house.connect()
        a.post("/agents/amy/mcp", call(1, "echo"))
        assert (await a.answer()).value == result(1)

Port, guard, sessions and sockets are the real ones. `Party` stands for what is behind them: it answers at once with
`{}`, unless the method is one that `house.holds`; then the script answers with `house.party.answers(id, …)`.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aegis_daemon.core.ports import Turned
from aegis_daemon.core.principal import Principal
from aegis_daemon.core.verdict import Reason
from aegis_daemon.loop.clock import monotonic
from aegis_daemon.loop.descriptor import Outbox
from aegis_daemon.transports import http
from aegis_daemon.transports.guard import Guard
from aegis_daemon.transports.http import Exchange, Port
from aegis_daemon.transports.remote import RemoteClient
from aegis_daemon.transports.sse import Sse
from aegis_daemon.transports.streamable_http import StreamableHttp
from aegis_daemon.transports.websocket import WebSockets
from aegis_daemon.wire.jsonrpc import Frame, Kind, error_frame, id_text, result_frame
from aegis_daemon.wire.methods import META_CAPABILITIES, META_VERSION, MODERN_VERSION

TOKEN = "0123456789abcdef"
AMY = "/agents/amy/mcp"


# --- frames -----------------------------------------------------------------------------------------------------------


def call(id: Any, tool: str = "echo", **arguments: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}


def note(method: str, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": f"notifications/{method}", "params": params}


def initialize(id: Any = 0, version: str = "2025-11-25") -> dict[str, Any]:
    params = {"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    return {"jsonrpc": "2.0", "id": id, "method": "initialize", "params": params}


def result(id: Any, value: Any = None) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id, "result": {} if value is None else value}


def modern(frame: dict[str, Any], version: Any = MODERN_VERSION) -> dict[str, Any]:
    meta = {META_VERSION: version, META_CAPABILITIES: {}}
    return {**frame, "params": {**frame.get("params", {}), "_meta": meta}}


def mirrors(frame: dict[str, Any]) -> dict[str, str]:
    """The headers that a modern frame goes with."""
    made = {"MCP-Protocol-Version": MODERN_VERSION, "Mcp-Method": frame["method"]}
    if frame["method"] == "tools/call":
        made["Mcp-Name"] = frame["params"]["name"]
    return made


# --- behind the front -------------------------------------------------------------------------------------------------


class Party:
    """One session's server: see `core.ports.Party`."""

    def __init__(self, house: House, client: RemoteClient, principal: Principal, backend: str | None) -> None:
        self.house = house
        self.client = client
        self.principal = principal
        self.backend = backend
        self.heard: list[Frame] = []
        self.open: list[tuple[Any, int]] = []
        self.withdrawn: list[tuple[Any, bool]] = []
        self.left = False
        self.full: list[bool] = []
        client.on_full = self.full.append

    def hear(self, frame: Frame, end: int = 0) -> None:
        self.heard.append(frame)
        if frame.kind is not Kind.REQUEST:
            return
        if frame.method in self.house.faults:
            raise RuntimeError("a fault in the session")
        assert frame.id is not None
        slot = self.client.take_slot(id_text(frame.id), end)
        self.open.append((frame.id, slot))
        if frame.method not in self.house.holds:
            self.answers(frame.id, self.house.results.get(frame.method, {}))

    def answers(self, id: Any, value: Any = None, *, at: int = 0) -> None:
        """The answer to the open request with this id, or to the `at`-th of several; an exception is an error."""
        slot = [slot for one, slot in self.open if one == id][at]
        self.open.remove((id, slot))
        if isinstance(value, Exception):
            self.client.send(error_frame(id_text(id), int(str(value)), "no"), slot)
        else:
            self.client.send(result_frame(id_text(id), json.dumps(value if value is not None else {}).encode()), slot)

    def tells(self, frame: dict[str, Any], about: Any = None) -> None:
        """Something of the server's, about one of the client's requests or none."""
        slot = next((slot for one, slot in self.open if one == about), -1)
        self.client.tell(json.dumps(frame).encode(), slot)

    def withdraw(self, slot: int, *, forwarded: bool = True) -> None:
        self.withdrawn.append((next(id for id, one in self.open if one == slot), forwarded))
        self.open = [pair for pair in self.open if pair[1] != slot]

    def client_left(self) -> None:
        if not self.left:
            self.left = True
            self.client.close(0)

    serves = True

    def refusal(self, frame: Frame, reason: Reason) -> bytes:
        assert frame.id is not None
        self.house.refusals.append((frame.method, reason.stage, reason.code))
        data = {"by": "aegis", "call_id": "c1", "stage": reason.stage, "reason": reason.code}
        return error_frame(id_text(frame.id), -32603, reason.text, data)

    def methods(self) -> list[str]:
        return [frame.method for frame in self.heard]


class House:
    """A port, and who receives there: `amy` and `bob` come without a token, `tok` shows one, `gone` has no server."""

    def __init__(self, **port: Any) -> None:
        self.holds: set[str] = set()
        self.faults: set[str] = set()
        self.results: dict[str, Any] = {"initialize": {"protocolVersion": "2025-11-25", "capabilities": {}}}
        self.parties: list[Party] = []
        self.drops: Counter[str] = Counter()
        self.refusals: list[tuple[str, str, str]] = []
        """requests that were recorded as refused: method, stage, reason"""
        self.legacy = False
        """whether the servers may be of the legacy era"""
        self.app_saw: list[tuple[str, str, bytes]] = []
        self.app_holds = asyncio.Event()
        self.app_holds.set()
        self.now = monotonic()
        self._port_more = port
        self._connections: list[Connection] = []

    @property
    def party(self) -> Party:
        return self.parties[-1]

    # see `core.ports.Reception`

    def admit(self, agent: str, token: str | None, peer: str) -> Principal:
        if agent not in ("amy", "bob", "tok", "gone"):
            raise Turned(403, -32001, "the agent is not configured")
        if agent == "tok" and token != TOKEN:
            raise Turned(401, -32001, "show the token")
        return Principal(agent)

    def begin(self, principal: Principal, backend: str | None, client: RemoteClient, *, shared: bool) -> Party:
        if backend == "none":
            raise Turned(403, -32001, "no such backend")
        party = Party(self, client, principal, backend)
        self.parties.append(party)
        if principal.agent == "gone":
            client.refuse("the server does not start")
            client.close(127)
        return party

    def apart(self, principal: Principal, backend: str | None) -> bool:
        return self.legacy

    def dropped(self, principal: Principal, backend: str | None, session: str, reason: str) -> None:
        self.drops[reason] += 1

    def refused(self, principal: Principal, backend: str | None, turned: Turned, frame: Frame | None) -> bytes:
        if frame is None:
            self.drops[f"turned away with status {turned.status}"] += 1
        else:
            self.refusals.append((frame.method, "acl", turned.reason))
        return error_frame(
            b"null" if frame is None or frame.id is None else id_text(frame.id), turned.code, turned.text
        )

    # the port

    async def __aenter__(self) -> House:
        loop = asyncio.get_running_loop()
        outbox = Outbox(loop)
        self.streamable = StreamableHttp(self, self.clock)
        self.sse = Sse(self, self.clock)
        self.sockets = WebSockets(self, outbox, self.clock)
        self._clock, http.monotonic = http.monotonic, self.clock  # type: ignore[assignment]
        guard = Guard(["console.example"], ["https://friend.example"])
        more = {"serve": self._serve, "upgraded": self.sockets.upgraded, **self._port_more}
        self.port = Port(loop, outbox, self._app, guard, **more)
        await self.port.open("127.0.0.1", 0)
        return self

    async def __aexit__(self, *exc: object) -> None:
        for connection in self._connections:
            await connection.close()
        await self.port.close(0.0)
        http.monotonic = self._clock
        for _ in range(5):
            await asyncio.sleep(0)

    def clock(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        """Time, and the sweep behind it."""
        self.now += seconds
        for sweep in (self.streamable, self.sse, self.sockets, self.port):
            sweep.sweep()  # type: ignore[attr-defined]

    def _serve(self, exchange: Exchange) -> None:
        if exchange.route.door == "mcp":
            self.streamable.serve(exchange)
        elif exchange.route.door in ("sse", "messages"):
            self.sse.serve(exchange)
        else:
            exchange.reply(404)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            if not message["more_body"]:
                break
        self.app_saw.append((scope["method"], scope["path"], body))
        await self.app_holds.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"3")]})
        await send({"type": "http.response.body", "body": b"app"})

    async def connect(self) -> Connection:
        made = Connection(*await asyncio.open_connection("127.0.0.1", int(self.port.address.rpartition(":")[2])))
        self._connections.append(made)
        return made

    async def begun(self, path: str = AMY, version: str = "2025-11-25") -> tuple[Connection, str]:
        """A connection, and the id of a session that was begun over it."""
        self.results["initialize"]["protocolVersion"] = version
        connection = await self.connect()
        connection.post(path, initialize(version=version))
        answer = await connection.answer()
        assert answer.status == 200, answer
        return connection, answer.headers["mcp-session-id"]

    async def until(self, true: Callable[[], object]) -> None:
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


# --- before the front -------------------------------------------------------------------------------------------------


class Answer:
    """What came back."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def value(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> int:
        code = self.value["error"]["code"]
        assert type(code) is int
        return code

    def __repr__(self) -> str:
        return f"{self.status} {self.headers} {self.body!r}"


class Connection:
    """One connection, byte by byte ours."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._chunked = False
        self._events = b""

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except OSError:
            pass

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def ask(
        self,
        method: str,
        path: str,
        headers: dict[str, str | None] | None = None,
        body: bytes | None = None,
        version: str = "1.1",
    ) -> None:
        """A request; a header that is None is left out."""
        usual: dict[str, str | None] = {"Host": "127.0.0.1:18070", "Accept": "application/json, text/event-stream"}
        if body is not None:
            usual |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
        lines = [f"{name}: {value}\r\n" for name, value in (usual | (headers or {})).items() if value is not None]
        self.send(f"{method} {path} HTTP/{version}\r\n{''.join(lines)}\r\n".encode("latin-1") + (body or b""))

    def post(self, path: str, frame: Any, headers: dict[str, str | None] | None = None, version: str = "1.1") -> None:
        body = frame if isinstance(frame, bytes) else json.dumps(frame).encode()
        self.ask("POST", path, headers, body, version)

    async def head(self) -> Answer:
        """The head of an answer."""
        text = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = text.rstrip("\r\n").split("\r\n")
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(": ")
            name = name.lower()
            assert name not in headers, text
            headers[name] = value
        self._chunked = headers.get("transfer-encoding") == "chunked"
        self._events = b""
        return Answer(int(first.split(" ")[1]), headers)

    async def answer(self, *, head: bool = False) -> Answer:
        """A whole answer, none of it a stream."""
        answer = await self.head()
        assert "content-length" in answer.headers, answer
        if not head:
            answer.body = await self.reader.readexactly(int(answer.headers["content-length"]))
        return answer

    async def event(self) -> dict[str, str] | None:
        """The next event of a stream, by field; comments are the field ``; None at the end."""
        while b"\n\n" not in self._events:
            if not self._chunked:
                more = await self.reader.read(65536)
                if not more:
                    return None
            else:
                size = int(await self.reader.readline(), 16)
                more = await self.reader.readexactly(size)
                assert await self.reader.readexactly(2) == b"\r\n"
                if not size:
                    self._chunked = False
                    return None
            self._events += more
        one, _, self._events = self._events.partition(b"\n\n")
        return {key: value for key, _, value in (line.partition(": ") for line in one.decode().split("\n"))}

    async def frame(self) -> Any:
        """The next message of a stream."""
        while (event := await self.event()) is not None:
            if event.get("event") == "message":
                return json.loads(event["data"])
        return None

    async def ended(self) -> bytes:
        """Everything up to the end of the connection."""
        try:
            return await self.reader.read()
        except ConnectionError:
            return b""


@asynccontextmanager
async def opened(**port: Any) -> AsyncIterator[tuple[House, Connection]]:
    """A house, and a connection to it."""
    async with House(**port) as house:
        yield house, await house.connect()
