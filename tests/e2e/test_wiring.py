"""Real clients start what we wrote, what they start is governed, and their files come back byte for byte."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .house import HERE, Home, call, until

CLIENTS = Path(__file__).parents[2] / ".cache" / "clients"
COUNTING = str(HERE / "counting.py")


class User:
    """A home directory, the clients' files in it, and an installation that finds them."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.dir = home.dir / "user"
        self.dir.mkdir()
        home.env |= {"HOME": str(self.dir)}

    def file(self, name: str, text: str) -> Path:
        path = self.dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def agents(self, *words: str, status: int = 0, person: bool = False) -> list[dict[str, Any]]:
        env = self.home.approver() if person else None
        found = self.home.json("agents", *words, env=env, status=status)
        assert isinstance(found, list)
        return found


@pytest.fixture
def user(homes: Callable[..., Home]) -> User:
    return User(homes('server: {listen: "127.0.0.1:0"}\n', start=False))


def cursor(user: User, *command: str) -> Path:
    entry = {"command": command[0], "args": list(command[1:])}
    return user.file(".cursor/mcp.json", json.dumps({"mcpServers": {"work": entry}, "x": [1, 2]}, indent="\t") + "\n")


def test_a_wired_entry_starts_the_daemon_is_tried_and_its_calls_wait_for_a_person(user: User) -> None:
    home = user.home
    path = cursor(user, sys.executable, COUNTING, str(home.log))
    before = path.read_bytes()
    (row,) = user.agents("wire", "--yes")
    assert (row["changed"], row["tried"], row["works"]) == (True, True, True)
    assert row["tools"] > 0
    assert until(home.answers, "the daemon that the trial started")
    entry = json.loads(path.read_bytes())["mcpServers"]["work"]
    bare = {name: value for name, value in home.env.items() if not name.startswith("AEGIS_")}
    home.agents.append(agent := _agent(home, entry, bare))
    agent.handshake()
    agent.says(call(7, "work", key="a"))
    (ticket,) = home.pending()
    assert ticket["agent_id"] == "cursor"
    assert "call a" not in home.log.read_text()
    home.decide(ticket["id"])
    assert "result" in agent.answer(7)
    agent.close()
    (row,) = user.agents("undo", "--yes", person=True)
    assert row["exact"]
    assert path.read_bytes() == before


def _agent(home: Home, entry: dict[str, Any], env: dict[str, str]) -> Any:
    from .house import Agent

    return Agent([entry["command"], *entry["args"]], {**env, **entry.get("env", {})}, str(home.dir))


def test_an_entry_that_does_not_start_is_not_wired_and_nothing_is_left_behind(user: User) -> None:
    path = cursor(user, sys.executable, "-c", "import sys; sys.exit('no such file: /data')")
    before, config = path.read_bytes(), (user.home.dir / "aegis.yaml").read_bytes()
    (row,) = user.agents("wire", "--yes", status=1)
    assert (row["changed"], row["works"]) == (False, False)
    assert path.read_bytes() == before
    assert (user.home.dir / "aegis.yaml").read_bytes() == config
    assert not (user.home.dir / "wired.json").exists()


def test_a_shell_of_a_governed_agent_cannot_take_the_wrapper_out(user: User) -> None:
    home = user.home
    path = cursor(user, sys.executable, COUNTING, str(home.log))
    user.agents("wire", "--yes")
    wired = path.read_bytes()
    entry = json.loads(wired)["mcpServers"]["work"]
    home.agents.append(agent := _agent(home, entry, home.env))  # this process is its parent, as an agent would be
    agent.handshake()
    for words in (("unwire", "--yes"), ("undo", "--all", "--yes"), ("wire", "--yes")):
        done = home.aegis("agents", *words)
        assert done.returncode == 1
        assert "governed agent" in done.stderr
    assert path.read_bytes() == wired
    assert user.agents("list", status=0)[0]["state"] == "wired"
    agent.close()


def test_a_wrapper_that_is_taken_out_behind_our_back_is_told_and_recorded(user: User) -> None:
    home = user.home
    path = cursor(user, sys.executable, COUNTING, str(home.log))
    before = path.read_bytes()
    user.agents("wire", "--yes")
    home.stop()
    value = json.loads(before)
    value["mcpServers"]["beside"] = {"command": "node", "args": ["x.js"]}
    path.write_text(json.dumps(value))
    home.launch()

    def told() -> Any:
        warnings = [text for text in home.ask("status")["warnings"] if "runs without Aegis" in text]
        return warnings if len(warnings) == 2 else None

    first, second = until(told, "the warnings")
    assert "`work` of cursor" in first
    assert "`beside`" in second
    assert [row["state"] for row in user.agents("list", status=1)] == ["drifted", "unwired"]
    home.stop()
    found = home.aegis("audit", "export", "--format", "aegis")
    assert '"unwired"' in found.stdout


# --- the programs themselves


def needed() -> None:
    if not (CLIENTS / "made-from").exists():
        pytest.fail("real clients are not installed; run scripts/clients")


PROGRAMS = {
    "claude": (".claude.json", {"mcpServers": {"work": None}}),
    "gemini": (".gemini/settings.json", {"mcpServers": {"work": None}}),
    "opencode": (".config/opencode/opencode.json", {"mcp": {"work": None}}),
    "codex": (".codex/config.toml", None),
}
SHOWN = {"claude": "Connected", "gemini": "Connected", "opencode": "connected", "codex": "enabled"}


@pytest.mark.full
@pytest.mark.parametrize("program", sorted(PROGRAMS))
def test_a_real_client_lists_the_wrapped_server(user: User, program: str) -> None:
    needed()
    home = user.home
    command = [sys.executable, COUNTING, str(home.log)]
    name, shape = PROGRAMS[program]
    if shape is None:
        text = f"[mcp_servers.work]\ncommand = {json.dumps(command[0])}\nargs = {json.dumps(command[1:])}  # mine\n"
    else:
        entry: dict[str, Any] = {"command": command[0], "args": command[1:]}
        entry = {"type": "local", "command": command} if program == "opencode" else entry
        text = json.dumps({key: {"work": entry} for key in shape}, indent=1)
    path = user.file(name, text)
    (row,) = [one for one in user.agents("wire", "--yes") if one["file"] == str(path)]
    assert row["works"], row
    done = _listed(user, program)
    assert SHOWN[program] in done, done
    assert "aegis-wrap" in done
    if program != "codex":  # it lists without starting anything
        assert home.log.read_text().count("start ") >= 2  # once for us, once for the client
    user.agents("undo", "--all", "--yes", person=True)
    if program in ("codex", "gemini"):
        assert path.read_text() == text
    else:  # Claude Code keeps notes in the same file, opencode adds its schema's address: both stay
        again, was = json.loads(path.read_text()), json.loads(text)
        assert {key: again[key] for key in was} == was


def _listed(user: User, program: str) -> str:
    """What `PROGRAM mcp list` prints, without a network where that can be had."""
    alone = shutil.which("unshare")
    apart = [alone, "-rn"] if alone and subprocess.run([alone, "-rn", "true"], check=False).returncode == 0 else []
    env = {name: value for name, value in user.home.env.items() if not name.startswith("AEGIS_")} | {
        "TERM": "dumb", "NO_COLOR": "1", "DISABLE_AUTOUPDATER": "1", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "GEMINI_CLI_TRUST_WORKSPACE": "true", "OPENCODE_DISABLE_AUTOUPDATE": "1", "OPENCODE_DISABLE_MODELS_FETCH": "1",
    }  # fmt: skip
    done = subprocess.run(
        [*apart, str(CLIENTS / "node_modules" / ".bin" / program), "mcp", "list"], env=env, cwd=user.dir,
        capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert os.path.isdir(user.dir)
    return done.stdout + done.stderr
