"""What is written of a call: held, allowed, refused and ended, each before the next thing happens.

The facts that do not change within a session are set once; the journal fills in sequence, clocks and chain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from aegis_daemon.audit.journal import Journal
from aegis_daemon.audit.record import (
    REASON_CAP,
    REQUEST_CAP,
    RESULT_CAP,
    Denied,
    Dropped,
    Hold,
    Intent,
    Outcome,
    clip,
)
from aegis_daemon.core.call import Call
from aegis_daemon.core.past import NAME_CAP, shortened
from aegis_daemon.core.ports import AuditUnavailable
from aegis_daemon.core.verdict import Reason
from aegis_daemon.wire.errors import REFUSALS
from aegis_daemon.wire.jsonrpc import id_text

OVERLAP = 4096
"""Bytes behind what is kept of a result that are looked at with it."""
_ERAS = {0: "none", 1: "legacy", 2: "modern"}


class Story(msgspec.Struct, eq=False):
    """The records of one call. See `core.ports.Story`."""

    journal: Journal
    call: Call
    kept: bytes | None = None
    """what is written of its content where that is not all of it"""
    acl: str = "allowed"
    limit: str = "none"
    approval: str = "not_required"
    approver: str = ""
    ticket: str = ""
    note: str = ""
    position: int = 0
    wait_us: int = 0
    judged_us: int = 0

    def _short(self, text: str, most: int) -> str:
        return text if len(text) <= most else shortened(text, most, self.journal.scrub)

    def _facts(self) -> dict[str, Any]:
        call = self.call
        return {
            "agent": call.principal.agent,
            "backend": call.backend,
            "call": call.id,
            "era": _ERAS[call.era],
            "judged_us": self.judged_us,
            "method": call.row.name,
            "name": self._short(call.name or "", NAME_CAP),
            "principal": call.principal.name,
            "request": self._short(id_text(call.request_id).decode(), REQUEST_CAP),
            "session": call.session,
            "trace": call.trace,
        }

    def held(self, ticket: str, rule: str) -> None:
        """The call waits for a person. Raises `AuditUnavailable`."""
        self.ticket = ticket
        self.approval = "pending"
        self.journal.append(
            Hold(**self._facts(), acl=self.acl, approval="pending", limit=self.limit, policy=rule, ticket=ticket),
            self.call.content_text if self.kept is None else self.kept,
        )

    def intent(self, committed: Callable[[AuditUnavailable | None], None]) -> bool:
        """The call is about to leave. True where that is committed already; else `committed` is called, once.

        Raises `AuditUnavailable`, or `committed` is given it: the call must not leave.
        """
        call = self.call
        journal = self.journal
        name, request = call.name or "", id_text(call.request_id).decode()
        if len(name) > NAME_CAP or len(request) > REQUEST_CAP:
            name, request = self._short(name, NAME_CAP), self._short(request, REQUEST_CAP)
        seq = journal.append(
            Intent(
                acl=self.acl,
                agent=call.principal.agent,
                approval=self.approval,
                approver=self.approver,
                backend=call.backend,
                call=call.id,
                era=_ERAS[call.era],
                judged_us=self.judged_us,
                limit=self.limit,
                method=call.row.name,
                name=name,
                note=self.note,
                principal=call.principal.name,
                queue_position=self.position,
                queue_wait_us=self.wait_us,
                request=request,
                session=call.session,
                ticket=self.ticket,
                trace=call.trace,
            ),
            call.content_text if self.kept is None else self.kept,
        )
        if journal.durable_seq >= seq:
            return True
        journal.when_durable(seq, committed)
        return False

    def outcome(
        self,
        status: str,
        duration_us: int,
        *,
        consumed: bool,
        result: bytes = b"",
        code: int = 0,
        message: str = "",
    ) -> None:
        """The call ended. A full disk loses the outcome, never the intent: the call then counts as unknown."""
        size, scrub = len(result), self.journal.scrub
        if scrub is not None and size > RESULT_CAP:  # a secret that the end of what is kept cuts in two is one still
            result = scrub(clip(result, RESULT_CAP + OVERLAP))
        try:
            self.journal.append(
                Outcome(
                    call=self.call.id,
                    consumed=consumed,
                    duration_us=duration_us,
                    error_code=code,
                    error_message=message[:500],
                    status=status,
                ),
                clip(result) or None,
                size,
                later=True,
            )
        except AuditUnavailable:
            pass

    def denied(self, reason: Reason, *, would: bool = False) -> None:
        """The call was refused (or, with `would`, observe mode let it pass)."""
        row = REFUSALS.get(reason.stage)
        try:
            self.journal.append(
                Denied(
                    **self._facts(),
                    acl=self.acl,
                    approval=self.approval,
                    approver=self.approver,
                    code=row.legacy if row is not None else 0,
                    limit=self.limit,
                    note=self.note,
                    policy=reason.detail,
                    queue_position=self.position,
                    queue_wait_us=self.wait_us,
                    reason=self._short(reason.text, REASON_CAP),
                    stage=reason.stage,
                    ticket=self.ticket,
                    would=would,
                ),
                self.call.content_text if self.kept is None else self.kept,
            )
        except AuditUnavailable:
            pass  # refused all the same, and the journal tells `aegis status` what ails it


class Scribe:
    """Begins stories. See `core.ports.AuditLog`.

    `redact` gives what may be written of a call's content, None for all of it; there is none where nothing is redacted.
    """

    def __init__(self, journal: Journal, redact: Callable[[Call], bytes | None] | None = None) -> None:
        self._journal = journal
        self.redact = redact

    def story(self, call: Call) -> Story:
        """The records of one call."""
        if self.redact is None:
            return Story(self._journal, call)
        return Story(self._journal, call, self.redact(call))

    def dropped(self, agent: str, backend: str, session: str, direction: str, reason: str, count: int) -> None:
        """Frames that were neither forwarded nor answered."""
        try:
            self._journal.append(
                Dropped(agent=agent, backend=backend, count=count, direction=direction, reason=reason, session=session)
            )
        except AuditUnavailable:
            pass
