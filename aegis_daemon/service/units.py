"""The files by which systemd and launchd run the daemon; pure texts, in which every path is absolute.

A person's service is not locked in: the servers that it starts are the person's own programs, and use what the person
may use (browsers with setuid helpers, files anywhere, devices). The machine's service starts only what root configured,
and is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

SERVICE: Final = "aegis.service"
SOCKET: Final = "aegis.socket"
LABEL: Final = "dev.aegis-mcp.daemon"
"""launchd's name for the daemon"""
MAIN: Final = "aegis_daemon.daemon.main"
CHECK: Final = "aegis_daemon.service.check"
MARK: Final = "# Written by `aegis daemon install`"
"""How a unit of ours begins. What begins otherwise is somebody else's, and is left alone."""
_HEAD: Final = MARK + ", which replaces it; change it with `systemctl edit` instead.\n"
_USER_HEAD: Final = MARK + ", which replaces it; change it with `systemctl --user edit` instead.\n"
WATCHDOG_S: Final = 60


class Door(msgspec.Struct, frozen=True):
    """The socket of one agent's user in the isolated tier; `user` is a name, or a uid in digits."""

    agent: str
    user: str
    path: str

    @property
    def unit(self) -> str:
        """The name of its unit, which tells agents and users apart as the path does."""
        return f"aegis-agent-{_escaped(self.path.rpartition('/')[2].removesuffix('.sock'))}.socket"


def user_service(python: str, env: Mapping[str, str], log: str) -> str:
    """`aegis.service` of a person."""
    return f"""{_USER_HEAD}
[Unit]
Description=Aegis, which governs what agents do
StartLimitIntervalSec=60
StartLimitBurst=5

[Service]
Type=notify
ExecStart={word(python)} -I -m {MAIN}
ExecReload=/bin/kill -HUP $MAINPID
WorkingDirectory=/
{_environment(env)}
{_common(f"append:{escaped(log)}")}
# Servers are the person's own programs: anything more would keep some of them from working.
LimitCORE=0

[Install]
WantedBy=default.target
Also={SOCKET}
"""


def user_socket(path: str) -> str:
    """`aegis.socket` of a person; `path` may begin with `%t` (the runtime directory), and is else literal."""
    where = "%t" + escaped(path[2:]) if path.startswith("%t/") else escaped(path)
    return f"""{_USER_HEAD}
[Unit]
Description=Where agents' sessions reach Aegis; the first one starts it

[Socket]
ListenStream={where}
SocketMode=0600
DirectoryMode=0700
RemoveOnStop=yes
Backlog=512

[Install]
WantedBy=sockets.target
"""


def system_service(python: str, env: Mapping[str, str], state: str, doors: Sequence[Door]) -> str:
    """`aegis.service` of the machine. The daemon opens its log by itself, as its own user: see `lifecycle.own_log`."""
    sockets = " ".join([SOCKET, *(door.unit for door in doors)])
    return f"""{_HEAD}
[Unit]
Description=Aegis, which governs what agents do (isolated tier)
After=network-online.target {sockets}
Wants=network-online.target
Requires={SOCKET}
StartLimitIntervalSec=60
StartLimitBurst=5

[Service]
Type=notify
ExecStartPre={word(python)} -I -m {CHECK}
ExecStart={word(python)} -I -m {MAIN} --log
ExecReload=/bin/kill -HUP $MAINPID
User=aegis
Group=aegis
Sockets={sockets}
WorkingDirectory=/
{_environment(env)}
{_common("journal")}
LimitCORE=0
LimitNOFILE=65536
# What a server needs beyond this, `systemctl edit aegis` adds: `ReadWritePaths=` for files that it may change,
# `ProtectHome=tmpfs` where it needs none of anybody. Not here: what JIT compilers, browsers' sandboxes or the check of
# who approves (which reads /proc) would miss.
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ReadWritePaths={word(state)}
ProtectHome=read-only
PrivateTmp=yes
PrivateDevices=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
RemoveIPC=yes
SystemCallArchitectures=native

[Install]
WantedBy=multi-user.target
Also={sockets}
"""


def manage_socket(path: str, group: str) -> str:
    """`aegis.socket` of the machine: where people who may decide reach the daemon, and nobody else."""
    return f"""{_HEAD}
[Unit]
Description=Where `aegis` reaches the machine's daemon

[Socket]
ListenStream={escaped(path)}
SocketUser=root
SocketGroup={group}
SocketMode=0660
DirectoryMode=0755
RemoveOnStop=yes
Service={SERVICE}

[Install]
WantedBy=sockets.target
"""


def door_socket(door: Door) -> str:
    """The unit of one agent's socket, which its user alone can open."""
    return f"""{_HEAD}
[Unit]
Description=Where the agent {escaped(door.agent)} reaches Aegis, as the user {escaped(door.user)}

[Socket]
ListenStream={escaped(door.path)}
SocketUser={escaped(door.user)}
SocketMode=0600
DirectoryMode=0755
RemoveOnStop=yes
Backlog=512
Service={SERVICE}

[Install]
WantedBy=sockets.target
"""


def launch_agent(python: str, env: Mapping[str, str], log: str) -> bytes:
    """The property list of a launchd agent, which starts at login and again when it fails."""
    import plistlib  # an XML parser, which the other commands do without

    return plistlib.dumps(
        {
            "Label": LABEL,
            "ProgramArguments": [python, "-I", "-m", MAIN],
            "EnvironmentVariables": dict(env),
            "WorkingDirectory": "/",
            "RunAtLoad": True,
            # An end that was asked for (`aegis daemon stop`) is one.
            "KeepAlive": {"SuccessfulExit": False},
            "ThrottleInterval": 5,
            "Umask": 0o077,
            "HardResourceLimits": {"Core": 0},
            "StandardOutPath": log,
            "StandardErrorPath": log,
        }
    )


def ours(text: str) -> bool:
    """Whether a unit, or property list, was written by us."""
    return text.startswith(MARK) or f"<string>{LABEL}</string>" in text


def listens_at(text: str) -> str:
    """The path that a socket unit of ours opens, which may begin with `%t`. Empty where it opens none."""
    found = re.search(r"^ListenStream=(.+)$", text, re.M)
    return found[1].replace("%%", "%") if found else ""


def setting(text: str, name: str) -> str:
    """The value of a variable in a service unit of ours; empty where it sets none."""
    found = re.search(rf'^Environment="{re.escape(name)}=((?:[^"\\]|\\.)*)"$', text, re.M)
    return re.sub(r"\\(.)", r"\1", found[1]).replace("%%", "%") if found else ""


# --- how systemd reads ------------------------------------------------------------------------------------------------


def escaped(text: str) -> str:
    """A text in which systemd replaces nothing. Raises `ValueError` where it cannot be written on one line."""
    if not text.isprintable():
        raise ValueError(f"{text!r} holds characters that cannot be in a unit")
    return text.replace("%", "%%")


def word(text: str) -> str:
    """One word of a command line or list."""
    quoted = escaped(text).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return quoted if re.fullmatch(r"[\w@/.:+,=-]+", quoted, re.ASCII) else f'"{quoted}"'


def _environment(env: Mapping[str, str]) -> str:
    lines = []
    for name, value in env.items():
        quoted = escaped(value).replace("\\", "\\\\").replace('"', '\\"')
        lines.append(f'Environment="{name}={quoted}"')
    return "\n".join(lines)


def _common(output: str) -> str:
    """What both kinds of service say of one run. A server that the kernel kills for memory ends alone."""
    return f"""StandardOutput={output}
StandardError={output}
UMask=0077
Restart=on-failure
RestartSec=1
TimeoutStartSec=300
TimeoutStopSec=45
WatchdogSec={WATCHDOG_S}
KillMode=mixed
OOMPolicy=continue"""


def _escaped(name: str) -> str:
    """A part of a unit's name, as systemd-escape(1) writes it but for dashes, which may be in names."""
    return "".join(
        chr(byte) if chr(byte).isascii() and (chr(byte).isalnum() or chr(byte) in "_.-") else f"\\x{byte:02x}"
        for byte in name.encode()
    )
