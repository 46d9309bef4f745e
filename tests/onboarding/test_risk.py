"""A tool's class is the worst that its name, its schema, its annotations or the table say, and why is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis_daemon.onboarding.risk import CLASSES, Judged, Known, Tool, judge, known, known_server, prefix, words, worse

TOOLS = json.loads(Path(__file__).with_name("tools.json").read_text())
"""What the servers that `scripts/servers` installs listed (2026-11-27), and the programs that start them."""


def one(name: str, /, schema: dict[str, object] | None = None, *, trusted: bool = False, **notes: bool) -> Judged:
    properties = {key: {"type": "string"} if value is None else value for key, value in (schema or {}).items()}
    (found,) = judge([Tool(name, {"properties": properties}, notes)], trusted=trusted)
    return found


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("delete_list", ("delete", "list")), ("deleteHTTPList", ("delete", "http", "list")), ("get-a2", ("get", "a", "2")),
        ("API-post-search", ("api", "post", "search")), ("ns.sub/readFile", ("ns", "sub", "read", "file")), ("", ()),
    ],
)  # fmt: skip
def test_names_are_cut_into_words(name: str, parts: tuple[str, ...]) -> None:
    assert words(name) == parts


@pytest.mark.parametrize(
    ("name", "risk"),
    [
        ("delete_list", "destroy"), ("list_delete", "destroy"), ("getAndDelete", "destroy"), ("readOrDrop", "destroy"),
        ("bulk-remove", "destroy"), ("reset_stats", "destroy"), ("execute_sql", "execute"), ("run_workflow", "execute"),
        ("get_workflow_run", "read"), ("get_and_run", "execute"), ("create_payment", "money"), ("list_payments", "read"),
        ("refund", "money"), ("send_email", "message"), ("get_email", "read"), ("message_user", "message"),
        ("list_messages", "read"), ("publish_post", "message"), ("create_issue", "write"), ("get_commit", "read"),
        ("set_status", "write"), ("list_files", "read"), ("frobnicate", "unknown"), ("frobnicate_list", "unknown"),
        ("get_secret_value", "unknown"), ("list_api_keys", "unknown"), ("read_and_write", "write"), ("", "unknown"),
    ],
)  # fmt: skip
def test_the_worst_word_of_a_name_decides(name: str, risk: str) -> None:
    assert one(name).risk == risk


def test_every_row_says_why() -> None:
    assert one("delete_list") == Judged("delete_list", "destroy", "high", "the word `delete`")
    assert one("frob") == Judged("frob", "unknown", "low", "no word of its name is known")
    assert one("read_file", {"path": None}) == Judged(
        "read_file", "read", "medium", "the word `read`; it takes a path (`path`)"
    )


@pytest.mark.parametrize(
    ("name", "schema", "risk", "why"),
    [
        ("query", {"sql": None}, "execute", "it takes SQL (`sql`)"),
        ("frob", {"command": None}, "execute", "it takes a command line (`command`)"),
        ("get_country", {"code": None}, "read", "the word `get`"),
        ("frob", {"amount": {"type": "number"}}, "money", "it takes an amount (`amount`)"),
        ("list_sales", {"amount": {"type": "number"}}, "read", "the word `list`"),
        ("frob", {"to": None, "body": None}, "message", "it takes a recipient and a text (`to`, `body`)"),
        ("list_events", {"from": None, "to": None, "text": None}, "read", "the word `list`"),
        ("get_things", {"action": {"enum": ["list", "delete"]}}, "destroy", "its `action` may be `delete`"),
        ("manage_x", {"op": {"anyOf": [{"const": "purge"}]}}, "destroy", "its `op` may be `purge`"),
        ("search", {"method": {"enum": ["post", "comment"]}}, "read", "the word `search`"),
        ("run", {"command": {"enum": ["status"]}}, "execute", "the word `run`"),
    ],
)  # fmt: skip
def test_what_a_tool_takes_raises_its_class(name: str, schema: dict[str, object], risk: str, why: str) -> None:
    found = one(name, schema)
    assert (found.risk, found.why.split("; ")[0]) == (risk, why)


def test_a_query_is_code_where_a_database_is_asked() -> None:
    tool = Tool("query", {"properties": {"query": {"type": "string"}}})
    assert judge([tool], name="docs")[0].risk == "unknown"
    assert judge([Tool("search_docs", {"properties": {"query": {"type": "string"}}})], name="docs")[0].risk == "read"
    assert judge([tool], name="my-postgres")[0].risk == "execute"


VERBS = {"enum": ["list", "delete"], "type": "string"}
TEXT = {"type": "string"}


@pytest.mark.parametrize(
    ("name", "schema", "risk"),
    [
        ("query_items", {"properties": {"action": {"anyOf": [VERBS, {"type": "null"}]}}}, "destroy"),
        ("query_items", {"properties": {"action": {"$ref": "#/$defs/Op"}}, "$defs": {"Op": VERBS}}, "destroy"),
        ("query_items", {"properties": {"action": {"allOf": [VERBS]}}}, "destroy"),
        ("query_items", {"properties": {"actions": {"type": "array", "items": VERBS}}}, "destroy"),
        ("query_items", {"properties": {"operationType": VERBS}}, "destroy"),
        ("query_items", {"properties": {"action": TEXT}}, "unknown"),
        ("get_items", {"properties": {"request": {"properties": {"sql": TEXT}}}}, "execute"),
        ("get_items", {"properties": {"request": {"$ref": "#/$defs/R%201"}}, "$defs": {"R 1": {"properties": {"sql": TEXT}}}}, "execute"),
        ("get_items", {"allOf": [{"properties": {"sql": TEXT}}]}, "execute"),
        ("get_items", {"properties": {"of": {"type": "array", "items": {"properties": {"script": TEXT}}}}}, "execute"),
        ("get_items", {"properties": {"sqlQuery": TEXT}}, "execute"),
        ("get_items", {"properties": {"command_line": TEXT}}, "execute"),
        ("query_store", {"properties": {"statement": TEXT}}, "execute"),
        ("get_items", {"properties": {"sql": {"anyOf": [TEXT, {"type": "null"}]}}}, "execute"),
        ("get_items", {"properties": {"x": {"$ref": "https://far.example/schema"}}}, "unknown"),
        ("get_items", {"properties": {"script_id": TEXT, "sql_dialect": TEXT, "status_code": TEXT}}, "read"),
        ("get_items", {"properties": {"tree": {"$ref": "#"}, "mode": {"enum": ["short", "long"]}}}, "read"),
        ("fetch_url", {"properties": {"url": TEXT, "method": TEXT, "body": TEXT}}, "write"),
        ("fetch_url", {"properties": {"url": TEXT, "method": {"enum": ["GET", "HEAD"]}, "body": TEXT}}, "read"),
        ("getDELETEall", {}, "destroy"), ("check_deletefile", {}, "destroy"), ("listRemoveFiles", {}, "destroy"),
        ("get_executable", {}, "read"), ("getHTTPList", {}, "read"), ("query", {"properties": {"query": TEXT}}, "unknown"),
    ],
)  # fmt: skip
def test_what_a_tool_takes_counts_however_deep_and_however_it_is_spelled(
    name: str, schema: dict[str, object], risk: str
) -> None:
    (found,) = judge([Tool(name, schema)], name="work")
    assert found.risk == risk, found


LIST = {"type": "array"}
FLAG = {"type": "boolean"}


def enum(*choices: str) -> dict[str, object]:
    return {"type": "string", "enum": list(choices)}


@pytest.mark.parametrize(
    ("name", "schema", "risk"),
    [
        ("get_items", {"do": enum("list", "delete")}, "destroy"), ("get_items", {"task": enum("list", "wipe_all")}, "destroy"),
        ("list_items", {"kind": {"const": "drop_table"}}, "destroy"), ("fetch", {"type": enum("GET", "POST")}, "write"),
        ("get_rows", {"args": {"type": "array", "items": {"type": "array", "items": enum("select", "delete")}}}, "destroy"),
        ("get_api", {"path": TEXT, "http_verb": TEXT}, "write"), ("fetch_api", {"url": TEXT, "init": {"type": "object"}}, "unknown"),
        ("fetch_mail", {"delete_after_fetch": FLAG}, "destroy"), ("get_message", {"purge": FLAG}, "destroy"),
        ("get_message", {"purge": enum("true", "false")}, "destroy"), ("read_feed", {"ids_to_remove": LIST}, "destroy"),
        ("search_text", {"pattern": TEXT, "replacement": TEXT}, "write"), ("find_text", {"replace_with": TEXT}, "write"),
        ("get_doc", {"filter": TEXT, "update": TEXT}, "write"), ("get_doc", {"notify": FLAG}, "message"),
        ("fetch_url", {"url": TEXT, "output_file": TEXT}, "write"), ("get_page", {"save_path": TEXT}, "write"),
        ("read_url", {"url": TEXT, "dest": TEXT}, "write"), ("get_screenshot", {"path": TEXT}, "write"),
        ("fetch_hook", {"webhook": TEXT, "data": TEXT}, "write"), ("get_data", {"cypher": TEXT}, "execute"),
        ("get_data", {"mutation": TEXT}, "execute"), ("browse", {"js": TEXT}, "execute"), ("get_x", {"bash": TEXT}, "execute"),
        ("get_x", {"program": TEXT}, "execute"), ("query_graphql", {"query": TEXT}, "execute"), ("read_query", {"query": TEXT}, "unknown"),
        ("find_documents", {"pipeline": LIST}, "execute"),
    ],
)  # fmt: skip
def test_what_is_called_a_read_is_none_where_what_it_takes_tells_it_to_do_more(
    name: str, schema: dict[str, object], risk: str
) -> None:
    found = one(name, schema)
    assert found.risk == risk, found


@pytest.mark.parametrize(
    ("name", "schema"),
    [
        ("list_runs", {"event": enum("create", "delete", "push", "status")}), ("list_x", {"sort": enum("created", "updated")}),
        ("get_notes", {"merge_request_iid": TEXT, "import_status": TEXT}), ("list_teams", {"permission": enum("read", "write")}),
        ("search_x", {"include_removed": FLAG, "exclude_archive": FLAG, "sync": FLAG, "enable_cache": FLAG}),
        ("get_record", {"store": TEXT, "sync_token": TEXT}),
        ("get_directions", {"origin": TEXT, "destination": TEXT}), ("find_references", {"target_file": TEXT, "output": enum("json")}),
        ("search_samples_and_constructs", {}), ("list_settings", {}), ("get_meeting", {}), ("get_datastore", {}),
        ("list_pipelines", {"pipeline": TEXT}), ("find_code", {"filter": TEXT, "jq": TEXT}), ("get_x", {"script_id": TEXT}),
        ("find_hotels", {"destination": TEXT, "price": {"type": "number"}}), ("get_page", {"url": TEXT, "options": {"properties": {"a": TEXT}}}),
    ],
)  # fmt: skip
def test_what_reads_commonly_take_leaves_them_reads(name: str, schema: dict[str, object]) -> None:
    found = one(name, schema)
    assert found.risk == "read", found


@pytest.mark.parametrize(
    ("name", "risk"),
    [
        ("compare_and_swap", "unknown"), ("fetch_and_pop", "unknown"), ("view_and_sign", "unknown"), ("getItemsThenX", "unknown"),
        ("check_out_branch", "write"), ("check_in", "write"), ("get_roll_back", "destroy"), ("get_wipeall", "destroy"),
        ("get_dropdb", "destroy"), ("get_sendmail", "message"), ("get_readwrite", "write"), ("get_publishing", "unknown"),
        ("get_truncating", "unknown"), ("get_overwrites", "unknown"),
    ],
)  # fmt: skip
def test_verbs_in_another_form_are_seen(name: str, risk: str) -> None:
    assert one(name).risk == risk


@pytest.mark.parametrize(
    ("schema", "risk"),
    [
        ({"patternProperties": {"^sql$": TEXT}}, "execute"), ({"type": "object", "additionalProperties": True}, "unknown"),
        ({"propertyNames": {"enum": ["sql"]}, "additionalProperties": TEXT}, "execute"),
        ({"propertyNames": {"pattern": "^(sql|x)$"}}, "execute"), ({"type": "object", "properties": {}}, "read"),
    ],
)  # fmt: skip
def test_arguments_that_only_a_pattern_names_are_seen(schema: dict[str, object], risk: str) -> None:
    assert judge([Tool("get_rows", schema)])[0].risk == risk


def test_any_text_that_a_database_is_asked_is_code() -> None:
    for name in ("q", "queries", "raw_query", "query_text", "statement_text", "where"):
        (found,) = judge([Tool("get_x", {"properties": {name: TEXT}})], name="postgres")
        assert found.risk == "execute", found
        assert one("get_x", {name: TEXT}).risk == "read"
    (found,) = judge([Tool("get_x", {"properties": {"query_id": TEXT}})], name="postgres")
    assert found.risk == "read", found


def test_a_schema_without_end_is_judged_in_bounded_time_and_never_called_a_read() -> None:
    wide: dict[str, object] = {f"a{at}": {"anyOf": [{"$ref": "#"}, {"$ref": "#/properties/a0"}]} for at in range(9000)}
    (found,) = judge([Tool("get_items", {"properties": wide})])
    assert (found.risk, found.why.split("; ")[0]) == ("unknown", "its schema is too large to be read whole")
    every = {f"e{at}": {"enum": [f"list{at}x{of}" for of in range(200)]} for at in range(59)}
    each: dict[str, object] = {f"a{at}": {"anyOf": [{"$ref": f"#/$defs/{one}"} for one in every]} for at in range(900)}
    (found,) = judge([Tool("get_items", {"properties": each, "$defs": every})])
    assert found.risk == "unknown"
    assert one("get_items", {"do": enum("list", *(f"x{at}" for at in range(300)), "delete")}).risk == "destroy"


def test_annotations_raise_and_never_lower() -> None:
    assert one("delete_all", readOnlyHint=True, destructiveHint=False).risk == "destroy"
    assert one("frob", readOnlyHint=True).risk == "unknown"
    assert one("get_x", destructiveHint=True).risk == "destroy"
    assert one("get_x", readOnlyHint=False).risk == "write"
    assert one("get_x", readOnlyHint=True, destructiveHint=True).risk == "read"
    assert "though the server says that it only reads" in one("delete_all", readOnlyHint=True).why


def test_a_trusted_server_may_lower() -> None:
    assert one("frob", readOnlyHint=True, trusted=True).risk == "read"
    assert one("delete_x", destructiveHint=False, trusted=True).risk == "write"
    assert one("delete_x", trusted=True).risk == "destroy"


def test_names_that_look_like_others_are_unknown() -> None:
    for name in ("get\u200b_x", "g\u0435t_x", "get_x ", "g\u0335et"):
        assert one(name).risk == "unknown", ascii(name)


def test_the_word_of_the_server_before_each_name_says_nothing() -> None:
    assert prefix(["git_log", "git_status", "git_add"]) == "git"
    assert prefix(["delete_a", "delete_b"]) == ""
    assert prefix(["list_a", "list_b"]) == ""
    found = judge([Tool("browser_find"), Tool("browser_click")])
    assert [one.risk for one in found] == ["read", "write"]


def test_known_servers_are_found_by_what_a_person_configured() -> None:
    for command in (
        ["npx", "-y", "@modelcontextprotocol/server-filesystem@2026.8.31", "/data"],
        ["node", "/x/node_modules/@modelcontextprotocol/server-filesystem/dist/index.js"],
        ["docker", "run", "-i", "mcp/filesystem:latest"],
    ):
        found = known_server(command)
        assert found is not None
        assert found.id.startswith("filesystem")
    assert known_server(["uvx", "mcp-server-git==1.2"]) is not None
    assert known_server(["/opt/bin/mcp-server-git"]) is not None
    assert known_server([], "api.githubcopilot.com") is not None
    for command in (["npx", "evil", "--name=mcp-server-git"], ["npx", "not-mcp-server-git"], ["filesystem"], []):
        assert known_server(command) is None
    assert known_server([], "api.githubcopilot.com.evil.example") is None


def test_what_a_known_server_admits_counts_all_the_same() -> None:
    row = Known("x", ("x",), (), {"frob": "read"}, "", "")
    assert judge([Tool("frob")], server=row)[0] == Judged("frob", "read", "high", "known from x")
    assert judge([Tool("frob", {}, {"destructiveHint": True})], server=row)[0].risk == "destroy"
    assert judge([Tool("delete")], server=row)[0].risk == "destroy"


def test_the_table_of_known_servers_is_whole() -> None:
    rows = known()
    assert len(rows) >= 40
    assert len({row.id for row in rows}) == len(rows)
    programs = [program for row in rows for program in (*row.programs, *row.hosts)]
    assert len(set(programs)) == len(programs)
    for row in rows:
        assert row.programs or row.hosts
        assert row.tools
        assert set(row.tools.values()) <= set(CLASSES)
        assert row.source.startswith("https://")
        assert row.checked
        for name, risk in row.tools.items():
            if risk == "read":  # what is called a read is never something that its own name forbids
                assert judge([Tool(name)])[0].risk not in ("destroy", "money"), (row.id, name)


@pytest.mark.parametrize("server", sorted(TOOLS))
def test_real_servers_are_judged_as_a_person_would(server: str) -> None:
    table = TOOLS[server]
    tools = [Tool(one["name"], one["schema"], one["annotations"]) for one in table["tools"]]
    found = {one.tool: one.risk for one in judge(tools, server=known_server(table["command"]), name=server)}
    assert found == {one["name"]: one["class"] for one in table["tools"]}


@given(st.text(max_size=30), st.booleans())
def test_no_name_breaks_it_and_a_bad_word_before_or_behind_is_never_missed(name: str, before: bool) -> None:
    assert one(name).risk in CLASSES
    if name.isascii() and name.isprintable() and name.strip() == name:
        assert one(f"delete_{name}" if before else f"{name}_delete").risk == "destroy"


@given(st.sampled_from(CLASSES), st.sampled_from(CLASSES))
def test_the_worse_of_two_is_one_of_them(first: str, second: str) -> None:
    found = worse(first, second)  # type: ignore[arg-type]
    assert CLASSES.index(found) == min(CLASSES.index(first), CLASSES.index(second))  # type: ignore[arg-type]
