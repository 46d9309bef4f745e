"""A page in a browser cannot drive the daemon: every request names a host that is ours and comes from no other page.

A name in `Host` that is not ours is how DNS rebinding shows (the browser believes it talks to its own site), and a
foreign `Origin` is how every other page shows (hard rule 10; MCP 2025-11-25 and 2026-07-28 `basic/transports`). Pure.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from hmac import compare_digest
from typing import Final

_LOOPBACK_NAMES: Final = frozenset({"localhost", "ip6-localhost"})


class Guard:
    """Which hosts are ours. `hosts` are further names, `origins` further pages (`https://console.example`)."""

    __slots__ = ("_hosts", "_known", "_origins")

    def __init__(self, hosts: Iterable[str] = (), origins: Iterable[str] = ()) -> None:
        self._hosts = _LOOPBACK_NAMES | {host.lower() for host in hosts}
        self._origins = {origin.lower().rstrip("/") for origin in origins}
        self._known: dict[tuple[bytes, bytes | None], str | None] = {}

    def refuses(self, host: bytes | None, origin: bytes | None) -> str | None:
        """Why a request with these two headers is refused (403); None where it is not."""
        if host is None:
            return "the request names no host"
        pair = (host, origin)
        if pair in self._known:
            return self._known[pair]
        why = self._judge(host, origin)
        if len(host) + len(origin or b"") <= 512:
            if len(self._known) >= 1024:
                self._known.clear()
            self._known[pair] = why
        return why

    def allows(self, origin: bytes) -> bytes:
        """The header lines by which a browser lets a page of `server.allowed_origins` read an answer (Fetch §3.3)."""
        if origin.decode("latin-1").lower() not in self._origins:
            return b""
        return (
            b"access-control-allow-origin: %b\r\naccess-control-expose-headers: mcp-session-id, www-authenticate\r\n"
            b"vary: origin\r\n" % origin
        )

    @staticmethod
    def preflight(headers: Mapping[bytes, bytes], reply: Callable[..., None]) -> None:
        """Answers the question that a browser asks for such a page before it sends anything (Fetch §4.8)."""
        wanted = headers.get(b"access-control-request-headers", b"content-type")
        more = (
            b"access-control-allow-methods: GET, POST, DELETE\r\naccess-control-allow-headers: %b\r\n"
            b"access-control-max-age: 600\r\n" % wanted
        )
        reply(200, more=more)

    def _judge(self, host: bytes, origin: bytes | None) -> str | None:
        named = host.decode("latin-1").lower()
        if not self._ours(named):
            return (
                "the `Host` header names a host that is not this daemon's; use its address, or list the name in "
                "`server.allowed_hosts`"
            )
        if origin is None:
            return None
        page = origin.decode("latin-1").lower()
        if page in self._origins or page in (f"http://{named}", f"https://{named}"):
            return None
        return "the `Origin` header names another page; list it in `server.allowed_origins` if it may use this daemon"

    def _ours(self, named: str) -> bool:
        if named.startswith("["):
            name, end, port = named[1:].partition("]")
            if not end or (port and port[0] != ":"):
                return False
            port = port[1:]
        else:
            name, _, port = named.partition(":")
        if port and not (port.isascii() and port.isdigit()):
            return False
        if name in self._hosts:
            return True
        try:  # an address cannot be rebound: the browser asked for exactly it
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def digest(token: str) -> bytes:
    """What is kept of a token."""
    return sha256(token.encode("utf-8", "surrogatepass")).digest()


def bearer(authorization: bytes | None) -> str | None:
    """The token of an `Authorization: Bearer` header (RFC 6750 §2.1); None for any other."""
    if authorization is None or authorization[:7].lower() != b"bearer ":
        return None
    return authorization[7:].strip().decode("latin-1")


def shows(token: str | None, wanted: bytes) -> bool:
    """Whether the token is the one with this digest, in constant time."""
    return token is not None and compare_digest(digest(token), wanted)
