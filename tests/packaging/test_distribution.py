"""What is published holds everything that is needed, nothing else, and works from where it is put."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("aegis_shim", "aegis_daemon")
KINDS = {".py", ".typed", ".md", ".toml", ".yaml", ".html", ".css", ".js", ".svg", ".json", ".cedar", ".txt", ".sql"}
"""What files of a package may be; `aegis-wrap` has no ending."""
IGNORED = {".git", ".venv", ".cache", "dist", "build", "node_modules", "__pycache__"}
LARGE = 300_000
"""Bytes of the largest file that a package may have: what is larger was put there by mistake."""


@dataclass(frozen=True)
class Built:
    wheel: Path
    sdist: Path


def build(source: Path, to: Path, *kinds: str) -> None:
    words = [sys.executable, "-m", "hatchling", "build", "-d", str(to), *kinds]
    done = subprocess.run(words, cwd=source, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """From a copy: what the work tree alone has (caches, what others write just then) must not matter."""
    source, to = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in os.listdir(ROOT):
        if name in IGNORED or name.endswith("_cache") or name == ".hypothesis":
            continue
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
        else:
            shutil.copy2(ROOT / name, source / name)
    build(source, to)
    return Built(next(to.glob("*.whl")), next(to.glob("*.tar.gz")))


def sources() -> set[str]:
    return {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_has_each_file_of_the_packages_and_nothing_else(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        names = set(wheel.namelist())
        sizes = {info.filename: info.file_size for info in wheel.infolist()}
    beside = {name for name in names if name.split("/")[0] not in PACKAGES}
    assert names - beside == sources()
    stem = built.wheel.name.split("-py3")[0]
    assert {name.removeprefix(stem) for name in beside} == {
        ".data/scripts/aegis-wrap", ".dist-info/METADATA", ".dist-info/WHEEL", ".dist-info/RECORD",
        ".dist-info/entry_points.txt", ".dist-info/licenses/LICENSE",
    }  # fmt: skip
    odd = {name for name in names - beside if Path(name).suffix not in KINDS and Path(name).name != "aegis-wrap"}
    assert odd == set()
    assert {name: size for name, size in sizes.items() if size > LARGE} == {}


def test_the_wheel_works_everywhere_and_names_its_commands(built: Built) -> None:
    assert built.wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(built.wheel) as wheel:
        stem = built.wheel.name.split("-py3")[0]
        entries = wheel.read(f"{stem}.dist-info/entry_points.txt").decode()
        metadata = wheel.read(f"{stem}.dist-info/METADATA").decode()
    assert entries.split("[console_scripts]")[1].split() == ["aegis", "=", "aegis_daemon.cli:run"]
    assert "Requires-Python: >=3.11" in metadata
    assert "\nLicense-Expression: Apache-2.0" in metadata


def test_the_source_has_all_that_tests_and_scripts_need(built: Built) -> None:
    with tarfile.open(built.sdist) as sdist:
        names = {member.name.partition("/")[2] for member in sdist.getmembers() if member.isfile()}
    assert sources() <= names
    for folder in ("tests", "scripts", "examples"):
        there = {
            path.relative_to(ROOT).as_posix()
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and not {"__pycache__", "node_modules"} & set(path.parts) and ".key" not in path.suffixes
        }
        assert there - names == set()
    assert {"README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml", "constraints.txt", "Dockerfile"} <= names
    assert {name for name in names if "__pycache__" in name or name.endswith((".pyc", ".db", ".key"))} == set()


def test_a_wheel_made_from_the_source_is_the_same(built: Built, tmp_path: Path) -> None:
    with tarfile.open(built.sdist) as sdist:
        sdist.extractall(tmp_path / "s", filter="data")
    build(next((tmp_path / "s").iterdir()), tmp_path / "d", "-t", "wheel")
    again = next((tmp_path / "d").glob("*.whl"))
    with zipfile.ZipFile(built.wheel) as one, zipfile.ZipFile(again) as other:
        assert {info.filename: info.CRC for info in one.infolist()} == {
            info.filename: info.CRC for info in other.infolist()
        }


# --- installed


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of the wheel in an environment of its own, which borrows the packages that it needs from ours."""
    env = tmp_path_factory.mktemp("env") / "e"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(env)], check=True, timeout=60)
    paths = {"base": str(env), "platbase": str(env)}
    site = Path(sysconfig.get_path("purelib", "venv", vars=paths))
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(env / "bin/python"), "install", "--no-deps", "--no-index",
         "--quiet", str(built.wheel)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ours = Path(sysconfig.get_path("purelib"))
    lent = site / "lent"
    lent.mkdir()
    for path in ours.iterdir():  # all but the editable Aegis
        if "aegis" not in path.name.lower() and path.suffix != ".pth":
            (lent / path.name).symlink_to(path)
    (site / "lent.pth").write_text(f"{lent}\n")
    return env / "bin"


def run(program: Path, *words: str, home: Path, **more: str) -> subprocess.CompletedProcess[str]:
    env = {"HOME": str(home), "PATH": "/usr/bin:/bin", **more}
    return subprocess.run(
        [str(program), *words], capture_output=True, text=True, env=env, timeout=60, check=False, cwd="/"
    )


def test_the_installed_commands_work_with_nothing_on_the_path(installed: Path, tmp_path: Path) -> None:
    row = json.loads(run(installed / "aegis", "version", "--json", home=tmp_path).stdout)
    assert row["wrapper"] == str(installed / "aegis-wrap")
    assert row["executable"] == str(installed / "python")
    done = run(installed / "aegis-wrap", "--version", home=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"aegis-wrap {row['version']}\n")


def test_the_installed_daemon_is_started_by_the_installed_wrapper(installed: Path, tmp_path: Path) -> None:
    home = tmp_path / "h"  # below it a socket's path is short enough
    home.mkdir()
    asked = '{"jsonrpc":"2.0","id":1,"method":"ping"}\n'
    with subprocess.Popen(
        [str(installed / "aegis-wrap"), "--", "/bin/cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={"AEGIS_HOME": str(home), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    ) as wrap:  # fmt: skip
        assert wrap.stdin is not None
        assert wrap.stdout is not None
        try:
            wrap.stdin.write(asked)
            wrap.stdin.flush()
            answer = json.loads(wrap.stdout.readline())
        finally:
            wrap.stdin.close()
            run(installed / "aegis", "daemon", "stop", home=tmp_path, AEGIS_HOME=str(home))
    assert answer["id"] == 1
    log = (home / "daemon.log").read_text()
    assert "Traceback" not in log


def test_the_installed_wrapper_starts_with_a_bare_python(installed: Path, tmp_path: Path) -> None:
    """Site directories, of which a tool's environment has many packages, are not looked at."""
    seen = tmp_path / "seen"
    spy = tmp_path / "python"
    python = next(installed.glob("python3.*"))
    kept = python.with_name("kept")
    python.rename(kept)
    spy.write_text(f'#!/bin/sh\necho "$@" > {seen}\nexec {kept} "$@"\n')
    spy.chmod(0o755)
    python.symlink_to(spy)
    try:
        run(installed / "aegis-wrap", "--version", home=tmp_path)
    finally:
        python.unlink()
        kept.rename(python)
    assert seen.read_text().split()[:2] == ["-I", "-S"]


# --- the image


def test_the_image_is_built_of_what_is_there_and_runs_as_nobody_special() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = [
        line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")
    ]
    copied = [
        word for line in lines if line.startswith("COPY ") and "--from" not in line for word in line.split()[1:-1]
    ]
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    for name in copied:
        assert (ROOT / name).exists()
        assert f"!{name}" in ignored, f"`.dockerignore` keeps {name} from the image"
    last = max(at for at, line in enumerate(lines) if line.startswith("FROM "))
    stage = lines[last:]
    users = [line.split()[1] for line in stage if line.startswith("USER ")]
    assert users
    assert users[-1].split(":")[0] not in ("0", "root")
    assert any(line.startswith("HEALTHCHECK ") for line in stage)
    assert [line for line in lines if line.startswith("ADD ")] == []


def test_every_dependency_is_pinned_for_those_who_want_it_so() -> None:
    pinned = {
        line.partition("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().split()
    }
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {one.split(";")[0].split(">")[0].split("=")[0].split("<")[0].strip().lower() for one in needed}
    assert {name.replace(".", "-") for name in names} - pinned == set()
