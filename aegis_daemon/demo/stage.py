"""What the tour's steps act on: a session of the official client, the front for HTTP, and a person who looks on."""

from __future__ import annotations

import json
import shlex
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, Final, Protocol

import anyio
import anyio.to_thread
import msgspec
from mcp import ClientSession, MCPError, StdioServerParameters, stdio_client
from mcp.types import CallToolResult, TextContent

from aegis_daemon.demo.front import Answer, Request
from aegis_daemon.demo.sandbox import Sandbox, aegis_command
from aegis_daemon.relay.answers import PENDING_KEY

SOON_S: Final = 20.0
"""The longest wait for what should happen at once."""
_STEP_S: Final = 0.01
_AGAIN_S: Final = 0.2
"""Between a call that is answered with `PENDING` and the same call again."""


class Missed(Exception):
    """The step did not show what it promised; the text says what was seen."""


class Guide(Protocol):
    """Whoever leads through the tour: what the steps say to a person, and what they ask."""

    def tell(self, text: str) -> None:
        """A line, while a step is under way."""
        ...

    def offer(self, what: str, *commands: str) -> None:
        """What a person may type in a second terminal, as long as the tour stands where it does, and what it does."""
        ...

    def table(self, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
        """Rows; `columns` maps fields to headings."""
        ...

    async def agree(self, question: str) -> bool:
        """Whether the person in front of the tour says yes. Cancelled when somebody else was faster."""
        ...


class Pace(msgspec.Struct, frozen=True):
    """How fast the tour goes: the pauses of the lane and the patience of a client, in seconds."""

    asks: bool
    """whether a person approves"""
    delay_min: float
    delay_max: float
    patience: float


AUTO: Final = Pace(asks=False, delay_min=0.4, delay_max=0.6, patience=0.4)
PERSON: Final = Pace(asks=True, delay_min=2.0, delay_max=3.0, patience=5.0)


class Stage:
    """What the steps act on: the sandbox, the agent's session, and what earlier steps leave for later ones."""

    def __init__(self, sandbox: Sandbox, session: ClientSession, guide: Guide, pace: Pace) -> None:
        self.sandbox = sandbox
        self.session = session
        self.guide = guide
        self.pace = pace
        self.approved: dict[str, Any] = {}
        """the ticket of step 4"""
        self.rejected: dict[str, Any] = {}
        """the ticket of step 5"""

    async def call(self, tool: str, **arguments: Any) -> str:
        """The text of an answer. Raises `Missed` where the tool says that it failed, `MCPError` where Aegis says no."""
        return text_of(tool, await self.session.call_tool(tool, arguments))

    async def refused(self, code: int, tool: str, **arguments: Any) -> MCPError:
        """Aegis' refusal of a call."""
        try:
            found = text_of(tool, await self.session.call_tool(tool, arguments))
        except MCPError as error:
            return checked(error, code, tool)
        raise Missed(f"`{tool}` was answered with `{found}` where it should have been refused with {code}")

    @property
    def address(self) -> str:
        """Host and port of the front for HTTP, of the daemon that runs now."""
        found = self.sandbox.ask("status")["http"]
        expect(found, "the daemon does not serve HTTP")
        return str(found)

    async def sent(self, request: Request, patience: float = SOON_S) -> Answer | None:
        """The answer to a request over HTTP; None where none came in time."""
        try:
            return await anyio.to_thread.run_sync(partial(request.send, patience), abandon_on_cancel=True)
        except (OSError, ValueError) as error:
            raise Missed(f"`{request.path}` could not be asked over HTTP: {error}") from error

    async def answered(self, request: Request) -> Answer:
        """The answer, which must come soon."""
        found = await self.sent(request)
        if found is None:
            raise Missed(f"`{request.path}` was not answered over HTTP within {SOON_S:g} s")
        return found

    def command(self, words: str) -> str:
        """`aegis WORDS`, as a person types it in another terminal."""
        return f"AEGIS_HOME={shlex.quote(str(self.sandbox.home))} {aegis_command()} {words}"

    async def ticket(self, arguments: Mapping[str, Any], *, waiting: bool) -> dict[str, Any]:
        """The ticket of exactly this call, once there is one that a client waits for (or none does)."""
        with anyio.move_on_after(SOON_S):
            while True:
                for found in self.sandbox.ask("pending"):
                    if json.loads(found["arguments"]) == arguments and found["waiting"] is waiting:
                        return dict(found)
                await anyio.sleep(_STEP_S)
        raise Missed("no ticket was opened for the call" if waiting else "the ticket went when its client did")

    def ran(self, arguments: Mapping[str, Any], tool: str = "publish_post") -> int:
        """How often the server ran a tool with exactly these arguments."""
        return sum(done.arguments == arguments for done in self.sandbox.executed(tool))


class Asked:
    """A call under way: what the client hears while it waits, and how it ended.

    Where the client hears that the matter is pending it does as it is told and asks again, as often as it takes.
    """

    def __init__(self, session: ClientSession, tool: str, arguments: dict[str, Any]) -> None:
        self._session = session
        self._tool = tool
        self._arguments = arguments
        self.heard: list[str] = []
        self.progress = anyio.Event()
        self.done = anyio.Event()
        self.answer = ""
        self.error: MCPError | None = None

    async def run(self) -> None:
        """Until the answer has come."""
        try:
            while True:
                result = await self._session.call_tool(self._tool, self._arguments, progress_callback=self._hear)
                if PENDING_KEY not in (result.meta or {}):
                    break
                await anyio.sleep(_AGAIN_S)
            self.answer = text_of(self._tool, result)
        except MCPError as error:
            self.error = error
        finally:
            self.done.set()

    async def _hear(self, progress: float, total: float | None, message: str | None) -> None:
        self.heard.append(message or "")
        self.progress.set()


@asynccontextmanager
async def connected(sandbox: Sandbox, agent: str) -> AsyncIterator[ClientSession]:
    """A session of the official client, as `agent`, through the installed `aegis-wrap`."""
    command, *args = sandbox.wrapped(agent)
    with open(sandbox.home / "client.log", "a", encoding="utf-8") as log:  # noqa: ASYNC230  a local file, once
        server = StdioServerParameters(command=command, args=args, env=sandbox.env, cwd=sandbox.home)
        async with stdio_client(server, errlog=log) as (read, write), ClientSession(read, write) as session:
            await session.initialize()
            yield session


async def started(sandbox: Sandbox) -> None:
    """Starts the daemon. `aegis-wrap` would do so as well, and would not wait as long for it."""
    done = await ended(sandbox.aegis("daemon", "start"), sandbox.env, sandbox.home)
    said = done.stderr.decode(errors="replace").strip()
    expect(done.returncode == 0, f"the daemon did not start: {said}")


async def ended(command: Sequence[str], env: Mapping[str, str], cwd: Path) -> CompletedProcess[bytes]:
    """A command that has ended. It is not in the terminal's group: Ctrl-C ends the tour, and the tour ends it."""
    return await anyio.run_process(command, env=env, cwd=cwd, check=False, start_new_session=True)


def text_of(tool: str, result: object) -> str:
    """What a tool's answer says."""
    if not isinstance(result, CallToolResult) or not result.content or not isinstance(result.content[0], TextContent):
        raise Missed(f"`{tool}` gave no text")
    if result.is_error:
        raise Missed(f"`{tool}` failed: {result.content[0].text}")
    return result.content[0].text


def checked(error: MCPError, code: int, tool: str) -> MCPError:
    """The error, if it is Aegis' refusal with this code. The client's own timeout has one of these codes as well."""
    if not isinstance(error.data, dict) or error.data.get("by") != "aegis" or error.code != code:
        raise Missed(f"`{tool}` failed with {error.code} ({error.message}), not with Aegis' {code}")
    return error


def expect(true: object, otherwise: str) -> None:
    """Raises `Missed`."""
    if not true:
        raise Missed(otherwise)
