"""`aegis agents` shows what goes through us and what does not, and changes nothing that a person has not seen."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from manage.memory import MemoryGovernor, Served

from aegis_daemon.cli.agents import doing, planning
from aegis_daemon.cli.agents import files as agents_files
from aegis_daemon.clients import files, trial

from .conftest import Aegis
from .terminal import Terminal, strip

SECRET = "ghp_0123456789abcdefghijklmnopqrstuvwxyz"
CURSOR = """{
  "mcpServers": {
    "github": {"command": "npx", "args": ["-y", "server-github", "--api-key", "k-1234567"],
      "env": {"GITHUB_TOKEN": "SECRET", "WHERE": "a-private-place"}},
    "far" : { "url": "https://u:p@far.example/mcp?key=q1", "headers": {"Authorization": "Bearer SECRET"} }
  }
}
""".replace("SECRET", SECRET).encode()


@pytest.fixture
def user(home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory with Cursor in it."""
    for name in list(os.environ):
        if name.startswith(("XDG_", "CLAUDE_", "CODEX_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    file = tmp_path / ".cursor" / "mcp.json"
    file.parent.mkdir()
    file.write_bytes(CURSOR)
    return tmp_path


@pytest.fixture
def cursor(user: Path) -> Path:
    return user / ".cursor" / "mcp.json"


def rows(aegis: Aegis, *words: str) -> list[dict[str, Any]]:
    done = aegis("agents", *words, "--json")
    found = json.loads(done.stdout)
    assert isinstance(found, list)
    return found


def by_server(found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["server"]: row for row in found}


def wire(aegis: Aegis, *words: str) -> list[dict[str, Any]]:
    return rows(aegis, "wire", "--yes", "--no-probe", *words)


def test_the_list_shows_agents_and_entries_with_their_states(cursor: Path, home: str, aegis: Aegis) -> None:
    Path(home, "aegis.yaml").write_text("agents: {amy: {backends: {}}}\n")
    found = rows(aegis, "list")
    assert {(row["agent_id"], row["server"], row["state"]) for row in found} == {
        (None, "github", "unwired"), (None, "far", "unwired"), ("amy", None, "configured"),
    }  # fmt: skip
    done = aegis("agents")
    assert done.exit_code == 0
    assert "aegis agents wire" in done.stderr
    for hidden in (SECRET, "k-1234567", "q1", "u:p", "a-private-place"):
        assert hidden not in done.output + aegis("agents", "list", "--json").output
    wire(aegis)
    found = rows(aegis, "list")
    assert {(row["agent_id"], row["server"], row["state"]) for row in found} == {
        ("cursor", "github", "wired"), ("cursor", "far", "wired"), ("amy", None, "configured"),
    }  # fmt: skip
    assert all(row["governed"] and row["configured"] for row in found if row["server"])
    shown = aegis("agents", "show", "cursor")
    assert "waits for a person: *" in shown.stdout
    assert aegis("agents", "show", "nobody").exit_code == 1


def test_a_dry_run_changes_nothing_and_shows_no_secret(cursor: Path, home: str, aegis: Aegis) -> None:
    done = aegis("agents", "wire", "--dry-run")
    assert done.exit_code == 0
    assert "+command: " in done.stdout
    assert '-command: "npx"' in done.stdout
    assert "<GITHUB_TOKEN>" in done.stdout
    assert "<Authorization>" in done.stdout
    assert "<api-key>" in done.stdout
    for hidden in (SECRET, "k-1234567", "u:p@", "a-private-place"):
        assert hidden not in done.output
    assert cursor.read_bytes() == CURSOR
    assert os.listdir(home) == []
    assert json.loads(aegis("agents", "wire", "--dry-run", "--json").stdout)[0]["changed"] is False


def test_without_a_terminal_it_wants_to_be_told(cursor: Path, aegis: Aegis) -> None:
    for words in (["wire"], ["unwire"], ["undo"]):
        done = aegis("agents", *words)
        assert done.exit_code == 2
        assert "--yes" in done.stderr
    assert cursor.read_bytes() == CURSOR


def test_wiring_makes_the_configuration_know_the_agent_and_every_call_wait(
    cursor: Path, home: str, aegis: Aegis
) -> None:
    found = by_server(wire(aegis))
    assert {name: row["changed"] for name, row in found.items()} == {"github": True, "far": True}
    text = Path(home, "aegis.yaml").read_text()
    assert aegis("config", "validate").exit_code == 0
    assert SECRET not in text
    config = json.loads(aegis("config", "show", "--json").stdout)
    assert config["agents"]["cursor"]["backends"]["github"]["approval_required"] == ["*"]
    assert config["agents"]["cursor"]["backends"]["far"]["allowed"] is True
    assert set(config["backends"]) == {"github", "far"}
    secret = Path(home, "secrets", "far.authorization")
    assert secret.read_text() == f"Bearer {SECRET}"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert stat.S_IMODE(Path(home, "aegis.yaml").stat().st_mode) == 0o600
    entry = json.loads(cursor.read_bytes())["mcpServers"]["far"]
    assert entry["args"] == ["--agent", "cursor", "--backend", "far"]
    assert entry["env"] == {"AEGIS_HOME": home}
    assert SECRET not in json.dumps(entry)


def test_what_the_configuration_says_already_is_not_loosened(cursor: Path, home: str, aegis: Aegis) -> None:
    rule = "# mine\nagents:\n  cursor:\n    backends:\n      github: {allowed: false}\nbackends: {github: {}}\n"
    Path(home, "aegis.yaml").write_text(rule)
    wire(aegis, "--server", "github")
    assert Path(home, "aegis.yaml").read_text() == rule


def test_a_name_that_is_another_servers_gets_one_of_its_own(cursor: Path, home: str, aegis: Aegis) -> None:
    Path(home, "aegis.yaml").write_text("backends: {github: {command: gh-server}}\n")
    (row,) = wire(aegis, "--server", "github")
    assert row["backend_id"] == "github-cursor"


def test_a_second_run_changes_nothing(cursor: Path, home: str, aegis: Aegis) -> None:
    wire(aegis)
    before = (cursor.read_bytes(), Path(home, "aegis.yaml").read_bytes(), Path(home, "wired.json").read_bytes())
    done = aegis("agents", "wire", "--yes", "--no-probe")
    assert done.exit_code == 0
    assert "nothing to wire" in done.stderr
    after = (cursor.read_bytes(), Path(home, "aegis.yaml").read_bytes(), Path(home, "wired.json").read_bytes())
    assert after == before


def test_undo_gives_the_file_back_byte_for_byte(cursor: Path, home: str, aegis: Aegis) -> None:
    wire(aegis)
    assert cursor.read_bytes() != CURSOR
    done = aegis("agents", "undo", "--dry-run")
    assert "byte for byte" in done.stderr
    assert cursor.read_bytes() != CURSOR
    found = rows(aegis, "undo", "--yes")
    assert all(row["changed"] and row["exact"] for row in found)
    assert cursor.read_bytes() == CURSOR
    assert not Path(home, "wired.json").exists()
    assert rows(aegis, "undo", "--yes") == []


def test_undo_takes_an_agent_a_run_or_everything(cursor: Path, user: Path, aegis: Aegis) -> None:
    mcporter = user / "some" / "mcp_servers.json"
    mcporter.parent.mkdir()
    mcporter.write_bytes(CURSOR)
    first = wire(aegis)[0]["change"]
    wire(aegis, "--file", str(mcporter), "--agent", "amy")
    assert aegis("agents", "undo", "nobody", "--yes").exit_code == 1
    assert aegis("agents", "undo", "amy", "--yes").exit_code == 0
    assert mcporter.read_bytes() == CURSOR
    assert cursor.read_bytes() != CURSOR
    assert aegis("agents", "undo", first, "--yes").exit_code == 0
    assert cursor.read_bytes() == CURSOR
    wire(aegis)
    wire(aegis, "--file", str(mcporter), "--agent", "amy")
    assert aegis("agents", "undo", "--all", "--yes").exit_code == 0
    assert (cursor.read_bytes(), mcporter.read_bytes()) == (CURSOR, CURSOR)


def test_unwire_leaves_what_others_changed_since(cursor: Path, aegis: Aegis) -> None:
    wire(aegis)
    cursor.write_bytes(cursor.read_bytes().replace(b'"mcpServers"', b'"theirs": 1, "mcpServers"'))
    done = aegis("agents", "unwire", "--yes", "--json")
    assert done.exit_code == 0
    assert cursor.read_bytes() == CURSOR.replace(b'"mcpServers"', b'"theirs": 1, "mcpServers"')


def test_a_damaged_file_is_refused_untouched_and_the_others_are_wired(cursor: Path, user: Path, aegis: Aegis) -> None:
    damaged = user / ".gemini" / "settings.json"
    damaged.parent.mkdir()
    damaged.write_bytes(b'{"mcpServers": {"x": }')
    done = aegis("agents", "wire", "--yes", "--no-probe")
    assert done.exit_code == 1
    assert "line 1, column" in done.stderr
    assert damaged.read_bytes() == b'{"mcpServers": {"x": }'
    assert cursor.read_bytes() != CURSOR
    assert aegis("agents", "wire", "--yes", "--file", str(damaged)).exit_code == 1


def test_a_file_or_a_name_that_is_not_there_is_a_usage_error(cursor: Path, user: Path, aegis: Aegis) -> None:
    assert aegis("agents", "wire", "--yes", "--file", str(user / "none.json")).exit_code == 1
    done = aegis("agents", "wire", "--yes", "--server", "githb")
    assert done.exit_code == 2
    assert "did you mean `github`" in done.stderr
    assert aegis("agents", "wire", "--yes", "--client", "cursr").exit_code == 2
    assert aegis("agents", "wire", "--yes", "--agent", "a b").exit_code == 2
    assert cursor.read_bytes() == CURSOR


def test_a_projects_file_is_wired_only_by_its_name(cursor: Path, user: Path, aegis: Aegis, monkeypatch: Any) -> None:
    shared = user / "project" / ".mcp.json"
    shared.parent.mkdir()
    shared.write_bytes(CURSOR)
    monkeypatch.chdir(shared.parent)
    done = aegis("agents", "wire", "--yes", "--no-probe")
    assert done.exit_code == 0
    assert ".mcp.json is a project's" in done.stderr
    assert shared.read_bytes() == CURSOR
    assert {row["client"] for row in rows(aegis, "list") if row["state"] == "unwired"} == {"claude-code"}
    wire(aegis, "--file", str(shared))
    assert shared.read_bytes() != CURSOR
    assert aegis("agents", "undo", "--all", "--yes").exit_code == 0
    assert (shared.read_bytes(), cursor.read_bytes()) == (CURSOR, CURSOR)


def test_where_no_client_is_found_it_says_how_to_go_on(cursor: Path, aegis: Aegis) -> None:
    cursor.unlink()
    done = aegis("agents", "wire", "--yes")
    assert done.exit_code == 1
    assert "--file" in done.stderr


def test_a_drifted_entry_makes_the_list_end_with_1(cursor: Path, aegis: Aegis) -> None:
    wire(aegis)
    value = json.loads(cursor.read_bytes())
    value["mcpServers"]["github"] = {"command": "npx", "args": ["-y", "server-github"]}
    cursor.write_text(json.dumps(value))
    done = aegis("agents", "list", "--json")
    assert done.exit_code == 1
    row = by_server(json.loads(done.stdout))["github"]
    assert (row["state"], row["governed"]) == ("drifted", False)


def test_a_header_that_only_the_client_knows_is_not_wired_blindly(cursor: Path, aegis: Aegis) -> None:
    data = b'{"mcpServers": {"far": {"url": "https://far.example/mcp", "headers": {"A": "${env:NOT_SET_HERE}"}}}}'
    cursor.write_bytes(data)
    done = aegis("agents", "wire", "--yes", "--no-probe")
    assert done.exit_code == 1
    assert "NOT_SET_HERE" in done.stderr
    assert cursor.read_bytes() == data


def test_a_faulty_configuration_stops_it_before_anything_is_changed(cursor: Path, home: str, aegis: Aegis) -> None:
    Path(home, "aegis.yaml").write_text("agnets: {}\n")
    assert aegis("agents", "wire", "--yes", "--no-probe").exit_code == 1
    assert cursor.read_bytes() == CURSOR


def test_names_of_entries_steer_no_terminal(cursor: Path, aegis: Aegis) -> None:
    cursor.write_text(json.dumps({"mcpServers": {"a\x1b[2J\u202e": {"command": "x\x1b]0;y\x07"}}}))
    for words in (["list"], ["wire", "--dry-run"], ["list", "--json"], ["wire", "--dry-run", "--json"]):
        output = aegis("agents", *words).output
        assert not set(output) & set("\x1b\u202e\x07"), words


def test_a_governed_agents_shell_may_look_and_not_wire_or_unwire(
    cursor: Path, served: Served, governor: MemoryGovernor, aegis: Aegis
) -> None:
    wire(aegis)
    wired = cursor.read_bytes()
    assert governor.wirings
    assert governor.wirings[0][0] == "wire"
    governor.refusal = "the request comes from `claude` (pid 7)"
    assert aegis("agents", "list").exit_code in (0, 1)
    for words in (["wire"], ["unwire"], ["undo"]):
        refused = aegis("agents", *words, "--yes")
        assert refused.exit_code == 1
        assert "`claude`" in refused.stderr
    assert cursor.read_bytes() == wired


def test_a_person_is_asked_and_no_changes_nothing(cursor: Path, home: str) -> None:
    env = {"HOME": os.environ["HOME"]}
    with Terminal("agents", "wire", "--no-probe", **env) as terminal:
        assert "+command" in strip(terminal.expect("make these changes?"))
        terminal.send("n\n")
        assert terminal.end() == 1
    assert cursor.read_bytes() == CURSOR
    assert os.listdir(home) == []
    with Terminal("agents", "wire", "--no-probe", **env) as terminal:
        terminal.expect("make these changes?")
        terminal.send("y\n")
        assert terminal.end() == 0
    with Terminal("agents", "undo", **env) as terminal:
        assert "byte for byte" in terminal.expect("make these changes?")
        terminal.send("y\n")
        assert terminal.end() == 0
    assert cursor.read_bytes() == CURSOR


def test_a_foreign_wrapper_is_asked_about(cursor: Path) -> None:
    cursor.write_text(json.dumps({"mcpServers": {"x": {"command": "thv", "args": ["run", "x"]}}}))
    with Terminal("agents", "wire", "--no-probe", HOME=os.environ["HOME"]) as terminal:
        assert "it goes through ToolHive" in terminal.expect("adopt/skip")
        terminal.send("adopt\n")
        terminal.expect("make these changes?")
        terminal.send("y\n")
        assert terminal.end() == 0
    assert json.loads(cursor.read_bytes())["mcpServers"]["x"]["args"][-3:] == ["thv", "run", "x"]


# --- files of any program


ANY = {
    "m.jsonc": b'{ // mine\n "mcpServers": {"a": {"command": "x"}}, }\n',
    "m.json5": b"{ mcpServers: {a: {command: 'x'}}, }\n",
    "m.yaml": b"mcpServers:\n  a:\n    command: x  # mine\n",
    "m.toml": b'[mcp_servers.a]\ncommand = "x"  # mine\n',
    "weird.json": b'{"mcp_servers": {"a": {"command": "x"}}}',
    "bare.json": b'{"a": {"command": "x"}}',
}


@pytest.mark.parametrize("name", ANY)
def test_a_file_of_any_program_and_format_is_listed_and_undone(name: str, user: Path, home: str, aegis: Aegis) -> None:
    file = user / "some" / name
    file.parent.mkdir()
    file.write_bytes(ANY[name])
    (row,) = wire(aegis, "--file", str(file), "--agent", "amy")
    assert row["changed"]
    listed = [row for row in rows(aegis, "list") if row["file"] == str(file)]
    assert [(row["server"], row["state"]) for row in listed] == [("a", "wired")]
    assert rows(aegis, "wire", "--yes", "--no-probe", "--file", str(file), "--agent", "amy") == []
    assert [row["exact"] for row in rows(aegis, "undo", "--yes")] == [True]
    assert file.read_bytes() == ANY[name]
    wire(aegis, "--file", str(file), "--agent", "amy")
    assert aegis("agents", "unwire", "--yes").exit_code == 0
    assert file.read_bytes() == ANY[name]


# --- one backend is one server


def servers(*entries: tuple[str, Any]) -> str:
    return json.dumps({"mcpServers": dict(entries)})


def test_one_name_for_two_servers_gives_two_backends_and_it_is_told(
    cursor: Path, user: Path, home: str, aegis: Aegis
) -> None:
    time = {"command": "uvx", "args": ["mcp-server-time"]}
    local = {"command": "uvx", "args": ["mcp-server-time", "--local-timezone=UTC"]}
    (user / ".claude.json").write_text(
        servers(("time", time), ("a b", {"command": "one"}), ("a-b", {"command": "two"}))
    )
    cursor.write_text(servers(("time", local), ("a-b", {"command": "two"})))
    done = aegis("agents", "wire", "--yes", "--no-probe", "--json")
    found = {(row["client"], row["server"]): row["backend_id"] for row in json.loads(done.stdout)}
    assert found["claude-code", "time"] == "time"
    assert found["cursor", "time"] == "time-cursor"
    assert (found["claude-code", "a b"], found["claude-code", "a-b"]) == ("a-b", "a-b-claude-code")
    assert found["cursor", "a-b"] == "a-b-claude-code"  # the same server to the letter
    assert "`time` of Cursor is another server than the backend `time`" in done.stderr
    config = json.loads(aegis("config", "show", "--json").stdout)
    assert set(config["agents"]["cursor"]["backends"]) == {"time-cursor", "a-b-claude-code"}


def test_clients_that_reach_one_server_alike_share_a_backend_whoever_has_its_name(
    cursor: Path, user: Path, aegis: Aegis
) -> None:
    def far(**more: Any) -> str:
        return servers(("remote", {"url": "https://far.example/mcp", **more}))

    (user / ".claude.json").write_text(
        servers(("remote", {"type": "http", "url": "https://far.example/mcp", "headers": {"X-K": "key-of-claude"}}))
    )
    cursor.write_text(far())
    other = user / ".codeium" / "windsurf" / "mcp_config.json"
    other.parent.mkdir(parents=True)
    other.write_text(servers(("remote", {"serverUrl": "https://far.example/mcp"})))
    found = {row["client"]: row["backend_id"] for row in wire(aegis)}
    assert found == {"claude-code": "remote", "cursor": "remote-cursor", "windsurf": "remote-cursor"}


def test_one_server_under_two_names_is_one_backend_unless_the_configuration_names_both(
    cursor: Path, user: Path, home: str, aegis: Aegis
) -> None:
    same = {"command": "npx", "args": ["server-everything"]}
    (user / ".claude.json").write_text(servers(("everything", same)))
    cursor.write_text(servers(("extra", same), ("other", {**same, "env": {"A": "1"}})))
    done = aegis("agents", "wire", "--yes", "--no-probe", "--dry-run", "--json")
    found = {row["server"]: row["backend_id"] for row in json.loads(done.stdout)}
    assert found == {"everything": "everything", "extra": "everything", "other": "other"}
    assert (
        "`extra` of Cursor is the same server as the backend `everything`, so it is the backend `everything`"
        in done.stderr
    )
    Path(home, "aegis.yaml").write_text("backends: {extra: {}}\n")
    done = aegis("agents", "wire", "--yes", "--no-probe", "--dry-run", "--json")
    assert {row["server"]: row["backend_id"] for row in json.loads(done.stdout)}["extra"] == "extra"


def test_a_file_that_is_gone_is_forgotten_by_name(cursor: Path, user: Path, aegis: Aegis) -> None:
    wire(aegis)
    cursor.unlink()
    done = aegis("agents", "unwire", "--yes", "--file", str(cursor), "--server", "github")
    assert done.exit_code == 0, done.stderr
    assert [row["state"] for row in rows(aegis, "list") if row["server"]] == []


def test_a_link_among_the_commands_is_what_clients_start(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = agents_files.wrapper()
    links = user / ".local" / "bin"
    links.mkdir(parents=True)
    (links / "aegis-wrap").symlink_to(real)
    assert agents_files.wrapper() == str(links / "aegis-wrap")
    links.chmod(0o777)  # anybody could lead it elsewhere
    assert agents_files.wrapper() == real
    links.chmod(0o755)
    (links / "aegis-wrap").unlink()
    (links / "aegis-wrap").symlink_to("/bin/true")
    assert agents_files.wrapper() == real


def test_an_agent_that_the_configuration_does_not_know_is_told_in_the_list(
    cursor: Path, home: str, aegis: Aegis
) -> None:
    Path(home, "aegis.yaml").write_text("agents: {amy: {backends: {}}}\n")
    entry = {"command": agents_files.wrapper(), "args": ["--agent", "bob", "npx", "x"], "env": {"AEGIS_HOME": home}}
    cursor.write_text(servers(("files", entry)))
    (row,) = [row for row in rows(aegis, "list") if row["server"]]
    assert (row["state"], row["configured"]) == ("wired", False)
    assert "does not know this agent" in row["why"]
    done = aegis("agents", "wire", "--yes", "--no-probe")
    assert "`files` stays as it is: it is wired for the agent `bob`" in done.stderr


def test_a_later_run_knows_what_is_behind_a_backend_by_the_entries_that_use_it(
    cursor: Path, user: Path, aegis: Aegis
) -> None:
    same = {"command": "uvx", "args": ["mcp-server-time"], "env": {"A": "1"}}
    (user / ".claude.json").write_text(servers(("time", same), ("fs", {"command": "server-filesystem"})))
    wire(aegis)
    other = {"command": "server-everything"}
    cursor.write_text(servers(("time", same), ("fs", other)))
    found = by_server(wire(aegis))
    assert (found["time"]["backend_id"], found["fs"]["backend_id"]) == ("time", "fs-cursor")
    assert aegis("agents", "undo", "--yes").exit_code == 0
    found = by_server(wire(aegis))
    assert (found["time"]["backend_id"], found["fs"]["backend_id"]) == ("time", "fs-cursor")


def test_projects_of_one_file_do_not_share_a_backend(cursor: Path, user: Path, aegis: Aegis) -> None:
    value = {
        "projects": {f"/p/{at}": {"mcpServers": {"db": {"command": "db", "args": [str(at // 2)]}}} for at in range(3)}
    }
    (user / ".claude.json").write_text(json.dumps(value))
    found = [row["backend_id"] for row in wire(aegis, "--client", "claude-code")]
    assert found == ["db", "db", "db-claude-code"]


def test_the_same_program_with_another_value_of_a_variable_is_another_backend(
    cursor: Path, user: Path, aegis: Aegis
) -> None:
    def db(where: str) -> dict[str, Any]:
        return {"mcpServers": {"db": {"command": "db", "env": {"DATABASE_URL": where, "A": "1"}}}}

    places = {"/dev": db("postgres://dev"), "/prod": db("postgres://prod"), "/more": db("postgres://dev")}
    (user / ".claude.json").write_text(json.dumps({"projects": places}))
    found = [row["backend_id"] for row in wire(aegis, "--client", "claude-code")]
    assert found == ["db", "db-claude-code", "db"]
    assert "postgres://" not in repr(planning.Server(env=frozenset({("DATABASE_URL", "postgres://dev")})))


def test_another_key_for_the_same_address_is_another_backend(cursor: Path, user: Path, home: str, aegis: Aegis) -> None:
    for file, key in ((user / ".claude.json", "one"), (cursor, "two")):
        far = {"type": "http", "url": "https://far.example/mcp", "headers": {"X-K": key, "X_K": f"{key}-more"}}
        file.write_text(servers(("far", far)))
    assert [row["backend_id"] for row in wire(aegis)] == ["far", "far-cursor"]
    held = {
        path.name: path.read_text()
        for path in Path(home, "secrets").iterdir()
        if path.name not in (files.NOTES, "api.token")
    }
    assert held == {
        "far.x-k": "one", "far.x_k": "one-more", "far-cursor.x-k": "two", "far-cursor.x_k": "two-more"
    }  # fmt: skip


def test_an_entry_that_names_another_servers_backend_gets_one_of_its_own(
    cursor: Path, user: Path, aegis: Aegis, monkeypatch: pytest.MonkeyPatch
) -> None:
    cursor.write_text(servers(("github", {"command": "honest"})))
    wire(aegis)
    wrapper = json.loads(cursor.read_text())["mcpServers"]["github"]["command"]
    project = user / "p" / ".cursor" / "mcp.json"
    project.parent.mkdir(parents=True)
    monkeypatch.chdir(project.parent.parent)  # where it is found as a project's, and is not believed of itself
    for program in ("/evil/aegis-wrap", wrapper):
        says = ["--agent", "cursor", "--backend", "github", "--"]
        entries = {"docs": "evil", "github": "worse", "same": "honest"}
        made = ((name, {"command": program, "args": [*says, starts]}) for name, starts in entries.items())
        project.write_text(servers(*made))
        done = aegis("agents", "wire", "--yes", "--no-probe", "--file", str(project))
        assert "`docs` of Cursor names the backend `github`, which is another server" in done.stderr
        assert [entry["args"][3] for entry in json.loads(project.read_text())["mcpServers"].values()] == [
            "docs", "github-cursor", "github",
        ]  # fmt: skip
        assert aegis("agents", "undo", "--yes").exit_code == 0


def test_an_entry_that_is_as_it_was_wired_or_that_a_person_wrote_keeps_its_backend(
    cursor: Path, home: str, aegis: Aegis
) -> None:
    wire(aegis)
    value = json.loads(cursor.read_text())
    own = {"command": value["mcpServers"]["github"]["command"], "env": {"AEGIS_HOME": home}}
    value["mcpServers"]["own"] = {**own, "args": ["--agent", "cursor", "--backend", "mine", "--", "x"]}
    cursor.write_text(json.dumps(value))
    assert wire(aegis) == []


def test_names_of_entries_are_no_references_in_the_configuration(cursor: Path, aegis: Aegis) -> None:
    cursor.write_text(servers(("${file:~/x}", {"command": "x"}), ("$b", {"command": "y"}), ("c", {"command": "z"})))
    assert all(row["changed"] for row in wire(aegis))
    assert set(json.loads(aegis("config", "show", "--json").stdout)["backends"]) == {"file:~-x", "b", "c"}


# --- secrets


def test_nothing_is_put_into_an_address_of_a_clients_file(
    cursor: Path, user: Path, home: str, aegis: Aegis, monkeypatch: pytest.MonkeyPatch
) -> None:
    (user / "private.txt").write_text("hunter2")
    monkeypatch.setenv("PLACE", "a-place")
    urls = {"a": f"https://h.example/${{file:{user}/private.txt}}/mcp", "b": "https://h.example/${env:PLACE}/mcp"}
    cursor.write_text(servers(*((name, {"url": url}) for name, url in urls.items())))
    wire(aegis)
    config = Path(home, "aegis.yaml").read_text()
    assert "private.txt" not in config
    assert "PLACE" not in config
    assert Path(home, "secrets", "a.url").read_text() == urls["a"]
    assert Path(home, "secrets", "b.url").read_text() == "https://h.example/a-place/mcp"  # as the client puts it in


def test_a_secret_that_is_there_is_neither_overwritten_nor_removed(
    cursor: Path, home: str, aegis: Aegis, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = Path(home, "secrets", "far.authorization")
    theirs.parent.mkdir()
    theirs.write_text("theirs")
    wire(aegis, "--server", "far")
    made = theirs.with_name("far.authorization-2")
    assert (theirs.read_text(), made.read_text()) == ("theirs", f"Bearer {SECRET}")
    assert "secrets/far.authorization-2" in Path(home, "aegis.yaml").read_text()


def test_a_wire_that_fails_removes_the_secrets_that_it_made_and_no_others(
    cursor: Path, home: str, aegis: Aegis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: str, before: bytes, after: bytes) -> None:
        raise OSError(28, "No space left on device")

    held = Path(home, "secrets", "far.authorization")
    held.parent.mkdir()
    held.write_text(f"Bearer {SECRET}")
    cursor.write_text(json.dumps({"mcpServers": {"far": {**json.loads(CURSOR)["mcpServers"]["far"], "headers": {
        "Authorization": f"Bearer {SECRET}", "X-More": "more",
    }}}}))  # fmt: skip
    monkeypatch.setattr(files, "replace", full)
    done = aegis("agents", "wire", "--yes", "--no-probe", "--server", "far")
    assert done.exit_code == 1
    assert [path.name for path in held.parent.iterdir() if path.name != files.NOTES] == ["far.authorization"]
    assert not Path(home, "aegis.yaml").exists()


@pytest.mark.parametrize("late", [True, False])
def test_an_interrupt_leaves_the_configuration_with_the_file(
    cursor: Path, home: str, aegis: Aegis, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    real = files.replace

    def replace(path: str, before: bytes, after: bytes) -> None:
        if late:
            real(path, before, after)
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "replace", replace)
    assert aegis("agents", "wire", "--yes", "--no-probe").exit_code == 130
    monkeypatch.undo()
    assert (cursor.read_bytes() != CURSOR) is late
    assert Path(home, "aegis.yaml").exists() is late
    assert Path(home, "secrets", "far.authorization").exists() is late


def test_an_address_with_a_secret_in_its_path_is_kept_apart(cursor: Path, home: str, aegis: Aegis) -> None:
    url = "https://mcp.zapier.example/api/mcp/s/Zk3vQ9tB7xW2mR5pL8sD/mcp"
    cursor.write_text(servers(("zap", {"url": url})))
    done = aegis("agents", "wire", "--yes", "--no-probe")
    assert "Zk3vQ9tB7xW2mR5pL8sD" not in done.output + Path(home, "aegis.yaml").read_text()
    assert Path(home, "secrets", "zap.url").read_text() == url


def test_a_file_that_is_protected_is_refused_before_anything_is_done(cursor: Path, home: str, aegis: Aegis) -> None:
    cursor.chmod(0o444)
    done = aegis("agents", "wire", "--yes", "--no-probe")
    assert done.exit_code == 1
    assert "protected against writing" in done.stderr
    assert not Path(home, "aegis.yaml").exists()
    cursor.chmod(0o644)
    os.link(cursor, cursor.parent / "second")
    assert "1 more name" in aegis("agents", "wire", "--dry-run").stderr


# --- what was asked for


def test_an_unrelated_file_that_cannot_be_read_is_told_last_and_is_no_failure(
    cursor: Path, user: Path, aegis: Aegis
) -> None:
    damaged = user / ".gemini" / "settings.json"
    damaged.parent.mkdir()
    damaged.write_bytes(b"{")
    for words in (["wire", "--server", "github", "--yes", "--no-probe"], ["list"], ["unwire", "--yes"]):
        done = aegis("agents", *words)
        assert done.exit_code == 0, words
        assert "is left as it is" in done.stderr.splitlines()[-1]
    assert aegis("agents", "list", "--file", str(damaged)).exit_code == 1
    assert aegis("agents", "list", "--client", "gemini-cli").exit_code == 1


def test_an_entry_with_a_command_and_an_address_is_named(cursor: Path, aegis: Aegis) -> None:
    cursor.write_text(servers(("both", {"command": "x", "url": "https://x.example/mcp"}), ("a", {"command": "x"})))
    assert by_server(rows(aegis, "list"))["both"]["state"] == "unclear"
    done = aegis("agents", "wire", "--yes", "--no-probe", "--server", "both")
    assert done.exit_code == 1
    assert "both a command and an address" in done.stderr
    assert by_server(wire(aegis))["a"]["changed"]


def test_an_undo_after_a_repair_takes_back_the_repaired_alone(cursor: Path, user: Path, aegis: Aegis) -> None:
    claude = user / ".claude.json"
    claude.write_text(servers(("a", {"command": "x"})))
    before = claude.read_bytes()
    wire(aegis)
    value = json.loads(cursor.read_bytes())
    value["mcpServers"]["github"]["command"] = "/gone/aegis-wrap"
    cursor.write_text(json.dumps(value))
    wire(aegis, "--client", "cursor")
    assert {row["client"] for row in rows(aegis, "undo", "--yes")} == {"cursor"}
    assert claude.read_bytes() != before
    assert {row["client"] for row in rows(aegis, "undo", "--yes")} == {"claude-code", "cursor"}
    assert claude.read_bytes() == before


def test_whoever_names_another_installation_is_asked_by_the_one_that_governs(
    cursor: Path,
    served: Served,
    governor: MemoryGovernor,
    aegis: Aegis,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    wire(aegis)
    wired = cursor.read_bytes()
    governor.refusal = "the request comes from `claude` (pid 7)"
    monkeypatch.setenv("AEGIS_HOME", str(tmp_path / "none"))
    for words in (["unwire", "--file", str(cursor)], ["unwire"], ["wire", "--no-probe"]):
        refused = aegis("agents", *words, "--yes")
        assert refused.exit_code == 1, words
        assert "`claude`" in refused.stderr
    assert cursor.read_bytes() == wired


@pytest.mark.parametrize(
    ("rule", "wired"),
    [("approval_required: ['*']", False), ("tool_allowlist: []", True), ("tool_denylist: ['*']", True)],
)
def test_a_server_that_shows_no_tools_does_not_count_as_working_unless_none_are_allowed(
    cursor: Path, home: str, aegis: Aegis, monkeypatch: pytest.MonkeyPatch, rule: str, wired: bool
) -> None:
    access = f"agents: {{cursor: {{backends: {{a: {{allowed: true, {rule}}}}}}}}}\nbackends: {{a: {{}}}}\n"
    Path(home, "aegis.yaml").write_text(access)
    cursor.write_text(servers(("a", {"command": "x"})))
    monkeypatch.setattr(doing, "run_daemon", lambda work: None)
    monkeypatch.setattr(trial, "try_entry", lambda *given, **more: trial.Trial(True, trial.NO_TOOLS))
    (row,) = rows(aegis, "wire", "--yes")
    assert (row["changed"], row["works"]) == (wired, wired)
