"""The tour as people run it, ended early, and with something wrong in every place where it looks."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar, cast

import anyio
import pytest
import typer
from mcp import ClientSession
from mcp.types import CallToolResult, TextContent
from rich.console import Console

from aegis_daemon.cli.demo import Leader, _set_up, _told
from aegis_daemon.config.load import loads
from aegis_daemon.demo import sandbox
from aegis_daemon.demo.front import Request, of_agent
from aegis_daemon.demo.stage import AUTO, Asked
from aegis_daemon.demo.steps import CHANGED, COLUMNS, FIRST, STEPS, Step, decisions
from aegis_daemon.demo.tour import Outcome, Row, tour
from aegis_daemon.manage.client import DaemonAway

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

    def offer(self, what: str, *commands: str) -> None:
        assert self.home.exists()
        assert all((what, *commands))

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
    assert "aegis setup" in done.stderr
    assert "curl -sS http://127.0.0.1:" in done.stderr
    assert "\x1b" not in done.stderr
    assert nothing_is_left(place)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, pytest.param(signal.SIGTERM, marks=pytest.mark.full)])
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
            'line *= 1 + (arguments.get("title") == "Release notes")\n    os.write(tally, line',
            "post 2 times",
        ),
        (2, "policy", ", list_posts]", "]", "had to wait"),
        (7, "server", 'CHANGED = {"list_posts":', 'CHANGED = {"no_such":', "`list_posts` was answered with"),
        pytest.param(9, "client", "[{args}] }}", "[{args}]", "`aegis agents wire", marks=pytest.mark.full),
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
    if where in ("policy", "client"):
        text = getattr(sandbox, where.upper())
        assert was in text
        monkeypatch.setattr(sandbox, where.upper(), text.replace(was, becomes))
    else:
        text = server.read_text()
        assert was in text
        server = place / "server.py"
        server.write_text(text.replace(was, becomes))
    outcome = tour(Quiet(), AUTO, server)
    (place / "server.py").unlink(missing_ok=True)

    assert [row.ok for row in outcome.rows] == [number < step for number in range(1, 10)]
    assert told in outcome.rows[step - 1].detail
    assert {row.detail for row in outcome.rows[step:]} <= {f"not taken, since step {step} failed"}
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


CURL = r"(curl -sS [^\r\n\x1b]+)"


def typed(command: str) -> str:
    """What a command prints in a second terminal."""
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=BOUND_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


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
def test_a_person_may_type_what_is_shown_in_a_second_terminal_approve_there_and_leave(place: Path) -> None:
    terminal = Terminal()
    answers = []
    for _ in range(3):
        answers.append(json.loads(typed(terminal.until(CURL)[1])))
        terminal.until(r"\[Enter goes on")
        terminal.type(b"\n")
    assert {tool["name"] for tool in answers[0]["result"]["tools"]} > {"echo"}
    assert answers[1]["result"]["content"][0]["text"] == "hello over HTTP"
    assert answers[2]["error"]["code"] == -32002
    over_http = terminal.until(CURL)[1]
    terminal.until(r"\[Enter approves")
    assert json.loads(typed(over_http))["action"] == "approve"
    terminal.until(r"ok: ticket \w{4}: waited")
    terminal.until(r"\[Enter goes on")
    terminal.type(b"\x03")
    assert terminal.ended() == 130
    assert nothing_is_left(place)


@pytest.mark.skipif(sys.platform != "linux", reason="the end of a terminal is told in another way elsewhere")
def test_a_person_who_says_no_is_asked_again_and_may_approve_by_a_command(place: Path) -> None:
    terminal = Terminal()
    for _ in range(3):
        terminal.until(r"\[Enter goes on")
        terminal.type(b"\n")
    command = terminal.until(r"(AEGIS_HOME=\S+ \S+ approve \w{4})")[1].replace(" approve ", " reject ")
    subprocess.run(f"{command} --yes", shell=True, check=True, capture_output=True, timeout=BOUND_S)
    terminal.until("once more")
    again = terminal.until(r"(AEGIS_HOME=\S+ \S+ approve \w{4})")[1]
    terminal.until(r"\[Enter approves")
    typed(f"{again} --yes")
    terminal.until(r"ok: ticket \w{4}: waited")
    terminal.until(r"\[Enter goes on")
    terminal.type(b"\x04")  # the end of input leaves as well
    terminal.until("left after step 4")
    assert terminal.ended() == 1
    assert nothing_is_left(place)


class Heard(BaseHTTPRequestHandler):
    """Keeps what it is asked."""

    asked: ClassVar[list[tuple[str, str, dict[str, str | None], bytes]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        told = {name: self.headers[name] for name in ("Content-Type", "Authorization")}
        if self.headers["Accept"] == "application/json":  # curl itself takes anything
            told["Accept"] = self.headers["Accept"]
        self.asked.append((self.command, self.path, told, body))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_GET = do_POST  # noqa: N815  as the base class calls it

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_what_is_to_be_typed_is_what_the_tour_sends(tmp_path: Path) -> None:
    key = tmp_path / "it's a key"
    key.write_text("the key\n")
    with HTTPServer(("127.0.0.1", 0), Heard) as server:
        address = f"127.0.0.1:{server.server_port}"
        for request in (
            of_agent(
                address, "demo", "tools/call", {"name": "say", "arguments": {"text": "it's $HOME `id` \\ \u00e9 \"'\n"}}
            ),
            of_agent(address, "demo", "tools/list", {}, patience=5),
            Request(address, "/api/v1/approvals/K7Q2/approve", key=str(key)),
            Request(address, "/api/v1/audit/logs?limit=5&offset=0", method="GET"),
        ):
            Heard.asked.clear()
            for send in (lambda request=request: request.send(BOUND_S), lambda request=request: typed(request.curl)):
                sending = threading.Thread(target=send)
                sending.start()
                server.handle_request()
                sending.join(BOUND_S)
            sent, shown = Heard.asked
            assert sent == shown
            assert "the key" not in request.curl


@pytest.mark.parametrize("yes", [True, False])
def test_the_end_offers_a_real_agent_and_goes_on_to_setup_where_the_person_says_so(
    monkeypatch: pytest.MonkeyPatch, yes: bool
) -> None:
    went: list[list[str]] = []
    monkeypatch.setattr("aegis_daemon.cli.demo.confirm", lambda question: yes and "setup" in question)
    monkeypatch.setattr("os.execv", lambda program, words: went.append(words))
    monkeypatch.setattr("sys.argv", ["/somewhere/aegis", "demo"])
    _set_up()
    assert went == ([["/somewhere/aegis", "setup"]] if yes else [])


def test_whoever_leaves_at_the_last_question_left_nothing_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def left(question: str) -> bool:
        raise typer.Abort

    monkeypatch.setattr("aegis_daemon.cli.demo.confirm", left)
    _set_up()


@pytest.mark.parametrize(("done", "said"), [(0, "before the first step"), (3, "after step 3"), (9, "after step 9")])
def test_who_interrupts_is_told_where_and_that_nothing_is_left_and_not_that_a_step_failed(
    capsys: pytest.CaptureFixture[str], done: int, said: str
) -> None:
    rows = [Row(number, "any", number <= done, "", 0.0) for number in range(1, 10)]  # what broke off counts as failed
    assert _told(Outcome(tuple(rows), signal=signal.SIGINT)) == 130
    told = capsys.readouterr()
    assert "everything in it is gone" in told.out
    assert told.err == f"left {said} was over\n" if done == 0 else f"left {said}\n"
    assert "Wire" not in told.out


class Patient:
    """An agent's session in which a call is pending for as long as a person reads."""

    def __init__(self, pending: int) -> None:
        self.pending = pending
        self.asked: list[dict[str, Any]] = []

    async def call_tool(self, tool: str, arguments: dict[str, Any], **_: Any) -> CallToolResult:
        self.asked.append(arguments)
        waits = len(self.asked) <= self.pending
        meta = {"aegis/pending": {"ticket": "K7Q2"}} if waits else None
        said = TextContent(text="PENDING K7Q2" if waits else "published")
        return CallToolResult(content=[said], is_error=waits, _meta=meta)


def test_a_call_that_is_still_pending_is_made_again_until_it_is_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aegis_daemon.demo.stage._AGAIN_S", 0.0)
    session = Patient(80)  # an hour, at 45 s each
    asked = Asked(cast(ClientSession, session), "publish_post", {"title": "x"})
    anyio.run(asked.run)
    assert (asked.answer, asked.error) == ("published", None)
    assert session.asked == [{"title": "x"}] * 81


def test_nothing_that_the_tour_shows_ends_while_a_person_reads_for_hours(place: Path) -> None:
    made = sandbox.Sandbox("1ms", "1ms")
    config = loads(Path(made.paths.config).read_text(), "aegis.yaml").config
    assert made.remove() is None
    assert config.approval.timeout == config.approval.hold == 86400
    access = config.agents["demo"].backends["blog"]
    assert access.rate_limits["get_weather"].window_s == 86400  # or what is shown to be refused would pass


def test_a_daemon_that_is_just_starting_is_told_to_end_as_soon_as_it_hears(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Starting:
        def __init__(self, *_: object, **__: object) -> None:
            asked.append("connect")
            if len(asked) < 4:
                raise DaemonAway("nobody listens yet")

        def __enter__(self) -> Starting:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def call(self, verb: str, **_: object) -> None:
            asked.append(verb)

    made = sandbox.Sandbox("1ms", "1ms")
    looks = iter([7] * 6)  # it takes a moment to end, too
    monkeypatch.setattr(sandbox, "Connection", Starting)
    monkeypatch.setattr(sandbox, "approver_key", lambda path: "key")
    monkeypatch.setattr(sandbox, "lock_holder", lambda lock: next(looks, None))
    assert made.remove() is None
    assert asked == ["connect"] * 4 + ["stop"]  # once: another one would be told in its turn


def test_what_a_person_types_between_two_steps_is_no_fault_of_the_second() -> None:
    def row(agent: str, tool: str, arguments: object, approval: str) -> dict[str, Any]:
        text = json.dumps(arguments) if arguments else ""
        return {"agent_id": agent, "tool_name": tool, "arguments": text, "approval_result": approval}

    by_hand = [row("demo", "get_weather", {"city": "Lisbon"}, ""), row("curl", "publish_post", FIRST, "approved")]
    own = [row("demo", "publish_post", CHANGED, "rejected"), row("demo", "publish_post", FIRST, "approved")]
    assert decisions(own[:1]) == ["rejected"]
    for rows in ([*by_hand, *own], [own[0], *by_hand, own[1]], [*own, row("demo", "publish_post", None, "x"), *own]):
        assert decisions(rows) == ["rejected", "approved"]


@pytest.mark.parametrize(("width", "fields"), [(60, 4), (75, 6), (120, 7)])
def test_a_narrow_terminal_gets_fewer_columns_and_no_broken_words(
    monkeypatch: pytest.MonkeyPatch, width: int, fields: int
) -> None:
    shown: list[list[str]] = []
    monkeypatch.setattr("aegis_daemon.cli.demo.show", lambda rows, columns, empty: shown.append(list(columns)))
    words = ("colleague", "publish_post", "success", "rate_limit", "approved", "a person at a terminal", "2365 ms")
    leader = Leader(asks=False, console=Console(file=io.StringIO(), width=width))
    leader.table([dict(zip(COLUMNS, words, strict=True))], COLUMNS)
    assert len(shown[0]) == fields
    assert shown[0][:3] == ["agent", "tool", "outcome"]
    assert "approval" in shown[0]


class Closed(io.StringIO):
    """A pipe that nobody reads."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_who_closes_the_pipe_ends_the_tour_as_who_closes_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[int] = []
    monkeypatch.setattr("signal.raise_signal", raised.append)
    leader = Leader(asks=False)
    monkeypatch.setattr("sys.stdout", Closed())
    leader.tell("anything")
    leader.welcome(Path("/x"), 9)
    leader.table([], {})
    assert raised == [signal.SIGHUP]


def test_prose_fits_a_narrow_terminal_and_commands_are_never_broken(place: Path) -> None:
    shown = io.StringIO()
    leader = Leader(asks=False, console=Console(file=shown, width=40, markup=False, highlight=False))
    command = "curl -sS " + "x" * 200
    leader.begin(1, STEPS[0])
    leader.tell("word " * 30)
    leader.offer("what it does, in more words than there is room for on a line", command)
    lines = shown.getvalue().splitlines()
    assert "       " + command in lines
    assert all(len(line) <= 40 for line in lines if command not in line and "agents.demo" not in line)
