"""Each code of the doctor is planted once and found, and a sound installation has none of them."""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import json
import os
import shutil
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from audit.logging_by_hand import change, fill, fill_store, opened

from aegis_daemon.clients import files, ledger
from aegis_daemon.clients.ledger import File, Ledger, Record
from aegis_daemon.clients.standing import Here
from aegis_daemon.config.load import digest, load
from aegis_daemon.config.paths import Paths
from aegis_daemon.onboarding import doctor
from aegis_daemon.onboarding.checks import clients, install, log, machine, programs
from aegis_daemon.onboarding.codes import CODES
from aegis_daemon.onboarding.scene import Finding, Scene, Service, Settings

CONFIG = "backends:\n  files: {}\nagents:\n  claude-code:\n    backends:\n      files: {allowed: true}\n"
SERVER = {"command": "/bin/echo", "args": ["files"]}


class House:
    """A home with one wired client, and what the daemon would say of itself."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.patch = monkeypatch
        self.bin = root / "of-the-shell"
        self.bin.mkdir()
        self.wrapper = self.program("aegis-wrap")
        self.env = {"HOME": str(root), "AEGIS_HOME": str(root / "a"), "PATH": f"{self.bin}:/usr/bin:/bin"}
        self.paths = Paths.find(self.env)
        for path in (self.paths.state_dir, self.paths.journal):
            os.makedirs(path, mode=0o700, exist_ok=True)
        self.config(CONFIG)
        self.claude = root / ".claude.json"
        self.entries({"files": self.wired()})
        self.scene = Scene(
            paths=self.paths, env=self.env, settings=Settings(self.paths.config, self.env), home=root, cwd=None, version="1.2.3", python=sys.executable,
            here=Here(self.wrapper, env={"AEGIS_HOME": self.env["AEGIS_HOME"]}), now=time.time(), status=self.status(),
            ephemeral=("/uv/archive-v0/",),
        )  # fmt: skip

    def program(self, name: str, text: str = "exit 0") -> str:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return str(path)

    def config(self, text: str, mode: int = 0o600) -> None:
        Path(self.paths.config).write_text(text)
        os.chmod(self.paths.config, mode)

    def status(self, **more: Any) -> dict[str, Any]:
        """What a daemon says that has read the file."""
        return {
            "version": "1.2.3", "tier": "advisory", "mode": "enforce", "config": self.paths.config, "warnings": [],
            "config_digest": digest(load(self.paths.config, self.env).config), "paused": [],
            "proof": {"healthy": True, "detail": ""}, "audit": {"healthy": True, "detail": "", "tampered": ""}, **more,
        }  # fmt: skip

    def wired(self, *words: str, backend: str = "files", **more: Any) -> dict[str, Any]:
        command = list(words) or [SERVER["command"], *SERVER["args"]]
        args = ["--agent", "claude-code", "--backend", backend, "--", *command]
        return {"command": self.wrapper, "args": args, "env": {"AEGIS_HOME": self.env["AEGIS_HOME"]}, **more}

    def entries(self, servers: dict[str, Any], path: Path | None = None, **more: Any) -> Path:
        path = path or self.claude
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"mcpServers": servers, **more}))
        return path

    def wire(self, *command: str) -> None:
        """An entry as a person had it wired."""
        self.entries({"files": self.wired(*command)})
        self.record(ours=self.wired(*command))

    def record(self, name: str = "files", ours: dict[str, Any] | None = None) -> None:
        """The ledger says that the entry was wired by us."""
        kept = Record(
            file=str(self.claude), keys=("mcpServers", name), name=name, client="claude-code", agent="claude-code",
            backend=name, original=SERVER, original_bytes=json.dumps(SERVER).encode(), ours=ours or self.wired(),
            change="c", at=1.0,
        )  # fmt: skip
        row = File(path=str(self.claude), client="claude-code", before="", after="", backup="", changes=("c",))
        ledger.save(self.paths.state_dir, Ledger((kept,), (row,)))

    def with_(self, **changes: Any) -> None:
        self.scene = dataclasses.replace(self.scene, **changes)

    def store(self) -> str:
        shutil.rmtree(self.paths.journal)

        async def write() -> None:
            with opened(Path(self.paths.journal)) as journal:
                fill(journal, range(1, 31))

        asyncio.run(write())
        fill_store(Path(self.paths.journal), Path(self.paths.audit_db))
        return self.paths.audit_db

    def found(self, code: str | None = None) -> list[Finding]:
        found = doctor.examine(self.scene)
        return found if code is None else [one for one in found if one.code == code]


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    monkeypatch.setattr(machine, "file_system", lambda place: "ext4")
    with tempfile.TemporaryDirectory(prefix="aegis-") as directory:
        yield House(Path(directory), monkeypatch)


def codes(found: list[Finding]) -> set[str]:
    return {one.code for one in found}


def test_a_sound_installation_has_nothing_but_its_tier_to_be_told(house: House) -> None:
    house.store()
    house.patch.setattr(log, "SIGNED_AFTER_S", 1e12)
    assert [(one.code, one.text) for one in house.found() if one.code != "tier-advisory"] == []


# --- each code, planted

Plant = Callable[[House], None]
PLANTED: dict[str, Plant] = {}


def plants(code: str) -> Callable[[Plant], Plant]:
    def note(plant: Plant) -> Plant:
        assert code not in PLANTED
        PLANTED[code] = plant
        return plant

    return note


@plants("install-ephemeral")
def _(house: House) -> None:
    house.with_(python="/h/.cache/uv/archive-v0/x/bin/python")


@plants("install-incomplete")
def _(house: House) -> None:
    house.patch.setattr(install, "needed", lambda: ["rich", "no-such-package-of-ours"])


@plants("wrapper-missing")
def _(house: House) -> None:
    house.with_(here=Here(""))


@plants("wrapper-elsewhere")
def _(house: House) -> None:
    other = house.root / "other"
    other.mkdir()
    shutil.copy(house.wrapper, other / "aegis-wrap")
    house.with_(env={**house.env, "PATH": f"{other}:{house.env['PATH']}"})


@plants("install-checkout")
def _(house: House) -> None:
    (house.bin / ".git").mkdir()


@plants("daemon-away")
def _(house: House) -> None:
    house.with_(status=None)


@plants("daemon-deaf")
def _(house: House) -> None:
    house.with_(status=None, silent="no answer in 5 s")
    held = os.open(house.paths.lock, os.O_RDWR | os.O_CREAT)  # goes with this process's end, or the next test's
    os.write(held, b"4711\n")
    fcntl.flock(held, fcntl.LOCK_EX)
    house.patch.setattr(house, "held", held, raising=False)


@plants("daemon-out-of-reach")
def _(house: House) -> None:
    house.with_(status=None)
    held = os.open(f"{house.paths.journal}/lock", os.O_RDWR | os.O_CREAT, 0o600)  # as above
    os.write(held, b"4711\n")
    fcntl.flock(held, fcntl.LOCK_EX)
    house.patch.setattr(house, "held", held, raising=False)


@plants("runtime-elsewhere")
def _(house: House) -> None:
    house.with_(paths=msgspec.structs.replace(house.paths, run_dir="/run/elsewhere"))


@plants("daemon-version")
def _(house: House) -> None:
    house.with_(status=house.status(version="1.2.2"))


@plants("daemon-elsewhere")
def _(house: House) -> None:
    house.with_(status=house.status(config="/elsewhere/aegis.yaml"))


@plants("daemon-warns")
def _(house: House) -> None:
    house.with_(status=house.status(warnings=["`server.listen` is open to the world"]))


@plants("http-unserved")
def _(house: House) -> None:
    house.with_(status=house.status(warnings=["nothing is served over http: cannot listen at 127.0.0.1:18070"]))


@plants("state-damaged")
def _(house: House) -> None:
    Path(house.paths.state_db).write_bytes(b"no database" * 100)


@plants("daemon-unproven")
def _(house: House) -> None:
    house.with_(status=house.status(proof={"healthy": False, "detail": "a call of nobody was not refused"}))


@plants("daemon-paused")
def _(house: House) -> None:
    house.with_(status=house.status(paused=[{"agent_id": "bot", "by": "ann", "since": "2026-01-01T00:00:00Z"}]))


@plants("mode-observe")
def _(house: House) -> None:
    house.with_(status=house.status(mode="observe"))


@plants("autostart-broken")
def _(house: House) -> None:
    house.with_(status=None, python=house.program("python", "echo 'ModuleNotFoundError: no aegis_daemon' >&2; exit 1"))


@plants("service-broken")
def _(house: House) -> None:
    house.with_(service=Service("/u/aegis.service", "/gone/bin/python"))


@plants("socket-too-open")
def _(house: House) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(house.paths.manage_socket)
    os.chmod(house.paths.manage_socket, 0o666)


@plants("socket-stale")
def _(house: House) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(house.paths.socket)
    house.with_(status=None)


@plants("socket-path-long")
def _(house: House) -> None:
    env = {**house.env, "AEGIS_HOME": str(house.root / ("x" * 100))}
    house.with_(status=None, env=env, paths=Paths.find(env))


@plants("directory-too-open")
def _(house: House) -> None:
    os.chmod(house.paths.journal, 0o777)


@plants("directory-not-yours")
def _(house: House) -> None:
    house.patch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    if os.getuid() == 0:
        os.chown(house.paths.state_dir, 12345, -1)


@plants("file-too-open")
def _(house: House) -> None:
    Path(house.paths.approver_key).write_text("x")
    os.chmod(house.paths.approver_key, 0o644)


@plants("leftovers")
def _(house: House) -> None:
    left = Path(house.paths.state_dir, f".wired.json.{'0' * 16}")
    left.write_text("{")
    os.utime(left, (house.scene.now - 7200,) * 2)


@plants("backups-old")
def _(house: House) -> None:
    copies = Path(house.paths.state_dir, "backups")
    copies.mkdir(mode=0o700)
    for name in (".claude.json-0a0a0a0a.20250101T000000Z", "site.tar"):
        (copies / name).write_text("{}")
        os.utime(copies / name, (house.scene.now - 100 * 86400,) * 2)
    files.note(str(copies / ".claude.json-0a0a0a0a.20250101T000000Z"))


@plants("tier-advisory")
def _(house: House) -> None:
    """The usual one is."""


@plants("config-missing")
def _(house: House) -> None:
    os.unlink(house.paths.config)


@plants("config-faulty")
def _(house: House) -> None:
    house.config("mode: enforced\n")


@plants("config-warning")
def _(house: House) -> None:
    house.config(f"{CONFIG}approval: {{get_decides: true}}\n")


@plants("config-not-in-force")
def _(house: House) -> None:
    house.config(f"{CONFIG}mode: observe\n")


@plants("config-open")
def _(house: House) -> None:
    house.config(CONFIG, 0o666)


@plants("config-secret-open")
def _(house: House) -> None:
    house.config(
        f"{CONFIG}server: {{listen: 'off'}}\napproval:\n  slack:\n    webhook_url: https://hooks/x12345678\n", 0o644
    )


@plants("client-stale")
def _(house: House) -> None:
    house.entries({"files": {**house.wired(), "command": "/gone/aegis-wrap"}})


@plants("client-drifted")
def _(house: House) -> None:
    house.record()
    house.entries({"files": SERVER})


@plants("client-refused")
def _(house: House) -> None:
    house.entries(
        {"files": {"command": house.wrapper, "args": ["npx", "-y", "server-files"], "env": house.wired()["env"]}}
    )


@plants("client-address")
def _(house: House) -> None:
    address = "http://127.0.0.1:18070/agents/claude-code/backends/files/mcp"
    house.entries({"files": {"type": "http", "url": address}})
    house.with_(here=dataclasses.replace(house.scene.here, http="127.0.0.1:18070"))


@plants("client-missing")
def _(house: House) -> None:
    house.record()
    house.entries({"other": house.wired(backend="other")})


@plants("client-unwired")
def _(house: House) -> None:
    house.entries({"files": house.wired(), "git": {"command": "/bin/echo", "args": ["git"]}})


@plants("nothing-wired")
def _(house: House) -> None:
    house.entries({"files": SERVER})


@plants("client-shadowed")
def _(house: House) -> None:
    house.entries({"files": {"command": "/bin/echo", "args": ["anything"]}}, house.root / "p/.mcp.json")
    house.with_(cwd=house.root / "p")


@plants("client-twin")
def _(house: House) -> None:
    house.entries({"disk": {"command": "echo", "args": ["-y", "files"]}}, house.root / ".cursor/mcp.json")


@plants("client-dead-file")
def _(house: House) -> None:
    house.entries({"files": SERVER}, house.root / ".claude/mcp_servers.json")


@plants("client-unreadable")
def _(house: House) -> None:
    house.claude.write_text('{"mcpServers": {"files": ')


@plants("client-timeout")
def _(house: House) -> None:
    house.config(f"{CONFIG}approval: {{hold: 30m}}\n")


@plants("ledger-unreadable")
def _(house: House) -> None:
    Path(house.paths.state_dir, "wired.json").write_text("{")


@plants("command-missing")
def _(house: House) -> None:
    house.entries({"files": house.wired("no-such-program-of-ours")})


@plants("command-path")
def _(house: House) -> None:
    house.program("own-server")
    house.entries({"files": house.wired("own-server")}, house.root / ".config/Claude/claude_desktop_config.json")


@plants("runtime-broken")
def _(house: House) -> None:
    house.wire(house.program("node", "echo dyld: no such library >&2; exit 134"), "x.js")


@plants("runtime-old")
def _(house: House) -> None:
    house.program("node", "echo v16.20.2")
    house.wire(house.program("npx"), "-y", "x")


@plants("docker-away")
def _(house: House) -> None:
    house.wire(house.program("docker", "echo Cannot connect >&2; exit 1"), "run", "x")


@plants("clock-behind")
def _(house: House) -> None:
    house.with_(now=house.scene.now - 86400 * 365)


@plants("clock-jumped")
def _(house: House) -> None:
    house.store()
    house.patch.setattr(log, "_times", lambda rows: iter((1000.0, 2000.0, 1500.0)))


@plants("disk-full")
def _(house: House) -> None:
    house.patch.setattr(machine, "FULL", 1 << 60)


@plants("disk-low")
def _(house: House) -> None:
    house.patch.setattr(machine, "FULL", 0)
    house.patch.setattr(machine, "LOW", 1 << 60)


@plants("disk-unsafe")
def _(house: House) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    house.patch.setattr(machine.os, "fsync", broken)


@plants("disk-shared")
def _(house: House) -> None:
    house.patch.setattr(machine, "file_system", lambda place: "nfs4")


@plants("disk-memory")
def _(house: House) -> None:
    house.patch.setattr(machine, "file_system", lambda place: "tmpfs")


@plants("log-changed")
def _(house: House) -> None:
    change(Path(house.store()), "UPDATE records SET record = replace(record, 'writer', 'reader') WHERE seq > 18")


@plants("log-unwell")
def _(house: House) -> None:
    house.with_(status=house.status(audit={"healthy": False, "detail": "no space left", "tampered": ""}))


@plants("log-unreadable")
def _(house: House) -> None:
    Path(house.paths.audit_db).write_bytes(b"no database" * 100)


@plants("log-unsigned")
def _(house: House) -> None:
    house.store()
    house.with_(now=house.scene.now + 3600)


@plants("check-unfinished")
def _(house: House) -> None:
    def faulty(scene: Scene) -> Iterator[Finding]:
        raise RuntimeError("a fault")

    house.patch.setattr(doctor, "CHECKS", (("the disk", faulty),))


@pytest.mark.parametrize("code", list(CODES))
def test_what_is_planted_is_found(house: House, code: str) -> None:
    PLANTED[code](house)
    found = house.found()
    assert code in codes(found), [(one.code, one.text) for one in found]
    row = next(one for one in found if one.code == code).row()
    assert row["severity"] == CODES[code].severity
    assert row["fixable"] is CODES[code].mends


def test_every_code_has_a_plant() -> None:
    assert set(PLANTED) == set(CODES)


# --- mending


@pytest.mark.parametrize("code", [row.name for row in CODES.values() if row.mends])
def test_what_can_be_mended_is_gone_afterwards(house: House, code: str) -> None:
    PLANTED[code](house)
    done, failed = doctor.mend(house.found())
    assert code in codes(done)
    assert failed == []
    assert house.found(code) == []


def test_mending_takes_rights_from_others_and_leaves_the_owners(house: House) -> None:
    PLANTED["file-too-open"](house)
    PLANTED["config-open"](house)
    doctor.mend(house.found())
    assert stat.S_IMODE(os.stat(house.paths.approver_key).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(house.paths.config).st_mode) == 0o644


def test_no_program_runs_that_nobody_had_wired(house: House) -> None:
    ran = house.root / "ran"
    python = house.program("python3", f"touch {ran}")
    hostile = {"command": "aegis-wrap", "args": ["--", python]}
    house.entries({"x": hostile, "y": house.wired(python, backend="y")}, house.root / "p/.mcp.json")
    house.entries({"files": house.wired(), "z": house.wired(python, backend="z")})
    house.with_(cwd=house.root / "p")
    house.found()
    assert not ran.exists()
    house.wire(python)
    house.found()
    assert ran.exists()


def test_what_others_have_in_a_directory_is_not_mended_away(house: House) -> None:
    shared = house.root / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    config = shared / "aegis.yaml"
    shutil.copy(house.paths.config, config)
    env = {**house.env, "AEGIS_HOME": str(house.root), "AEGIS_CONFIG": str(config)}
    house.with_(env=env, paths=Paths.find(env))
    kept = [house.root / name for name in (".bashrc.original", ".vimrc.previous", f".netrc.{'a' * 16}")]
    for path in kept:
        path.write_text("mine")
        os.utime(path, (house.scene.now - 7200,) * 2)
    house.root.chmod(0o775)
    found = house.found()
    assert {one.subject for one in found if one.code == "directory-too-open"} == {str(shared), str(house.root)}
    doctor.mend(found)
    assert (stat.S_IMODE(shared.stat().st_mode), stat.S_IMODE(house.root.stat().st_mode)) == (0o1777, 0o775)
    assert all(path.exists() for path in kept)


def test_files_of_others_in_a_home_that_everything_shares_keep_their_rights(house: House) -> None:
    shared = house.root / "src/aegis"  # a directory of that name, and not ours
    mine = [house.root / name for name in ("secrets/shared.txt", "journal/today.md", "backups/site.tar")]
    for path in (*mine, shared / "other.txt"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
        path.chmod(0o664)
    shared.chmod(0o2775)
    config = shared / "aegis.yaml"
    shutil.copy(house.paths.config, config)
    for env in ({"AEGIS_HOME": str(house.root)}, {"AEGIS_CONFIG": str(config)}):
        env = {**house.env, **env}
        house.with_(env=env, paths=Paths.find(env))
        doctor.mend(house.found())
    assert [stat.S_IMODE(path.stat().st_mode) for path in mine] == [0o664] * 3
    assert stat.S_IMODE(shared.stat().st_mode) == 0o2775


def test_what_a_killed_command_left_beside_a_clients_file_is_found(house: House) -> None:
    house.record()
    left = house.root / f".{house.claude.name}.{'0' * 16}"
    other = house.root / f".other.json.{'0' * 16}"
    for path in (left, other):
        path.write_text("{}")
        os.utime(path, (house.scene.now - 7200,) * 2)
    (one,) = house.found("leftovers")
    assert one.subject == str(left)
    assert doctor.mend([one]) == ([one], [])
    assert (left.exists(), other.exists()) == (False, True)


def test_a_thing_is_told_once(house: House) -> None:
    house.record()
    house.entries({"files": SERVER})
    warning = f"`files` of claude-code in {house.claude} runs without Aegis: its wrapper was taken out; see …"
    house.with_(status=house.status(warnings=[warning, "another"]))
    assert [one.text for one in house.found("daemon-warns")] == ["another"]
    secret = Path(os.path.dirname(house.paths.config), "secrets/gh.token")
    secret.parent.mkdir()
    secret.write_text("x")
    secret.chmod(0o644)
    house.config(f"{CONFIG}server: {{api_token: '${{file:secrets/gh.token}}'}}\n")
    assert [one.code for one in house.found() if one.subject == str(secret)] == ["file-too-open"]


def test_a_home_that_is_a_checkout_itself_is_none_of_this_program(tmp_path: Path) -> None:
    program = tmp_path / "home" / "src" / "aegis" / "bin" / "aegis-wrap"
    program.parent.mkdir(parents=True)
    home = str(tmp_path / "home")
    (tmp_path / "home" / ".git").mkdir()
    assert install.checkout(str(program), home) == ""
    (tmp_path / "home" / "src" / "aegis" / ".git").write_text("gitdir: elsewhere\n")
    assert install.checkout(str(program), home) == str(tmp_path / "home" / "src" / "aegis")
    link = tmp_path / "home" / "aegis-wrap"
    link.symlink_to(program)
    assert install.checkout(str(link), home) == str(tmp_path / "home" / "src" / "aegis")


def test_an_entry_that_is_gone_is_forgotten_by_its_name_alone(house: House) -> None:
    house.wire()
    house.entries({})
    (one,) = house.found("client-missing")
    assert f"`aegis agents unwire --file {house.claude} --server files`" in one.fix
    assert "wire --file" not in one.fix.partition(";")[0]


def test_a_port_that_is_taken_is_told_before_the_daemon_starts(house: House) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = "{}:{}".format(*server.getsockname())
        house.with_(status=None, here=dataclasses.replace(house.scene.here, http=address))
        (one,) = house.found("http-unserved")
        assert address in one.text
    assert house.found("http-unserved") == []


def test_a_socket_somebody_listens_at_is_never_stale(house: House) -> None:
    house.with_(status=None)
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(house.paths.socket)
        end.listen()
        assert house.found("socket-stale") == []
    stale = house.found("socket-stale")
    assert len(stale) == 1
    with socket.socket(socket.AF_UNIX) as end:  # a daemon that came between the look and the mending
        os.unlink(house.paths.socket)
        end.bind(house.paths.socket)
        end.listen()
        assert doctor.mend(stale)[0] == []
    assert os.path.lexists(house.paths.socket)


def test_looking_changes_no_file_but_its_own_attempt_to_write(house: House) -> None:
    house.store()

    def tree() -> dict[str, tuple[int, bytes]]:
        return {
            str(path): (path.stat().st_mode, path.read_bytes() if path.is_file() else b"")
            for path in house.root.rglob("*")
            if not path.name.startswith("audit.db-")
        }

    before = tree()
    house.found()
    assert tree() == before


# --- the rest


def test_a_check_that_never_ends_keeps_no_other_from_telling(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    never = threading.Event()

    def hangs(scene: Scene) -> Iterator[Finding]:
        never.wait(20)
        yield from ()

    monkeypatch.setattr(doctor, "CHECKS", (("a pipe", hangs), *doctor.CHECKS))
    PLANTED["config-missing"](house)
    found = doctor.examine(house.scene, bound=3.0)
    never.set()
    assert {"check-unfinished", "config-missing"} <= codes(found)


def test_a_governed_project_entry_shadows_nothing(house: House) -> None:
    house.entries({"files": house.wired()}, house.root / "p/.mcp.json")
    house.with_(cwd=house.root / "p")
    assert not codes(house.found()) & {"client-shadowed", "client-twin", "client-unwired"}


def test_an_entry_of_one_project_inside_of_the_users_file_shadows_the_wired_one(house: House) -> None:
    inner = {"mcpServers": {"files": {"command": "/bin/echo", "args": ["z"]}}}
    house.entries({"files": house.wired()}, projects={"/p": inner})
    assert "client-shadowed" in codes(house.found())


@pytest.mark.parametrize(
    ("timeout", "hold", "told"),
    [(30_000, None, True), (660_000, "10m", False), (None, "5m", False), (None, "20m", True), (660_000, "20m", True)],
)
def test_the_hold_is_compared_with_what_the_entry_says(
    house: House, timeout: int | None, hold: str | None, told: bool
) -> None:
    more = {} if timeout is None else {"timeout": timeout}
    house.entries({"files": house.wired(**more)}, house.root / ".gemini/settings.json")
    if hold is not None:
        house.config(f"{CONFIG}approval: {{hold: {hold}}}\n")
    found = [one for one in house.found("client-timeout") if ".gemini" in one.subject]
    assert bool(found) is told


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("server:\n  api_token: abcdefghijklmnop\n", True),
        ("server:\n  api_token: ${env:TOKEN_OF_MINE}\n", False),
        ("# api_token: abcdefghijklmnop\n", False),
        ("agents:\n  a:\n    auth_token: 'abcdefghijklmnop'\n", True),
        ("slack: {}\n", False),
    ],
)
def test_a_secret_in_the_text_is_told_from_one_that_is_looked_up(text: str, secret: bool) -> None:
    from aegis_daemon.onboarding.checks.config import holds_secret

    assert holds_secret(text) is secret


def test_the_file_system_is_that_of_the_longest_mount_above(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(
        "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
        "30 21 0:40 / /home rw shared:1 - nfs4 host:/home rw\n"
        "31 30 0:41 / /home/ann\\040b rw - tmpfs tmpfs rw\n"
    )
    assert [
        machine.__dict__["file_system"](place, str(table)) for place in ("/var", "/home/x", "/home/ann b/c", "/homes")
    ] == ["ext4", "nfs4", "tmpfs", "ext4"]


def test_placeholders_and_relative_commands_are_the_clients_to_know(house: House) -> None:
    house.entries({"files": house.wired("${workspaceFolder}/server"), "b": house.wired("./server", backend="b")})
    assert house.found("command-missing") == []


def test_the_desktops_path_is_used_for_programs_that_ask_no_shell(house: House) -> None:
    assert "claude-desktop" in programs.DESKTOP
    found = clients.catalog.load()
    assert {one.id for one in found} >= programs.DESKTOP


def test_of_a_large_log_the_end_is_looked_at(house: House) -> None:
    house.patch.setattr(log, "WHOLE", 0)
    store = Path(house.store())
    assert house.found("log-changed") == []
    change(store, "UPDATE records SET record = replace(record, 'writer', 'reader') WHERE seq = 31")
    assert "31" in house.found("log-changed")[0].text


def test_in_the_isolated_tier_what_is_the_daemons_own_is_no_finding(house: House) -> None:
    def closed(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    house.patch.setattr(clients.ledger, "load", closed)
    assert "ledger-unreadable" in codes(house.found())
    house.with_(paths=Paths.of_system(str(house.root / "machine"), {}), status=None)
    assert codes(house.found()) <= {"daemon-away", "config-missing", "client-stale"}


def test_the_configuration_is_read_once_for_all_checks_and_again_once_it_changed(house: House) -> None:
    read: list[str] = []

    def counted(path: str, *args: Any, **more: Any) -> Any:
        read.append(path)
        return load(path, *args, **more)

    house.patch.setattr("aegis_daemon.onboarding.scene.load", counted)
    codes = {one.code for one in doctor.examine(house.scene)}
    assert len(read) == 1
    assert "config-faulty" not in codes
    house.config("agents: [")
    assert "config-faulty" in {one.code for one in doctor.examine(house.scene)}
    assert len(read) == 2
