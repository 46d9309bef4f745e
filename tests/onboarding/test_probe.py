"""Servers are asked side by side and within bounds, no tool is called, and what goes wrong is told with the next step."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path

import pytest
from e2e import servers

from aegis_daemon.clients.entries import Entry
from aegis_daemon.onboarding import probe
from aegis_daemon.onboarding.probe import Offer, Server, ask, unlike
from aegis_daemon.onboarding.risk import Tool

OFFERING = Path(__file__).parents[1] / "e2e" / "offering.py"


def stdio(*command: str, **env: str) -> Server:
    return Server(Entry("x", ("x",), "stdio", command[0], command[1:], env))


def offering(log: Path, *tools: str) -> Server:
    return stdio(sys.executable, str(OFFERING), str(log), *tools)


def only(server: Server, **bounds: float) -> Offer:
    return ask([server], os.environ, **bounds)[0]  # type: ignore[arg-type]


def test_every_page_of_tools_is_listed_and_none_is_called(tmp_path: Path) -> None:
    log = tmp_path / "calls"
    found = only(offering(log, "get_a", "delete_b=destructive", "c", "d", "e"))
    assert found.ok
    assert [tool.name for tool in found.tools] == ["get_a", "delete_b", "c", "d", "e"]
    assert found.tools[1].annotations == {"destructiveHint": True}
    assert (found.name, found.prompts, found.resources) == ("offering", 0, 0)
    assert not log.exists()


def test_the_same_server_is_asked_once_and_each_is_told_when_it_answers(tmp_path: Path) -> None:
    told: list[str] = []
    starts = tmp_path / "starts"
    code = f"open({str(starts)!r}, 'a').write('x'); import runpy, sys; sys.argv[0] = {str(OFFERING)!r}; runpy.run_path({str(OFFERING)!r})"
    server = stdio(sys.executable, "-c", code, str(tmp_path / "log"), "get_a")
    found = ask([server, server], os.environ, told=lambda one, offer: told.append(one.entry.name))
    assert [one.ok for one in found] == [True, True]
    assert (starts.read_text(), told) == ("x", ["x"])


def test_a_server_gets_what_its_entry_says_and_nothing_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AEGIS_HOME", "/nowhere")
    monkeypatch.setenv("PLACE", "here")
    code = (
        "import os, sys; sys.exit(' '.join([os.environ.get('AEGIS_HOME', '-'), os.environ['A'], os.environ['B'],"
        " os.path.basename(os.getcwd()), sys.argv[1]]))"
    )
    entry = Entry("x", ("x",), "stdio", sys.executable, ("-c", code, "${PLACE}"), {"A": "${PLACE}", "B": "$PLACE"})
    found = ask([Server(entry, str(tmp_path), ("${NAME}",))], os.environ)[0]
    assert found.why == f"it ended before it answered: - here $PLACE {tmp_path.name} here"


@pytest.mark.parametrize(
    ("server", "why", "fix"),
    [
        (stdio("no-such-program"), "`no-such-program` cannot be started: it is not there", "check its path"),
        (stdio("/nowhere/npx", "-y", "x"), "cannot be started", "install Node.js"),
        (stdio(sys.executable, "-c", "import sys; sys.exit('no database')", "--key=s3cret"), "it ended before it answered: no database", "run it by hand"),
        (Server(Entry("x", ("x",), "http", url="http://user:pw@127.0.0.1:9/mcp?k=v", transport="http")), "`127.0.0.1:9` does not answer as a server", "check the address"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_told_with_the_next_step(server: Server, why: str, fix: str) -> None:
    found = only(server)
    assert not found.ok
    assert found.asked
    assert why in found.why
    assert fix in found.fix
    for secret in ("s3cret", "pw", "k=v"):
        assert secret not in found.why + found.fix


def test_one_that_never_answers_is_given_up_and_gone(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = f"import os, sys, time; open({str(pid)!r}, 'w').write(str(os.getpid())); print('loading', file=sys.stderr, flush=True); time.sleep(600)"
    found = only(stdio(sys.executable, "-c", code), patience=3)
    assert found.why == "it did not answer within 3 s: loading"
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_what_went_to_a_session_of_its_own_is_gone_as_well(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    code = (
        "import os, subprocess, sys; p = subprocess.Popen(['sleep', '600'], start_new_session=True);"
        f"open({str(pids)!r}, 'w').write(str(p.pid)); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    found = only(stdio(sys.executable, "-c", code, str(OFFERING), str(tmp_path / "log"), "get_a"))
    assert [tool.name for tool in found.tools] == ["get_a"]
    with pytest.raises(ProcessLookupError):
        os.kill(int(pids.read_text()), 0)


ANSWERS = """
import json, sys
for line in sys.stdin:
    frame = json.loads(line)
    if frame["method"] == "initialize":
        name = frame["params"]["clientInfo"]["name"]
        found = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": {"name": name, "version": "1"}}
    else:
        found = {"tools": [{"name": f"get_{at}", "inputSchema": {"type": "object"}} for at in range(COUNT)]}
    if "id" in frame:
        print(json.dumps({"jsonrpc": "2.0", "id": frame["id"], "result": found}), flush=True)
"""


def test_of_a_page_without_end_a_bounded_part_is_looked_at_and_the_rest_is_told() -> None:
    found = only(stdio(sys.executable, "-c", ANSWERS.replace("COUNT", str(probe.TOOLS_MAX + 7))))
    assert (len(found.tools), found.more) == (probe.TOOLS_MAX, 7)


def test_it_calls_itself_what_the_trial_does_so_that_nobody_can_tell_them_apart() -> None:
    from aegis_daemon.clients import trial

    code = ANSWERS.replace("COUNT", "1")
    assert only(stdio(sys.executable, "-c", code)).name == trial.NAME
    entry = Entry("x", ("x",), "stdio", sys.executable, ("-c", code))
    tried = trial.try_entry(entry, os.environ)
    assert unlike([Tool("get_0", {"type": "object"})], tried.listed) == frozenset()


def test_a_tool_that_is_listed_otherwise_later_is_known_by_name() -> None:
    plain: dict[str, object] = {"type": "object"}
    offered = [Tool(name, plain) for name in ("same", "gone", "schema", "hint", "twice")]
    listed = [
        {"name": "same", "inputSchema": plain, "annotations": {"title": "other words"}, "description": "and more"},
        {"name": "schema", "inputSchema": {**plain, "properties": {"sql": {}}}},
        {"name": "hint", "inputSchema": plain, "annotations": {"destructiveHint": True}},
        {"name": "twice", "inputSchema": plain}, {"name": "twice", "inputSchema": {}},
        {"name": "new", "inputSchema": plain},
    ]  # fmt: skip
    assert unlike(offered, listed) == {"gone", "schema", "hint", "twice"}


def installing(tmp_path: Path, code: str) -> Server:
    """A command called `npx` that runs this code before anything else."""
    program = tmp_path / "npx"
    program.write_text(f"#!{sys.executable}\nimport os, subprocess, sys, time\n{code}\n")
    program.chmod(0o755)
    return stdio(str(program), str(OFFERING), str(tmp_path / "log"), "get_a")


def test_a_server_that_is_being_installed_is_waited_for_and_that_is_told(tmp_path: Path) -> None:
    code = "time.sleep(4); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    waits: list[str] = []
    (found,) = ask(
        [installing(tmp_path, code)], os.environ, patience=1.0, install=60.0, waits=lambda one: waits.append(one.entry.name)
    )  # fmt: skip
    assert [tool.name for tool in found.tools] == ["get_a"], found
    assert waits == ["x"]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_one_that_was_installed_and_does_nothing_is_not_waited_for_as_long(tmp_path: Path) -> None:
    code = "subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    began = time.monotonic()
    found = only(installing(tmp_path, code), patience=2.0, install=60.0)
    assert "did not answer" in found.why
    assert "see what it waits for" in found.fix
    assert time.monotonic() - began < 45


def test_the_line_that_names_the_error_is_told_rather_than_the_last_one() -> None:
    code = (
        "import sys; sys.stderr.write('node:internal/x:1\\n    throw new ERR_X(\\n\\nError [ERR_MODULE_NOT_FOUND]: no zod\\n"
        "    at y\\n}\\n\\nNode.js v22\\n'); sys.exit(1)"
    )
    assert only(stdio(sys.executable, "-c", code)).why == (
        "it ended before it answered: Error [ERR_MODULE_NOT_FOUND]: no zod"
    )
    code = "import sys; sys.exit('npm error code E404\\nnpm error 404 Not Found - x\\nnpm error A complete log')"
    assert only(stdio(sys.executable, "-c", code)).why.endswith(": npm error 404 Not Found - x")


def test_what_only_the_client_knows_is_not_guessed() -> None:
    entry = Entry("x", ("x",), "stdio", "run", ("${input:key}",))
    (found,) = ask([Server(entry, None, ("${input:NAME}",))], os.environ)
    assert (found.ok, found.asked) == (False, False)
    assert "`${input:key}`" in found.why


def test_an_address_that_wants_a_token_says_so() -> None:
    class Refuses(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(401)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *words: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Refuses) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{http.server_port}/mcp"
        found = only(Server(Entry("x", ("x",), "http", url=url, transport="http")))
        http.shutdown()
    assert not found.ok
    assert "refuses" in found.why
    assert "token" in found.fix


def test_real_servers_list_what_the_recorded_lists_say(tmp_path: Path) -> None:
    servers.needed()
    servers.make_place(tmp_path)
    names = ("filesystem", "git")
    wanted = json.loads(Path(__file__).with_name("tools.json").read_text())
    found = ask([stdio(*servers.command(name, tmp_path)) for name in names], os.environ)
    for name, offer in zip(names, found, strict=True):
        assert [one.name for one in offer.tools] == [one["name"] for one in wanted[name]["tools"]]
        assert [dict(one.annotations) for one in offer.tools] == [one["annotations"] for one in wanted[name]["tools"]]


TALKS = """
import asyncio, json, sys
from websockets.asyncio.server import serve

async def talk(connection):
    async for text in connection:
        frame = json.loads(text)
        if frame["method"] == "initialize":
            found = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}},
                     "serverInfo": {"name": connection.subprotocol, "version": "1"}}
        else:
            found = {"tools": [{"name": "get_a", "inputSchema": {"type": "object"}}]}
        if "id" in frame:
            await connection.send(json.dumps({"jsonrpc": "2.0", "id": frame["id"], "result": found}))

def check(connection, request):
    if request.headers.get("Authorization") != "Bearer t0k":
        return connection.respond(401, "who are you?")

async def main():
    async with serve(talk, "127.0.0.1", 0, subprotocols=["mcp"], process_request=check) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


def test_a_server_over_websocket_is_asked_as_the_daemon_would() -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", TALKS], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        url = f"ws://127.0.0.1:{process.stdout.readline().strip()}/mcp"
        good = Entry("x", ("x",), "http", url=url, headers={"Authorization": "Bearer t0k"}, transport="websocket")
        bad = replace(good, headers={"Authorization": "Bearer s3cret"})
        closed = replace(good, url="ws://127.0.0.1:9/mcp")
        found, refused, nobody = ask([Server(good), Server(bad), Server(closed)], os.environ)
    assert (found.ok, found.name, [tool.name for tool in found.tools]) == (True, "mcp", ["get_a"])
    assert refused.why.endswith("refuses: the server answered with status 401")
    assert "token" in refused.fix
    assert (nobody.ok, nobody.asked) == (False, True)
    assert "`127.0.0.1:9` does not answer as a server" in nobody.why
    assert "s3cret" not in repr((found, refused, nobody))


def test_a_server_of_the_older_sse_is_asked_that_way_where_its_entry_does_not_say_so() -> None:
    """It turns the first POST down, and speaks on a stream."""
    heard: queue.Queue[bytes] = queue.Queue()

    class Older(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            self.wfile.write(b"event: endpoint\ndata: /says\n\n")
            while frame := json.loads(heard.get()):
                found = {
                    "protocolVersion": "2025-06-18",
                    "capabilities": {"tools": {}},
                    "serverInfo": {"name": "o", "version": "1"},
                }
                if frame["method"] != "initialize":
                    found = {"tools": [{"name": "get_old", "inputSchema": {"type": "object"}}]}
                if "id" in frame:
                    answer = json.dumps({"jsonrpc": "2.0", "id": frame["id"], "result": found})
                    self.wfile.write(f"event: message\ndata: {answer}\n\n".encode())

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(202 if self.path == "/says" else 405)
            self.send_header("Content-Length", "0")
            self.end_headers()
            if self.path == "/says":
                heard.put(body)

        def log_message(self, *words: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Older) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        found = only(
            Server(Entry("x", ("x",), "http", url=f"http://127.0.0.1:{http.server_port}/mcp", transport="http"))
        )
        heard.put(b"null")
        http.shutdown()
    assert [tool.name for tool in found.tools] == ["get_old"], found
