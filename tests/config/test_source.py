"""A file is read once into values with places; what is hostile or ambiguous about it is a fault, never a crash."""

from __future__ import annotations

import io
import json
import math
import time
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from aegis_daemon.config.source import MAX_DEPTH, MAX_FAULTS, ConfigFaults, Node, dotted, read


def plain(node: Node | None) -> Any:
    """The values of a tree, without places."""
    if node is None:
        return None
    if isinstance(node.value, dict):
        return {key: plain(entry[2]) for key, entry in node.value.items()}
    if isinstance(node.value, list):
        return [plain(item) for item in node.value]
    return node.value


def places(node: Any, line: int, column: int, path: tuple[Any, ...] = ()) -> dict[tuple[Any, ...], tuple[int, int]]:
    """Line and column of every key and list item, from our tree."""
    found = {}
    if isinstance(node.value, dict):
        for key, (at, col, below) in node.value.items():
            found[(*path, key)] = (at, col)
            found.update(places(below, at, col, (*path, key)))
    elif isinstance(node.value, list):
        for index, below in enumerate(node.value):
            found[(*path, index)] = (below.line, below.column)
            found.update(places(below, below.line, below.column, (*path, index)))
    return found


def round_trip_places(data: Any, path: tuple[Any, ...] = ()) -> dict[tuple[Any, ...], tuple[int, int]]:
    """The same, from the round-trip loader."""
    found = {}
    entries = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, below in entries:
        found[(*path, key)] = tuple(data.lc.data[key][:2])
        found.update(round_trip_places(below, (*path, key)))
    return found


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Cn")), max_size=12)
# timestamps, 1_000 and 0b1 have a meaning in the library's loaders that YAML 1.2's core schema does not give them
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False, width=32)
    | TEXTS
    | st.sampled_from(
        ["yes", "no", "on", "null", "~", "1h", "010", "0x1f", "0o17", "1e3", "- a", "a: b", "# c", "<<", "*a"]
    )
)
TREES = st.recursive(
    SCALARS, lambda below: st.lists(below, max_size=4) | st.dictionaries(TEXTS, below, max_size=4), max_leaves=12
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(TEXTS, TREES, min_size=1, max_size=5), st.booleans())
@example({"<<": {"a": 1}}, False)
def test_values_and_places_agree_with_the_librarys_safe_and_round_trip_loaders(
    tree: dict[str, Any], flow: bool
) -> None:
    writer, out = YAML(typ="safe", pure=True), io.StringIO()
    writer.default_flow_style = flow
    writer.dump(tree, out)
    text = out.getvalue()
    try:
        loaded = YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        loaded = None
    assume(loaded == tree)  # the library writes some texts that it cannot read back, such as `{:0: null}`
    source = read(text, "f")
    assert source.faults == []
    assert plain(source.root) == loaded
    both = YAML().load(text)
    assert plain(source.root) == json.loads(json.dumps(both))
    assert source.root is not None
    ours = places(source.root, 0, 0)
    theirs = round_trip_places(both)
    assert {path: place for path, place in ours.items() if not isinstance(path[-1], int)} == {
        path: place for path, place in theirs.items() if not isinstance(path[-1], int)
    }


@settings(deadline=None)
@given(TREES)
def test_every_json_document_means_what_json_says(tree: Any) -> None:
    source = read(json.dumps(tree), "f")
    assert source.faults == []
    assert plain(source.root) == tree


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", "yes"),
        ("on", "on"),
        ("True", True),
        ("~", None),
        ("", None),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("1_000", "1_000"),
        ("1.5", 1.5),
        ("-.inf", -math.inf),
        ("1e3", 1000.0),
        ("2024-01-01", "2024-01-01"),
        ("'true'", "true"),
        ("! 12", "12"),
        ("!!str 12", "12"),
        ('"\\ud83d\\ude00"', "\U0001f600"),
    ],
)
def test_scalars_follow_the_yaml_1_2_core_schema(text: str, value: object) -> None:
    assert plain(read(f"a: {text}\n", "f").root) == {"a": value}


def test_aliases_and_merges_mean_what_the_library_says_they_mean() -> None:
    text = "base: &b {x: 1, y: [2, 3]}\nmore: &m {x: 9, z: 4}\nall: {<<: [*b, *m], y: 0}\nsame: *b\none:\n  <<: *m\n"
    source = read(text, "f")
    assert source.faults == []
    assert plain(source.root) == YAML(typ="safe", pure=True).load(text)


FAULTS = [
    ("a: 1\na: 2\n", "2:1: a: duplicate key `a`; it is in line 1 already; keep one of them"),
    ("a: {b: 1, c: 2, b: 3}\n", "1:17: a.b: duplicate key `b`; it is in line 1 already; keep one of them"),
    ("a:\n\tb: 1\n", "2:1: a: not yaml: found character '\\t' that cannot start any token; "
     "indent with spaces; yaml allows no tabs there"),
    ("a: b: c\n", "1:5: not yaml: mapping values are not allowed here; "
     "check the indentation, and put a text that contains `: ` in quotes"),
    ("a: 'b\nc: d\n", "1:4: a: not yaml: found unexpected end of stream; close the quote"),
    ("a: [1, 2\n", "1:4: a[2]: not yaml: expected ',' or ']', but got '<stream end>'; close the bracket or brace"),
    ("a: [\n", "1:4: a[0]: not yaml: expected the node content, but found '<stream end>'; close the bracket or brace"),
    ("a: [\n  {b: 1\n", "2:3: a[0]: not yaml: expected ',' or '}', but got '<stream end>'; close the bracket or brace"),
    ("a: [\n  {b: 1,\n", "2:3: a[0]: not yaml: expected the node content, but found '<stream end>'; "
     "close the bracket or brace"),
    ("a: @b\n", "1:4: a: not yaml: found character '@' that cannot start any token; put the value in quotes"),
    ("a: *b\n", "1:4: a: the alias `*b` has no anchor before it; write `&b` at the value it means"),
    ("a: &b [1, *b]\n", "1:11: a[1]: the alias `*b` stands inside its own anchor; write the value out"),
    ("a: &b {<<: *b}\n", "1:12: a.<<: the alias `*b` stands inside its own anchor; write the value out"),
    ("a: !x 1\n", "1:4: a: the tag `!x` means nothing here; remove it"),
    ("a: !!python/object:os.system {}\n",
     "1:4: a: the tag `tag:yaml.org,2002:python/object:os.system` means nothing here; remove it"),
    ("1: a\n", "1:1: the key `1` is not a text; put it in quotes"),
    ("true: a\n", "1:1: the key `true` is not a text; put it in quotes"),
    (": a\n", "1:1: a key is missing before the `:`; add it"),
    ("? [a]\n: b\n", "1:3: a key is a list or mapping; use a text as the key"),
    ("a: 1\n---\nb: 2\n", "2:1: the file holds more than one yaml document; "
     "keep one, and remove the `---` between them"),
    ("%YAML 2.0\n---\na: 1\n",
     "1:1: not yaml: found incompatible YAML document (version 1.* is required); remove the `%YAML` line"),
    ("a: {<<: 3}\n", "1:5: a: `<<` takes in mappings only; write `<<: *name`, where `&name` stands at a mapping"),
    ("a: \x07\n", "1:4: the character U+0007 cannot be in a yaml file; "
     "remove it, or write it as an escape in double quotes"),
    (b"a: 1\nb: \xff\n", "2:4: the file is not utf-8 text; save it as utf-8"),
    (b"\xff\xfea\x00", "1:1: the file is not utf-8 text; save it as utf-8"),
    (b"a\x00: 1\n", "1:2: the character U+0000 cannot be in a yaml file; "
     "remove it, or write it as an escape in double quotes"),
    ('a: "\\ud83d"\n', "1:4: a: the text holds half a character; write both halves, or the character itself"),
    ("a: \"\\q\"\n", "1:6: a: not yaml: found unknown escape character 'q'; "
     "double the backslash, or use single quotes"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "fault"), FAULTS)
def test_what_is_wrong_with_the_yaml_is_told_with_its_place(text: str | bytes, fault: str) -> None:
    assert [str(one) for one in read(text, "f").faults] == [f"f:{fault}"]


def test_every_duplicate_is_reported_and_what_comes_before_a_syntax_error_as_well() -> None:
    faults = read("a: 1\na: 2\nb: {c: 1, c: 2}\nd: [\n", "f").faults
    assert [(one.line, one.column) for one in faults] == [(2, 1), (3, 11), (4, 4)]


def test_the_tree_before_a_syntax_error_is_kept_without_the_half_value() -> None:
    source = read("a: 1\nb: 2\nc: 3\n d: 4\n", "f")
    assert plain(source.root) == {"a": 1, "b": 2}
    assert not source.complete


def test_an_alias_bomb_is_refused_in_no_time() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    started = time.process_time()
    faults = read("\n".join(lines), "f").faults
    assert time.process_time() - started < 5
    assert "aliases expand to more than" in faults[0].message


def test_aliases_do_not_nest_deeper_than_the_file_may() -> None:
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 40)]
    assert any(f"more than {MAX_DEPTH} deep" in one.message for one in read("\n".join(lines), "f").faults)


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? ", "[{a: "])
def test_deep_nesting_is_a_fault_and_not_a_crash(opening: str) -> None:
    faults = read(opening * 100_000, "f").faults
    assert faults
    assert any(f"nested more than {MAX_DEPTH} deep" in one.message for one in faults)


def test_a_file_of_nothing_but_faults_is_cut_short() -> None:
    faults = read("a: 1\n" * (MAX_FAULTS + 500), "f").faults
    assert len(faults) == MAX_FAULTS + 1
    assert str(faults[-1]) == f"f: there are more than {MAX_FAULTS} faults; mend those shown first"


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | st.text("abc:-?&*!|>'\"%@`#{}[],\n \t~0<.", max_size=40))
def test_any_bytes_give_a_tree_or_faults(data: bytes | str) -> None:
    source = read(data, "f")
    for fault in source.faults:
        assert fault.message
        assert fault.hint
        fault.render()
    assert source.faults or source.complete


def test_a_byte_order_mark_is_skipped() -> None:
    assert plain(read(b"\xef\xbb\xbfa: 1\n", "f").root) == {"a": 1}


def test_nothing_is_an_empty_file() -> None:
    for text in ("", "\n", "# only a comment\n", "---\n"):
        source = read(text, "f")
        assert (plain(source.root), source.faults, source.complete) == (None, [], True)


def test_the_caret_stands_under_the_place_also_after_wide_letters_and_tabs() -> None:
    (fault,) = read("客服: {a: 1, a: 2}\n", "f").faults
    assert fault.render().splitlines()[1:] == ["    1 | 客服: {a: 1, a: 2}", "      |              ^"]
    (fault,) = read("{'x\ty': 1, a: 1, a: 2}\n", "f").faults
    assert fault.render().splitlines()[1:] == ["    1 | {'x\ty': 1, a: 1, a: 2}", "      |    \t             ^"]


@pytest.mark.parametrize(
    "text",
    [
        "auth_token: hunter2: x\n",
        "agents:\n  dev:\n    auth_token: 'hunter2\n",
        'env:\n  ANYTHING: "hunter2\\q"\n',
        "env:\n  ANYTHING: [\n    hunter2\n    x: y\n",
        "backends: {a: {env: {X: hunter2}, env: 1}}\n",
        "headers:\n  X: @hunter2\n",
        "args:\n- @hunter2\n",
        "url: @https://me:hunter2@host/\n",
        "command: @npx --api-key hunter2\n",
        "feishu: @https://hook/hunter2\n",
        "  token hunter2\nx: y: z\n",
        "secret: |\n  hunter2\n\tx\n",
        "api_token: hunter2\napi_token: hunter2\n",
    ],
)
def test_a_shown_line_holds_no_secret(text: str) -> None:
    faults = read(text, "f").faults
    assert faults
    assert "hunter2" not in ConfigFaults(faults).render()
    assert "hunter2" not in repr(faults)


def test_paths_quote_names_that_would_be_misread() -> None:
    assert dotted(("constraints", "sql.query", "operations", 2)) == 'constraints["sql.query"].operations[2]'
    assert dotted(()) == ""
