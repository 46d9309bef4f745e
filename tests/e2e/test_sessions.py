"""How many sessions there may be, who may keep one, and what a session does not answer."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from time import monotonic

from .conftest import OPEN
from .house import BOUND_S, Home, call, note, request, until
from .test_refused_at_the_door import asks


def test_an_agent_has_no_more_sessions_than_it_may_and_gets_the_place_of_one_that_ended(
    homes: Callable[..., Home],
) -> None:
    home = homes(OPEN + "server: {max_sessions_agent: 2}\n")
    first = home.count().handshake()
    home.count().handshake()
    third = home.count()
    refused = third.asks(request("r", "tools/list"))
    assert "2 sessions already" in refused["error"]["message"]
    third.close()
    assert first.close() == 0
    until(lambda: len(home.ask("status")["sessions"]) == 1, "the end of the first")
    assert home.count().handshake().asks(call("c", "look", key="k"))["result"]


def test_a_session_with_several_backends_is_one_and_has_all_of_them_or_is_refused(
    homes: Callable[..., Home],
) -> None:
    server = f"{{command: {sys.executable}, args: [{Path(__file__).with_name('counting.py')}, /dev/null]}}"
    access = ", ".join(f"{name}: {{allowed: true}}" for name in "abc")
    home = homes(
        f"server: {{max_sessions_agent: 2}}\nbackends: {{a: {server}, b: {server}, c: {server}}}\n"
        f"agents: {{bot: {{backends: {{{access}}}}}}}\n"
    )

    first, second = begun(home, "bot/mcp"), begun(home, "bot/mcp")
    for session in (first, second):
        _, _, answer = asks(home, "bot/mcp", request("l", "tools/list"), **{"Mcp-Session-Id": session})
        assert {tool["name"].partition("__")[0] for tool in answer["result"]["tools"]} == set("abc")
    assert "the agent `bot` has 2 sessions already" in begun(home, "bot/mcp")
    warned = [one for one in home.ask("status")["warnings"] if "max_sessions_agent" in one]
    assert len(warned) == 1
    assert warned[0].startswith("the agent `bot` has all of the 2 sessions")
    ends(home, "bot/mcp", first)
    until(lambda: len(home.ask("status")["sessions"]) == 3, "the end of the first")
    assert not [one for one in home.ask("status")["warnings"] if "max_sessions_agent" in one]
    ends(home, "bot/mcp", begun(home, "bot/mcp"))
    ends(home, "bot/mcp", second)
    until(lambda: not home.ask("status")["sessions"], "the end of all")


def test_one_backend_that_hangs_holds_up_no_second_session_and_is_told_of(homes: Callable[..., Home]) -> None:
    server = f"{{command: {sys.executable}, args: [{Path(__file__).with_name('counting.py')}, /dev/null]}}"
    access = ", ".join(f"{name}: {{allowed: true}}" for name in ("well", "hung"))
    home = homes(
        f"backends: {{well: {server}, hung: {{command: sleep, args: ['1000'], timeout: 1s}}}}\n"
        f"agents: {{bot: {{backends: {{{access}}}}}}}\n"
    )
    for number in range(2):
        session = begun(home, "bot/mcp")
        began = monotonic()
        _, _, answer = asks(home, "bot/mcp", request("l", "tools/list"), **{"Mcp-Session-Id": session})
        assert {tool["name"].partition("__")[0] for tool in answer["result"]["tools"]} == {"well"}
        assert not number or monotonic() - began < 1
        ends(home, "bot/mcp", session)
    assert [one for one in home.ask("status")["warnings"] if one.startswith("the backend `hung` has not answered")]
    connection = HTTPConnection(home.ask("status")["http"], timeout=BOUND_S)
    for path, said in (("/metrics", b'aegis_backend_late{backend="hung"} 1'), ("/health", b"does not answer sessions")):
        connection.request("GET", path)
        assert said in connection.getresponse().read()
    connection.close()
    until(lambda: not home.ask("status")["sessions"], "the end of all")


def begun(home: Home, path: str) -> str:
    """The id of a session, or why there is none."""
    can = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "c", "version": "1"}}
    _, headers, answer = asks(home, path, request("i", "initialize", **can))
    return str(headers["mcp-session-id"]) if "result" in answer else str(answer["error"]["message"])


def ends(home: Home, path: str, session: str) -> None:
    connection = HTTPConnection(home.ask("status")["http"], timeout=BOUND_S)
    connection.request("DELETE", f"/agents/{path}", headers={"Mcp-Session-Id": session})
    assert connection.getresponse().status in (200, 202, 204)
    connection.close()


def test_a_user_that_a_reload_takes_off_an_agents_list_loses_the_session(homes: Callable[..., Home]) -> None:
    here = OPEN.replace("default: {", f"default: {{identities: [{os.geteuid()}], ")
    home = homes(here)
    agent = home.count().handshake()
    home.configure(here.replace(f"[{os.geteuid()}]", f"[{os.geteuid() + 4321}]"))
    home.ask("reload")
    until(lambda: not home.ask("status")["sessions"], "the end of the session")
    assert "may not be the agent" in agent.asks(request("r", "tools/list"))["error"]["message"]
    assert agent.close() == 1
    until(lambda: not home.servers(), "the server's end")


def test_an_answer_to_nothing_gets_no_answer_however_broken(home: Home) -> None:
    agent = home.count().handshake()
    agent.says(
        b'{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"x"}}\n',
        b'{"jsonrpc":"2.0","id":9,"result":{},"error":{"code":1,"message":"x"}}\n',
        b'{"id":9,"result":{}}\n',
    )
    assert agent.asks(call("c", "look", key="k"))["result"]
    assert [frame["id"] for frame in agent.frames] == ["init", "c"]


def test_a_call_that_was_cancelled_is_not_revived_by_the_end_of_input(home: Home) -> None:
    agent = home.count().handshake()
    agent.says(call("c", "post", key="k"), note("notifications/cancelled", requestId="c"))
    assert agent.close() == 0
    assert "c" not in agent.answers
    assert home.reached() == []
