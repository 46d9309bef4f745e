"""All that is served at addresses: agents' sessions, the management API, the approval page, and who is healthy."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from aegis_daemon.backends.http_client import HttpPool
from aegis_daemon.config.load import Config, reveal
from aegis_daemon.config.schema import OFF
from aegis_daemon.core.ports import Fault
from aegis_daemon.daemon.reception import Reception
from aegis_daemon.daemon.reload import InForce
from aegis_daemon.loop.clock import monotonic
from aegis_daemon.loop.descriptor import Outbox
from aegis_daemon.manage.api import Governor
from aegis_daemon.manage.client import UNSERVED
from aegis_daemon.manage.web import Access, Paging, Web
from aegis_daemon.transports.guard import Guard
from aegis_daemon.transports.http import Exchange, Port
from aegis_daemon.transports.sse import Sse
from aegis_daemon.transports.streamable_http import StreamableHttp
from aegis_daemon.transports.websocket import WebSockets

_log = logging.getLogger("aegis.http")
HEALTH_S = 5.0
"""How long a backend may take to say how it is."""
LATE = "unhealthy: it does not answer sessions in time"


class Network:
    """Opened once everything behind it is there, closed before that goes."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        outbox: Outbox,
        reception: Reception,
        pool: HttpPool,
        in_force: Callable[[], InForce],
    ) -> None:
        self._loop = loop
        self._outbox = outbox
        self._reception = reception
        self._pool = pool
        self._in_force = in_force
        self._streamable = StreamableHttp(reception, monotonic)
        self._sse = Sse(reception, monotonic)
        self._sockets = WebSockets(reception, outbox, monotonic)
        self._port: Port | None = None
        self._page: Port | None = None
        self.trouble: tuple[str, ...] = ()
        """what a status says of an address that could not be had"""

    @property
    def address(self) -> str | None:
        """Where agents and people reach it, once it is open."""
        return self._port.address if self._port is not None else None

    async def open(self, governor: Governor) -> None:
        """Listens. Raises `OSError` for an address of the configuration that cannot be had.

        The default one may be another daemon's already; then nothing is served, and a warning says so.
        """
        config = self._in_force().config
        if config.server.listen == OFF:
            return
        host = config.server.listen.rpartition(":")[0]
        guard = Guard(_hosts(config, host), config.server.allowed_origins)
        web = Web(governor, access=self._access, paging=self._paging, probe=self.health, refuses=guard.refuses)
        port = self._make(web.app, guard, serve=self._serve, upgraded=self._sockets.upgraded)
        try:
            await self._listen(port, config.server.listen, "server.listen")
        except OSError as error:
            if "listen" in config.server.model_fields_set:
                raise
            self.trouble = (f"{UNSERVED}: {error}",)
            _log.warning("%s", self.trouble[0])
        else:
            self._port = port
            _log.info("http is served at http://%s", port.address)
        if config.approval.listen is not None:
            host = config.approval.listen.rpartition(":")[0]
            guard = Guard(_hosts(config, host))
            page = self._make(web.page_app, guard, serve=_no_agents_here, upgraded=lambda *request: False)
            await self._listen(page, config.approval.listen, "approval.listen")
            self._page = page

    def _make(self, app: Any, guard: Guard, *, serve: Any, upgraded: Any) -> Port:
        server = self._in_force().config.server
        return Port(
            self._loop,
            self._outbox,
            app,
            guard,
            serve=serve,
            upgraded=upgraded,
            read_s=server.read_timeout,
            write_s=server.write_timeout,
        )

    async def _listen(self, port: Port, address: str, setting: str) -> None:
        host, _, number = address.rpartition(":")
        try:
            await port.open(host.strip("[]"), int(number))
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise OSError(f"cannot listen at {address}: {why}; set `{setting}` to another address") from None

    def _access(self) -> Access:
        server = self._in_force().config.server
        return Access(server.api_token, server.read_token, server.insecure_open_api)

    def _paging(self) -> Paging:
        approval = self._in_force().config.approval
        return Paging(approval.confirm == "code", approval.get_decides)

    def _serve(self, exchange: Exchange) -> None:
        door = exchange.route.door
        if door == "mcp":
            self._streamable.serve(exchange)
        elif door in ("sse", "messages"):
            self._sse.serve(exchange)
        else:
            _no_agents_here(exchange)

    async def health(self) -> Mapping[str, str]:
        """What each backend says of itself, or sessions of it: `healthy`, `no_health_url` or `unhealthy: …`."""
        backends = self._in_force().config.backends
        asked = [self._ask(reveal(one.health_url)) for one in backends.values() if one.health_url is not None]
        answers = iter(await asyncio.gather(*asked))
        said = {
            name: next(answers) if one.health_url is not None else "no_health_url" for name, one in backends.items()
        }
        late = dict.fromkeys(self._reception.late & said.keys(), LATE)
        return said | {name: why for name, why in late.items() if not said[name].startswith("unhealthy")}

    async def _ask(self, url: str) -> str:
        try:
            response = await self._pool.fetch("GET", url, timeout=HEALTH_S, limit=1 << 20)
        except (Fault, ValueError) as error:
            return f"unhealthy: {str(error).replace('; not executed', '')}"
        return "healthy" if 200 <= response.status < 300 else f"unhealthy: status {response.status}"

    def sweep(self) -> None:
        """Once a second."""
        for one in (self._streamable, self._sse, self._sockets, self._reception, self._port, self._page):
            try:
                if one is not None:
                    one.sweep()
            except Exception:  # the others' time goes on all the same
                _log.exception("a sweep of %s failed", type(one).__name__)

    def reloaded(self) -> tuple[str, ...]:
        """The rules changed: whoever would not be admitted any more is turned out. Gives what goes on as it was."""
        for sessions in (self._streamable, self._sse, self._sockets):
            sessions.turn_out(self._reception.still)
        self._streamable.begin_anew()
        return self._reception.reloaded()

    def stop(self) -> None:
        """The daemon ends: streams that wait for nothing but news end with it."""
        self._streamable.stop("the daemon stops")

    async def close(self, grace: float) -> None:
        """Ends every connection, what is under way after `grace` seconds."""
        for port in (self._port, self._page):
            if port is not None:
                await port.close(grace)


def _hosts(config: Config, host: str) -> list[str]:
    """The names by which requests may call an address."""
    names = [*config.server.allowed_hosts, socket.gethostname(), host.strip("[]")]
    base = config.approval.callback_base_url
    if base is not None:
        names.append(urlsplit(reveal(base)).hostname or "")
    return [name for name in names if name]


def _no_agents_here(exchange: Exchange) -> None:
    exchange.reply(404, b'{"error":"no such address; agents are at `/agents/AGENT/mcp`"}')
