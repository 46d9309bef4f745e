"""The port of an installed daemon by `governed.yaml`, with the hostile server behind it: who asks there, gets through or not."""

from __future__ import annotations

import http.client
import json
import sys
from pathlib import Path
from typing import Any

from e2e.house import Home, until
from ruamel.yaml import YAML

HERE = Path(__file__).parent
BOUND_S = 10.0
FRESH = tuple(f"fresh{at}" for at in range(40))
"""Backends of which no daemon has heard anything: one for each case."""


class Gate:
    """See `defence.Front`."""

    def __init__(self) -> None:
        config = YAML(typ="safe").load((HERE / "governed.yaml").read_text())
        self.home = Home()
        argv = [sys.executable, "-I", "-S", str(HERE / "hostile.py"), str(self.home.log), "--modern"]
        config["backends"]["one"] = {"command": argv[0], "args": argv[1:]}
        config["agents"]["bot"]["hold"] = "0s"
        for fresh in FRESH:
            config["backends"][fresh] = {}
            config["agents"]["bot"]["backends"][fresh] = config["agents"]["bot"]["backends"]["two"]
        config["server"]["listen"] = "127.0.0.1:0"
        (self.home.dir / "aegis.yaml").write_text(json.dumps(config))
        self.home.launch()
        self._address = str(until(lambda: self.home.ask("status")["http"], "an address")).removeprefix("http://")

    def close(self) -> None:
        self.home.close()

    def __call__(self, method: str, headers: dict[str, str], frame: Any) -> tuple[bool, str]:
        """Whether the request was let through, and in which words it was not."""
        connection = http.client.HTTPConnection(self._address, timeout=BOUND_S)
        body = None if frame is None else json.dumps(frame).encode()
        given = {name.lower(): value for name, value in headers.items()}
        usual = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
        try:
            connection.request(method, "/agents/bot/backends/one/mcp", body, usual | given)
            answer = connection.getresponse()
            if answer.status == 200 and "json" not in answer.headers.get("Content-Type", ""):
                return True, ""  # a stream
            said = json.loads(answer.read() or b"{}")
        finally:
            connection.close()
        meta = said.get("result", {}).get("_meta", {})
        if answer.status >= 400 or "error" in said or "aegis/pending" in meta or "aegis/denial" in meta:
            return False, f"{answer.status} {json.dumps(said)}"
        return True, ""
