from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from aegis_daemon.config.paths import Paths
from aegis_shim import wrap
from aegis_shim.wrap import Shown, UsageError, parse

from .stage import SHIM


@pytest.mark.parametrize(
    ("words", "agent", "backend", "socket", "autostart", "command"),
    [
        ("npx -y @s/server-x /data", "default", "x", "", True, "npx -y @s/server-x /data"),
        ("--agent a --backend b --socket /s --no-autostart cmd", "a", "b", "/s", False, "cmd"),
        ("--agent=a --backend=b --socket=s=t cmd", "a", "b", "s=t", True, "cmd"),
        ("-- cmd --agent x", "default", "cmd", "", True, "cmd --agent x"),
        ("cmd --backend x -- y", "default", "cmd", "", True, "cmd --backend x -- y"),
        ("--backend b", "default", "b", "", True, ""),
        ("--backend b --", "default", "b", "", True, ""),
        ("--backend b -- --odd", "default", "b", "", True, "--odd"),
        ("cmd --help", "default", "cmd", "", True, "cmd --help"),
        ("--agent a --agent b cmd", "b", "cmd", "", True, "cmd"),
    ],
)
def test_options_end_where_the_command_begins(
    words: str, agent: str, backend: str, socket: str, autostart: bool, command: str
) -> None:
    got = parse(words.split(), {})
    assert (got.agent, got.backend, got.socket, got.autostart) == (agent, backend, socket, autostart)
    assert got.command == tuple(command.split())


def test_the_environment_fills_in_and_the_command_line_wins() -> None:
    env = {"AEGIS_AGENT": "ea", "AEGIS_BACKEND": "eb", "AEGIS_SOCKET": "/es"}
    got = parse(["cmd"], env)
    assert (got.agent, got.backend, got.socket) == ("ea", "eb", "/es")
    assert parse([], env).command == ()
    got = parse(["--agent", "a", "--backend", "b", "--socket", "/s", "cmd"], env)
    assert (got.agent, got.backend, got.socket) == ("a", "b", "/s")
    assert parse(["cmd"], dict.fromkeys(env, "")).agent == "default"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "nothing to wrap"),
        (["--"], "nothing to wrap"),
        (["--agent"], "`--agent` needs a value"),
        (["--agent", ""], "`--agent` needs a value"),
        (["--agent=", "cmd"], "`--agent` needs a value"),
        (["--agent", "--backend", "b", "cmd"], "`--agent` needs a value"),
        (["--agnet", "x", "cmd"], "unknown option `--agnet`"),
        (["-v", "cmd"], "unknown option `-v`"),
        (["--no-autostart=1", "cmd"], "unknown option"),
        (["--backend", "b", "--", ""], "the command is empty"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_refused_with_the_next_step(words: list[str], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        parse(words, {})


def test_help_and_version_are_shown_wherever_an_option_may_stand() -> None:
    with pytest.raises(Shown, match="Stands in for"):
        parse(["--agent", "a", "--help"], {})
    with pytest.raises(Shown, match="aegis-wrap "):
        parse(["--version"], {})


def test_the_process_says_usage_on_stderr_and_leaves_with_two() -> None:
    done = subprocess.run([sys.executable, "-I", "-S", SHIM, "--nope"], capture_output=True, text=True, timeout=10)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("aegis-wrap: unknown option `--nope`")
    assert "usage: aegis-wrap" in done.stderr
    done = subprocess.run(
        [sys.executable, "-I", "-S", SHIM, "server"],
        env={"AEGIS_WAY": "pigeon"},
        capture_output=True,
        text=True,
        timeout=10,
    )
    assert done.returncode == 2
    assert "AEGIS_WAY is `pigeon`" in done.stderr
    done = subprocess.run([sys.executable, "-I", "-S", SHIM, "--help"], capture_output=True, text=True, timeout=10)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--no-autostart" in done.stdout


ENVIRONMENTS: list[dict[str, str]] = [
    {"HOME": "/home/u"},
    {"HOME": "/home/u", "XDG_RUNTIME_DIR": "/run/user/7", "XDG_STATE_HOME": "/state"},
    {"HOME": "/home/u", "XDG_RUNTIME_DIR": "relative", "XDG_STATE_HOME": "relative"},
    {"HOME": "/home/u", "XDG_RUNTIME_DIR": "", "XDG_STATE_HOME": ""},
    {"HOME": "/home/u", "AEGIS_HOME": "/srv/aegis", "XDG_RUNTIME_DIR": "/run/user/7"},
    {"HOME": "/home/u", "AEGIS_HOME": "srv/../aegis/./x"},
    {"HOME": "/home/u", "AEGIS_SOCKET": "/elsewhere/s.sock"},
    {"HOME": "/home/u", "AEGIS_SOCKET": "here.sock", "AEGIS_HOME": "/srv/aegis"},
    {"HOME": pwd.getpwuid(os.getuid()).pw_dir},
]


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_the_shim_and_the_daemon_find_the_same_files(env: dict[str, str]) -> None:
    paths = Paths.find(env)
    assert wrap.socket_path(env.get("AEGIS_SOCKET", ""), env) == paths.socket
    assert wrap.log_path(env) == paths.log


def test_without_a_home_the_account_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    assert wrap.log_path({}) == Paths.find({}).log


def test_the_shim_needs_nothing_but_the_bare_standard_library() -> None:
    script = (
        "import sys; sys.path.append(sys.argv[1]); import aegis_shim.wrap, aegis_shim.pump;print(*sorted(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script, str(SHIM.parent.parent)],
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
    )
    dear = {"os", "re", "json", "enum", "socket", "signal", "threading", "typing", "subprocess", "asyncio", "argparse"}
    assert not dear & set(done.stdout.split())


def test_a_status_is_counted_as_a_shell_counts_it() -> None:
    assert [wrap.exit_status(code) for code in ("0", "3", "255", "-9", "-15", "odd", "")] == [0, 3, 255, 137, 143, 1, 1]


def test_the_way_depends_on_what_the_descriptors_are(tmp_path: Path) -> None:
    """Asked of a process of its own, whose three descriptors are what they are."""
    script = (
        "import sys; sys.path.append(sys.argv[1]); from aegis_shim.wrap import choose_way;"
        "open(sys.argv[2], 'w').write(choose_way({'AEGIS_WAY': sys.argv[3]}))"
    )

    def way(stdin: int, stdout: int, stderr: int, wish: str = "") -> str:
        command = [sys.executable, "-I", "-S", "-c", script, str(SHIM.parent.parent), str(tmp_path / "way"), wish]
        subprocess.run(command, stdin=stdin, stdout=stdout, stderr=stderr, check=True, timeout=10)
        return (tmp_path / "way").read_text()

    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    null = os.open("/dev/null", os.O_RDWR)
    _, terminal = os.openpty()
    r1, w1 = os.pipe()
    r2, w2 = os.pipe()
    try:
        assert way(r1, w1, null) == "handover"
        assert way(r1, w1, w2) == "handover"
        assert way(r1, w1, w1) == "relay"
        assert way(r1, w1, w1, "handover") == "handover"
        assert way(r1, w1, null, "relay") == "relay"
        for odd in (file, null, terminal):
            assert way(odd, w1, null) == "relay"
            assert way(r1, odd, null) == "relay"
            assert way(r1, odd, null, "handover") == "relay"
    finally:
        for fd in (file, null, terminal, _, r1, w1, r2, w2):
            os.close(fd)
