"""Whether a name is on a list: exact names first, then globs, each tool answered once and remembered.

A glob is matched against the whole name, byte for byte (`*`, `?`, `[…]`); case matters where a list permits. What
restricts holds for every name that a careless server could take for one on the list.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable
from fnmatch import translate
from ipaddress import ip_address
from unicodedata import normalize
from urllib.parse import unquote, urlsplit

from aegis_daemon.wire.jsonrpc import fold

_MAGIC = re.compile(r"[*?\[]")
_REMEMBERED = 4096
_LONGEST = 256
"""Characters of a name whose answer is remembered."""
LONGEST_NAME = 1024
"""Characters of the name of a tool or a prompt; a longer one is nobody's, and is not remembered."""
_LONGEST_URI = 8192
"""Characters of a URI that can be looked for in a list."""
_LONGEST_ESCAPED = 65536
"""Characters of one whose escapes are looked at."""
_PORTS = {"http": "80", "https": "443", "ws": "80", "wss": "443", "ftp": "21"}
"""The special schemes of the WHATWG URL standard, but for `file`, and their own ports."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_LABELS = re.compile(r"(?!\.)(?:(?:^|\.)[a-z0-9_-]{1,63})+")
_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
_PATHED = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#%\\]*/[^?#]*")
"""A URI with a path and nothing behind it, escaped at most there."""
_UP = re.compile(r"(?:^|[/\\?#])\.\.(?:[/\\?#]|$)")
_DEAR_ESCAPE = re.compile(r"%(?:25|2d|3[0-9]|[4-9a-f])", re.IGNORECASE)
"""An escape of what could begin the judging anew: of an escape, a letter, a digit or another script."""
_MANY_ESCAPES = 16
_ROUNDS = 8


class Names:
    """A set of names and globs."""

    __slots__ = ("_exact", "_globs", "_seen")

    def __init__(self, patterns: Iterable[str]) -> None:
        patterns = list(patterns)
        self._exact = frozenset(pattern for pattern in patterns if not _MAGIC.search(pattern))
        globs = [translate(pattern) for pattern in patterns if _MAGIC.search(pattern)]
        self._globs = _any_of(globs)
        self._seen: dict[str, bool] = {}

    def __bool__(self) -> bool:
        return bool(self._exact) or self._globs is not None

    def __contains__(self, name: str) -> bool:
        if name in self._exact:
            return True
        if self._globs is None:
            return False
        return self._remembered(name)

    def _remembered(self, name: str) -> bool:
        known = self._seen.get(name)
        if known is None:
            known = self._holds(name)
            if len(self._seen) < _REMEMBERED and len(name) <= _LONGEST:
                self._seen[name] = known
        return known

    def _holds(self, name: str) -> bool:
        return self._globs is not None and self._globs.match(name) is not None


class Restricted(Names):
    """The same for a list of what is denied, asked about or limited: it holds, too, what only looks otherwise.

    Case, width, escapes, what cannot be seen and spaces, dots and slashes at the ends are set aside (`bare`).
    """

    __slots__ = ("_bare", "_bare_globs")

    def __init__(self, patterns: Iterable[str]) -> None:
        patterns = list(patterns)
        super().__init__(patterns)
        self._bare = frozenset(map(bare, self._exact))
        self._bare_globs = _any_of([translate(fold(pattern)) for pattern in patterns if _MAGIC.search(pattern)])

    def __contains__(self, name: str) -> bool:
        return name in self._exact or self._remembered(name)

    def _holds(self, name: str) -> bool:
        if super()._holds(name) or len(name) > _LONGEST_URI:
            return True
        ends = bare(name)
        if ends in self._bare:
            return True
        if self._bare_globs is None:
            return False
        return any(self._bare_globs.match(one) for one in {ends, fold(name), _folded(name)})


def _any_of(globs: list[str]) -> re.Pattern[str] | None:
    return re.compile("|".join(f"(?:{glob})" for glob in globs)) if globs else None


def bare(name: str) -> str:
    """A name as a careless server may take it: no case, width and escapes, nothing unseen, no ` ./` at its ends.

    What is too long to be let pass (`plain_name`, `meanings`) is left as it is: an agent must not cost more.
    """
    if len(name) > _LONGEST_URI:
        return name
    text = _folded(name)
    return text.strip(" ./") or text


def _folded(name: str) -> str:
    for _ in range(_ROUNDS):
        if "%" not in name:
            break
        before, name = name, unquote(name)
        if name == before:
            break
    return fold(name).strip()


def plain_name(name: str) -> bool:
    """Whether no server could take it for another name: short, nothing unseen, no space at its ends, no other form.

    Servers that trim, cut at a NUL or normalise would run `delete` for `delete\\0`, which no list and no limit names.
    """
    if len(name) > LONGEST_NAME or not name.isprintable() or name.strip() != name:
        return False
    return name.isascii() or normalize("NFKC", name) == name


def effort(name: str) -> int:
    """What judging a name or a URI costs: 0 for the usual one, else about 100 microseconds each."""
    if len(name) <= LONGEST_NAME and name.isascii() and name.isprintable() and "xn--" not in name.lower():
        escapes = name.count("%")
        if not escapes or (escapes <= _MANY_ESCAPES and not _DEAR_ESCAPE.search(name)):
            return 0
    return 1 + len(name) // 256


def legible(uri: str) -> bool:
    """Whether no server could cut the URI short: no NUL in it, and nothing unseen but behind `?`, escaped or not."""
    if not (uri.isascii() and uri.isprintable()) and _CONTROL.search(uri):
        return False
    if "%" not in uri:
        return True
    if len(uri) > _LONGEST_ESCAPED:
        return False
    where, _, rest = uri.partition("?")
    try:
        return not _CONTROL.search(_unescaped(where)) and "\0" not in _unescaped(rest)
    except ValueError:
        return False


def plain_uri(uri: str) -> str:
    """A resource URI as what it means: scheme and host in lower case, escapes of its path undone and `..` resolved.

    For lists alone: a rule on `file:///etc/*` must meet `FILE://localhost/x/../etc/passwd` too. What is forwarded is
    untouched. Of a `file` URI only the path counts (RFC 8089 §2: it has no query, and `localhost` is no host). An
    `https` one and the like is what the WHATWG URL standard, by which most servers read it, makes of it.
    Raises `ValueError` for what cannot be read as a URI, or is read as one thing by some and as another by others.
    """
    return meanings(uri)[0]


def meanings(uri: str) -> tuple[str, ...]:
    """What a URI means (see `plain_uri`), and then whatever else a careless server may take it for.

    What may be used is asked for by the first, what may not by all of them. Raises `ValueError` as `plain_uri`.
    """
    if len(uri) > _LONGEST_URI or len(normalize("NFKC", uri)) > 2 * _LONGEST_URI:
        raise ValueError("it is too long")
    if not legible(uri):
        raise ValueError("it has characters that cannot be seen")
    text = uri.strip(" ")
    made = _forms(text, _unescaped)
    if "%" in text:
        undone = _unescaped(text)
        if unquote(text) != undone:
            made += _forms(text, unquote)
        if undone.endswith(" ") or not (_PATHED.fullmatch(text) and _PATHED.fullmatch(undone)):
            made += _forms(undone.strip(" "), unquote)
    return tuple(dict.fromkeys(made))


def _forms(text: str, undo: Callable[[str], str]) -> list[str]:
    if text[:5].lower() == "file:":
        text = text.replace("\\", "/")
    parts = urlsplit(text)
    scheme, host = parts.scheme.lower(), parts.netloc.lower()
    behind = f"{parts.query}#{parts.fragment}"
    if scheme not in _PORTS and behind != "#" and _UP.search(_unescaped(behind)):
        # Many servers know no query here: of `file:///x?/../secret` they make the path `/secret`.
        raise ValueError("it goes up (`..`) behind `?` or `#`, which readers disagree on")
    path = _resolved(undo(parts.path))
    query = f"?{parts.query}" if parts.query else ""
    tail = query + (f"#{parts.fragment}" if parts.fragment else "")
    if scheme == "file":
        return _files(host, path)
    if scheme in _PORTS:
        host = _special_host(parts.netloc, _PORTS[scheme])
        starts = [f"{scheme}://{host}{path or '/'}"]
        if "xn--" in host:
            starts.append(f"{scheme}://{_unicode(host)}{path or '/'}")
        return [start + one for start in starts for one in (tail, query)]  # a fragment is never sent
    # An empty host is kept: `urlunsplit` would make `notes:/a` of `notes:///a`, which no rule is written as.
    after = text[len(scheme) + 1 if scheme else 0 :]
    start = f"{scheme}:" * bool(scheme) + "//" * after.startswith("//")
    host = host.removeprefix("@").removesuffix(":")
    made = [start + host + path + tail]
    if host:
        made.append(start + _resolved(f"/{host}{undo(parts.path)}").removeprefix("/") + tail)
    return made


def _files(host: str, path: str) -> list[str]:
    """A server on this machine may care for no host, or take it for a part of the path (WHATWG: for a drive)."""
    if re.fullmatch(r"[a-z][:|]", host):
        host, path = "", f"/{host}{path}"
    host = "" if host == "localhost" else host
    path = _resolved(f"/{path}")
    if path[2:3] == "|":
        path = re.sub(r"^/([A-Za-z])\|(?=/|$)", r"/\1:", path)
    if not host:
        return [f"file://{path}"]
    return [f"file://{host}{path}", f"file://{path}", f"file://{_resolved(f'/{host}{path}')}"]


def _special_host(netloc: str, own_port: str) -> str:
    """Host and port as the WHATWG URL standard has them, without the scheme's own port. Raises `ValueError`."""
    if not netloc or re.search(r"[\\@%]", netloc):  # some take it for a host, and others for a part of the path
        raise ValueError("its host is written in a way that readers disagree on")
    if "{" in netloc:  # of a template
        return netloc.lower()
    found = re.fullmatch(r"(\[[^]]*\]|[^:\[\]]*)(?::([0-9]{0,5}))?", netloc)
    if found is None or not found[1]:
        raise ValueError("its host cannot be read")
    host, port = found[1].lower(), (found[2] or "").lstrip("0") or ("0" if found[2] else own_port)
    if len(host) > 253:
        raise ValueError("its host is too long")
    if not host.isascii():
        import idna  # here: names in other scripts are rare

        host = idna.encode(host, uts46=True).decode()
    if host.startswith("[") or _NUMBER.fullmatch(host):
        if str(ip_address(host.strip("[]"))) != host.strip("[]"):
            raise ValueError("its address is not in its plain form")
    elif not _LABELS.fullmatch(host):
        raise ValueError("its host cannot be read")
    return host if port == own_port else f"{host}:{port}"


def _unicode(host: str) -> str:
    import idna  # here: names in other scripts are rare

    name, colon, port = host.partition(":")
    try:
        return idna.decode(name) + colon + port
    except ValueError:
        return host


def _unescaped(text: str) -> str:
    """Without percent escapes, however often they were escaped. Raises `ValueError` where that has no end."""
    for _ in range(_ROUNDS):
        before, text = text, unquote(text)
        if text == before:
            return text
    raise ValueError("its escapes are escaped too often")


def _resolved(path: str) -> str:
    if not path:
        return ""
    if path[0] != "." and "/." not in path and "//" not in path and "\\" not in path:
        return path
    slash = "/" if path.endswith(("/", "\\")) else ""
    path = posixpath.normpath(re.sub(r"/+", "/", path.replace("\\", "/")))
    return path if path == "/" else path + slash
