"""Whatever fails, whoever leaves and whenever the daemon dies: no call runs twice, unasked or unheard, none waits for ever."""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from playbook import Play, Session, call, cancel, modern, request, text

from aegis_daemon.approvals.desk import Decided, NoSuchTicket
from aegis_daemon.approvals.ticket import Ticket

RULES = [
    "{allowed: true, approval_required: [pay], rate_limits: {pay: 1000/day}}",
    "{allowed: true, second_approver: [pay], rate_limits: {pay: 1000/day}}",
    "{allowed: true, tool_denylist: [pay]}",
    "{allowed: true, approval_required: [pay], rate_limits: {pay: 3/day}}",
]
CONFIG = """
approval: {timeout: 300s, max_pending_per_agent: 5}
backends: {files: {}}
agents: {bot: {backends: {files: %s}}}
"""
LANE = "queue: {files: {enabled: true, delay_min: 9s, delay_max: 9s, max_pending: 4}}\n"
TASKS: dict[str, Any] = {"extensions": {"io.modelcontextprotocol/tasks": {}}}
EVENTS = {
    "call": 8, "cancel": 3, "poll": 3, "stop": 1, "decide": 6, "answer": 5, "time": 2, "dies": 0.5, "exits": 0.3,
    "disk": 1, "log": 1.5, "rules": 0.2, "calendar": 0.2,
}  # fmt: skip
"""What may happen next, and how often."""
EXPECTED = ("could not be written", "could not be read")


class Snapshot(NamedTuple):
    """The disk, and what has happened, at the moment when the daemon dies."""

    disk: Path
    at: float
    ran: dict[str, str]
    agreed: dict[str, set[str]]


class Walk:
    """People, clients, servers, a disk and a journal that do anything, in any order, over several daemons."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.dice = random.Random(seed)
        self.lane = self.dice.random() < 0.5
        self.agreed: dict[str, set[str]] = {}
        """by the ticket's call: who said yes, as far as they were told that it was kept"""
        self.ran: dict[str, str] = {}
        """by the ticket's call: which call ran"""
        self.people: dict[str, int] = {}
        self.writes = 0
        self.rule = 0
        self.plays: list[Play] = []
        self.snapshot: Snapshot | None = None
        self.begin(None)

    # --- daemons ------------------------------------------------------------------------------------------------

    def config(self) -> str:
        return CONFIG % RULES[self.rule] + (LANE if self.lane else "")

    def begin(self, disk: Path | None) -> None:
        """A daemon that finds this disk."""
        self.play = Play(self.config(), store=disk or self.path / "0.db")
        if self.snapshot is not None:
            self.play.clock.now = self.snapshot.at + self.dice.choice([0, 1, 1, 400])
        self.plays.append(self.play)
        self.kill_at = self.writes + self.dice.choice([20, 60, 200, 10**9])
        self.snapshot = None
        self.names: dict[str, str] = {}
        self.seen: set[str] = set()
        self.sessions: list[Session] = []
        self.heard: list[tuple[Session, dict[str, Any]]] = []
        self.tasks: set[str] = set()
        self.ids = 0
        if self.dice.random() < 0.7:
            self.play.be_impatient()
        store = self.play.store
        for name in ("put", "take"):
            setattr(store, name, self._may_die(getattr(store, name)))
        self.play.restart_desk()
        for session in range(3):
            self.join(session == 2)

    def _may_die(self, write: Callable[[Ticket], Any]) -> Callable[[Ticket], Any]:
        def wrapped(ticket: Ticket) -> Any:
            self._write()
            done = write(ticket)
            self._write()
            return done

        return wrapped

    def _write(self) -> None:
        self.writes += 1
        if self.writes >= self.kill_at and self.snapshot is None:
            self.look()
            path = self.path / f"{len(self.plays)}.db"
            with sqlite3.connect(path) as copy:
                self.play.store.db.backup(copy)
            copy.close()
            agreed = {key: set(value) for key, value in self.agreed.items()}
            self.snapshot = Snapshot(path, self.play.clock.now, dict(self.ran), agreed)

    def restart(self) -> None:
        """What is on the disk of the moment when it died is all that the next one knows."""
        found = self.snapshot
        assert found is not None
        self.wind_up()
        self.ran, self.agreed = found.ran, found.agreed
        self.begin(found.disk)

    # --- what happens -------------------------------------------------------------------------------------------

    def join(self, is_modern: bool) -> None:
        session = self.play.session()
        session.modern = is_modern  # type: ignore[attr-defined]
        if not is_modern:
            unavailable, self.play.log.unavailable = self.play.log.unavailable, None
            session.handshake()
            self.play.log.unavailable = unavailable
        self.sessions.append(session)

    def step(self) -> None:
        dice, play = self.dice, self.play
        if dice.random() < 0.15:
            self.all_works()
        session = dice.choice(self.sessions)
        what = dice.choices(list(EVENTS), list(EVENTS.values()))[0]
        if what == "call":
            self.ids += 1
            frame = call(self.ids, dice.choice(["pay", "pay", "pay", "look"]), n=dice.randrange(2))
            if session.modern:  # type: ignore[attr-defined]
                frame = modern(frame, capabilities=TASKS if dice.random() < 0.6 else {})
            session.client.says(frame)
        elif what == "cancel" and session.client.asked:
            key = dice.choice(list(session.client.asked))
            session.client.says(cancel(key[1]))
        elif what in ("poll", "stop") and self.tasks:
            self.ask_about(dice.choice(sorted(self.tasks)), "get" if what == "poll" else "cancel")
        elif what == "decide":
            self.decide()
        elif what == "answer" and self.heard:
            at, frame = self.heard.pop(dice.randrange(len(self.heard)))
            if not at.server.over:
                self.answer(at, frame)
        elif what == "time":
            play.advance(dice.choice([1, 5, 10, 60, 150]))
        elif what in ("dies", "exits"):
            if what == "dies":
                session.client.dies()
            session.all_exit()
            self.look()
            self.sessions.remove(session)
            self.join(session.modern)  # type: ignore[attr-defined]
        elif what == "disk":
            play.store.failing = not play.store.failing and dice.random() < 0.6
        elif what == "log":
            self.change_log()
        elif what == "calendar":
            play.clock.set_by += dice.choice([-1e5, -100, 100, 1e5])
        elif what == "rules":
            self.rule = dice.choices(range(len(RULES)), [6, 2, 1, 1])[0]
            play.reload(self.config())
        self.look()

    def all_works(self) -> None:
        self.play.store.failing = False
        self.play.log.unavailable, self.play.log.durable = None, True
        self.play.log.sync()

    def answer(self, at: Session, frame: dict[str, Any]) -> None:
        kind = self.dice.randrange(6)
        if kind == 0:
            at.server.fails(frame)
        elif kind == 1:
            at.server.says(b'{"jsonrpc":"2.0","id":%d,"result":{"content":[],"x":1e999}}' % frame["id"])
        elif kind == 2:
            at.server.says(b'{"jsonrpc":"2.0","id":%d,"result":{"isError":true,"x":1e999}}' % frame["id"])
        else:
            at.server.answers(frame, text("paid"))

    def ask_about(self, task: str, method: str) -> None:
        session = next(one for one in self.sessions if one.modern)  # type: ignore[attr-defined]
        self.ids += 1
        session.client.says(modern(request(self.ids, f"tasks/{method}", taskId=task), capabilities=TASKS))

    def decide(self) -> None:
        waiting = [one for one in self.play.desk.pending() if one.state == "pending"]
        if not waiting:
            return
        ticket = self.dice.choice(waiting)
        self.names[ticket.id] = ticket.call_id
        who = self.dice.choice(["ann", "bob"])
        agreed = self.agreed.setdefault(ticket.call_id, set())
        yes = self.dice.random() < 0.8
        if yes:
            agreed.add(who)  # the call may run, and die, before `decide` comes back
        try:
            self.play.desk.decide(ticket.id, yes, who, via="cli", voter=f"user:{who}")
        except (Decided, NoSuchTicket):
            pass
        except sqlite3.Error:
            if yes and who not in {vote.by for vote in ticket.votes}:
                agreed.discard(who)

    def change_log(self) -> None:
        log, dice = self.play.log, self.dice
        what = dice.choice(["fails", "works", "slow", "sync", "sync", "lost"])
        if what == "fails":
            log.unavailable = "disk full"
        elif what == "works":
            self.all_works()
        elif what == "slow":
            log.durable = False
        else:
            log.sync("disk full" if what == "lost" else None)

    # --- what must hold -----------------------------------------------------------------------------------------

    def look(self) -> None:
        play = self.play
        for ticket in (*play.desk._open.values(), *play.desk._ended.values()):
            self.names[ticket.id] = ticket.call_id
            self.people[ticket.call_id] = ticket.people
        for id in sorted(play.sent - self.seen):
            self.seen.add(id)
            (intent,) = play.log.of(id, "intent")
            if intent.name != "pay":
                continue
            assert intent.approval == "approved", intent
            asked = self.names[intent.ticket]
            assert asked not in self.ran, "it ran twice under one approval"
            assert len(self.agreed.get(asked, ())) >= self.people[asked], "not all agreed who must"
            self.ran[asked] = id
        for session in play.sessions:
            for server in session.servers:
                while server.inbox:
                    frame = server.next()
                    if frame["method"] == "tools/call":
                        self.heard.append((session, frame))
            while session.client.inbox:
                self.read(session.client.next())
        faults = [one for one in play.errors if not any(words in one for words in EXPECTED)]
        assert not faults, faults
        play.errors.clear()

    def read(self, frame: dict[str, Any]) -> None:
        result = frame.get("result", {})
        if type(result) is dict and result.get("resultType") == "task":
            self.tasks.add(result["taskId"])

    def wind_up(self) -> None:
        """All works again, servers answer what they heard, time passes: nobody who still waits goes without an answer."""
        play = self.play
        self.all_works()
        for _ in range(30):
            self.look()
            for at, frame in self.heard:
                if not at.server.over:
                    at.server.answers(frame, text("paid"))
            self.heard.clear()
            play.advance(100)
        self.look()
        for task in sorted(self.tasks):
            self.ask_about(task, "get")
            session = next(one for one in self.sessions if one.modern)  # type: ignore[attr-defined]
            answer = json.loads(session.client.inbox.pop())
            assert answer.get("result", {}).get("status") != "working", (task, answer)
        for session in play.sessions:
            if not session.client.left:
                assert not session.client.asked, f"still waits: {session.client.asked}"
        assert not play.desk._open, play.desk._open
        self.look()
        play.finish()


@pytest.mark.parametrize("seed", range(40))
def test_whatever_fails_and_whenever_the_daemon_dies_it_runs_once_at_most_and_everybody_hears(
    tmp_path: Path, seed: int
) -> None:
    walk = Walk(tmp_path, seed)
    for _ in range(250):
        walk.step()
        if walk.snapshot is not None and walk.dice.random() < 0.1:
            walk.restart()
    walk.wind_up()
