"""Root makes the isolated tier's sockets, becomes the daemon's user for good and runs the daemon, without systemd.

The sockets are handed over as systemd hands them (sd_listen_fds(3)), so the daemon has one way to take them.
"""

from __future__ import annotations

import fcntl
import grp
import os
import pwd
import socket
import stat
import sys
from contextlib import suppress
from typing import NoReturn

from aegis_daemon.config.paths import Paths
from aegis_daemon.config.source import ConfigFaults
from aegis_daemon.service import machine, units
from aegis_daemon.service.check import isolating
from aegis_daemon.service.steps import Unable

_FIRST = 3


def launch(paths: Paths, *, log: bool = False) -> NoReturn:
    """Never returns. With `log` the daemon writes to its log's file, not to our output.

    Raises `Unable`, `ConfigFaults`, `OSError`.
    """
    if os.geteuid() != 0:
        raise Unable("the machine's daemon is started by root, who makes its sockets", "use `sudo`, or systemd")
    try:
        who, admins = pwd.getpwnam(machine.USER), grp.getgrnam(machine.ADMINS).gr_gid
    except KeyError as missing:
        raise Unable(f"the isolated tier is not prepared: {missing}", "run `aegis daemon install --system`") from None
    config = isolating(paths)
    for directory in (paths.run_dir, paths.doors):
        own_directory(directory)
    _alone(paths)
    for name in os.listdir(paths.doors):  # of an earlier run
        with suppress(OSError):
            os.unlink(f"{paths.doors}/{name}")
    listeners = [_listen(paths.manage_socket, 0, admins, 0o660)]
    listeners += [_listen(door.path, machine.uid_of(door.user), -1, 0o600) for door in machine.doors(paths, config)]
    # Put where they are expected; what is there already is one of them, or is in nobody's way.
    high = [fcntl.fcntl(each.detach(), fcntl.F_DUPFD, _FIRST + len(listeners)) for each in listeners]
    for number, fd in enumerate(high):
        os.dup2(fd, _FIRST + number, inheritable=True)
    os.closerange(_FIRST + len(high), max(high) + 1)
    env = {
        "AEGIS_SYSTEM": os.environ["AEGIS_SYSTEM"],
        "HOME": who.pw_dir,
        "USER": who.pw_name,
        "LOGNAME": who.pw_name,
        "PATH": os.environ.get("PATH", os.defpath),
        "LISTEN_PID": str(os.getpid()),
        "LISTEN_FDS": str(len(high)),
        **{name: os.environ[name] for name in ("AEGIS_CONFIG", "LANG", "TZ") if os.environ.get(name)},
    }
    os.chdir("/")
    os.umask(0o077)
    os.initgroups(who.pw_name, who.pw_gid)
    os.setgid(who.pw_gid)
    os.setuid(who.pw_uid)
    words = [sys.executable, "-I", "-m", units.MAIN, *(["--log"] if log else [])]
    os.execve(sys.executable, words, env)  # noqa: S606


def own_directory(directory: str) -> None:
    """Makes a directory that root alone changes, and everybody may pass through. Raises `Unable`, `OSError`."""
    os.makedirs(directory, mode=0o755, exist_ok=True)
    found = os.lstat(directory)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != 0 or stat.S_IMODE(found.st_mode) & 0o022:
        raise Unable(f"`{directory}` is not root's alone", "look at what it is, and remove it")
    os.chmod(directory, 0o755)  # noqa: S103  agents' users pass through it to their own sockets


def _alone(paths: Paths) -> None:
    """A daemon that runs keeps its sockets: taking their places would only hide it."""
    try:
        fd = os.open(paths.lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Unable("the machine's daemon is running already", "see `aegis status`") from None
    finally:
        os.close(fd)


def _listen(path: str, uid: int, gid: int, mode: int) -> socket.socket:
    """A socket that nobody but root could ever open before it is its owner's."""
    with suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(mask)
    os.chown(path, uid, gid, follow_symlinks=False)
    os.chmod(path, mode)
    listener.listen(512)
    return listener


def main() -> int:
    """For `aegis daemon start`, which runs this in the background."""
    try:
        launch(Paths.find(os.environ), log=True)
    except Unable as unable:
        print(f"aegis: {unable.message}; {unable.hint}", file=sys.stderr)
    except ConfigFaults as faults:
        print(f"aegis: the configuration has faults, nothing was started:\n{faults.render()}", file=sys.stderr)
    except OSError as error:
        print(f"aegis: the sockets cannot be made: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
