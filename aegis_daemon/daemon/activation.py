"""What a service manager gives us and hears of us: sockets that it opened, and that we are ready, alive or leaving.

The protocol is sd_listen_fds(3) and sd_notify(3) of systemd; `aegis daemon run` speaks the first of the two as well,
where it makes the isolated tier's sockets itself. Nothing of it is handed on to the servers that we start.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import MutableMapping
from time import monotonic_ns
from typing import Final

_log = logging.getLogger("aegis.service")
_FIRST: Final = 3
"""The lowest descriptor that a manager hands over."""
_MOST: Final = 4096
VARIABLES: Final = (
    "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "SYSTEMD_EXEC_PID", "WATCHDOG_PID", "WATCHDOG_USEC",
)  # fmt: skip


class Manager:
    """The service manager's end. Without one nothing is given, and nobody is told anything."""

    def __init__(self, listeners: dict[str, socket.socket], notify: str = "", watchdog_s: float = 0.0) -> None:
        self._listeners = listeners
        self._notify = notify
        self._watchdog_s = watchdog_s
        self._beaten = 0.0

    @classmethod
    def take(cls, env: MutableMapping[str, str], pid: int) -> Manager:
        """What is meant for the process `pid`, taken out of `env`."""
        said = {name: env.pop(name, "") for name in VARIABLES}
        listeners: dict[str, socket.socket] = {}
        if said["LISTEN_PID"] == str(pid):
            for fd in range(_FIRST, _FIRST + min(_number(said["LISTEN_FDS"]), _MOST)):
                _take(fd, listeners)
        # An agent may itself be a service, and what a session of its starts would inherit these.
        mine = said["SYSTEMD_EXEC_PID"] in ("", str(pid)) and said["WATCHDOG_PID"] in ("", str(pid))
        watchdog_s = _number(said["WATCHDOG_USEC"]) / 1e6
        return cls(listeners, said["NOTIFY_SOCKET"], watchdog_s) if mine else cls(listeners)

    @property
    def gives(self) -> bool:
        """Whether there are sockets of its."""
        return bool(self._listeners)

    def serves(self, *paths: str, below: str = "") -> bool:
        """Whether it opened one of our sockets, which makes this the daemon that it runs."""
        ours = {os.path.realpath(path) for path in paths}
        there = os.path.realpath(below) if below else ""
        return any(path in ours or (there and os.path.dirname(path) == there) for path in self._listeners)

    def listener(self, path: str) -> socket.socket | None:
        """The socket that was opened for us at `path`; it is the caller's from now on."""
        return self._listeners.pop(os.path.realpath(path), None)

    def below(self, directory: str) -> dict[str, socket.socket]:
        """Those that were opened in a directory, by their names in it; they are the caller's from now on."""
        there = os.path.realpath(directory)
        found = [path for path in self._listeners if os.path.dirname(path) == there]
        return {os.path.basename(path): self._listeners.pop(path) for path in found}

    def drop(self) -> None:
        """Lets go of what nobody took."""
        while self._listeners:
            path, listener = self._listeners.popitem()
            _log.warning("nothing of ours belongs at `%s`, which the service manager opened; see its units", path)
            listener.close()

    def ready(self) -> None:
        """Clients are served."""
        self._tell("READY=1")

    def reloading(self) -> None:
        """The configuration is read again; `ready` ends it."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The end has begun."""
        self._tell("STOPPING=1")

    def beat(self, now: float) -> None:
        """The loop turns; `now` is monotonic, in seconds. Said three times in the time that the manager waits."""
        if self._watchdog_s and now - self._beaten >= self._watchdog_s / 3:
            self._beaten = now
            self._tell("WATCHDOG=1")

    def _tell(self, text: str) -> None:
        if not self._notify:
            return
        place = "\0" + self._notify[1:] if self._notify.startswith("@") else self._notify
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
                out.setblocking(False)
                out.sendto(text.encode(), place)
        except OSError as error:
            _log.warning("the service manager could not be told `%s`: %s", text.split("\n")[0], error)


def _take(fd: int, listeners: dict[str, socket.socket]) -> None:
    """Anything but a listening Unix stream is closed: whatever it is, it is not ours."""
    try:
        os.set_inheritable(fd, False)
        found = socket.socket(fileno=fd)
    except OSError as error:
        _log.warning("descriptor %d, which the service manager announced, is no socket: %s", fd, error)
        return
    name = found.getsockname() if found.family == socket.AF_UNIX else ""
    listens = found.type == socket.SOCK_STREAM and found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if not (isinstance(name, str) and name.startswith("/") and listens):
        _log.warning("the socket with the number %d, which the service manager opened, is none of ours", fd)
        found.close()
        return
    found.setblocking(False)
    listeners[os.path.realpath(name)] = found


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0
