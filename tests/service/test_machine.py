"""The isolated tier: what root makes for whom, and which configurations are none for it."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest

import aegis_daemon
from aegis_daemon.config.load import loads
from aegis_daemon.config.paths import Paths
from aegis_daemon.config.schema import Config
from aegis_daemon.core.runtime import AgentRule, BackendRule
from aegis_daemon.daemon.lifecycle import door_of
from aegis_daemon.relay.admission import Refused, plan
from aegis_daemon.service import check, machine
from aegis_daemon.service.steps import Unable
from aegis_shim.hello import Hello

PATHS = Paths.find({"AEGIS_SYSTEM": "/srv/image"})


def config(text: str) -> Config:
    return loads(text, "aegis.yaml").config


def test_everything_is_where_a_machine_keeps_it() -> None:
    paths = Paths.find({"AEGIS_SYSTEM": "1", "AEGIS_HOME": "/elsewhere", "HOME": "/h"})
    assert (paths.config, paths.state_dir, paths.run_dir) == ("/etc/aegis/aegis.yaml", "/var/lib/aegis", "/run/aegis")
    # Root's directories hold nothing that the daemon writes.
    assert all(path.startswith("/var/lib/aegis/") for path in (paths.approver_key, paths.audit_key, paths.lock))
    assert machine.root_of(paths) == ""
    assert machine.root_of(PATHS) == "/srv/image"


def test_an_agent_has_a_door_for_each_of_its_users_and_the_daemon_knows_whose_it_is() -> None:
    found = config(
        "agents: {bot: {identities: [4242]}, two: {identities: [7001, 7002]}, web: {auth_token: 0123456789abcdef}}"
    )
    doors = machine.doors(PATHS, found)
    assert [(door.agent, door.user, door.path.rpartition("/")[2]) for door in doors] == [
        ("bot", "4242", "bot.sock"),
        ("two", "7001", "two.7001.sock"),
        ("two", "7002", "two.7002.sock"),
    ]
    assert [door_of(door.path.rpartition("/")[2], found.agents) for door in doors] == ["bot", "two", "two"]
    assert door_of("v1.5.sock", {"v1.5": 0}) == "v1.5"  # an agent's own name comes first
    assert door_of("gone.sock", {}) == "gone"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("agents: {bot: {}}", "nobody can be it"),
        ("agents: {bot: {identities: [0]}}", "would be root"),
        ("backends: {x: {}}", "no agent may hand one over"),
        ("server: {listen: '127.0.0.1:18070'}", "could read the API"),
    ],
)
def test_a_configuration_that_isolates_nobody_is_refused(text: str, why: str) -> None:
    text = text if "server" in text else text + "\nserver: {listen: off}"
    (found,) = machine.faults(config(text))
    assert why in found


def test_a_user_of_the_daemons_group_is_no_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_groups", lambda uid: {"aegis"})
    (found,) = machine.faults(config("agents: {bot: {identities: [4242]}}\nserver: {listen: off}"))
    assert "in the group `aegis`" in found


def test_who_is_to_decide_is_no_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    found = config("agents: {bot: {identities: [4242]}}\nserver: {listen: off}")
    assert machine.faults(found, [4243]) == []
    (fault,) = machine.faults(found, [4242])
    assert "may approve its calls" in fault
    monkeypatch.setattr(machine, "_reachable", lambda python: python)
    uid = os.getuid() or 65534
    text = config(f"agents: {{bot: {{identities: [{uid}]}}}}\nserver: {{listen: off}}")
    with pytest.raises(Unable, match="may approve its calls"):
        machine.install(PATHS, text, b"", {}, [str(uid)])


def test_a_name_too_long_for_its_socket_is_refused_with_the_longest_that_is_not() -> None:
    with pytest.raises(Unable) as refused:
        machine.doors(PATHS, config(f"agents: {{{'a' * 120}: {{identities: [4242]}}}}"))
    most = int(refused.value.hint.rpartition(" bytes")[0].rpartition(" ")[2])
    (door,) = machine.doors(PATHS, config(f"agents: {{{'a' * most}: {{identities: [4242]}}}}"))
    assert len(door.path) == 103


def test_nothing_starts_what_isolates_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AEGIS_SYSTEM", str(tmp_path))
    path = Path(Paths.find(os.environ).config)
    path.parent.mkdir(parents=True)
    path.write_text("agents: {bot: {identities: [4242]}}\nserver: {listen: off}\n")
    assert check.main() == 0
    monkeypatch.setattr(machine, "_groups", lambda uid: {machine.ADMINS})  # somebody has made it one since
    assert check.main() == 1
    assert "may approve its calls" in capsys.readouterr().err


def test_two_agents_never_share_a_door() -> None:
    text = "agents: {bot: {identities: [4242, 4243]}, bot.4243: {identities: [4244]}}"
    with pytest.raises(Unable, match=r"`bot` and `bot\.4243` would share"):
        machine.doors(PATHS, config(text))


def test_a_directory_that_was_there_before_stays_somebodys(tmp_path: Path) -> None:
    notes = machine.Notes()
    state = tmp_path / "state"
    (step,) = machine._own_directory(str(state), 0o700, "aegis", notes)
    assert (step.step, notes.directories) == ("make", [str(state)])
    state.mkdir()
    assert machine._own_directory(str(state), 0o700, "aegis", notes)[0].step == "make"  # ours, whatever is in it

    notes = machine.Notes()
    (state / "audit.db").touch()
    assert machine._own_directory(str(state), 0o700, "aegis", notes)[0].step == "make"
    assert notes.directories == []
    (state / "other.db").touch()
    with pytest.raises(Unable, match=r"not Aegis's: other\.db"):
        machine._own_directory(str(state), 0o700, "aegis", notes)


@pytest.mark.skipif(os.getuid() != 0, reason="a directory that is root's")
def test_roots_own_directory_is_used_as_it_is(tmp_path: Path) -> None:
    etc = tmp_path / "etc"
    etc.mkdir(mode=0o755)
    (etc / "other.conf").touch()
    assert machine._own_directory(str(etc), 0o750, "root", machine.Notes())[0].step == "keep"
    etc.chmod(0o777)
    with pytest.raises(Unable, match=r"other\.conf"):
        machine._own_directory(str(etc), 0o750, "root", machine.Notes())


def test_taking_it_away_leaves_what_was_there_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = Paths.find({"AEGIS_SYSTEM": str(tmp_path)})
    monkeypatch.setattr(machine, "_known", lambda find, name: False)
    etc, state = tmp_path / "etc/aegis", Path(paths.state_dir)
    for directory in (etc, state):
        directory.mkdir(parents=True)
        (directory / "other.conf").touch()
    for path in (etc / "aegis.yaml", etc / machine.NOTES, state / "audit.db", state / "daemon.log.1"):
        path.touch()
    (state / "journal").mkdir()
    (etc / machine.NOTES).write_bytes(b'{"config": true}')
    for step in machine.uninstall(paths, purge=True):
        assert step.do is not None
        step.do()
    assert [path.name for path in (*etc.iterdir(), *state.iterdir())] == ["other.conf", "other.conf"]


def test_the_first_configuration_is_one_for_the_tier_and_allows_nothing() -> None:
    found = config(machine.first_config({"claude-code": 4242, "on": 4243}))
    assert machine.faults(found) == []
    assert {name: agent.identities for name, agent in found.agents.items()} == {"claude-code": (4242,), "on": (4243,)}
    assert not any(agent.backends for agent in found.agents.values())
    assert machine.faults(config(machine.first_config({}))) == []


def test_an_interpreter_that_others_cannot_reach_is_refused(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "python").touch(mode=0o755)
    with pytest.raises(Unable, match="is closed to it"):
        machine._reachable(str(closed / "python"))


@pytest.mark.skipif(os.getuid() != 0, reason="a directory that is root's")
def test_an_interpreter_that_others_could_change_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as home:  # below `/tmp`, which is open to all and keeps what is root's
        os.chmod(home, 0o755)
        python, module = Path(home, "bin/python"), Path(home, "aegis_shim/module.py")
        for path in (python, module, Path(home, "aegis_daemon/module.py")):
            path.parent.mkdir(mode=0o755)
            path.touch(mode=0o755)
        monkeypatch.setattr(aegis_daemon, "__path__", [f"{home}/aegis_daemon"])
        monkeypatch.setattr(machine, "_imports", lambda: ())
        for name in ("prefix", "base_prefix"):
            monkeypatch.setattr(sys, name, home)
        assert machine._reachable(str(python)) == str(python)
        for path, owner, mode in ((python, 65534, 0o755), (module, 65534, 0o755), (module, 0, 0o775)):
            os.chown(path, owner, owner)
            path.chmod(mode)
            with pytest.raises(Unable, match=f"others than root could change .*`{path}`"):
                machine._reachable(str(python))
            os.chown(path, 0, 0)
            path.chmod(0o755)


def test_a_user_that_is_not_there_is_said_so() -> None:
    assert machine.uid_of(str(os.getuid())) == os.getuid()
    with pytest.raises(Unable, match="no user `nobody-of-that-name`"):
        machine.uid_of("nobody-of-that-name")


# --- whoever comes through a door is its agent, whatever it says ----------------------------------------------------


def test_a_greeting_at_a_door_cannot_speak_for_another_agent() -> None:
    from aegis_daemon.config.runtime import build

    text = "agents: {bot: {identities: [4242]}, ann: {identities: [4242]}}"
    runtime = build(config(text), "d")
    assert all(isinstance(rule, AgentRule) for rule in runtime.agents.values())
    assert not any(isinstance(rule, BackendRule) for rule in runtime.agents.values())
    for said in ("bot", "default"):
        assert plan(Hello(said, "x"), 4242, 1, runtime, {}, door="bot").principal.agent == "bot"
    with pytest.raises(Refused, match="this socket is the agent `bot`'s"):
        plan(Hello("ann", "x"), 4242, 1, runtime, {}, door="bot")
    with pytest.raises(Refused, match="uid 4343 may not be the agent `bot`"):
        plan(Hello("bot", "x"), 4343, 1, runtime, {}, door="bot")
    # Without a door of its own it is who it says, as before.
    assert plan(Hello("ann", "x"), 4242, 1, runtime, {}).principal.agent == "ann"
