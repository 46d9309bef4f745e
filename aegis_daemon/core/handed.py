"""A server that the agent's end handed over is one with its command line, its directory and its environment.

What a person agrees to holds for that server and for no other of the same name; made once, when the session begins.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

SHOWN: Final = 2000
"""Characters of the command line, and of the directory, that are kept to be shown."""
_WORD: Final = 2 * SHOWN
"""Characters of a word that are looked at, so that looking takes no longer than showing."""
PASSING: Final = frozenset({
    "_", "SHLVL", "OLDPWD", "COLUMNS", "LINES", "TERM", "COLORTERM", "TERM_PROGRAM", "TERM_PROGRAM_VERSION",
    "TERM_SESSION_ID", "WINDOWID", "GPG_TTY", "SSH_TTY", "SSH_CLIENT", "SSH_CONNECTION", "XDG_SESSION_ID",
    "ITERM_SESSION_ID", "KONSOLE_DBUS_SERVICE", "KONSOLE_DBUS_SESSION", "KONSOLE_DBUS_WINDOW", "WT_SESSION",
    "TMUX_PANE", "VSCODE_IPC_HOOK", "VSCODE_IPC_HOOK_CLI", "VSCODE_PID", "VSCODE_GIT_IPC_HANDLE", "CURSOR_TRACE_ID",
    "CLAUDE_CODE_SSE_PORT", "DESKTOP_STARTUP_ID", "XDG_ACTIVATION_TOKEN", "SESSION_MANAGER",
    "GIO_LAUNCHED_DESKTOP_FILE_PID", "INVOCATION_ID", "JOURNAL_STREAM", "SYSTEMD_EXEC_PID", "MEMORY_PRESSURE_WATCH",
    "MEMORY_PRESSURE_WRITE",
})  # fmt: skip
"""Variables that a shell, a terminal, an editor, a login or a service manager sets anew each time, and that name
nothing to work on: with them one server would be another one in every window."""
_SECRET: Final = re.compile(
    r"key|token|secret|pass|pwd|auth(?!or)|credential|cookie|bearer|signature|jwt|dsn|(?<![a-z])(?:pin|pat|pw|otp)(?![a-z])",
    re.IGNORECASE,
)
_NAMED: Final = re.compile(r"(?P<name>-{0,2}[A-Za-z_][\w.-]*)(?P<is>\s*[=:](?!//)\s*)(?P<value>\S.*)", re.DOTALL)
_ADDRESS: Final = re.compile(
    r"(?<![a-z0-9+.-])(?P<scheme>[a-z][a-z0-9+.-]{0,31}://)(?P<rest>[^\s\"'`<>]+)", re.IGNORECASE
)
_PLAIN: Final = re.compile(r"[\w@%+=:,./~-]+")
"""A word that a shell takes as it stands."""


class Handed(msgspec.Struct, frozen=True):
    """One server. `mark` (64 hex digits) tells it from others; the rest is shown to people, cut to `SHOWN`."""

    mark: str
    command: str
    """the command line without what is called a secret in it; see `shown`"""
    cwd: str


def handed(argv: Sequence[str], cwd: str, env: Mapping[str, str]) -> Handed:
    """The server that is started so; texts may hold what is no UTF-8, as `os.fsdecode` gives it."""
    kept = sorted((name, value) for name, value in env.items() if name not in PASSING)
    mark = hashlib.sha256(json.dumps([list(argv), cwd, kept]).encode()).hexdigest()
    return Handed(mark, shown(argv), _cut(cwd))


def shown(argv: Sequence[str]) -> str:
    """A command line as people may see it: whole but for the values of options and variables that are called secrets,
    and for the logins and queries of addresses. Code that is run from an argument stays: it is what they decide on."""
    words: list[str] = []
    named = ""
    size = 0
    for at, whole in enumerate(argv):
        if size > SHOWN:
            words.append(f"… ({len(argv) - at} more)")
            break
        word = whole[:_WORD]
        found = _NAMED.fullmatch(word)
        if named and not word.startswith("-"):
            words.append(f"<{named}>")
        elif found is not None and _SECRET.search(found["name"]):
            words.append(f"{found['name']}{found['is']}<{found['name'].lstrip('-')}>")
        else:
            words.append(_quoted(_ADDRESS.sub(_address, word)))
        size += len(words[-1]) + 1
        option = word.startswith("-") and found is None and _SECRET.search(word) is not None
        named = word.lstrip("-") if option else ""
    return _cut(" ".join(words))


def _address(found: re.Match[str]) -> str:
    place, slash, path = found["rest"].partition("/")
    if "@" in found["rest"]:  # a password may hold anything, a `/` too
        place, slash, path = found["rest"].rpartition("@")[2].partition("/")
        place = f"<login>@{place}"
    path, query, _ = path.partition("?")
    return f"{found['scheme']}{place}{slash}{path}{'?<query>' if query else ''}"


def _quoted(word: str) -> str:
    # As `shlex.quote`, which would put quotes around every letter that is not ASCII.
    return word if _PLAIN.fullmatch(word) else "'" + word.replace("'", "'\"'\"'") + "'"


def _cut(text: str) -> str:
    """At most `SHOWN` characters, and none that cannot be written down."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}… ({len(text)} characters)"
