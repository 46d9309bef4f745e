from __future__ import annotations

import logging
import os
import stat
import tempfile
import threading
import time
from pathlib import Path

import pytest
from manage.memory import MemoryGovernor, Served

from aegis_daemon.config import whereabouts
from aegis_daemon.config.paths import Paths
from aegis_daemon.core.principal import Principal
from aegis_daemon.core.runtime import AgentRule
from aegis_daemon.daemon.lifecycle import (
    AlreadyRunning,
    Lock,
    Plain,
    in_group,
    own_log,
    secret_key,
    socket_mode,
    take_over,
)


def test_the_secret_key_is_made_once_and_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "approver.key"
    key = secret_key(path)
    assert len(key) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert secret_key(path) == key
    assert os.listdir(tmp_path) == ["approver.key"]


def test_the_log_is_never_opened_through_a_link(tmp_path: Path) -> None:
    aim = tmp_path / "cron.d"
    (tmp_path / "daemon.log").symlink_to(aim)
    with pytest.raises(OSError, match="symbolic links"):
        own_log(str(tmp_path / "daemon.log"))
    assert not aim.exists()


def test_who_is_in_a_group_is_known_by_uid_and_nobody_without_a_name_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getgrouplist", lambda name, gid: [gid, 4242])
    assert in_group(0, 4242)
    assert not in_group(0, 4243)
    assert not in_group(4_000_000_001, 4242)


def test_a_log_that_is_a_pipe_keeps_no_daemon_waiting(tmp_path: Path) -> None:
    path = tmp_path / "daemon.log"
    os.mkfifo(path)
    with pytest.raises(OSError, match="No such device"):
        own_log(str(path))
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(OSError, match="no file"):
            own_log(str(path))
    finally:
        os.close(reader)


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


def test_a_daemon_does_not_give_way_to_what_a_governed_agent_starts() -> None:
    with tempfile.TemporaryDirectory(prefix="aegis-") as home:
        paths = Paths.find({"AEGIS_HOME": home})
        Path(paths.approver_key).write_text("the right key", encoding="ascii")
        held = Lock(Path(paths.lock))
        governor = MemoryGovernor()
        governor.refusal = "the request comes from `bot`"
        with (
            Served(governor, paths.manage_socket),
            pytest.raises(AlreadyRunning, match=r"give way: .* comes from `bot`"),
        ):
            take_over(paths)
        held.release()
    assert [key for _, key in governor.asked] == [None], "it is judged by who asks"


def test_a_daemon_with_another_runtime_directory_gives_way_to_the_services_too() -> None:
    with tempfile.TemporaryDirectory(prefix="aegis-") as home:
        ours, its = (Paths.find({"HOME": home, "XDG_RUNTIME_DIR": f"{home}/{name}"}) for name in ("ours", "its"))
        for paths in (ours, its):
            paths.prepare()
        whereabouts.write(its)
        held = Lock(Path(its.lock))
        governor = MemoryGovernor()

        def ends() -> None:
            until = time.monotonic() + 20
            while governor.stopped is None and time.monotonic() < until:
                time.sleep(0.01)
            held.release()

        with Served(governor, its.manage_socket):
            ending = threading.Thread(target=ends)
            ending.start()
            take_over(ours).release()
            ending.join()
        assert governor.stopped is True, "as for a restart: its sessions come back"
