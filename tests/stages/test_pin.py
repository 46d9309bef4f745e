"""The gate of pins lets through what is as it was trusted, and shows nothing that it refuses."""

from __future__ import annotations

import pytest
from making import call, tool

from aegis_daemon.core.call import Call
from aegis_daemon.core.principal import Principal
from aegis_daemon.core.verdict import PASS, Deny, Pass
from aegis_daemon.stages.pin import Pins

AMY = Principal("amy")


class Known:
    """What is known of one server: name → state."""

    recheck_s = 1.0

    def __init__(self, turn: str = "", **states: str) -> None:
        self.turn = turn
        self.states = states

    def stops(self, backend: str, subject: str, name: str) -> str:
        return self.states.get(name or subject, "unseen") if backend == "files" else "unseen"

    def trusted(self, backend: str, subject: str, name: str) -> str:
        return self.turn

    def knows(self, backend: str, subject: str, name: str) -> bool:
        return name in self.states

    def shown(self, backend: str, method: str, body: bytes) -> bool:
        return False


@pytest.mark.parametrize("hold", [False, True])
@pytest.mark.parametrize("state", ["", "changed", "held", "unseen", "crowded"])
def test_what_is_refused_is_hidden_and_nothing_else_is(state: str, hold: bool) -> None:
    gate = Pins(Known(post=state), hold=hold)
    refused = bool(state) and (state != "unseen" or hold)
    for one in (tool("post"), call("prompts/get", {"name": "post"})):
        found = gate.decide(one, 0.0)
        assert isinstance(found, Deny) is refused
        if isinstance(found, Deny):
            assert (found.reason.stage, found.reason.retryable) == ("pin", False)
        assert gate.visible(AMY, "files", one.subject or "", "post") is not refused
    assert gate.decide(call("tools/list"), 0.0) is PASS
    assert gate.labels(AMY, "files", "post") == ()


def test_what_a_person_trusted_anew_is_what_an_approval_is_asked_for() -> None:
    assert Pins(Known(turn="2:ab", post="")).decide(tool("post"), 0.0) == Pass(pin="2:ab")


@pytest.mark.parametrize(
    "asked",
    [
        call("resources/read", {"uri": "notes:///1"}),
        call("resources/subscribe", {"uri": "notes:///1"}),
        call("completion/complete", {"ref": {"type": "ref/resource", "uri": "notes:///1"}}),
        call("subscriptions/listen", {"notifications": {"resourceSubscriptions": ["ok:///", "notes:///1"]}}),
    ],
    ids=lambda one: one.method,
)
def test_resources_of_a_changed_template_are_refused_by_every_way(asked: Call) -> None:
    gate = Pins(Known(**{"notes:///1": "changed", "ok:///": ""}))
    assert isinstance(gate.decide(asked, 0.0), Deny)


def test_a_subscription_to_what_has_changed_may_be_ended() -> None:
    gate = Pins(Known(**{"notes:///1": "changed"}))
    assert gate.decide(call("resources/unsubscribe", {"uri": "notes:///1"}), 0.0) is PASS


@pytest.mark.parametrize("uri", ["NOTES:///a/1", "notes:///a/%31", "notes:///b/../a/1"])
def test_a_resource_of_a_changed_template_is_refused_however_it_is_spelt(uri: str) -> None:
    gate = Pins(Known(**{uri: "", "notes:///a/1": "changed"}))
    assert isinstance(gate.decide(call("resources/read", {"uri": uri}), 0.0), Deny)


def test_a_refusal_tells_the_log_the_way_out_and_not_the_agent() -> None:
    found = Pins(Known(**{"send mail": "changed"})).decide(tool("send mail"), 0.0)
    assert isinstance(found, Deny)
    assert "aegis tools" not in found.reason.text
    assert "`aegis tools diff 'send mail' --backend files`" in found.reason.detail
    assert "`aegis tools trust`" in found.reason.detail
