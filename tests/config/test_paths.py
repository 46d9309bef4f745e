"""Shim and daemon find the same files, and use no directory that others can change."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis_daemon.config.paths import SOCKET_PATH_MAX, PathError, Paths
from aegis_shim import wrap


def test_aegis_home_puts_everything_under_one_directory() -> None:
    paths = Paths.find({"AEGIS_HOME": "/srv/aegis", "XDG_CONFIG_HOME": "/elsewhere", "HOME": "/home/a"})
    assert {name: getattr(paths, name) for name in paths.__struct_fields__} == {
        "config": "/srv/aegis/aegis.yaml",
        "approver_key": "/srv/aegis/approver.key",
        "run_dir": "/srv/aegis",
        "socket": "/srv/aegis/aegis.sock",
        "manage_socket": "/srv/aegis/manage.sock",
        "lock": "/srv/aegis/daemon.lock",
        "state_dir": "/srv/aegis",
        "log": "/srv/aegis/daemon.log",
        "audit_db": "/srv/aegis/audit.db",
        "state_db": "/srv/aegis/state.db",
        "links_key": "/srv/aegis/links.key",
        "journal": "/srv/aegis/journal",
        "exports_db": "/srv/aegis/exports.db",
        "audit_key": "/srv/aegis/audit.key",
        "doors": "",
    }


def test_without_it_the_xdg_directories_decide() -> None:
    paths = Paths.find(
        {"XDG_CONFIG_HOME": "/c", "XDG_STATE_HOME": "/s", "XDG_RUNTIME_DIR": "/r", "HOME": "/home/a", "AEGIS_HOME": ""}
    )
    assert (paths.config, paths.socket, paths.audit_db) == (
        "/c/aegis/aegis.yaml",
        "/r/aegis/aegis.sock",
        "/s/aegis/audit.db",
    )


def test_without_xdg_the_home_directory_decides() -> None:
    paths = Paths.find({"HOME": "/home/a", "XDG_RUNTIME_DIR": "relative/is/ignored"})
    assert paths.config == "/home/a/.config/aegis/aegis.yaml"
    assert paths.socket == "/home/a/.local/state/aegis/run/aegis.sock"
    assert paths.log == "/home/a/.local/state/aegis/daemon.log"


def test_without_a_home_variable_the_user_database_decides() -> None:
    assert Paths.find({}).config.startswith(pwd.getpwuid(os.getuid()).pw_dir)


def test_the_config_variable_moves_the_config_and_the_key_beside_it() -> None:
    paths = Paths.find({"AEGIS_HOME": "/srv/aegis", "AEGIS_CONFIG": "/etc/aegis/rules.yaml"})
    assert (paths.config, paths.approver_key) == ("/etc/aegis/rules.yaml", "/etc/aegis/approver.key")
    assert paths.audit_db == "/srv/aegis/audit.db"


def test_the_socket_variable_moves_the_shims_socket_alone() -> None:
    paths = Paths.find({"AEGIS_HOME": "/srv/aegis", "AEGIS_SOCKET": "/tmp/x.sock"})
    assert (paths.socket, paths.manage_socket) == ("/tmp/x.sock", "/srv/aegis/manage.sock")


def test_relative_paths_count_from_where_the_daemon_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Paths.find({"AEGIS_HOME": "here"}).socket == str(tmp_path / "here" / "aegis.sock")


_PART = st.sampled_from(["", "/a", "/a/b/", "rel", "/run/user/7", "a/../b", "./c"])


@given(
    st.fixed_dictionaries(
        {"HOME": st.sampled_from(["/home/a", "/root"])},
        optional=dict.fromkeys(("AEGIS_HOME", "AEGIS_SOCKET", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"), _PART),
    )
)
def test_the_shim_looks_for_the_socket_and_log_where_the_daemon_puts_them(env: dict[str, str]) -> None:
    paths = Paths.find(env)
    assert wrap.socket_path(env.get("AEGIS_SOCKET", ""), env) == os.path.normpath(paths.socket)
    assert os.path.normpath(wrap.log_path(env)) == os.path.normpath(paths.log)


def test_preparing_makes_private_directories(tmp_path: Path) -> None:
    paths = Paths.find({"AEGIS_HOME": str(tmp_path / "home")})
    before = os.umask(0)
    try:
        paths.prepare()
    finally:
        os.umask(before)
    for directory in (paths.run_dir, paths.state_dir, paths.journal):
        assert os.stat(directory).st_mode & 0o777 == 0o700
    paths.prepare()


def test_a_directory_that_others_can_write_is_refused(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o777)
    with pytest.raises(PathError, match="can be written by other users; run `chmod 700"):
        Paths.find({"AEGIS_HOME": str(home)}).prepare()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a directory away")
def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    os.chown(home, 12345, 12345)
    with pytest.raises(PathError, match="belongs to uid 12345"):
        Paths.find({"AEGIS_HOME": str(home)}).prepare()


def test_a_socket_path_too_long_for_the_system_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    home = tmp_path / ("x" * SOCKET_PATH_MAX)
    with pytest.raises(PathError, match="set AEGIS_HOME to a shorter directory"):
        Paths.find({"AEGIS_HOME": str(home)}).prepare()
    assert not home.exists()
