from __future__ import annotations

import json
import os
import time

import pytest
from manage.memory import MemoryGovernor, Served, instant, ticket

from aegis_daemon.cli.watch import STEADY_S, Board
from aegis_daemon.manage import shapes

from .conftest import Aegis
from .terminal import Terminal, strip

EVIL = '{"body":"\\u001b[8mhidden\\u001b[0m","path":"gpj\\u202eexe","n":12345678901234567890123}'


def test_scripts_decide_with_yes_and_hear_of_each(governor: MemoryGovernor, aegis: Aegis) -> None:
    governor.tickets += [ticket("AAAA"), ticket("BBBB")]
    done = aegis("approve", "AAAA", "ZZZZ", "BBBB", "--yes", "--note", "looks fine", "--json")
    assert done.exit_code == 1
    assert [row["state"] for row in json.loads(done.stdout)] == ["approved", "approved"]
    assert "no ticket `ZZZZ`" in done.stderr
    assert [(id, approve, via, note) for id, approve, _, via, note in governor.decided] == [
        ("AAAA", True, "cli", "looks fine"),
        ("BBBB", True, "cli", "looks fine"),
    ]


def test_a_second_decision_hears_who_took_the_first(governor: MemoryGovernor, aegis: Aegis) -> None:
    governor.tickets.append(ticket("AAAA"))
    assert aegis("approve", "AAAA", "--yes").exit_code == 0
    again = aegis("reject", "AAAA", "--yes", "--reason", "no")
    assert again.exit_code == 1
    assert again.stderr.startswith("error: `AAAA` was approved by")


def test_who_approves_a_call_that_no_client_waits_for_hears_when_it_runs(
    governor: MemoryGovernor, aegis: Aegis
) -> None:
    governor.tickets += [ticket("AAAA"), ticket("BBBB", waiting=False), ticket("CCCC", waiting=False)]
    done = aegis("approve", "AAAA", "BBBB", "--yes")
    assert done.exit_code == 0
    assert "no client waits for BBBB now: approved, a call runs once its agent asks again" in done.stderr
    assert "no client waits" not in aegis("reject", "CCCC", "--yes").stderr


def test_what_is_approved_is_not_said_to_need_a_decision(governor: MemoryGovernor, aegis: Aegis) -> None:
    governor.tickets.append(ticket("AAAA", state="approved", waiting=False))
    assert "decide with" not in aegis("pending").stderr
    assert "once its agent asks again" in aegis("pending").stderr
    governor.tickets.append(ticket("BBBB"))
    assert "decide with" in aegis("pending").stderr


def test_without_a_terminal_and_without_yes_nothing_is_decided(governor: MemoryGovernor, aegis: Aegis) -> None:
    governor.tickets.append(ticket("AAAA"))
    done = aegis("approve", "AAAA", input="y\n")
    assert done.exit_code == 2
    assert "--yes" in done.stderr
    for word in ("approve", "reject"):
        wrong = aegis(word, "AAAA", "XXXX")
        assert wrong.exit_code == 1
        assert "nothing that waits is called `XXXX`" in wrong.stderr
    assert not governor.decided


def test_an_overlong_note_is_a_matter_of_usage(governor: MemoryGovernor, aegis: Aegis) -> None:
    assert aegis("reject", "AAAA", "--yes", "--reason", "x" * 501).exit_code == 2


def test_a_governed_agents_shell_is_refused_and_a_key_file_helps(
    governor: MemoryGovernor, aegis: Aegis, home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    governor.tickets.append(ticket("AAAA"))
    governor.refusal = "the request comes from `claude` (pid 7)"
    refused = aegis("approve", "AAAA", "--yes")
    assert refused.exit_code == 1
    assert "`claude`" in refused.stderr
    assert "AEGIS_APPROVER_KEY" in refused.stderr
    monkeypatch.setenv("AEGIS_APPROVER_KEY", f"{home}/approver.key")
    missing = aegis("approve", "AAAA", "--yes")
    assert missing.exit_code == 2
    assert "cannot be read" in missing.stderr
    with open(f"{home}/approver.key", "w") as file:
        file.write("the right key\n")
    assert aegis("approve", "AAAA", "--yes").exit_code == 0
    assert governor.asked[-1] == (os.getpid(), "the right key")


# --- on a terminal ----------------------------------------------------------------------------------------------------


def test_a_person_sees_the_whole_call_and_is_asked(served: Served) -> None:
    made = ticket("AAAA", arguments=EVIL, waiting=False)
    served.governor.tickets.append(made)
    with Terminal("approve", "aaaa") as terminal:
        shown = terminal.expect("approve AAAA? [y/N]")
        for text in (
            "github.delete_repo",
            "claude",
            made.rule,
            "\\u001b[8mhidden",
            "gpj\\u202eexe",
            "its client has gone",
        ):
            assert text in shown
        assert "12345678901234567890123" in shown
        assert "\u202e" not in shown
        assert "\x1b[8m" not in shown
        terminal.send("y\r")
        assert terminal.end() == 0
    # By its call id: the ticket id may be another's by the time a person has read this one.
    assert served.governor.decided[0][0] == made.call_id


@pytest.mark.parametrize("answer", ["n\r", "\r", "\x04", None])
def test_any_answer_but_yes_decides_nothing(served: Served, answer: str | None) -> None:
    served.governor.tickets.append(ticket("AAAA"))
    with Terminal("reject", "AAAA") as terminal:
        terminal.expect("reject AAAA? [y/N]")
        if answer is None:
            terminal.interrupts()
        else:
            terminal.send(answer)
        assert terminal.end() in (1, 130)
        assert "Traceback" not in terminal.shown
    assert not served.governor.decided


def test_no_argument_is_so_long_that_the_next_is_not_shown(served: Served) -> None:
    arguments = json.dumps({"lines": list(range(2000)), "target": "/etc/passwd"})
    served.governor.tickets.append(ticket("AAAA", arguments=arguments))
    with Terminal("approve", "AAAA") as terminal:
        shown = strip(terminal.expect("approve AAAA? [y/N]"))
    assert '"target": "/etc/passwd"' in shown
    assert "these were 2005 lines of arguments for github.delete_repo" in shown


# --- the live view ----------------------------------------------------------------------------------------------------


def test_the_live_view_rings_shows_and_decides(served: Served) -> None:
    made = ticket("AAAA", arguments=EVIL, expires_at=instant(290))
    with Terminal("pending", "--watch") as terminal:
        terminal.expect("nothing waits for you")
        served.governor.tickets.append(made)
        served.do(served.governor.tell, "opened", made)
        raw = terminal.expect("a approve")
        assert "\x07" in raw
        assert "\u202e" not in raw
        assert "\x1b[8m" not in raw
        shown = strip(raw)
        for text in ("AAAA", "claude", "github.delete_repo", "\\u202eexe", "4m"):
            assert text in shown
        terminal.send("a")
        terminal.expect("look again")  # it has just appeared
        time.sleep(STEADY_S)
        terminal.send("a")
        terminal.expect("approve AAAA?")
        terminal.send("y")
        terminal.expect("approved AAAA")
        terminal.send("q")
        assert terminal.end() == 0
    assert served.governor.decided[0][:2] == (made.call_id, True)


def test_the_live_view_outlives_a_daemon_that_restarts(served: Served, home: str) -> None:
    served.governor.tickets.append(ticket("AAAA"))
    with Terminal("pending", "--watch") as terminal:
        terminal.expect("AAAA")
        served.__exit__()
        terminal.expect("the daemon is away")
        again = MemoryGovernor()
        again.tickets.append(ticket("BBBB"))
        with Served(again, f"{home}/manage.sock"):
            terminal.expect("BBBB")
            terminal.send("\x03")
            assert terminal.end() == 0


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def board(*ids: str) -> tuple[Board, Clock]:
    clock = Clock()
    made = Board(lambda _: True, clock)
    made.begin()
    for id in ids:
        assert made.apply({"event": "opened", "ticket": ticket(id).model_dump(), "by": None})
    clock.now += STEADY_S
    return made, clock


def drawn(made: Board, now: float = 0, height: int = 40) -> str:
    from rich.console import Console

    console = Console(width=120, record=True, file=open(os.devnull, "w"), markup=False)  # noqa: SIM115
    with console.file:
        console.print(made.draw(now, height))
    return console.export_text()


def test_a_decision_takes_a_key_and_a_yes() -> None:
    made, _ = board("AAAA", "BBBB")
    assert made.press("a") is None
    decision = made.press("y")
    assert decision is not None
    assert (decision.ticket["id"], decision.approve) == ("AAAA", True)
    made.press("j")
    made.press("r")
    decision = made.press("y")
    assert decision is not None
    assert (decision.ticket["id"], decision.approve) == ("BBBB", False)


@pytest.mark.parametrize("key", ["n", "a", "\r", " ", "\x1b", "q"])
def test_after_a_key_anything_but_yes_leaves_the_ticket(key: str) -> None:
    made, _ = board("AAAA")
    made.press("a")
    assert made.press(key) is None
    assert made.press("y") is None


def test_keys_meant_for_a_ticket_that_has_gone_do_not_meet_the_next() -> None:
    made, clock = board("AAAA", "BBBB")
    made.press("a")
    made.apply({"event": "expired", "ticket": ticket("AAAA", state="expired").model_dump(), "by": None})
    assert made.press("y") is None
    made.press("a")
    assert made.press("y") is None
    clock.now += STEADY_S
    made.press("a")
    assert made.press("y") is not None


def test_a_ticket_that_comes_does_not_move_the_choice() -> None:
    made, _ = board("AAAA")
    made.press("a")
    made.apply({"event": "opened", "ticket": ticket("BBBB").model_dump(), "by": None})
    decision = made.press("y")
    assert decision is not None
    assert decision.ticket["id"] == "AAAA"


def test_an_approved_ticket_stays_in_view_and_cannot_be_decided_again() -> None:
    made, _ = board("AAAA")
    made.apply({"event": "decided", "ticket": ticket("AAAA", state="approved").model_dump(), "by": "ann\x1b"})
    assert "approved by ann\\x1b" in drawn(made)
    made.press("a")
    assert made.press("y") is None
    made.apply({"event": "consumed", "ticket": ticket("AAAA", state="consumed").model_dump(), "by": "ann"})
    assert not made.tickets


def test_what_is_to_be_decided_stands_before_what_is_approved_and_is_chosen() -> None:
    made, clock = board()
    for row in (ticket("AAAA", state="approved", waiting=False), ticket("BBBB"), ticket("CCCC")):
        made.apply({"event": "opened", "ticket": row.model_dump(), "by": None})
    shown = drawn(made)
    assert shown.index("BBBB") < shown.index("CCCC") < shown.index("AAAA")
    assert "(approved)" in shown
    made.press("a")
    assert made.press("y") is None  # the choice has just moved there
    clock.now += STEADY_S
    made.press("a")
    decision = made.press("y")
    assert decision is not None
    assert decision.ticket["id"] == "BBBB"


def test_filters_hold_in_the_live_view_and_ring_no_bell() -> None:
    made = Board(lambda row: row["agent_id"] == "claude")
    made.begin()
    assert not made.apply({"event": "opened", "ticket": ticket("AAAA", agent_id="x").model_dump(), "by": None})
    assert not made.tickets


def test_many_tickets_fit_the_screen_around_the_chosen_one() -> None:
    made, _ = board(*(f"A{number:03}" for number in range(100)))
    for _ in range(50):
        made.press("j")
    shown = drawn(made, height=30)
    assert "▸" in shown
    assert "A050" in shown
    assert "100 in all" in shown
    assert len(shown.splitlines()) <= 30


def test_long_arguments_in_the_live_view_say_that_they_are_cut() -> None:
    made, _ = board()
    made.apply(
        {
            "event": "opened",
            "ticket": ticket("AAAA", arguments=json.dumps({"x": list(range(500))})).model_dump(),
            "by": None,
        }
    )
    assert "more lines: read all of it with `aegis approve AAAA`" in drawn(made)


@pytest.mark.parametrize(
    "changes",
    [
        {"arguments": json.dumps({"x": list(range(500)), "target": "/etc"})},
        {"arguments": json.dumps({"x": " " * 5000, "target": "/etc"})},
        {"tool_name": "read" + " " * 200},
    ],
    ids=["lines", "one long line", "name"],
)
def test_what_the_live_view_does_not_show_whole_is_rejected_there_and_never_approved(changes: dict[str, str]) -> None:
    made, clock = board()
    made.apply({"event": "opened", "ticket": ticket("AAAA", **changes).model_dump(), "by": None})
    clock.now += STEADY_S
    made.press("a")
    assert made.press("y") is None
    assert "aegis approve AAAA" in drawn(made)
    made.press("r")
    decision = made.press("y")
    assert decision is not None
    assert not decision.approve


def test_markup_in_names_is_shown_as_it_is() -> None:
    made, _ = board()
    hostile = ticket("AAAA", agent_id="[red]x[/red]", tool_name="[link=http://evil]y[/link]", expires_at=instant(30))
    made.apply({"event": "opened", "ticket": hostile.model_dump(), "by": None})
    shown = drawn(made)
    assert "[red]x[/red]" in shown
    assert "[link=http://evil]y[/link]" in shown


# --- remembered, by two, paused, and more than a limit says -----------------------------------------------------------


def grant_row(**changes: object) -> shapes.Grant:
    row = {
        "id": "G-7QX2", "agent_id": "claude", "backend_id": "github", "method": "tools/call",
        "tool_name": "create_issue", "arguments": '{"repo":"acme/x","title":"\\u001b[8mone"}', "free": ("title",),
        "rule": "r", "by": "ann", "created_at": instant(-5), "expires_at": instant(600), "uses_left": 20,
        "from_call": "c" * 32,
    }  # fmt: skip
    return shapes.Grant.model_validate({**row, **changes})


def test_an_approval_is_remembered_as_asked(governor: MemoryGovernor, aegis: Aegis) -> None:
    governor.tickets.append(ticket("AAAA"))
    done = aegis(
        "approve", "AAAA", "--yes", "--for", "1h30m", "--any", "repo", "--any", "title", "--uses", "20", "--json"
    )
    assert done.exit_code == 0
    assert json.loads(done.stdout)[0]["grant"] == "G-7QX2"
    assert "remembered as G-7QX2" in done.stderr
    (asked,) = governor.asked_grants
    assert asked == shapes.GrantAsk(seconds=5400.0, free=("repo", "title"), uses=20)
    governor.tickets.append(ticket("BBBB"))
    assert aegis("approve", "BBBB", "--yes", "--for", "5s", "--any-arguments").exit_code == 0
    assert governor.asked_grants[-1] == shapes.GrantAsk(seconds=5.0, any_arguments=True)
    governor.tickets.append(ticket("CCCC"))
    assert aegis("approve", "CCCC", "--yes").exit_code == 0
    assert governor.asked_grants[-1] is None


@pytest.mark.parametrize(
    "words",
    [
        ["--any", "title"], ["--any-arguments"], ["--uses", "3"], ["--for", "soon"], ["--for", "0s"], ["--for", "-1m"],
        ["--for", "1m", "--any", "a", "--any-arguments"], ["--for", "1m", "--uses", "0"],
    ],
)  # fmt: skip
def test_what_makes_no_grant_is_a_matter_of_usage_and_decides_nothing(
    governor: MemoryGovernor, aegis: Aegis, words: list[str]
) -> None:
    governor.tickets.append(ticket("AAAA"))
    assert aegis("approve", "AAAA", "--yes", *words).exit_code == 2
    assert not governor.decided


def test_a_person_reads_what_would_be_remembered_before_saying_yes(served: Served) -> None:
    arguments = json.dumps({"repo": "acme/x", "title": "one\x1b[8m", "n": 1})
    served.governor.tickets.append(ticket("AAAA", arguments=arguments))
    with Terminal("approve", "AAAA", "--for", "15m", "--any", "title", "--uses", "20") as terminal:
        shown = strip(terminal.expect("approve and remember AAAA? [y/N]"))
        assert 'delete_repo on github for claude: repo = "acme/x", title = anything, n = 1; until ' in shown
        assert ", 20 uses" in shown
        terminal.send("y\r")
        assert terminal.end() == 0
    assert served.governor.asked_grants[0] is not None
    served.governor.tickets.append(ticket("BBBB", arguments=arguments))
    with Terminal("approve", "BBBB", "--for", "15m", "--any", "titel") as terminal:
        terminal.expect("did you mean `title`?")
        assert terminal.end() == 1
    assert len(served.governor.decided) == 1


def test_what_is_cut_of_what_would_be_remembered_is_said_to_be(served: Served) -> None:
    served.governor.tickets.append(ticket("AAAA", arguments=json.dumps({"query": "x" * 90 + "; drop"})))
    with Terminal("approve", "AAAA", "--for", "15m") as terminal:
        shown = strip(terminal.expect("approve and remember AAAA? [y/N]"))
    assert f'query = "{"x" * 79}… (98 characters, as above); until' in shown


def test_who_else_must_agree_is_said_and_shown(
    governor: MemoryGovernor, aegis: Aegis, monkeypatch: pytest.MonkeyPatch
) -> None:
    governor.tickets += [ticket("AAAA", needed=2), ticket("BBBB")]
    listed = aegis("pending")
    assert "0/2" in listed.stdout
    assert [row["needed"] for row in json.loads(aegis("pending", "--json").stdout)] == [2, 1]

    async def first(id: str, approve: bool, **_: object) -> shapes.Decided:
        return shapes.Decided(id=id, call_id="c" * 32, state="pending", needed=2, given=1)

    monkeypatch.setattr(governor, "decide", first)
    done = aegis("approve", "AAAA", "--yes", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)[0]["state"] == "pending"
    assert "AAAA: 1 of 2 have agreed; it waits for another person" in done.stderr


def test_a_person_who_is_asked_sees_that_another_must_agree(served: Served) -> None:
    served.governor.tickets.append(ticket("AAAA", needed=2, given=1, client="claude-code\x1b"))
    with Terminal("approve", "AAAA") as terminal:
        shown = strip(terminal.expect("approve AAAA? [y/N]"))
    assert "1 of 2 people; another one must" in shown
    assert "claude-code\\x1b" in shown


def test_grants_are_listed_and_revoked(governor: MemoryGovernor, aegis: Aegis) -> None:
    governor.grant_rows += [grant_row(), grant_row(id="G-0001", free=("*",), agent_id="other")]
    listed = aegis("grants")
    assert 'repo = "acme/x", title = anything' in listed.stdout
    assert "\x1b" not in listed.stdout
    assert [row["id"] for row in json.loads(aegis("grants", "list", "--agent", "cl*", "--json").stdout)] == ["G-7QX2"]
    for words in ([], ["G-7QX2", "--all"]):
        assert aegis("grants", "revoke", *words).exit_code == 2
    done = aegis("grants", "revoke", "G-7QX2", "--json")
    assert [row["id"] for row in json.loads(done.stdout)] == ["G-7QX2"]
    assert "revoked G-7QX2" in done.stderr
    assert aegis("grants", "revoke", "--all").exit_code == 0
    assert "no approval is remembered" in aegis("grants", "list").stderr


def test_an_agent_is_paused_seen_paused_and_resumed(governor: MemoryGovernor, aegis: Aegis) -> None:
    assert aegis("pause", "claude", "--note", "odd\x1b[8m calls").exit_code == 0
    done = aegis("pause", "--json")
    assert json.loads(done.stdout)["agent_id"] is None
    assert [row.agent_id for row in governor.pauses] == ["claude", None]
    lines = aegis("status").stdout.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["PAUSED", "PAUSED"]
    assert "odd\\x1b[8m calls" in lines[1]
    resumed = aegis("resume")
    assert resumed.exit_code == 0
    assert "claude is still paused" in resumed.stderr
    assert json.loads(aegis("resume", "claude", "--json").stdout)["agent_id"] == "claude"
    again = aegis("resume", "claude")
    assert again.exit_code == 1
    assert "not paused" in again.stderr


def test_a_limit_is_raised_for_an_agent_or_for_all(governor: MemoryGovernor, aegis: Aegis) -> None:
    where = ("limits", "grant", "--backend", "github", "--tool", "post")
    done = aegis(*where, "--agent", "claude", "--count", "2", "--for", "1h", "--json")
    assert json.loads(done.stdout)["extra"] == 2
    assert "has 3 calls in its window until" in done.stderr
    assert aegis(*where, "--global").exit_code == 0
    assert governor.quotas == [("claude", "github", "post", 2, 3600.0), (None, "github", "post", 1, None)]
    for words in (where, (*where, "--global", "--agent", "claude"), (*where, "--global", "--for", "soon")):
        assert aegis(*words).exit_code == 2
    assert len(governor.quotas) == 2


@pytest.mark.parametrize(
    "words",
    [
        ["grants", "revoke", "--all"], ["pause"], ["resume"], ["approve", "AAAA", "--yes", "--for", "1m"],
        ["limits", "grant", "--global", "--backend", "b", "--tool", "t"], ["notify", "test"],
    ],
)  # fmt: skip
def test_a_governed_agents_shell_lets_nothing_happen(governor: MemoryGovernor, aegis: Aegis, words: list[str]) -> None:
    governor.tickets.append(ticket("AAAA"))
    governor.grant_rows.append(grant_row())
    governor.pauses.append(shapes.Pause(agent_id=None, by="ann", since=instant(0)))
    governor.refusal = "the request comes from `claude` (pid 7)"
    refused = aegis(*words)
    assert refused.exit_code == 1
    assert "AEGIS_APPROVER_KEY" in refused.stderr
    assert (len(governor.grant_rows), len(governor.pauses), governor.quotas, governor.decided) == (1, 1, [], [])


@pytest.mark.parametrize(
    ("state", "said"),
    [({}, "healthy"), ({"unsigned": "no key"}, "not signed"), ({"tampered": "x", "unsigned": "y"}, "CHANGED")],
)
def test_a_log_that_is_changed_or_not_signed_is_not_called_healthy(
    aegis: Aegis, governor: MemoryGovernor, state: dict[str, str], said: str
) -> None:
    found = governor.status()
    found = found.model_copy(update={"audit": found.audit.model_copy(update=state)})
    governor.status = lambda: found  # type: ignore[method-assign]
    (line,) = [line for line in aegis("status").stdout.splitlines() if line.startswith("audit")]
    assert line.rpartition("durability full, ")[2].startswith(said)
