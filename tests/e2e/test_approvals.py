"""Approvals through the installed commands: clients that give up, daemons that are killed, people who race."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from aegis_daemon.manage.client import Refused

from . import servers
from .house import AEGIS, BOUND_S, HERE, WAYS, WRAP, Agent, Home, call, note, request, until

ASKING = """
backends: {work: {}}
agents: {default: {backends: {work: {allowed: true, approval_required: [post, hold]}}}}
"""


def text(answer: dict[str, Any]) -> str:
    found: str = answer["result"]["content"][0]["text"]
    return found


def meta(answer: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = answer["result"].get("_meta", {})
    return found


def kill_daemon(home: Home) -> None:
    """kill -9, and the next one answers."""
    home.torn = True
    old = home.pid
    os.kill(old, signal.SIGKILL)
    home.spawn()

    def next_one() -> bool:
        found = home.answers()
        return found is not None and found["pid"] != old

    until(next_one, "the next daemon")


# --- clients that give up after five seconds ----------------------------------------------------------------------------

GIVES_UP_S = 5.0
CLIENTS = (
    ("py", "stdio", "legacy"),
    ("py", "stdio", "auto"),
    ("py", "http", "legacy"),
    ("py", "http", "auto"),
    ("ts1", "stdio", "legacy"),
    ("ts1", "http", "legacy"),
    ("ts2", "stdio", "legacy"),
    ("ts2", "stdio", "auto"),
    ("ts2", "http", "legacy"),
    ("ts2", "http", "auto"),
)
FEW = (("py", "stdio", "auto"), ("py", "http", "auto"), ("ts1", "stdio", "legacy"), ("ts2", "http", "auto"))


class Impatient:
    """A real client in a process of its own; `calls` gives what it saw of one call of `post`."""

    def __init__(self, home: Home, agent: str, kind: tuple[str, str, str]) -> None:
        sdk, way, mode = kind
        address = str(home.ask("status")["http"]).removeprefix("http://")
        plan = {
            "sdk": sdk, "way": way, "mode": mode, "name": f"impatient-{sdk}", "modules": str(servers.MODULES),
            "command": WRAP, "args": ["--agent", agent, "--backend", "work"], "env": home.env,
            "url": f"http://{address}/agents/{agent}/backends/work/mcp",
        }  # fmt: skip
        program = [sys.executable, str(HERE / "impatient.py")]
        if sdk != "py":
            program = [str(servers.NODE), str(HERE / "impatient.mjs")]
        self.process = subprocess.Popen(
            [*program, json.dumps(plan)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=home.env, text=True,
        )  # fmt: skip
        assert self._heard()["kind"] == "ready"

    def calls(self, key: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"arguments": {"key": key}, "timeout": GIVES_UP_S}) + "\n")
        self.process.stdin.flush()
        return self._heard()

    def _heard(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the client ended with {self.process.wait(BOUND_S)}"
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            assert self.process.wait(BOUND_S) == 0
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()


def impatience(home: Home, agent: str, kind: tuple[str, str, str]) -> None:
    """What a client that gives up goes through until it has what it wanted."""

    def ticket() -> dict[str, Any] | None:
        found = [one for one in home.ask("pending") if one["agent_id"] == agent]
        return found[0] if len(found) == 1 and not found[0]["waiting"] else None

    client = Impatient(home, agent, kind)
    try:
        # It gives up; the person sees that nobody waits, and approves all the same.
        assert client.calls(f"{agent}-one")["kind"] == "timeout"
        seen = until(ticket, "a ticket without its client")
        assert seen["client"] == f"impatient-{kind[0]}"
        done = home.aegis("approve", seen["id"], "--yes", env=home.approver())
        assert done.returncode == 0, done.stderr
        assert f"{agent}-one" not in home.reached()
        answer = client.calls(f"{agent}-one")
        assert (answer["kind"], answer["text"]) == ("result", f"{agent}-one")
        # It gives up as punctually once more, and from then on is answered before it would.
        heard = [client.calls(f"{agent}-two") for _ in range(2)]
        while heard[-1]["kind"] == "timeout" and len(heard) < 4:
            heard.append(client.calls(f"{agent}-two"))
        assert [one["kind"] for one in heard[:-1]] == ["timeout"] * (len(heard) - 1)
        pending = heard[-1]
        seen = until(ticket, "the second ticket")
        assert pending["failed"]
        assert pending["text"].startswith(f"PENDING {seen['id']}: not executed.")
        told = pending["meta"]["aegis/pending"]
        assert (told["ticket"], told["call_id"]) == (seen["id"], seen["call_id"])
        home.decide(seen["id"])
        assert client.calls(f"{agent}-two")["text"] == f"{agent}-two"
    finally:
        client.close()


@pytest.mark.parametrize("kinds", [FEW, pytest.param(CLIENTS, marks=pytest.mark.full)], ids=["few", "all"])
def test_clients_that_give_up_after_five_seconds_get_their_answer_and_the_backend_saw_one_call(
    homes: Callable[..., Home], kinds: tuple[tuple[str, str, str], ...]
) -> None:
    servers.needed()
    home = homes(None, start=False)
    command = json.dumps(home.counting())
    home.configure(
        f"backends: {{work: {{command: {sys.executable}, args: {json.dumps(json.loads(command)[1:])}}}}}\nagents:\n"
        + "".join(
            f"  a{n}: {{backends: {{work: {{allowed: true, approval_required: [post]}}}}}}\n" for n in range(len(kinds))
        )
    )
    home.launch()
    faults: list[BaseException] = []

    def go(agent: str, kind: tuple[str, str, str]) -> None:
        try:
            impatience(home, agent, kind)
        except BaseException as error:
            error.add_note(f"the client was {kind}")
            faults.append(error)

    threads = [threading.Thread(target=go, args=(f"a{n}", kind)) for n, kind in enumerate(kinds)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]
    assert sorted(home.reached()) == sorted(f"a{n}-{which}" for n in range(len(kinds)) for which in ("one", "two"))
    assert home.ask("pending") == []
    home.verify()


# --- what was approved is what runs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_arguments_that_changed_after_the_approval_ask_anew_and_run_nothing(
    homes: Callable[..., Home], way: str
) -> None:
    home = homes(ASKING)
    agent = home.count(way=way).handshake()
    agent.says(call(1, "post", key="as-shown", to="ann"))
    (shown,) = home.pending()
    agent.says(note("notifications/cancelled", requestId=1))
    until(lambda: not home.pending()[0]["waiting"], "a client that is gone")
    home.decide(shown["id"])
    for n, other in enumerate(({"to": "bob"}, {"to": "ann", "cc": "bob"}, {}), 2):
        agent.says(call(n, "post", key="as-shown", **other))
        new = [ticket for ticket in home.pending(n) if ticket["id"] != shown["id"]]
        assert all(ticket["state"] == "pending" for ticket in new)
        assert json.loads(new[-1]["arguments"]) == {"key": "as-shown", **other}
    assert home.reached() == []
    assert text(agent.asks(call(9, "post", to="ann", key="as-shown"))) == "as-shown"  # in whatever order
    assert home.reached() == ["as-shown"]
    home.verify()


# --- kill -9 of the daemon at every state of a ticket -------------------------------------------------------------------


def left(home: Home, agent: Agent, id: int = 1) -> dict[str, Any]:
    """The one ticket, once its client is gone."""
    agent.close()

    def alone() -> Any:
        found = home.ask("pending")
        return found[0] if len(found) == 1 and not found[0]["waiting"] else None

    found: dict[str, Any] = until(alone, "a ticket without its client")
    return found


@pytest.mark.parametrize("way", WAYS)
def test_killed_while_a_client_waits_for_a_person(homes: Callable[..., Home], way: str) -> None:
    home = homes(ASKING)
    agent = home.count(way=way).handshake()
    agent.says(call(1, "post", key="k"))
    (before,) = home.pending()
    kill_daemon(home)
    assert agent.answer(1)["error"]["data"]["reason"] in ("not_executed", "no_daemon")
    (after,) = home.pending()
    assert (after["id"], after["call_id"], after["state"]) == (before["id"], before["call_id"], "pending")
    agent.says(call(2, "post", key="k"))
    until(lambda: home.pending()[0]["waiting"], "the retry at the same ticket")
    home.decide(before["id"])
    assert text(agent.answer(2)) == "k"
    assert home.reached() == ["k"]
    assert home.ask("pending") == []
    home.verify()


@pytest.mark.parametrize("approved", [False, True])
def test_killed_while_a_ticket_waits_without_its_client(homes: Callable[..., Home], approved: bool) -> None:
    home = homes(ASKING)
    agent = home.count().handshake()
    agent.says(call(1, "post", key="k"))
    home.pending()
    before = left(home, agent)
    if approved:
        home.decide(before["id"])
    assert home.ask("status")["pending"] == (0 if approved else 1)
    kill_daemon(home)
    (after,) = home.pending()
    assert (after["id"], after["state"]) == (before["id"], "approved" if approved else "pending")
    assert home.reached() == []
    again = home.count().handshake()
    again.says(call(1, "post", key="k"))
    if not approved:
        until(lambda: home.pending()[0]["waiting"], "the retry at the same ticket")
        home.decide(before["id"])
    assert text(again.answer(1)) == "k"
    assert home.reached() == ["k"]
    again.says(call(2, "post", key="k"))
    (new,) = home.pending()
    assert new["call_id"] != before["call_id"]
    home.verify()


@pytest.mark.parametrize("way", WAYS)
def test_killed_while_the_approved_call_runs(homes: Callable[..., Home], way: str) -> None:
    home = homes(ASKING)
    agent = home.count(way=way).handshake()
    agent.says(call(1, "hold", key="h"))
    (before,) = home.pending()
    home.decide(before["id"])
    until(lambda: home.reached() == ["h"], "the call")
    kill_daemon(home)
    assert agent.answer(1)["error"]["data"]["reason"] == "outcome_unknown"
    assert home.ask("pending") == []
    agent.says(call(2, "hold", key="h"))
    (new,) = home.pending()
    assert new["call_id"] != before["call_id"]
    assert new["state"] == "pending"
    assert home.reached() == ["h"]
    home.ask("flush_audit")
    assert [record["decision"] for record in home.records("approval") if record["ticket"] == before["id"]].count(
        "approved"
    ) == 1
    home.verify()


def test_killed_while_an_answer_waits_for_whoever_comes_back(homes: Callable[..., Home]) -> None:
    home = homes(ASKING)
    agent = home.count().handshake()
    agent.says(call(1, "post", key="k", ms=300))
    (ticket,) = home.pending()
    home.decide(ticket["id"])
    until(lambda: home.reached() == ["k"], "the call")
    agent.says(note("notifications/cancelled", requestId=1))
    until(lambda: home.intents().get("k"), "its outcome")
    kill_daemon(home)
    again = home.count().handshake()
    answer = again.asks(call(1, "post", key="k", ms=300))
    assert (text(answer), meta(answer)) == ("k", {"aegis/replayed": True})
    assert home.reached() == ["k"]
    again.says(call(2, "post", key="k", ms=300))  # it has been delivered: the next one asks anew
    assert home.pending()[0]["call_id"] != ticket["call_id"]
    assert home.reached() == ["k"]
    home.verify()


def test_killed_while_a_grant_holds_it_holds_for_what_is_left_of_it(homes: Callable[..., Home]) -> None:
    home = homes(ASKING)
    agent = home.count().handshake()
    agent.says(call(1, "post", key="k"))
    (ticket,) = home.pending()
    done = home.aegis("approve", ticket["id"], "--yes", "--for", "10m", "--uses", "2", env=home.approver())
    assert done.returncode == 0, done.stderr
    assert text(agent.answer(1)) == "k"
    assert text(agent.asks(call(2, "post", key="k"))) == "k"
    (grant,) = home.ask("grants")
    assert grant["uses_left"] == 1
    kill_daemon(home)
    (same,) = home.ask("grants")
    assert (same["id"], same["uses_left"]) == (grant["id"], 1)
    assert text(agent.asks(call(3, "post", key="k"))) == "k"
    agent.says(call(4, "post", key="k"))
    home.pending()
    assert home.reached() == ["k"] * 3
    assert [record["approval"] for record in home.records("intent") if record["method"] == "tools/call"] == [
        "approved", "granted", "granted",
    ]  # fmt: skip
    home.verify()


@pytest.mark.parametrize(
    "rounds",
    [
        pytest.param(3, marks=pytest.mark.few),
        pytest.param(15, marks=pytest.mark.full),
        pytest.param(40, marks=pytest.mark.matrix),
    ],
)
def test_killed_at_any_moment_between_approval_and_answer_nothing_runs_twice(
    homes: Callable[..., Home], rounds: int
) -> None:
    home = homes(ASKING)
    home.torn = True
    for at in range(rounds):
        agent = home.count(way=random.choice(WAYS)).handshake()
        agent.says(call(1, "post", key=f"k{at}"))
        (ticket,) = home.pending()
        decided = threading.Thread(target=_quietly, args=(home.decide, ticket["id"]))
        decided.start()
        time.sleep(random.uniform(0, 0.02))
        kill_daemon(home)
        decided.join()
        agent.answer(1)
        runs = home.reached().count(f"k{at}")
        assert runs <= 1
        answer = agent.answers[1]
        assert "result" not in answer or runs == 1
        if "error" in answer and answer["error"]["data"]["reason"] in ("not_executed", "no_daemon"):
            assert runs == 0
        # What was decided and has not run runs on the retry; what has run asks anew.
        agent.says(call(2, "post", key=f"k{at}"))

        def settled(agent: Agent = agent) -> Any:
            waiting = home.ask("pending")
            return 2 in agent.answers or (waiting and waiting[0]["waiting"])

        until(settled, "an answer or a ticket")
        if 2 not in agent.answers:
            home.decide(home.pending()[0]["id"], runs == 0)
        agent.answer(2)
        assert home.reached().count(f"k{at}") == 1
        agent.close()
        until(lambda: not home.ask("pending"), "an empty desk")
    home.verify()


def _quietly(function: Callable[..., Any], *args: Any) -> None:
    try:
        function(*args)
    except Exception:  # the daemon is killed meanwhile
        pass


# --- one decision -------------------------------------------------------------------------------------------------------


@contextmanager
def webhook() -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
    """A receiver of webhooks: its address, and the last body for each ticket."""
    heard: dict[str, dict[str, Any]] = {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            heard[body["id"]] = body
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/", heard
        finally:
            server.shutdown()


class Racers:
    """Ways to decide, each of which says whether the decision was its own."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.key = (home.dir / "approver.key").read_text().strip()
        self.place = str(home.ask("status")["http"]).removeprefix("http://")
        self.links: dict[str, dict[str, Any]] = {}
        self.web = threading.local()

    def cli(self, id: str, approve: bool) -> bool:
        try:
            self.home.ask("decide", id=id, approve=approve, key=self.key)
        except Refused as refused:
            if refused.code not in ("conflict", "not_found"):
                raise
            return False
        return True

    def api(self, id: str, approve: bool) -> bool:
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        action = "approve" if approve else "reject"
        return self._post(f"/api/v1/approvals/{id}/{action}", {}, headers)

    def link(self, id: str, approve: bool) -> bool:
        body = self.links[id]
        parts = urlsplit(body["approve_url" if approve else "reject_url"])
        given = {name: values[0] for name, values in parse_qs(parts.query).items()}
        return self._post(parts.path, given, {"Content-Type": "application/json"})

    def _post(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> bool:
        if not hasattr(self.web, "connection"):
            self.web.connection = http.client.HTTPConnection(self.place, timeout=BOUND_S)
        self.web.connection.request("POST", path, json.dumps(body), headers)
        answer = self.web.connection.getresponse()
        said = answer.read()
        assert answer.status in (200, 404, 410), (answer.status, said)
        return bool(answer.status == 200)

    def race(self, ids: dict[str, str]) -> dict[str, list[tuple[str, bool]]]:
        """Everybody decides each of the tickets (by call id) at once; who says to have done it."""
        ways = [(name, approve) for name in ("cli", "api", "link") for approve in (True, False)]
        line = threading.Barrier(len(ways))
        won: dict[str, list[tuple[str, bool]]] = {id: [] for id in ids}
        faults: list[BaseException] = []

        def run(name: str, approve: bool) -> None:
            decide = getattr(self, name)
            try:
                for call_id, id in ids.items():
                    line.wait(BOUND_S)
                    if decide(id, approve):
                        won[call_id].append((name, approve))
            except threading.BrokenBarrierError:
                pass
            except BaseException as error:
                faults.append(error)
                line.abort()
            finally:
                if hasattr(self.web, "connection"):
                    self.web.connection.close()

        threads = [threading.Thread(target=run, args=way) for way in ways]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if faults:
            raise faults[0]
        return won


@pytest.mark.parametrize(
    "count", [pytest.param(200, marks=pytest.mark.few), pytest.param(1000, marks=pytest.mark.full)]
)
def test_of_all_who_race_one_decides_each_ticket(homes: Callable[..., Home], count: int) -> None:
    with webhook() as (address, heard):
        home = homes(
            ASKING
            + f"approval: {{hold: 0s, max_pending_per_agent: {2 * count}, generic: {{webhook_url: {address!r}}}}}\n"
        )
        agent = home.count().handshake()
        racers = Racers(home)
        racers.links = heard
        keys = [f"k{n}" for n in range(count)]
        tickets: dict[str, str] = {}
        won: dict[str, list[tuple[str, bool]]] = {}
        for first in range(0, count, 200):  # a channel takes 256 messages at once, and no more
            some = keys[first : first + 200]
            agent.says(*(call(key, "post", key=key) for key in some))
            for key in some:
                assert meta(agent.answer(key))["aegis/pending"]["by"] == "aegis"
            new = {ticket["call_id"]: json.loads(ticket["arguments"])["key"] for ticket in home.pending(len(some))}
            ids = {ticket["call_id"]: ticket["id"] for ticket in home.pending(len(some))}
            until(partial(set(ids.values()).issubset, heard), "every link")
            tickets |= new
            won |= racers.race(ids)
            heard.clear()
            # What was approved runs, once; what was rejected is gone, and would ask anew.
            agent.says(*(call(f"{key}-again", "post", key=key) for id, key in new.items() if won[id] and won[id][0][1]))
            for id, key in new.items():
                if won[id] and won[id][0][1]:
                    assert text(agent.answer(f"{key}-again")) == key
        assert {len(ways) for ways in won.values()} == {1}
        assert len({ways[0] for ways in won.values()}) > 1, "somebody always won: this was no race"
        approved = {tickets[id] for id, ways in won.items() if ways[0][1]}
        decisions: dict[str, list[str]] = {}
        for record in home.records("approval"):
            if record["decision"] in ("approved", "rejected"):
                decisions.setdefault(record["call"], []).append(record["decision"])
        assert decisions == {id: ["approved" if ways[0][1] else "rejected"] for id, ways in won.items()}
        assert sorted(home.reached()) == sorted(approved)


def test_two_commands_at_once_take_one_decision(homes: Callable[..., Home]) -> None:
    home = homes(ASKING)
    agent = home.count().handshake()
    for at in range(3):
        agent.says(call(at, "post", key=f"k{at}"))
        (ticket,) = home.pending()
        both = [
            subprocess.Popen(
                [AEGIS, word, ticket["id"], "--yes"], env=home.approver(), stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
            for word in ("approve", "reject")
        ]  # fmt: skip
        assert sorted(process.wait(BOUND_S) for process in both) == [0, 1]
        answer = agent.answer(at)
        assert ("result" in answer) == (both[0].returncode == 0)
        assert (f"k{at}" in home.reached()) == (both[0].returncode == 0)


# --- a webhook that hangs -----------------------------------------------------------------------------------------------


def test_a_webhook_that_never_answers_delays_no_decision(homes: Callable[..., Home]) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as deaf:
        place = f"http://127.0.0.1:{deaf.getsockname()[1]}/"
        homely = {
            "without": homes(ASKING),
            "hung": homes(ASKING + f"approval: {{generic: {{webhook_url: {place!r}}}}}\n"),
        }
        agents = {name: home.count().handshake() for name, home in homely.items()}
        took: dict[str, list[float]] = {name: [] for name in homely}
        for at in range(15):
            for name, home in homely.items():  # side by side, so that both meet the same machine
                began = time.monotonic()
                agents[name].says(call(at, "post", key=f"k{at}"))
                (ticket,) = home.pending()
                home.decide(ticket["id"])
                agents[name].answer(at)
                took[name].append(time.monotonic() - began)
        deaf.settimeout(BOUND_S)
        deaf.accept()[0].close()  # it was called, and hung
        # A webhook is given ten seconds, three times; a decision takes some milliseconds.
        assert statistics.median(took["hung"]) < 20 * statistics.median(took["without"])


def test_a_new_daemon_tells_of_what_waits_where_nobody_took_the_message_and_nowhere_twice(
    homes: Callable[..., Home],
) -> None:
    with webhook() as (address, heard), socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"http://127.0.0.1:{taken.getsockname()[1]}/"
        home = homes(ASKING + f"approval: {{generic: {{webhook_url: {place!r}}}}}\n")
        agent = home.count().handshake()
        agent.says(call(1, "post", key="k"))
        (ticket,) = home.pending()
        home.configure(ASKING + f"approval: {{generic: {{webhook_url: {address!r}}}}}\n")
        kill_daemon(home)
        until(lambda: ticket["id"] in heard, "the message")
        until(lambda: home.json("notify", "list")[0]["sent"] == 1, "it was taken")
        heard.clear()
        kill_daemon(home)
        until(lambda: home.pending(), "the daemon is there")
        agent.says(call(2, "post", key="other"))
        until(lambda: heard, "another message")
        assert ticket["id"] not in heard
        agent.close()


# --- a refusal becomes a rule -------------------------------------------------------------------------------------------

LISTED = """
# who may what
backends: {work: {}, other: {}}
agents:
  default:
    backends:
      work:
        allowed: true
        tool_denylist:
          - big   # large
          - "fl*"
        tool_allowlist: [work, big]
"""


@pytest.mark.parametrize("tool", ["big", "post"])
def test_a_refused_call_passes_once_a_person_has_allowed_it_and_nothing_else_does(
    homes: Callable[..., Home], tool: str
) -> None:
    home = homes(LISTED)
    agent = home.count().handshake()
    refused = agent.asks(call(1, tool, key="k", size=3))["error"]["data"]["call_id"]
    row = home.json("allow", refused[:10], "--yes", env=home.approver())
    assert row["reloaded"]
    assert "result" in agent.asks(call(2, tool, key="k", size=3))
    assert home.reached() == ["k"]
    for n, still in enumerate(("flood", "fail", "say", "post" if tool == "big" else "big"), 3):
        assert agent.asks(call(n, still, key="no", count=1))["error"]["data"]["stage"] == "acl"
    pattern = agent.asks(call(9, "flood", key="no", count=1))["error"]["data"]["call_id"]
    done = home.aegis("allow", pattern, "--yes", env=home.approver())
    assert done.returncode == 1
    assert "`fl*`" in done.stderr
    assert home.reached() == ["k"]
    assert [record["action"] for record in home.records("admin") if record["action"] != "pin"] == ["reload"]
    home.verify()


def test_a_backend_that_was_not_listed_opens_for_the_one_call(homes: Callable[..., Home]) -> None:
    home = homes(LISTED)
    agent = home.count(backend="other")
    answer = agent.asks(call(1, "post", key="k"))
    row = home.json("allow", answer["error"]["data"]["call_id"], "--yes", env=home.approver())
    assert [change["path"] for change in row["changes"]] == ["agents.default.backends.other"]
    again = home.count(backend="other").handshake()
    assert text(again.asks(call(1, "post", key="k"))) == "k"
    assert [tool["name"] for tool in again.asks(request(2, "tools/list"))["result"]["tools"]] == ["post"]
    assert again.asks(call(3, "work", key="no"))["error"]["data"]["stage"] == "acl"
    assert home.reached() == ["k"]


# --- no self-approval ---------------------------------------------------------------------------------------------------

GUARDED = """
backends: {work: {}}
agents:
  default:
    backends:
      work: {allowed: true, approval_required: [post], tool_denylist: [wipe], rate_limits: {post: 1/day}}
"""
RAW = """
import json, socket, sys
line = socket.socket(socket.AF_UNIX)
line.connect(sys.argv[1])
line.sendall(json.dumps({"verb": sys.argv[2], "args": json.loads(sys.argv[3])}).encode() + b"\\n")
answer = json.loads(line.makefile().readline())
print(answer)
sys.exit(0 if answer["ok"] else 1)
"""
HTTP = """
import json, sys, urllib.error, urllib.request
ask = urllib.request.Request(sys.argv[1], sys.argv[2].encode(), {"Content-Type": sys.argv[3]}, method="POST")
try:
    answer = urllib.request.urlopen(ask)
except urllib.error.HTTPError as error:
    answer = error
print(answer.status, answer.headers.get("Set-Cookie"), answer.read()[:200])
sys.exit(0 if answer.status < 400 else 1)
"""


def test_a_governed_agents_shell_can_let_nothing_more_happen_by_any_command(homes: Callable[..., Home]) -> None:
    home = homes(GUARDED)
    agent = subprocess.Popen(
        [sys.executable, str(HERE / "agent_shell.py"), WRAP, "--backend", "work", "--", *home.counting()],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=home.env, text=True,
    )  # fmt: skip
    assert agent.stdin is not None
    assert agent.stdout is not None
    try:
        refused = json.loads(agent.stdout.readline())
        (ticket,) = home.pending()
        id = ticket["id"]
        sent, heard = agent.stdin, agent.stdout

        def shell(*words: str) -> list[Any]:
            sent.write(json.dumps(words) + "\n")
            sent.flush()
            found: list[Any] = json.loads(heard.readline())
            return found

        address = str(home.ask("status")["http"])
        address = address if address.startswith("http") else f"http://{address}"
        manage = str(home.dir / "manage.sock")
        quota = ["--backend", "work", "--tool", "post"]
        # A person stands behind the other half of each: what she did must not be undone either.
        person = home.aegis("pause", "--note", "enough")
        assert person.returncode == 0, person.stderr
        before = _state(home)
        forbidden: list[list[str]] = [
            [AEGIS, "approve", id, "--yes"],
            [AEGIS, "approve", ticket["call_id"], "--yes", "--json"],
            [AEGIS, "approve", id, "--yes", "--for", "1h", "--any-arguments"],
            [AEGIS, "reject", id, "--yes"],
            [AEGIS, "pause", "default"],
            [AEGIS, "resume"],
            [AEGIS, "grants", "revoke", "--all"],
            [AEGIS, "limits", "grant", "--agent", "default", *quota],
            [AEGIS, "allow", refused, "--yes"],
            [AEGIS, "allow", refused, "--dry-run"],
            [AEGIS, "ui", "--no-open", "--json"],
            [AEGIS, "ui", "--logout"],
            ["sh", "-c", f"sh -c '{AEGIS} approve {id} --yes'; exit $?"],
            ["setsid", "--wait", AEGIS, "approve", id, "--yes"],
            ["nohup", AEGIS, "approve", id, "--yes"],
            ["env", "-i", f"AEGIS_HOME={home.dir}", AEGIS, "approve", id, "--yes"],
            ["env", "AEGIS_APPROVER_KEY=/dev/null", AEGIS, "approve", id, "--yes"],
            ["env", f"AEGIS_APPROVER_KEY={home.dir}/aegis.yaml", AEGIS, "approve", id, "--yes"],
            *(
                [sys.executable, "-c", RAW, manage, verb, json.dumps(args)]
                for verb, args in (
                    ("decide", {"id": id, "approve": True}),
                    ("decide", {"id": id, "approve": True, "key": "x" * 43}),
                    ("decide", {"id": id, "approve": True, "grant": {"seconds": 60.0}}),
                    ("resume", {}),
                    ("pause", {"agent": "default"}),
                    ("revoke_grant", {"all": True}),
                    ("grant_quota", {"agent": "default", "backend": "work", "tool": "post"}),
                    ("explain_refusal", {"id": refused}),
                    ("rotate_audit_key", {}),
                    ("ui_login", {}),
                    ("ui_login", {"end": True}),
                )
            ),
            *(
                [sys.executable, "-c", HTTP, f"{address}{path}", body, kind]
                for path, body, kind in (
                    (f"/api/v1/approvals/{id}/approve", "{}", "application/json"),
                    (f"/api/v1/approvals/{id}/reject", "{}", "application/json"),
                    ("/api/v1/config/reload", "", "application/json"),
                    ("/ui/login", "token=x", "application/x-www-form-urlencoded"),
                    (f"/ui/approvals/{id}", "decision=approve", "application/x-www-form-urlencoded"),
                    (f"/callback/approval?id={id}&action=approve&token=x", "", "application/x-www-form-urlencoded"),
                    (
                        "/callback/approval",
                        json.dumps({"id": id, "action": "approve", "token": "x" * 98}),
                        "application/json",
                    ),
                )
            ),
        ]
        for words in forbidden:
            status, out, err = shell(*words)
            assert status != 0, (words, out, err)
            assert "http" not in out or "/ui/login" not in out, out
        assert _state(home) == before
        assert home.reached() == []
        # The same commands, from a terminal that no agent has anything to do with.
        assert home.aegis("resume").returncode == 0
        assert home.aegis("allow", refused, "--dry-run").returncode == 0
        assert home.aegis("approve", id, "--yes").returncode == 0
        until(lambda: home.reached() == ["k"], "the call")
    finally:
        agent.stdin.close()
        agent.wait(BOUND_S)
        agent.stdout.close()


def _state(home: Home) -> Any:
    """All that a person has decided, and the rules."""
    return (
        [(row["id"], row["state"]) for row in home.ask("pending")],
        home.ask("grants"),
        home.ask("status")["paused"],
        [(row["tool"], row.get("extra", 0)) for row in home.ask("limits")],
        Path(home.dir / "aegis.yaml").read_text(),
        sorted(
            name for name in os.listdir(home.dir) if not name.lstrip(".").startswith("audit.")
        ),  # signed at any time
    )
