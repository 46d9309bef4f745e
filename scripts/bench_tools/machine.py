"""Where a run happens: directories, the C tools built for it, and what to say about the machine."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
SOURCES = Path(__file__).resolve().parent
CACHE = REPO / ".cache" / "bench"
SOCKET_PATH_MAX = 103


class BenchError(Exception):
    """Something broke; the text is for the person who ran it."""


def build() -> tuple[Path, Path, Path]:
    """The load driver and the echo servers, for pipes and for HTTP, compiled if their sources are newer."""
    target = CACHE / "bin"
    target.mkdir(parents=True, exist_ok=True)
    newest = max(path.stat().st_mtime for path in SOURCES.glob("*.[ch]"))
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        raise BenchError("no C compiler found; install one (`cc`) or name it in CC")
    for source, name, extra in (
        ("load.c", "load", ["-lm"]),
        ("echo_server.c", "echo-server", []),
        ("http_server.c", "http-server", []),
    ):
        binary = target / name
        if binary.exists() and binary.stat().st_mtime > newest:
            continue
        command = [compiler, "-O2", "-Wall", "-o", f"{binary}.new", str(SOURCES / source), *extra]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise BenchError(f"`{' '.join(command)}` failed:\n{done.stderr}")
        os.replace(f"{binary}.new", binary)
    return target / "load", target / "echo-server", target / "http-server"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def run_directory() -> Path:
    """A fresh directory on the disk the project is on, so that an fsync is a real one; short enough for a socket."""
    for old in CACHE.glob("run-*"):  # of runs that were killed
        if not Path(f"/proc/{old.name.removeprefix('run-')}").exists():
            shutil.rmtree(old, ignore_errors=True)
    wanted = CACHE / f"run-{os.getpid()}"
    if len(str(wanted / "process" / "manage.sock")) <= SOCKET_PATH_MAX:
        wanted.mkdir(parents=True)
        return wanted
    return Path(tempfile.mkdtemp(prefix="aegis-bench-"))


def commit_us(directory: Path, commits: int = 40) -> float:
    """Median time of one single-row commit that waits for the disk: SQLite, WAL, synchronous=FULL, 500 bytes a row."""
    path = directory / "one-commit.db"
    db = sqlite3.connect(path, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute("CREATE TABLE IF NOT EXISTS row (id INTEGER PRIMARY KEY, text TEXT)")
        laps = []
        for _ in range(commits):
            begin = time.perf_counter_ns()
            db.execute("INSERT INTO row (text) VALUES (?)", ("x" * 500,))
            laps.append((time.perf_counter_ns() - begin) / 1e3)
        return statistics.median(laps)
    finally:
        db.close()


def facts() -> dict[str, str | int | float]:
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    git = subprocess.run(["git", "-C", str(REPO), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {
        "date": datetime.date.today().isoformat(),
        "cores": len(os.sched_getaffinity(0)),
        "cpu": model,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": git.stdout.strip(),
        "load_before": round(os.getloadavg()[0], 2),
        "executable": sys.executable,
    }
