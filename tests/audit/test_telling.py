from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from logging_by_hand import ARGUMENTS, RESULT, call_id, change, denied, fill_store, hold, intent, outcome

from aegis_daemon.audit.journal import Journal
from aegis_daemon.audit.record import Approval
from aegis_daemon.audit.store import Reader
from aegis_daemon.audit.telling import Told, steps, tell, took

SECOND = 1_000_000


class Written:
    def __init__(self, at: Path) -> None:
        self.at = at
        self.now = 1_770_000_000_000_000
        self._loop = asyncio.new_event_loop()
        self.log = Journal(
            at / "journal", durability="process", loop=self._loop, clock=lambda: (self.now, self.now - 10**15)
        )
        self.log.open()

    def said(self, decision: str, call: int, seconds: float = 0, **more: Any) -> None:
        self.now += int(seconds * SECOND)
        self.log.append(Approval(ticket="7K2M", decision=decision, call=call_id(call), **more))

    def close(self) -> Path:
        self.log.close()
        self._loop.close()
        fill_store(self.at / "journal", self.at / "audit.db")
        return self.at / "audit.db"

    def tell(self, id: str) -> Told:
        with Reader(self.close()) as reader:
            return tell(reader, id)


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return Written(tmp_path)


def test_a_call_that_waited_is_told_from_its_ask_to_its_end(written: Written) -> None:
    log = written.log
    log.append(hold(1, policy="publish needs a person"), ARGUMENTS)
    written.said("voted", 1, 5, by="ann", via="ui")
    written.said("approved", 1, 30, by="bob", via="cli", note="go on")
    written.now += SECOND
    log.append(
        intent(1, approval="approved", approver="bob", ticket="7K2M", queue_wait_us=4000, judged_us=90), ARGUMENTS
    )
    written.now += SECOND
    log.append(outcome(1, duration_us=900_000), RESULT)
    written.said("consumed", 1, 0.5)
    told = written.tell("7k2m")
    assert [step.kind for step in told.steps] == ["hold", "approval", "approval", "intent", "outcome", "approval"]
    assert [step.after_us for step in told.steps] == [None, 5 * SECOND, 30 * SECOND, SECOND, SECOND, SECOND // 2]
    texts = " | ".join(step.text for step in told.steps)
    for part in (
        "publish needs a person", "by ann (ui)", "approved by bob (cli): go on", "queued for 4.0 ms",
        "judged in 0.1 ms", "answered after 900 ms; counts against limits", "the approval was used",
    ):  # fmt: skip
        assert part in texts
    assert told.approval_wait_us == 35 * SECOND


def test_an_ask_that_outlives_its_call_goes_on_in_the_call_that_comes_again(written: Written) -> None:
    log, who = written.log, {"name": "publish"}
    log.append(hold(1, **who), ARGUMENTS)
    log.append(denied(1, stage="approval", ticket="7K2M", reason="ask again", **who), ARGUMENTS)
    written.said("approved", 1, 60, by="ann", via="slack")
    written.said("consumed", 1, 60)
    log.append(intent(2, ticket="7K2M", approval="approved", approver="ann", agent="writer", **who), ARGUMENTS)
    log.append(outcome(2), RESULT)
    log.append(hold(3, **{**who, "agent": "somebody else"}), ARGUMENTS)  # the ticket's name is given out again
    written.said("approved", 3, by="eve")
    told = written.tell(call_id(1))
    assert [step.kind for step in told.steps] == ["hold", "denied", "approval", "approval"]
    assert [each.call_id for each in told.related] == [call_id(2)]
    assert not any("eve" in step.text for step in told.steps)
    with Reader(written.at / "audit.db") as reader:
        again = tell(reader, call_id(2))
    assert [step.kind for step in again.steps] == ["approval", "approval", "intent", "outcome"]
    assert [each.call_id for each in again.related] == [call_id(1)]


def test_endings_are_told_in_words(written: Written) -> None:
    log = written.log
    log.append(denied(1, policy="deny.tools"), ARGUMENTS)
    log.append(denied(2, would=True), ARGUMENTS)
    log.append(intent(2), ARGUMENTS)
    log.append(outcome(2, status="unknown", consumed=True, error_message="the daemon was killed"))
    log.append(intent(3), ARGUMENTS)
    log.append(outcome(3, status="error", error_code=-32603, error_message="boom", consumed=False))
    with Reader(written.close()) as reader:
        texts = ["; ".join(step.text for step in tell(reader, call_id(number)).steps) for number in (1, 2, 3)]
    assert "refused at acl by deny.tools: `delete_all` is denied" in texts[0]
    assert "would have been refused (observe mode)" in texts[1]
    assert "never sent again: the daemon was killed" in texts[1]
    assert "failed after 1.5 ms (-32603): boom; does not count" in texts[2]


def test_what_was_erased_or_cannot_be_read_is_said(written: Written) -> None:
    written.log.append(intent(1), ARGUMENTS)
    written.log.append(outcome(1), RESULT)
    db_path = written.close()
    change(db_path, "UPDATE bodies SET body = NULL, salt = NULL", "UPDATE records SET record = '[' WHERE seq = 2")
    with Reader(db_path) as reader:
        told = tell(reader, call_id(1))
    assert "the arguments have been erased" in told.steps[0].text
    assert (told.steps[1].kind, told.steps[1].text) == ("unreadable", "it cannot be read")


def test_no_record_is_no_story() -> None:
    assert steps([]) == ([], None)


@pytest.mark.parametrize(
    ("micros", "text"),
    [
        (0, "0.0 ms"), (410, "0.4 ms"), (12_300, "12 ms"), (1_240_000, "1.2 s"), (250_000_000, "4 min 10 s"),
        (7_200_000_000, "2 h"), (90_000_000_000, "1 d 1 h"),
    ],
)  # fmt: skip
def test_durations_are_short(micros: int, text: str) -> None:
    assert took(micros) == text
