"""The approval page shows one call whole, as inert text, and lets a person do the one thing that the link is for.

No script runs on it and nothing is loaded from anywhere; what an agent wrote is escaped twice, once for eyes
(`visible`) and once for HTML. Functions here are pure: the time and the nonce are arguments.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

import msgspec

from aegis_daemon.core.text import visible
from aegis_daemon.manage import shapes

_arguments = msgspec.json.Decoder(dict[str, msgspec.Raw])
_VERBS: Final = {"approve": "Approve", "reject": "Reject"}
_DONE: Final = {"approve": "approved", "reject": "rejected"}
_ESCAPES = re.compile(r"\\.")

_STYLE = """
@property --left { syntax: "<integer>"; initial-value: 0; inherits: false; }
@keyframes left { from { --left: LEFT; } to { --left: 0; } }
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1rem; }
dt { font-weight: 600; overflow-wrap: anywhere; max-width: 12rem; }
dd { margin: 0; min-width: 0; }
pre { margin: 0; padding: .3rem .5rem; border: 1px solid #8886; border-radius: .3rem; white-space: pre-wrap;
      overflow-wrap: anywhere; }
.left { animation: left LEFTs linear forwards; counter-reset: left var(--left); }
.left::after { content: counter(left) " s"; }
.left span { position: absolute; clip-path: inset(50%); }
.wrong { color: #c00; font-weight: 600; }
button { font: inherit; font-weight: 600; padding: .6rem 2rem; margin-top: 1rem; border: 0; border-radius: .4rem;
         color: #fff; background: #06c; cursor: pointer; }
button.reject { background: #c00; }
input { font: inherit; width: 8em; }
"""


def policy(nonce: str) -> str:
    """The Content-Security-Policy (CSP Level 3) of a page: its own style, its own form, and nothing else."""
    return f"default-src 'none'; style-src 'nonce-{nonce}'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"


def ask(ticket: shapes.Ticket, action: str, now: float, nonce: str, *, with_code: bool, wrong: str = "") -> str:
    """The page that a link opens. `now` in seconds since the epoch; `wrong` is what was wrong with the last try."""
    left = max(0, int(datetime.fromisoformat(ticket.expires_at).timestamp() - now))
    verb = _VERBS[action]
    field = (
        '<p><label>Code from the message: <input name="code" inputmode="numeric" autocomplete="off" '
        'pattern="[0-9]{6}" maxlength="6" required></label></p>'
    )
    body = f"""<h1>{verb} this call?</h1>
{f'<p class="wrong">{_text(wrong)}</p>' if wrong else ""}
{_call(ticket)}
<p>It is refused by itself in <span class="left"><span>{left} s</span></span>, at {_text(_clock(ticket.expires_at))}.
{"" if ticket.waiting else "Nobody waits for the answer now; approved, it runs when the agent asks again."}</p>
<form method="post" autocomplete="off">
{field if with_code else ""}
<button class="{action}">{verb}</button>
</form>"""
    return _page(f"{verb} {ticket.id}?", body, nonce, left=left)


def done(ticket: shapes.Ticket, action: str, nonce: str) -> str:
    """What is shown after a decision."""
    body = f"<h1>The call is {_DONE[action]}</h1>\n{_call(ticket)}\n<p>You can close this page.</p>"
    return _page(f"{ticket.id} {_DONE[action]}", body, nonce)


def problem(title: str, message: str, hint: str, nonce: str) -> str:
    """What is shown where nothing can be decided."""
    return _page(title, f"<h1>{_text(title)}</h1>\n<p>{_text(message)}.</p>\n<p>{_text(hint)}</p>", nonce)


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


def _call(ticket: shapes.Ticket) -> str:
    facts = {
        "Tool": ticket.tool_name or ticket.method,
        "Agent": ticket.agent_id,
        "Backend": ticket.backend_id,
        "Rule": ticket.rule,
        "Asked at": _clock(ticket.created_at),
        "Ticket": f"{ticket.id} (call {ticket.call_id})",
    }
    rows = "\n".join(f"<dt>{name}</dt><dd>{_text(value)}</dd>" for name, value in facts.items())
    arguments = "\n".join(
        f"<dt>{_text(name)}</dt><dd><pre>{html.escape(value)}</pre></dd>" for name, value in _each(ticket.arguments)
    )
    return f"<dl>\n{rows}\n</dl>\n<h2>Arguments</h2>\n<dl>\n{arguments or '<dt>none</dt><dd></dd>'}\n</dl>"


def _each(arguments: str) -> Iterator[tuple[str, str]]:
    """Every argument with its value as the JSON text that will run, laid out but not read and written again."""
    try:
        for name, value in _arguments.decode(arguments).items():
            lines = msgspec.json.format(bytes(value), indent=2).decode().split("\n")
            yield name, "\n".join(_broken(visible(line)) for line in lines)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        yield "all", _broken(visible(arguments))


def _broken(line: str) -> str:
    r"""The same with a line end behind every `\n`, so that long texts can be read; the escape itself stays."""
    return _ESCAPES.sub(lambda found: f"{found[0]}\n" if found[0] == r"\n" else found[0], line)


def _clock(instant: str) -> str:
    return f"{datetime.fromisoformat(instant).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _text(text: str) -> str:
    return html.escape(visible(text))
