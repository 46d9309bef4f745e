from __future__ import annotations

from typing import Any

import pytest

from aegis_daemon.config.describe import digest
from aegis_daemon.config.load import loads
from aegis_daemon.config.runtime import build
from aegis_daemon.core.handed import handed
from aegis_daemon.relay.admission import Refused, plan, plan_remote
from aegis_shim.hello import Hello


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2J", "a\udcff", "a" * 129, "a\u202eb"])
@pytest.mark.parametrize("which", ["agent", "backend"])
def test_a_name_that_could_not_be_recorded_plainly_is_refused(name: str, which: str) -> None:
    greeting = Hello(name) if which == "agent" else Hello("a", backend=name)
    nothing: Any = None  # it is refused before anything is asked
    with pytest.raises(Refused, match="cannot be seen"):
        plan(greeting, 0, 0, nothing, {})


def test_a_server_is_told_from_others_exactly_where_something_of_it_came_from_the_shim() -> None:
    allowed = "{a: {allowed: true}, b: {allowed: true}, c: {allowed: true}}"
    config = loads(
        "backends: {a: {}, b: {command: srv}, c: {url: 'http://127.0.0.1:1/mcp'}}\n"
        f"agents: {{bot: {{backends: {allowed}}}}}\n",
        "aegis.yaml",
    ).config
    runtime = build(config, digest(config))
    said: dict[str, Any] = {"cwd": "/w", "env": {"A": "1", "AEGIS_AGENT": "bot"}}
    found = plan(Hello("bot", "a", args=("srv", "x"), **said), 1, 1, runtime, {})
    assert found.handed == handed(("srv", "x"), "/w", {"A": "1"})
    assert plan(Hello("bot", "b", **said), 1, 1, runtime, {}).handed == handed(("srv",), "/w", {"A": "1"})
    assert plan(Hello("bot", "c", **said), 1, 1, runtime, {}).handed is None
    assert plan_remote(found.principal, "b", runtime, {}).handed is None


def test_another_users_process_does_not_learn_which_agents_there_are() -> None:
    config = loads("agents: {bot: {identities: [7]}, ann: {}}", "aegis.yaml").config
    runtime = build(config, digest(config))
    texts, details = set(), set()
    for name in ("bot", "ann", "nobody"):
        with pytest.raises(Refused) as caught:
            plan(Hello(name, "x"), 4242, 1, runtime, {})
        texts.add(str(caught.value).replace(name, "N"))
        details.add(caught.value.detail.replace(name, "N"))
    assert len(texts) == 1
    assert "identities" not in texts.pop()
    assert len(details) == 2, "the daemon's log tells them apart"
    assert all("identities" in one for one in details)
