"""What `allow` and `mode` share: the configuration is changed as it was shown, or stays as it was, and why is said."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TypeVar

from aegis_daemon.cli.console import Problem, coloured, remedy, visible

T = TypeVar("T")
_COLOURS = {"+": "32", "-": "31", "@": "36"}


def edited(path: str, edit: Callable[[str], T]) -> tuple[bytes, T]:
    """The file as it is, and what `edit` makes of its text. Raises `Problem`, also where `edit` is stuck."""
    from aegis_daemon.cli.config import tell
    from aegis_daemon.config.edit import Stuck
    from aegis_daemon.config.source import ConfigFaults, read_file

    try:
        data = read_file(path)
        return data, edit(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise Problem(f"`{path}` is not utf-8 text", "save it as utf-8; nothing was changed") from None
    except ConfigFaults as faults:
        tell(faults.faults, ())
        raise Problem(f"`{path}` has faults as it is", "mend them first; nothing was changed") from None
    except Stuck as stuck:
        at = f"`{path}`, line {stuck.line}: " if stuck.line else ""
        raise Problem(f"{at}{stuck.message}", stuck.hint) from None


def show_difference(lines: Iterable[str]) -> None:
    """A unified difference on stdout, coloured on a terminal."""
    colours = _COLOURS if coloured(sys.stdout) else {}
    for line in lines:
        colour, shown = colours.get(line[:1]), visible(line)
        print(f"\x1b[{colour}m{shown}\x1b[0m" if colour else shown, flush=True)


def written(path: str, old: bytes, new: bytes, *, keep: bool) -> str:
    """As `rewrite.replace`, and raises `Problem` where nothing was changed."""
    from aegis_daemon.config.rewrite import Moved, replace

    try:
        return replace(path, old, new, keep=keep)
    except Moved:
        raise Problem(f"`{path}` was changed meanwhile; nothing was done", "repeat it, and look again") from None
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise Problem(f"`{path}` cannot be replaced ({why}); nothing was changed", remedy(error)) from None
