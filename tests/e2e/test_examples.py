"""A client configuration for each transport in `examples/` reaches the example of a daemon, as it is but for the ports."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, TextIO

import httpx2
import pytest
from mcp import Client
from mcp.client.sse import sse_client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client

from .conformance import accepts, free_port
from .house import BIN, BOUND_S, HERE, Home, until
from .travel import told, websocket

EXAMPLES = HERE.parents[1] / "examples"
TRANSPORTS = ("sse", "stdio", "streamable-http", "streamable-http-token", "websocket")
CLIENTS = [EXAMPLES / "clients" / f"{name}.json" for name in TRANSPORTS]
DAEMON, MOCK = "127.0.0.1:18070", "127.0.0.1:9100"
"""The addresses that the examples name."""


@pytest.fixture(scope="module")
def team() -> Iterator[tuple[Home, dict[str, str]]]:
    """The daemon and the backend of the example, and for each address of the examples the one it has here."""
    places = {DAEMON: f"127.0.0.1:{free_port()}", MOCK: f"127.0.0.1:{free_port()}"}
    port = places[MOCK].rpartition(":")[2]
    home = Home(moved((EXAMPLES / "team-over-http.yaml").read_text(), places))
    mock = subprocess.Popen([sys.executable, str(EXAMPLES / "mock_backend.py"), port], stdin=subprocess.DEVNULL)
    try:
        home.launch()
        until(lambda: accepts(int(port)), "the mock backend")
        until(lambda: home.ask("status")["http"], "an address")
        yield home, places
    finally:
        mock.kill()
        mock.wait()
        home.close()


def moved(text: str, places: dict[str, str]) -> str:
    for place, other in places.items():
        text = text.replace(place, other)
    return text


@contextlib.asynccontextmanager
async def opened(home: Home, entry: dict[str, Any], errors: TextIO) -> AsyncIterator[Any]:
    """The transport that an entry of `mcpServers` names, as the clients that read it take it."""
    headers = entry.get("headers", {})
    if "command" in entry:
        assert entry.get("type", "stdio") == "stdio"
        env = {**home.env, "PATH": f"{BIN}:{os.environ['PATH']}"}
        made: Any = stdio_client(
            StdioServerParameters(command=entry["command"], args=entry["args"], env={**env, **entry.get("env", {})}),
            errors,
        )
    elif entry["type"] == "http":
        async with (
            httpx2.AsyncClient(headers=headers) as client,
            streamable_http_client(entry["url"], http_client=client) as streams,
        ):
            yield streams
        return
    elif entry["type"] == "sse":
        made = sse_client(entry["url"], headers=headers)
    else:
        assert entry["type"] == "ws"
        made = websocket(entry["url"])
    async with made as streams:
        yield streams


def echoes(home: Home, entry: dict[str, Any], mode: str) -> tuple[set[str], list[Any]]:
    """The tools that a client finds there, and what `echo` answers."""

    async def all(errors: TextIO) -> tuple[set[str], list[Any]]:
        async with asyncio.timeout(BOUND_S), Client(opened(home, entry, errors), mode=mode) as client:
            names = {tool.name for tool in (await client.list_tools()).tools}
            return names, await told(client.call_tool("echo", {"text": "hello"}))

    with open(os.devnull, "w") as errors:
        return asyncio.run(all(errors))


def test_there_is_a_client_for_each_transport() -> None:
    kinds = {
        entry.get("type", "stdio") for path in CLIENTS for entry in json.loads(path.read_text())["mcpServers"].values()
    }
    assert kinds == {"stdio", "http", "sse", "ws"}


@pytest.mark.parametrize("path", CLIENTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("mode", ["legacy", "auto"])
def test_a_client_with_this_configuration_calls_echo(team: tuple[Home, dict[str, str]], path: Path, mode: str) -> None:
    home, places = team
    config = json.loads(moved(path.read_text(), places))
    for entry in config["mcpServers"].values():
        names, answer = echoes(home, entry, mode)
        assert answer == ["ok", "hello"]
        assert "echo" in names
        assert "admin_reset" not in names
        assert ("publish_post" in names) is ("reader" not in json.dumps(entry))
    (row, *_) = home.json("audit", "search", "--tool", "echo", "--limit", "1")
    assert (row["backend_id"], row["exec_status"]) == ("social", "success")
    assert row["agent_id"] == ("reader" if "reader" in path.read_text() else "writer")


def test_the_reader_of_the_example_is_turned_away_without_its_token(team: tuple[Home, dict[str, str]]) -> None:
    home, places = team
    url = f"http://{places[DAEMON]}/agents/reader/backends/social/mcp"
    for headers in ({}, {"authorization": "Bearer reader-shows-another-token"}):
        answer = httpx2.post(url, json={"jsonrpc": "2.0", "id": 1, "method": "tools/list"}, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
    assert home.answers() is not None
