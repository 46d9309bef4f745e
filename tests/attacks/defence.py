"""What Aegis does with an input of mcp-defense-bench is what its real parts do with the traffic that the input stands for.

    Aegis(front).assess({"type": "tool-call", "tool": {…}, "call": {…}}, case)   → {"detect": …, "enforce": …, "signal": …}

Every input is a session of its own between the real pipeline, registry and desk (see `playbook`), by the one configuration
`governed.yaml`; what is HTTP goes to `front`, the port of an installed daemon. `enforce`: something was refused, hidden or
left to a person; `detect`: it went on, and people were told. What never crosses a proxy is not judged (`TYPES`).
"""

from __future__ import annotations

import itertools
import re
import sqlite3
import tempfile
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from playbook import Play, Session, call, error, modern, note, request, text

from aegis_daemon.audit.record import Admin
from aegis_daemon.config.load import loads
from aegis_daemon.registry.pins import Registry
from aegis_daemon.stages import ORDER
from aegis_daemon.stages.pin import Pins
from aegis_daemon.wire.methods import META_CAPABILITIES

GOVERNED = (Path(__file__).parent / "governed.yaml").read_text()
BACKENDS = ("one", "two", "three", "four", "five")
ANYTHING = {"type": "object"}
USUAL = {"path": "./notes.txt", "url": "https://api.internal/notes", "host": "example.com", "input": "./report.pdf"}
"""What a call says that the input leaves out, for the arguments that have rules."""
PLACEHOLDER: dict[str, Any] = {"string": "x", "number": 0, "integer": 0, "boolean": False, "array": [], "object": {}}
Verdict = dict[str, Any]
Front = Callable[[str, dict[str, str], Any], tuple[bool, str]]
"""(HTTP method, headers, frame) → whether it was let through, and in which words it was not."""


def passed(signal: str = "") -> Verdict:
    return {"detect": False, "enforce": False, "signal": signal}


def flagged(signal: str) -> Verdict:
    return {"detect": True, "enforce": False, "signal": signal}


def stopped(signal: str) -> Verdict:
    return {"detect": True, "enforce": True, "signal": signal[:160]}


class Aegis:
    """The defence as the benchmark asks for it."""

    def __init__(self, front: Front | None = None) -> None:
        self._front = front
        self._folder = tempfile.TemporaryDirectory()
        self._play = Play(GOVERNED, store=Path(self._folder.name) / "tickets.db")
        self._base = self._play.runtime
        self._ids = itertools.count(1)
        self._pins = self._fresh()
        types = [name for name, (needs_front, _) in TYPES.items() if front is not None or not needs_front]
        self.meta = {"tool": "aegis", "class": "runtime-proxy", "reproducible": True, "fixtureTypes": types}

    def close(self) -> None:
        """The end; whatever any of the sessions left behind is found here."""
        self._play.finish()
        self._folder.cleanup()

    def assess(self, input: Mapping[str, Any], testcase: Mapping[str, Any]) -> Verdict:
        """What happens to one input."""
        self._pins = self._fresh()
        before = len(self._play.sessions)
        verdict: Verdict = TYPES[input["type"]][1](self, input)
        for session in self._play.sessions[before:]:
            session.client.inbox.clear()
            if not session.over:
                session.leave()
            session.client.inbox.clear()
        for ticket in self._play.desk.pending():
            self._play.desk.decide(ticket.id, False, "ann")
        for session in self._play.sessions[before:]:
            session.check()
        del self._play.sessions[before:]
        return verdict

    def _fresh(self) -> Registry:
        """A daemon that has never seen a server."""
        play = self._play
        pins = Registry(
            sqlite3.connect(":memory:", isolation_level=None),
            wall=play.clock.wall,
            record=lambda action, by, detail: play.log.append(Admin(action=action, by=by, detail=detail)),
            on_change=lambda backend: play.runtime.pipeline.forget(),
        )
        pipeline = self._base.pipeline.having(Pins(pins), ORDER)
        play.shell.runtime = msgspec.structs.replace(self._base, pipeline=pipeline)
        play.shell.pins = pins
        return pins

    # --- one session

    def _session(self, agent: str = "bot", backend: str = "one") -> Session:
        return self._play.session(agent, backend).handshake(server_capabilities={"tools": {"listChanged": True}})

    def _asks(
        self, s: Session, frame: dict[str, Any], tools: Any = (), answer: Any = None
    ) -> tuple[bool, dict[str, Any]]:
        """Whether the server heard the client's request, and what the client heard in the end; {} for nothing yet."""
        heard = False
        s.client.says(frame)
        while s.server.inbox:
            asked = s.server.next()
            if "id" not in asked or "method" not in asked:
                continue
            if asked["method"] == "tools/list":
                heard = heard or frame["method"] == "tools/list"
                s.server.answers(asked, {"tools": list(tools)})
            elif asked["method"] != frame["method"]:
                s.server.says(error(asked["id"], -32601))
            else:
                heard = True
                s.server.answers(asked, text("ok") if answer is None else answer)
        found: dict[str, Any] = {}
        while s.client.inbox:
            said = s.client.next()
            if said.get("id") == frame["id"]:
                found = said
        return heard, found

    def _lists(self, s: Session, tools: list[Any]) -> list[dict[str, Any]]:
        _, answer = self._asks(s, request(next(self._ids), "tools/list"), tools)
        listed: list[dict[str, Any]] = answer["result"]["tools"] if "result" in answer else []
        return listed

    def _calls(self, s: Session, asked: Mapping[str, Any], tools: Any, answer: Any = None) -> Verdict:
        heard, found = self._asks(s, call(next(self._ids), asked["name"], **asked["arguments"]), tools, answer)
        if not heard:
            return stopped(_words(found) or "waits for a person")
        if answer is not None and found.get("result") != answer:
            return stopped("the answer was changed or withheld: " + _words(found))
        return passed()

    # --- what inputs stand for

    def _definition(self, input: Mapping[str, Any]) -> Verdict:
        listed = self._lists(self._session(), [whole(input["tool"])])
        return self._told() if listed else stopped("hidden")

    def _call(self, input: Mapping[str, Any]) -> Verdict:
        tool = whole(input["tool"])
        s = self._session()
        self._lists(s, [tool])
        return self._calls(s, asked_of(input, tool), [tool])

    def _result(self, input: Mapping[str, Any]) -> Verdict:
        tool = whole(input["tool"])
        s = self._session()
        self._lists(s, [tool])
        return self._calls(s, asked_of(input, tool), [tool], input["result"])

    def _sequence(self, input: Mapping[str, Any]) -> Verdict:
        """Calls in order, each server a backend of its own."""
        names = list(dict.fromkeys(one.get("server", "") for one in input["calls"]))
        tools = {name: [whole(one) for one in input["calls"] if one.get("server", "") == name] for name in names}
        sessions = {name: self._session(backend=backend) for name, backend in zip(names, BACKENDS, strict=False)}
        for at, one in enumerate(input["calls"], 1):
            server = one.get("server", "")
            asked = {"name": one["name"], "arguments": one["arguments"]}
            found = self._calls(sessions[server], asked, tools[server], one.get("result"))
            if found["detect"]:
                return {**found, "signal": f"step {at}: {found['signal']}"}
        return passed()

    def _change(self, input: Mapping[str, Any]) -> Verdict:
        s = self._session()
        self._lists(s, [whole(input["before"])])
        after = whole(input["after"])
        if not self._lists(s, [after]):
            return self._calls(s, asked_of({}, after), [after])
        return passed()

    def _invalidation(self, input: Mapping[str, Any]) -> Verdict:
        """A list; then perhaps word that it changed, and the next call."""
        s = self._session()
        self._lists(s, [whole(tool) for tool in input["cached"]["result"]["tools"]])
        now = [whole(tool) for tool in input["upstreamNow"]["tools"]]
        if input["notification"] is not None:
            s.server.says(note("tools/list_changed"))
        return self._calls(s, asked_of({}, now[0]), now)

    def _list(self, input: Mapping[str, Any]) -> Verdict:
        """In the modern era. Every list is private and stale at once, whatever its server says: no sign of an attack."""
        s = self._play.session("bot", "one")
        frame = modern(request(next(self._ids), "tools/list"))
        s.client.says(frame)
        s.server.answers(s.server.hears("tools/list"), input["result"])
        told = s.client.hears_result(frame["id"], {"cacheScope": "private", "ttlMs": 0})
        return self._told() if len(told["tools"]) == len(input["result"]["tools"]) else stopped("hidden")

    def _registry(self, input: Mapping[str, Any]) -> Verdict:
        for server, backend in zip(input["servers"], BACKENDS, strict=False):
            self._lists(self._session(backend=backend), [whole(tool) for tool in server["tools"]])
        return self._told()

    def _told(self) -> Verdict:
        """Whether `aegis tools list` would tell people to look twice at something."""
        for pin in self._pins.rows():
            for other in (*self._pins.like(pin), *self._pins.shadows(pin)):
                if other.backend != pin.backend:
                    return flagged(f"`{pin.backend}.{pin.name}` is called like `{other.backend}.{other.name}`")
        return passed()

    def _input_required(self, input: Mapping[str, Any]) -> Verdict:
        s = self._play.session("bot", "one")
        asked = input["onRequest"]["params"]
        frame = modern(
            call(next(self._ids), asked["name"], **asked["arguments"]), capabilities={"elicitation": {}, "sampling": {}}
        )
        _, found = self._asks(s, frame, [whole(asked)], input["result"])
        same = found.get("result", {}).get("inputRequests") == input["result"]["inputRequests"]
        return passed() if same else stopped(_words(found))

    def _retry(self, input: Mapping[str, Any]) -> Verdict:
        """A transfer that a person agreed to asks for more; the retry shows a state."""
        asks = {"confirm": {"method": "elicitation/create", "params": {"message": "Confirm this transfer?"}}}
        if "issued" in input:
            agents, seconds = ("bot", "bot"), 0.0
            given, retry = input["issued"], dict(input["tamperedRetry"]["params"])
        else:
            agents, seconds = (input["issuedTo"]["principal"], input["replayedBy"]["principal"]), _between(input)
            given = {"resultType": "input_required", "inputRequests": asks, "requestState": input["requestState"]}
            retry = {"name": input["replayRequest"]["name"], "arguments": {"amount": 50}}
            retry |= {"requestState": input["requestState"], "inputResponses": {"confirm": {"action": "accept"}}}
        capable = {"elicitation": {}}
        tools = [{"name": retry["name"], "inputSchema": ANYTHING}]
        s = self._play.session(agents[0], "one")
        first = modern(call(next(self._ids), retry["name"], **retry["arguments"]), capabilities=capable)
        heard, _ = self._asks(s, first, tools)
        assert not heard
        self._play.desk.decide(self._play.ticket().id, True, "ann")
        assert s.server.inbox, "what was approved runs"
        s.server.answers(s.server.hears("tools/call"), given)
        s.client.hears_result(first["id"], {"resultType": "input_required"})
        self._play.advance(seconds)
        other = s if agents[1] == agents[0] else self._play.session(agents[1], "one")
        again = modern(request(next(self._ids), "tools/call", **retry), capabilities=capable)
        heard, found = self._asks(other, again, tools)
        return passed() if heard else stopped(_words(found) or "a person is asked anew")

    def _tasks(self, input: Mapping[str, Any]) -> Verdict:
        """Each principal has the task it was given; one asks for a task."""
        sessions = {}
        for one in input["issued"]:
            s = sessions[one["principal"]] = self._play.session(
                "alice" if one["principal"] == "alice" else "bot", "one"
            )
            task = {"resultType": "task", "taskId": one["taskId"], "status": "working", "ttlMs": 60_000}
            self._asks(s, modern(call(next(self._ids), "post")), [], task)
        probe = input["probe"]
        s = sessions.get(probe["principal"]) or self._play.session("mallory", "one")
        answer = {"resultType": "complete", "taskId": probe["params"]["taskId"], "status": "working"}
        heard, found = self._asks(s, modern(request(next(self._ids), probe["method"], **probe["params"])), [], answer)
        return passed() if heard else stopped(_words(found))

    def _handle(self, input: Mapping[str, Any]) -> Verdict:
        return self._calls(self._session(input["presentedBy"]["principal"]), input["call"], [whole(input["call"])])

    def _resource(self, input: Mapping[str, Any]) -> Verdict:
        s = self._session()
        contents = [{"uri": input["uri"], "mimeType": input["mimeType"], "text": input["html"]}]
        heard, found = self._asks(
            s, request(next(self._ids), "resources/read", uri=input["uri"]), [], {"contents": contents}
        )
        return passed() if heard and "result" in found else stopped(_words(found))

    def _scenario(self, input: Mapping[str, Any]) -> Verdict:
        if "action" in input:
            return self._call({"tool": {"name": input["action"]["name"]}, "call": input["action"]})
        if "request" in input:
            assert self._front is not None
            asked = input["request"]
            headers = {"Host": asked["host"], **({"Origin": asked["origin"]} if "origin" in asked else {})}
            return _heard(self._front("POST", headers, call(1, "get_weather", city="Seattle")))
        address = re.search(r"https?://[^\s]*[^\s.]", input.get("endpoint") or input["setup"])
        assert address is not None
        loaded = loads(f"backends: {{one: {{url: '{address[0]}'}}}}", "aegis.yaml")
        told = [one.message for one in loaded.warnings if one.path == "backends.one.url"]
        return flagged(told[0]) if told else passed()

    def _http(self, input: Mapping[str, Any]) -> Verdict:
        assert self._front is not None
        return _heard(self._front(input.get("method", "POST"), dict(input["headers"]), _enveloped(input.get("body"))))

    def _https(self, input: Mapping[str, Any]) -> Verdict:
        for one in input["requests"]:
            found = self._http(one)
            if found["detect"]:
                return found
        return passed()


def _heard(told: tuple[bool, str]) -> Verdict:
    return passed() if told[0] else stopped(told[1])


def _enveloped(frame: Any) -> Any:
    """With the capabilities that every request of 2026-07-28 has to name, which the inputs leave out."""
    meta = frame["params"].get("_meta") if frame is not None else None
    if meta is None:
        return frame
    return {**frame, "params": {**frame["params"], "_meta": {META_CAPABILITIES: {}, **meta}}}


def whole(tool: Mapping[str, Any]) -> dict[str, Any]:
    """The definition, with what every definition has."""
    kept = {key: value for key, value in tool.items() if key not in ("arguments", "server", "result")}
    return {"inputSchema": ANYTHING, **kept}


def asked_of(input: Mapping[str, Any], tool: Mapping[str, Any]) -> dict[str, Any]:
    """The call that the input says, or the least that the tool's schema takes."""
    if input.get("call"):
        return {"name": input["call"]["name"], "arguments": dict(input["call"].get("arguments") or {})}
    schema = tool["inputSchema"]
    properties = schema.get("properties") or {}
    needed = schema.get("required") or ()
    made = {name: USUAL.get(name, _placeholder(properties.get(name) or {})) for name in needed}
    if not properties and tool["name"] in ("read_file", "write_file"):
        made["path"] = USUAL["path"]
    return {"name": tool["name"], "arguments": made}


def _placeholder(schema: Mapping[str, Any]) -> Any:
    if schema.get("enum"):
        return schema["enum"][0]
    kind = schema.get("type")
    kind = next((one for one in kind if one != "null"), "string") if isinstance(kind, list) else kind
    return PLACEHOLDER.get(str(kind), "x")


def _between(input: Mapping[str, Any]) -> float:
    """Seconds between issue and replay."""
    issued = datetime.fromisoformat(input["issuedTo"]["issuedAt"])
    return (datetime.fromisoformat(input["replayedBy"]["presentedAt"]) - issued).total_seconds()


def _words(frame: Mapping[str, Any]) -> str:
    """How a refusal reads."""
    if "error" in frame:
        return str(frame["error"]["message"])
    content = frame.get("result", {}).get("content") or [{}]
    return str(content[0].get("text", ""))


TYPES: dict[str, tuple[bool, Callable[[Aegis, Mapping[str, Any]], Verdict]]] = {
    "malicious-tool-definition": (False, Aegis._definition),
    "benign-tool-definition": (False, Aegis._definition),
    "tool-call": (False, Aegis._call),
    "malicious-tool-result": (False, Aegis._result),
    "benign-tool-result": (False, Aegis._result),
    "tool-call-sequence": (False, Aegis._sequence),
    "definition-change": (False, Aegis._change),
    "cache-invalidation": (False, Aegis._invalidation),
    "list-result": (False, Aegis._list),
    "multi-server-registry": (False, Aegis._registry),
    "input-required-result": (False, Aegis._input_required),
    "mrtr-retry": (False, Aegis._retry),
    "task-lifecycle": (False, Aegis._tasks),
    "tool-state-handle": (False, Aegis._handle),
    "ui-resource": (False, Aegis._resource),
    "scenario": (True, Aegis._scenario),
    "http-request": (True, Aegis._http),
    "http-request-sequence": (True, Aegis._https),
}
"""Kinds of inputs that cross a proxy: whether they need the front, and how they are driven. The others are none of its
business: what a registry offers, which scopes a grant has, tokens of one agent for another (no header of a client
goes upstream)."""
