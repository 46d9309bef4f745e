"""Who comes in over the network is told apart by path and token, and those who guess keep nobody else out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from playbook import Play

from aegis_daemon.core.ports import Turned
from aegis_daemon.daemon.reception import AGAIN_MOST, AGAIN_S, WRONG_TOKENS, Reception
from aegis_daemon.daemon.sessions import Sessions
from aegis_daemon.relay.admission import Refused
from aegis_daemon.relay.lateness import Lateness

TOKEN, WRONG = "0123456789abcdef", "fedcba9876543210"
BOT = f"agents: {{bot: {{auth_token: {TOKEN}, backends: {{files: {{allowed: true}}}}}}}}"


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Play]:
    made = Play(f"backends: {{files: {{}}}}\n{BOT}", store=tmp_path / "tickets.db")
    yield made
    made.finish()


def reception(play: Play) -> Reception:
    return Reception(SimpleNamespace(stopping=False), play.shell)  # type: ignore[arg-type]


def status(front: Reception, token: str | None, peer: str) -> int:
    try:
        front.admit("bot", token, peer)
    except Turned as turned:
        return turned.status
    return 200


def test_the_right_token_is_taken_from_an_address_that_others_guess_from(play: Play) -> None:
    front = reception(play)
    tries = [status(front, WRONG, "127.0.0.1") for _ in range(int(WRONG_TOKENS.split()[0]) + 1)]
    assert (set(tries[:-1]), tries[-1]) == ({401}, 429)
    assert status(front, TOKEN, "127.0.0.1") == 200
    assert status(front, WRONG, "192.0.2.1") == 401


def test_one_customers_ipv6_addresses_count_as_one(play: Play) -> None:
    front = reception(play)
    for number in range(int(WRONG_TOKENS.split()[0])):
        assert status(front, WRONG, f"2001:db8:1:2::{number:x}") == 401
    assert status(front, WRONG, "2001:db8:1:2:ffff::1") == 429
    assert status(front, WRONG, "2001:db8:1:3::1") == 401


@pytest.mark.parametrize(
    ("rules", "stays"),
    [
        (BOT, True),
        (BOT.replace(TOKEN, WRONG), False),
        (BOT.replace(f"auth_token: {TOKEN}, ", ""), False),
        (BOT.replace("backends", "roles: [x], backends"), False),
        ("agents: {}", False),
        ("agents: {}\ndefaults: {unlisted: observe}", False),
    ],
)
def test_a_session_stays_only_where_what_it_showed_still_holds(play: Play, rules: str, stays: bool) -> None:
    front = reception(play)
    principal = front.admit("bot", TOKEN, "127.0.0.1")
    play.reload(f"backends: {{files: {{}}}}\n{rules}")
    assert front.still(principal) is stays


def test_inventing_names_gives_nobody_more_sessions_than_one_agent_has(play: Play) -> None:
    play.reload(f"server: {{max_sessions_agent: 2}}\ndefaults: {{unlisted: observe}}\nbackends: {{files: {{}}}}\n{BOT}")
    sessions = Sessions(None, play.shell, None, None, play.owners)  # type: ignore[arg-type]

    sessions.enter("one")
    sessions.enter("two")
    with pytest.raises(Refused, match="not configured"):
        sessions.enter("three")
    assert "not configured" in sessions.warnings()[0]
    sessions.enter("bot")
    sessions.leave("one")
    sessions.enter("three")


def test_one_session_tries_a_backend_that_is_late_and_the_others_follow_where_it_is_well(play: Play) -> None:
    late = Lateness()
    front = Reception(SimpleNamespace(stopping=False, lateness=late), play.shell)  # type: ignore[arg-type]
    tried: list[int] = []

    class Waiting:
        def __init__(self, number: int) -> None:
            self.number = number
            self.missing = {"files"}

        def again(self, name: str) -> None:
            self.missing.discard(name)
            tried.append(self.number)

    front._hubs.update(Waiting(number) for number in range(AGAIN_MOST + 5))  # type: ignore[misc]
    late.late("files", "bot", 0.0, begins=True)
    for _ in range(3):
        front.sweep()
    assert len(tried) == 1
    play.advance(AGAIN_S)
    front.sweep()
    assert len(tried) == 2
    late.in_time("files", begins=True)
    front.sweep()
    assert len(tried) == 2 + AGAIN_MOST
    front.sweep()
    assert sorted(tried) == list(range(AGAIN_MOST + 5))


def test_whoever_is_turned_away_is_recorded_and_a_flood_of_names_is_not_one_of_records(play: Play) -> None:
    front = reception(play)
    assert status(front, WRONG, "127.0.0.1") == status(front, None, "127.0.0.1") == 401
    for number in range(500):
        with pytest.raises(Turned):
            front.admit(f"agent{number}", None, "127.0.0.1")
    front.sweep()
    records = [record for record in play.log.records if record.kind == "dropped"]
    assert [(one.agent, one.count, one.reason) for one in records if one.agent in ("bot", "agent0")] == [
        ("bot", 1, "turned away with status 401: a wrong token"),
        ("bot", 1, "turned away with status 401: it showed no token"),
        ("agent0", 1, "turned away with status 401: it is not in `agents`"),
    ]
    assert sum(one.count for one in records) == 502
    assert len(records) < 100
