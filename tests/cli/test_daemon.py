from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from manage.memory import Served

from aegis_daemon.cli.console import Problem
from aegis_daemon.cli.daemon.commands import only_starter
from aegis_daemon.config.load import Fault
from aegis_daemon.config.paths import Paths
from aegis_daemon.manage.client import Connection, DaemonAway

from .conftest import Aegis
from .terminal import AEGIS

DEFAULT_PORT = 18070


def status(home: str) -> dict[str, Any] | None:
    try:
        with Connection(f"{home}/manage.sock") as daemon:
            found: dict[str, Any] = daemon.call("status")
            return found
    except DaemonAway:
        return None


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return False


@pytest.fixture
def ended(home: str) -> Iterator[None]:
    """No daemon is left behind, whatever the test did."""
    yield
    found = status(home)
    if found is not None:
        os.kill(found["pid"], signal.SIGKILL)


def write(home: str, text: str, name: str = "aegis.yaml") -> str:
    path = f"{home}/{name}"
    with open(path, "w") as file:
        file.write(text)
    return path


@pytest.mark.usefixtures("ended")
def test_a_daemon_is_started_reloaded_restarted_and_stopped(aegis: Aegis, home: str) -> None:
    write(home, "backends: {github: {}}\n")
    started = aegis("daemon", "start")
    assert started.exit_code == 0, started.stderr
    first = status(home)
    assert first is not None
    assert os.getsid(first["pid"]) == first["pid"]  # nobody's terminal reaches it
    assert "runs already" in aegis("daemon", "start").stderr

    write(home, "backends: {github: {}, jira: {}}\n")
    reloaded = aegis("daemon", "reload")
    assert (reloaded.exit_code, "backends" in reloaded.stderr) == (0, True)
    assert json.loads(aegis("daemon", "reload", "--json").stdout)["changed"] == []

    write(home, "backnds: {}\n")
    assert aegis("daemon", "reload").exit_code == 1
    refused = aegis("daemon", "restart")
    assert refused.exit_code == 1
    assert "backnds" in refused.stderr
    still = status(home)
    assert still is not None
    assert still["pid"] == first["pid"]  # a daemon that could not start again is not stopped

    write(home, "backends: {github: {}}\n")
    assert aegis("daemon", "restart").exit_code == 0
    second = status(home)
    assert second is not None
    assert second["pid"] != first["pid"]
    assert not alive(first["pid"])

    assert aegis("daemon", "stop").exit_code == 0
    assert not alive(second["pid"])
    assert aegis("daemon", "stop").exit_code == 3
    assert aegis("audit", "verify").exit_code == 0
    actions = [json.loads(line).get("action") for line in aegis("audit", "tail", "--json").stdout.splitlines()]
    assert actions[-1] == "stop"


@pytest.mark.usefixtures("ended")
def test_a_restart_keeps_the_file_that_the_daemon_was_started_with(aegis: Aegis, home: str) -> None:
    chosen = write(home, "mode: observe\n", "chosen.yaml")
    assert aegis("daemon", "start", "--config", chosen).exit_code == 0
    assert "runs already" in aegis("daemon", "start", "--config", chosen).stderr
    other = write(home, "mode: enforce\n", "other.yaml")
    refused = aegis("daemon", "start", "--config", other)
    assert refused.exit_code == 1
    assert "chosen.yaml" in refused.stderr
    assert aegis("daemon", "restart").exit_code == 0
    kept = status(home)
    assert kept is not None
    assert (kept["config"], kept["mode"]) == (chosen, "observe")
    assert aegis("daemon", "restart", "--config", other).exit_code == 0
    changed = status(home)
    assert changed is not None
    assert changed["mode"] == "enforce"
    assert aegis("daemon", "stop").exit_code == 0


SERVER = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    if "id" in asked:
        capable = {"protocolVersion": "2025-06-18", "capabilities": {}, "serverInfo": {"name": "x", "version": "1"}}
        answer = capable if asked["method"] == "initialize" else {}
        print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": answer}), flush=True)
"""


@pytest.mark.usefixtures("ended")
def test_a_restart_under_live_sessions_keeps_the_file_and_the_sessions(
    aegis: Aegis, home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = write(
        home, "mode: observe\nbackends: {x: {}}\nagents: {a: {backends: {x: {allowed: true}}}}\n", "chosen.yaml"
    )
    write(home, "mode: enforce\n")  # what a daemon that a session starts would read
    server = write(home, SERVER, "server.py")
    assert aegis("daemon", "start", "--config", chosen).exit_code == 0
    monkeypatch.setenv("AEGIS_APPROVER_KEY", f"{home}/approver.key")  # this test is the shim's parent, so its agent
    wrap = [sys.executable, "-m", "aegis_shim", "--agent", "a", "--backend", "x", "--", sys.executable, server]
    with subprocess.Popen(wrap, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdin is not None
        assert agent.stdout is not None

        def ask(number: int, method: str, **params: Any) -> dict[str, Any]:
            asked = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
            agent.stdin.write(json.dumps(asked) + "\n")  # type: ignore[union-attr]
            agent.stdin.flush()  # type: ignore[union-attr]
            answer: dict[str, Any] = json.loads(agent.stdout.readline())  # type: ignore[union-attr]
            return answer

        client = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
        assert "result" in ask(1, "initialize", **client)
        agent.stdin.write('{"jsonrpc":"2.0","method":"notifications/initialized"}\n')
        for number in (2, 3):
            assert "result" in ask(number, "ping")
            done = aegis("daemon", "restart")
            assert done.exit_code == 0, done.stderr
            found = status(home)
            assert found is not None
            assert found["mode"] == "observe"
        assert "result" in ask(4, "ping")
        agent.stdin.close()
        assert agent.wait(20) == 0
    assert aegis("daemon", "stop").exit_code == 0


@pytest.mark.usefixtures("ended")
def test_without_a_configuration_a_daemon_starts_and_says_that_it_denies(aegis: Aegis, home: str) -> None:
    started = aegis("daemon", "start")
    assert started.exit_code == 0
    assert "aegis config init" in started.stderr
    found = status(home)
    assert found is not None
    assert found["config"] is None
    assert aegis("daemon", "stop").exit_code == 0


@pytest.mark.usefixtures("ended")
def test_relative_places_mean_the_same_to_the_daemon(aegis: Aegis, home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setenv("AEGIS_HOME", "./inner")
    os.mkdir(f"{home}/inner", 0o700)
    write(home, "mode: observe\n", "here.yaml")
    assert aegis("daemon", "start", "--config", "here.yaml").exit_code == 0
    found = status(f"{home}/inner")
    assert found is not None
    assert found["config"] == f"{home}/here.yaml"
    assert aegis("daemon", "stop").exit_code == 0


@pytest.mark.parametrize("verb", ["start", "restart", "run"])
def test_a_faulty_configuration_starts_nothing_and_every_fault_is_told(aegis: Aegis, home: str, verb: str) -> None:
    write(home, "mod: enforce\nagnts: {}\n")
    done = aegis("daemon", verb)
    assert done.exit_code == 1
    assert "2 faults" in done.stderr
    assert status(home) is None


def test_a_file_that_was_asked_for_must_exist(aegis: Aegis, home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert aegis("daemon", "start", "--config", f"{home}/none.yaml").exit_code == 1
    monkeypatch.setenv("AEGIS_CONFIG", f"{home}/none.yaml")
    assert aegis("daemon", "start").exit_code == 1
    assert status(home) is None


def test_a_daemon_that_ends_as_it_starts_is_told_with_its_last_words(aegis: Aegis, home: str) -> None:
    os.mkdir(f"{home}/manage.sock")  # in the way of its socket
    done = aegis("daemon", "start")
    assert done.exit_code == 1
    assert "ended as it started" in done.stderr
    assert "manage.sock" in done.stderr


def test_a_damaged_store_is_named_with_what_to_do(aegis: Aegis, home: str) -> None:
    with open(f"{home}/state.db", "wb") as file:
        file.write(b"no database" * 100)
    done = aegis("daemon", "start")
    assert done.exit_code == 1
    assert f"`{home}/state.db`" in done.stderr
    assert "move it away" in done.stderr
    assert "state-damaged" in aegis("doctor").stdout


@pytest.mark.usefixtures("ended")
def test_a_daemon_without_its_address_says_so_as_it_starts(aegis: Aegis, home: str) -> None:
    write(home, "backends: {github: {}}\n")
    with suppress(OSError), socket.create_server(("127.0.0.1", DEFAULT_PORT)):  # else another program has it already
        done = aegis("daemon", "start")
        assert (done.exit_code, "warning: nothing is served over http" in done.stderr) == (0, True)
        assert "http-unserved" in aegis("doctor").stdout
        found = status(home)
        assert found is not None
        assert any("nothing is served over http" in line for line in found["warnings"])


def test_an_installation_open_to_others_is_refused(aegis: Aegis, home: str) -> None:
    os.chmod(home, 0o777)
    done = aegis("daemon", "start")
    os.chmod(home, 0o700)
    assert done.exit_code == 1
    assert "chmod 700" in done.stderr


@contextmanager
def foreground(*words: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([*AEGIS, *words], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def test_a_file_as_the_only_word_runs_the_daemon_until_interrupted(home: str, aegis: Aegis) -> None:
    path = write(home, "mode: observe\n", "mine.yaml")
    with foreground(path) as process:
        until = time.monotonic() + 20
        while (found := status(home)) is None:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        assert (found["pid"], found["mode"]) == (process.pid, "observe")
        with foreground("daemon", "run", "--config", path) as second:
            assert second.wait(20) == 1
            assert second.stderr is not None
            assert "running already" in second.stderr.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stdout is not None
        assert process.stdout.read() == ""


def test_faults_of_a_reload_come_back_with_their_places(served: Served, aegis: Aegis) -> None:
    served.governor.faults = [Fault("/c/aegis.yaml", 3, 5, "agents", "unknown key `x\x1b`", "did you mean `y`?")]
    done = aegis("daemon", "reload")
    assert done.exit_code == 1
    assert "/c/aegis.yaml:3:5" in done.stderr
    assert "\x1b" not in done.stderr
    assert "old configuration stays" in done.stderr
    assert json.loads(aegis("daemon", "reload", "--json").stdout)[0]["line"] == 3


def test_keys_that_need_a_restart_are_named(served: Served, aegis: Aegis) -> None:
    assert "audit.db_path" in aegis("daemon", "reload").stderr


@pytest.mark.skipif(os.getuid() != 0, reason="root's directories")
def test_root_waits_for_nothing_in_the_directory_of_the_daemons_user(tmp_path: Path) -> None:
    paths = Paths.find({"AEGIS_SYSTEM": str(tmp_path)})
    state = Path(paths.state_dir)
    state.mkdir(parents=True)
    os.mkfifo(state / "start.lock")
    with only_starter(paths):
        assert os.path.getsize(f"{paths.run_dir}/start.lock") == 0
    assert [path.name for path in state.iterdir()] == ["start.lock"]
    os.chmod(paths.run_dir, 0o777)
    with pytest.raises(Problem, match="not root's alone"), only_starter(paths):
        pass
