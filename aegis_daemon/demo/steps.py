"""Nine steps, each of which shows one thing and checks that it really happened: with the client, and with the server.

A step gives the one line that tells what was seen, or raises `Missed` with what was seen instead. It believes the
client's answers, the server's own tally, the audit store and files, never itself. What it offers to be typed over HTTP
it sends itself, wherever that does not take the person's turn away.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.lowlevel
import msgspec
from mcp import MCPError

from aegis_daemon.audit.store import Reader
from aegis_daemon.demo import front
from aegis_daemon.demo.sandbox import BACKEND
from aegis_daemon.demo.stage import SOON_S, Asked, Missed, Stage, checked, connected, ended, expect, text_of
from aegis_daemon.manage.client import DaemonAway, Refused

DENIED: Final = -32001
LIMITED: Final = -32002
NOT_APPROVED: Final = -32004
HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS
COLUMNS: Final = {
    "agent": "agent",
    "tool": "tool",
    "outcome": "outcome",
    "why": "stage",
    "approval": "approval",
    "by": "by",
    "waited": "queued",
}
EDITOR: Final = "cursor"
"""The client whose file the last step wires, and the id that its agent gets."""


async def listed(stage: Stage) -> dict[str, str]:
    """Name → description of what the client is offered."""
    return {tool.name: tool.description or "" for tool in (await stage.session.list_tools()).tools}


async def listed_over_http(stage: Stage, why: str) -> set[str]:
    """The same, asked over HTTP: names alone."""
    request = front.of_agent(stage.address, "demo", "tools/list", {})
    answer = await stage.answered(request)
    expect(answer.code is None, f"over HTTP the list was refused with {answer.code}")
    stage.guide.offer(why, request.curl)
    return {tool["name"] for tool in answer.body["result"]["tools"]}


async def hidden(stage: Stage) -> str:
    """Denied tools are not listed, and refused when named."""
    request = b'{"jsonrpc":"2.0","id":1,"method":"tools/list"}\n'
    direct = await anyio.run_process([*stage.sandbox.server], input=request)
    offered = {tool["name"] for tool in json.loads(direct.stdout)["result"]["tools"]}
    seen = await listed(stage)
    expect(len(offered) == 5, f"the server offers {len(offered)} tools, not 5")
    expect(
        offered - set(seen) == {"admin_reset"} and len(seen) == 4,
        f"the client sees {', '.join(seen) or 'nothing'}",
    )
    for tool, label in (("get_weather", "[Rate:3/1d|GlobalRate:5/1m] "), ("publish_post", "[Rate:2/1m|ApprovalReq")):
        expect(seen[tool].startswith(label), f"`{tool}` is described as `{seen[tool]}`, without its constraints")
    for tool, description in seen.items():
        stage.guide.tell(f"{tool}: {description}")
    error = await stage.refused(DENIED, "admin_reset")
    expect(not stage.sandbox.executed("admin_reset"), "the server executed `admin_reset` all the same")
    stage.guide.tell(f"admin_reset: {error.message}")
    there = await listed_over_http(stage, "the same agent's list, over HTTP")
    expect(there == set(seen), f"over HTTP the client sees {', '.join(sorted(there)) or 'nothing'}")
    return f"4 of 5 tools are listed; `admin_reset`, called by its name, is refused with {error.code}"


async def plain(stage: Stage) -> str:
    """What no rule restricts passes, also past posts that wait for their turn."""
    text = "hello through the daemon"
    found = await stage.call("echo", text=text)
    expect(found == text, f"`echo` answered `{found}`")
    expect(stage.ran({"text": text}, "echo") == 1, "the server did not run it once")
    over_http = {"text": "hello over HTTP"}
    request = front.of_agent(stage.address, "demo", "tools/call", {"name": "echo", "arguments": over_http})
    answer = await stage.answered(request)
    ran = stage.ran(over_http, "echo")
    expect(answer.code is None and ran == 1, f"over HTTP `echo` was answered with {answer.code}, and ran {ran} times")
    stage.guide.tell(f"echo: {found}")
    stage.guide.offer("the same tool, over HTTP", request.curl)
    return await _lane(stage)


async def _lane(stage: Stage) -> str:
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


async def limited(stage: Stage) -> str:
    """The fourth call of a day is refused before it reaches the server."""
    for _ in range(3):
        stage.guide.tell(await stage.call("get_weather", city="Lisbon"))
    error = await stage.refused(LIMITED, "get_weather", city="Lisbon")
    stage.guide.tell(error.message)
    after = error.data["retry_after_ms"]
    expect(isinstance(after, int) and 0 < after <= DAY_MS, f"the refusal says to try again after `{after}` ms")
    asks = {"name": "get_weather", "arguments": {"city": "Lisbon"}}
    request = front.of_agent(stage.address, "demo", "tools/call", asks)
    code = (await stage.answered(request)).code
    expect(code == LIMITED, f"over HTTP the same agent was answered with {code}, not with {LIMITED}")
    stage.guide.offer("the limit is the agent's, whichever way it comes: refused as well", request.curl)
    ran = len(stage.sandbox.executed("get_weather"))
    expect(ran == 3, f"the server executed `get_weather` {ran} times")
    return f"three calls ran, the fourth is refused with {error.code}: again in {after / HOUR_MS:.0f} h"


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
                await _over_http(stage, id)
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
    stage.guide.offer(
        f"it waits for you: press Enter to approve {id} here, or, in a second terminal, one of these",
        stage.command(f"approve {id}"),
        front.approving(stage.address, id, stage.sandbox.paths).curl,
    )
    expect(await stage.guide.agree(f"Enter approves {id}"), "nobody approved it")
    try:
        stage.sandbox.decide(id, True, "approved in the tour")
    except Refused as refused:
        stage.guide.tell(refused.message)  # somebody was faster


async def _over_http(stage: Stage, id: str) -> None:
    request = front.approving(stage.address, id, stage.sandbox.paths)
    stage.guide.offer("nobody is asked now, so the tour approves it, over HTTP", request.curl)
    answer = await stage.answered(request)
    expect(answer.status == 200, f"the approval was answered with {answer.status}: {answer.body}")


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
    stage.sandbox.ask("flush_audit")
    for lines in (2, 20, 200):  # what a person typed meanwhile is in the log as well
        request = front.logged(stage.address, lines)
        found = decisions((await stage.answered(request)).body)
        if len(found) == 2:
            break
    expect(found == ["rejected", "approved"], f"the log has {found} as the last two decisions, newest first")
    stage.guide.offer("both calls as they are in the log, newest first", request.curl)
    return f"the changed post had to ask again (ticket {ticket['id']}), and was refused with {error.code}"


def decisions(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The last two decisions on the posts of this step and the one before, of rows of the log, newest first."""
    posts = [row for row in rows if row["agent_id"] == "demo" and row["tool_name"] == "publish_post"]
    asked = [row for row in posts if json.loads(row["arguments"] or "null") in (FIRST, CHANGED)]
    return [row["approval_result"] for row in asked][:2]


async def retried(stage: Stage) -> str:
    """A client that gives up loses nothing: its retry finds the approval, and runs once."""
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
    open_tickets = [each["id"] for each in stage.sandbox.ask("pending") if each["agent_id"] == "demo"]
    expect(not open_tickets, f"the approval was not used up: {', '.join(open_tickets)}")
    await _given_up_over_http(stage)
    return f"approved after its client had gone; the retry took up ticket {ticket['id']} and ran once"


BY_HAND = {"title": "Typed by hand", "body": "With curl, in another terminal."}


async def _given_up_over_http(stage: Stage) -> None:
    """The same with a client for HTTP, which a person may be as well: then nobody takes the ticket from them."""
    asks = {"name": "publish_post", "arguments": BY_HAND}
    request = front.of_agent(stage.address, "curl", "tools/call", asks, patience=5)
    stage.guide.offer(
        "the same over HTTP: ask, see what waits, approve it by its letters, and ask again",
        request.curl, stage.command("pending"), stage.command("approve ID"), request.curl,
    )  # fmt: skip
    if stage.pace.asks:
        return
    early = await stage.sent(request, stage.pace.patience)
    expect(early is None, f"over HTTP the call was answered before anybody approved it: {early}")
    ticket = await stage.ticket(BY_HAND, waiting=False)
    stage.sandbox.decide(ticket["id"], True, "the tour")
    answer = await stage.answered(request)
    ran = stage.ran(BY_HAND)
    expect(answer.code is None and ran == 1, f"over HTTP it ran {ran} times, and was answered with {answer.body}")


async def drifted(stage: Stage) -> str:
    """A tool whose description has changed is gone until a person has looked at it."""
    before = await listed(stage)
    stage.sandbox.change_tool()
    await stage.call("echo", text="the server says now that its list has changed")
    error = await stage.refused(DENIED, "list_posts")
    expect(error.data["stage"] == "pin", f"`list_posts` was refused by `{error.data['stage']}`, not for its change")
    after = await listed(stage)
    expect(set(before) - set(after) == {"list_posts"}, f"the client still sees {', '.join(after) or 'nothing'}")
    found = stage.sandbox.ask("pin_diff", name="list_posts", backend=BACKEND, kind="tool")
    lines = [line for line in found["lines"] if line.startswith(("-", "+")) and not line.startswith(("---", "+++"))]
    expect(any(line.startswith("+") and "id_ed25519" in line for line in lines), f"the difference shows {lines}")
    for line in lines:
        stage.guide.tell(line)
    stage.guide.tell(error.message)
    there = await listed_over_http(stage, "it is gone over HTTP as well")
    expect("list_posts" not in there, "over HTTP the client still sees `list_posts`")
    stage.guide.offer(
        "what changed, and the command that would trust it all the same", stage.command("tools diff list_posts")
    )
    return f"`list_posts` is hidden and refused with {error.code} until a person trusts the new text"


async def recorded(stage: Stage) -> str:
    """Nothing is lost with the daemon, and nothing in its log is changed unseen."""
    await _killed(stage)
    return await _audited(stage)


async def _killed(stage: Stage) -> None:
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
    tries, found = 0, ""
    while not found:
        tries += 1
        try:
            found = await stage.call("echo", text=text)
        except MCPError as error:  # a slow machine: nothing was executed, and the client is told to try again
            away = isinstance(error.data, dict) and error.data.get("by") == "aegis"
            expect(away and anyio.current_time() - began < 2 * SOON_S, f"`echo` failed: {error.message}")
            await anyio.sleep(1)
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
    which = "next call" if tries == 1 else f"call number {tries}"
    stage.guide.tell(f"the session's {which} worked, {took:.1f} s later; the used up limit still is")


async def _audited(stage: Stage) -> str:
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
    request = front.logged(stage.address, 5)
    newest_calls = [call.call_id for call in calls[:-6:-1]]
    rows = [row["call_id"] for row in (await stage.answered(request)).body]
    expect(rows == newest_calls, f"over HTTP the log's newest calls are {rows}, not {newest_calls}")
    stage.guide.offer("the log, and whether it is whole", request.curl, stage.command("audit verify"))
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


async def wired(stage: Stage) -> str:
    """An agent's own configuration is put through Aegis by a command, tried, and put back by another."""
    file = stage.sandbox.client_file
    before = file.read_bytes()
    rows = json.loads(await _person(stage, "agents", "wire", "--client", EDITOR, "--yes", "--json"))
    expect([(row["server"], row["changed"], row["works"]) for row in rows] == [(BACKEND, True, True)], f"wired: {rows}")
    for line in rows[0]["diff"].splitlines():
        stage.guide.tell(line)
    after = file.read_bytes()
    expect(b"aegis-wrap" in after and before.splitlines()[0] in after, "the file was not changed as was said")
    async with connected(stage.sandbox, EDITOR) as session:
        offered = {tool.name: tool.description or "" for tool in (await session.list_tools()).tools}
    expect(offered and all("ApprovalRequired]" in text for text in offered.values()), f"the agent sees {offered}")
    stage.guide.tell(f"started as the client would: {rows[0]['tools']} tools, each of which asks a person first")
    await _person(stage, "agents", "undo", "--yes")
    expect(file.read_bytes() == before, f"`{file}` is not what it was")
    request = front.health(stage.address)
    answer = await stage.answered(request)
    expect(answer.body["status"] == "ok", f"the daemon says that it is {answer.body}")
    stage.guide.offer("whether all is well", request.curl, stage.command("status"))
    return "wired, tried, and put back byte for byte; for your own agents: `aegis setup`"


async def _person(stage: Stage, *words: str) -> str:
    """What a command of `aegis` says when a person gives it, in the sandbox."""
    done = await ended(stage.sandbox.aegis(*words), stage.sandbox.person, stage.sandbox.home / "home")
    said = done.stderr.decode(errors="replace").strip()
    expect(done.returncode == 0, f"`aegis {' '.join(words)}` ended with {done.returncode}: {said}")
    return done.stdout.decode()


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
        (
            "`echo` goes to the server and back. A colleague's two posts queue up, reading does not wait for them.",
            f"Rules: allowed: true; queue.{BACKEND}: delay_min, delay_max, bypass_tools: [list_posts, …]",
        ),
        plain,
    ),
    Step(
        "a limit is a limit",
        (
            "Four times the weather. The fourth call never reaches the server; the client learns when to come back.",
            "Rule: rate_limits.get_weather: { window: 1d, max_count: 3 }",
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
        "a tool that turns",
        (
            "The server now describes one of its tools in another way: the text is meant for the model. A list passes,",
            "is compared with what was seen first, and the tool is gone, until a person has looked at the difference.",
        ),
        drifted,
    ),
    Step(
        "kill -9, and a log that cannot be changed quietly",
        (
            "The daemon is killed in the middle. `aegis-wrap` starts another; session, limits and log go on.",
            "In a copy of the log one record is changed: the rejection becomes an approval. Does anybody notice?",
        ),
        recorded,
    ),
    Step(
        "wire a real agent?",
        (
            "An editor in the sandbox has the server in its own configuration. `aegis agents wire` puts it through",
            "Aegis and tries it, `aegis agents undo` puts it back. `aegis setup` does it for your own agents.",
        ),
        wired,
    ),
)
