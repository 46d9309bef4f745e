"""The tour as people run it, ended early, and with something wrong in every place where it looks."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from aegis_daemon.cli.demo import _told
from aegis_daemon.demo import sandbox
from aegis_daemon.demo.steps import AUTO, STEPS, Step
from aegis_daemon.demo.tour import Row, tour

AEGIS = Path(sysconfig.get_path("scripts")) / "aegis"
BOUND_S = 60.0


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the sandbox will be; the user's own home, and an Aegis of theirs, lie beside it."""
    base = tmp_path_factory.mktemp("t")
    for name in ("tmp", "home", "own"):
        (base / name).mkdir()
    for name in [name for name in os.environ if name.startswith(("AEGIS_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TMPDIR", str(base / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("HOME", str(base / "home"))
    monkeypatch.setenv("AEGIS_HOME", str(base / "own"))
    return base


def nothing_is_left(place: Path) -> bool:
    """No file anywhere, and (where the system shows it) no process."""
    assert {str(path.relative_to(place)) for path in place.rglob("*")} == {"tmp", "home", "own"}
    mark = b"AEGIS_HOME=" + os.fsencode(place / "tmp")
    for environ in Path("/proc").glob("[1-9]*/environ"):
        try:
            assert mark not in environ.read_bytes(), (environ.parent / "cmdline").read_bytes()
        except OSError:
            continue
    return True


class Quiet:
    """A leader that keeps what it is told."""

    def __init__(self) -> None:
        self.home = Path()
        self.said: list[str] = []

    def welcome(self, home: Path, steps: int) -> None:
        self.home = home

    def begin(self, number: int, step: Step) -> None:
        assert self.home.exists()

    def tell(self, text: str) -> None:
        self.said.append(text)

    def table(self, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
        assert all(set(row) == set(columns) for row in rows)

    def end(self, row: Row) -> None:
        self.said.append(row.detail)

    async def agree(self, question: str) -> bool:
        raise AssertionError(question)

    async def pause(self, last: bool) -> bool:
        return True


def test_the_tour_shows_all_nine_steps_and_leaves_nothing(place: Path) -> None:
    done = subprocess.run([AEGIS, "demo", "--auto", "--json"], capture_output=True, text=True, timeout=BOUND_S)
    rows = json.loads(done.stdout)
    assert [row["step"] for row in rows] == list(range(1, 10))
    assert [row for row in rows if not row["ok"]] == []
    assert [row["title"] for row in rows] == [step.title for step in STEPS]
    assert all(row["detail"] and row["seconds"] >= 0 for row in rows)
    assert done.returncode == 0
    # The prose is there as well, on the other stream, and is no terminal's.
    assert done.stderr.count("\n   ok: ") == 9
    assert "aegis config init" in done.stderr
    assert "\x1b" not in done.stderr
    assert nothing_is_left(place)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_the_middle_leaves_nothing(place: Path, number: signal.Signals) -> None:
    with subprocess.Popen([AEGIS, "demo", "--auto"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("   ok:"):
                break
        process.send_signal(number)
        rest = process.stdout.read()
        assert process.wait(BOUND_S) == 128 + number
    assert "9  " not in rest
    assert nothing_is_left(place)


@pytest.mark.parametrize(
    ("step", "where", "was", "becomes", "told"),
    [
        (1, "policy", "tool_denylist: [admin_reset]", "tool_denylist: []", "the client sees"),
        (2, "server", 'str(arguments["text"])', '"something else"', "answered `something else`"),
        (
            4,
            "server",
            "os.write(tally, line",
            'line *= 1 + (tool == "publish_post")\n    os.write(tally, line',
            "post 2 times",
        ),
        (7, "policy", ", list_posts]", "]", "had to wait"),
    ],
)
def test_a_step_that_does_not_show_what_it_promised_fails_the_tour_and_is_named(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    step: int,
    where: str,
    was: str,
    becomes: str,
    told: str,
) -> None:
    server = sandbox.SERVER
    if where == "policy":
        assert was in sandbox.POLICY
        monkeypatch.setattr(sandbox, "POLICY", sandbox.POLICY.replace(was, becomes))
    else:
        text = server.read_text()
        assert was in text
        server = place / "server.py"
        server.write_text(text.replace(was, becomes))
    outcome = tour(Quiet(), AUTO, server)
    (place / "server.py").unlink(missing_ok=True)

    assert [row.ok for row in outcome.rows] == [number < step for number in range(1, 10)]
    assert told in outcome.rows[step - 1].detail
    assert {row.detail for row in outcome.rows[step:]} == {f"not taken, since step {step} failed"}
    assert _told(outcome) == 1
    assert f"step {step} ({STEPS[step - 1].title})" in capsys.readouterr().err
    assert nothing_is_left(place)


def test_a_daemon_that_cannot_start_fails_the_tour_with_its_last_words(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sandbox, "POLICY", sandbox.POLICY.replace("max_pending", "max_pnding"))
    outcome = tour(Quiet(), AUTO)
    assert not any(row.ok for row in outcome.rows)
    assert "the session broke" in outcome.rows[0].detail
    assert _told(outcome) == 1
    assert "max_pnding" in capsys.readouterr().err
    assert nothing_is_left(place)


def test_without_a_terminal_nobody_can_be_asked(place: Path) -> None:
    done = subprocess.run([AEGIS, "demo"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=BOUND_S)
    assert done.returncode == 2
    assert "--auto" in done.stderr
    assert nothing_is_left(place)


class Terminal:
    """`aegis demo` on a terminal of its own."""

    def __init__(self) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            try:
                os.execv(AEGIS, [str(AEGIS), "demo"])
            finally:
                os._exit(127)
        self.text = ""

    def until(self, pattern: str) -> re.Match[str]:
        """What is shown next that looks like this; what came before it is forgotten."""
        deadline = time.monotonic() + BOUND_S
        while not (found := re.search(pattern, self.text)):
            assert select.select([self._fd], [], [], deadline - time.monotonic())[0], self.text
            try:
                self.text += os.read(self._fd, 65536).decode(errors="replace")
            except OSError as error:
                raise AssertionError(f"it ended: {self.text}") from error
        self.text = self.text[found.end() :]
        return found

    def type(self, keys: bytes) -> None:
        os.write(self._fd, keys)

    def ended(self) -> int:
        """The exit status; reads on, since nobody ends who cannot write."""
        while True:
            try:
                if not os.read(self._fd, 65536):
                    break
            except OSError:
                break
        os.close(self._fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.mark.skipif(sys.platform != "linux", reason="the end of a terminal is told in another way elsewhere")
def test_a_person_is_asked_and_may_approve_from_a_second_terminal_then_leave(place: Path) -> None:
    terminal = Terminal()
    for _ in range(3):
        terminal.until(r"\[Enter goes on")
        terminal.type(b"\n")
    command = terminal.until(r"(AEGIS_HOME=\S+ \S+ approve \w{4})")[1]
    terminal.until(r"\[Enter approves")
    second = subprocess.run(f"{command} --yes", shell=True, capture_output=True, text=True, timeout=BOUND_S)
    assert second.returncode == 0, second.stderr
    terminal.until(r"ok: ticket \w{4}: waited")
    terminal.until(r"\[Enter goes on")
    terminal.type(b"\x03")
    assert terminal.ended() == 130
    assert nothing_is_left(place)


@pytest.mark.skipif(sys.platform != "linux", reason="the end of a terminal is told in another way elsewhere")
def test_a_person_who_says_no_is_asked_again_and_enter_approves(place: Path) -> None:
    terminal = Terminal()
    for _ in range(3):
        terminal.until(r"\[Enter goes on")
        terminal.type(b"\n")
    command = terminal.until(r"(AEGIS_HOME=\S+ \S+ approve \w{4})")[1].replace(" approve ", " reject ")
    subprocess.run(f"{command} --yes", shell=True, check=True, capture_output=True, timeout=BOUND_S)
    terminal.until("once more")
    terminal.until(r"\[Enter approves")
    terminal.type(b"\n")
    terminal.until(r"ok: ticket \w{4}: waited")
    terminal.until(r"\[Enter goes on")
    terminal.type(b"\x04")  # the end of input leaves as well
    terminal.until("left after step 4")
    assert terminal.ended() == 1
    assert nothing_is_left(place)
