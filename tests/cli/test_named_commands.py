"""Whatever a page or a hint tells a person to type exists, down to its options."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from aegis_daemon.cli.main import COMMANDS, app

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "aegis_daemon/onboarding/codes.md")


@functools.cache
def command(name: str) -> Any:
    root: Any = typer.main.get_command(app)
    return root.get_command(typer.Context(root), name)


def spans(text: str) -> Iterator[str]:
    """`aegis …` between backticks, and on lines of their own in blocks of code."""
    for found in re.finditer(r"`(aegis [^`\n]+)`", text):
        yield found[1]
    for found in re.finditer(r"^(?: {4}|\$ )(aegis [^\n]*)$", text, re.M):
        yield re.split(r" {2,}| #|[|&;<>]", found[1])[0]


def fault(said: str) -> str:
    """What of a command line does not exist; "" where all does. Words in capitals stand for anything."""
    try:
        words = shlex.split(said.replace("…", " "))[1:]
    except ValueError:
        words = said.replace("…", " ").split()[1:]
    words = [word for part in words for word in (part.split("|")[:1] if re.search("[a-z]", part) else [part])]
    if not words or not re.fullmatch(r"[a-z][a-z-]*", words[0]):
        return ""
    if words[0] not in COMMANDS:
        return words[0]
    here, at = command(words[0]), 1
    while (below := getattr(here, "commands", {})) and at < len(words) and re.fullmatch(r"[a-z][a-z-]*", words[at]):
        if words[at] not in below:
            return " ".join(words[: at + 1])
        here, at = below[words[at]], at + 1
    known = {name for one in here.params for name in (*one.opts, *one.secondary_opts)} | {"--help", "-h"}
    for word in words[at:]:
        option = re.match(r"\[?(--?[a-z][a-z-]*)", word)
        if option is not None and option[1] not in known:
            return f"{' '.join(words[:at])} {option[1]}"
    return ""


def hints() -> Iterator[tuple[str, str]]:
    """Every text of the program that names a command, with the file."""
    for path in [*(ROOT / "aegis_daemon").rglob("*.py"), *(ROOT / "aegis_shim").rglob("*.py")]:
        source = re.sub(r'"\s*\n\s*f?"', "", path.read_text(encoding="utf-8"))  # literals that are one text
        for said in re.findall(r"`(aegis [^`\n]+)`", source):
            yield str(path.relative_to(ROOT)), re.sub(r"\{[^{}]*\}", "X", said)


def test_every_command_that_a_page_names_exists() -> None:
    wrong = {}
    for page in PAGES:
        said = list(spans((ROOT / page).read_text(encoding="utf-8")))
        assert len(said) > 20
        wrong |= {f"{page}: {one}": what for one in said if (what := fault(one))}
    assert wrong == {}


def test_every_command_that_a_hint_names_exists() -> None:
    said = set(hints())
    assert len(said) > 100
    assert {f"{where}: {one}": what for where, one in said if (what := fault(one))} == {}


def test_a_command_that_is_not_there_is_noticed() -> None:
    assert fault("aegis backend probe") == "backend"
    assert fault("aegis backends probe NAME --json") == ""
    assert fault("aegis backends prod") == "backends prod"
    assert fault("aegis agents unwind --file X") == "agents unwind"
    assert fault("aegis agents undo --file X") == "agents undo --file"
    assert fault("aegis setup --url URL [--yes]") == ""
