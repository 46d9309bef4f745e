"""A file is replaced whole or not at all: it is written beside its place, is on disk, and takes the place at once."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Final

UNFINISHED: Final = re.compile(r"\.(.*)\.[0-9a-f]{16}", re.S)
"""What a file is called until it has its name, the group; where its writer was killed, for good."""


def put(
    path: str,
    data: bytes,
    *,
    dress: Callable[[int], None] | None = None,
    last: Callable[[], None] | None = None,
) -> None:
    """Puts a file of ours (0600) in the place of whatever is there. The directory must exist. Raises `OSError`.

    `dress` gets the new file's descriptor before there is anything in it: for a mode, an owner. `last` is called when
    all but the change of names is done: for a look at what is about to go. Whatever they raise leaves all as it was.
    """
    directory, name = os.path.split(path)
    made = os.path.join(directory, f".{name}.{os.urandom(8).hex()}")
    descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if dress is not None:
                dress(descriptor)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        if last is not None:
            last()
        os.replace(made, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(made)
        raise


def sync_directory(directory: str) -> None:
    """What was renamed in it stays so when the power fails. Raises `OSError`."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
