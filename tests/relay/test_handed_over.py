"""An approval for a server that was handed over lets no other server of the same name run its call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from playbook import Play, Session, call, modern, note, request, text

from aegis_daemon.core.handed import Handed, handed

MakePlay = Callable[..., Play]
CONFIG = """
approval: {timeout: 300s}
backends: {files: {}}
agents: {bot: {backends: {files: {allowed: true, approval_required: [pay]}}}}
"""
TASKS: dict[str, Any] = {"extensions": {"io.modelcontextprotocol/tasks": {}}, "elicitation": {}, "sampling": {}}
ARGV = ["python3", "db.py"]
DEV, PROD = (handed(ARGV, "/w", {"DATABASE_URL": f"postgres://{name}"}) for name in ("dev", "prod"))


def held(play: Play, server: Handed | None) -> Session:
    """A call of it waits."""
    s = play.session(handed=server).handshake()
    s.client.says(call(1, "pay", eur=5))
    s.is_quiet()
    return s


def about(id: int, task: str) -> dict[str, Any]:
    return modern(request(id, "tasks/get", taskId=task), capabilities=TASKS)


def test_what_was_agreed_to_for_one_server_is_asked_anew_for_another(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = held(play, DEV)
    first = play.ticket()
    assert (first.server, first.command, first.cwd) == (DEV.mark, "python3 db.py", "/w")
    s.client.says(note("cancelled", requestId=1))
    play.desk.decide(first.id, True, "ann")
    other = held(play, PROD)
    plain = held(play, None)
    assert {ticket.state for ticket in play.desk.pending()} == {"approved", "pending"}
    assert [ticket.server for ticket in play.desk.pending()] == [DEV.mark, PROD.mark, ""]
    assert [ticket.unlike for ticket in play.desk.pending()] == ["", "$DATABASE_URL", ""], "no value of a variable"
    for each in (other, plain):
        each.server.hears_nothing()
    again = play.session(handed=handed(ARGV, "/w", {"DATABASE_URL": "postgres://dev", "TERM": "x"})).handshake()
    again.client.says(call(2, "pay", eur=5))
    again.server.answers(again.server.hears("tools/call"), text("paid"))
    again.client.hears_result(2, text("paid"))


def test_after_a_restart_it_is_still_for_that_server_alone(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = held(play, DEV)
    s.client.says(note("cancelled", requestId=1))
    play.desk.decide(play.ticket().id, True, "ann")
    play.restart_desk()
    held(play, PROD).server.hears_nothing()
    again = play.session(handed=DEV).handshake()
    again.client.says(call(2, "pay", eur=5))
    again.server.answers(again.server.hears("tools/call"), text("paid"))
    again.client.hears_result(2, text("paid"))


def test_an_answer_that_nobody_received_is_told_to_no_client_of_another_server(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = held(play, DEV)
    play.desk.decide(play.ticket().id, True, "ann")
    heard = s.server.hears("tools/call")
    s.client.says(note("cancelled", requestId=1))
    s.server.hears("notifications/cancelled", requestId=heard["id"])
    s.server.answers(heard, text("the dev database"))
    other = play.session(handed=PROD).handshake()
    other.client.says(call(2, "pay", eur=5))
    other.is_quiet()
    assert [ticket.server for ticket in play.desk.pending()] == [PROD.mark]


def test_a_task_goes_on_where_it_was_asked(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session(handed=DEV)
    s.client.says(modern(call(1, "pay", eur=5), capabilities=TASKS))
    task = str(s.client.hears_result(1, {"resultType": "task"})["taskId"])
    s.client.bye()
    play.restart_desk()
    s.talk.shim_gone()
    s.all_exit()
    play.desk.decide(play.ticket().id, True, "ann")
    other = play.session(handed=PROD)
    other.client.says(about(2, task))
    other.client.hears_result(2, {"status": "working"})
    other.server.hears_nothing()
    again = play.session(handed=DEV)
    again.client.says(about(3, task))
    again.client.hears_result(3, {"status": "working"})
    again.server.answers(again.server.hears("tools/call"), text("paid"))
