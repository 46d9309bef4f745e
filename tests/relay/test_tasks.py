"""A call that goes on as a task settles its quota, its turn and its outcome when the task ends, or its time does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playbook import Play, Session, call, modern, note, request, text

from aegis_daemon.relay import task_owners
from aegis_daemon.relay.load import Load
from aegis_daemon.relay.task_owners import Owners

MakePlay = Callable[..., Play]

CONFIG = """
backends: {files: {}}
queue: {files: {enabled: true, delay_min: 0s, delay_max: 0s}}
agents: {bot: {backends: {files: {allowed: true, rate_limits: {post: 3/day}}}}}
"""


def started(play: Play, id: Any = 1, task: str = "t", ttl: Any = 60_000) -> Session:
    s = play.session().handshake()
    frame = call(id, "post")
    frame["params"]["task"] = {"ttl": ttl}
    s.calls(frame, {"task": {"taskId": task, "status": "working", "ttl": ttl}})
    assert play.used() == {"post": (0, 1)}
    play.recorded("intent")
    return s


@pytest.mark.parametrize(
    ("status", "counted", "outcome"),
    [("completed", 1, "success"), ("failed", 0, "error"), ("cancelled", 1, "unknown")],
)
@pytest.mark.parametrize("how", ["asked", "told"])
def test_a_task_is_settled_when_it_ends(make_play: MakePlay, status: str, counted: int, outcome: str, how: str) -> None:
    play = make_play(CONFIG)
    s = started(play)
    s.client.says(call(2, "post"))
    s.server.hears_nothing()  # the lane is still the task's
    if how == "asked":
        s.client.says(request(3, "tasks/get", taskId="t"))
        s.server.answers(s.server.hears("tasks/get"), {"taskId": "t", "status": "working"})
        s.client.hears_result(3)
        s.server.hears_nothing()
        s.client.says(request(4, "tasks/get", taskId="t"))
        s.server.answers(s.server.hears("tasks/get"), {"taskId": "t", "status": status})
    else:
        s.server.says(note("tasks/status", taskId="t", status=status))
        s.client.hears("notifications/tasks/status", status=status)
    s.server.answers(s.server.hears("tools/call"))
    s.client.inbox.clear()
    s.client.asked.clear()
    assert play.used() == {"post": (counted + 1, 0)}
    ended = [one for one in play.log.records if one.kind == "outcome" and one.status == outcome]
    assert len(ended) >= 1


def test_a_result_that_is_fetched_ends_the_task(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = started(play)
    s.calls(request(2, "tasks/result", taskId="t"), text("done"))
    assert play.used() == {"post": (1, 0)}


def test_a_task_whose_time_is_over_counts_and_frees_the_lane(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = started(play, ttl=60_000)
    s.client.says(call(2, "post"))
    play.advance(59)
    s.server.hears_nothing()
    play.advance(2)
    s.server.answers(s.server.hears("tools/call"))
    s.client.hears_result(2)
    assert play.used() == {"post": (2, 0)}


@pytest.mark.parametrize("ttl", [None, 10**15, -5, 0, 0.5])
def test_a_task_is_followed_for_an_hour_at_most(make_play: MakePlay, ttl: Any) -> None:
    play = make_play(CONFIG)
    started(play, ttl=ttl)
    play.advance(3601)
    assert play.used() == {"post": (1, 0)}


def test_a_modern_task_is_followed_too(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session()
    s.calls(modern(call(1, "post")), {"resultType": "task", "taskId": "t", "status": "working", "ttlMs": 60_000})
    assert play.used() == {"post": (0, 1)}
    s.calls(
        modern(request(2, "tasks/get", taskId="t")), {"resultType": "complete", "taskId": "t", "status": "completed"}
    )
    assert play.used() == {"post": (1, 0)}


def test_the_end_of_the_session_settles_its_tasks(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = started(play)
    s.leave()
    assert play.used() == {"post": (1, 0)}
    play.recorded({"kind": "outcome", "status": "unknown", "consumed": True})


def test_a_change_of_era_settles_the_tasks_of_the_server_that_is_gone(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = started(play)
    s.client.says(modern(call(2, "post")))
    assert play.used() == {"post": (1, 1)}
    s.server.answers(s.server.hears("tools/call"))
    s.client.hears_result(2)
    s.servers[0].exits()


def test_an_id_that_is_in_use_already_is_settled_at_once(make_play: MakePlay) -> None:
    play = make_play(CONFIG.replace("enabled: true", "enabled: false"))
    s = started(play)
    s.calls(call(2, "post"), {"task": {"taskId": "t", "status": "working"}})
    assert play.used() == {"post": (1, 1)}


def test_a_task_that_ended_as_it_began_is_settled(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    s.calls(call(1, "post"), {"task": {"taskId": "t", "status": "completed"}})
    s.calls(request(2, "tasks/get", taskId="t"), {"taskId": "t", "status": "completed"})
    assert play.used() == {"post": (1, 0)}


@pytest.mark.parametrize(
    "odd",
    [
        {"task": {"taskId": 5}},
        {"task": "taskId"},
        {"taskId": 5, "resultType": "task"},
        {"task": {"status": "working"}, "taskId": "t"},
    ],
)
def test_a_task_that_is_none_is_withheld(make_play: MakePlay, odd: dict[str, Any]) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    s.client.says(call(1, "post"))
    s.server.answers(s.server.hears("tools/call"), odd)
    s.client.hears_error(1, -32603, "is withheld")
    assert play.used() == {"post": (1, 0)}


def test_tasks_are_bounded(make_play: MakePlay) -> None:
    play = make_play(CONFIG.replace("enabled: true", "enabled: false").replace("3/day", "9999/day"))
    s = play.session().handshake()
    for n in range(300):
        s.calls(call(n, "post"), {"task": {"taskId": f"t{n}", "status": "working"}})
    assert play.used() == {"post": (44, 256)}


def test_an_approved_call_that_goes_on_as_a_task_is_delivered_once(make_play: MakePlay) -> None:
    play = make_play(CONFIG.replace("rate_limits: {post: 3/day}", "approval_required: [post]"))
    s = play.session().handshake()
    s.client.says(call(1, "post"))
    play.desk.decide(play.ticket().id, True, "ann")
    s.server.answers(s.server.hears("tools/call"), {"task": {"taskId": "t", "status": "working"}})
    s.client.hears_result(1)
    assert play.desk._open == {}
    s.server.says(note("tasks/status", taskId="t", status="completed"))
    s.client.hears("notifications/tasks/status")


def test_an_agent_can_neither_read_nor_cancel_the_task_of_another(make_play: MakePlay) -> None:
    config = "backends: {files: {}}\nagents: {"
    config += ", ".join(f"{name}: {{backends: {{files: {{allowed: true}}}}}}" for name in ("bot", "eve")) + "}"
    play = make_play(config)
    mine, again, hers = play.session(), play.session(), play.session(agent="eve")
    mine.client.says(modern(call(1, "long")))
    mine.server.answers(mine.server.hears("tools/call"), {"resultType": "task", "taskId": "T", "status": "working"})
    mine.client.hears_result(1)
    for id, method in enumerate(("tasks/get", "tasks/cancel", "tasks/update"), 2):
        hers.client.says(modern(request(id, method, taskId="T")))
        hers.client.hears_error(id, -31001, "not available")
    hers.server.hears_nothing()
    again.client.says(modern(request(2, "tasks/get", taskId="T")))
    again.server.answers(again.server.hears("tasks/get", taskId="T"), {"taskId": "T", "status": "working"})
    again.client.hears_result(2)
    hers.client.says(modern(request(9, "tasks/get", taskId="nobody's")))
    hers.client.hears_error(9, -31001, "not available")
    hers.server.hears_nothing()
    mine.leave()


BEHIND = """
backends: {far: {url: "http://127.0.0.1:9/mcp"}}
agents: {amy: {backends: {far: {allowed: true}}}, eve: {backends: {far: {allowed: true}}}}
"""


def _task(id: int, session: Session, task: str) -> None:
    frame = call(id, "slow")
    frame["params"]["task"] = {}
    session.client.says(frame)
    session.server.answers(session.server.hears("tools/call"), {"task": {"taskId": task, "status": "working"}})
    session.client.hears_result(id)


def test_a_restarted_daemon_still_knows_whose_a_task_is(make_play: MakePlay, tmp_path: Path) -> None:
    play = make_play(BEHIND)

    def daemon() -> tuple[Session, Session]:
        play.owners.close()
        play.owners = Owners(tmp_path / "owners.db")
        play.load = Load(play.owners)
        return play.session("amy", "far").handshake(), play.session("eve", "far").handshake()

    amy, eve = daemon()
    _task(1, amy, "hers")
    amy.leave()
    eve.leave()
    amy, eve = daemon()
    for id, method in enumerate(("tasks/get", "tasks/result", "tasks/cancel"), 2):
        eve.client.says(request(id, method, taskId="hers"))
        eve.client.hears_error(id, -32001, "not available")
    eve.server.hears_nothing()
    eve.client.says(request(7, "tasks/list"))
    eve.server.answers(eve.server.hears("tasks/list"), {"tasks": [{"taskId": "hers"}]})
    eve.client.hears_result(7, {"tasks": []})
    amy.client.says(request(2, "tasks/result", taskId="hers"))
    amy.server.answers(amy.server.hears("tasks/result"), {"content": []})
    amy.client.hears_result(2)
    # Another task has the id by now: who had the old one has it no more.
    _task(8, eve, "hers")
    amy.client.says(request(3, "tasks/result", taskId="hers"))
    amy.client.hears_error(3, -32001, "not available")
    amy.server.hears_nothing()


def test_the_oldest_tasks_of_an_agent_become_nobodys(make_play: MakePlay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_owners, "OWNED", 2)
    play = make_play(BEHIND)
    amy, eve = play.session("amy", "far").handshake(), play.session("eve", "far").handshake()
    for id in range(1, 4):
        _task(id, amy, f"hers {id}")
    for id, (session, task, known) in enumerate(
        ((amy, "hers 1", False), (eve, "hers 1", False), (amy, "hers 2", True), (eve, "hers 2", False)), 5
    ):
        session.client.says(request(id, "tasks/cancel", taskId=task))
        if known:
            session.server.answers(session.server.hears("tasks/cancel"), {"taskId": task, "status": "cancelled"})
            session.client.hears_result(id)
        else:
            session.client.hears_error(id, -32001, "not available")
            session.server.hears_nothing()


def test_whose_a_task_is_cannot_be_read_or_written(make_play: MakePlay, caplog: pytest.LogCaptureFixture) -> None:
    play = make_play(BEHIND)
    amy = play.session("amy", "far").handshake()
    _task(1, amy, "hers")
    play.owners._db.execute("DROP TABLE tasks")
    amy.client.says(request(2, "tasks/get", taskId="hers"))
    amy.client.hears_error(2, -32001, "not available")
    amy.server.hears_nothing()
    _task(3, amy, "another")
    amy.client.says(request(4, "tasks/list"))
    amy.server.answers(amy.server.hears("tasks/list"), {"tasks": [{"taskId": "hers"}, {"taskId": "another"}]})
    amy.client.hears_result(4, {"tasks": []})
    play.errors.clear()


def test_news_of_a_task_goes_to_who_started_it(make_play: MakePlay) -> None:
    play = make_play(BEHIND)
    amy, eve = play.session("amy", "far").handshake(), play.session("eve", "far").handshake()
    _task(1, amy, "hers")
    for session in (amy, eve):
        session.server.says(note("tasks/status", taskId="hers", status="working"))
        session.server.says(note("tasks/status", taskId=7, status="working"))
    amy.client.hears("notifications/tasks/status")
    amy.client.hears_nothing()
    eve.client.hears_nothing()
    for session in (amy, eve):
        session.talk._dropped.clear()


def test_a_list_of_tasks_has_none_that_others_started(make_play: MakePlay) -> None:
    play = make_play(
        "backends: {files: {}}\nagents: {amy: {backends: {files: {allowed: true}}}, eve: {backends: {files: {allowed: true}}}}\n"
    )
    amy, eve = play.session("amy").handshake(), play.session("eve").handshake()
    frame = call(1, "slow")
    frame["params"]["task"] = {}
    amy.client.says(frame)
    amy.server.answers(amy.server.hears("tools/call"), {"task": {"taskId": "hers", "status": "working"}})
    amy.client.hears_result(1)
    tasks = [{"taskId": "hers"}, {"taskId": "nobody's"}, 7]
    for session, own in ((amy, tasks[:1]), (eve, [])):
        session.client.says(request(2, "tasks/list"))
        session.server.answers(session.server.hears("tasks/list"), {"tasks": tasks})
        session.client.hears_result(2, {"tasks": own})
    amy.client.says(request(3, "tasks/get", taskId="hers"))
    amy.server.answers(amy.server.hears("tasks/get"), {"taskId": "hers", "status": "completed"})
    amy.client.hears_result(3)
