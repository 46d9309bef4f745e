"""A backend is opened as it is for a session, greeted, and asked for its tools; nothing that it has is ever called."""

from __future__ import annotations

import asyncio
import os
from math import ceil
from typing import Any, Final

from aegis_daemon import __version__
from aegis_daemon.core.ports import Fault
from aegis_daemon.core.principal import Principal
from aegis_daemon.core.runtime import BackendRule
from aegis_daemon.daemon.servers import Servers
from aegis_daemon.loop.clock import monotonic
from aegis_daemon.manage import shapes
from aegis_daemon.relay.admission import Plan, Refused, plan_own
from aegis_daemon.relay.eras.frames import UNREADABLE, note, part, request
from aegis_daemon.relay.ports import Backend
from aegis_daemon.wire.errors import METHOD_NOT_FOUND
from aegis_daemon.wire.jsonrpc import (
    Answer,
    Kind,
    WireFault,
    error_frame,
    id_text,
    parse_from_server,
    result_frame,
)
from aegis_daemon.wire.methods import LEGACY_VERSIONS, MODERN_VERSION

PATIENCE_S: Final = 50.0
"""For all of it: a program that installs its server first may take longer, and is to be run by hand once."""
PAGES: Final = 50
AT_ONCE: Final = 4
"""Backends that are probed at the same time."""
_TEXT: Final = 120
_WHO: Final = Principal("aegis")
"""Who opens the session; no agent, and in no record of a call."""


class Prober:
    """Opens one backend after another, and says what came of it."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self._slots = asyncio.Semaphore(AT_ONCE)

    def plan(self, backend: str, rule: BackendRule) -> Plan:
        """How it would be opened. Raises `admission.Refused` where only a shim can bring it."""
        try:
            return plan_own(_WHO, backend, rule, os.environ)
        except Refused as refused:  # a person asks, who is told what would let it in
            raise Refused(refused.detail) from None

    async def probe(self, planned: Plan) -> shapes.BackendProbe:
        """What it says of itself, or why it does not."""
        backend = planned.backend
        found = shapes.BackendProbe(backend_id=backend, ok=False)
        heard = _Heard()
        began = monotonic()
        try:
            async with asyncio.timeout(PATIENCE_S), self._slots:
                began = monotonic()
                heard.server = self._servers.start(heard, planned)
                said = await heard.asks("initialize", {
                    "protocolVersion": LEGACY_VERSIONS[-1], "capabilities": {},
                    "clientInfo": {"name": "aegis", "version": __version__},
                })  # fmt: skip
                took = monotonic() - began
                heard.server.send(*note("notifications/initialized", {}))
                who = part(said, "serverInfo")
                modern = self._servers.is_modern(backend)
                found = found.model_copy(update={
                    "latency_ms": ceil(took * 1000), "era": "modern" if modern else "legacy",
                    "server_name": _text(who.get("name")), "server_version": _text(who.get("version")),
                    "protocol_version": MODERN_VERSION if modern else _text(said.get("protocolVersion")),
                })  # fmt: skip
                began = monotonic()
                if "tools" in part(said, "capabilities"):
                    count, more = await _tools(heard)
                    found = found.model_copy(update={"tools": count, "more": more})
                return found.model_copy(update={"ok": True, "tools_ms": ceil((monotonic() - began) * 1000)})
        except TimeoutError:
            why = f"it did not answer within {PATIENCE_S:g} s"
        except Fault as fault:
            why = fault.text.removeprefix(f"the backend `{backend}`: ").removesuffix("; not executed")
        except (OSError, ValueError) as error:
            why = str(error) or type(error).__name__
        finally:
            heard.end()
        return found.model_copy(update={"detail": why})


async def _tools(heard: _Heard) -> tuple[int, bool]:
    """How many, and whether there are more than were asked for. Raises `Fault`."""
    count, cursor = 0, None
    for _ in range(PAGES):
        said = await heard.asks("tools/list", {} if cursor is None else {"cursor": cursor})
        tools = said.get("tools")
        if type(tools) is not list:
            raise Fault("bad_answer", "its answer to `tools/list` is none")
        count += len(tools)
        cursor = said.get("nextCursor")
        if cursor is None:
            return count, False
    return count, True


def _text(said: Any) -> str:
    return said[:_TEXT] if type(said) is str else ""


class _Heard:
    """In place of a conversation: one request at a time, and a no to whatever the server asks."""

    def __init__(self) -> None:
        self.server: Backend | None = None
        self._number = 0
        self._answer: asyncio.Future[Answer] | None = None
        self._fault: Fault | None = None
        """why nothing more comes"""

    async def asks(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """The result. Raises `Fault`."""
        if self._fault is not None:
            raise self._fault
        assert self.server is not None
        self._number += 1
        self._answer = asyncio.get_running_loop().create_future()
        self.server.send(*request(self._number, method, params))
        answer = await self._answer
        try:
            said = answer.value()
        except UNREADABLE:
            said = None
        if answer.ok and type(said) is dict:
            return said
        text = _text(said.get("message")) if type(said) is dict else ""
        raise Fault("bad_answer", f"it answers `{method}` with an error: {text}" if text
                    else f"its answer to `{method}` is none")  # fmt: skip

    def end(self) -> None:
        """The session is over; what is still said goes nowhere."""
        if self._answer is not None:
            self._answer.cancel()
        if self.server is not None:
            self.server.end()
            self.server = None

    def _fail(self, fault: Fault) -> None:
        self._fault = self._fault or fault
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_exception(fault)

    # --- what the server's end says; see `servers.Hears` ---------------------------------------------------------

    def server_lines(self, server: Backend, lines: list[bytes], about: int | None = None) -> None:
        """Answers, and what the server asks."""
        for line in lines:
            try:
                frame = parse_from_server(line)
            except WireFault:
                continue  # it waits on for one that can be read
            if isinstance(frame, Answer):
                answer = self._answer
                if answer is not None and frame.id == self._number and not answer.done():
                    answer.set_result(frame)
                continue
            if frame.kind is Kind.REQUEST and frame.id is not None and self.server is not None:
                id = id_text(frame.id)
                refused = error_frame(id, METHOD_NOT_FOUND, "nobody is here to be asked")
                server.send(result_frame(id, b"{}") if frame.method == "ping" else refused)

    def server_long(self, server: Backend, head: bytes, tail: bytes) -> None:
        """An answer over the limit."""
        self._fail(Fault("answer_too_large", "its answer is larger than 10 MB"))

    def server_lost(self, server: Backend, number: int, fault: Fault) -> None:
        """No answer."""
        self._fail(fault)

    def server_full(self, server: Backend, full: bool) -> None:
        """Three small frames wait for nobody."""

    def server_exited(self, server: Backend, code: int) -> None:
        """The end of the process."""
        self.server = None
        how = f"by signal {-code}" if code < 0 else f"with status {code}"
        self._fail(Fault("server_exited", f"it ended ({how}) before it answered"))

    def server_failed(self, server: Backend, text: str) -> None:
        """It could not be started."""
        self.server = None
        self._fail(Fault("server_not_started", text, not_executed=True))
