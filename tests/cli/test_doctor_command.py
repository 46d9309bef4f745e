from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from manage.memory import Served, instant, ticket

from aegis_daemon import __version__
from aegis_daemon.cli import completion
from aegis_daemon.onboarding.codes import CODES

from .conftest import Aegis
from .terminal import AEGIS

CONFIG = "backends:\n  files: {}\nagents:\n  # who\n  claude-code:\n    roles: [dev]\n  'bot':\n    roles: [x]\n"


@pytest.fixture
def alone(home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No client of this machine is looked at."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "CLAUDE_CONFIG_DIR", "CODEX_HOME", "COPILOT_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_doctor_tells_what_why_and_what_to_do(aegis: Aegis, home: str, alone: Path) -> None:
    done = aegis("doctor")
    assert done.exit_code == 1
    for text in ("config-missing", "Everything is denied.", "aegis config init", f"{home}/aegis.yaml", "tier-advisory"):
        assert text in done.stdout
    rows = json.loads(aegis("doctor", "--json").stdout)
    assert {"code", "severity", "what", "why", "fix", "detail", "subject", "fixable", "fixed"} == set(rows[0])


def test_one_code_is_explained_looked_for_and_mended(aegis: Aegis, home: str, alone: Path) -> None:
    Path(home, "aegis.yaml").write_text(CONFIG)
    os.chmod(f"{home}/aegis.yaml", 0o666)
    done = aegis("doctor", "config-open")
    assert done.exit_code == 1
    assert CODES["config-open"].why in done.stdout
    assert "tier-advisory" not in done.stdout
    fixed = aegis("doctor", "config-open", "--fix", "--json")
    assert fixed.exit_code == 0
    assert [(row["code"], row["fixed"]) for row in json.loads(fixed.stdout)] == [("config-open", True)]
    assert stat.S_IMODE(os.stat(f"{home}/aegis.yaml").st_mode) == 0o644


def test_a_code_of_a_refusal_is_explained_and_an_unknown_one_gets_the_nearest(aegis: Aegis) -> None:
    done = aegis("doctor", "rate_limited")
    assert (done.exit_code, "a limit is used up" in done.stdout) == (0, True)
    wrong = aegis("doctor", "config-opne")
    assert (wrong.exit_code, "did you mean `config-open`?" in wrong.stderr) == (2, True)


def test_names_of_clients_cannot_steer_the_terminal(aegis: Aegis, alone: Path) -> None:
    bad = {"mcpServers": {"x\x1b[31m": {"command": "/gone/aegis-wrap", "args": ["--backend", "b", "--", "/bin/true"]}}}
    (alone / ".claude.json").write_text(json.dumps(bad))
    done = aegis("doctor")
    assert "client-stale" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr


def test_the_running_daemon_is_asked(served: Served, aegis: Aegis, alone: Path) -> None:
    rows = {row["code"]: row for row in json.loads(aegis("doctor", "--json").stdout)}
    assert "9.9.9" in rows["daemon-version"]["detail"]
    assert rows["daemon-elsewhere"]["subject"] == "/c/aegis.yaml"
    assert "server.listen" in rows["daemon-warns"]["detail"]
    assert "daemon-away" not in rows


def test_the_doctor_takes_less_processor_time_than_two_seconds(home: str, alone: Path) -> None:
    """What it takes of a clock depends on what else runs; processes' own time does not."""
    Path(home, "aegis.yaml").write_text(CONFIG)
    before = os.times()
    subprocess.run([*AEGIS, "doctor"], capture_output=True, timeout=60, check=False)
    after = os.times()
    assert after.children_user + after.children_system - before.children_user - before.children_system < 2.0


# --- version


def test_version_tells_programs_all_that_a_report_needs(served: Served, aegis: Aegis, home: str) -> None:
    row = json.loads(aegis("version", "--json").stdout)
    assert (row["version"], row["daemon_version"], row["daemon_running"]) == (__version__, "9.9.9", True)
    assert row["config"] == f"{home}/aegis.yaml"
    assert row["tier"] == "advisory"
    assert all(row["dependencies"].values()), row["dependencies"]
    assert row["python"] == ".".join(map(str, sys.version_info[:3]))


def test_version_without_a_daemon_says_so(aegis: Aegis, home: str) -> None:
    row = json.loads(aegis("version", "--json").stdout)
    assert (row["daemon_version"], row["daemon_running"], row["tier"]) == (None, False, "advisory")


# --- completion


def completed(line: str, **env: str) -> tuple[list[str], float]:
    """What a shell is offered, and the seconds of processor that it took."""
    before = os.times()
    words = line.split(" ")
    asks = {"_AEGIS_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(
        AEGIS, capture_output=True, text=True, env={**os.environ, **asks, **env}, timeout=60, check=True
    )
    after = os.times()
    assert done.stderr == ""
    return (
        done.stdout.split(),
        after.children_user + after.children_system - before.children_user - before.children_system,
    )


def test_names_of_agents_backends_and_grants_are_completed(served: Served, home: str) -> None:
    from aegis_daemon.manage import shapes

    Path(home, "aegis.yaml").write_text(CONFIG + "  '$(touch x)':\n    roles: [x]\n")
    served.governor.tickets.append(ticket("K7Q2"))
    served.governor.grant_rows.append(
        shapes.Grant(
            id="G-ZFBD", agent_id="bot", backend_id="files", tool_name="read", method="tools/call", rule="r",
            arguments="{}", created_at=instant(-9), expires_at=instant(99), by="ann",
            uses_left=5, from_call="c" * 32,
        )
    )  # fmt: skip
    assert completed("aegis pending --agent ")[0] == ["claude-code", "bot"]
    assert completed("aegis pause c")[0] == ["claude-code"]
    assert completed("aegis limits --backend ")[0] == ["files"]
    assert completed("aegis grants revoke ")[0] == ["G-ZFBD"]
    assert completed("aegis approve ")[0] == ["K7Q2"]
    assert "config-open" in completed("aegis doctor config-")[0]


def test_clients_and_what_can_be_undone_are_completed(home: str) -> None:
    from aegis_daemon.clients import ledger
    from aegis_daemon.clients.ledger import File, Ledger, Record

    kept = Record(
        file="/c.json", keys=("mcpServers", "gh"), name="gh", client="cursor", agent="amy", backend="gh", original={},
        original_bytes=b"{}", ours={}, change="0a1b2c3d", at=1.0,
    )  # fmt: skip
    row = File(path="/c.json", client="cursor", before="", after="", backup="", changes=("0a1b2c3d",))
    ledger.save(home, Ledger((kept,), (row,)))
    assert completed("aegis agents wire --client cur")[0] == ["cursor"]
    assert completed("aegis agents unwire --client cur")[0] == ["cursor"]
    assert completed("aegis agents show a")[0] == ["amy"]
    assert completed("aegis agents undo ")[0] == ["amy", "0a1b2c3d"]


def test_no_other_way_to_complete_is_offered(aegis: Aegis) -> None:
    assert "completion" in aegis("--help").stdout
    assert "--install-completion" not in aegis("--help").stdout


def test_a_key_press_costs_little(served: Served, home: str) -> None:
    served.governor.tickets.append(ticket("K7Q2"))
    for line in ("aegis ", "aegis approve ", "aegis pending --agent "):
        assert min(completed(line)[1] for _ in range(3)) < 0.25  # 0.1 to 0.12 s where nothing else runs


@pytest.mark.parametrize("shell", list(completion.SCRIPTS))
def test_the_script_is_installed_where_the_shell_looks_and_taken_away_again(
    aegis: Aegis, alone: Path, shell: str
) -> None:
    assert aegis("completion", shell).stdout == completion.SCRIPTS[shell]
    assert aegis("completion", shell, "--install").exit_code == 0
    row = json.loads(aegis("completion", shell, "--json").stdout)
    assert (row["installed"], Path(row["path"]).read_text()) == (True, completion.SCRIPTS[shell])
    assert aegis("completion", shell, "--remove").exit_code == 0
    assert not Path(row["path"]).exists()


def test_a_file_of_somebody_elses_is_not_replaced(aegis: Aegis, alone: Path) -> None:
    path = alone / ".local/share/bash-completion/completions/aegis"
    path.parent.mkdir(parents=True)
    path.write_text("# mine\n")
    assert aegis("completion", "bash", "--install").exit_code == 1
    assert path.read_text() == "# mine\n"


def in_shell(shell: str, script: str, bin: Path) -> str:
    program = shutil.which(shell)
    if program is None:
        pytest.fail(f"{shell} is not installed; scripts/debian does it")
    wrapper = bin / "aegis"
    wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} -m aegis_daemon.cli.main "$@"\n')
    wrapper.chmod(0o755)
    flags = {"bash": ["--norc", "-c"], "zsh": ["-f", "-c"], "fish": ["--no-config", "-c"]}[shell]
    done = subprocess.run(
        [program, *flags, script], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PATH": f"{bin}:{os.environ['PATH']}", "PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_bash_itself_completes(served: Served, tmp_path: Path) -> None:
    served.governor.tickets.append(ticket("K7Q2"))
    script = (
        completion.BASH
        + 'COMP_WORDS=(aegis approve K); COMP_CWORD=2; _aegis_completion aegis; echo "${COMPREPLY[@]}"\n'
    )
    assert in_shell("bash", script, tmp_path).split() == ["K7Q2"]


@pytest.mark.full
def test_zsh_itself_completes(served: Served, tmp_path: Path) -> None:
    served.governor.tickets.append(ticket("K7Q2", tool_name="a:b"))
    tell = (
        "_describe() { print -rl -- $found }; compdef() { : }; typeset -a words; words=(aegis approve K); CURRENT=3\n"
    )
    assert "K7Q2:claude github.a:b" in in_shell("zsh", f"{tell}{completion.ZSH}\n_aegis", tmp_path)


@pytest.mark.full
def test_fish_itself_completes(served: Served, tmp_path: Path) -> None:
    served.governor.tickets.append(ticket("K7Q2"))
    script = f"{completion.FISH}\ncomplete --do-complete 'aegis approve K'"
    assert in_shell("fish", script, tmp_path).startswith("K7Q2")
