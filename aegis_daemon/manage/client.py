"""One question to the daemon, one answer; or a stream of events. Plain sockets, so that a command starts fast.

Who listens is told by the kernel, since a socket's path is whatever an entry or a variable says: nobody but the daemon
of this user, of root or of the machine is told the approver key.
"""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import socket
import struct
import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final

ANSWER_MAX: Final = 256 * 1024 * 1024
"""Bytes of the longest answer that is read."""
MACHINES: Final = "aegis"
"""The user whose daemon is the machine's, in the isolated tier."""


UNSERVED: Final = "nothing is served over http"
"""How the daemon's warning begins where it could not have its address."""
MISSPELT: Final = (
    "name of a tool in the configuration is no tool's, so what it says does nothing",
    "names of tools in the configuration are no tool's, so what they say does nothing",
)
"""How the daemon's warning of such names goes on behind their number: of one, of several."""


class DaemonAway(Exception):
    """No daemon answers on the socket; the text says which and why."""


class Refused(Exception):
    """The daemon answered with an error. `code` is stable (`api.Refusal`); `faults` holds config faults as rows."""

    def __init__(self, code: str, message: str, hint: str = "", faults: tuple[dict[str, Any], ...] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.faults = faults


class Connection:
    """One connection; several requests may follow one another. `timeout` is in seconds, for each answer."""

    def __init__(self, path: str, timeout: float = 70.0) -> None:
        """Connects.

        :raises DaemonAway: nobody listens there, or it is not our daemon.
        """
        self._path = path
        self._timeout = timeout
        self._data = bytearray()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(min(timeout, 10.0))
        try:
            owner, me = os.stat(path).st_uid, os.geteuid()
            if owner not in (me, 0) and me != 0:  # it would be told the approver key
                self._socket.close()
                raise DaemonAway(f"`{path}` belongs to uid {owner}, so what listens there is not your daemon")
            self._socket.connect(path)
            listener = _listener(self._socket)
        except OSError as error:
            self._socket.close()
            why = (error.strerror or str(error)).lower()
            raise DaemonAway(f"the daemon is not running (no answer on `{path}`: {why})") from None
        # Whose the socket is, and who listens: for the daemon both are ours, root's or the machine's.
        strangers = [uid for uid in (listener, owner) if uid not in (me, 0) and uid != _machines()]
        self._stranger = strangers[0] if strangers else None
        if self._stranger is not None and me != 0:  # it was put there after the look
            self._socket.close()
            raise DaemonAway(f"uid {self._stranger} listens on `{path}`, so it is not your daemon")

    def fileno(self) -> int:
        """For `select`: readable when an event may have come."""
        return self._socket.fileno()

    def call(self, verb: str, **args: Any) -> Any:
        """The answer's data.

        :raises Refused: the daemon says no. :raises DaemonAway: it went away, or is silent.
        """
        self._ask(verb, args)
        line = self._line(time.monotonic() + self._timeout)
        if line is None:
            raise DaemonAway(f"the daemon on `{self._path}` went away before it answered")
        return self._open(line).get("data")

    def subscribe(self, verb: str, **args: Any) -> None:
        """Begins a stream; read it with `events` or `arrived`."""
        self._ask(verb, args)

    def events(self) -> Iterator[dict[str, Any]]:
        """Every event until the daemon ends. Raises as `call`."""
        while (line := self._line(None)) is not None:
            yield self._open(line)["event"]

    def arrived(self) -> list[dict[str, Any]] | None:
        """The events that have come by now, without waiting; None once the daemon has left."""
        found: list[dict[str, Any]] = []
        self._socket.settimeout(0)
        try:
            while (line := self._line(None)) is not None:
                found.append(self._open(line)["event"])
        except BlockingIOError:
            return found
        finally:
            self._socket.settimeout(self._timeout)
        return found or None

    def close(self) -> None:
        """Leaves."""
        self._socket.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, verb: str, args: dict[str, Any]) -> None:
        if args.get("key") is not None and self._stranger is not None:
            raise DaemonAway(
                f"`{self._path}` is uid {self._stranger}'s, who is not told the approver key; unset "
                "AEGIS_APPROVER_KEY, or ask as that user"
            )
        line = json.dumps({"verb": verb, "args": {key: value for key, value in args.items() if value is not None}})
        try:
            self._socket.sendall(line.encode() + b"\n")
        except BrokenPipeError:
            pass  # it said why before it closed: that is read next
        except OSError as error:
            raise DaemonAway(f"the daemon on `{self._path}` does not take the request ({error})") from None

    def _line(self, until: float | None) -> bytes | None:
        """One line; None at the end. Raises `BlockingIOError` on a socket that does not wait."""
        scanned = 0
        while (end := self._data.find(b"\n", scanned)) < 0:
            scanned = len(self._data)
            if scanned > ANSWER_MAX:
                raise DaemonAway(f"what answers on `{self._path}` is no daemon of this version")
            if until is not None:
                self._socket.settimeout(max(0.001, until - time.monotonic()))
            elif self._socket.gettimeout():
                self._socket.settimeout(None)
            try:
                piece = self._socket.recv(1 << 16)
            except TimeoutError:
                raise DaemonAway(f"the daemon on `{self._path}` does not answer") from None
            except ConnectionError:
                piece = b""
            if not piece:
                return None
            self._data += piece
        line = bytes(self._data[:end])
        del self._data[: end + 1]
        return line

    def _open(self, line: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(line)
            if answer["ok"] is True:
                return dict(answer)
            error = answer["error"]
            refused = Refused(
                str(error["code"]),
                str(error["message"]),
                str(error.get("hint") or ""),
                tuple(error.get("faults") or ()),
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DaemonAway(f"what answers on `{self._path}` is no daemon of this version") from None
        raise refused


def ask(path: str, verb: str, **args: Any) -> Any:
    """One request on a connection of its own. Raises as `Connection.call`."""
    with Connection(path) as connection:
        return connection.call(verb, **args)


def _listener(connection: socket.socket) -> int:
    """The user who listens at the other end. Raises `OSError` where the system does not tell."""
    if sys.platform == "linux":
        return int(struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1])
    else:  # noqa: RET505  (mypy reads a platform test only as a branch)
        return int(struct.unpack_from("II", connection.getsockopt(0, 1, 76))[1])  # LOCAL_PEERCRED: struct xucred


def _machines() -> int | None:
    try:
        return pwd.getpwnam(MACHINES).pw_uid
    except KeyError:
        return None


def lock_holder(lock: str) -> int | None:
    """The process that holds a lock file, 0 where it does not say which; None where nobody does."""
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        said = os.pread(descriptor, 32, 0).strip()
        return int(said) if said.isdigit() else 0
    finally:
        os.close(descriptor)
    return None


def approver_key(path: str) -> str:
    """The content of an approver key file. Raises `OSError`, or `ValueError` where it is no such file."""
    with open(os.path.expanduser(path), encoding="utf-8") as file:
        key = file.read(4097).strip()
    if not key or len(key) > 4096:
        raise ValueError(f"`{path}` holds no approver key")
    return key
