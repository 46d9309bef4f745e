"""Every official client, by every front, reaches every back, and sees, is refused and is recorded the same."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from mcp import Client

from . import sdk_anywhere as anywhere
from . import servers
from .conformance import free_port
from .house import BOUND_S, Home, call, tell_of, until
from .travel import (
    BACKS,
    FRONTS,
    SEVERAL,
    VERSIONS,
    Front,
    attempt,
    noted,
    told,
    travel,
    visit,
)

ASKED = ("elicitation/create", "sampling/createMessage", "roots/list")
RULES = {
    "allowed": True,
    "tool_denylist": ["drop"],
    "rate_limits": {"post": "2/day"},
    "server_requests": ["sampling", "elicitation", "roots"],
}
WAYS = tuple(dict.fromkeys(front.way for front in FRONTS))
STDIO = ("relay", "handover")
MATRIX = pytest.mark.matrix


def backend(back: str, url: str) -> dict[str, Any]:
    settings: dict[str, Any] = {"url": url}
    return {**settings, "transport": back} if back in ("sse", "websocket") else settings


def child(home: Home) -> dict[str, Any]:
    command, *args = anywhere.command(home.log, "stdio")
    return {"command": command, "args": args}


def configuration(backends: dict[str, Any], agents: dict[str, Any], port: int = 0) -> str:
    return f"server: {{listen: '127.0.0.1:{port}'}}\nbackends: {json.dumps(backends)}\nagents: {json.dumps(agents)}\n"


def address(home: Home) -> str:
    return str(until(lambda: home.ask("status")["http"], "an address"))


# --- the journeys


@dataclass(frozen=True)
class Trip:
    """One journey that was made. `agent` is nobody else's; `seen` is what `travel` gave; no `back`: to `SEVERAL`."""

    home: Home
    front: Front
    back: str
    agent: str
    seen: dict[str, Any]


def agent_of(front: Front, back: str) -> str:
    return f"{front}-to-{back or 'several'}"


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[Home, str]]:
    """A daemon with every back behind it, and an agent for each journey; and its address."""
    home = Home()
    with contextlib.ExitStack() as stack:
        stack.callback(home.close)
        backends = {
            kind: backend(kind, stack.enter_context(anywhere.serving(home.log, kind))[0]) for kind in anywhere.KINDS
        }
        agents = {
            agent_of(front, back): {"backends": dict.fromkeys([back] if back else SEVERAL, RULES)}
            for front in FRONTS
            for back in (*BACKS, "")
        }
        home.configure(configuration({**backends, "stdio": child(home)}, agents))
        home.launch()
        yield home, address(home)


def journeys() -> Iterator[Any]:
    """All; every way meets every back, and every front is taken, in those that are not `matrix`."""
    for at, way in enumerate(WAYS):
        fronts = [front for front in FRONTS if front.way == way]
        backs = BACKS if way in STDIO else (*BACKS, "")  # a shim names one backend
        for number, back in enumerate(backs):
            chosen = fronts[(at + number) % len(fronts)]
            for front in fronts:
                marks = [pytest.mark.real] if front.client != "python" else []
                if front is not chosen:
                    marks.append(MATRIX)
                yield pytest.param((front, back), marks=marks, id=agent_of(front, back))


@pytest.fixture(scope="module", params=journeys())
def trip(request: pytest.FixtureRequest, world: tuple[Home, str]) -> Trip:
    front, back = request.param
    if front.client != "python":
        servers.needed()
    home, where = world
    agent = agent_of(front, back)
    return Trip(home, front, back, agent, travel(home, where, front, agent, back))


def test_the_session_has_the_clients_era_whatever_the_servers(trip: Trip) -> None:
    assert trip.seen["version"] == VERSIONS[trip.front.mode]
    assert trip.seen["server"] == ("sdk" if trip.back else "aegis")


def test_tools_resources_and_prompts_come_as_the_server_has_them(trip: Trip) -> None:
    assert trip.seen["add"] == {"result": 3}
    assert trip.seen["memo"] == "memo x"
    assert trip.seen["review"] == "review c"


def test_an_error_of_a_tool_is_the_servers_own(trip: Trip) -> None:
    assert trip.seen["fail"] == ["failed", "Error executing tool fail: no luck"]


def test_progress_is_heard_in_order(trip: Trip) -> None:
    all_steps = [[step, 3, f"step {step}"] for step in (1, 2, 3)]
    assert trip.seen["walk"] == ["ok", "3 steps"]
    if trip.front.client == "python":
        assert trip.seen["progress"] == all_steps
    else:  # these lose, with and without Aegis, what they read in one piece with the answer
        assert trip.seen["progress"] == all_steps[: max(1, len(trip.seen["progress"]))]


def test_the_server_gets_an_answer_to_what_it_asks_its_client(trip: Trip) -> None:
    assert trip.seen["asks"] == [["ok", "hi Ann"], ["ok", "x: deep"], ["ok", "file:///a file:///b"]]


def test_the_client_hears_that_the_tools_changed(trip: Trip) -> None:
    assert trip.seen["changed"] == ["ToolsListChanged"]


def test_a_call_that_is_given_up_ends_at_the_server(trip: Trip) -> None:
    assert trip.seen["woken"]


def test_a_denied_tool_is_neither_shown_nor_called(trip: Trip) -> None:
    assert "drop" not in trip.seen["tools"]
    code, text = trip.seen["drop"]
    assert code == (-32001 if trip.front.mode == "legacy" else -31001)
    assert "`drop` is not available to this agent" in text
    assert not noted(trip.home, "call", f"drop-{trip.agent}")


def test_a_limit_is_shown_and_holds(trip: Trip) -> None:
    assert trip.seen["tools"]["post"] == "[Rate:2/1d] Posts."
    first, second, third = trip.seen["posts"]
    assert (first, second) == (["ok", f"posted {trip.agent}-1"], ["ok", f"posted {trip.agent}-2"])
    assert third[0] == (-32002 if trip.front.mode == "legacy" else -31002)
    assert "2/2 calls" in third[1]
    assert not noted(trip.home, "call", f"post-{trip.agent}-3")


def test_the_log_has_all_of_it_under_the_right_names(trip: Trip) -> None:
    modern = trip.front.mode == "auto"

    def settled() -> tuple[list[dict[str, Any]], dict[str, str]] | None:
        records = trip.home.records()
        ended = {record["call"]: record["status"] for record in records if record["kind"] == "outcome"}
        ours = [record for record in records if record.get("agent") == trip.agent]
        # The session of modern HTTP outlives its clients, and waits half a minute for what a server says of a request
        # that nobody wants any more.
        given_up = ("sleep", "subscriptions/listen") if modern and trip.front.way == "http" else ()
        open = [one for one in ours if one["kind"] == "intent" and one["call"] not in ended]
        return None if [one for one in open if one.get("name", one["method"]) not in given_up] else (ours, ended)

    ours, ended = until(settled, "the end of every call")
    assert {record["backend"] for record in ours} == ({trip.back} if trip.back else set(SEVERAL))
    ours = [record for record in ours if record["backend"] == (trip.back or SEVERAL[0])]
    assert {record["kind"] for record in ours} == {"intent", "denied"}
    assert all(trip.agent in record["principal"] for record in ours)
    intents = [record for record in ours if record["kind"] == "intent"]
    found = [(record["method"], record.get("name", ""), ended.get(record["call"])) for record in intents]
    # A modern server asks with its answer, and the client asks again with what it was asked for.
    rounds = 2 if modern else 1
    expected = [
        ("server/discover" if modern else "initialize", "", "success"),
        ("tools/list", "", "success"),
        ("resources/read", "memo://by-name/x", "success"),
        ("prompts/get", "review", "success"),
        ("tools/call", "add", "success"),
        ("tools/call", "fail", "error"),
        ("tools/call", "walk", "success"),
        *[("tools/call", name, "success") for name in ("greet", "wonder", "where") for _ in range(rounds)],
    ]
    missing = [entry for entry in expected if found.count(entry) < expected.count(entry)]
    assert not missing, found
    assert [status for _, name, status in found if name == "sleep"] in (["error"], ["unknown"], [None])
    assert [status for _, name, status in found if name == "post"] == ["success", "success"]
    assert [method for method, _, _ in found if method in ASKED] == ([] if modern else list(ASKED))
    assert ("subscriptions/listen" in [method for method, _, _ in found]) is modern
    denied = [(record["name"], record["stage"]) for record in ours if record["kind"] == "denied"]
    assert denied == [("drop", "acl"), ("post", "rate_limit")]


def test_the_log_of_all_journeys_is_intact(world: tuple[Home, str]) -> None:
    home, _ = world
    assert home.verify()["records"] > 0
    # The one client that says in words, too, what the end of its stream says.
    assert all(record["agent"].startswith("ts2-http-auto") for record in home.records("dropped"))


# --- what ends and begins again


@contextlib.contextmanager
def installation(back: str, port: int = 0) -> Iterator[tuple[Home, Any]]:
    """A daemon with one back, `one`, for the agent `bot`; and the back's process, if it is not the daemon's child."""
    home = Home()
    with contextlib.ExitStack() as stack:
        stack.callback(home.close)
        process = None
        if back == "stdio":
            settings = child(home)
        else:
            url, process = stack.enter_context(anywhere.serving(home.log, back))
            settings = backend(back, url)
        home.configure(configuration({"one": settings}, {"bot": {"backends": {"one": RULES}}}, port))
        home.launch()
        yield home, process


def killed_and_replaced(home: Home, *, by_shim: bool = False) -> None:
    """The daemon, by another at the same address; where there is a shim it starts one, and a second would linger."""
    for daemon in home._daemons:
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()
    if by_shim:
        until(home.answers, "a daemon")
    else:
        home.launch()
    address(home)


def add(client: Client) -> Any:
    return told(client.call_tool("add", {"a": 1, "b": 2}))


@pytest.mark.parametrize(
    ("way", "back"),
    [
        ("relay", "http"),
        ("handover", "websocket"),
        pytest.param("relay", "websocket", marks=MATRIX),
        pytest.param("handover", "http", marks=MATRIX),
        pytest.param("relay", "sse", marks=MATRIX),
        pytest.param("handover", "sse", marks=MATRIX),
        pytest.param("relay", "http-modern", marks=MATRIX),
        pytest.param("handover", "http-legacy", marks=MATRIX),
    ],
)
def test_a_session_over_stdio_to_an_address_outlives_the_daemon(way: str, back: str) -> None:
    with installation(back) as (home, _):
        agent = home.wrap(agent="bot", backend="one", way=way).handshake()
        assert agent.asks(call(1, "add", a=1, b=2))["result"]["structuredContent"] == {"result": 3}
        agent.says(call(2, "sleep", key="k"))
        until(lambda: noted(home, "call", "k"), "the call")
        killed_and_replaced(home, by_shim=True)
        _, reason = tell_of(agent.answer(2))
        assert "unknown" in json.dumps(agent.answers[2]), reason
        assert agent.asks(call(3, "add", a=1, b=2))["result"]["structuredContent"] == {"result": 3}
        assert agent.close() == 0


@pytest.mark.parametrize("back", ["http", pytest.param("stdio", marks=MATRIX)])
def test_a_modern_client_over_http_does_not_notice_that_the_daemon_was_replaced(back: str) -> None:
    with installation(back, free_port()) as (home, _):

        async def use(client: Client, news: asyncio.Event) -> Any:
            before = await add(client)
            await asyncio.to_thread(killed_and_replaced, home)
            return before, await add(client)

        seen = visit(home, address(home), Front("python", "http", "auto"), "bot", "one", use)
    assert seen == (["ok", "3"], ["ok", "3"])


@pytest.mark.parametrize(
    "front",
    [
        Front("python", "http", "legacy"),
        Front("python", "sse", "legacy"),
        pytest.param(Front("python", "websocket", "legacy"), marks=MATRIX),
        pytest.param(Front("python", "websocket", "auto"), marks=MATRIX),
    ],
    ids=str,
)
def test_a_session_that_ends_with_the_daemon_fails_at_once_and_a_new_one_begins(front: Front) -> None:
    with installation("http", free_port()) as (home, _):
        where = address(home)

        async def use(client: Client, news: asyncio.Event) -> Any:
            asked = asyncio.create_task(attempt(client.call_tool("sleep", {"key": "k"})))
            await asyncio.to_thread(until, lambda: noted(home, "call", "k"), "the call")
            await asyncio.to_thread(killed_and_replaced, home)
            async with asyncio.timeout(BOUND_S):
                first = await asked
                return first[0], (await attempt(client.call_tool("add", {"a": 1, "b": 2})))[0]

        async def again(client: Client, news: asyncio.Event) -> Any:
            return await add(client)

        with contextlib.suppress(BaseExceptionGroup):  # how the SDK's transports say that their connection is gone
            assert visit(home, where, front, "bot", "one", use) == ("error", "error")
        assert visit(home, where, front, "bot", "one", again) == ["ok", "3"]
        (row,) = [record for record in home.records("outcome") if record["status"] == "unknown"]
        assert "never repeated" in row["error_message"]


@pytest.mark.parametrize(
    ("back", "mode"),
    [
        pytest.param(back, mode, marks=[] if (back, mode) in (("http", "legacy"), ("websocket", "auto")) else MATRIX)
        for back in anywhere.KINDS
        for mode in VERSIONS
    ],
)
def test_a_server_that_was_replaced_is_found_again(back: str, mode: str) -> None:
    port = free_port()
    home = Home()
    with contextlib.ExitStack() as stack:
        stack.callback(home.close)
        with anywhere.serving(home.log, back, port) as (url, _):
            home.configure(configuration({"one": backend(back, url)}, {"bot": {"backends": {"one": RULES}}}))
            home.launch()
            front = Front("python", "http", mode)

            async def use(client: Client, news: asyncio.Event) -> Any:
                return await add(client)

            assert visit(home, address(home), front, "bot", "one", use) == ["ok", "3"]
            agent = home.wrap(agent="bot", backend="one").handshake()
            assert "result" in agent.asks(call(1, "add", a=1, b=2))
        if back.startswith("http"):  # where a connection is not a session
            assert "error" in agent.asks(call(2, "add", a=1, b=2))
            stack.enter_context(anywhere.serving(home.log, back, port))
            assert "result" in agent.asks(call(3, "add", a=1, b=2))
        else:
            assert agent.ends() != 0
            stack.enter_context(anywhere.serving(home.log, back, port))
        assert visit(home, address(home), front, "bot", "one", use) == ["ok", "3"]


# --- several behind one address


@pytest.fixture(scope="module")
def several() -> Iterator[tuple[Home, dict[str, int]]]:
    """An agent with three backends, `child`, `web` and `wire`; and the ports of the two that are not its child."""
    ports = {"http": free_port(), "websocket": free_port()}
    home = Home()
    urls = {"web": f"http://127.0.0.1:{ports['http']}/mcp", "wire": f"ws://127.0.0.1:{ports['websocket']}/"}
    backends = {"child": child(home), **{name: {"url": url} for name, url in urls.items()}}
    agents = {"bot": {"backends": dict.fromkeys(backends, RULES)}}
    home.configure(configuration(backends, agents))
    try:
        home.launch()
        yield home, ports
    finally:
        home.close()


@pytest.mark.parametrize(
    "front",
    [
        Front("python", "http", "legacy"),
        pytest.param(Front("python", "http", "auto"), marks=MATRIX),
        pytest.param(Front("python", "sse", "legacy"), marks=MATRIX),
        pytest.param(Front("python", "websocket", "legacy"), marks=MATRIX),
        Front("python", "websocket", "auto"),
    ],
    ids=str,
)
def test_one_backend_that_is_down_takes_none_of_the_others_down(
    several: tuple[Home, dict[str, int]], front: Front
) -> None:
    home, ports = several

    async def look(client: Client) -> tuple[set[str], list[Any]]:
        names = {tool.name for tool in (await client.list_tools()).tools}
        calls = [await told(client.call_tool(f"{name}__add", {"a": 1, "b": 2})) for name in ("child", "web", "wire")]
        return {name.rpartition("__")[0] for name in names}, calls

    async def use(client: Client, news: asyncio.Event) -> Any:
        all_there = await look(client)
        asked = await told(client.call_tool("web__greet", {"greeting": "hi"}))
        dropped = await told(client.call_tool("web__drop", {"text": "x"}))
        await asyncio.to_thread(web.close)
        down = await look(client)
        await asyncio.to_thread(web.enter_context, anywhere.serving(home.log, "http", ports["http"]))
        async with asyncio.timeout(BOUND_S):
            while (back := await look(client)) != all_there:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        return all_there, asked, dropped, down, back

    with contextlib.ExitStack() as web, anywhere.serving(home.log, "websocket", ports["websocket"]):
        web.enter_context(anywhere.serving(home.log, "http", ports["http"]))
        all_there, asked, dropped, down, _ = visit(home, address(home), front, "bot", "", use)
    assert all_there == ({"child", "web", "wire"}, [["ok", "3"]] * 3)
    assert asked == ["ok", "hi Ann"]
    assert dropped[0] in (-32001, -31001)
    _, calls = down
    assert (calls[0], calls[2]) == (["ok", "3"], ["ok", "3"])
    assert calls[1][0] not in ("ok", "failed")
    assert {"child", "wire"} <= down[0]


def test_each_call_of_an_aggregate_is_recorded_under_its_backends_own_names(
    several: tuple[Home, dict[str, int]],
) -> None:
    home, _ = several
    before = home.ask("status")["audit"]["seq"]

    async def use(client: Client, news: asyncio.Event) -> Any:
        return await told(client.call_tool("child__post", {"text": "x"}))

    front = Front("python", "http", "auto")
    assert visit(home, address(home), front, "bot", "", use) == ["ok", "posted x"]
    calls = [record for record in home.records("intent") if record["method"] == "tools/call" and record["seq"] > before]
    assert [(record["agent"], record["backend"], record["name"]) for record in calls] == [("bot", "child", "post")]


def test_clients_by_every_way_share_one_limit() -> None:
    with installation("http", free_port()) as (home, _):
        where = address(home)
        found: list[Any] = []

        def post(way: str) -> None:
            async def use(client: Client, news: asyncio.Event) -> Any:
                return [await told(client.call_tool("post", {"text": f"{way}-{n}"})) for n in range(3)]

            found.extend(visit(home, where, Front("python", way, "auto"), "bot", "one", use))

        threads = [threading.Thread(target=post, args=(way,)) for way in WAYS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(str(code) for code, _ in found) == ["-31002"] * (3 * len(WAYS) - 2) + ["ok"] * 2
        assert len([key for key in home.reached() if key.startswith("post-")]) == 2
