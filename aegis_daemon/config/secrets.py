"""What a configuration keeps secret: what it looks up, its tokens, and what is called a password in it.

Values that are no secrets are left out, since they would be replaced wherever they stand: those of variables that hold
places and names on every machine, and paths that exist.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from aegis_daemon.config.schema import Config, Secret, Section
from aegis_daemon.policy.secrets import KINDS, SHORTEST, Guard, detector

_PLAIN: Final = re.compile(
    "env:(?:HOME|PWD|USER|LOGNAME|USERNAME|USERPROFILE|SHELL|PATH|HOSTNAME|LANG|TZ|TERM|TMP|TEMP|TMPDIR|EDITOR|"
    "APPDATA|LOCALAPPDATA|LC_[A-Z]+|XDG_[A-Z_]+)"
)
"""Variables that hold no secret."""
SUPERSEDED: Final = 256
"""How many secrets that a reload replaced are looked for: a server that was given one may say it later."""
SUPERSEDED_SIZE: Final = 32 << 10
"""How many characters they have together: RE2 takes some 100,000 of all secrets."""


def guard(config: Config, superseded: Iterable[str] = ()) -> Guard:
    """What cleans the log, and what servers say. `superseded`: what was secret before, and is kept so."""
    settings = config.secrets
    kinds, known = frozenset(KINDS.difference(settings.allow)), known_secrets(config).union(superseded)
    written = kinds if settings.log == "redact" else frozenset[str]()
    return Guard(
        log=detector(written, known),
        asked=detector(written, known, inert=True),
        servers=detector(frozenset(), known),
        kinds=detector(kinds, frozenset(), opaque=True) if settings.answers != "off" else None,
        withhold=settings.answers == "withhold",
    )


def known_secrets(config: Config) -> frozenset[str]:
    """Every text of the configuration that nobody else must see."""
    allowed = set(config.secrets.allow)
    looked = {
        secret.reveal()
        for name, secret in config.looked_up
        if name not in allowed and not _PLAIN.fullmatch(name) and not _is_a_place(secret.reveal())
    }
    # Where a text holds what was looked up, that is its secret, and the rest of it is not.
    parts = [secret.reveal() for _, secret in config.looked_up]
    written = {text for text in _written(config) if not any(part and part in text for part in parts)}
    found = looked | written
    return frozenset(found | {part for text in found for part in _within(text)})


def superseded(before: Sequence[str], config: Config) -> tuple[tuple[str, ...], int]:
    """Those of the secrets before, oldest first, that are none of this configuration's; and how many are forgotten.

    What the configuration looks up now and does not keep secret is none of them: somebody allowed it.
    """
    spared = known_secrets(config).union(secret.reveal() for _, secret in config.looked_up)
    found = [text for text in before if text not in spared and len(text) >= SHORTEST]
    first, size = len(found), 0
    while first and len(found) - first < SUPERSEDED and size + len(found[first - 1]) <= SUPERSEDED_SIZE:
        first -= 1
        size += len(found[first])
    return tuple(found[first:]), first


def _written(value: Any) -> Iterator[str]:
    if isinstance(value, Secret):
        yield value.reveal()
    elif isinstance(value, Section):
        for name in type(value).model_fields:
            yield from _written(getattr(value, name))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _written(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _written(item)


def _within(text: str) -> Iterator[str]:
    """What is secret in an address, or behind the word that says how to show it."""
    scheme, _, credentials = text.partition(" ")
    if scheme.casefold() in ("bearer", "basic", "token") and credentials:
        yield credentials.strip()
    if "://" in text:
        try:
            parts = urlsplit(text)
        except ValueError:
            return
        if parts.password:
            yield parts.password
            yield unquote(parts.password)
        for _, value in parse_qsl(parts.query):
            yield value


def _is_a_place(text: str) -> bool:
    return os.path.isabs(text) and "\0" not in text and os.path.lexists(text)
