"""Children of the daemon: each is started by the warden, and its end is told once, when its whole tree is gone.

The daemon's side of `warden`: one socket, watched by the loop's reader and writer, never waited for. No asyncio
subprocess: that would make the daemon the parent, and a killed daemon would leave its servers behind.
"""

from __future__ import annotations

import array
import asyncio
import errno
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from aegis_daemon.backends import warden
from aegis_daemon.loop.aside import NOBODY, Aside

# Not run as a script: that is compiled at every start, which costs 20 ms and 1.4 MB. The directory comes last in the
# path, so that no module of ours hides one of the standard library.
_BOOT: Final = "import sys; sys.path.append(sys.argv[1]); import warden; warden.main(sys.argv[2:])"
_PIECE: Final = 65536
_GONE: Final = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)
_RETRY: Final = 0.01
_SHOWN: Final = 200
_WAYS: Final[list[str]] = []
"""Further words for the warden; tests name `groups` here, to run macOS's way."""
_HELPER_DIED: Final = "the helper process that starts servers died; try again"


class Command(msgspec.Struct, frozen=True):
    """What to run: `argv` (at least the command), working directory (None: the daemon's) and the whole environment.

    Text that was not UTF-8 is kept by surrogateescape (PEP 383). A command without a slash is looked up in the PATH of
    `env`; a relative one starts from `cwd`.
    """

    argv: tuple[str, ...]
    cwd: str | None
    env: Mapping[str, str]
    umask: int = 0o077


class Child:
    """One server and its descendants; made by `Nursery.spawn` alone.

    `pid` is None until the warden has told it (the child may speak a little earlier). `running` is True from `spawn`
    until `on_exit` or `on_failed` is called; exactly one of them is called, exactly once.
    """

    __slots__ = ("_command", "_ending", "_link", "_on_exit", "_on_failed", "_ref", "pid", "running")

    def __init__(self, command: Command, on_exit: Callable[[int], None], on_failed: Callable[[str], None]) -> None:
        self.pid: int | None = None
        self.running = True
        self._command = command
        self._on_exit = on_exit
        self._on_failed = on_failed
        self._ending = False
        self._link: _Link | None = None
        self._ref = 0

    def end(self) -> None:
        """Begin the end: 2 s from now SIGTERM to the whole tree, 2 s later SIGKILL; `on_exit` tells when it is gone.

        The caller has closed the child's stdin before. Calling it again, or after the end, does nothing.
        """
        if self.running and not self._ending and self._link is not None:
            self._ending = True
            self._link.send(warden.pack(b"end", b"%d" % self._ref))


class Nursery:
    """All children of the daemon, and the warden, their parent; one that dies is replaced at the next spawn.

    `grace` is the length in seconds of each of the two waits of the end of a child.
    """

    def __init__(self, grace: float = warden.GRACE) -> None:
        self.alive = 0
        """Children whose end was not told yet."""
        self.late = 0
        """Processes found alive after their whole end sequence was over, since the start; anything but 0 is a leak."""
        self._grace = grace
        self._link: _Link | None = None
        self._links: set[_Link] = set()
        self._closed = False
        self._idle: asyncio.Future[None] | None = None

    @property
    def warden_pid(self) -> int | None:
        """Process id of the running warden."""
        return None if self._link is None else self._link.process.pid

    def start(self) -> None:
        """Start the warden, so that the first spawn finds it warm; needs a running loop. OSError if it cannot start."""
        if self._link is None:
            self._link = _Link(self, asyncio.get_running_loop(), self._grace)
            self._links.add(self._link)

    def spawn(
        self,
        command: Command,
        stdin_fd: int,
        stdout_fd: int,
        stderr_fd: int,
        on_exit: Callable[[int], None],
        on_failed: Callable[[str], None],
    ) -> Child:
        """Start `command` with these descriptors as 0, 1 and 2, and nothing else open.

        Returns at once; the caller may close its copies of the descriptors right away. `on_failed(text)` is called
        (later, never from within) when nothing could be started, else `on_exit(code)` with the exit code or the
        negative number of the signal, after the last descendant is gone.
        """
        child = Child(command, on_exit, on_failed)
        self.alive += 1
        try:
            if self._closed:
                raise _RefusedError("the daemon is stopping; try again when it has started again")
            fields = _fields(command)
            for attempt in (1, 2):
                self.start()
                assert self._link is not None
                try:
                    self._link.adopt(child, fields, (stdin_fd, stdout_fd, stderr_fd))
                    break
                except BrokenPipeError:
                    self._link.lost()
                    if attempt == 2:
                        raise _RefusedError(_HELPER_DIED) from None
        except _RefusedError as fault:
            asyncio.get_running_loop().call_soon(self._failed, child, str(fault))
        except OSError as fault:
            reason = f"no server can be started now: {_lower(fault.strerror)}; see the daemon's log and try again"
            asyncio.get_running_loop().call_soon(self._failed, child, reason)
        return child

    async def close(self) -> None:
        """End all children and the warden and wait for it, at most some 6 s; a later spawn fails."""
        self._closed = True
        for link in tuple(self._links):
            link.finish()
        if not await self._emptied(2 * self._grace + warden.PATIENCE + 0.5):
            for link in tuple(self._links):
                link.lost()
            await self._emptied(0.5)

    async def _emptied(self, seconds: float) -> bool:
        if self._links:
            if self._idle is None:
                self._idle = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._idle], timeout=seconds)
        return not self._links

    # what the links tell

    def _exited(self, child: Child, code: int) -> None:
        if child.running:
            child.running = False
            self.alive -= 1
            _call(child._on_exit, code)

    def _failed(self, child: Child, reason: str) -> None:
        if child.running:
            child.running = False
            self.alive -= 1
            _call(child._on_failed, reason)

    def _parted(self, link: _Link) -> None:
        if self._link is link:
            self._link = None

    def _buried(self, link: _Link) -> None:
        self._links.discard(link)
        if not self._links and self._idle is not None:
            if not self._idle.done():
                self._idle.set_result(None)
            self._idle = None


class _RefusedError(Exception):
    """A spawn that is over before the warden heard of it; the text is for `on_failed`."""


class _Link:
    """One warden: its process, its socket and the children it holds."""

    def __init__(self, nursery: Nursery, loop: asyncio.AbstractEventLoop, grace: float) -> None:
        self.nursery = nursery
        self.loop = loop
        # marks of one warden: random, so that no other warden's are taken for its own
        self.base = (1 << 60) + secrets.randbelow(1 << 18) * warden.SPAN
        self.next_ref = 0
        self.children: dict[int, Child] = {}
        self.received = bytearray()
        self.queue: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self.aside = Aside(loop)
        """where our copies of descriptors that had to wait are let go of: the stderr of an agent is among them"""
        self.waiting = False
        self.finishing = False
        self.open = True
        home = os.path.dirname(os.path.abspath(warden.__file__))
        ours, theirs = socket.socketpair()
        try:
            ours.setblocking(False)
            fd = theirs.fileno()
            self.process = subprocess.Popen(  # noqa: S603 - our own file, run by our own interpreter
                [sys.executable, "-I", "-S", "-c", _BOOT, home, str(fd), str(self.base), str(grace), *_WAYS],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(fd,),
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self.socket = ours
        loop.add_reader(ours.fileno(), self._readable)

    # sending

    def adopt(self, child: Child, fields: list[bytes], fds: tuple[int, int, int]) -> None:
        """Ask the warden for `child`. OSError if a descriptor is no good or cannot be kept."""
        ref = self.next_ref
        self.send(warden.pack(b"spawn", b"%d" % ref, *fields), fds)
        self.next_ref += 1
        child._link, child._ref = self, ref
        self.children[ref] = child

    def send(self, message: bytes, fds: tuple[int, ...] = ()) -> None:
        """Send now what the socket takes, the rest when it takes more; descriptors that must wait are duplicated."""
        if not self.open:
            return
        sent = 0
        if not self.queue:
            sent = self._send(message, fds)
            if sent == len(message):
                return
        self.queue.append((message[sent:], () if sent else _duplicates(fds)))
        self._wait()

    def _send(self, message: bytes, fds: tuple[int, ...]) -> int:
        """Return how many bytes went, with all descriptors; 0 when the socket takes none now."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            return self.socket.sendmsg([message], rights)
        except BlockingIOError:
            return 0
        except OSError as fault:
            if fault.errno in _GONE:
                if fds:
                    raise BrokenPipeError(fault.errno, fault.strerror) from None
                return len(message)  # the reader is about to see the end
            if fault.errno in (errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM):
                return 0
            raise

    def _wait(self) -> None:
        if not self.waiting:
            self.waiting = True
            self.loop.add_writer(self.socket.fileno(), self._writable)

    def _writable(self) -> None:
        while self.queue:
            message, fds = self.queue[0]
            try:
                sent = self._send(message, fds)
            except OSError:
                self.lost()
                return
            if not sent:
                if fds:
                    # writable, and yet nothing went: too many descriptors are on their way (unix(7), ETOOMANYREFS)
                    self.loop.remove_writer(self.socket.fileno())
                    self.loop.call_later(_RETRY, self._again)
                return
            self.aside.let_go(NOBODY, fds)
            if sent < len(message):
                self.queue[0] = (message[sent:], ())
                return
            self.queue.popleft()
        self.loop.remove_writer(self.socket.fileno())
        self.waiting = False
        if self.finishing:
            self._half_close()

    def _again(self) -> None:
        if self.open:
            self.loop.add_writer(self.socket.fileno(), self._writable)

    def finish(self) -> None:
        """Tell the warden that nothing more will come: it ends all its children and goes."""
        if self.open and not self.finishing:
            self.finishing = True
            if not self.queue:
                self._half_close()

    def _half_close(self) -> None:
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it is gone already, the reader is about to see it

    # receiving

    def _readable(self) -> None:
        try:
            data = self.socket.recv(_PIECE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.lost()
            return
        self.received += data
        for fields in warden.unpack(self.received):
            self._heard(fields)

    def _heard(self, fields: list[bytes]) -> None:
        verb, ref = fields[0], int(fields[1])
        if verb == b"spawned":
            self.children[ref].pid = int(fields[2])
        elif verb == b"gone":
            self.nursery.late += int(fields[3])
            self.nursery._exited(self.children.pop(ref), int(fields[2]))
        elif verb == b"failed":
            child = self.children.pop(ref)
            self.nursery._failed(child, _reason(child._command, fields[2], int(fields[3]), fields[4]))

    # the end

    def lost(self) -> None:
        """The warden is gone, or of no more use: end what it left behind, then tell."""
        if not self.open:
            return
        self.open = False
        self.nursery._parted(self)
        self.loop.remove_reader(self.socket.fileno())
        self.loop.remove_writer(self.socket.fileno())
        for _, fds in self.queue:
            self.aside.let_go(NOBODY, fds)
        self.queue.clear()
        # its socket is closed by its end alone, so this does not wait longer than the kernel needs to bury it
        self.process.kill()
        self.process.wait()
        self._last_words()
        self.socket.close()
        if not self.children:
            self.nursery._buried(self)
            return
        pids = [child.pid for child in self.children.values() if child.pid is not None]
        sweep = self.loop.run_in_executor(None, _sweep, self.base, pids)
        sweep.add_done_callback(self._swept)

    def _last_words(self) -> None:
        try:
            while data := self.socket.recv(_PIECE):
                self.received += data
        except OSError:
            pass
        for fields in warden.unpack(self.received):
            self._heard(fields)

    def _swept(self, sweep: asyncio.Future[int]) -> None:
        if not sweep.cancelled():
            self.nursery.late += len(self.children) if sweep.exception() else sweep.result()
        for child in self.children.values():
            if child.pid is None:
                self.nursery._failed(child, _HELPER_DIED)
            else:
                self.nursery._exited(child, -signal.SIGKILL)
        self.children.clear()
        self.nursery._buried(self)


def _sweep(base: int, pids: list[int]) -> int:
    """Kill what a dead warden left, and return how many processes stayed; runs in a thread, at most about 1 s.

    The groups of the children are known; on Linux whatever bears a mark of that warden is found as well.
    """
    for pid in pids:
        try:
            os.killpg(pid, signal.SIGKILL)
        except OSError:
            pass
    if not os.path.exists("/proc/self/limits"):  # only Linux has it
        return 0
    deadline = time.monotonic() + warden.PATIENCE
    while True:
        alive = [pid for pid, (state, _, _) in warden.survey().items() if state not in b"ZX"]
        left = [pid for pid in alive if warden.mark_of(pid, base)]
        if not left or time.monotonic() > deadline:
            return len(left)
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        time.sleep(_RETRY)


def _call(callback: Callable[..., None], *args: object) -> None:
    """Call without letting one owner's fault keep the others from their news."""
    try:
        callback(*args)
    except Exception as fault:
        loop = asyncio.get_running_loop()
        loop.call_exception_handler({"message": "a child's callback failed", "exception": fault})


def _duplicates(fds: tuple[int, ...]) -> tuple[int, ...]:
    copies: list[int] = []
    try:
        copies.extend(os.dup(fd) for fd in fds)
    except OSError:
        for fd in copies:
            os.close(fd)
        raise
    return tuple(copies)


def _fields(command: Command) -> list[bytes]:
    """Return what follows the ref in a spawn message."""
    if not command.argv or not command.argv[0]:
        raise _RefusedError("the command is empty; name the server's program")
    texts = [command.cwd or "", *command.argv]
    # a name that is empty or holds `=` cannot be in an environment
    texts += [f"{name}={value}" for name, value in command.env.items() if name and "=" not in name]
    try:
        fields = [text.encode("utf-8", "surrogateescape") for text in texts]
    except UnicodeEncodeError:
        raise _RefusedError(f"`{_shown(command.argv[0])}` has an argument that is not text; correct it") from None
    if any(b"\0" in field for field in fields):
        raise _RefusedError(f"`{_shown(command.argv[0])}` has a NUL byte in its arguments or environment; remove it")
    return [fields[0], b"%o" % command.umask, b"%d" % len(command.argv), *fields[1:]]


def _reason(command: Command, what: bytes, number: int, subject: bytes) -> str:
    """Return why nothing was started, and what to do about it."""
    name = _shown(command.argv[0])
    place = _shown(subject.decode("utf-8", "surrogateescape"))
    match what, number:
        case b"lookup", _:
            return f"command not found: `{name}`; is it on the PATH of the agent's environment?"
        case b"cwd", errno.ENOENT:
            return f"the working directory `{place}` of `{name}` does not exist; create it or name another"
        case b"cwd", _:
            return f"the working directory `{place}` of `{name}` cannot be entered: {_error(number)}; name another"
        case b"interpreter", _:
            return f"`{name}` needs `{place}`, which does not exist; install it or correct the first line of the script"
        case b"closing", _:
            return f"`{name}` was not started, the helper process that starts servers is stopping; try again"
        case _, errno.ENOENT:
            return f"`{place}` does not exist; check the path of the command"
        case _, errno.EACCES:
            return f"`{place}` may not be run; is it a program, and executable for this user (`chmod +x`)?"
        case _, errno.E2BIG:
            return f"the arguments and the environment of `{name}` are too long for this system; pass less"
    return f"`{place}` could not be started: {_error(number)}; try it in a terminal"


def _error(number: int) -> str:
    return _lower(os.strerror(number))


def _lower(text: str | None) -> str:
    return text[:1].lower() + text[1:] if text else "unknown error"


def _shown(text: str) -> str:
    """Return `text` on one line, printable and not too long."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return shown if len(shown) <= _SHOWN else shown[: _SHOWN - 1] + "…"
