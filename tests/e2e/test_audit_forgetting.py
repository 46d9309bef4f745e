"""What a person has purged or erased is gone from every file of an installation, and the log still proves itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from .house import Home, call, until

SECRET = "correct-horse-battery"
RULES = """
backends: {work: {}}
agents: {ann: {backends: {work: {allowed: true, approval_required: [post]}}}}
audit: {checkpoints: {every: 5, seconds: 1s}}
"""


def holding(home: Home, text: str) -> list[str]:
    files = [path for path in Path(home.dir).rglob("*") if path.is_file()]
    return sorted(path.name for path in files if text.encode() in path.read_bytes())


def test_erased_arguments_are_in_no_file(homes: Callable[..., Home]) -> None:
    home = homes(RULES)
    agent = home.count(agent="ann").handshake()
    agent.says(call(1, "post", key="k1", text=f"{SECRET}-1"))
    (ticket,) = home.pending()
    home.decide(ticket["id"], True)
    agent.answer(1)
    agent.says(call(2, "work", key="k2", text=f"{SECRET}-2"))
    agent.answer(2)
    rows = {json.loads(row["arguments"]).get("key"): row for row in home.json("audit", "search")}
    assert len(holding(home, f"{SECRET}-1")) >= 3  # store, journal and tickets, or what SQLite keeps beside them
    one = rows["k1"]["call_id"]
    (key,) = Path(home.dir).rglob("audit.key")
    key.chmod(0o644)
    refused = home.aegis("audit", "erase", one[:12], "--yes", env=home.approver())
    assert refused.returncode
    assert "the order cannot be signed" in refused.stderr
    assert len(holding(home, f"{SECRET}-1")) >= 3
    key.chmod(0o600)
    would = home.json("audit", "erase", "--tool", "po*", "--since", "1h", "--dry-run", env=home.approver())
    assert (would["calls"], would["done"], would["first"][0]["call_id"]) == (1, False, one)
    done = home.json("audit", "erase", one[:12], "--yes", "--note", "asked for", env=home.approver())
    assert done["done"] is True
    assert (done["calls"], done["running"], done["elsewhere"]) == (1, 0, [])
    assert holding(home, f"{SECRET}-1") == []
    assert "audit.db" in " ".join(holding(home, f"{SECRET}-2"))
    home.verify()
    shown = home.json("audit", "show", one)
    assert (shown["arguments"], shown["arguments_hash"], shown["result"]) == (None, "", None)
    assert shown["erased"]["seq"] == done["seqs"][0]
    assert "erased on" in home.aegis("audit", "show", one).stdout
    (record,) = [each for each in home.records("admin") if each["action"] == "erase"]
    assert record["detail"].endswith("1 call, named; asked for")
    agent.says(call(3, "work", key="k3", text=f"{SECRET}-3"))
    agent.answer(3)
    done = home.json("audit", "erase", "--text", SECRET, "--yes", env=home.approver())
    assert (done["done"], done["calls"]) == (True, 2)
    assert holding(home, SECRET) == []
    home.verify()


def test_old_records_are_purged_with_a_daemon_and_without(homes: Callable[..., Home]) -> None:
    home = homes(RULES)
    agent = home.count(agent="ann").handshake()
    for number in range(10):
        agent.says(call(number, "work", key=f"k{number}"))
        agent.answer(number)
    until(lambda: home.ask("status")["audit"]["signed"] >= 20, "a checkpoint")
    done = home.json("audit", "purge", "--before", "0s", "--yes", env=home.approver())
    assert done["last"] >= 20
    until(lambda: home.rows("SELECT ifnull(min(seq), 99) FROM calls")[0][0] > 5, "its end")
    report = home.json("audit", "verify")
    assert (report["purged"], report["faults"]) == (done["last"], [])
    for number in range(10, 16):
        agent.says(call(number, "work", key=f"k{number}"))
        agent.answer(number)
    agent.done()
    home.stop()
    nobody = home.aegis("audit", "purge", "--before", "0s", "--yes")
    assert nobody.returncode == 3
    assert "nobody knows who asks" in nobody.stderr
    done = home.json("audit", "purge", "--before", "0s", "--yes", env=home.approver())
    assert done["seq"] > done["last"] > 30
    report = home.json("audit", "verify")
    assert (report["purged"], report["faults"]) == (done["last"], [])
    home.launch()
    agent = home.count(agent="ann").handshake()
    agent.says(call(1, "work", key="again"))
    agent.answer(1)
    home.verify()
