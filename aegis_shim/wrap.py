"""aegis-wrap: stands in for an MCP server's command, and brings the client and the daemon together.

It decides nothing and reads no frame while a daemon is there. Nothing but frames ever reaches its stdout.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found, unused-ignore]  # `signal` imports `enum`: 4 ms
import _socket
import errno
import posix
import select
import sys
from time import monotonic

from aegis_shim import hello
from aegis_shim.ledger import DISPATCHED, Ledger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from aegis_shim.offline import Refusal
    from aegis_shim.pump import Relay
    from aegis_shim.start import Starter

USAGE = "usage: aegis-wrap [--agent ID] [--backend NAME] [--socket PATH] [--no-autostart] [--] [COMMAND ARG...]"
HELP = """
Stands in for an MCP server's command in an agent's configuration: put `aegis-wrap` before it. Frames go through the
aegis daemon, which judges, records and forwards them.

Options come only before the command.
  --agent ID       the configured agent to act as (AEGIS_AGENT; else `default`)
  --backend NAME   the configured backend (AEGIS_BACKEND; else derived from the command: the first word that is no
                   launcher, without scope, version, file extension and `mcp`/`server` affixes)
  --socket PATH    the daemon's socket (AEGIS_SOCKET; else aegis.sock under AEGIS_HOME or the XDG runtime directory)
  --no-autostart   do not start a daemon when none runs
  --help, --version

Exit status: the server's (128+n when signal n ended it); 1 when no daemon could be had; 2 for a usage error.
"""

PATIENCE_S = 10.0  # for a daemon that starts
RESTART_S = 10.0  # between two attempts to start one
ENDED_S = 1.5  # for another daemon, after the one we started has ended
RESTARTED_S = 3.0  # that a request waits for one that was started for it
RETRY_S = 1.0  # between two attempts to reach one that failed us
GREETING_S = 30.0  # for the daemon's answer to the greeting
END_S = 4.5  # for the daemon to end the server: 2 s, SIGTERM, 2 s, SIGKILL
GONE, DRAINED = 254, 255  # as in pump, which only a relay loads
SIGNALS = (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP)


class UsageError(Exception):
    """The command line cannot be understood; the text says why and what to write instead."""


class Shown(Exception):
    """The user asked for a text, not for a session."""


class Options:
    """What the user asked for, on the command line or in the environment."""

    __slots__ = ("agent", "autostart", "backend", "command", "socket")

    def __init__(self, agent: str, backend: str, socket: str, autostart: bool, command: tuple[str, ...]) -> None:
        self.agent = agent
        self.backend = backend
        self.socket = socket  # empty: the usual place
        self.autostart = autostart
        self.command = command


def parse(words: list[str], env: dict[str, str]) -> Options:
    """The options before the command, then the command. Raises UsageError, and Shown for --help and --version."""
    given = {"--agent": "", "--backend": "", "--socket": ""}
    autostart = True
    at = 0
    while at < len(words):
        word = words[at]
        name, equals, value = word.partition("=")
        if word == "--":
            at += 1
            break
        if not word.startswith("-") or word == "-":
            break
        if name in given:
            if not equals:
                at += 1
                value = words[at] if at < len(words) else ""
            if not value or (not equals and value.startswith("-")):
                raise UsageError(f"`{name}` needs a value; write `{name} {_VALUES[name]}`")
            given[name] = value
        elif word == "--no-autostart":
            autostart = False
        elif word in ("--help", "-h"):
            raise Shown(USAGE + HELP)
        elif word == "--version":
            raise Shown(f"aegis-wrap {_version()}\n")
        else:
            raise UsageError(f"unknown option `{word}`; write `--` before a command that begins with a dash")
        at += 1
    command = tuple(words[at:])
    backend = given["--backend"] or env.get("AEGIS_BACKEND", "")
    if not backend and not command:
        raise UsageError("nothing to wrap; name a backend with `--backend NAME`, or give the server's command")
    if command and not command[0]:
        raise UsageError("the command is empty; give the server's command after the options")
    return Options(
        agent=given["--agent"] or env.get("AEGIS_AGENT", "") or "default",
        backend=backend or hello.backend_name(command),
        socket=given["--socket"] or env.get("AEGIS_SOCKET", ""),
        autostart=autostart,
        command=command,
    )


_VALUES = {"--agent": "ID", "--backend": "NAME", "--socket": "PATH"}


def socket_path(given: str, env: dict[str, str]) -> str:
    """Where the daemon listens: the same rule as the daemon's own. Absolute."""
    home = env.get("AEGIS_HOME", "")
    runtime = env.get("XDG_RUNTIME_DIR", "")
    if given:
        return absolute(given)
    if home:
        return absolute(home) + "/aegis.sock"
    if runtime.startswith("/"):
        return runtime.rstrip("/") + "/aegis/aegis.sock"
    return _state(env) + "/run/aegis.sock"


def log_path(env: dict[str, str]) -> str:
    """Where a daemon that is started writes its log. Absolute."""
    home = env.get("AEGIS_HOME", "")
    return (absolute(home) if home else _state(env)) + "/daemon.log"


def _state(env: dict[str, str]) -> str:
    state = env.get("XDG_STATE_HOME", "")
    if state.startswith("/"):
        return state.rstrip("/") + "/aegis"
    user = env.get("HOME", "")
    if not user.startswith("/"):
        import pwd

        user = pwd.getpwuid(posix.getuid()).pw_dir
    return user.rstrip("/") + "/.local/state/aegis"


def absolute(path: str) -> str:
    """`path` from the root on, without `.` and `..`; no file is looked at."""
    path = path if path.startswith("/") else hello.text(_cwd()) + "/" + path
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)


def _umask() -> int:
    """Ours; it can only be read by setting it."""
    mask = posix.umask(hello.PRIVATE)
    posix.umask(mask)
    return mask


def _cwd() -> bytes:
    try:
        return posix.getcwdb()
    except OSError:
        return b"/"  # it was removed; the daemon says so when it matters


class Leave(Exception):
    """The shim ends with this status."""

    def __init__(self, status: int) -> None:
        self.status = status


class Interrupted(Exception):
    """A signal came, or nobody reads our stdout any more."""


class Shim:
    """One session of one client, through as many daemons as it takes."""

    def __init__(self, options: Options, env: dict[str, str]) -> None:
        self.options = options
        self.env = env
        self.path = socket_path(options.socket, env)
        self.log = log_path(env)
        self.ledger = Ledger.create()
        self.wake_in, wake_out = posix.pipe()
        posix.set_blocking(self.wake_in, False)
        posix.set_blocking(wake_out, False)
        self.events = select.poll()  # what matters in every wait: signals, and that someone reads our stdout
        self.events.register(self.wake_in, select.POLLIN)
        self.events.register(1, 0)
        self.watching_stdout = True
        self.signal = 0  # the last one that came
        self.signals = 0  # how many
        self.end_by: float | None = None  # the session is being ended since END_S before
        self.client_gone = self.drained = False
        for number in SIGNALS:
            if _signal.getsignal(number) != _signal.SIG_IGN:  # `nohup` and a shell's `&` are left in force
                _signal.signal(number, lambda number, frame: None)
        _signal.set_wakeup_fd(wake_out, warn_on_full_buffer=False)

        self.way = choose_way(env)
        self.blocking = [fd for fd in (0, 1) if posix.get_blocking(fd)]
        self.relay: Relay | None = None
        self.client_in, self.client_out = 0, 1
        if self.way == hello.RELAY:
            from aegis_shim.pump import Relay

            self.relay = Relay(wake_out)
            self.client_in, self.client_out = self.relay.client_in, self.relay.client_out

        self.link: _socket.socket | None = None
        self.heard = b""  # of the daemon, not yet a line
        self.resume = False
        self.said_no = ""
        self.trouble = ""  # why there is no daemon
        self.past = ""  # what became of the last one
        self.told = ""
        self.startable = False  # no daemon runs, and one of ours could take the socket's path
        self.hopeless = False  # waiting will not help
        self.autostart = options.autostart
        self.starter: Starter | None = None
        self.started_at = -RESTART_S  # monotonic seconds
        self.hold_until = 0.0  # no daemon is tried before

    # --- the session

    def run(self) -> NoReturn:
        """Raises Leave at the end."""
        if self.relay is not None:
            self.relay.start()
        deadline = monotonic() + (PATIENCE_S if self.autostart else 0)
        strikes = 0  # daemons in a row that took the session and died without having consumed anything
        while True:
            if not self._reach(deadline) and not self._offline():
                raise Leave(1)
            word, rest = self._greet()
            if word == "no":
                self.said_no = rest or "no reason was given"
                self._offline()
                raise Leave(1)
            if word != "ok":
                if monotonic() < deadline:
                    self._pause(0.05)
                else:
                    self.hold_until = monotonic() + RETRY_S
                continue
            self.resume = True
            self.past = ""
            began, consumed = monotonic(), self.ledger.consumed
            word, rest = self._attached()
            self._hang_up()
            if word == "exit":
                raise Leave(exit_status(rest))
            if word == "no":  # its server cannot be had: another daemon, or another try, would say the same
                self.said_no = rest or "no reason was given"
                self._recover()
                self._offline()
                raise Leave(1)
            stopped = word == "bye" and rest == "stop"
            answered = self._recover()
            self.past = "it was stopped" if stopped else "it went away"
            self.trouble = self.past
            self.autostart = self.options.autostart and not stopped
            deadline = 0.0 if stopped else monotonic() + PATIENCE_S
            if answered or word == "bye" or self.ledger.consumed != consumed or monotonic() - began > PATIENCE_S:
                strikes = 0
                self.started_at = -RESTART_S  # it worked, so the next one is started at once
                continue
            strikes += 1
            if strikes > 1:
                # What waits in the ledger may be what they die of: the client is told, the next one gets the rest.
                deadline = 0.0
                self.hold_until = monotonic() + RETRY_S

    def _attached(self) -> tuple[str, str]:
        """Until the daemon says `exit`, `no` or `bye`, or is lost ("", "")."""
        word, rest = self._hear(self.end_by)
        if self.end_by is None or (word == "exit" and not self.signal):
            return word, rest
        raise Leave(self._own_status())

    def _offline(self) -> bool:
        """Answers in a daemon's stead: until one can be had (True), or the client's input ends (False)."""
        from aegis_shim.offline import serve

        message = self.refusal().message
        if message != self.told:
            self.told = message
            diagnose(message)
        return serve(self, self.ledger, self.client_in, self.client_out)

    def _recover(self) -> int:
        """Puts the client right after a lost daemon; how many open requests were answered."""
        from aegis_shim.offline import UNDONE, UNKNOWN, lost, write

        calls = self.ledger.open_calls()
        parts = [b"\n"] if self.ledger.half else []
        parts += [lost(UNKNOWN if state == DISPATCHED else UNDONE, request_id) for state, request_id in calls]
        write(self, self.client_out, b"".join(parts))
        self.ledger.settle()
        return len(calls)

    # --- the daemon

    def _reach(self, deadline: float) -> bool:
        """Whether a daemon can be had; one that starts, or that we may start, is waited for until `deadline`."""
        pause = 0.005
        last = 0.0
        while True:
            if monotonic() >= self.hold_until and self._connect():
                break
            if monotonic() >= deadline or self.hopeless:
                if self.starter is not None:
                    self.starter.done()
                    self.started_at = monotonic()
                return False
            self._start()
            if self.starter is not None and self.starter.ended():
                self.past = self._ended_at_once()
                deadline = min(deadline, last := last or monotonic() + ENDED_S)
            self._pause(pause)
            pause = min(pause * 1.5, 0.1)
        if self.starter is not None:
            self.starter.done()
        return True

    def connect(self, idle: bool) -> bool:
        """See Client: one cheap attempt; where a request waits and it is time for it, a daemon is started first."""
        if self.said_no or monotonic() < self.hold_until:
            return False
        if self._connect():
            return True
        if idle or not self.autostart or not self.startable or monotonic() - self.started_at < RESTART_S:
            return False
        return self._reach(monotonic() + RESTARTED_S)

    def _connect(self) -> bool:
        """One attempt: at the usual place, or else where a daemon has said that it is. Nobody else's is asked."""
        if self._connect_at(self.path, self._owner):
            return True
        if not self.startable or self.options.socket:
            return False
        from aegis_shim.whereabouts import elsewhere

        trouble, other = self.trouble, elsewhere(self.log.rpartition("/")[0])
        if other and other != self.path and self._connect_at(other, posix.geteuid):
            return True
        self.startable, self.hopeless, self.trouble = True, False, trouble
        return False

    def _connect_at(self, path: str, owner: Callable[[], int]) -> bool:
        link = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        link.setblocking(False)  # a full queue must not hold us beyond the reach of signals
        try:
            link.connect(hello.octets(path))
            stranger = self._stranger(link, path, owner)
        except OSError as fault:
            self.startable = fault.errno in (errno.ENOENT, errno.ECONNREFUSED)
            self.hopeless = not self.startable and fault.errno != errno.EAGAIN  # EAGAIN: its queue is full
            if self.startable:
                self.trouble = self.past or f"nothing answers at `{path}`"
            else:
                self.trouble = f"`{path}`: {(fault.strerror or str(fault)).lower()}"
        else:
            self.startable, self.hopeless = False, bool(stranger)
            if not stranger:
                self.link, self.heard = link, b""
                return True
            self.trouble = stranger
        link.close()
        return False

    def _owner(self) -> int:
        """Whose the directory of the usual socket is."""
        return posix.stat(self.path.rpartition("/")[0] or "/").st_uid

    def _stranger(self, link: _socket.socket, path: str, owner: Callable[[], int]) -> str:
        """Who listens, if it is neither ourselves, nor root, nor whose the socket's place is."""
        if sys.platform == "linux":
            uid = int.from_bytes(link.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)[4:8], sys.byteorder)
        elif sys.platform == "darwin":
            uid = int.from_bytes(link.getsockopt(0, 1, 76)[4:8], sys.byteorder)  # LOCAL_PEERCRED, struct xucred
        else:
            return ""
        if uid in (posix.geteuid(), 0) or uid == owner():
            return ""
        return f"uid {uid} listens at `{path}`, which is not its place"

    def _start(self) -> None:
        now = monotonic()
        if not self.autostart or not self.startable or now - self.started_at < RESTART_S:
            return
        from aegis_shim.start import Starter

        if self.starter is None:
            self.starter = Starter(hello.octets(self.path), hello.octets(self.log))
        try:
            if self.starter.start(self._daemon_env()):
                self.started_at = now
        except OSError as fault:
            self.started_at = now
            self.past = f"it could not be started: {(fault.strerror or str(fault)).lower()}"

    def _ended_at_once(self) -> str:
        from aegis_shim.whereabouts import holder

        state = self.log.rpartition("/")[0]
        if pid := holder(state):
            return f"process {pid} keeps `{state}/journal` and answers at no socket; `aegis doctor` says more"
        return "it was started and ended at once; `aegis logs` says why"

    def _daemon_env(self) -> dict[bytes, bytes]:
        """Ours, with paths that mean the same from another directory, and without what only concerns this session."""
        env = {k: v for k, v in posix.environ.items() if k not in (b"AEGIS_AGENT", b"AEGIS_BACKEND", b"AEGIS_WAY")}
        for name in ("AEGIS_HOME", "AEGIS_CONFIG"):
            if self.env.get(name):
                env[name.encode()] = hello.octets(absolute(self.env[name]))
        if self.options.socket:
            env[b"AEGIS_SOCKET"] = hello.octets(self.path)
        return env

    def _greet(self) -> tuple[str, str]:
        """The daemon's answer: `ok` or `no` with its text; ("", "") when it left or was silent too long."""
        assert self.link is not None
        deadline = monotonic() + GREETING_S
        try:
            greeting = hello.encode(
                hello.Hello(
                    agent=self.options.agent,
                    backend=self.options.backend,
                    cwd=hello.text(_cwd()),
                    way=self.way,
                    resume=self.resume,
                    args=self.options.command,
                    env=self.env,
                    umask=_umask(),
                )
            )
        except ValueError as fault:
            self._hang_up()
            return "no", str(fault)
        fds = b"".join(fd.to_bytes(4, sys.byteorder) for fd in (self.client_in, self.client_out, 2, self.ledger.fd))
        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fds)]
        rest = memoryview(greeting)
        try:
            while rest:
                try:
                    sent = self.link.sendmsg([rest], rights)
                except BlockingIOError:
                    if not self._wait_link(select.POLLOUT, deadline):
                        break
                    continue
                rest, rights = rest[sent:], []
        except OSError:
            pass  # it may have said why
        word, text = self._hear(deadline)
        if word != "ok" and self.end_by is not None:
            raise Leave(self._own_status())
        if word not in ("ok", "no"):
            self._hang_up()
            self.trouble = self.past = "it did not take the session"
            return "", ""
        if word == "no":
            self._hang_up()
        return word, text

    def _wait_link(self, mask: int, deadline: float | None) -> bool:
        assert self.link is not None
        try:
            return self._look(self.link.fileno(), mask, deadline)
        except Interrupted:
            raise Leave(self._own_status()) from None

    def _hear(self, deadline: float | None) -> tuple[str, str]:
        """The daemon's next line, as `_listen`; an interruption ends the session, which may take END_S."""
        assert self.link is not None
        while True:
            before = self.signals
            try:
                return self._listen(deadline)
            except Interrupted:
                if self.end_by is not None and self.signals != before:
                    raise Leave(self._own_status()) from None  # asked twice
                if self.end_by is None:
                    self.end_by = deadline = monotonic() + END_S
                    try:
                        self.link.shutdown(_socket.SHUT_WR)
                    except OSError:
                        pass

    def _listen(self, deadline: float | None) -> tuple[str, str]:
        """The daemon's next line; ("", "") when it left, talks nonsense, or the deadline passed. Raises Interrupted."""
        assert self.link is not None
        while True:
            line, newline, rest = self.heard.partition(b"\n")
            if newline:
                self.heard = rest
                try:
                    return hello.heard(line)
                except ValueError as fault:
                    diagnose(str(fault))
                    return "", ""
            if len(line) > hello.MAX_LINE or not self._look(self.link.fileno(), select.POLLIN, deadline):
                return "", ""
            try:
                chunk = self.link.recv(hello.MAX_LINE)
            except BlockingIOError:
                continue
            except OSError:
                return "", ""
            if not chunk:
                return "", ""
            self.heard += chunk

    def _hang_up(self) -> None:
        if self.link is not None:
            self.link.close()
            self.link = None

    # --- waiting

    def _look(self, fd: int, mask: int, deadline: float | None) -> bool:
        """Whether `fd` (-1: what the relay still holds has drained) is ready before `deadline`. Raises Interrupted."""
        if fd >= 0:
            self.events.register(fd, mask)
        try:
            while True:
                if deadline is None:
                    found = self.events.poll()
                else:
                    found = self.events.poll(max(0, int((deadline - monotonic()) * 1000 + 0.999)))
                if not found:
                    return False
                ready = interrupted = False
                for which, what in found:
                    if which == self.wake_in:
                        interrupted |= self._woken()
                        ready |= self.drained  # only `_drain` can meet this
                    elif which == 1 and what & (select.POLLERR | select.POLLHUP | select.POLLNVAL):
                        interrupted |= self._stdout_ended(what)
                        ready |= fd == 1
                    else:
                        ready = True
                if interrupted:
                    raise Interrupted
                if ready or (self.drained and fd < 0):
                    return True
        finally:
            if fd == 1 and self.watching_stdout:
                self.events.register(1, 0)
            elif fd != 1 and fd >= 0:
                self.events.unregister(fd)

    def _woken(self) -> bool:
        """Takes the wake-up bytes; whether one of them interrupts."""
        interrupted = False
        for byte in posix.read(self.wake_in, 512):
            if byte == DRAINED:
                self.drained = True
            elif byte == GONE:
                interrupted |= not self.client_gone
                self.client_gone = True
            else:
                self.signal = byte
                self.signals += 1
                interrupted = True
        return interrupted

    def _stdout_ended(self, what: int) -> bool:
        self.events.unregister(1)
        self.watching_stdout = False
        if what & select.POLLNVAL:  # a system that cannot poll it: writing will tell
            return False
        self.client_gone = True
        return True

    def _pause(self, seconds: float) -> None:
        self.wait(-1, 0, int(seconds * 1000) or 1)

    def wait(self, fd: int, mask: int, milliseconds: int | None) -> bool:
        """See Client."""
        try:
            return self._look(fd, mask, None if milliseconds is None else monotonic() + milliseconds / 1000)
        except Interrupted:
            raise Leave(self._own_status()) from None

    def gone(self) -> NoReturn:
        """See Client."""
        self.client_gone = True
        raise Leave(1)

    def _own_status(self) -> int:
        return 128 + self.signal if self.signal else 1

    def refusal(self) -> Refusal:
        """See Client."""
        from aegis_shim.offline import Refusal

        if self.said_no:
            return Refusal(f"aegis refused this session: {self.said_no}", "refused", False)
        return Refusal(
            f"not executed: the aegis daemon cannot be reached ({self.trouble}); start it with `aegis daemon start`,"
            f" then repeat the call; its log is `{self.log}`",
            "no_daemon",
            True,
        )

    # --- the end

    def leave(self, status: int) -> NoReturn:
        """Ends the process, once all that the daemon wrote has reached the client."""
        self._hang_up()
        if self.relay is not None:
            self._drain(self.relay)
        for fd in self.blocking:
            try:
                posix.set_blocking(fd, True)  # others may share it
            except OSError:
                pass
        posix._exit(status)

    def _drain(self, relay: Relay) -> None:
        relay.finish()
        deadline = monotonic() + 0.5 if self.signal else None
        quiet = 0
        # A daemon that lets go of the pipe, as it should, ends this with DRAINED.
        while not (self.drained or self.client_gone) and (deadline is None or monotonic() < deadline) and quiet < 5:
            try:
                self._look(-1, 0, monotonic() + 0.1)
            except Interrupted:
                break
            quiet = 0 if relay.pending() else quiet + 1


def choose_way(env: dict[str, str]) -> str:
    """Hand-over for pipes and sockets that are the client's alone; else relay. Raises UsageError.

    Never hands over a file, a terminal or /dev/null; nor, unless told to, what stderr shares: the daemon makes the
    descriptors non-blocking, and whoever writes to stderr does not expect that.
    """
    wish = env.get("AEGIS_WAY", "")
    if wish not in ("", hello.RELAY, hello.HANDOVER):
        raise UsageError(f"AEGIS_WAY is `{wish}`; write `{hello.RELAY}` or `{hello.HANDOVER}`, or leave it out")
    if wish == hello.RELAY:
        return hello.RELAY
    found = [posix.fstat(fd) for fd in (0, 1, 2)]
    if any(each.st_mode & 0o170000 not in (0o010000, 0o140000) for each in found[:2]):
        return hello.RELAY
    places = [(each.st_dev, each.st_ino) for each in found]
    if wish != hello.HANDOVER and places[2] in places[:2]:
        return hello.RELAY
    return hello.HANDOVER


def exit_status(code: str) -> int:
    """Our status for the server's: as a shell counts it."""
    try:
        number = int(code)
    except ValueError:
        return 1
    return 128 - number if -127 < number < 0 else number & 255


def diagnose(message: str) -> None:
    """One line on stderr."""
    try:
        posix.write(2, hello.octets(f"aegis-wrap: {message}\n"))
    except OSError:
        pass


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("aegis-mcp")
    except PackageNotFoundError:
        return "(not installed)"


def main(words: list[str]) -> NoReturn:
    """The command. Never returns."""
    for fd in (0, 1, 2):
        try:
            posix.fstat(fd)
        except OSError:
            posix.open("/dev/null", posix.O_RDWR)  # gets this very number, so that nothing of ours does
    encoding, errors = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
    words = [hello.text(word.encode(encoding, errors)) for word in words]
    env = {hello.text(name): hello.text(value) for name, value in posix.environ.items()}
    try:
        shim = Shim(parse(words, env), env)
    except Shown as asked:
        posix.write(1, str(asked).encode())
        posix._exit(0)
    except UsageError as fault:
        diagnose(f"{fault}\n{USAGE}")
        posix._exit(2)
    except OSError as fault:
        diagnose(f"no memory for the session: {fault.strerror or fault}; free some, then try again")
        posix._exit(1)
    try:
        shim.run()
    except Leave as leave:
        shim.leave(leave.status)
