"""The daemon: the one place where everything is made, introduced to each other, run, and taken down."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sqlite3
import stat
import sys
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from aegis_daemon import __version__
from aegis_daemon.approvals.changes import Changes as ApprovedCalls
from aegis_daemon.approvals.desk import Desk, NoSuchTicket
from aegis_daemon.approvals.notifier import Notifier, Settings
from aegis_daemon.approvals.patience import Patience
from aegis_daemon.approvals.store import TicketStore
from aegis_daemon.approvals.ticket import Ticket
from aegis_daemon.approvals.told import Told
from aegis_daemon.audit.journal import Journal
from aegis_daemon.audit.notary import Duties
from aegis_daemon.audit.record import Admin, Approval, Denied, Outcome, Start
from aegis_daemon.audit.retention import Policy
from aegis_daemon.audit.store import Reader
from aegis_daemon.audit.story import Scribe
from aegis_daemon.audit.writer import WriterHandle
from aegis_daemon.backends.children import Nursery
from aegis_daemon.backends.http_client import HttpPool
from aegis_daemon.config import whereabouts
from aegis_daemon.config.load import ConfigFaults
from aegis_daemon.config.paths import PathError, Paths
from aegis_daemon.config.schema import OFF
from aegis_daemon.core.past import shortened
from aegis_daemon.core.ports import AuditUnavailable, Brake
from aegis_daemon.core.verdict import Claim, Deny
from aegis_daemon.daemon import log
from aegis_daemon.daemon import reload as reloading
from aegis_daemon.daemon.activation import Manager
from aegis_daemon.daemon.channels import Channels, answer
from aegis_daemon.daemon.checking import Checking
from aegis_daemon.daemon.fitting import Reviewer
from aegis_daemon.daemon.forgetting import Forgetting, retention
from aegis_daemon.daemon.governor import Governor
from aegis_daemon.daemon.keykeeper import KeyKeeper
from aegis_daemon.daemon.lifecycle import (
    AlreadyRunning,
    Lock,
    Plain,
    door_of,
    in_group,
    own_log,
    secret_key,
    socket_mode,
    take_over,
)
from aegis_daemon.daemon.metering import Metering, Parts
from aegis_daemon.daemon.modes import Modes
from aegis_daemon.daemon.network import Network
from aegis_daemon.daemon.orders import Orders
from aegis_daemon.daemon.pin_news import PinNews
from aegis_daemon.daemon.probing import Prober
from aegis_daemon.daemon.proof import ALARM, Proof, Prover, Unproven, newest_records
from aegis_daemon.daemon.reach import DaemonReach
from aegis_daemon.daemon.reception import Reception
from aegis_daemon.daemon.reload import InForce
from aegis_daemon.daemon.servers import Servers
from aegis_daemon.daemon.sessions import Sessions
from aegis_daemon.daemon.shipping import Shipping
from aegis_daemon.daemon.wiring_watch import WiringWatch
from aegis_daemon.lanes import Lanes
from aegis_daemon.limits import Limits
from aegis_daemon.loop.clock import micros, monotonic, wall
from aegis_daemon.loop.descriptor import Outbox
from aegis_daemon.manage import shapes
from aegis_daemon.manage.client import lock_holder
from aegis_daemon.manage.server import ManageServer
from aegis_daemon.policy.rules import Rules
from aegis_daemon.registry.pins import Registry
from aegis_daemon.relay.carry import Shell
from aegis_daemon.relay.own_tasks import OwnTasks
from aegis_daemon.relay.task_owners import Owners
from aegis_daemon.stages.rate_limit import RateLimit
from aegis_daemon.transports.unix_relay import Peer, UnixRelay

_log = logging.getLogger("aegis")
STOP_GRACE_S = 5.0
READABLE = "every user of this machine can read the API, so all that agents do; set `server.api_token`"
"""How long calls under way get when the daemon stops."""


class Daemon:
    """Everything of one run. `start` raises what keeps a daemon from starting; `stop` undoes it."""

    def __init__(
        self, paths: Paths, force: InForce, loop: asyncio.AbstractEventLoop, manager: Manager | None = None
    ) -> None:
        self._paths = paths
        self._manager = manager or Manager({})
        self._force = force
        self._loop = loop
        self._done = asyncio.Event()
        self._restart = False
        self._paused: Brake | None = None
        self._unproven: Brake | None = None
        config = force.config
        self._db_path = Path(config.audit.db_path or paths.audit_db)
        self._journal = Journal(
            Path(paths.journal), durability=config.audit.durability, loop=loop, clock=micros, db_path=self._db_path,
            key_file=Path(config.audit.key_file or paths.audit_key),
        )  # fmt: skip
        self._checking = Checking(
            self._db_path, lambda: self._journal.ingested_seq, Path(config.audit.key_file or paths.audit_key)
        )
        self._shipping = Shipping(
            self._db_path, Path(paths.exports_db), loop, self._journal.append,
            key_file=Path(config.audit.key_file or paths.audit_key),
        )  # fmt: skip
        self._limits = Limits()
        self._lanes = Lanes(monotonic, loop.call_later)
        self._lanes.configure(dict(force.runtime.lanes))
        self._nursery = Nursery()
        self._governor: Governor | None = None
        self._tickets = TicketStore(Path(paths.state_db), full=config.audit.durability == "full")
        self._approved = ApprovedCalls(self._tickets.db)
        self._desk = Desk(
            self._tickets,
            wall=wall,
            call_later=loop.call_later,
            on_event=self._ticket_event,
            max_pending=force.runtime.pending_limit,
            unlike=self._approved.unlike,
        )
        self._scribe = Scribe(self._journal)
        outbox = Outbox(loop)
        self._shell = Shell(
            runtime=force.runtime,
            now=monotonic,
            audit=self._scribe,
            limits=self._limits,
            lanes=self._lanes,
            desk=self._desk,
            after=outbox.after,
            patience=Patience(self._tickets.db, wall),
            tasks=OwnTasks(wall),
        )
        self._orders = Orders(
            self._tickets.db,
            self._journal,
            self._limits,
            in_force=lambda: self._force,
            brake=self._brake,
            agents=lambda: [session.conversation.principal.agent for session in self._sessions],
        )
        self._shell.grants = self._orders.grants
        self._pins = self._shell.pins = Registry(
            self._tickets.db,
            wall=wall,
            record=lambda action, by, detail: self._journal.append(Admin(action=action, by=by, detail=detail)),
            on_change=self._pins_changed,
            on_seen=self._pins_seen,
            on_news=self._pins_news,
        )
        self._reviewer = Reviewer(lambda: self._force.fits, lambda: self._force.misspelt)
        self._modes = Modes(self._tickets.db, wall)
        self._prover = Prover(
            ready=lambda: self._force,
            pins=self._pins,
            log=self._newest_records,
            brake=self._hold_back,
            record=partial(self._note, "aegis"),
            alarm=self._tell_people,
            call_later=loop.call_later,
            now=monotonic,
            wall=wall,
        )
        self._wiring = WiringWatch(
            paths.state_dir, self._tickets.db, record=partial(self._note, "aegis"),
            tell=lambda headline, text: self._notifier is not None and self._notifier.alarm(headline, text),
        )  # fmt: skip
        self._reloading: set[asyncio.Task[None]] = set()
        self._pin(self._ready(force))
        self._pool = HttpPool(loop)
        self._servers = Servers(loop, outbox, self._nursery, self._pool)
        self._owners = Owners(Path(paths.state_db))
        self._sessions = Sessions(loop, self._shell, self._servers, outbox, self._owners)
        self._network = Network(
            loop, outbox, Reception(self._sessions, self._shell), self._pool, in_force=lambda: self._force
        )
        self._notifier: Notifier | None = None
        self._news: PinNews | None = None
        self._channels = Channels()
        self._relay = UnixRelay(
            loop,
            Path(paths.socket),
            accepts=self._accepts,
            on_attach=self._sessions.attach,
            mode=socket_mode(force.runtime.agents.values(), os.geteuid()),
            given=self._given(),
            belongs=self._belongs,
        )
        self._writer: WriterHandle | None = None
        parts = Parts(
            journal=self._journal,
            sessions=self._sessions,
            lanes=self._lanes,
            nursery=self._nursery,
            shipping=self._shipping,
            writer=lambda: self._writer,
            pending=lambda: len(self._desk.pending()),
            unproven=lambda: self._unproven is not None,
            knows=lambda backend, tool: self._pins.knows(backend, "tool", tool),
            channels=lambda: self._notifier.rows() if self._notifier is not None else (),
        )
        self._metering = Metering(parts, config.telemetry)
        self._rotation = log.Rotation(Path(paths.log))
        self._forgetting: Forgetting | None = None
        self._manage: ManageServer | None = None
        self._ticker: asyncio.TimerHandle | None = None

    # --- start and stop -----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Takes up what an earlier daemon left, then opens the sockets."""
        recovery = self._journal.open()
        audit = self._force.config.audit
        duties = Duties(
            key_file=audit.key_file or self._paths.audit_key,
            every=audit.checkpoints.every,
            seconds=audit.checkpoints.seconds,
        )
        self._writer = WriterHandle(self._journal, self._db_path, self._loop, duties, self._policy())
        digest = self._force.runtime.digest
        self._journal.append(Start(config_digest=digest, pid=os.getpid(), version=__version__))
        for note in recovery.notes:
            _log.warning("%s", note)
            self._journal.append(Admin(action="recovery", detail=note))
        for intent in recovery.open_intents:
            text = "the daemon ended before the answer came; the outcome is unknown and the call is never repeated"
            self._journal.append(Outcome(call=intent.call, consumed=True, error_message=text, status="unknown"))
        for hold in recovery.open_holds:
            text = "the daemon ended while the call waited for a person; it was not executed, its ticket stays"
            refused = Denied(
                agent=hold.agent, backend=hold.backend, call=hold.call, method=hold.method, name=hold.name,
                principal=hold.principal, reason=text, request=hold.request, session=hold.session, stage="restart",
                ticket=hold.ticket,
            )  # fmt: skip
            self._journal.append(refused)
        await self._writer.flush()
        self._restore_limits()
        self._restore_budgets()
        self._desk.restore(self._reserve)
        self._nursery.start()
        signing = KeyKeeper(Path(duties.key_file), self._journal)
        self._forgetting = Forgetting(
            self._journal, self._writer, self._db_path, self._tickets.db, signing, policy=self._policy,
            exports=lambda: tuple(self._force.config.audit.exports),
        )  # fmt: skip
        links_key = secret_key(Path(self._paths.links_key)).encode()
        told = Told(self._tickets.db)
        told.keep(ticket.call_id for ticket in self._desk.pending())
        self._notifier = Notifier(
            links_key,
            DaemonReach(self._pool),
            wall=wall,
            find=self._ticket,
            decide=partial(answer, lambda: self._governor),
            shown=lambda text: self._force.runtime.secrets.shown(text),
            told=told,
            open=self._desk.pending,
        )
        self._governor = Governor(
            socket=self._paths.doors or self._paths.socket,
            in_force=lambda: self._force,
            reload=self.reload,
            stop=self.stop_soon,
            sessions=self._sessions,
            desk=self._desk,
            limits=self._limits,
            lanes=self._lanes,
            journal=self._journal,
            writer=self._writer,
            nursery=self._nursery,
            key=secret_key(Path(self._paths.approver_key)),
            audit_db=self._db_path,
            links_key=links_key,
            changes=self._approved,
            http=lambda: self._network.address,
            unserved=lambda: (*self._network.trouble, *self._sessions.warnings()),
            orders=self._orders,
            pins=self._pins,
            notifier=self._notifier,
            prover=self._prover,
            modes=self._modes,
            arm=self.arm,
            checking=self._checking,
            signing=signing,
            forgetting=self._forgetting,
            shipping=self._shipping,
            metering=self._metering,
            wiring=self._wiring,
            health=self._network.health,
            prober=Prober(self._servers),
        )
        self._mode_taken()
        await self._prover.prove(first=True)
        self._export()
        self._writer.held = self._checking.give_way
        self._checking.start()
        self._forgetting.start()
        await self._network.open(self._governor)
        self._notifier.use(self._telling())
        self._prover.tell()
        self._news = PinNews(
            self._pins,
            tell=self._notifier.tell,
            reaches=lambda: self._notifier is not None and self._notifier.reaches,
            base=self._inbox_address,
            now=monotonic,
            wall=wall,
        )
        self._news.kick()
        self._reviewer.kick()
        given = self._manager.listener(self._paths.manage_socket)
        admins = self._admins() if given is not None else None
        self._manage = ManageServer(self._governor, self._paths.manage_socket, given=given, admins=admins)
        self._manager.drop()
        await self._manage.start()
        self._relay.open()
        try:
            whereabouts.write(self._paths)
        except OSError as error:
            _log.warning("whose XDG_RUNTIME_DIR is another one does not find this daemon: %s", error)
        self._wiring.start()
        self._tick()

    def _export(self) -> None:
        """What leaves the machine by itself goes where this configuration says."""
        collector = self._metering.use(self._force.config, os.environ)
        self._shell.tracing = self._metering.tracing()
        self._shipping.use(self._force.config.audit, collector)

    def _policy(self) -> Policy:
        """What of the log is not kept."""
        return retention(self._force, self._paths)

    def _telling(self) -> Settings:
        config = self._force.config
        return self._channels.settings(config, self._network.address or config.server.listen)

    def _ticket(self, id: str) -> Ticket | None:
        try:
            return self._desk.get(id)
        except NoSuchTicket:
            return None

    def _ready(self, force: InForce) -> InForce:
        """This configuration as it judges here: by what is known of the servers, and by what limits have counted."""
        if self._paths.doors:  # whoever is not told apart by a door of its own comes over the network, with a token
            own, admins = os.geteuid(), self._admins()
            users = {uid for rule in force.runtime.agents.values() for uid in rule.uids or ()}
            isolated = not any(uid == own or (admins is not None and in_group(uid, admins)) for uid in users)
            force = msgspec.structs.replace(force, runtime=msgspec.structs.replace(force.runtime, isolated=isolated))
            if _readable(force) and READABLE not in force.warnings:
                force = msgspec.structs.replace(force, warnings=(*force.warnings, READABLE))
        named = reloading.named(reloading.pinned(force, self._pins), self._pins)
        fitted = reloading.fitted(named, self._pins, monotonic)
        return reloading.counted(fitted, self._limits.usage)

    def _pin(self, force: InForce) -> None:
        """This configuration, made ready, is in force."""
        settings = force.config.pins
        self._pins.hold, self._pins.recheck_s = settings.first_seen == "hold", settings.recheck
        self._force = force
        self._shell.runtime = self._force.runtime
        self._shell.runtime.pipeline.forget()  # pins may have changed since it was made
        if force.fits is not None:
            force.fits.forget()
        transforms = force.runtime.transforms
        self._scribe.redact = transforms.logged if transforms is not None else None
        guard = force.runtime.secrets
        self._journal.scrub = guard.written if guard.log is not None else None
        log.use(force.config.logging)
        self._journal.unlisten(log.call_ended)
        if force.config.logging.calls:
            self._journal.listen(log.call_ended)
        for handler in logging.getLogger().handlers:
            if isinstance(handler.formatter, Plain):
                handler.formatter.scrub = guard.said if guard.log is not None else None

    def _pins_changed(self, backend: str) -> None:
        """Something of this server is not usable any more, or is again: clients hear that their lists have changed."""
        self._shell.runtime.pipeline.forget()
        if self._governor is not None:
            self._governor.pins_moved()
        self._loop.call_soon(self._sessions.relisted, backend)  # behind what is under way

    def _pins_seen(self, backend: str) -> None:
        """Something of this server is pinned that was not, or as something else: its rules may not fit it."""
        self._shell.runtime.pipeline.forget()  # what is spelt like it passed until now
        if self._force.fits is not None:
            self._force.fits.seen(backend)
        self._reviewer.kick()

    def _pins_news(self) -> None:
        """There is something to look at that people have not been told of."""
        if self._governor is not None:
            self._governor.pins_moved()
        if self._news is not None:
            self._news.kick()

    def _inbox_address(self) -> str:
        """What messages begin addresses of the inbox with; "" where only approval pages are reached from afar."""
        approval = self._force.config.approval
        if self._notifier is None or self._network.address is None or approval.listen is not None:
            return ""
        return self._notifier.settings.base

    def _brake(self, brake: Brake | None) -> None:
        self._paused = brake
        self._shell.brake = self._unproven or brake

    # --- what the daemon proves to itself -----------------------------------------------------------------------

    def _hold_back(self, brake: Brake | None) -> None:
        self._unproven = brake
        self._shell.brake = brake or self._paused

    async def _newest_records(self) -> str:
        assert self._writer is not None
        return await newest_records(self._journal, self._writer, self._db_path)

    def _note(self, by: str, action: str, detail: str) -> None:
        try:
            self._journal.append(Admin(action=action, by=by, detail=detail[:500]))
        except AuditUnavailable as error:
            _log.error("`%s` could not be recorded: %s", action, error)

    def _tell_people(self, text: str) -> bool:
        return self._notifier is not None and self._notifier.alarm(ALARM, text)

    def _mode_taken(self, by: str = "", said: str = "") -> None:
        mode = self._force.config.mode
        was = self._modes.took(mode, by)
        if was:
            self._note(by, "mode", f"{was} to {mode}{said}")

    async def arm(self, mode: str) -> Proof:
        """What the file says, proved as if it were to hold in this mode; nothing has changed.

        Raises `ConfigFaults`, `Unproven`.
        """
        async with self._prover.turn:
            force = self._ready(await self._read(mode))
            return await self._prover.candidate(force, arm=self._arms(force))

    async def _read(self, mode: str = "") -> InForce:
        """The file, read and compiled beside the loop: calls go on meanwhile, by the configuration in force."""
        return await asyncio.to_thread(reloading.read, self._path(), mode, self._force)

    def _arms(self, force: InForce) -> bool:
        return self._force.config.mode == "observe" and force.config.mode == "enforce"

    def _path(self) -> Path | None:
        usual = Path(self._paths.config)
        return self._force.path or (usual if usual.exists() else None)

    def _restore_limits(self) -> None:
        """Fills the windows with the calls that still count, by the boot clock where that is the same boot's."""
        claims = self._force.runtime.claims
        if not claims:
            return
        gate = self._force.runtime.pipeline.gate("rate_limit")
        assert isinstance(gate, RateLimit)
        long: dict[tuple[str | None, str, str], Claim] = {
            (c.agent, c.backend, shortened(c.tool)): c for c in claims if shortened(c.tool) != c.tool
        }
        now, today = monotonic(), wall()
        longest = max(claim.window_s for claim in claims)
        boot = self._journal.boot
        counted: dict[Claim, list[float]] = {}
        for agent, backend, tool, row_boot, mono_us, ts_us in Reader(self._db_path).consumed_since(
            int((today - longest) * 1e6)
        ):
            # A calendar that was set back since makes a call look new, which errs on the side of the limit.
            at = mono_us / 1e6 if row_boot == boot else now - max(0.0, today - ts_us / 1e6)
            cut = [long[key] for who in (None, agent) if (key := (who, backend, tool)) in long]
            # By the limits that judged it: `POST` is one of `post`'s calls, however it is written in the log.
            for claim in cut or gate.of(agent, backend, tool):
                if at > now - claim.window_s:
                    counted.setdefault(claim, []).append(min(at, now))
        for claim, times in counted.items():
            self._limits.restore(claim, times)

    def _restore_budgets(self) -> None:
        """Fills the budgets with what calls that still count have spent, as the log says; unreadable ones spent all."""
        windows = [budget.window_s for rule in self._force.runtime.rules for budget in rule.budgets]
        if not windows:
            return
        rules = Rules(self._force.runtime.rules)
        now, today = monotonic(), wall()
        since = int((today - max(windows)) * 1e6)
        # By the rules that judged them: `PAY` is one of `pay`'s calls, however it is written in the log.
        spent = Reader(self._db_path).spent_since(
            since, lambda backend, tool: any(rule.budgets for rule in rules.of(backend, tool))
        )
        for agent, backend, tool, row_boot, mono_us, ts_us, body in spent:
            at = mono_us / 1e6 if row_boot == self._journal.boot else now - max(0.0, today - ts_us / 1e6)
            for rule in rules.of(backend, tool):
                for claim in rule.spent(agent, body):
                    if at > now - claim.window_s:
                        self._limits.restore_spent(claim, min(at, now))

    def _reserve(self, ticket: Ticket) -> None:
        """A restored ticket holds its claims and its place again, as far as there is room."""
        lease = self._limits.reserve(ticket.claims, monotonic()) if ticket.claims else None
        ticket.lease = None if isinstance(lease, Deny) else lease
        turn = self._lanes.hold(ticket.backend, (ticket.call_id, ticket.agent, ticket.name))
        ticket.turn = None if isinstance(turn, Deny) else turn

    @property
    def tier(self) -> str:
        """`isolated` or `advisory`."""
        return "isolated" if self._force.runtime.isolated else "advisory"

    def stop_soon(self, restart: bool = False) -> None:
        """Asks `run` to end."""
        self._restart = self._restart or restart
        self._done.set()

    async def run(self) -> None:
        """Until somebody asks for the end."""
        await self._done.wait()

    async def stop(self) -> None:
        """Lets go in the order that loses nothing."""
        if self._ticker is not None:
            self._ticker.cancel()
        await self._prover.close()
        await self._reviewer.close()
        await self._wiring.close()
        self._relay.close()
        whereabouts.erase(self._paths)
        self._network.stop()
        await self._checking.close()
        if self._forgetting is not None:
            await self._forgetting.close()
        await self._sessions.stop(self._restart, STOP_GRACE_S)
        await self._network.close(1.0)
        if self._news is not None:
            await self._news.close()
        if self._notifier is not None:
            await self._notifier.close()
        self._pool.close()
        if self._manage is not None:
            await self._manage.close()
        await self._nursery.close()
        try:
            self._journal.append(Admin(action="restart" if self._restart else "stop"))
        except AuditUnavailable as error:
            _log.error("the end could not be recorded: %s", error)
        if self._writer is not None:
            await self._writer.close()
        self._shipping.ring(self._journal.ingested_seq)
        await self._shipping.close()
        await self._rotation.close()
        self._journal.close()
        self._owners.close()
        self._tickets.close()

    # --- while it runs ------------------------------------------------------------------------------------------

    def _given(self) -> dict[socket.socket, str | None] | None:
        """The agents' sockets that somebody opened for us; None where we have to open one."""
        if self._paths.doors:
            agents = self._force.runtime.agents
            return {each: door_of(name, agents) for name, each in self._manager.below(self._paths.doors).items()}
        one = self._manager.listener(self._paths.socket)
        return None if one is None else {one: None}

    def _admins(self) -> int | None:
        """The group that root lets manage us besides: the socket's, where it was made for a group."""
        try:
            found = os.stat(self._paths.manage_socket)
        except FileNotFoundError:
            return None
        return found.st_gid if found.st_uid == 0 and stat.S_IMODE(found.st_mode) & 0o020 else None

    def _belongs(self, peer: Peer, agent: str) -> bool:
        rule = self._force.runtime.agents.get(agent)
        return rule is not None and rule.uids is not None and peer.uid in rule.uids

    def _accepts(self, peer: Peer) -> bool:
        if peer.uid == os.geteuid():
            return True
        return any(rule.uids is not None and peer.uid in rule.uids for rule in self._force.runtime.agents.values())

    def _tick(self) -> None:
        self._ticker = self._loop.call_later(1.0, self._tick)
        self._manager.beat(monotonic())
        ring = partial(self._shipping.ring, self._journal.ingested_seq)
        meter = partial(self._metering.tick, monotonic())
        rotate = partial(self._rotation.tick, self._force.config.logging)
        limits = partial(self._limits.sweep, monotonic())
        for sweep in (self._network.sweep, self._sessions.sweep, limits, ring, meter, rotate):
            try:
                sweep()
            except Exception:  # what one cannot end must not keep the others from ending theirs
                _log.exception("a sweep failed")

    def _ticket_event(self, event: str, ticket: Ticket) -> None:
        self._metering.decided(event, wall() - ticket.created)
        if event in ("voted", "approved", "rejected", "expired", "consumed", "attached"):
            by, note, via = ticket.by, ticket.note, ticket.via
            if ticket.votes and event in ("voted", "approved"):  # the word that was given now
                by, note, via = ticket.votes[-1].by, ticket.votes[-1].note, ticket.votes[-1].via
            via = via or "desk"
            record = Approval(call=ticket.call_id, decision=event, ticket=ticket.id, by=by, note=note, via=via)
            try:
                self._journal.append(record)
            except AuditUnavailable as error:
                _log.error("a decision could not be recorded: %s", error)
        if self._governor is not None:
            self._governor.happened(event, ticket)
        if self._notifier is not None:
            self._notifier.happened(event, ticket)

    async def reload(self, by: str = "", mode: str = "") -> shapes.Reloaded:
        """The file, again, or `ConfigFaults` or `Unproven` and nothing has changed.

        :param mode: what the file has to say; it could have been changed once more.
        """
        async with self._prover.turn:
            return await self._reload(by, mode)

    async def _reload(self, by: str, mode: str) -> shapes.Reloaded:
        old = self._force
        try:
            force = await self._read()
            if mode and force.config.mode != mode:
                raise Unproven(f"the file says `mode: {force.config.mode}`, and not `{mode}`", "repeat it")
            ready = self._ready(force)
            proof = await self._prover.candidate(ready, arm=self._arms(ready))
        except (ConfigFaults, Unproven) as faults:
            _log.error("the configuration was not reloaded, the old one stays in force:\n%s", faults)
            raise
        changed, restart = reloading.changed(old.config, force.config)
        if restart:
            waits = (
                f"{', '.join(f'`{key}`' for key in restart)} changed in the file and waits for `aegis daemon restart`"
            )
            ready = msgspec.structs.replace(ready, warnings=(*ready.warnings, waits))
        if ready.fits is not None:
            self._reviewer.tell(await ready.fits.review())
        if ready.misspelt is not None:
            self._reviewer.tell_names(await ready.misspelt.review())
        # From here to the swap nothing waits: what the log says of a reload is in force when it can be read.
        try:
            self._journal.append(Admin(action="reload", detail=force.runtime.digest))
        except AuditUnavailable as error:
            _log.error("a reload could not be recorded: %s", error)
        self._pin(msgspec.structs.replace(ready, config=reloading.kept(old.config, force.config)))
        self._prover.took(proof)
        self._mode_taken(by, f"; {proof.calls} calls that must be refused were refused first")
        self._lanes.configure(dict(force.runtime.lanes))
        self._desk.max_pending = force.runtime.pending_limit
        self._orders.reloaded()
        self._relay.set_mode(socket_mode(force.runtime.agents.values(), os.geteuid()))
        stays = (*self._sessions.reloaded(), *self._network.reloaded())
        for line in stays:
            _log.warning("%s", line)
        if self._notifier is not None:
            self._notifier.use(self._telling())
        if self._news is not None:
            self._news.kick()  # there may be a channel now
        self._export()
        _log.info("configuration reloaded: %s", ", ".join(changed) or "nothing changed")
        return shapes.Reloaded(
            message="config reloaded",
            changed=changed,
            restart_required=restart,
            warnings=(
                *ready.warnings,
                *(ready.misspelt.told() if ready.misspelt is not None else ()),
                *(ready.fits.lines() if ready.fits is not None else ()),
                *stays,
            ),
        )

    def reload_on_signal(self) -> None:
        """SIGHUP: as `reload`, faults to the log."""
        task = self._loop.create_task(self._signalled())
        self._reloading.add(task)
        task.add_done_callback(self._reloading.discard)

    async def _signalled(self) -> None:
        self._manager.reloading()
        try:
            await self.reload()
        except (ConfigFaults, Unproven):
            pass  # it is in the log
        except Exception:
            _log.exception("the configuration was not reloaded, the old one stays in force")
        finally:
            self._manager.ready()


def _readable(force: InForce) -> bool:
    """Whether anybody of this machine may read what agents do."""
    server = force.config.server
    return server.listen != OFF and server.api_token is None and server.read_token is None


async def _main(paths: Paths, force: InForce, manager: Manager) -> int:
    loop = asyncio.get_running_loop()
    try:
        daemon = Daemon(paths, force, loop, manager)
    except sqlite3.Error as error:
        text = (
            "move it away, with `-wal` and `-shm`, to begin without what it keeps, pauses too; see `aegis doctor "
            "state-damaged`"
        )
        _log.error("the daemon cannot start: `%s`: %s; %s", paths.state_db, error, text)
        return 1
    for number, call in (
        (signal.SIGTERM, daemon.stop_soon),
        (signal.SIGINT, daemon.stop_soon),
        (signal.SIGHUP, daemon.reload_on_signal),
    ):
        loop.add_signal_handler(number, call)
    try:
        await daemon.start()
    except (AuditUnavailable, sqlite3.Error, OSError) as error:
        _log.error("the daemon cannot start: %s", error)
        await daemon.stop()
        return 1
    for warning in (*force.warnings, *((READABLE,) if _readable(force) else ())):
        _log.warning("%s", warning)
    _log.info(
        "aegis %s is ready at %s (%s tier, %s, durability %s)",
        __version__, paths.doors or paths.socket, daemon.tier, force.config.mode, force.config.audit.durability,
    )  # fmt: skip
    # Everything made so far stays; collecting it again and again would only cost pauses.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    manager.ready()
    await daemon.run()
    manager.stopping()
    _log.info("stopping")
    await daemon.stop()
    return 0


def _runner() -> Any:
    if sys.platform == "win32":
        return asyncio.Runner()
    import uvloop

    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


def _raise_descriptor_limit() -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else hard
    if soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            pass  # as many sessions as there are descriptors, then


def serve(config_path: Path | None, paths: Paths, foreground: bool) -> int:
    """Runs a daemon until it is stopped. `config_path` None: the usual place, and without a file deny everything.

    Gives the exit code: 0 done, 1 the configuration has faults or the daemon cannot start or another one runs.
    """
    manager = Manager.take(os.environ, os.getpid())
    logging.basicConfig(level=logging.INFO, handlers=[log.to_stderr()])
    if paths.doors and os.geteuid() == 0:
        text = "the machine's daemon runs as a user of its own; root starts it with `aegis daemon start` (or `run`)"
        print(f"aegis: {text}", file=sys.stderr)
        return 1
    try:
        paths.prepare()
        managed = manager.serves(paths.socket, paths.manage_socket, below=paths.doors)
        lock = take_over(paths) if managed and not foreground else Lock(Path(paths.lock))
        if not managed and (there := whereabouts.elsewhere(paths)) is not None:
            lock.release()
            raise AlreadyRunning(lock_holder(there.lock), at=there.run_dir)
    except AlreadyRunning as running:
        if foreground or manager.gives:
            print(f"aegis: {running}; stop it with `aegis daemon stop`", file=sys.stderr)
            return 1
        return 0  # several shims started one each; the first one serves them all
    except (PathError, OSError) as error:
        print(f"aegis: {error}", file=sys.stderr)
        return 1
    try:
        if config_path is None and Path(paths.config).exists():
            config_path = Path(paths.config)
        try:
            force = reloading.read(config_path)
        except ConfigFaults as faults:
            print(f"aegis: the configuration has faults, nothing was started:\n{faults.render()}", file=sys.stderr)
            return 1
        os.umask(0o077)
        _raise_descriptor_limit()
        with _runner() as runner:
            return int(runner.run(_main(paths, force, manager)))
    finally:
        lock.release()


def main() -> int:
    """What `aegis-wrap` starts in the background, and a service; with `--log` it writes to its log's file by itself."""
    paths = Paths.find(os.environ)
    if "--log" in sys.argv[1:]:
        try:
            own_log(paths.log)
        except OSError as error:
            text = f"the log `{paths.log}` cannot be opened: {error.strerror}; look at what it is, and remove it"
            print(f"aegis: {text}", file=sys.stderr)
            return 1
    return serve(None, paths, foreground=False)


if __name__ == "__main__":
    sys.exit(main())
