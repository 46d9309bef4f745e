"""A URL or an address is allowed only where every reader finds the same, allowed host in it.

Two parsers read each URL (our own strict subset of RFC 3986, and `urllib`), and what they could disagree on with a
third is refused before: user names, backslashes, white space, controls, percent signs and other scripts in the host,
a dot at its end, IP addresses in any but their plain form. Names alone are compared: where a name leads to is the
network's concern.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

DEFAULT_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443, "ftp": 21}
_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://"
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)"
    r"(?::(?P<port>[0-9]{1,5}))?"
    r"(?:[/?#][\x21-\x5b\x5d-\x7e]*)?"
)
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_LOCAL = re.compile(r"[A-Za-z0-9+_'=&$#~/][A-Za-z0-9._+'=&$#~/-]{0,63}")
_LONGEST = 8192


class BadHost(ValueError):
    """Not a host that a rule can name; the text says why."""


def canonical_host(text: str) -> str:
    """A host of a rule as it is compared: `name`, `*.name`, `1.2.3.4` or `[::1]`, then `:port` where one is named.

    Names in other scripts become their `xn--` form. Raises `BadHost`.
    """
    name, port = text, ""
    if "/" in text:
        raise BadHost("write it without scheme and path")
    if not text.endswith("]") and ":" in text:
        name, _, port = text.rpartition(":")
        if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise BadHost("its port is no number")
        port = f":{int(port)}"
    wild = "*." if name.startswith("*.") else ""
    name = name.removeprefix("*.")
    if not name.isascii():
        import idna  # here: names in other scripts are rare

        try:
            name = idna.encode(name, uts46=True).decode()
        except idna.IDNAError:
            raise BadHost("it is no name of the internet") from None
    found = _host(name)
    if found is None or (wild and _is_address(found)):
        raise BadHost("write a name like `api.example.com`, `*.example.com` or `api.example.com:8443`, without scheme")
    return f"{wild}{found}{port}"


def url_fault(text: str, hosts: frozenset[str], schemes: frozenset[str]) -> str | None:
    """Why the URL is refused; None where it has an allowed scheme and, unless `hosts` is empty, an allowed host.

    A port other than the scheme's own has to stand in the rule.
    """
    found = _URL.fullmatch(text) if len(text) <= _LONGEST else None
    if found is None:
        return "is not a URL that every reader takes for the same"
    scheme = found["scheme"].lower()
    if scheme not in schemes:
        return "has a scheme that is not allowed"
    host = _host(found["host"])
    try:
        parts = urlsplit(text)
        seen, port = parts.hostname, parts.port
    except ValueError:
        return "is not a URL that every reader takes for the same"
    if host is None or seen != host.strip("[]") or "@" in parts.netloc or (found["port"] or "0") != str(port or 0):
        return "names its host in a way that readers disagree on"
    if hosts and not _listed(host, port if port is not None else DEFAULT_PORTS.get(scheme), scheme, hosts):
        return "leads to a host that is not allowed"
    return None


def address_fault(text: str, domains: frozenset[str]) -> str | None:
    """Why the e-mail address is refused; None for one plain address in an allowed domain."""
    local, at, domain = text.rpartition("@")
    if not at or not _LOCAL.fullmatch(local) or ".." in local or local.endswith("."):
        return "is not one plain e-mail address"
    host = _host(domain)
    if host is None or _is_address(host):
        return "is not one plain e-mail address"
    if not _matches(host, domains):
        return "is in a domain that is not allowed"
    return None


def _listed(host: str, port: int | None, scheme: str, hosts: frozenset[str]) -> bool:
    if port is not None and _matches(host, hosts, f":{port}"):
        return True
    return port == DEFAULT_PORTS.get(scheme) and _matches(host, hosts)


def _matches(host: str, listed: frozenset[str], tail: str = "") -> bool:
    if host + tail in listed:
        return True
    if _is_address(host):
        return False
    labels = host.split(".")
    return any(f"*.{'.'.join(labels[start:])}{tail}" in listed for start in range(1, len(labels)))


def _host(text: str) -> str | None:
    """The host in lower case; None where it has no plain form that is this one."""
    text = text.lower()
    if text.startswith("["):
        try:
            return text if f"[{ipaddress.IPv6Address(text[1:-1]).compressed}]" == text else None
        except ValueError:
            return None
    labels = text.split(".")
    if len(text) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        return None
    if re.fullmatch(r"[0-9]+|0x[0-9a-f]*", labels[-1]):  # readers take it for a number (WHATWG URL, IPv4 parser)
        try:
            return str(ipaddress.IPv4Address(text))
        except ValueError:
            return None
    return text


def _is_address(host: str) -> bool:
    return host.startswith("[") or host.rpartition(".")[2].isdigit()
