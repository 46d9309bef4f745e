"""What a client would start is started as it would, asked for its tools alone, and never outlives the trial."""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from aegis_daemon.clients import trial
from aegis_daemon.clients.entries import Entry

SERVER = """
import json, os, sys
open(os.environ["SEEN"], "w").write(json.dumps({**os.environ, "cwd": os.getcwd(), "argv": sys.argv[1:]}))
for line in sys.stdin:
    said = json.loads(line)
    if said["method"] == "initialize":
        answer = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": {"name": "x", "version": "1"}}
    elif said["method"] == "tools/list":
        more = {} if said["params"].get("cursor") else {"nextCursor": "2"}
        answer = {"tools": [{"name": "a", "inputSchema": {}}, {"name": "b", "inputSchema": {}}], **more}
    else:
        assert "id" not in said, said
        continue
    print(json.dumps({"jsonrpc": "2.0", "method": "notifications/message", "params": {}}), flush=True)
    print(json.dumps({"jsonrpc": "2.0", "id": said["id"], "result": answer}), flush=True)
"""


def entry(*args: str, **more: str) -> Entry:
    return Entry("x", ("x",), "stdio", command=sys.executable, args=args, env=more)


def test_it_counts_tools_and_gets_what_a_client_gives(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    env = {"HOME": str(tmp_path), "PATH": "/bin", "AEGIS_HOME": "/mine", "XDG_RUNTIME_DIR": "/run/me", "WHERE": "here"}
    made = entry("-c", SERVER, "${env:WHERE}", "$WHERE", SEEN=str(seen), KEY="${env:WHERE}")
    found = trial.try_entry(made, env, None, ("${env:NAME}",))
    assert found == trial.Trial(True, "", tools=4)
    got = json.loads(seen.read_text())
    assert "AEGIS_HOME" not in got
    assert "XDG_RUNTIME_DIR" not in got
    assert (got["cwd"], got["argv"], got["KEY"]) == (str(tmp_path), ["here", "$WHERE"], "here")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("-c", "import sys; print('no key', file=sys.stderr); sys.exit(3)"), "status 3 before it answered: no key"),
        (("-c", "print('hello there'); input()"), "no message on its stdout: `hello there`"),
        (("-c", "import sys; sys.stdin.read()"), "did not answer in time"),
        (("-c", 'print(\'{"id": 1, "error": {"code": 1, "message": "not today"}}\'); input(); input()'), "not today"),
    ],
)
def test_what_does_not_work_is_told_with_its_reason(args: tuple[str, ...], says: str, tmp_path: Path) -> None:
    found = trial.try_entry(entry(*args), {"HOME": str(tmp_path)}, patience=2.0)
    assert not found.ok
    assert found.tried
    assert says in found.detail


def test_a_program_that_is_not_there_is_told() -> None:
    found = trial.try_entry(Entry("x", ("x",), "stdio", command="no-such-program-here"), {"PATH": "/bin"})
    assert "`no-such-program-here` cannot be started: no such file" in found.detail


@pytest.mark.parametrize(
    ("text", "syntax", "tried"),
    [
        ("${input:key}", ("${input:id}", "${env:NAME}"), False),
        ("${workspaceFolder}/x", ("${workspaceFolder}",), False),
        ("${env:NOT_SET}", ("${env:NAME}",), False),
        ("${NOT_SET:-there}", ("${NAME}", "${NAME:-else}"), True),
        ("${NOT_SET}", (), True),
        ("$NOT_SET", ("${NAME}",), True),
        ("$NOT_SET", ("$NAME",), False),
    ],
)
def test_what_only_the_client_knows_is_not_tried(
    text: str, syntax: tuple[str, ...], tried: bool, tmp_path: Path
) -> None:
    found = trial.try_entry(entry("-c", "pass", text), {"HOME": str(tmp_path)}, None, syntax, 5.0)
    assert not found.ok
    assert found.tried is tried


@pytest.mark.parametrize("stream", [False, True])
def test_an_address_is_asked_too(stream: bool) -> None:
    heads: list[dict[str, str]] = []

    class Server(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            heads.append(dict(self.headers))
            tools = {"tools": [{"name": "a", "inputSchema": {}}]}
            result = {"capabilities": {"tools": {}}} if said["method"] == "initialize" else tools
            body = json.dumps({"jsonrpc": "2.0", "id": said.get("id"), "result": result}).encode()
            self.send_response(200 if "id" in said else 202)
            self.send_header("Mcp-Session-Id", "s1")
            self.send_header("Content-Type", "text/event-stream" if stream else "application/json")
            self.end_headers()
            if "id" in said:
                self.wfile.write(b"event: message\ndata: " + body + b"\n\n" if stream else body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        made = Entry("x", ("x",), "http", url=f"http://127.0.0.1:{server.server_port}/mcp", headers={"X-Key": "k"})
        assert trial.try_entry(made, {}) == trial.Trial(True, "", tools=1)
        server.shutdown()
    assert [head.get("Mcp-Session-Id") for head in heads] == [None, "s1", "s1"]
    assert all(head["X-Key"] == "k" for head in heads)
    assert "does not answer" in trial.try_entry(made, {}).detail


def test_a_server_that_says_it_has_tools_and_lists_none_is_told_apart(tmp_path: Path) -> None:
    silent = SERVER.replace('{"name": "a", "inputSchema": {}}, {"name": "b", "inputSchema": {}}', "")
    env = {"HOME": str(tmp_path), "PATH": "/bin"}
    found = trial.try_entry(entry("-c", silent, SEEN=str(tmp_path / "seen")), env)
    assert found == trial.Trial(True, trial.NO_TOOLS)
    without = silent.replace('{"tools": {}}', "{}")
    assert trial.try_entry(entry("-c", without, SEEN=str(tmp_path / "seen")), env) == trial.Trial(True, "")
