"""A daemon is found, or named, by whoever has another XDG_RUNTIME_DIR than it: a login, `su`, cron, a container."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aegis_daemon.config import whereabouts
from aegis_daemon.config.paths import Paths

BIN = Path(sys.executable).parent
COUNTING = Path(__file__).parents[1] / "e2e/counting.py"
RULES = "server: {listen: off}\nbackends: {work: {}}\nagents: {default: {backends: {work: {allowed: true}}}}\n"
ASK = '{"jsonrpc":"2.0","id":1,"method":"ping"}\n'


class House:
    """A home whose sessions have a runtime directory each, or none."""

    def __init__(self, directory: Path) -> None:
        self.dir = directory
        self.state = directory / ".local/state/aegis"
        for name in ("one", "two"):
            (directory / name).mkdir(mode=0o700)
        config = directory / ".config/aegis/aegis.yaml"
        config.parent.mkdir(parents=True, mode=0o700)
        config.write_text(RULES)
        config.chmod(0o600)

    def env(self, runtime: str = "") -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("AEGIS_", "XDG_", "DBUS_"))}
        return kept | {"HOME": str(self.dir)} | ({"XDG_RUNTIME_DIR": str(self.dir / runtime)} if runtime else {})

    def run(self, program: str, *words: str, runtime: str = "", said: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / program), *words], env=self.env(runtime), cwd=self.dir, input=said, capture_output=True,
            text=True, timeout=120, check=False,
        )  # fmt: skip

    def aegis(self, *words: str, runtime: str = "") -> subprocess.CompletedProcess[str]:
        return self.run("aegis", *words, runtime=runtime)

    def agent(self, runtime: str, *options: str) -> dict[str, Any]:
        """What a wrapped server's client is answered."""
        words = [*options, "--", sys.executable, "-I", "-S", str(COUNTING), "/dev/null"]
        done = self.run("aegis-wrap", "--backend", "work", *words, runtime=runtime, said=ASK)
        return dict(json.loads(done.stdout.splitlines()[0]))

    def started(self, runtime: str = "") -> int:
        done = self.aegis("daemon", "start", runtime=runtime)
        assert done.returncode == 0, done.stderr
        return self.holder()

    def holder(self) -> int:
        """The process that has the log open; 0 for none."""
        return int((self.state / "journal/lock").read_text() or 0)


@pytest.fixture
def house() -> Iterator[House]:
    made = House(Path(tempfile.mkdtemp(prefix="au", dir="/tmp")))
    yield made
    if (made.state / "journal/lock").exists() and (pid := made.holder()):
        end(pid)
    shutil.rmtree(made.dir)


def end(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + 30
    while alive(pid):
        assert time.monotonic() < until, "it did not end"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return False


@pytest.mark.parametrize(("its", "mine"), [("", "one"), ("one", ""), ("one", "two")])
def test_it_is_reached_where_the_runtime_directory_is_another(house: House, its: str, mine: str) -> None:
    pid = house.started(its)
    assert stat.S_IMODE((house.state / "daemon.at").stat().st_mode) == 0o600

    assert "error" not in house.agent(mine, "--no-autostart")
    shown = json.loads(house.aegis("status", "--json", runtime=mine).stdout)
    assert shown["pid"] == pid
    again = house.aegis("daemon", "start", runtime=mine)
    assert (again.returncode, f"runs already (process {pid})" in again.stderr) == (0, True), again.stderr
    found = {row["code"]: row for row in json.loads(house.aegis("doctor", "--json", runtime=mine).stdout)}
    assert found["runtime-elsewhere"]["severity"] == "note"
    assert not found.keys() & {"daemon-away", "http-unserved", "daemon-deaf"}
    assert "runtime-elsewhere" not in house.aegis("doctor", "--json", runtime=its).stdout

    assert house.aegis("daemon", "restart", runtime=mine).returncode == 0
    assert alive(new := house.holder())
    assert new != pid
    assert json.loads(house.aegis("status", "--json", runtime=its).stdout)["pid"] == new
    stopped = house.aegis("daemon", "stop", runtime=its)
    assert stopped.returncode == 0, stopped.stderr
    assert not (house.state / "daemon.at").exists()
    assert house.aegis("status", runtime=mine).returncode == 3


def test_entries_that_name_another_runtime_directory_or_none_are_not_stale(house: House) -> None:
    client = house.dir / ".cursor/mcp.json"
    client.parent.mkdir()
    entry = {"command": sys.executable, "args": ["-I", "-S", str(COUNTING), "/dev/null"]}
    client.write_text(json.dumps({"mcpServers": {"work": entry}}, indent=4))
    before = client.read_bytes()
    for its, mine in (("", "one"), ("one", "")):
        wired = house.aegis("agents", "wire", "--client", "cursor", "--yes", runtime=its)
        assert wired.returncode == 0, wired.stderr
        rows = json.loads(house.aegis("agents", "list", "--json", runtime=mine).stdout)
        (row,) = (one for one in rows if one["server"] == "work")
        assert row["state"] == "wired", row
        assert house.aegis("agents", "unwire", "--yes", runtime=mine).returncode == 0
        assert client.read_bytes() == before


def test_one_whose_sockets_are_gone_is_named_and_nothing_is_removed_under_it(house: House) -> None:
    pid = house.started("one")
    shutil.rmtree(house.dir / "one")  # as a login's is, with its last session
    (house.dir / "one").mkdir(mode=0o700)
    told = f"process {pid} has `{house.state}/journal` open"
    for words in (("status",), ("daemon", "stop"), ("daemon", "reload"), ("pending",)):
        done = house.aegis(*words, runtime="two")
        assert done.returncode != 0
        for text in (told, f"`kill {pid}`", str(house.dir / "one/aegis"), str(house.dir / "two")):
            assert text in done.stderr, (words, done.stderr)
    started = house.aegis("daemon", "start")
    assert (started.returncode, told in started.stderr) == (1, True), started.stderr
    assert "XDG_RUNTIME_DIR is not set here" in started.stderr
    refused = house.agent("two")["error"]["message"]
    assert f"process {pid} keeps" in refused, refused
    found = {row["code"]: row for row in json.loads(house.aegis("doctor", "--json").stdout)}
    assert f"process {pid}" in found["daemon-out-of-reach"]["detail"]
    assert not found.keys() & {"daemon-away", "http-unserved"}

    now = {path.name for path in house.state.iterdir()}
    for words in (("uninstall", "--purge", "--yes"), ("uninstall", "--yes"), ("uninstall", "--purge", "--dry-run")):
        kept = house.aegis(*words, runtime="two")
        assert (kept.returncode, told in kept.stderr, f"`kill {pid}`" in kept.stderr) == (1, True, True), kept.stderr
    assert now <= {path.name for path in house.state.iterdir()}
    assert alive(pid)
    end(pid)
    done = house.aegis("uninstall", "--purge", "--yes", runtime="two")
    assert done.returncode == 0, done.stderr
    assert not house.state.exists()


def test_uninstall_ends_one_that_is_elsewhere_and_takes_its_sockets_with_it(house: House) -> None:
    pid = house.started("one")
    done = house.aegis("uninstall", "--purge", "--yes")
    assert done.returncode == 0, done.stderr
    assert not alive(pid)
    assert not house.state.exists()
    assert not list((house.dir / "one").iterdir())


def test_what_it_says_counts_only_as_our_own_and_where_somebody_listens(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.state.mkdir(parents=True, mode=0o700)
    paths = Paths.find(house.env("one"))
    there = Paths.find(house.env("two"))
    (house.dir / "two/aegis").mkdir(mode=0o700)
    whereabouts.write(there)
    assert whereabouts.said(paths) == there
    assert whereabouts.elsewhere(paths) is None, "nobody listens there"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(there.manage_socket)
        listener.listen()
        assert whereabouts.elsewhere(paths) == there
        with monkeypatch.context() as patch:
            patch.setattr(whereabouts, "_uid_of", lambda connection: os.geteuid() + 1)
            assert whereabouts.elsewhere(paths) is None, "somebody else listens there now"
        note = house.state / "daemon.at"
        note.chmod(0o666)
        assert whereabouts.said(paths) is None, "anybody could have written it"
        note.unlink()
        note.symlink_to(house.dir / "elsewhere")
        assert whereabouts.said(paths) is None
        note.unlink()
        os.mkfifo(note, 0o600)
        assert whereabouts.said(paths) is None
        note.unlink()
        for text in (b"", b"/a\n", b"a\nb\n", b"/a\n/b\n/c\n", b"/a\n/b"):
            note.write_bytes(text)
            assert whereabouts.said(paths) is None, text
