"""A backend that is probed is started as for a session, tells what it is, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from making import until

from aegis_daemon.backends.children import Nursery
from aegis_daemon.backends.http_client import HttpPool
from aegis_daemon.core.runtime import BackendRule
from aegis_daemon.daemon import probing
from aegis_daemon.daemon.probing import Prober
from aegis_daemon.daemon.servers import Servers
from aegis_daemon.loop.descriptor import Outbox
from aegis_daemon.manage import shapes
from aegis_daemon.relay.admission import Refused

Run = Callable[[Coroutine[Any, Any, Any]], Any]
# It asks before it answers, has its tools on two pages, and ends if anything else is asked of it.
LEGACY = """
import json, sys
def say(**frame):
    print(json.dumps({"jsonrpc": "2.0", **frame}), flush=True)
for line in sys.stdin:
    said = json.loads(line)
    method, id = said.get("method"), said.get("id")
    if method == "initialize":
        say(id=id, result={"protocolVersion": "2025-06-18", "capabilities": {"tools": {}},
                           "serverInfo": {"name": "old", "version": "1.2"}})
    elif method == "tools/list":
        more = "cursor" not in said["params"]
        if more:
            say(id="q", method="ping")
            say(id="r", method="roots/list")
            assert json.loads(sys.stdin.readline()) == {"jsonrpc": "2.0", "id": "q", "result": {}}
            assert "error" in json.loads(sys.stdin.readline())
        say(id=id, result={"tools": [{"name": "a"}, {"name": "b"}], **({"nextCursor": "x"} if more else {})})
    elif method != "notifications/initialized":
        sys.exit(3)
"""


def probed(run: Run, source: str, **rule: Any) -> shapes.BackendProbe:
    async def script() -> shapes.BackendProbe:
        loop = asyncio.get_running_loop()
        nursery, pool = Nursery(), HttpPool(loop)
        nursery.start()
        try:
            settings = BackendRule(command=(sys.executable, "-c", source), **rule)
            prober = Prober(Servers(loop, Outbox(loop), nursery, pool))
            found = await prober.probe(prober.plan("files", settings))
            await until(lambda: nursery.alive == 0)
            return found
        finally:
            pool.close()
            await nursery.close()

    return run(script())  # type: ignore[no-any-return]


def test_a_server_tells_its_name_its_protocol_and_all_pages_of_its_tools(run: Run) -> None:
    found = probed(run, LEGACY)
    assert found.ok, found.detail
    assert (found.server_name, found.server_version) == ("old", "1.2")
    assert (found.protocol_version, found.era) == ("2025-06-18", "legacy")
    assert (found.tools, found.more) == (4, False)
    assert found.latency_ms is not None
    assert found.latency_ms > 0


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("import sys; sys.exit(4)", "it ended (with status 4) before it answered"),
        (
            "import json\nid = json.loads(input())['id']\n"
            "print(json.dumps({'jsonrpc': '2.0', 'id': id, 'error': {'code': -32603, 'message': 'no db'}}), flush=True)\n"
            "input()",
            "no db",
        ),
    ],
)
def test_a_server_that_does_not_serve_says_why(run: Run, source: str, why: str) -> None:
    found = probed(run, source)
    assert not found.ok
    assert why in found.detail


def test_a_program_that_is_not_there_is_named(run: Run) -> None:
    async def script() -> shapes.BackendProbe:
        loop = asyncio.get_running_loop()
        nursery = Nursery()
        nursery.start()
        try:
            prober = Prober(Servers(loop, Outbox(loop), nursery, HttpPool(loop)))
            return await prober.probe(prober.plan("files", BackendRule(command=("no-such-program-here",))))
        finally:
            await nursery.close()

    found = run(script())
    assert not found.ok
    assert "no-such-program-here" in found.detail


def test_a_silent_server_is_given_up_and_gone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "PATIENCE_S", 0.5)
    found = probed(run, "import sys; sys.stdin.read()")
    assert found.detail == "it did not answer within 0.5 s"


def test_what_only_a_shim_can_bring_is_refused(run: Run) -> None:
    async def script() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(Refused, match="only `aegis-wrap` can bring it"):
            Prober(Servers(loop, Outbox(loop), Nursery(), HttpPool(loop))).plan("files", BackendRule())

    run(script())
