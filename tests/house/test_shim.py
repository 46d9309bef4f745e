"""The shim is standard library alone, and starts without anything it does not need."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHIM = ROOT / "aegis_shim"
SLOW_TO_IMPORT = {
    "asyncio",
    "argparse",
    "dataclasses",
    "enum",
    "json",
    "logging",
    "pathlib",
    "re",
    "subprocess",
    "typing",
}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name}: a relative import does not work when the file is run as it is"
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("path", sorted(SHIM.glob("*.py")), ids=lambda path: path.name)
def test_the_shim_imports_the_standard_library_and_itself(path: Path) -> None:
    tops = {name.split(".")[0] for name in imported(path)}
    assert tops - set(sys.stdlib_module_names) - {"posix"} <= {"aegis_shim"}
    assert "asyncio" not in tops


@pytest.mark.parametrize("name", ["hello", "ledger"])
def test_what_the_daemon_shares_with_the_shim_needs_nothing_of_either(name: str) -> None:
    assert not {module for module in imported(SHIM / f"{name}.py") if module.startswith("aegis_")}


def test_a_starting_shim_loads_nothing_that_costs_time() -> None:
    script = (
        "import sys; before = set(sys.modules); sys.path.insert(0, sys.argv[1]); import aegis_shim.wrap;"
        "print(' '.join(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script, str(ROOT)], capture_output=True, text=True, check=True, timeout=20
    )
    loaded = set(done.stdout.split())
    assert "aegis_shim.wrap" in loaded
    assert not {name for name in loaded if name.startswith("aegis_daemon")}
    assert not loaded & SLOW_TO_IMPORT
    assert done.stderr == ""


def test_the_shim_works_isolated_and_without_site_packages() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            str(SHIM / "__main__.py"),
            "--no-autostart",
            "--socket",
            "/nonexistent/s",
            "--",
            "x",
        ],
        input=b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n',
        capture_output=True,
        timeout=20,
        check=False,
        cwd="/",
    )
    answer = json.loads(done.stdout)
    assert answer["id"] == 1
    assert "error" in answer
    assert b"Traceback" not in done.stderr
