"""A daemon that has to ask a person, an agent with a real wrapped server, and the place where the asking is heard."""

from __future__ import annotations

import http.client
import json
import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from e2e.house import Agent, Home, call, until

import aegis_daemon.demo

SERVER = Path(aegis_daemon.demo.__file__).with_name("server.py")
# The server does not read it. A page shows the whole command to who decides, and has nowhere to break this one.
UNBROKEN = "v" * 300
CONFIG = """
server: {{listen: "{listen}"}}
backends: {{blog: {{}}}}
queue: {{blog: {{enabled: true, delay_min: 0s, delay_max: 0s, global_rate_limits: {{publish_post: 40/1h}}}}}}
agents:
  claude-code:
    display_name: "Claude Code"
    backends:
      blog: {{allowed: true, tool_denylist: [admin_reset], approval_required: [publish_post], rate_limits: {{publish_post: 5/24h}}}}
  colleague:
    backends:
      blog: {{allowed: true}}
approval: {approval}
"""


class Collector:
    """An HTTP server that keeps the bodies of POSTs to `/hook`, in their order, and the paths of everything else."""

    def __init__(self) -> None:
        self.posted: list[dict[str, Any]] = []
        self.strays: list[str] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.path == "/hook":
                    collector.posted.append(json.loads(body))
                else:
                    collector.strays.append(self.path)
                self.send_response(204)
                self.end_headers()

            def do_GET(self) -> None:
                collector.strays.append(self.path)
                self.send_response(204)
                self.end_headers()

            def log_message(self, *words: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Collector:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class Site:
    """The agent `claude-code` may publish posts if a person agrees. `approval` is what else that section says."""

    def __init__(self, collector: Collector, **approval: Any) -> None:
        self.collector = collector
        self._approval: dict[str, Any] = {"generic": {"webhook_url": f"{collector.url}/hook"}, **approval}
        self.home = Home(self._text("127.0.0.1:0")).launch()
        self.address = str(until(lambda: self.home.ask("status")["http"], "an address")).removeprefix("http://")
        self.url = f"http://{self.address}"
        # Only now is the port known that links have to name.
        self._approval["callback_base_url"] = self.url
        self.home.configure(self._text(self.address))
        self.home.ask("reload")
        self._tally = self.home.dir / "executed.jsonl"
        self._calls = 0

    def _text(self, listen: str) -> str:
        return CONFIG.format(listen=listen, approval=json.dumps(self._approval))

    def agent(self, name: str = "claude-code", says: dict[str, str] | None = None) -> Agent:
        """A client whose session with the wrapped server is open. `says` is how it introduces itself."""
        command = (sys.executable, "-I", "-S", str(SERVER), str(self._tally), UNBROKEN)
        client = says or {"name": "claude-code", "version": "2.1.329"}
        return self.home.wrap(*command, agent=name, backend="blog").handshake(clientInfo=client)

    def publish(self, agent: Agent, title: str = "Hello", body: str = "First post", **more: Any) -> int:
        """The agent asks to publish; gives the id of its request."""
        self._calls += 1
        agent.says(call(self._calls, "publish_post", title=title, body=body, **more))
        return self._calls

    def message(self, number: int = 1) -> dict[str, Any]:
        """The message about the ticket that was opened as the number-th."""
        return dict(
            until(lambda: len(self.collector.posted) >= number and self.collector.posted[number - 1], "a message")
        )

    def fetch(self, method: str, path: str, headers: dict[str, str], body: str = "") -> tuple[int, str]:
        """Asks without a browser, with headers that none would send."""
        connection = http.client.HTTPConnection(self.address, timeout=20)
        try:
            connection.request(method, path, body or None, headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def crashes(self) -> None:
        """The daemon is killed, and another one takes its place only with `home.launch`."""
        self.home.torn = True
        os.kill(self.home.pid, signal.SIGKILL)

    def login(self) -> str:
        """The address by which a person's browser gets into the inbox, once."""
        return str(self.home.json("ui", "--no-open", env=self.home.approver())["url"])

    def published(self) -> list[dict[str, Any]]:
        """The arguments of the posts that the server really published."""
        try:
            lines = self._tally.read_text().splitlines()
        except FileNotFoundError:
            return []
        done = [json.loads(line) for line in lines]
        return [each["arguments"] for each in done if each["tool"] == "publish_post"]


def text(answer: dict[str, Any]) -> str:
    """What an answer says to the model: the text of a result, or the message of an error."""
    if "error" in answer:
        return str(answer["error"]["message"])
    return "".join(part["text"] for part in answer["result"]["content"])
