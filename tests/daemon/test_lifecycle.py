from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

import pytest

from aegis_daemon.core.principal import Principal
from aegis_daemon.core.runtime import AgentRule
from aegis_daemon.daemon.lifecycle import Lock, Plain, secret_key, socket_mode


def test_the_secret_key_is_made_once_and_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "approver.key"
    key = secret_key(path)
    assert len(key) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert secret_key(path) == key
    assert os.listdir(tmp_path) == ["approver.key"]


def test_an_empty_key_file_is_no_key_that_anybody_could_show(tmp_path: Path) -> None:
    path = tmp_path / "approver.key"
    path.touch(0o600)
    key = secret_key(path)
    assert len(key) == 64
    assert path.read_text(encoding="ascii").strip() == key


def test_a_key_that_others_can_read_or_brought_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "approver.key"
    secret_key(path)
    path.chmod(0o644)
    with pytest.raises(PermissionError, match="chmod 600"):
        secret_key(path)
    if os.geteuid() == 0:
        path.chmod(0o600)
        os.chown(path, 1234, 1234)
        with pytest.raises(PermissionError, match="chown"):
            secret_key(path)


def test_a_lock_overwrites_nothing_that_a_link_points_at(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("x", encoding="ascii")
    (tmp_path / "daemon.lock").symlink_to(precious)
    with pytest.raises(OSError, match="symbolic"):
        Lock(tmp_path / "daemon.lock")
    assert precious.read_text(encoding="ascii") == "x"


def test_a_log_line_cannot_be_forged_by_a_name() -> None:
    name = "x\n2026-11-21 15:00:00,000 INFO aegis: ready\x1b[2J\u202e\udcff"
    record = logging.LogRecord("aegis", logging.INFO, "", 0, "session of `%s`", (name,), None)
    text = Plain("INFO %(message)s").format(record)
    assert text == "INFO session of `x\n    2026-11-21 15:00:00,000 INFO aegis: ready\\x1b[2J\\u202e\\udcff`"


def test_the_socket_opens_to_others_once_any_agent_is_another_users() -> None:
    ours, named, theirs = (AgentRule(Principal("a"), uids) for uids in (None, frozenset([7]), frozenset([7, 1234])))
    assert socket_mode([], 7) == 0o600
    assert socket_mode([ours, named], 7) == 0o600
    assert socket_mode([ours, theirs], 7) == 0o666
