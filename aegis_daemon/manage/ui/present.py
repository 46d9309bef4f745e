"""How a call is laid out for a person: every argument whole, those that can do harm first, and nothing in it unseen.

Pure. Nothing here is HTML: the templates escape whatever they are given, and `visible` has been at all of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec
from markupsafe import Markup

from aegis_daemon.core.text import visible
from aegis_daemon.manage import shapes

LONG: Final = 20_000
"""Characters of arguments that a card in a list shows; a longer call is decided on a page of its own."""
_arguments = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ESCAPES = re.compile(r"\\.")
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
RISKS: Final = (
    ("runs something", {"command", "cmd", "script", "code", "sql", "query", "shell", "exec", "statement", "program"}),
    ("pays or moves money", {"amount", "price", "total", "currency", "iban", "account", "payment"}),
    ("holds a secret", {"password", "token", "secret", "credential", "credentials", "apikey"}),
    ("goes to somebody", {"to", "cc", "bcc", "recipient", "recipients", "email", "phone", "channel", "chat"}),
    ("reaches out", {"url", "uri", "endpoint", "host", "webhook", "href", "domain"}),
    ("names a place", {"path", "paths", "file", "filename", "dir", "directory", "destination", "dest", "repo"}),
)  # fmt: skip
"""What an argument does by the words of its name, the worst first."""
_SWITCHES: Final = {"force", "recursive", "overwrite", "all", "delete", "purge", "permanent", "hard", "confirm", "yes"}


class Argument(msgspec.Struct, frozen=True):
    """One argument: its value as the JSON text that will run, line by line, and why to look at it closely.

    `change` compares it with the call that was approved last, `was` is what stood there; a `gone` one has no lines.
    """

    name: str
    lines: tuple[str, ...]
    risks: tuple[str, ...] = ()
    change: str = ""
    was: tuple[str, ...] = ()


def parsed(text: str) -> list[shapes.Argument]:
    """The arguments of a call (JSON text) that nobody has taken apart; what is no object has the empty name."""
    try:
        return [
            shapes.Argument(name=name, value=bytes(value).decode()) for name, value in _arguments.decode(text).items()
        ]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return [shapes.Argument(name="", value=text)] if text.strip() else []


def laid_out(rows: Sequence[shapes.Argument]) -> list[Argument]:
    """Arguments for eyes: risky ones first, then changed ones, else in the call's order; those that are gone last."""
    found = [_argument(row) for row in rows]
    return sorted(found, key=lambda one: (one.change == "gone", not one.risks, one.change not in ("changed", "new")))


def _argument(row: shapes.Argument) -> Argument:
    if row.change == "gone":
        return Argument(row.name or "all", (), (), row.change, lines(row.was))
    words = {word.lower() for word in _WORDS.findall(row.name)}
    risks = [why for why, names in RISKS if words & names][:1]
    try:
        decoded = msgspec.json.decode(row.value.encode("utf-8", "surrogatepass"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        decoded = row.value
    if decoded is True and words & _SWITCHES:
        risks.append("is switched on")
    risks += next((hidden for text in (row.name, *_texts(decoded)) if (hidden := _hidden(text))), ())
    return Argument(row.name or "all", lines(row.value), tuple(risks), row.change, lines(row.was) if row.was else ())


def lines(value: str) -> tuple[str, ...]:
    """JSON text laid out, not read and written again; each line `visible`."""
    try:
        told = msgspec.json.format(value, indent=2)
    except (msgspec.DecodeError, RecursionError, ValueError):
        told = visible(value)
    return tuple(part for line in told.split("\n") for part in _broken(visible(line)))


def _hidden(text: str) -> tuple[str, ...]:
    plain = text.replace("\n", "").replace("\r", "").replace("\t", "")
    return () if visible(plain) == plain else ("has characters that cannot be seen",)


def _texts(value: Any, depth: int = 0) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif depth < 64 and isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _texts(inner, depth + 1)
    elif depth < 64 and isinstance(value, list):
        for inner in value:
            yield from _texts(inner, depth + 1)


def _broken(line: str) -> list[str]:
    r"""The same cut behind every `\n`, so that long texts can be read; the escape itself stays."""
    return _ESCAPES.sub(lambda found: f"{found[0]}\n" if found[0] == r"\n" else found[0], line).split("\n")


def seconds_left(expires_at: str, now: float) -> int:
    """Whole seconds until an instant (RFC 3339); 0 where it has passed."""
    return max(0, int(datetime.fromisoformat(expires_at).timestamp() - now))


def span(seconds: float) -> str:
    """A duration for people: `3 d 4 h`, `4 min 10 s`, `9 s`."""
    left = max(0, round(seconds))
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"


def took(micros: int | None) -> str:
    """A duration of a call: `0.4 ms`, `12 ms`, `1.2 s`."""
    if micros is None:
        return ""
    if micros < 10_000:
        return f"{micros / 1000:.1f} ms"
    if micros < 1_000_000:
        return f"{micros // 1000} ms"
    return f"{micros / 1e6:.1f} s" if micros < 60_000_000 else span(micros / 1e6)


def grouped(number: int) -> Markup:
    """A number with thin spaces: `48 211`."""
    return Markup(f"{number:,}".replace(",", "\u2009"))  # noqa: S704 - digits of our own


def call_name(row: shapes.Ticket | shapes.AuditCall | shapes.CallRow) -> str:
    """The tool, or the method where it is no tool's call."""
    if row.method == "tools/call":
        return row.tool_name
    return f"{row.method} {row.tool_name}".strip()
