"""Which texts of a configuration are secrets, and which only look like it."""

from __future__ import annotations

from pathlib import Path

import pytest

from aegis_daemon.config.load import ConfigFaults, loads
from aegis_daemon.config.secrets import SUPERSEDED, guard, known_secrets, superseded
from aegis_daemon.daemon import reload as reloading

ENV = {
    "KEY": "correct-horse-battery", "HOME": "/somewhere/over/there", "HOST": "db.internal.example", "PORT": "5432",
    "URL": "https://me:battery-staple@db.example/x?sig=signature-1",
}  # fmt: skip


def known(text: str, **more: str) -> frozenset[str]:
    return known_secrets(loads(text, "aegis.yaml", env={**ENV, **more}).config)


def test_what_was_looked_up_is_secret_and_not_what_stands_around_it() -> None:
    found = known('backends: {b: {command: x, args: ["--key=${env:KEY}"]}}')
    assert found == {"correct-horse-battery"}
    header = known('backends: {b: {url: "https://x.example", headers: {Authorization: "Bearer ${env:KEY}"}}}')
    assert header == {"correct-horse-battery"}


def test_what_is_written_into_the_file_and_never_printed_is_secret_too() -> None:
    text = """
server: {api_token: "a-token-of-the-api-0"}
agents: {a: {auth_token: "a-token-of-an-agent"}}
backends:
  b: {url: "https://x.example", headers: {Authorization: "Bearer a-token-of-a-backend", X-Trace: on-every-request}}
  c: {command: x, env: {DB_PASSWORD: a-password-of-a-db, MODE: production-like}}
"""
    found = known(text)
    assert {"a-token-of-the-api-0", "a-token-of-an-agent", "a-token-of-a-backend", "a-password-of-a-db"} <= found
    assert not {"on-every-request", "production-like"} & found


def test_within_an_address_the_password_and_the_query_are_secret() -> None:
    found = known('backends: {b: {url: "${env:URL}"}}')
    assert {"battery-staple", "signature-1"} <= found


def test_places_and_names_of_the_machine_are_no_secrets(tmp_path: Path) -> None:
    config = 'backends: {b: {command: x, env: {A: "${env:HOME}/a", B: "${env:DIR}", C: "${env:HOST}"}}}\n'
    assert known(config, DIR=str(tmp_path)) == {"db.internal.example"}
    assert known(config + 'secrets: {allow: ["env:HOST"]}', DIR=str(tmp_path)) == set()
    assert "/no/such/directory" in known(config, DIR="/no/such/directory")


def test_a_file_is_looked_up_too(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("a-key-in-a-file\n")
    assert known(f'backends: {{b: {{command: x, env: {{K: "${{file:{tmp_path}/key}}"}}}}}}') == {"a-key-in-a-file"}


def test_the_settings_say_who_is_spared_what() -> None:
    def made(text: str) -> tuple[bool, bool]:
        found = guard(loads(text, "aegis.yaml", env=ENV).config)
        return found.log is not None, found.listens

    key = 'backends: {b: {command: x, env: {K: "${env:KEY}"}}}\n'
    assert made("mode: enforce") == (True, False)
    assert made("secrets: {log: off}") == (False, False)
    assert made("secrets: {log: off, answers: redact}") == (False, True)
    assert made(key + "secrets: {log: off}") == (True, True), "its own secrets are always kept"


@pytest.mark.parametrize(
    ("text", "hint"), [("allow: [jwtt]", "did you mean `jwt`"), ("allow: [xyz]", "env:NAME"), ("results: off", "unknown"), ("log: on", "redact")]
)  # fmt: skip
def test_a_setting_that_says_nothing_is_a_fault(text: str, hint: str) -> None:
    with pytest.raises(ConfigFaults) as faults:
        loads(f"secrets: {{{text}}}", "aegis.yaml")
    assert hint in str(faults.value)


def test_a_secret_that_a_reload_replaced_stays_one(tmp_path: Path) -> None:
    file = tmp_path / "aegis.yaml"
    text = 'backends: {b: {url: "https://x.example", headers: {Authorization: "Bearer %s"}}}\n'
    force = None
    for number in range(3):
        file.write_text(text % f"a-token-of-the-backend-{number}")
        force = reloading.read(file, before=force)
    assert force is not None
    for number in range(3):
        line = f'{{"it": "is a-token-of-the-backend-{number}"}}'.encode()
        for cleaned in (force.runtime.secrets.heard(line), force.runtime.secrets.written(line)):
            assert cleaned == b'{"it": "is [secret:configured]"}'
    file.write_text("backends: {}\nsecrets: {log: off}\n")
    assert reloading.read(file, before=force).runtime.secrets.listens


def test_what_is_allowed_now_is_not_kept_secret_for_what_it_was() -> None:
    config = 'backends: {b: {command: x, env: {K: "${env:KEY}"}}}\n'
    new = loads(config + 'secrets: {allow: ["env:KEY"]}', "aegis.yaml", env=ENV).config
    assert superseded((ENV["KEY"], "another-secret"), new) == (("another-secret",), 0)


def test_the_oldest_of_very_many_replaced_secrets_are_forgotten_and_a_reload_says_so(tmp_path: Path) -> None:
    file = tmp_path / "aegis.yaml"
    file.write_text("agents: {}")
    before = reloading.read(file)
    before = reloading.InForce(
        before.config, before.runtime, file, secrets=tuple(f"secret-{n:09}" for n in range(SUPERSEDED + 2))
    )
    force = reloading.read(file, before=before)
    assert force.secrets == before.secrets[2:]
    assert [line for line in force.warnings if line.startswith("2 secrets")], force.warnings
    assert force.runtime.secrets.heard(b'["secret-000000002"]') == b'["[secret:configured]"]'
    long = tuple(f"{n:1000}".replace(" ", "x") for n in range(40))
    assert superseded(long, force.config) == (long[-32:], 8), "and of long ones fewer are kept"
