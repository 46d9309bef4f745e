"""A change of an entry is shown setting by setting, whatever its file's format, and what may be a secret by its name.

What is shown is what is known to be harmless: a value of an option or a key that nobody knows stays hidden. What a
program is told to run is shown whole, but for what looks like a secret in it.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from aegis_daemon.clients.documents import dotted

if TYPE_CHECKING:
    from aegis_daemon.clients.entries import Entry

_COVERS: Final = re.compile(r"env|header|auth|token|secret|credential|cookie|password", re.IGNORECASE)
"""Keys below which everything may be a secret, whatever its own name."""
_SECRET: Final = re.compile(
    r"key|token|secret|pass|pwd|auth|credential|cookie|bearer|signature|jwt|private"
    r"|(?<![a-z])(?:sig|pat|pin|dsn|otp|sas|pw)(?![a-z])",
    re.IGNORECASE,
)
_PLAIN: Final = frozenset({
    "AEGIS_HOME", "AEGIS_CONFIG", "AEGIS_SOCKET", "AEGIS_SYSTEM", "AEGIS_AGENT", "AEGIS_BACKEND", "AEGIS_WAY",
    "XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "HOME", "PATH",
})  # fmt: skip
"""Variables that name a place."""
_KEYS: Final = frozenset({
    "command", "cmd", "args", "cwd", "working_directory", "type", "transport", "transportType", "url", "serverUrl",
    "httpUrl", "baseUrl", "uri", "name", "description", "tools", "alwaysAllow", "autoApprove", "disabledTools",
    "enabledTools", "enabled_tools", "disabled_tools", "includeTools", "excludeTools", "source", "path", "title",
    "icon",
})  # fmt: skip
"""Settings of an entry whose texts are shown."""
_OPTIONS: Final = frozenset({
    "agent", "backend", "socket", "from", "package", "with", "python", "directory", "project", "dir", "path", "root",
    "port", "host", "transport", "mode", "log-level", "name", "image", "network", "platform", "m", "module", "prefix",
    "timezone", "local-timezone", "region", "toolsets", "toolset", "tools", "browser", "db-path", "repository", "repo",
    "c", "index", "channel", "version",
})  # fmt: skip
"""Options whose values are shown; of others only what is a path, a number or a common word."""
_PROGRAMS: Final = ("command", "cmd")
"""Settings that name a program."""
_LINES: Final = (*_PROGRAMS, "args", "arguments", "argv")
"""Settings that are a command line, or the rest of one."""
_FLAGS: Final = frozenset({
    "-y", "--yes", "-q", "--quiet", "-i", "-t", "-it", "-ti", "--rm", "-I", "-S", "-B", "-s", "-E", "-lc", "-x", "--",
    "--init", "--offline", "--isolated", "--no-cache", "--verbose", "--stdio", "--headless", "--read-only",
})  # fmt: skip
"""Options that take no value."""
_COMMON: Final = frozenset({
    "true", "false", "yes", "no", "on", "off", "none", "auto", "all", "stdio", "http", "https", "sse", "local",
    "remote", "streamable-http", "websocket", "info", "debug", "warn", "warning", "error", "trace", "latest", "json",
    "text", "read", "write", "readonly", "read-only", "stable", "default",
})  # fmt: skip
_CODE: Final = frozenset({
    "eval", "require", "import", "entrypoint", "rcfile", "init-file", "init-command", "loader", "experimental-loader",
    "preload", "exec", "execdir", "execute", "command", "encodedcommand", "enc", "c",
})  # fmt: skip
"""Options behind which stands what is run, whatever the program."""
_CODE_VARIABLES: Final = frozenset({
    "NODE_OPTIONS", "NODE_PATH", "PYTHONSTARTUP", "PYTHONPATH", "PERL5OPT", "PERL5LIB", "RUBYOPT", "RUBYLIB",
    "BASH_ENV", "ENV", "LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "DYLD_INSERT_LIBRARIES", "JAVA_TOOL_OPTIONS",
    "GIT_SSH_COMMAND", "PROMPT_COMMAND", "NPM_CONFIG_REGISTRY", "npm_config_registry", "UV_INDEX_URL",
    "UV_DEFAULT_INDEX", "PIP_INDEX_URL",
})  # fmt: skip
"""Variables by which programs run something else."""
_SHELLS: Final = frozenset({"sh", "bash", "zsh", "dash", "ash", "ksh", "fish", "csh", "tcsh"})
_RUNS: Final = {
    **dict.fromkeys(_SHELLS, "co"), **dict.fromkeys(("node", "nodejs", "bun", "deno", "tsx", "ts-node"), "epr"),
    **dict.fromkeys(("perl", "ruby", "php", "lua", "luajit", "rscript", "julia", "elixir", "osascript"), "eErRBMl"),
    **dict.fromkeys(("pwsh", "powershell"), "ce"), "python": "c", "pypy": "c", "env": "S", "ssh": "o", "git": "c",
}  # fmt: skip
"""Programs that run what their options say, and the letters of these options."""
_DEPTH: Final = 8
"""Command lines within one another that are looked at word by word."""
_CALL: Final = re.compile(r"[A-Za-z_$][\w$.]{0,63}\s?\(|[;|`]|\$\(")
"""What is in code and in few values."""
_SHELL_WORD: Final = re.compile(
    r"""[^\S\n]+|(?P<operator>[;&|()<>\n]+)|(?P<word>(?:\\.|'[^']*'|"(?:\\.|[^"\\])*"|[^\s;&|()<>'"\\]|['"\\])+)""",
    re.DOTALL,
)
_SUBSTITUTED: Final = re.compile(r"\$\(([^()]*)\)|`([^`]*)`")
_ORDINARY: Final = re.compile(
    r"@?(?:[/~]|\$\{?HOME\}?/).*|\.\.?(?:[/\\].*)?|[A-Za-z]:\\.*|-?\d{1,6}(?:\.\d+)?[a-z]{0,2}|[a-z][a-z0-9+.-]*://.*|@[\w.-]+/[\w.@-]+",
    re.IGNORECASE | re.DOTALL,
)
_REFERENCE: Final = re.compile(
    r"\$\{(?:[A-Za-z]+:)?[A-Za-z_][\w.-]*\}|\{(?:env|file|input):[\w./~-]*\}|\$[A-Za-z_][A-Za-z0-9_]*"
)
"""The name of a variable, without what stands in for it."""
_OPTION: Final = re.compile(r"--?[A-Za-z][\w.-]*")
_SETTING: Final = re.compile(r"-{0,2}[A-Za-z_][\w.-]*")
_HEADER: Final = re.compile(r"([A-Za-z][A-Za-z0-9_-]*):(?!//)\s*(.*)", re.DOTALL)
_ADDRESS: Final = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]{0,30})://(?P<rest>[^\s\"'`<>]*)", re.IGNORECASE)
_LOGIN: Final = re.compile(
    r"(?<![^\s\"'`=,(\[])(?!(?:npm|jsr|node|file|link|git|github|gitlab|mailto|workspace):|[A-Za-z]:\\)"
    r"(?://)?[^\s:@/\"'`]{0,128}:(?!//)[^\s\"'`]{0,512}@(?!sha\d+:)(?=[\w\[])",
    re.IGNORECASE,
)
"""`NAME:PASSWORD@` without a scheme before it."""
_OF_WEB: Final = ("http", "https", "ws", "wss", "ssh", "file")
_ASSIGNED: Final = re.compile(
    r"(?<![\w.-])(?=[\w.-]*(?:key|token|secret|pass|pwd|auth|credential|cookie|bearer|signature|jwt))(?P<name>[\w.-]+)"
    r"(?P<is>[\"']?\s*(?:=|:(?!//))\s*[\"']?)(?P<value>(?:(?:basic|bearer|token|digest)\s+)?[^\s;,&\"'<>]+)",
    re.IGNORECASE,
)
_KNOWN: Final = re.compile(
    r"(?<![A-Za-z0-9])(?:gh[pousr]_|github_pat_|sk-|sk_|rk_|pk_|xox[abeprs]-|AKIA|ASIA|glpat-|eyJ|lin_api_|npm_|hf_|ntn_"
    r"|figd_|AIza|ya29\.|dop_v1_|sbp_|shpat_|SG\.|pypi-)[A-Za-z0-9_\-.]{8,}"
)
_UUID: Final = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.IGNORECASE)
_CHUNK: Final = re.compile(r"[A-Za-z0-9]{12,}")
_GROUPS: Final = re.compile(r"(?<![A-Za-z0-9])[A-Za-z0-9]{3,}(?:[-_][A-Za-z0-9]{3,})+(?![A-Za-z0-9])")
_PARTS: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
"""Words of `aNameLikeThis`."""
_PART: Final = 3
"""Letters that such a word has at least, on the average, where somebody thought of it."""
_TURNS: Final = 3
"""Changes between letters and digits from which a long word was drawn and not thought of."""
_LONG: Final = 32
"""Characters of a word without a break that nobody thought of either."""
_HIDDEN: Final = "<secret>"


def difference(keys: Sequence[str | int], before: Any, after: Any) -> list[str]:
    """Lines that begin with ` `, `-` or `+`, under one with the entry's place (`@@ mcpServers.github @@`)."""
    was, now = dict(_flat(before)), dict(_flat(after))
    lines = [f"@@ {dotted(tuple(keys))} @@"]
    for name in dict.fromkeys([*was, *now]):
        old, new = was.get(name), now.get(name)
        if old is not None and new is not None and old[0] == new[0]:
            lines.append(f" {name}: {old[1]}")
            continue
        lines += [f"-{name}: {old[1]}"] if old is not None else []
        lines += [f"+{name}: {new[1]}"] if new is not None else []
    return lines


def _flat(
    value: Any, above: tuple[str, ...] = (), hide: bool = False, runs: str = ""
) -> Iterator[tuple[str, tuple[str, str]]]:
    """Each setting with its text, to be compared, and as it may be shown. `runs`: the program that arguments go to."""
    name = ".".join(above) or "value"
    last = above[-1] if above else "value"
    if isinstance(value, dict):
        if not value and above:
            yield name, ("{}", "{}")
        program = next((value[key] for key in _PROGRAMS if isinstance(value.get(key), str)), "")
        for key, below in value.items():
            covers = hide or _COVERS.search(str(key)) is not None
            yield from _flat(below, (*above, str(key)), covers, _runner(program))
    elif isinstance(value, list):
        text = json.dumps(value, default=str)
        line = last in _KEYS or any(isinstance(one, str) and one.startswith("-") for one in value)
        if hide or not line or not all(isinstance(one, str) for one in value):
            yield name, (text, json.dumps(_safe(value, last, hide), ensure_ascii=False, default=str))
        else:
            yield name, (text, words(value, command=last in _PROGRAMS, runs=runs))
    else:
        text = json.dumps(value, ensure_ascii=False, default=str)
        if last in _PROGRAMS and isinstance(value, str) and not hide:
            yield name, (text, json.dumps(_program(value), ensure_ascii=False))
        elif (shown := _safe(value, last, hide)) != value and isinstance(shown, str) and shown == f"<{last}>":
            yield name, (text, shown)
        else:
            yield name, (text, json.dumps(shown, ensure_ascii=False, default=str))


def _safe(value: Any, name: str, hide: bool) -> Any:
    """A value of which only what is harmless is left."""
    if isinstance(value, dict):
        return {key: _safe(one, str(key), hide or _COVERS.search(str(key)) is not None) for key, one in value.items()}
    if isinstance(value, list) and not hide and name in _LINES and all(isinstance(one, str) for one in value):
        return _words(value, command=name in _PROGRAMS)
    if isinstance(value, list):
        return [(_assigned(one) if isinstance(one, str) else "") or _safe(one, name, hide) for one in value]
    if value is None or isinstance(value, bool) or name in _PLAIN:
        return value
    if isinstance(value, str) and _REFERENCE.fullmatch(value):
        return value
    if isinstance(value, str) and name in _CODE_VARIABLES:
        return _line(value, "node" if name == "NODE_OPTIONS" else "")
    if hide or _SECRET.search(name):
        return f"<{name}>"
    if not isinstance(value, str):
        return value
    return plain_word(value) if name in _KEYS or _ordinary(value) else f"<{name}>"


def _assigned(word: str) -> str:
    """`NAME=VALUE` without its value; "" for anything else."""
    name, equals, _ = word.partition("=")
    return f"{name}=<{name}>" if equals and re.fullmatch(r"[A-Za-z_]\w*", name) else ""


def words(given: Sequence[str], *, command: bool = False, runs: str = "") -> str:
    """A command line in which what may be a secret is left out.

    :param command: its first word is a program. :param runs: the program to which it goes, if it is one that runs code.
    """
    return " ".join(_words(given, command=command, runs=runs))


def _words(given: Sequence[str], *, command: bool = False, runs: str = "", deep: int = 0) -> list[str]:
    shown: list[str] = []
    after, secret, code = "", False, False
    for at, word in enumerate(given):
        name, equals, value = word.partition("=")
        if at == 0 and command:
            shown.append(shlex.quote(_program(word)))
            runs = _runner(word)
        elif code:
            shown.append(_quoted(_code(word, runs, deep)))
            runs = "" if after.endswith("c") else runs  # what comes then is the code's
            after, code = "", False
        elif secret and not _REFERENCE.fullmatch(word):
            shown.append(_masked(after, word))
            # What begins like an option, names a header or holds a variable may not be all of it.
            header = _HEADER.fullmatch(word)
            whole = header is not None and bool(re.search(r"\s", word.strip()))
            secret = word.startswith("-") or word.endswith(":") or (_REFERENCE.search(word) is not None and not whole)
            after = after if secret else ""
        elif equals and _runs_next(name, runs):
            shown.append(f"{name}={_quoted(_code(value, runs, deep))}")
            after, secret = "", False
        elif equals and (_OPTION if re.search(r"\s", word) else _SETTING).fullmatch(name):
            shown.append(f"{name}={_value(name, value)}")
            after, secret = "", False
        elif word.startswith("-") and word != "-" and _runs_next(word, runs):
            shown.append(word)
            after, secret, code = word.lstrip("-"), False, True
        elif word.startswith("-") and word != "-":
            glued = not runs and re.fullmatch(r"-[A-Za-z](?=[^-]*\d)[^-]+", word) is not None
            if glued:
                shown.append(f"{word[:2]}<{word[1]}>")
            else:
                shown.append(_quoted(plain_code(word) if runs else plain_word(word)))
            after = "" if word in _FLAGS or glued else word.lstrip("-")
            secret = bool(after) and (_SECRET.search(word) is not None or after.lower() in ("h", "header", "headers"))
        elif after:
            shown.append(_value(after, word, quiet=True))
            runs = "" if re.search(r"[/.]", word) else runs  # it may be what is run, and what comes then is for that
            after, secret = "", False
        else:
            shown.append(_quoted(_code(word, runs, deep)) if runs and re.search(r"\s", word) else _text(word))
            runs = _runner(word) or (runs if (runs, word) == ("deno", "eval") else "")
            after, secret = "", False
    return shown


def _runner(word: str) -> str:
    """The program of a word, if it is one that runs what its options say; else ""."""
    name = word.replace("\\", "/").rpartition("/")[2].lower().removesuffix(".exe").removesuffix(".cmd")
    name = name if name in _RUNS else re.sub(r"[\d.]+$", "", name)
    return name if name in _RUNS else ""


def _runs_next(word: str, runs: str) -> bool:
    """Whether what follows an option is run."""
    bare = word.lstrip("-")
    if not word.startswith("-") or not bare:
        return False
    if bare.lower() in _CODE or (runs and bare == "print"):
        return True
    return bool(runs) and re.fullmatch(r"-[A-Za-z]+", word) is not None and bare[-1] in _RUNS[runs]


def _code(text: str, runs: str, deep: int) -> str:
    """What a program runs. Of a shell's lines, and of those of nobody knows whom, each word is looked at."""
    line = runs in _SHELLS or runs == "env" or (not runs and not re.search(r"[A-Za-z_]\w{0,63}\(", text))
    if line and deep < _DEPTH:
        return _line(text, deep=deep + 1)
    return plain_code(text)


def _line(text: str, runs: str = "", deep: int = 0) -> str:
    """A line of a shell: what stands between its operators is a command line each."""
    made: list[str] = []
    part: list[str] = []

    def end() -> None:
        nonlocal runs
        made.extend(_words(part, runs=runs, deep=deep))
        part.clear()
        runs = ""

    for found in _SHELL_WORD.finditer(text):
        if found["operator"]:
            end()
            made.append(found["operator"])
        elif found["word"]:
            part.append(_unquoted(found["word"]))
    end()
    return " ".join(made)


def _quoted(text: str) -> str:
    """As `shlex.quote`, and easier to read where there are apostrophes."""
    return f'"{text}"' if "'" in text and not re.search(r'["$`\\!]', text) else shlex.quote(text)


def _unquoted(word: str) -> str:
    try:
        return "".join(shlex.split(word))
    except ValueError:
        return word


def plain_code(text: str) -> str:
    """Code of whatever language, without what looks like a credential; nothing of what it does is left out."""
    text = _ADDRESS.sub(_address, text)
    text = _LOGIN.sub("<login>@", text)

    def assigned(found: re.Match[str]) -> str:
        does = re.search(r"[($`|]", found["value"])
        return found[0] if does else f"{found['name']}{found['is']}<{found['name'].lstrip('-')}>"

    text = _ASSIGNED.sub(assigned, text)
    text = _UUID.sub(_HIDDEN, _KNOWN.sub(_HIDDEN, text))
    return _CHUNK.sub(lambda found: _HIDDEN if _drawn(found[0]) and re.search(r"\d", found[0]) else found[0], text)


def _hidden(name: str, text: str) -> str:
    """The name in place of a value, with what a shell runs to get it."""
    runs = [_line(one[1] or one[2] or "") for one in _SUBSTITUTED.finditer(text)]
    return f"<{name}>" + "".join(f"$({one})" for one in runs)


def _masked(option: str, word: str) -> str:
    header = _HEADER.fullmatch(word)
    if header is not None:
        value = header[2] if _REFERENCE.fullmatch(header[2]) else _hidden(header[1], header[2])
        return shlex.quote(f"{header[1]}: {value}") if header[2] else f"{header[1]}:"
    return _assigned(word) or _hidden(option, word)


def _value(option: str, word: str, *, quiet: bool = False) -> str:
    """What follows an option: as it is where it is harmless, else the option's name. `quiet`: as a word of its own."""
    name = option.lstrip("-")
    if not word or _REFERENCE.fullmatch(word):
        return shlex.quote(word) if quiet else word
    if _SECRET.search(name):
        return _hidden(name, word)
    if name in ("e", "r", "E", "x") and _CALL.search(word):
        return _quoted(plain_code(word))
    variable = name in ("e", "env") and re.fullmatch(r"[A-Z][A-Z0-9_]*", word) and not _drawn(word)
    if name in _OPTIONS or variable or _ordinary(word) or word.lstrip()[:1] in ("{", "["):
        return _text(word)
    return _hidden(name, word)


def _ordinary(word: str) -> bool:
    return word.lower() in _COMMON or _ORDINARY.fullmatch(word) is not None


def _text(word: str) -> str:
    """A word of a command line that may be a whole one, or JSON, itself."""
    if word.lstrip()[:1] in ("{", "[") and not _REFERENCE.fullmatch(word):
        try:
            return shlex.quote(json.dumps(_safe(json.loads(word), "value", False), ensure_ascii=False))
        except (ValueError, RecursionError):
            return "<json>"
    if len(word.split()) > 1:
        header = _HEADER.fullmatch(word)
        if header is not None and _SECRET.search(header[1]):
            return shlex.quote(f"{header[1]}: <{header[1]}>")
        try:
            inner = shlex.split(word)
        except ValueError:
            inner = word.split()
        return _quoted(words(inner if len(inner) > 1 else word.split()))
    return shlex.quote(plain_word(word))


def _program(text: str) -> str:
    """A program's name or path, which a person has to see whole; a command line in its place is one."""
    if text.startswith(("/", "~")) and re.search(r"\s(?:-|\S*[=:])", text):
        return words(text.split(), command=True)
    return text if text.startswith(("/", "~")) and not _KNOWN.search(text) else _bare(text)


def _bare(text: str) -> str:
    shown = _text(text)
    try:
        return "".join(shlex.split(shown))
    except ValueError:
        return shown


def plain_word(text: str) -> str:
    """The text without logins, queries and secrets in its addresses, and without what looks like a credential."""
    text = _ADDRESS.sub(_address, text)
    text = _LOGIN.sub("<login>@", text)
    text = _ASSIGNED.sub(lambda found: f"{found['name']}{found['is']}<{found['name'].lstrip('-')}>", text)
    text = _KNOWN.sub(_HIDDEN, text)
    text = _UUID.sub(_HIDDEN, text)
    text = _GROUPS.sub(lambda found: _HIDDEN if _of_groups(found[0]) else found[0], text)
    return _CHUNK.sub(lambda found: _HIDDEN if _drawn(found[0]) else found[0], text)


def _address(found: re.Match[str]) -> str:
    scheme, rest = found["scheme"], found["rest"]
    web = scheme.lower().rpartition("+")[2] in _OF_WEB
    place = re.split(r"[/?#]", rest, maxsplit=1)[0]
    port = place.rpartition(":")[2] if ":" in place and not place.endswith("]") else ""
    odd = bool(port) and not port.isdigit() and not _REFERENCE.fullmatch(port)
    if "@" in (rest if odd or not web else place):  # passwords hold anything, a `/` too
        rest = rest.rpartition("@")[2] if odd or not web else place.rpartition("@")[2] + rest[len(place) :]
    elif odd:
        return f"{scheme}://<address>"
    rest, hash_, _ = rest.partition("#")
    rest, query, _ = rest.partition("?")
    parts = rest.split("/")
    for at in range(1, len(parts)):
        part, more, _ = parts[at].partition(";")
        hidden = part and (secret_part(part) or parts[at - 1] == "s")
        parts[at] = (_HIDDEN if hidden else part) + (";<parameters>" if more else "")
    return f"{scheme}://{'/'.join(parts)}{'?<query>' if query else ''}{'#<fragment>' if hash_ else ''}"


def secret_part(text: str) -> bool:
    """Whether a part of an address's path looks like something that opens a door."""
    return bool(
        _KNOWN.search(text) or _UUID.search(text) or any(_drawn(one[0]) for one in _CHUNK.finditer(text))
        or any(_of_groups(one[0]) for one in _GROUPS.finditer(text))
    )  # fmt: skip


def _drawn(word: str) -> bool:
    """Whether a word without a break was drawn by lot, as keys are, and not thought of."""
    if len(word) >= _LONG or (len(word) >= 12 and _turns(word) >= _TURNS):
        return True
    mixed = word.lower() != word != word.upper()
    return len(word) >= 12 and mixed and len(word) < _PART * len(_PARTS.findall(word))


def _of_groups(text: str) -> bool:
    """Whether groups with a break between them were drawn: `9f8a-7b6c-1122`, and not `mcp-server-k8s`."""
    return sum(len(one) >= 4 and _turns(one) >= 2 for one in re.split(r"[-_]", text)) >= 2


def _turns(word: str) -> int:
    return sum(one.isdigit() != other.isdigit() for one, other in itertools.pairwise(word))


def shown_command(entry: Entry) -> str:
    """What an entry starts or calls, as it may be shown."""
    return plain_word(entry.url) if entry.kind == "http" else words([entry.command, *entry.args], command=True)
