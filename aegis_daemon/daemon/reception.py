"""Who comes in over the network is admitted by path and token, and talks to one backend or to a hub of several."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Set
from typing import Any
from weakref import WeakSet

from aegis_daemon.core.ports import Party, Turned
from aegis_daemon.core.principal import Principal
from aegis_daemon.core.runtime import BackendRule
from aegis_daemon.core.verdict import Reason
from aegis_daemon.daemon.sessions import Sessions
from aegis_daemon.manage.web import Throttle, network_of
from aegis_daemon.relay.admission import MAX_NAME, Refused, plan_remote
from aegis_daemon.relay.carry import Shell
from aegis_daemon.relay.conversation import Conversation
from aegis_daemon.relay.hub import Hub
from aegis_daemon.relay.ports import Client
from aegis_daemon.relay.refusing import refused_request
from aegis_daemon.stages.acl import UNCONFIGURED
from aegis_daemon.transports.guard import shows
from aegis_daemon.wire.errors import REFUSALS
from aegis_daemon.wire.jsonrpc import Frame, Kind, error_frame
from aegis_daemon.wire.methods import Era, era_of

_log = logging.getLogger("aegis.http")
_DENIED = REFUSALS["acl"].legacy
_BUSY = REFUSALS["queue"].legacy
MOST_NAMES = 64
"""How many invented names of agents are recorded a second."""
WRONG_TOKENS = "20 per minute"
"""Wrong tokens that one address may show before it is told to wait; a right one is taken even then, since an agent
shares its address with whoever guesses."""
AGAIN_S = 60.0
"""After how long a backend that is late is tried again for those who have gone on without it."""
AGAIN_MOST = 20
"""How many sessions a second begin with one that is well again."""

STRANGER = (
    "no agent is admitted under this name with what it showed; send its `auth_token` with each request "
    "(`Authorization: Bearer TOKEN`), or ask whoever runs Aegis: `aegis audit tail` says more"
)
"""What everybody hears who is not admitted, so that nobody learns which agents there are."""
_NOBODYS = bytes(32)


def _turned_away(turned: Turned) -> str:
    return f"turned away with status {turned.status}" + (f": {turned.detail}" if turned.detail else "")


class Reception:
    """See `core.ports.Reception`."""

    def __init__(self, sessions: Sessions, shell: Shell) -> None:
        self._sessions = sessions
        self._shell = shell
        self._wrong = Throttle(WRONG_TOKENS)
        self._key = os.urandom(32)
        self._count = 0
        self._dropped: Counter[tuple[str, str, str, str]] = Counter()
        self._agents = shell.runtime.agents
        """as they were when those who are in were admitted"""
        self._backends = shell.runtime.backends
        """as the hubs know them"""
        self._hubs: set[Hub] = set()
        self._tried: dict[str, float] = {}
        self._single: WeakSet[Conversation] = WeakSet()
        """sessions at an agent's own address, which had one backend when they began"""

    def admit(self, agent: str, token: str | None, peer: str) -> Principal:
        """See `core.ports.Reception`. Who is turned away is recorded."""
        try:
            return self._admit(agent, token, peer)
        except Turned as turned:
            known = agent in self._shell.runtime.agents or len(self._dropped) < MOST_NAMES
            name = ascii(agent[:MAX_NAME])[1:-1] if known else "(others)"
            self._dropped[name, "", "", _turned_away(turned)] += 1
            raise

    def _admit(self, agent: str, token: str | None, peer: str) -> Principal:
        runtime = self._shell.runtime
        if self._sessions.stopping:
            raise Turned(503, _BUSY, "the daemon stops; try again in a moment")
        rule = runtime.agents.get(agent)
        if rule is None:
            if len(agent) > MAX_NAME or not agent.isprintable():
                raise Turned(404, _DENIED, f"the name of the agent is over {MAX_NAME} characters, or cannot be seen")
            if not (runtime.unlisted_open or runtime.pipeline.observe):
                if not runtime.agents:  # so there is no name to be guessed, and somebody begins
                    raise Turned(403, _DENIED, UNCONFIGURED, reason="backend_not_allowed")
                raise self._stranger(token, None, peer, "it is not in `agents`")
            return Principal(agent)
        if rule.token is None:
            if rule.uids is not None:
                why = "it belongs to system users; give it an `auth_token`, or connect it through `aegis-wrap`"
                raise self._stranger(token, None, peer, why)
            return rule.principal
        if token is not None and shows(token, rule.token):
            return rule.principal
        raise self._stranger(token, rule.token, peer, "it showed no token" if token is None else "a wrong token")

    def _stranger(self, token: str | None, right: bytes | None, peer: str, why: str) -> Turned:
        """The same answer, after the same work, whether there is such an agent or not; `why` is for the log alone."""
        if token is not None:
            if right is None:
                shows(token, _NOBODYS)
            if self._wrong.blocked_s(network_of(peer)):
                return Turned(429, _DENIED, "too many wrong tokens from this address; wait a minute", detail=why)
            self._wrong.failed(network_of(peer))
        return Turned(401, _DENIED, STRANGER, detail=why)

    def still(self, principal: Principal) -> bool:
        """Whether who was admitted as this, with what was shown then, would be today; asked before `reloaded`."""
        runtime = self._shell.runtime
        rule, before = runtime.agents.get(principal.agent), self._agents.get(principal.agent)
        if rule is None:
            return before is None and (runtime.unlisted_open or runtime.pipeline.observe)
        if rule.principal != principal or rule.token != (None if before is None else before.token):
            return False
        return rule.token is not None or rule.uids is None

    def reloaded(self) -> tuple[str, ...]:
        """Who is in now was admitted by today's rules, and has today's backends. Gives who has not, in words."""
        runtime = self._shell.runtime
        before, self._backends = self._backends, runtime.backends
        others = {name for name, rule in runtime.backends.items() if not _same_server(rule, before.get(name))}
        self._agents = runtime.agents
        for name in (*others, *(before.keys() - runtime.backends.keys())):
            self._sessions.lateness.forget(name)
        for hub in list(self._hubs):
            hub.reloaded(runtime.routes(hub.principal.agent), others)
        told: Counter[tuple[str, str]] = Counter()
        for one in self._single:
            if one.server is not None and len(runtime.routes(one.principal.agent)) > 1:
                told[one.principal.agent, one.backend] += 1
        return tuple(
            f"{number} session{'s' * (number != 1)} of `{agent}` at `/agents/{agent}/mcp` began when it had "
            f"`{backend}` alone, whose names have no prefix: the others are reached by sessions that begin from now on"
            for (agent, backend), number in sorted(told.items())
        )

    @property
    def late(self) -> Set[str]:
        """Backends that sessions with several do not wait for."""
        return self._sessions.lateness.since().keys()

    def suits(self, principal: Principal, backend: str | None, party: Party) -> bool:
        """See `core.ports.Reception`."""
        if backend is not None:
            return True
        names = self._shell.runtime.routes(principal.agent)
        if len(names) > 1:
            return isinstance(party, Hub)
        return isinstance(party, Conversation) and (party.backend,) == names

    def begin(self, principal: Principal, backend: str | None, client: Any, *, shared: bool) -> Party:
        """See `core.ports.Reception`."""
        if backend is not None:
            return self._open(principal, backend, client, shared=shared)
        names = self._shell.runtime.routes(principal.agent)
        if not names:
            raise Turned(
                403,
                _DENIED,
                "no backend is available to this agent",
                reason="backend_not_allowed",
                detail=f"`agents.{principal.agent}.backends` allows none that has a `url` or a `command`",
            )
        if len(names) == 1:
            single = self._open(principal, names[0], client, shared=shared)
            if not shared:
                self._single.add(single)
            return single

        def open_branch(name: str, branch: Client) -> Conversation:
            planned = plan_remote(principal, name, self._shell.runtime, os.environ)
            return self._sessions.open(planned, branch, client.way, shared=shared, leg=True)

        try:
            self._sessions.enter(principal.agent)
        except Refused as refused:
            raise self._no_session(principal, refused) from None
        self._count += 1

        def ended(hub: Hub) -> None:
            self._hubs.discard(hub)
            self._sessions.leave(principal.agent)

        hub = Hub(
            f"h{self._count:x}-{os.urandom(3).hex()}",
            principal,
            names,
            client,
            open_branch,
            self._shell,
            self._sessions.loop,
            ids=self._sessions.ids,
            key=self._key,
            lateness=self._sessions.lateness,
            shared=shared,
            on_end=ended,
        )
        self._hubs.add(hub)
        return hub

    def _open(self, principal: Principal, backend: str, client: Any, *, shared: bool) -> Conversation:
        runtime = self._shell.runtime
        if len(backend) > MAX_NAME or not backend.isprintable():
            raise Turned(404, _DENIED, f"the name of the backend is over {MAX_NAME} characters, or cannot be seen")
        try:
            planned = plan_remote(principal, backend, runtime, os.environ)
            return self._sessions.open(planned, client, client.way, shared=shared)
        except Refused as refused:
            raise self._no_session(principal, refused) from None

    @staticmethod
    def _no_session(principal: Principal, refused: Refused) -> Turned:
        _log.warning("refused a session of `%.128s`: %.1000s", principal.agent, refused.detail)
        return Turned(403, _DENIED, str(refused), detail=refused.detail)

    def apart(self, principal: Principal, backend: str | None) -> bool:
        """See `core.ports.Reception`."""
        if backend is not None:
            return not self._sessions.is_modern(backend)
        return not all(map(self._sessions.is_modern, self._shell.runtime.routes(principal.agent)))

    def dropped(self, principal: Principal, backend: str | None, session: str, reason: str) -> None:
        """See `core.ports.Reception`. One record a second at most and kind."""
        self._dropped[principal.agent, backend or "", session, reason] += 1

    def refused(self, principal: Principal, backend: str | None, turned: Turned, frame: Frame | None) -> bytes:
        """See `core.ports.Reception`."""
        if turned.status == 404:  # for its name, which cannot be recorded
            backend = None
        if frame is None or frame.kind is not Kind.REQUEST:
            self.dropped(principal, backend, "", _turned_away(turned))
            text = f"{turned.text}; a person sees why with `aegis audit tail`"
            return error_frame(b"null", turned.code, text, {"by": "aegis"})
        return refused_request(
            frame,
            era_of(frame.method, frame.params, Era.NONE),
            Reason("acl", turned.text, code=turned.reason, detail=turned.detail),
            self._shell,
            id=self._sessions.ids(),
            session="",
            principal=principal,
            backend=backend or "",
        )

    def sweep(self) -> None:
        """Once a second."""
        if self._dropped:
            counts, self._dropped = self._dropped, Counter()
            for (agent, backend, session, reason), count in counts.items():
                self._shell.audit.dropped(agent, backend, session, "to_server", reason, count)
        missing = [hub for hub in self._hubs if hub.missing]
        if missing:
            self._try_again(missing)

    def _try_again(self, hubs: list[Hub]) -> None:
        """One session tries a backend that is late; where it is well again, the others follow."""
        late, now, left = self._sessions.lateness.since(), self._shell.now(), AGAIN_MOST
        for hub, name in [(one, name) for one in hubs for name in one.missing]:
            if name not in late:
                if not left:
                    continue
                left -= 1
            elif now < self._tried.get(name, 0.0):
                continue
            else:
                self._tried[name] = now + AGAIN_S
            hub.again(name)


def _same_server(one: BackendRule, other: BackendRule | None) -> bool:
    if other is None:
        return False
    keys = ("command", "env", "cwd", "url", "transport", "headers")
    return all(getattr(one, key) == getattr(other, key) for key in keys)
