"""What `--help` says otherwise than Typer would: usage that can be read, whole sentences, and an example."""

from __future__ import annotations

import inspect
import re
from typing import Any, Final

EXAMPLES: Final = {
    "setup": "aegis setup --client cursor --dry-run",
    "status": "aegis status --json",
    "pending": "aegis pending --watch",
    "approve": "aegis approve K7Q2 --for 15m",
    "reject": "aegis reject K7Q2 --note 'not on a Friday'",
    "allow": "aegis allow 3f9c2a --dry-run",
    "pause": "aegis pause claude-code --note 'looking into it'",
    "mode": "aegis mode enforce --dry-run",
    "agents wire": "aegis agents wire --client cursor --server github",
    "policy explain": "aegis policy explain github.delete_repo --agent claude-code",
    "policy validate": "aegis policy validate new.cedar",
    "audit search": "aegis audit search --verdict denied --since 7d",
    "audit show": "aegis audit show 3f9c2a",
    "audit erase": "aegis audit erase --text 4111111111111111 --dry-run",
    "tools trust": "aegis tools trust github.create_issue",
    "limits grant": "aegis limits grant --backend github --tool create_issue --count 5",
}
"""command → one way to call it"""


def dress(command: Any, path: str) -> None:
    """Does so for a command and those below it."""
    if path in EXAMPLES and not command.epilog:
        command.epilog = f"Example: {EXAMPLES[path]}"
    params = command.get_params

    def readable(ctx: Any) -> Any:
        found = params(ctx)
        for param in found:
            if getattr(param, "param_type_name", "") == "argument":
                param.get_usage_pieces = _usage(param)
        return found

    command.get_params = readable
    for name, below in getattr(command, "commands", {}).items():
        if not below.short_help and below.help:
            below.short_help = sentence(below.help)
        dress(below, f"{path} {name}")


def _usage(param: Any) -> Any:
    word = (param.metavar or param.name).strip(".… []").upper() + ("…" if param.nargs == -1 else "")
    return lambda ctx: [word if param.required else f"[{word}]"]


def sentence(text: str) -> str:
    """The first one, whole and on one line."""
    return re.split(r"(?<=\.)\s", " ".join(inspect.cleandoc(text).split("\n\n")[0].split()), maxsplit=1)[0]
