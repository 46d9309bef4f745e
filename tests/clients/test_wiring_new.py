"""A server that a client's file does not have gets an entry of its own there, which goes again byte for byte."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from aegis_daemon.clients import catalog, documents, entries, files, ledger, plans, standing, wiring
from aegis_daemon.clients.catalog import Client
from aegis_daemon.clients.entries import Entry
from aegis_daemon.clients.plans import Plan
from aegis_daemon.clients.standing import Here

CONFIGS = Path(__file__).with_name("configs")
SERVER = Entry("far", (), "http", url="https://far.example/mcp", transport="http")
HTTP = {"http": "127.0.0.1:18070"}


@pytest.fixture
def here(tmp_path: Path) -> Here:
    wrapper = tmp_path / "bin" / "aegis-wrap"
    wrapper.parent.mkdir()
    wrapper.write_text("#!/bin/sh\n")
    wrapper.chmod(0o755)
    return Here(str(wrapper))


def client_of(name: str) -> Client:
    """The client of one of the configurations, whose format may be any for a generic one."""
    path = CONFIGS / name
    found = catalog.find(path.stem.split(".")[0])
    return catalog.by_file(path, path.read_bytes()) if found is None or found.generic else found


def added(client: Client, path: Path, here: Here, state: str, backend: str = "far", change: str = "c1") -> Plan:
    data = path.read_bytes() if path.exists() else None
    plan = plans.plan_add(client, str(path), data, here, SERVER, agent="amy", backend=backend, change=change)
    wiring.apply(plan, state, change=change)
    return plan


def taken_out(client: Client, path: Path, state: str, **which: object) -> Plan:
    plan = plans.plan_unwire(client, str(path), path.read_bytes(), ledger.load(state), **which)  # type: ignore[arg-type]
    wiring.apply(plan, state)
    return plan


@pytest.mark.parametrize("http", [False, True])
@pytest.mark.parametrize("name", sorted(one.name for one in CONFIGS.iterdir()))
def test_any_client_gets_an_entry_that_is_ours_and_loses_it_byte_for_byte(
    name: str, http: bool, here: Here, tmp_path: Path
) -> None:
    client, state = client_of(name), str(tmp_path / "state")
    path = tmp_path / name
    path.write_bytes(before := (CONFIGS / name).read_bytes())
    place = replace(here, **HTTP) if http else here
    theirs = {one.name for one in entries.read(client, documents.parse(before, client.format))}
    added(client, path, place, state)
    document = documents.parse(path.read_bytes(), client.format)
    (found,) = (one for one in standing.survey(client, str(path), document, place, ledger.load(state)) if one.record)
    assert (found.name, found.state, found.why) == ("far", "wired", "")
    assert found.ours is not None
    assert found.ours.way == "wrap"
    assert (found.ours.agent, found.ours.backend) == ("amy", "far")
    assert {one.name for one in entries.read(client, document)} == theirs | {"far"}
    plan = taken_out(client, path, state)
    assert (plan.exact, path.read_bytes()) == (True, before)
    assert ledger.load(state) == ledger.Ledger()


@pytest.mark.parametrize("name", ["cursor.json", "codex.toml", "goose.yaml", "continue.yaml", "opencode.jsonc"])
def test_a_file_that_is_not_there_is_made_and_goes_again(name: str, here: Here, tmp_path: Path) -> None:
    client, state, path = client_of(name), str(tmp_path / "state"), tmp_path / name
    added(client, path, here, state)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in entries.read(client, documents.parse(path.read_bytes(), client.format))] == ["far"]
    added(client, path, here, state, backend="near", change="c2")
    assert taken_out(client, path, state).exact
    assert not path.exists()
    assert ledger.load(state) == ledger.Ledger()


def test_a_file_with_anything_else_in_it_is_not_deleted_whatever_the_ledger_says(here: Here, tmp_path: Path) -> None:
    client, state, path = client_of("cursor.json"), str(tmp_path / "state"), tmp_path / "cursor.json"
    added(client, path, here, state)
    path.write_bytes(now := path.read_bytes().replace(b"{", b'{"theirs": 1, ', 1))
    have = ledger.load(state)
    ledger.save(
        state, msgspec.structs.replace(have, files=(msgspec.structs.replace(have.files[0], after=files.digest(now)),))
    )
    assert not taken_out(client, path, state).exact
    assert json.loads(path.read_bytes())["theirs"] == 1


def test_a_file_that_appeared_meanwhile_is_left(here: Here, tmp_path: Path) -> None:
    client, state, path = client_of("cursor.json"), str(tmp_path / "state"), tmp_path / "cursor.json"
    plan = plans.plan_add(client, str(path), None, here, SERVER, agent="amy", backend="far", change="c1")
    path.write_bytes(b"{}")
    with pytest.raises(files.Moved):
        wiring.apply(plan, state, change="c1")
    assert path.read_bytes() == b"{}"
    assert ledger.load(state) == ledger.Ledger()


@pytest.mark.parametrize("name", ["cursor.json", "codex.toml", "continue.yaml"])
def test_where_the_file_was_edited_since_the_new_entries_alone_go(name: str, here: Here, tmp_path: Path) -> None:
    """Two of them: in a list the place of the second changes when the first goes."""
    client, state, path = client_of(name), str(tmp_path / "state"), tmp_path / name
    path.write_bytes((CONFIGS / name).read_bytes())
    before = entries.read(client, documents.parse(path.read_bytes(), client.format))
    added(client, path, here, state)
    added(client, path, here, state, backend="near", change="c2")
    comment = b"\n" if name.endswith("json") else b"# mine\n"
    path.write_bytes(path.read_bytes() + comment)
    assert {one.name for one in taken_out(client, path, state).changes} == {"far", "near"}
    assert path.read_bytes().endswith(comment)
    assert entries.read(client, documents.parse(path.read_bytes(), client.format)) == before
    assert ledger.load(state) == ledger.Ledger()


def test_an_entry_of_the_same_name_is_never_taken_over(here: Here, tmp_path: Path) -> None:
    client, state, path = client_of("cursor.json"), str(tmp_path / "state"), tmp_path / "mcp.json"
    path.write_text('{"mcpServers": {"far": {"command": "x"}, "far-2": 7}}')
    assert [one.name for one in added(client, path, here, state).changes] == ["far-3"]
    assert '"far": {"command": "x"}, "far-2": 7' in path.read_text()


def test_a_name_holds_nothing_that_a_client_would_refuse(here: Here, tmp_path: Path) -> None:
    client, state, path = client_of("codex.toml"), str(tmp_path / "state"), tmp_path / "config.toml"
    (change,) = added(client, path, here, state, backend="127.0.0.1").changes
    assert (change.name, change.backend) == ("127-0-0-1", "127.0.0.1")


def test_a_new_entry_whose_wrapper_moved_is_mended_and_goes_as_a_whole_all_the_same(here: Here, tmp_path: Path) -> None:
    client, state, path = client_of("cursor.json"), str(tmp_path / "state"), tmp_path / "mcp.json"
    path.write_text("{}")
    added(client, path, here, state)
    other = tmp_path / "elsewhere" / "aegis-wrap"
    other.parent.mkdir()
    os.rename(here.wrapper, other)
    moved = replace(here, wrapper=str(other), **HTTP)
    plan = plans.plan_wire(
        client, str(path), path.read_bytes(), moved, ledger.load(state), agent="amy", change="c2"
    )  # fmt: skip
    assert [one.state for one in plan.changes] == ["stale"]
    wiring.apply(plan, state, change="c2")
    assert str(other) in path.read_text()
    assert "http" not in path.read_text()
    path.write_bytes(path.read_bytes() + b"\n")
    assert taken_out(client, path, state).left == ()
    assert entries.read(client, documents.parse(path.read_bytes(), client.format)) == []


def test_what_a_person_put_in_the_place_of_a_new_entry_stays(here: Here, tmp_path: Path) -> None:
    client, state, path = client_of("cursor.json"), str(tmp_path / "state"), tmp_path / "mcp.json"
    path.write_text("{}")
    added(client, path, here, state)
    path.write_text(now := '{"mcpServers": {"far": {"command": "mine"}}}')
    assert taken_out(client, path, state).changes == ()
    assert path.read_text() == now
    assert ledger.load(state) == ledger.Ledger()


def test_a_client_that_starts_commands_only_gets_one_whatever_is_served(here: Here, tmp_path: Path) -> None:
    client, state, path = client_of("claude-desktop.json"), str(tmp_path / "state"), tmp_path / "c.json"
    (change,) = added(client, path, replace(here, **HTTP), state).changes
    assert change.after == {"command": here.wrapper, "args": ["--agent", "amy", "--backend", "far"]}
