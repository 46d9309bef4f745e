"""A full disk, a client that never reads, frames beyond every size, and how a wrapped command ends."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .conftest import OPEN
from .house import BOUND_S, WAYS, WRAP, Agent, Home, call, note, request, tell_of, until

MB = 1 << 20
LATER_WAY = pytest.mark.parametrize("way", [pytest.param("relay", marks=pytest.mark.full), "handover"])
TWO = """
backends: {work: {}}
agents:
  ann: {backends: {work: {allowed: true}}}
  bob: {backends: {work: {allowed: true}}}
"""


@pytest.fixture(scope="module")
def running() -> Iterator[Home]:
    made = Home(OPEN).launch()
    yield made
    made.close()


@pytest.fixture
def home(running: Home, tmp_path: Path) -> Home:
    """One daemon for all of these; what reaches servers is noted for each test by itself."""
    return running.begins(tmp_path / "server.log")


def resident(pid: int) -> int:
    """Bytes in memory."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


# --- the disk ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(megabytes: int) -> Iterator[Path]:
    """A file system of its own."""
    place = Path(tempfile.mkdtemp(prefix="ad", dir="/tmp"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=700", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
        place.rmdir()


@pytest.mark.full
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system, which is root's")
@pytest.mark.parametrize("durability", ["full", "process"])
def test_a_full_disk_denies_every_call_and_recovers_by_itself(durability: str) -> None:
    with small_disk(40) as place, tempfile.TemporaryDirectory(prefix="ae", dir="/tmp") as elsewhere:
        home = Home(OPEN + f"audit: {{durability: {durability}}}\n", directory=place)
        home.log = Path(elsewhere) / "server.log"
        try:
            home.start()
            agent = home.count().handshake()
            assert "result" in agent.asks(call("before", "work", key="before"))
            until(lambda: len(list((place / "journal").glob("*.jnl"))) >= 2, "the spare file")
            ballast = place / "ballast"
            with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            # What is made already still takes records; behind it is nothing.
            pad = "p" * 400_000
            good, refused = [], []
            for at in range(80):
                answer = agent.asks(call(at, "work", key=f"k{at}", pad=pad))
                if "result" in answer:
                    good.append(f"k{at}")
                    assert not refused, "it recovered without space"
                else:
                    refused.append(f"k{at}")
                    assert tell_of(answer) == (-32603, "audit_unavailable"), answer
                    assert "nothing was executed" in answer["error"]["message"]
                    if len(refused) == 10:
                        break
            assert len(refused) == 10
            assert home.reached() == ["before", *good]
            status = home.json("status", status=1)
            assert not status["audit"]["healthy"]
            assert status["audit"]["detail"]

            ballast.unlink()

            recovers(home, agent)
            until(lambda: home.ask("status")["audit"]["healthy"], "its health")
            assert agent.close() == 0
            reached = home.reached()
            assert home.intents().keys() == set(reached)
            assert not {*refused} & {*reached}
            home.verify()
            statuses = {
                json.loads(row["arguments"])["key"]: row["exec_status"]
                for row in home.json("audit", "search", "--limit", "1000", "--tool", "work")
            }
            assert {statuses[key] for key in good} == {"success"}
        finally:
            home.close()


def recovers(home: Home, agent: Agent) -> str:
    """Until a call gets through again; its key."""
    tried = []

    def works() -> bool:
        tried.append(f"after{len(tried)}")
        return "result" in agent.asks(call(tried[-1], "work", key=tried[-1]))

    until(works, "the recovery")
    return tried[-1]


def test_a_log_that_cannot_be_written_denies_every_call_and_nothing_reaches_the_server(home: Home) -> None:
    agent = home.count().handshake()
    assert "result" in agent.asks(call("before", "work", key="before"))
    pid = home.pid
    unlimited = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, unlimited[1]))  # every write to a file fails with EFBIG
    try:
        for at in range(20):
            answer = agent.asks(call(at, "work", key=f"k{at}"))
            assert tell_of(answer) == (-32603, "audit_unavailable")
            assert answer["error"]["data"]["retryable"]
        assert home.reached() == ["before"]
        assert not home.ask("status")["audit"]["healthy"]
        assert "result" in agent.asks(request("ping", "ping"))  # which nobody records
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)
    after = recovers(home, agent)
    assert agent.close() == 0
    assert home.reached() == ["before", after]
    until(lambda: home.ask("status")["audit"]["healthy"], "its health")
    assert home.intents() == {"before": "success", after: "success"}
    home.verify()


# --- who does not read ------------------------------------------------------------------------------------------------


@LATER_WAY
def test_a_client_that_never_reads_costs_bounded_memory_and_nobody_else(homes: Callable[..., Home], way: str) -> None:
    home = homes(TWO)
    other = home.count(agent="bob").handshake()
    for at in range(50):
        other.asks(call(f"warm{at}", "work", key=f"warm{at}"))
    pid = home.pid
    before = resident(pid)
    deaf = home.count(agent="ann", way=way, deaf=True)
    deaf.says(request("init", "initialize", protocolVersion="2025-11-25", capabilities={}, clientInfo={"name": "deaf"}))
    deaf.says(*(call(at, "big", key=f"big{at}", size=9 * MB + MB // 2) for at in range(6)))
    deaf.says(call("flood", "flood", key="flood", count=20_000))
    until(lambda: len(home.reached()) > 51, "the first large answer")
    most = before
    for at in range(100):
        assert "result" in other.asks(call(at, "work", key=f"other{at}"), 10)
        most = max(most, resident(pid))
    assert most - before < 64 * MB, f"{(most - before) / MB:.0f} MB more"
    # What it did not read was kept for it, not for us.
    deaf.listen()
    for at in range(6):
        assert len(deaf.answer(at)["result"]["content"][0]["text"]) == 9 * MB + MB // 2
    assert "result" in deaf.answer("flood")
    deaf.wait(lambda: len(deaf.frames) == 1 + 6 + 1 + 20_000, "the last notification")
    assert deaf.close() == 0


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_a_frame_of_one_megabyte_passes_and_one_byte_more_does_not(home: Home, way: str) -> None:
    agent = home.count(way=way).handshake()

    def sized(id: str, size: int) -> bytes:
        bare = json.dumps(call(id, "work", key=id, pad="")).encode()
        return bare.replace(b'"pad": ""', b'"pad": "%b"' % (b"p" * (size - len(bare)))) + b"\n"

    agent.says(sized("fits", MB))
    assert "result" in agent.answer("fits")
    for extra in (1, 3 * MB):
        agent.frames.clear()
        agent.answers.pop(None, None)
        agent.says(sized("too-long", MB + extra), call(f"after{extra}", "work", key=f"after{extra}"))
        refused = agent.answer(None)
        assert refused["error"]["code"] == -32600
        assert "1 MB" in refused["error"]["message"]
        assert "result" in agent.answer(f"after{extra}")
    assert home.reached() == ["fits", "after1", f"after{3 * MB}"]
    assert not agent.twice
    until(lambda: [record["reason"] for record in home.records("dropped")].count("too long") >= 1, "a word on them")


@LATER_WAY
def test_an_answer_of_ten_megabytes_passes_and_a_larger_one_becomes_an_error(home: Home, way: str) -> None:
    agent = home.count(way=way).handshake()
    fits = agent.asks(call(1, "big", key="fits", size=10 * MB - 200))
    assert len(fits["result"]["content"][0]["text"]) == 10 * MB - 200
    agent.says(call(2, "big", key="too-large", size=11 * MB), call(3, "work", key="next"))
    assert tell_of(agent.answer(2)) == (-32603, "answer_too_large")
    assert "result" in agent.answer(3)
    assert home.intents() == {"fits": "success", "too-large": "unknown", "next": "success"}


# --- a command among others -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_what_is_no_frame_stays_away_from_the_client(home: Home, way: str) -> None:
    agent = home.count(way=way).handshake()
    junk = 'hello\n{\n[]\n"text"\n\n\u2028{}\n{"jsonrpc":"2.0"}\nnull\n'
    assert "result" in agent.asks(call(1, "raw", key="junk", text=junk))
    half = '{"jsonrpc":"2.0","id":99,"result":{}}\n{"jsonrpc":"2.0","method":"x","id":7}\n'
    assert "result" in agent.asks(call(2, "raw", key="lies", text=half))
    assert agent.close() == 0
    assert not agent.broken
    assert list(agent.answers) == ["init", 1, 2]
    assert len(agent.frames) == 3
    until(lambda: sum(record["count"] for record in home.records("dropped")) >= 8, "a word on what was dropped")


@pytest.mark.parametrize("way", WAYS)
def test_stderr_and_the_exit_status_are_the_servers(home: Home, way: str) -> None:
    text = "line one\nünïcode and no end of line"
    agent = home.count(way=way).handshake()
    assert "result" in agent.asks(call(1, "say", key="say", text=text))
    agent.wait(lambda: len(agent.err) >= len(text.encode()), "what it said on stderr")
    agent.says(call(2, "leave", key="leave", status=7))
    assert agent.ends() == 7
    assert bytes(agent.err) == text.encode()
    assert tell_of(agent.answers[2]) == (-32603, "server_exited")
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV):
        agent = home.count(way=way).handshake()
        agent.says(call(1, "leave", key=f"leave{number}", signal=number))
        assert agent.ends() == 128 + number


@LATER_WAY
def test_a_signal_ends_the_wrapper_and_its_server(home: Home, way: str) -> None:
    for turn, number in enumerate((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), 1):
        agent = home.count(way=way).handshake()
        until(lambda turn=turn: [words[0] for words in home.logged()].count("initialized") == turn, "its handshake")
        agent.kill(number)
        assert agent.ends() == 128 + number
        until(lambda: not home.servers(), "the end of its server")
    assert [words[0] for words in home.logged()] == ["start", "initialize", "initialized", "eof"] * 3


@LATER_WAY
def test_a_stubborn_server_and_its_runaway_descendants_end_with_their_session(home: Home, way: str) -> None:
    agent = home.count("stubborn", way=way).handshake()
    assert "result" in agent.asks(call(1, "family", key="family"))
    until(lambda: len([words for words in home.logged() if words[0] == "relative"]) == 2, "its descendants")
    assert len(home.servers()) == 3
    assert agent.close() == 128 + signal.SIGKILL
    assert home.servers() == {}
    assert home.ask("status")["reaped_late"] == 0


@LATER_WAY
def test_a_server_that_cannot_be_started_is_named(home: Home, way: str) -> None:
    agent = home.wrap(f"no-such-command-{way}", "--flag", backend="work", way=way)
    for id in (1, 2, 3):
        refused = agent.asks(request(id, "initialize"))
        assert refused["error"]["code"] == -32603
        assert f"`no-such-command-{way}`" in refused["error"]["message"]
    assert agent.close() == 1
    assert not agent.twice
    # Once: nobody tries again and again what cannot work.
    sessions = {line.split("session ")[1][:9] for line in (home.dir / "daemon.log").read_text().splitlines()
                if f"no-such-command-{way}" in line}  # fmt: skip
    assert len(sessions) == 1


def test_a_wrapped_command_works_on_files_and_in_a_pipeline(home: Home, tmp_path: Path) -> None:
    frames = [
        request(0, "initialize", protocolVersion="2025-11-25", capabilities={}, clientInfo={}),
        note("notifications/initialized"),
    ]
    lines = b"".join(json.dumps(frame).encode() + b"\n" for frame in [*frames, call(1, "work", key="file")])
    (tmp_path / "in").write_bytes(lines)
    with open(tmp_path / "in", "rb") as given, open(tmp_path / "out", "wb") as taken:
        argv = [WRAP, "--backend", "work", "--", *home.counting()]
        done = subprocess.run(
            argv, env=home.env, stdin=given, stdout=taken, stderr=subprocess.PIPE, timeout=BOUND_S, check=False
        )
    assert (done.returncode, done.stderr) == (0, b"")
    answers = [json.loads(line) for line in (tmp_path / "out").read_bytes().splitlines()]
    assert [answer["id"] for answer in answers] == [0, 1]
    assert home.reached() == ["file"]


def test_a_parent_that_is_killed_leaves_nothing_behind(home: Home) -> None:
    # As an agent that crashes: its pipes close, its children are nobody's.
    argv = [WRAP, "--backend", "work", "--", *home.counting("stubborn")]
    program = f"import subprocess,time;p=subprocess.Popen({argv!r},stdin=-1,stdout=-1);time.sleep(1000)"
    parent = Agent([sys.executable, "-c", program], home.env)
    try:
        until(lambda: home.logged(), "the server")
    finally:
        parent.bury()
    until(lambda: not home.servers(), "the end of its server")
    until(lambda: home.ask("status")["sessions"] == [], "the end of its session")
