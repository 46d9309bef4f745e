from __future__ import annotations

import json

from manage.memory import MemoryGovernor

from aegis_daemon.manage import shapes

from .conftest import Aegis


def channel(name: str, **changes: object) -> shapes.ChannelRow:
    facts = {"name": name, "ways": "link", "state": "ok", "sent": 3, "failed": 0, "waiting": 0}
    return shapes.ChannelRow.model_validate({**facts, "last_ok_at": "2026-01-31T08:00:00.000Z", **changes})


def test_channels_are_listed_with_what_is_wrong_with_them(governor: MemoryGovernor, aegis: Aegis) -> None:
    governor.channel_rows += [
        channel("generic"),
        channel("telegram", ways="buttons", state="deaf", last_error="another program\x1b[31m polls", last_ok_at=None),
    ]
    for words in (["notify"], ["notify", "list"]):
        done = aegis(*words)
        assert done.exit_code == 0
        lines = done.stdout.splitlines()
        assert lines[0].split()[:2] == ["CHANNEL", "DECIDES"]
        assert "another program\\x1b[31m polls" in lines[2]
        assert "buttons" in lines[2]
    rows = json.loads(aegis("notify", "list", "--json").stdout)
    assert rows == [row.model_dump(mode="json") for row in governor.channel_rows]


def test_without_a_channel_it_says_where_to_add_one(governor: MemoryGovernor, aegis: Aegis) -> None:
    assert "under `approval`" in aegis("notify", "list").stderr
    assert json.loads(aegis("notify", "list", "--json").stdout) == []
    done = aegis("notify", "test")
    assert done.exit_code == 1
    assert "there is nothing to test" in done.stderr


def test_a_test_tells_of_each_channel_and_fails_where_one_did(governor: MemoryGovernor, aegis: Aegis) -> None:
    governor.channel_rows += [channel("generic"), channel("ntfy", last_error="it answered 403")]
    done = aegis("notify", "test")
    assert (done.exit_code, done.stderr) == (1, "generic: sent\nntfy: it answered 403\n")
    done = aegis("notify", "test", "generic", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout) == [{"name": "generic", "ok": True, "detail": ""}]
    done = aegis("notify", "test", "pigeon")
    assert done.exit_code == 1
    assert "no channel `pigeon` is configured" in done.stderr


def test_without_a_daemon_it_says_so(aegis: Aegis) -> None:
    assert aegis("notify", "list").exit_code == 3
    assert aegis("notify", "test").exit_code == 3
