"""Whatever the disk does and whoever is killed, no call reaches a server without a committed intent.

The daemon, its writer and its exporter run on a C library whose writes and syncs fail on demand (`libfault.c`).
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .house import BOUND_S, WAYS, Home, until
from .kills import ENDED, Matrix

SOURCE = Path(__file__).parents[1] / "audit" / "libfault.c"
WRITE, SYNC, TRUNCATE = 1, 2, 4
SHORT, KILL = 0, -1
JOURNAL, STORE = "/journal/seg-", "/audit.db"
CONFIG = """
backends: {work: {}}
agents: {default: {backends: {work: {allowed: true}}}}
audit:
  durability: %s
  checkpoints: {every: 200, seconds: 1s}
  exports: {file: {type: jsonl, path: out/log.jsonl, format: aegis}}
"""
FAULTS = [
    *((JOURNAL, WRITE, error) for error in (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, SHORT, KILL)),
    *((JOURNAL, SYNC, error) for error in (errno.EIO, errno.ENOSPC, KILL)),
    *((STORE, WRITE, error) for error in (errno.ENOSPC, errno.EIO, errno.EROFS, SHORT, KILL)),
    *((STORE, SYNC, error) for error in (errno.EIO, KILL)),
    *((word, 0, KILL) for word in ("daemon.main", "audit.ingest", "exports.ship")),
]
"""(whose files, which call, what becomes of it); without a call, a kill of the process with these words."""


class _Rule(ctypes.Structure):
    _fields_ = (
        ("text", ctypes.c_char * 48),
        ("what", ctypes.c_int32),
        ("error", ctypes.c_int32),
        ("skip", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("hits", ctypes.c_int64),
    )


class Library:
    """The C library of one home's processes."""

    def __init__(self, at: Path) -> None:
        compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
        assert compiler, "these tests need a C compiler: install gcc or clang, or name one in CC"
        words = [
            compiler,
            "-shared",
            "-fPIC",
            "-O1",
            "-Wall",
            "-Werror",
            str(SOURCE),
            "-o",
            str(at / "fault.so"),
            "-ldl",
        ]
        subprocess.run(words, check=True, timeout=60)
        rules = at / "rules"
        rules.write_bytes(bytes(4096))
        with open(rules, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), 4096)
        self.rule = _Rule.from_buffer(self._map)
        self.env = {"LD_PRELOAD": str(at / "fault.so"), "AEGIS_FAULTS": str(rules)}

    def fail(self, text: str, what: int, error: int, skip: int, count: int) -> None:
        self.rule.text, self.rule.error = text.encode(), error
        self.rule.skip, self.rule.count, self.rule.hits = skip, count, 0
        self.rule.what = what

    def heal(self) -> int:
        self.rule.what = 0
        return int(self.rule.hits)


class Faults(Matrix):
    """Sessions under load on a disk that fails."""

    ended = ENDED | {"audit_unavailable"}

    def __init__(self, home: Home, library: Library, seed: str = "") -> None:
        super().__init__(home, seed)
        self.library = library
        self.happened: Counter[str] = Counter()

    def run(self, faults: list[tuple[str, int, int]]) -> None:
        held = [self.session(way, "--no-autostart") for way in WAYS]
        for each in held:
            assert each.warm.wait(BOUND_S), each.fault
        for text, what, error in faults:
            name = f"{text} {({0: 'process', WRITE: 'write', SYNC: 'sync'})[what]} {errno.errorcode.get(error, error)}"
            if not what:
                for pid, line in self.home.processes().items():
                    if text in line:
                        os.kill(pid, signal.SIGKILL)
                        self.happened[name] += 1
            else:
                self.library.fail(
                    text, what, error, self.random.randrange(12), 1 if error == KILL else self.random.randrange(1, 20)
                )
                deadline = time.monotonic() + 3
                while not self.library.rule.hits and time.monotonic() < deadline:
                    time.sleep(0.01)
                time.sleep(self.random.uniform(0, 0.3))
                self.happened[name] += self.library.heal()
            self.recover(name)
            for each in held:
                each.warm.clear()
            for each in held:
                assert each.warm.wait(60.0), f"{each.name} did not go on after {name}: {each.fault}"
        for each in held:
            assert each.close() == 0

    def recover(self, after: str) -> None:
        """By itself; only a daemon that was killed is started again, as a supervisor does."""

        def well() -> bool:
            status = self.home.answers()
            if status is None:
                if not any("daemon.main" in line for line in self.home.processes().values()):
                    self.kills["daemon"] += 1
                    self.home.spawn()
                return False
            return bool(status["audit"]["healthy"])

        try:
            until(well, f"recovery from {after}", 60.0)
        except AssertionError:
            print(self.home.answers() and self.home.answers()["audit"], self.home.processes())
            print((self.home.dir / "daemon.log").read_text()[-1500:])
            raise

    def check(self) -> dict[str, Any]:
        """After one more start, which tells the end of calls whose outcome could not be written."""
        os.kill(self.home.pid, signal.SIGKILL)
        until(lambda: self.home.answers() is None, "its end")
        self.recover("the last kill")
        self.kills["daemon"] += 1
        figures = super().check()
        ends = Counter(record["call"] for record in self.home.records("outcome"))
        began = Counter(record["call"] for record in self.home.records("intent"))
        assert set(began.values()) <= {1}
        assert ends == began, "a call has no outcome, or two"
        home = self.home
        wanted = [
            one["seq"] for one in home.records() if one["kind"] not in ("intent", "hold") and not one.get("would")
        ]
        until(lambda: home.ask("exports")[0]["seq"] >= wanted[-1], "an export of the whole log", 120.0)
        sent = [seq for seq in _seqs(home.dir / "out") if seq <= wanted[-1]]
        assert len(sent) == len(wanted), (sorted(set(wanted) - set(sent))[:9], sorted(set(sent) - set(wanted))[:9])
        return {**figures, "faults": sum(self.happened.values()), **self.happened}


def _seqs(folder: Path) -> list[int]:
    """The records that an export's files have, each once however often it was sent."""
    found = set()
    for path in folder.glob("log*.jsonl"):  # a new one is begun every 100 MB
        with open(path) as file:
            found |= {int(json.loads(line)["uid"].rpartition("-")[2]) for line in file}
    return sorted(found)


@pytest.mark.parametrize(
    ("durability", "rounds"),
    [
        ("full", 0),
        ("process", 0),
        pytest.param("full", 12, marks=pytest.mark.matrix),
        pytest.param("process", 12, marks=pytest.mark.matrix),
    ],
)
def test_no_fault_of_the_disk_and_no_kill_lets_a_call_through_unrecorded(
    homes: Callable[..., Home], tmp_path: Path, durability: str, rounds: int
) -> None:
    home = homes(CONFIG % durability, start=False)
    library = Library(tmp_path)
    home.env |= library.env
    home.launch()
    matrix = Faults(home, library)
    try:
        if rounds:
            faults = FAULTS * rounds
            matrix.random.shuffle(faults)
        else:  # one of each that refuses calls, or that nobody may notice, and some of the rest
            faults = [FAULTS[0], FAULTS[5], FAULTS[6], FAULTS[13], *matrix.random.sample(FAULTS, 2)]
        matrix.run(faults)
        figures = matrix.check()
    except BaseException:
        print(f"seed {matrix.seed}; {dict(matrix.happened)}")
        raise
    finally:
        library.heal()
    print(figures)
    assert figures["faults"] > 0
