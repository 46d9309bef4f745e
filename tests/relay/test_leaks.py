"""No secret of the configuration comes back from a server, on any way it may take; other credentials only where told."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from playbook import Play, call, error, note, request, text

MakePlay = Callable[..., Play]

SECRET = "correct-horse-battery"
TOKEN = "ghp_" + "0123456789abcdefghij" * 2
CONFIG = """
backends: {files: {env: {API_KEY: "Bearer ${env:FILES_KEY}"}}}
agents: {bot: {backends: {files: {allowed: true, server_requests: [sampling]}}}}
"""


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FILES_KEY", SECRET)
    monkeypatch.setenv("HOME", "/somewhere/over/there")


def test_the_configurations_secrets_are_taken_out_of_all_that_a_server_says(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    heard = s.calls(call(1, "get"), {"content": [text(f"it is {SECRET}")], "structuredContent": {SECRET: [SECRET]}})
    assert heard["content"] == [text("it is [secret:configured]")]
    assert heard["structuredContent"] == {"[secret:configured]": ["[secret:configured]"]}
    s.client.says(call(2, "get"))
    s.server.says(error(s.server.hears("tools/call")["id"], -7, f"no {SECRET}"))
    assert s.client.hears_error(2, -7)["message"] == "no [secret:configured]"
    s.server.says(note("message", level="info", data=f"with {SECRET}"))
    assert s.client.hears("notifications/message")["params"]["data"] == "with [secret:configured]"
    s.client.says(request(3, "tools/list"))
    tool = {"name": "get", "description": f"uses {SECRET}", "inputSchema": {"type": "object"}}
    s.server.answers(s.server.hears("tools/list"), {"tools": [tool]})
    assert SECRET not in json.dumps(s.client.hears_result(3))
    s.server.says(request("q", "sampling/createMessage", messages=[{"role": "user", "content": text(SECRET)}]))
    assert SECRET not in json.dumps(s.client.hears("sampling/createMessage"))
    for record, body in zip(play.log.records, play.log.bodies, strict=True):
        assert SECRET not in repr(record)
        assert SECRET.encode() not in (body or b"")


def test_the_server_gets_what_the_client_sent(make_play: MakePlay) -> None:
    play = make_play(CONFIG + "secrets: {answers: withhold}\n")
    s = play.session().handshake()
    s.client.says(call(1, "get", key=SECRET, credential=TOKEN))
    heard = s.server.hears("tools/call", name="get", arguments={"key": SECRET, "credential": TOKEN})
    s.server.answers(heard, {"content": []})
    s.client.hears_result(1)


@pytest.mark.parametrize("answers", ["", "secrets: {answers: off}\n", "secrets: {log: off}\n"])
def test_other_credentials_reach_the_client_unless_told_otherwise(make_play: MakePlay, answers: str) -> None:
    s = make_play(CONFIG + answers).session().handshake()
    assert s.calls(call(1, "get"), {"content": [text(TOKEN)]}) == {"content": [text(TOKEN)]}


def test_told_so_they_are_replaced_for_the_client_too(make_play: MakePlay) -> None:
    s = make_play(CONFIG + "secrets: {answers: redact}\n").session().handshake()
    assert s.calls(call(1, "get"), {"content": [text(TOKEN)]}) == {"content": [text("[secret:github-token]")]}
    kept = make_play(CONFIG + "secrets: {answers: redact, allow: [github-token]}\n").session().handshake()
    assert kept.calls(call(1, "get"), {"content": [text(TOKEN)]}) == {"content": [text(TOKEN)]}


def test_told_to_withhold_nothing_that_holds_one_is_passed(make_play: MakePlay) -> None:
    play = make_play(CONFIG + "secrets: {answers: withhold}\n")
    s = play.session().handshake()
    s.client.says(call(1, "get"))
    s.server.answers(s.server.hears("tools/call"), {"content": [text(TOKEN)]})
    refusal = s.client.hears_error(1, -32603)
    assert refusal["data"]["reason"] == "not_redacted"
    play.recorded("intent", {"kind": "outcome", "status": "unknown"})
    s.server.says(note("message", level="info", data=TOKEN), note("message", level="info", data="after"))
    assert s.client.hears("notifications/message")["params"]["data"] == "after"
    s.server.says(request("q", "sampling/createMessage", messages=[{"role": "user", "content": text(TOKEN)}]))
    assert s.server.hears_error("q", -32600)["message"].startswith("the request is withheld")
    s.talk._dropped.clear()


def test_a_detector_that_fails_withholds_the_answer(make_play: MakePlay, monkeypatch: pytest.MonkeyPatch) -> None:
    play = make_play(CONFIG)

    def fails(line: bytes) -> bytes:
        raise MemoryError

    s = play.session().handshake()
    s.client.says(call(1, "get"))
    monkeypatch.setattr(play.runtime.secrets, "servers", fails)
    s.server.answers(s.server.hears("tools/call"), {"content": [text("anything")]})
    assert s.client.hears_error(1, -32603)["data"]["reason"] == "not_redacted"
    s.talk._dropped.clear()


def test_what_a_variable_of_every_machine_holds_is_no_secret(make_play: MakePlay) -> None:
    config = (
        'backends: {files: {env: {ROOT: "${env:HOME}/notes"}}}\nagents: {bot: {backends: {files: {allowed: true}}}}\n'
    )
    s = make_play(config).session().handshake()
    answer: dict[str, Any] = {"content": [text("/somewhere/over/there/notes/a.txt")]}
    assert s.calls(call(1, "get"), answer) == answer
