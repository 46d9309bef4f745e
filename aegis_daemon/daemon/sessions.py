"""Every agent's end becomes a conversation with a server of its own, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator

import msgspec

from aegis_daemon.daemon.servers import STDERR, Servers
from aegis_daemon.loop.clock import monotonic, wall
from aegis_daemon.loop.descriptor import Outbox
from aegis_daemon.manage import ancestry
from aegis_daemon.relay.admission import Plan, Refused, plan, plan_remote
from aegis_daemon.relay.carry import Shell
from aegis_daemon.relay.conversation import Conversation
from aegis_daemon.relay.lateness import Lateness
from aegis_daemon.relay.load import CallIds, Load
from aegis_daemon.relay.ports import Backend, Client, StartServer
from aegis_daemon.relay.task_owners import Owners
from aegis_daemon.transports.ledger import BadLedger
from aegis_daemon.transports.shim_client import ShimClient
from aegis_daemon.transports.unix_relay import Attachment
from aegis_shim import hello as greeting

_log = logging.getLogger("aegis.sessions")


class Session(msgspec.Struct):
    """One agent's end and its conversation. `agent_process` is the process that started the shim: the agent itself.

    `planned` is what its server was made by, and `plan` makes the same by today's rules (raises `Refused`).
    A `leg` of a hub is none of its agent's places: the hub has one for all of its legs.
    """

    conversation: Conversation
    client: Client
    way: str
    shim_pid: int | None
    agent_process: ancestry.Process | None
    since: float
    planned: Plan
    plan: Callable[[], Plan]
    stderr: int = STDERR
    leg: bool = False


class Sessions:
    """All of them."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, shell: Shell, servers: Servers, outbox: Outbox, owners: Owners
    ) -> None:
        self.loop = loop
        self._shell = shell
        self._servers = servers
        self._outbox = outbox
        self.ids = CallIds()
        self.lateness = Lateness()
        self._load = Load(owners)
        self._own_uid = os.geteuid()
        self._sessions: dict[str, Session] = {}
        self._places: Counter[str] = Counter()
        """taken, by agent"""
        self._count = 0
        self.stopping = False

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._sessions.values()))

    def attach(self, attachment: Attachment) -> None:
        """A shim greeted."""
        hello, peer = attachment.hello, attachment.peer
        if self.stopping:
            attachment.control.say(greeting.say_bye(True))
            attachment.control.close()
            attachment.close_descriptors()
            return
        try:
            runtime = self._shell.runtime
            planned = plan(hello, peer.uid, self._own_uid, runtime, os.environ, attachment.door)
            self._check_room(planned.principal.agent)
            client = ShimClient(self.loop, self._outbox, attachment, own_uid=self._own_uid)
        except (Refused, BadLedger) as refused:
            why = refused.detail if isinstance(refused, Refused) else refused
            _log.warning("refused a session of `%.128s`: %.1000s", hello.agent, why)
            attachment.refuse(str(refused))
            return
        stderr = attachment.stderr
        try:
            conversation = self._make(planned, client, stderr, bridged=False)
        except ValueError as fault:
            attachment.refuse(f"`backends.{planned.backend}`: {fault}")
            return
        above = ancestry.parent(peer.pid) if peer.pid is not None else None
        uid, door = peer.uid, attachment.door

        def again() -> Plan:
            return plan(hello, uid, self._own_uid, self._shell.runtime, os.environ, door)

        self._sessions[conversation.session] = Session(
            conversation, client, hello.way, peer.pid, above, wall(), planned, again, stderr
        )
        self._places[planned.principal.agent] += 1
        attachment.control.on_gone = conversation.shim_gone
        attachment.control.say(greeting.say_ok(conversation.session, hello.way))
        agent = planned.principal.agent
        _log.info("session %s: `%s` to `%s` by %s", conversation.session, agent, planned.backend, hello.way)
        conversation.start()

    def open(self, planned: Plan, client: Client, way: str, *, shared: bool, leg: bool = False) -> Conversation:
        """A session for an agent's end that came over the network. Raises `Refused`.

        The `leg` of a hub always has room: who took a place with `enter` is given all of its backends, or none.
        """
        if not leg:
            self._check_room(planned.principal.agent)
        conversation = self._make(planned, client, STDERR, bridged=True, shared=shared)

        def again() -> Plan:
            return plan_remote(planned.principal, planned.backend, self._shell.runtime, os.environ)

        self._sessions[conversation.session] = Session(
            conversation, client, way, None, None, wall(), planned, again, leg=leg
        )
        self._places[planned.principal.agent] += not leg
        _log.info("session %s: `%s` to `%s` by %s", conversation.session, planned.principal.agent, planned.backend, way)
        conversation.start()
        return conversation

    def is_modern(self, backend: str) -> bool:
        """See `Servers.is_modern`."""
        return self._servers.is_modern(backend)

    def enter(self, agent: str) -> None:
        """Takes a place for a hub. Raises `Refused`."""
        self._check_room(agent)
        self._places[agent] += 1

    def leave(self, agent: str) -> None:
        """Gives it back."""
        self._places[agent] -= 1
        if not self._places[agent]:
            del self._places[agent]

    def _check_room(self, agent: str) -> None:
        runtime = self._shell.runtime
        most, known = runtime.sessions_limit, agent in runtime.agents
        if (self._places[agent] if known else self._strangers()) >= most:
            who = f"the agent `{agent}` has" if known else "the agents that are not configured have"
            text = f"{who} {most} sessions already; end one"
            raise Refused(text, f"{text}, or raise `server.max_sessions_agent`")

    def _strangers(self) -> int:
        """Places of those that are not configured. They count as one: whoever may be any may be all of them."""
        agents = self._shell.runtime.agents
        return sum(taken for agent, taken in self._places.items() if agent not in agents)

    def warnings(self) -> tuple[str, ...]:
        """Who gets no more sessions now, and whom they do not wait for."""
        runtime = self._shell.runtime
        full = [f"the agent `{name}` has" for name in runtime.agents if self._places[name] >= runtime.sessions_limit]
        if self._strangers() >= runtime.sessions_limit:
            full.append("the agents that are not configured have")
        now = self._shell.now()
        late = tuple(
            f"the backend `{name}` has not answered in time for {_lasting(now - since)}: sessions with several "
            f"backends no longer wait for it, and hear when it comes; `aegis backends probe {name}` says how it is"
            for name, since in sorted(self.lateness.since().items())
        )
        return late + tuple(
            f"{who} all of the {runtime.sessions_limit} sessions that one agent may have, and is refused more; "
            "end some in their clients (what is left idle over HTTP ends after half an hour), or raise "
            "`server.max_sessions_agent`"
            for who in full
        )

    def _make(self, planned: Plan, client: Client, stderr: int, *, bridged: bool, shared: bool = False) -> Conversation:
        self._count += 1
        return Conversation(
            f"s{self._count:x}-{os.urandom(3).hex()}",
            planned.principal,
            planned.backend,
            client,
            self._starter(planned, stderr, bridged=bridged) if planned.serves else None,
            self._shell,
            self.loop,
            ids=self.ids,
            load=self._load,
            on_end=self._ended,
            shared=shared,
            handed=planned.handed,
        )

    def _starter(self, planned: Plan, stderr: int, *, bridged: bool) -> StartServer:
        def start_server(conversation: Conversation) -> Backend:
            return self._servers.start(conversation, planned, stderr, bridged=bridged)

        return start_server

    def _ended(self, conversation: Conversation) -> None:
        session = self._sessions.pop(conversation.session, None)
        if session is not None:
            if not session.leg:
                self.leave(conversation.principal.agent)
            _log.info("session %s ended after %d requests", conversation.session, conversation.calls)

    def sweep(self) -> None:
        """Once a second: ends requests whose time is over."""
        now = monotonic()
        for session in self:
            try:
                session.conversation.sweep(now)
            except Exception:  # the other sessions' requests must end all the same
                _log.exception("the sweep of session %s failed", session.conversation.session)
        self._outbox.flush()

    def relisted(self, backend: str) -> None:
        """What of this backend may be seen has changed."""
        for session in self:
            if session.conversation.backend == backend:
                session.conversation.reloaded()
        self._outbox.flush()

    def reloaded(self) -> tuple[str, ...]:
        """The rules changed: users that may not be their agent any more lose their sessions, the others hear of it,
        and get the servers that are meant now. Gives what goes on as it was, in words."""
        agents = self._shell.runtime.agents
        stays: Counter[tuple[str, str]] = Counter()
        for session in self:
            principal = session.conversation.principal
            rule = agents.get(principal.agent)
            allowed = rule.uids if rule is not None and rule.uids is not None else (self._own_uid,)
            if principal.uid is None:
                # Whoever may not come any more is turned out where it came in; here, from where it may not go any more.
                if not self._shell.runtime.reaches(principal.agent, session.conversation.backend):
                    session.client.refuse(f"the backend `{session.conversation.backend}` is not available any more")
                    session.conversation.client_left()
                elif session.conversation.serves:
                    self._reloaded(session, stays)
                else:  # it may use the server now, which this session was begun without
                    session.client.refuse("the rules have changed; begin a new session")
                    session.conversation.client_left()
            elif principal.uid in allowed:
                self._reloaded(session, stays)
            else:
                session.client.refuse(f"uid {principal.uid} may not be the agent `{principal.agent}` any more")
                session.conversation.client_left()
        self._outbox.flush()
        return tuple(
            f"{number} session{'s' * (number != 1)} of `{agent}` with `{backend}` {'go' if number != 1 else 'goes'} on "
            f"with the server from before: what the agent's entry says does not fit `backends.{backend}` any more; "
            f"start the agent anew"
            for (agent, backend), number in sorted(stays.items())
        )

    def _reloaded(self, session: Session, stays: Counter[tuple[str, str]]) -> None:
        """It hears of the reload, and its server is replaced where another one is meant now."""
        talk, before = session.conversation, session.planned
        talk.reloaded()
        try:
            planned = session.plan()
        except Refused as refused:
            if before.principal.uid is None:
                session.client.refuse(str(refused))
                talk.client_left()
            elif before.serves:
                stays[before.principal.agent, before.backend] += 1
            return
        if not planned.serves or planned.starts_as(before):
            return
        session.planned = planned
        bridged = before.principal.uid is None
        talk.renewal.begin(self._starter(planned, session.stderr, bridged=bridged), planned.handed)

    async def stop(self, restart: bool, grace: float) -> None:
        """Answers what waits, gives what is under way `grace` seconds, and hands every client back to its shim."""
        self.stopping = True
        for session in self:
            session.conversation.stop()
        self._outbox.flush()
        deadline = monotonic() + grace
        while monotonic() < deadline and any(session.conversation.busy for session in self):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        for session in self:
            if isinstance(session.client, ShimClient):
                session.client.bye(restart)
            session.conversation.shim_gone()


def _lasting(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
