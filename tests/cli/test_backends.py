from __future__ import annotations

import json
from pathlib import Path

import pytest
from manage.memory import MemoryGovernor

from aegis_daemon.cli import names
from aegis_daemon.manage import shapes

from .conftest import Aegis


def row(name: str, **changes: object) -> shapes.BackendRow:
    base: dict[str, object] = {
        "backend_id": name, "kind": "process", "address": "npx -y server-x", "health": "no_health_url", "sessions": 2,
        "lane": True, "running": 1, "waiting": 3, "pins_changed": 1, "agents": ("claude", "cursor"),
    }  # fmt: skip
    return shapes.BackendRow(**{**base, **changes})  # type: ignore[arg-type]


def test_backends_are_listed_with_what_goes_on_there(governor: MemoryGovernor, aegis: Aegis) -> None:
    governor.backend_rows = [row("github"), row("far", kind="http", address="https://x/mcp", lane=False, agents=())]
    shown = aegis("backends").stdout
    assert shown == aegis("backends", "list").stdout
    for text in ("github", "npx -y server-x", "1 running, 3 waiting", "claude, cursor", "https://x/mcp", "none"):
        assert text in shown
    found = json.loads(aegis("backends", "list", "--json").stdout)
    assert [one["backend_id"] for one in found] == ["github", "far"]
    assert set(found[0]) == set(shapes.BackendRow.model_fields)
    for words, left in ((("--agent", "cur*"), ["github"]), (("--backend", "f*"), ["far"]), (("-n", "1"), ["github"])):
        assert [one["backend_id"] for one in json.loads(aegis("backends", *words, "--json").stdout)] == left


def test_an_unwell_backend_gives_status_1_and_none_says_how_to_begin(governor: MemoryGovernor, aegis: Aegis) -> None:
    assert "aegis setup" in aegis("backends").stderr
    governor.backend_rows = [row("github", health="unhealthy: status 500")]
    assert aegis("backends", "list").exit_code == 1
    assert "unhealthy: status 500" in aegis("backends", "list").stdout


def test_a_probe_tells_who_answered_and_how_fast(governor: MemoryGovernor, aegis: Aegis) -> None:
    governor.probed = [
        shapes.BackendProbe(
            backend_id="github", ok=True, latency_ms=81, server_name="hub\x1b[31m", server_version="1.2", era="legacy",
            protocol_version="2025-11-25", tools=26, tools_ms=3,
        )
    ]  # fmt: skip
    done = aegis("backends", "probe", "github")
    assert done.exit_code == 0
    for text in ("81 ms", "hub\\x1b[31m 1.2", "2025-11-25 (legacy era)", "26, listed in 3 ms"):
        assert text in done.stdout
    assert json.loads(aegis("backends", "probe", "github", "--json").stdout)["tools"] == 26


def test_a_probe_that_fails_gives_status_1_and_the_reason(governor: MemoryGovernor, aegis: Aegis) -> None:
    governor.probed = [shapes.BackendProbe(backend_id="github", ok=False, detail="it ended")]
    done = aegis("backends", "probe", "github")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "`github` does not serve: it ended" in done.stderr
    done = aegis("backends", "probe", "github", "--json")
    assert (done.exit_code, json.loads(done.stdout)["ok"]) == (1, False)
    assert aegis("backends", "probe", "nobody").exit_code == 1
    assert aegis("backends", "probe").exit_code == 2


def test_an_agents_shell_does_not_start_servers(governor: MemoryGovernor, aegis: Aegis) -> None:
    governor.refusal = "an agent asks"
    done = aegis("backends", "probe", "github")
    assert done.exit_code == 1
    assert "an agent asks" in done.stderr


def test_names_of_backends_are_completed(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(home, "aegis.yaml").write_text("backends:\n  github: {}\n  gitlab: {}\n  far: {url: 'https://x/mcp'}\n")
    assert names.backends("git") == ["github", "gitlab"]
