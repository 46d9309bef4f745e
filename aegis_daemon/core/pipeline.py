"""Judges calls: asks every gate in order, turns faults into refusals, and mints the only permits there are."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import msgspec

from aegis_daemon.core.call import Call
from aegis_daemon.core.names import effort
from aegis_daemon.core.principal import Principal
from aegis_daemon.core.stage import Gate
from aegis_daemon.core.verdict import _MINT, Allow, Ask, Claim, Deny, Hold, Pass, Permit, Reason, Verdict
from aegis_daemon.wire.jsonrpc import WireFault, disguised, encode, read
from aegis_daemon.wire.methods import Era, is_last_word

_log = logging.getLogger("aegis.pipeline")
_REMEMBERED = 8192
_EFFORT = 1000
"""Of one list: the unusual names (`names.effort`) that are judged. A server must not hold everyone up with more."""
_FAULTS = frozenset({"params", "internal"})
"""Stages of refusals that no observing lets pass: the call could not be judged."""


class Unreadable(Exception):
    """A list whose items cannot be told apart; it is withheld (hard rule 7)."""


class _Judgement(msgspec.Struct, frozen=True):
    """What the gates together say of a call, apart from the call itself. A fault does not last."""

    denied: Deny | None = None
    ask: Ask | None = None
    claims: tuple[Claim, ...] = ()
    would: Reason | None = None
    lasting: bool = True


def _settled(gate: Gate, call: Call) -> bool:
    """Whether a gate that is not `by_name` looks at nothing but names for such calls as this one, and says so."""
    asked = getattr(gate, "settled", None)
    return asked is not None and bool(asked(call))


class Pipeline:
    """The gates of one runtime. `observe` lets refusals pass and records them; faults are refused even then."""

    def __init__(self, gates: Sequence[Gate], *, observe: bool = False) -> None:
        if not gates:
            raise ValueError("a pipeline without gates would allow everything")
        self._gates = tuple(gates)
        self._deciders = tuple(gate.decide for gate in gates)
        self._observe = observe
        self._by_name = all(getattr(gate, "by_name", False) for gate in gates)  # one that does not say is asked
        self.timed = any(gate.name == "policy" and not gate.by_name for gate in gates)
        """whether judging takes long enough to be worth recording how long"""
        self._unsure = tuple(gate for gate in gates if not getattr(gate, "by_name", False))
        self._known: dict[tuple[Principal, str, str, str | None, str], _Judgement] = {}

    @property
    def gates(self) -> tuple[Gate, ...]:
        """The gates, in the order in which they are asked."""
        return self._gates

    def gate(self, stage: str) -> Gate | None:
        """The gate of a stage; None where that was left out."""
        return next((one for one in self._gates if one.name == stage), None)

    def having(self, gate: Gate, order: Sequence[str]) -> Pipeline:
        """The same with one gate more, or in place of its stage's, asked in its turn; `order` names all stages."""
        others = (one for one in self._gates if one.name != gate.name)
        gates = sorted((*others, gate), key=lambda one: order.index(one.name))
        return Pipeline(gates, observe=self._observe)

    def admit(self, call: Call, now: float) -> Verdict:
        """The verdict on a call that nobody has decided yet."""
        name = call.name
        if name is None:
            judged = self._judge(call, now)
        else:
            # A runtime never changes, so gates that look at nothing but names say the same of the next such call.
            # The subject counts, since one method may name things of several kinds (`completion/complete`).
            key = (call.principal, call.backend, call.row.name, call.subject, name)
            known = self._known.get(key)
            if known is None:
                judged = self._judge(call, now)
                if (
                    judged.lasting
                    and len(self._known) < _REMEMBERED
                    and len(name) <= 256
                    and (self._by_name or all(_settled(gate, call) for gate in self._unsure))
                ):
                    self._known[key] = judged
            else:
                judged = known
        if judged.denied is not None:
            return judged.denied
        if judged.ask is not None:
            return Hold(call, judged.ask, judged.claims)
        return Allow(Permit(_MINT, call), judged.claims, judged.would)

    def _judge(self, call: Call, now: float) -> _Judgement:
        claims: tuple[Claim, ...] = ()
        ask: Ask | None = None
        would: Reason | None = None
        pin = ""
        try:
            for decide in self._deciders:
                opinion = decide(call, now)
                if type(opinion) is Pass:
                    claims += opinion.claims
                    pin = opinion.pin or pin
                elif type(opinion) is Hold:
                    ask = ask or opinion.ask
                elif type(opinion) is Deny:
                    if not self._observe or opinion.reason.stage in _FAULTS:
                        return _Judgement(denied=opinion)
                    would = would or opinion.reason
                else:
                    raise TypeError("a gate answered with something that is no opinion")
        except Exception:
            _log.exception("a gate failed on call %s; the call is refused", call.id)
            text = "a fault in Aegis; nothing was executed; see `aegis logs`"
            return _Judgement(denied=Deny(Reason("internal", text, code="fault")), lasting=False)
        if ask is not None and self._observe:
            would = would or Reason("approval", "a person would have been asked", code="pending", detail=ask.rule)
            ask = None
        if ask is not None and pin:
            ask = msgspec.structs.replace(ask, pin=pin)
        return _Judgement(ask=ask, claims=claims, would=would)

    def forget(self) -> None:
        """What a gate goes by has changed, though the runtime has not: every call is judged anew."""
        self._known.clear()

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

        Unusual names beyond what one list may cost are hidden unjudged. Raises `Unreadable`.
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
        if not is_last_word(result):
            raise Unreadable("it asks the client for something, which no list may")
        kept: list[Any] = []
        changed = False
        left = _EFFORT
        unjudged = 0
        for item in items:
            name = item.get(row.key) if type(item) is dict else None
            if type(name) is not str or disguised(item, row.key):
                raise Unreadable(f"an item of `{row.items}` has no `{row.key}`, or a second one in disguise")
            cost = 0 if self._observe else effort(name)
            if cost > left:
                unjudged += 1
                changed = True
                continue
            left -= cost
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
        if unjudged:
            _log.warning("`%s` of `%s`: %d unusual names too many; they are hidden", row.name, call.backend, unjudged)
        # What one agent may see is not for another's cache, nor for longer than today's policy: all of it, too.
        fresh = {"cacheScope": "private", "ttlMs": 0} if call.era is Era.MODERN else {}
        if not changed and fresh.items() <= {key: result.get(key) for key in fresh}.items():
            return body
        return encode({**result, row.items: kept, **fresh})
