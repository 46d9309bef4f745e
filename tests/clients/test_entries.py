"""An entry of any client means what the client takes it for, and is written so that the client takes it for that again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aegis_daemon.clients.catalog import Client, by_file, find, load
from aegis_daemon.clients.documents import Document, Unreadable, equal, parse
from aegis_daemon.clients.entries import Entry, Odd, odd, place, read, with_timeout, write

CONFIGS = sorted((Path(__file__).parent / "configs").iterdir())
EXAMPLES = sorted((Path(__file__).parents[2] / "examples/clients").iterdir())
WRAP = "/opt/aegis/bin/aegis-wrap"


def owner(path: Path) -> Client:
    client = find(path.name.split(".")[0])
    assert client is not None
    return by_file(path, path.read_bytes()) if client.generic else client


def spelled(path: Path) -> list[tuple[str, Document]]:
    """The file as it is, and as other editors and systems would have saved it."""
    client, data = owner(path), path.read_bytes()
    variants = {"as it is": data, "crlf": data.replace(b"\n", b"\r\n"), "no last line break": data.rstrip()}
    variants["bom"] = b"\xef\xbb\xbf" + data
    if client.format.startswith("json"):
        variants["tabs"] = data.replace(b"  ", b"\t")
    return [(name, parse(one, client.format)) for name, one in variants.items()]


def wired(client: Client, entry: Entry) -> Any:
    args = ("--agent", client.id, "--backend", "b", *(("--", entry.command, *entry.args) if entry.command else ()))
    return with_timeout(
        client,
        write(client, replace(entry, kind="stdio", command=WRAP, args=args, url="", headers={}, transport="stdio")),
    )


def test_there_is_a_configuration_of_every_client() -> None:
    there = {path.name.split(".")[0] for path in CONFIGS}
    assert there == {client.id for client in load() if client.dead is None}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_what_is_read_and_written_again_is_what_stood_there(path: Path) -> None:
    client = owner(path)
    document = parse(path.read_bytes(), client.format)
    entries = read(client, document)
    assert entries
    for entry in entries:
        assert equal(write(client, entry), entry.raw)
        assert document.replaced(entry.path, write(client, entry)).data == document.data
        fresh = replace(entry, raw={}, disabled=False, cwd=entry.cwd)
        again = document.replaced(entry.path, write(client, fresh))
        told = next(one for one in read(client, again) if one.path == entry.path)
        assert replace(told, raw={}) == fresh


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_entry_is_wired_and_unwired_to_the_byte(path: Path) -> None:
    client = owner(path)
    for variant, document in spelled(path):
        after = document
        for entry in read(client, document):
            before = after
            after = before.replaced(entry.path, wired(client, entry))
            told = next(one for one in read(client, after) if one.path == entry.path)
            assert (told.kind, told.command, told.env, told.name) == ("stdio", WRAP, entry.env, entry.name), variant
            assert told.args[-len(entry.args) - 1 :] == (entry.command, *entry.args) or not entry.command
            raw = before.raw(entry.path)
            if raw is not None:
                assert after.respelled(entry.path, raw).data == before.data, variant
            if entry.kind == "stdio":
                unwired = after.replaced(entry.path, entry.raw)
                assert equal(unwired.value, before.value)
                plain = client.format in ("json", "jsonc", "yaml") and entry.raw.get("args") is not None
                assert unwired.data == before.data or not plain
        others = [one for one in read(client, after) if one.command == WRAP]
        assert len(others) == len(read(client, document))
        assert comments(after) == comments(document), variant


def comments(document: Document) -> list[str]:
    mark = "#" if document.format in ("toml", "yaml") else "//"
    return sorted(line.split(mark, 1)[1].strip() for line in document.text.splitlines() if f"{mark} " in line)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_new_entry_is_added_and_taken_out_to_the_byte(path: Path) -> None:
    client = owner(path)
    for variant, document in spelled(path):
        entry = Entry("added", place(client, document, "added"), "stdio", WRAP, ("--backend", "added"), {"A": "${B}"})
        after = document.replaced(entry.path, write(client, entry))
        told = next(one for one in read(client, after) if one.name == "added")
        assert replace(told, raw={}) == entry, variant
        assert place(client, after, "added") == entry.path
        assert after.removed(entry.path).data == document.data, variant


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_broken_file_is_refused(path: Path) -> None:
    client, data = owner(path), path.read_bytes()
    at = data.rfind(b"=") if client.format == "toml" else max(data.rfind(b": "), data.rfind(b'":') + 1)
    doubled = data[:at] + data[at : at + 1] + data[at:]
    for cut in (data[: len(data) // 2].rstrip(b'"\n ,'), data + b"\n]", doubled):
        if client.format == "yaml":
            cut += b"\n\tx: ["
        with pytest.raises(Unreadable):
            parse(cut, client.format)


# --- what they mean


def entry_of(name: str, server: str) -> Entry:
    path = next(path for path in CONFIGS if path.name.startswith(f"{name}."))
    client = owner(path)
    for one in CONFIGS:
        if one.name.startswith(f"{name}."):
            for entry in read(client, parse(one.read_bytes(), client.format)):
                if entry.name == server:
                    return entry
    raise AssertionError(f"{name} has no {server} in {path.name}")


MEANT = [
    ("claude-code", "context7", "stdio", ("npx", "--yes", "@upstash/context7-mcp")),
    ("claude-code", "notion", "http", "https://mcp.notion.com/mcp"),
    ("claude-code", "asana", "sse", "https://mcp.asana.com/sse"),
    ("cursor", "remote", "http", "https://api.example.com/mcp"),
    ("windsurf", "figma", "http", "https://mcp.figma.com/mcp"),
    ("cline", "remote-server", "sse", "https://your-server-url.com/mcp"),
    ("cline", "modern", "http", "https://your-server-url.com/mcp"),
    ("gemini-cli", "httpServerWithAuth", "http", "http://localhost:3000/mcp"),
    ("gemini-cli", "sseServer", "sse", "http://localhost:8080/sse"),
    ("zed", "older", "stdio", ("node", "server.js")),
    ("codex", "docs.example", "stdio", ("C:\\Tools\\docs.exe", "--root", "D:/docs")),
    ("goose", "github", "stdio", ("npx", "-y", "@modelcontextprotocol/server-github")),
    ("goose", "docs", "http", "https://mcp.example.com/mcp"),
    ("continue", "SQLite MCP", "stdio", ("npx", "-y", "mcp-sqlite", "/path/to/your/database.db")),
    ("continue", "events", "sse", "https://mcp.example.com/sse"),
    ("opencode", "my-local-mcp-server", "stdio", ("npx", "-y", "my-mcp-command")),
    ("opencode", "everything", "stdio", ("npx", "-y", "@modelcontextprotocol/server-everything")),
    ("openclaw", "docs", "http", "https://mcp.example.com"),
    ("openclaw", "old-one", "sse", "https://mcp.example.com/sse"),
    ("mcporter", "linear", "http", "https://mcp.linear.app/mcp"),
    ("amp", "linear", "http", "https://mcp.linear.app/sse"),
    ("generic-table", "two", "stdio", ("node", "two.js")),
]


@pytest.mark.parametrize(("client", "server", "transport", "what"), MEANT)
def test_an_entry_means_what_its_client_takes_it_for(client: str, server: str, transport: str, what: Any) -> None:
    entry = entry_of(client, server)
    assert entry.transport == transport
    assert ((entry.command, *entry.args) if isinstance(what, tuple) else entry.url) == what


def test_headers_env_directory_and_the_switch_are_read_where_they_stand() -> None:
    assert entry_of("continue", "docs").headers == {"Authorization": "Bearer ${{ secrets.TOKEN }}"}
    assert entry_of("codex", "figma").headers == {"X-Figma-Region": "us-east-1"}
    assert entry_of("codex", "context7").env == {"MY_ENV_VAR": "MY_ENV_VALUE"}
    assert entry_of("goose", "github").env == {"GITHUB_PERSONAL_ACCESS_TOKEN": "<YOUR_TOKEN>"}
    assert entry_of("opencode", "my-local-mcp-server").env == {"MY_ENV_VAR": "{env:MY_ENV_VAR}"}
    assert entry_of("gemini-cli", "pythonTools").cwd == "./mcp-servers/python"
    assert entry_of("warp", "filesystem").cwd == "/Users/ada"
    assert entry_of("claude-code", "filesystem").path == ("projects", "/Users/ada/dev/shop", "mcpServers", "filesystem")
    switched = {"docs.example": "codex", "fetch": "goose", "remote-server": "cline", "remote-server-name": "kiro"}
    assert all(entry_of(client, server).disabled for server, client in switched.items())
    assert not entry_of("goose", "github").disabled


ODD = [
    ("vscode.json", "local", "no http address"),
    ("cline.json", "inside", "inside of `transport`"),
    ("zed.json", "postgres-context-server", "an extension"),
    ("zed.json", "remote-mcp-server", "no http address"),
    ("goose.yaml", "developer", "inside of the program"),
    ("opencode.jsonc", "jira", "on or off"),
]


@pytest.mark.parametrize(("file", "server", "why"), ODD)
def test_what_is_not_certain_is_left_out_and_said(file: str, server: str, why: str) -> None:
    path = next(path for path in CONFIGS if path.name == file)
    client = owner(path)
    document = parse(path.read_bytes(), client.format)
    assert why in next(reason for name, _, reason in odd(client, document) if name == server)
    assert server not in [entry.name for entry in read(client, document)]


RAWS: list[tuple[Any, str]] = [
    (1, "no mapping"),
    ({}, "neither"),
    ({"command": ""}, "neither"),
    ({"command": ["npx"]}, "no text"),
    ({"command": "x", "args": "-y z"}, "no list of texts"),
    ({"command": "x", "args": [1]}, "no list of texts"),
    ({"command": "x", "env": ["A=b"]}, "no mapping"),
    ({"command": "x", "env": {"A": {"b": 1}}}, "something else than texts"),
    ({"command": "x", "url": "https://y"}, "both"),
    ({"url": "https://x", "serverUrl": "https://y"}, "two addresses"),
    ({"url": "file:///etc/passwd"}, "no http address"),
    ({"url": 5}, "no http address"),
]


@pytest.mark.parametrize(("raw", "why"), RAWS)
def test_an_entry_that_no_two_programs_would_take_alike_is_odd(raw: Any, why: str) -> None:
    client = find("cursor")
    assert client is not None
    document = parse(b"", "json").replaced(("mcpServers", "x"), raw)
    assert why in odd(client, document)[0][2]
    assert not read(client, document)


# --- what becomes of them


def test_an_address_becomes_a_command_without_what_belonged_to_the_address() -> None:
    client = find("codex")
    assert client is not None
    made = wired(client, entry_of("codex", "figma"))
    assert made == {"command": WRAP, "args": ["--agent", "codex", "--backend", "b"], "tool_timeout_sec": 660}


def test_an_address_moves_to_us_without_the_proof_meant_for_the_other() -> None:
    client = find("codex")
    assert client is not None
    entry = entry_of("codex", "figma")
    ours = replace(entry, url="http://127.0.0.1:18070/x", headers={"Authorization": "Bearer a"})
    assert write(client, ours) == {"url": "http://127.0.0.1:18070/x", "http_headers": {"Authorization": "Bearer a"}}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("claude-code", {"type": "http", "url": "U", "headers": {"H": "v"}}),
        ("vscode", {"type": "http", "url": "U", "headers": {"H": "v"}}),
        ("cline", {"type": "streamableHttp", "url": "U", "headers": {"H": "v"}}),
        ("windsurf", {"serverUrl": "U", "headers": {"H": "v"}}),
        ("gemini-cli", {"httpUrl": "U", "headers": {"H": "v"}}),
        ("mcporter", {"baseUrl": "U", "headers": {"H": "v"}}),
        ("openclaw", {"transport": "streamable-http", "url": "U", "headers": {"H": "v"}}),
        ("codex", {"url": "U", "http_headers": {"H": "v"}}),
        ("opencode", {"type": "remote", "url": "U", "headers": {"H": "v"}, "enabled": True}),
        ("goose", {"type": "streamable_http", "enabled": True, "name": "n", "uri": "U", "headers": {"H": "v"}}),
        ("continue", {"type": "streamable-http", "name": "n", "url": "U", "requestOptions": {"headers": {"H": "v"}}}),
        ("zed", {"url": "U", "headers": {"H": "v"}}),
    ],
)
def test_a_new_address_is_spelled_as_each_client_wants_it(name: str, expected: dict[str, Any]) -> None:
    client = find(name)
    assert client is not None
    entry = Entry("n", ("x", "n"), "http", url="http://127.0.0.1/x", headers={"H": "v"}, transport="http")
    made = write(client, entry)
    assert equal({key: "U" if value == entry.url else value for key, value in made.items()}, expected)


@pytest.mark.parametrize(
    ("name", "first"), [("vscode", "stdio"), ("copilot-cli", "local"), ("goose", "stdio"), ("opencode", "local")]
)
def test_a_new_command_says_its_kind_where_the_client_asks_for_it(name: str, first: str) -> None:
    client = find(name)
    assert client is not None
    assert write(client, Entry("n", ("x", "n"), "stdio", "c"))["type"] == first


def test_a_client_that_starts_commands_only_gets_no_address() -> None:
    client = find("claude-desktop")
    assert client is not None
    with pytest.raises(Odd, match="starts commands only"):
        write(client, Entry("n", ("mcpServers", "n"), "http", url="http://127.0.0.1/x", transport="http"))


def test_an_old_stream_stays_an_old_stream_until_it_is_said_otherwise() -> None:
    client = find("gemini-cli")
    assert client is not None
    entry = entry_of("gemini-cli", "sseServer")
    assert write(client, replace(entry, url="http://127.0.0.1/x")) == {"url": "http://127.0.0.1/x"}
    assert write(client, replace(entry, url="http://127.0.0.1/x", transport="http")) == {
        "httpUrl": "http://127.0.0.1/x"
    }


def test_numbers_and_nothing_in_env_stay_what_they_are() -> None:
    client = find("vscode")
    assert client is not None
    raw = {"type": "stdio", "command": "c", "env": {"PORT": 80, "GONE": None, "A": "b"}}
    document = parse(b"", "json").replaced(("servers", "x"), raw)
    entry = read(client, document)[0]
    assert entry.env == {"PORT": "80", "A": "b"}
    assert write(client, replace(entry, env={**entry.env, "A": "c"}))["env"] == {"PORT": 80, "GONE": None, "A": "c"}


def test_a_timeout_is_raised_and_never_lowered() -> None:
    cline, kiro = find("cline"), find("kiro")
    assert cline is not None
    assert kiro is not None
    assert with_timeout(cline, {"command": "x"}) == {"command": "x", "timeout": 660}
    assert with_timeout(cline, {"timeout": 30})["timeout"] == 660
    assert with_timeout(cline, {"timeout": 3600})["timeout"] == 3600
    assert with_timeout(cline, {"timeout": 0})["timeout"] == 0
    assert with_timeout(cline, {"timeout": "60"})["timeout"] == "60"
    assert with_timeout(kiro, {"timeout": 30}) == {"timeout": 30}


def test_the_two_versions_of_opencode_are_told_apart_before_a_time_is_set() -> None:
    client = find("opencode")
    assert client is not None
    local = {"type": "local", "command": ["x"]}
    assert with_timeout(client, local) == local
    assert with_timeout(client, {**local, "enabled": True})["timeout"] == 660_000
    assert with_timeout(client, local, ("mcp", "x"))["timeout"] == 660_000
    assert with_timeout(client, local, ("mcp", "servers", "x"))["timeout"] == {"request": 660_000}
    assert with_timeout(client, {**local, "timeout": {"startup": 5}})["timeout"] == {"startup": 5, "request": 660_000}


def test_a_place_is_found_in_a_project_or_at_the_top() -> None:
    client = find("claude-code")
    assert client is not None
    path = next(path for path in CONFIGS if path.name == "claude-code.user.json")
    document = parse(path.read_bytes(), client.format)
    assert place(client, document, "new") == ("mcpServers", "new")
    assert place(client, document, "new", "/p") == ("projects", "/p", "mcpServers", "new")
    assert place(client, document, "filesystem", "/Users/ada/dev/shop")[:2] == ("projects", "/Users/ada/dev/shop")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_our_own_examples_are_read_as_entries_of_ours(path: Path) -> None:
    if path.stem in ("sse", "websocket"):
        return  # for clients that have no file in the table
    client = find(path.stem) or by_file(path, path.read_bytes())
    entries = read(client, parse(path.read_bytes(), client.format))
    assert entries
    assert not odd(client, parse(path.read_bytes(), client.format))
    for entry in entries:
        assert entry.command.endswith("aegis-wrap") or "/agents/" in entry.url
