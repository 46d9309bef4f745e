"""A service of a login: what is written, what is refused, and that taking it away leaves nothing."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from aegis_daemon.cli.main import app
from aegis_daemon.config.paths import Paths
from aegis_daemon.service import person, steps, units
from aegis_daemon.service.steps import Unable


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home in which no service manager answers, whatever there is on this machine."""
    directory = Path(tempfile.mkdtemp(prefix="ah", dir="/tmp"))
    for name in list(os.environ):
        if name.startswith(("AEGIS_", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(directory))
    monkeypatch.setattr(person, "answers", lambda: False)
    monkeypatch.setattr(steps, "call", lambda words, timeout=0.0: pytest.fail(f"{words} was run"))
    monkeypatch.setattr(person.sys, "platform", "linux")
    yield directory
    shutil.rmtree(directory)


def aegis(*words: str) -> Result:
    return CliRunner().invoke(app, ["daemon", *words], prog_name="aegis")


def tree(home: Path) -> list[str]:
    return sorted(str(path.relative_to(home)) for path in home.rglob("*"))


def test_a_look_before_changes_nothing_and_shows_every_line(home: Path) -> None:
    shown = aegis("install", "--dry-run")
    assert shown.exit_code == 0
    assert tree(home) == []
    assert "Type=notify" in shown.stdout
    assert f"{home}/.config/systemd/user/aegis.socket" in shown.stdout
    rows = json.loads(aegis("install", "--dry-run", "--json").stdout)
    assert [row["step"] for row in rows[:2]] == ["write", "write"]
    assert not any(row["done"] for row in rows)


def test_where_no_manager_answers_the_units_are_written_and_the_rest_is_told(home: Path) -> None:
    done = aegis("install")
    assert done.exit_code == 1
    assert "systemctl --user enable --now aegis.socket aegis.service" in done.stderr
    units_directory = home / ".config/systemd/user"
    assert sorted(path.name for path in units_directory.iterdir()) == ["aegis.service", "aegis.socket"]
    assert (units_directory / "aegis.service").stat().st_mode & 0o777 == 0o644
    again = aegis("install", "--json")
    assert [row["step"] for row in json.loads(again.stdout)[:2]] == ["keep", "keep"]
    found = person.find(Paths.find(os.environ), os.environ)
    assert found is not None
    for wants in ("default.target.wants/aegis.service", "sockets.target.wants/aegis.socket"):
        link = units_directory / wants
        link.parent.mkdir()
        link.symlink_to(units_directory / link.name)
    assert aegis("uninstall").exit_code == 0
    assert [path for path in tree(home) if "systemd" in path] == []
    assert "there is no service" in aegis("uninstall").stderr


def test_a_unit_of_somebody_elses_is_left_alone(home: Path) -> None:
    theirs = home / ".config/systemd/user/aegis.service"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("[Service]\nExecStart=/bin/true\n")
    refused = aegis("install")
    assert refused.exit_code == 1
    assert "not written by Aegis" in refused.stderr
    assert theirs.read_text() == "[Service]\nExecStart=/bin/true\n"
    assert not (theirs.parent / "aegis.socket").exists()


def test_the_service_of_another_installation_is_never_taken_for_this_ones(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aegis("install")
    for other in ({"AEGIS_HOME": "/srv/a"}, {"AEGIS_SOCKET": "/srv/a/s"}):
        env = {"HOME": str(home), **other}
        assert person.find(Paths.find(env), env) is None
    # A shell that knows no runtime directory speaks of the same login all the same.
    env = {"HOME": str(home), "XDG_RUNTIME_DIR": "/run/user/1"}
    assert person.find(Paths.find(env), env) is not None
    aegis("uninstall")
    monkeypatch.setenv("AEGIS_HOME", str(home / "a"))
    aegis("install")
    env = {"HOME": str(home)}
    assert person.find(Paths.find(env), env) is None
    env["AEGIS_HOME"] = str(home / "a")
    assert person.find(Paths.find(env), env) is not None


def test_the_service_of_another_installation_is_not_replaced(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aegis("install")
    before = (home / ".config/systemd/user/aegis.service").read_bytes()
    monkeypatch.setenv("AEGIS_HOME", str(home / "a"))
    done = aegis("install")
    assert done.exit_code == 1
    assert "another installation" in done.stderr
    assert (home / ".config/systemd/user/aegis.service").read_bytes() == before


def test_the_chosen_configuration_is_the_services(home: Path) -> None:
    chosen = home / "my rules.yaml"
    assert aegis("install", "--config", str(chosen)).exit_code == 1  # there is no such file
    assert tree(home) == []
    chosen.write_text("mode: enforce\n")
    aegis("install", "--config", str(chosen))
    found = person.find(Paths.find(os.environ), os.environ)
    assert found is not None
    assert found.config == str(chosen)


@pytest.mark.parametrize(
    "python",
    [
        "~/.cache/uv/archive-v0/x7/bin/python",
        "/var/cache/uv/environments-v2/aegis/bin/python",
        "~/.local/share/pipx/.cache/0a1b/bin/python",
        "~/.cache/pipx/0a1b/bin/python",
        "/big/cache/anything/bin/python",
    ],
)
def test_a_program_that_will_be_gone_tomorrow_is_refused(
    python: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(person.sys, "executable", os.path.expanduser(python))
    monkeypatch.setenv("UV_CACHE_DIR", "/big/cache")
    with pytest.raises(Unable, match="only for the moment") as refused:
        person.python(os.environ)
    assert "uv tool install" in refused.value.hint
    assert aegis("install").exit_code == 1
    assert tree(home) == []


def test_on_a_mac_there_is_a_property_list(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(person.sys, "platform", "darwin")
    assert aegis("install").exit_code == 1
    (plist,) = (home / "Library/LaunchAgents").iterdir()
    assert plist.name == f"{units.LABEL}.plist"
    found = person.find(Paths.find(os.environ), os.environ)
    assert found is not None
    assert found.kind == "launchd"
    other = {"HOME": str(home), "AEGIS_HOME": "/srv/a"}
    assert person.find(Paths.find(other), other) is None
