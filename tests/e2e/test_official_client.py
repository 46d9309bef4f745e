"""The official client cannot tell whether Aegis is there, but for what the rules take away."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import mcp_types as types
import pytest
from mcp import Client, MCPError
from mcp.client.stdio import StdioServerParameters, stdio_client

from . import servers
from .house import BOUND_S, HERE, WAYS, WRAP, Home, call, note, request, until

ERAS = ("legacy", "auto")
BOTH = pytest.mark.parametrize(
    ("mode", "way"),
    [
        ("legacy", "relay"),
        ("auto", "handover"),
        pytest.param("legacy", "handover", marks=pytest.mark.full),
        pytest.param("auto", "relay", marks=pytest.mark.full),
    ],
)
TOUR = {
    "everything": ("echo", {"message": "ä"}),
    "filesystem": ("list_allowed_directories", {}),
    "git": ("git_log", {"repo_path": "REPOSITORY", "max_count": 1}),
    "time": ("convert_time", {"source_timezone": "Etc/UTC", "time": "12:00", "target_timezone": "Asia/Tokyo"}),
    "sdk": ("add", {"a": 1, "b": 2}),
}


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    made = Home(servers.CONFIG).launch()
    yield made
    made.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return servers.make_place(tmp_path_factory.mktemp("place"))


def sdk(home: Home) -> list[str]:
    return [sys.executable, str(HERE / "sdk_server.py"), str(home.log)]


async def accept(context: Any, params: Any) -> types.ElicitResult:
    return types.ElicitResult(action="accept", content={"name": "Ann"})


async def think(context: Any, params: Any) -> types.CreateMessageResult:
    content = types.TextContent(type="text", text="deep")
    return types.CreateMessageResult(role="assistant", content=content, model="m")


async def roots(context: Any) -> types.ListRootsResult:
    return types.ListRootsResult(roots=[types.Root(uri="file:///a"), types.Root(uri="file:///b")])


OFFERS: dict[str, Any] = {
    "elicitation_callback": accept, "sampling_callback": think, "list_roots_callback": roots,
}  # fmt: skip


def run(
    home: Home,
    argv: list[str],
    use: Callable[[Client], Awaitable[Any]],
    mode: str = "auto",
    way: str = "",
    options: tuple[str, ...] = (),
    **offers: Any,
) -> Any:
    """What `use` makes of a client of the server; with a way or options through Aegis."""
    if way or options:
        argv = [WRAP, *options, "--", *argv]
    env = {**home.env, **({"AEGIS_WAY": way} if way else {})}

    async def all(errors: TextIO) -> Any:
        transport = stdio_client(StdioServerParameters(command=argv[0], args=argv[1:], env=env), errors)
        async with asyncio.timeout(2 * BOUND_S), Client(transport, mode=mode, **offers) as client:
            return await use(client)

    with open(os.devnull, "w") as errors:
        return asyncio.run(all(errors))


def dumped(result: Any) -> Any:
    if isinstance(result, list):
        return [dumped(each) for each in result]
    return result.model_dump(mode="json") if result is not None else None


async def attempt(asked: Awaitable[Any]) -> Any:
    """A result or an error, as it looks to whoever asked."""
    try:
        return dumped(await asked)
    except MCPError as error:
        return ["error", error.error.code, error.error.message]


async def tour(client: Client, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Everything that a client can ask without changing anything."""
    prompts = await attempt(client.list_prompts())
    resources = await attempt(client.list_resources())
    seen = {
        "version": client.protocol_version,
        "server": dumped(client.server_info),
        "capabilities": dumped(client.server_capabilities),
        "instructions": client.instructions,
        "tools": await attempt(client.list_tools()),
        "prompts": prompts,
        "resources": resources,
        "templates": await attempt(client.list_resource_templates()),
        "call": await attempt(client.call_tool(tool, arguments)),
        "no such tool": await attempt(client.call_tool("no-such-tool", {})),
    }
    if isinstance(resources, dict) and resources["resources"]:
        seen["read"] = await attempt(client.read_resource(resources["resources"][0]["uri"]))
    if isinstance(prompts, dict) and prompts["prompts"]:
        first = prompts["prompts"][0]
        given = {argument["name"]: "x" for argument in first["arguments"] or ()}
        seen["prompt"] = await attempt(client.get_prompt(first["name"], given))
    return seen


def toured(home: Home, name: str, place: Path, mode: str, argv: list[str]) -> dict[str, Any]:
    tool, arguments = TOUR[name]
    given = {key: str(place / "repository") if value == "REPOSITORY" else value for key, value in arguments.items()}

    async def all() -> tuple[Any, ...]:
        return await asyncio.gather(
            *(
                asyncio.to_thread(
                    run, home, argv, lambda client: tour(client, tool, given), mode, way,
                    ("--backend", name) if way else (),
                )
                for way in ("", *WAYS)
            )
        )  # fmt: skip

    alone, *wrapped = asyncio.run(all())
    assert alone["call"]["is_error"] is False, "the tour does not fit the server"
    for way, seen in zip(WAYS, wrapped, strict=True):
        assert seen == alone, way
    return dict(alone)


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("everything", "legacy"),
        ("filesystem", "auto"),
        ("git", "auto"),
        ("time", "legacy"),
        pytest.param("everything", "auto", marks=pytest.mark.full),
        pytest.param("filesystem", "legacy", marks=pytest.mark.full),
        pytest.param("git", "legacy", marks=pytest.mark.full),
        pytest.param("time", "auto", marks=pytest.mark.full),
    ],
)
def test_the_official_client_sees_the_same_of_a_real_server(home: Home, place: Path, name: str, mode: str) -> None:
    servers.needed()
    seen = toured(home, name, place, mode, servers.command(name, place))
    python = name in ("git", "time")
    assert (seen["version"] == "2026-07-28") is (python and mode == "auto")


@pytest.mark.parametrize("mode", ERAS)
def test_the_official_client_sees_the_same_of_a_server_on_its_own_sdk(home: Home, place: Path, mode: str) -> None:
    seen = toured(home, "sdk", place, mode, sdk(home))
    assert seen["read"]["contents"][0]["text"] == "one \u2028 \U0001f600"
    assert seen["prompt"]["messages"]


@BOTH
def test_progress_comes_in_order_and_once(home: Home, mode: str, way: str) -> None:
    async def use(client: Client) -> tuple[list[Any], Any]:
        heard: list[Any] = []

        async def progress(done: float, total: float | None, message: str | None) -> None:
            heard.append((done, total, message))

        result = await client.call_tool("steps", {"count": 20}, progress_callback=progress)
        return heard, dumped(result)

    heard, result = run(home, sdk(home), use, mode, way, ("--backend", "sdk"))
    assert heard == [(step, 20, f"step {step}") for step in range(1, 21)]
    assert result["content"][0]["text"] == "20 steps"


@BOTH
def test_a_call_that_its_caller_gives_up_is_given_up_by_the_server(home: Home, mode: str, way: str) -> None:
    key = f"given-up-{mode}-{way}"

    async def use(client: Client) -> Any:
        asked = asyncio.create_task(client.call_tool("sleep", {"key": key}))
        await asyncio.to_thread(until, lambda: ["call", key] in [words[:2] for words in home.logged()], "the call")
        asked.cancel()
        await asyncio.to_thread(until, lambda: ["woken", key] in home.logged(), "its end")
        return dumped(await client.call_tool("add", {"a": 1, "b": 1}))

    assert run(home, sdk(home), use, mode, way, ("--backend", "sdk"))["structured_content"] == {"result": 2}


ASKS = (("greet", {"greeting": "hi"}), ("wonder", {"topic": "x"}), ("where", {}))


async def ask(client: Client) -> list[Any]:
    return [await attempt(client.call_tool(tool, arguments)) for tool, arguments in ASKS]


@BOTH
def test_a_server_may_ask_its_client_what_the_rules_allow(home: Home, mode: str, way: str) -> None:
    alone = run(home, sdk(home), ask, mode, **OFFERS)
    assert [seen["content"][0]["text"] for seen in alone] == ["hi Ann", "x: deep", "file:///a file:///b"]
    asked = run(home, sdk(home), ask, mode, way, ("--agent", "open", "--backend", "sdk"), **OFFERS)
    assert asked == alone


@pytest.mark.parametrize("mode", ERAS)
def test_by_default_a_server_asks_its_client_nothing(home: Home, mode: str) -> None:
    before = home.reached()
    heard: list[Any] = []

    async def listen(*given: Any) -> Any:
        heard.append(given)

    offers = dict.fromkeys(OFFERS, listen)
    asked = run(home, sdk(home), ask, mode, options=("--backend", "sdk"), **offers)
    # What the client offered was taken out of what the server learnt of it, so it does not even try.
    alone = run(home, sdk(home), ask, mode)
    assert asked == alone
    assert all(seen[0] == "error" for seen in asked)
    assert heard == []
    assert home.reached() == before


def test_a_subscription_of_the_modern_era_hears_its_own_events(home: Home) -> None:
    async def use(client: Client) -> list[Any]:
        heard = []
        async with client.listen(tools_list_changed=True, resource_subscriptions=["memo://one"]) as events:
            await client.call_tool("change", {})
            async for event in events:
                heard.append(type(event).__name__)
                if len(heard) == 2:
                    break
        assert (await client.call_tool("add", {"a": 1, "b": 1})).structured_content == {"result": 2}
        return heard

    alone = run(home, sdk(home), use)
    assert sorted(alone) == ["ResourceUpdated", "ToolsListChanged"]
    for way in WAYS:
        assert run(home, sdk(home), use, way=way, options=("--backend", "sdk")) == alone


def test_a_client_that_asks_what_there_is_and_then_shakes_hands_gets_a_fresh_server(home: Home) -> None:
    modern = {"_meta": {"io.modelcontextprotocol/protocolVersion": "2026-07-28",
                        "io.modelcontextprotocol/clientCapabilities": {}}}  # fmt: skip
    began = len(home.logged())
    agent = home.wrap(*sdk(home), backend="sdk")
    discovered = agent.asks(request(1, "server/discover", **modern))
    assert discovered["result"]["supportedVersions"] == ["2026-07-28"]
    agent.handshake()
    assert agent.asks(call(2, "add", a=1, b=2))["result"]["structuredContent"] == {"result": 3}
    agent.says(note("notifications/roots/list_changed"))
    # And back again.
    again = agent.asks(request(3, "tools/call", name="add", arguments={"a": 2, "b": 2}, **modern))
    assert again["result"]["resultType"] == "complete"
    assert agent.close() == 0
    assert not agent.twice
    assert [words[0] for words in home.logged()[began:]] == ["start"] * 3
    until(lambda: not home.servers(), "the end of the servers it left")
