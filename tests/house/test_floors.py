"""Each floor imports only what lies below it, and siblings on a floor never import each other."""

from __future__ import annotations

import ast
import functools
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DAEMON = ROOT / "aegis_daemon"

# From the ground up. What shares a line are siblings: they meet through the Protocols of `core.ports`.
FLOORS = (
    {"wire"},
    {"core"},
    {"loop"},
    {"policy"},
    {
        "stages",
        "audit",
        "approvals",
        "lanes",
        "limits",
        "registry",
        "transports",
        "backends",
        "relay",
        "exports",
        "telemetry",
        "clients",
    },
    {"config"},
    {"manage"},
    {"daemon", "demo", "onboarding", "service"},
    {"cli"},
)
HEIGHT = {package: height for height, floor in enumerate(FLOORS) for package in floor}

# Downward, and forbidden all the same.
FORBIDDEN = {
    **{
        ("config", sibling): "a configuration makes the rules and knows nobody who carries them out"
        for sibling in (
            "audit",
            "approvals",
            "exports",
            "registry",
            "telemetry",
            "transports",
            "backends",
            "relay",
            "limits",
        )
    },
    **{
        ("manage", sibling): "the management API speaks in its own shapes; `daemon.governor` translates"
        for sibling in (
            "audit",
            "approvals",
            "exports",
            "lanes",
            "limits",
            "registry",
            "backends",
            "relay",
            "stages",
            "telemetry",
        )
    },
    **{
        ("cli", sibling): "a command asks the daemon, or reads what it wrote"
        for sibling in (
            "wire",
            "loop",
            "stages",
            "lanes",
            "limits",
            "registry",
            "telemetry",
            "transports",
            "backends",
            "relay",
        )
    },
    ("loop", "core"): "what touches descriptors knows nothing of calls",
    ("loop", "wire"): "what touches descriptors knows nothing of frames",
}
# What the daemon's side may have of the shim: what both ends of a socket must agree on.
SHARED_WITH_THE_SHIM = {"aegis_shim.hello", "aegis_shim.ledger"}

PURE = ("wire", "core", "policy", "stages", "limits", "lanes", "telemetry")
IMPURE_MODULES = {
    "asyncio", "datetime", "io", "logging", "os", "pathlib", "random", "secrets", "select", "shutil", "signal",
    "socket", "sqlite3", "subprocess", "sys", "tempfile", "threading", "time", "urllib.request", "uuid", "uvloop",
}  # fmt: skip
ALLOWED_IMPURITIES = {
    ("aegis_daemon.core.pipeline", "logging"): "a gate's fault must leave a trace, and the pipeline is where it ends",
    ("aegis_daemon.lanes", "random"): "only as the default of an argument",
}
ONLY_AT_THE_EDGES = {
    "cedarpy": {"policy"},
    "cryptography": {"audit"},
    "jinja2": {"manage"},
    "pydantic": {"config", "manage"},
    "pydantic_core": {"config", "manage"},
    "ruamel": {"config", "cli", "clients"},
    "typer": {"cli"},
    "rich": {"cli", "demo"},
    "mcp": {"demo", "onboarding"},
    "obstore": {"exports"},
    "pyarrow": {"exports"},
    "sqlite_utils": {"audit"},
    "uvloop": {"daemon"},
    "jsonpath": {"policy"},
    "re2": {"policy"},
    "sqlglot": {"policy"},
}


def package_of(module: str) -> str:
    """`aegis_daemon.core.names` → `core`; the top package itself has none."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


@functools.cache
def imports() -> dict[str, set[str]]:
    """Module → every module it imports, wherever in the file."""
    found: dict[str, set[str]] = {}
    for path in sorted(DAEMON.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        named = found.setdefault(module, set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            if isinstance(node, ast.Import):
                named.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{module}: a relative import hides which floor it goes to"
                assert node.module is not None
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                modules = {name for name in inner if name.startswith("aegis_") and is_module(name)}
                named.update(modules or {node.module})
    return found


def edges() -> list[tuple[str, str]]:
    return [(module, target) for module, targets in imports().items() for target in targets]


def test_every_package_has_a_floor() -> None:
    there = {path.stem for path in DAEMON.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert there - {"__init__"} == set(HEIGHT)


def test_each_floor_imports_only_what_lies_below_it() -> None:
    upward = [
        f"{module} imports {target}"
        for module, target in edges()
        if target.startswith("aegis_daemon.") and package_of(module) and package_of(module) != package_of(target)
        if HEIGHT[package_of(target)] >= HEIGHT[package_of(module)]
    ]
    assert upward == []


def test_no_forbidden_edge() -> None:
    broken = [
        f"{module} imports {target}: {FORBIDDEN[package_of(module), package_of(target)]}"
        for module, target in edges()
        if target.startswith("aegis_daemon.") and (package_of(module), package_of(target)) in FORBIDDEN
    ]
    assert broken == []


def test_the_daemon_knows_of_the_shim_only_what_both_must_agree_on() -> None:
    assert {target for _, target in edges() if target.startswith("aegis_shim")} == SHARED_WITH_THE_SHIM


def test_decisions_are_pure() -> None:
    impure = {
        (module, target)
        for module, target in edges()
        if package_of(module) in PURE and (target in IMPURE_MODULES or target.split(".")[0] in IMPURE_MODULES)
    }
    assert impure == set(ALLOWED_IMPURITIES)


@pytest.mark.parametrize("library", sorted(ONLY_AT_THE_EDGES))
def test_a_heavy_library_stays_at_its_edge(library: str) -> None:
    users = {package_of(module) for module, target in edges() if target.split(".")[0] == library}
    assert users <= ONLY_AT_THE_EDGES[library]


def test_the_mint_of_permits_is_known_to_the_pipeline_alone() -> None:
    knows = {
        path.relative_to(DAEMON).as_posix()
        for path in DAEMON.rglob("*.py")
        if "_MINT" in path.read_text(encoding="utf-8")
    }
    assert knows == {"core/verdict.py", "core/pipeline.py"}


def test_the_standard_library_and_what_is_declared_are_all_there_is() -> None:
    declared = {
        "aegis_daemon", "aegis_shim", "anyio", "cryptography", "idna", "jsonpath", "re2", "sqlglot", "cedarpy", "httptools", "jinja2", "limits", "markupsafe", "mcp", "msgspec", "pydantic", "pydantic_core",
        "rich", "ruamel", "sqlite_utils", "starlette", "typer", "click", "uvicorn", "uvloop", "websockets",
    }  # fmt: skip
    optional = {"obstore", "pyarrow"}  # extras, imported where they are used and told of where they are missing
    used = {target.split(".")[0] for _, target in edges()}
    assert used - set(sys.stdlib_module_names) - optional <= declared
