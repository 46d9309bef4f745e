"""The approval page shows one call whole, as inert text, and lets a person decide it with one deliberate press.

No script runs on it and nothing is loaded from anywhere; what an agent wrote is escaped twice, once for eyes
(`visible`) and once for HTML. The decision stands in a bar that never leaves the screen, Approve and Reject at its two
ends; pressing Enter in a field decides nothing. Functions here are pure: the time and the nonce are arguments.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

import msgspec

from aegis_daemon.core.text import visible
from aegis_daemon.core.units import short_duration
from aegis_daemon.manage import shapes

_VERBS: Final = {"approve": "Approve", "reject": "Reject"}
_WAYS: Final = {"cli": "the command line", "api": "the API", "link": "a link", "ui": "the inbox", "grant": "a grant"}
_UNATTENDED: Final = '<p class="note">Nobody waits for the answer now; approved, it runs when the agent asks again.</p>'
_ESCAPES = re.compile(r"\\.")
_GO_PART = re.compile(r"([0-9.]+)(ns|us|µs|ms|s|m|h)")
_SECONDS: Final = {"h": 3600, "m": 60, "s": 1, "ms": 1e-3, "µs": 1e-6, "us": 1e-6, "ns": 1e-9}

_STYLE = """
@property --left { syntax: "<integer>"; initial-value: 0; inherits: false; }
@keyframes left { from { --left: LEFT; } to { --left: 0; } }
:root { color-scheme: light dark; --bg: #fff; --text: #1b1d21; --dim: #5a6069; --line: #c9ced6; --soft: #f3f5f8;
  --yes: #14683b; --yes-text: #fff; --no: #b3141f; --mark: #7a4a00; --mark-bg: #fff4dc; }
@media (prefers-color-scheme: dark) { :root { --bg: #14161a; --text: #e7e9ed; --dim: #a3aab5; --line: #444b57;
  --soft: #1d2026; --yes: #3fb873; --yes-text: #06210f; --no: #ff8d8d; --mark: #ffcf7a; --mark-bg: #33270f; } }
* { box-sizing: border-box; }
body { font: 1rem/1.5 system-ui, sans-serif; margin: 0; color: var(--text); background: var(--bg);
  min-height: 100vh; min-height: 100dvh; display: flex; flex-direction: column; }
form { flex: 1; display: flex; flex-direction: column; }
main { flex: 1; width: 100%; max-width: 46rem; margin: 0 auto; padding: 1.25rem 1rem; }
h1 { font-size: 1.35rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1rem; margin: 1.5rem 0 .4rem; }
p { margin: .4rem 0; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: minmax(5rem, max-content) minmax(0, 1fr); gap: .35rem 1rem; margin: 0; }
dt { font-weight: 600; overflow-wrap: anywhere; max-width: 12rem; }
dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
b, dt, dd, pre { unicode-bidi: isolate; }
.arguments { display: block; }
.arguments dt { max-width: none; margin-top: .6rem; }
pre { margin: .2rem 0 0; padding: .4rem .6rem; border: 1px solid var(--line); border-radius: .3rem;
  background: var(--soft); white-space: pre-wrap; overflow-wrap: anywhere; font: .9rem/1.45 ui-monospace, monospace; }
pre.was { opacity: .85; border-style: dashed; }
.dim { color: var(--dim); font-weight: 400; }
.mark { color: var(--mark); background: var(--mark-bg); border-radius: .2rem; padding: 0 .35em; font-weight: 600; }
.wrong { color: var(--no); font-weight: 600; }
.note { border-left: .25rem solid var(--line); padding-left: .75rem; }
.bar { position: sticky; bottom: 0; background: var(--bg); border-top: 1px solid var(--line);
  padding: .6rem max(1rem, env(safe-area-inset-right)) max(.6rem, env(safe-area-inset-bottom))
  max(1rem, env(safe-area-inset-left)); }
.ends { display: flex; align-items: center; justify-content: space-between; gap: 1rem; max-width: 44rem;
  margin: 0 auto; }
.bar label { max-width: 44rem; margin: 0 auto .6rem; display: flex; align-items: center; gap: .75rem;
  justify-content: space-between; }
.left { animation: left LEFTs linear forwards; counter-reset: left var(--left); color: var(--dim);
  font-variant-numeric: tabular-nums; white-space: nowrap; }
.left::after { content: counter(left) " s"; }
.left span { position: absolute; clip-path: inset(50%); }
button { font: inherit; font-weight: 600; min-height: 3rem; min-width: 6rem; padding: 0 1.1rem; cursor: pointer;
  touch-action: manipulation; }
.approve { border: 0; border-radius: 1.5rem; color: var(--yes-text); background: var(--yes); }
.reject { border: 2px solid var(--no); border-radius: .25rem; color: var(--no); background: transparent; }
button:focus-visible, input:focus-visible { outline: 3px solid var(--text); outline-offset: 2px; }
label { display: block; font-weight: 600; }
input { font: inherit; color: inherit; background: var(--bg); border: 1px solid var(--dim); border-radius: .3rem;
  min-height: 3rem; padding: 0 .6rem; width: 100%; }
.code { max-width: 9rem; letter-spacing: .2em; font-variant-numeric: tabular-nums; }
"""


def policy(nonce: str) -> str:
    """The Content-Security-Policy (CSP Level 3) of a page: its own style, its own form, and nothing else."""
    return f"default-src 'none'; style-src 'nonce-{nonce}'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"


def ask(
    asked: shapes.Asked, action: str, now: float, nonce: str, *, form: str, with_code: bool, wrong: str = ""
) -> str:
    """The page that a link opens: from one to approve the call can be rejected too, from one to reject only that.

    :param form: the one-time token that makes its form this page's. :param now: in seconds since the epoch.
    :param wrong: what was wrong with the last try.
    """
    ticket = asked.ticket
    left = max(0, int(datetime.fromisoformat(ticket.expires_at).timestamp() - now))
    # Whoever holds a link has no name, so two who come by one may be the same person.
    approves = action == "approve" and ticket.needed < 2
    verb = _VERBS["approve" if approves else "reject"]
    code = (
        '<label>Code from the message <input class="code" name="code" inputmode="numeric" autocomplete="off" '
        'pattern="[0-9]{6}" maxlength="6" required></label>'
    )
    approve = '<button class="approve" name="decision" value="approve">Approve</button>' if approves else ""
    # The first button of a form is what Enter presses. This one is disabled, so that Enter presses none.
    body = f"""<form method="post" autocomplete="off">
<button disabled hidden aria-label="nothing"></button>
<input type="hidden" name="form" value="{form}">
<main>
<h1>{verb} this call?</h1>
{f'<p class="wrong" role="alert">{_text(wrong)}</p>' if wrong else ""}
{_who(ticket)}
{_people(asked)}
{"" if ticket.waiting else _UNATTENDED}
{_call(asked)}
{_limits(asked)}
<p><label>Reason, if you reject <span class="dim">(optional; the agent reads it)</span>
<input name="note" maxlength="{shapes.NOTE_MAX}"></label></p>
<p class="dim">Refused by itself at {_text(_clock(ticket.expires_at))}.</p>
</main>
<div class="bar">{code if with_code else ""}<div class="ends">
<button class="reject" name="decision" value="reject">Reject</button>
<span class="left"><span>{left} s</span></span>
{approve}
</div></div>
</form>"""
    return _page(f"{verb} {ticket.id}?", body, nonce, left=left)


def done(asked: shapes.Asked, decided: shapes.Decided, nonce: str) -> str:
    """What is shown after a decision."""
    if decided.state == "pending":
        title = "Your yes counts"
        more = f"{decided.given} of {decided.needed} people have agreed; it runs once another one does."
    else:
        title = f"The call is {decided.state}"
        if decided.state == "rejected":
            more = "It does not run, and the agent is told."
        elif asked.ticket.waiting:
            more = "It runs now, once, exactly as shown."
        else:
            more = "It runs, once, when the agent asks again."
    told = f"<h1>{title}</h1>\n<p>{more} You can close this page.</p>"
    body = f"<main>\n{told}\n{_who(asked.ticket)}\n{_call(asked)}\n</main>"
    return _page(f"{decided.id}: {title.lower()}", body, nonce)


def over(asked: shapes.Asked, how: shapes.Over, nonce: str) -> str:
    """What a link shows once its ask is over: who decided, when, and what became of it."""
    title, lines = ended(how)
    told = "\n".join(f"<p>{_text(line)}</p>" for line in lines)
    body = f"<main>\n<h1>{_text(title)}</h1>\n{told}\n{_who(asked.ticket, 'asked')}\n{_call(asked)}\n</main>"
    return _page(f"{asked.ticket.id}: {title.lower()}", body, nonce)


def ended(how: shapes.Over) -> tuple[str, list[str]]:
    """How an ask ended, in a few words and in sentences; plain text, in which names may be anything."""
    when = f" at {_clock(how.at)}" if how.at else ""
    way = f" ({_WAYS.get(how.via, how.via)})" if how.via and how.via not in ("link", "grant") else ""
    if how.state == "expired":
        return "This call has expired", [f"Nobody decided it in time, so it was refused by itself{when}."]
    verb = "rejected" if how.state == "rejected" else "approved"
    lines = [f"It was {verb} by {how.by}{way}{when}."]
    if how.note:
        lines.append(f"The reason given: {how.note}")
    if how.state == "consumed":
        lines.append(f"It ran at {_clock(how.ran_at)}." if how.ran_at else "It has run.")
    elif how.state == "approved":
        lines.append("It runs, once, when the agent asks again.")
    return f"This call was {verb}", lines


def problem(title: str, message: str, hint: str, nonce: str) -> str:
    """What is shown where nothing can be decided."""
    body = f"<main>\n<h1>{_text(title)}</h1>\n<p>{_text(message)}.</p>\n<p>{_text(hint)}</p>\n</main>"
    return _page(title, body, nonce)


def _page(title: str, body: str, nonce: str, left: int | None = None) -> str:
    # Loaded once more when the time is over, the page says so itself.
    again = f'<meta http-equiv="refresh" content="{left + 1}">\n' if left is not None else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex, nofollow">
{again}<title>{_text(title)} - Aegis</title>
<style nonce="{nonce}">{_STYLE.replace("LEFT", str(left or 0))}</style>
</head>
<body>
{body}
</body>
</html>
"""


# --- its parts --------------------------------------------------------------------------------------------------------


def _who(ticket: shapes.Ticket, asks: str = "asks") -> str:
    """The call in one sentence."""
    tool = _text(ticket.tool_name or ticket.method)
    return f"<p><b>{_text(ticket.agent_id)}</b> {asks} to run <b>{tool}</b> on <b>{_text(ticket.backend_id)}</b>.</p>"


def _people(asked: shapes.Asked) -> str:
    """How many must agree, and who has."""
    ticket = asked.ticket
    if ticket.needed < 2:
        return ""
    have = "; ".join(
        f"{_text(vote.by)} ({_text(_WAYS.get(vote.via, vote.via))}, {_text(_clock(vote.at))})" for vote in asked.votes
    )
    agreed = f"{ticket.given} of them {'has' if ticket.given == 1 else 'have'}: {have}" if have else "none has yet"
    return (
        f'<p class="note"><b>{ticket.needed} people must agree</b>, {agreed}. A link does not say who you are: '
        f"approve it with <code>aegis approve {_text(ticket.id)}</code>, in the inbox, or in a chat where you are "
        "mapped. "
        "Here it can be rejected, which ends it.</p>"
    )


def _call(asked: shapes.Asked) -> str:
    """Every argument, and the facts."""
    ticket = asked.ticket
    compared = ""
    if asked.compared_at is not None:
        changed = sum(row.change in ("changed", "new", "gone") for row in asked.arguments)
        news = f"{changed} {'is' if changed == 1 else 'are'} different" if changed else "nothing is different"
        by = f" by {_text(asked.compared_by)}" if asked.compared_by else ""
        compared = (
            f'<p class="dim">Compared with the call approved{by} at {_text(_clock(asked.compared_at))}: {news}.</p>'
        )
    named = ticket.arguments.lstrip().startswith("{")
    arguments = "\n".join(_argument(row, row.name if named else "all of them") for row in asked.arguments)
    facts = {
        "Server": ticket.command,
        "Directory": ticket.cwd,
        "Not the server approved before; different": ticket.unlike,
        "Rule": ticket.rule,
        "Client": ticket.client,
        "Asked at": _clock(ticket.created_at),
        "Ticket": f"{ticket.id} (call {ticket.call_id})",
    }
    rows = "\n".join(f"<dt>{name}</dt><dd>{_text(value)}</dd>" for name, value in facts.items() if value)
    none = '<p class="dim">none</p>'
    return f"""<h2>Arguments</h2>
{compared}{f'<dl class="arguments">{arguments}</dl>' if arguments else none}
<h2>Details</h2>
<dl>
{rows}
</dl>"""


def _argument(row: shapes.Argument, name: str) -> str:
    name = _text(name) or '<span class="dim">(no name)</span>'
    was = f'<pre class="was">{_value(row.was)}</pre>' if row.was else ""
    if row.change == "gone":
        return f'<dt>{name} <span class="mark">gone</span> <span class="dim">it was</span></dt><dd>{was}</dd>'
    style = "dim" if row.change == "same" else "mark"
    mark = f' <span class="{style}">{row.change}</span>' if row.change else ""
    before = f'<span class="dim">it was</span>{was}' if was else ""
    return f"<dt>{name}{mark}</dt><dd><pre>{_value(row.value)}</pre>{before}</dd>"


def _limits(asked: shapes.Asked) -> str:
    """What is left of each limit of the tool."""
    if not asked.limits:
        return ""
    held = " (this call is counted)" if asked.holds else ""
    lines = []
    for row in asked.limits:
        most = row.max_count + row.extra
        left = max(0, most - row.current - row.reserved)
        who = "all agents" if row.agent_id is None else row.agent_id
        lines.append(f"<dt>{_text(who)}</dt><dd>{left} of {most} left in {_text(_span(row.window))}{held}</dd>")
    return "<h2>Limits</h2>\n<dl>\n{}\n</dl>".format("\n".join(lines))


def _value(text: str) -> str:
    """A value as the JSON text that will run, laid out but not read and written again."""
    from html import escape  # here and below, since its table of entities is large

    return escape("\n".join(_laid_out(text)))


def _laid_out(text: str) -> Iterator[str]:
    try:
        lines = msgspec.json.format(text.encode(), indent=2).decode().split("\n")
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        lines = [text]
    for line in lines:
        yield _broken(visible(line))


def _broken(line: str) -> str:
    r"""The same with a line end behind every `\n`, so that long texts can be read; the escape itself stays."""
    return _ESCAPES.sub(lambda found: f"{found[0]}\n" if found[0] == r"\n" else found[0], line)


def _span(window: str) -> str:
    """A window's length as people say it: `24h0m0s` is `1d`."""
    parts = _GO_PART.findall(window)
    return short_duration(sum(float(count) * _SECONDS[unit] for count, unit in parts)) if parts else window


def _clock(instant: str) -> str:
    return f"{datetime.fromisoformat(instant).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _text(text: str) -> str:
    from html import escape

    return escape(visible(text))
