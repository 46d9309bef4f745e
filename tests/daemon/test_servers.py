"""A session's server is reached by its plan, and whatever becomes of a call there reaches whoever made it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from making import until
from playbook import Client, Play, Session, call, modern, text

from aegis_daemon.backends.children import Nursery
from aegis_daemon.backends.http_client import HttpPool
from aegis_daemon.core.runtime import BackendRule
from aegis_daemon.daemon.servers import Servers
from aegis_daemon.loop.descriptor import Outbox
from aegis_daemon.relay.admission import Plan
from aegis_daemon.relay.conversation import Conversation

CONFIG = """
backends: {files: {}}
agents: {bot: {backends: {files: {allowed: true, server_requests: [elicitation]}}}}
"""
# A legacy server. What `ask` asks its client is followed by an answer that is too large, and by the one for `wait`.
SERVER = """
import json, sys
held = {}
def say(**frame):
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **frame}, separators=(",", ":")) + "\\n")
    sys.stdout.flush()
def large(**more):
    say(**more, result={"content": [{"type": "text", "text": "x" * (11 << 20)}]})
for line in sys.stdin:
    said = json.loads(line)
    method, id = said.get("method"), said.get("id")
    if method == "initialize":
        say(id=id, result={"protocolVersion": "2025-11-25", "capabilities": {}, "serverInfo": {}})
    elif method == "server/discover":
        say(id=id, error={"code": -32601, "message": "no"})
    elif method == "tools/call":
        name = said["params"]["name"]
        held[name] = id
        if name == "ask":
            question = {"message": "sure?", "requestedSchema": {"type": "object", "properties": {}}}
            say(id="q", method="elicitation/create", params=question)
        elif name == "nameless":
            large()
    elif id == "q":
        large(id=held["ask"])
        say(id=held["wait"], result={"content": [{"type": "text", "text": "ok"}]})
"""
ASKS = {"elicitation": {}}


def at(play: Play, servers: Servers) -> Session:
    """A session of a whole conversation with a real process."""
    client = Client(play)
    plan = Plan(
        play.runtime.agents["bot"].principal, "files", BackendRule(), (sys.executable, "-c", SERVER), None, os.environ
    )

    def ended(talk: Conversation) -> None:
        session.over = True

    talk = Conversation(
        "s0", plan.principal, "files", client, lambda talk: servers.start(talk, plan), play.shell, play.clock,  # type: ignore[arg-type]
        ids=play.ids, load=play.load, on_end=ended,
    )  # fmt: skip
    client.talk = talk
    session = Session(play, client, talk, [])
    play.sessions.append(session)
    talk.start()
    return session


async def driven(play: Play, script: Callable[[Client], Coroutine[Any, Any, None]]) -> None:
    """Lets the script drive a session to its end."""
    loop = asyncio.get_running_loop()
    nursery, pool = Nursery(), HttpPool(loop)
    nursery.start()
    try:
        session = at(play, Servers(loop, Outbox(loop), nursery, pool))
        await script(session.client)
        session.client.leaves()
        await until(lambda: session.over)
    finally:
        pool.close()
        await nursery.close()
    play.finish()


Run = Callable[[Coroutine[Any, Any, Any]], Any]


def test_an_answer_that_is_too_large_ends_the_retry_that_waits_for_it_and_no_other_call(
    run: Run, tmp_path: Path
) -> None:
    play = Play(CONFIG, store=tmp_path / "tickets.db")

    async def script(client: Client) -> None:
        client.says(modern(call("bystander", "wait"), capabilities=ASKS), modern(call("one", "ask"), capabilities=ASKS))
        await until(lambda: client.inbox)
        found = client.hears_result("one", {"resultType": "input_required"})
        (key,) = found["inputRequests"]
        answered = {"inputResponses": {key: {"action": "accept"}}, "requestState": found["requestState"]}
        client.says(modern(call("two", "ask"), capabilities=ASKS, **answered))
        await until(lambda: len(client.inbox) == 2)
        client.hears_error("two", -32603, "larger than 10 MB", reason="answer_too_large")
        client.hears_result("bystander", {**text("ok"), "resultType": "complete"})

    run(driven(play, script))


@pytest.mark.parametrize("ids", [("one",), ("one", "two")])
def test_a_too_large_frame_that_names_nobody_ends_every_call_that_may_be_meant(
    run: Run, tmp_path: Path, ids: tuple[str, ...]
) -> None:
    play = Play(CONFIG, store=tmp_path / "tickets.db")

    async def script(client: Client) -> None:
        names = ["wait"] * (len(ids) - 1) + ["nameless"]
        client.says(*(modern(call(id, name), capabilities=ASKS) for id, name in zip(ids, names, strict=True)))
        await until(lambda: len(client.inbox) == len(ids))
        for id in ids:
            client.hears_error(id, -32603, reason="answer_too_large")

    run(driven(play, script))
