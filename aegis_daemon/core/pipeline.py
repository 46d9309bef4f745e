"""Judges calls: asks every gate in order, turns faults into refusals, and mints the only permits there are."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from aegis_daemon.core.call import Call
from aegis_daemon.core.principal import Principal
from aegis_daemon.core.stage import Gate
from aegis_daemon.core.verdict import _MINT, Allow, Claim, Deny, Hold, Pass, Permit, Reason, Verdict
from aegis_daemon.wire.jsonrpc import WireFault, disguised, encode, read
from aegis_daemon.wire.methods import Era

_log = logging.getLogger("aegis.pipeline")
_FAULTS = frozenset({"params", "internal"})
"""Stages of refusals that no observing lets pass: the call could not be judged."""


class Unreadable(Exception):
    """A list whose items cannot be told apart; it is withheld (hard rule 7)."""


class Pipeline:
    """The gates of one runtime. `observe` lets refusals pass and records them; faults are refused even then."""

    def __init__(self, gates: Sequence[Gate], *, observe: bool = False) -> None:
        if not gates:
            raise ValueError("a pipeline without gates would allow everything")
        self._gates = tuple(gates)
        self._deciders = tuple(gate.decide for gate in gates)
        self._observe = observe

    def admit(self, call: Call, now: float) -> Verdict:
        """The verdict on a call that nobody has decided yet."""
        claims: tuple[Claim, ...] = ()
        hold: Hold | None = None
        would: Reason | None = None
        try:
            for decide in self._deciders:
                opinion = decide(call, now)
                kind = type(opinion)
                if kind is Pass:
                    if opinion.claims:  # type: ignore[union-attr]
                        claims += opinion.claims  # type: ignore[union-attr]
                elif kind is Hold:
                    hold = hold or opinion  # type: ignore[assignment]
                elif kind is Deny:
                    if not self._observe or opinion.reason.stage in _FAULTS:  # type: ignore[union-attr]
                        return opinion  # type: ignore[return-value]
                    would = would or opinion.reason  # type: ignore[union-attr]
                else:
                    raise TypeError("a gate answered with something that is no opinion")
        except Exception:
            _log.exception("a gate failed on call %s; the call is refused", call.id)
            return Deny(Reason("internal", "a fault in Aegis; nothing was executed; see `aegis logs`", code="fault"))
        if hold is not None:
            if not self._observe:
                return Hold(call, hold.ask, claims)
            would = would or Reason("approval", "a person would have been asked", detail=hold.ask.rule)
        return Allow(Permit(_MINT, call), claims, would)

    @property
    def observe(self) -> bool:
        """Whether refusals pass."""
        return self._observe

    def resume(self, call: Call, now: float) -> Verdict:
        """Today's verdict on a call that a person approved: every gate is asked again, the ask counts as answered."""
        verdict = self.admit(call, now)
        if type(verdict) is Hold:
            return Allow(Permit(_MINT, call), verdict.claims)
        return verdict

    # --- answers ------------------------------------------------------------------------------------------------

    def visible(self, principal: Principal, backend: str, subject: str, name: str) -> bool:
        """Whether every gate shows this item; a fault hides it."""
        if self._observe:
            return True
        try:
            return all(gate.visible(principal, backend, subject, name) for gate in self._gates)
        except Exception:
            _log.exception("a gate failed on the name %r; it is hidden", name)
            return False

    def clean_list(self, call: Call, body: bytes) -> bytes:
        """The result of a list method without what is hidden and with labels; the same bytes where nothing changed.

        Raises `Unreadable`.
        """
        row = call.row
        assert row.items is not None
        assert row.key is not None
        assert row.subject is not None
        try:
            result: Any = read(body)
        except WireFault as fault:
            raise Unreadable(fault.text) from fault
        items = result.get(row.items) if type(result) is dict else None
        if type(items) is not list or disguised(result, row.items):
            raise Unreadable(f"the list has no `{row.items}`, or a second one in disguise")
        kept: list[Any] = []
        changed = False
        for item in items:
            name = item.get(row.key) if type(item) is dict else None
            if type(name) is not str or disguised(item, row.key):
                raise Unreadable(f"an item of `{row.items}` has no `{row.key}`, or a second one in disguise")
            if not self.visible(call.principal, call.backend, row.subject, name):
                changed = True
                continue
            if row.subject == "tool":
                labels = [label for gate in self._gates for label in gate.labels(call.principal, call.backend, name)]
                if labels:
                    changed = True
                    text = item.get("description")
                    prefix = f"[{'|'.join(labels)}]"
                    item = {**item, "description": f"{prefix} {text}" if type(text) is str and text else prefix}
            kept.append(item)
        if not changed:
            return body
        result[row.items] = kept
        if call.era is Era.MODERN:
            # What one agent may see is not for another's cache, nor for longer than today's policy.
            result["cacheScope"] = "private"
            result["ttlMs"] = 0
        return encode(result)
