"""A file loads, or everything that is wrong with it is told at once, each with its place and the next step."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis_daemon.config.describe import describe_settings
from aegis_daemon.config.load import ConfigFaults, Loaded, load, loads
from aegis_daemon.config.schema import NOT_YET, Config, RateLimit, Secret, reveal
from aegis_daemon.config.source import MAX_BYTES, MAX_FAULTS

DATA = Path(__file__).parent / "data"
EMPTY: dict[str, str] = {}


def faults(text: str | bytes, **options: Any) -> list[str]:
    """The faults of a text, as they print, without the file's name."""
    with pytest.raises(ConfigFaults) as caught:
        loads(text, "f", **{"env": EMPTY, **options})
    return [str(one).removeprefix("f:") for one in caught.value.faults]


def warnings(text: str, **options: Any) -> list[str]:
    """The warnings of a text that loads."""
    return [str(one).removeprefix("f:") for one in loads(text, "f", **{"env": EMPTY, **options}).warnings]


# --- both seeds


def test_the_first_seeds_example_loads_with_warnings_for_what_is_open_to_everybody_and_nothing_else() -> None:
    loaded = load(str(DATA / "seed_a.yaml"), EMPTY)
    assert [(one.line, one.column, one.path) for one in loaded.warnings if one.line] == [
        (2, 3, "server.listen"),
        (2, 3, "server.listen"),
    ]
    config = loaded.config
    production = config.agents["production-agent"]
    access = production.backends["my-tools"]
    assert production.display_name == "Production Agent"
    assert access.allowed
    assert access.tool_denylist == ("dangerous_tool",)
    assert access.rate_limits == {"publish": RateLimit(window_s=86400.0, max_count=1)}
    assert access.approval_required == ("publish", "delete")
    assert config.agents["dev-agent"].backends["my-tools"].tool_denylist == ("publish", "delete", "dangerous_tool")
    queue = config.queue["my-tools"]
    assert (queue.enabled, queue.delay_min, queue.delay_max, queue.max_pending) == (True, 60.0, 600.0, 50)
    assert queue.bypass_tools == ("health_check",)
    assert queue.global_rate_limits == {"risky_operation": RateLimit(window_s=3600.0, max_count=10)}
    assert config.backends["my-tools"].timeout == 120.0
    assert config.approval.timeout == 600.0
    assert config.approval.feishu.webhook_url is None
    assert config.audit.db_path == str(DATA / "data" / "audit.db")
    assert config.allow is None


def test_the_second_seeds_example_loads_as_it_stands_and_is_told_what_its_sql_has_to_pass() -> None:
    assert warnings((DATA / "seed_b.yaml").read_text()) == [
        '13:5: constraints["sql.query"].operations: no `dialect` is named, so the SQL has to pass as postgres, mysql, '
        "sqlite and tsql; add `dialect`, as the database reads it"
    ]


def test_the_second_seeds_lists_load_without_any_backend() -> None:
    text = (DATA / "seed_b.yaml").read_text()
    kept = text[text.index("deny:") : text.index("constraints:")]
    loaded = loads(kept, "f", env=EMPTY)
    assert loaded.warnings == ()
    assert loaded.config.deny.tools == ("finance.wire_transfer",)
    assert loaded.config.allow is not None
    assert loaded.config.allow.tools == ("jira.search", "sql.query")


def test_both_seeds_load_in_one_file() -> None:
    both = (DATA / "seed_a.yaml").read_text() + (DATA / "seed_b.yaml").read_text()
    assert loads(both, "f", env=EMPTY).config.deny.tools == ("finance.wire_transfer",)


# --- faults, one by one

B = "backends: {github: {}}\n"
FAULTS = [
    # unknown names
    ("servr: {}\n", "1:1: servr: unknown key `servr`; did you mean `server`?"),
    ("server:\n  listn: x\n", "2:3: server.listn: unknown key `listn`; did you mean `listen`?"),
    ("agents: {dev: {displayName: x}}\n",
     "1:16: agents.dev.displayName: unknown key `displayName`; did you mean `display_name`?"),
    ("agents: {dev: {tool_denylist: [x]}}\n", "1:16: agents.dev.tool_denylist: unknown key `tool_denylist`; "
     "it belongs to `agents.<agent>.backends.<backend>`"),
    ("audit: {zzz: 1}\n", "1:9: audit.zzz: unknown key `zzz`; known here: `db_path`, `retention_days`, "
     "`durability`, `bodies_days`, `max_size`, `exports`, `key_file`, `checkpoints`, `witnesses`"),
    ("allow: {tools: [], durability: full}\n",
     "1:20: allow.durability: unknown key `durability`; it belongs to `audit`"),
    (B + "agents:\n  dev:\n    backends:\n      gihub: {allowed: true}\n",
     "5:7: agents.dev.backends.gihub: unknown backend `gihub`; did you mean `github`?"),
    (B + "queue: {slack: {}}\n", "2:9: queue.slack: unknown backend `slack`; add `slack` under `backends`"),
    ("queue: {slack: {}}\n", "1:9: queue.slack: unknown backend `slack`; add `slack` under `backends`"),
    ("agents: {dev: {backends: {b: {allowed: true, rate_limits: {x: {window_s: 60, max_count: 1}}}}}}\n"
     "backends: {b: }\n", "1:60: agents.dev.backends.b.rate_limits.x.window: `window` is missing; add `window`",
     "1:64: agents.dev.backends.b.rate_limits.x.window_s: unknown key `window_s`; did you mean `window`?"),
    # values
    ("mode: enforcee\n", "1:7: mode: `enforcee` is none of `enforce`, `observe`; did you mean `enforce`?"),
    ("mode: 1\n", "1:7: mode: `1` is none of `enforce`, `observe`; write one of them"),
    (B + "queue: {github: {enabled: yes}}\n",
     "2:27: queue.github.enabled: `yes` is neither true nor false; write `true`"),
    (B + "queue: {github: {enabled: 1}}\n",
     "2:27: queue.github.enabled: `1` is neither true nor false; write `true` or `false`"),
    (B + "queue: {github: {enabled: true, max_pending: 0}}\n",
     "2:46: queue.github.max_pending: `0` is too small; write 1 or more"),
    (B + "queue: {github: {enabled: true, max_pending: '5'}}\n",
     "2:46: queue.github.max_pending: `5` is not a whole number; write digits alone, without quotes"),
    (B + "queue: {github: {enabled: true, max_pending: 1.5}}\n",
     "2:46: queue.github.max_pending: `1.5` is not a whole number; write digits alone, without quotes"),
    ("server: {max_in_flight_session: 271}\n",
     "1:33: server.max_in_flight_session: `271` is too large; write 270 or less"),
    ("agents: {dev: {display_name: 7}}\n", "1:30: agents.dev.display_name: `7` is not a text; put it in quotes"),
    ("agents: {dev: {identities: [alice]}}\n",
     "1:29: agents.dev.identities[0]: `alice` is not a whole number; write digits alone, without quotes"),
    ("agents: {dev: {identities: [-1]}}\n", "1:29: agents.dev.identities[0]: `-1` is too small; write 0 or more"),
    ("deny: {tools: delete}\n", "1:15: deny.tools: `delete` is not a list; write `[delete]`"),
    ("deny: {tools: [1]}\n", "1:16: deny.tools[0]: `1` is not a name or pattern; put it in quotes"),
    ("deny: {tools: [' x']}\n", "1:16: deny.tools[0]: ` x` is not a name or pattern; "
     "write a name like `publish`, or a pattern like `delete_*`"),
    ("deny: {tools: [[x]]}\n", "1:16: deny.tools[0]: a list is not a name or pattern; put it in quotes"),
    ("deny: {tools: [x, null]}\n", "1:19: deny.tools[1]: nothing is not a name or pattern; put it in quotes"),
    ("server: {listen: 18070}\n", "1:18: server.listen: `18070` is not an address to listen at; "
     "write it like `127.0.0.1:18070` or `[::1]:18070`"),
    ("server: {listen: ':99999'}\n", "1:18: server.listen: `:99999` is not an address to listen at; "
     "write it like `127.0.0.1:18070` or `[::1]:18070`"),
    ("approval: {callback_base_url: localhost}\n", "1:31: approval.callback_base_url: not a url of this kind; "
     "start it with `http://`, `https://` and a host name"),
    ("backends: {b: {url: 'ftp://x/'}}\n", "1:21: backends.b.url: not a url of this kind; "
     "start it with `http://`, `https://`, `ws://`, `wss://` and a host name"),
    ("backends: {b: {url: 'http://x:y/'}}\n",
     "1:21: backends.b.url: not a url; write it like `http://localhost:8080/mcp`"),
    ("backends: {b: {command: npx -y x}}\n", "1:25: backends.b.command: `command` is the program alone; "
     "keep its first word, and write the others in `args`"),
    ("backends: {b: {command: ''}}\n", "1:25: backends.b.command: the program has no name; "
     "write the program's name or path, and its arguments in `args`"),
    ("backends: {b: {env: {PORT: 80}}}\n", "1:28: backends.b.env.PORT: not a text; put the value in quotes"),
    ("backends: {b: {env: {'A=B': x}}}\n",
     "1:22: backends.b.env.A=B: `A=B` cannot be a variable's name; write it like `API_KEY`"),
    ("backends: {a__b: {}}\n", "1:12: backends.a__b: `a__b` cannot be a backend's name; "
     "use one `_`; two separate the backend from its tool"),
    ("agents: {a/b: {}}\n", "1:10: agents.a/b: `a/b` cannot be a name; "
     "use up to 128 letters, digits, `-`, `_` or `.`; it becomes part of addresses"),
    ("agents: {7: {}}\n", "1:10: agents: the key `7` is not a text; put it in quotes"),
    ("agents: {dev: {auth_token: too-short}}\n", "1:28: agents.dev.auth_token: the token has 9 characters, "
     "at least 16 are needed; make one with `openssl rand -hex 32`"),
    ("agents: {dev: {auth_token: 'has a space in its middle'}}\n", "1:28: agents.dev.auth_token: "
     "the token holds characters that no header can carry; make one with `openssl rand -hex 32`"),
    ("agents: {dev: {auth_token: 1234567890123456}}\n",
     "1:28: agents.dev.auth_token: not a text; put the value in quotes"),
    ("agents: [dev]\n", "1:9: agents: a list where settings belong; write `name: value` lines below the key, indented"),
    ("agents: {dev: hello}\n",
     "1:15: agents.dev: a single value where settings belong; write `name: value` lines below the key, indented"),
    # durations and rates
    ("approval: {timeout: 10 minutes}\n", "1:21: approval.timeout: `10 minutes` is not a duration; did you mean "
     "`10m`?"),
    ("approval: {timeout: '600'}\n", "1:21: approval.timeout: `600` is not a duration; did you mean `600s`?"),
    ("approval: {timeout: 0}\n", "1:21: approval.timeout: `0` is too short; write at least `1ms`"),
    (B + "queue: {github: {enabled: true, delay_min: 10m, delay_max: 1m}}\n",
     "2:44: queue.github.delay_min: `delay_min` of 10m is longer than `delay_max` (1m); swap or change them"),
    (B + "queue: {github: {enabled: true, delay_min: 1h}}\n",
     "2:44: queue.github.delay_min: `delay_min` of 1h is longer than `delay_max` (10m, its default); set "
     "`delay_max` too"),
    (B + "queue: {github: {enabled: true, delay_max: 5s}}\n",
     "2:44: queue.github.delay_max: `delay_max` of 5s is shorter than `delay_min` (1m, its default); set "
     "`delay_min` too"),
    (B + "queue: {github: {global_rate_limits: {x: 10/minut}}}\n", "2:42: queue.github.global_rate_limits.x: "
     "`10/minut` is not a rate; write it like `10/minute`, `1/day` or `5/2h`, or as `{ window: 24h, max_count: 1 }`"),
    (B + "queue: {github: {global_rate_limits: {x: 1/day;9/month}}}\n",
     "2:42: queue.github.global_rate_limits.x: `1/day;9/month` holds 2 rates; write one window for each tool"),
    (B + "queue: {github: {global_rate_limits: {x: 0/day}}}\n",
     "2:39: queue.github.global_rate_limits.x.max_count: `0` is too small; write 1 or more"),
    (B + "queue: {github: {global_rate_limits: {x: 5}}}\n", "2:42: queue.github.global_rate_limits.x: "
     "`5` is not a rate limit; write `{ window: 24h, max_count: 1 }` or `1/day`"),
    (B + "queue: {github: {global_rate_limits: {x: {window: 1h}}}}\n",
     "2:39: queue.github.global_rate_limits.x.max_count: `max_count` is missing; add `max_count`"),
    (B + "queue: {github: {global_rate_limits: {'x*': 1/day}}}\n", "2:39: queue.github.global_rate_limits.x*: "
     "`x*` is a pattern, and a limit counts one tool; write one limit for each tool's own name"),
    # what does not go together
    ("backends: {b: {command: x, url: 'http://h/'}}\n",
     "1:28: backends.b.url: a backend has a `url` or a `command`, not both; remove one"),
    ("backends: {b: {url: 'http://h/', args: [x]}}\n",
     "1:34: backends.b.args: `args` is for a program, and this backend has a `url`; remove it"),
    ("backends: {b: {args: [x]}}\n", "1:16: backends.b.args: `args` without a `command`; add the `command`"),
    ("backends: {b: {headers: {A: x}}}\n",
     "1:16: backends.b.headers: `headers` is for a `url`, which this backend lacks; remove it"),
    # not in this version
    ("backends: {b: {resilience: {retries: 3}}}\n", "1:16: backends.b.resilience: "
     "retries and circuit breakers are not supported by this version; remove `resilience`; `timeout` holds without it"),
    ("constraints: [x]\n", "1:14: constraints: a list where settings belong; write `name: value` lines below the key, "
     "indented"),
    ("agents: {dev: {tenant: acme}}\n", "1:24: agents.dev.tenant: tenants are not kept apart by this version: "
     "limits, approvals and the log are shared; remove `tenant`, or run one daemon for each tenant"),
    # keys without a value
    ("allow:\n", "1:1: allow: `allow` is empty, which could mean all tools or none; "
     "list the tools that may be called, or remove `allow`"),
    ("deny: {tools: }\n", "1:8: deny.tools: `tools` has no value; write `[]` for none, or remove the key"),
    ("agents: {dev: {auth_token: }}\n", "1:16: agents.dev.auth_token: `auth_token` has no value; "
     "add one, or remove the key"),
    (B + "queue: {github: {global_rate_limits: {x: }}}\n",
     "2:39: queue.github.global_rate_limits.x: `x` has no value; add one, or remove the key"),
    # placeholders
    ("agents: {dev: {auth_token: '${env:NOPE}'}}\n", "1:28: agents.dev.auth_token: "
     "the environment variable `NOPE` is not set; set it where the daemon starts, or use `${file:PATH}`"),
    ("agents: {dev: {auth_token: '${env:}'}}\n",
     "1:28: agents.dev.auth_token: `` is not a variable's name; write it like `${env:API_KEY}`"),
    ("agents: {dev: {auth_token: '${env:NOPE'}}\n",
     "1:28: agents.dev.auth_token: `${env:` has no `}`; write it like `${env:NAME}`"),
    ("agents: {dev: {auth_token: '${file:/no/such}'}}\n", "1:28: agents.dev.auth_token: "
     "cannot read `/no/such`: no such file or directory; check the path and who may read it"),
    ("agents: {dev: {auth_token: '${file:}'}}\n",
     "1:28: agents.dev.auth_token: `${file:}` names no file; name a file that holds the secret alone"),
    ("agents: {dev: {auth_token: '${file:/dev/zero}'}}\n", "1:28: agents.dev.auth_token: "
     "cannot read `/dev/zero`: not a regular file; check the path and who may read it"),
    ("approval: {generic: {webhook_url: '${env:NOPE}'}}\n", "1:35: approval.generic.webhook_url: "
     "the environment variable `NOPE` is not set; set it where the daemon starts, or use `${file:PATH}`"),
    ("backends: {b: {url: '${env:NOPE}'}}\n", "1:21: backends.b.url: "
     "the environment variable `NOPE` is not set; set it where the daemon starts, or use `${file:PATH}`"),
    ("agents: {dev: {display_name: '${env:HOME}'}}\n", "1:30: agents.dev.display_name: `${env:…}` and `${file:…}` "
     "are not "
     "replaced here; they work in tokens, secrets, urls, `args`, `env` and `headers`; write the value itself"),
    ("approval: {timeout: '${env:HOME}'}\n", "1:21: approval.timeout: `${env:…}` and `${file:…}` are not "
     "replaced here; they work in tokens, secrets, urls, `args`, `env` and `headers`; write the value itself"),
    ("deny: {tools: ['${env:HOME}']}\n", "1:16: deny.tools[0]: `${env:…}` and `${file:…}` are not "
     "replaced here; they work in tokens, secrets, urls, `args`, `env` and `headers`; write the value itself"),
    # the file as a whole
    ("- a\n", "1:1: the file holds a list, not settings; write `name: value` lines"),
    ("hello\n", "1:1: the file holds one value, not settings; write `name: value` lines"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), [(text, expected) for text, *expected in FAULTS])
def test_a_fault_names_its_place_what_is_wrong_and_the_next_step(text: str, expected: list[str]) -> None:
    assert faults(text, env={"HOME": "/home/a"} if "env:HOME" in text else EMPTY) == expected


def test_all_faults_of_all_kinds_are_reported_together_in_the_order_of_the_file() -> None:
    text = (
        "servr: {}\n"
        "backends: {github: {}, github: {timout: 1s}, b: {timeout: soon}}\n"
        "queue: {gihub: {delay_min: 2m, delay_max: 1m, enabled: maybe}}\n"
        "policy: {evaluator: rego}\n"
        "agents: {dev: {auth_token: '${env:NOPE}', backends: {git: {allowed: true}}}}\n"
        "approval: {\n"
    )
    assert [one.split(":")[:2] for one in faults(text)] == [
        ["1", "1"],  # unknown key
        ["2", "24"],  # duplicate
        ["2", "59"],  # duration
        ["3", "28"],  # delays, read although `enabled` is wrong
        ["3", "56"],  # type
        ["4", "21"],  # choice
        ["5", "28"],  # variable
        ["6", "11"],  # syntax
    ]


def test_what_a_syntax_error_cut_off_is_not_called_missing_or_unknown() -> None:
    text = "agents: {dev: {backends: {github: {allowed: true, rate_limits: {x: {window: 1h}}}}}}\nbackends: {\n"
    assert [one.split(":")[0] for one in faults(text)] == ["2"]


def test_a_fault_shows_its_line_with_a_caret() -> None:
    with pytest.raises(ConfigFaults) as caught:
        loads("backends: {}\nagents:\n  dev:\n    backends:\n      gihub: {}\n", "aegis.yaml", env=EMPTY)
    assert caught.value.render() == (
        "aegis.yaml:5:7: agents.dev.backends.gihub: unknown backend `gihub`; add `gihub` under `backends`\n"
        "    5 |       gihub: {}\n"
        "      |       ^^^^^\n"
        "1 fault found"
    )


def test_no_fault_shows_a_secret() -> None:
    secret = "hunter2-hunter2"
    lines = [
        f"server: {{ api_token: {secret}, extra: 1 }}",
        "agents:",
        f"  dev: {{ auth_token: {secret} }}",
        f"  {secret[:3]}: {{ auth_tokn: '{secret}' }}",
        "backends:",
        f"  a: {{ command: x, env: {{ A: '{secret}', B: 7 }}, args: ['{secret}', 7] }}",
        "  b:",
        "    env:",
        f"      'BAD NAME': {secret}",
        f"      TOKEN: {{ not: {secret} }}",
        f"  c: {{ url: 'https://me:{secret}@x y/', headers: {{ X: ['{secret}'] }} }}",
        f"  d: 'npx --token {secret}'",
        f"  e: {{ command: 'npx --token {secret}' }}",
        f"approval: {{ feishu: 'https://hook/{secret}', generic: {{ webhook_url: 'hook/{secret}' }} }}",
    ]
    with pytest.raises(ConfigFaults) as caught:
        loads("\n".join(lines), "f", env=EMPTY)
    assert len(caught.value.faults) > 10
    assert secret not in caught.value.render()
    assert secret not in repr(caught.value.faults)
    assert secret not in str(caught.value)


# --- warnings

WARNINGS = [
    (B + "agents: {dev: {backends: {github: {}}}}\n", "2:27: agents.dev.backends.github: everything here is "
     "refused, since "
     "`allowed` is not set; add `allowed: true`, or `allowed: false` if that is meant"),
    (B + "queue: {github: {max_pending: 5}}\n", "2:9: queue.github: the lane is off, since `enabled` is not set; "
     "add `enabled: true`, or `enabled: false` if that is meant"),
    ("deny: {tools: ['^delete.*$']}\n", "1:16: deny.tools[0]: `^delete.*$` looks like a regular expression, and is "
     "matched "
     "as a glob; use `*` and `?`, as in `delete_*`"),
    ("agents: {a: {auth_token: same-same-same-same}, b: {auth_token: same-same-same-same}}\n",
     "1:52: agents.b.auth_token: the token is that of the agent `a` too, so either can pass for the other; "
     "give each agent its own"),
    ("approval: {generic: {webhook_url: 'https://h/x'}}\n", "1:1: approval: links in messages lead to this machine "
     "alone, since `callback_base_url` is not set; set it to the address by which people reach this daemon"),
    ("server: {insecure_open_api: true}\n", "1:10: server.insecure_open_api: whoever reaches the API may decide "
     "approvals; set `server.api_token` instead"),
    ("approval: {get_decides: true}\n", "1:12: approval.get_decides: whatever opens a link decides, the previews of "
     "chats and mail programs included; remove it; the page asks for one more click"),
    ("server: {listen: '0.0.0.0:1', api_token: 0123456789abcdef}\nagents: {a: {}, b: {auth_token: 0123456789abcdef}}\n",
     "1:10: server.listen: other machines reach this address, and may pass for the agent `a`; give each agent an "
     "`auth_token`, or listen at `127.0.0.1`"),
    ("server: {api_token: change-me-change-me}\n", "1:10: server.api_token: everybody knows this token: it stands in "
     "examples; write one that nobody guesses"),
    ("server: {listen: ':1'}\n", "1:10: server.listen: other machines reach this address, and the API has no token, so "
     "only this machine may use it; set `server.api_token`, or listen at `127.0.0.1`"),
    ("backends: {b: {url: 'http://mcp.vendor.example/rpc'}}\n", "1:21: backends.b.url: what goes to "
     "`mcp.vendor.example` and comes from it is not encrypted on its way; use `https` (or `wss`)"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), [(text, expected) for text, *expected in WARNINGS])
def test_what_has_no_effect_or_another_one_than_it_seems_is_a_warning(text: str, expected: list[str]) -> None:
    assert warnings(text) == expected


@pytest.mark.parametrize(
    ("url", "told"),
    [("ws://8.8.8.8/", True), ("HTTP://a.example/", True), ("https://a.example/", False), ("wss://8.8.8.8/", False),
     ("http://127.0.0.1:1/", False), ("http://[::1]/", False), ("http://10.0.0.7/", False), ("http://server:80/", False),
     ("http://api.internal/", False), ("http://x.localhost/", False)],
)  # fmt: skip
def test_what_goes_beyond_this_network_unencrypted_is_a_warning(url: str, told: bool) -> None:
    found = [one for one in warnings(f"backends: {{b: {{url: '{url}'}}}}\n") if "encrypted" in one]
    assert bool(found) is told


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (
            "audit: {exports: {s: {type: hec, url: 'http://siem:8088', token: 0123456789abcdef}}}",
            "audit.exports.s.url: the `token`",
        ),
        (
            "audit: {witnesses: {s: {type: http, url: 'http://10.0.0.7/', token: 0123456789abcdef}}}",
            "audit.witnesses.s.url: the",
        ),
        ("telemetry: {otlp: {endpoint: 'http://otel.example:4318', headers: {a: b}}}", "telemetry.otlp.endpoint: the"),
        ("audit: {exports: {s: {type: hec, url: 'https://siem:8088', token: 0123456789abcdef}}}", ""),
        ("audit: {exports: {s: {type: hec, url: 'http://127.0.0.2:8088', token: 0123456789abcdef}}}", ""),
        ("audit: {witnesses: {s: {type: http, url: 'http://10.0.0.7/'}}}", ""),
        ("telemetry: {otlp: {endpoint: 'http://otel.example:4318'}}", ""),
    ],
)
def test_a_token_that_goes_to_another_machine_unencrypted_is_a_warning(text: str, path: str) -> None:
    found = [one for one in warnings(text + "\n") if "whoever is on the way can read it" in one]
    assert len(found) == bool(path)
    assert not found or path in found[0]


def test_a_regular_expression_is_not_seen_in_names_and_uris_that_only_look_odd() -> None:
    text = B + (
        "agents: {dev: {backends: {github: {allowed: true, tool_denylist: [sql.*, 'get_[ab]', ns/x, 'a:b'],"
        " resource_allowlist: ['file:///a(1)/$x|y']}}}}\n"
    )
    assert warnings(text) == []


VALUES: dict[str, Any] = {
    "server.listen": "':1'",
    "server.api_token": "x" * 16,
    "agents.*.auth_token": "x" * 16,
    "backends.*.url": "'http://h/'",
    "backends.*.health_url": "'http://h/'",
    "backends.*.transport": "sse",
    "backends.*.headers": "{A: b}",
    "backends.*.tools_idempotent": "[x]",
    "approval.listen": "':2'",
    "approval.confirm": "code",
    "approval.callback_base_url": "'http://h/'",
}


@pytest.mark.parametrize("row", NOT_YET, ids=lambda row: ".".join(row.path))
def test_each_key_without_its_feature_says_so_when_it_is_given(row: Any) -> None:
    dotted = ".".join(row.path)
    value = VALUES.get(dotted)
    if value is None:
        value = {"webhook_url": "'http://h/'", "secret": "s"}.get(row.path[-1], "true" if "_api" in dotted else None)
    if value is None:
        value = "20s" if "timeout" in dotted else "true" if "get_" in dotted else "{x: 1}"
    tree = value
    for step in reversed(row.path):
        tree = f"{{{'name' if step == '*' else step}: {tree}" + (
            ", url: 'http://h/'}" if step in ("health_url", "transport", "headers") else "}"
        )
    if row.refused:
        assert any(row.message in one for one in faults(tree))
    else:
        assert any(row.message in one for one in warnings(tree))


def test_keys_without_effect_are_silent_at_values_that_mean_nothing() -> None:
    text = (
        "policy: {}\nconstraints:\ntransforms: {}\nserver: {insecure_open_api: false}\n"
        "approval: {get_decides: false, feishu: {webhook_url: ''}, generic: }\nagents: {dev: {roles: [], tenant: "
        "default}}\n"
    )
    assert warnings(text) == []


# --- values


def test_an_empty_file_is_an_empty_configuration() -> None:
    for text in ("", "# nothing\n", "---\n", "null\n", "{}\n", b"\xef\xbb\xbf"):
        assert loads(text, "f", env=EMPTY).config == Config()


def test_sections_whose_lines_are_all_commented_out_are_empty() -> None:
    text = (
        "server:\nbackends:\n  b:\nqueue:\n  b:\nagents:\n  dev:\n    backends:\napproval:\naudit:\ndefaults:\ndeny:\n"
    )
    config = loads(text, "f", env=EMPTY).config
    assert config.backends["b"].command is None
    assert config.agents["dev"].backends == {}
    assert (
        loads("backends: {b: }\nagents: {a: {backends: {b: }}}\n", "f", env=EMPTY).config.agents["a"].backends["b"]
        is not None
    )


SAY_NOTHING = ("constraints.", "transforms.", "audit.exports.", "audit.witnesses.", "telemetry.otlp.")
"""Sections that are faults with one key alone."""


def test_every_setting_takes_its_default_spelled_out() -> None:
    rows = {row[0]: row[2] for row in describe_settings()}
    skipped = {"required", "", "[]"}
    for path, default in rows.items():
        if default in skipped or path.startswith(SAY_NOTHING):
            continue
        if path.startswith("proof."):  # a list
            continue
        tree = f"'{default}'" if default[:1].isdigit() and ":" in default else default
        for step in reversed(path.split(".")):
            tree = f"{{{step.replace('<', '').replace('>', '') if '<' in step else step}: {tree}}}"
        if path.endswith("transport"):
            tree = tree.replace("transport: auto", "transport: auto, url: 'http://h/'")
        names = "" if path.startswith("backends") else "backends: {backend: {}}\n"
        loads(names + tree.removeprefix("{").removesuffix("}") + "\n", "f", env=EMPTY)


def test_short_and_long_rate_limits_are_the_same() -> None:
    text = B + (
        "queue: {github: {global_rate_limits: "
        "{a: 1/day, b: {window: 24h, max_count: 1}, c: {window: 86400, max_count: 1}}}}\n"
    )
    limits = loads(text, "f", env=EMPTY).config.queue["github"].global_rate_limits
    assert limits["a"] == limits["b"] == limits["c"] == RateLimit(window_s=86400.0, max_count=1)


def test_an_allow_list_that_is_empty_differs_from_none() -> None:
    text = B + "agents: {dev: {backends: {github: {allowed: true, tool_allowlist: []}}}}\n"
    access = loads(text, "f", env=EMPTY).config.agents["dev"].backends["github"]
    assert access.tool_allowlist == ()
    assert access.resource_allowlist is None


def test_aliases_share_rules_and_merges_take_them_over() -> None:
    text = (
        "backends: {a: {}, b: {}}\n"
        "agents:\n  one:\n    backends:\n      a: &rules {allowed: true, tool_denylist: [x]}\n      b: *rules\n"
        "  two:\n    backends:\n      a: {<<: *rules, tool_denylist: [y]}\n"
    )
    agents = loads(text, "f", env=EMPTY).config.agents
    assert agents["one"].backends["a"] == agents["one"].backends["b"]
    assert agents["two"].backends["a"].allowed
    assert agents["two"].backends["a"].tool_denylist == ("y",)


def test_relative_paths_count_from_the_config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/a")
    directory = tmp_path / "etc"
    directory.mkdir()
    (directory / "token").write_text("from-a-file-0123456789\n")
    file = directory / "aegis.yaml"
    file.write_text(
        "audit: {db_path: data/audit.db}\n"
        "agents: {dev: {auth_token: '${file:token}'}}\n"
        "backends:\n  a: {command: ./bin/x, cwd: ../work}\n  b: {command: npx, cwd: '~/w'}\n  c: {command: /abs/x}\n"
    )
    monkeypatch.chdir("/")
    config = load(str(file), EMPTY).config
    assert config.audit.db_path == str(directory / "data" / "audit.db")
    assert config.agents["dev"].auth_token == Secret("from-a-file-0123456789")
    assert (config.backends["a"].command, config.backends["a"].cwd) == (
        str(directory / "bin" / "x"),
        str(tmp_path / "work"),
    )
    assert (config.backends["b"].command, config.backends["b"].cwd) == ("npx", "/home/a/w")
    assert config.backends["c"].command == "/abs/x"


# --- secrets


def test_placeholders_become_secrets_and_the_rest_stays_text(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("one\r\n")
    text = (
        "backends:\n  a:\n    command: x\n    args: [--key, '${env:K}', 'p-${env:K}-${file:s}']\n"
        "    env: {A: '${env:K}', B: '$${env:K}', C: '${HOME}', D: '${other:x}'}\n"
    )
    backend = loads(text, "f", base=str(tmp_path), env={"K": "hunter2"}).config.backends["a"]
    assert [reveal(one) for one in backend.args] == ["--key", "hunter2", "p-hunter2-one"]
    assert [isinstance(one, Secret) for one in backend.args] == [False, True, True]
    assert backend.env == {"A": Secret("hunter2"), "B": "${env:K}", "C": "${HOME}", "D": "${other:x}"}


def test_a_placeholder_is_replaced_once_and_what_it_gives_is_not_read_again() -> None:
    text = "backends: {a: {command: x, args: ['${env:K}']}}\n"
    backend = loads(text, "f", env={"K": "${env:OTHER}"}).config.backends["a"]
    assert reveal(backend.args[0]) == "${env:OTHER}"


def test_a_token_from_the_environment_is_held_to_the_same_rules() -> None:
    text = "agents: {dev: {auth_token: '${env:K}'}}\n"
    assert faults(text, env={"K": "short"}) == [
        "1:28: agents.dev.auth_token: the token has 5 characters, at least 16 are needed; "
        "make one with `openssl rand -hex 32`"
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"x" * (64 * 1024 + 1), "holds more than 64 KiB"),
        (b"\xff\xfe", "is not utf-8 text"),
        (b"a\x00b", "holds a NUL"),
    ],
)
def test_a_secret_file_that_is_no_secret_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "s").write_bytes(content)
    (fault,) = faults("agents: {dev: {auth_token: '${file:s}'}}\n", base=str(tmp_path))
    assert message in fault


def test_a_fifo_in_place_of_a_file_does_not_hang_the_daemon(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "s")
    (fault,) = faults("agents: {dev: {auth_token: '${file:s}'}}\n", base=str(tmp_path))
    assert "not a regular file" in fault
    with pytest.raises(ConfigFaults, match="not a regular file"):
        load(str(tmp_path / "s"), EMPTY)


# --- files


def test_a_missing_file_says_how_to_begin(tmp_path: Path) -> None:
    path = str(tmp_path / "aegis.yaml")
    with pytest.raises(ConfigFaults) as caught:
        load(path, EMPTY)
    assert (
        str(caught.value) == f"{path}: no such file; make one with `aegis config init`, or name another with `--config`"
    )


def test_a_missing_file_may_stand_for_a_configuration_that_denies_everything(tmp_path: Path) -> None:
    loaded = load(str(tmp_path / "aegis.yaml"), EMPTY, optional=True)
    assert loaded.config == Config()
    assert [one.message for one in loaded.warnings] == ["no such file, so everything is denied"]


def test_a_link_to_nowhere_is_never_taken_for_no_configuration(tmp_path: Path) -> None:
    path = tmp_path / "aegis.yaml"
    path.symlink_to(tmp_path / "gone")
    with pytest.raises(ConfigFaults, match="no such file"):
        load(str(path), EMPTY, optional=True)


def test_a_directory_is_not_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigFaults, match="a directory, not a file; name a configuration file"):
        load(str(tmp_path), EMPTY)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "aegis.yaml"
    path.write_text("")
    path.chmod(0)
    with pytest.raises(ConfigFaults, match="permission denied; let this user read it"):
        load(str(path), EMPTY)


def test_a_file_larger_than_the_cap_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "aegis.yaml"
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(ConfigFaults, match="larger than 1 MiB"):
        load(str(path), EMPTY)


def test_rules_that_every_user_can_change_are_warned_about(tmp_path: Path) -> None:
    path = tmp_path / "aegis.yaml"
    path.write_text("")
    path.chmod(0o646)
    (warning,) = load(str(path), EMPTY).warnings
    assert str(warning) == f"{path}: every user of this machine can change the rules; run `chmod o-w {path}`"


# --- bounds


def rules(agents: int, rules: int) -> str:
    """A file with this many agents, and this many limits over all of them."""
    lines = ["backends:", *(f"  b{n}: {{}}" for n in range(20)), "agents:"]
    for agent in range(agents):
        lines.append(
            f"  agent-{agent}:\n    backends:\n      b{agent % 20}:\n        allowed: true\n        rate_limits:"
        )
        lines += [f"          tool_{n}: {{ window: 24h, max_count: {n + 1} }}" for n in range(rules // agents)]
    return "\n".join(lines) + "\n"


def test_ten_thousand_rules_of_a_thousand_agents_load_in_seconds() -> None:
    text = rules(1000, 10_000)
    started = time.process_time()
    config = loads(text, "f", env=EMPTY).config
    spent = time.process_time() - started
    assert (
        sum(len(access.rate_limits) for agent in config.agents.values() for access in agent.backends.values()) == 10_000
    )
    assert spent < 10, f"{spent:.1f} s of processor time"


def test_a_file_of_nothing_but_faults_is_refused_in_bounded_time() -> None:
    text = "agents: {a: {backends: {" + ", ".join(f"b{n}: {{alowed: 1}}" for n in range(5000)) + "}}}\n"
    started = time.process_time()
    with pytest.raises(ConfigFaults) as caught:
        loads(text, "f", env=EMPTY)
    assert len(caught.value.faults) == MAX_FAULTS + 1
    assert time.process_time() - started < 10


def test_near_names_are_looked_for_in_bounded_time() -> None:
    known = ", ".join(f"backend-number-{n}: {{}}" for n in range(4000))
    wrong = ", ".join(f"backend-numbr-{n}: {{allowed: true}}" for n in range(900))
    started = time.process_time()
    found = faults(f"backends: {{{known}}}\nagents: {{a: {{backends: {{{wrong}}}}}}}\n")
    assert time.process_time() - started < 10
    assert len(found) == 900
    assert found[0].endswith("did you mean `backend-number-0`?")


NAMES = sorted({part for row in describe_settings() for part in row[0].replace("<", "").replace(">", "").split(".")})
VALUE = (
    st.none()
    | st.booleans()
    | st.integers(-2, 300)
    | st.floats()
    | st.sampled_from(["", "1h", "10/minute", "x", "*", "${env:K}", "${file:x}", "http://h/", "full", "true", "a" * 20])
    | st.text(max_size=5)
)
TREE = st.recursive(
    VALUE,
    lambda below: (
        st.lists(below, max_size=3) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=3), below, max_size=4)
    ),
    max_leaves=15,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), TREE, max_size=5))
def test_any_settings_load_or_give_faults_with_places_in_the_file(tree: dict[str, Any]) -> None:
    text = json.dumps(tree, indent=1, allow_nan=False, default=str) if _finite(tree) else "{}"
    result: Loaded | ConfigFaults
    try:
        result = loads(text, "f", env={"K": "hunter2-hunter2-hunter2"})
    except ConfigFaults as error:
        result = error
    found = result.faults if isinstance(result, ConfigFaults) else list(result.warnings)
    assert found or isinstance(result, Loaded)
    assert "hunter2" not in repr(result) + str(result) + "".join(one.render() for one in found)
    lines = text.split("\n")
    for fault in found:
        assert 1 <= fault.line <= len(lines)
        assert 1 <= fault.column <= len(lines[fault.line - 1]) + 1
        assert fault.message
        assert fault.hint


def _finite(tree: Any) -> bool:
    if isinstance(tree, float):
        return tree == tree and abs(tree) != float("inf")
    if isinstance(tree, dict):
        return all(map(_finite, tree.values()))
    return all(map(_finite, tree)) if isinstance(tree, list) else True


@pytest.mark.parametrize("text", ["off", "'off'", "false"])
def test_http_can_be_switched_off(text: str) -> None:
    loaded = loads(f"server: {{listen: {text}}}\n", "f", env={})
    assert loaded.config.server.listen == "off"
    assert loaded.warnings == ()


def test_a_file_that_others_can_read_and_that_holds_tokens_is_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "aegis.yaml"
    for text, told in (
        ("server: {api_token: 0123456789abcdef}\n", True),
        ('server: {api_token: "${env:T}"}\n', False),
        ("# api_token: 0123456789abcdef\n{}\n", False),
    ):
        path.write_text(text)
        for mode, open_to_others in ((0o644, True), (0o600, False)):
            path.chmod(mode)
            warnings = [str(one) for one in load(str(path), {"T": "0123456789abcdef"}).warnings]
            assert any("read the tokens" in one for one in warnings) is (told and open_to_others), (text, mode)


def test_a_library_that_an_export_needs_and_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aegis_daemon.core.extras.find_spec", lambda name: None)
    text = """
audit:
  exports:
    lake: {type: security_lake, path: lake}
  witnesses:
    vault: {type: s3, bucket: b}
"""
    lake, vault = (one.render() for one in loads(text, "aegis.yaml").warnings if one.path.startswith("audit"))
    assert "it needs pyarrow, which is not installed; install Aegis with its extra `parquet`, like `pipx" in lake
    assert "it needs obstore, which is not installed" in vault


def test_the_same_warning_of_many_places_is_one() -> None:
    def told(count: int) -> list[str]:
        text = "backends:\n" + "".join(f"  b{at}: {{tools_idempotent: ['x*']}}\n" for at in range(count))
        return [one.message for one in loads(text, "f").warnings if "repeats" in one.message]

    assert len(told(5)) == 5
    assert told(225) == ["this version never repeats a call by itself (here and in 224 more places)"]
