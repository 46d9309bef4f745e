"""Nine steps, each of which shows one thing and checks that it really happened: with the client, and with the server.

A step gives the one line that tells what was seen, or raises `Missed` with what was seen instead. It believes the
client's answers, the server's own tally and the audit store, never itself.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, Final, Protocol

import anyio
import anyio.lowlevel
import msgspec
from mcp import ClientSession, MCPError, StdioServerParameters, stdio_client
from mcp.types import CallToolResult, TextContent

from aegis_daemon.audit.store import Reader
from aegis_daemon.demo.sandbox import BACKEND, Sandbox, aegis_command
from aegis_daemon.manage.client import DaemonAway, Refused

DENIED: Final = -32001
LIMITED: Final = -32002
NOT_APPROVED: Final = -32004
SOON_S: Final = 10.0
"""The longest wait for what should happen at once."""
_STEP_S: Final = 0.01
COLUMNS: Final = {
    "agent": "agent",
    "tool": "tool",
    "outcome": "outcome",
    "why": "stage",
    "approval": "approval",
    "by": "by",
    "waited": "queued",
}


class Missed(Exception):
    """The step did not show what it promised; the text says what was seen."""


class Guide(Protocol):
    """Whoever leads through the tour: what the steps say to a person, and what they ask."""

    def tell(self, text: str) -> None:
        """A line, while a step is under way."""
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
PERSON: Final = Pace(asks=True, delay_min=3.0, delay_max=5.0, patience=5.0)


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

    async def ticket(self, arguments: Mapping[str, Any], *, waiting: bool) -> dict[str, Any]:
        """The ticket of exactly this call, once there is one that a client waits for (or none does)."""
        with anyio.move_on_after(SOON_S):
            while True:
                for found in self.sandbox.ask("pending"):
                    if json.loads(found["arguments"]) == arguments and found["waiting"] is waiting:
                        return dict(found)
                await anyio.sleep(_STEP_S)
        raise Missed("no ticket was opened for the call" if waiting else "the ticket went when its client did")

    def ran(self, arguments: Mapping[str, Any]) -> int:
        """How often the server published exactly this post."""
        return sum(done.arguments == arguments for done in self.sandbox.executed("publish_post"))


class Asked:
    """A call under way: what the client hears while it waits, and how it ended."""

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
            result = await self._session.call_tool(self._tool, self._arguments, progress_callback=self._hear)
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


# --- the steps --------------------------------------------------------------------------------------------------------


async def hidden(stage: Stage) -> str:
    """Denied tools are not listed, and refused when named."""
    request = b'{"jsonrpc":"2.0","id":1,"method":"tools/list"}\n'
    direct = await anyio.run_process([*stage.sandbox.server], input=request)
    offered = {tool["name"] for tool in json.loads(direct.stdout)["result"]["tools"]}
    listed = {tool.name: tool.description or "" for tool in (await stage.session.list_tools()).tools}
    expect(len(offered) == 5, f"the server offers {len(offered)} tools, not 5")
    expect(
        offered - set(listed) == {"admin_reset"} and len(listed) == 4,
        f"the client sees {', '.join(listed) or 'nothing'}",
    )
    for tool, label in (("get_weather", "[Rate:3/1m|GlobalRate:5/1m] "), ("publish_post", "[Rate:2/1m|ApprovalReq")):
        expect(listed[tool].startswith(label), f"`{tool}` is described as `{listed[tool]}`, without its constraints")
    for tool, description in listed.items():
        stage.guide.tell(f"{tool}: {description}")
    error = await stage.refused(DENIED, "admin_reset")
    expect(not stage.sandbox.executed("admin_reset"), "the server executed `admin_reset` all the same")
    stage.guide.tell(f"admin_reset: {error.message}")
    return f"4 of 5 tools are listed; `admin_reset`, called by its name, is refused with {error.code}"


async def plain(stage: Stage) -> str:
    """What no rule restricts passes."""
    text = "hello through the daemon"
    found = await stage.call("echo", text=text)
    expect(found == text, f"`echo` answered `{found}`")
    expect([each.arguments for each in stage.sandbox.executed("echo")] == [{"text": text}], "the server never ran it")
    return f"`echo` answered `{found}`"


async def limited(stage: Stage) -> str:
    """The fourth call within a minute is refused before it reaches the server."""
    for _ in range(3):
        stage.guide.tell(await stage.call("get_weather", city="Lisbon"))
    error = await stage.refused(LIMITED, "get_weather", city="Lisbon")
    stage.guide.tell(error.message)
    after = error.data["retry_after_ms"]
    expect(isinstance(after, int) and 0 < after <= 60_000, f"the refusal says to try again after `{after}` ms")
    ran = len(stage.sandbox.executed("get_weather"))
    expect(ran == 3, f"the server executed `get_weather` {ran} times")
    return f"three calls ran, the fourth is refused with {error.code}: again in {after / 1000:.0f} s"


FIRST = {"title": "Release notes", "body": "Version 2 is out."}
CHANGED = {**FIRST, "body": "Version 2 is out, and everything is free."}
SECOND = {"title": "Maintenance", "body": "Tonight from ten to eleven."}


async def approval(stage: Stage) -> str:
    """A call that needs a person waits, tells the client so, and cannot be approved by the agent."""
    while True:
        asked = Asked(stage.session, "publish_post", FIRST)
        async with anyio.create_task_group() as group:
            group.start_soon(asked.run)
            ticket = await stage.ticket(FIRST, waiting=True)
            with anyio.move_on_after(SOON_S):
                await asked.progress.wait()
            id = ticket["id"]
            expect(any(id in text for text in asked.heard), f"the client was not told that it waits for `{id}`")
            try:
                stage.sandbox.decide(id, True, as_person=False)
            except Refused as refused:
                expect(refused.code == "forbidden", f"the agent was refused as `{refused.code}`: {refused.message}")
            else:
                raise Missed("the agent could approve its own call")
            expect(not stage.ran(FIRST) and not asked.done.is_set(), "the call ran before anybody approved it")
            stage.guide.tell(f"the client hears: {asked.heard[0]}")
            stage.guide.tell("the agent asked to approve it itself, and was refused")
            if stage.pace.asks:
                group.start_soon(_ask, stage, id)
            else:
                stage.sandbox.decide(id, True, "the tour")
            await asked.done.wait()
            group.cancel_scope.cancel()
        if asked.error is None:
            break
        checked(asked.error, NOT_APPROVED, "publish_post")
        expect(stage.pace.asks and not stage.ran(FIRST), f"the approved call was refused: {asked.error.message}")
        stage.guide.tell(f"{asked.error.message}. The tour goes on with an approval: once more")
    expect(stage.ran(FIRST) == 1, f"the server published the post {stage.ran(FIRST)} times")
    stage.approved = ticket
    count = len(asked.heard)
    return f"ticket {id}: waited, {count} progress notification{'s' * (count != 1)}, ran once after the approval"


async def _ask(stage: Stage, id: str) -> None:
    stage.guide.tell(f"it waits for you: press Enter to approve {id} here, or, in a second terminal:")
    stage.guide.tell(f"    AEGIS_HOME={stage.sandbox.home} {aegis_command()} approve {id}")
    expect(await stage.guide.agree(f"Enter approves {id}"), "nobody approved it")
    try:
        stage.sandbox.decide(id, True, "approved in the tour")
    except Refused as refused:
        stage.guide.tell(refused.message)  # somebody was faster


async def changed(stage: Stage) -> str:
    """An approval is for one exact call: other arguments are another question."""
    asked = Asked(stage.session, "publish_post", CHANGED)
    async with anyio.create_task_group() as group:
        group.start_soon(asked.run)
        ticket = await stage.ticket(CHANGED, waiting=True)
        stage.guide.tell(f"ticket {ticket['id']}, not {stage.approved['id']}; the tour rejects it")
        stage.sandbox.decide(ticket["id"], False, "nothing is free")
        await asked.done.wait()
    if asked.error is None:
        raise Missed(f"the changed post was answered with `{asked.answer}`")
    error = checked(asked.error, NOT_APPROVED, "publish_post")
    stage.guide.tell(error.message)
    expect(ticket["call_id"] != stage.approved["call_id"], "the changed call came under the old approval")
    expect(not stage.ran(CHANGED), "the server published the rejected post")
    stage.rejected = ticket
    return f"the changed post had to ask again (ticket {ticket['id']}), and was refused with {error.code}"


async def retried(stage: Stage) -> str:
    """A client that gives up loses nothing: its retry finds the approval, and runs once."""
    with anyio.fail_after(stage.pace.patience + SOON_S):
        try:
            result = await stage.session.call_tool("publish_post", SECOND, read_timeout_seconds=stage.pace.patience)
        except MCPError as error:
            expect(not isinstance(error.data, dict), f"the call was refused: {error.message}")
        else:
            raise Missed(f"nobody approved, and the answer was `{text_of('publish_post', result)}`")
    ticket = await stage.ticket(SECOND, waiting=False)
    stage.guide.tell(
        f"the client gave up after {stage.pace.patience:g} s; ticket {ticket['id']} stays, and is approved"
    )
    stage.sandbox.decide(ticket["id"], True, "the tour")
    expect(stage.ran(SECOND) == 0, "the call ran although nobody waited for it")
    found = await stage.call("publish_post", **SECOND)
    stage.guide.tell(f"the same call again: {found}")
    expect(stage.ran(SECOND) == 1, f"the server published the post {stage.ran(SECOND)} times")
    open_tickets = [each["id"] for each in stage.sandbox.ask("pending")]
    expect(not open_tickets, f"the approval was not used up: {', '.join(open_tickets)}")
    return f"approved after its client had gone; the retry took up ticket {ticket['id']} and ran once"


async def lane(stage: Stage) -> str:
    """Posts leave one by one with a pause in between; reading does not wait for them."""
    posts = [{"title": f"Note {number}", "body": "from a colleague"} for number in (1, 2)]
    async with connected(stage.sandbox, "colleague") as session:
        one, two = (Asked(session, "publish_post", post) for post in posts)
        async with anyio.create_task_group() as group:
            group.start_soon(one.run)
            await anyio.lowlevel.checkpoint()  # the first goes out first
            group.start_soon(two.run)
            with anyio.move_on_after(SOON_S):
                await two.progress.wait()
            began = anyio.current_time()
            seen = text_of("list_posts", await session.call_tool("list_posts", {}))
            took = anyio.current_time() - began
    for asked in (one, two):
        expect(asked.error is None, f"a post failed: {asked.error}")
    expect(any("queue" in text for text in two.heard), "the second post was not told that it waits in the queue")
    first, second = ([done.at for done in stage.sandbox.executed() if done.arguments == post] for post in posts)
    read = [done.at for done in stage.sandbox.executed("list_posts")]
    expect(len(first) == len(second) == len(read) == 1, "not every call ran exactly once")
    gap = second[0] - first[0]
    expect(gap >= stage.pace.delay_min, f"the second post followed {gap:.2f} s after the first")
    expect(read[0] < second[0], "`list_posts` had to wait for the second post")
    stage.guide.tell(f"the second post hears: {two.heard[0]}")
    stage.guide.tell(f"list_posts, meanwhile: {seen}")
    return f"the second post ran {gap:.1f} s after the first; `list_posts` went past it in {took * 1000:.0f} ms"


async def killed(stage: Stage) -> str:
    """A daemon that dies takes neither the session nor the limits with it."""
    while True:  # until the limit is used up, and for long enough
        try:
            await stage.call("get_weather", city="Oslo")
        except MCPError as error:
            after = checked(error, LIMITED, "get_weather").data["retry_after_ms"] / 1000
            if after > SOON_S:
                break
            await anyio.sleep(after)
    old = int(stage.sandbox.ask("status")["pid"])
    os.kill(old, signal.SIGKILL)
    began = anyio.current_time()
    text = "still here"
    with anyio.fail_after(SOON_S):
        found = await stage.call("echo", text=text)
    took = anyio.current_time() - began
    expect(found == text, f"`echo` answered `{found}`")
    try:
        new = int(stage.sandbox.ask("status")["pid"])
    except DaemonAway as away:
        raise Missed(f"no daemon took over: {away}") from away
    expect(new != old, "the daemon survived the signal")
    refusal = await stage.refused(LIMITED, "get_weather", city="Oslo")
    stage.guide.tell(f"kill -9 {old}; process {new} took over, with a new server and the same limits:")
    stage.guide.tell(refusal.message)
    return f"the session's next call worked, {took:.1f} s later; the used up limit still is"


async def audited(stage: Stage) -> str:
    """The log holds what happened, and shows it when a row is changed."""
    newest = int(stage.sandbox.ask("flush_audit")["seq"])
    store, copy = Path(stage.sandbox.paths.audit_db), stage.sandbox.home / "changed.db"
    with Reader(store) as reader:
        calls = reader.search(method="tools/call", limit=1000, bodies=False)[::-1]
        whole = reader.verify(newest=newest)
    stage.guide.table(
        [
            {
                "agent": call.agent_id,
                "tool": call.tool_name,
                "outcome": call.exec_status,
                "why": call.stage,
                "approval": call.approval_result if call.ticket else "",
                "by": call.approver,
                "waited": f"{call.queue_wait_ms} ms" if call.queue_wait_ms else "",
            }
            for call in calls
        ],
        COLUMNS,
    )
    logged = Counter(call.tool_name for call in calls if call.exec_status == "success")
    done = Counter(each.tool for each in stage.sandbox.executed())
    expect(logged == done, f"the log has {dict(logged)} as executed, the server {dict(done)}")
    for tool, refusal in (("admin_reset", "acl"), ("get_weather", "rate_limit"), ("publish_post", "approval")):
        expect(any((call.tool_name, call.stage) == (tool, refusal) for call in calls), f"no refused `{tool}` is there")
    expect(not whole.faults, f"the log is not intact: {whole.faults[0].text if whole.faults else ''}")
    seq = change(store, copy, stage.rejected["id"])
    with Reader(copy) as reader:
        broken = reader.verify()
    expect([fault for fault in broken.faults if fault.seq == seq], "a changed row was not noticed")
    stage.guide.tell(f"aegis audit verify: {whole.records} records, {whole.checked_calls} calls, intact")
    stage.guide.tell(f"in a copy, record {seq} now says `approved`: {broken.faults[0].text}")
    return f"{len(calls)} calls as the server ran them; intact, and the changed copy is found out at record {seq}"


def change(store: Path, copy: Path, ticket: str) -> int:
    """Copies the store and makes the rejection of a ticket an approval in the copy; the record's number."""
    with closing(sqlite3.connect(store)) as source, closing(sqlite3.connect(copy, isolation_level=None)) as target:
        source.backup(target)
        like = f'%"decision":"rejected"%"ticket":"{ticket}"%'
        found = target.execute("SELECT seq FROM records WHERE record LIKE ?", (like,)).fetchone()
        expect(found, f"the rejection of {ticket} is not in the log")
        target.execute("UPDATE records SET record = replace(record, 'rejected', 'approved') WHERE seq = ?", found)
    return int(found[0])


class Step(msgspec.Struct, frozen=True):
    """One step: its title, two lines of explanation, and what it does."""

    title: str
    explained: tuple[str, str]
    run: Callable[[Stage], Awaitable[str]]


STEPS: Final = (
    Step(
        "a denied tool does not exist",
        (
            "The server offers five tools. The client asks for the list, then calls the missing one by its name.",
            f"Rule: agents.demo.backends.{BACKEND}.tool_denylist: [admin_reset]; the labels come from the other rules.",
        ),
        hidden,
    ),
    Step(
        "what no rule restricts passes",
        ("`echo` goes to the server and back. It was judged and recorded on the way.", "Rule: allowed: true"),
        plain,
    ),
    Step(
        "a limit is a limit",
        (
            "Four times the weather. The fourth call never reaches the server; the client learns when to come back.",
            "Rule: rate_limits.get_weather: { window: 1m, max_count: 3 }",
        ),
        limited,
    ),
    Step(
        "a person decides",
        (
            "Publishing needs a person. The call waits, the client is kept awake, and the agent cannot approve itself.",
            "Rule: approval_required: [publish_post]",
        ),
        approval,
    ),
    Step(
        "an approval is for one exact call",
        (
            "The approved post comes again with one sentence changed. That is another call, so it has to ask again.",
            "What a person sees is what runs: the approval holds for the agent, the tool and every argument.",
        ),
        changed,
    ),
    Step(
        "a client that gives up",
        (
            "Clients often wait for seconds, people take minutes. The client stops waiting, then somebody approves.",
            "The identical call, made again, finds the approval. It runs once, by the server's own count.",
        ),
        retried,
    ),
    Step(
        "one after another",
        (
            "A colleague's agent sends two posts at once and reads the list. The posts queue, reading does not.",
            f"Rule: queue.{BACKEND}: delay_min, delay_max, bypass_tools: [list_posts, …]",
        ),
        lane,
    ),
    Step(
        "kill -9",
        (
            "The daemon is killed in the middle of the session. `aegis-wrap` starts another, and the session goes on.",
            "The client notices nothing. Limits are not forgotten either: the audit log says what was used up.",
        ),
        killed,
    ),
    Step(
        "the log knows, and cannot be changed quietly",
        (
            "Every call is in the audit log, refused or not. Each record holds the hash of the one before.",
            "In a copy of the log one record is changed: the rejection becomes an approval. Does anybody notice?",
        ),
        audited,
    ),
)
