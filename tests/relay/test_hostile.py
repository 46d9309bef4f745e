"""Whatever an agent, a server, a person, a disk and a clock do, in whatever order: what the playbook checks holds.

No request without a durable intent, none twice, no answer to the wrong id or to nobody, no caller left waiting, one
end for every call, and nothing left behind.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from playbook import Play, Session, call, cancel, error, modern, note, raw, request, result, text

from aegis_daemon.approvals.desk import Decided, NoSuchTicket
from aegis_daemon.core.session import State
from aegis_daemon.wire.methods import META_SUBSCRIPTION

BASE = """
server: {max_in_flight_session: 6, max_in_flight_agent: 9}
approval: {timeout: 300s, max_pending_per_agent: 3}
backends: {files: {timeout: 100s}}
queue: {files: {enabled: true, delay_min: 0s, delay_max: 20s, max_pending: 4, bypass_tools: [free, ask, rm]}}
agents:
  bot:
    backends:
      files:
        allowed: true
        tool_denylist: [rm]
        approval_required: [ask, both]
        rate_limits: {free: 5/h, both: 2/h, lined: 3/h}
        server_requests: [roots]
"""
CONFIGS = [
    BASE,
    BASE.replace("allowed: true", "allowed: false"),
    BASE.replace("enabled: true", "enabled: false"),
    BASE.replace("[ask, both]", "[]"),
    BASE.replace("[ask, both]", "[ask, both, free, lined]"),
    BASE.replace("{free: 5/h, both: 2/h, lined: 3/h}", "{}"),
    "mode: observe\n" + BASE,
]
HELLO = request(1, "initialize", protocolVersion="2025-06-18", capabilities={"sampling": {}})
IDS = st.sampled_from([1, 2, 3, "1", "a"])
TOOLS = st.sampled_from(["free", "lined", "ask", "both", "rm"])
WHICH = st.integers(0, 7)


class World:
    """A play, and what each of its ends may take up next."""

    def __init__(self, store: Path) -> None:
        self.play = Play(BASE, store=store)
        self.sessions = [self.play.session(), self.play.session()]
        self.heard: dict[int, list[dict[str, Any]]] = {}
        self.asked: dict[int, list[dict[str, Any]]] = {}
        self.count = 0

    def number(self) -> int:
        self.count += 1
        return self.count

    def pick(self, which: int) -> Session:
        return self.sessions[which % len(self.sessions)]

    def listen(self) -> None:
        """Moves what was heard to where later steps find it."""
        for s in self.sessions:
            for server in s.servers:
                while server.inbox:
                    frame = server.next()
                    if "method" in frame and "id" in frame:
                        self.heard.setdefault(id(server), []).append(frame)
            while s.client.inbox:
                frame = s.client.next()
                if "method" in frame and "id" in frame:
                    self.asked.setdefault(id(s), []).append(frame)

    # --- the agent ---

    def client_calls(self, which: int, id: Any, tool: str, modernly: bool, state: int) -> None:
        frame = call(id, tool, token=f"t{self.number()}", n=state % 2)
        if state >= 4:
            frame["params"] |= {"requestState": f"s{state % 2}", "inputResponses": {}}
        self.client_says(which, modern(frame) if modernly else frame)

    def client_asks(self, which: int, id: Any, method: str) -> None:
        frame = request(id, method, protocolVersion="2025-06-18", capabilities={"roots": {}}, taskId="task")
        self.client_says(which, modern(frame) if method in ("server/discover", "subscriptions/listen") else frame)

    def client_says(self, which: int, frame: Any) -> None:
        s = self.pick(which)
        if not s.client.left and not s.over:
            s.client.says(frame)

    def client_cancels(self, which: int, id: Any) -> None:
        self.client_says(which, cancel(id))

    def client_answers(self, which: int, index: int, good: bool) -> None:
        s = self.pick(which)
        open_questions = self.asked.get(id(s), [])
        number = open_questions[index % len(open_questions)]["id"] if open_questions else index
        self.client_says(which, result(number, {"roots": []}) if good else error(number))

    def client_goes(self, which: int, how: int) -> None:
        s = self.pick(which)
        if s.over or s.client.left:
            return
        if how < 3:
            s.client.leaves()
        elif how < 6:
            s.client.dies()
        else:
            s.talk.stop()
            s.client.bye()
            s.talk.shim_gone()

    # --- the server ---

    def server_says(self, which: int, frame: Any) -> None:
        s = self.pick(which)
        if not s.server.over:
            s.server.says(frame)

    def server_answers(self, which: int, index: int, how: int) -> None:
        s = self.pick(which)
        server = s.servers[index % len(s.servers)]
        heard = self.heard.get(id(server), [])
        if server.over or not heard:
            return
        frame = heard[index % len(heard)]
        number = frame["id"]
        if how < 8:
            heard.remove(frame)
        value: dict[str, Any] = {"protocolVersion": "2025-06-18", "tools": [{"name": "rm"}, {"name": "both"}]}
        state = {"resultType": "input_required", "requestState": f"s{index % 2}"}
        answers: list[Any] = [
            result(number, {**value, **text("ok")}),
            result(number, {**value, **text("no", isError=True)}),
            error(number, -32050, "own"),
            result(number, {**state, "inputRequests": {"q": {"method": "roots/list"}}}),
            result(number, {**state, "inputRequests": {"q": {"method": "sampling/createMessage"}}}),
            result(number, {"task": {"taskId": "task", "status": "working"}}),
            b'{"jsonrpc":"2.0","id":%d,"result":{"protocolVersion":"2025-06-18","n":1e999,"taskId":1}}' % number,
            b'{"jsonrpc":"2.0","id":%d,"result":{},"result":1}' % number,
            result(number, {**state}),  # and from here on the request may be answered once more
            result(number, {"taskId": "task", "status": "completed"}),
        ]
        server.says(answers[how % len(answers)])

    def server_asks(self, which: int, id: Any, method: str) -> None:
        self.server_says(which, request(id, method))

    def server_notes(self, which: int, index: int, how: int) -> None:
        s = self.pick(which)
        heard = self.heard.get(id(s.server), [])
        number = heard[index % len(heard)]["id"] if heard else index
        self.server_says(
            which,
            [
                cancel(number),
                cancel(index),
                cancel("a"),
                note("subscriptions/acknowledged", _meta={META_SUBSCRIPTION: number}),
                note("tasks/status", taskId="task", status=["completed", "failed", "working"][index % 3]),
                note("resources/updated", uri="a:b"),
                b"nonsense",
            ][how % 7],
        )

    def server_progresses(self, which: int, index: int) -> None:
        heard = self.heard.get(id(self.pick(which).server), [])
        token = heard[index % len(heard)].get("params", {}).get("_meta", {}).get("progressToken") if heard else None
        if token is not None:
            self.server_says(which, note("progress", progressToken=token, progress=self.number()))

    def server_goes(self, which: int, index: int) -> None:
        s = self.pick(which)
        server = s.servers[index % len(s.servers)]
        if server.over:
            return
        if server.touched or index < 4:
            server.exits(index - 3)
        else:
            server.cannot_start()

    def server_lags(self, which: int, full: bool) -> None:
        if not self.pick(which).server.over:
            self.pick(which).server.is_full(full)

    # --- everybody else ---

    def person_decides(self, index: int, approve: bool) -> None:
        pending = self.play.desk.pending()
        if pending:
            try:
                self.play.desk.decide(pending[index % len(pending)].id, approve, "ann")
            except (Decided, NoSuchTicket, sqlite3.Error):
                pass

    def person_takes_out(self, which: int, index: int) -> None:
        s = self.pick(which)
        waiting = [one for one in s.talk.to_server.all() if one.state is State.WAITING and one.strand is not None]
        if waiting and not s.over:
            s.talk.cancel_waiting(waiting[index % len(waiting)], "a person took it out")

    def disk(self, how: int) -> None:
        log = self.play.log
        log.durable = how in (0, 3)
        log.unavailable = "disk full" if how == 2 else None
        self.play.store.failing = how == 5
        if how in (0, 3):
            log.sync()
        elif how == 4:
            log.sync(fault="disk broken")

    def rules(self, index: int) -> None:
        self.play.reload(CONFIGS[index % len(CONFIGS)])

    def time_passes(self, seconds: float) -> None:
        self.play.advance(seconds)

    def somebody_connects(self, era: int, kept: bytes | None) -> None:
        if len(self.sessions) < 4:
            self.sessions.append(self.play.session(era=era, handshake=kept, initialized=True))

    def end(self) -> None:
        self.listen()
        for s in self.sessions:
            if not s.over:
                s.all_exit()
        self.listen()
        self.play.advance(3600)
        self.listen()
        self.play.errors = [one for one in self.play.errors if "a ticket could not be written" not in one]
        self.play._handler._into = self.play.errors
        self.play.finish()


def step(name: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[str, tuple[Any, ...]]]:
    return st.tuples(st.just(name), st.tuples(*arguments))


CALL = step("client_calls", WHICH, IDS, TOOLS, st.booleans() | st.just(False), WHICH)
ANSWER = step("server_answers", WHICH, WHICH, st.integers(0, 9))
STEPS = st.one_of(
    CALL,
    CALL,
    ANSWER,
    ANSWER,
    step(
        "client_asks", WHICH, IDS,
        st.sampled_from(["initialize", "ping", "tools/list", "server/discover", "subscriptions/listen", "tasks/get",
                         "tasks/result", "made/up"]),
    ),
    step("client_cancels", WHICH, IDS),
    step("client_answers", WHICH, WHICH, st.booleans()),
    step("client_says", WHICH, st.sampled_from([b"{", b'{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}',
                                                raw(note("initialized")), raw(result(1)), b""])),
    step("client_goes", WHICH, WHICH),
    step("server_asks", WHICH, IDS, st.sampled_from(["roots/list", "sampling/createMessage", "ping", "made/up"])),
    step("server_notes", WHICH, WHICH, WHICH),
    step("server_progresses", WHICH, WHICH),
    step("server_says", WHICH, st.sampled_from([result(1), result(2), error(3), result("1")])),
    step("server_goes", WHICH, WHICH),
    step("server_lags", WHICH, st.booleans()),
    step("person_decides", WHICH, st.booleans() | st.just(True)),
    step("person_takes_out", WHICH, WHICH),
    step("disk", st.integers(0, 5)),
    step("rules", WHICH),
    step("time_passes", st.sampled_from([0.5, 11.0, 16.0, 31.0, 101.0, 301.0, 601.0])),
    step("somebody_connects", st.integers(0, 3), st.sampled_from([None, raw(HELLO), raw(call(1, "rm")), b"{"])),
)  # fmt: skip


def play_out(steps: list[tuple[str, tuple[Any, ...]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder) / "tickets.db")
        for name, arguments in steps:
            act: Callable[..., None] = getattr(world, name)
            act(*arguments)
            world.listen()
        world.end()


@settings(
    max_examples=120, derandomize=True, phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck)
)
@given(st.lists(STEPS, min_size=5, max_size=40))
def test_nothing_is_lost_doubled_or_left_behind(steps: list[tuple[str, tuple[Any, ...]]]) -> None:
    play_out(steps)
