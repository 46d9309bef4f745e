"""The table of clients says what a reader of it may rely on, and finds files without opening any."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from aegis_daemon.clients import catalog
from aegis_daemon.clients.catalog import Client, Found, by_file, discover, find, load, recorded

ROOT = Path(__file__).parents[2]
TABLE = tomllib.loads((ROOT / "aegis_daemon/clients/clients.toml").read_text(encoding="utf-8"))
REQUIRED = {"id", "name", "format", "servers", "shape", "hold", "reload", "sources", "checked"}
OPTIONAL = {"env", "hold_raised", "cli", "paths", "project", "http", "stdio", "timeout", "dead", "notes"}
NAMED = {
    "claude-code", "claude-desktop", "cursor", "vscode", "copilot-cli", "cline", "zed", "codex", "gemini-cli", "goose",
    "continue", "lm-studio", "kiro", "opencode", "openclaw", "mcporter", "windsurf", "devin-cli", "amp", "openhands", "warp",
}  # fmt: skip


def test_every_client_that_was_promised_has_a_row() -> None:
    assert {client.id for client in load()} >= NAMED
    assert len({client.id for client in load()}) == len(load())


@pytest.mark.parametrize("row", TABLE["client"], ids=lambda row: row["id"])
def test_a_row_holds_the_schema(row: dict[str, Any]) -> None:
    assert row.keys() >= REQUIRED
    assert row.keys() <= REQUIRED | OPTIONAL
    client = find(row["id"])
    assert client is not None
    assert re.fullmatch(r"[a-z][a-z0-9-]{1,30}", client.id)
    assert client.format in ("json", "jsonc", "json5", "toml", "yaml")
    assert client.shape in ("std", "opencode", "goose", "zed", "codex", "continue-list")
    assert row.get("paths", {}).keys() in ({"all"}, {"linux", "macos", "windows"}, set())
    patterns = [*client.project, *(one for found in client.paths.values() for one in found)]
    assert patterns or client.generic
    for pattern in patterns:
        fixed = re.sub(r"\$\{[A-Z_]+(:-~[^}]*)?\}", "", pattern)
        assert "$" not in fixed
        assert "{" not in fixed
        assert "\\" not in fixed
    assert all(one.startswith(("~/", "${")) for found in client.paths.values() for one in found)
    assert not any(one.startswith(("~", "$", "/")) for one in client.project)
    assert client.servers
    assert 0 <= client.hold <= client.hold_raised <= 600
    if client.timeout is not None:
        assert client.hold <= client.hold_raised < client.timeout.seconds
        assert client.timeout.unit in ("s", "ms")
    else:
        assert client.hold == client.hold_raised
    assert client.reload[0].islower() or client.reload.startswith("MCP")
    assert not client.reload.endswith(".")
    assert re.fullmatch(r"2026-\d\d-\d\d", client.checked)
    assert client.sources
    assert any(one.startswith("https://") for one in client.sources)
    assert client.stdio is None or client.http is not None


def test_the_two_paths_of_the_first_product_are_known_and_one_is_said_to_be_dead() -> None:
    dead = by_file(Path("/home/x/.claude/mcp_servers.json"))
    assert dead.dead is not None
    assert "~/.claude.json" in dead.dead
    assert by_file(Path("/home/x/.openclaw/workspace/config/mcporter.json")).id == "mcporter"


PLACES = [
    ("/h/.claude.json", "claude-code"),
    ("/p/.mcp.json", "claude-code"),
    ("/h/.config/Claude/claude_desktop_config.json", "claude-desktop"),
    ("/h/Library/Application Support/Claude/claude_desktop_config.json", "claude-desktop"),
    ("/h/.cursor/mcp.json", "cursor"),
    ("/p/.vscode/mcp.json", "vscode"),
    ("/h/.config/Code/User/mcp.json", "vscode"),
    ("/h/.config/Code/User/profiles/1a2b/mcp.json", "vscode"),
    ("/h/.copilot/mcp-config.json", "copilot-cli"),
    ("/h/.config/Code/User/globalStorage/saoudrizwan.claude-dev/settings/cline_mcp_settings.json", "cline"),
    ("/h/.config/zed/settings.json", "zed"),
    ("/p/.zed/settings.json", "zed"),
    ("/h/.codex/config.toml", "codex"),
    ("/h/.gemini/settings.json", "gemini-cli"),
    ("/h/.gemini/antigravity/mcp_config.json", "antigravity"),
    ("/h/.config/goose/config.yaml", "goose"),
    ("/h/.continue/config.yaml", "continue"),
    ("/p/.continue/mcpServers/any.yaml", "continue"),
    ("/p/.continue/mcpServers/any.json", "continue-json"),
    ("/h/.lmstudio/mcp.json", "lm-studio"),
    ("/h/.kiro/settings/mcp.json", "kiro"),
    ("/p/opencode.json", "opencode"),
    ("/h/.config/opencode/opencode.jsonc", "opencode"),
    ("/h/.openclaw/openclaw.json", "openclaw"),
    ("/h/.mcporter/mcporter.jsonc", "mcporter"),
    ("/h/.codeium/windsurf/mcp_config.json", "windsurf"),
    ("/p/.devin/config.local.json", "devin-cli"),
    ("/h/.config/amp/settings.json", "amp"),
    ("/h/.openhands/mcp.json", "openhands"),
    ("/h/.warp/.mcp.json", "warp"),
]


@pytest.mark.parametrize(("path", "name"), PLACES)
def test_a_file_is_told_by_its_place(path: str, name: str) -> None:
    assert by_file(Path(path)).id == name


CONTENTS = [
    ("any.json", b'{"mcpServers": {"a": {"command": "x"}}}', "generic", "json"),
    ("mcp_servers.json", b'{"mcpServers": {"a": {"command": "x",}}} // mine', "generic", "jsonc"),
    ("any.json5", b"{mcpServers: {}}", "generic", "json5"),
    ("any.json", b'{"servers": {"a": {"url": "https://x"}}}', "generic-servers", "json"),
    ("any.json", b'{"a": {"command": "x"}, "b": {"url": "https://x"}}', "generic-bare", "json"),
    ("any.json", b'{"context_servers": {}}', "zed", "json"),
    ("any.json", b'{"amp.mcpServers": {}}', "amp", "json"),
    ("any.json", b'{"mcp": {"a": {"type": "local", "command": ["x"]}}}', "opencode", "json"),
    ("any.json", b'{"mcp": {"servers": {"a": {"type": "local", "command": ["x"]}}}}', "opencode", "json"),
    ("any.json", b'{"mcp": {"servers": {"a": {"command": "x"}}}}', "openclaw", "json"),
    ("any.toml", b"[mcp_servers.a]\ncommand = 'x'\n", "generic-table", "toml"),
    ("any.toml", b"", "generic-table", "toml"),
    ("config.toml", b"[tool]\n", "generic-table", "toml"),
    ("any.yaml", b"extensions:\n  a:\n    type: stdio\n    cmd: x\n", "goose", "yaml"),
    ("any.yml", b"mcpServers:\n- name: a\n  command: x\n", "generic-list", "yaml"),
    ("any.yaml", b"mcpServers:\n  a:\n    command: x\n", "generic", "yaml"),
    ("any.conf", b"mcpServers:\n  a:\n    command: x\n", "generic", "yaml"),
    ("empty.json", b"", "generic", "json"),
    ("broken.json", b'{"mcpServers": ', "generic", "json"),
]


@pytest.mark.parametrize(("name", "content", "client", "format"), CONTENTS)
def test_another_file_is_told_by_what_it_says(name: str, content: bytes, client: str, format: str) -> None:
    told = by_file(Path("/somewhere") / name, content)
    assert (told.id, told.format) == (client, format)


def paths(found: list[Found], client: str) -> list[tuple[str, str, bool]]:
    return [(one.path.as_posix(), one.scope, one.exists) for one in found if one.client.id == client]


def write(path: Path, text: str = "{}") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_files_that_are_there_are_found_and_else_the_place_where_one_would_be(tmp_path: Path) -> None:
    home, project = tmp_path / "home", tmp_path / "project"
    for name in (".cursor/mcp.json", ".config/Code/User/mcp.json", ".config/Code/User/profiles/one/mcp.json"):
        write(home / name)
    for name in (".mcp.json", ".vscode/mcp.json", ".continue/mcpServers/a.yaml"):
        write(project / name)
    found = discover({}, home, project, "linux")
    assert paths(found, "cursor") == [(f"{home.as_posix()}/.cursor/mcp.json", "user", True)]
    assert [path.removeprefix(tmp_path.as_posix()) for path, _, _ in paths(found, "vscode")] == [
        "/home/.config/Code/User/mcp.json",
        "/home/.config/Code/User/profiles/one/mcp.json",
        "/project/.vscode/mcp.json",
    ]
    assert paths(found, "claude-code") == [
        (f"{home.as_posix()}/.claude.json", "user", False),
        (f"{project.as_posix()}/.mcp.json", "project", True),
    ]
    assert [scope for _, scope, there in paths(found, "continue") if there] == ["project"]
    assert not [one for one in found if one.client.generic or one.client.dead]


def test_variables_move_the_places(tmp_path: Path) -> None:
    env = {
        "CODEX_HOME": str(tmp_path / "codex"),
        "XDG_CONFIG_HOME": str(tmp_path / "xdg"),
        "CLAUDE_CONFIG_DIR": "relative/is/not/followed",
        "CLINE_MCP_SETTINGS_PATH": str(tmp_path / "cline.json"),
    }
    write(tmp_path / "cline.json")
    found = discover(env, tmp_path / "home", None, "linux")
    assert paths(found, "codex")[0][0] == f"{tmp_path.as_posix()}/codex/config.toml"
    assert paths(found, "zed")[0][0] == f"{tmp_path.as_posix()}/xdg/zed/settings.json"
    assert paths(found, "claude-code")[0][0] == f"{tmp_path.as_posix()}/home/.claude.json"
    assert paths(found, "cline") == [(f"{tmp_path.as_posix()}/cline.json", "user", True)]


def test_a_dead_file_is_found_only_when_asked_for_and_only_if_it_is_there(tmp_path: Path) -> None:
    assert not paths(discover({}, tmp_path, None, "macos", dead=True), "claude-code-dead")
    write(tmp_path / ".claude/mcp_servers.json")
    assert not paths(discover({}, tmp_path, None, "macos"), "claude-code-dead")
    assert len(paths(discover({}, tmp_path, None, "macos", dead=True), "claude-code-dead")) == 1


def test_looking_opens_nothing_and_survives_what_it_may_not_see(tmp_path: Path) -> None:
    write(tmp_path / ".cursor/mcp.json")
    (tmp_path / ".cursor/mcp.json").chmod(0)
    (tmp_path / ".kiro").write_text("no directory")
    found = discover({}, tmp_path, tmp_path, "linux")
    assert paths(found, "cursor")[0][2]
    assert not paths(found, "kiro")[0][2]


@pytest.mark.parametrize("os", ["linux", "macos", "windows"])
def test_every_client_has_a_place_on_every_system(os: catalog.Os, tmp_path: Path) -> None:
    missing = [client.id for client in load() if not client.paths[os] and not client.generic]
    assert not missing


def test_the_table_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "VERSION", 2)
    with pytest.raises(RuntimeError, match="install aegis anew"):
        load.__wrapped__()


def test_a_timeout_is_told_in_seconds() -> None:
    client = find("gemini-cli")
    assert isinstance(client, Client)
    assert client.timeout is not None
    assert client.timeout.seconds == 660


@pytest.mark.parametrize("format", ["json", "jsonc", "json5", "toml", "yaml"])
def test_a_file_that_was_seen_keeps_its_format(format: str) -> None:
    for name in ("generic", "generic-table", "amp"):
        told = recorded(name, format, Path("/x/any.conf"))
        assert (told.id, told.format) == (name, format)
    told = recorded("generic-table", "", Path("/x/any.json"), b'{"mcp_servers": {"a": {"command": "x"}}}')
    assert (told.id, told.format) == ("generic-table", "json")
    assert recorded("cursor", "", Path("/x/any.json")).id == "cursor"
    assert recorded("no-client-of-this-version", "", Path("/x/any.json")).id == "generic"
