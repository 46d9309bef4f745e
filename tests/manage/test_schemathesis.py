"""The API under thousands of requests made from its own description: it keeps to it, and to its doors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.specs.openapi.checks import ignored_auth

from aegis_daemon.manage.web import OTHERS, PAGES, ROUTES

from .webhouse import API_TOKEN, READ_TOKEN, served

REFUSALS = {401, 403, 404, 405, 422}
QUICK = settings(
    max_examples=25, database=None, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)  # fmt: skip


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Any]:
    with served(tmp_path) as made:
        yield made


def operations(url: str) -> list[Any]:
    """All but the description itself, which Schemathesis leaves out."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    found = [made.ok() for made in schema.get_all_operations()]
    described = {f"{row.method} {row.path}" for row in (*ROUTES, *PAGES, *OTHERS)} - {"GET /openapi.json"}
    assert {one.label for one in found} == described
    return found


def drive(operation: Any, check: Callable[[Any], None]) -> int:
    """`check(case)` for many cases of one operation, good and bad; how many there were."""
    made = 0

    def go(case: Any) -> None:
        nonlocal made
        made += 1
        check(case)

    for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
        try:
            QUICK(given(case=operation.as_strategy(generation_mode=mode))(go))()
        except Unsatisfiable:
            pass  # nothing can be wrong with a request that has no parameters
    return made


@pytest.mark.parametrize("token", [None, "wrong-token-0123456789", "", READ_TOKEN + "x"])
def test_without_the_right_credential_nothing_opens_and_nothing_changes(running: Any, token: str | None) -> None:
    url, house, do = running
    ticket = do(house.asks)
    before = do(house.state)
    made = 0
    for operation in operations(url):
        if not operation.definition.raw["security"]:
            continue

        def check(case: Any) -> None:
            case.headers = {
                name: value for name, value in (case.headers or {}).items() if name.lower() != "authorization"
            }
            if token is not None:
                case.headers["Authorization"] = f"Bearer {token}"
            if "id" in (case.path_parameters or {}):
                case.path_parameters["id"] = ticket.id
            assert case.call(base_url=url).status_code in REFUSALS

        made += drive(operation, check)
    assert made > 100
    assert do(house.state) == before


def test_the_read_token_changes_nothing(running: Any) -> None:
    url, house, do = running
    ticket = do(house.asks)
    before = do(house.state)
    for operation in operations(url):
        if operation.method != "post" or not operation.definition.raw["security"]:
            continue

        def check(case: Any) -> None:
            case.headers = {"Authorization": f"Bearer {READ_TOKEN}"}
            if "id" in (case.path_parameters or {}):
                case.path_parameters["id"] = ticket.id
            assert case.call(base_url=url).status_code in REFUSALS

        assert drive(operation, check)
    assert do(house.state) == before


def test_with_the_right_credential_every_answer_is_as_described_and_none_a_fault(running: Any) -> None:
    url, house, do = running
    do(lambda: house.records(5))
    seen: list[tuple[str, int]] = []
    for operation in operations(url):

        def check(case: Any, label: str = operation.label) -> None:
            case.headers = {**(case.headers or {}), "Authorization": f"Bearer {API_TOKEN}"}
            if "id" in (case.path_parameters or {}) and len(seen) % 2:
                case.path_parameters["id"] = do(house.asks).id if case.method == "POST" else "amy"
            answer = case.call(base_url=url)
            seen.append((label, answer.status_code))
            assert answer.status_code < 500
            # The header set here counts as made up there; what made-up ones may do is the first test's.
            case.validate_response(answer, excluded_checks=[ignored_auth])

        drive(operation, check)
    good = {label for label, status in seen if status == 200}
    assert {label for label, _ in seen} - good <= {
        "GET /callback/approval", "POST /callback/approval", "POST /callback/slack",
    }, "nobody guesses a link or a signature"  # fmt: skip


def test_a_bad_file_is_told_as_described(running: Any) -> None:
    url, house, _ = running
    kept = house.file.read_text(encoding="utf-8")
    house.file.write_text("agents: {amy: {colour: red}}\n", encoding="utf-8")
    try:
        operation = next(one for one in operations(url) if one.label.endswith("/config/reload"))
        case = operation.Case(headers={"Authorization": f"Bearer {API_TOKEN}"})
        answer = case.call_and_validate(base_url=url)
        assert answer.status_code == 422
        assert answer.json()["faults"][0]["line"] == 1
    finally:
        house.file.write_text(kept, encoding="utf-8")
