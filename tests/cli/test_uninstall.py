"""Taking Aegis away: everything is listed first, agents are as they were, and nothing is left in a home."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from aegis_daemon.service import units

AEGIS = str(Path(sys.executable).with_name("aegis"))


COUNTING = Path(__file__).parents[1] / "e2e/counting.py"


class House:
    """A home with one client, and a runtime directory."""

    def __init__(self, directory: Path) -> None:
        self.dir = directory
        (directory / "run").mkdir(mode=0o700)
        self.client = directory / ".cursor/mcp.json"
        self.client.parent.mkdir()
        words = json.dumps(["-I", "-S", str(COUNTING), "/dev/null"])
        entry = f'{{"command":  {json.dumps(sys.executable)}, "args": {words}}}'
        self.client.write_text(f'{{\n\t"mcpServers": {{"work": {entry}}}\n}}\n')
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("AEGIS_", "XDG_", "DBUS_"))}
        self.env |= {"HOME": str(directory), "XDG_RUNTIME_DIR": str(directory / "run")}

    def aegis(self, *words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [AEGIS, *words], env={**self.env, **(env or {})}, cwd=self.dir, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def tree(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.dir)): path.read_bytes() if path.is_file() else b""
            for path in self.dir.rglob("*")
        }


@pytest.fixture
def house() -> Iterator[House]:
    made = House(Path(tempfile.mkdtemp(prefix="au", dir="/tmp")))
    yield made
    made.aegis("daemon", "stop")
    shutil.rmtree(made.dir)


def test_everything_is_listed_then_gone_and_the_home_is_as_it_was(house: House) -> None:
    before = house.tree()
    assert house.aegis("config", "init").returncode == 0
    wired = house.aegis("agents", "wire", "--client", "cursor", "--yes")
    assert "aegis-wrap" in house.client.read_text(), wired.stderr
    assert house.aegis("daemon", "start").returncode == 0
    assert house.aegis("daemon", "install").returncode == 1  # no manager answers for this home
    found = json.loads(house.aegis("status", "--json").stdout)

    until = time.monotonic() + 30
    while not (house.dir / ".config/aegis/audit.key.signed").exists():  # the last that its first checkpoint writes
        assert time.monotonic() < until
        time.sleep(0.05)
    now = house.tree()
    refused = house.aegis("uninstall", "--purge")
    assert (refused.returncode, "--yes" in refused.stderr) == (2, True)
    shown = house.aegis("uninstall", "--purge", "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert set(house.tree()) == set(now)
    for told in (str(house.client), f"process {found['pid']}", ".config/aegis", ".local/state/aegis", units.SERVICE):
        assert told in shown.stderr, told

    done = house.aegis("uninstall", "--purge", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    assert all(row["done"] for row in json.loads(done.stdout) if row["step"] != "stop")
    assert house.tree() == before
    stat = Path(f"/proc/{found['pid']}/stat")
    assert not stat.exists() or stat.read_bytes().rpartition(b")")[2].split()[0] == b"Z"
    again = house.aegis("uninstall", "--purge", "--yes")
    assert again.returncode == 0, again.stderr


def test_without_purge_the_log_and_the_rules_stay(house: House) -> None:
    assert house.aegis("config", "init").returncode == 0
    wired = house.aegis("agents", "wire", "--client", "cursor", "--yes")
    assert "aegis-wrap" in house.client.read_text(), wired.stderr
    assert house.aegis("daemon", "start").returncode == 0
    done = house.aegis("uninstall", "--yes")
    assert done.returncode == 0, done.stderr
    assert "--purge" in done.stderr
    assert "aegis-wrap" not in house.client.read_text()
    assert (house.dir / ".config/aegis/aegis.yaml").exists()
    assert house.aegis("audit", "verify").returncode == 0
    assert house.aegis("status").returncode == 3


def test_in_a_directory_that_somebody_chose_only_what_is_ours_goes(house: House) -> None:
    chosen = house.dir / "chosen"
    chosen.mkdir()
    (chosen / "journal.txt").write_text("mine")
    rules = house.dir / "src/aegis/rules.yaml"  # a directory of that name, and not ours
    rules.parent.mkdir(parents=True)
    rules.write_text("server: {listen: off}\n")
    (rules.parent / "main.c").write_text("mine")
    env = {"AEGIS_HOME": str(chosen), "AEGIS_CONFIG": str(rules)}
    assert house.aegis("daemon", "start", env=env).returncode == 0
    done = house.aegis("uninstall", "--purge", "--yes", env=env)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in chosen.iterdir()] == ["journal.txt"]
    assert [path.name for path in rules.parent.iterdir()] == ["main.c"]


def test_nothing_of_a_persons_goes_where_everything_shares_the_home(house: House) -> None:
    mine = ("backups/letter.txt", "secrets/diary", "journal/2026.md", "Documents/a.odt", "mykey.pem", "daemon.log.txt")
    for name in mine:
        path = house.dir / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    (house.dir / "audit.key").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    text = f"audit: {{db_path: {house.dir}/Documents, key_file: {house.dir}/mykey.pem}}\nserver: {{listen: off}}\n"
    (house.dir / "aegis.yaml").write_text(text)
    before = house.tree()
    done = house.aegis("uninstall", "--purge", "--yes", env={"AEGIS_HOME": str(house.dir)})
    assert done.returncode == 0, done.stderr
    gone = before.keys() - house.tree().keys()
    assert gone <= {"aegis.yaml", "run"}, gone
    for name in ("Documents", "mykey.pem"):
        assert f"{house.dir}/{name} stays" in done.stderr


def test_of_a_directory_that_somebody_chose_everything_of_ours_goes(house: House) -> None:
    chosen = house.dir / "chosen"
    chosen.mkdir()
    env = {"AEGIS_HOME": str(chosen)}
    assert house.aegis("config", "init", env=env).returncode == 0
    wired = house.aegis("agents", "wire", "--client", "cursor", "--yes", env=env)
    assert "aegis-wrap" in house.client.read_text(), wired.stderr
    assert house.aegis("daemon", "start", env=env).returncode == 0
    done = house.aegis("uninstall", "--purge", "--yes", env=env)
    assert done.returncode == 0, done.stderr
    assert not chosen.exists(), list(chosen.rglob("*"))


def test_a_linked_state_directory_loses_what_is_ours_and_the_link(house: House) -> None:
    disk = house.dir / "disk"
    disk.mkdir()
    state = house.dir / ".local/state/aegis"
    state.parent.mkdir(parents=True)
    state.symlink_to(disk)
    (house.dir / ".config/aegis").mkdir(parents=True)
    (house.dir / ".config/aegis/aegis.yaml").write_text("server: {listen: off}\n")
    assert house.aegis("daemon", "start").returncode == 0
    (disk / "mine.txt").write_text("mine")
    done = house.aegis("uninstall", "--purge", "--yes")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in disk.rglob("*")] == ["mine.txt"]
    assert not (house.dir / ".config").exists()
    assert state.is_symlink()  # something is behind it


def test_a_broken_file_blocks_only_where_something_in_it_was_wired(house: House) -> None:
    assert house.aegis("config", "init").returncode == 0
    house.aegis("agents", "wire", "--client", "cursor", "--yes")
    wired = house.client.read_bytes()
    assert b"aegis-wrap" in wired
    other = house.dir / ".gemini/settings.json"
    other.parent.mkdir()
    other.write_text('{"mcpServers": ')
    house.client.write_text('{"mcpServers": ')
    stays = house.aegis("uninstall", "--purge", "--yes")
    assert stays.returncode == 1
    assert f"`work` in `{house.client}`" in stays.stderr
    assert "gemini" not in stays.stderr.partition("error:")[2]
    assert (house.dir / ".local/state/aegis/wired.json").exists()

    house.client.write_bytes(wired)
    done = house.aegis("uninstall", "--purge", "--yes")
    assert done.returncode == 0, done.stderr
    assert ".gemini/settings.json" in done.stderr
    assert done.stderr.count(str(house.client)) == 1  # told once
    assert not (house.dir / ".local/state/aegis").exists()
    assert other.read_text() == '{"mcpServers": '


def test_what_completes_in_the_shell_goes_as_well(house: House) -> None:
    before = house.tree()
    for shell in ("bash", "zsh", "fish"):
        assert house.aegis("completion", shell, "--install").returncode == 0
    assert house.aegis("uninstall", "--purge", "--yes").returncode == 0
    assert house.tree() == before


@pytest.mark.skipif(sys.platform != "linux", reason="the process table is read from /proc")
def test_an_agents_shell_does_not_take_it_away(house: House) -> None:
    """The shell that started a live shim is a governed agent, and so is all that it starts."""
    (house.dir / ".config/aegis").mkdir(parents=True)
    (house.dir / ".config/aegis/aegis.yaml").write_text("server: {listen: off}\nbackends: {work: {}}\n")
    (house.dir / "own.yaml").write_text("server: {listen: off}\n")
    assert house.aegis("daemon", "start").returncode == 0
    wrap = f"{Path(AEGIS).parent}/aegis-wrap"
    script = f"""
        mkfifo in; exec 3<>in
        {wrap} --backend work -- cat <in >/dev/null & shim=$!
        until {AEGIS} status --json | grep -q '"shim_pid":'$shim; do sleep 0.1; done
        for words in "uninstall --purge --yes" "daemon stop" "daemon restart --config own.yaml" "daemon reload" \\
            "daemon install --config own.yaml"; do {AEGIS} $words; echo "$words: $?"; done
        kill $shim
    """
    done = subprocess.run(
        ["bash", "-c", script], env=house.env, cwd=house.dir, capture_output=True, text=True, timeout=120, check=False
    )
    said = [line for line in done.stdout.splitlines() if ": " in line]
    assert len(said) == 5, (done.stdout, done.stderr)
    assert all(line.endswith(": 1") for line in said), (said, done.stderr)
    assert done.stderr.count("governed agent") == 5
    assert not (house.dir / ".config/systemd").exists()
    assert (house.dir / ".config/aegis/aegis.yaml").exists()
    assert house.aegis("status").returncode == 0


def test_what_only_looks_like_ours_stays_in_a_home_that_everything_shares(house: House) -> None:
    mine = {
        "secrets/gh.token": "mine", "secrets/gh.authorization": "mine", "journal/lock": "build", "journal/shed": "notes",
        "journal/seg-000001.jnl": "a poem", "audit.key.pub": "pub", "audit.key.signed": "paper", "audit.key.next": "x",
        "backups/site-deadbeef.20240101T000000Z": "site",
    }  # fmt: skip
    for name, text in mine.items():
        (house.dir / name).parent.mkdir(exist_ok=True)
        (house.dir / name).write_text(text)
    tables = {"people.db": "records(id, hash)", "state.db": "tickets(id, title)", "exports.db": "cursors(id, seq)"}
    for name, table in tables.items():
        with closing(sqlite3.connect(house.dir / name)) as db:
            db.execute(f"CREATE TABLE {table}")
    (house.dir / "aegis.yaml").write_text(
        f"audit: {{db_path: {house.dir}/people.db}}\nserver: {{listen: off}}\n"
        "backends: {gh: {url: 'https://e.example/mcp', headers: {Authorization: '${file:secrets/gh.authorization}'}}}\n"
    )
    before = house.tree()
    done = house.aegis("uninstall", "--purge", "--yes", env={"AEGIS_HOME": str(house.dir)})
    assert done.returncode == 0, done.stderr
    assert before.keys() - house.tree().keys() <= {"aegis.yaml", "run"}


def test_a_projects_file_in_which_nothing_was_wired_stays_as_it_is(house: House) -> None:
    project = house.dir / "project"
    project.mkdir()
    theirs = project / ".mcp.json"
    theirs.write_text('{"mcpServers":{"x":{"command":"aegis-wrap","args":["--","/bin/true"]}}}')
    before = theirs.read_bytes()
    done = subprocess.run(
        [AEGIS, "uninstall", "--yes"], env=house.env, cwd=project, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert theirs.read_bytes() == before


def test_a_directory_that_stays_or_was_never_ours_is_not_said_to_go(house: House) -> None:
    other = house.dir / ".config/other"
    other.mkdir(parents=True)
    (other / "mine").write_text("mine")
    assert house.aegis("config", "init").returncode == 0
    above, state = f"remove {house.dir}/.config ", f"remove {house.dir}/.local "
    shown = house.aegis("uninstall", "--purge", "--dry-run")
    done = house.aegis("uninstall", "--purge", "--yes")
    assert done.returncode == 0, done.stderr
    assert (other / "mine").exists()
    assert above not in shown.stderr + done.stderr
    (house.dir / ".local/state").mkdir(parents=True)  # as a machine has them
    for again in (house.aegis("uninstall", "--purge", "--dry-run"), house.aegis("uninstall", "--purge", "--yes")):
        assert again.returncode == 0, again.stderr
        assert (above in again.stderr, state in again.stderr) == (False, False), again.stderr
    assert (house.dir / ".local/state").is_dir()
