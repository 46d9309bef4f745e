from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from aegis_daemon.config.load import Fault
from aegis_daemon.manage import api, server
from aegis_daemon.manage.server import Bounds, ManageServer

from .memory import MemoryGovernor, ticket

pytestmark = pytest.mark.anyio
QUICK = Bounds(request=2048, read_s=0.3, write_s=0.3, answer_s=0.3, close_s=0.3, peers=4)


@pytest.fixture(params=[pytest.param("asyncio", marks=pytest.mark.matrix), "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


@pytest.fixture
def path() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="aegis-") as directory:
        yield f"{directory}/manage.sock"


@pytest.fixture
def governor() -> MemoryGovernor:
    return MemoryGovernor()


@asynccontextmanager
async def serving(governor: MemoryGovernor, path: str, bounds: Bounds | None = None) -> AsyncIterator[ManageServer]:
    served = ManageServer(governor, path, bounds)
    await served.start()
    try:
        yield served
    finally:
        await served.close()


async def hang_up(writer: asyncio.StreamWriter) -> None:
    """A loop that ends while a handle is still closing fails now and then (uvloop, EBUSY)."""
    writer.close()
    try:
        await writer.wait_closed()
    except ConnectionError:
        pass


async def talk(path: str, *lines: bytes, bound: float = 5) -> list[dict[str, Any]]:
    """Sends the lines, each after the answer to the one before; the answers until the daemon hangs up or all are in."""
    reader, writer = await asyncio.open_unix_connection(path, limit=1 << 20)
    answers = []
    try:
        async with asyncio.timeout(bound):
            for line in lines:
                writer.write(line)
                said = await reader.readline()
                if not said:
                    break
                answers.append(json.loads(said))
    except ConnectionError:
        pass
    finally:
        await hang_up(writer)
    return answers


def request(verb: str, **args: Any) -> bytes:
    return json.dumps({"verb": verb, "args": args}).encode() + b"\n"


async def one(path: str, verb: str, **args: Any) -> dict[str, Any]:
    (answer,) = await talk(path, request(verb, **args))
    return answer


async def test_the_socket_opens_for_its_owner_alone_from_the_instant_it_exists(
    governor: MemoryGovernor, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = socket.socket.listen

    def listen(self: socket.socket, *args: int) -> None:
        seen.append(stat.S_IMODE(os.stat(path).st_mode))
        real(self, *args)

    monkeypatch.setattr(server.socket, "socket", type("Watched", (socket.socket,), {"listen": listen}))
    before = os.umask(0)  # the worst that a daemon can inherit
    try:
        async with serving(governor, path):
            assert os.umask(0) == 0
    finally:
        os.umask(before)
    assert set(seen) == {0o600}


async def test_a_dead_daemons_socket_is_replaced_and_a_file_is_not(governor: MemoryGovernor, path: str) -> None:
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(path)
    dead.close()
    async with serving(governor, path):
        assert (await one(path, "status"))["data"]["version"] == "9.9.9"
    assert not os.path.exists(path)  # noqa: ASYNC240
    precious = os.open(path, os.O_CREAT)
    os.close(precious)
    with pytest.raises(FileExistsError):
        await ManageServer(governor, path).start()
    assert stat.S_ISREG(os.stat(path).st_mode)


async def test_closing_leaves_the_socket_of_the_next_daemon_alone(governor: MemoryGovernor, path: str) -> None:
    first = ManageServer(governor, path)
    await first.start()
    async with serving(governor, path):
        await first.close()
        assert (await one(path, "status"))["ok"]


async def test_one_connection_takes_several_requests(governor: MemoryGovernor, path: str) -> None:
    governor.tickets.append(ticket())
    async with serving(governor, path):
        status, pending, shown = await talk(path, request("status"), request("pending"), request("config_show"))
    assert status["data"]["pid"] == os.getpid()
    assert pending["data"][0]["id"] == "K7Q2"
    assert shown["data"]["server"] == {"api_token": "********"}


async def test_every_verb_answers(governor: MemoryGovernor, path: str) -> None:
    governor.slow.set()
    governor.tickets.append(ticket())
    args: dict[str, dict[str, Any]] = {
        "decide": {"id": "K7Q2", "approve": True}, "cancel_queued": {"call_id": "none"}, "stop": {"restart": True},
        "revoke_grant": {"all": True}, "grant_quota": {"backend": "github", "tool": "post"},
        "pin_diff": {"name": "none"}, "trust": {"name": "none", "expect": "ab"},
        "explain_refusal": {"id": "none"}, "set_mode": {"mode": "observe"}, "exports_test": {"name": "none"},
        "probe_backend": {"name": "none"},
        "purge_audit": {"before": "2026-01-31"}, "guard": {"action": "wire", "done": "gh of amy"},
    }  # fmt: skip
    async with serving(governor, path):
        for verb in api.HANDLERS:
            if verb.startswith("watch_"):
                continue
            answer = await one(path, verb, **args.get(verb, {}))
            assert answer["ok"] or answer["error"]["code"] == "not_found", (verb, answer)
    assert governor.stopped is True


@pytest.mark.parametrize(
    ("line", "code", "word"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "bad_request", "no http"),
        (b'POST /x HTTP/1.1\r\n\r\n{"verb":"stop","args":{}}\n', "bad_request", "no http"),
        (b"\x16\x03\x01\x02\x00\x01\n", "bad_request", "no http"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "bad_request", "no http"),
        (b"[1]\n", "bad_request", "one json object"),
        (b"\n", "bad_request", "one json object"),
        (b"{\n", "bad_request", "cannot be read"),
        (b'{"verb":"status"} {"verb":"stop"}\n', "bad_request", "cannot be read"),
        (b'{"verb":"status","args":[]}\n', "bad_request", "cannot be read"),
        (b'{"verb":"status","uid":0}\n', "bad_request", "unknown field `uid`"),
        (b'{"verb":7}\n', "bad_request", "cannot be read"),
        (b'{"verb":"\xff"}\n', "bad_request", "cannot be read"),
        (b'{"verb":"status","args":' + b'{"a":' * 300 + b"1" + b"}" * 301 + b"\n", "bad_request", ""),
        (b'{"verb":"rm"}\n', "unknown_verb", "status, pending"),
        (b'{"verb":"__class__"}\n', "unknown_verb", "`__class__`"),
        (b'{"verb":"status","args":{"uid":0}}\n', "bad_request", "`uid`: extra"),
        (b'{"verb":"decide","args":{"id":"K7Q2"}}\n', "bad_request", "`approve`"),
        (b'{"verb":"decide","args":{"id":"K7Q2","approve":"yes"}}\n', "bad_request", "`approve`"),
        (b'{"verb":"decide","args":{"id":"","approve":true}}\n', "bad_request", "`id`"),
        (b'{"verb":"decide","args":{"id":"K7Q2","approve":true,"by":"root"}}\n', "bad_request", "`by`"),
        (b"{" + b" " * 5000 + b"\n", "too_large", "2048"),
        (b"x" * 5000, "too_large", "2048"),
    ],
)
async def test_what_is_no_request_is_refused_and_the_peer_dropped(
    governor: MemoryGovernor, path: str, line: bytes, code: str, word: str
) -> None:
    governor.tickets.append(ticket())
    async with serving(governor, path, QUICK):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(line)
        async with asyncio.timeout(5):
            said = json.loads(await reader.readline())
            try:
                rest = await reader.read()
            except ConnectionError:
                rest = b""
        await hang_up(writer)
        assert rest == b""
        assert said["error"]["code"] == code
        assert word in (said["error"]["message"] + said["error"]["hint"]).lower()
        assert not governor.decided
        assert governor.stopped is None
        assert (await one(path, "status"))["ok"]


async def test_an_answer_never_repeats_a_key_that_came_in_the_wrong_place(governor: MemoryGovernor, path: str) -> None:
    async with serving(governor, path):
        (answer,) = await talk(path, request("decide", id="K7Q2", approve=1, key=["hunter2hunter2"]))
    assert "hunter2" not in json.dumps(answer)


async def test_a_silent_peer_and_one_that_trickles_are_dropped(governor: MemoryGovernor, path: str) -> None:
    async with serving(governor, path, QUICK):
        silent, silent_out = await asyncio.open_unix_connection(path)
        trickle, trickle_out = await asyncio.open_unix_connection(path)

        async def drip() -> None:
            try:
                while not trickle_out.is_closing():  # uvloop fails at a write behind the peer's reset
                    trickle_out.write(b"{")
                    await trickle_out.drain()
                    await asyncio.sleep(0.05)
            except ConnectionError:
                pass

        dripping = asyncio.create_task(drip())
        async with asyncio.timeout(5):
            for reader in (silent, trickle):
                try:
                    assert await reader.read() == b""
                except ConnectionError:
                    pass
            await dripping
        for out in (silent_out, trickle_out):
            await hang_up(out)


async def test_too_many_peers_are_told_so_and_room_returns(governor: MemoryGovernor, path: str) -> None:
    async with serving(governor, path, QUICK):
        held = [await asyncio.open_unix_connection(path) for _ in range(4)]
        assert (await one(path, "status"))["error"]["code"] == "busy"
        for _, writer in held:
            await hang_up(writer)
        async with asyncio.timeout(5):
            while not (await one(path, "status"))["ok"]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_a_handler_that_hangs_is_given_up_and_one_that_fails_tells_nothing(
    governor: MemoryGovernor, path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(governor, "queue", broken)
    async with serving(governor, path, QUICK):
        slow, failed, alive = await talk(path, request("flush_audit"), request("queue"), request("status"))
    assert slow["error"]["code"] == "timeout"
    assert failed["error"]["code"] == "internal"
    assert "secret" not in json.dumps(failed)
    assert "secret detail" in caplog.text
    assert alive["ok"]


async def test_config_faults_come_back_as_rows(governor: MemoryGovernor, path: str) -> None:
    governor.faults = [Fault("/c/aegis.yaml", 3, 5, "agents", "unknown key `x`", "did you mean `y`?")]
    async with serving(governor, path):
        answer = await one(path, "reload")
    assert answer["error"]["code"] == "config_faults"
    assert answer["error"]["faults"][0]["line"] == 3


HANDS_ON = """
import socket, sys
made = socket.socket(socket.AF_UNIX)
made.connect(sys.argv[1])
made.sendall(b'{"verb":"status"}\\n')  # it is known while it lives
other = socket.socket(fileno=int(sys.argv[2]))
socket.send_fds(other, [b"x"], [made.fileno()])
other.recv(1)
"""


AS_NOBODY = """
import os, socket, sys
os.setuid(65534)
made = socket.socket(socket.AF_UNIX)
made.connect(sys.argv[1])
print(made.recv(9999).decode())
"""


# --- who asks ---------------------------------------------------------------------------------------------------------


async def test_a_decision_is_judged_by_the_pid_the_kernel_tells_and_recorded_under_its_user(
    governor: MemoryGovernor, path: str
) -> None:
    governor.tickets.append(ticket())
    async with serving(governor, path):
        answer = await one(path, "decide", id="K7Q2", approve=True, note="fine")
    assert answer["data"]["state"] == "approved"
    assert governor.asked == [(os.getpid(), None)]
    ((_, approve, by, via, note),) = governor.decided
    assert (approve, via, note) == (True, "cli", "fine")
    assert by == api.Caller(os.geteuid(), None, api.ALL, lambda: True).name


async def test_whoever_may_not_decide_is_told_why_unless_a_key_says_otherwise(
    governor: MemoryGovernor, path: str
) -> None:
    governor.tickets.append(ticket())
    governor.refusal = "the request comes from `claude` (pid 7)"
    async with serving(governor, path):
        refused = await one(path, "decide", id="K7Q2", approve=True)
        wrong = await one(path, "decide", id="K7Q2", approve=True, key="guess")
        assert not governor.decided
        right = await one(path, "decide", id="K7Q2", approve=True, key="the right key")
    assert refused["error"]["code"] == wrong["error"]["code"] == "forbidden"
    assert "claude" in refused["error"]["message"]
    assert "AEGIS_APPROVER_KEY" in refused["error"]["hint"]
    assert right["ok"]


@pytest.mark.parametrize(("verb", "args"), [("stop", {}), ("reload", {}), ("guard", {"action": "daemon"})])
async def test_an_agents_shell_neither_ends_the_daemon_nor_has_its_own_rules_hold(
    governor: MemoryGovernor, path: str, verb: str, args: dict[str, Any]
) -> None:
    governor.refusal = "the request comes from `claude` (pid 7)"
    async with serving(governor, path):
        refused = await one(path, verb, **args)
        assert (refused["error"]["code"], governor.stopped) == ("forbidden", None)
        assert (await one(path, verb, **args, key="the right key"))["ok"]


async def test_a_decision_on_a_connection_whose_maker_is_gone_is_refused(governor: MemoryGovernor, path: str) -> None:
    # An agent's child connects, hands the connection to somebody unsuspected and exits.
    governor.tickets.append(ticket())
    async with serving(governor, path):
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-c", HANDS_ON, path, str(theirs.fileno())]
        child = subprocess.Popen(command, pass_fds=[theirs.fileno()])  # noqa: ASYNC220
        loop = asyncio.get_running_loop()
        _, (fd,), _, _ = await loop.run_in_executor(None, socket.recv_fds, ours, 1, 1)
        reader, writer = await asyncio.open_unix_connection(sock=socket.socket(fileno=fd))
        async with asyncio.timeout(5):
            assert json.loads(await reader.readline())["ok"]
            ours.send(b"x")
            await loop.run_in_executor(None, child.wait, 5)
            writer.write(request("decide", id="K7Q2", approve=True))
            answer = json.loads(await reader.readline())
        await hang_up(writer)
        ours.close()
        theirs.close()
    assert answer["error"]["code"] == "forbidden"
    assert not governor.decided


async def test_without_pidfds_a_gone_process_is_told_by_its_start_time(
    governor: MemoryGovernor, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_SO_PEERPIDFD", 9999)  # as a kernel before 6.5 answers
    governor.tickets.append(ticket())
    async with serving(governor, path):
        assert (await one(path, "decide", id="K7Q2", approve=True))["ok"]
    governor.decided.clear()
    await test_a_decision_on_a_connection_whose_maker_is_gone_is_refused(governor, path)


def test_only_our_own_user_and_root_may_ask_anything() -> None:
    assert server.permits(os.geteuid()) == server.permits(0) == api.ALL
    assert server.permits(os.geteuid() + 54321) == frozenset()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
async def test_another_user_is_turned_away_before_saying_anything(governor: MemoryGovernor, path: str) -> None:
    async with serving(governor, path):
        os.chmod(path, 0o666)
        os.chmod(os.path.dirname(path), 0o755)
        other = await asyncio.create_subprocess_exec(
            sys.executable, "-S", "-c", AS_NOBODY, path, stdout=asyncio.subprocess.PIPE
        )
        said = json.loads((await other.communicate())[0])
    assert said["error"]["code"] == "forbidden"


def test_a_verb_that_writes_needs_the_permit_to_write(governor: MemoryGovernor) -> None:
    reader = api.Caller(1, 1, frozenset({api.Permit.READ}), lambda: True)
    for verb, (_, _, permit) in api.HANDLERS.items():
        args = {
            "decide": {"id": "K7Q2", "approve": True}, "cancel_queued": {"call_id": "x"}, "pin_diff": {"name": "x"},
        }.get(verb, {})  # fmt: skip
        line = request(verb, **args).strip()
        if permit is api.Permit.READ:
            begun = api.call(governor, reader, line)
            if asyncio.iscoroutine(begun):
                begun.close()
        else:
            with pytest.raises(api.Forbidden):
                api.call(governor, reader, line)


# --- streams ----------------------------------------------------------------------------------------------------------


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_a_watcher_hears_what_waits_and_what_comes(governor: MemoryGovernor, path: str) -> None:
    governor.tickets.append(ticket("AAAA"))
    async with serving(governor, path):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(request("watch_pending"))
        async with asyncio.timeout(5):
            first = json.loads(await reader.readline())["event"]
            governor.tell("opened", ticket("BBBB"))
            second = json.loads(await reader.readline())["event"]
        await hang_up(writer)
        await until(lambda: not governor.watchers)
    assert (first["ticket"]["id"], second["ticket"]["id"]) == ("AAAA", "BBBB")


async def test_a_watcher_outlives_the_bound_for_silence(governor: MemoryGovernor, path: str) -> None:
    async with serving(governor, path, QUICK):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(request("watch_pending"))
        await asyncio.sleep(QUICK.read_s * 2)
        governor.tell("opened", ticket("BBBB"))
        async with asyncio.timeout(5):
            assert json.loads(await reader.readline())["event"]["ticket"]["id"] == "BBBB"
        await hang_up(writer)


async def test_a_watcher_that_does_not_read_is_dropped_and_holds_up_nobody(governor: MemoryGovernor, path: str) -> None:
    async with serving(governor, path, QUICK):
        made = socket.socket(socket.AF_UNIX)
        made.connect(path)
        made.sendall(request("watch_pending"))
        await until(lambda: governor.watchers)
        large = ticket(arguments='{"a":"' + "x" * 100_000 + '"}')
        for _ in range(100):
            governor.tell("opened", large)
        assert (await one(path, "status"))["ok"]
        await until(lambda: not governor.watchers)
        made.close()


async def test_a_peer_that_never_reads_its_answer_is_dropped(governor: MemoryGovernor, path: str) -> None:
    governor.tickets = [ticket(arguments='{"a":"' + "x" * 1_000_000 + '"}') for _ in range(5)]
    async with serving(governor, path, QUICK) as served:
        made = socket.socket(socket.AF_UNIX)
        made.connect(path)
        made.sendall(request("pending"))
        await until(lambda: served._peers)
        await until(lambda: not served._peers)
        made.close()


async def test_closing_ends_streams_and_lets_an_answer_out(governor: MemoryGovernor, path: str) -> None:
    async with serving(governor, path) as served:
        watching, watching_out = await asyncio.open_unix_connection(path)
        watching_out.write(request("watch_pending"))
        asking, asking_out = await asyncio.open_unix_connection(path)
        asking_out.write(request("flush_audit"))
        await until(lambda: governor.watchers and any(served._peers.values()))
        closing = asyncio.create_task(served.close())
        await until(lambda: not governor.watchers)
        governor.slow.set()
        async with asyncio.timeout(5):
            assert json.loads(await asking.readline())["data"] == {"seq": 12}
            await closing
            try:
                assert await watching.read() == b""
            except ConnectionError:
                pass
        await hang_up(watching_out)
        await hang_up(asking_out)


async def test_a_handler_may_close_the_server_that_runs_it(governor: MemoryGovernor, path: str) -> None:
    async with serving(governor, path) as served:

        async def stop(restart: bool) -> None:
            await served.close()

        governor.stop = stop  # type: ignore[method-assign]
        assert (await one(path, "stop"))["data"]["restart"] is False


async def test_a_handler_error_in_a_stream_is_told(
    governor: MemoryGovernor, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken() -> AsyncIterator[Any]:
        raise RuntimeError("boom")
        yield

    governor.watch_pending = broken  # type: ignore[method-assign, assignment]
    async with serving(governor, path):
        assert (await one(path, "watch_pending"))["error"]["code"] == "internal"
