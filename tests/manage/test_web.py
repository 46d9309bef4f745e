from __future__ import annotations

import asyncio
import http.client
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import pytest

from aegis_daemon.config.schema import Secret
from aegis_daemon.manage import web
from aegis_daemon.manage.web import CALLBACK, OTHERS, ROUTES, Access

from .webhouse import API_TOKEN, APPROVER_KEY, OUR_ORIGIN, READ_TOKEN, Answer, House, ask, open_house, served

pytestmark = pytest.mark.anyio
JSON = {"content-type": "application/json"}
LOGINS = int(web.WRONG_LOGINS.split()[0])
OPEN = {row.path for row in ROUTES if row.permit is None}
CLOSED_GET = [row.path for row in ROUTES if row.permit is not None and row.method == "GET"]
CLOSED_POST = ["/api/v1/approvals/K7Q2/approve", "/api/v1/approvals/K7Q2/reject", "/api/v1/config/reload"]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path) as made:
        yield made


@pytest.fixture
async def logged(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path, logging=True) as made:
        yield made


async def get(house: House, target: str, token: str | None = API_TOKEN, **more: Any) -> Answer:
    return await ask(house.web.app, "GET", target, token=token, **more)


async def post(house: House, target: str, token: str | None = API_TOKEN, **more: Any) -> Answer:
    return await ask(house.web.app, "POST", target, token=token, **more)


def problem(answer: Answer, status: int, code: str, words: str = "") -> Any:
    said = answer.json
    assert (answer.status, said["status"], said["code"]) == (status, "error", code), said
    assert words in said["message"]
    return said


# --- what seed A's clients ask ----------------------------------------------------------------------------------------


async def test_health_has_seed_as_shape_and_needs_no_token(house: House) -> None:
    answer = await get(house, "/health", token=None, peer="203.0.113.9")
    assert (answer.status, answer.json) == (
        200,
        {"status": "ok", "service": "aegis", "backends": {"files": "healthy", "blog": "no_health_url"}, "exports": {}},
    )


async def test_one_bad_backend_makes_it_degraded_and_still_200(house: House) -> None:
    house.backends = {"files": "unhealthy: connection refused", "blog": "healthy"}
    answer = await get(house, "/health", token=None)
    assert (answer.status, answer.json["status"]) == (200, "degraded")


async def test_health_that_cannot_be_asked_is_degraded(house: House, caplog: pytest.LogCaptureFixture) -> None:
    house.backends = RuntimeError("secret detail")
    answer = await get(house, "/health", token=None)
    assert answer.json["status"] == "degraded"
    assert b"secret" not in answer.body
    assert "the backends' health is not known" in caplog.text


async def test_many_who_want_to_know_ask_the_backends_once(house: House) -> None:
    answers = await asyncio.gather(*(get(house, "/health", token=None) for _ in range(50)))
    assert {answer.json["status"] for answer in answers} == {"ok"}
    assert house.probes == 1


async def test_agents_are_listed_with_what_they_may_use(house: House) -> None:
    amy, bob = (await get(house, "/api/v1/agents")).json
    assert (amy["id"], amy["display_name"]) == ("amy", "Amy")
    assert amy["backends"]["files"] == {
        "allowed": True, "denied_tools": ["delete_all"], "allowed_tools": None, "approval_required": [],
        "second_approver": [],
    }  # fmt: skip
    assert amy["backends"]["idle"]["allowed"] is False
    assert (bob["display_name"], bob["backends"]["files"]["allowed_tools"]) == ("", ["read"])


async def test_rate_limits_show_the_agents_own_and_those_over_all(house: House) -> None:
    rows = (await get(house, "/api/v1/agents/amy/rate-limits")).json
    shown = [
        (row["scope"], row["backend_id"], row["tool"], row["window"], row["max_count"], row["current"]) for row in rows
    ]
    assert shown == [
        ("agent", "files", "read", "1m0s", 5, 0),
        ("agent", "blog", "publish", "24h0m0s", 1, 0),
        ("global", "blog", "publish", "1h0m0s", 15, 0),
    ], "none of a backend that it may not use"
    problem(await get(house, "/api/v1/agents/eve/rate-limits"), 404, "not_found", "`eve`")
    problem(await get(house, f"/api/v1/agents/{'x' * 200}/rate-limits"), 404, "not_found")


async def test_the_queue_counts_what_waits_by_backend(house: House) -> None:
    assert (await get(house, "/api/v1/queue/status")).json == {"blog": 0, "idle": 0}
    turns = [house.lanes.hold("blog", (f"{n}", "amy", "publish")) for n in range(3)]
    for turn in turns[:2]:
        turn.ready()  # type: ignore[union-attr]
    assert (await get(house, "/api/v1/queue/status")).json == {"blog": 2, "idle": 0}, "one runs, and one is held"


async def test_pending_approvals_have_seed_as_fields_and_ours(house: House) -> None:
    ticket = house.asks()
    (row,) = (await get(house, "/api/v1/approvals/pending")).json
    assert {key: row[key] for key in ("id", "agent_id", "tool_name", "arguments")} == {
        "id": ticket.id, "agent_id": "amy", "tool_name": "publish", "arguments": '{"text":"hi"}',
    }  # fmt: skip
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", row["created_at"])
    assert (row["call_id"], row["waiting"]) == (ticket.call_id, True)


@pytest.mark.parametrize(("action", "state"), [("approve", "approved"), ("reject", "rejected")])
@pytest.mark.parametrize("key", ["note", "reason"])
async def test_a_decision_is_taken_once_and_says_who_took_it(house: House, action: str, state: str, key: str) -> None:
    ticket = house.asks()
    answer = await post(
        house, f"/api/v1/approvals/{ticket.id}/{action}", headers=JSON, body=json.dumps({key: "as agreed"}).encode()
    )
    assert answer.json == {
        "status": "ok", "action": action, "id": ticket.id, "call_id": ticket.call_id, "state": state, "needed": 1,
        "given": int(action == "approve"),
    }  # fmt: skip
    assert (ticket.state, ticket.by, ticket.note) == (state, "the API token (127.0.0.1)", "as agreed")
    for again in ("approve", "reject"):
        problem(await post(house, f"/api/v1/approvals/{ticket.id}/{again}"), 404, "conflict", f"was {state} by")
    assert ticket.state == state


async def test_a_call_id_and_an_id_as_typed_do_as_well(house: House) -> None:
    one, two = house.asks(), house.asks({"text": "ho"})
    assert (await post(house, f"/api/v1/approvals/{one.call_id}/approve")).status == 200
    assert (await post(house, f"/api/v1/approvals/{two.id.lower()}/approve")).status == 200


async def test_what_is_not_there_cannot_be_decided(house: House) -> None:
    problem(await post(house, "/api/v1/approvals/ZZZZ/approve"), 404, "not_found", "no ticket `ZZZZ` waits")
    problem(await post(house, f"/api/v1/approvals/{house.asks().id}/maybe"), 400, "bad_request")


async def test_the_log_is_paged_newest_first_with_seed_as_fields(logged: House) -> None:
    logged.records(3, method="tools/list", name="")
    logged.records(7)
    rows = (await get(logged, "/api/v1/audit/logs")).json
    assert len(rows) == 7, "tool calls alone"
    assert rows[0] == {
        **rows[0], "request_id": "7", "agent_id": "amy", "backend_id": "files", "tool_name": "read",
        "arguments": '{"path":"/x"}', "acl_result": "allowed", "approval_result": "not_required",
        "queue_position": 0, "queue_wait_ms": 0, "exec_status": "success", "exec_duration_ms": 2, "error_message": "",
    }  # fmt: skip
    assert "rate_limit_result" in rows[0]
    assert [row["created_at"] for row in rows] == sorted((row["created_at"] for row in rows), reverse=True)
    assert (await get(logged, "/api/v1/audit/logs?limit=3&offset=2")).json == rows[2:5]
    assert (await get(logged, "/api/v1/audit/logs?limit=500&offset=6")).json == rows[6:]
    assert (await get(logged, "/api/v1/audit/logs?offset=7")).json == []


async def test_a_page_far_back_is_reached_in_steps(logged: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aegis_daemon.daemon.governor.AUDIT_STEP", 2)
    logged.records(9)
    rows = (await get(logged, "/api/v1/audit/logs?limit=500")).json
    for offset in range(11):
        assert (await get(logged, f"/api/v1/audit/logs?limit=2&offset={offset}")).json == rows[offset : offset + 2]


async def test_a_log_that_cannot_be_read_is_no_fault_of_the_api(logged: House) -> None:
    logged.records(1)
    await logged.writer.flush()
    (logged.at / "audit.db").rename(logged.at / "gone.db")
    problem(await get(logged, "/api/v1/audit/logs"), 503, "unavailable")


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=501", "limit=-1", "limit=x", "limit=", "limit=1.0", "limit=1_0", "limit=%2B1", "limit=٣", "limit=1&limit=2", "offset=-1", "offset=100001", "sort=up", "limit=99999999999999999999", "&".join(["limit=1"] * 99)],
)  # fmt: skip
async def test_a_page_that_cannot_be_is_refused(house: House, query: str) -> None:
    problem(await get(house, f"/api/v1/audit/logs?{query}"), 422, "wrong_value")


async def test_a_reload_says_what_it_did(house: House) -> None:
    answer = await post(house, "/api/v1/config/reload")
    assert answer.json["status"] == "ok"
    assert answer.json["message"] == "config reloaded"
    assert (answer.json["changed"], answer.json["restart_required"]) == (["agents"], [])


async def test_a_bad_file_changes_nothing_and_every_fault_is_told_with_its_place(house: House) -> None:
    house.file.write_text(
        "backends: {files: {}}\nagents:\n  amy: {backends: {fils: {}}, colour: red}\n", encoding="utf-8"
    )
    before = house.force
    said = problem(await post(house, "/api/v1/config/reload"), 422, "config_faults")
    assert len(said["faults"]) == 2
    assert {(fault["line"], fault["path"]) for fault in said["faults"]} == {
        (3, "agents.amy.backends.fils"), (3, "agents.amy.colour"),
    }  # fmt: skip
    assert all(fault["column"] > 0 and fault["hint"] for fault in said["faults"])
    assert house.force is before


# --- who may ask it ---------------------------------------------------------------------------------------------------


async def everything(house: House, **more: Any) -> set[int]:
    """The statuses of all that needs a permit."""
    paths = [path.replace("{id}", "amy") for path in CLOSED_GET]
    answers = [await ask(house.web.app, "GET", path, **more) for path in paths]
    answers += [await ask(house.web.app, "POST", path, **more) for path in CLOSED_POST]
    return {answer.status for answer in answers}


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("authorization", "")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer ")],
        [("authorization", f"Bearer {API_TOKEN}x")],
        [("authorization", f"Bearer {API_TOKEN[:-1]}")],
        [("authorization", f"Basic {API_TOKEN}")],
        [("authorization", API_TOKEN)],
        [("authorization", f"Bearer {API_TOKEN}"), ("authorization", f"Bearer {API_TOKEN}")],
        [("authorization", f"Bearer {APPROVER_KEY}")],
        [("authorization", "Bearer café")],
        [("x-api-key", API_TOKEN)],
        [("cookie", f"token={API_TOKEN}")],
    ],
)
async def test_with_a_token_set_nothing_is_open_to_those_who_do_not_show_it(house: House, headers: Any) -> None:
    house.asks()
    before = house.state()
    assert await everything(house, headers=headers) == {401}
    assert house.state() == before
    answer = await ask(house.web.app, "GET", "/api/v1/agents", headers=headers)
    assert answer.headers["www-authenticate"].startswith('Bearer realm="aegis"')


async def test_the_read_token_reads_and_does_nothing_else(house: House) -> None:
    ticket = house.asks()
    before = house.state()
    assert (await get(house, "/api/v1/approvals/pending", READ_TOKEN)).status == 200
    for path in CLOSED_POST:
        problem(await post(house, path, READ_TOKEN), 403, "forbidden", "may only read")
    assert house.state() == before
    assert (await post(house, f"/api/v1/approvals/{ticket.id}/approve", API_TOKEN, peer="203.0.113.9")).status == 200


LOCAL = ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"]
REMOTE = ["203.0.113.9", "10.0.0.1", "0.0.0.0", "fe80::1%eth0", "::ffff:10.0.0.1", "testclient", ""]


@pytest.mark.parametrize("peer", LOCAL)
async def test_without_a_token_this_machine_reads_and_an_approver_decides(house: House, peer: str) -> None:
    house.access = Access()
    ticket = house.asks()
    assert (await get(house, "/api/v1/agents", None, peer=peer)).status == 200
    for path in CLOSED_POST:
        said = problem(await post(house, path, None, peer=peer), 401, "unauthorized", "open on this machine")
        assert "approver key" in said["hint"]
    assert ticket.state == "pending"
    answer = await post(house, f"/api/v1/approvals/{ticket.id}/approve", APPROVER_KEY, peer=peer)
    assert answer.status == 200
    assert ticket.by == f"the approver key ({peer})"


@pytest.mark.parametrize("peer", REMOTE)
@pytest.mark.parametrize("token", [None, APPROVER_KEY, "x" * 20])
async def test_without_a_token_other_machines_do_nothing(house: House, peer: str, token: str | None) -> None:
    house.access = Access()
    before = house.state()
    assert await everything(house, token=token, peer=peer) == {401}
    assert house.state() == before


@pytest.mark.parametrize(
    "name", ["Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Anything", "Via", "X-Real-IP", "CF-Ray"]
)
async def test_what_a_proxy_hands_on_is_not_from_this_machine(house: House, name: str) -> None:
    house.access = Access()
    assert await everything(house, headers={name.lower(): "127.0.0.1"}) == {401}
    assert await everything(house, headers={name.lower(): ""}, token=APPROVER_KEY) == {401}


async def test_a_read_token_alone_closes_reading_to_those_without_it(house: House) -> None:
    house.access = Access(read_token=Secret(READ_TOKEN))
    assert (await get(house, "/api/v1/agents", None)).status == 401
    assert (await get(house, "/api/v1/agents", READ_TOKEN)).status == 200
    assert (await post(house, "/api/v1/config/reload", READ_TOKEN)).status == 403
    assert (await post(house, "/api/v1/config/reload", APPROVER_KEY)).status == 200


async def test_an_api_opened_on_purpose_obeys_whoever_reaches_it_unless_a_token_is_set(logged: House) -> None:
    house = logged
    house.records(1)
    house.access = Access(insecure_open_api=True)
    assert await everything(house, peer="203.0.113.9", token=None) == {200, 404}
    assert await everything(house, peer="203.0.113.9", token="anything") == {200, 404}
    house.access = Access(insecure_open_api=True, api_token=Secret(API_TOKEN))
    assert await everything(house, peer="127.0.0.1", token=None) == {401}


async def test_a_reload_may_change_the_token_at_once(house: House) -> None:
    house.access = Access(api_token=Secret("another-token-012345"))
    assert (await get(house, "/api/v1/agents", API_TOKEN)).status == 401
    assert (await get(house, "/api/v1/agents", "another-token-012345")).status == 200


async def test_guessing_is_stopped_for_the_address_that_guesses_and_for_no_other(house: House) -> None:
    for number in range(LOGINS):
        problem(
            await get(house, "/api/v1/agents", f"guess-{number:016}", peer="203.0.113.9"),
            401,
            "unauthorized",
            "not valid",
        )
    answer = await get(house, "/api/v1/agents", API_TOKEN, peer="203.0.113.9")
    problem(answer, 401, "unauthorized", "too many wrong credentials")
    assert 0 < int(answer.headers["retry-after"]) <= 61
    assert (await get(house, "/api/v1/agents", API_TOKEN, peer="203.0.113.10")).status == 200
    assert (await get(house, "/health", None, peer="203.0.113.9")).status == 200


async def test_no_program_of_this_machine_can_keep_the_others_out_by_guessing(house: House) -> None:
    for _ in range(2 * LOGINS):
        problem(await get(house, "/api/v1/agents", "x" * 16), 401, "unauthorized", "not valid")
    assert (await get(house, "/api/v1/agents", API_TOKEN)).status == 200


async def test_one_customers_ipv6_addresses_count_as_one(house: House) -> None:
    for number in range(LOGINS):
        await get(house, "/api/v1/agents", "x" * 16, peer=f"2001:db8:1:2::{number:x}")
    assert "retry-after" in (await get(house, "/api/v1/agents", API_TOKEN, peer="2001:db8:1:2:ffff::1")).headers
    assert (await get(house, "/api/v1/agents", API_TOKEN, peer="2001:db8:1:3::1")).status == 200


async def test_those_who_show_no_credential_are_not_counted(house: House) -> None:
    for _ in range(2 * LOGINS):
        assert (await get(house, "/api/v1/agents", None)).status == 401
    assert (await get(house, "/api/v1/agents", API_TOKEN)).status == 200


# --- what a page in a browser may not do ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "", "http://127.0.0.1:18070.evil.example", "http://127.0.0.1"]
)
async def test_a_page_of_another_site_does_nothing_even_with_the_token(house: House, origin: str) -> None:
    house.access = Access(insecure_open_api=True)
    before = house.state()
    assert await everything(house, headers={"origin": origin}, token=API_TOKEN) == {403}
    link = house.link(house.asks(), "approve")
    before = house.state()
    assert (await ask(house.web.app, "POST", link, headers={"origin": origin})).status == 403
    assert await everything(house, headers=[("origin", OUR_ORIGIN), ("origin", origin)], token=API_TOKEN) == {403}
    assert house.state() == before
    assert (await get(house, "/api/v1/agents", headers={"origin": OUR_ORIGIN})).status == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "evil.example:18070", ""])
async def test_a_name_that_is_not_ours_is_not_answered(house: House, host: str) -> None:
    house.access = Access(insecure_open_api=True)
    for pairs in (
        [("host", host)],
        [("host", "127.0.0.1:18070"), ("host", host)],
        [("host", host), ("origin", f"http://{host}")],
    ):
        assert await everything(house, headers=pairs, token=API_TOKEN) == {403}
        assert (await ask(house.web.app, "GET", house.link(house.asks(), "approve"), headers=pairs)).status == 403


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"content-type": "text/plain"}, b'{"note":"x"}'),
        ({"content-type": "text/plain"}, b""),
        ({"content-type": "application/x-www-form-urlencoded"}, b""),
        ({"content-type": "multipart/form-data; boundary=x"}, b""),
        ({"content-type": "application/jsonx"}, b"{}"),
        ({"content-type": ""}, b"{}"),
        ([("content-type", "application/json"), ("content-type", "text/plain")], b"{}"),
        ({}, b'{"note":"x"}'),
    ],
)
async def test_what_a_form_could_send_decides_nothing(house: House, headers: Any, body: bytes) -> None:
    house.access = Access(insecure_open_api=True)
    ticket = house.asks()
    path = f"/api/v1/approvals/{ticket.id}/approve"
    problem(await post(house, path, None, headers=headers, body=body), 415, "wrong_type")
    assert ticket.state == "pending"


@pytest.mark.parametrize(
    "body",
    [b"[]", b"null", b"{", b'{"note":1}', b'{"note":null}', b'{"other":""}', b'{"note":"\\ud800"}', b"\xff", b"[" * 9000, json.dumps({"note": "x" * 501}).encode()],
)  # fmt: skip
async def test_a_body_that_cannot_be_decides_nothing(house: House, body: bytes) -> None:
    ticket = house.asks()
    answer = await post(house, f"/api/v1/approvals/{ticket.id}/approve", headers=JSON, body=body)
    problem(answer, 422, "wrong_value")
    assert ticket.state == "pending"


async def test_a_body_has_a_size_and_a_time(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"/api/v1/approvals/{house.asks().id}/approve"
    endless = [{"type": "http.request", "body": b" " * 8192, "more_body": True}] * 100
    problem(await post(house, path, headers=JSON, parts=endless), 413, "too_large")
    monkeypatch.setattr(web, "BODY_S", 0.05)
    slow = [{"type": "http.request", "body": b"{", "more_body": True}]
    problem(await post(house, path, headers=JSON, parts=slow), 408, "too_slow")
    gone = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]
    problem(await post(house, path, headers=JSON, parts=gone), 400, "bad_request")


# --- everywhere -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/api/v1",
        "/api/v1/agents/",
        "/API/v1/agents",
        "/api/v1/approvals/K7Q2",
        "/uix",
        "/api/v1/agents/a%2Fb/rate-limits/x",
    ],
)
async def test_other_paths_are_not_there(house: House, path: str) -> None:
    problem(await get(house, path, None), 404, "not_found")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"])
async def test_other_methods_are_not_taken(house: House, method: str) -> None:
    for path in [*(row.path for row in ROUTES), CALLBACK]:
        answer = await ask(house.web.app, method, path, token=API_TOKEN)
        problem(answer, 405, "method_not_allowed")
        assert answer.headers["allow"]
    for path in CLOSED_POST:
        assert (await get(house, path)).status == 405


async def test_a_fault_of_ours_is_a_500_that_tells_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails() -> Any:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(house.governor, "agents", fails)
    answer = await get(house, "/api/v1/agents")
    problem(answer, 500, "internal")
    assert b"secret" not in answer.body
    assert "secret detail" in caplog.text


async def test_no_answer_is_kept_by_anybody_on_the_way(house: House) -> None:
    for path in ("/health", "/api/v1/agents", "/api/v1/agents/eve/rate-limits", "/nothing"):
        headers = (await get(house, path)).headers
        assert (headers["cache-control"], headers["x-content-type-options"]) == ("no-store", "nosniff")


async def test_where_two_must_agree_the_api_says_so_and_is_none_of_them(house: House) -> None:
    ticket = house.asks()
    ticket.people = 2
    problem(await post(house, f"/api/v1/approvals/{ticket.id}/approve"), 403, "forbidden", "2 people must agree")
    assert (ticket.state, ticket.votes) == ("pending", ()), "whoever has the credential may be one of those who agree"
    done = (await post(house, f"/api/v1/approvals/{ticket.id}/reject")).json
    assert (done["state"], done["given"], done["needed"]) == ("rejected", 0, 2)


async def test_a_second_address_may_serve_the_page_alone(house: House) -> None:
    for row in ROUTES:
        answer = await ask(house.web.page_app, row.method, row.path, token=API_TOKEN)
        assert answer.status == 404
    link = house.link(house.asks(), "approve")
    assert (await ask(house.web.page_app, "GET", link, peer="203.0.113.9")).status == 200


# --- the description --------------------------------------------------------------------------------------------------


async def test_the_description_names_every_path_and_every_status(house: House) -> None:
    document = (await get(house, "/openapi.json", None)).json
    assert document["openapi"] == "3.1.1"
    assert set(document["paths"]) == {*(row.path for row in (*ROUTES, *OTHERS)), CALLBACK}
    for row in ROUTES:
        said = document["paths"][row.path][row.method.lower()]
        assert set(said["responses"]) == {"200", *map(str, row.statuses)}
        assert bool(said["security"]) is (row.permit is not None)
    json.dumps(document).index("#/components/schemas/Problem")
    for reference in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)):
        jsonschema.Draft202012Validator.check_schema(document["components"]["schemas"][reference])


async def test_the_description_says_what_needs_a_credential_now(house: House) -> None:
    async def security(path: str, method: str) -> Any:
        return (await get(house, "/openapi.json", None)).json["paths"][path][method]["security"]

    reload = "/api/v1/config/reload"
    assert await security("/api/v1/agents", "get") == [{"bearer": []}]
    house.access = Access()
    assert await security("/api/v1/agents", "get") == [{"bearer": []}, {}]
    assert await security(reload, "post") == [{"bearer": []}]
    house.access = Access(insecure_open_api=True)
    assert await security(reload, "post") == []


# --- behind a real server ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_it_is_served_over_a_real_socket(tmp_path: Path, method: str) -> None:
    with served(tmp_path) as (url, house, do):
        do(lambda: setattr(house, "access", Access()))
        ticket = do(house.asks)
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
        connection.request(method, "/api/v1/approvals/pending")
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 200
        assert (ticket.id in body.decode()) is (method == "GET")
        connection.request(
            "POST", f"/api/v1/approvals/{ticket.id}/reject", headers={"Authorization": f"Bearer {APPROVER_KEY}"}
        )
        assert json.loads(connection.getresponse().read())["action"] == "reject"
        connection.request(method, "/api/v1/approvals/pending", headers={"X-Forwarded-For": "127.0.0.1"})
        assert connection.getresponse().status == 401
        connection.close()
        assert ticket.state == "rejected"


async def test_failures_are_counted_by_whose_fault_they_are() -> None:
    throttle = web.Throttle("2 per minute")
    throttle.failed("a")
    assert throttle.blocked_s("a") == throttle.blocked_s("b") == 0
    throttle.failed("a")
    assert 1 <= throttle.blocked_s("a") <= 61
    assert throttle.blocked_s("b") == 0
