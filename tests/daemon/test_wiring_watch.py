"""A wrapper that is taken out, or a server that is added beside, is found once, told once, and forgotten when mended."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aegis_daemon.clients import catalog, documents, files, ledger, plans, standing, wiring
from aegis_daemon.daemon.wiring_watch import (
    ADDED,
    ALTERED,
    DAMAGED,
    FAILED,
    HELD,
    LOST,
    NO_LOCK,
    OTHER,
    PATIENT,
    REMOVED,
    SLOW,
    UNREAD,
    Finding,
    WiringWatch,
)

DATA = {"mcpServers": {"gh": {"command": "npx", "args": ["gh"]}, "fs": {"command": "npx", "args": ["fs"]}}, "n": 0}


class Watched:
    """A wired file and a watch over it."""

    def __init__(self, tmp: Path) -> None:
        self.state = str(tmp / "state")
        self.path = tmp / "mcp.json"
        self.path.write_text(json.dumps(DATA))
        wrapper = tmp / "aegis-wrap"
        wrapper.write_text("")
        wrapper.chmod(0o755)
        self.here = standing.Here(str(wrapper))
        self.db = sqlite3.connect(tmp / "state.db", isolation_level=None)
        self.recorded: list[str] = []
        self.told: list[str] = []
        self.watch = self.made()

    def made(self) -> WiringWatch:
        def record(action: str, detail: str) -> None:
            assert action == "unwired"
            self.recorded.append(detail)

        def tell(headline: str, text: str) -> bool:
            self.told.append(text)
            return True

        return WiringWatch(self.state, self.db, record=record, tell=tell)

    def wire(self, *names: str) -> None:
        client = catalog.find("cursor")
        assert client is not None
        data, have = self.path.read_bytes(), ledger.load(self.state)
        plan = plans.plan_wire(
            client, str(self.path), data, self.here, have, agent="cursor", change="c", names=set(names) or None
        )
        wiring.apply(plan, self.state, change="c")
        self.watch.expect()  # as the daemon does when the command says what it did

    def value(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.path.read_bytes())
        return found

    def write(self, value: Any) -> None:
        self.path.write_text(value if isinstance(value, str) else json.dumps(value))

    def look(self) -> list[tuple[str, str]]:
        found = self.watch.look()
        assert found is not None
        self.watch.take(found)
        return [(one.name, one.why) for one in found]


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_nothing_is_found_where_nothing_is_wired_or_all_is_as_it_was(watched: Watched) -> None:
    assert watched.look() == []
    watched.wire()
    assert watched.look() == []
    watched.write({**watched.value(), "n": 1})
    assert watched.look() == []
    assert watched.watch.warnings() == ()
    assert (watched.recorded, watched.told) == ([], [])


def test_a_wrapper_that_is_taken_out_is_told_once_even_over_a_restart(watched: Watched) -> None:
    watched.wire()
    value = watched.value()
    value["mcpServers"]["gh"] = DATA["mcpServers"]["gh"]  # type: ignore[index]
    watched.write(value)
    for _ in range(3):
        assert watched.look() == [("gh", REMOVED)]
    watched.watch = watched.made()
    assert watched.look() == [("gh", REMOVED)]
    assert len(watched.recorded) == len(watched.told) == 1
    assert "`gh` of cursor" in watched.told[0]
    assert "aegis agents wire" in watched.watch.warnings()[-1]
    watched.wire()
    assert watched.look() == []
    watched.write(value)
    assert watched.look() == [("gh", REMOVED)]
    assert len(watched.told) == 2


def test_a_server_beside_is_found_and_what_was_left_on_purpose_is_not(watched: Watched) -> None:
    watched.wire("gh")
    assert watched.look() == []
    value = watched.value()
    value["mcpServers"]["new"] = {"command": "node", "args": ["x.js"]}
    watched.write(value)
    assert watched.look() == [("new", ADDED)]


def test_what_we_take_out_ourselves_is_no_finding(watched: Watched) -> None:
    watched.wire()
    client = catalog.find("cursor")
    assert client is not None
    watched.look()
    for names in ({"gh"}, {"fs"}):
        have = ledger.load(watched.state)
        plan = plans.plan_unwire(client, str(watched.path), watched.path.read_bytes(), have, names=names)
        wiring.apply(plan, watched.state)
        watched.watch.expect()  # as the daemon does when the command says what it did
        assert watched.look() == []
    assert not Path(watched.state, ledger.NAME).exists()


def test_it_does_not_look_while_a_command_is_at_work(watched: Watched) -> None:
    watched.wire()
    with files.locked(os.path.join(watched.state, wiring.LOCK)):
        assert watched.watch.look() is None


def test_a_half_written_file_says_what_it_said_before(watched: Watched) -> None:
    watched.wire()
    watched.look()
    whole = watched.path.read_text()
    watched.write(whole[:-9])
    assert watched.look() == []
    watched.path.unlink()
    assert watched.look() == []
    watched.write(whole)
    assert watched.look() == []


def test_a_file_that_did_not_change_is_not_read_and_a_large_one_not_parsed_again(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.wire()
    watched.look()
    reads: list[str] = []
    parses: list[int] = []
    real_read, real_parse = files.read, documents.parse
    monkeypatch.setattr(files, "read", lambda path: reads.append(path) or real_read(path))
    monkeypatch.setattr(documents, "parse", lambda data, format: parses.append(1) or real_parse(data, format))
    watched.look()
    assert reads == []
    watched.write({**watched.value(), "history": ["x" * 1000] * 2000})
    began = time.process_time()
    watched.look()
    assert time.process_time() - began < 1
    assert (reads, parses) == ([str(watched.path)], [])


def test_a_status_stays_short(watched: Watched) -> None:
    watched.watch.take([Finding("/f", f"n{at}", "amy", REMOVED) for at in range(40)])
    assert len(watched.watch.warnings()) == 6
    assert len(watched.recorded) == 21
    assert len(watched.told) == 1
    watched.watch.take([Finding("/f", "a\x1b[2J", "amy", REMOVED)])
    assert "\x1b" not in watched.watch.warnings()[0]


@pytest.mark.parametrize(
    ("name", "entry", "why"),
    [
        (
            "gh",
            {"command": "/tmp/evil/aegis-wrap", "args": ["--agent", "cursor", "--backend", "gh", "--", "npx", "gh"]},
            OTHER,
        ),
        ("gh", {"command": "sh", "args": ["-c", "exec npx gh", "aegis-wrap"]}, OTHER),
        (
            "gh",
            {
                "command": "WRAP",
                "args": ["--agent", "cursor", "--backend", "gh", "--socket", "/e.sock", "--", "npx", "gh"],
            },
            OTHER,
        ),
        (
            "gh",
            {
                "command": "WRAP",
                "args": ["--agent", "cursor", "--backend", "gh", "--", "npx"],
                "env": {"AEGIS_HOME": "/e"},
            },
            OTHER,
        ),
        ("gh", {"command": "WRAP", "args": ["--agent", "another", "--backend", "gh", "--", "npx", "gh"]}, OTHER),
        ("gh", {"type": "http", "url": "https://evil.example/agents/cursor/backends/gh/mcp"}, OTHER),
        ("gh", {"command": "npx", "url": "https://x.example/mcp"}, REMOVED),
        ("new", {"command": "node", "args": ["x.js", "aegis-wrap"]}, ADDED),
        ("new", {"command": "env", "args": ["AEGIS_HOME=/e", "WRAP", "--", "npx"]}, ADDED),
        ("new", {"command": "WRAP", "args": ["--agent", "cursor", "--backend", "x", "--", "npx", "x"]}, None),
        (
            "gh",
            {"command": "WRAP", "args": ["--agent", "cursor", "--backend", "gh", "--", "npx", "gh", "--more"]},
            None,
        ),
    ],
)
def test_an_entry_that_names_us_is_believed_only_where_it_leads_to_us(
    watched: Watched, name: str, entry: dict[str, Any], why: str | None
) -> None:
    watched.wire()
    value = watched.value()
    value["mcpServers"][name] = json.loads(json.dumps(entry).replace("WRAP", watched.here.wrapper))
    watched.write(value)
    assert watched.look() == ([] if why is None else [(name, why)])


def test_a_list_that_vanishes_is_told_and_what_was_in_it_is_watched_on(watched: Watched) -> None:
    watched.wire()
    assert watched.look() == []
    os.unlink(Path(watched.state, ledger.NAME))
    assert watched.watch.look() is None
    assert sorted(watched.look()) == [("fs", LOST), ("gh", LOST)]
    assert sorted(watched.look()) == [("fs", LOST), ("gh", LOST)]
    assert len(watched.told) == 1
    watched.write(DATA)
    watched.wire()
    assert watched.look() == []


def test_a_list_that_is_damaged_is_told_and_the_last_one_holds(watched: Watched) -> None:
    watched.wire()
    watched.look()
    path = Path(watched.state, ledger.NAME)
    whole = path.read_bytes()
    path.write_bytes(b"{")
    watched.write({**watched.value(), "mcpServers": DATA["mcpServers"]})
    assert {why for _, why in watched.look()} == {DAMAGED, REMOVED}
    path.write_bytes(whole)
    assert {why for _, why in watched.look()} == {REMOVED}


def test_a_lock_that_is_held_for_long_is_told_and_does_not_keep_it_from_looking(watched: Watched) -> None:
    watched.wire()
    watched.look()
    watched.write(DATA)
    lock = os.path.join(watched.state, wiring.LOCK)
    with files.locked(lock):
        for _ in range(PATIENT):
            assert watched.watch.look() is None
        assert {why for _, why in watched.look()} == {HELD, REMOVED}
        assert any(lock in one for one in watched.watch.warnings())
    assert {why for _, why in watched.look()} == {REMOVED}


@pytest.mark.parametrize("content", ["{", " " * (17 << 20)])
def test_a_file_that_stays_unreadable_is_told(watched: Watched, content: str) -> None:
    watched.wire()
    whole = watched.path.read_text()
    watched.look()
    watched.write(whole + content)
    for _ in range(PATIENT - 1):
        assert watched.look() == []
    assert watched.look() == [("", UNREAD)]
    watched.write(whole)
    assert watched.look() == []


def test_a_file_of_any_format_is_watched(watched: Watched) -> None:
    watched.path = watched.path.with_suffix(".yaml")
    watched.path.write_text("mcpServers:\n  a:\n    command: x\n")
    client = catalog.by_file(watched.path, watched.path.read_bytes())
    data = watched.path.read_bytes()
    plan = plans.plan_wire(client, str(watched.path), data, watched.here, ledger.Ledger(), agent="amy", change="c")
    wiring.apply(plan, watched.state, change="c")
    assert watched.look() == []
    watched.path.write_bytes(data)
    assert watched.look() == [("a", REMOVED)]


def _forge(watched: Watched, edit: Callable[[dict[str, Any]], None]) -> None:
    path = Path(watched.state, ledger.NAME)
    value = json.loads(path.read_bytes())
    edit(value)
    path.write_text(json.dumps(value))


def _as_unwrapped(value: dict[str, Any]) -> None:
    for one in value["records"]:
        one["ours"] = one["original"]


def _doubled(value: dict[str, Any]) -> None:
    first = value["records"][0]
    value["records"].insert(0, {**first, "ours": first["original"]})


def _left(value: dict[str, Any]) -> None:
    value["files"][0]["left"] = ["gh", "fs", "new"]


def _more(value: dict[str, Any]) -> None:
    entry = {"command": "node", "args": ["x.js"]}
    new = {"name": "new", "keys": ["mcpServers", "new"], "ours": entry}
    value["records"].append({**value["records"][0], **new})


def _another_client(value: dict[str, Any]) -> None:
    value["files"][0]["client"] = "zed"


def _no_file(value: dict[str, Any]) -> None:
    value["files"] = []


@pytest.mark.parametrize("edit", [_as_unwrapped, _doubled, _left, _more, _another_client, _no_file])
def test_a_list_that_was_made_to_say_something_else_hides_nothing(
    watched: Watched, edit: Callable[[dict[str, Any]], None]
) -> None:
    watched.wire()
    watched.look()
    _forge(watched, edit)
    assert watched.watch.look() is None  # a command may be about to say so
    said = {why for _, why in watched.look()}
    assert said == ({LOST} if edit is _no_file else {ALTERED})
    entries = DATA["mcpServers"] | {"new": {"command": "node", "args": ["x.js"]}}  # type: ignore[operator]
    watched.write({"mcpServers": entries})
    found = dict(watched.look())
    assert edit is _no_file or (found["gh"], found["fs"], found["new"]) == (REMOVED, REMOVED, ADDED)
    assert len(watched.told) >= 1


def test_what_a_person_wires_later_is_taken_over(watched: Watched) -> None:
    watched.wire("gh")
    watched.look()
    watched.wire("fs")
    assert watched.look() == []


def test_a_lock_that_is_no_file_neither_holds_it_up_nor_goes_untold(watched: Watched) -> None:
    watched.wire()
    watched.look()
    lock = Path(watched.state, wiring.LOCK)
    lock.unlink()
    os.mkfifo(lock)
    watched.write(DATA)
    for _ in range(PATIENT):
        assert watched.watch.look() is None
    assert {why for _, why in watched.look()} == {NO_LOCK, REMOVED}
    with pytest.raises(OSError, match="no file that could be locked"), files.locked(str(lock)):
        pass


def test_a_list_that_nests_without_end_is_damaged(watched: Watched) -> None:
    watched.wire()
    watched.look()
    Path(watched.state, ledger.NAME).write_text('{"records":[{"original":' + "[" * 100_000)
    assert {why for _, why in watched.look()} == {DAMAGED}
    with pytest.raises(ledger.Unreadable, match="damaged"):
        ledger.load(watched.state)


@pytest.mark.parametrize("why", [SLOW, FAILED])
def test_a_look_that_does_not_end_or_fails_is_told_and_the_watch_ends_when_asked(watched: Watched, why: str) -> None:
    held = threading.Event()

    def look() -> None:
        if why == FAILED:
            raise RuntimeError("odd")
        held.wait(20)

    async def run() -> None:
        told = asyncio.Event()
        watched.watch = WiringWatch(
            watched.state, watched.db, record=lambda *_: told.set(), tell=lambda *_: True, every=0.05, slow=0.05
        )
        watched.watch.look = look  # type: ignore[method-assign]
        watched.watch.start()
        await told.wait()
        await watched.watch.close()

    asyncio.run(run())  # joins what a pool still does
    assert [one.why for one in watched.watch.found] == [why]
    assert not held.is_set()
    held.set()
