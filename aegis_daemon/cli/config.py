"""`aegis config`: a first file, where it is, what it says, and everything that is wrong with it."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aegis_daemon.cli import link
from aegis_daemon.cli.console import DONE, WRONG, Problem, emit, say, visible
from aegis_daemon.cli.options import Config, Json, new_app

if TYPE_CHECKING:
    from aegis_daemon.config.load import Fault, Loaded

app = new_app()


@app.command()
def init(
    config: Config = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a file that is there; it is kept as `FILE.bak`.")
    ] = False,
) -> None:
    """Write a commented configuration to begin with."""
    from aegis_daemon.config.load import starter

    path = link.paths(config).config
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    if os.path.lexists(path):
        if not force:
            raise Problem(f"`{path}` exists already", "edit it, or pass `--force` to begin anew (a copy is kept)")
        os.replace(path, f"{path}.bak")
        say(f"kept the old file as {visible(path)}.bak")
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(starter())
    print(path)
    say("next: edit it, check it with `aegis config validate`, then `aegis daemon start`")


@app.command("path")
def where(config: Config = None, as_json: Json = False) -> None:
    """Print where the configuration is; with `--json`, where everything is."""
    paths = link.paths(config)
    if as_json:
        emit(
            {name: getattr(paths, name) for name in paths.__struct_fields__} | {"exists": os.path.exists(paths.config)}
        )
        return
    print(paths.config)
    if not os.path.exists(paths.config):
        say("there is no file yet: make one with `aegis config init`")


@app.command("show")
def show_config(
    config: Config = None,
    running: Annotated[bool, typer.Option("--running", help="What the running daemon has in force.")] = False,
    as_json: Json = False,
) -> None:
    """Print the configuration with defaults filled in and secrets masked."""
    if running:
        found: dict[str, Any] = link.call("config_show")
    else:
        from aegis_daemon.config.load import masked

        found = masked(checked(config).config)
    if as_json:
        emit(found)
        return
    import io

    from ruamel.yaml import YAML

    text = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(found, text)
    for line in text.getvalue().splitlines():
        print(visible(line))


@app.command()
def schema() -> None:
    """Print the JSON Schema of the file, for editors."""
    from aegis_daemon.config.load import json_schema

    print(json.dumps(json_schema(), indent=2))


@app.command()
def validate(
    file: Annotated[str | None, typer.Argument(metavar="FILE", help="Else the usual file.")] = None,
    config: Config = None,
    as_json: Json = False,
) -> int:
    """Check a configuration and tell everything that is wrong with it at once. Changes nothing."""
    from aegis_daemon.config.fitting import Pinned, Unread
    from aegis_daemon.config.load import ConfigFaults, load
    from aegis_daemon.config.slips import slips

    path = os.path.abspath(file) if file is not None else link.paths(config).config
    faults: list[Fault] = []
    warnings: tuple[Fault, ...] = ()
    try:
        loaded = load(path)
        warnings = loaded.warnings
        with suppress(Unread):  # `aegis policy validate` says so
            warnings = (*warnings, *slips(loaded, Pinned(link.paths(config).state_db).tools()))
    except ConfigFaults as found:
        faults = found.faults
    if as_json:
        emit([fault_row(one, "fault") for one in faults] + [fault_row(one, "warning") for one in warnings])
        return WRONG if faults else DONE
    tell(faults, warnings)
    if faults:
        say(f"{_count(len(faults), 'fault')} found in {visible(path)}; nothing was changed")
        return WRONG
    say(f"{visible(path)} is valid" + (f", with {_count(len(warnings), 'warning')}" if warnings else ""))
    return DONE


def checked(config: str | None) -> Loaded:
    """The configuration a command was given, warnings told. Raises `Problem` after telling every fault."""
    from aegis_daemon.config.load import ConfigFaults, load

    path = link.paths(config).config
    try:
        loaded = load(path)
    except ConfigFaults as found:
        if not os.path.lexists(path):
            raise Problem(f"there is no configuration at `{path}`", "make one with `aegis config init`") from None
        tell(found.faults, ())
        count = _count(len(found.faults), "fault")
        raise Problem(f"{count} found in `{path}`", "mend the file and repeat; nothing was changed") from None
    tell((), loaded.warnings)
    return loaded


def tell(faults: list[Fault] | tuple[()], warnings: tuple[Fault, ...]) -> None:
    """Faults and warnings for people, on stderr, each with its line."""
    for label, group in (("", faults), ("warning: ", warnings)):
        for fault in group:
            first, *rest = fault.render().split("\n")
            say(label + visible(first))
            for line in rest:
                say(visible(line))


def fault_row(fault: Fault, severity: str) -> dict[str, Any]:
    """A fault as a flat row. The file's line is left out: programs have the file."""
    return {
        "severity": severity,
        "file": fault.file,
        "line": fault.line,
        "column": fault.column,
        "path": fault.path,
        "message": fault.message,
        "hint": fault.hint,
    }


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
