"""The daemon as a service of one person's login: written, started, found again, and removed without a trace.

On Linux a systemd user service with a socket that starts it, on macOS a launchd agent. A unit of ours that belongs to
another installation (another `AEGIS_HOME`) is never taken for this one's.
"""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Final, Literal

import msgspec

from aegis_daemon.config.paths import Paths
from aegis_daemon.core.extras import INSTALL
from aegis_daemon.service import steps, units
from aegis_daemon.service.steps import Step, Unable

EPHEMERAL: Final = (
    "/.cache/uv/",
    "/uv/archive-v",
    "/uv/builds-v",
    "/uv/environments-v",
    "/pipx/.cache/",
    "/.cache/pipx/",
)
"""Parts of paths of programs that are there only until a cache is cleared."""
_KEPT: Final = ("AEGIS_HOME", "AEGIS_CONFIG", "AEGIS_SOCKET", "XDG_CONFIG_HOME", "XDG_STATE_HOME")
"""Variables that say where our files are; the service gets those that are set."""
SYSTEMCTL: Final = ("systemctl", "--user", "--no-pager", "--no-ask-password")


class Service(msgspec.Struct, frozen=True):
    """One that is installed for this installation."""

    kind: Literal["systemd", "launchd"]
    files: tuple[str, ...]
    config: str
    """the configuration that it was installed with; empty for the usual place"""

    def start(self) -> None:
        """Has it run; returns when it answers. Raises `Unable`."""
        if self.kind == "launchd":
            steps.call(["launchctl", "bootstrap", _domain(), self.files[0]])
            steps.order(["launchctl", "kickstart", f"{_domain()}/{units.LABEL}"])
            return
        # What failed too often is not started again by itself, nor is its socket.
        steps.call([*SYSTEMCTL, "reset-failed", units.SERVICE, units.SOCKET])
        steps.order([*SYSTEMCTL, "start", units.SOCKET, units.SERVICE])

    def stop(self) -> None:
        """Has it end, and its socket not start it again. Raises `Unable`."""
        if self.kind == "systemd":  # launchd takes an end that was asked for as one
            steps.order([*SYSTEMCTL, "stop", units.SOCKET, units.SERVICE])


def python(env: Mapping[str, str]) -> str:
    """The interpreter that the service will run, absolute. Raises `Unable` for one that will not be there tomorrow."""
    found = os.path.abspath(sys.executable)
    cache = env.get("UV_CACHE_DIR", "").rstrip("/")
    if any(part in found for part in EPHEMERAL) or (cache and found.startswith(cache + "/")):
        raise Unable(
            f"`{found}` is there only for the moment (`uvx` and `pipx run` keep it in a cache): no service can run it",
            f"install it for good with {INSTALL}, then repeat this",
        )
    return found


def answers() -> bool:
    """Whether this login has a service manager that takes orders."""
    if sys.platform == "darwin":
        return True
    return sys.platform == "linux" and steps.call([*SYSTEMCTL, "show-environment"], 10.0).returncode == 0


def find(paths: Paths, env: Mapping[str, str]) -> Service | None:
    """The service of this installation, if there is one. Cheap: two files are read."""
    if paths.doors:
        return None
    if sys.platform == "darwin":
        plist = _plist(env)
        text = _text(plist)
        if not units.ours(text) or f"<string>{paths.log}</string>" not in text:
            return None
        return Service("launchd", (plist,), "")
    service, socket = _unit_paths(env)
    text = _text(socket)
    if not units.ours(text) or units.listens_at(text) != _where(paths, env):
        return None
    return Service("systemd", (service, socket), units.setting(_text(service), "AEGIS_CONFIG"))


def install(paths: Paths, env: Mapping[str, str]) -> list[Step]:
    """What makes the service; the running daemon has to be gone before `start` is done. Raises `Unable`."""
    interpreter = python(env)
    kept = {name: os.path.abspath(env[name]) for name in _KEPT if env.get(name)}
    # What a login's service manager has for a PATH knows nothing of nvm, pyenv or ~/.local/bin.
    kept["PATH"] = env.get("PATH", "") or os.defpath
    try:
        if sys.platform == "darwin":
            plist = _plist(env)
            _free(plist)
            if (text := _text(plist)) and f"<string>{paths.log}</string>" not in text:
                raise _others(plist)
            return [steps.write(plist, units.launch_agent(interpreter, kept, paths.log), 0o644)]
        service, socket = _unit_paths(env)
        for path in (service, socket):
            _free(path)
        where = _where(paths, env)
        if units.listens_at(_text(socket)) not in ("", where):
            raise _others(socket)
        return [
            steps.write(service, units.user_service(interpreter, kept, paths.log).encode(), 0o644),
            steps.write(socket, units.user_socket(where).encode(), 0o644),
        ]
    except ValueError as error:
        raise Unable(str(error), "rename it, then repeat this") from None


def enable() -> list[Step]:
    """What has the service run, now and at every login."""
    if sys.platform == "darwin":
        return [steps.command(["launchctl", "bootstrap", _domain(), _plist(os.environ)])]
    return [
        steps.command([*SYSTEMCTL, "daemon-reload"]),
        steps.command([*SYSTEMCTL, "reset-failed", units.SERVICE, units.SOCKET], may_fail=True),
        steps.command([*SYSTEMCTL, "enable", units.SERVICE, units.SOCKET]),
        steps.command([*SYSTEMCTL, "start", units.SOCKET]),
        steps.command([*SYSTEMCTL, "start", units.SERVICE]),
    ]


def by_hand() -> list[Step]:
    """The same for a person, where no service manager answers."""
    if sys.platform == "darwin":
        return [steps.hint(f"launchctl bootstrap {_domain()} {_plist(os.environ)}")]
    return [
        steps.hint("systemctl --user daemon-reload", "in a session of your own, where systemd answers"),
        steps.hint(f"systemctl --user enable --now {units.SOCKET} {units.SERVICE}"),
        steps.hint("aegis daemon start", "where there is no systemd at all, as in a container: it needs none"),
    ]


def linger() -> list[Step]:
    """A hint where the service would end with the last session of this user."""
    user = pwd.getpwuid(os.getuid()).pw_name
    if sys.platform != "linux" or os.path.exists(f"/var/lib/systemd/linger/{user}"):
        return []
    return [steps.hint(f"loginctl enable-linger {user}", "to have it run while you are not logged in, too")]


def uninstall(service: Service) -> list[Step]:
    """What takes the service away; the files of Aegis itself stay."""
    found: list[Step] = []
    if service.kind == "launchd":
        found.append(steps.command(["launchctl", "bootout", f"{_domain()}/{units.LABEL}"], may_fail=True))
    elif answers():
        found.append(steps.command([*SYSTEMCTL, "disable", "--now", units.SOCKET, units.SERVICE], may_fail=True))
    else:
        for path in service.files:  # what `enable` made beside them
            for wants in ("default.target.wants", "sockets.target.wants"):
                link = os.path.join(os.path.dirname(path), wants, os.path.basename(path))
                if os.path.islink(link):
                    found.append(steps.remove(link))
    found.extend(steps.remove(path) for path in service.files)
    if service.kind == "systemd":
        if answers():
            found.append(steps.command([*SYSTEMCTL, "daemon-reload"]))
        found.append(Step("remove", os.path.dirname(service.files[0]), "where it is empty", lambda: _tidy(service)))
    return found


def _tidy(service: Service) -> None:
    """Directories that were made for the units go again, if nothing else has come into them."""
    units_directory = os.path.dirname(service.files[0])
    inside = [os.path.join(units_directory, wants) for wants in ("default.target.wants", "sockets.target.wants")]
    for path in (*inside, units_directory, os.path.dirname(units_directory)):
        with suppress(OSError):
            os.rmdir(path)


def _free(path: str) -> None:
    text = _text(path)
    if text and not units.ours(text):
        raise Unable(f"`{path}` is there and was not written by Aegis", "look at it, and move it away")


def _others(path: str) -> Unable:
    return Unable(
        f"`{path}` is the service of another installation of yours",
        "take that one away first: `aegis daemon uninstall` with its AEGIS_HOME, or without one",
    )


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 16)
    except OSError:
        return ""


def _unit_paths(env: Mapping[str, str]) -> tuple[str, str]:
    config = env.get("XDG_CONFIG_HOME", "")
    base = config if config.startswith("/") else f"{_home(env)}/.config"
    return f"{base}/systemd/user/{units.SERVICE}", f"{base}/systemd/user/{units.SOCKET}"


def _plist(env: Mapping[str, str]) -> str:
    return f"{_home(env)}/Library/LaunchAgents/{units.LABEL}.plist"


def _home(env: Mapping[str, str]) -> str:
    home = env.get("HOME", "")
    return home.rstrip("/") if home.startswith("/") else pwd.getpwuid(os.getuid()).pw_dir


def _where(paths: Paths, env: Mapping[str, str]) -> str:
    """The socket as the unit names it: a login's runtime directory is `%t` there, known to a shell or not."""
    return paths.socket if env.get("AEGIS_HOME") or env.get("AEGIS_SOCKET") else "%t/aegis/aegis.sock"


def _domain() -> str:
    return f"gui/{os.getuid()}"
