"""Planted secrets, through the installed commands: none is found in anything that Aegis writes, shows or sends.

What a call carries still reaches its server as it was, and lies as it was with the ticket of a call that waits.
"""

from __future__ import annotations

import json
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from .house import Home, call, request, until

OF_BACKEND = {
    "ENV_SECRET": "canary-env-" + "q7Zx" * 5,
    "HEADER_SECRET": "canary-header-" + "m3Kd" * 5,
    "AGENT_TOKEN": "canary-agent-" + "w8Vb" * 5,
    "API_TOKEN": "canary-api-" + "r2Jn" * 5,
}
"""Secrets of the configuration; they must reach nobody."""
IN_CALLS = {
    "argument": "ghp_" + "Ab3dEf6hIj" * 4,
    "key": "AKIA" + "QWERTYUIOP234567",
    "answer": "xoxb-123456789012-" + "aB4cD5eF6gH7",
    "error": "sk_live_" + "4eC39HqLyjWDarjtT1",
    "refused": "glpat-" + "x1Y2z3A4b5C6d7E8f9G0",
    "approved": "npm_" + "a1B2c3D4e5" * 3 + "f6G7h8",
    "password": "battery-staple-horse",
}
"""Secrets in calls and answers; they reach the other side and no one else."""
SERVER = """
import json, os, sys
for line in sys.stdin:
    ask = json.loads(line)
    if "id" not in ask:
        continue
    params = ask.get("params", {})
    given = params.get("arguments", {})
    if ask["method"] == "initialize":
        said = {"result": {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": {"name": "s", "version": "1"},
                           "instructions": "with " + os.environ["KEY"]}}
    elif ask["method"] == "tools/list":
        said = {"result": {"tools": [{"name": name, "description": "with " + os.environ["KEY"], "inputSchema": {"type": "object"}}
                                     for name in ("echo", "fail", "pay")]}}
    elif params.get("name") == "fail":
        said = {"error": {"code": -5, "message": f"no {given['text']} with {os.environ['KEY']}"}}
    else:
        text = json.dumps({"heard": given, "long": "x" * 20000 if "long" in given else "", "key": os.environ["KEY"]})
        print(json.dumps({"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": os.environ["KEY"]}}))
        said = {"result": {"content": [{"type": "text", "text": text}], "structuredContent": {"key": os.environ["KEY"]}}}
    print(json.dumps({"jsonrpc": "2.0", "id": ask["id"], **said}), flush=True)
"""


@contextmanager
def outside() -> Iterator[tuple[str, list[bytes]]]:
    """A backend that says how it was asked, and a receiver of webhooks: the address, and the bodies it received."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/hook":
                bodies.append(body)
                self.give(b"")
                return
            ask = json.loads(body)
            shown = self.headers["Authorization"]
            if "id" not in ask:
                self.give(b"", 202)
            elif ask["method"] == "initialize":
                result = {
                    "protocolVersion": "2025-06-18",
                    "capabilities": {},
                    "serverInfo": {"name": shown, "version": "1"},
                }
                self.give(json.dumps({"jsonrpc": "2.0", "id": ask["id"], "result": result}).encode())
            elif ask["params"]["name"] == "refuse":
                self.give(f"{shown} is not good".encode(), 401)
            else:
                result = {"content": [{"type": "text", "text": f"you showed {shown}"}]}
                self.give(json.dumps({"jsonrpc": "2.0", "id": ask["id"], "result": result}).encode())

        def do_GET(self) -> None:
            self.give(b"", 405)

        def do_DELETE(self) -> None:
            self.give(b"")

        def give(self, body: bytes, status: int = 200) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Nothing is said."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", bodies
        finally:
            server.shutdown()


def fetched(url: str, token: str = "", body: Any = None) -> str:
    headers = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    asked = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(asked, timeout=20) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        return error.read().decode()


def test_planted_secrets_are_found_nowhere(homes: Callable[..., Home]) -> None:
    with outside() as (address, hooks):
        home = homes(
            f"""
backends:
  work: {{command: {json.dumps(sys.executable)}, args: [-I, -c, {json.dumps(SERVER)}], env: {{KEY: "${{env:ENV_SECRET}}"}}}}
  far: {{url: "{address}/mcp", transport: streamable-http, headers: {{Authorization: "Bearer ${{env:HEADER_SECRET}}"}}}}
agents:
  ann: {{backends: {{work: {{allowed: true, approval_required: [pay]}}, far: {{allowed: true}}}}}}
  net: {{auth_token: "${{env:AGENT_TOKEN}}", backends: {{far: {{allowed: true}}}}}}
deny: {{tools: [drop]}}
approval: {{generic: {{webhook_url: "{address}/hook"}}}}
server: {{api_token: "${{env:API_TOKEN}}"}}
""",
            start=False,
        )
        home.env |= OF_BACKEND
        home.launch()
        seen: list[str] = []
        told: list[Any] = []
        ann = home.wrap(agent="ann", backend="work").handshake()
        told += [ann.asks(request("list", "tools/list"))]
        secret = IN_CALLS
        told += [
            ann.asks(
                call(1, "echo", text=f"it is {secret['argument']}", password=secret["password"], **{secret["key"]: 1})
            ),
            ann.asks(call(2, "echo", answer=secret["answer"], long=1)),
            ann.asks(call(3, "fail", text=secret["error"])),
            ann.asks(call(4, "drop", text=secret["refused"])),
        ]
        assert secret["argument"] in json.dumps(told[1]), "the server heard it, and may say it"
        ann.says(call(5, "pay", to=secret["approved"]))
        (ticket,) = home.pending()
        seen += [json.dumps(ticket), home.aegis("pending", "--json").stdout, home.aegis("pending").stdout]
        until(lambda: hooks, "the webhook")
        links = json.loads(hooks[0])
        seen += [fetched(links["approve_url"])]
        assert all("secret:npm-token" in one for one in (seen[0], seen[-1])), "a person sees that there is one"
        home.decide(ticket["id"])
        told += [ann.answer(5)]
        assert secret["approved"] in json.dumps(told[-1]), "what was approved is what runs"
        far = home.wrap(agent="ann", backend="far").handshake()
        told += [far.asks(call(6, "show")), far.asks(call(7, "refuse"))]
        base = "http://" + str(home.ask("status")["http"]).removeprefix("http://")
        ask = {"jsonrpc": "2.0", "id": 8, "method": "tools/call", "params": {"name": "show", "arguments": {}}}
        wrong = fetched(f"{base}/agents/net/mcp", OF_BACKEND["AGENT_TOKEN"] + "x", ask)
        told += [wrong, *ann.frames, *far.frames]
        api = OF_BACKEND["API_TOKEN"]
        for path in ("audit/logs?limit=50", "approvals/pending", "agents", "queue/status"):
            seen.append(fetched(f"{base}/api/v1/{path}", api))
        newest = home.json("audit", "search", "--limit", "50")
        seen += [json.dumps(newest), home.aegis("audit", "tail", "--json").stdout, home.aegis("logs").stdout]
        for row in newest:
            shown = home.aegis("audit", "show", row["call_id"], "--json")
            seen.append(shown.stdout + shown.stderr)
        seen += [home.aegis("config", "show", "--json").stdout, home.aegis("status", "--json").stdout]
        home.verify()
        ann.done()
        far.done()
        text = "".join(seen) + b"".join(hooks).decode()
        for name, value in OF_BACKEND.items():
            assert value not in json.dumps(told), f"an agent was told {name}"
        for name, value in (*OF_BACKEND.items(), *IN_CALLS.items()):
            assert value not in text, f"{name} was shown"
        files = [path for path in home.dir.rglob("*") if path.is_file() and not path.is_symlink()]
        spared = ("aegis.yaml", "state.db")  # the configuration itself, and what approved calls carry
        looked = 0
        for path in files:
            if path.name.startswith(spared):
                continue
            data = path.read_bytes()
            looked += len(data)
            for name, value in (*OF_BACKEND.items(), *IN_CALLS.items()):
                assert value.encode() not in data, f"{name} is in {path.name}"
        assert looked > 100_000, [path.name for path in files]
        assert text.count("[secret:") > 20
