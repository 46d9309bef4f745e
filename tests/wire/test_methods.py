from __future__ import annotations

from typing import Any

import pytest

from aegis_daemon.wire.methods import (
    META_SUBSCRIPTION,
    META_VERSION,
    MOST_LISTENED,
    SERVER_REQUESTS,
    TO_CLIENT,
    TO_SERVER,
    BadParams,
    Era,
    Method,
    Rule,
    era_of,
    listened_resources,
    subject_of,
)

REF = {"ref": {"type": "ref/prompt", "name": "p"}}
# What each method that a client may send is about: rule, eras (l, m), good parameters, subject, name.
# fmt: off
ROWS: dict[str, tuple[Rule, str, dict[str, Any], str | None, str | None]] = {
    "initialize":               (Rule.CONTROL,  "l",  {}, None, None),
    "server/discover":          (Rule.CONTROL,  "m",  {}, None, None),
    "ping":                     (Rule.PING,     "l",  {}, None, None),
    "logging/setLevel":         (Rule.CONTROL,  "l",  {"level": "debug"}, None, None),
    "tools/list":               (Rule.LIST,     "lm", {}, None, None),
    "tools/call":               (Rule.GOVERNED, "lm", {"name": "t"}, "tool", "t"),
    "resources/list":           (Rule.LIST,     "lm", {}, None, None),
    "resources/templates/list": (Rule.LIST,     "lm", {}, None, None),
    "resources/read":           (Rule.GOVERNED, "lm", {"uri": "file:///x"}, "resource", "file:///x"),
    "resources/subscribe":      (Rule.GOVERNED, "l",  {"uri": "file:///x"}, "resource", "file:///x"),
    "resources/unsubscribe":    (Rule.GOVERNED, "l",  {"uri": "file:///x"}, "resource", "file:///x"),
    "subscriptions/listen":     (Rule.GOVERNED, "m",  {}, None, None),
    "prompts/list":             (Rule.LIST,     "lm", {}, None, None),
    "prompts/get":              (Rule.GOVERNED, "lm", {"name": "p"}, "prompt", "p"),
    "completion/complete":      (Rule.GOVERNED, "lm", REF, "prompt", "p"),
    "tasks/get":                (Rule.GOVERNED, "lm", {"taskId": "1"}, "task", "1"),
    "tasks/cancel":             (Rule.GOVERNED, "lm", {"taskId": "1"}, "task", "1"),
    "tasks/result":             (Rule.GOVERNED, "l",  {"taskId": "1"}, "task", "1"),
    "tasks/list":               (Rule.CONTROL,  "l",  {}, None, None),
    "tasks/update":             (Rule.GOVERNED, "m",  {"taskId": "1"}, "task", "1"),
}
ASKS: dict[str, tuple[Rule, str, str | None]] = {
    "ping":                     (Rule.PING,     "l",  None),
    "sampling/createMessage":   (Rule.GOVERNED, "lm", "sampling"),
    "elicitation/create":       (Rule.GOVERNED, "lm", "elicitation"),
    "roots/list":               (Rule.GOVERNED, "lm", "roots"),
    "tasks/get":                (Rule.GOVERNED, "l",  "tasks"),
    "tasks/cancel":             (Rule.GOVERNED, "l",  "tasks"),
    "tasks/result":             (Rule.GOVERNED, "l",  "tasks"),
    "tasks/list":               (Rule.GOVERNED, "l",  "tasks"),
}
# fmt: on


def eras(row: Method) -> str:
    return "l" * row.legacy + "m" * row.modern


def test_there_is_no_method_beyond_this_table() -> None:
    assert set(TO_SERVER) == set(ROWS)
    assert set(TO_CLIENT) == set(ASKS)


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_clients_method_is_judged_by_its_name(name: str) -> None:
    rule, when, params, subject, subject_name = ROWS[name]
    row = TO_SERVER[name]
    assert (row.name, row.rule, eras(row)) == (name, rule, when)
    assert subject_of(row, params) == (subject, subject_name)
    assert (row.items is not None) is (rule is Rule.LIST)
    assert row.rule is not Rule.LIST or (row.key and row.subject)


@pytest.mark.parametrize("name", sorted(ASKS))
def test_a_servers_method_is_judged_by_the_word_that_allows_it(name: str) -> None:
    rule, when, word = ASKS[name]
    row = TO_CLIENT[name]
    assert (row.name, row.rule, eras(row)) == (name, rule, when)
    assert subject_of(row, {}) == ((None, None) if word is None else ("server_request", word))
    assert SERVER_REQUESTS.get(name) == word


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row[3] is not None])
@pytest.mark.parametrize("wrong", [None, 1, True, 1.5, [], ["t"], {}, {"name": "t"}])
def test_a_name_that_is_no_text_is_refused(name: str, wrong: Any) -> None:
    row = TO_SERVER[name]
    assert row.key is not None
    with pytest.raises(BadParams):
        subject_of(row, {row.key: wrong})
    with pytest.raises(BadParams):
        subject_of(row, {})


@pytest.mark.parametrize(
    ("ref", "about"),
    [
        ({"type": "ref/prompt", "name": "p"}, ("prompt", "p")),
        ({"type": "ref/resource", "uri": "file:///x"}, ("resource", "file:///x")),
        ({"type": "ref/prompt", "name": "p", "uri": "file:///x"}, ("prompt", "p")),
        ({"type": "ref/resource", "name": "p", "uri": "file:///x"}, ("resource", "file:///x")),
        ({"type": "ref/prompt", "uri": "file:///x"}, None),
        ({"type": "ref/resource", "name": "p"}, None),
        ({"type": "ref/prompt", "name": 1}, None),
        ({"type": "ref/tool", "name": "t"}, None),
        ({"name": "p"}, None),
        ({"type": ["ref/prompt"], "name": "p"}, None),
    ],
)
def test_a_completion_is_about_what_its_reference_names(ref: dict[str, Any], about: tuple[str, str] | None) -> None:
    row = TO_SERVER["completion/complete"]
    if about is None:
        with pytest.raises(BadParams):
            subject_of(row, {"ref": ref})
    else:
        assert subject_of(row, {"ref": ref}) == about


@pytest.mark.parametrize(
    ("params", "uris"),
    [
        ({}, []),
        ({"notifications": None}, []),
        ({"notifications": {"toolsListChanged": True}}, []),
        ({"resourceSubscriptions": ["a"]}, ["a"]),
        ({"notifications": {"resourceSubscriptions": ["b"]}}, ["b"]),
        ({"resourceSubscriptions": ["a"], "notifications": {"resourceSubscriptions": ["b"]}}, ["a", "b"]),
        ({"resourceSubscriptions": "a"}, None),
        ({"resourceSubscriptions": ["a", 1]}, None),
        ({"resourceSubscriptions": {"a": 1}}, None),
        ({"notifications": {"resourceSubscriptions": [["a"]]}}, None),
        ({"notifications": {"ResourceSubscriptions": ["a"]}}, None),
        ({"notifications": {"resourceSubscription\u017f": ["a"]}}, None),
        ({"notifications": {"resourceSubscriptions\0": ["a"]}}, None),
    ],
)
def test_every_resource_that_is_listened_to_is_found(params: dict[str, Any], uris: list[str] | None) -> None:
    if uris is None:
        with pytest.raises(BadParams):
            listened_resources(params)
    else:
        assert listened_resources(params) == uris


@pytest.mark.parametrize(
    ("method", "params", "current", "era"),
    [
        ("initialize", {}, Era.NONE, Era.LEGACY),
        ("initialize", {}, Era.MODERN, Era.LEGACY),
        ("server/discover", {}, Era.NONE, Era.MODERN),
        ("server/discover", {}, Era.LEGACY, Era.MODERN),
        ("tools/call", {}, Era.NONE, Era.LEGACY),
        ("tools/call", {}, Era.LEGACY, Era.LEGACY),
        ("tools/call", {}, Era.MODERN, Era.MODERN),
        ("tools/call", {"_meta": {META_VERSION: "2026-07-28"}}, Era.NONE, Era.MODERN),
        ("tools/call", {"_meta": {META_VERSION: 1}}, Era.LEGACY, Era.MODERN),
        ("tools/call", {"_meta": {META_SUBSCRIPTION: 1}}, Era.LEGACY, Era.LEGACY),
        ("tools/call", {"_meta": [META_VERSION]}, Era.LEGACY, Era.LEGACY),
    ],
)
def test_the_era_is_told_by_each_frame(method: str, params: dict[str, Any], current: Era, era: Era) -> None:
    assert era_of(method, params, current) is era


def test_one_request_subscribes_to_a_bounded_number_of_resources() -> None:
    uris = [f"file:///{n}" for n in range(MOST_LISTENED)]
    assert listened_resources({"notifications": {"resourceSubscriptions": uris}}) == uris
    with pytest.raises(BadParams, match="fewer"):
        listened_resources({"resourceSubscriptions": ["file:///x"], "notifications": {"resourceSubscriptions": uris}})
