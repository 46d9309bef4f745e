"""The warden: the parent of every server process; a server is reported gone only when its whole tree is.

It is a small process of its own, so that a killed daemon leaves nobody behind: when its socket closes, it brings all
its children to an end and goes. It runs under `python -I -S`, imports little on purpose (under 10 MB resident:
`_socket` and `_signal`, because `socket` and `signal` cost 2 MB and 7 ms) and must not import the rest of the project.

How a tree is known (Linux): the warden is the subreaper, so whatever leaves its parent comes back as a direct child of
the warden. To which server such an orphan belongs is read from a mark that descendants inherit and normally cannot
lose: the soft value of RLIMIT_LOCKS, which no kernel since 2.6 enforces. It survives `env -i`, setsid, double forks,
an overwritten environment and undumpable processes (gpg-agent, ssh-agent). The variable `_AEGIS_CHILD` carries the
same number, for kernels that refuse the limit. As only the warden reaps its direct children, one look at their list
tells for certain whether a tree is empty.

Elsewhere (macOS) there is neither a subreaper nor /proc: a tree is the process group of its server, and a descendant
that left the group is not found.

The end of a tree: its stdin was closed, GRACE seconds, SIGTERM to every process group in it, GRACE seconds, SIGKILL
until none is left (hard rule 11; the timing of the MCP SDK's stdio client).

Messages, both ways: 4 bytes of length (big endian), then fields separated by NUL.
    spawn REF CWD ARGC ARG… K=V…   with three descriptors: stdin, stdout, stderr
    end REF
    spawned REF PID  ·  failed REF WHAT ERRNO SUBJECT  ·  gone REF CODE LATE
"""

from __future__ import annotations

import _socket
import _thread
import errno
import os
import select
import sys
import time

try:
    import resource
except ImportError:  # pragma: no cover - a Python built without it: marks by variable only
    resource = None  # type: ignore[assignment]

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Iterable, Iterator
else:
    import _signal as signal

GRACE = 2.0
"""Seconds between closing stdin and SIGTERM, and between SIGTERM and SIGKILL."""
PATIENCE = 1.0
"""Seconds of repeated SIGKILL after which a process counts as late (it belongs to somebody else, or hangs in IO)."""
SPAN = 1 << 40
"""How many marks belong to one warden: BASE up to BASE + SPAN."""
VARIABLE = b"_AEGIS_CHILD"

_RLIMIT_LOCKS = 10
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_AGAIN = 0.02
_RUNNING, _ASKED, _TOLD, _KILLED = range(4)
_NEVER = float("inf")


def pack(*fields: bytes) -> bytes:
    """Return one message; a field must not contain NUL."""
    body = b"\0".join(fields)
    return len(body).to_bytes(4, "big") + body


def unpack(buffer: bytearray) -> Iterator[list[bytes]]:
    """Take every complete message out of `buffer`."""
    while len(buffer) >= 4:
        end = 4 + int.from_bytes(buffer[:4], "big")
        if len(buffer) < end:
            return
        body = bytes(buffer[4:end])
        del buffer[:end]
        yield body.split(b"\0")


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)


def _let_go(fd: int) -> None:
    """Close what somebody handed over, in a thread: it can take as long as they like (`loop.aside`)."""
    if fd >= 0:
        _thread.start_new_thread(os.close, (fd,))


def _directory(path: str) -> int:
    """Open a directory only to go there: it need not be readable."""
    return os.open(path, getattr(os, "O_PATH", os.O_RDONLY) | os.O_CLOEXEC)


def _read(path: str) -> bytes:
    """Return a file of /proc, empty when its process is gone or hidden."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    parts = []
    try:
        while part := os.read(fd, 65536):
            parts.append(part)
    except OSError:
        pass
    finally:
        os.close(fd)
    return b"".join(parts)


def survey() -> dict[int, tuple[bytes, int, int]]:
    """Return state letter, parent and process group of every visible process by its id (proc(5), `stat`)."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            raw = _read(f"/proc/{name}/stat")
            # the command, in parentheses, may itself hold spaces and parentheses
            fields = raw[raw.rfind(b")") + 2 :].split(None, 3)
            if len(fields) > 3:
                found[int(name)] = (fields[0], int(fields[1]), int(fields[2]))
    return found


def mark_of(pid: int, base: int) -> int:
    """Return the mark that `pid` inherited from the warden of `base`, or 0."""
    limits = _read(f"/proc/{pid}/limits")
    words = limits[limits.find(b"Max file locks") :].split(None, 4)
    if len(words) > 3 and words[3].isdigit() and base <= int(words[3]) < base + SPAN:
        return int(words[3])
    for entry in _read(f"/proc/{pid}/environ").split(b"\0"):
        name, _, value = entry.partition(b"=")
        if name == VARIABLE and value.isdigit() and base <= int(value) < base + SPAN:
            return int(value)
    return 0


def _settle(pid: int) -> None:
    """Wait until `pid` is not in the middle of an exec, where it has neither an environment nor a command line."""
    for _ in range(50):
        if _read(f"/proc/{pid}/environ") or _read(f"/proc/{pid}/cmdline"):
            return
        if b"\nState:\tZ" in _read(f"/proc/{pid}/status"):
            return
        time.sleep(0.002)


class Tree:
    """One server and all that descends from it."""

    __slots__ = ("code", "deadline", "kin", "late_at", "pid", "ref", "step")

    def __init__(self, ref: int, pid: int, code: int | None) -> None:
        self.ref = ref
        self.pid = pid
        self.code = code
        self.kin: set[int] = set()
        """Descendants that lost their parent and are now direct children of the warden."""
        self.step = _RUNNING
        self.deadline = _NEVER
        self.late_at = _NEVER

    def heads(self) -> set[int]:
        """Return the direct children of the warden through which every process of this tree can be found."""
        return self.kin | {self.pid} if self.code is None else self.kin


class Warden:
    """The whole state of the process; one `run` is its life."""

    def __init__(self, channel: _socket.socket, base: int, grace: float, reaper: bool) -> None:
        self.channel = channel
        self.base = base
        self.grace = grace
        self.reaper = reaper
        self.closing = False
        self.deaf = False
        """Whether the daemon can no longer hear us."""
        self.trees: dict[int, Tree] = {}
        self.ending: dict[int, Tree] = {}
        self.owner: dict[int, Tree] = {}
        # orphans without a readable mark: nobody can tell whose they are, so they stay until the warden goes
        self.strays = Tree(-1, 0, 0)
        self.received = bytearray()
        self.fds: list[int] = []
        self.out = bytearray()
        self.home = _directory(".")
        self.defaults = tuple(signal.valid_signals())
        self.hard_limit = resource.getrlimit(_RLIMIT_LOCKS)[1] if reaper and resource else 0
        self.poll = select.poll()
        self.events = 0
        self.wake, wake_end = os.pipe()
        os.set_blocking(self.wake, False)
        os.set_blocking(wake_end, False)
        signal.set_wakeup_fd(wake_end, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            # the handler has nothing to do: the number arrives through the wake pipe
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def run(self) -> None:
        """Serve until the daemon is gone and every tree has ended."""
        self.channel.setblocking(False)
        self.poll.register(self.wake, select.POLLIN)
        self._listen(select.POLLIN)
        while not (self.closing and self._idle()):
            for fd, event in self.poll.poll(self._pause()):
                if fd == self.wake:
                    numbers = os.read(self.wake, 4096)
                    if signal.SIGTERM in numbers or signal.SIGINT in numbers:
                        self._close()
                    self._reap()
                elif event & select.POLLIN:
                    self._receive()
                elif event & (select.POLLHUP | select.POLLERR | select.POLLNVAL):
                    self._hang_up()
            self._advance()
            self._flush()

    def _idle(self) -> bool:
        if self.trees or self.out:
            return False
        self._adopt()
        if self.strays.kin and self.strays.ref not in self.ending:
            # set free by the last SIGKILL of its tree, so its time is over as well
            self.strays.step = _TOLD
            self.strays.deadline = time.monotonic()
            self.ending[self.strays.ref] = self.strays
        return not self.strays.kin

    def _pause(self) -> float | None:
        """Return how long to wait, in milliseconds: until the next deadline."""
        if not self.ending:
            return None
        wait = max(0.0, min(tree.deadline for tree in self.ending.values()) - time.monotonic())
        # without a subreaper nobody tells when the last descendant of an ended server goes
        return (wait if self.reaper else min(wait, _AGAIN)) * 1000 + 0.5

    # the daemon's side

    def _listen(self, events: int) -> None:
        if events != self.events:
            if events:
                self.poll.register(self.channel.fileno(), events)
            else:
                self.poll.unregister(self.channel.fileno())
            self.events = events

    def _hang_up(self) -> None:
        """The daemon is gone: nobody reads our words, and all trees end."""
        self.deaf = True
        self.out.clear()
        self._listen(0)
        self._close()

    def _close(self) -> None:
        """End every tree; `run` returns when they are gone."""
        if not self.closing:
            self.closing = True
            for tree in (*self.trees.values(), self.strays):
                self._begin(tree)

    def _say(self, *fields: bytes | int) -> None:
        if not self.deaf:
            self.out += pack(*(b"%d" % field if isinstance(field, int) else field for field in fields))

    def _flush(self) -> None:
        if self.out:
            try:
                del self.out[: self.channel.send(self.out)]
            except BlockingIOError:
                pass
            except OSError:
                self._hang_up()
                return
            reading = self.events & select.POLLIN
            self._listen(reading | select.POLLOUT if self.out else reading)

    def _receive(self) -> None:
        """Take one piece of what the daemon sent; a piece holds the descriptors of one message at most (unix(7))."""
        try:
            data, ancillary, flags, _ = self.channel.recvmsg(
                65536, _socket.CMSG_SPACE(12), getattr(_socket, "MSG_CMSG_CLOEXEC", 0)
            )
        except BlockingIOError:
            return
        except OSError:
            self._hang_up()
            return
        if ancillary or flags & _socket.MSG_CTRUNC:
            fds = []
            for _level, _kind, raw in ancillary:
                fds += [int.from_bytes(raw[at : at + 4], sys.byteorder) for at in range(0, len(raw) - 3, 4)]
            for fd in fds:
                os.set_inheritable(fd, False)
            # where the kernel could not give us all three, their places are kept, or the next child would get them
            self.fds += [*fds, -1, -1, -1][: max(3, len(fds))]
        if not data:
            # it may still listen: `Nursery.close` shuts only its sending side
            self._listen(self.events & ~select.POLLIN)
            while self.fds:
                _let_go(self.fds.pop())
            self._close()
            return
        self.received += data
        try:
            for fields in unpack(self.received):
                self._obey(fields)
        except (ValueError, IndexError):
            # the daemon does not speak so: whoever does gets nothing but an end in good order
            self._hang_up()

    def _obey(self, fields: list[bytes]) -> None:
        verb, ref = fields[0], int(fields[1])
        if verb == b"spawn":
            fds, self.fds = self.fds[:3], self.fds[3:]
            argc = int(fields[4])
            umask = os.umask(int(fields[3], 8))  # one thread here too, so it can be the child's for a moment
            try:
                self._spawn(ref, fields[2], fields[5 : 5 + argc], fields[5 + argc :], fds)
            finally:
                os.umask(umask)
                for fd in fds[:2]:
                    _close(fd)
                for fd in fds[2:]:
                    _let_go(fd)
        elif verb == b"end":
            tree = self.trees.get(ref)
            if tree is not None:
                self._begin(tree)
        else:
            raise ValueError(verb)

    # starting

    def _spawn(self, ref: int, cwd: bytes, argv: list[bytes], entries: list[bytes], fds: list[int]) -> None:
        if self.closing:
            self._say(b"failed", ref, b"closing", 0, b"")
            return
        if len(fds) < 3 or -1 in fds:
            self._say(b"failed", ref, b"start", errno.EMFILE, argv[0])
            return
        env = {}
        for entry in entries:
            name, _, value = entry.partition(b"=")
            env[name] = value
        env[VARIABLE] = b"%d" % (self.base + ref)
        if cwd:
            # the warden has one thread, so its own directory can be the child's for a moment
            try:
                os.chdir(cwd)
            except OSError as fault:
                self._say(b"failed", ref, b"cwd", fault.errno or 0, cwd)
                return
        try:
            path = find(argv[0], env.get(b"PATH", os.fsencode(os.defpath)))
            if not path:
                self._say(b"failed", ref, b"lookup", errno.ENOENT, argv[0])
                return
            try:
                pid = self._start(self.base + ref, path, argv, env, fds)
            except OSError as fault:
                interpreter = _interpreter(path) if fault.errno == errno.ENOENT else b""
                what = b"interpreter" if interpreter else b"start"
                self._say(b"failed", ref, what, fault.errno or 0, interpreter or path)
                return
            except ValueError:  # a name that no environment can hold
                self._say(b"failed", ref, b"start", errno.EINVAL, path)
                return
        finally:
            if cwd:
                try:
                    os.fchdir(self.home)
                except OSError:
                    os.chdir("/")
        self.trees[ref] = self.owner[pid] = Tree(ref, pid, None)
        self._say(b"spawned", ref, pid)

    def _start(self, mark: int, path: bytes, argv: list[bytes], env: dict[bytes, bytes], fds: list[int]) -> int:
        if self.hard_limit:
            try:
                resource.setrlimit(_RLIMIT_LOCKS, (mark, self.hard_limit))
            except (OSError, ValueError):
                self.hard_limit = 0
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(fds)]
        # everything else this process has open is close-on-exec
        try:
            return os.posix_spawn(
                path, argv, env, file_actions=actions, setsid=True, setsigmask=(), setsigdef=self.defaults
            )
        except OSError as fault:
            if fault.errno != errno.ENOEXEC:
                raise
        # a script without a first line that names its interpreter: execvp(3) runs it with sh, so agents rely on it
        return os.posix_spawn(
            b"/bin/sh",
            [b"sh", path, *argv[1:]],
            env,
            file_actions=actions,
            setsid=True,
            setsigmask=(),
            setsigdef=self.defaults,
        )

    # ending

    def _begin(self, tree: Tree) -> None:
        if tree.step == _RUNNING:
            tree.step = _ASKED
            tree.deadline = time.monotonic() + self.grace
            self.ending[tree.ref] = tree

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            tree = self.owner.pop(pid, None)
            if tree is None:
                continue
            if pid == tree.pid and tree.code is None:
                tree.code = os.waitstatus_to_exitcode(status)
                self._begin(tree)
            else:
                tree.kin.discard(pid)

    def _adopt(self) -> None:
        """Find out whose the orphans are that came to us."""
        if not self.reaper:
            return
        listed = _read("/proc/thread-self/children").split()
        if not listed and self.owner:  # a kernel without that file
            me = os.getpid()
            pids: Iterable[int] = [pid for pid, (_, parent, _) in survey().items() if parent == me]
        else:
            pids = map(int, listed)
        for pid in pids:
            if pid not in self.owner:
                _settle(pid)
                tree = self.trees.get(mark_of(pid, self.base) - self.base, self.strays)
                self.owner[pid] = tree
                tree.kin.add(pid)

    def _advance(self) -> None:
        """Report the trees that are gone, and take the next step with those whose time is over."""
        if not self.ending:
            return
        self._adopt()
        now = time.monotonic()
        due = []
        for tree in list(self.ending.values()):
            if tree.code is not None and self._empty(tree):
                # as long as there are trees, strays may still come out of them
                if tree is not self.strays or not self.trees:
                    self._finish(tree, 0)
                elif now >= tree.deadline:
                    due.append(tree)
            elif now >= tree.deadline:
                due.append(tree)
        if due:
            self._press(due, now)

    def _empty(self, tree: Tree) -> bool:
        if self.reaper or tree is self.strays:
            return not tree.kin
        try:
            os.killpg(tree.pid, 0)
        except OSError:
            return True
        return False

    def _finish(self, tree: Tree, late: int) -> None:
        del self.ending[tree.ref]
        if tree is not self.strays:
            del self.trees[tree.ref]
            self._say(b"gone", tree.ref, -signal.SIGKILL if tree.code is None else tree.code, late)

    def _press(self, due: list[Tree], now: float) -> None:
        """Signal every process group of the trees: once with SIGTERM, then with SIGKILL until PATIENCE is over."""
        members = self._members(due)
        for tree in due:
            if tree.step == _ASKED:
                tree.step = _TOLD
                tree.deadline = now + self.grace
                # a stopped process would not notice SIGTERM
                signals: tuple[int, ...] = (signal.SIGTERM, signal.SIGCONT)
            elif now >= tree.late_at:
                late = sum(state not in b"ZX" for _, state, _ in members[tree.ref])
                if tree is self.strays:
                    tree.kin.clear()
                self._finish(tree, late)
                continue
            else:
                if tree.step == _TOLD:
                    tree.step = _KILLED
                    tree.late_at = now + PATIENCE
                tree.deadline = now + _AGAIN
                signals = (signal.SIGKILL,)
            for group in {group for _, _, group in members[tree.ref]}:
                for number in signals:
                    try:
                        os.killpg(group, number)
                    except OSError:
                        pass

    def _members(self, trees: list[Tree]) -> dict[int, list[tuple[int, bytes, int]]]:
        """Return (pid, state, process group) of everything in `trees`, by ref.

        Each child got a session of its own, so no group reaches beyond its tree.
        """
        if not self.reaper:
            return {tree.ref: [(tree.pid, b"?", tree.pid)] for tree in trees}
        world = survey()
        offspring: dict[int, list[int]] = {}
        for pid, (_, parent, _) in world.items():
            offspring.setdefault(parent, []).append(pid)
        own = os.getpgrp()
        found = {}
        for tree in trees:
            rows = found[tree.ref] = list[tuple[int, bytes, int]]()
            rest = list(tree.heads())
            while rest:
                pid = rest.pop()
                rest += offspring.get(pid, ())
                state, _, group = world.get(pid, (b"X", 0, 0))
                if group > 1 and group != own:
                    rows.append((pid, state, group))
        return found


def find(name: bytes, path: bytes) -> bytes:
    """Return the file that `name` means, searched like execvp(3) in `path`; empty when there is none."""
    if b"/" in name:
        return name
    for directory in path.split(b":"):
        candidate = (directory or b".") + b"/" + name
        if os.access(candidate, os.X_OK) and not os.path.isdir(candidate):
            return candidate
    return b""


def _interpreter(path: bytes) -> bytes:
    """Return the interpreter that the first line of the script at `path` names, if that is what is missing."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return b""
    try:
        line = os.read(fd, 256).partition(b"\n")[0]
    except OSError:
        return b""
    finally:
        os.close(fd)
    return b"".join(line[2:].split(None, 1)[:1]) if line.startswith(b"#!") else b""


def _become_reaper() -> bool:
    """Make this process the parent of all orphans below it, and closed to its own children (ptrace, pidfd_getfd)."""
    if not os.path.exists("/proc/thread-self/stat"):  # only Linux has it
        return False
    try:
        import ctypes

        prctl = ctypes.CDLL(None).prctl
        prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
        return bool(prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)
    except (ImportError, OSError, AttributeError):
        return False


def main(arguments: list[str]) -> None:
    """Run as a warden: FD of the socket to the daemon, BASE of its marks, GRACE in seconds; `groups` as on macOS."""
    fd, base, grace = int(arguments[0]), int(arguments[1]), float(arguments[2])
    os.set_inheritable(fd, False)
    channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, fd)
    Warden(channel, base, grace, "groups" not in arguments and _become_reaper()).run()
    # nothing to tidy up: the interpreter's own farewell would only keep the daemon waiting
    os._exit(0)
