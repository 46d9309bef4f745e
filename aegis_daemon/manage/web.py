"""What people may ask over HTTP is the table `ROUTES`; who may ask it is decided in one place, `Access.visitor`.

Beside the API stands the approval page (`CALLBACK`), whose links carry their own proof and can do one thing each.
Agents' frames never come here. Paths, fields and statuses are seed A's; what is ours stands beside them.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl

import msgspec
from pydantic import ValidationError
from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from aegis_daemon import __version__
from aegis_daemon.config.load import ConfigFaults, Secret
from aegis_daemon.loop.clock import wall
from aegis_daemon.manage import api, openapi, pages, shapes
from aegis_daemon.manage.api import Permit
from aegis_daemon.manage.forms import Forms
from aegis_daemon.manage.openapi import OtherRow, PageRow, Row
from aegis_daemon.transports.guard import bearer

if TYPE_CHECKING:
    from limits import RateLimitItem
    from limits.strategies import FixedWindowRateLimiter

    from aegis_daemon.manage.ui.routes import Ui

_log = logging.getLogger("aegis.web")
BODY_MAX: Final = 16 * 1024
BODY_S: Final = 10.0
ANSWER_S: Final = 60.0
HEALTH_S: Final = 10.0
HEALTH_FRESH_S: Final = 2.0
"""How long an answer about the backends' health is given again, since anybody may ask for it."""
WRONG_LOGINS: Final = "20 per minute"
"""Wrong credentials that one address, but this machine's, may show before none of its credentials is looked at."""
WRONG_CODES: Final = "5 per day"
"""Wrong codes on one ticket's page before it takes none."""
_FORWARDED: Final = frozenset(
    {
        "cf-connecting-ip", "cf-ray", "client-ip", "fastly-client-ip", "fly-client-ip", "forwarded", "true-client-ip",
        "via", "x-client-ip", "x-cluster-client-ip", "x-envoy-external-address", "x-original-forwarded-for",
        "x-original-host", "x-proxyuser-ip", "x-real-ip",
    }
)  # fmt: skip
_STATUS: Final = {
    "bad_request": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "conflict": 404,  # seed A's answer to a second decision; the code tells the two apart
    "gone": 410,
    "method_not_allowed": 405,
    "too_slow": 408,
    "too_large": 413,
    "wrong_type": 415,
    "wrong_value": 422,
    "config_faults": 422,
    "unproven": 422,
    "internal": 500,
}
"""The HTTP status of a refusal, by its code; 503 for any other, which a repetition may get past."""
_PLAIN: Final = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


class Visitor(msgspec.Struct, frozen=True):
    """Who asks, as far as it can be told: the name for records is the credential's kind, where one was shown."""

    name: str
    permits: frozenset[Permit]
    shown: bool = True


class Access(msgspec.Struct, frozen=True):
    """What `server` says of who may use the API."""

    api_token: Secret | None = None
    read_token: Secret | None = None
    insecure_open_api: bool = False

    def visitor(self, credential: str | None, local: bool, knows_key: Callable[[str], bool]) -> Visitor | None:
        """Who this is, or None where it may nothing at all. Comparisons take the same time whatever is wrong.

        :param credential: what stands behind `Bearer`, None where there is no such header.
        :param local: whether the request came from this machine, as far as anybody can tell.
        """
        if self.open:
            return Visitor("anybody", api.ALL, shown=False)
        if credential is None:
            if local and self.api_token is None and self.read_token is None:
                return Visitor("somebody on this machine", frozenset({Permit.READ}), shown=False)
            return None
        given = Secret(credential)
        if self.api_token is not None and given == self.api_token:
            return Visitor("the API token", api.ALL)
        if self.read_token is not None and given == self.read_token:
            return Visitor("the read token", frozenset({Permit.READ}))
        if self.api_token is None and local and knows_key(credential):
            return Visitor("the approver key", api.ALL)
        return None

    @property
    def open(self) -> bool:
        """Whether everybody may everything. A token that is set closes it."""
        return self.insecure_open_api and self.api_token is None and self.read_token is None

    def security(self) -> Mapping[Permit, Sequence[dict[str, list[str]]]]:
        """The same, as the API's description says it."""
        if self.open:
            return {Permit.READ: (), Permit.WRITE: ()}
        bearer: dict[str, list[str]] = {"bearer": []}
        closed = self.api_token is not None or self.read_token is not None
        return {Permit.READ: (bearer,) if closed else (bearer, {}), Permit.WRITE: (bearer,)}


class Paging(msgspec.Struct, frozen=True):
    """What `approval` says of the approval page."""

    with_code: bool = False
    get_decides: bool = False


class Unauthorized(api.Refusal):
    """No credential, or a wrong one."""

    code = "unauthorized"

    def __init__(self, message: str, hint: str, *, wrong: bool = False, retry_after_s: int = 0) -> None:
        super().__init__(message, hint)
        # RFC 6750 §3: the error is named only where a credential was shown.
        challenge = 'Bearer realm="aegis"' + (', error="invalid_token"' if wrong else "")
        self.headers = {"www-authenticate": challenge}
        if retry_after_s:
            self.headers["retry-after"] = str(retry_after_s)


class Ask(msgspec.Struct, frozen=True):
    """One checked request."""

    visitor: Visitor
    path: Mapping[str, str]
    query: Any
    body: Any
    peer: str


# --- handlers ---------------------------------------------------------------------------------------------------------


async def health(web: Web, ask: Ask) -> shapes.Health:
    """Degraded also where nothing can be recorded, or no rule be proved, since then every call is refused."""
    backends = await web.health()
    status = web.governor.status()
    well = status.audit.healthy and status.proof.healthy
    good = well and not any(said.startswith("unhealthy") for said in backends.values())
    exports: dict[str, str] = {row.name: row.state for row in web.governor.exports()}
    return shapes.Health(status="ok" if good else "degraded", backends=dict(backends), exports=exports)


async def openapi_document(web: Web, ask: Ask) -> dict[str, Any]:
    """Itself included."""
    return openapi.document(ROUTES, PAGES, OTHERS, version=__version__, security=web.access().security())


async def queue_status(web: Web, ask: Ask) -> dict[str, int]:
    """Lanes."""
    return web.governor.queue_status()


async def agents(web: Web, ask: Ask) -> Sequence[shapes.Agent]:
    """As configured."""
    return web.governor.agents()


async def rate_limits(web: Web, ask: Ask) -> Sequence[shapes.LimitRow]:
    """Windows."""
    return web.governor.rate_limits(ask.path["id"])


async def pending_approvals(web: Web, ask: Ask) -> Sequence[shapes.Ticket]:
    """Tickets."""
    return web.governor.pending()


async def decide_approval(web: Web, ask: Ask) -> shapes.Acted:
    """One decision."""
    action = ask.path["action"]
    if action not in ("approve", "reject"):
        raise api.BadRequest("the action is neither `approve` nor `reject`", "end the path with one of the two")
    by = f"{ask.visitor.name} ({ask.peer})"
    # Nobody knows who of those that share a credential this is, so it is no second person's word.
    done = await web.governor.decide(
        ask.path["id"], action == "approve", by=by, via="api", note=ask.body.text, voter="api"
    )
    return shapes.Acted(
        action="approve" if action == "approve" else "reject", id=done.id, call_id=done.call_id, state=done.state,
        needed=done.needed, given=done.given,
    )  # fmt: skip


async def audit_logs(web: Web, ask: Ask) -> Sequence[shapes.AuditRow]:
    """The log."""
    return await web.governor.audit_logs(ask.query.limit, ask.query.offset)


async def reload_config(web: Web, ask: Ask) -> shapes.Reloaded:
    """The file, again."""
    return await web.governor.reload()


_ID: Final = {"type": "string", "minLength": 1, "maxLength": shapes.ID_MAX}
_AGENT: Final = {"type": "string", "minLength": 1, "maxLength": 128}
_ACTION: Final = {"enum": ["approve", "reject"]}
_V1: Final = "/api/v1"
_READ, _WRITE = Permit.READ, Permit.WRITE

ROUTES: Final = (
    Row("GET", "/health", None, health, shapes.Health, "Whether the daemon and its backends are well."),
    Row("GET", "/openapi.json", None, openapi_document, dict[str, Any], "This document."),
    Row("GET", f"{_V1}/queue/status", _READ, queue_status, dict[str, int], "How many calls wait, by backend."),
    Row("GET", f"{_V1}/agents", _READ, agents, list[shapes.Agent], "The agents and what they may use."),
    Row(
        "GET", f"{_V1}/agents/{{id}}/rate-limits", _READ, rate_limits, list[shapes.LimitRow],
        "One agent's limits and how much of them is used.", {"id": _AGENT}, refusals=(404,),
    ),
    Row(
        "GET", f"{_V1}/approvals/pending", _READ, pending_approvals, list[shapes.Ticket],
        "Calls that wait for a person, or for the agent to ask again after one said yes.",
    ),
    Row(
        "POST", f"{_V1}/approvals/{{id}}/{{action}}", _WRITE, decide_approval, shapes.Acted,
        "Approves or rejects one call, by its ticket or call id.", {"id": _ID, "action": _ACTION}, body=shapes.Note,
        refusals=(400, 404),
    ),
    Row(
        "GET", f"{_V1}/audit/logs", _READ, audit_logs, list[shapes.AuditRow],
        "Tool calls in the log, newest first.", query=shapes.Page,
    ),
    Row(
        "POST", f"{_V1}/config/reload", _WRITE, reload_config, shapes.Reloaded,
        "Reads the configuration again; a bad file changes nothing.", body=shapes.Nothing,
    ),
)  # fmt: skip

CALLBACK: Final = "/callback/approval"
POSTED: Final = "/callback/slack"
"""Where Slack posts clicks, signed, if it is told to; what is in them is Slack's to describe."""
METRICS: Final = "/metrics"
INBOX: Final = "/ui"
PROMETHEUS: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
POSTED_MAX: Final = 256 * 1024
"""Bytes of a click: the whole message comes back with it, encoded twice."""
_PAGE: Final = (400, 403, 404, 410, 500, 503)
PAGES: Final = (
    PageRow("GET", CALLBACK, "Shows the call that an approval link is about.", _PAGE),
    PageRow(
        "POST", CALLBACK, "Decides: the page's own form, or JSON with what stands in the link.",
        tuple(sorted((*_PAGE, 408, 413, 415, 422))), shapes.LinkRequest, shapes.Decided,
    ),
)  # fmt: skip
OTHERS: Final = (
    OtherRow(
        "GET", METRICS, _READ, "Numbers, as Prometheus or OpenMetrics asks for them.", "metrics",
        ("text/plain", "application/openmetrics-text"), (401, 403, 500, 503),
    ),
    OtherRow(
        "GET", INBOX, None, "The inbox: pages for people, who log in with `aegis ui`.", "inbox", ("text/html",),
        (403, 500, 503),
    ),
    OtherRow(
        "POST", POSTED, None, "Takes a click in Slack, which has signed it.", "slack", (), (403, 408, 413, 500, 503),
        "application/x-www-form-urlencoded",
    ),
)  # fmt: skip


# --- serving ----------------------------------------------------------------------------------------------------------


class Throttle:
    """Counts what went wrong, by whose fault; no one's count can keep the others out.

    `allowed` is in the grammar of `limits`, which is imported (2 MB) when something goes wrong for the first time.
    """

    def __init__(self, allowed: str) -> None:
        self._allowed = allowed
        self._counted: tuple[FixedWindowRateLimiter, RateLimitItem] | None = None

    def failed(self, who: str) -> None:
        """Once more."""
        if self._counted is None:
            from limits import parse
            from limits.storage import MemoryStorage
            from limits.strategies import FixedWindowRateLimiter

            # Fixed windows: their store forgets whom it has not heard of for one, so strangers cannot fill it.
            self._counted = FixedWindowRateLimiter(MemoryStorage()), parse(self._allowed)
        limiter, allowed = self._counted
        limiter.hit(allowed, who)

    def blocked_s(self, who: str) -> int:
        """Seconds until it may try again, 0 for now."""
        if self._counted is None:
            return 0
        limiter, allowed = self._counted
        if limiter.test(allowed, who):
            return 0
        return max(1, int(limiter.get_window_stats(allowed, who).reset_time - wall()) + 1)


class Web:
    """Two ASGI applications over one governor: `app` serves everything, `page_app` what people decide by from afar.

    :param access: what the configuration in force says; asked for each request, as `paging` is.
    :param probe: each backend's health, by name: `healthy`, `no_health_url` or `unhealthy: …`.
    :param refuses: why a request with these `Host` and `Origin` headers is not answered, None where it is; the front
        asks the same before, so that neither depends on the other.
    """

    def __init__(
        self,
        governor: api.Governor,
        *,
        access: Callable[[], Access],
        paging: Callable[[], Paging],
        probe: Callable[[], Awaitable[Mapping[str, str]]],
        refuses: Callable[[bytes | None, bytes | None], str | None],
    ) -> None:
        self.governor = governor
        self.access = access
        self._paging = paging
        self._probe = probe
        self._refuses = refuses
        self._wrong_logins = Throttle(WRONG_LOGINS)
        self._wrong_codes = Throttle(WRONG_CODES)
        self._forms = Forms()
        self._probing: asyncio.Task[Mapping[str, str]] | None = None
        self._probed_at = 0.0
        page = Route(CALLBACK, self._callback, methods=["GET", "POST"])
        self._ui: Ui | None = None
        self._wrong_tokens = Throttle(WRONG_LOGINS)
        inbox = [Route(path, self._inbox, methods=["GET", "POST"]) for path in (INBOX, f"{INBOX}/{{rest:path}}")]
        rows = [Route(row.path, self._endpoint(row), methods=[row.method]) for row in ROUTES]
        clicks = Route(POSTED, self._posted, methods=["POST"])
        numbers = Route(METRICS, self._metrics, methods=["GET"])
        self.app = _app([*rows, numbers, page, clicks, *inbox])
        self.page_app = _app([page, clicks])

    async def health(self) -> Mapping[str, str]:
        """Each backend's health, asked at most once in a while, however many want to know."""
        now = asyncio.get_running_loop().time()
        if self._probing is None or (self._probing.done() and now - self._probed_at > HEALTH_FRESH_S):
            self._probing, self._probed_at = asyncio.ensure_future(self._ask_health()), now
        return await asyncio.shield(self._probing)

    async def _ask_health(self) -> Mapping[str, str]:
        try:
            async with asyncio.timeout(HEALTH_S):
                return await self._probe()
        except TimeoutError:
            _log.warning("the backends' health is not known: no answer within %d s", HEALTH_S)
        except Exception:
            _log.exception("the backends' health is not known")
        return {"*": "unhealthy: unknown, see the daemon's log"}

    # --- the API --------------------------------------------------------------------------------------------------

    def _endpoint(self, row: Row) -> Callable[[Request], Awaitable[Response]]:
        async def serve(request: Request) -> Response:
            try:
                async with asyncio.timeout(ANSWER_S):
                    answer = await self._answer(row, request)
            except Exception as error:
                return _problem(_refusal(error))
            return Response(to_json(answer), 200, _PLAIN, "application/json")

        return serve

    async def _answer(self, row: Row, request: Request) -> Any:
        self._check_site(request)
        if row.permit is None:
            visitor = _NOBODY
        else:
            visitor = self._visitor(request)
            if row.permit not in visitor.permits:
                raise _lacking(visitor)
        for name, schema in row.path_params.items():
            if len(request.path_params[name]) > schema.get("maxLength", shapes.ID_MAX):
                raise api.NotFound(f"no {name} is that long")
        query = _query(row.query, request) if row.query is not None else None
        body = await _json(row.body, request) if row.body is not None else None
        return await row.handler(self, Ask(visitor, request.path_params, query, body, _address(request)))

    def _check_site(self, request: Request) -> None:
        """Raises `Forbidden` for what a page of another site sent, or one that calls us by a name that is not ours."""
        hosts: list[bytes | None] = [value.encode("latin-1") for value in request.headers.getlist("host")]
        origins: list[bytes | None] = [value.encode("latin-1") for value in request.headers.getlist("origin")]
        for why in (self._refuses(host, origin) for host in hosts or [None] for origin in origins or [None]):
            if why is not None:
                raise api.Forbidden(why, "use the API from a program, or its pages from their own address")

    def _visitor(self, request: Request) -> Visitor:
        """Who asks. Raises `Unauthorized`."""
        headers = request.headers.getlist("authorization")
        access, peer = self.access(), network_of(_address(request))
        # All of this machine's programs, agents too, have one address: none of them can keep the others out.
        local = _local(request)
        blocked = 0 if access.open or local or not headers else self._wrong_logins.blocked_s(peer)
        if blocked:
            text = "too many wrong credentials came from this address, so none of its is looked at"
            raise Unauthorized(text, f"wait {blocked} s and send the right one", wrong=True, retry_after_s=blocked)
        # Two credentials are as good as none: nobody could say which of them is meant.
        credential = None
        if headers:
            credential = (bearer(headers[0].encode("latin-1")) if len(headers) == 1 else None) or ""
        visitor = access.visitor(credential, local, self.governor.knows_key)
        if visitor is not None:
            return visitor
        hint = "send `Authorization: Bearer` with the value of `server.api_token`, or of `server.read_token` to read"
        if not headers:
            raise Unauthorized("this needs a credential", hint)
        if not local:
            self._wrong_logins.failed(peer)
        if self._wrong_logins.blocked_s(peer):
            _log.warning("too many wrong credentials from %s; none is looked at for a while", peer)
        raise Unauthorized("the credential is not valid here", hint, wrong=True)

    async def _metrics(self, request: Request) -> Response:
        """Numbers, for whoever may read; the form is the one that is asked for first."""
        try:
            self._check_site(request)
            visitor = self._visitor(request)
            if Permit.READ not in visitor.permits:
                raise _lacking(visitor)
            wanted = request.headers.get("accept", "")
            openmetrics = "application/openmetrics-text" in wanted
            text = self.governor.metrics(openmetrics=openmetrics)
        except Exception as error:
            return _problem(_refusal(error))
        return Response(text, 200, {**_PLAIN, "content-type": OPENMETRICS if openmetrics else PROMETHEUS})

    # --- the inbox ------------------------------------------------------------------------------------------------

    async def _inbox(self, request: Request) -> Response:
        """Everything under `/ui`. What makes its pages is loaded when somebody looks at one."""
        try:
            if self._ui is None:
                self._ui = await asyncio.to_thread(self._make_ui)
            async with asyncio.timeout(ANSWER_S):
                return await self._ui.handle(request)
        except Exception as error:
            refusal = _refusal(error)
            return _problem(refusal) if self._ui is None else self._ui.fault(refusal)

    def _make_ui(self) -> Ui:
        from aegis_daemon.manage.ui.routes import Door, Ui

        door = Door(
            self._check_site, _address, _local, network_of, _body, shown=self._approver, throttle=self._wrong_tokens
        )
        return Ui(self.governor, door)

    def _approver(self, request: Request, credential: str) -> tuple[str, Callable[[], bool]] | None:
        """Whose credential it is, of those that may decide, and whether it still is one.

        Whoever may decide without any still shows one here.
        """
        token = self.access().api_token
        if token is not None and Secret(credential) == token:
            return "the API token", lambda: self.access().api_token == token
        if _local(request) and self.governor.knows_key(credential):
            return "the approver key", lambda: True  # it is read once, and sessions end with the daemon
        return None

    # --- the approval page ----------------------------------------------------------------------------------------

    async def _callback(self, request: Request) -> Response:
        """GET and HEAD show, POST decides: the page's form, or a program's JSON."""
        if request.method == "POST" and _is_json(request):
            try:
                async with asyncio.timeout(ANSWER_S):
                    decided = await self._program(request)
            except Exception as error:
                return _problem(_refusal(error))
            return Response(to_json(decided), 200, _PLAIN, "application/json")
        nonce = secrets.token_urlsafe(16)
        try:
            async with asyncio.timeout(ANSWER_S):
                status, text = await self._page(request, nonce)
        except Exception as error:
            refusal = _refusal(error)
            status = _STATUS.get(refusal.code, 503)
            text = pages.problem("Nothing was decided", refusal.message, refusal.hint, nonce)
        return _html(status, text, nonce)

    async def _posted(self, request: Request) -> Response:
        """A click in Slack. The answer is empty and at once; the person hears in Slack what became of it."""
        try:
            self._check_site(request)
            body = await _body(request, POSTED_MAX)
            if not self.governor.posted("slack", dict(request.headers), body):
                raise api.Forbidden(
                    "Slack did not sign this, or not now, or takes no answers here",
                    "check `approval.slack.signing_secret` and this machine's clock",
                )
        except Exception as error:
            return _problem(_refusal(error))
        return Response(b"", 200, _PLAIN)

    async def _page(self, request: Request, nonce: str) -> tuple[int, str]:
        self._check_site(request)
        fields = await _fields(request)
        action = fields["action"]
        linked = self.governor.follow(fields["id"], action, fields["token"])
        ticket, paging = linked.ticket, self._paging()
        if linked.over is not None:
            return 410, pages.over(linked.asked, linked.over, nonce)
        about = (ticket.call_id, action, fields["token"])
        decides = request.method == "POST" or (
            request.method == "GET" and paging.get_decides and not paging.with_code  # never HEAD
        )
        wrong = ""
        if request.method == "POST" and ("form" in fields or "decision" in fields):
            # Without either it is the link itself that was posted, which is as good as what stands in it, once.
            until = datetime.fromisoformat(ticket.expires_at).timestamp()
            if not self._forms.take(fields.get("form", ""), *about, until=until):
                wrong = "This form was sent before, or is not of this page. Nothing was decided; press again."
        decision = fields.get("decision", action) if request.method == "POST" else action
        if decision != action and decision != "reject":
            raise api.Forbidden("this link is for rejecting", "open the link for approving, or see `aegis pending`")
        if decides and not wrong and paging.with_code:
            wrong = self._wrong_code(ticket, linked.code, fields.get("code", ""))
        if wrong or not decides:
            form = self._forms.mint(*about)
            text = pages.ask(linked.asked, action, wall(), nonce, form=form, with_code=paging.with_code, wrong=wrong)
            return (403 if wrong else 200), text
        note = fields.get("note", "").strip() if request.method == "POST" else ""
        try:
            decided = await self._decide(request, ticket, decision, note)
        except api.Conflict:
            now = self.governor.follow(fields["id"], action, fields["token"])
            if now.over is None:
                raise  # the same person's second yes
            return 410, pages.over(now.asked, now.over, nonce)
        return 200, pages.done(linked.asked, decided, nonce)

    async def _program(self, request: Request) -> shapes.Decided:
        """What stands in a link decides, without a page; its JSON can be sent by no form of anybody's."""
        self._check_site(request)
        ask = await _json(shapes.LinkRequest, request)
        assert isinstance(ask, shapes.LinkRequest)
        linked = self.governor.follow(ask.id, ask.action, ask.token)
        if linked.over is not None:
            raise _gone(linked)
        if self._paging().with_code and (wrong := self._wrong_code(linked.ticket, linked.code, ask.code)):
            raise api.Forbidden(wrong.removesuffix("."), "send the `code` that the message shows")
        try:
            return await self._decide(request, linked.ticket, ask.action, ask.note.strip())
        except api.Conflict:
            linked = self.governor.follow(ask.id, ask.action, ask.token)
            if linked.over is None:
                raise
            raise _gone(linked) from None

    async def _decide(self, request: Request, ticket: shapes.Ticket, decision: str, note: str) -> shapes.Decided:
        """By the call's own id, which is never given out again. Who comes by a link has no name."""
        by = f"an approval link ({_address(request)})"
        return await self.governor.decide(
            ticket.call_id, decision == "approve", by=by, via="link", note=note, voter="link"
        )

    def _wrong_code(self, ticket: shapes.Ticket, right: str, given: str) -> str:
        """What is wrong with the code; empty for nothing."""
        if self._wrong_codes.blocked_s(ticket.call_id):
            raise api.Forbidden("too many wrong codes were given for this call", "decide with `aegis approve`")
        if hmac.compare_digest(given.strip().encode(), right.encode()):
            return ""
        self._wrong_codes.failed(ticket.call_id)
        return "This is not the code that the message shows. Nothing was decided."


def _gone(linked: shapes.Linked) -> api.Refusal:
    assert linked.over is not None
    title, lines = pages.ended(linked.over)
    text = " ".join((f"{title}.", *lines)).removesuffix(".")
    return api.Refusal(text[:1].lower() + text[1:], code="gone")


_NOBODY: Final = Visitor("anybody", frozenset(), shown=False)


def _lacking(visitor: Visitor) -> api.Refusal:
    """The answer to one who may read, and wanted more."""
    if visitor.shown:
        return api.Forbidden(f"{visitor.name} may only read", "use the value of `server.api_token`")
    return Unauthorized(
        "reading is open on this machine, deciding and reloading are not",
        "send `Authorization: Bearer` with the content of the approver key file, or set `server.api_token`",
    )


def _app(routes: Sequence[Route]) -> Starlette:
    app = Starlette(routes=routes, exception_handlers={HTTPException: _unrouted})
    app.router.redirect_slashes = False
    return app


async def _unrouted(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        refusal = api.Refusal("this path does not take this method", "see /openapi.json", code="method_not_allowed")
    else:
        refusal = api.NotFound("nothing is at this path", "see /openapi.json")
    return _problem(refusal, error.headers or {})


def _refusal(error: Exception) -> api.Refusal:
    """What the request is answered with. Whatever is not a refusal is a fault, and its text stays in the log."""
    if isinstance(error, api.Refusal):
        return error
    if isinstance(error, ConfigFaults):
        faults = [msgspec.to_builtins(fault) for fault in error.faults]
        hint = "the old configuration stays in force; mend the file and reload again"
        return api.Refusal(str(error), hint, code="config_faults", faults=faults)
    if isinstance(error, TimeoutError):
        return api.Unavailable("the daemon took too long", "repeat it")
    if isinstance(error, ClientDisconnect):
        return api.BadRequest("the request ended before its end")
    _log.error("a request to the API failed", exc_info=error)
    return api.Refusal("the daemon could not do it", "see its log for the cause", code="internal")


def _problem(refusal: api.Refusal, headers: Mapping[str, str] = {}) -> Response:
    problem = shapes.Problem(
        code=refusal.code,
        message=refusal.message,
        hint=refusal.hint,
        faults=tuple(shapes.ConfigFault(**fault) for fault in refusal.faults),
    )
    extra = refusal.headers if isinstance(refusal, Unauthorized) else {}
    status = _STATUS.get(refusal.code, 503)
    return Response(to_json(problem), status, {**_PLAIN, **headers, **extra}, "application/json")


def _html(status: int, text: str, nonce: str) -> Response:
    headers = {
        **_PLAIN,
        "content-security-policy": pages.policy(nonce),
        # As silent as `no-referrer` towards others; but under that, browsers send the page's own form with
        # `Origin: null` (Fetch §3.2), which nobody could tell from a foreign page's.
        "referrer-policy": "same-origin",
        "x-frame-options": "DENY",
        "x-robots-tag": "noindex, nofollow",
    }
    return Response(text, status, headers, "text/html")


# --- reading a request ------------------------------------------------------------------------------------------------


def _address(request: Request) -> str:
    return request.client.host if request.client is not None else "unknown"


def network_of(address: str) -> str:
    """Whose address it is: of IPv6 the /64, since one customer has that many."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is None:
        return str(ipaddress.ip_network((int(found), 64), strict=False))
    return address


def _local(request: Request) -> bool:
    """Whether a program on this machine asks for itself. A proxy on this machine that hides who asks cannot be told."""
    if any(name in _FORWARDED or name.startswith("x-forwarded-") for name in request.headers):
        return False
    try:
        found = ipaddress.ip_address(_address(request))
    except ValueError:
        return False
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_loopback


def _query(model: type[shapes.Request], request: Request) -> shapes.Request:
    """The query string as the model has it: whole numbers, each once, no others."""
    values: dict[str, int] = {}
    try:
        pairs = parse_qsl(request.url.query, keep_blank_values=True, max_num_fields=32)
    except ValueError:
        raise _wrong("there are too many parameters", "see /openapi.json") from None
    for name, text in pairs:
        if name not in model.model_fields:
            known = ", ".join(f"`{field}`" for field in model.model_fields)
            raise _wrong(f"`{name[:40]}` is no parameter of this path", f"known: {known}")
        if name in values:
            raise _wrong(f"`{name}` is given twice", "give it once")
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise _wrong(f"`{name}` is not a whole number", "see /openapi.json")
        values[name] = int(text)
    return _checked(model.model_validate, values)


async def _json(model: type[shapes.Request], request: Request) -> shapes.Request:
    """The body as the model has it; none is the model without anything. Of JSON alone: no form can send that."""
    types = request.headers.getlist("content-type")
    if any(kind.partition(";")[0].strip().lower() != "application/json" for kind in types) or len(types) > 1:
        raise _not_json()
    data = await _body(request)
    if data and not types:
        raise _not_json()
    return _checked(model.model_validate_json, data or b"{}")


def _is_json(request: Request) -> bool:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"


def _not_json() -> api.Refusal:
    return api.Refusal("the body is not JSON", "send `Content-Type: application/json`, or no body", code="wrong_type")


def _checked(validate: Callable[[Any], shapes.Request], values: object) -> shapes.Request:
    try:
        return validate(values)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False, include_context=False)
        wrong = "; ".join(f"`{'.'.join(map(str, fault['loc'])) or 'body'}`: {fault['msg']}" for fault in faults)
        raise _wrong(f"the request has values that it cannot have: {wrong}", "see /openapi.json") from None


def _wrong(message: str, hint: str) -> api.Refusal:
    return api.Refusal(message, hint, code="wrong_value")


async def _body(request: Request, most: int = BODY_MAX) -> bytes:
    """All of it. Raises `Refusal` for one that is too long or does not come."""
    data = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                data += part
                if len(data) > most:
                    raise api.Refusal(f"the body is longer than {most} bytes", code="too_large")
    except TimeoutError:
        raise api.Refusal("the body did not come in time", "send it at once", code="too_slow") from None
    return bytes(data)


async def _fields(request: Request) -> dict[str, str]:
    """The parameters of an approval link, from the address and, of a POST, from the form; each of them once.

    Others, which chats add to links, do not matter.
    """
    text = [request.url.query]
    if request.method == "POST":
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        data = await _body(request)
        if kind not in ("", "application/x-www-form-urlencoded") or (data and not kind):
            hint = "use the page's own buttons, or send JSON with the link's `id`, `action` and `token`"
            raise api.Refusal("the body is not a form", hint, code="wrong_type")
        text.append(data.decode("utf-8", "replace"))
    known: dict[str, str] = {}
    try:
        pairs = [pair for part in text for pair in parse_qsl(part, keep_blank_values=True, max_num_fields=32)]
    except ValueError:
        raise _bad_link("there are too many parameters") from None
    for name, value in pairs:
        if name in known and name in ("id", "action", "token", "code", "form", "decision", "note"):
            raise _bad_link(f"`{name}` is given twice")
        known[name] = value
    for name, most in (("id", shapes.ID_MAX), ("action", 16), ("token", shapes.TOKEN_MAX)):
        if not 0 < len(known.get(name, "")) <= most:
            raise _bad_link(f"`{name}` is missing or cannot be one")
    for name in ("action", "decision"):
        if known.get(name, "reject") not in ("approve", "reject"):
            raise _bad_link(f"`{name}` is neither `approve` nor `reject`")
    if len(known.get("note", "")) > shapes.NOTE_MAX:
        raise api.BadRequest(f"the reason has more than {shapes.NOTE_MAX} characters", "shorten it")
    return known


def _bad_link(why: str) -> api.BadRequest:
    return api.BadRequest(f"this is not a whole approval link: {why}", "open the link again as the message shows it")
