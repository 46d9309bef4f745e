from __future__ import annotations

import asyncio
import json
import os
import runpy
import shutil
import sqlite3
import subprocess
import tempfile
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from manage.memory import Served

from aegis_daemon.audit.checkpoint import Checkpoint, Signature, write_note
from aegis_daemon.audit.journal import Journal
from aegis_daemon.audit.record import Admin, Approval, Denied, Intent, Outcome, Record
from aegis_daemon.audit.store import Reader, ensure_schema
from aegis_daemon.audit.writer import WriterHandle
from aegis_daemon.exports.log import Log
from aegis_daemon.manage import api

from .conftest import Aegis
from .terminal import AEGIS

ONE, TWO, THREE = "a" * 32, "ab" + "b" * 30, "c" * 32
WHO: dict[str, Any] = {"agent": "claude", "backend": "github", "method": "tools/call"}
STORY: list[tuple[Record, bytes | None]] = [
    (Intent(call=ONE, name="get_issue", request="1", **WHO), b'{"number":7}'),
    (Outcome(call=ONE, status="success", duration_us=4200, consumed=True), b'{"content":[]}'),
    (Denied(call=TWO, name="drop\x1b[2Jtable", stage="acl", code=-32001, reason="no\x07", **WHO), b'["\xe2\x80\xae"]'),
    (Approval(ticket="K7Q2", call=THREE, decision="approved", by="ann"), None),
    (Intent(call=THREE, **{**WHO, "agent": "cursor"}, name="delete_repo"), b"{}"),
    (Admin(action="reload", detail="d"), None),
    (Outcome(call=THREE, status="error", error_code=-32603, error_message="boom"), None),
]  # fmt: skip


async def record(home: str, story: list[tuple[Record, bytes | None]]) -> None:
    loop = asyncio.get_running_loop()
    journal = Journal(Path(home, "journal"), durability="process", loop=loop)
    journal.open()
    writer = WriterHandle(journal, Path(home, "audit.db"), loop)
    for made, body in story:
        journal.append(made, body)
    await writer.flush()
    await writer.close()
    journal.close()


@pytest.fixture(scope="module")
def written() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="aegis-") as directory:
        asyncio.run(record(directory, STORY))
        yield f"{directory}/audit.db"


@pytest.fixture
def log(written: str, home: str) -> str:
    return shutil.copy(written, f"{home}/audit.db")


def rows(aegis: Aegis, *words: str) -> list[dict[str, Any]]:
    done = aegis("audit", *words, "--json")
    assert done.exit_code == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.usefixtures("log")
def test_a_search_gives_one_flat_row_for_each_call_newest_first(aegis: Aegis) -> None:
    found = rows(aegis, "search")
    assert [row["call_id"] for row in found] == [THREE, TWO, ONE]
    assert [row["exec_status"] for row in found] == ["error", "denied", "success"]
    assert not any(isinstance(value, dict | list) for row in found for value in row.values())
    contract = "request_id tenant_id agent_id principal backend_id method tool_name arguments arguments_hash acl_result"
    more = "rate_limit_result approval_result approver queue_position queue_wait_ms exec_status exec_duration_ms result"
    assert set(f"{contract} {more} error_message policy_id created_at".split()) <= set(found[0])


@pytest.mark.usefixtures("log")
def test_a_search_is_narrowed(aegis: Aegis) -> None:
    def calls(*words: str) -> list[str]:
        return [row["call_id"] for row in rows(aegis, "search", *words)]

    assert calls("--agent", "cursor") == [THREE]
    assert calls("--backend", "jira") == []
    assert calls("--tool", "get_*") == [ONE]
    assert calls("--status", "denied") == [TWO]
    assert calls("number") == [ONE]
    assert calls("--limit", "1") == [THREE]
    page = rows(aegis, "search", "--limit", "1")
    assert calls("--limit", "1", "--before", str(page[0]["seq"])) == [TWO]
    assert calls("--since", "1h") == [THREE, TWO, ONE]
    assert calls("--until", "1h") == []
    assert aegis("audit", "search", "--since", "soon").exit_code == 2
    wrong = aegis("audit", "search", "--status", "refused")
    assert wrong.exit_code == 2
    assert "denied" in wrong.stderr


@pytest.mark.usefixtures("log")
def test_what_agents_wrote_cannot_steer_the_terminal(aegis: Aegis) -> None:
    for words in (["search"], ["tail"], ["show", TWO]):
        shown = aegis("audit", *words).output
        assert "drop\\x1b[2Jtable" in shown
        assert not set(shown) & {"\x1b", "\x07", "\u202e"}


@pytest.mark.usefixtures("log")
def test_one_call_is_shown_as_a_story_then_as_facts_by_the_beginning_of_its_id(aegis: Aegis) -> None:
    shown = aegis("audit", "show", "ccc").stdout
    order = [THREE, "sent to the backend", "boom", "agent ", "cursor", "github.delete_repo", "arguments"]
    places = [shown.index(text) for text in order]
    assert places == sorted(places)
    for plain in ("would", "tenant", "False", "not_required", "rules allowed", "limits none"):
        assert plain not in shown
    found = json.loads(aegis("audit", "show", THREE, "--json").stdout)
    assert [record["record"]["kind"] for record in found["records"]][-1] == "outcome"
    several = aegis("audit", "show", "a")
    assert several.exit_code == 1
    assert ONE in several.stderr
    assert TWO in several.stderr
    assert aegis("audit", "show", "f").exit_code == 1


@pytest.mark.usefixtures("log")
def test_the_tail_gives_json_lines_named_like_calls_and_knows_whose_outcome_it_is(aegis: Aegis) -> None:
    lines = [json.loads(line) for line in aegis("audit", "tail", "--json").stdout.splitlines()]
    assert [line["seq"] for line in lines] == list(range(1, 8))
    assert (lines[1]["kind"], lines[1]["agent_id"], lines[1]["tool_name"]) == ("outcome", "claude", "get_issue")
    assert lines[0]["arguments"] == '{"number":7}'
    assert lines[1]["result"] == '{"content":[]}'
    only = [
        json.loads(line)["seq"] for line in aegis("audit", "tail", "--json", "--agent", "cursor").stdout.splitlines()
    ]
    assert only[-2:] == [5, 7]
    last = aegis("audit", "tail", "-n", "1", "--json").stdout.splitlines()
    assert [json.loads(line)["seq"] for line in last] == [7]


@pytest.mark.usefixtures("log")
def test_an_outcome_whose_call_is_further_back_is_named_too(aegis: Aegis) -> None:
    (line,) = aegis("audit", "tail", "-n", "1", "--json").stdout.splitlines()
    assert (json.loads(line)["agent_id"], json.loads(line)["tool_name"]) == ("cursor", "delete_repo")


def test_following_shows_what_comes(home: str) -> None:
    asyncio.run(record(home, STORY[:2]))
    with subprocess.Popen([*AEGIS, "audit", "tail", "-f", "--json"], stdout=subprocess.PIPE, text=True) as tail:
        timer = threading.Timer(30, tail.kill)
        timer.start()
        try:
            assert tail.stdout is not None
            assert [json.loads(tail.stdout.readline())["seq"] for _ in range(2)] == [1, 2]
            asyncio.run(record(home, STORY[2:4]))
            assert [json.loads(tail.stdout.readline())["seq"] for _ in range(2)] == [3, 4]
            tail.send_signal(2)
            assert tail.wait(10) == 0
        finally:
            timer.cancel()
            tail.kill()


@pytest.mark.usefixtures("log")
def test_an_untouched_log_is_verified(aegis: Aegis) -> None:
    done = aegis("audit", "verify")
    assert done.exit_code == 0
    assert "7 records (1 to 7)" in done.stdout
    report = json.loads(aegis("audit", "verify", "--json").stdout)
    assert (report["records"], report["faults"]) == (7, [])


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ("UPDATE records SET record = replace(record, 'get_issue', 'get_issux') WHERE seq = 1", "record 1"),
        ("DELETE FROM records WHERE seq = 3", "missing"),
        ("UPDATE bodies SET body = '{}' WHERE seq = 1", "body"),
        ("UPDATE calls SET exec_status = 'success' WHERE seq = 3", "exec_status"),
    ],
)
def test_a_changed_log_is_something_wrong(aegis: Aegis, log: str, change: str, word: str) -> None:
    with closing(sqlite3.connect(log)) as db:
        assert db.execute(change).rowcount == 1
        db.commit()
    done = aegis("audit", "verify")
    assert done.exit_code == 1
    assert word in done.stdout
    faults = json.loads(aegis("audit", "verify", "--json").stdout)["faults"]
    assert faults
    assert set(faults[0]) == {"seq", "kind", "text"}


def test_records_that_the_daemon_speaks_of_and_the_file_lacks_are_missing(
    served: Served, aegis: Aegis, log: str
) -> None:
    served.governor.config_show = lambda: {"audit": {"db_path": None}}  # type: ignore[method-assign]
    served.do(served.governor.slow.set)
    done = aegis("audit", "verify")  # its flush speaks of 12 records
    assert done.exit_code == 1
    assert "8 to 12" in done.stdout
    assert aegis("audit", "verify", "--db", log).exit_code == 0


def test_a_log_whose_newest_records_cannot_be_seen_is_not_said_to_be_whole(
    served: Served, aegis: Aegis, log: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full() -> int:
        await asyncio.sleep(0.3)
        raise api.Unavailable("the store's disk is full", "make room")

    monkeypatch.setattr("aegis_daemon.cli.audit.log.SLOW_S", 0.05)
    served.governor.config_show = lambda: {"audit": {"db_path": None}}  # type: ignore[method-assign]
    served.governor.flush_audit = full  # type: ignore[method-assign]
    done = aegis("audit", "verify")
    assert done.exit_code == 1
    told = [done.stderr.index(text) for text in ("waiting for the daemon", "disk is full", "could not be looked at")]
    assert told == sorted(told)
    found = aegis("audit", "verify", "--json")
    assert found.exit_code == 1
    assert json.loads(found.stdout)["remarks"] == ["the newest records were not seen: the store's disk is full"]
    assert aegis("audit", "verify", "--db", log).exit_code == 0


@pytest.mark.usefixtures("log")
def test_the_log_is_where_the_configuration_says(aegis: Aegis, home: str) -> None:
    os.mkdir(f"{home}/logs")
    os.rename(f"{home}/audit.db", f"{home}/logs/a.db")
    with open(f"{home}/aegis.yaml", "w") as file:
        file.write("audit: {db_path: logs/a.db}\n")
    assert len(rows(aegis, "search")) == 3
    assert len(rows(aegis, "search", "--db", f"{home}/logs/a.db")) == 3
    with open(f"{home}/aegis.yaml", "w") as file:
        file.write("audit: {db_pth: x}\n")
    fallen = aegis("audit", "search")
    assert fallen.exit_code == 1
    assert "config validate" in fallen.stderr


@pytest.mark.parametrize("content", [None, b"", b"no database at all" * 100])
def test_what_is_no_log_is_told(aegis: Aegis, home: str, content: bytes | None) -> None:
    if content is not None:
        Path(home, "audit.db").write_bytes(content)
    for words in (["search"], ["verify"], ["tail"], ["show", "a"]):
        done = aegis("audit", *words)
        assert done.exit_code == 1
        assert "audit" in done.stderr
        assert done.stdout == ""


def test_a_log_damaged_in_its_middle_is_told_without_a_traceback(aegis: Aegis, log: str) -> None:
    with open(log, "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (os.path.getsize(log) - 4096))
    assert aegis("audit", "verify").exit_code == 1
    assert aegis("audit", "search").exit_code == 1


@pytest.mark.usefixtures("log")
def test_a_file_without_a_checkpoint_says_nothing_against_the_log(aegis: Aegis, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("root:x:0:0\n")
    for name, what in (("other", "holds no checkpoint"), ("none", "cannot be read: no such file")):
        done = aegis("audit", "verify", "--trusted", str(tmp_path / name))
        assert done.exit_code == 2
        assert what in done.stderr
        assert "aegis audit checkpoint" in done.stderr


def test_a_verification_of_nothing_is_no_clean_bill(aegis: Aegis, log: str, tmp_path: Path) -> None:
    done = aegis("audit", "verify", "--db", log, "--since", "900")
    assert done.exit_code == 1
    assert "there is no record 900 or later, the log ends with 7" in done.stderr
    empty = tmp_path / "empty.db"
    ensure_schema(empty)
    assert aegis("audit", "verify", "--db", str(empty)).exit_code == 1
    os.replace(empty, log)
    done = aegis("audit", "verify")
    assert (done.exit_code, "nothing was recorded yet" in done.stderr) == (0, True)
    Path(log).with_name("audit.key.signed").write_text('{"aegis/default/0123456789abcdef": "a checkpoint"}')
    assert aegis("audit", "verify").exit_code == 1  # it was written, and is empty now


def test_a_log_is_read_where_nothing_can_be_written(log: str) -> None:
    path = Path(log)
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    second = runpy.run_path(str(Path(__file__).parents[2] / "scripts/verify_audit"), run_name="verify_audit")
    with as_nobody(path):
        assert not os.access(path.parent, os.W_OK)
        with Reader(path) as reader:
            assert reader.verify().records == 7
        assert Log(path).at(7)[2] == 7
        with closing(second["opened"](log)) as db:
            assert db.execute("SELECT count(*) FROM records").fetchone() == (7,)
    path.with_name("audit.db-wal").write_bytes(bytes(5000))
    with as_nobody(path):
        with pytest.raises(OSError, match=r"copy `audit.db`, `audit.db-wal` and `audit.db-shm`"):
            Reader(path)
        with pytest.raises(ValueError, match="copy all its files"):
            second["opened"](log)


@contextmanager
def as_nobody(path: Path) -> Iterator[None]:
    """Nothing in the file's directory can be written, whoever runs the tests."""
    root = os.getuid() == 0
    os.chmod(path.parent, 0o555)
    for each in path.parent.glob("audit.db*"):
        os.chmod(each, 0o444)
    if root:
        os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        if root:
            os.setresuid(0, 0, 0)
        os.chmod(path.parent, 0o755)


@pytest.mark.usefixtures("log")
def test_a_call_is_shown_by_the_number_of_a_record_as_tail_has_it(aegis: Aegis) -> None:
    assert THREE in aegis("audit", "show", "5").stdout
    assert THREE[:12] in aegis("audit", "tail", "-n", "1").stdout
    assert THREE in aegis("audit", "show", "#5").stdout
    for number in ("6", "#6"):  # no call's
        none = aegis("audit", "show", number)
        assert none.exit_code == 1
        assert "record 6, " in none.stderr
        assert "admin reload d; it belongs to no call" in none.stderr
    assert "there is no record #99" in aegis("audit", "show", "#99").stderr
    assert "no call `99`" in aegis("audit", "show", "99").stderr
    assert "judged_us" not in aegis("audit", "show", "5").stdout
    assert rows(aegis, "search", '"number": 7')  # as it is shown; stored without the space


def test_a_purged_log_says_so_instead_of_none(aegis: Aegis, log: str) -> None:
    with closing(sqlite3.connect(log)) as db:
        db.execute("DELETE FROM calls")
        db.execute("INSERT INTO leaves VALUES (7, x'00')")
        db.commit()
    assert "no call is kept (records 1 to 7 were purged)" in aegis("audit", "search").stderr


def test_the_hint_to_allow_is_given_only_where_there_is_something_to_allow(aegis: Aegis, home: str, log: str) -> None:
    hint = f"aegis allow {TWO[:12]}"
    assert hint in aegis("audit", "show", TWO).stderr
    with closing(sqlite3.connect(f"{home}/state.db", isolation_level=None)) as db:
        db.execute("CREATE TABLE pins (backend, kind, name, state, trusted, text)")
        db.execute("INSERT INTO pins VALUES ('github', 'tool', 'get_issue', 'changed', '[]', '')")
    told = aegis("audit", "show", TWO).stderr
    assert hint not in told
    assert "`github` has no tool `drop\\x1b[2Jtable` (1 is known); there is nothing to allow" in told
    Path(f"{home}/aegis.yaml").write_text("agents:\n  claud:\n    roles: []\n")
    assert "there is no agent `claude`; did you mean `claud`?" in aegis("audit", "show", TWO).stderr


def test_what_is_to_be_erased_is_looked_for_before_a_terminal_is_missed(
    served: Served, aegis: Aegis, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks = aegis("audit", "erase", "abc")
    assert asks.exit_code == 2
    assert "asks on a terminal" in asks.stderr

    async def none(ask: Any, *, by: str) -> Any:
        raise api.NotFound("no call `zzz` in the audit log")

    monkeypatch.setattr(served.governor, "erase_audit", none)
    wrong = aegis("audit", "erase", "zzz")
    assert wrong.exit_code == 1
    assert "no call `zzz`" in wrong.stderr


def test_what_changes_the_log_wants_a_daemon_where_nobody_knows_who_asks(aegis: Aegis, log: str) -> None:
    for words in (["purge", "--before", "9d"], ["erase", ONE]):
        done = aegis("audit", *words, "--yes")
        assert (done.exit_code, done.stdout) == (3, "")
        assert "no daemon runs" in done.stderr
        assert "aegis daemon start" in done.stderr


def test_the_newest_checkpoint_is_there_for_programs(aegis: Aegis, log: str, tmp_path: Path) -> None:
    assert aegis("audit", "checkpoint", "--json").exit_code == 1  # nothing was signed yet
    point = Checkpoint("aegis/default/0123456789abcdef", 7, b"r" * 32, ("at 2026-01-31T08:00:00Z",))
    note = write_note(point.text(), [Signature(point.origin, b"1234", b"s" * 64)])
    with closing(sqlite3.connect(log)) as db, db:
        db.execute("CREATE TABLE checkpoints (size INTEGER PRIMARY KEY, note TEXT)")
        db.execute("INSERT INTO checkpoints (size, note) VALUES (?, ?)", (point.size, note))
    assert aegis("audit", "checkpoint").stdout == note
    found = json.loads(aegis("audit", "checkpoint", "--json").stdout)
    assert found == {
        "origin": point.origin, "size": 7, "root": b64encode(b"r" * 32).decode(), "at": "2026-01-31T08:00:00Z",
        "note": note,
    }  # fmt: skip
    kept = tmp_path / "kept"
    assert json.loads(aegis("audit", "checkpoint", "--json", "--out", str(kept)).stdout) == found
    assert kept.read_text(encoding="utf-8") == note + "\n"
