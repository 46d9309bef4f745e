"""The schema, the table of settings, the dump and the digest all tell what the models say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from aegis_daemon.config.describe import describe_settings, digest, json_schema, masked, places, starter
from aegis_daemon.config.load import loads
from aegis_daemon.config.schema import MASK, Config

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
DATA = Path(__file__).parent / "data"


def test_the_schema_is_one_and_every_key_in_it_is_described() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    sections = [schema, *schema["$defs"].values()]
    sections += [one for section in sections for one in section.get("anyOf", ()) if "properties" in one]
    for section in sections:
        for name, key in section.get("properties", {}).items():
            assert key.get("description"), name


@pytest.mark.parametrize("path", [*EXAMPLES, DATA / "seed_a.yaml"], ids=lambda path: path.name)
def test_the_schema_accepts_what_loads(path: Path) -> None:
    jsonschema.validate(YAML(typ="safe", pure=True).load(path.read_text()), json_schema())


def test_the_schema_accepts_the_starter_file() -> None:
    jsonschema.validate(YAML(typ="safe", pure=True).load(starter()), json_schema())


@pytest.mark.parametrize(
    "tree",
    [
        {"servr": {}},
        {"agents": {"a": {"backends": {"b": {"allowed": "yes"}}}}},
        {"queue": {"b": {"delay_min": "10 minutes"}}},
        {"agents": {"a": {"backends": {"b": {"rate_limits": {"t": {"window": "1h"}}}}}}},
        {"audit": {"durability": "fast"}},
        {"policy": {"evaluator": "rego"}},
    ],
)
def test_the_schema_refuses_what_an_editor_can_see_is_wrong(tree: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(tree, json_schema())


def test_the_table_of_settings_has_one_line_with_all_four_columns_for_each() -> None:
    rows = describe_settings()
    paths = [row[0] for row in rows]
    assert len(paths) == len(set(paths))
    for path, kind, _, description in rows:
        assert kind, path
        assert description.endswith("."), path
        assert "\n" not in description
    table = {row[0]: row[1:3] for row in rows}
    assert table["queue.<backend>.delay_min"] == ("duration", "1m")
    assert table["agents.<agent>.backends.<backend>.rate_limits.<tool>.window"] == ("duration", "required")
    assert table["agents.<agent>.backends.<backend>.tool_denylist"] == ("list of patterns", "[]")
    assert table["mode"] == ("`enforce` or `observe`", "enforce")
    assert table["backends.<backend>.env.<name>"] == ("text", "")
    assert table["audit.db_path"] == ("path", "")
    assert places("tool_denylist") == ["agents.<agent>.backends.<backend>.tool_denylist"]


def test_the_table_names_every_setting_of_the_models() -> None:
    named = {part for row in describe_settings() for part in row[0].split(".")}

    def names(section: dict[str, Any]) -> set[str]:
        return set(section.get("properties", {}))

    schema = json_schema()
    known = names(schema).union(*(names(section) for section in schema["$defs"].values()))
    known = known.union(*(names(one) for section in schema["$defs"].values() for one in section.get("anyOf", ())))
    assert known <= named


SECRETS = """
server: { api_token: "hunter2-hunter2-hunter2" }
backends:
  a:
    command: /bin/server
    args: ["--key", "${env:KEY}"]
    env: { PLAIN: seen, GITHUB_TOKEN: hunter2, FROM: "x-${env:KEY}", DATABASE: "postgres://me:hunter2@db/x" }
  b:
    url: "https://me:hunter2@host/mcp"
    headers: { Authorization: Bearer hunter2, X-Api-Key: hunter2, X-Trace: "on" }
  c: { url: "https://host/mcp?key=hunter2" }
agents: { dev: { auth_token: "hunter2-hunter2-hunter3" } }
approval:
  feishu: { webhook_url: "https://hook/hunter2", secret: hunter2 }
  generic: { webhook_url: "https://h/hunter2" }
"""


def test_the_dump_shows_every_setting_and_no_secret() -> None:
    config = loads(SECRETS, "f", env={"KEY": "hunter2"}).config
    dump = masked(config)
    assert "hunter2" not in json.dumps(dump)
    assert dump["backends"]["a"]["env"] == {"PLAIN": "seen", "GITHUB_TOKEN": MASK, "FROM": MASK, "DATABASE": MASK}
    assert dump["backends"]["a"]["args"] == ["--key", MASK]
    assert dump["backends"]["b"]["headers"] == {"Authorization": MASK, "X-Api-Key": MASK, "X-Trace": "on"}
    assert dump["backends"]["c"]["url"] == dump["approval"]["feishu"]["webhook_url"] == MASK
    assert dump["approval"]["timeout"] == "10m0s"
    assert "hunter2" not in repr(config) + str(config.model_dump()) + config.model_dump_json()


OPEN = [path for path in (*EXAMPLES, DATA / "seed_a.yaml") if '_token: "' not in path.read_text().replace("# ", "")]


@pytest.mark.parametrize("path", OPEN, ids=lambda path: path.name)
def test_a_dump_without_secrets_loads_as_the_same_configuration(path: Path) -> None:
    config = loads(path.read_bytes(), "f", base="/etc", env={}).config

    def given(section: Any) -> Any:
        if isinstance(section, dict):
            return {key: given(value) for key, value in section.items() if value is not None}
        return section

    dump = given(masked(config))
    for backend in dump["backends"].values():
        without = ("args", "env", "cwd") if "url" in backend else ("headers", "transport", "health_url")
        for key in without:
            backend.pop(key, None)
    assert loads(json.dumps(dump), "f", base="/").config == config


def test_the_digest_is_that_of_the_meaning_and_not_of_the_text() -> None:
    text = "agents: {dev: {backends: {b: {allowed: true, rate_limits: {x: 1/day}}}}}\nbackends: {b: {}}\n"
    same = (
        "# a comment\nbackends:\n  b: { timeout: 2m }\nmode: enforce\n"
        "agents: {dev: {backends: {b: {rate_limits: {x: {max_count: 1, window: 24h}}, allowed: true}}}}\n"
    )
    assert digest(loads(text, "f").config) == digest(loads(same, "g").config)
    assert digest(loads(text.replace("1/day", "2/day"), "f").config) != digest(loads(text, "f").config)


def test_the_digest_stays_the_same_from_one_version_to_the_next() -> None:
    assert digest(Config()) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    config = loads("agents: {dev: {backends: {b: {allowed: true}}}}\nbackends: {b: {}}\n", "f").config
    assert digest(config) == digest(
        loads("backends: {b: }\nagents: {dev: {backends: {b: {allowed: true}}}}", "f").config
    )


def test_the_digest_tells_nothing_of_secrets() -> None:
    one, two = (loads("agents: {dev: {auth_token: '" + token * 16 + "'}}", "f").config for token in "ab")
    assert one != two
    assert digest(one) == digest(two)
