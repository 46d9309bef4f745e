from __future__ import annotations

import asyncio
import html
import json
import os
import stat
import sys
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standins.door import HOSTILE, notice

from aegis_daemon.approvals.channels.desktop import Desktop, configured
from aegis_daemon.approvals.channels.notice import Heard, Notice
from aegis_daemon.backends.http_client import HttpPool
from aegis_daemon.core.ports import Fault
from aegis_daemon.daemon.reach import DaemonReach

Run = Callable[[Coroutine[Any, Any, Any]], Any]

# What the real program does: prints the number, waits, prints the action; when interrupted it closes the notification.
PROGRAM = """#!{python}
import json, os, signal, sys, time
place = {place!r}
def closed(*_):
    open(place + "/closed", "w").close()
    sys.exit(0)
signal.signal(signal.SIGINT, closed)
options, texts = sys.argv[1 : sys.argv.index("--")], sys.argv[sys.argv.index("--") + 1 :]
assert len(texts) == 2, texts
assert all(one.startswith("--") for one in options), options
with open(place + "/shown.part", "w") as file:
    json.dump([options, texts], file)
os.rename(place + "/shown.part", place + "/shown")
if "--print-id" in options:
    print(7, flush=True)
if "--wait" in options:
    while not os.path.exists(place + "/pressed"):
        time.sleep(0.01)
    print(open(place + "/pressed").read(), flush=True)
sys.exit({status})
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    install(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


def install(place: Path, status: int = 0) -> None:
    program = place / "notify-send"
    program.write_text(PROGRAM.format(python=sys.executable, place=str(place), status=status))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


def body(one: Notice, **options: Any) -> str:
    return Desktop("ann", **options).command(one)[-1]


def uncompressed(text: str) -> str:
    """As notify-send reads a body: backslash escapes, octal ones included."""
    return text.encode("latin-1", "backslashreplace").decode("unicode_escape")


async def lines(argv: tuple[str, ...], press: Callable[[], None] = lambda: None) -> list[bytes]:
    pool = HttpPool(asyncio.get_running_loop())
    try:
        found = []
        async with aclosing(DaemonReach(pool).run(argv)) as printed:  # type: ignore[type-var]
            async for line in printed:
                found.append(line)
                press()
        return found
    finally:
        pool.close()


def test_it_is_off_unless_it_is_asked_for_and_has_buttons_only_then() -> None:
    assert configured() is None
    plain, pressed = configured(enabled=True), configured(enabled=True, buttons=True)
    assert plain is not None
    assert not plain.answers
    assert not any("--action" in word for word in plain.command(notice()))
    assert pressed is not None
    assert pressed.answers is (sys.platform != "darwin")


def test_buttons_wait_and_are_named() -> None:
    argv = Desktop("ann", buttons=True).command(notice())
    assert argv[0] == "notify-send"
    assert {"--wait", "--print-id", "--action=approve=Approve", "--action=reject=Reject"} <= set(argv)
    assert argv[argv.index("--") + 1 : -1] == ("Aegis asks: may this call run?",)


def test_without_a_proof_or_in_a_test_nothing_can_be_pressed() -> None:
    for one in (notice(proof=""), notice(test=True)):
        argv = Desktop("ann", buttons=True).command(one)
        assert not any(word.startswith("--action") or word == "--wait" for word in argv)


def test_what_does_not_fit_cannot_be_approved_from_it() -> None:
    argv = Desktop("ann", buttons=True).command(notice(arguments=json.dumps(["x" * 500])))
    assert "--action=approve=Approve" not in argv
    assert "--action=reject=Reject" in argv
    assert "aegis approve K7Q2" in argv[-1]


@given(st.text(max_size=200))
def test_a_body_is_neither_markup_nor_escapes_of_the_program(text: str) -> None:
    shown = body(notice(tool=text[:90], arguments=json.dumps([text], ensure_ascii=False)))
    assert "<" not in shown
    read = html.unescape(uncompressed(shown)) if shown.isascii() else html.unescape(shown.replace("\\\\", "\\"))
    assert read.isprintable() or read.replace("\n", "").isprintable()
    assert [line.partition(":")[0] for line in read.split("\n")][:3][0] == "Agent"
    assert "\\" not in shown.replace("\\\\", ""), "no backslash is left alone"


def test_octal_escapes_of_an_agent_stay_what_they_are() -> None:
    shown = body(notice(agent="\\342\\200\\256", tool="<b>x</b>", arguments='"\\n"'))
    assert "Agent: \\342\\200\\256\n" in uncompressed(shown)
    assert "&lt;b&gt;x" in shown
    assert HOSTILE.split("\n")[0] not in shown


def test_on_macos_texts_are_arguments_and_never_script() -> None:
    argv = Desktop("ann", buttons=True, mac=True).command(notice(tool='" & do shell script "id'))
    assert argv[0] == "osascript"
    assert ["do shell script" in word for word in argv] == [False] * (len(argv) - 1) + [True]
    assert argv[-2] == "Aegis asks: may this call run?"
    assert not Desktop("ann", buttons=True, mac=True).answers


def test_a_press_is_the_word_of_the_daemons_user() -> None:
    desk = Desktop("ann", buttons=True)
    assert desk.pressed(notice(), b"7\n") is None
    assert desk.pressed(notice(), b"approve\n") == Heard("ab" * 16, "p-roof_0123456ab", True, "user:ann", "ann")
    assert desk.pressed(notice(), b"reject\n") == Heard("ab" * 16, "p-roof_0123456ab", False, "user:ann", "ann")
    assert Desktop("ann").pressed(notice(), b"approve\n") is None


def test_the_program_is_run_and_its_answer_read(run: Run, place: Path) -> None:
    def press() -> None:
        (place / "pressed").write_text("approve")

    (place / "pressed").unlink(missing_ok=True)
    argv = Desktop("ann", buttons=True).command(notice())
    assert run(lines(argv, press)) == [b"7\n", b"approve\n"]
    options, texts = json.loads((place / "shown").read_text())
    assert (*options, "--", *texts) == argv[1:]


def test_a_notification_goes_when_it_is_over(run: Run, place: Path) -> None:
    (place / "closed").unlink(missing_ok=True)

    async def go() -> None:
        pool = HttpPool(asyncio.get_running_loop())
        shown = asyncio.Event()

        async def show() -> None:
            argv = Desktop("ann", buttons=True).command(notice())
            async with aclosing(DaemonReach(pool).run(argv)) as printed:  # type: ignore[type-var]
                async for _ in printed:
                    shown.set()

        task = asyncio.ensure_future(show())
        await shown.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert (place / "closed").exists()
        pool.close()

    run(go())


def test_a_program_that_is_missing_or_fails_is_told_in_words(
    run: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = Desktop("ann").command(notice())
    install(place, status=1)
    with pytest.raises(Fault, match="`notify-send` ended with status 1; see whether the daemon has a desktop session"):
        run(lines(argv))
    monkeypatch.setenv("PATH", str(place / "nothing"))
    with pytest.raises(Fault, match="`notify-send` is not installed"):
        run(lines(argv))
