"""`aegis mode` shows what holds and what would have been refused; it changes one word of the file, and only when it may."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest
from manage.memory import MemoryGovernor, Served, instant

from aegis_daemon.config.edit import Stuck, with_mode
from aegis_daemon.config.source import ConfigFaults
from aegis_daemon.manage import shapes

from .conftest import Aegis
from .terminal import Terminal, strip

FILE = """\
# all of it
mode: observe  # for now
agents:
  claude: {auth_token: "0123456789abcdef-secret"}
"""


@pytest.fixture
def house(home: str) -> Iterator[MemoryGovernor]:
    governor = MemoryGovernor()
    governor.mode_is = "observe"
    governor.config_is = f"{home}/aegis.yaml"
    with open(os.open(governor.config_is, os.O_WRONLY | os.O_CREAT, 0o640), "w") as file:
        file.write(FILE)
    with Served(governor, f"{home}/manage.sock"):
        yield governor


def text(house: MemoryGovernor) -> str:
    assert house.config_is is not None
    with open(house.config_is) as file:
        return file.read()


def test_the_mode_is_shown_with_its_time_its_proof_and_what_it_let_pass(house: MemoryGovernor, aegis: Aegis) -> None:
    house.would_rows = [
        shapes.WouldRow(stage="acl", rule="`agents.\x1b[31m`", count=4, agents=1, tools=2, last_at=instant(-5)),
        shapes.WouldRow(stage="policy", rule="forbidden by `no-pay`", count=1, agents=1, tools=1, last_at=instant(-9)),
    ]
    house.proof = house.proof.model_copy(update={"unseen": ("late",)})
    done = aegis("mode")
    assert done.exit_code == 0
    assert "observe, for 1m 30s (by ann)" in done.stdout
    assert "3 calls that must be refused were refused, 30s ago" in done.stdout
    assert "no call is known to which the policy `late` applies" in done.stdout
    assert "forbidden by `no-pay`" in done.stdout
    assert "\x1b" not in done.output
    assert "5 calls of the last 24 hours would have been refused" in done.stderr
    shown = json.loads(aegis("mode", "--json").stdout)
    assert (shown["mode"], shown["would"][0]["count"], shown["proof"]["calls"]) == ("observe", 4, 3)
    house.mode_is = "enforce"
    assert "rules are enforced" in aegis("mode").stdout
    assert "LAST" not in aegis("mode").stdout


def test_a_failed_proof_is_something_wrong_here_and_in_the_status(house: MemoryGovernor, aegis: Aegis) -> None:
    house.proof = shapes.ProofState(healthy=False, detail="nothing refuses tools/call of `rm`", at=instant(-1))
    done = aegis("mode")
    assert done.exit_code == 1
    assert "FAILED, so nothing is executed: nothing refuses" in done.stdout
    status = aegis("status")
    assert status.exit_code == 1
    assert "UNPROVEN" in status.stdout


def test_the_status_counts_what_would_have_been_refused(house: MemoryGovernor, aegis: Aegis) -> None:
    row = {"stage": "acl", "rule": "r", "agents": 1, "tools": 1, "last_at": instant(-5)}
    house.would_rows = [shapes.WouldRow(**row, count=1)]
    assert "1 call of the last 24 h would have been: see `aegis mode`" in aegis("status").stdout
    assert json.loads(aegis("status", "--json").stdout)["would_24h"] == 1


def test_one_word_is_changed_and_the_file_taken_up(house: MemoryGovernor, aegis: Aegis) -> None:
    done = aegis("mode", "enforce", "--yes")
    assert done.exit_code == 0
    assert text(house) == FILE.replace("observe", "enforce")
    assert house.mode_is == "enforce"
    assert "-mode: observe  # for now\n+mode: enforce  # for now" in done.stdout
    assert "3 calls that must be refused were refused" in done.stderr
    assert "2  tool_denylist" in done.stderr
    assert "secret" not in done.output
    assert sorted(os.listdir(os.path.dirname(str(house.config_is)))) == ["aegis.yaml", "manage.sock"]
    again = aegis("mode", "enforce", "--yes")
    assert again.exit_code == 0
    assert "nothing to do" in again.stderr
    back = json.loads(aegis("mode", "observe", "--yes", "--json").stdout)
    assert (back["was"], back["mode"], back["changed"], back["reloaded"]) == ("enforce", "observe", True, True)
    assert text(house) == FILE


def test_a_file_that_says_it_already_is_only_taken_up(house: MemoryGovernor, aegis: Aegis) -> None:
    with open(str(house.config_is), "w") as file:
        file.write(FILE.replace("observe", "enforce"))
    done = json.loads(aegis("mode", "enforce", "--yes", "--json").stdout)
    assert (done["changed"], done["reloaded"], house.mode_is) == (False, True, "enforce")


def test_what_is_not_proved_changes_nothing(house: MemoryGovernor, aegis: Aegis) -> None:
    house.proof = house.proof.model_copy(update={"healthy": False})
    done = aegis("mode", "enforce", "--yes")
    assert done.exit_code == 1
    assert "what must be refused is not: a call" in done.stderr
    assert text(house) == FILE


def test_a_file_that_the_daemon_refuses_after_all_is_put_back(house: MemoryGovernor, aegis: Aegis) -> None:
    house.unproven = "what must be refused is not any more"
    done = aegis("mode", "enforce", "--yes")
    assert done.exit_code == 1
    assert "the daemon refuses the file, so it was put back: what must be refused is not any more" in done.stderr
    assert text(house) == FILE


def test_agents_do_not_change_it(house: MemoryGovernor, aegis: Aegis) -> None:
    house.refusal = "the request comes from `claude` (pid 7), which is a governed agent"
    for words in (("enforce", "--yes"), ("observe", "--yes"), ("enforce", "--dry-run")):
        done = aegis("mode", *words)
        assert done.exit_code == 1
        assert "a governed agent" in done.stderr
    assert text(house) == FILE
    assert aegis("mode").exit_code == 0


def test_a_person_is_asked_and_may_say_no(house: MemoryGovernor) -> None:
    with Terminal("mode", "enforce") as terminal:
        assert "+mode: enforce" in strip(terminal.expect("make this change? [y/N]"))
        terminal.send("n\r")
        assert terminal.end() == 1
    assert text(house) == FILE


def test_nothing_is_changed_for_a_look_at_it(house: MemoryGovernor, aegis: Aegis) -> None:
    done = json.loads(aegis("mode", "enforce", "--dry-run", "--json").stdout)
    assert (done["changed"], done["reloaded"], done["proof"]["calls"]) == (False, False, 3)
    assert "+mode: enforce" in done["diff"]
    assert text(house) == FILE


def test_what_makes_no_sense_is_said(house: MemoryGovernor, aegis: Aegis) -> None:
    assert aegis("mode", "off", "--yes").exit_code == 2
    asks = aegis("mode", "enforce")
    assert asks.exit_code == 2
    assert "asks on a terminal" in asks.stderr
    house.config_is = None
    assert "has no configuration file" in aegis("mode", "enforce", "--yes").stderr


def test_without_a_daemon_nothing_is_known(home: str, aegis: Aegis) -> None:
    assert aegis("mode").exit_code == 3
    assert aegis("mode", "enforce", "--yes").exit_code == 3


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "mode: enforce\n"),
        ("agents: {}\n", "agents: {}\nmode: enforce\n"),
        ("{mode: observe, agents: {}}", '{mode: "enforce", agents: {}}'),
        ('mode: "observe"\n', "mode: enforce\n"),
        ("mode: enforce # x\n", "mode: enforce # x\n"),
    ],
)
def test_the_word_is_put_where_it_belongs(before: str, after: str) -> None:
    assert with_mode(before, "aegis.yaml", "enforce") == after


def test_a_file_that_cannot_be_changed_safely_is_left_to_a_person() -> None:
    with pytest.raises(Stuck, match="`mode` is not changed by program"):
        with_mode("x: &m observe\nmode: *m\n", "aegis.yaml", "enforce")
    with pytest.raises(ConfigFaults):
        with_mode("mode: [", "aegis.yaml", "enforce")
