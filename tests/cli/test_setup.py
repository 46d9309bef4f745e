"""`aegis setup` changes nothing before all of it was seen and agreed to, and says where it looked where it finds nothing."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from aegis_daemon.cli.agents import files as agents_files
from aegis_daemon.cli.setup import questions

from .conftest import Aegis
from .terminal import Terminal, strip

OFFERING = Path(__file__).parents[1] / "e2e" / "offering.py"


@pytest.fixture
def user(home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory with nothing in it."""
    for name in list(os.environ):
        if name.startswith(("XDG_", "CLAUDE_", "CODEX_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def cursor(user: Path, **servers: tuple[str, ...]) -> Path:
    entries = {
        name: {"command": sys.executable, "args": [str(OFFERING), str(user / "calls"), *tools]}
        for name, tools in servers.items()
    }
    path = user / ".cursor" / "mcp.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"mcpServers": entries}, indent=2))
    return path


def tree(*places: str | Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes()
        for place in places
        for path in sorted(Path(place).rglob("*"))
        if path.is_file() and not path.is_socket()
    }


def rows(stdout: str) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["server"], row["tool_name"]): row for row in json.loads(stdout)}


def test_a_dry_run_shows_the_rules_and_changes_nothing(user: Path, home: str, aegis: Aegis) -> None:
    cursor(user, work=("get_a", "delete_b", "send_c"), other=("frob=readonly",))
    before = tree(user, home)
    done = aegis("setup", "--dry-run")
    assert done.exit_code == 0
    assert "proposed: 1 allow · 3 ask" in done.stderr
    assert '+          - "delete_b"  # destroy, ask: the word `delete`' in done.stdout
    assert "nothing was changed: this was `--dry-run`" in done.stderr
    shown = aegis("setup", "--dry-run", "--json")
    found = rows(shown.stdout)
    assert found["work", "send_c"] | {"why": ""} == {
        "kind": "tool", "agent_id": "cursor", "backend_id": "work", "client": "cursor",
        "file": str(user / ".cursor" / "mcp.json"), "server": "work", "tool_name": "send_c", "class": "message",
        "confidence": "high", "action": "ask", "limit": "10/hour", "why": "", "fix": "", "wired": False, "tools": None,
        "lines": None,
    }  # fmt: skip
    assert found["other", "frob"]["class"] == "unknown"
    trusting = rows(aegis("setup", "--dry-run", "--json", "--trust", "other").stdout)
    assert trusting["other", "frob"]["action"] == "allow"
    assert tree(user, home) == before


def test_the_rules_are_in_force_unless_a_person_says_observe(user: Path, aegis: Aegis) -> None:
    cursor(user, work=("get_a",))
    assert "+mode: enforce" in aegis("setup", "--dry-run").stdout
    assert "+mode: observe" in aegis("setup", "--dry-run", "--observe").stdout


def test_a_new_configurations_api_asks_for_a_token_and_an_old_ones_stays_as_it_is(
    user: Path, home: str, aegis: Aegis
) -> None:
    cursor(user, work=("get_a",))
    for words in (("setup", "--yes"), ("agents", "wire", "--no-probe")):
        done = aegis(*words, "--dry-run")
        assert '+  api_token: "${file:secrets/api.token}"' in done.stdout, words
        assert f"{home}/secrets/api.token will be made, for nobody else to read" in done.stderr
    Path(home, "aegis.yaml").write_text("mode: enforce\n")
    for words in (("setup", "--yes"), ("agents", "wire", "--no-probe")):
        assert "api_token" not in aegis(*words, "--dry-run").output, words


def test_without_a_terminal_it_asks_for_a_word_to_go_on(user: Path, home: str, aegis: Aegis) -> None:
    cursor(user, work=("get_a",))
    before = tree(user, home)
    done = aegis("setup")
    assert done.exit_code == 2
    assert "--yes" in done.stderr
    assert "--dry-run" in done.stderr
    assert tree(user, home) == before


def test_without_an_agent_it_says_where_it_looked_and_how_to_go_on(user: Path, aegis: Aegis) -> None:
    done = aegis("setup", "--yes")
    assert done.exit_code == 1
    assert f"looked for Cursor: {user}/.cursor/mcp.json" in done.stderr
    assert "--file" in done.stderr
    assert "--url" in done.stderr


def test_a_damaged_file_is_told_with_its_place_and_stays(user: Path, aegis: Aegis) -> None:
    path = cursor(user)
    path.write_text('{"mcpServers": {"a": {"command": "x",,}}}')
    done = aegis("setup", "--yes")
    assert done.exit_code == 1
    assert str(path) in done.stderr
    assert path.read_text() == '{"mcpServers": {"a": {"command": "x",,}}}'


def test_a_damaged_file_that_nobody_named_is_told_last_and_is_no_failure(user: Path, aegis: Aegis) -> None:
    cursor(user, work=("get_a",))
    other = user / ".claude.json"
    other.write_text("{,}")
    done = aegis("setup", "--dry-run")
    assert done.exit_code == 0, done.stderr
    assert str(other) in done.stderr.rstrip().splitlines()[-1]
    assert aegis("setup", "--dry-run", "--file", str(other)).exit_code == 1


def test_a_pipe_has_each_difference_with_its_file(user: Path, home: str, aegis: Aegis) -> None:
    path = cursor(user, work=("get_a",))
    lines = aegis("setup", "--dry-run").stdout.splitlines()
    at = lines.index("@@ mcpServers.work @@")
    assert str(path) in lines[at - 1]
    assert any(f"{home}/aegis.yaml" in line for line in lines)


def test_a_server_that_is_not_asked_has_its_row(user: Path, aegis: Aegis) -> None:
    path = user / ".cursor" / "mcp.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"mcpServers": {"work": {"command": "run", "args": ["${env:NOT_SET}"]}}}))
    shown = aegis("setup", "--dry-run").stdout
    (row,) = [line for line in shown.splitlines() if line.startswith("work ")]
    assert row.split()[1:4] == ["(any)", "unknown", "ask"]
    assert "it was not asked: it needs `NOT_SET`, which is not set here" in row
    assert "proposed: 1 ask" in aegis("setup", "--dry-run").stderr


def test_an_entry_written_by_hand_gets_rules_where_its_agent_has_none(user: Path, home: str, aegis: Aegis) -> None:
    Path(home, "aegis.yaml").write_text("agents: {amy: {backends: {}}}\n")
    path = cursor(user)
    args = ["--agent", "cursor", sys.executable, str(OFFERING), str(user / "calls"), "get_a", "delete_b"]
    entry = {"command": agents_files.wrapper(), "args": args, "env": {"AEGIS_HOME": home}}
    path.write_text(json.dumps({"mcpServers": {"work": entry}}))
    done = aegis("setup", "--dry-run")
    assert "proposed: 1 allow · 1 ask" in done.stderr, done.stderr
    assert "cursor: {backends: {offering: {allowed: true" in done.stdout
    entry["args"] = ["--agent", "cursor", "--backend", "secrets"]
    path.write_text(json.dumps({"mcpServers": {"work": entry}}))
    done = aegis("setup", "--dry-run")
    assert "as the agent `cursor`, for which the configuration has nothing of `secrets`" in done.stderr


def test_a_person_is_asked_how_to_be_told_once() -> None:
    from aegis_daemon.config.load import loads

    def config(way: str) -> Any:
        text = f"backends: {{b: {{}}}}\nagents: {{amy: {{backends: {{b: {way}}}}}}}\n"
        return loads(text, "x", base="/").config

    after = config("{allowed: true, tool_allowlist: [a], approval_required: [a]}")
    assert questions.channel(after, "/x/aegis.yaml") == questions.Told()
    assert not questions._ruled(config("{allowed: true, approval_required: ['*']}"))


def test_a_question_mark_tells_what_the_answers_mean(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    said = iter(["?", "enforce"])
    monkeypatch.setattr(questions, "_line", lambda what, default="": next(said))
    assert questions.mode() == "enforce"
    assert "observe: every call passes" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("word", ["q", "quit", "Q"])
def test_a_person_can_leave_at_a_question(user: Path, home: str, word: str) -> None:
    cursor(user, work=("get_a", "delete_b"))
    before = tree(user, home)
    with Terminal("setup", PATH="/usr/bin:/bin") as screen:
        screen.expect("change", BOUND_S)
        screen.send(f"{word}\r")
        assert screen.end() == 1
        assert "nothing was changed" in strip(screen.shown)
    assert tree(user, home) == before


def test_what_only_reads_is_told_in_a_line_until_a_person_asks_for_all(user: Path, home: str, aegis: Aegis) -> None:
    reads = tuple(f"get_{at}" for at in range(12))
    path = cursor(user, work=(*reads, "delete_b"))
    with Terminal("setup", PATH="/usr/bin:/bin") as screen:
        shown = strip(screen.expect("change:", BOUND_S))
        assert "asking 1 server" in shown
        assert "Cursor: work: 13 tools" in shown
        assert "read · allow: 12 tools" in shown
        assert f"work: {', '.join(reads)}" in shown.replace("\r\n      ", " ")
        assert "60/minute" not in shown
        screen.send("show\r")
        assert strip(screen.expect("change:")).count("60/minute") == 12
        screen.send("q\r")
        assert screen.end() == 1
    whole = aegis("setup", "--dry-run").stdout
    assert sum(line.startswith("work ") for line in whole.splitlines()) == 13
    short = aegis("setup", "--yes")
    assert short.exit_code == 0, short.stderr
    assert "tool_allowlist" not in short.stdout
    assert f"in {home}/aegis.yaml (new): " in short.stdout
    assert f"Cursor, {path}: `work` will be wired" in short.stdout
    assert len(short.stdout.splitlines()) < 10
    assert aegis("daemon", "stop").exit_code == 0


def test_a_server_that_cannot_start_is_named_with_its_client_and_file(user: Path, aegis: Aegis) -> None:
    path = user / ".cursor" / "mcp.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"mcpServers": {"work": {"command": "/no/such/program"}}}))
    assert f"Cursor: work ({path}): " in aegis("setup", "--dry-run").stderr


def test_what_was_so_already_does_not_count_as_changed(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from aegis_daemon.onboarding.proposal import propose
    from aegis_daemon.onboarding.risk import Judged

    given = propose("work", [Judged(f"create_{at}", "write", "high", "its name") for at in range(4)])
    said = iter(["write ask", "write allow", ""])
    monkeypatch.setattr(questions, "_line", lambda what, default="": next(said))
    questions.rows(given, {})
    told = capsys.readouterr().err
    assert "nothing changed" in told
    assert "4 changed" in told


def test_on_a_narrow_terminal_nothing_of_a_row_is_cut(user: Path) -> None:
    name = "get_" + "a_rather_long_name_" * 3
    cursor(user, work=(name, "delete_b=destructive"))
    with Terminal("setup", "--dry-run", columns=60, PATH="/usr/bin:/bin") as screen:
        assert screen.end(BOUND_S) == 0
        shown = strip(screen.shown)
    assert f"work.{name}" in shown.replace("\r\n", "\n").replace("\n", "")
    assert shown.index("destroy · ask\r\n") < shown.index("work.delete_b · ")


def test_an_interrupt_while_servers_are_asked_is_told(user: Path, home: str) -> None:
    path = user / ".cursor" / "mcp.json"
    path.parent.mkdir()
    entry = {"command": sys.executable, "args": ["-c", "import time; time.sleep(600)"]}
    path.write_text(json.dumps({"mcpServers": {"work": entry}}))
    before = tree(user, home)
    with Terminal("setup", PATH="/usr/bin:/bin") as screen:
        screen.expect("for tools", BOUND_S)
        time.sleep(1)
        screen.send("\x03")
        assert screen.end(BOUND_S) == 130
        assert "interrupted" in strip(screen.shown)
    assert tree(user, home) == before


def test_a_configuration_with_faults_is_not_built_upon(user: Path, home: str, aegis: Aegis) -> None:
    cursor(user, work=("get_a",))
    Path(home, "aegis.yaml").write_text("agnets: {}\n")
    done = aegis("setup", "--yes")
    assert done.exit_code == 1
    assert "agnets" in done.output
    assert Path(home, "aegis.yaml").read_text() == "agnets: {}\n"


@pytest.mark.parametrize(
    "words",
    [
        ("--url", "ftp://x"),
        ("--url", "notaurl"),
        ("--url", "http://[x"),
        ("--url", "https://x/mcp", "--server", "work"),
        ("--agent", "a b"),
        ("--client", "cursr"),
    ],
)
def test_what_makes_no_sense_is_told(user: Path, aegis: Aegis, words: tuple[str, ...]) -> None:
    cursor(user, work=("get_a",))
    for more in ((), ("--dry-run",)):
        done = aegis("setup", *more, *words)
        assert done.exit_code == 2
        assert "terminal" not in done.stderr


def test_whoever_leads_entries_to_another_daemon_is_asked_of_by_the_one_that_they_lead_to(
    user: Path, home: str, aegis: Aegis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `aegis agents wire` does: an agent that names an installation of its own would otherwise just go there."""
    from aegis_daemon.cli.agents import files as agents_files
    from aegis_daemon.manage import client
    from aegis_daemon.manage.client import Refused

    other = user / "other"
    other.mkdir()
    (other / "manage.sock").write_text("")
    path = cursor(user)
    entry = {
        "command": agents_files.wrapper(),
        "args": ["--agent", "cursor", "--", "x"],
        "env": {"AEGIS_HOME": str(other)},
    }
    path.write_text(json.dumps({"mcpServers": {"work": entry}}))
    asked: list[tuple[str, str]] = []

    def ask(socket: str, name: str, **more: object) -> None:
        asked.append((socket, name))
        raise Refused("an agent", "no")

    monkeypatch.setattr(client, "ask", ask)
    done = aegis("setup", "--yes", "--client", "cursor")
    assert done.exit_code == 1
    assert asked == [(str(other / "manage.sock"), "guard")]


BOUND_S = 60.0
QUESTIONS = ("change", "mode (enforce/observe)", "tell me by", "make these changes?")
ANSWERS = ("\r", "\r", "\r")


@pytest.mark.parametrize("at", range(len(QUESTIONS)))
def test_an_interrupt_at_any_question_leaves_everything_as_it_was(user: Path, home: str, at: int) -> None:
    cursor(user, work=("get_a", "delete_b"))
    before = tree(user, home)
    with Terminal("setup", PATH="/usr/bin:/bin") as screen:
        for question, answer in zip(QUESTIONS[:at], ANSWERS, strict=False):
            screen.expect(question, BOUND_S)
            screen.send(answer)
        screen.expect(QUESTIONS[at], BOUND_S)
        screen.interrupts()
        assert screen.end() == 130
    assert tree(user, home) == before


def test_rules_are_changed_by_class_and_by_tool_and_shown_before(user: Path, home: str) -> None:
    cursor(user, work=("get_a", "delete_b", "create_c", "create_d"))
    before = tree(user, home)
    with Terminal("setup", "--enforce", PATH="/usr/bin:/bin") as screen:
        screen.expect("change", BOUND_S)
        for said, told in (
            ("destroy allow", "tool by tool only"), ("write allow", "2 changed"), ("work.create_d ask", "1 changed"),
            ("delete_b deny", "1 changed"), ("nonsense", "write a class"), ("write deny", "1 changed"), ("delte_b ask", "did you mean `delete_b`?"),
            ("show", "delete_b"), ("write allow", "work.create_d stays ask"),
        ):  # fmt: skip
            screen.send(f"{said}\r")
            screen.expect(told)
        screen.send("\r")
        screen.expect("tell me by")
        screen.send("ntfy\r")
        screen.expect("topic")
        screen.send("https://ntfy.example/t0p1c\r")
        if "open it?" in strip(screen.expect("?")):
            screen.send("n\r")
            screen.expect("make these changes?")
        screen.send("n\r")
        assert screen.end() == 1
    assert tree(user, home) == before


def test_what_a_file_of_somebody_elses_would_start_is_seen_first_and_a_dry_run_starts_none_of_it(
    user: Path, home: str, aegis: Aegis
) -> None:
    ran = user / "RAN"
    project = user / "p" / ".mcp.json"
    project.parent.mkdir()
    entry = {"command": sys.executable, "args": ["-c", f"open('{ran}', 'w')"], "env": {"NODE_OPTIONS": "-r ./x.js"}}
    project.write_text(json.dumps({"mcpServers": {"docs": entry}}))
    before = tree(user, home)
    done = aegis("setup", "--file", str(project), "--dry-run")
    assert done.exit_code == 0
    assert f"open('{ran}', 'w')" in done.stderr
    assert "-r ./x.js" in done.stderr
    assert "a dry run starts nothing that stands in a file which is not your own" in done.stdout
    with Terminal("setup", "--file", str(project)) as screen:
        assert "RAN" in strip(screen.expect("start it?", BOUND_S))
        screen.send("n\r")
        assert screen.end() == 1
    assert tree(user, home) == before


def test_an_entry_that_names_another_servers_backend_is_given_none_of_its_rules(user: Path, aegis: Aegis) -> None:
    path = cursor(user, work=("get_a",))
    assert aegis("agents", "wire", "--yes", "--no-probe").exit_code == 0
    wrapper = json.loads(path.read_text())["mcpServers"]["work"]["command"]
    other = user / "p" / "mcp.json"
    other.parent.mkdir()
    claims = {"command": wrapper, "args": ["--agent", "cursor", "--backend", "work", "--", "/bin/false"]}
    other.write_text(json.dumps({"mcpServers": {"docs": claims}}))
    done = aegis("setup", "--file", str(other), "--dry-run", "--agent", "another")
    assert "`docs` gets no rules: `work`, which it names, is another server" in done.stderr
