"""Every attached shim becomes a conversation with a server of its own, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator

import msgspec

from aegis_daemon.backends.children import Command, Nursery
from aegis_daemon.backends.stdio import StdioServer
from aegis_daemon.loop.clock import monotonic, wall
from aegis_daemon.loop.descriptor import Outbox
from aegis_daemon.manage import ancestry
from aegis_daemon.relay.admission import Plan, Refused, plan
from aegis_daemon.relay.carry import Shell
from aegis_daemon.relay.conversation import CallIds, Conversation, Load
from aegis_daemon.transports.ledger import BadLedger
from aegis_daemon.transports.shim_client import ShimClient
from aegis_daemon.transports.unix_relay import Attachment
from aegis_daemon.wire.jsonrpc import MAX_FRAME_OUT
from aegis_shim import hello as greeting

_log = logging.getLogger("aegis.sessions")


class Session(msgspec.Struct):
    """One attached shim. `agent_process` is the process that started the shim: the agent itself."""

    conversation: Conversation
    client: ShimClient
    way: str
    shim_pid: int | None
    agent_process: ancestry.Process | None
    since: float


class Sessions:
    """All of them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, shell: Shell, nursery: Nursery, outbox: Outbox) -> None:
        self._loop = loop
        self._shell = shell
        self._nursery = nursery
        self._outbox = outbox
        self._ids = CallIds()
        self._load = Load()
        self._own_uid = os.geteuid()
        self._sessions: dict[str, Session] = {}
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
            planned = plan(hello, peer.uid, self._own_uid, runtime, os.environ)
            if sum(one.conversation.principal.agent == hello.agent for one in self) >= runtime.sessions_limit:
                raise Refused(
                    f"the agent `{hello.agent}` has {runtime.sessions_limit} sessions already; end one, or raise "
                    "`server.max_sessions_agent`"
                )
            client = ShimClient(self._loop, self._outbox, attachment, own_uid=self._own_uid)
        except (Refused, BadLedger) as refused:
            _log.warning("refused a session of `%.128s`: %.1000s", hello.agent, refused)
            attachment.refuse(str(refused))
            return
        self._count += 1
        session = f"s{self._count:x}-{os.urandom(3).hex()}"
        stderr = attachment.stderr

        def start_server(conversation: Conversation) -> StdioServer:
            return self._start_server(conversation, planned, stderr)

        conversation = Conversation(
            session,
            planned.principal,
            planned.backend,
            client,
            start_server if planned.argv is not None else None,
            self._shell,
            self._loop,
            ids=self._ids,
            load=self._load,
            on_end=self._ended,
        )
        above = ancestry.parent(peer.pid) if peer.pid is not None else None
        self._sessions[session] = Session(conversation, client, hello.way, peer.pid, above, wall())
        attachment.control.on_gone = conversation.shim_gone
        attachment.control.say(greeting.say_ok(session, hello.way))
        _log.info("session %s: `%s` to `%s` by %s", session, hello.agent, planned.backend, hello.way)
        conversation.start()

    def _start_server(self, conversation: Conversation, planned: Plan, stderr: int) -> StdioServer:
        assert planned.argv is not None
        server: StdioServer

        def exited(code: int) -> None:
            conversation.server_exited(server, code)
            self._outbox.flush()

        def failed(text: str) -> None:
            conversation.server_failed(server, text)
            self._outbox.flush()

        server = StdioServer(
            self._loop,
            self._outbox,
            self._nursery,
            Command(planned.argv, planned.cwd, planned.env, planned.umask),
            stderr,
            limit=MAX_FRAME_OUT,
            on_lines=lambda lines: conversation.server_lines(server, lines),
            on_long=lambda head, tail: conversation.server_long(server, head, tail),
            on_full=lambda full: conversation.server_full(server, full),
            on_exit=exited,
            on_failed=failed,
        )
        return server

    def _ended(self, conversation: Conversation) -> None:
        if self._sessions.pop(conversation.session, None) is not None:
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

    def reloaded(self) -> None:
        """The rules changed: users that may not be their agent any more lose their sessions, the others hear of it."""
        agents = self._shell.runtime.agents
        for session in self:
            principal = session.conversation.principal
            rule = agents.get(principal.agent)
            allowed = rule.uids if rule is not None and rule.uids is not None else (self._own_uid,)
            if principal.uid in allowed:
                session.conversation.reloaded()
            else:
                session.client.refuse(f"uid {principal.uid} may not be the agent `{principal.agent}` any more")
                session.conversation.client_left()
        self._outbox.flush()

    async def stop(self, restart: bool, grace: float) -> None:
        """Answers what waits, gives what is under way `grace` seconds, and hands every client back to its shim."""
        self.stopping = True
        for session in self:
            session.conversation.stop()
        self._outbox.flush()
        deadline = monotonic() + grace
        while monotonic() < deadline and any(len(session.conversation.to_server) for session in self):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        for session in self:
            session.client.bye(restart)
            session.conversation.shim_gone()
