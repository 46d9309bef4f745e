"""Every word by which something is refused or found is explained on one page, which is made from the code."""

from __future__ import annotations

import ast
import functools
import re
import runpy
from pathlib import Path

from aegis_daemon.onboarding.checks import clients, config, daemon, files, install, log, machine, programs
from aegis_daemon.onboarding.codes import CODES
from aegis_daemon.onboarding.denials import DENIALS, REASONS, STAGES
from aegis_daemon.wire.errors import REFUSALS
from aegis_shim import offline

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "aegis_daemon/onboarding/codes.md").read_text(encoding="utf-8")
CHECKS = (clients, config, daemon, files, install, log, machine, programs)


def words(node: ast.expr | None) -> set[str]:
    """The texts that an expression may be, as far as it is written out."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return {node.value}
    if isinstance(node, ast.IfExp):
        return words(node.body) | words(node.orelse)
    if isinstance(node, ast.JoinedStr):
        return {"".join(str(one.value) if isinstance(one, ast.Constant) else "STATUS" for one in node.values)}
    return set()


@functools.cache
def said() -> dict[str, str]:
    """Each word that is given as a reason, and the file that gives it."""
    found: dict[str, str] = {}
    for path in [*(ROOT / "aegis_daemon").rglob("*.py"), *(ROOT / "aegis_shim").rglob("*.py")]:
        if path.is_relative_to(ROOT / "aegis_daemon/manage") or path.is_relative_to(ROOT / "aegis_daemon/cli"):
            continue  # the management API has its own codes
        if path.name == "reach.py":
            continue  # channels are no calls of agents
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            made: set[str] = set()
            if isinstance(node, ast.Call):
                name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                if name == "Reason":
                    made = {word for key in node.keywords if key.arg == "code" for word in words(key.value)}
                elif (
                    path.name != "proof.py"
                    and name in ("Fault", "Withheld", "_broken")
                    and node.args
                    and "config" not in path.parts
                ):
                    made = words(node.args[0])
            elif isinstance(node, ast.Dict):
                keys = [key.value if isinstance(key, ast.Constant) else None for key in node.keys]
                if "by" in keys and "reason" in keys:
                    made = words(node.values[keys.index("reason")])
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
                names = [getattr(one, "id", "") for one in node.targets[0].elts]
                if (
                    "code" in names
                    and isinstance(node.value, ast.Tuple)
                    and path.is_relative_to(ROOT / "aegis_daemon/stages")
                ):
                    made = words(node.value.elts[names.index("code")])
            elif isinstance(node, ast.Return) and path.name == "http_client.py" and isinstance(node.value, ast.Tuple):
                made = {word for word in words(node.value.elts[0]) if re.fullmatch(r"[a-z_]+", word)}
            found.update(dict.fromkeys(made, path.name))
    return found


def test_every_reason_that_the_code_gives_is_explained() -> None:
    given = said()
    assert len(given) > 40
    assert {word: where for word, where in given.items() if word not in REASONS} == {}


def test_every_refusal_of_a_call_gives_a_reason_that_stays_the_same() -> None:
    for path in (ROOT / "aegis_daemon").rglob("*.py"):
        if path.name == "proof.py":  # the daemon's own proof, which answers nobody
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Reason":
                codes = [key.value for key in node.keywords if key.arg == "code"]
                assert codes, f"{path.name}:{node.lineno}"
                assert not isinstance(codes[0], ast.JoinedStr), f"{path.name}:{node.lineno}"


def test_no_reason_is_explained_that_nobody_gives() -> None:
    shim = {offline.UNDONE, offline.UNKNOWN, "refused", "no_daemon"}
    assert set(REASONS) - set(said()) - shim == set()


def test_every_stage_is_explained() -> None:
    assert set(STAGES) == set(REFUSALS)
    assert set(REASONS) | set(STAGES) == set(DENIALS)


def test_every_finding_has_a_code_that_is_explained_and_every_code_a_finding() -> None:
    used: set[str] = set()
    for path in [Path(one.__file__) for one in CHECKS] + [ROOT / "aegis_daemon/onboarding/doctor.py"]:
        used |= set(re.findall(r'"([a-z]+(?:-[a-z]+)*)"', path.read_text(encoding="utf-8")))
    assert set(CODES) <= used


def test_the_page_is_made_from_the_code() -> None:
    assert runpy.run_path(str(ROOT / "scripts/readme"))["codes"]() == PAGE, "run scripts/readme"


def test_the_page_has_a_paragraph_for_each_and_the_readme_links_it() -> None:
    headings = re.findall(r"^### `(?:reason: )?([^`]+)`$", PAGE, re.M)
    assert sorted(headings) == sorted([*STAGES, *REASONS, *CODES])
    assert "aegis_daemon/onboarding/codes.md" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_what_is_to_be_done_names_only_commands_that_exist() -> None:
    from aegis_daemon.cli.main import COMMANDS

    for word in re.findall(r"`aegis ([a-z]+)", PAGE):
        assert word in COMMANDS or word == "backends", word
