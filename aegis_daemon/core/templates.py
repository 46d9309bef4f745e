"""Which URIs a URI template may stand for (RFC 6570), told from what it writes literally."""

from __future__ import annotations


def literals(template: str) -> tuple[str, ...]:
    """What stands around the expressions of a URI template (RFC 6570): one more than it has expressions."""
    found: list[str] = []
    rest = template
    while True:
        before, opened, rest = rest.partition("{")
        found.append(before)
        if not opened:
            return tuple(found)
        rest = rest.partition("}")[2]


def fits(parts: tuple[str, ...], uri: str) -> bool:
    """Whether the URI may be one of the template's, its expressions standing for anything.

    In one pass from left to right: a server's template must not cost more (it would, as a regular expression).
    """
    if len(parts) == 1:
        return uri == parts[0]
    at, end = len(parts[0]), len(uri) - len(parts[-1])
    if at > end or not uri.startswith(parts[0]) or not uri.endswith(parts[-1]):
        return False
    for part in parts[1:-1]:
        at = uri.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return True
