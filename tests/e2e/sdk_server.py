"""A server on the official SDK, which speaks both eras: `sdk_server.py LOG`. It asks its client for everything."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import anyio
from mcp.server.mcpserver import Context, Elicit, ListRoots, MCPServer, Resolve, Sample
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import CreateMessageResult, ListRootsResult, SamplingMessage, TextContent
from pydantic import BaseModel

LOG = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
server = MCPServer("sdk", version="1", instructions="ask it anything")


def note(*words: object) -> None:
    os.write(LOG, (" ".join(map(str, words)) + "\n").encode())


class Name(BaseModel):
    name: str


def ask_name() -> Elicit[Name]:
    return Elicit("what is your name?", Name)


def think(topic: str) -> Sample:
    content = TextContent(type="text", text=f"about {topic}")
    return Sample([SamplingMessage(role="user", content=content)], max_tokens=10)


def look() -> ListRoots:
    return ListRoots()


@server.tool()
def greet(greeting: str, name: Annotated[Name, Resolve(ask_name)]) -> str:
    """Asks the person."""
    note("call", f"greet-{name.name}", os.getpid())
    return f"{greeting} {name.name}"


@server.tool()
def wonder(topic: str, thought: Annotated[CreateMessageResult, Resolve(think)]) -> str:
    """Asks the model."""
    note("call", f"wonder-{topic}", os.getpid())
    return f"{topic}: {thought.content.text}"


@server.tool()
def where(found: Annotated[ListRootsResult, Resolve(look)]) -> str:
    """Asks for the roots."""
    note("call", "where", os.getpid())
    return " ".join(str(root.uri) for root in found.roots)


@server.tool()
async def steps(count: int, context: Context) -> str:
    """Tells its progress."""
    for step in range(1, count + 1):
        await context.report_progress(step, count, f"step {step}")
    return f"{count} steps"


@server.tool()
async def sleep(key: str) -> str:
    """Never comes back by itself."""
    note("call", key, os.getpid())
    try:
        await anyio.sleep(1000)
    finally:
        note("woken", key)
    return key


@server.tool()
def add(a: int, b: int) -> int:
    """Structured."""
    return a + b


@server.tool()
def fail(text: str) -> str:
    """Raises."""
    raise ToolError(text)


@server.tool()
async def change(context: Context) -> str:
    """Announces that the tools and a resource changed."""
    await context.notify_tools_changed()
    await context.notify_resource_updated("memo://one")
    return "changed"


@server.resource("memo://one")
def memo() -> str:
    """A memo."""
    return "one \u2028 \U0001f600"


@server.resource("memo://by-name/{name}")
def named(name: str) -> str:
    """A memo by its name."""
    return f"memo {name}"


@server.prompt()
def review(code: str) -> str:
    """A review."""
    return f"review {code}"


if __name__ == "__main__":
    note("start", os.getpid())
    server.run("stdio")
