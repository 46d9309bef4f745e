from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lingering import LINGER_S, Lingering
from processes import (
    BOUND,
    PATH,
    STUBBORN,
    ZOO,
    ZOO_SIZE,
    Kid,
    alive,
    bearers,
    children_of,
    fd_count,
    resident_kib,
    token,
    wait_gone,
)

from aegis_daemon.backends import children
from aegis_daemon.backends.children import Command, Nursery

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, pidfd and a subreaper")
GRACE = 0.3
LOOPS = [
    pytest.param(("asyncio", {}), id="asyncio", marks=pytest.mark.matrix),
    pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
]


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
async def nursery(request: pytest.FixtureRequest) -> AsyncIterator[Nursery]:
    """With other waits where a test says so: `parametrize("nursery", [seconds], indirect=True)`."""
    faults: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context))
    made = Nursery(getattr(request, "param", GRACE))
    made.start()
    yield made
    await made.close()
    assert (made.alive, made.warden_pid) == (0, None)
    assert faults == []


@pytest.fixture
async def kid(nursery: Nursery) -> AsyncIterator[Callable[..., Kid]]:
    made: list[Kid] = []

    def spawn(*argv: str, **options: Any) -> Kid:
        made.append(Kid(nursery, *argv, **options))
        return made[-1]

    yield spawn
    for one in made:
        one.close()


Spawn = Callable[..., Kid]


@pytest.fixture
def odd_daemon() -> Iterator[int]:
    """A daemon that was started in a bad neighbourhood: signals ignored and blocked, a descriptor left open."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN), signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    fd = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(fd, True)
    yield fd
    os.close(fd)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
    signal.signal(signal.SIGHUP, before[0])
    signal.signal(signal.SIGUSR2, before[1])


# starting


async def test_child_gets_its_three_descriptors_and_no_other(odd_daemon: int, kid: Spawn) -> None:
    probe = """
import os
found = []
for fd in range(1024):
    try: os.fstat(fd)
    except OSError: continue
    found.append(fd)
print(found, flush=True)
"""
    bystander = kid("cat")
    one = kid(sys.executable, "-I", "-S", "-c", probe)
    assert await one.line() == "[0, 1, 2]"
    assert await one.code() == 0
    bystander.end()
    assert await bystander.code() == 0


@linux
async def test_child_starts_with_default_signals_in_a_session_of_its_own(odd_daemon: int, kid: Spawn) -> None:
    one = kid("grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status")
    blocked, ignored = (int(line.split()[1], 16) for line in (await one.output()).decode().splitlines())
    assert blocked == 0
    assert ignored & ~(0b11 << 31) == 0  # 32 and 33 are glibc's own: its posix_spawn leaves them so
    two = kid("sh", "-c", "echo $$ $(cut -d' ' -f5,6 /proc/$$/stat)")
    pid = await two.line()
    assert pid.split() == [str(two.child.pid)] * 3
    assert await one.code() == await two.code() == 0


async def test_child_gets_exactly_the_command_that_was_given(kid: Spawn, tmp_path: Path) -> None:
    place = tmp_path / os.fsdecode(b"not \xff text")
    place.mkdir()
    probe = "import os, sys; print([os.fsencode(a) for a in sys.argv[1:]], os.getcwdb(), sorted(os.environb.items()))"
    arguments = ("", "a b\n", os.fsdecode(b"\xfe"), "ü")
    env = {"PATH": PATH, "ODD": os.fsdecode(b"\xff\n"), "EMPTY": "", "no=name": "x", "": "y", "LC_ALL": "C.UTF-8"}
    one = kid(sys.executable, "-I", "-S", "-c", probe, *arguments, cwd=str(place), env=env)
    text = (await one.output()).decode()
    assert text.startswith(f"{[os.fsencode(a) for a in arguments]} {os.fsencode(place)!r} ")
    listed = dict(eval(text[text.rindex(" [(") :]))
    assert listed.pop(b"_AEGIS_CHILD").isdigit()
    assert listed == {b"PATH": PATH.encode(), b"ODD": b"\xff\n", b"EMPTY": b"", b"LC_ALL": b"C.UTF-8"}
    assert await one.code() == 0


async def test_a_child_writes_with_the_mask_it_was_given_and_no_other_child_does(kid: Spawn) -> None:
    masks = [kid("sh", "-c", "umask", **more) for more in ({"umask": 0o022}, {}, {"umask": 0o007}, {"umask": 0})]
    assert [await one.line() for one in masks] == ["0022", "0077", "0007", "0000"]


async def test_no_directory_means_the_daemons_own(kid: Spawn, tmp_path: Path) -> None:
    elsewhere = kid("pwd", cwd=str(tmp_path))
    missing = kid("pwd", cwd=str(tmp_path / "missing"))
    here = kid("pwd")
    assert Path(await elsewhere.line()) == tmp_path
    assert Path(await here.line()) == Path.cwd()
    assert "missing" in await missing.reason()


async def test_command_is_looked_up_in_the_childs_own_path_and_directory(kid: Spawn, tmp_path: Path) -> None:
    (tmp_path / "bin" / "decoy").mkdir(parents=True)
    (tmp_path / "later").mkdir()
    program = tmp_path / "later" / "decoy"
    program.write_text("#!/bin/sh\necho found by $0\n")
    program.chmod(0o755)
    one = kid("decoy", cwd=str(tmp_path), env={"PATH": f"/nowhere:{tmp_path}/bin:later"})
    assert await one.line() == "found by later/decoy"
    two = kid("./decoy", cwd=str(tmp_path / "later"), env={})
    assert await two.line() == "found by ./decoy"
    three = kid("decoy", cwd=str(tmp_path))
    assert await three.reason() == "command not found: `decoy`; is it on the PATH of the agent's environment?"
    assert three.child.pid is None
    four = kid("sh", "-c", "echo default path", env={})
    assert await four.line() == "default path"


async def test_script_without_a_first_line_runs_as_execvp_would_run_it(kid: Spawn, tmp_path: Path) -> None:
    script = tmp_path / "bare"
    script.write_text("echo $1; exit 5\n")
    script.chmod(0o755)
    one = kid(str(script), "word")
    assert await one.line() == "word"
    assert await one.code() == 5


async def test_failed_start_says_why_and_what_next(kid: Spawn, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("x")
    orphan = tmp_path / "orphan"
    orphan.write_text("#!/no/such/interpreter -x\n")
    orphan.chmod(0o755)
    cases: list[tuple[tuple[str, ...], dict[str, Any], str]] = [
        (("/no/server",), {}, "`/no/server` does not exist; check the path"),
        (("no-such-server",), {}, "command not found: `no-such-server`; is it on the PATH"),
        (("bad\nname\udcff",), {}, "command not found: `bad\\nname\\udcff`; is it"),
        ((str(plain),), {}, f"`{plain}` may not be run; is it a program, and executable"),
        ((str(tmp_path),), {}, f"`{tmp_path}` may not be run; is it a program"),
        ((str(orphan),), {}, f"`{orphan}` needs `/no/such/interpreter`, which does not exist; install it"),
        (
            ("true",),
            {"cwd": str(tmp_path / "gone")},
            f"the working directory `{tmp_path}/gone` of `true` does not exist",
        ),
        (
            ("true",),
            {"cwd": str(plain)},
            f"the working directory `{plain}` of `true` cannot be entered: not a directory",
        ),
        (("true", "x" * (1 << 21)), {}, "the arguments and the environment of `true` are too long"),
        ((), {}, "the command is empty; name"),
        (("",), {}, "the command is empty; name"),
        (("true", "a\0b"), {}, "`true` has a NUL byte"),
        (("true", "\ud800"), {}, "`true` has an argument that is not text"),
    ]
    for argv, options, text in cases:
        one = kid(*argv, **options)
        assert one.child.running
        assert (await one.reason()).startswith(text)
        assert (one.child.running, one.exited.done()) == (False, False)
    assert await kid("sh", "-c", "exit 0").code() == 0


async def test_bad_descriptor_fails_the_spawn_and_nothing_else(nursery: Nursery, kid: Spawn) -> None:
    failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    nursery.spawn(Command(("true",), None, {}), 0, 1, 9999, lambda code: None, failed.set_result)
    assert "no server can be started now: bad file descriptor" in await asyncio.wait_for(failed, BOUND)
    assert await kid("true").code() == 0


@linux
async def test_spawning_faster_than_the_warden_takes_neither_blocks_nor_mixes_descriptors(
    nursery: Nursery, kid: Spawn
) -> None:
    assert nursery.warden_pid is not None
    before = fd_count()
    env = {"PATH": PATH, **{f"V{number}": "x" * 1000 for number in range(100)}}
    os.kill(nursery.warden_pid, signal.SIGSTOP)
    try:
        kids = []
        for number in range(60):
            kids.append(kid("sh", "-c", f"echo {number}; exit {number}", env=env))  # else it would hang here
            kids[-1].child.end()
        await asyncio.sleep(0)
        assert nursery.alive == 60
    finally:
        os.kill(nursery.warden_pid, signal.SIGCONT)
    for number, one in enumerate(kids):
        assert await one.line() == str(number)
        assert await one.code() == number
    assert fd_count() == before + 2 * 60


@linux
@pytest.mark.skipif(os.geteuid() == 0, reason="the kernel counts descriptors in flight for ordinary users only")
async def test_too_many_descriptors_on_their_way_only_delay_a_spawn(nursery: Nursery, kid: Spawn) -> None:
    assert nursery.warden_pid is not None
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.kill(nursery.warden_pid, signal.SIGSTOP)
    try:
        # long messages would fill the socket before the kernel objects
        kids = [kid("sh", "-c", f"exit {number}", env={}) for number in range(40)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (fd_count() + 10, usual[1]))
        last: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        null = os.open(os.devnull, os.O_RDWR)
        before = fd_count()
        nursery.spawn(Command(("true",), None, {}), null, null, null, last.set_result, lambda reason: None)
        assert fd_count() == before + 3  # so the kernel did object, and copies wait
        os.close(null)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, usual)
        os.kill(nursery.warden_pid, signal.SIGCONT)
    assert [await one.code() for one in kids] == list(range(40))
    assert await asyncio.wait_for(last, BOUND) == 0


@linux
@pytest.mark.skipif(os.geteuid() == 0, reason="root may look into every process")
async def test_child_cannot_look_into_the_warden(kid: Spawn) -> None:
    one = kid("sh", "-c", "ls /proc/$PPID/fd || exit 5")
    assert await one.code() == 5


# ending


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -USR1 $$", -signal.SIGUSR1)])
async def test_exit_code_or_signal_is_told(nursery: Nursery, kid: Spawn, script: str, code: int) -> None:
    one = kid("sh", "-c", script)
    assert nursery.alive == 1
    assert await one.code() == code
    assert (nursery.alive, nursery.late, one.child.running) == (0, 0, False)
    one.child.end()


@pytest.mark.parametrize("nursery", [BOUND], indirect=True)
async def test_child_that_leaves_on_closed_stdin_is_never_signalled(kid: Spawn) -> None:
    one = kid("sh", "-c", "trap 'exit 9' TERM; echo ready; cat; exit 4")
    await one.line()
    one.end()
    one.end()
    assert await one.code() == 4


@pytest.mark.parametrize("nursery", [1.0], indirect=True)
async def test_child_deaf_to_closed_stdin_gets_sigterm_once(kid: Spawn) -> None:
    probe = """
import signal, time
seen = []
signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
print('ready', flush=True)
while not seen: signal.pause()
end = time.monotonic() + 0.1
while time.monotonic() < end: time.sleep(0.01)
raise SystemExit(10 + len(seen))
"""
    one = kid(sys.executable, "-I", "-S", "-c", probe)
    await one.line()
    began = time.monotonic()
    one.end()
    assert await one.code() == 11
    assert time.monotonic() - began >= 1.0


async def test_stubborn_child_is_killed_after_both_waits(nursery: Nursery, kid: Spawn) -> None:
    one = kid("sh", "-c", STUBBORN)
    await one.line()
    began = time.monotonic()
    one.end()
    assert await one.code() == -signal.SIGKILL
    assert time.monotonic() - began >= 2 * GRACE
    assert nursery.late == 0


@linux
async def test_sigterm_reaches_descendants_in_sessions_of_their_own_and_stopped_ones(kid: Spawn) -> None:
    far = "setsid sh -c 'trap \"echo far; exit\" TERM; echo ready; while :; do sleep 0.01; done' &"
    stopped = "sh -c 'trap \"echo stopped; exit\" TERM; echo ready; kill -STOP $$; while :; do sleep 0.01; done' &"
    one = kid("sh", "-c", f"{far} {stopped} trap '' TERM; echo ready; sleep 1000; :")
    for _ in range(3):
        assert await one.line() == "ready"
    one.end()
    assert {await one.line(), await one.line()} == {"far", "stopped"}
    assert await one.code() == -signal.SIGKILL


@linux
async def test_exit_is_told_only_after_the_whole_tree_is_gone(nursery: Nursery, kid: Spawn) -> None:
    one = kid("sh", "-c", "sh -c 'trap \"\" TERM; echo $$; exec sleep 1000' & sleep 0.05; exit 7")
    straggler = int(await one.line())
    seen: list[bool] = []
    one.exited.add_done_callback(lambda _: seen.append(alive(straggler)))
    assert await one.code() == 7
    assert seen == [False]
    assert nursery.late == 0


@linux
async def test_whoever_escaped_is_ended_with_its_own_server_and_no_other(nursery: Nursery, kid: Spawn) -> None:
    marks = token(), token()
    first, second = (kid("sh", "-c", ZOO, env={"PATH": PATH, "MARK": mark}) for mark in marks)
    pids = [{int(await one.line()) for _ in range(ZOO_SIZE)} for one in (first, second)]
    first.end()
    assert await first.code() == -signal.SIGKILL
    assert not any(map(alive, pids[0]))
    assert bearers(marks[0]) == []
    assert all(map(alive, pids[1]))
    second.end()
    assert await second.code() == -signal.SIGKILL
    assert not any(map(alive, pids[1]))
    assert nursery.late == 0


@linux
async def test_process_that_cannot_be_killed_is_counted_as_late(
    nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    helpless = "import os; os.killpg = lambda *_: None; "
    monkeypatch.setattr(children, "_BOOT", helpless + children._BOOT)
    other = Nursery(0.05)
    one = Kid(other, "sh", "-c", STUBBORN)
    pid = int(await one.line())
    try:
        one.end()
        assert await one.code() == -signal.SIGKILL
        assert other.late == 2  # sh and its sleep
    finally:
        os.killpg(pid, signal.SIGKILL)
    await other.close()
    assert other.alive == 0
    one.close()


async def test_fault_in_one_callback_does_not_keep_the_news_from_others(nursery: Nursery, kid: Spawn) -> None:
    loop = asyncio.get_running_loop()
    faults: list[str] = []
    kept = loop.get_exception_handler()
    loop.set_exception_handler(lambda loop, context: faults.append(context["message"]))

    def faulty(code: int) -> None:
        raise RuntimeError(code)

    null = os.open(os.devnull, os.O_RDWR)
    nursery.spawn(Command(("true",), None, {}), null, null, null, faulty, lambda reason: None)
    os.close(null)
    assert await kid("sleep", "0.05").code() == 0
    assert faults == ["a child's callback failed"]
    loop.set_exception_handler(kept)


async def _many_end_together(kid: Spawn, count: int) -> None:
    kids = [kid("sh", "-c", STUBBORN) for _ in range(count)]
    for one in kids:
        await one.line()
    began = time.monotonic()
    for one in kids:
        one.end()
    for one in kids:
        assert await one.code() == -signal.SIGKILL
    assert time.monotonic() - began < count * GRACE / 2, "a quarter of what they take one after another"


async def test_many_end_in_the_time_of_one(kid: Spawn) -> None:
    await _many_end_together(kid, 25)


@pytest.mark.full
async def test_hundreds_end_in_the_time_of_one(kid: Spawn) -> None:
    await _many_end_together(kid, 400)


async def _come_and_go(nursery: Nursery, count: int, at_once: int) -> None:
    assert nursery.warden_pid is not None
    await Kid(nursery, "true").code()
    # about twice what it needs: one descriptor lost per child would soon be felt
    resource.prlimit(nursery.warden_pid, resource.RLIMIT_NOFILE, (24, 1024))
    own = 0
    for turn in range(count // at_once):
        kids = [Kid(nursery, "sh", "-c", "(exec sleep 0.001 &) ; exit 2") for _ in range(at_once)]
        for one in kids:
            assert await one.code() == 2
            one.close()
        # no zombie and nobody else either
        assert children_of(nursery.warden_pid) == []
        if not turn:
            own = fd_count()
    assert fd_count() == own
    assert (nursery.alive, nursery.late) == (0, 0)


@linux
async def test_children_come_and_go_without_a_trace(nursery: Nursery) -> None:
    await _come_and_go(nursery, 60, 10)


@linux
@pytest.mark.full
async def test_thousands_come_and_go_without_a_trace(nursery: Nursery) -> None:
    resident = []
    for _ in range(2):
        await _come_and_go(nursery, 2000, 20)
        resident.append(resident_kib(nursery.warden_pid))
    assert resident[1] - resident[0] < 512


# the warden


@linux
async def test_killed_warden_leaves_nobody_and_is_replaced(nursery: Nursery, kid: Spawn) -> None:
    mark = token()
    kids = [kid("sh", "-c", script, env={"PATH": PATH, "MARK": mark}) for script in (ZOO, STUBBORN)]
    pids = [int(await kids[0].line()) for _ in range(ZOO_SIZE)] + [int(await kids[1].line())]
    assert await kid("true").code() == 0  # by now the others were reported too
    first = nursery.warden_pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert [await one.code() for one in kids] == [-signal.SIGKILL] * 2
    assert not any(map(alive, pids))
    assert bearers(mark) == []
    assert (nursery.alive, nursery.late, nursery.warden_pid) == (0, 0, None)
    assert first not in children_of(os.getpid())
    assert await kid("sh", "-c", "exit 6").code() == 6
    assert nursery.warden_pid not in (None, first)


@linux
async def test_spawn_right_after_the_wardens_death_uses_a_new_one(nursery: Nursery, kid: Spawn) -> None:
    old = kid("sh", "-c", STUBBORN)
    await old.line()
    assert await kid("true").code() == 0
    assert nursery.warden_pid is not None
    os.kill(nursery.warden_pid, signal.SIGKILL)
    assert wait_gone(nursery.warden_pid, BOUND)
    # the loop had no chance to see it
    assert await kid("sh", "-c", "exit 6").code() == 6
    assert await old.code() == -signal.SIGKILL


@linux
async def test_spawn_that_dies_with_the_warden_is_told_as_failed(nursery: Nursery, kid: Spawn) -> None:
    assert nursery.warden_pid is not None
    os.kill(nursery.warden_pid, signal.SIGSTOP)
    one = kid("true")
    os.kill(nursery.warden_pid, signal.SIGKILL)
    assert await one.reason() == "the helper process that starts servers died; try again"
    assert not one.exited.done()


@linux
async def test_what_the_dying_warden_said_last_is_heard(nursery: Nursery, kid: Spawn) -> None:
    one = kid("sh", "-c", "echo $$; read line; exit 8")
    assert nursery.warden_pid is not None
    pid = int(await one.line())
    os.write(one.stdin, b"\n")
    # the loop stands still: the warden reports the end and is killed before anybody reads it
    assert wait_gone(pid, BOUND)
    deadline = time.monotonic() + BOUND
    while children_of(nursery.warden_pid) and time.monotonic() < deadline:
        os.sched_yield()
    os.kill(nursery.warden_pid, signal.SIGTERM)
    assert wait_gone(nursery.warden_pid, BOUND)
    # this spawn meets the broken socket first, with the report still unread in it
    assert await kid("true").code() == 0
    assert one.exited.result() == 8


@linux
async def test_sigterm_to_the_warden_ends_all_in_good_order(nursery: Nursery, kid: Spawn) -> None:
    good = kid("sh", "-c", "trap 'exit 3' TERM; echo ready; while :; do sleep 0.01; done")
    bad = kid("sh", "-c", STUBBORN)
    await good.line(), await bad.line()
    first = nursery.warden_pid
    assert first is not None
    os.kill(first, signal.SIGTERM)
    assert await good.code() == 3
    late = kid("true")
    assert "is stopping; try again" in await late.reason()
    assert await bad.code() == -signal.SIGKILL
    assert wait_gone(first, BOUND)
    assert await kid("true").code() == 0


# closing


async def test_close_ends_all_and_the_warden_in_the_time_of_one(nursery: Nursery) -> None:
    kids = [Kid(nursery, "sh", "-c", STUBBORN) for _ in range(20)]
    for one in kids:
        await one.line()
    warden = nursery.warden_pid
    assert warden is not None
    began = time.monotonic()
    await asyncio.gather(nursery.close(), nursery.close())
    assert time.monotonic() - began < 20 * GRACE, "half of what they take one after another"
    assert [one.exited.result() for one in kids] == [-signal.SIGKILL] * 20
    assert children_of(os.getpid()).count(warden) == 0
    for one in kids:
        one.close()
    refused = Kid(nursery, "true")
    assert "the daemon is stopping" in await refused.reason()
    refused.close()


@linux
async def test_close_is_bounded_when_the_warden_hangs(nursery: Nursery) -> None:
    one = Kid(nursery, "sh", "-c", STUBBORN)
    pid = int(await one.line())
    two = Kid(nursery, "true")
    assert await two.code() == 0
    two.close()
    assert nursery.warden_pid is not None
    os.kill(nursery.warden_pid, signal.SIGSTOP)
    await asyncio.wait_for(nursery.close(), BOUND)
    assert one.exited.result() == -signal.SIGKILL
    assert not alive(pid)
    one.close()


async def test_close_without_children_waits_for_nothing() -> None:
    never_started = Nursery(1e6)
    await never_started.close()
    started = Nursery(1e6)
    started.start()
    await asyncio.wait_for(started.close(), BOUND)


# where there is neither a subreaper nor /proc


async def test_without_a_subreaper_the_process_group_is_the_tree(
    nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "_WAYS", ["groups"])
    plain = Nursery(GRACE)
    leaver = Kid(plain, "sh", "-c", "sh -c 'trap \"\" TERM; echo $$; exec sleep 1000' & sleep 0.05; exit 7")
    stubborn = Kid(plain, "sh", "-c", STUBBORN)
    quick = Kid(plain, "sh", "-c", "exit 2")
    straggler = int(await leaver.line())
    await stubborn.line()
    stubborn.end()
    assert await quick.code() == 2
    assert await leaver.code() == 7
    assert await stubborn.code() == -signal.SIGKILL
    assert not alive(straggler)
    await plain.close()
    # `late` is not looked at: a dead member of a group counts until init has reaped it, and some inits take their time
    assert plain.alive == 0
    for one in (leaver, stubborn, quick):
        one.close()


@linux
async def test_a_stderr_that_lingers_holds_nobody_else_up(kid: Spawn, nursery: Nursery) -> None:
    failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    lingering = Lingering()
    stderr = lingering.end.detach()
    null = os.open(os.devnull, os.O_RDWR)
    command = Command(("no-such-command",), None, {"PATH": PATH})
    nursery.spawn(command, null, null, stderr, lambda code: None, failed.set_result)
    os.close(stderr)  # the warden has the last one
    os.close(null)
    began = time.monotonic()
    assert "not found" in await failed
    other = kid(sys.executable, "-c", "pass")
    assert await other.exited == 0
    assert time.monotonic() - began < LINGER_S / 2
    lingering.reset()
