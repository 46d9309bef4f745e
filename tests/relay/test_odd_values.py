"""Every field of every message may hold anything: each request has one answer, and nothing else happens."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from playbook import CONFIG, Play, call, modern, request

from aegis_daemon.wire.methods import META_CAPABILITIES, META_SUBSCRIPTION, META_VERSION, TO_CLIENT, TO_SERVER

OPEN = CONFIG.replace(
    "allowed: true",
    "allowed: true, server_requests: [sampling, elicitation, roots], resource_denylist: ['x:*'], rate_limits: {a: 1/h}",
)
TEXTS = st.sampled_from(
    ["", "a", "t", "x:y", "file:///../a", "2026-07-28", "2025-06-18", "ref/prompt", "\u0000", "é", "%zz"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.just(10**30) | st.floats(-2, 2) | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(TEXTS | st.sampled_from(["type", "name", "uri", "method", "roots"]), inner, max_size=3)
    ),
    max_leaves=6,
)
META = st.dictionaries(
    st.sampled_from([META_VERSION, META_CAPABILITIES, META_SUBSCRIPTION, "progressToken", "x"]), VALUES, max_size=4
)
FIELDS = [
    "name", "arguments", "uri", "cursor", "ref", "argument", "level", "requestId", "progressToken", "progress",
    "protocolVersion", "capabilities", "taskId", "task", "inputResponses", "requestState", "notifications", "status",
    "resourceSubscriptions", "resultType", "inputRequests", "isError", "ttl", "ttlMs", "tools", "resources", "prompts",
    "resourceTemplates", "content", "cacheScope",
]  # fmt: skip
PARAMS = st.builds(
    lambda params, meta: params if meta is None else {**params, "_meta": meta},
    st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=5),
    st.none() | META | VALUES,
)
ASKED = st.sampled_from([*TO_SERVER, *TO_CLIENT, "made/up"])
TOLD = st.sampled_from(
    ["cancelled", "progress", "initialized", "resources/updated", "tasks/status", "tasks", "message", "made/up",
     "subscriptions/acknowledged", "tools/list_changed", "elicitation/complete"]
)  # fmt: skip
FAST = settings(
    max_examples=60, derandomize=True, phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck)
)


def session(folder: str, era: str) -> tuple[Play, Any]:
    play = Play(OPEN, store=Path(folder) / "tickets.db")
    s = play.session()
    if era == "modern":
        s.calls(modern(call("first", "b")))
    elif era == "legacy":
        s.handshake(server_capabilities={"tools": {"listChanged": True}})
    return play, s


def quiet(s: Any) -> None:
    for server in s.servers:
        server.inbox.clear()
    s.client.inbox.clear()


@FAST
@given(st.sampled_from(["none", "legacy", "modern"]), st.lists(st.tuples(ASKED, PARAMS, st.booleans(), VALUES)))
def test_a_client_may_ask_anything(era: str, asked: list[tuple[str, Any, bool, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        play, s = session(folder, era)
        for number, (method, params, modernly, value) in enumerate(asked):
            frame = request(number, method, **params)
            s.client.says(modern(frame) if modernly and isinstance(params.get("_meta", {}), dict) else frame)
            while s.server.inbox:
                heard = s.server.next()
                if "id" in heard and "method" in heard:
                    s.server.answers(heard, params if value is None else value)
            assert not s.client.asked, "no answer"
        quiet(s)
        play.finish()


@FAST
@given(st.sampled_from(["none", "legacy", "modern"]), st.lists(st.tuples(TOLD, PARAMS, st.booleans())))
def test_either_end_may_tell_anything(era: str, told: list[tuple[str, Any, bool]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        play, s = session(folder, era)
        listen = modern(request("l", "subscriptions/listen"))
        s.client.says(listen if era == "modern" else call(1, "b", token="t"))
        for method, params, by_server in told:
            frame = {"jsonrpc": "2.0", "method": f"notifications/{method}", "params": params}
            if method == "progress":
                params["progress"] = 1 + len(s.client.inbox) + play.clock.now
                play.advance(1)
            (s.server if by_server else s.client).says(frame)
        quiet(s)
        play.finish()


@FAST
@given(st.lists(st.tuples(ASKED, PARAMS, VALUES, st.booleans())))
def test_a_server_may_ask_anything(asked: list[tuple[str, Any, Any, bool]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        play, s = session(folder, "legacy")
        for number, (method, params, value, good) in enumerate(asked):
            s.server.says(request(number, method, **params))
            while s.client.inbox:
                heard = s.client.next()
                if "id" in heard and "method" in heard:
                    body = {"result": value} if good else {"error": {"code": 1, "message": "m", "data": value}}
                    s.client.says({"jsonrpc": "2.0", "id": heard["id"], **body})
            assert not s.server.asked, "no answer"
        quiet(s)
        play.finish()
