"""Whether a name is on a list: exact names first, then globs, each tool answered once and remembered.

A glob is matched against the whole name, byte for byte (`*`, `?`, `[…]`); case matters.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from fnmatch import translate
from urllib.parse import unquote, urlsplit, urlunsplit

_MAGIC = re.compile(r"[*?\[]")
_REMEMBERED = 4096


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


def plain_uri(uri: str) -> str:
    """A resource URI with its scheme lower case, percent escapes of its path undone and `..` resolved.

    For lists alone: a rule on `file:///etc/*` must meet `FILE:///x/../etc/passwd` too. What is forwarded is untouched.
    """
    try:
        parts = urlsplit(uri)
        path = unquote(parts.path)
        if path:
            slash = "/" if path.endswith("/") and path != "/" else ""
            path = posixpath.normpath(re.sub(r"/+", "/", path.replace("\\", "/"))) + slash
        return urlunsplit((parts.scheme.lower(), parts.netloc.lower(), path, parts.query, parts.fragment))
    except ValueError:
        return uri
