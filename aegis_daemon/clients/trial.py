"""An entry is tried by starting exactly what its client would start, and asking it what it offers; no tool is called.

The process gets what the entry says and what any program of this user has, without the variables by which our own
commands find the daemon: an entry that needs those has to say so itself.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final
from urllib.parse import urlsplit

from aegis_daemon.clients.entries import Entry

PATIENCE_S: Final = 20.0
"""For all of it."""
INSTALL_S: Final = 120.0
"""For one that its command may install first: an installer that is ended in the middle may leave half of it behind."""
NAME: Final = "aegis-trial"
"""as which a server hears of us"""
NO_TOOLS: Final = "it answers, and shows none of its tools: `aegis tools list` tells why"
"""What is said of a server that says it has tools and lists none; `ok` all the same."""
END_S: Final = 5.0
_LOOK_S: Final = 0.2
"""How often it is asked whether anybody still waits."""
LINE_MAX: Final = 16 << 20
PAGES_MAX: Final = 50
VERSION: Final = "2025-06-18"
INSTALLERS: Final = frozenset({
    "npx", "npm", "pnpm", "pnpx", "yarn", "bunx", "bun", "uvx", "uv", "pipx", "docker", "podman", "deno", "dnx", "nix",
    "npx-cli.js", "npm-cli.js",
})  # fmt: skip
_STARTERS: Final = frozenset(
    ("aegis-wrap", "sh", "bash", "zsh", "dash", "fish", "env", "cmd", "mise", "asdf", "fnm", "volta", "nvm", "node")
)
"""Programs that start the one that is named behind them."""
_HIDDEN: Final = ("AEGIS_", "XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_CONFIG_HOME")
_REFERENCE: Final = re.compile(
    r"\$\{(?:env:)?(?P<braced>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}|\{env:(?P<curly>[A-Za-z_][A-Za-z0-9_]*)\}"
    r"|\$\{(?P<other>[^}]*)\}|\$(?P<bare>[A-Za-z_][A-Za-z0-9_]*)"
)


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of it. `tried` False: it was not started, and `detail` says why."""

    ok: bool
    detail: str
    tools: int = 0
    tried: bool = True
    listed: tuple[Mapping[str, Any], ...] = field(default=(), repr=False, compare=False)
    """the tools as it lists them"""


def installer(entry: Entry) -> str:
    """The program by which an entry may install its server before it starts it; "" for none."""
    if entry.kind != "stdio":
        return ""
    names = [program_of(word) for word in (entry.command, *entry.args)[:16] for word in (word, *word.split())]
    if names[0] in _STARTERS:
        return next((name for name in names if name in INSTALLERS), "")
    return names[0] if names[0] in INSTALLERS else ""


def patience(entry: Entry) -> float:
    """How many seconds an entry gets."""
    return INSTALL_S if installer(entry) else PATIENCE_S


def program_of(word: str) -> str:
    """The name of a program by a word of a command line, without its place."""
    return word.replace("\\", "/").rpartition("/")[2].lower().removesuffix(".exe").removesuffix(".cmd")


class Unknown(Exception):
    """A text names what only its client knows; the message says what."""


class _Failed(Exception):
    pass


def try_entry(
    entry: Entry,
    env: Mapping[str, str],
    cwd: str | None = None,
    syntax: Collection[str] = (),
    patience: float = PATIENCE_S,
    stopped: Callable[[], bool] = lambda: False,
) -> Trial:
    """Starts or calls the entry and asks for its tools. Takes at most `patience` and `END_S` seconds.

    :param env: this process's environment. :param cwd: where the client would start it, the home directory if None.
    :param syntax: how the client names variables in its entries, see `Client.env_syntax`. :param stopped: whether
        nobody wants to know any more.
    """
    try:
        known = _environment(env)
        meant = _filled(entry, known, syntax)
        return _call(meant, patience) if entry.kind == "http" else _start(meant, known, cwd, patience, stopped)
    except Unknown as why:
        return Trial(False, str(why), tried=False)
    except _Failed as why:
        return Trial(False, str(why))


def _filled(entry: Entry, env: Mapping[str, str], syntax: Collection[str]) -> Entry:
    """The entry with its variables put in. Raises `Unknown`."""

    def table(values: Mapping[str, str]) -> dict[str, str]:
        return {name: expanded(value, env, syntax) for name, value in values.items()}

    return replace(
        entry, command=expanded(entry.command, env, syntax), args=tuple(expanded(a, env, syntax) for a in entry.args),
        env=table(entry.env), cwd=expanded(entry.cwd, env, syntax) if entry.cwd else None,
        url=expanded(entry.url, env, syntax), headers=table(entry.headers),
    )  # fmt: skip


def _environment(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if not name.startswith(_HIDDEN)}


def expanded(text: str, env: Mapping[str, str], syntax: Collection[str]) -> str:
    """A text of an entry with the variables that it names, as a client of this syntax puts them in.

    :raises Unknown: one is not set, or is no variable.
    """

    def value(match: re.Match[str]) -> str:
        whole, name = match[0], match["braced"] or match["curly"] or match["bare"]
        if name == "userHome" and whole in syntax:
            return env.get("HOME", "")
        if whole in syntax or any(whole.startswith(f"{one.partition(':')[0]}:") for one in syntax if "input:" in one):
            raise Unknown(f"only the client knows what `{whole}` is")
        if name is None or not any(one.partition("NAME")[0] == whole.partition(name)[0] for one in syntax):
            return whole
        if name in env:
            return env[name]
        if match["default"] is not None:
            return match["default"]
        raise Unknown(f"it needs `{name}`, which is not set here")

    return _REFERENCE.sub(value, text)


# --- a process --------------------------------------------------------------------------------------------------------


def _start(
    entry: Entry, env: Mapping[str, str], cwd: str | None, patience: float, stopped: Callable[[], bool]
) -> Trial:
    argv = [entry.command, *entry.args]
    own = {**env, **entry.env}
    where = entry.cwd or cwd or env.get("HOME") or "/"
    try:
        process = subprocess.Popen(  # noqa: S603 - what the client starts, no more and no less
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=own, cwd=where,
            start_new_session=True, bufsize=0,
        )  # fmt: skip
    except OSError as error:
        raise _Failed(f"`{argv[0]}` cannot be started: {(error.strerror or str(error)).lower()}") from None
    talk = _Talk(process, time.monotonic() + patience, stopped)
    try:
        return _tools(talk.ask, talk.tell)
    except BrokenPipeError:
        raise _Failed(talk.ended()) from None
    finally:
        _end(process)


class _Talk:
    """Lines to and from a process, and what it says to people."""

    def __init__(self, process: subprocess.Popen[bytes], until: float, stopped: Callable[[], bool]) -> None:
        self._stopped = stopped
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._process = process
        self._until = until
        self._in, self._out, self._err = process.stdin, process.stdout, process.stderr
        self._buffer = b""
        self._said = b""
        self._open = [self._out.fileno(), self._err.fileno()]

    def tell(self, message: dict[str, Any]) -> None:
        self._in.write(json.dumps(message).encode() + b"\n")

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        self.tell(message)
        while True:
            line = self._line()
            try:
                said = json.loads(line)
            except ValueError:
                raise _Failed(
                    f"it prints what is no message on its stdout: `{line[:80].decode('utf-8', 'replace')}`"
                ) from None
            if isinstance(said, dict) and said.get("id") == message["id"] and "method" not in said:
                return said

    def _line(self) -> bytes:
        while b"\n" not in self._buffer:
            left = self._until - time.monotonic()
            if left <= 0:
                raise _Failed(f"it did not answer in time{self._last()}")
            if self._stopped():
                raise _Failed("it was not waited for")
            if not self._open:
                raise _Failed(self.ended())
            for ready in select.select(self._open, [], [], min(left, _LOOK_S))[0]:
                data = os.read(ready, 65536)
                if not data:
                    self._open.remove(ready)
                    if ready == self._out.fileno():
                        self._rest()
                        raise _Failed(self.ended())
                elif ready == self._out.fileno():
                    self._buffer += data
                    if len(self._buffer) > LINE_MAX:
                        raise _Failed("it writes a line without end")
                else:
                    self._said = (self._said + data)[-4096:]
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _rest(self) -> None:
        while self._open and select.select(self._open, [], [], 0.2)[0]:
            data = os.read(self._open[0], 65536)
            if not data:
                return
            self._said = (self._said + data)[-4096:]

    def ended(self) -> str:
        """What is to be said of one that is gone."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        status = self._process.returncode
        how = "it ended" if status is None else f"it ended with status {status}"
        return f"{how} before it answered{self._last()}"

    def _last(self) -> str:
        lines = [line for line in self._said.decode("utf-8", "replace").splitlines() if line.strip()]
        return f": {lines[-1].strip()[:300]}" if lines else ""


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(OSError):
        assert process.stdin is not None
        process.stdin.close()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        pass
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # a server that was started may have left others
    process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


# --- an address -------------------------------------------------------------------------------------------------------


def _call(entry: Entry, patience: float) -> Trial:
    parts = urlsplit(entry.url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Unknown("only addresses of http and https are tried")
    headers = {**entry.headers, "Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    until = time.monotonic() + patience
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    def post(message: dict[str, Any]) -> dict[str, Any] | None:
        line = kind(parts.hostname or "", parts.port, timeout=max(0.1, until - time.monotonic()))
        try:
            line.request("POST", path, json.dumps(message).encode(), headers)
            answer = line.getresponse()
            session = answer.getheader("Mcp-Session-Id")
            if session:
                headers["Mcp-Session-Id"] = session
            body = answer.read(LINE_MAX) if "event-stream" not in (answer.getheader("Content-Type") or "") else b""
            if answer.status >= 400:
                raise _Failed(f"it answers {answer.status}: {_reason(body)}")
            if body or "id" not in message:
                return dict(json.loads(body)) if body and "id" in message else None
            while text := answer.readline(LINE_MAX):
                if text.startswith(b"data:"):
                    said = json.loads(text[5:])
                    if isinstance(said, dict) and said.get("id") == message["id"] and "method" not in said:
                        return said
            raise _Failed("it ended its answer before it said anything")
        except (OSError, http.client.HTTPException) as error:
            raise _Failed(f"`{parts.netloc}` does not answer: {str(error).lower()}") from None
        except (ValueError, TypeError):
            raise _Failed("what it answers is no message") from None
        finally:
            line.close()

    def ask(message: dict[str, Any]) -> dict[str, Any]:
        found = post(message)
        headers["MCP-Protocol-Version"] = VERSION
        return found if found is not None else {}

    def tell(message: dict[str, Any]) -> None:
        post(message)

    return _tools(ask, tell)


def _reason(body: bytes) -> str:
    try:
        said = json.loads(body)
        return str(said["error"]["message"])[:300]
    except (ValueError, KeyError, TypeError):
        return body[:200].decode("utf-8", "replace").strip() or "nothing more"


# --- both -------------------------------------------------------------------------------------------------------------


def _tools(ask: Any, tell: Any) -> Trial:
    """Asks for the tools that there are. Raises `_Failed`."""
    info = {"name": NAME, "version": "1"}
    said = _result(ask(_request(1, "initialize", {"protocolVersion": VERSION, "capabilities": {}, "clientInfo": info})))
    tell({"jsonrpc": "2.0", "method": "notifications/initialized"})
    if "tools" not in (said.get("capabilities") or {}):
        return Trial(True, "")
    found: list[Mapping[str, Any]] = []
    cursor = None
    for page in range(PAGES_MAX):
        listed = _result(ask(_request(2 + page, "tools/list", {"cursor": cursor} if cursor else {})))
        tools = listed.get("tools")
        found += [one for one in tools if isinstance(one, dict)] if isinstance(tools, list) else ()
        cursor = listed.get("nextCursor")
        if not cursor:
            break
    return Trial(True, "" if found else NO_TOOLS, tools=len(found), listed=tuple(found))


def _request(number: int, method: str, params: dict[str, Any]) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": params}


def _result(answer: dict[str, Any]) -> dict[str, Any]:
    error = answer.get("error")
    if isinstance(error, dict):
        raise _Failed(str(error.get("message", "it refuses"))[:500])
    found = answer.get("result")
    if not isinstance(found, dict):
        raise _Failed("what it answers is no message")
    return found
