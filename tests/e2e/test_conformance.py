"""What passes in the official conformance suite directly passes through Aegis, over HTTP and over stdio."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from . import conformance
from .conformance import FAIL, MISSING, PASS, Check, Checks

TARGETS = ("http", "stdio")
# The first suite asks what the second asks too, in older words: for changes that an old client might notice.
SUITES = [pytest.param("0.1.16", marks=pytest.mark.matrix), "2025-11-25", "2026-07-28"]


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checks]:
    """A suite's checks against the server itself, asked once."""
    if not (conformance.CACHE / "made-from").exists():
        pytest.fail("the conformance suite is not installed; run `scripts/conformance install`")
    known: dict[str, Checks] = {}

    def ask(suite: str) -> Checks:
        if suite not in known:
            known[suite] = conformance.baseline(suite, tmp_path_factory.mktemp(f"direct-{suite}"))
        return known[suite]

    return ask


@pytest.fixture(scope="module", params=TARGETS)
def front(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """A daemon that has the server behind it in one of two ways: the way, and the daemon's URL."""
    with conformance.target(request.param) as url:
        yield request.param, url


@pytest.mark.real
@pytest.mark.parametrize("suite", SUITES)
def test_what_passes_directly_passes_through_aegis(
    front: tuple[str, str], suite: str, baseline: Callable[[str], Checks], tmp_path: Path
) -> None:
    name, url = front
    direct = baseline(suite)
    through = conformance.run(suite, url, tmp_path)
    found = conformance.differences(name, suite, direct, through)
    left = conformance.unexpected(name, suite, found)
    assert not left, "\n".join(left)


def checks(*statuses: str) -> Checks:
    return {("scenario", f"check {i}", 1): Check(status, "") for i, status in enumerate(statuses)}


def told(direct: Checks, through: Checks) -> list[tuple[str, str]]:
    found = conformance.differences("http", "2025-11-25", direct, through)
    return [(each.direct.status, each.through.status) for each in found]


def test_a_check_that_passes_only_directly_is_a_difference() -> None:
    assert told(checks(PASS, PASS, PASS), checks(PASS, FAIL, "WARNING")) == [(PASS, FAIL), (PASS, "WARNING")]


def test_a_scenario_that_never_came_to_a_check_is_a_difference() -> None:
    assert told(checks(PASS), {}) == [(PASS, MISSING.status)]


def test_what_fails_directly_too_is_no_difference() -> None:
    assert told(checks(FAIL, FAIL), checks(FAIL, PASS)) == []


def test_a_failure_where_there_was_none_is_a_difference() -> None:
    assert told(checks("INFO"), checks(FAIL, FAIL)) == [("INFO", FAIL), (MISSING.status, FAIL)]


def test_an_expected_difference_that_is_none_or_worse_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "differences.toml"
    monkeypatch.setattr(conformance, "EXPECTED", file)
    file.write_text(
        '[[difference]]\ntargets = ["http"]\nsuites = ["2025-11-25"]\n'
        'scenario = "scenario"\ncheck = "check 0"\nstatus = "INFO"\nwhy = "so"\n'
    )
    found = conformance.differences("http", "2025-11-25", checks(PASS, PASS), checks("INFO", "INFO"))
    (left,) = conformance.unexpected("http", "2025-11-25", found)
    assert "check 1" in left
    worse = conformance.differences("http", "2025-11-25", checks(PASS), checks(FAIL))
    assert len(conformance.unexpected("http", "2025-11-25", worse)) == 2
    (stale,) = conformance.unexpected("http", "2025-11-25", [])
    assert "is none" in stale


def test_every_expected_difference_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    conformance.expected()
    file = tmp_path / "differences.toml"
    monkeypatch.setattr(conformance, "EXPECTED", file)
    file.write_text(
        '[[difference]]\ntargets = ["http"]\nsuites = ["a"]\nscenario = "b"\ncheck = "c"\nstatus = "INFO"\n'
    )
    with pytest.raises(conformance.Broken, match="no `why`"):
        conformance.expected()
