"""Whether a name is on a list: exact names first, then globs, each tool answered once and remembered.

A glob is matched against the whole name, byte for byte (`*`, `?`, `[…]`); case matters.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from fnmatch import translate
from unicodedata import normalize
from urllib.parse import unquote, urlsplit

_MAGIC = re.compile(r"[*?\[]")
_REMEMBERED = 4096
# What `urlsplit` passes over (WHATWG URL, basic parser, steps 1 to 3).
_IGNORED = re.compile(r"[\t\r\n]")
_LEADING = "".join(map(chr, range(0x21)))


class Names:
    """A set of names and globs."""

    __slots__ = ("_exact", "_globs", "_seen")

    def __init__(self, patterns: Iterable[str]) -> None:
        patterns = list(patterns)
        self._exact = frozenset(pattern for pattern in patterns if not _MAGIC.search(pattern))
        globs = [translate(pattern) for pattern in patterns if _MAGIC.search(pattern)]
        self._globs = re.compile("|".join(f"(?:{glob})" for glob in globs)) if globs else None
        self._seen: dict[str, bool] = {}

    def __bool__(self) -> bool:
        return bool(self._exact) or self._globs is not None

    def __contains__(self, name: str) -> bool:
        if name in self._exact:
            return True
        if self._globs is None:
            return False
        known = self._seen.get(name)
        if known is None:
            known = self._globs.match(name) is not None
            if len(self._seen) < _REMEMBERED:
                self._seen[name] = known
        return known


def plain_name(name: str) -> bool:
    """Whether no server could take it for another name: nothing unseen, no space at its ends, no compatibility form.

    Servers that trim, cut at a NUL or normalise would run `delete` for `delete\\0`, which no list and no limit names.
    """
    if not name.isprintable() or name.strip() != name:
        return False
    return name.isascii() or normalize("NFKC", name) == name


def plain_uri(uri: str) -> str:
    """A resource URI with its scheme lower case, percent escapes of its path undone and `..` resolved.

    For lists alone: a rule on `file:///etc/*` must meet `FILE://localhost/x/../etc/passwd` too. What is forwarded is
    untouched. Of a `file` URI only the path counts (RFC 8089 §2: it has no query, and `localhost` is no host).
    Raises `ValueError` for what cannot be read as a URI.
    """
    parts = urlsplit(uri)
    path = unquote(parts.path)
    if path:
        slash = "/" if path.endswith("/") and path != "/" else ""
        path = posixpath.normpath(re.sub(r"/+", "/", path.replace("\\", "/")))
        if path != "/":
            path += slash
    scheme, host = parts.scheme.lower(), parts.netloc.lower()
    if scheme == "file":
        return f"file://{host if host != 'localhost' else ''}{path if path.startswith('/') else '/' + path}"
    # An empty host is kept: `urlunsplit` would make `notes:/a` of `notes:///a`, which no rule is written as.
    after = _IGNORED.sub("", uri).lstrip(_LEADING)[len(scheme) + 1 if scheme else 0 :]
    tail = (f"?{parts.query}" if parts.query else "") + (f"#{parts.fragment}" if parts.fragment else "")
    return f"{scheme}:" * bool(scheme) + "//" * after.startswith("//") + host + path + tail
