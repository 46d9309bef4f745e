from __future__ import annotations

import json
import os
import stat
import subprocess

import pytest
from manage.memory import Served

from .conftest import Aegis

BAD = """\
mod: enforce
backends:
  github: {}
agents:
  claude:
    backends:
      githb: {allowed: true}
server:
  api_token: ${env:NO_SUCH_TOKEN}
"""


def write(home: str, text: str, name: str = "aegis.yaml") -> str:
    path = f"{home}/{name}"
    with open(path, "w") as file:
        file.write(text)
    return path


def test_a_first_file_is_private_valid_and_never_overwritten(aegis: Aegis, home: str) -> None:
    made = aegis("config", "init")
    assert made.stdout.strip() == f"{home}/aegis.yaml"
    assert stat.S_IMODE(os.stat(f"{home}/aegis.yaml").st_mode) == 0o600
    assert aegis("config", "validate").exit_code == 0
    again = aegis("config", "init")
    assert again.exit_code == 1
    assert "exists already" in again.stderr
    with open(f"{home}/aegis.yaml", "a") as file:
        file.write("# mine\n")
    assert aegis("config", "init", "--force").exit_code == 0
    with open(f"{home}/aegis.yaml.bak") as file:
        assert file.read().endswith("# mine\n")


def test_a_first_file_is_made_where_config_or_aegis_config_says(
    aegis: Aegis, home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert aegis("config", "init", "--config", f"{home}/deep/er/a.yaml").stdout.strip() == f"{home}/deep/er/a.yaml"
    monkeypatch.setenv("AEGIS_CONFIG", f"{home}/b.yaml")
    assert aegis("config", "path").stdout.strip() == f"{home}/b.yaml"
    assert aegis("config", "init").stdout.strip() == f"{home}/b.yaml"
    assert json.loads(aegis("config", "path", "--json").stdout)["exists"] is True


def test_a_dangling_link_is_not_written_through(aegis: Aegis, home: str) -> None:
    os.symlink(f"{home}/elsewhere", f"{home}/aegis.yaml")
    assert aegis("config", "init").exit_code == 1
    assert not os.path.exists(f"{home}/elsewhere")


def test_every_fault_is_told_at_once_with_its_place_and_the_nearest_name(aegis: Aegis, home: str) -> None:
    path = write(home, BAD)
    done = aegis("config", "validate")
    assert done.exit_code == 1
    for text in ("1:1", "`mode`", "7:7", "`github`", "NO_SUCH_TOKEN", "3 faults"):
        assert text in done.stderr
    rows = json.loads(aegis("config", "validate", path, "--json").stdout)
    assert [(row["severity"], row["line"]) for row in rows] == [("fault", 1), ("fault", 7), ("fault", 9)]
    assert set(rows[0]) == {"severity", "file", "line", "column", "path", "message", "hint"}


def test_a_hostile_file_cannot_steer_the_terminal_through_its_faults(aegis: Aegis, home: str) -> None:
    write(home, '"mo\\e[31mde": enforce\n"x\\u202ey": 1\n')
    done = aegis("config", "validate")
    assert done.exit_code == 1
    assert not set(done.output) & {"\x1b", "\u202e"}


def test_what_is_shown_has_defaults_and_no_secrets(aegis: Aegis, home: str) -> None:
    write(home, "server:\n  api_token: hunter2hunter2hunter2\nbackends: {git: {url: 'https://u:pw@x/'}}\n")
    for words in (["config", "show"], ["config", "show", "--json"]):
        shown = aegis(*words)
        assert shown.exit_code == 0, shown.stderr
        assert "hunter2" not in shown.output
        assert "18070" in shown.stdout
    assert json.loads(aegis("config", "show", "--json").stdout)["mode"] == "enforce"


def test_what_the_daemon_has_in_force_can_be_shown(served: Served, aegis: Aegis) -> None:
    assert json.loads(aegis("config", "show", "--running", "--json").stdout)["server"]["api_token"] == "********"
    assert "api_token: '********'" in aegis("config", "show", "--running").stdout


def test_without_a_file_showing_says_how_to_begin(aegis: Aegis) -> None:
    for verb in ("show", "validate"):
        done = aegis("config", verb)
        assert done.exit_code == 1
        assert "aegis config init" in done.stderr


def test_the_schema_is_json_schema(aegis: Aegis) -> None:
    schema = json.loads(aegis("config", "schema").stdout)
    assert schema["$schema"].endswith("2020-12/schema")
    assert "agents" in schema["properties"]


def test_make_init_config_makes_a_first_file(home: str) -> None:
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    done = subprocess.run(["make", "-C", root, "init-config"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert os.path.exists(f"{home}/aegis.yaml")
