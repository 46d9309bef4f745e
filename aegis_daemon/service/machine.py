"""The isolated tier: the daemon is a user of its own, who alone holds keys, log and credentials; agents have doors.

Root owns the configuration and makes the sockets: one for each agent, which its user alone can open, and one for people
who may decide (the group `aegis-admin`). What was made is noted, so that taking it away touches nothing else.
"""

from __future__ import annotations

import grp
import json
import os
import pwd
import re
import stat
import sys
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import msgspec

from aegis_daemon.config.paths import SOCKET_PATH_MAX, Paths
from aegis_daemon.config.schema import OFF, Config
from aegis_daemon.core.extras import INSTALL_GLOBAL
from aegis_daemon.service import steps, units
from aegis_daemon.service.steps import Step, Unable
from aegis_daemon.service.units import Door

USER: Final = "aegis"
ADMINS: Final = "aegis-admin"
SYSTEMCTL: Final = ("systemctl", "--system", "--no-pager", "--no-ask-password")
NOTES: Final = "installed.json"
"""beside the configuration, root's: what an installation made that may have been there before"""


_UNIT_MAX: Final = 255
"""The longest name of a unit, in bytes."""
_STATE: Final = re.compile(
    r"(?:audit|state|exports)\.db(?:-wal|-shm|-journal)?|audit\.db\.other-[\dTZ-]+|journal|(?:start|daemon)\.lock"
    r"|(?:approver|audit|links)\.key(?:\.pub|\.next|\.signed)?|daemon\.log(?:\.new|\.\d+)?"
)
"""Names of what the daemon makes in its state directory."""
_NOTES: Final = re.compile(re.escape(NOTES))
_ETC: Final = re.compile(rf"{re.escape(NOTES)}|aegis\.yaml(?:\.bak|\.before-allow)?")


class Notes(msgspec.Struct):
    """What was made."""

    user: bool = False
    group: bool = False
    config: bool = False
    admins: list[str] = []
    directories: list[str] = []


class Machine(msgspec.Struct, frozen=True):
    """The machine's service, as its systemd runs it."""

    units: tuple[str, ...]
    config: str = ""

    def start(self) -> None:
        """Has it run; returns when it answers. Raises `Unable`."""
        steps.call([*SYSTEMCTL, "reset-failed", *self.units])
        sockets = [name for name in self.units if name.endswith(".socket")]
        # A socket is not opened while its service runs, and the first session starts that.
        if any(steps.call([*SYSTEMCTL, "is-active", "--quiet", name]).returncode for name in sockets):
            steps.order([*SYSTEMCTL, "stop", *self.units])
        steps.order([*SYSTEMCTL, "start", *sockets])
        steps.order([*SYSTEMCTL, "start", units.SERVICE])

    def stop(self) -> None:
        """Has it end, and its sockets not start it again. Raises `Unable`."""
        steps.order([*SYSTEMCTL, "stop", *self.units])


def root_of(paths: Paths) -> str:
    """What stands for `/`; empty for the machine itself."""
    return paths.state_dir.removesuffix("/var/lib/aegis")


def doors(paths: Paths, config: Config) -> list[Door]:
    """The sockets that a configuration asks for: one for each user that an agent may be. Raises `Unable`."""
    found: list[Door] = []
    whose: dict[str, str] = {}
    for name, agent in config.agents.items():
        for uid in agent.identities:
            path = paths.door(name) if len(agent.identities) == 1 else paths.door(name, uid)
            if len(os.fsencode(path)) > SOCKET_PATH_MAX:
                most = len(name.encode()) - (len(os.fsencode(path)) - SOCKET_PATH_MAX)
                raise Unable(
                    f"the agent `{name}` has a name too long for its socket", f"give it one of at most {most} bytes"
                )
            if len(Door(name, "", path).unit) > _UNIT_MAX:
                raise Unable(f"the agent `{name}` has a name too long for systemd's unit", "give it a shorter one")
            if path in whose:
                raise Unable(
                    f"the agents `{whose[path]}` and `{name}` would share the socket `{os.path.basename(path)}`",
                    "rename one of them",
                )
            whose[path] = name
            found.append(Door(name, _name(uid), path))
    return found


def faults(config: Config, admins: Iterable[int] = ()) -> list[str]:
    """Why this configuration is none for the isolated tier. `admins` are uids that are to be in `aegis-admin`, too."""
    people = frozenset(admins)
    found: list[str] = []
    for name, agent in config.agents.items():
        if not agent.identities and agent.auth_token is None:
            found.append(f"the agent `{name}` has neither `identities` (uids) nor an `auth_token`, so nobody can be it")
        for uid in agent.identities:
            if uid == 0:
                found.append(f"the agent `{name}` would be root, from whom nothing is kept")
            elif _name(uid) == USER:
                found.append(f"the agent `{name}` would be the daemon's own user")
            elif USER in _groups(uid):
                found.append(
                    f"the agent `{name}` would be `{_name(uid)}`, who is in the group `{USER}` and may read what only "
                    "the daemon may"
                )
            elif uid in people or ADMINS in _groups(uid):
                found.append(
                    f"the agent `{name}` would be `{_name(uid)}`, who is in `{ADMINS}`, or would be, and may approve "
                    "its calls: an agent needs a user of its own"
                )
    for name, backend in config.backends.items():
        if backend.command is None and backend.url is None:
            found.append(f"the backend `{name}` has neither `command` nor `url`, and no agent may hand one over")
    if config.server.listen != OFF and config.server.api_token is None:
        found.append("every user of this machine could read the API: set `server.listen: off`, or `server.api_token`")
    return found


def first_config(agents: Mapping[str, int]) -> str:
    """A configuration to begin with, in which the agents (names and uids) may do nothing yet."""
    lines = [
        "# Aegis, isolated tier. Root owns this file; the daemon reads it. `aegis config schema` tells every setting.",
        "# After a change of `agents`: `sudo aegis daemon install --system` makes their sockets. Else: reload.",
        "server: {listen: off}",
        "",
        "# Servers run as the user `aegis`, from here alone. What that user may, a hostile server may: read and",
        "# change the daemon's keys and log. Have only servers here that you trust so far; reach others by `url`.",
        "#   github: {command: /usr/local/bin/github-mcp-server, args: [stdio],",
        '#            env: {GITHUB_TOKEN: "${file:/etc/aegis/github.token}"}}',
        "backends: {}",
        "",
        *(["agents:"] if agents else ["agents: {}"]),
    ]
    for name, uid in agents.items():
        lines += [f"  {json.dumps(name)}:", f"    identities: [{uid}]  # {_name(uid)}", "    backends: {}"]
    return "\n".join(lines) + "\n"


def install(paths: Paths, config: Config, text: bytes, agents: Mapping[str, int], admins: Sequence[str]) -> list[Step]:
    """Everything but the start, in order. `text` is written where there is no configuration yet. Raises `Unable`."""
    interpreter = _reachable(os.path.abspath(sys.executable))
    people = [uid_of(name) for name in admins]
    wrong = faults(config, people)
    if wrong:
        raise Unable("this configuration cannot be the isolated tier's:\n  " + "\n  ".join(wrong), "mend it first")
    root = root_of(paths)
    etc = f"{root}/etc/aegis"
    notes = _notes(paths)
    found: list[Step] = []
    if not _known(grp.getgrnam, ADMINS):
        found.append(steps.command(["groupadd", "--system", ADMINS], "people who may decide"))
        notes.group = True
    if not _known(pwd.getpwnam, USER):
        words = ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", paths.state_dir]
        found.append(steps.command([*words, "--shell", "/usr/sbin/nologin", USER], "the daemon's own user"))
        notes.user = True
    for uid in people:
        if ADMINS not in _groups(uid):
            name = _name(uid)
            found.append(
                steps.command(["usermod", "--append", "--groups", ADMINS, name], "may decide, from the next login")
            )
            notes.admins.append(name)
    found += _own_directory(etc, 0o750, "root", notes)
    found += _own_directory(paths.state_dir, 0o700, USER, notes)
    if os.path.lexists(paths.config):
        found.append(Step("keep", paths.config, "root's, and the daemon's to read", lambda: _own(paths.config)))
    else:
        written = steps.write(paths.config, text, 0o640, (0, 0), "root's, and the daemon's to read")
        found += [written, Step("own", paths.config, f"root:{USER} 0640", lambda: _own(paths.config))]
        notes.config = True
    found.append(steps.write(f"{etc}/{NOTES}", msgspec.json.encode(notes) + b"\n", 0o600, (0, 0), "what was made"))
    env = {"AEGIS_SYSTEM": root or "1", "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    wanted = doors(paths, config)
    place = unit_directory(paths)
    files = {
        units.SERVICE: units.system_service(interpreter, env, paths.state_dir, wanted),
        units.SOCKET: units.manage_socket(paths.manage_socket, ADMINS),
        **{door.unit: units.door_socket(door) for door in wanted},
    }
    found.extend(steps.write(f"{place}/{name}", content.encode(), 0o644, (0, 0)) for name, content in files.items())
    for name in _units(paths):
        if name not in files:  # of an agent that is configured no more
            if answers(paths):
                found.append(steps.command([*SYSTEMCTL, "disable", "--now", name], may_fail=True))
            found.append(steps.remove(f"{place}/{name}", "its agent is not configured any more"))
    return found


def enable(paths: Paths, config: Config) -> list[Step]:
    """What has it run, now and at every start of the machine. Sockets are made while the service is not there."""
    sockets = [units.SOCKET, *(door.unit for door in doors(paths, config))]
    return [
        steps.command([*SYSTEMCTL, "daemon-reload"]),
        steps.command([*SYSTEMCTL, "stop", *sockets, units.SERVICE], may_fail=True),
        steps.command([*SYSTEMCTL, "reset-failed", *sockets, units.SERVICE], may_fail=True),
        steps.command([*SYSTEMCTL, "enable", *sockets, units.SERVICE]),
        steps.command([*SYSTEMCTL, "start", *sockets]),
        steps.command([*SYSTEMCTL, "start", units.SERVICE]),
    ]


def entries(paths: Paths, config: Config) -> list[Step]:
    """What each agent's user writes into its client."""
    return [
        steps.hint(
            f"aegis-wrap --agent {door.agent} --backend NAME --socket {door.path}", f"the entry of `{door.user}`"
        )
        for door in doors(paths, config)
    ]


def uninstall(paths: Paths, *, purge: bool) -> list[Step]:
    """What takes it away. Configuration, log and user stay unless `purge`."""
    place, names, notes = unit_directory(paths), _units(paths), _notes(paths)
    found: list[Step] = []
    if names and answers(paths):
        found.append(steps.command([*SYSTEMCTL, "disable", "--now", *names], may_fail=True))
    found.extend(steps.remove(f"{place}/{name}") for name in names)
    if names and answers(paths):
        found.append(steps.command([*SYSTEMCTL, "daemon-reload"]))
    if os.path.isdir(paths.run_dir):
        found.append(Step("remove", paths.run_dir, "its sockets", lambda: _clear(paths.run_dir)))
    if not purge:
        return found
    etc = f"{root_of(paths)}/etc/aegis"
    for path, detail, ours in (
        (paths.state_dir, "log, keys, approvals", _STATE),
        (etc, "configuration, and all that lies beside it", _ETC if notes.config else _NOTES),
    ):
        if path in notes.directories and os.path.isdir(path) and not os.path.islink(path):
            found.append(Step("remove", path, detail, partial(_clear, path)))
        elif os.path.isdir(path):  # it was there before: what we did not make stays
            names = [name for name in sorted(os.listdir(path)) if ours.fullmatch(name)]
            found += [Step("remove", f"{path}/{name}", "", partial(_away, f"{path}/{name}")) for name in names]
            found.append(Step("remove", path, "if nothing else is in it", partial(_bare, path)))
    members = [
        name for name in notes.admins if _known(pwd.getpwnam, name) and ADMINS in _groups(pwd.getpwnam(name).pw_uid)
    ]
    if notes.group and _known(grp.getgrnam, ADMINS):
        found.append(steps.command(["groupdel", ADMINS]))
    else:
        found.extend(steps.command(["gpasswd", "--delete", name, ADMINS]) for name in members)
    if notes.user and _known(pwd.getpwnam, USER):
        found.append(steps.command(["userdel", USER]))
        found.append(Step("run", f"groupdel {USER}", "where somebody was added to it", _group_away))
    return found


def find(paths: Paths) -> Machine | None:
    """The machine's service, where its systemd runs it."""
    names = _units(paths) if paths.doors and answers(paths) else []
    return Machine(tuple(names)) if units.SERVICE in names else None


def installed(paths: Paths) -> bool:
    """Whether there is anything of it."""
    return bool(_units(paths)) or os.path.exists(f"{root_of(paths)}/etc/aegis/{NOTES}")


def answers(paths: Paths) -> bool:
    """Whether the machine's systemd takes orders, and this is the machine itself."""
    return not root_of(paths) and sys.platform == "linux" and os.path.isdir("/run/systemd/system")


def unit_directory(paths: Paths) -> str:
    """Where root's own units are."""
    return f"{root_of(paths)}/etc/systemd/system"


def uid_of(user: str) -> int:
    """The uid of a name, or of a uid in digits that somebody has. Raises `Unable`."""
    try:
        return pwd.getpwuid(int(user)).pw_uid if user.isdigit() else pwd.getpwnam(user).pw_uid
    except KeyError:
        raise Unable(
            f"there is no user `{user}`", "make one with `useradd --create-home NAME`, or name another"
        ) from None


def _units(paths: Paths) -> list[str]:
    place = unit_directory(paths)
    try:
        names = sorted(os.listdir(place))
    except OSError:
        return []
    mine = [name for name in names if name.startswith("aegis") and name.endswith((".service", ".socket"))]
    return [name for name in mine if units.ours(_text(f"{place}/{name}"))]


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 16)
    except OSError:
        return ""


def _notes(paths: Paths) -> Notes:
    try:
        with open(f"{root_of(paths)}/etc/aegis/{NOTES}", "rb") as file:
            return msgspec.json.decode(file.read(), type=Notes)
    except (OSError, msgspec.MsgspecError):
        return Notes()


def _own_directory(path: str, mode: int, user: str, notes: Notes) -> list[Step]:
    """Makes a directory, and notes it. One that was there before stays somebody's, and serves if it can as it is.

    Raises `Unable`.
    """
    if path in notes.directories or not os.path.lexists(path):
        if path not in notes.directories:
            notes.directories.append(path)
        return [_directory(path, mode, user, USER)]
    ours = _STATE if user == USER else _ETC
    other = [name for name in sorted(os.listdir(path)) if not ours.fullmatch(name)] if os.path.isdir(path) else [path]
    if not other:
        return [_directory(path, mode, user, USER)]
    found = os.stat(path)
    if user != USER and found.st_uid == 0 and stat.S_ISDIR(found.st_mode) and found.st_mode & 0o027 == 0o005:
        return [Step("keep", path, "it was there before: owner, mode and what else is in it stay")]
    raise Unable(
        f"`{path}` is there and holds what is not Aegis's: {', '.join(other[:5])}",
        "look at it, and move it away" + (", or make it root's, 0755" if user != USER else ""),
    )


def _directory(path: str, mode: int, user: str, group: str) -> Step:
    def make() -> None:  # the user may be made by a step before
        steps_owner = (pwd.getpwnam(user).pw_uid, grp.getgrnam(group).gr_gid)
        does = steps.directory(path, mode, steps_owner).do
        assert does is not None
        does()

    return Step("make", path, f"{user}:{group} {mode:04o}", make)


def _own(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchown(fd, 0, grp.getgrnam(USER).gr_gid)
        os.fchmod(fd, 0o640)
    finally:
        os.close(fd)


def _group_away() -> None:
    if _known(grp.getgrnam, USER):  # `userdel` leaves one that has other members
        steps.order(["groupdel", USER])


def _away(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        _clear(path)
    else:
        with suppress(FileNotFoundError):
            os.unlink(path)


def _bare(path: str) -> None:
    with suppress(OSError):
        os.rmdir(path)


def _clear(path: str) -> None:
    import shutil

    with suppress(FileNotFoundError):
        shutil.rmtree(path)


def _reachable(python: str) -> str:
    """An interpreter, with what it imports, that the daemon's user can run and root alone change. Raises `Unable`."""
    import aegis_daemon

    advice = (
        f"install Aegis for the whole machine ({INSTALL_GLOBAL}, or a virtual environment that root makes in /opt), "
        "and run this command from there"
    )
    package = aegis_daemon.__path__[0]
    ours = (package, os.path.join(os.path.dirname(package), "aegis_shim"))
    starts = (python, os.path.realpath(python), sys.prefix, sys.base_prefix, *ours)
    whole = [each for path in (*starts, *_imports()) for each in (path, os.path.realpath(path))]
    parts: dict[str, os.stat_result] = {}
    for part in dict.fromkeys(part for path in whole for part in _above(path)):
        with suppress(OSError):
            parts[part] = os.stat(part)
        if part not in parts or not parts[part].st_mode & 0o001:
            raise Unable(f"the user `{USER}` could not run `{python}`: `{part}` is closed to it", advice)
    within = (each for top in dict.fromkeys((*ours, *_imports())) for each in _within(top))
    for path, found in (*parts.items(), *within):
        if _changeable(found):
            raise Unable(f"others than root could change what `{python}` runs: `{path}`", advice)
    return python


def _imports() -> tuple[str, ...]:
    """The directories from which an interpreter like this one imports, but for its own directory and the library's."""
    found = (sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    return tuple(path for path in dict.fromkeys(found) if path and os.path.isdir(path))


def _within(top: str) -> Iterable[tuple[str, os.stat_result]]:
    """All files and directories below one, links as what they are."""
    for directory, names, files in os.walk(top):
        for name in (*names, *files):
            path = os.path.join(directory, name)
            with suppress(OSError):
                yield path, os.lstat(path)


def _changeable(found: os.stat_result) -> bool:
    """Whether anybody but root can change it. In a sticky directory nobody touches what is root's."""
    if found.st_uid != 0:
        return True
    if stat.S_ISLNK(found.st_mode) or (stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX):
        return False
    return bool(found.st_mode & 0o022)


def _above(path: str) -> Iterable[str]:
    while True:
        yield path
        if path == "/":
            return
        path = os.path.dirname(path)


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _groups(uid: int) -> set[str]:
    """The names of a user's groups."""
    try:
        who = pwd.getpwuid(uid)
    except KeyError:
        return set()
    found = set()
    for gid in os.getgrouplist(who.pw_name, who.pw_gid):
        with suppress(KeyError):
            found.add(grp.getgrgid(gid).gr_name)
    return found


def _known(find: Any, name: str) -> bool:
    try:
        find(name)
    except KeyError:
        return False
    return True
