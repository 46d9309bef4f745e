"""`aegis doctor`: everything that is wrong with this installation, each with its code, its reason and what to do."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from aegis_daemon import __version__
from aegis_daemon.cli import link
from aegis_daemon.cli.agents import files as agents_files
from aegis_daemon.cli.console import DONE, USAGE, WRONG, Problem, coloured, emit, say, visible
from aegis_daemon.cli.options import Json, new_app
from aegis_daemon.clients.standing import Here
from aegis_daemon.config.paths import Paths
from aegis_daemon.manage.client import Connection, DaemonAway, Refused
from aegis_daemon.onboarding.codes import CODES, Code
from aegis_daemon.service import person

if TYPE_CHECKING:
    from aegis_daemon.onboarding.scene import Finding, Scene, Service, Settings

app = new_app()
ASK_S: Final = 5.0
_COLOURS: Final = {"error": "31", "warning": "33", "note": "2"}


def codes(context: typer.Context, args: list[str], incomplete: str) -> list[tuple[str, str]]:
    """For the shell's completion."""
    return [(row.name, row.what) for row in CODES.values() if row.name.startswith(incomplete)]


@app.command()
def doctor(
    code: Annotated[
        str | None,
        typer.Argument(metavar="CODE", help="Only findings of this code, and what it means.", autocompletion=codes),
    ] = None,
    fix: Annotated[bool, typer.Option("--fix", help="Do what is safe: rights, leftovers, stale sockets.")] = False,
    as_json: Json = False,
) -> int:
    """Look for everything that is wrong with this installation. 1 where an error or a warning is found."""
    if code is not None and code not in CODES:
        return _denial(code)
    from aegis_daemon.onboarding.doctor import examine, mend

    if code is not None and not as_json:
        _explain(CODES[code])
    started = time.monotonic()
    found = [one for one in examine(scene()) if code in (None, one.code)]
    mended: list[Finding] = []
    failed: list[tuple[Finding, str]] = []
    if fix and any(one.mend is not None for one in found):
        mended, failed = mend(found)
        found = [one for one in examine(scene()) if code in (None, one.code)]
    took = time.monotonic() - started
    if as_json:
        emit([one.row(mended=True) for one in mended] + [one.row() for one in found])
    else:
        _tell(found, mended, failed, took, all_of_it=code is None)
    return WRONG if any(one.severity != "note" for one in found) else DONE


# --- what is told


def _explain(row: Code) -> None:
    print(f"{row.name} ({row.severity}): {row.what}")
    print(f"  {row.why}")
    print(f"  what to do: {row.fix}")
    print()


def _denial(code: str) -> int:
    """A word that a refused call was answered with, or none that is known."""
    from difflib import get_close_matches

    from aegis_daemon.onboarding.denials import DENIALS

    denial = DENIALS.get(code)
    if denial is not None:
        print(f"{denial.name}: refused, or failed, since {denial.when}")
        print(f"  {denial.why}")
        print(f"  what to do: {denial.fix}")
        return DONE
    near = get_close_matches(code, [*CODES, *DENIALS], 1)
    hint = f"did you mean `{near[0]}`?" if near else "`aegis doctor` without a code shows what is found"
    raise Problem(f"there is no code `{visible(code, 60)}`", hint, USAGE)


def _tell(
    found: list[Finding], mended: list[Finding], failed: list[tuple[Finding, str]], took: float, *, all_of_it: bool
) -> None:
    for one in mended:
        print(f"mended   {one.code}: {visible(one.text)}")
    for one, why in failed:
        say(f"could not mend {one.code}: {visible(why)}")
    colour = coloured(sys.stdout)
    for number, one in enumerate(found):
        repeated = number > 0 and found[number - 1].code == one.code
        label = one.severity.ljust(8)
        if colour:
            label = f"\x1b[{_COLOURS[one.severity]}m{label}\x1b[0m"
        code = CODES[one.code]
        print(f"{label} {one.code}: {code.what}")
        print(f"         {visible(one.text)}")
        if one.severity != "note" and not repeated:
            print(f"         {code.why}")
        if not repeated or one.fix:
            print(f"         → {visible(one.fix or code.fix)}")
    counts = {kind: sum(1 for one in found if one.severity == kind) for kind in ("error", "warning", "note")}
    told = ", ".join(f"{count} {kind}{'s' * (count != 1)}" for kind, count in counts.items() if count)
    if all_of_it:
        from aegis_daemon.onboarding.doctor import CHECKS

        say(f"{len(CHECKS)} checks in {took:.1f} s: {told or 'all is well'}")
    elif not found:
        say("nothing of that is found")
    if any(one.mend is not None for one in found):
        say("`aegis doctor --fix` does what is safe of that")


# --- what is looked at


def scene() -> Scene:
    """This installation, as the checks are told of it."""
    from aegis_daemon.onboarding.scene import Scene, Settings

    paths = link.paths()
    status, silent = _status(paths)
    home = Path(os.path.expanduser("~"))
    settings = Settings(paths.config, os.environ)
    return Scene(
        paths=paths,
        env=os.environ,
        settings=settings,
        home=home,
        cwd=_cwd(),
        version=__version__,
        python=os.path.abspath(sys.executable),
        here=_here(paths, status, settings),
        now=time.time(),
        status=status,
        silent=silent,
        service=_service(paths),
        ephemeral=tuple(dict.fromkeys((*agents_files.EPHEMERAL, *person.EPHEMERAL))),
    )


def _cwd() -> Path | None:
    try:
        return Path.cwd()
    except OSError:
        return None


def _status(paths: Paths) -> tuple[dict[str, Any] | None, str]:
    try:
        found: dict[str, Any] = _ask(paths)
    except DaemonAway as away:
        return None, str(away)
    except (Refused, OSError) as refused:
        return None, str(refused)
    return found, ""


def _ask(paths: Paths) -> dict[str, Any]:
    if not os.path.lexists(paths.manage_socket):
        raise DaemonAway("there is no socket")
    with Connection(paths.manage_socket, timeout=ASK_S) as connection:
        found: dict[str, Any] = connection.call("status")
    return found


def _here(paths: Paths, status: dict[str, Any] | None, settings: Settings) -> Here:
    """What entries have to say. Without a daemon its HTTP address is the configuration's."""
    from aegis_daemon.config.source import ConfigFaults

    config = None
    if os.path.lexists(paths.config):
        with suppress(ConfigFaults):  # the check of the configuration says so
            config = settings.loaded().config
    try:
        found = agents_files.here(paths, status, config)
    except Problem:  # there is none, or only for the moment: the check of the installation says so
        beside = os.path.join(os.path.dirname(sys.executable), "aegis-wrap")
        found = Here(wrapper=beside if os.access(beside, os.X_OK) else "", env=agents_files.variables(os.environ))
    if status is None and config is not None and config.server.listen != "off":
        found = replace(found, http=str(config.server.listen))
    return found


def _service(paths: Paths) -> Service | None:
    from aegis_daemon.onboarding.scene import Service

    found = person.find(paths, os.environ)
    if found is None or found.kind != "systemd":
        return None
    try:
        with open(found.files[0], encoding="utf-8", errors="replace") as file:
            text = file.read(1 << 16)
    except OSError:
        return Service(found.files[0], "")
    line = next((line for line in text.splitlines() if line.startswith("ExecStart=")), "")
    word = line.removeprefix("ExecStart=").strip()
    program = word[1:].partition('"')[0] if word.startswith('"') else word.partition(" ")[0]
    return Service(found.files[0], program.replace("%%", "%"))
