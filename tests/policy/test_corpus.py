"""The published cases of the Cedar project, decided by our reader, our groups and our rule of what counts as allowed."""

from __future__ import annotations

import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cedarpy
import pytest
from corpora import corpus

from aegis_daemon.policy.cedar import passes
from aegis_daemon.policy.dialect import PolicyError, read
from aegis_daemon.policy.groups import Group, Outcome
from aegis_daemon.policy.groups import members as members_of

GENERATED = 7809
REQUESTS = 62472


def members() -> Iterator[tuple[str, dict[str, str]]]:
    """Every generated case: its name, and the text of each of its files."""
    with tarfile.open(corpus("cedar") / "corpus-tests.tar.gz") as archive:
        files: dict[str, dict[str, str]] = {}
        for member in archive:
            if not member.isfile():
                continue
            name = Path(member.name).name
            stem, _, kind = name.partition(".")
            handle = archive.extractfile(member)
            assert handle is not None
            files.setdefault(stem, {})[kind] = handle.read().decode("utf-8")
    yield from sorted(files.items())


def test_every_decision_on_the_generated_cases_is_the_published_one() -> None:
    counted: Counter[str] = Counter()
    wrong: list[str] = []
    for name, files in members():
        case = json.loads(files["json"])
        counted["cases"] += 1
        found = judged(files["cedar"], files["entities.json"], files["cedarschema"], case, counted)
        wrong.extend(f"{name}: {line}" for line in found)
    assert wrong == []
    assert (counted["cases"], counted["requests"], counted["refused"]) == (GENERATED, REQUESTS, 0)
    # Each of them often enough, or the comparison says nothing.
    assert min(counted["allow"], counted["deny"], counted["erring"]) > 1000, counted


@pytest.mark.parametrize("folder", ["decimal", "example_use_cases", "ip", "multi"])
def test_every_decision_on_the_written_cases_is_the_published_one(folder: str) -> None:
    home = corpus("cedar")
    counted: Counter[str] = Counter()
    for path in sorted((home / "tests" / folder).glob("*.json")):
        case = json.loads(path.read_text(encoding="utf-8"))
        policies = (home / case["policies"]).read_text(encoding="utf-8")
        entities = (home / case["entities"]).read_text(encoding="utf-8")
        schema = (home / case["schema"]).read_text(encoding="utf-8")
        assert list(judged(policies, entities, schema, case, counted)) == [], path.name
    assert counted["requests"]
    assert not counted["refused"]
    assert counted["several policies"] or folder != "multi"


def judged(policies: str, entities: str, schema: str, case: dict[str, Any], counted: Counter[str]) -> Iterator[str]:
    """What differs from the published decisions."""
    try:
        statements = read(policies, "case.cedar", known=False)
    except PolicyError as error:
        counted["refused"] += 1
        yield f"our reader refuses it: {error}"
        return
    types = cedarpy.Schema.from_str(schema) if schema else None
    known = cedarpy.Entities.from_json_str(entities, types)
    ready = members_of(statements)
    whole = Group(ready)
    parts = [Group([one]) for one in ready]
    for number, wanted in enumerate(case["requests"]):
        counted["requests"] += 1
        counted[wanted["decision"]] += 1
        request = {key: wanted[key] for key in ("principal", "action", "resource", "context")}
        outcome = whole.ask(request, known, schema=types)
        said = (outcome.decision.lower(), decisive(outcome), erring(outcome))
        if said != (wanted["decision"], positions(wanted["reason"]), positions(wanted["errors"])):
            yield f"request {number}: {said} instead of {wanted}"
        allowed = wanted["decision"] == "allow" and not wanted["errors"]
        counted["erring"] += bool(wanted["errors"])
        counted["several policies"] += len(parts) > 1
        if passes([outcome]) is not allowed:
            yield f"request {number}: passed or not against {wanted}"
        # Asked one policy at a time, the sum is the same: that is what grouping relies on.
        if len(parts) > 1 and passes([part.ask(request, known, schema=types) for part in parts]) is not allowed:
            yield f"request {number}: its parts decide otherwise"


def decisive(outcome: Outcome) -> set[int]:
    return set(outcome.permits) | set(outcome.forbids)


def erring(outcome: Outcome) -> set[int]:
    return {int(number) for error in outcome.errors for number in re.findall(r"policy `([0-9]+)`", error)}


def positions(ids: list[str]) -> set[int]:
    return {int(one.removeprefix("policy")) for one in ids}
