"""Pins: what its server has changed is neither shown nor used before a person has looked at it.

A `by_name` gate over something that changes while the runtime does not: whoever changes it tells the pipeline
(`Pipeline.forget`).
"""

from __future__ import annotations

from shlex import quote
from typing import Final

from aegis_daemon.core.call import Call
from aegis_daemon.core.names import plain_uri
from aegis_daemon.core.ports import Pins as Pinned
from aegis_daemon.core.principal import Principal
from aegis_daemon.core.verdict import PASS, Deny, Opinion, Pass, Reason
from aegis_daemon.wire.methods import BadParams, listened_resources

SUBJECTS: Final = frozenset({"tool", "prompt", "resource"})
_ENDS: Final = "resources/unsubscribe"
_WHY: Final = {
    "changed": "was changed by its server since it was trusted",
    "held": "has not been trusted by a person yet",
    "unseen": "has not been trusted by a person yet",
    "crowded": "is one of more than can be kept in mind of one server",
    "long": "has a longer name than can be kept in mind",
}


class Pins:
    """`hold` is `pins.first_seen: hold`: what nobody has trusted by name is not usable either."""

    name = "pin"
    by_name = True

    def __init__(self, pins: Pinned, *, hold: bool = False) -> None:
        self._pins = pins
        self._hold = hold

    def _stops(self, backend: str, subject: str, name: str) -> str:
        found = self._pins.stops(backend, subject, name)
        if not found and subject == "resource" and "{" not in name:
            # The same resource in another spelling: `FILE:///logs/%61` is of a changed `file:///logs/{name}`, too.
            try:
                found = self._pins.stops(backend, subject, plain_uri(name))
            except ValueError:
                return ""
        return found if found != "unseen" or self._hold else ""

    def decide(self, call: Call, now: float) -> Opinion:
        """Passes what is as it was trusted."""
        subject, name, backend = call.subject, call.name, call.backend
        if name is None:
            return self._listen(call) if call.method == "subscriptions/listen" else PASS
        if subject not in SUBJECTS or call.method == _ENDS:
            return PASS
        why = self._stops(backend, subject, name)
        if why:
            return Deny(_reason(backend, subject, name, why))
        trusted = self._pins.trusted(backend, subject, name)
        return Pass(pin=trusted) if trusted else PASS

    def _listen(self, call: Call) -> Opinion:
        try:
            uris = listened_resources(call.frame.params)
        except BadParams as error:
            return Deny(Reason("params", str(error), code="bad_params"))
        for uri in uris:
            why = self._stops(call.backend, "resource", uri)
            if why:
                return Deny(_reason(call.backend, "resource", uri, why))
        return PASS

    def visible(self, principal: Principal, backend: str, subject: str, name: str) -> bool:
        """As `decide`."""
        if subject not in SUBJECTS and subject != "instructions":
            return True
        return not self._stops(backend, subject, name)

    def labels(self, principal: Principal, backend: str, tool: str) -> tuple[str, ...]:
        """None: what is not trusted is not shown at all."""
        return ()


def _reason(backend: str, subject: str, name: str, why: str) -> Reason:
    shown = name[:200]
    kind = "template" if subject == "resource" else subject
    if subject == "resource":
        way = f"`aegis tools list --changed --backend {backend}` shows which {kind} it is"
    else:
        way = f"`aegis tools diff {quote(shown)} --backend {quote(backend)}` shows what it is now"
    step = f"{way}, and `aegis tools trust` lets it be used"
    if why in ("crowded", "long"):  # no person can trust it by name
        step = f"`aegis tools list --backend {quote(backend)}` shows what can be used"
    return Reason(
        "pin",
        f"the {subject} `{shown}` {_WHY[why]}; not executed; do not repeat it before a person has looked at it",
        code="changed" if why == "changed" else "not_trusted",
        detail=f"pins: the {subject} `{shown}` of `{backend}` {_WHY[why]}; {step}",
    )
