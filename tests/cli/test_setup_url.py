"""A server by its address comes into the files of the clients that were named, and others are told how it would."""

from __future__ import annotations

import json
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from aegis_daemon.cli.agents.files import Target
from aegis_daemon.cli.agents.planning import Work
from aegis_daemon.cli.console import Problem
from aegis_daemon.cli.setup import addresses, questions
from aegis_daemon.clients import catalog
from aegis_daemon.clients.documents import parse
from aegis_daemon.clients.ledger import Ledger
from aegis_daemon.clients.standing import Here
from aegis_daemon.config.load import loads
from aegis_daemon.config.paths import Paths

from .conftest import Aegis
from .terminal import Terminal
from .test_setup import BOUND_S, tree, user  # noqa: F401 - a fixture


class Far(BaseHTTPRequestHandler):
    """Offers one tool that reads and one that does not."""

    def do_POST(self) -> None:
        frame = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        found: Any = {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in ("get_x", "drop_y")]}
        if frame["method"] == "initialize":
            found = {
                "protocolVersion": "2025-06-18",
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "far", "version": "1"},
            }
        data = json.dumps({"jsonrpc": "2.0", "id": frame["id"], "result": found}).encode() if "id" in frame else b""
        self.send_response(200 if data else 202)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.send_response(405)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Far) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}/mcp"
        http.shutdown()


def put(user: Path, name: str, text: str) -> Path:  # noqa: F811
    path = user / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_without_a_client_none_is_written_and_each_is_told_how(user: Path, home: str, aegis: Aegis, url: str) -> None:  # noqa: F811
    cursor = put(user, ".cursor/mcp.json", '{"mcpServers": {"mine": {"command": "x"}}}')
    (user / ".codex").mkdir()
    before = tree(user, home)
    done = aegis("setup", "--url", url, "--dry-run")
    assert done.exit_code == 0, done.stderr
    assert f"  aegis setup --url {url} --client NAME" in done.stderr
    assert f"Cursor (cursor), {cursor}:" in done.stderr
    assert "any agent reaches `127.0.0.1` with this command" in done.stderr
    rows = json.loads(aegis("setup", "--url", url, "--dry-run", "--json").stdout)
    lines = {row["client"]: row["lines"] for row in rows if row["kind"] == "client"}
    assert set(lines) == {"cursor", "codex"}
    (entry,) = json.loads(lines["cursor"])["mcpServers"].values()
    assert entry["args"] == ["--agent", "default", "--backend", "127.0.0.1"]
    assert tomllib.loads(lines["codex"])["mcp_servers"]["127-0-0-1"]["args"] == entry["args"]
    assert len({tuple(row) for row in rows}) == 1  # every row has the same columns
    assert tree(user, home) == before


def test_a_named_client_gets_an_entry_and_rules_of_its_own(user: Path, home: str, aegis: Aegis, url: str) -> None:  # noqa: F811
    put(user, ".cursor/mcp.json", '{"mcpServers": {}}')
    (user / ".codex").mkdir()
    before = tree(user, home)
    done = aegis("setup", "--url", url, "--client", "cursor", "--client", "codex", "--dry-run")
    assert done.exit_code == 0, done.stderr
    for agent in ("cursor", "codex"):
        assert f"+  {agent}:" in done.stdout
        assert f"--agent {agent} --backend 127.0.0.1" in done.stdout
    assert done.stdout.count("@@ mcpServers.127-0-0-1 @@") == 1
    assert done.stdout.count("@@ mcp_servers.127-0-0-1 @@") == 1
    assert f'+    url: "{url}"' in done.stdout
    assert "any agent reaches" not in done.stderr
    assert tree(user, home) == before


def test_a_client_that_has_the_address_already_is_not_given_it_twice(user: Path, aegis: Aegis, url: str) -> None:  # noqa: F811
    put(user, ".cursor/mcp.json", json.dumps({"mcpServers": {"have": {"url": url}}}))
    done = aegis("setup", "--url", url, "--client", "cursor", "--dry-run")
    assert done.stdout.count("@@ mcpServers.") == 1
    assert "@@ mcpServers.have @@" in done.stdout
    assert "--backend have" in done.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--client", "cursr"), "did you mean `cursor`?"), (("--client", "windsurf"), "in which it would be"),
        (("--client", "cursor"), "mend the file"), (("--server", "x"), "both name a server"),
    ],
)  # fmt: skip
def test_where_it_cannot_go_is_told_before_anything_is_asked(
    user: Path,  # noqa: F811
    home: str,
    aegis: Aegis,
    url: str,
    words: tuple[str, ...],
    says: str,
) -> None:
    put(user, ".cursor/mcp.json", "{,}")
    before = tree(user, home)
    done = aegis("setup", "--url", url, "--yes", *words)
    assert done.exit_code in (1, 2)
    assert says in done.stderr
    assert "asking" not in done.stderr
    assert tree(user, home) == before


def test_a_person_is_asked_who_shall_use_it_on_a_narrow_terminal(user: Path, home: str, url: str) -> None:  # noqa: F811
    put(user, ".cursor/mcp.json", '{"mcpServers": {}}')
    put(user, ".codex/config.toml", "")
    before = tree(user, home)
    with Terminal("setup", "--url", url, "--enforce", columns=60, PATH="/usr/bin:/bin", NO_COLOR="1") as screen:
        shown = screen.expect("change:", BOUND_S)
        screen.send("\r")
        shown += screen.expect("clients [none]:")
        screen.send("wrong\r")
        screen.expect("`wrong` is none of")
        screen.send("curs\r")
        shown += screen.expect("tell me by")
        screen.send("\r")
        shown += screen.expect("make these changes?")
        screen.send("n\r")
        assert screen.end() == 1
    assert "\x1b[3" not in shown
    assert "@@ mcpServers.127-0-0-1 @@" in shown
    assert "mcp_servers" not in shown
    assert tree(user, home) == before


@pytest.mark.parametrize(
    ("said", "found"),
    [("", []), ("none", []), ("all", ["a", "ab", "c"]), ("a, c", ["a", "c"]), ("c c", ["c"])],
)
def test_an_answer_names_clients(said: str, found: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("typer.prompt", lambda text, default, **more: said or default)
    assert questions.clients([(one, one, "/x") for one in ("a", "ab", "c")]) == found


def test_the_only_client_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("typer.prompt", lambda text, default, **more: default)
    assert questions.clients([("a", "A", "/x")]) == ["a"]
    assert questions.clients([]) == []


def test_addresses_of_each_kind_are_taken() -> None:
    ways = {
        "https://mcp.context7.com/mcp": "http", "http://h/sse": "sse", "ws://h:1/x": "websocket", "wss://h": "websocket"
    }  # fmt: skip
    assert {url: addresses.given(url, None, None).entry.transport for url in ways} == ways
    entry = addresses.given("wss://h/x", None, None).entry
    assert addresses.settings(entry, "h", "/x/aegis.yaml") == ({"url": "wss://h/x", "transport": "websocket"}, {})
    for url in ("ftp://x", "https://", "wss:///x", "https://x:0/", "https://a b/"):
        with pytest.raises(Problem, match="is no address"):
            addresses.given(url, None, None)


def test_an_address_that_may_hold_a_secret_is_not_printed() -> None:
    assert addresses.given("https://h/mcp", None, None).shown == "https://h/mcp"
    assert addresses.given("https://h/mcp?key=s3cret", None, None).shown == "URL"
    assert addresses.entry_for("a", "b", Here("/w"), None)[1] == "  /w --agent a --backend b"


def test_in_the_isolated_tier_its_keeper_makes_the_server_known_first(tmp_path: Path) -> None:
    client = catalog.find("cursor")
    assert client is not None
    work = Work(Paths.find({"HOME": str(tmp_path)}), Here("/w", isolated=True, doors="/run/x"), Ledger(), "c1")
    target = Target(client, str(tmp_path / "mcp.json"), "user", b"{}", parse(b"{}", client.format))
    given = addresses.given("https://h/mcp", None, None)
    plan = addresses.planned(given, work, target, None, None, ask=False)
    assert (plan.moves, "keeper" in plan.left[0].why) == (False, True)
    config = loads('backends: {h: {url: "https://h/mcp"}}', "x").config
    (change,) = addresses.planned(given, work, target, None, config, ask=False).changes
    assert change.after["args"] == ["--agent", "cursor", "--backend", "h", "--socket", "/run/x/cursor.sock"]
