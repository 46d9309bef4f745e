"""What several servers say can be said as one, and be taken apart again by nobody else."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis_daemon.relay import merge
from aegis_daemon.wire.jsonrpc import parse_from_server

KEY = b"k" * 32
BACKENDS = st.from_regex(r"(?!.*__)[ab_.-]{1,5}", fullmatch=True)
NAMES = st.text("ab_.", min_size=1, max_size=8)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
PLACES = st.dictionaries(TEXT, st.none() | TEXT, max_size=4)


# --- names ------------------------------------------------------------------------------------------------------------


@given(st.lists(BACKENDS, min_size=1, max_size=5, unique=True), NAMES)
def test_a_name_leads_back_to_its_backend_or_is_none(backends: list[str], own: str) -> None:
    names = merge.Names(backends)
    made = {backend: names.of(backend, own) for backend in backends}
    for backend, name in made.items():
        assert name is None or names.find(name) == (backend, own)
        assert name is not None or f"{backend}_" in {one[: len(backend) + 1] for one in backends if one != backend}
    assert len(set(made.values()) - {None}) == len([name for name in made.values() if name])


@given(st.lists(BACKENDS, max_size=5, unique=True), st.text("ab_.", max_size=12))
def test_whatever_is_found_is_what_the_prefix_says(backends: list[str], name: str) -> None:
    found = merge.Names(backends).find(name)
    fitting = [one for one in backends if name.startswith(f"{one}__") and len(name) > len(one) + 2]
    if found is None:
        assert all(any(name == f"{other}__" for other in backends) for _ in fitting)
    else:
        assert "__".join(found) == name
        assert found[0] == max(fitting, key=len)


# --- cursors ----------------------------------------------------------------------------------------------------------


@given(PLACES)
def test_a_cursor_opens_as_it_was_sealed(places: dict[str, str | None]) -> None:
    cursors = merge.Cursors(KEY, "bot")
    sealed = cursors.seal("tools/list", places)
    assert re.fullmatch(r"[A-Za-z0-9_=-]+", sealed)
    assert cursors.open("tools/list", sealed) == places
    assert list(cursors.open("tools/list", sealed)) == list(places)


@given(PLACES, st.data())
def test_a_cursor_that_was_changed_does_not_open(places: dict[str, str | None], data: Any) -> None:
    cursors = merge.Cursors(KEY, "bot")
    sealed = cursors.seal("tools/list", places)
    at = data.draw(st.integers(0, len(sealed) - 5))
    other = data.draw(st.sampled_from("AZaz09-_").filter(lambda one: one != sealed[at]))
    with pytest.raises(merge.Forged):
        cursors.open("tools/list", sealed[:at] + other + sealed[at + 1 :])


@given(PLACES, st.one_of(TEXT, st.none(), st.integers(), st.lists(st.integers()), st.binary().map(repr)))
def test_nothing_else_opens(places: dict[str, str | None], cursor: Any) -> None:
    sealed = merge.Cursors(KEY, "bot").seal("tools/list", places)
    for cursors, method, said in (
        (merge.Cursors(KEY, "bot"), "tools/list", cursor),
        (merge.Cursors(KEY, "bot"), "prompts/list", sealed),
        (merge.Cursors(KEY, "other"), "tools/list", sealed),
        (merge.Cursors(b"x" * 32, "bot"), "tools/list", sealed),
    ):
        with pytest.raises(merge.Forged):
            cursors.open(method, said)


# --- pages ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.lists(st.integers(), max_size=4), min_size=1, max_size=4), max_size=4), st.integers(0, 60))
def test_every_item_is_shown_once_and_in_order_however_little_fits(lists: list[list[list[int]]], room: int) -> None:
    """Reads merged pages to the end, from servers that give theirs one by one."""
    backends = {f"b{n}": pages for n, pages in enumerate(lists)}
    places: dict[str, str | None] = dict.fromkeys(backends)
    shown: list[tuple[str, int]] = []
    for _ in range(100):
        if not places:
            break
        asked = []
        for name, cursor in places.items():
            at = int(cursor or 0)
            result: dict[str, Any] = {"tools": list(backends[name][at])}
            if at + 1 < len(backends[name]):
                result["nextCursor"] = str(at + 1)
            asked.append(merge.Page(name, cursor, result, 10 * len(result["tools"])))
        merged, places = merge.merged_pages("tools", asked, lambda backend, item: (backend, item), room)
        assert "nextCursor" not in merged
        shown.extend(merged["tools"])
    assert not places
    for name, pages in backends.items():
        assert [item for backend, item in shown if backend == name] == [item for page in pages for item in page]


def test_a_cursor_that_is_too_long_ends_its_list() -> None:
    pages = [merge.Page("a", None, {"tools": [], "nextCursor": "x" * 9000}, 0)]
    assert merge.merged_pages("tools", pages, lambda backend, item: item, 100) == ({"tools": []}, {})


def test_what_else_a_list_says_is_kept_of_the_first() -> None:
    pages = [merge.Page(name, None, {"tools": [name], "_meta": name, name: 1}, 1) for name in ("a", "b")]
    merged, _ = merge.merged_pages("tools", pages, lambda backend, item: item, 100)
    assert merged == {"tools": ["a", "b"], "_meta": "a", "a": 1, "b": 1}


# --- capabilities and the like ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        ({"a": True}, {"a": False, "b": 1}, {"a": True, "b": 1}),
        ({"a": False}, {"a": True}, {"a": True}),
        ({"a": {"x": {}}}, {"a": {"y": False}}, {"a": {"x": {}, "y": False}}),
        (["a", "b"], ["b", "c"], ["a", "b", "c"]),
        ([1], [2], [1]),
        ({"a": 1}, {"a": {"x": 1}}, {"a": 1}),
        ({"a": "x"}, {"a": "y"}, {"a": "x"}),
    ],
)
def test_two_descriptions_are_united(one: Any, other: Any, both: Any) -> None:
    assert merge.united(one, other) == both


def test_descriptions_may_be_nested_as_deep_as_they_like() -> None:
    deep: Any = True
    for _ in range(10_000):
        deep = {"a": deep}
    assert merge.united(deep, deep)["a"]


@pytest.mark.parametrize("odd", [None, 5, [], "tools", {"tools": True}, {"tools": None}])
def test_odd_capabilities_are_none(odd: Any) -> None:
    assert merge.capabilities([{"capabilities": odd}, {"capabilities": {"logging": {}}}]) == {"logging": {}}


def test_the_lowest_version_stands() -> None:
    versions = ("2025-11-25", "2025-03-26", "2025-06-18")
    results: dict[str, Any] = {version: {"protocolVersion": version} for version in versions}
    assert merge.initialized(results, "1")["protocolVersion"] == "2025-03-26"


def test_instructions_that_do_not_fit_are_left_out_whole() -> None:
    said: Any = {"a": {"instructions": "x" * 70_000}, "b": {"instructions": " hi\n"}, "c": {"instructions": 5}, "d": {}}
    assert merge.instructions(said) == "# b\n\nhi"


@pytest.mark.parametrize(
    ("said", "spoken"),
    [
        ([["2026-07-28", "2025-11-25"], ["2025-11-25", "2026-07-28", "2031-01-01"]], ["2026-07-28", "2025-11-25"]),
        ([["2026-07-28"], ["2025-11-25"]], ["2026-07-28"]),
        ([None, "x"], ["2026-07-28"]),
    ],
)
def test_the_versions_are_those_that_all_speak(said: list[Any], spoken: list[str]) -> None:
    results = {str(n): {"supportedVersions": one} for n, one in enumerate(said)}
    assert merge.discovered(results, "1")["supportedVersions"] == spoken


@pytest.mark.parametrize(
    "line",
    [
        b'{"jsonrpc":"2.0","id":1,"result":5}',
        b'{"jsonrpc":"2.0","id":1,"result":{"a":1,"a":2}}',
        b'{"jsonrpc":"2.0","id":1,"result":{"a":1e999}}',
        b'{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"no"}}',
    ],
)
def test_what_cannot_be_read_in_one_way_is_not_merged(line: bytes) -> None:
    assert merge.result_of(parse_from_server(line)) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (b'{"code":-1,"message":"no"}', (-1, "no", "", "")),
        (b'{"code":-1,"message":"no","data":{"by":"aegis","stage":"acl","reason":"x"}}', (-1, "no", "acl", "x")),
        (b'{"code":-1,"message":"no","data":{"by":"you","stage":"acl"}}', (-1, "no", "", "")),
        (b'{"code":-1,"message":"no","data":[1]}', (-1, "no", "", "")),
    ],
)
def test_errors_are_ours_or_theirs(error: bytes, found: Any) -> None:
    answer: Any = parse_from_server(b'{"jsonrpc":"2.0","id":1,"error":' + error + b"}")
    assert merge.error_of(answer) == found


# --- URIs -------------------------------------------------------------------------------------------------------------


def test_so_many_uris_are_remembered() -> None:
    uris = merge.Uris(["a", "b"])
    for n in range(merge.URIS + 10):
        assert uris.listed("b", f"u:{n}")
    assert uris.holders("u:5", ["a", "b"]) == ["b"]
    assert uris.holders(f"u:{merge.URIS + 5}", ["a", "b"]) == ["a", "b"]
    assert uris.listed("a", "u:5")
    assert not uris.listed("b", "u:5")
    assert uris.holders("u:5", ["a", "b"]) == ["a"]
    assert uris.listed("a", "x" * 2000)
    uris.forget("b")
    assert uris.holders("u:6", ["a", "b"]) == ["a", "b"]
    assert uris.holders("u:5", ["a", "b"]) == ["a"]


def test_a_subscription_is_narrowed_wherever_it_names_things() -> None:
    params = {
        "resourceSubscriptions": ["a", "b"], "taskIds": ["x__1", "y__2", 5],
        "notifications": {"resourceSubscriptions": ["b"], "toolsListChanged": True}, "_meta": {},
    }  # fmt: skip
    names = merge.Names(["x", "y"])

    def own(task: str) -> str | None:
        found = names.find(task)
        return found[1] if found is not None and found[0] == "x" else None

    assert merge.narrowed(params, lambda uri: uri == "a", own) == {
        "resourceSubscriptions": ["a"], "taskIds": ["1"], "_meta": {},
        "notifications": {"resourceSubscriptions": [], "toolsListChanged": True},
    }  # fmt: skip


def test_a_uri_that_is_too_long_to_be_remembered_is_not_compared_with_templates_either() -> None:
    uris = merge.Uris(["a", "b"])
    assert uris.listed("b", "file:///{path}", template=True)
    assert uris.holders("file:///x", ["a", "b"]) == ["b", "a"]
    assert uris.holders("file:///" + "x" * merge.LONGEST_URI, ["a", "b"]) == ["a", "b"]
