"""The greeting: what a shim says to the daemon, and what the daemon may say back, in the same bytes for both.

The daemon imports this file and `ledger`, and nothing else of the shim.

Shim to daemon, once, over the Unix socket: a length (4 bytes, big endian), then `key=value` entries separated by
NUL. Four descriptors travel with the first byte (SCM_RIGHTS), in the order CLIENT_IN, CLIENT_OUT, STDERR, LEDGER.
After that the shim says nothing more: that it shuts its side of the socket, or closes it, ends the session.

Daemon to shim, lines: `ok <session> <way>`, `no <reason>`, `exit <code>`, `bye restart`, `bye stop`. Once the daemon
has said `exit` or `bye`, or has closed the socket, it touches none of the four descriptors any more.
"""

from __future__ import annotations

VERSION = 1
PREFIX = 4  # bytes of length in front
CAP = 2 * 1024 * 1024  # bytes of entries at most; an environment and arguments beyond it could not be executed anyway
MAX_LINE = 4096  # bytes of one line from the daemon, newline included

HANDOVER = "handover"  # client-in and client-out are the shim's own stdin and stdout
RELAY = "relay"  # they are the inner ends of two pipes that the shim pumps

CLIENT_IN, CLIENT_OUT, STDERR, LEDGER = range(4)  # places of the descriptors
FDS = 4

_SINGLE = ("v", "agent", "backend", "cwd", "way", "resume", "umask")
PRIVATE = 0o077  # a mask for files that are nobody else's business


class Hello:
    """One greeting. Text stands for bytes as UTF-8 with surrogateescape, so any argument or variable survives."""

    __slots__ = ("agent", "args", "backend", "cwd", "env", "resume", "umask", "way")

    def __init__(
        self,
        agent: str,
        backend: str = "",
        cwd: str = "/",
        way: str = RELAY,
        resume: bool = False,
        args: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
        umask: int = PRIVATE,
    ) -> None:
        self.agent = agent
        self.backend = backend
        self.cwd = cwd
        self.way = way
        self.resume = resume  # the ledger belongs to a session that an earlier daemon left
        self.args = args  # the command handed over, or nothing
        self.env = {} if env is None else env  # the shim's environment without AEGIS_*
        self.umask = umask  # the shim's own: what a server writes is for whom the client meant it

    def _key(self) -> tuple[object, ...]:
        return (self.agent, self.backend, self.cwd, self.way, self.resume, self.args, self.env, self.umask)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Hello) and self._key() == other._key()

    __hash__ = None  # type: ignore[assignment]  # it holds a dict

    def __repr__(self) -> str:
        # No arguments and no environment: they may hold secrets.
        return f"Hello(agent={self.agent!r}, backend={self.backend!r}, way={self.way!r}, resume={self.resume!r})"


def text(raw: bytes) -> str:
    """Bytes from the operating system as the text that a greeting carries."""
    return raw.decode("utf-8", "surrogateescape")


def octets(value: str) -> bytes:
    """The bytes that `text` came from."""
    return value.encode("utf-8", "surrogateescape")


def encode(hello: Hello) -> bytes:
    """The whole greeting, length included.

    Raises ValueError when an entry holds a NUL, a variable's name is not one, or the entries exceed CAP bytes.
    """
    entries = [
        f"v={VERSION}",
        f"agent={hello.agent}",
        f"backend={hello.backend}",
        f"cwd={hello.cwd}",
        f"way={hello.way}",
        f"resume={int(hello.resume)}",
        f"umask={hello.umask:03o}",
    ]
    entries += [f"arg={arg}" for arg in hello.args]
    for name, value in hello.env.items():
        if not name or "=" in name:
            raise ValueError(f"`{name}` is not a name of an environment variable")
        if not name.startswith("AEGIS_"):
            entries.append(f"env={name}={value}")
    body = octets("\0".join(entries))
    if body.count(0) != len(entries) - 1:
        raise ValueError("a greeting cannot carry a NUL byte")
    if len(body) > CAP:
        raise ValueError(f"arguments and environment take {len(body)} bytes, more than the {CAP} a greeting may have")
    return len(body).to_bytes(PREFIX, "big") + body


def expected(start: bytes) -> int:
    """How many bytes the greeting that begins with `start` has in all; 0 while fewer than PREFIX bytes are there.

    Raises ValueError when it announces more than CAP.
    """
    if len(start) < PREFIX:
        return 0
    length = int.from_bytes(start[:PREFIX], "big")
    if length > CAP:
        raise ValueError(f"the greeting announces {length} bytes, more than the {CAP} allowed")
    return PREFIX + length


def decode(greeting: bytes) -> Hello:
    """The inverse of `encode`, strict: ValueError for anything that no shim of this version says."""
    if len(greeting) < PREFIX or len(greeting) != expected(greeting):
        raise ValueError("the greeting's length does not match its bytes")
    single: dict[str, str] = {}
    args: list[str] = []
    env: dict[str, str] = {}
    for entry in text(greeting[PREFIX:]).split("\0"):
        key, equals, value = entry.partition("=")
        if not equals:
            raise ValueError("the greeting holds an entry without `=`")
        if key == "arg":
            args.append(value)
        elif key == "env":
            name, equals, content = value.partition("=")
            if not equals or not name:
                raise ValueError("the greeting holds an environment entry that is not `NAME=VALUE`")
            if not name.startswith("AEGIS_"):
                env[name] = content
        elif key in _SINGLE and key not in single:
            single[key] = value
        else:
            raise ValueError(f"the greeting holds an unknown or repeated key `{key[:40]}`")
    if single.get("v") != str(VERSION):
        raise ValueError(
            f"the greeting has version `{single.get('v', 'none')[:20]}`, this daemon speaks {VERSION};"
            " install the same version of aegis-wrap and aegis"
        )
    for key in _SINGLE:
        if key not in single:
            raise ValueError(f"the greeting lacks `{key}`")
    if not single["agent"]:
        raise ValueError("the greeting names no agent")
    if single["way"] not in (HANDOVER, RELAY):
        raise ValueError(f"the greeting asks for an unknown way `{single['way'][:40]}`")
    if single["resume"] not in ("0", "1"):
        raise ValueError("the greeting's `resume` is neither 0 nor 1")
    mask = single["umask"]
    if len(mask) != 3 or mask.strip("01234567"):
        raise ValueError("the greeting's `umask` is no mask of three octal digits")
    return Hello(
        agent=single["agent"],
        backend=single["backend"],
        cwd=single["cwd"],
        way=single["way"],
        resume=single["resume"] == "1",
        args=tuple(args),
        env=env,
        umask=int(mask, 8),
    )


def say_ok(session: str, way: str) -> bytes:
    """The daemon has taken the session and the four descriptors."""
    return octets(f"ok {session} {way}\n")


def say_no(reason: str) -> bytes:
    """The daemon refuses the session for good; the client gets `reason` for every request."""
    return octets(f"no {' '.join(reason.split())}")[: MAX_LINE - 1] + b"\n"


def say_exit(code: int) -> bytes:
    """The server ended: its status 0..255, or the negative number of the signal that ended it."""
    return b"exit %d\n" % code


def say_bye(restart: bool) -> bytes:
    """The daemon leaves: `restart` asks the shim to come back and to start a daemon if none is there."""
    return b"bye restart\n" if restart else b"bye stop\n"


def heard(line: bytes) -> tuple[str, str]:
    """A line of the daemon, without its newline, as (word, rest). Raises ValueError for a word we do not know."""
    word, _, rest = line.decode("utf-8", "replace").partition(" ")
    if word not in ("ok", "no", "exit", "bye"):
        raise ValueError(f"the daemon said `{word[:40]}`, which this shim does not know")
    return word, rest


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words in front of a server's own name, and the options of theirs that take the next word as a value.
_LAUNCHERS = _words(
    "npx npm pnpm yarn bunx bun node deno tsx ts-node uvx uv pipx pdm poetry hatch docker podman env"
    " run exec dlx tool x start"
)
_CONTAINERS = ("docker", "podman")
_VALUED = _words(
    "--directory --project --with --with-requirements --python --index --index-url --extra --env-file --group"
    " --require --import --loader --config --cwd --prefix --dir --from --package -p --spec"
)
_VALUED_BY_CONTAINERS = _words(
    "--env --volume --mount --name --network --net --workdir --user --platform --entrypoint --add-host --publish"
    " --label --pull --memory --cpus --env-file --gpus -e -v -w -u -m -l -p -h -c"
)
_EXTENSIONS = (".js", ".mjs", ".cjs", ".ts", ".mts", ".py", ".sh", ".exe", ".cmd", ".git")
_BLANK = _words("index main server app cli dist build src lib bin out mcp stdio __main__ run start")
_PREFIXES = ("mcp-server-", "server-", "mcp-")
_SUFFIXES = ("-mcp-server", "-mcp", "-server")


def backend_name(command: tuple[str, ...] | list[str]) -> str:
    """The backend's name where the user gave none, derived from the command by a fixed rule.

    The first word that is no launcher (`npx`, `uvx`, `uv run`, `node`, `python -m`, `docker run`, …), no option and
    no option's value counts. Of it: the last component, without version, tag or file extension, lower case, without
    one prefix (`mcp-server-`, `server-`, `mcp-`) and one suffix (`-mcp-server`, `-mcp`, `-server`). A component
    that says nothing (`index`, `main`, `dist`, …) gives way to the one before it. Nothing left: `default`.
    """
    word, module = _server_word(command)
    for extension in _EXTENSIONS:
        if word.lower().endswith(extension):
            word = word[: -len(extension)]
            break
    parts = (word.replace(".", "/") if module else word).replace("\\", "/").split("/")
    first = ""
    for part in reversed(parts):
        name = _bare(part)
        if name and name not in _BLANK:
            return name
        first = first or name
    return first or "default"


def _server_word(command: tuple[str, ...] | list[str]) -> tuple[str, bool]:
    """The word that names the server, and whether it is a Python module."""
    skip = module = container = False
    for word in command:
        base = word.replace("\\", "/").rpartition("/")[2].lower().removesuffix(".exe").removesuffix(".cmd")
        if skip:
            skip = False
        elif word.startswith("-"):
            skip = word in (_VALUED_BY_CONTAINERS if container else _VALUED)
            module = word == "-m" and not container
        elif module:
            return word, True
        elif base in _LAUNCHERS:
            container = container or base in _CONTAINERS
        elif base.startswith("python") and not base[6:].strip("0123456789."):
            continue
        elif "=" in word and word.partition("=")[0].replace("_", "a").isalnum() and "==" not in word:
            continue  # `env NAME=value command`
        else:
            return word, False
    return "", False


def _bare(part: str) -> str:
    """One path or package component without version, tag, extra, affixes and odd characters."""
    for mark in ("==", ">=", "<=", "~=", "[", ":", "@"):
        cut = part.find(mark, 1)
        if cut > 0:
            part = part[:cut]
    part = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in part.lower()).strip("-.")
    folded = part.replace("_", "-")
    for prefix in _PREFIXES:
        if folded.startswith(prefix) and len(folded) > len(prefix):
            part, folded = part[len(prefix) :], folded[len(prefix) :]
            break
    for suffix in _SUFFIXES:
        if folded.endswith(suffix) and len(folded) > len(suffix):
            part = part[: -len(suffix)]
            break
    return part.strip("-.")
