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
    r"key|token|secret|pass|pwd|auth(?!or(?!iz))|credential|cookie|bearer|signature|jwt|dsn|(?<![a-z])(?:pin|pat|pw|otp)(?![a-z])",
    re.IGNORECASE,
)
_NAMES_WHAT_RUNS: Final = re.compile(
    r"command|cmd|exec|script|program|helper|eval|askpass|plugin|module|librar|file|path|dir|sock|url", re.IGNORECASE
)
"""`--password-command`, `GIT_ASKPASS`, `--token-file`: what is so called is no secret, and says what runs or where."""
_CODE: Final = re.compile(r"-\w*[ce]|--(?:eval|exec|execute|command|code|run)", re.IGNORECASE)
"""Options whose word is code."""
_NAMED: Final = re.compile(r"(?P<name>-{0,2}[A-Za-z_][\w.-]*)(?P<is>\s*[=:](?!//)\s*)(?P<value>\S.*)", re.DOTALL)
_ADDRESS: Final = re.compile(
    r"(?<![a-z0-9+.-])(?P<scheme>[a-z][a-z0-9+.-]{0,31}://)(?P<rest>[^\s\"'`<>]+)", re.IGNORECASE
)
_VALUE: Final = re.compile(r"[^\s;|&`()<>'\"]+")
"""A value that runs nothing, whatever reads the word: a shell, an interpreter behind `-c` or `-e`, or nobody."""
_HEADER: Final = re.compile(r"[^\r\n;|&`()<>'\"]+")
"""The same of a header, whose value has spaces (`Authorization: Bearer …`); no shell or interpreter takes one."""
_WORD_LIKE: Final = re.compile(r"[\w.$/=+-]+")
"""A value that runs nothing behind an assignment in a language either."""
_PLAIN: Final = re.compile(r"[\w@%+=:,./~-]+")
"""A word that a shell takes as it stands."""


_COMMAND: Final = "its command line"
_DIRECTORY: Final = "its directory"
_VARIABLES: Final = 1000
_NAME: Final = 100
"""How many variables, and how much of a name, can be told apart by name."""
_TOLD: Final = 12


class Handed(msgspec.Struct, frozen=True):
    """One server. `mark` (64 hex digits) tells it from others; the rest is shown to people, cut to `SHOWN`."""

    mark: str
    command: str
    """the command line without what is called a secret in it; see `shown`"""
    cwd: str
    parts: str = ""
    """what the mark is made of, each part by a short hash of its own: see `differing`"""


def handed(argv: Sequence[str], cwd: str, env: Mapping[str, str]) -> Handed:
    """The server that is started so; texts may hold what is no UTF-8, as `os.fsdecode` gives it."""
    kept = sorted((name, value) for name, value in env.items() if name not in PASSING)
    mark = hashlib.sha256(json.dumps([list(argv), cwd, kept]).encode()).hexdigest()
    parts = {_COMMAND: _short(json.dumps(list(argv))), _DIRECTORY: _short(cwd)}
    parts |= {f"${name[:_NAME]}": _short(value) for name, value in kept[:_VARIABLES]}
    return Handed(mark, shown(argv), _cut(cwd), json.dumps(parts))


def differing(parts: str, others: str) -> str:
    """What is different about two servers, in words: `$DATABASE_URL (new), its directory`; their `parts`."""
    one: dict[str, str] = json.loads(parts)
    other: dict[str, str] = json.loads(others)
    told = [
        _named(name) + (" (new)" if name not in other else " (gone)" if name not in one else "")
        for name in sorted(one.keys() | other.keys())
        if one.get(name) != other.get(name)
    ]
    more = len(told) - _TOLD
    return ", ".join(told) if more <= 0 else f"{', '.join(told[:_TOLD])} and {more} more"


def shown(argv: Sequence[str]) -> str:
    """A command line as people may see it: whole but for the values of options and variables that are called secrets,
    and for the logins and queries of addresses. Code that is run from an argument stays, whatever it is called: it is
    what they decide on. So a secret stays too that could be code (`PASSWORD=a;b`)."""
    words: list[str] = []
    named = before = ""
    size = 0
    for at, whole in enumerate(argv):
        if size > SHOWN:
            words.append(f"… ({len(argv) - at} more)")
            break
        word = whole[:_WORD]
        found = _NAMED.fullmatch(word)
        if named and not word.startswith("-"):
            words.append(f"<{named}>")
        elif found is not None and _is_secret(found["name"]) and _runs_nothing(found, before):
            words.append(f"{found['name']}{found['is']}<{found['name'].lstrip('-')}>")
        else:
            words.append(_quoted(_ADDRESS.sub(_address, word)))
        size += len(words[-1]) + 1
        before = word
        option = word.startswith("-") and found is None and _is_secret(word) and not _CODE.fullmatch(word)
        named = word.lstrip("-") if option else ""
    return _cut(" ".join(words))


def _named(part: str) -> str:
    """A variable's name may be a sentence; then it stands in quotes."""
    return json.dumps(part) if part.startswith("$") and not re.fullmatch(r"\$[A-Za-z_][A-Za-z0-9_]*", part) else part


def _is_secret(name: str) -> bool:
    return _SECRET.search(name) is not None and _NAMES_WHAT_RUNS.search(name) is None


def _runs_nothing(found: re.Match[str], before: str) -> bool:
    """Whether the value of `NAME=VALUE` or `Name: value`, a word behind the word `before`, is no code."""
    if _CODE.fullmatch(before):  # or a variable, as for `docker run -e`
        return "=" in found["is"] and _WORD_LIKE.fullmatch(found["value"]) is not None
    return (_HEADER if ":" in found["is"] else _VALUE).fullmatch(found["value"]) is not None


def _short(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


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
