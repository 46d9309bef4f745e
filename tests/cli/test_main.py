from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from manage.memory import Served
from typer.testing import CliRunner

from aegis_daemon.cli import helping, main
from aegis_daemon.cli.completion import BASH
from aegis_daemon.cli.main import COMMANDS, app

from .conftest import Aegis
from .terminal import AEGIS

READING = [
    ["status"], ["pending"], ["limits"], ["queue"], ["queue", "list"], ["backends"], ["version"], ["config", "path"],
]  # fmt: skip


def run(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*AEGIS, *words], capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL,
        env={**os.environ, **env},
    )  # fmt: skip


def test_every_command_is_in_the_help_and_has_help_of_its_own(aegis: Aegis) -> None:
    shown = aegis("--help").stdout
    for name in COMMANDS:
        assert f"\n  {name} " in shown
        done = aegis(name, "--help")
        assert done.exit_code == 0
        assert "Usage: aegis " + name in done.stdout


NEED_A_DAEMON = (
    "status|pending|pending --watch --json|limits|queue|approve K7Q2 --yes|reject K7Q2 --yes|queue cancel x|"
    "daemon reload|config show --running|backends list|backends probe x"
)


@pytest.mark.parametrize("words", [words.split() for words in NEED_A_DAEMON.split("|")])
def test_without_a_daemon_the_status_is_3_and_the_next_step_is_told(aegis: Aegis, words: list[str]) -> None:
    done = aegis(*words)
    assert done.exit_code == 3
    assert "aegis daemon start" in done.stderr
    assert done.stdout == ""


def test_a_daemon_that_does_not_run_need_not_be_stopped(aegis: Aegis) -> None:
    done = aegis("daemon", "stop")
    assert done.exit_code == 3
    assert "nothing to stop" in done.stderr
    assert "aegis daemon start" not in done.stderr


@pytest.mark.parametrize("words", ["approve", "grants revoke", "audit search", "pause", "config validate"])
def test_the_help_names_arguments_and_not_what_python_makes_of_them(aegis: Aegis, words: str) -> None:
    shown = aegis(*words.split(), "--help").stdout
    assert "Arguments:" in shown
    for ugly in ("<str>", "list[", "[[", "......"):
        assert ugly not in shown


@pytest.mark.parametrize("path", helping.EXAMPLES)
def test_an_example_in_the_help_is_a_command_with_options_that_are_there(aegis: Aegis, path: str) -> None:
    example = helping.EXAMPLES[path]
    assert f"Example: {example}\n" in aegis(*path.split(), "--help").stdout
    words = shlex.split(example)
    assert words[: 1 + len(path.split())] == ["aegis", *path.split()]
    done = aegis(*words[1:], "--help")
    assert (done.exit_code, done.stderr) == (0, "")


@pytest.mark.parametrize("group", ["audit", "agents", "config", "daemon", "policy", "tools"])
def test_the_help_of_a_group_tells_whole_sentences(aegis: Aegis, group: str) -> None:
    shown = aegis(group, "--help").stdout
    assert "..." not in shown.partition("Commands:")[2]


@pytest.mark.parametrize(
    ("words", "usage"),
    [("approve", "ID…"), ("mode", "[MODE]"), ("policy validate", "[FILE…]"), ("audit erase", "[CALL…]")],
)
def test_the_usage_line_can_be_read(aegis: Aegis, words: str, usage: str) -> None:
    assert aegis(*words.split(), "--help").stdout.startswith(f"Usage: aegis {words} [OPTIONS] {usage}\n")


@pytest.mark.parametrize("words", READING)
def test_what_is_read_is_one_json_value_on_stdout_and_nothing_on_stderr(
    served: Served, aegis: Aegis, words: list[str]
) -> None:
    done = aegis(*words, "--json")
    assert done.exit_code == 0, done.stderr
    assert isinstance(json.loads(done.stdout), list | dict)
    assert done.stdout.isascii()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["statsu"], "did you mean `aegis status`?"),
        (["frobnicate"], "no command and no file is called `frobnicate`"),
        (["status", "--frob"], "no such option: --frob"),
        (["approve"], "missing argument `ID`"),
        (["pending", "--limit", "many"], "`many` is no whole number"),
        (["pending", "--limit", "0"], "`0` is less than 1"),
        (["pending", "--since", "yesterdayish"], "`yesterdayish` is no time"),
        (["queue", "frob"], "`frob`"),
        (["daemon"], "Usage: aegis daemon"),
        ([], "Usage: aegis"),
        (["status", "extra\x1b[31m"], "\\x1b[31m"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_told_so_with_status_2(aegis: Aegis, words: list[str], told: str) -> None:
    done = aegis(*words)
    assert done.exit_code == 2
    assert told in done.stderr
    assert "\x1b" not in done.output


def test_later_options_are_not_offered_yet(aegis: Aegis) -> None:
    assert aegis("approve", "K7Q2", "--for", "15m").exit_code == 2


def test_a_configuration_file_in_place_of_a_command_runs_the_daemon(
    aegis: Aegis, home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aegis_daemon.daemon import main as daemon

    served = []
    monkeypatch.setattr(daemon, "serve", lambda path, paths, foreground: served.append((path, paths, foreground)) or 7)
    plain = os.path.join(home, "rules")
    for path in (plain, f"{home}/a.yaml", f"{home}/b.yml"):
        with open(path, "w") as file:
            file.write("mode: enforce\n")
        assert aegis(path).exit_code == 7
    assert [(str(path), paths.config, foreground) for path, paths, foreground in served] == [
        (path, path, True) for path in (plain, f"{home}/a.yaml", f"{home}/b.yml")
    ]
    assert aegis(f"{home}/missing.yaml").exit_code == 1
    assert len(served) == 3


def test_a_command_wins_over_a_file_of_its_name(aegis: Aegis, home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    with open("status", "w") as file:
        file.write("mode: enforce\n")
    assert aegis("status").exit_code == 3


def test_an_unexpected_fault_is_one_line_and_its_trace_is_for_those_who_ask(
    aegis: Aegis, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aegis_daemon.cli import link

    def broken(verb: str) -> None:
        raise ValueError("bad \x1b[31mthing")

    monkeypatch.setattr(link, "call", broken)
    done = aegis("limits")
    assert done.exit_code == 1
    assert "unexpected fault: ValueError: bad \\x1b[31mthing" in done.stderr
    monkeypatch.setenv("AEGIS_DEBUG", "1")
    assert "Traceback" in CliRunner().invoke(app, ["limits"]).stderr


def test_a_reader_that_has_enough_is_no_error(home: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {' '.join(AEGIS)} config schema | head -n 1"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "{\n", "")


def test_status_codes_leave_the_process(served: Served, home: str) -> None:
    assert run("status", "--json").returncode == 0
    served.governor.healthy = False
    assert run("status", "--json").returncode == 1
    assert run("status", "--jsno").returncode == 2
    assert run("status", AEGIS_HOME=f"{home}/elsewhere").returncode == 3
    assert run("--version").stdout.startswith("aegis ")


@pytest.mark.parametrize("module", ["typer", "aegis_daemon.cli.console", "aegis_daemon.cli.version"])
def test_an_interrupt_while_a_command_is_imported_is_quiet(module: str) -> None:
    code = (
        "import sys\n"
        "from aegis_daemon.cli import run\n"
        "class Impatient:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}: raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Impatient())\n"
        "sys.argv = ['aegis', 'version']\n"
        "run()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("words", [["status", "--json"], ["pending", "--json", "--agent", "a", "--limit", "3"],
                                   ["approve", "K7Q2", "--yes"], ["limits"], ["queue"]])  # fmt: skip
def test_quick_commands_import_nothing_heavy(served: Served, words: list[str]) -> None:
    code = (
        "import sys; from aegis_daemon.cli.main import app\n"
        f"try: app({words!r}, prog_name='aegis')\n"
        "except SystemExit: pass\n"
        "heavy = 'asyncio anyio hypothesis limits mcp pydantic rich ruamel sqlite3 sqlite_utils uvloop'.split()\n"
        "print('heavy:', *(name for name in heavy if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines()[-1] == "heavy:", done.stdout + done.stderr


def test_the_help_imports_no_command(home: str) -> None:
    code = (
        "import sys; from aegis_daemon.cli.main import app\n"
        "try: app(['--help'], prog_name='aegis')\n"
        "except SystemExit: pass\n"
        "print('commands:', *(name for name in sys.modules if name.startswith('aegis_daemon.cli.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    named = set(done.stdout.splitlines()[-1].split())
    assert named & {f"aegis_daemon.cli.{module}" for module, _ in COMMANDS.values()} == set()
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)


def test_the_shell_completes_commands_options_and_waiting_tickets(served: Served) -> None:
    from manage.memory import ticket

    served.governor.tickets += [ticket("K7Q2"), ticket("K9ZZ", tool_name="a\x1bb"), ticket("K8AA", state="approved")]

    def complete(line: str) -> list[str]:
        words = line.split(" ")
        done = run(_AEGIS_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1))
        return done.stdout.split()

    assert "pending" in complete("aegis pen")
    assert "reload" in complete("aegis daemon re")
    assert "--watch" in complete("aegis pending --")
    assert complete("aegis approve K") == ["K7Q2", "K9ZZ"]
    assert complete("aegis reject K7") == ["K7Q2"]
    assert "\x1b" not in run(_AEGIS_COMPLETE="complete_zsh", _TYPER_COMPLETE_ARGS="aegis approve K").stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not here")
def test_completion_runs_no_program_of_the_directory(tmp_path: Path) -> None:
    theirs = tmp_path / "aegis"
    theirs.write_text(f"#!/bin/sh\ntouch '{tmp_path}/ran'\n")
    theirs.chmod(0o755)
    (tmp_path / "script").write_text(BASH)
    words = ["bash", "--norc", "-c", ". ./script; COMP_WORDS=(./aegis pen); COMP_CWORD=1; _aegis_completion ./aegis"]
    done = subprocess.run(words, cwd=tmp_path, env={"PATH": "/usr/bin:/bin"}, timeout=30, check=False)
    assert done.returncode in (0, 127)  # there may be no `aegis` of ours in this PATH
    assert not (tmp_path / "ran").exists()


def test_completion_without_a_daemon_offers_nothing_and_says_nothing(home: str) -> None:
    done = run(_AEGIS_COMPLETE="complete_bash", COMP_WORDS="aegis approve K", COMP_CWORD="2")
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_the_table_names_files_that_exist_but_for_the_demo() -> None:
    folder = os.path.dirname(main.__file__)
    for module, _ in COMMANDS.values():
        assert module == "demo" or os.path.exists(f"{folder}/{module.replace('.', '/')}.py")
