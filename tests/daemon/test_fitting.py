"""A tool that its rules do not fit is refused from the first call on, until the rules or the tool are others."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from making import tool

from aegis_daemon.config.load import digest, loads
from aegis_daemon.config.runtime import build
from aegis_daemon.core.verdict import Allow, Deny
from aegis_daemon.daemon import fitting
from aegis_daemon.daemon.fitting import Fits, Reviewer
from aegis_daemon.daemon.reload import InForce, counted, fitted, pinned
from aegis_daemon.limits import Limits
from aegis_daemon.registry.pins import Registry

FILE = """\
backends: {files: {}}
agents: {amy: {backends: {files: {allowed: true}}}}
policy:
  text: |
    @id("all") permit(principal, action, resource);
    @id("hide") forbid(principal, action, resource) when { context.target == "secret" };
    @id("typo") forbid(principal, action, resource) when {
      context.target == "read" && context.arguments has pth && context.arguments.pth == "/etc"
    };
"""


def schema(*names: str) -> dict[str, Any]:
    return {
        "type": "object", "properties": {name: {"type": "string"} for name in names}, "additionalProperties": False,
    }  # fmt: skip


class House:
    """Rules in force over a registry, as the daemon puts them together."""

    def __init__(self, path: Path) -> None:
        self.seen: list[str] = []
        self.pins = Registry(
            sqlite3.connect(path / "state.db", isolation_level=None),
            wall=lambda: 1.7e9,
            record=lambda *_: None,
            on_change=lambda backend: self.force.runtime.pipeline.forget(),
            on_seen=self._seen,
        )
        self.reload(FILE)

    def _seen(self, backend: str) -> None:
        self.seen.append(backend)
        if self.force.fits is not None:
            self.force.fits.seen(backend)
        self.force.runtime.pipeline.forget()

    def reload(self, text: str) -> None:
        config = loads(text, "aegis.yaml").config
        made = InForce(config, build(config, digest(config)), None)
        self.force = counted(fitted(pinned(made, self.pins), self.pins, lambda: 0.0), Limits().usage)

    def lists(self, **tools: dict[str, Any]) -> None:
        listed = [{"name": name, "inputSchema": given} for name, given in tools.items()]
        self.pins.shown("files", "tools/list", msgspec.json.encode({"tools": listed}))

    def trusts(self, name: str) -> None:
        (pin,) = self.pins.find(name)
        self.pins.trust(pin, pin.offered, "ann")

    def calls(self, name: str, **arguments: Any) -> str:
        """`allowed`, or the code of the refusal."""
        verdict = self.force.runtime.pipeline.admit(tool(name, arguments), 0.0)
        self.verdict = verdict
        if isinstance(verdict, Deny):
            return str(verdict.reason.code)
        assert isinstance(verdict, Allow)
        return "allowed"


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_a_tool_is_refused_as_soon_as_it_is_seen_not_to_fit_and_no_other_one(house: House) -> None:
    assert house.calls("read", path="/x") == "allowed", "nobody knows yet what it takes"
    house.lists(read=schema("path"), write=schema("path"), other=schema())
    assert house.seen == ["files"]
    assert house.calls("read", path="/x") == "policy_fault"
    assert isinstance(house.verdict, Deny)
    reason = house.verdict.reason
    assert "did you mean `path`?" in reason.detail
    assert "aegis.yaml:8:" in reason.detail
    assert not any(word in reason.text for word in ("pth", "path", "typo"))
    assert house.calls("READ", path="/x") == "not_allowed", "which a server may take for `read`, and never listed"
    assert house.calls("write", path="/x") == "allowed"
    assert house.calls("other") == "allowed"


def test_it_is_usable_again_once_the_rule_is_mended(house: House) -> None:
    house.lists(read=schema("path"))
    assert house.calls("read") == "policy_fault"
    house.reload(FILE.replace("pth", "path"))
    assert house.calls("read", path="/x") == "allowed"
    assert house.calls("read", path="/etc") == "policy_denied"


def test_it_is_usable_again_once_a_person_trusts_a_tool_that_fits(house: House) -> None:
    house.lists(read=schema("path"))
    assert house.calls("read") == "policy_fault"
    house.lists(read=schema("path", "pth"))
    assert house.calls("read") == "changed"
    house.trusts("read")
    assert house.calls("read", pth="/x") == "allowed"
    house.lists(read=schema("path"))
    house.trusts("read")
    assert house.calls("read", path="/x") == "policy_fault"


def test_what_is_hidden_reads_as_if_it_were_not_there_though_its_rules_have_a_fault(house: House) -> None:
    house.reload(FILE.replace('"read"', '"secret"'))
    house.lists(secret=schema("path"))
    assert house.force.fits is not None
    assert house.force.fits.fault("files", "secret")
    assert house.calls("secret", path="/x") == "not_allowed"


def test_a_policy_for_several_tools_has_a_fault_once_none_of_them_has_the_argument(house: House) -> None:
    house.reload(FILE.replace('context.target == "read"', '["read", "write"].contains(context.target)'))
    house.lists(read=schema("path"))
    assert house.calls("read", path="/x") == "allowed", "it may be meant for the other one"
    house.lists(read=schema("path"), write=schema("path"))
    assert house.calls("read", path="/x") == "policy_fault"
    assert house.calls("write", path="/x") == "policy_fault"


def test_without_rules_on_arguments_nothing_is_held_against_anything(house: House) -> None:
    house.reload(FILE.partition("policy:")[0])
    assert house.force.fits is None


def test_a_registry_that_cannot_be_read_refuses_the_call(house: House) -> None:
    house.lists(read=schema("pth"))
    house.pins._db.close()
    assert house.calls("read", pth="/x") == "fault"


async def test_a_review_tells_each_fault_once_and_gives_way_to_others(
    house: House, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "SLICE_S", -1.0)  # every step is long enough
    house.lists(read=schema("path"), write=schema("path"))
    reviewer = Reviewer(lambda: house.force.fits)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while house.force.fits is not None and not house.force.fits.summary.faults:
            turns += 1
            await asyncio.sleep(0)

    with caplog.at_level(logging.WARNING, "aegis.policy"):
        reviewer.kick()
        await asyncio.wait_for(others(), 10)
        assert turns > 1, "one of them before it began"
        for _ in range(2):
            reviewer.kick()
            await settled(reviewer)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "did you mean `path`?" in caplog.text
    assert house.force.fits is not None
    (line,) = house.force.fits.lines()
    assert line.startswith("1 policy fault, for which 1 tool is refused")
    house.reload(FILE.replace("pth", "path"))
    reviewer.kick()
    await settled(reviewer)
    assert house.force.fits.lines() == (
        "1 warning on policies and the tools they are for: see `aegis policy validate`",
    )


async def settled(reviewer: Reviewer) -> None:
    task = reviewer._task
    if task is not None:
        await asyncio.wait_for(asyncio.shield(task), 10)


async def test_a_review_that_fails_is_logged_and_the_next_one_runs(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[int] = []

    def in_force() -> Fits | None:
        asked.append(1)
        if len(asked) == 1:
            raise RuntimeError("no")
        return house.force.fits

    reviewer = Reviewer(in_force)
    reviewer.kick()
    await settled(reviewer)
    assert "could not be held against" in caplog.text
    reviewer.kick()
    await settled(reviewer)
    assert len(asked) == 2
    reviewer.kick()
    await reviewer.close()


def test_the_log_is_not_flooded(house: House, caplog: pytest.LogCaptureFixture) -> None:
    lists: Callable[..., None] = house.lists
    text = "".join(
        f'    forbid(principal, action, resource) when {{ context.target == "t{n}" && context.arguments.x > 1 }};\n'
        for n in range(50)
    )
    house.reload(FILE + text)
    lists(**{f"t{n}": schema("y") for n in range(50)})
    assert house.force.fits is not None
    summary = asyncio.run(house.force.fits.review())
    assert len(summary.faults) == 50
    reviewer = Reviewer(lambda: None)
    with caplog.at_level(logging.WARNING, "aegis.policy"):
        reviewer.tell(summary)
    assert len(caplog.records) == fitting._TOLD + 1
    assert "30 more" in caplog.records[-1].getMessage()
