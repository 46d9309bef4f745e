"""A pattern is matched against a whole text in time linear in its length, whoever wrote the text.

The engine is RE2: no backreferences and no lookaround, and so no text on which it takes long.
"""

from __future__ import annotations

from collections.abc import Callable


class BadPattern(ValueError):
    """The pattern cannot be used; the text says why."""


def compile_pattern(pattern: str) -> Callable[[str], bool]:
    """What tells whether a text matches as a whole. Raises `BadPattern`."""
    import re2  # type: ignore[import-untyped]  # here: a daemon without patterns does not pay for it

    options = re2.Options()
    options.log_errors = False
    try:
        full = re2.compile(pattern, options).fullmatch
    except re2.error as error:
        said = error.args[0] if error.args else ""
        raise BadPattern((said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said))[:120]) from None
    return lambda text: full(text) is not None
