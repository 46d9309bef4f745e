"""A change of one value in somebody's file changes that value's bytes, or nothing at all."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from aegis_daemon.clients.documents import MISSING, Document, Format, Unchangeable, Unreadable, equal, parse

JSONS: tuple[Format, ...] = ("json", "jsonc", "json5")
FORMATS: tuple[Format, ...] = (*JSONS, "toml", "yaml")

# --- random documents, as people write them

TEXTS = st.text(
    st.characters(codec="utf-8", exclude_characters="\0\x85\ufeff\u2028\u2029", exclude_categories=("Cc",)), max_size=6
)
KEYS = st.sampled_from(["a", "b", "command", "args", "env", "é", "a.b", "x y", "#k", "//", "y", "1", "-", ""])
LEAVES = st.one_of(TEXTS, st.booleans(), st.integers(-(10**9), 10**9), st.sampled_from([0.5, -2.25, 1e9]))
VALUES = st.recursive(
    LEAVES | st.sampled_from([{}, []]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
ROOTS = st.dictionaries(KEYS, VALUES, max_size=4)


class Writer:
    """Spells a value in an odd way that its format allows, with numbered comments wherever they may stand."""

    def __init__(self, draw: st.DrawFn, format: Format) -> None:
        self.draw = draw
        self.format = format
        self.newline = draw(st.sampled_from(["\n", "\n", "\r\n"]))
        self.count = 0

    def comment(self) -> str:
        self.count += 1
        return f"c{self.count}c"

    def gap(self) -> str:
        """What may stand between two tokens of a JSON."""
        blank = st.sampled_from(["", " ", "", self.newline, "\t", self.newline + "  ", self.newline * 2])
        gap = self.draw(blank)
        if self.format != "json" and self.draw(st.integers(0, 5)) == 0:
            word = self.comment()
            gap += f'// {word} " }} , :{self.newline}' if self.draw(st.booleans()) else f"/* {word} ] ' */"
        return gap + self.draw(blank)

    def json(self, value: Any) -> str:
        if isinstance(value, dict):
            parts = [
                self.gap() + self.key(key) + self.gap() + ":" + self.gap() + self.json(below) + self.gap()
                for key, below in value.items()
            ]
            return "{" + (",".join(parts) + self.trailing(bool(parts)) or self.gap()) + "}"
        if isinstance(value, list):
            parts = [self.gap() + self.json(below) + self.gap() for below in value]
            return "[" + (",".join(parts) + self.trailing(bool(parts)) or self.gap()) + "]"
        return json.dumps(value, ensure_ascii=self.draw(st.booleans()))

    def trailing(self, any_: bool) -> str:
        return "," + self.gap() if any_ and self.format != "json" and self.draw(st.booleans()) else ""

    def key(self, key: str) -> str:
        if self.format == "json5" and key.isidentifier() and self.draw(st.booleans()):
            return key
        if self.format == "json5" and self.draw(st.booleans()):
            return f"'{key}'"
        return json.dumps(key, ensure_ascii=False)

    # TOML

    def toml(self, value: dict[str, Any]) -> str:
        return self.table((), value)

    def end(self) -> str:
        tail = f"  # {self.comment()} = [" if self.draw(st.integers(0, 4)) == 0 else ""
        blank = self.newline if self.draw(st.integers(0, 4)) == 0 else ""
        return tail + self.newline + blank

    def toml_key(self, key: str) -> str:
        bare = key.isascii() and key.replace("-", "a").replace("_", "a").isalnum()
        return (
            key if bare and self.draw(st.booleans()) else json.dumps(key, ensure_ascii=False).replace("\x7f", "\\u007f")
        )

    def table(self, path: tuple[str, ...], value: dict[str, Any]) -> str:
        own, inner = "", ""
        for key, below in value.items():
            if isinstance(below, dict) and self.draw(st.booleans()):
                inner += self.table((*path, key), below)
            else:
                own += f"{self.toml_key(key)} = {self.toml_value(below)}{self.end()}"
        if not path:
            return own + inner
        head = f"[{'.'.join(self.toml_key(step) for step in path)}]" + self.end()
        return head + own + inner

    def toml_value(self, value: Any) -> str:
        if isinstance(value, dict):
            return (
                "{ " + ", ".join(f"{self.toml_key(key)} = {self.toml_value(one)}" for key, one in value.items()) + " }"
            )
        if isinstance(value, list):
            spread = value and self.draw(st.booleans())
            if not spread:
                return "[" + ", ".join(self.toml_value(one) for one in value) + "]"
            lines = "".join(f"  {self.toml_value(one)},{self.end()}" for one in value)
            return "[" + self.newline + lines + "]"
        if isinstance(value, str) and "'" not in value and self.draw(st.booleans()):
            return f"'{value}'"
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")

    # YAML

    def yaml(self, value: dict[str, Any]) -> str:
        return self.block(value, 0) if value else "{}" + self.newline

    def block(self, value: Any, column: int) -> str:
        lead = " " * column
        text = ""
        for key in value if isinstance(value, dict) else range(len(value)):
            below = value[key]
            head = lead + (f"{self.yaml_word(key)}:" if isinstance(value, dict) else "-")
            if self.draw(st.integers(0, 5)) == 0:
                text += f"{lead}# {self.comment()}: - x{self.newline}"
            if isinstance(below, dict | list) and below and self.draw(st.integers(0, 3)):
                tail = f" # {self.comment()}" if self.draw(st.integers(0, 5)) == 0 else ""
                deeper = column + (
                    0 if isinstance(value, dict) and isinstance(below, list) and self.draw(st.booleans()) else 2
                )
                text += head + tail + self.newline + self.block(below, deeper)
            else:
                text += head + " " + self.flow(below) + self.end()
        return text

    def yaml_word(self, value: str) -> str:
        if "'" not in value and value.isprintable() and self.draw(st.booleans()):
            return f"'{value}'"
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\x7f")

    def flow(self, value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{self.yaml_word(key)}: {self.flow(one)}" for key, one in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(self.flow(one) for one in value) + "]"
        return self.yaml_word(value) if isinstance(value, str) else json.dumps(value)


@st.composite
def documents(draw: st.DrawFn, formats: tuple[Format, ...] = FORMATS) -> tuple[Document, Any, list[str]]:
    """A document, what it says, and its comments in order."""
    format = draw(st.sampled_from(formats))
    value = draw(ROOTS)
    writer = Writer(draw, format)
    if format == "toml":
        text = writer.toml(value)
    elif format == "yaml":
        text = writer.yaml(value)
    else:
        text = writer.gap() + writer.json(value) + writer.gap()
    if draw(st.booleans()):
        text = text.rstrip("\r\n") if "//" not in text[-20:] else text
    if draw(st.integers(0, 5)) == 0:
        text = "\ufeff" + text
    note(f"{format}: {text!r}")
    return parse(text.encode(), format), value, [f"c{at}c" for at in range(1, writer.count + 1)]


def paths(value: Any, above: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    found = [above] if above else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in items:
        found += paths(below, (*above, key))
    return found


def comments(document: Document, of: list[str]) -> list[str]:
    return sorted((one for one in of if one in document.text), key=document.text.index)


def in_order(document: Document, of: list[str]) -> list[str]:
    return sorted(of, key=document.text.index)


def beyond(document: Document, path: tuple[str | int, ...], of: list[str]) -> list[str]:
    """The comments that stand neither in a value nor between it and its key."""
    node = document._root
    for step in path:
        assert node is not None
        member = node.below(step)
        assert member is not None
        node = member.node
    inside = document.text[member.start : node.end]
    return [one for one in of if one not in inside]


def outside(document: Document, path: tuple[str | int, ...], of: list[str]) -> list[str]:
    """The comments that do not stand in the text of a value."""
    raw = document.raw(path)
    return [one for one in of if raw is None or one.encode() not in raw]


def changed(document: Document, path: tuple[str | int, ...], value: Any) -> Document | None:
    """The document changed, or None where it says that this is to be done by hand."""
    try:
        return document.replaced(path, value)
    except Unchangeable as why:
        refusal = str(why)
    assert refusal.endswith("change it by hand")
    return None


def assert_read_or_refused(data: bytes, format: Format) -> Document | None:
    try:
        document = parse(data, format)
    except Unreadable as fault:
        where = fault.line, fault.column
    else:
        assert document.data == data
        return document
    assert (1, 1) <= where <= (data.count(b"\n") + 1, len(data) + 1)
    return None


@given(documents())
@settings(max_examples=75, deadline=None)
def test_a_document_is_read_as_it_is_meant_and_keeps_its_bytes(made: tuple[Document, Any, list[str]]) -> None:
    document, value, _ = made
    assert equal(document.value if document.value is not None else {}, value)
    assert parse(document.data, document.format).data == document.data


@given(documents(), st.data())
@settings(max_examples=100, deadline=None)
def test_a_replaced_value_leaves_everything_around_it(
    made: tuple[Document, Any, list[str]], data: st.DataObject
) -> None:
    document, value, notes = made
    places = paths(value)
    if not places:
        return
    path = data.draw(st.sampled_from(places))
    new = data.draw(VALUES)
    after = changed(document, path, new)
    if after is None:
        return
    assert equal(after.at(path), new)
    kept = (outside if document.format == "toml" else beyond)(document, path, notes)
    assert [one for one in in_order(document, notes) if one in kept] == comments(after, kept)
    span = document._span(path)
    if span is not None and document.format in JSONS:
        begin, end = document.text[: span[0]], document.text[span[1] :]
        assert after.text.startswith(begin)
        assert after.text.endswith(end)


@given(documents(), st.data())
@settings(max_examples=100, deadline=None)
def test_what_is_put_in_comes_out_again_to_the_byte(made: tuple[Document, Any, list[str]], data: st.DataObject) -> None:
    document, value, notes = made
    above = data.draw(st.sampled_from([(), *(path for path in paths(value) if isinstance(document.at(path), dict))]))
    entry = {"command": "npx", "args": ["-y", "@scope/x"], "env": {"KEY": "${KEY}"}}
    try:
        after = document.replaced((*above, "added"), entry)
    except Unchangeable:
        assert document.format == "toml"
        return
    assert comments(after, notes) == in_order(document, notes)
    again = after.removed((*above, "added"))
    empty = not document.at(above)
    if not empty:
        assert again.data == document.data
    else:
        assert equal(again.value if again.value is not None else {}, value)
        assert comments(again, notes) == in_order(document, notes)


@given(documents(), st.data())
@settings(max_examples=100, deadline=None)
def test_a_removed_value_takes_no_comment_of_another_with_it(
    made: tuple[Document, Any, list[str]], data: st.DataObject
) -> None:
    document, value, notes = made
    places = paths(value)
    if not places:
        return
    path = data.draw(st.sampled_from(places))
    try:
        after = document.removed(path)
    except Unchangeable:
        assert document.format in ("toml", "yaml")
        return
    assert isinstance(path[-1], int) or after.at(path) is MISSING
    kept = beyond(document, path, notes) if document.format in JSONS else []
    assert [one for one in in_order(document, notes) if one in kept] == comments(after, kept)
    for other in places:
        if other[: len(path)] == path or path[: len(other)] == other or isinstance(path[-1], int):
            continue
        assert after.raw(other) == document.raw(other) or document.format == "toml"


WRAP = ["--agent", "claude-code", "--backend", "gh", "--"]


@given(documents(), st.data())
@settings(max_examples=75, deadline=None)
def test_wired_and_unwired_again_is_byte_for_byte_what_it_was(
    made: tuple[Document, Any, list[str]], data: st.DataObject
) -> None:
    document, value, _ = made
    places = [path for path in paths(value) if isinstance(document.at(path), dict) and document.raw(path) is not None]
    if not places:
        return
    path = data.draw(st.sampled_from(places))
    raw = document.raw(path)
    assert raw is not None
    entry = {**document.at(path), "command": "/opt/aegis/bin/aegis-wrap", "args": [*WRAP, "npx", "-y", "x"]}
    entry.pop(next(iter(document.at(path)), ""), None)
    try:
        wired = document.replaced(path, entry)
        unwired = wired.respelled(path, raw)
    except Unchangeable:
        assert document.format in ("toml", "yaml")
        return
    assert unwired.data == document.data


@given(documents(JSONS), st.data())
@settings(max_examples=50, deadline=None)
def test_one_broken_character_is_refused_or_read_for_what_it_is(
    made: tuple[Document, Any, list[str]], data: st.DataObject
) -> None:
    document = made[0]
    text = document.text
    at = data.draw(st.integers(0, len(text)))
    broken = text[:at] + data.draw(st.sampled_from(list('{}[]",:/*\\0-'))) + text[at:]
    assert_read_or_refused(broken.encode(), document.format)


@given(st.binary(max_size=60), st.sampled_from(FORMATS))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_read_or_refused_with_a_place(data: bytes, format: Format) -> None:
    assert_read_or_refused(data, format)


@given(st.text("{}[]\"',:/*\\ \n#=-&*!|>?%@`a1.<", max_size=40), st.sampled_from(FORMATS))
@settings(max_examples=200, deadline=None)
def test_any_text_is_read_or_refused_and_changed_or_refused(text: str, format: Format) -> None:
    document = assert_read_or_refused(text.encode(), format)
    after = document and changed(document, ("mcpServers", "x"), {"command": "y"})
    assert not after or after.at(("mcpServers", "x", "command")) == "y"


# --- what they refuse

REFUSED: list[tuple[Format, str, str]] = [
    ("json", '{"a": 1 // no\n}', "comment"),
    ("json", '{"a": 1,}', "comma before the bracket"),
    ("json", "{'a': 1}", "double quotes"),
    ("json", '{"a": 1} {"b": 2}', "follows the end"),
    ("json", '{"a": 1', "ends here"),
    ("json", '{"a": 01}', "no json value"),
    ("json", '{"a": NaN}', "no json value"),
    ("json", '{"a": 1e999}', "too great"),
    ("json", '{"a": "\t"}', "control character"),
    ("json", '{"a": 1, "a": 2}', "twice"),
    ("json", '{"a": 1, "\\u0061": 2}', "twice"),
    ("jsonc", '{"a": 1, /* no end', "never closed"),
    ("jsonc", '{"a" 1}', "colon"),
    ("jsonc", '{"a": 1,, "b": 2}', "double quotes"),
    ("jsonc", "{a: 1}", "double quotes"),
    ("json5", "{a: 'x\ny'}", "does not end"),
    ("json5", "{a: 1, 'a': 2}", "twice"),
    ("json5", "{\\u0061: 1}", "double quotes"),
    ("toml", "a = 1\na = 2\n", "overwrite"),
    ("toml", "a = \n", "invalid value"),
    ("toml", "[x]\na = 1\n[x]\n", "twice"),
    ("yaml", "a: 1\na: 2\n", "twice"),
    ("yaml", "a: [1\n", "not yaml"),
    ("yaml", "a: 1\n---\nb: 2\n", "more than one document"),
    ("yaml", "a: !!python/object:os.system x\n", "tag"),
    ("yaml", "? [a]\n: 1\n", "key"),
    ("yaml", "a: *nothing\n", "alias"),
    ("yaml", "a: &a [*a]\n", "alias"),
    ("yaml", "%YAML 1.1\n---\na: 1\n", "directive"),
    ("yaml", "a:\n\t- b\n", "not yaml"),
]


@pytest.mark.parametrize(("format", "text", "why"), REFUSED)
def test_what_readers_might_disagree_about_is_refused_with_its_place(format: Format, text: str, why: str) -> None:
    with pytest.raises(Unreadable) as refusal:
        parse(text.encode(), format)
    assert why in refusal.value.why.replace("Cannot declare", "twice")
    assert str(refusal.value).startswith(f"line {refusal.value.line}, column {refusal.value.column}: ")


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_but_utf8_is_read(format: Format) -> None:
    for data in ('{"a": "é"}'.encode("utf-16"), b'{"a": "\xe9"}', b'{"a": "\0"}'):
        with pytest.raises(Unreadable):
            parse(data, format)


@pytest.mark.parametrize("format", FORMATS)
def test_a_nest_is_bounded(format: Format) -> None:
    deep = "[" * 100_000
    texts = {"toml": f"a = {deep}", "yaml": f"a: {deep}"}
    with pytest.raises(Unreadable):
        parse(texts.get(format, deep).encode(), format)
    closed = "[" * 60 + "]" * 60
    texts = {"toml": f"a = {closed}", "yaml": f"a: {closed}"}
    assert parse(texts.get(format, closed).encode(), format).value


def test_yaml_aliases_that_grow_without_end_are_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{at}: &a{at} [{', '.join([f'*a{at - 1}'] * 10)}]" for at in range(1, 9)]
    with pytest.raises(Unreadable, match="grow"):
        parse("\n".join(lines).encode(), "yaml")


def test_what_yaml_shares_is_read_and_not_changed() -> None:
    text = "base: &base\n  command: npx\nmcp:\n  one: *base\n  two:\n    <<: *base\n    args: [x]\n"
    document = parse(text.encode(), "yaml")
    assert document.at(("mcp", "two")) == {"command": "npx", "args": ["x"]}
    for path in (("mcp", "one", "command"), ("base", "command")):
        with pytest.raises(Unchangeable, match="by hand"):
            document.replaced(path, "other")
    assert document.replaced(("mcp", "two", "args"), ["x", "y"]).text == text.replace("[x]", '[x, "y"]')


# --- what they start from


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("before", ["", "\n", "  \n\n", "\ufeff"])
def test_an_empty_file_gets_its_first_value(format: Format, before: str) -> None:
    document = parse(before.encode(), format)
    assert document.value is None
    assert document.at(()) is MISSING
    after = document.replaced(("mcpServers", "x"), {"command": "y", "args": ["1", "true"]})
    assert after.value == {"mcpServers": {"x": {"command": "y", "args": ["1", "true"]}}}
    assert after.text.startswith(before.rstrip("\n ") or after.text[0])


@pytest.mark.parametrize(
    ("format", "note"), [("jsonc", "// later\n"), ("json5", "/* later */"), ("toml", "# later"), ("yaml", "# later\n")]
)
def test_a_file_of_comments_keeps_them(format: Format, note: str) -> None:
    after = parse(note.encode(), format).replaced(("mcpServers", "x"), {"command": "y"})
    assert after.text.startswith(note)
    assert after.value == {"mcpServers": {"x": {"command": "y"}}}


@pytest.mark.parametrize("format", JSONS)
@pytest.mark.parametrize(
    "before", ["{}", "{}\n", '{"mcpServers": {}}', '{\n  "a": 1,\n  "mcpServers": {}\n}\n', '{"a":1}']
)
def test_an_empty_collection_is_filled_and_emptied_again(format: Format, before: str) -> None:
    document = parse(before.encode(), format)
    after = document.replaced(("mcpServers", "x"), {"command": "y"})
    gone = ("mcpServers", "x") if document.at(("mcpServers",)) is not MISSING else ("mcpServers",)
    assert after.removed(gone).text == before


def test_new_entries_are_laid_out_like_the_file() -> None:
    text = '{\r\n\t"mcpServers": {\r\n\t\t"a": {\r\n\t\t\t"command": "x"\r\n\t\t}\r\n\t}\r\n}\r\n'
    after = parse(text.encode(), "json").replaced(("mcpServers", "b"), {"command": "y", "args": ["z"]})
    assert after.text == text.replace(
        "\r\n\t\t}\r\n\t}", '\r\n\t\t},\r\n\t\t"b": {\r\n\t\t\t"command": "y",\r\n\t\t\t"args": ["z"]\r\n\t\t}\r\n\t}'
    )


def test_items_before_a_list_keep_the_comments_of_the_others() -> None:
    text = '{"args": [\n    "-y", // yes\n    "x" // the server\n  ]}'
    after = parse(text.encode(), "jsonc").replaced(("args",), ["--", "npx", "-y", "x"])
    assert after.text == text.replace('"-y"', '"--",\n    "npx",\n    "-y"')
    assert after.replaced(("args",), ["-y", "x"]).text == text


def test_half_a_surrogate_survives_in_json_alone() -> None:
    document = parse(b'{"a": "\\ud800", "b": 1}', "json")
    assert document.replaced(("b",), document.at(("a",))).data == b'{"a": "\\ud800", "b": "\\ud800"}'


def test_a_path_through_something_else_is_refused() -> None:
    document = parse(b'{"mcpServers": [1], "b": "x", "n": null}', "json")
    for path in (("mcpServers", "x"), ("b", "x"), ("mcpServers", 5)):
        with pytest.raises(Unchangeable, match="by hand"):
            document.replaced(path, {})
    assert document.replaced(("n", "x"), 1).at(("n",)) == {"x": 1}


# --- how long they take


def test_a_file_of_a_megabyte_is_changed_quickly() -> None:
    value = {"projects": {f"/p/{at}": {"history": [f"what {n}" for n in range(48)], "n": at} for at in range(1000)}}
    value["mcpServers"] = {"gh": {"command": "npx", "args": ["-y", "x"], "env": {}}}
    data = json.dumps(value, indent=2).encode()
    assert len(data) > 900_000
    before = time.process_time()
    document = parse(data, "json")
    after = document.replaced(
        ("mcpServers", "gh"), {"command": "/w", "args": [*WRAP, "npx", "-y", "x"], "env": {"A": "b"}}
    )
    assert after.replaced(("mcpServers", "gh"), value["mcpServers"]["gh"]).data == data
    assert time.process_time() - before < 6


def test_nothing_is_put_behind_a_comment_that_runs_to_the_end_of_its_line() -> None:
    document = parse(b'{"a": 1 // why\n}', "jsonc")
    after = document.replaced(("b",), 2)
    assert after.text == '{"a": 1, // why\n  "b": 2\n}'
    assert after.removed(("b",)).data == document.data
    assert parse(b'{"a": 1, // why\n "b": 2}', "jsonc").removed(("b",)).value == {"a": 1}


def test_the_last_table_of_a_file_can_be_taken_out() -> None:
    document = parse(b"# mine\n[mcp_servers.x]\ncommand = 'y'\n", "toml")
    assert document.removed(("mcp_servers", "x")).data == b"# mine\n"
    alone = parse(b"", "toml").replaced(("mcp_servers", "x"), {"command": "y", "env": {"A": "b"}})
    assert alone.removed(("mcp_servers", "x")).data == b""
    two = parse(b"[mcp_servers.x]\nenv = {}\n\n[mcp_servers.y]\ncommand = 'z'\n", "toml")
    assert two.removed(("mcp_servers", "y")).data == b"[mcp_servers.x]\nenv = {}\n"


@pytest.mark.parametrize("text", ["a: &x 1\n", "a: !!str 1\n", "a: &x {b: 1}\n"])
def test_what_carries_an_anchor_or_a_tag_is_not_changed(text: str) -> None:
    document = parse(text.encode(), "yaml")
    with pytest.raises(Unchangeable, match="by hand"):
        document.replaced(("a",), "2")
    with pytest.raises(Unchangeable, match="by hand"):
        document.removed(("a",))
    assert document.raw(("a",)) is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (".".join(["a"] * 100_000) + " = 1", "nested deeper"),
        ("[" + ".".join(['"a"'] * 100_000) + "]", "nested deeper"),
        ("".join(f"[t{at}]\n" for at in range(50_000)), "more tables"),
    ],
)
def test_toml_that_costs_its_reader_minutes_is_refused_at_once(text: str, why: str) -> None:
    began = time.process_time()
    with pytest.raises(Unreadable, match=why):
        parse(text.encode(), "toml")
    many = "".join(f"[projects.p{at}]\ntrust = true\n" for at in range(500))
    parse(many.encode(), "toml")
    assert time.process_time() - began < 100 * _cost_of("".join(f"k{at} = 1\n" for at in range(5000)))


def _cost_of(text: str) -> float:
    began = time.process_time()
    parse(text.encode(), "toml")
    return time.process_time() - began
