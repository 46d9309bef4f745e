"""What a person lets through or stops beyond a single call holds until its end, over restarts, and is on record.

Grants, pauses and extra quota. What lets more happen is recorded before it holds, and what cannot be kept does not
hold; what stops something holds at once, whatever cannot be written.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches

from aegis_daemon.approvals.grants import ANY, Grant, Grants, NotGiven
from aegis_daemon.approvals.pauses import EVERYTHING, Pause, Pauses
from aegis_daemon.approvals.quotas import Quotas
from aegis_daemon.approvals.ticket import Ticket
from aegis_daemon.audit.journal import Journal
from aegis_daemon.audit.record import Admin, Approval
from aegis_daemon.core.ports import AuditUnavailable, Brake
from aegis_daemon.core.principal import Principal
from aegis_daemon.core.units import short_duration
from aegis_daemon.core.verdict import Claim
from aegis_daemon.daemon.governor import instant
from aegis_daemon.daemon.reload import InForce
from aegis_daemon.limits import Limits
from aegis_daemon.loop.clock import monotonic, wall
from aegis_daemon.manage import api, shapes

_log = logging.getLogger("aegis.orders")
MOST_QUOTAS = 100
"""Additions to one limit that may hold at once."""
_SPACE = "free space on the disk and repeat it"


class Orders:
    """All of them. `brake` is told what stops calls, None while nothing does."""

    def __init__(
        self,
        db: sqlite3.Connection,
        journal: Journal,
        limits: Limits,
        *,
        in_force: Callable[[], InForce],
        brake: Callable[[Brake | None], None],
        agents: Callable[[], Iterable[str]] = tuple,
        now: Callable[[], float] = monotonic,
        wall: Callable[[], float] = wall,
    ) -> None:
        """Takes over what an earlier daemon left. Raises `sqlite3.Error`.

        :param agents: those that have a session now, configured or not.
        """
        self._journal = journal
        self._limits = limits
        self._in_force = in_force
        self._brake = brake
        self._agents = agents
        self._now = now
        self._wall = wall
        self.grants = Grants(db, now=now, wall=wall, boot=journal.boot, longest=in_force().config.approval.max_grant)
        self.pauses = Pauses(db)
        self._quotas = Quotas(db, now=now, wall=wall, boot=journal.boot)
        for quota, left in self._quotas.held():
            limits.allow_more(quota.key, quota.count, now() + left)
        self._braked()

    def reloaded(self) -> None:
        """Another configuration is in force."""
        self.grants.bound(self._in_force().config.approval.max_grant)

    # --- grants -------------------------------------------------------------------------------------------------

    def draft(self, ticket: Ticket, ask: shapes.GrantAsk, by: str) -> Grant:
        """The grant that is asked for, which does not hold yet. Raises `api.BadRequest`."""
        rule = self._in_force().runtime.agents.get(ticket.agent)
        tenant = (rule.principal if rule is not None else Principal(ticket.agent)).tenant
        try:
            return self.grants.draft(
                ticket, tenant, by=by, seconds=ask.seconds, free=ask.free, any_arguments=ask.any_arguments,
                uses=ask.uses,
            )  # fmt: skip
        except NotGiven as why:
            raise api.BadRequest(why.message, f"{why.hint}; nothing was decided" if why.hint else "") from None

    def keep(self, grant: Grant, via: str, note: str) -> None:
        """It holds. Raises `api.Refusal`, and it does not."""
        free = "any arguments" if ANY in grant.free else ", ".join(f"any `{name}`" for name in grant.free)
        about = f"until {instant(grant.expires)}, {grant.uses_left} uses" + (f", {free}" if free else "")
        undone = "the call is approved, once, but not remembered"
        try:
            self._grant_record(grant, "granted", grant.by, via, f"{about}; {note}" if note else about)
        except AuditUnavailable as error:
            raise api.Refusal(f"{undone}: it could not be recorded ({error})", _SPACE) from None
        try:
            self.grants.keep(grant)
        except sqlite3.Error as error:
            self._quietly(lambda: self._grant_record(grant, "revoked", "aegis", "", "it could not be kept"))
            raise api.Refusal(f"{undone}: it could not be kept ({error})", _SPACE) from None

    def takes(self, grant: Grant, ticket: Ticket) -> bool:
        """Takes a use of the grant for a call that waits; False where it is not of its shape, or none is left."""
        return self.grants.covers(grant, ticket) and self.grants.use_of(grant.id)

    def granted(self) -> list[shapes.Grant]:
        """Those that hold."""
        return [grant_row(grant) for grant in self.grants.rows()]

    def revoke(self, ids: Sequence[str] | None, by: str, via: str) -> list[shapes.Grant]:
        """Ends them, None: all. Raises `api.NotFound` where one is unknown, the others having ended."""
        was = {grant.id for grant in self.grants.rows()}
        try:
            ended, unknown = self.grants.revoke(ids)
        except sqlite3.Error as error:
            gone = was - {grant.id for grant in self.grants.rows()}
            _log.error("grants were revoked and the disk may still know them: %s", error)
            raise api.Refusal(
                f"{len(gone)} grants have ended, but that could not be kept ({error}): "
                "after a restart they would hold again",
                _SPACE,
            ) from None
        finally:
            left = {grant.id for grant in self.grants.rows()}
            for id in sorted(was - left):
                record = Approval(decision="revoked", ticket=id, by=by, via=via)
                self._quietly(lambda record=record: self._journal.append(record))  # type: ignore[misc]
        if unknown:
            named = ", ".join(f"`{id}`" for id in unknown)
            also = f"; {len(ended)} others have ended" if ended else ""
            raise api.NotFound(f"no grant {named} holds{also}", "see `aegis grants list`")
        return [grant_row(grant) for grant in ended]

    def _grant_record(self, grant: Grant, decision: str, by: str, via: str, note: str) -> None:
        self._journal.append(
            Approval(call=grant.from_call, decision=decision, ticket=grant.id, by=by, note=note[:500], via=via)
        )

    # --- pauses -------------------------------------------------------------------------------------------------

    def pause(self, agent: str | None, by: str, note: str) -> shapes.Pause:
        """Stops an agent, or everything. Raises `api.NotFound`; `api.Refusal` where it holds until a restart only."""
        if agent is not None:
            known = {*self._in_force().config.agents, *self._agents()}
            if agent not in known:
                near = get_close_matches(agent, known, 1)
                listed = ", ".join(f"`{name}`" for name in sorted(known)) or "none"
                raise api.NotFound(
                    f"no agent is called `{agent}`",
                    f"did you mean `{near[0]}`?" if near else f"agents: {listed}; without a name everything is paused",
                )
        before = self.pauses.get(agent or EVERYTHING)
        made = Pause(agent or EVERYTHING, by, note or (before.note if before is not None else ""), self._wall())
        try:
            self.pauses.pause(made)
        except sqlite3.Error as error:
            raise api.Refusal(
                f"paused, but that could not be kept ({error}): after a restart it would go on", _SPACE
            ) from None
        finally:
            self._braked()
            self._quietly(lambda: self._journal.append(Admin(action="pause", by=by, detail=_pause_text(made))))
        return pause_row(made)

    def resume(self, agent: str | None, by: str) -> shapes.Pause:
        """Lifts one pause. Raises `api.NotFound`; `api.Refusal`, and it stays."""
        found = self.pauses.get(agent or EVERYTHING)
        if found is None:
            others = [pause.agent for pause in self.pauses.rows() if pause.agent != EVERYTHING]
            if agent is None:
                one = f"`{others[0]}` is: `aegis resume {others[0]}`" if others else ""
                raise api.NotFound("all agents together are not paused", one)
            if self.pauses.get(EVERYTHING) is not None:
                raise api.NotFound(f"`{agent}` alone is not paused", "everything is: `aegis resume` lifts that")
            near = get_close_matches(agent, others, 1)
            raise api.NotFound(f"`{agent}` is not paused", f"did you mean `{near[0]}`?" if near else "")
        try:
            self._recorded("resume", by, _pause_text(found), lambda: self.pauses.resume(found.agent))
        except (AuditUnavailable, sqlite3.Error) as error:
            raise api.Refusal(f"it stays paused: that could not be kept ({error})", _SPACE) from None
        self._braked()
        return pause_row(found)

    def paused(self) -> tuple[shapes.Pause, ...]:
        """What is stopped, everything first."""
        return tuple(pause_row(pause) for pause in self.pauses.rows())

    def _braked(self) -> None:
        self._brake(self.pauses if self.pauses.rows() else None)

    # --- extra quota --------------------------------------------------------------------------------------------

    def allow_more(
        self, agent: str | None, backend: str, tool: str, count: int, seconds: float | None, by: str, note: str
    ) -> shapes.Quota:
        """Raises one limit. Raises `api.NotFound`, `api.BadRequest`; `api.Refusal`, and it was not raised."""
        claim = self._claim(agent, backend, tool)
        window = short_duration(claim.window_s)
        if seconds is not None and seconds > claim.window_s:
            raise api.BadRequest(
                f"`{short_duration(seconds)}` is longer than the limit's window", f"name at most `{window}`"
            )
        lasts = claim.window_s if seconds is None else seconds
        until = self._wall() + lasts
        key = (claim.scope, claim.agent, claim.backend, claim.tool)
        what = f"{'all agents' if agent is None else agent}, {backend}, {tool}: {count} more until {instant(until)}"
        try:
            if self._quotas.count(key) >= MOST_QUOTAS:
                raise api.BadRequest(
                    f"the limit was raised {MOST_QUOTAS} times already", "change it in the configuration"
                )
            self._recorded(
                "quota",
                by,
                f"{what}; {note}" if note else what,
                lambda: self._quotas.add(key, count, lasts, by),
            )
        except (AuditUnavailable, sqlite3.Error) as error:
            raise api.Refusal(f"the limit stays as it is: more could not be kept ({error})", _SPACE) from None
        self._limits.allow_more(key, count, self._now() + lasts)
        return shapes.Quota(
            scope="global" if claim.agent is None else "agent",
            agent_id=claim.agent,
            backend_id=claim.backend,
            tool=claim.tool,
            count=count,
            until=instant(until),
            max_count=claim.max_count,
            extra=self._limits.beyond(claim, self._now()),
        )

    def _claim(self, agent: str | None, backend: str, tool: str) -> Claim:
        claims = self._in_force().runtime.claims
        for claim in claims:
            if (claim.agent, claim.backend, claim.tool) == (agent, backend, tool):
                return claim
        whose = "over all agents" if agent is None else f"of `{agent}`"
        alike = [claim for claim in claims if (claim.backend, claim.tool) == (backend, tool)]
        if any(claim.agent is None for claim in alike):
            hint = "there is one over all agents: `--global`"
        elif alike:
            hint = "there is one of " + ", ".join(f"`{claim.agent}`" for claim in alike)
        else:
            hint = "see `aegis limits`"
        raise api.NotFound(f"no limit {whose} is for `{tool}` on `{backend}`", hint)

    # --- inside -------------------------------------------------------------------------------------------------

    def _recorded(self, action: str, by: str, detail: str, change: Callable[[], object]) -> None:
        """Records, then changes something on disk. Raises `AuditUnavailable`, `sqlite3.Error`: it was not changed."""
        self._journal.append(Admin(action=action, by=by, detail=detail[:500]))
        try:
            change()
        except sqlite3.Error:
            undone = Admin(action=f"{action} failed", by="aegis", detail=detail[:500])
            self._quietly(lambda: self._journal.append(undone))
            raise

    @staticmethod
    def _quietly(record: Callable[[], object]) -> None:
        # What stops something has happened; a full disk must not keep it from happening.
        try:
            record()
        except AuditUnavailable as error:
            _log.error("what a person did could not be recorded: %s", error)


def grant_row(grant: Grant) -> shapes.Grant:
    """One grant as people see it."""
    return shapes.Grant(
        id=grant.id,
        agent_id=grant.agent,
        backend_id=grant.backend,
        method=grant.method,
        tool_name=grant.tool,
        arguments=grant.arguments,
        free=grant.free,
        rule=grant.rule,
        by=grant.by,
        created_at=instant(grant.created),
        expires_at=instant(grant.expires),
        uses_left=grant.uses_left,
        from_call=grant.from_call,
        command=grant.command,
        cwd=grant.cwd,
    )


def pause_row(pause: Pause) -> shapes.Pause:
    """One pause as people see it."""
    agent = None if pause.agent == EVERYTHING else pause.agent
    return shapes.Pause(agent_id=agent, by=pause.by, note=pause.note, since=instant(pause.since))


def _pause_text(pause: Pause) -> str:
    who = "all agents" if pause.agent == EVERYTHING else pause.agent
    return f"{who}: {pause.note}" if pause.note else who
