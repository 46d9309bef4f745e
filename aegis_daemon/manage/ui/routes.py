"""Every address under `/ui` is one row of `ROUTES`; but for the door and what it is painted with, none answers a
request that shows no open session, whatever else the configuration leaves open.

A form is taken from the session's own pages alone: it repeats the session's `csrf`, and comes from our own origin. A
browser sends the cookie to every port of this host, so where there is JavaScript no page holds the `csrf`: it is given
once, to the script that logs in, which keeps it where no other port's pages can look. A cookie alone decides nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import parse_qsl, quote, urlencode

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from aegis_daemon.core.text import visible
from aegis_daemon.loop.clock import wall
from aegis_daemon.manage import api, shapes
from aegis_daemon.manage.ui import charts, present
from aegis_daemon.manage.ui.sessions import SESSION_S, Person, Session, always, same_form
from aegis_daemon.manage.ui.stream import events

_log = logging.getLogger("aegis.ui")
COOKIE: Final = "aegis_ui"
CARDS: Final = 50
"""Tickets that the inbox shows at once."""
FEED: Final = 100
"""Calls that the live page begins with."""
PAGE: Final = 50
PINS: Final = 300
"""Things that servers have, of each kind of state, that the tools page shows."""
LIMITS: Final = 300
AGENTS: Final = 100
FOLDED: Final = 10
"""More agents than these are shown folded."""
"""Windows, and budgets, that the limits page shows."""
HISTORY: Final = 5
"""Last calls of an agent that a card shows."""
STREAMS: Final = 64
"""Streams of all sessions together, and a quarter of that of one."""
MINUTES_15: Final = 900.0
FIGURES_WAIT_S: Final = 1.5
"""How long the inbox waits for its pictures; it is there for the cards."""
AGENTS_WITH_HISTORY: Final = 8
FIELDS: Final = 8
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "content-security-policy": POLICY,
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "x-robots-tag": "noindex, nofollow",
    # As silent as `no-referrer` towards others, but browsers name our own origin to us.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
_STATUS: Final = {
    "bad_request": 400, "unauthorized": 401, "forbidden": 403, "not_found": 404, "conflict": 409, "too_slow": 408,
    "too_large": 413, "wrong_type": 415, "wrong_value": 422, "internal": 500,
}  # fmt: skip
_HERE: Final = Path(__file__).parent
_STATIC: Final = {"app.css": "text/css", "app.js": "text/javascript", "shield.svg": "image/svg+xml"}
MENU: Final = (
    ("inbox", "Inbox", "inbox", "/ui"),
    ("live", "Live", "live", "/ui/live"),
    ("limits", "Limits", "limits", "/ui/limits"),
    ("queue", "Queue", "queue", "/ui/queue"),
    ("tools", "Tools", "tools", "/ui/tools"),
    ("audit", "Audit", "audit", "/ui/audit"),
    ("agents", "Agents", "agents", "/ui/agents"),
)
"""The pages: name, label, picture, address."""
STATUSES: Final = (
    ("success", "ran"), ("error", "failed"), ("denied", "refused"), ("unknown", "outcome unknown"),
    ("pending", "under way"), ("would", "would have been refused"),
)  # fmt: skip
VERDICTS: Final = (
    *STATUSES, ("allowed", "any that was allowed"), ("asked", "any that a person was asked"),
    ("would", "would be refused"),
)  # fmt: skip
WITHIN: Final = (("arguments", "arguments"), ("results", "results"), ("both", "both"))
_ENDED: Final = {**dict(STATUSES), "held": "waits", "running": "runs"}


class Throttle(Protocol):
    """Counts failures by whose they are."""

    def failed(self, who: str) -> None:
        """Once more."""
        ...

    def blocked_s(self, who: str) -> int:
        """Seconds until it may try again."""
        ...


class Door(msgspec.Struct, frozen=True):
    """What the web side lends: who asks, from where, and whether a credential is an approver's.

    :param site: raises `api.Forbidden` for what a foreign page sent. :param body: reads one whole, bounded.
    :param shown: the name of whose credential this is, and whether it still is one; None where it is none that may
        decide.
    """

    site: Callable[[Request], None]
    address: Callable[[Request], str]
    local: Callable[[Request], bool]
    network: Callable[[str], str]
    body: Callable[[Request], Awaitable[bytes]]
    shown: Callable[[Request, str], tuple[str, Callable[[], bool]] | None]
    throttle: Throttle


class Ask(msgspec.Struct):
    """One request: what stands in its path, its query and its form, and whose session it is."""

    request: Request
    session: Session
    path: Mapping[str, str]
    query: Mapping[str, str]
    form: Mapping[str, str]


Handler = Callable[["Ui", Ask], Awaitable[Response]]


class Ui:
    """The inbox over one governor."""

    def __init__(self, governor: api.Governor, door: Door) -> None:
        self.governor = governor
        self.door = door
        self.streams = 0
        self._pages = pages()

    # --- one request --------------------------------------------------------------------------------------------

    async def handle(self, request: Request) -> Response:
        """Answers anything under `/ui`. Raises what a page cannot be made for."""
        path = request.url.path.removeprefix("/ui").removeprefix("/")
        self.door.site(request)
        if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none") and not _plain_link(
            request
        ):
            raise api.Forbidden("another page may not send anything here", "open the inbox from its own address")
        method = "GET" if request.method == "HEAD" else request.method
        if method == "GET" and path.startswith("static/"):
            return _static(path.removeprefix("static/"), request)
        if path == "login":
            return await self._login(request) if method == "POST" else self._ask_in(request)
        session = self.session(request)
        if session is None:
            return _turned_away(request, method)
        found = _route(method, path)
        if found is None:
            return await self._problem(session, api.NotFound("nothing is at this address", "see the menu"))
        handler, names = found
        form: Mapping[str, str] = {}
        if method == "POST":
            form = _fields((await self._form(request)).decode("utf-8", "replace"))
            if not same_form(session, form.get("csrf", "")):
                wrong = api.Forbidden(
                    "this form is not from a page of your session",
                    "reload the page and repeat it; if that does not help, run `aegis ui` again",
                )
                return await self._problem(session, wrong, back=_back(request), as_json=_wants_json(request))
        ask = Ask(request, session, names, _fields(request.url.query), form)
        try:
            return await handler(self, ask)
        except api.Refusal as refusal:
            return await self._problem(session, refusal, back=_back(request), as_json=_wants_json(request))

    def session(self, request: Request) -> Session | None:
        """Whose request it is."""
        cookie = request.cookies.get(COOKIE)
        hosts = request.headers.getlist("host")
        if cookie is None or len(cookie) > 128 or len(hosts) != 1:
            return None
        return self.governor.logins.find(cookie, hosts[0])

    async def _form(self, request: Request) -> bytes:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/x-www-form-urlencoded":
            raise api.Refusal("this is not a form", "use the page's own buttons", code="wrong_type")
        return await self.door.body(request)

    # --- the door -----------------------------------------------------------------------------------------------

    def _ask_in(self, request: Request, wrong: str = "", status: int = 200, more: Mapping[str, str] = {}) -> Response:
        text = self._pages.get_template("login.html").render(
            heading="Log in to the inbox",
            wrong=wrong,
            ended=request.url.query == "ended" and not wrong,
            version=fingerprint(),
        )
        return Response(text, status, {**HEADERS, **more}, "text/html")

    async def _login(self, request: Request) -> Response:
        local = self.door.local(request)
        peer = self.door.network(self.door.address(request))
        # All of this machine's programs have one address: none of them may keep the others out. What has to be guessed
        # has 256 bits, or is the operator's own choice of a token.
        blocked = 0 if local else self.door.throttle.blocked_s(peer)
        if blocked:
            text = f"Too many wrong tokens came from this address. Wait {blocked} s."
            return self._ask_in(request, text, 429, {"retry-after": str(blocked)})
        token = _fields((await self._form(request)).decode("utf-8", "replace")).get("token", "").strip()
        logins = self.governor.logins
        person = logins.redeem(token) if token else None
        holds: Callable[[], bool] = always
        if person is None and token and (shown := self.door.shown(request, token)) is not None:
            person, holds = Person(shown[0], "api"), shown[1]
        if person is None:
            if not local:
                self.door.throttle.failed(peer)
            _log.warning("a login to the inbox failed, from %s", self.door.address(request))
            return self._ask_in(request, "This token is wrong, was used, or is too old. Ask for another one.", 403)
        hosts = request.headers.getlist("host")
        if len(hosts) != 1:
            raise api.BadRequest("the request names no host, or several")
        self.governor.logged_in(person.by, self.door.address(request))
        cookie, session = logins.begin(person, hosts[0], holds)
        session.scripted = _wants_json(request)
        _log.info("%s logged in to the inbox, from %s", person.by, self.door.address(request))
        secure = "; Secure" if request.headers.get("origin", "").lower().startswith("https://") else ""
        made = f"{COOKIE}={cookie}; HttpOnly; SameSite=Strict; Path=/ui; Max-Age={int(SESSION_S)}{secure}"
        if session.scripted:
            body = msgspec.json.encode({"csrf": session.csrf})
            return Response(body, 200, {**HEADERS, "set-cookie": made}, "application/json")
        return _to("/ui", {"set-cookie": made})

    # --- pages --------------------------------------------------------------------------------------------------

    async def page(
        self, session: Session, template: str, page: str, title: str, status: int = 200, **more: Any
    ) -> Response:
        """One page, rendered beside the loop."""
        facts = {
            "page": page, "title": title, "session": session, "menu": MENU, "version": fingerprint(),
            "status": self.governor.status(), "pending": self.governor.waiting(), "refresh": 0,
            "changed": self.governor.pins_waiting(), **more,
        }  # fmt: skip
        text = await asyncio.to_thread(self._pages.get_template(template).render, facts)
        return Response(text, status, HEADERS, "text/html")

    def fault(self, refusal: api.Refusal) -> Response:
        """What is shown to whom nothing else may be."""
        text = self._pages.get_template("fault.html").render(
            message=_sentence(refusal.message), hint=_sentence(refusal.hint), version=fingerprint()
        )
        return Response(text, _STATUS.get(refusal.code, 503), HEADERS, "text/html")

    async def _problem(
        self, session: Session, refusal: api.Refusal, back: str = "/ui", *, as_json: bool = False
    ) -> Response:
        status = _STATUS.get(refusal.code, 503)
        if as_json:
            body = {"error": visible(refusal.message), "hint": visible(refusal.hint), "code": refusal.code}
            return Response(msgspec.json.encode(body), status, HEADERS, "application/json")
        title = "It was not done" if status != 404 else "Not here"
        return await self.page(
            session, "problem.html", "", title, status, message=_sentence(refusal.message),
            hint=_sentence(refusal.hint), back=back,
        )  # fmt: skip


# --- the pages --------------------------------------------------------------------------------------------------------


async def inbox(ui: Ui, ask: Ask) -> Response:
    """What waits, and the last day in pictures."""
    found = ui.governor.inbox(CARDS)
    figures, why = await _figures(ui)
    history = await _history(ui, [one.ticket.agent_id for one in found.asked])
    now = wall()
    # Beside the loop: agents choose how long their arguments are, and nobody else's call waits while they are laid out.
    waiting = await asyncio.to_thread(
        lambda: [_card(one, now, history.get(one.ticket.agent_id, ())) for one in found.asked]
    )
    return await ui.page(
        ask.session, "inbox.html", "inbox", "Inbox", refresh=60, waiting=waiting,
        more=max(0, found.pending - len(found.asked)),
        agreed=[_card(shapes.Asked(ticket=one, arguments=()), now) for one in found.agreed],
        figures=figures, figures_why=why, **(_pictures(figures) if figures is not None else {}),
    )  # fmt: skip


async def ticket(ui: Ui, ask: Ask) -> Response:
    """One call, whole."""
    asked = ui.governor.ask_of(ask.path["id"])
    history = await _history(ui, [asked.ticket.agent_id])
    card = await asyncio.to_thread(_card, asked, wall(), history.get(asked.ticket.agent_id, ()), whole=True)
    return await ui.page(ask.session, "ticket.html", "inbox", f"Call {asked.ticket.id}", card=card)


async def live(ui: Ui, ask: Ask) -> Response:
    """Calls as they happen."""
    found, why = await _found(ui, shapes.AuditQuery(limit=FEED))
    rows = list(found.rows)
    return await ui.page(ask.session, "live.html", "live", "Live", refresh=15, rows=rows, why=why)


async def limits(ui: Ui, ask: Ask) -> Response:
    """Windows and budgets, and what people allow beyond windows."""
    wanted = _wanted(ask)
    rows = [row for row in ui.governor.limits(None, None, None) if _named(wanted, row)]
    rows.sort(key=lambda row: -(row.current + row.reserved) / max(1, row.max_count + row.extra))
    budgets = [row for row in ui.governor.budgets(None, None, None) if _named(wanted, row)]
    try:
        grants = ui.governor.grants()
    except api.Unavailable:
        grants = ()
    shown = [
        (row, charts.gauge(row.current, row.reserved, row.max_count + row.extra, row.tool)) for row in rows[:LIMITS]
    ]
    return await ui.page(
        ask.session, "limits.html", "limits", "Limits", refresh=30, limits=shown, grants=grants, wanted=wanted,
        budgets=[(row, _share(row)) for row in budgets[:LIMITS]],
        more=max(0, len(rows) - LIMITS) + max(0, len(budgets) - LIMITS),
    )  # fmt: skip


def _wanted(ask: Ask) -> str:
    """What names have to hold, on pages that may be long."""
    return ask.query.get("name", "").strip()[:200]


def _named(wanted: str, row: shapes.LimitRow | shapes.BudgetRow) -> bool:
    return any(wanted in name for name in (row.agent_id or "", row.backend_id, row.tool))


async def queue(ui: Ui, ask: Ask) -> Response:
    """Lanes."""
    return await ui.page(ask.session, "queue.html", "queue", "Queue", refresh=15, rows=ui.governor.queue()[:300])


async def tools(ui: Ui, ask: Ask) -> Response:
    """What servers have, what of it waits for a person, and what was called."""
    try:
        stopped = ui.governor.pins(None, None, True, PINS)
        pins, no_pins = ui.governor.pins(None, None, False, PINS), ""
    except api.Unavailable as error:
        stopped, pins, no_pins = (), (), _sentence(error.message)
    try:
        rows, why = await ui.governor.seen_tools(), ""
    except api.Unavailable as error:
        rows, why = (), _sentence(error.message)
    shown = [(row, charts.mix(row)) for row in rows]
    return await ui.page(
        ask.session, "tools.html", "tools", "Tools", rows=shown, why=why, endings=charts.ENDINGS, stopped=stopped,
        pins=[row for row in pins if row.state == "trusted"], no_pins=no_pins, more=len(pins) == PINS,
    )  # fmt: skip


async def pin(ui: Ui, ask: Ask, wrong: str = "", status: int = 200) -> Response:
    """One of them: how it has changed, and letting it be used as it is now."""
    row = ui.governor.pin(ask.path["id"])
    # Text and hash of one moment: nothing waits between the two.
    found = ui.governor.pin_diff(row.name, row.backend_id, row.kind)
    return await ui.page(
        ask.session, "pin.html", "tools", "Pin", status, found=found, pin=found.pin, wrong=wrong,
    )  # fmt: skip


async def audit(ui: Ui, ask: Ask) -> Response:
    """The log, searched."""
    given = {name: value.strip()[:200] for name, value in ask.query.items() if value.strip()}
    before = given.pop("before", "")
    names: tuple[str, ...] = (
        "agent", "backend", "tool", "status", "stage", "policy", "approver", "since", "until", "text", "within",
    )  # fmt: skip
    wanted: dict[str, Any] = {name: given[name] for name in names if name in given}
    for name, words in (("status", VERDICTS), ("within", WITHIN)):
        if wanted.get(name) not in dict(words):
            wanted.pop(name, None)
    behind = int(before) if before.isascii() and before.isdigit() and len(before) < 16 else None
    query = shapes.AuditQuery(**wanted, before=behind, limit=PAGE)
    found, why = await _found(ui, query)
    rows = found.rows
    agents = ui.governor.agents()
    behind = found.looked_to if found.looked_to is not None else rows[-1].seq if len(rows) == PAGE else None
    older = f"/ui/audit?{urlencode({**wanted, 'before': behind})}" if behind is not None else ""
    stats = await _stats(ui) if not wanted and not before else None
    return await ui.page(
        ask.session, "audit.html", "audit", "Audit", rows=rows, why=why, ask=query, statuses=VERDICTS,
        within=WITHIN, looked_at=found.looked_at, stats=stats, **_numbers(stats),
        agents=_with(ask.query.get("agent"), [agent.id for agent in agents]),
        backends=_with(ask.query.get("backend"), sorted({name for agent in agents for name in agent.backends})),
        next=older, first=f"/ui/audit?{urlencode(wanted)}" if before else "",
    )  # fmt: skip


async def story(ui: Ui, ask: Ask) -> Response:
    """One call of the log."""
    found = await ui.governor.audit_story(ask.path["id"])
    call = found.call
    card = {"arguments": await asyncio.to_thread(lambda: present.laid_out(present.parsed(call.arguments)))}
    result = await asyncio.to_thread(present.lines, call.result) if call.result else ()
    return await ui.page(
        ask.session, "story.html", "audit", present.call_name(call) or "Call", call=call, card=card, result=result,
        records=found.records, step=_step(call), steps={step.seq: step for step in found.steps},
        related=found.related, waited=found.approval_wait_us,
    )  # fmt: skip


async def agents(ui: Ui, ask: Ask) -> Response:
    """Who is configured, connected and paused."""
    status = ui.governor.status()
    paused = {pause.agent_id for pause in status.paused}
    wanted = _wanted(ask)
    shown = [
        {
            "id": agent.id,
            "display_name": agent.display_name,
            "backends": sorted(agent.backends.items()),
            "sessions": [one for one in status.sessions if one.agent_id == agent.id][:50],
            "paused": agent.id in paused,
        }
        for agent in ui.governor.agents()
        if any(wanted in name for name in (agent.id, agent.display_name or "", *agent.backends))
    ]
    shown.sort(key=lambda agent: (not agent["paused"], not agent["sessions"]))
    return await ui.page(
        ask.session, "agents.html", "agents", "Agents", refresh=30, agents=shown[:AGENTS], wanted=wanted,
        more=max(0, len(shown) - AGENTS), folded=len(shown) > FOLDED, all_paused=None in paused,
    )  # fmt: skip


# --- what people do ---------------------------------------------------------------------------------------------------


async def decide(ui: Ui, ask: Ask) -> Response:
    """One decision, of whoever logged in."""
    action = ask.form.get("action", "")
    if action not in ("approve", "approve_15m", "reject"):
        raise api.BadRequest("this is no decision", "use the page's own buttons")
    person = ask.session.person
    note = ask.form.get("reason", "").strip()[: shapes.NOTE_MAX]
    call_id = ask.path["id"]
    if len(call_id) < 16:
        # A short id is given out again once it is free, and may name another call than the one that was seen.
        raise api.BadRequest("a call is decided by its call id here", "use the page's own buttons")
    done = await ui.governor.decide(
        call_id, action != "reject", by=person.by, via="ui", note=note, voter=person.voter,
        grant=shapes.GrantAsk(seconds=MINUTES_15) if action == "approve_15m" else None,
    )  # fmt: skip
    if done.state == "pending":
        said = f"{done.given} of {done.needed} people agreed; it waits for another one"
    else:
        said = f"{done.state} by {person.by}"
        if done.grant:
            said += f"; the same call needs nobody's word for 15 minutes ({done.grant})"
    if _wants_json(ask.request):
        body = {"state": done.state, "said": visible(said), "pending": ui.governor.waiting(), "grant": done.grant}
        return Response(msgspec.json.encode(body), 200, HEADERS, "application/json")
    title = {"approved": "Approved", "rejected": "Rejected", "pending": "One yes"}[done.state]
    return await ui.page(ask.session, "decided.html", "inbox", title, said=_sentence(f"`{done.id}` {said}"))


async def trust(ui: Ui, ask: Ask) -> Response:
    """Lets it be used, if it still is what the page showed."""
    row = ui.governor.pin(ask.path["id"])
    expect = ask.form.get("expect", "")
    if len(expect) != 64:
        raise api.BadRequest("this says nothing of what was seen", "use the page's own button")
    try:
        ui.governor.trust(row.name, row.backend_id, row.kind, expect=expect, also=False, by=ask.session.person.by)
    except api.Conflict:
        wrong = "It was changed again while you looked at it, so nothing was trusted. This is what it is now:"
        return await pin(ui, ask, wrong, 409)
    return _to(f"/ui/tools/{row.id}")


async def cancel(ui: Ui, ask: Ask) -> Response:
    """Gives a queued call up."""
    if not ui.governor.cancel_queued(ask.path["id"]):
        raise api.NotFound("no call with this id waits in a queue any more")
    return _to("/ui/queue")


async def revoke(ui: Ui, ask: Ask) -> Response:
    """Forgets an approval."""
    ui.governor.revoke_grants([ask.path["id"]], by=ask.session.person.by, via="ui")
    return _to("/ui/limits")


async def pause(ui: Ui, ask: Ask) -> Response:
    """Stops an agent, or everything, or lets it go on."""
    agent, by = ask.path.get("id"), ask.session.person.by
    if ask.form.get("action") == "pause":
        ui.governor.pause(agent, by=by, note=ask.form.get("note", "").strip()[: shapes.NOTE_MAX])
    elif ask.form.get("action") == "resume":
        ui.governor.resume(agent, by=by)
    else:
        raise api.BadRequest("this is neither `pause` nor `resume`", "use the page's own buttons")
    return _to("/ui/agents")


async def logout(ui: Ui, ask: Ask) -> Response:
    """The end of this session."""
    ui.governor.logins.end(ask.session)
    return _to("/ui/login", {"set-cookie": f"{COOKIE}=; HttpOnly; SameSite=Strict; Path=/ui; Max-Age=0"})


async def stream(ui: Ui, ask: Ask) -> Response:
    """What happens, while the page is open."""
    session = ask.session
    if ui.streams >= STREAMS or session.streams >= STREAMS // 4:
        raise api.Unavailable("too many pages are open", "close some")
    last = ask.request.headers.get("last-event-id", "")
    number = int(last) if last.isascii() and last.isdigit() and len(last) < 16 else 0
    source = events(ui.governor, session, calls=ask.query.get("calls") == "1", last_id=number)

    async def counted() -> Any:
        ui.streams += 1
        session.streams += 1
        try:
            async for piece in source:
                yield piece
        finally:
            ui.streams -= 1
            session.streams -= 1
            await source.aclose()

    return StreamingResponse(
        counted(), 200, {**HEADERS, "cache-control": "no-store, no-transform", "x-accel-buffering": "no"},
        "text/event-stream",
    )  # fmt: skip


async def state(ui: Ui, ask: Ask) -> Response:
    """For pages that nobody looks at: how many calls wait."""
    counts = {"pending": ui.governor.waiting(), "changed": ui.governor.pins_waiting()}
    return Response(msgspec.json.encode(counts), 200, HEADERS, "application/json")


ROUTES: Final[tuple[tuple[str, str, Handler], ...]] = (
    ("GET", "", inbox),
    ("GET", "tickets/{id}", ticket),
    ("POST", "tickets/{id}", decide),
    ("GET", "live", live),
    ("GET", "limits", limits),
    ("POST", "grants/{id}", revoke),
    ("GET", "queue", queue),
    ("POST", "queue/{id}", cancel),
    ("GET", "tools", tools),
    ("GET", "tools/{id}", pin),
    ("POST", "tools/{id}", trust),
    ("GET", "audit", audit),
    ("GET", "audit/{id}", story),
    ("GET", "agents", agents),
    ("POST", "agents", pause),
    ("POST", "agents/{id}", pause),
    ("POST", "logout", logout),
    ("GET", "events", stream),
    ("GET", "state", state),
)
"""Everything that needs a session. The door (`login`) and `static/` stand in `Ui.handle`."""


def _route(method: str, path: str) -> tuple[Handler, dict[str, str]] | None:
    parts = path.split("/")
    for wanted, pattern, handler in ROUTES:
        shape = pattern.split("/")
        if wanted != method or len(shape) != len(parts):
            continue
        names = {}
        for one, part in zip(shape, parts, strict=True):
            if one.startswith("{"):
                if not 0 < len(part) <= 128:
                    break
                names[one[1:-1]] = part
            elif one != part:
                break
        else:
            return handler, names
    return None


# --- making pages -----------------------------------------------------------------------------------------------------


@cache
def pages() -> Environment:
    """The templates. Whatever one is given is made visible, then escaped: no template has to think of it."""
    made = Environment(
        loader=FileSystemLoader(_HERE / "templates"), autoescape=True, undefined=StrictUndefined, auto_reload=False,
        trim_blocks=True, lstrip_blocks=True, finalize=_seen,
    )  # fmt: skip
    made.filters.update(
        clock=_clock, span=present.span, took=present.took, grouped=present.grouped, call_name=present.call_name,
        ending=lambda word: _ENDED.get(word, word), window=_window, until=lambda at: present.span(_left(at)),
        exact=_exact, urlencode=lambda text: quote(str(text), safe=""),
    )  # fmt: skip
    return made


def _seen(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def _file(name: str) -> bytes:
    return (_HERE / "static" / name).read_bytes()


@cache
def fingerprint() -> str:
    """Changes with what pages load, so that no browser keeps an old one."""
    return hashlib.sha256(b"".join(_file(name) for name in _STATIC)).hexdigest()[:12]


def _static(name: str, request: Request) -> Response:
    if name not in _STATIC:
        return Response("nothing is at this address", 404, HEADERS, "text/plain")
    kept = "private, max-age=31536000, immutable" if request.query_params.get("v") == fingerprint() else "no-cache"
    return Response(_file(name), 200, {**HEADERS, "cache-control": kept}, _STATIC[name])


def _card(asked: shapes.Asked, now: float, history: Any = (), *, whole: bool = False) -> dict[str, Any]:
    ticket = asked.ticket
    long = len(ticket.arguments) > present.LONG
    return {
        "ticket": ticket,
        "name": present.call_name(ticket),
        "left": present.seconds_left(ticket.expires_at, now),
        "lasts": max(1, present.seconds_left(ticket.expires_at, _epoch(ticket.created_at))),
        "long": long,
        "length": len(ticket.arguments),
        "arguments": present.laid_out(asked.arguments) if whole or not long else (),
        "compared_at": asked.compared_at,
        "compared_by": asked.compared_by,
        "limits": asked.limits,
        "holds": asked.holds,
        "votes": asked.votes,
        "history": history,
    }


def _share(row: shapes.BudgetRow) -> Markup:
    """How much of a budget is spent, in hundredths: amounts may have any number of digits."""
    most = Decimal(row.max_amount)
    used, reserved = (
        int(100 * Decimal(amount) / most) if most else 0 for amount in (row.used_amount, row.reserved_amount)
    )
    return charts.gauge(used if most else 100, reserved, 100, f"{row.argument} of {row.tool}", "%")


async def _history(ui: Ui, agents: list[str]) -> Mapping[str, Any]:
    wanted = list(dict.fromkeys(agents))[:AGENTS_WITH_HISTORY]
    if not wanted:
        return {}
    try:
        async with asyncio.timeout(FIGURES_WAIT_S):
            return await ui.governor.recent_calls(wanted, HISTORY)
    except (TimeoutError, api.Refusal):
        return {}  # a card says enough without


async def _figures(ui: Ui) -> tuple[shapes.Figures | None, str]:
    try:
        async with asyncio.timeout(FIGURES_WAIT_S):
            return await ui.governor.figures(), ""
    except TimeoutError:
        return None, "The figures are being counted. They are here when you come back."
    except api.Refusal as refusal:
        return None, _sentence(refusal.message)


def _pictures(figures: shapes.Figures) -> dict[str, Any]:
    counts = {name: sum(getattr(hour, name) for hour in figures.hours) for name, _ in charts.ENDINGS}
    labels = [f"{datetime.fromisoformat(hour.at).astimezone():%H:%M}" for hour in figures.hours]
    return {
        "chart_bars": charts.bars(figures.hours, labels),
        "chart_waits": charts.histogram(figures.decided_s),
        "chart_week": charts.heat(figures.week),
        "slow": [(row, charts.spread(row, figures.tools)) for row in figures.tools if row.p50_us],
        "total": sum(counts.values()),
        "legend": [(name, label, counts[name]) for name, label in charts.ENDINGS if counts[name] or name == "success"],
    }


async def _stats(ui: Ui) -> shapes.AuditStats | None:
    try:
        async with asyncio.timeout(FIGURES_WAIT_S):
            return await ui.governor.audit_stats()
    except (TimeoutError, api.Refusal):
        return None  # the calls are what the page is for


def _numbers(stats: shapes.AuditStats | None) -> dict[str, Any]:
    if stats is None or not stats.tools:
        return {"chart_bars": "", "legend": ()}
    counts = {name: sum(getattr(hour, name) for hour in stats.hours) for name, _ in charts.ENDINGS}
    labels = [f"{datetime.fromisoformat(hour.at).astimezone():%H:%M}" for hour in stats.hours]
    legend = [(name, label, counts[name]) for name, label in charts.ENDINGS if counts[name] or name == "success"]
    return {"chart_bars": charts.bars(stats.hours, labels), "legend": legend}


async def _found(ui: Ui, query: shapes.AuditQuery) -> tuple[shapes.AuditPage, str]:
    try:
        return await ui.governor.audit_search(query), ""
    except (api.Unavailable, api.BadRequest) as refusal:
        return shapes.AuditPage(), _sentence(f"{refusal.message}; {refusal.hint}" if refusal.hint else refusal.message)


def _step(call: shapes.AuditCall) -> tuple[str, str] | None:
    """What a person can do about a refusal, and the command: names that an agent chose never stand in one."""
    if call.exec_status != "denied" and not call.would:
        return None
    return {
        "acl": ("To let this call pass from now on, in a terminal of your own:", f"aegis allow {call.call_id[:12]}"),
        "rate_limit": ("Wait, or allow more for once:", "aegis limits grant --help"),
        "approval": ("If the agent asks again, it is in the inbox again.", ""),
        "paused": ("Resume it under Agents.", ""),
        "queue": ("The agent can repeat it; what waits now stands under Queue.", ""),
    }.get(call.stage)


def _with(chosen: str | None, names: list[str]) -> list[str]:
    return names if not chosen or chosen in names else [*names, chosen]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("." if text and text[-1] not in ".!?" else "")


def _epoch(at: str) -> float:
    return datetime.fromisoformat(at).timestamp()


def _left(at: str) -> float:
    return _epoch(at) - wall()


def _clock(at: str) -> str:
    """By the machine's clock; a page's script puts the reader's in its place."""
    try:
        found = datetime.fromisoformat(at)
    except ValueError:
        return at
    local, today = found.astimezone(), datetime.fromtimestamp(wall(), UTC).astimezone().date()
    return f"{local:%H:%M:%S}" if local.date() == today else f"{local:%d %b %H:%M}"


def _window(text: str) -> str:
    """`24h0m0s` as people say it: `24h`."""
    for end in ("0s", "0m"):
        if text.endswith(end) and len(text) > 2 and not text[-3].isdigit():
            text = text[: -len(end)]
    return text


def _exact(name: str) -> str:
    """A glob that matches this name alone."""
    return "".join(f"[{sign}]" if sign in "*?[" else sign for sign in name)


# --- requests ---------------------------------------------------------------------------------------------------------


def _fields(text: str) -> dict[str, str]:
    """A query or a form; each name once. Raises `api.BadRequest`."""
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=FIELDS * 2)
    except ValueError:
        raise api.BadRequest("there are too many fields") from None
    found = dict(pairs)
    if len(found) != len(pairs):
        raise api.BadRequest("a field is given twice", "use the page's own form")
    return found


def _wants_json(request: Request) -> bool:
    return "application/json" in request.headers.get("accept", "")


def _plain_link(request: Request) -> bool:
    """Somebody followed a link of another page: shown as any page, which is to say to nobody without a session."""
    return request.method in ("GET", "HEAD") and request.headers.get("sec-fetch-mode", "navigate") == "navigate"


def _turned_away(request: Request, method: str) -> Response:
    if method == "GET" and "text/event-stream" not in request.headers.get("accept", "") and not _wants_json(request):
        return _to("/ui/login")
    return Response("log in first: run `aegis ui`", 401, HEADERS, "text/plain")


def _back(request: Request) -> str:
    """The page that a form was on, as its address says."""
    part = request.url.path.removeprefix("/ui").strip("/").partition("/")[0]
    return {
        "agents": "/ui/agents",
        "queue": "/ui/queue",
        "grants": "/ui/limits",
        "audit": "/ui/audit",
        "tools": "/ui/tools",
    }.get(part, "/ui")


def _to(place: str, more: Mapping[str, str] = {}) -> Response:
    return Response(b"", 303, {**HEADERS, "location": place, **more})
