"""Names that a person, or a model, would take for one another have the same skeleton.

Case, width and unseen characters do not count, nor do separators; letters of other scripts that look like Latin ones
count as those (the common ones of Unicode's confusables; a whole table would cost more than it finds in tool names).
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from itertools import filterfalse, groupby
from typing import Final

from aegis_daemon.wire.jsonrpc import fold

_ALIKE: Final = {
    **dict(zip("аеорсухіјѕһԁԛԝвкмнтгпьз", "aeopcyxijshdqwbkmhtrnb3", strict=True)),  # Cyrillic
    **dict(zip("αβγεηικμνορτυχωϲϳ", "abyenikuvoptuxwcj", strict=True)),  # Greek
    "ı": "i",  # noqa: RUF001
    "ɡ": "g",  # noqa: RUF001
    "ɑ": "a",  # noqa: RUF001
    "օ": "o",  # noqa: RUF001
    "ո": "n",  # noqa: RUF001
    "ս": "u",  # noqa: RUF001
    "հ": "h",  # noqa: RUF001
    "0": "o",
    "1": "l",
    "|": "l",
}
_TABLE: Final = str.maketrans({**_ALIKE, **dict.fromkeys("_-. /", "")})


LOOKED_AT: Final = 256
"""Characters of a name that tell it from others: a microsecond each, and a server may have 2 000 long ones."""


def skeleton(name: str) -> str:
    """What the name looks like."""
    name = name[:LOOKED_AT]
    if name.isascii():
        return fold(name).translate(_TABLE)
    plain = unicodedata.normalize("NFD", fold(name))
    return "".join(filterfalse(unicodedata.combining, plain)).translate(_TABLE)


def telling(text: str) -> str:
    """The text with every letter written as its escape that is not Latin and stands in one word with Latin letters."""
    if text.isascii():
        return text
    return "".join(_word(word) if not word.isascii() else word for word in _words(text))


def _words(text: str) -> list[str]:
    """Runs of letters and digits, and what stands between them."""
    return ["".join(run) for _, run in groupby(text, str.isalnum)]


def _word(word: str) -> str:
    latin = [_is_latin(char) for char in word]
    if all(latin) or not any(is_latin and char.isalpha() for char, is_latin in zip(word, latin, strict=True)):
        return word
    return "".join(
        char if is_latin else f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"
        for char, is_latin in zip(word, latin, strict=True)
    )


@lru_cache(4096)
def _is_latin(char: str) -> bool:
    return char.isascii() or not char.isalpha() or unicodedata.name(char, "").startswith("LATIN")
