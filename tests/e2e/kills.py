"""kill -9 of shim, server and daemon at random points of a load, and what must hold afterwards.

Every request is answered or its connection is closed; what reached a server was recorded before, and reached it once;
what was called "not executed" reached none; what was answered is in the log as answered; nothing is left running.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from typing import Any

from .house import BOUND_S, INITIALIZE, WAYS, Agent, Home, call, note, request, tell_of, until

CONFIG = """
backends: {work: {}}
agents: {default: {backends: {work: {allowed: true}}}}
audit: {durability: %s}
"""
FLIGHT = 4
"""Requests that a session keeps under way."""
ENDED = {"no_daemon", "not_executed", "outcome_unknown", "server_exited", "no_server", "server_not_started"}
"""Reasons a client may hear of a killed process."""


class Session:
    """One client under load. A thread writes and waits; whoever kills asks it to hurry no more."""

    def __init__(self, matrix: Matrix, name: str, way: str, *options: str, stubborn: bool = False) -> None:
        self.matrix = matrix
        self.name = name
        self.way = way
        self.random = random.Random(f"{matrix.seed} {name}")
        more = ("stubborn",) if stubborn else ()
        sockets = self.random.random() < 0.3  # as Node and Bun make them; else pipes
        self.agent: Agent = matrix.home.count(*more, way=way, options=options, sockets=sockets)
        self.sent: list[str] = []
        self.began: dict[str, float] = {}
        self.slowest = 0.0
        self.stop = threading.Event()
        self.warm = threading.Event()
        self.fault: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            if not self._handshake():
                return
            if self.random.random() < 0.2:
                self._send("family")
            while not self.stop.is_set() and not self.agent.eof:
                while len(self.open) < FLIGHT:
                    self._send(self.random.choice(("work", "work", "work", "fail", "big", "steps")))
                if self._next():
                    self.warm.set()
            self.settle()
        except OSError:
            # A write to a closed pipe: the connection is closed, which the reader sees too.
            self.agent.wait(lambda: self.agent.eof, "the end of a closed connection")
        except BaseException as error:
            self.fault = error

    def _handshake(self) -> bool:
        """Until the session is open; False where its connection was closed before."""
        until = time.monotonic() + BOUND_S  # a daemon on a busy machine takes its time to start, again and again
        attempt = 0
        while time.monotonic() < until:
            attempt += 1
            id = f"init{attempt}"
            self.agent.says(request(id, "initialize", **INITIALIZE))
            self.agent.wait(lambda id=id: id in self.agent.answers or self.agent.eof, "the handshake")
            if self.agent.eof:
                return False
            answer = self.agent.answers[id]
            if "result" in answer:
                self.agent.says(note("notifications/initialized"))
                return True
            assert tell_of(answer)[1] in self.matrix.ended, answer
            time.sleep(0.02)
        raise AssertionError("no handshake came to anything")

    def _send(self, tool: str) -> None:
        key = f"{self.name}.{len(self.sent)}"
        self.sent.append(key)
        self.began[key] = time.monotonic()
        ms = self.random.choice((0, 0, 1, 4))
        more: dict[str, Any] = {}
        if tool == "big":
            more["size"] = self.random.choice((5_000, 300_000))
        elif tool == "steps":
            more["count"] = 5
        frame = call(key, tool, key=key, ms=ms, pad="p" * self.random.choice((0, 0, 0, 9000)), **more)
        frame["params"]["_meta"] = {"progressToken": key}
        self.agent.says(frame)

    @property
    def open(self) -> list[str]:
        """Requests without an answer."""
        return [key for key in self.began if key not in self.agent.answers]

    def _next(self) -> bool:
        """Until there is room for one more; True where the last answer came from a server."""
        self.agent.wait(lambda: self.agent.eof or len(self.open) < FLIGHT, f"an answer to one of {self.open}")
        now = time.monotonic()
        for key in [key for key in self.began if key in self.agent.answers]:
            self.slowest = max(self.slowest, now - self.began.pop(key))
        last = self.agent.frames[-1] if self.agent.frames else {}
        if "error" in last:
            time.sleep(0.02)  # no daemon: an agent would not hammer either
            return False
        return True

    def settle(self) -> None:
        """Every request is answered, or the connection is closed."""
        self.agent.wait(lambda: self.agent.eof or not self.open, f"the answers to {self.open}")

    def finish(self) -> None:
        """The load ends."""
        self.stop.set()
        self.thread.join(2 * BOUND_S)
        assert not self.thread.is_alive(), f"{self.name} ({self.way}) hangs: {self.open}"
        if self.fault is not None:
            raise self.fault

    def close(self) -> int:
        """The session's own end; its status."""
        self.finish()
        return self.agent.close()


class Matrix:
    """One home, many kills. `seed` names the run."""

    ended = ENDED

    def __init__(self, home: Home, seed: str = "") -> None:
        self.home = home
        home.torn = True
        self.seed = seed or os.urandom(4).hex()
        self.random = random.Random(self.seed)
        self.sessions: list[Session] = []
        self.kills = {"shim": 0, "server": 0, "daemon": 0}
        self._lock = threading.Lock()
        self._count = 0

    def session(self, way: str, *options: str, stubborn: bool = False) -> Session:
        with self._lock:
            self._count += 1
            made = Session(self, f"{way[0]}{self._count}", way, *options, stubborn=stubborn)
            self.sessions.append(made)
        return made

    # --- shims and servers

    def kill_ends(self, victim: str, way: str, count: int, parallel: int = 3) -> None:
        """Kills the shims or servers of `count` sessions, one after another in each of `parallel` threads."""
        left = iter(range(count))
        faults: list[BaseException] = []

        def work() -> None:
            while not faults:
                with self._lock:
                    if next(left, None) is None:
                        return
                try:
                    self._kill_end(victim, way)
                except BaseException as error:
                    faults.append(error)

        threads = [threading.Thread(target=work, daemon=True) for _ in range(parallel)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if faults:
            raise faults[0]

    def _kill_end(self, victim: str, way: str) -> None:
        with self._lock:
            early = self.random.random() < 0.1
            pause = self.random.uniform(0, 0.08)
            stubborn = self.random.random() < 0.05
        session = self.session(way, stubborn=stubborn)
        if not early:
            session.warm.wait(BOUND_S)
        time.sleep(pause)
        agent = session.agent
        if victim == "shim":
            agent.kill(signal.SIGKILL)
        else:
            pid = self._server_of(agent)
            if pid is None:  # not started yet: the next one will be
                session.close()
                return
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        with self._lock:
            self.kills[victim] += 1
        # Closed for everybody: in hand-over the daemon holds the client's end too.
        agent.wait(lambda: agent.eof, f"the end of the connection after a killed {victim} ({way})")
        session.finish()
        status = agent.ends()
        assert status == (-signal.SIGKILL if victim == "shim" else 128 + signal.SIGKILL), status

    def _server_of(self, agent: Agent) -> int | None:
        def found() -> Any:
            for row in self.home.ask("status")["sessions"]:
                if row["shim_pid"] == agent.process.pid:
                    return row["server_pid"]
            return None

        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            pid = found()
            if pid is not None:
                return int(pid)
            time.sleep(0.01)
        return None

    # --- daemons

    def kill_daemons(self, count: int, sessions: int = 2) -> None:
        """Kills the daemon `count` times under the load of `sessions` sessions of each way, which all go on."""
        held = [
            self.session(way, *(() if at % 2 else ("--no-autostart",)))
            for way in ("relay", "handover")
            for at in range(sessions)
        ]
        for each in held:
            assert each.warm.wait(BOUND_S), each.fault
        old = self.home.pid
        for _ in range(count):
            if self.random.random() < 0.7:
                # In the middle of everything that a session does.
                until(self.home.answers, "a daemon")
                for each in held:
                    each.warm.clear()
                self.random.choice(held).warm.wait(BOUND_S)
                time.sleep(self.random.uniform(0, 0.05))
            else:
                # In the middle of its start: recovery, the first sessions.
                time.sleep(self.random.uniform(0, 0.8))
            late = (self.home.answers() or {}).get("reaped_late", 0)
            assert late == 0, f"{late} processes outlived their session"
            os.kill(old, signal.SIGKILL)
            self.kills["daemon"] += 1
            self.home.spawn()
            old = self._next_daemon(old)
        until(self.home.answers, "the last daemon")
        for each in held:
            each.warm.clear()
        for each in held:
            assert each.warm.wait(2 * BOUND_S), f"{each.name} did not go on: {each.fault} {each.agent.frames[-3:]}"
        for each in held:
            assert not each.agent.eof, f"{each.name} was closed"
            assert each.close() == 0

    def _next_daemon(self, old: int) -> int:
        return int(until(lambda: self._holder(old), "the next daemon"))

    def _holder(self, old: int) -> int | None:
        """Who holds the daemon's lock now."""
        said = (self.home.dir / "daemon.lock").read_text().strip()
        return int(said) if said.isdigit() and int(said) != old and os.path.exists(f"/proc/{said}") else None

    # --- both at once

    def kill_all(self, count: int) -> None:
        """Kills the daemon `count` times, and shims of sessions that come and go all the while."""
        over = threading.Event()
        faults: list[BaseException] = []

        def work(way: str) -> None:
            while not (over.is_set() or faults):
                try:
                    self._kill_end("shim", way)
                except BaseException as error:
                    faults.append(error)

        threads = [threading.Thread(target=work, args=(way,), daemon=True) for way in WAYS]
        for thread in threads:
            thread.start()
        try:
            self.kill_daemons(count, sessions=1)
        finally:
            over.set()
            for thread in threads:
                thread.join()
        if faults:
            raise faults[0]

    # --- what must hold

    def check(self) -> dict[str, int | float | str]:
        """Everything that must hold once the load is over; the run's figures."""
        home = self.home
        for session in self.sessions:
            session.finish()
        until(lambda: not home.servers(), f"the end of all servers: {home.servers()}")
        helpers = [line for line in home.processes().values() if not is_helper(line)]
        assert helpers == [], helpers
        assert home.ask("status")["reaped_late"] == 0
        until(lambda: home.ask("status")["audit"]["healthy"], "a healthy log")
        reached = home.reached()
        once = set(reached)
        assert len(once) == len(reached), "a call reached a server twice"
        intents = home.intents()
        assert once <= intents.keys(), f"without an intent: {sorted(once - intents.keys())[:5]}"
        answered = lost = torn = twice = 0
        for session in self.sessions:
            agent = session.agent
            # Killed between the write of an answer and the note that it is out, a daemon leaves nobody who could know:
            # the shim says "outcome unknown" then, which a client that has its answer drops.
            for frame in agent.twice:
                assert self.kills["daemon"], frame
                assert frame["error"]["data"]["reason"] == "outcome_unknown", frame
            twice += len(agent.twice)
            torn += len(agent.broken)
            for key in session.sent:
                answer = agent.answers.get(key)
                if answer is None:
                    assert agent.eof, f"`{key}` was never answered"
                    lost += 1
                elif "result" in answer:
                    answered += 1
                    assert key in once, f"`{key}` was answered and never reached the server"
                    wanted = "error" if answer["result"].get("isError") else "success"
                    # An outcome is written up to 5 ms after its answer; killed in between, the call counts as unknown.
                    assert intents[key] in (wanted, "unknown"), f"`{key}` was answered; its outcome is `{intents[key]}`"
                else:
                    reason = answer["error"]["data"]["reason"]
                    assert reason in self.ended, answer
                    if reason not in ("outcome_unknown", "server_exited"):
                        assert key not in once, f"`{key}` was not executed, they said: {answer}"
        report = home.verify()
        return {
            "seed": self.seed,
            **{f"{name} kills": count for name, count in self.kills.items()},
            "sessions": len(self.sessions),
            "calls sent": sum(len(session.sent) for session in self.sessions),
            "reached a server": len(once),
            "answered by it": answered,
            "lost with their connection": lost,
            "torn frames closed": torn,
            "answered again as unknown": twice,
            "slowest answer, s": round(max(session.slowest for session in self.sessions), 2),
            "orphans": 0,
            "hung clients": 0,
            "without intent": 0,
            "records verified": report["records"],
        }


def is_helper(line: str) -> bool:
    """Whether a command line is the daemon's own or one of its helpers'."""
    return any(
        word in line
        for word in ("aegis_daemon.daemon.main", "aegis_daemon.audit", "aegis_daemon.exports", "import warden")
    )


def main(words: list[str]) -> int:
    """The whole matrix: `COUNT` kills of each kind in each way."""
    count = int(words[0]) if words else 200
    seed = words[1] if len(words) > 1 else os.urandom(4).hex()
    for durability in ("full", "process"):
        for victim in ("shim", "server", "daemon"):
            home = Home(CONFIG % durability).start()
            try:
                matrix = Matrix(home, seed)
                began = time.monotonic()
                if victim == "daemon":
                    matrix.kill_daemons((count + 1) // 2)
                else:
                    for way in WAYS:
                        matrix.kill_ends(victim, way, (count + 1) // 2)
                took = time.monotonic() - began
                figures = matrix.check()
            except BaseException:
                print(f"seed {seed}: killing the {victim} with durability {durability} found a fault", file=sys.stderr)
                raise
            finally:
                home.close()
            print(f"{victim} killed, durability {durability}, {took:.0f} s")
            for name, value in figures.items():
                print(f"  {name:28} {value}")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
