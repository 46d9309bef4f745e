"""A path lies below a root whatever a server makes of it: as written, percent-decoded or in its compatibility form.

The judgement is about the text alone: the disk is not looked at and symbolic links are not followed, so a link below
the root leads wherever it leads. That is why `..` is refused and not resolved (what follows a link is elsewhere), and
why a server that follows links out of its root needs a root of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from unicodedata import category, normalize
from urllib.parse import unquote

_ROUNDS = 4
"""So often may a path be percent-encoded; more is refused."""
_LONGEST = 4096
_HEX = re.compile("%[0-9A-Fa-f]{2}")


class BadRoot(ValueError):
    """Not a directory below which paths can lie; the text says why."""


def canonical_root(text: str) -> str:
    """A root as it is compared: absolute, without a slash at its end; "" for `/`. Raises `BadRoot`."""
    if not text.startswith("/"):
        raise BadRoot("it is not absolute")
    if _fault(text) is not None:
        raise BadRoot("it holds `..`, a backslash or something unseen")
    return _plain(text).rstrip("/")


def path_fault(text: str, roots: tuple[str, ...]) -> str | None:
    """Why the path is refused; None where it lies below one of the canonical roots in every reading, or is one."""
    if len(text) > _LONGEST:
        return "is longer than a path can be"
    try:
        readings = list(_readings(text))
    except ValueError:
        return "is encoded in a way that cannot be read"
    for reading in readings:
        fault = _fault(reading)
        if fault is not None:
            return fault
    below = (set(filter(lambda root: _below(_plain(reading), root), roots)) for reading in readings)
    if not set.intersection(*below):  # one root for all readings: what differs between them may be a way out
        return "is not below an allowed directory"
    return None


def _readings(text: str) -> Iterator[str]:
    """The text, and what decoders make of it. Raises `ValueError` where one of them cannot or never ends."""
    for _ in range(_ROUNDS):
        yield text
        folded = normalize("NFKC", text)
        if folded != text:
            yield folded
            if _HEX.findall(folded) != _HEX.findall(text):
                raise ValueError("percent signs in disguise")
        if not _HEX.search(text):
            return
        text = unquote(text, errors="strict")
    raise ValueError("encoded too often")


def _fault(text: str) -> str | None:
    if not text.startswith("/"):
        return "is not an absolute path"
    if text.startswith("//"):
        return "may name another machine"
    if "\\" in text:
        return "holds a backslash"
    if any(category(char) in ("Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp") for char in text):
        return "holds characters that nobody sees"
    for part in text.split("/"):
        # Some servers cut at `;`, others drop dots and spaces at the end: `..;x`, `.. ` and `...` are ways up for them.
        bare = part.partition(";")[0].strip()
        if part != "." and bare and not bare.strip(". "):
            return "leads upwards"
    return None


def _plain(text: str) -> str:
    return "/" + "/".join(part for part in text.split("/") if part not in ("", "."))


def _below(path: str, root: str) -> bool:
    return path == (root or "/") or path.startswith(root + "/")
