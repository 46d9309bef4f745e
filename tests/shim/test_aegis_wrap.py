"""The sh wrapper finds its package and a Python in every layout it is installed in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .stage import SHIM

WRAPPER = SHIM.with_name("aegis-wrap")
VERSION = f"python{sys.version_info[0]}.{sys.version_info[1]}"
REAL = os.path.realpath(sys.executable)


def install(
    root: Path, *, lib: str = "lib", packages: str = "site-packages", pythons: tuple[str, ...] = ("python",)
) -> Path:
    """An environment under `root`; the path of its aegis-wrap."""
    (root / "bin").mkdir(parents=True)
    site = root / lib / VERSION / packages
    site.mkdir(parents=True)
    shutil.copytree(SHIM.parent, site / "aegis_shim", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(WRAPPER, root / "bin" / "aegis-wrap")
    for name in pythons:
        python(root / "bin" / name, name)
    return root / "bin" / "aegis-wrap"


def python(path: Path, name: str) -> None:
    """A Python that says which one it is and how it was called, then does its work."""
    path.write_text(f'#!/bin/sh\necho "{name} $1 $2" >&2\nexec "{REAL}" "$@"\n')
    path.chmod(0o755)


def run(command: Path | str, *words: str, **more: object) -> subprocess.CompletedProcess[str]:
    env = {"PATH": "/usr/bin:/bin", **dict(more.pop("env", {}))}  # type: ignore[call-overload]
    return subprocess.run(
        [str(command), *words],
        capture_output=True,
        text=True,
        timeout=10,
        env=env,
        **more,  # type: ignore[call-overload]
    )


@pytest.mark.parametrize("lib", ["lib", "lib64"])
@pytest.mark.parametrize("packages", ["site-packages", "dist-packages"])
def test_the_shim_beside_it_is_run_bare(tmp_path: Path, lib: str, packages: str) -> None:
    done = run(install(tmp_path / "a place", lib=lib, packages=packages), "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: aegis-wrap")
    assert done.stderr == "python -I -S\n"


def test_it_is_found_through_links(tmp_path: Path) -> None:
    real = install(tmp_path / "it's real")
    (tmp_path / "one").symlink_to("it's real/bin")
    (tmp_path / "two").symlink_to("one/aegis-wrap")
    (tmp_path / "three").symlink_to(tmp_path / "two")
    for link in (tmp_path / "three", tmp_path / "two", real):
        assert run(link, "--help").stdout.startswith("usage: aegis-wrap")


def test_it_is_found_by_name_alone_and_by_a_relative_path(tmp_path: Path) -> None:
    wrapper = install(tmp_path / "env")
    path = f"{wrapper.parent}:/usr/bin:/bin"
    assert run("sh", "-c", "aegis-wrap --help", env={"PATH": path}).stdout.startswith("usage:")
    assert run("sh", "aegis-wrap", "--help", cwd=wrapper.parent, env={"PATH": path}).stdout.startswith("usage:")
    assert run("sh", "aegis-wrap", "--help", cwd=wrapper.parent).stdout.startswith("usage:")
    assert run("./bin/aegis-wrap", "--help", cwd=tmp_path / "env").stdout.startswith("usage:")


def test_arguments_pass_as_they_are(tmp_path: Path) -> None:
    done = run(install(tmp_path), "--agent", "", "a b", "*", "$HOME")
    assert done.returncode == 2
    assert "`--agent` needs a value" in done.stderr
    done = run(tmp_path / "bin" / "aegis-wrap", "--o $HOME * dd")
    assert "unknown option `--o $HOME * dd`" in done.stderr


def test_the_python_of_the_same_version_comes_first(tmp_path: Path) -> None:
    done = run(install(tmp_path, pythons=("python", "python3", VERSION)), "--help")
    assert done.stderr == f"{VERSION} -I -S\n"


def test_without_a_python_beside_it_the_path_gives_one(tmp_path: Path) -> None:
    wrapper = install(tmp_path / "user", pythons=())
    (tmp_path / "elsewhere").mkdir()
    python(tmp_path / "elsewhere" / VERSION, "elsewhere")
    done = run(wrapper, "--help", env={"PATH": f"{tmp_path / 'elsewhere'}:/usr/bin:/bin"})
    assert done.stdout.startswith("usage:")
    assert done.stderr == "elsewhere -I -S\n"


def test_an_editable_install_is_left_to_site(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    shutil.copy(WRAPPER, tmp_path / "bin" / "aegis-wrap")
    python(tmp_path / "bin" / "python", "python")
    done = run(tmp_path / "bin" / "aegis-wrap", "--help")
    assert done.stderr.startswith("python -I -m\n")


def test_the_shim_itself_can_be_run_in_every_way(tmp_path: Path) -> None:
    install(tmp_path)
    package = tmp_path / "lib" / VERSION / "site-packages" / "aegis_shim"
    for words in (["-I", "-S", str(package)], ["-I", "-S", str(package / "__main__.py")]):
        assert run(sys.executable, *words, "--help").stdout.startswith("usage:")
    for words in (["-S", "aegis_shim"], ["-S", "aegis_shim/__main__.py"], ["-m", "aegis_shim"]):
        assert run(sys.executable, *words, "--help", cwd=package.parent).stdout.startswith("usage:")
