"""A running daemon signs its log and has it witnessed, and whoever keeps a checkpoint finds what was done to it."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from .house import Home, call, until

SCRIPT = Path(__file__).parents[2] / "scripts" / "verify_audit"
RULES = """
backends: {work: {}}
agents: {ann: {backends: {work: {allowed: true}}}}
audit:
  checkpoints: {every: 5, seconds: 200ms}
  witnesses: {notebook: {type: file, path: notebook.txt}}
"""


def test_a_log_is_signed_witnessed_and_verified_by_two(homes: Callable[..., Home]) -> None:
    home = homes(RULES)
    agent = home.count(agent="ann").handshake()
    for number in range(6):
        agent.says(call(number, "work", key=f"k{number}"))
        agent.answer(number)
    until(lambda: home.ask("status")["audit"]["signed"], "a signature, and so a key")
    first = home.json("audit", "key")["keys"][0]
    rotated = home.json("audit", "key", "rotate", "--yes", env=home.approver())
    agent.says(call(6, "work", key="k6"))
    agent.answer(6)
    agent.done()
    until(lambda: home.json("audit", "verify")["unwitnessed"] == 0, "witnessed")
    found = home.aegis("audit", "verify", "--require-witness", "--trusted-key", first["public"])
    assert (found.returncode, found.stderr) == (0, "")
    assert "(notebook); 0 not yet witnessed" in found.stdout
    assert [key["public"] for key in home.json("audit", "key")["keys"]] == [first["public"], rotated["public"]]
    (record,) = [each for each in home.records("admin") if each["action"] == "audit_key_rotated"]
    assert record["detail"] == rotated["note"]
    home.stop()

    kept, store = Path(home.dir, "kept"), Path(home.dir, "audit.db")
    assert home.aegis("audit", "checkpoint", "--out", str(kept)).returncode == 0
    assert home.aegis("audit", "verify", "--trusted", str(kept)).returncode == 0

    def twice() -> tuple[int, int]:
        words = [sys.executable, "-I", "-S", str(SCRIPT), str(store), "--key", first["public"], "--trusted", str(kept)]
        other = subprocess.run(words, capture_output=True, text=True, timeout=60)
        return home.aegis("audit", "verify", "--db", str(store), "--trusted", str(kept)).returncode, other.returncode

    assert twice() == (0, 0)
    # The newest records go, and every checkpoint of the store with them: what the file itself can tell is in order.
    with closing(sqlite3.connect(store)) as db:
        for table in ("records", "bodies"):
            db.execute(f"DELETE FROM {table} WHERE seq > 1")
        for table in ("calls", "tallies"):
            db.execute(f"DELETE FROM {table}")
        db.execute("DELETE FROM checkpoints")
        db.commit()
    assert home.aegis("audit", "verify", "--db", str(store)).returncode == 0
    assert twice() == (1, 1)
    # The installation's own memory and its witness miss them, too.
    lost = home.aegis("audit", "verify")
    assert lost.returncode == 1
    assert "truncated" in lost.stdout
