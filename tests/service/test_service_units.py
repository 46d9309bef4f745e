"""What systemd and launchd read of our files is what was meant, whatever characters paths hold."""

from __future__ import annotations

import os
import plistlib
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis_daemon.service import units
from aegis_daemon.service.units import Door

ODD = '/a b/%t/c"d\\e/$HOME'
PRINTABLE = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF).filter(str.isprintable), max_size=40)


def system() -> dict[str, str]:
    doors = [Door("bot", "root", "/run/aegis/agents/bot.sock"), Door("é", "root", "/run/aegis/agents/é.7.sock")]
    service = units.system_service("/usr/bin/python3", {"PATH": ODD}, "/var/lib/aegis", doors)
    return {
        units.SERVICE: service,
        units.SOCKET: units.manage_socket("/run/aegis/manage.sock", "root"),
        **{door.unit: units.door_socket(door) for door in doors},
    }


def person() -> dict[str, str]:
    return {
        units.SERVICE: units.user_service("/usr/bin/python3", {"PATH": ODD, "AEGIS_HOME": "/x y"}, "/tmp/a b/%d.log"),
        units.SOCKET: units.user_socket("%t/aegis/aegis.sock"),
    }


@pytest.mark.full
@pytest.mark.parametrize("scope", ["--user", "--system"])
def test_systemd_finds_nothing_to_complain_of(scope: str, tmp_path: Path) -> None:
    files = person() if scope == "--user" else system()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    env = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run(
        ["systemd-analyze", scope, "--man=no", "verify", *(f"./{name}" for name in files)],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    ours = [line for line in done.stderr.splitlines() if "aegis" in line]
    assert (done.returncode, ours) == (0, []), done.stderr


def test_root_opens_no_log_in_the_daemons_directory() -> None:
    lines = system()[units.SERVICE].splitlines()
    assert not any("append:" in line or "file:" in line for line in lines)
    assert any(line.startswith("ExecStart=") and line.endswith(" --log") for line in lines)


def test_systemd_asks_first_whether_the_configuration_still_isolates() -> None:
    lines = system()[units.SERVICE].splitlines()
    assert f"ExecStartPre=/usr/bin/python3 -I -m {units.CHECK}" in lines
    assert find_spec(units.CHECK) is not None


def test_a_unit_names_the_command_that_changes_it() -> None:
    for files, words in ((person(), "`systemctl --user edit`"), (system(), "`systemctl edit`")):
        assert all(words in text.splitlines()[0] and units.ours(text) for text in files.values())


@given(path=PRINTABLE)
def test_a_setting_is_read_back_as_it_was_written(path: str) -> None:
    text = units.user_service("/usr/bin/python3", {"AEGIS_CONFIG": path, "PATH": "/bin"}, "/l")
    assert units.setting(text, "AEGIS_CONFIG") == path
    assert units.setting(text, "PATH") == "/bin"
    assert units.setting(text, "AEGIS_HOME") == ""


@given(path=PRINTABLE)
def test_the_place_of_a_socket_is_read_back(path: str) -> None:
    where = "/" + path.strip() + "/x"
    assert units.listens_at(units.user_socket(where)) == where


def test_a_persons_runtime_directory_is_the_managers_own() -> None:
    assert "ListenStream=%t/aegis/aegis.sock" in person()[units.SOCKET]
    assert units.listens_at(person()[units.SOCKET]) == "%t/aegis/aegis.sock"


@pytest.mark.parametrize("bad", ["/a\nExecStart=/bin/sh", "/a\rb", "/a\0b", "/a\u2028b"])
def test_nothing_gets_a_line_of_its_own(bad: str) -> None:
    for make in (
        lambda: units.user_service(bad, {}, "/l"),
        lambda: units.user_service("/p", {"PATH": bad}, "/l"),
        lambda: units.user_service("/p", {}, bad),
        lambda: units.user_socket(bad),
        lambda: units.door_socket(Door("a", bad, "/s")),
        lambda: units.door_socket(Door("a", "u", bad)),
    ):
        with pytest.raises(ValueError, match="cannot be in a unit"):
            make()


def test_agents_and_users_have_units_of_their_own() -> None:
    paths = ["/d/bot.sock", "/d/bot.7.sock", "/d/Bot.sock", "/d/b-ot.sock", "/d/é.sock", "/d/b@t.sock"]
    names = [Door("x", "u", path).unit for path in paths]
    assert len(set(names)) == len(paths)
    assert all(name.isascii() and name.startswith("aegis-agent-") and "@" not in name for name in names)


def test_a_persons_servers_are_not_locked_in_and_the_machines_are() -> None:
    mine, machines = person()[units.SERVICE], system()[units.SERVICE]
    for line in ("NoNewPrivileges=yes", "ProtectSystem=strict", "CapabilityBoundingSet=", "User=aegis"):
        assert line not in mine.splitlines()
        assert line in machines.splitlines()
    for line in ("Type=notify", "UMask=0077", "KillMode=mixed", "OOMPolicy=continue", "Restart=on-failure"):
        assert line in mine.splitlines()
        assert line in machines.splitlines()


def test_the_property_list_says_the_same() -> None:
    made = units.launch_agent("/opt/a b/python", {"PATH": "/x&<y>"}, "/l/d.log")
    found = plistlib.loads(made)
    assert found["ProgramArguments"] == ["/opt/a b/python", "-I", "-m", units.MAIN]
    assert found["KeepAlive"] == {"SuccessfulExit": False}
    assert found["EnvironmentVariables"] == {"PATH": "/x&<y>"}
    assert found["StandardErrorPath"] == "/l/d.log"
    assert units.ours(made.decode())


def test_only_what_we_wrote_is_ours() -> None:
    assert units.ours(person()[units.SOCKET])
    assert not units.ours("[Socket]\nListenStream=%t/aegis/aegis.sock\n")
