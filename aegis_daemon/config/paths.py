"""Every file of Aegis has one place, and the shim and the daemon find the same one.

`AEGIS_HOME=DIR` puts everything under DIR; otherwise the XDG base directories decide. The shim has its own copy of
the two rules it needs (it imports nothing from here); `tests/config/test_paths.py` holds the two together. With
`AEGIS_SYSTEM=1` they are the machine's (the isolated tier), where each agent has a socket of its own.
"""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Mapping

import msgspec

SOCKET_PATH_MAX = 103
"""The longest socket path that works everywhere: `sun_path` has 104 bytes on macOS (108 on Linux), one is the NUL."""


class PathError(ValueError):
    """A directory or socket path cannot be used; the text says which, why, and what to do."""


class Paths(msgspec.Struct, frozen=True):
    """Where the files of one installation are; all absolute."""

    config: str
    """`aegis.yaml`"""
    approver_key: str
    """`approver.key`, beside the config"""
    run_dir: str
    socket: str
    """`aegis.sock`, where shims connect"""
    manage_socket: str
    """`manage.sock`, where the command line connects"""
    lock: str
    """`daemon.lock`, held by the one running daemon"""
    state_dir: str
    log: str
    audit_db: str
    """`audit.db`, unless `audit.db_path` says otherwise"""
    state_db: str
    links_key: str
    """`links.key`, which signs approval links"""
    journal: str
    """`journal/`, a directory"""
    audit_key: str
    """`audit.key`, which signs checkpoints, beside the config, unless `audit.key_file` says otherwise"""
    exports_db: str
    """`exports.db`, how far each export has come"""
    doors: str = ""
    """the directory of the agents' sockets, one each, in the isolated tier; empty where all agents share `socket`"""

    @classmethod
    def find(cls, env: Mapping[str, str]) -> Paths:
        """Where things are, given an environment. Touches no file.

        `AEGIS_HOME` wins over XDG; `AEGIS_CONFIG` names the config file and `AEGIS_SOCKET` the shims' socket in either
        case. Empty variables count as unset, and so do relative XDG ones (XDG Base Directory 0.8). `AEGIS_SYSTEM` wins
        over them all: `1` for the machine's own directories, or a directory that stands for `/`.
        """
        system = env.get("AEGIS_SYSTEM", "")
        if system:
            return cls.of_system("" if system == "1" else os.path.abspath(system).rstrip("/"), env)
        home = env.get("AEGIS_HOME", "")
        if home:
            config_dir = run_dir = state_dir = os.path.abspath(home)
        else:
            user = _absolute(env.get("HOME", "")) or pwd.getpwuid(os.getuid()).pw_dir
            config_dir = os.path.join(_absolute(env.get("XDG_CONFIG_HOME", "")) or f"{user}/.config", "aegis")
            state_dir = os.path.join(_absolute(env.get("XDG_STATE_HOME", "")) or f"{user}/.local/state", "aegis")
            runtime = _absolute(env.get("XDG_RUNTIME_DIR", ""))
            run_dir = os.path.join(runtime, "aegis") if runtime else os.path.join(state_dir, "run")
        config = os.path.abspath(env.get("AEGIS_CONFIG", "") or os.path.join(config_dir, "aegis.yaml"))
        return cls(
            config=config,
            approver_key=os.path.join(os.path.dirname(config), "approver.key"),
            run_dir=run_dir,
            socket=os.path.abspath(env.get("AEGIS_SOCKET", "") or os.path.join(run_dir, "aegis.sock")),
            manage_socket=os.path.join(run_dir, "manage.sock"),
            lock=os.path.join(run_dir, "daemon.lock"),
            state_dir=state_dir,
            log=os.path.join(state_dir, "daemon.log"),
            audit_db=os.path.join(state_dir, "audit.db"),
            state_db=os.path.join(state_dir, "state.db"),
            links_key=os.path.join(state_dir, "links.key"),
            journal=os.path.join(state_dir, "journal"),
            audit_key=os.path.join(os.path.dirname(config), "audit.key"),
            exports_db=os.path.join(state_dir, "exports.db"),
        )

    @classmethod
    def of_system(cls, root: str, env: Mapping[str, str]) -> Paths:
        """Those of the isolated tier: the configuration is root's, the state the daemon's, the sockets root's.

        :param root: what stands for `/`; empty for the machine itself.
        """
        run, state = f"{root}/run/aegis", f"{root}/var/lib/aegis"
        return cls(
            config=os.path.abspath(env.get("AEGIS_CONFIG", "") or f"{root}/etc/aegis/aegis.yaml"),
            approver_key=f"{state}/approver.key",
            run_dir=run,
            socket=f"{run}/agents/default.sock",
            manage_socket=f"{run}/manage.sock",
            lock=f"{state}/daemon.lock",
            state_dir=state,
            log=f"{state}/daemon.log",
            audit_db=f"{state}/audit.db",
            state_db=f"{state}/state.db",
            links_key=f"{state}/links.key",
            journal=f"{state}/journal",
            audit_key=f"{state}/audit.key",
            exports_db=f"{state}/exports.db",
            doors=f"{run}/agents",
        )

    def door(self, agent: str, uid: int | None = None) -> str:
        """The socket of one agent, in the isolated tier; `uid` where the agent may be several users."""
        return f"{self.doors}/{agent}.sock" if uid is None else f"{self.doors}/{agent}.{uid}.sock"

    def prepare(self) -> None:
        """Make the run, state and journal directories (0700) and check that nobody else can change them.

        In the isolated tier the run directory is root's, who made it with the sockets in it.

        :raises PathError: a directory belongs to another user, is open to writing by others, or a socket path is too
            long for the system.
        :raises OSError: a directory cannot be made.
        """
        for path in (self.socket, self.manage_socket):
            if len(os.fsencode(path)) > SOCKET_PATH_MAX:
                raise PathError(
                    f"socket path `{path}` is longer than {SOCKET_PATH_MAX} bytes; "
                    "set AEGIS_HOME to a shorter directory"
                )
        # The state directory first: what makedirs makes on its way to a deeper one is not private.
        for path in (self.state_dir, *(() if self.doors else (self.run_dir,)), self.journal):
            os.makedirs(path, mode=0o700, exist_ok=True)
            found = os.stat(path)
            if found.st_uid != os.geteuid():
                raise PathError(
                    f"`{path}` belongs to uid {found.st_uid}, not to {os.geteuid()}; "
                    "give it back with chown, or set AEGIS_HOME to a directory of your own"
                )
            if stat.S_IMODE(found.st_mode) & 0o022:
                raise PathError(f"`{path}` can be written by other users; run `chmod 700 {path}`")


def _absolute(path: str) -> str:
    return path if path.startswith("/") else ""
