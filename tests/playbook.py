"""Whole sessions in memory, written down as scripts: what the client says, the server hears, and the log has.

    play = make_play(CONFIG)                        # the fixture of tests/relay/conftest.py
    s = play.session().handshake()
    s.client.says(call(7, "echo", text="hi"))
    heard = s.server.hears("tools/call", name="echo")
    s.server.answers(heard, {"content": []})
    s.client.hears_result(7, {"content": []})
    play.recorded("intent", "outcome")

Everything between the two ends is real (pipeline, limits, lanes, desk, story); the ends, the clock and the journal
are stand-ins that only do what a script tells them. What must hold in every script is checked in every script: the
server hears no request without a durable intent, nothing twice, no answer it did not ask for; the client hears one
answer to each request and none to a cancelled one; progress only grows; and at the end nothing is left anywhere.
"""

from __future__ import annotations

import heapq
import json
import logging
import sqlite3
from collections import Counter, deque
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import msgspec

from aegis_daemon.approvals.changes import Changes
from aegis_daemon.approvals.desk import Desk
from aegis_daemon.approvals.patience import Patience
from aegis_daemon.approvals.store import TicketStore
from aegis_daemon.approvals.ticket import Ticket
from aegis_daemon.audit.story import Scribe, Story
from aegis_daemon.config.load import digest, loads
from aegis_daemon.config.runtime import build
from aegis_daemon.core.call import Call
from aegis_daemon.core.handed import Handed
from aegis_daemon.core.ports import AuditUnavailable
from aegis_daemon.core.principal import Principal
from aegis_daemon.core.runtime import Runtime
from aegis_daemon.core.session import OpenRequests, State
from aegis_daemon.core.verdict import Deny
from aegis_daemon.lanes import Lanes
from aegis_daemon.limits import Limits
from aegis_daemon.relay.carry import Shell
from aegis_daemon.relay.conversation import Conversation
from aegis_daemon.relay.load import CallIds, Load
from aegis_daemon.relay.own_tasks import OwnTasks
from aegis_daemon.relay.task_owners import Owners
from aegis_daemon.wire.jsonrpc import Frame
from aegis_daemon.wire.methods import META_CAPABILITIES, META_VERSION, MODERN_VERSION

CONFIG = """
backends: {files: {}}
agents: {bot: {backends: {files: {allowed: true}}}}
"""
SLOTS = 272
HIGH = 1 << 18
"""Bytes that may wait for a client before it counts as one that does not read."""
FOREVER = 3 * 86400.0
_CONTROL = ("ping",)


# --- frames -----------------------------------------------------------------------------------------------------------


def request(id: Any, method: str, **params: Any) -> dict[str, Any]:
    """A request; parameters that are not Python names go into `_meta` by `meta`."""
    return {"jsonrpc": "2.0", "id": id, "method": method, "params": params}


def call(id: Any, tool: str, /, *, token: Any = None, **arguments: Any) -> dict[str, Any]:
    """A `tools/call`, with a progress token where one is given."""
    params: dict[str, Any] = {"name": tool, "arguments": arguments}
    if token is not None:
        params["_meta"] = {"progressToken": token}
    return {"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params}


def modern(
    frame: dict[str, Any], version: Any = MODERN_VERSION, capabilities: Any = None, **params: Any
) -> dict[str, Any]:
    """The same frame with the modern envelope, and with further parameters."""
    meta = {META_VERSION: version, META_CAPABILITIES: {} if capabilities is None else capabilities}
    old = frame.get("params", {})
    return {**frame, "params": {**old, **params, "_meta": {**old.get("_meta", {}), **meta}}}


def note(method: str, **params: Any) -> dict[str, Any]:
    """A notification."""
    return {"jsonrpc": "2.0", "method": f"notifications/{method}", "params": params}


def cancel(id: Any, **more: Any) -> dict[str, Any]:
    """The notification that a request is not wanted any more."""
    return note("cancelled", requestId=id, **more)


def result(id: Any, value: Any = None) -> dict[str, Any]:
    """An answer."""
    return {"jsonrpc": "2.0", "id": id, "result": {} if value is None else value}


def error(id: Any, code: int = -32000, message: str = "no", **more: Any) -> dict[str, Any]:
    """An error answer."""
    return {"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message, **more}}


def text(words: str, **more: Any) -> dict[str, Any]:
    """The result of a tool."""
    return {"content": [{"type": "text", "text": words}], **more}


def raw(frame: Any) -> bytes:
    """A frame as a line; bytes pass as they are."""
    return frame if isinstance(frame, bytes) else json.dumps(frame, separators=(",", ":")).encode()


def like(actual: Any, expected: Any) -> bool:
    """Whether everything expected is there: in dicts key by key, `...` for anything, types included."""
    if expected is ...:
        return True
    if isinstance(expected, dict):
        return isinstance(actual, dict) and all(
            key in actual and like(actual[key], value) for key, value in expected.items()
        )
    if isinstance(expected, list):
        return isinstance(actual, list) and len(actual) == len(expected) and all(map(like, actual, expected))
    return type(actual) is type(expected) and bool(actual == expected)


def _single(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key occurs twice, so nobody can say what is asked")
    return made


def _key(id: Any) -> tuple[str, Any]:
    return (type(id).__name__, id)


# --- time -------------------------------------------------------------------------------------------------------------


class Timer:
    """What `call_later` gives back."""

    def __init__(self, at: float, callback: Callable[[], None]) -> None:
        self.at = at
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class Clock:
    """Seconds that pass when a script says so; also all that a conversation needs of a loop."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.set_by = 0.0
        """by how much somebody set the calendar"""
        self._timers: list[tuple[float, int, Timer]] = []
        self._numbers = count()

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return 1.7e9 + self.now + self.set_by

    def call_later(self, delay: float, callback: Callable[..., None], *args: Any) -> Timer:
        timer = Timer(self.now + delay, lambda: callback(*args))
        heapq.heappush(self._timers, (timer.at, next(self._numbers), timer))
        return timer

    @property
    def waiting(self) -> list[Timer]:
        return [timer for _, _, timer in self._timers if timer.callback is not None]

    def advance(self, seconds: float, tick: Callable[[], None]) -> None:
        end = self.now + seconds
        while self._timers and self._timers[0][0] <= end:
            at, _, timer = heapq.heappop(self._timers)
            callback, timer.callback = timer.callback, None
            if callback is not None:
                self.now = max(self.now, at)
                callback()
                tick()
        self.now = end
        tick()


# --- the log ----------------------------------------------------------------------------------------------------------


class Log:
    """The journal, in memory, under the real stories. `durable = False` holds every commit back until `sync`."""

    def __init__(self) -> None:
        self.records: list[Any] = []
        self.bodies: list[bytes | None] = []
        self.refused: list[Any] = []
        self.durable = True
        self.durable_seq = 0
        self.scrub: Callable[[bytes], bytes] | None = None
        self.unavailable: str | None = None
        self._waiting: list[tuple[int, Callable[[Any], None]]] = []
        self._by_call: dict[str, list[Any]] = {}

    def append(self, record: Any, body: bytes | None = None, length: int | None = None, *, later: bool = False) -> int:
        record.kind = record.KIND
        if self.unavailable is not None:
            self.refused.append(record)
            raise AuditUnavailable(self.unavailable)
        self.records.append(record)
        self._by_call.setdefault(getattr(record, "call", ""), []).append(record)
        self.bodies.append(body)
        record.seq = len(self.records)
        if self.durable:
            self.durable_seq = record.seq
        return len(self.records)

    def when_durable(self, seq: int, done: Callable[[Any], None]) -> None:
        assert seq > self.durable_seq, "what is durable is not waited for"
        self._waiting.append((seq, done))

    def sync(self, fault: str | None = None) -> None:
        """Everything so far is on disk now, or with a fault nothing that waits ever will be."""
        waiting, self._waiting = self._waiting, []
        if fault is None:
            self.durable_seq = len(self.records)
        for _, done in waiting:
            done(None if fault is None else AuditUnavailable(fault))

    def of(self, call_id: str, *kinds: str) -> list[Any]:
        return [one for one in self._by_call.get(call_id, ()) if one.kind in kinds]

    def has_intent(self, call_id: str) -> bool:
        return any(one.seq <= self.durable_seq for one in self.of(call_id, "intent"))


class _Scribe(Scribe):
    def __init__(self, log: Log) -> None:
        super().__init__(log)  # type: ignore[arg-type]
        self.calls: list[Call] = []

    def story(self, call: Call) -> Story:
        self.calls.append(call)
        return super().story(call)


class Store(TicketStore):
    """Tickets in a real file, which may fail."""

    failing = False

    def put(self, ticket: Ticket) -> None:
        self._may_fail()
        super().put(ticket)

    def take(self, ticket: Ticket) -> bool:
        self._may_fail()
        return super().take(ticket)

    def _may_fail(self) -> None:
        if self.failing:
            raise sqlite3.OperationalError("database or disk is full")


# --- the two ends -----------------------------------------------------------------------------------------------------


class _End:
    """One end of a session: what it heard, and the questions and answers that crossed it."""

    name = ""

    def __init__(self, play: Play) -> None:
        self.play = play
        self.inbox: deque[bytes] = deque()
        self.asked: Counter[tuple[str, Any]] = Counter()
        """this end's requests that have no answer yet"""
        self.given_up: set[tuple[str, Any]] = set()
        self._progress: dict[tuple[str, Any], float] = {}
        self._initializing: set[tuple[str, Any]] = set()
        self._listening: set[Any] = set()

    # what this end says

    def _said(self, line: bytes) -> None:
        try:
            frame = json.loads(line, object_pairs_hook=_single)
            kind = (isinstance(frame.get("method"), str), type(frame.get("id")) in (int, str))
        except (ValueError, AttributeError, RecursionError):
            return
        if kind == (True, True):
            self.asked[_key(frame["id"])] += 1
            if frame["method"] == "subscriptions/listen":
                self._listening.add(frame["id"])
            if self.is_new(frame["id"]):
                self.given_up.discard(_key(frame["id"]))
                self._initializing.discard(_key(frame["id"]))
                if frame["method"] == "initialize":
                    self._initializing.add(_key(frame["id"]))
            meta = frame.get("params", {}).get("_meta") if isinstance(frame.get("params"), dict) else None
            if isinstance(meta, dict) and "progressToken" in meta:
                self._progress.pop(_key(meta["progressToken"]), None)
        elif frame.get("method") == "notifications/cancelled" and type(frame.get("params")) is dict:
            key = _key(frame["params"].get("requestId"))
            if key[0] in ("int", "str") and self.asked.get(key) == 1 and self.may_give_up(key[1]):
                self.given_up.add(key)
                del self.asked[key]

    def may_give_up(self, id: Any) -> bool:
        return True

    def is_new(self, id: Any) -> bool:
        return True

    # what this end hears

    def _heard(self, line: bytes, requests: OpenRequests) -> None:
        assert b"\n" not in line
        assert b"\r" not in line
        try:
            frame = json.loads(line)
        except RecursionError:  # an answer, passed on as it is
            self.asked.clear()
            self.inbox.append(line)
            return
        assert frame["jsonrpc"] == "2.0"
        if "method" in frame and "id" in frame:
            self._heard_request(frame, requests)
        elif "method" in frame:
            if frame["method"] == "notifications/progress":
                token = _key(frame["params"]["progressToken"])
                before = self._progress.get(token)
                assert before is None or frame["params"]["progress"] > before, f"progress does not grow: {frame}"
                self._progress[token] = frame["params"]["progress"]
            elif frame["method"] == "notifications/cancelled" and frame["params"]["requestId"] in self._listening:
                del self.asked[_key(frame["params"]["requestId"])]  # the server's way to end a subscription
        else:
            assert ("result" in frame) is not ("error" in frame)
            self._heard_answer(frame)
        self.inbox.append(line)

    def _heard_answer(self, frame: dict[str, Any]) -> None:
        id = frame["id"]
        if id is None:
            return
        key = _key(id)
        clash = "error" in frame and frame["error"]["code"] in (-32600, -32700)
        assert key not in self.given_up or clash, f"the {self.name} is answered what it cancelled: {frame}"
        assert self.asked[key] > 0 or clash, f"the {self.name} is answered what it did not ask: {frame}"
        self.asked[key] -= 1
        if self.asked[key] <= 0:
            del self.asked[key]

    def _heard_request(self, frame: dict[str, Any], requests: OpenRequests) -> None:
        opened = requests.peek(frame["id"])
        assert opened is not None, f"the {self.name} hears a request that nobody keeps: {frame}"
        if frame["method"] in _CONTROL:
            return
        made = opened.call
        assert made is not None
        assert self.play.log.has_intent(made.id), f"no intent for {frame}"
        # A subscription is shown to the server that takes the place of the one that had it.
        assert made.id not in self.play.sent or made.method == "subscriptions/listen", f"sent twice: {frame}"
        assert frame["method"] == made.method
        assert frame.get("params", {}) == made.frame.params
        self.play.sent.add(made.id)

    # what a script asks

    def next(self) -> dict[str, Any]:
        assert self.inbox, f"the {self.name} heard nothing"
        return json.loads(self.inbox.popleft())  # type: ignore[no-any-return]

    def hears_nothing(self) -> None:
        assert not self.inbox, f"the {self.name} heard {self.inbox.popleft()!r}"

    def hears(self, method: str, **params: Any) -> dict[str, Any]:
        """The next frame is this request or notification, with these parameters among others."""
        frame = self.next()
        assert frame.get("method") == method, frame
        assert like(frame.get("params", {}), params), frame
        return frame

    def hears_result(self, id: Any, value: Any = ...) -> dict[str, Any]:
        """The next frame is this answer."""
        frame = self.next()
        assert "result" in frame, frame
        assert like(frame, {"id": id, "result": value}), frame
        return frame["result"]  # type: ignore[no-any-return]

    def hears_error(self, id: Any, code: int, words: str = "", **data: Any) -> dict[str, Any]:
        """The next frame is this refusal, its message has the words and its data these entries among others."""
        frame = self.next()
        assert like(frame, {"id": id, "error": {"code": code, "message": ...}}), frame
        assert words in frame["error"]["message"], frame
        assert like(frame["error"].get("data", {}), data), frame
        return frame["error"]  # type: ignore[no-any-return]


class Client(_End):
    """The agent's end; see `relay.ports.Client`. `reads = False`: it takes nothing, and what is for it waits."""

    name = "client"

    def __init__(self, play: Play, era: int = 0, handshake: bytes | None = None, initialized: bool = False) -> None:
        super().__init__(play)
        self.on_line: Callable[[bytes, int], None] = lambda line, end: None
        self.on_long: Callable[[], None] = lambda: None
        self.on_end: Callable[[], None] = lambda: None
        self.on_full: Callable[[bool], None] = lambda full: None
        self.gone = False
        self.era = era
        self.handshake = handshake
        self.initialized = initialized
        self.started = self.stopped = self.paused = self.left = False
        self.status: int | None = None
        self.refused: str | None = None
        self.reads = True
        self.waiting: deque[tuple[bytes, int]] = deque()
        self.backlog = 0
        self.slots: dict[int, tuple[str, bytes]] = {}
        self.talk: Conversation | None = None
        self.handed_back = False
        self._unread: deque[bytes] = deque()
        self._said_bytes = self._consumed = 0

    # the script's side

    def says(self, *frames: Any) -> None:
        """Lines from the client; they wait where it is not read."""
        self._unread.extend(map(raw, frames))
        self._deliver()

    def may_give_up(self, id: Any) -> bool:
        return _key(id) not in self._initializing

    def is_new(self, id: Any) -> bool:
        return self.talk is not None and self.talk.to_server.find(id) is None

    def _deliver(self) -> None:
        while self._unread and self.started and not (self.paused or self.stopped):
            line = self._unread.popleft()
            self._said(line)
            self._said_bytes += len(line) + 1
            end = self._said_bytes
            self.on_line(line, end)
            assert self._consumed == end or self.status is not None, "a line was not consumed"

    def leaves(self) -> None:
        """Its input ends; it reads on."""
        self.left = True
        self.on_end()

    def dies(self) -> None:
        """The shim is gone."""
        self.left = True
        assert self.talk is not None
        self.talk.shim_gone()

    def reads_again(self) -> None:
        """Takes everything that waits."""
        self.reads = True
        self.backlog = 0
        waiting, self.waiting = self.waiting, deque()
        for frame, slot in waiting:
            self._take(frame, slot)
        self.on_full(False)

    def _take(self, frame: bytes, slot: int) -> None:
        assert self.talk is not None
        self._heard(frame, self.talk.to_client)
        self.free_slot(slot)

    # the daemon's side

    def start(self) -> None:
        self.started = True
        self._deliver()

    def stop(self) -> None:
        self.stopped = True

    def pause(self, paused: bool) -> None:
        self.paused = paused
        self._deliver()

    def send(self, frame: bytes, slot: int) -> None:
        if self.gone:
            self.free_slot(slot)
        elif self.reads:
            self._take(frame, slot)
        else:
            was = self.backlog
            self.backlog += len(frame)
            self.waiting.append((frame, slot))
            if was <= HIGH < self.backlog:
                self.on_full(True)

    def tell(self, frame: bytes, slot: int) -> None:
        assert slot < 0 or slot in self.slots, f"told of a request that is not open: {frame!r}"
        self.send(frame, -1)

    def take_slot(self, id_json: bytes, end: int) -> int:
        if len(self.slots) >= SLOTS:
            return -1
        slot = next(number for number in count() if number not in self.slots)
        self.slots[slot] = ("received", id_json)
        return slot

    def dispatched(self, slot: int) -> None:
        if slot >= 0 and not self.handed_back:
            self.slots[slot] = ("dispatched", self.slots[slot][1])

    def free_slot(self, slot: int) -> None:
        if slot >= 0 and not self.handed_back:
            del self.slots[slot]

    def bye(self) -> list[tuple[str, bytes]]:
        """The daemon leaves: what the shim finds in the slots, and answers itself."""
        self.handed_back = self.left = self.gone = True
        return sorted(self.slots.values())

    def consume(self, end: int) -> None:
        assert end >= self._consumed
        self._consumed = end

    def keep_era(self, era: int) -> None:
        self.era = era

    def keep_handshake(self, frame: bytes) -> None:
        self.handshake, self.initialized = frame, False

    def keep_initialized(self) -> None:
        self.initialized = True

    def refuse(self, text: str) -> None:
        self.refused = text

    def abandon(self) -> None:
        self.gone = True

    def close(self, code: int) -> None:
        assert self.status is None, "closed twice"
        self.status = code
        self.stopped = True
        self.gone = True


class Server(_End):
    """The server's end; see `relay.ports.Backend`. It exits when the script says so."""

    name = "server"

    def __init__(self, play: Play, talk: Conversation) -> None:
        super().__init__(play)
        self.talk = talk
        self.touched = self.paused = self.stdin_closed = self.ending = self.over = False
        self.renewals = 0
        self.lost: list[bytes] = []

    @property
    def pid(self) -> int | None:
        return None if self.over else 4711

    def send(self, text: bytes, frame: Frame | None = None, number: int = 0) -> None:
        assert not self.over, f"sent to a server that has exited: {text!r}"
        if frame is not None:
            said = json.loads(text)
            assert said.get("method", "") == frame.method
            assert number == said.get("id", 0)
        if self.stdin_closed:
            self.lost.append(text)
            return
        self.touched = True
        self._heard(text, self.talk.to_server)

    def cancel(self, number: int, text: bytes) -> None:
        assert json.loads(text)["params"]["requestId"] == number
        self.send(text)

    def _heard_request(self, frame: dict[str, Any], requests: OpenRequests) -> None:
        super()._heard_request(frame, requests)
        opened = requests.peek(frame["id"])
        assert opened is not None
        assert opened.state is State.SENT
        client = self.talk.client
        assert isinstance(client, Client)
        if opened.slot >= 0:
            assert client.slots[opened.slot][0] == "dispatched", "sent before the ledger says so"

    def is_new(self, id: Any) -> bool:
        return self.talk.to_client.find(id) is None

    def pause(self, paused: bool) -> None:
        self.paused = paused

    def close_stdin(self) -> None:
        self.stdin_closed = True

    def end(self) -> None:
        self.stdin_closed = self.ending = True

    # the script's side

    def says(self, *frames: Any) -> None:
        """Lines of the server."""
        for line in map(raw, frames):
            self._said(line)
            self.talk.server_lines(self, [line])

    def answers(self, heard: dict[str, Any], value: Any = None) -> None:
        """Answers a request it heard."""
        self.says(result(heard["id"], value))

    def fails(self, heard: dict[str, Any], code: int = -32000, message: str = "no") -> None:
        """Answers with an error."""
        self.says(error(heard["id"], code, message))

    def exits(self, code: int = 0) -> None:
        """Its whole tree is gone."""
        self.over = True
        self.talk.server_exited(self, code)

    def cannot_start(self, why: str = "no such file: `srv`") -> None:
        """It never ran."""
        self.over = True
        self.talk.server_failed(self, why)

    def is_full(self, full: bool) -> None:
        """It does not read, or reads again."""
        self.talk.server_full(self, full)


# --- sessions ---------------------------------------------------------------------------------------------------------


class Session:
    """One conversation with its two ends."""

    def __init__(self, play: Play, client: Client, talk: Conversation, servers: list[Server]) -> None:
        self.play = play
        self.client = client
        self.talk = talk
        self.servers = servers
        self.over = False

    @property
    def server(self) -> Server:
        """The newest server."""
        return self.servers[-1]

    def handshake(
        self,
        capabilities: Any = None,
        server_capabilities: Any = None,
        version: str = "2025-11-25",
        client: str | None = None,
    ) -> Session:
        """The legacy handshake, start to end; its records are not kept for the script."""
        info = {} if client is None else {"name": client, "version": "1"}
        self.client.says(
            request("init", "initialize", protocolVersion=version, capabilities=capabilities or {}, clientInfo=info)
        )
        self.play.log.sync()
        heard = self.server.hears("initialize")
        offered = {"protocolVersion": version, "capabilities": server_capabilities or {}, "serverInfo": {}}
        self.server.answers(heard, offered)
        self.client.hears_result("init", offered)
        self.client.says(note("initialized"))
        self.server.hears("notifications/initialized")
        self.play.seen = len(self.play.log.records)
        return self

    def calls(self, frame: dict[str, Any], value: Any = None) -> Any:
        """A call that goes straight through; gives the client's result."""
        self.client.says(frame)
        heard = self.server.hears(frame["method"])
        self.server.answers(heard, text("ok") if value is None else value)
        return self.client.hears_result(frame["id"])

    def is_quiet(self) -> None:
        """Neither end heard anything that the script did not look at."""
        self.client.hears_nothing()
        for server in self.servers:
            server.hears_nothing()

    def leave(self, code: int = 0) -> None:
        """The client's input ends and its servers exit."""
        if not self.client.left:
            self.client.leaves()
        self.all_exit(code)

    def all_exit(self, code: int = 0) -> None:
        """Every server that still runs exits."""
        for server in self.servers:
            if not server.over:
                server.exits(code)

    def check(self) -> None:
        """Nothing is left of it."""
        talk = self.talk
        assert self.over, "the session did not end"
        for requests in (talk.to_server, talk.to_client):
            assert not requests._by_request, f"open: {[one.request_id for one in requests.all()]}"
            assert not requests._by_number
            assert not requests._by_token
        assert not talk.unsettled.suspended
        assert not talk._retired
        assert not talk._dropped
        assert not self.client.slots or self.client.handed_back, f"slots taken: {self.client.slots}"
        if not self.client.left:
            assert not self.client.asked, f"never answered: {dict(self.client.asked)}"


class Play:
    """A daemon's worth of parts around any number of sessions."""

    def __init__(self, config: str = CONFIG, *, store: Path) -> None:
        self.clock = Clock()
        self.log = Log()
        self.sent: set[str] = set()
        self.seen = 0
        self.events: list[tuple[str, str]] = []
        self.sessions: list[Session] = []
        self.store = Store(store, full=False)
        self.approved = Changes(self.store.db)
        self.limits = Limits()
        self.lanes = Lanes(self.clock.monotonic, self.clock.call_later, pause=lambda low, high: (low + high) / 2)
        self.desk = self._new_desk()
        self.scribe = _Scribe(self.log)
        runtime = self._read(config)
        self.shell = Shell(runtime, self.clock.monotonic, self.scribe, self.limits, self.lanes, self.desk)
        self.shell.tasks = OwnTasks(self.clock.wall)
        self.ids = CallIds()
        self.owners = Owners(":memory:")
        self.load = Load(self.owners)
        self.errors: list[str] = []
        self._handler = _Collect(self.errors)
        logging.getLogger("aegis").addHandler(self._handler)

    def _new_desk(self) -> Desk:
        return Desk(
            self.store,
            wall=self.clock.wall,
            call_later=self.clock.call_later,
            on_event=self._happened,
            unlike=self.approved.unlike,
        )

    def _happened(self, event: str, ticket: Ticket) -> None:
        self.events.append((event, ticket.id))
        if event == "approved":
            self.approved.approved(ticket, self.clock.wall())

    @property
    def runtime(self) -> Runtime:
        return self.shell.runtime

    def _read(self, config: str) -> Runtime:
        loaded = loads(config, "aegis.yaml")
        runtime = build(loaded.config, digest(loaded.config))
        self.lanes.configure(dict(runtime.lanes))
        self.desk.max_pending = runtime.pending_limit
        self.scribe.redact = runtime.transforms.logged if runtime.transforms is not None else None
        return runtime

    def be_impatient(self) -> None:
        """Clients are known for how long they wait, as in the daemon; else they wait as long as it takes."""
        self.shell.patience = Patience(self.store.db, self.clock.wall)

    def owns(self, *tasks: str, agent: str = "bot", backend: str = "files") -> None:
        """The agent started these tasks of the server at some time."""
        for task in tasks:
            self.owners.started(agent, backend, None, task)

    def reload(self, config: str) -> None:
        """As the daemon does it: everything new is built, then one reference is swapped."""
        self.shell.runtime = self._read(config)
        for session in self.sessions:
            if not session.over:
                session.talk.reloaded()

    def restart_desk(self) -> None:
        """What a restarted daemon does with the tickets on disk."""

        def reserve(ticket: Ticket) -> None:
            lease = self.limits.reserve(ticket.claims, self.clock.now) if ticket.claims else None
            ticket.lease = None if isinstance(lease, Deny) else lease

        for timer in self.desk._timers.values():
            timer.cancel()
        for ticket in self.desk.pending():
            self.desk.free(ticket)  # the old daemon's windows are gone with it
        self.desk = self.shell.desk = self._new_desk()
        self.shell.tasks = OwnTasks(self.clock.wall)
        self.desk.restore(reserve)

    def session(
        self,
        agent: str = "bot",
        backend: str = "files",
        *,
        with_server: bool = True,
        era: int = 0,
        handshake: bytes | None = None,
        initialized: bool = False,
        start: bool = True,
        shared: bool = False,
        handed: Handed | None = None,
    ) -> Session:
        """A new session, begun; `era`, `handshake` and `initialized` are what an earlier daemon left."""
        rule = self.runtime.agents.get(agent)
        client = Client(self, era, handshake, initialized)
        servers: list[Server] = []

        def start_server(talk: Conversation) -> Server:
            servers.append(Server(self, talk))
            return servers[-1]

        def ended(talk: Conversation) -> None:
            assert not session.over, "ended twice"
            session.over = True

        talk = Conversation(
            f"s{len(self.sessions)}",
            rule.principal if rule is not None else Principal(agent),
            backend,
            client,
            start_server if with_server else None,
            self.shell,
            self.clock,  # type: ignore[arg-type]
            ids=self.ids,
            load=self.load,
            on_end=ended,
            shared=shared,
            handed=handed,
        )
        client.talk = talk
        session = Session(self, client, talk, servers)
        self.sessions.append(session)
        if start:
            talk.start()
        return session

    def advance(self, seconds: float) -> None:
        """Time passes: timers fire in their order, and the daemon sweeps."""
        self.clock.advance(seconds, self.sweep)

    def sweep(self) -> None:
        """What the daemon does once a second."""
        for session in self.sessions:
            if not session.over:
                session.talk.sweep(self.clock.now)
        self.limits.sweep(self.clock.now)

    def recorded(self, *expected: Any) -> list[Any]:
        """The records since the last look are these: kinds, or dicts of the fields that matter."""
        new = self.log.records[self.seen :]
        self.seen = len(self.log.records)
        shown = [msgspec.to_builtins(one) for one in new]
        wanted = [{"kind": one} if isinstance(one, str) else one for one in expected]
        assert len(shown) == len(wanted), shown
        for one, want in zip(shown, wanted, strict=True):
            assert like({"would": False, "consumed": False, **one}, want), (one, want)
        return new

    def body(self, record: Any) -> Any:
        """What was written beside a record."""
        found = self.log.bodies[record.seq - 1]
        return None if found is None else json.loads(found)

    def ticket(self) -> Ticket:
        """The only ticket that waits."""
        (found,) = self.desk.pending()
        return found

    def used(self, agent: str = "bot") -> dict[str, tuple[int, int]]:
        """By tool (`*tool` for a limit over all agents): how many calls count, and how many are under way."""
        found = {}
        for claim in self.runtime.claims:
            if claim.agent not in (None, agent):
                continue
            usage = self.limits.usage(claim, self.clock.now)
            found[claim.tool if claim.agent else f"*{claim.tool}"] = (usage.current, usage.reserved)
        return found

    def finish(self) -> None:
        """The end of every script: all servers exit, three days pass, and nothing is left anywhere."""
        logging.getLogger("aegis").removeHandler(self._handler)
        self.log.unavailable = None
        self.log.durable = True
        self.log.sync()
        self.store.failing = False
        for session in self.sessions:
            session.is_quiet()
        for session in self.sessions:
            if not session.client.reads and not session.client.gone:
                session.client.reads_again()
            if not session.over:
                session.all_exit()
            if not session.over:
                session.leave()
        self.advance(FOREVER)
        for session in self.sessions:
            session.check()
        self.store.close()
        assert not self.load._open, f"in flight: {self.load._open}"
        for window in self.limits:
            assert window.reserved == 0, f"still reserved: {window.claim}"
        assert not any(budget.reserved for budget in self.limits._budgets.values())
        assert not self.lanes.rows(), self.lanes.rows()
        assert not self.desk._open, [(one.id, one.state) for one in self.desk._open.values()]
        assert not self.desk._by_digest
        assert not self.desk._timers
        assert not self.clock.waiting, f"{len(self.clock.waiting)} timers are left"
        for one in self.scribe.calls:
            intents = self.log.of(one.id, "intent")
            ends = [r for r in self.log.of(one.id, "outcome", "denied") if _is_end(r)]
            missed = [r for r in self.log.refused if getattr(r, "call", "") == one.id and _is_end(r)]
            assert len(intents) <= 1
            assert len(ends) + len(missed) == 1, f"{one.method} {one.name} has the ends {ends} {missed}"
            assert bool(intents) or not self.log.of(one.id, "outcome")
            assert (one.id in self.sent) <= bool(intents)
        assert not self.errors, self.errors


def _is_end(record: Any) -> bool:
    return record.kind == "outcome" or (record.kind == "denied" and not record.would)


class _Collect(logging.Handler):
    """Faults that were only logged are faults all the same."""

    def __init__(self, into: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._into = into

    def emit(self, record: logging.LogRecord) -> None:
        self._into.append(self.format(record))
