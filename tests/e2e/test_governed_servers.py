"""Real servers under the example policies: what should pass passes, what should not leaves files and tables as they were.

The official client on one side of `aegis-wrap`, and on the other servers that would do all of it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any, TextIO

import pytest
from mcp import Client, MCPError
from mcp.client.stdio import StdioServerParameters, stdio_client

from . import servers
from .house import BOUND_S, WRAP, Home, call

pytestmark = pytest.mark.real
EXAMPLES = Path(__file__).parents[2] / "examples" / "policies"
SQLITE = servers.CACHE / "old-python" / "bin" / "mcp-server-sqlite"


def governed(homes: Callable[..., Home], example: str, **places: str) -> Home:
    """A daemon by this example, with its places replaced by real ones."""
    servers.needed()
    home = homes(None, start=False)
    for file in (EXAMPLES / example).glob("*"):
        text = file.read_text()
        for place, real in places.items():
            text = text.replace(place, real)
        (home.dir / file.name).write_text(text)
    home.configure((home.dir / "aegis.yaml").read_text())
    return home.launch()


def run(
    home: Home | None, argv: list[str], use: Callable[[Client], Awaitable[Any]], *options: str, **offers: Any
) -> Any:
    """What `use` makes of a client of the server; through Aegis where there is a home."""
    full = [WRAP, *options, "--", *argv] if home is not None else argv
    env = home.env if home is not None else dict(os.environ)

    async def all(errors: TextIO) -> Any:
        transport = stdio_client(StdioServerParameters(command=full[0], args=full[1:], env=env), errors)
        async with asyncio.timeout(3 * BOUND_S), Client(transport, mode="legacy", **offers) as client:
            return await use(client)

    with open(os.devnull, "w") as errors:
        return asyncio.run(all(errors))


async def tried(asked: Awaitable[Any]) -> str:
    """`done`, what the server objected to, or what Aegis refused."""
    try:
        answer = await asked
    except MCPError as error:
        data = error.error.data
        return (
            f"refused: {data.get('reason', 'no frame')}"
            if isinstance(data, dict) and data.get("by") == "aegis"
            else "objected"
        )
    text = getattr(answer, "content", None) and getattr(answer.content[0], "text", "")
    if text and text.startswith("PENDING"):
        return "asked"
    return (
        "objected"
        if getattr(answer, "is_error", False) or (text or "").startswith(("Error", "Database error"))
        else "done"
    )


# --- files


def everything_below(place: Path) -> dict[str, str]:
    return {str(file.relative_to(place)): file.read_text() for file in sorted(place.rglob("*")) if file.is_file()}


def test_files_below_a_folder_are_all_that_a_file_server_may_touch(homes: Callable[..., Home], tmp_path: Path) -> None:
    notes, beside = tmp_path / "notes", tmp_path / "notes-of-others"
    for folder in (notes, notes / "sub", notes / ".git", beside):
        folder.mkdir()
    for file in (
        notes / "today.md",
        notes / "sub" / "a.md",
        notes / ".git" / "config",
        notes / ".env",
        beside / "b.md",
    ):
        file.write_text(f"secret of {file.name}\n")
    (tmp_path / "passwords").write_text("hunter2\n")
    home = governed(homes, "files-below-a-folder", **{"/home/me/notes": str(notes)})
    before = everything_below(tmp_path)
    outside = [
        tmp_path / "passwords", beside / "b.md", f"{notes}/../passwords", f"{notes}/sub/../../passwords", "../passwords",
        f"{notes}/%2e%2e/passwords", f"{notes}/%252e%252e/passwords", f"{notes}\\..\\passwords", f"{notes}/..;/passwords",
        f"{notes}\u200b/today.md", f"{notes}/\uff0e\uff0e/passwords", f"file://{tmp_path}/passwords", f"/{tmp_path}/passwords",
        "~/passwords", f"{notes}/.env", f"{notes}/.git/config", f"{notes}/sub/../.env", tmp_path, "/", "", "/etc/passwd",
    ]  # fmt: skip
    edits = [{"oldText": "secret", "newText": "open"}]

    async def use(client: Client) -> tuple[list[str], dict[str, str], dict[str, str]]:
        names = sorted(tool.name for tool in (await client.list_tools()).tools)
        good = {
            "list": await tried(client.call_tool("list_directory", {"path": str(notes)})),
            "read": await tried(client.call_tool("read_text_file", {"path": f"{notes}/today.md"})),
            "write": await tried(client.call_tool("write_file", {"path": f"{notes}/new.md", "content": "new"})),
            "edit": await tried(client.call_tool("edit_file", {"path": f"{notes}/new.md", "edits": [{"oldText": "new", "newText": "newer"}]})),
        }  # fmt: skip
        bad = {}
        for path in map(str, outside):
            for tool, more in (
                ("read_text_file", {}), ("write_file", {"content": "owned"}), ("edit_file", {"edits": edits}),
                ("list_directory", {}), ("directory_tree", {}), ("get_file_info", {}), ("search_files", {"pattern": "*"}),
            ):  # fmt: skip
                bad[f"{tool} {path}"] = await tried(client.call_tool(tool, {"path": path, **more}))
            for source, destination in ((path, f"{notes}/stolen"), (f"{notes}/today.md", path)):
                move = client.call_tool("move_file", {"source": source, "destination": destination})
                bad[f"move {source} {destination}"] = await tried(move)
        for tool in ("create_directory", "read_multiple_files", "read_file", "list_allowed_directories"):
            bad[tool] = await tried(client.call_tool(tool, {"path": str(notes), "paths": [f"{tmp_path}/passwords"]}))
        for odd in (
            ["path"],
            {"path": [str(notes)]},
            {"Path": f"{tmp_path}/passwords"},
            {"path": f"{notes}/today.md", "PATH": "/etc/passwd"},
        ):
            if isinstance(odd, dict):
                bad[str(odd)] = await tried(client.call_tool("read_text_file", odd))
        return names, good, bad

    names, good, bad = run(home, [*servers.command("filesystem", tmp_path)[:-1], str(tmp_path)], use)
    assert "read_multiple_files" not in names
    assert "move_file" in names
    assert set(good.values()) == {"done"}, good
    assert {how: what for how, what in bad.items() if not what.startswith("refused")} == {}
    assert len(bad) > 190
    after = everything_below(tmp_path)
    assert after == {**before, "notes/new.md": "newer"}


# --- tables


def dump(database: Path) -> list[str]:
    with closing(sqlite3.connect(database)) as db:
        return list(db.iterdump())


OWN = [
    "DELETE FROM accounts", "DROP TABLE accounts", "UPDATE accounts SET balance = 1e9", "SELECT 1; DELETE FROM accounts",
    "INSERT INTO accounts VALUES (9, 'eve', 1e9)", "REPLACE INTO accounts VALUES (1, 'eve', 0)", "ALTER TABLE accounts RENAME TO x",
    "CREATE TABLE x (a)", "CREATE TRIGGER t AFTER UPDATE ON accounts BEGIN DELETE FROM accounts; END", "PRAGMA user_version = 7",
    "PRAGMA journal_mode = DELETE", "ATTACH 'PLACE/other.db' AS o", "VACUUM INTO 'PLACE/copy.db'", "VACUUM", "REINDEX",
    "WITH x AS (SELECT 1) DELETE FROM accounts", "WITH x AS (SELECT 1) INSERT INTO accounts SELECT 9, 'e', 1 FROM x",
    "DELETE FROM accounts RETURNING *", "INSERT INTO accounts VALUES (9, 'e', 1) RETURNING id", "EXPLAIN DELETE FROM accounts",
    "SELECT 1 /* ; */ ; DROP TABLE accounts -- x", "\ufeffDELETE FROM accounts", "DELETE\x00 FROM accounts", "/**/DELETE FROM accounts",
    "SELECT writefile('PLACE/x', 'y')", "SELECT load_extension('PLACE/x')", "SELECT edit('x')", "SELECT fts3_tokenizer('a', 'b')",
    "BEGIN EXCLUSIVE", "SAVEPOINT x", "SELECT readfile('/etc/passwd')", "SELECT zeroblob(1000000000)", "SELECT randomblob(1000000000)",
]  # fmt: skip
"""What would change this database or lead out of it, and refused to a text."""


def attacks() -> list[str]:
    """The corpus of `tests/policy`, and `OWN`."""
    from policy.test_sql import BAD, GOOD

    return list(dict.fromkeys([*(text for _, text in BAD), *OWN, *(text for _, text in GOOD)]))


QUESTIONS = {
    "SELECT name FROM accounts ORDER BY id": "ann",
    "SELECT sum(balance) AS total FROM accounts": "300",
    "WITH rich AS (SELECT * FROM accounts WHERE balance > 150) SELECT name FROM rich": "",  # the server knows no WITH
    "SELECT a.name, count(*) AS n FROM accounts a LEFT JOIN notes n ON n.account = a.id GROUP BY a.name": "bob",
    "SELECT 'DROP TABLE accounts; --' AS x": "DROP",
    "SELECT strftime('%Y', '2026-01-02') AS y": "2026",
}


def test_no_text_of_any_corpus_changes_a_database_that_may_only_be_asked(
    homes: Callable[..., Home], tmp_path: Path
) -> None:
    if not SQLITE.exists():
        servers.needed()
    home = governed(homes, "read-only-sql")
    database = tmp_path / "real.db"
    with closing(sqlite3.connect(database)) as db:
        db.executescript(
            "CREATE TABLE accounts (id INTEGER PRIMARY KEY, name TEXT, balance REAL); CREATE TABLE notes (account, text);"
            "INSERT INTO accounts VALUES (1, 'ann', 100), (2, 'bob', 200); INSERT INTO notes VALUES (1, 'x');"
        )
    before, files = dump(database), sorted(os.listdir(tmp_path))
    texts = [text.replace("PLACE", str(tmp_path)) for text in attacks()]
    argv = [str(SQLITE), "--db-path", str(database)]

    async def use(client: Client) -> tuple[list[str], dict[str, str], dict[str, str]]:
        names = sorted(tool.name for tool in (await client.list_tools()).tools)
        told = {
            text: str((await client.call_tool("read_query", {"query": text})).content[0].text) for text in QUESTIONS
        }  # type: ignore[union-attr]
        ended = {text: await tried(client.call_tool("read_query", {"query": text})) for text in texts}
        for tool in ("write_query", "create_table"):
            for text in ("DELETE FROM accounts", "CREATE TABLE x (a)"):
                ended[f"{tool} {text}"] = await tried(client.call_tool(tool, {"query": text}))
        for odd in ({"query": ["DELETE FROM accounts"]}, {"Query": "x", "query": "SELECT 1"}, {"sql": "SELECT 1"}, {}):
            ended[str(odd)] = await tried(client.call_tool("read_query", odd))
        for name in ("accounts); DROP TABLE accounts; --", "accounts)", "x'; DELETE FROM accounts; --"):
            ended[f"describe {name}"] = await tried(client.call_tool("describe_table", {"table_name": name}))
        return names, told, ended

    names, told, ended = run(home, argv, use, "--agent", "dev", "--backend", "sqlite")
    assert names == ["describe_table", "list_tables", "read_query"]
    for text, part in QUESTIONS.items():
        assert part in told[text], (text, told[text])
        assert part or "Only SELECT" in told[text]
    assert dump(database) == before
    assert sorted(os.listdir(tmp_path)) == files
    # What got through only asks, of this database (what other dialects read as more is in the corpus too).
    through = [text for text, what in ended.items() if not what.startswith("refused")]
    assert [one for one in through if "accounts" in one and not one.startswith("describe ")] == [
        "select * from accounts"
    ]
    assert not {text.replace("PLACE", str(tmp_path)) for text in OWN} & set(through)
    assert len(ended) >= 190
    assert len(through) <= 50, through


def test_the_same_server_without_aegis_does_what_it_is_told(tmp_path: Path) -> None:
    servers.needed()
    database = tmp_path / "real.db"
    with closing(sqlite3.connect(database)) as db:
        db.executescript("CREATE TABLE accounts (id)")

    async def use(client: Client) -> str:
        return await tried(client.call_tool("write_query", {"query": "DROP TABLE accounts"}))

    assert run(None, [str(SQLITE), "--db-path", str(database)], use) == "done"
    assert dump(database) == ["BEGIN TRANSACTION;", "COMMIT;"]


# --- a server that has everything


def test_every_kind_of_rule_holds_on_a_server_that_has_everything(homes: Callable[..., Home], tmp_path: Path) -> None:
    home = governed(homes, "everything")

    async def use(client: Client) -> dict[str, Any]:
        names = {tool.name for tool in (await client.list_tools()).tools}
        found: dict[str, Any] = {
            "hidden": {"get-env", "toggle-simulated-logging"} & names,
            "get-env": await tried(client.call_tool("get-env", {})),
            "echo": await tried(client.call_tool("echo", {"message": "hello"})),
            "sum": await tried(client.call_tool("get-sum", {"a": 1, "b": 2})),
            "sum too large": await tried(client.call_tool("get-sum", {"a": 10**7, "b": 2})),
            "sum of text": await tried(client.call_tool("get-sum", {"a": "1", "b": 2})),
            "text": await tried(client.read_resource("demo://resource/dynamic/text/1")),
            "blob": await tried(client.read_resource("demo://resource/dynamic/blob/1")),
            "sales": await tried(client.get_prompt("completable-prompt", {"department": "Sales", "name": "David"})),
            "engineering": await tried(client.get_prompt("completable-prompt", {"department": "Engineering", "name": "Alice"})),
            "disguised": await tried(client.get_prompt("completable-prompt", {"department": "sALES", "name": "David"})),
            "fetch": await tried(client.call_tool("gzip-file-as-resource", {"name": "x", "data": "http://169.254.169.254/", "outputType": "resource"})),
        }  # fmt: skip
        return found

    assert run(home, servers.command("everything", tmp_path), use) == {
        "hidden": set(),
        "get-env": "refused: not_allowed",
        "echo": "done",
        "sum": "done",
        "sum too large": "refused: constraint",
        "sum of text": "refused: constraint",
        "text": "done",
        "blob": "refused: not_allowed",
        "sales": "refused: policy_denied",
        "engineering": "done",
        "disguised": "refused: policy_denied",
        "fetch": "refused: constraint",
    }
    agent = home.wrap(*servers.command("everything", tmp_path)).handshake()
    weather = agent.asks(call(1, "get-structured-content", location="Chicago"))["result"]
    assert weather["structuredContent"] == json.loads(weather["content"][0]["text"])
    assert "[redacted]" in weather["structuredContent"].values()
