"""Sessions over several backends, as scripts: `playbook` with a hub in the middle and a server for every backend.

s = HubSession(make_play(CONFIG), ["git", "mail"]).handshake()
s.client.says(call(7, "git__log"))
s["git"].answers(s["git"].hears("tools/call", name="log"))
s.client.hears_result(7)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from playbook import Client, Play, Server, _End, note, request

from aegis_daemon.core.principal import Principal
from aegis_daemon.core.session import OpenRequests
from aegis_daemon.relay.branch import Branch
from aegis_daemon.relay.conversation import Conversation
from aegis_daemon.relay.hub import Hub
from aegis_daemon.relay.lateness import Lateness
from aegis_daemon.wire.jsonrpc import parse

CONFIG = """
backends: {git: {}, mail: {}}
agents: {bot: {backends: {git: {allowed: true}, mail: {allowed: true}}}}
"""
KEY = b"k" * 32
EVERYTHING = {"tools": {}, "prompts": {}, "resources": {"subscribe": True}, "logging": {}, "completions": {}}


class Front(Client):
    """The agent's end, with a hub behind it."""

    hub: Hub

    def is_new(self, id: Any) -> bool:
        return id not in self.hub._by_id

    def dies(self) -> None:
        self.left = True
        self.abandon()
        self.hub.client_left()

    def _heard_request(self, frame: dict[str, Any], requests: OpenRequests) -> None:
        """Its id is the hub's; that it finds its way back is seen from the server."""

    def _take(self, frame: bytes, slot: int) -> None:
        self._heard(frame, None)  # type: ignore[arg-type]
        self.free_slot(slot)


class BackendServer(Server):
    """A server whose conversation has a branch for its client."""

    def _heard_request(self, frame: dict[str, Any], requests: OpenRequests) -> None:
        _End._heard_request(self, frame, requests)


class HubSession:
    """One hub with its client, and the servers that were started for each backend."""

    def __init__(
        self,
        play: Play,
        names: Sequence[str] = ("git", "mail"),
        *,
        agent: str = "bot",
        key: bytes = KEY,
        lateness: Lateness | None = None,
        shared: bool = False,
    ) -> None:
        self.play = play
        self.over = False
        self.servers: dict[str, list[BackendServer]] = {name: [] for name in names}
        self.talks: list[Conversation] = []
        self.failing: dict[str, Exception] = {}
        """what opening a backend raises"""
        self.unstartable: dict[str, str] = {}
        """why its process cannot be begun"""
        self.client = Front(play)
        rule = play.runtime.agents.get(agent)
        self.principal = rule.principal if rule is not None else Principal(agent)
        self.shared = shared
        self.hub = Hub(
            f"h{len(play.sessions)}",
            self.principal,
            list(names),
            self.client,
            self._open,
            play.shell,
            play.clock,  # type: ignore[arg-type]
            ids=play.ids,
            key=key,
            lateness=lateness or Lateness(),
            shared=shared,
            on_end=self._ended,
        )
        self.client.hub = self.hub
        self.client.on_line = lambda line, end: self.hub.hear(parse(line), end)
        play.sessions.append(self)  # type: ignore[arg-type]
        self.client.start()

    @property
    def talk(self) -> HubSession:
        """As `playbook` asks for it, to sweep and to tell of a reload."""
        return self

    def sweep(self, now: float) -> None:
        for talk in list(self.talks):
            talk.sweep(now)

    def reloaded(self) -> None:
        for talk in list(self.talks):
            talk.reloaded()

    def _ended(self, hub: Hub) -> None:
        assert not self.over, "ended twice"
        self.over = True

    def _open(self, name: str, branch: Branch) -> Conversation:
        if name in self.failing:
            raise self.failing[name]

        def start(talk: Conversation) -> BackendServer:
            if name in self.unstartable:
                raise OSError(0, self.unstartable[name])
            self.servers[name].append(BackendServer(self.play, talk))
            return self.servers[name][-1]

        talk = Conversation(
            f"{self.hub.session}.{name}",
            self.principal,
            name,
            branch,
            start,
            self.play.shell,
            self.play.clock,  # type: ignore[arg-type]
            ids=self.play.ids,
            load=self.play.load,
            shared=self.shared,
            on_end=self.talks.remove,
        )
        self.talks.append(talk)
        talk.start()
        return talk

    def __getitem__(self, name: str) -> BackendServer:
        """The newest server of a backend."""
        return self.servers[name][-1]

    def each(self, does: Callable[[BackendServer], Any]) -> list[Any]:
        """Something with the newest server of every backend, in their order."""
        return [does(self[name]) for name in self.servers]

    def handshake(self, offers: dict[str, Any] | None = None, capabilities: Any = None) -> HubSession:
        """The legacy handshake with every backend; `offers` by name are their capabilities, else everything."""
        params = {"protocolVersion": "2025-11-25", "capabilities": capabilities or {}, "clientInfo": {}}
        self.client.says(request("init", "initialize", **params))
        for name in self.servers:
            self.joins(name, (offers or {}).get(name, EVERYTHING))
        self.client.hears_result("init")
        self.client.says(note("initialized"))
        self.each(lambda server: server.hears("notifications/initialized"))
        self.play.seen = len(self.play.log.records)
        return self

    def joins(self, name: str, offers: Any = None, version: str = "2025-11-25", **more: Any) -> None:
        """A backend takes the handshake up."""
        heard = self[name].hears("initialize")
        offered = EVERYTHING if offers is None else offers
        self[name].answers(heard, {"protocolVersion": version, "capabilities": offered, "serverInfo": {}, **more})

    def is_quiet(self) -> None:
        """Nobody heard anything that the script did not look at."""
        self.client.hears_nothing()
        for servers in self.servers.values():
            for server in servers:
                server.hears_nothing()

    def all_exit(self, code: int = 0) -> None:
        for servers in self.servers.values():
            for server in servers:
                if not server.over:
                    server.exits(code)

    def leave(self, code: int = 0) -> None:
        if not self.client.left:
            self.client.leaves()
        self.all_exit(code)

    def check(self) -> None:
        """Nothing is left of it."""
        assert self.over, "the session did not end"
        assert not self.talks
        hub = self.hub
        assert not hub._branches
        assert not hub._open
        assert not hub._by_id
        assert not hub._asks._open
        assert not hub._dropped
        assert not self.client.slots, f"slots taken: {self.client.slots}"
        if not self.client.left:
            assert not self.client.asked, f"never answered: {dict(self.client.asked)}"
