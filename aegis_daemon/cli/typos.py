"""What an agent mistyped is no wish: such a call gets no rule, and a person hears which name was meant."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from difflib import get_close_matches

from aegis_daemon.cli.console import visible

ALIKE = 0.8
"""How like another a name has to be, to be taken for a slip: `read_file` and `write_file` are less."""
MOST = 2_000
"""Names with which one is compared."""


def near(name: str, known: Iterable[str]) -> str:
    """The name that was meant, as it may be shown; "" for none."""
    found = get_close_matches(name[:80], sorted(known)[:MOST], 1, ALIKE)
    return visible(found[0], 80) if found else ""


def stranger(what: str, name: str, known: Collection[str]) -> tuple[str, str]:
    """What is said of an agent or a backend that is almost one of the configuration's, and the next step; else ""."""
    meant = near(name, known) if name not in known else ""
    if not meant:
        return "", ""
    shown = visible(name, 80)
    by_hand = f"if it is another one, write `{shown}` under `{what}s` by hand"
    return (
        f"there is no {what} `{shown}`; did you mean `{meant}`?",
        f"mend `--{what}` in the client's file, where the agent has it from; {by_hand}",
    )


def no_tool(backend: str, tool: str, known: Collection[str]) -> tuple[str, str]:
    """What is said of a tool that a server does not have, and the next step; "" where it has it or nobody knows."""
    if not known or tool in known:
        return "", ""
    server, meant = visible(backend, 80), near(tool, known)
    count = f"{len(known)} {'is' if len(known) == 1 else 'are'} known"
    return (
        f"`{server}` has no tool `{visible(tool, 80)}` ({count}); there is nothing to allow",
        f"did you mean `{meant}`?" if meant else f"`aegis tools list --backend {server}` shows what it has",
    )
