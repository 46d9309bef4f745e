"""What `aegis setup` asks a person, in plain lines that work over any terminal; an interrupt at any of them ends it."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

import typer

from aegis_daemon.cli.agents import configuration
from aegis_daemon.cli.console import CELL_MAX, confirm, say, show, visible

if TYPE_CHECKING:
    from aegis_daemon.onboarding.proposal import Row

COLUMNS: Final = {"backend": "server", "tool": "tool", "class": "class", "proposal": "proposal", "why": "why"}
_NARROWEST: Final = 20
FOLDED: Final = 4
"""So many tools that read and pass are told in a line for each server, until a person asks for all."""
LEAVE: Final = ("q", "quit", "exit")
LINKS_PORT: Final = 18071
HELP: Final = """\
  write allow             every tool of that class: destroy, execute, money, message, write, unknown, read
  github.create_issue deny    one tool; without `github.` of whichever server; `*` stands for any text
  what you said of a tool by its name stays when you change its class
  allow: passes · ask: waits for your yes, each time · deny: hidden, and refused by name
  show: the table again, with every tool · Enter: go on · q: leave, and nothing is changed"""


@dataclass(frozen=True)
class Told:
    """How people are told of waiting calls: settings by their path, and the files of secrets to which they refer."""

    settings: Mapping[tuple[str, ...], Any] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)


# --- the rules --------------------------------------------------------------------------------------------------------


def tell(text: str) -> None:
    """Prose on stderr, broken between words where the terminal would break it anywhere."""
    if sys.stderr.isatty():
        text = "\n".join(_broken(line, f"{line[: len(line) - len(line.lstrip())]}  ") for line in text.split("\n"))
    say(text)


def counted(number: int, what: str) -> str:
    """`1 tool`, `2 tools`."""
    return f"{number} {what}{'s' * (number != 1)}"


def _broken(line: str, indent: str, first: str = "") -> str:
    return textwrap.fill(
        line, _width(), initial_indent=first, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _width() -> int:
    return max(_NARROWEST, shutil.get_terminal_size().columns - 1)


def table(rows: Sequence[Row], unasked: Mapping[str, str], *, whole: bool = True) -> None:
    """The rows on stdout by class, worst first, and the servers whose tools nobody knows, with why. Nothing is cut.

    Where a line of the table would not fit, each class is a heading. `whole`: what reads and passes is not folded.
    """
    from aegis_daemon.onboarding.risk import CLASSES

    reads = [row for row in rows if row.risk == "read" and row.action == "allow"]
    folded = [] if whole or len(reads) < FOLDED else reads
    shown = [
        {
            "backend": row.backend, "tool": row.tool, "class": row.risk,
            "proposal": row.action + (f" ({row.limit})" if row.limit else ""), "why": row.why,
        }
        for row in sorted(rows, key=lambda row: CLASSES.index(row.risk)) if not (folded and row in reads)
    ]  # fmt: skip
    shown += [
        {"backend": name, "tool": "(any)", "class": "unknown", "proposal": "ask", "why": why}
        for name, why in unasked.items()
    ]
    if shown and not _fits(shown):
        for (risk, proposal), group in groupby(shown, key=lambda line: (line["class"], line["proposal"])):
            print(f"{risk} · {proposal}")
            for line in group:
                _wrapped(visible(f"{line['backend']}.{line['tool']} · {line['why']}"))
    elif shown or not folded:
        show(shown, COLUMNS, "the servers have no tools")
    if folded:
        print(f"read · allow: {counted(len(folded), 'tool')}")
        for name, group_of in groupby(sorted(folded, key=lambda row: row.backend), key=lambda row: row.backend):
            _wrapped(f"{visible(name)}: {', '.join(visible(row.tool) for row in group_of)}")


def _wrapped(text: str) -> None:
    """A line on stdout below a heading."""
    print(_broken(text, "      ", "  ") if sys.stdout.isatty() else f"  {text}", flush=True)


def _fits(shown: Sequence[Mapping[str, str]]) -> bool:
    widths = [max(len(visible(row[key])) for row in shown) for key in COLUMNS]
    if max(widths) > CELL_MAX:
        return False
    return not sys.stdout.isatty() or sum(widths) + 3 * len(widths) <= _width()


def rows(given: tuple[Row, ...], unasked: Mapping[str, str]) -> tuple[Row, ...]:
    """The rows once a person is content with them."""
    from aegis_daemon.onboarding.proposal import Wrong, changed_rows

    tell(
        "Enter takes this; `write allow` or `SERVER.TOOL deny` changes a class or a tool; `show` lists every tool, "
        "`?` tells more, `q` leaves"
    )
    while True:
        said = _line("change")
        if not said:
            return given
        if said.lower() in ("?", "help", "h"):
            tell(HELP)
        elif said.lower() in ("show", "s"):
            table(given, unasked)
        else:
            try:
                before = given
                given, count, kept = changed_rows(given, said)
            except Wrong as wrong:
                tell(f"  {visible(str(wrong))}")
            else:
                other = sum(one.action != was.action for one, was in zip(given, before, strict=True))
                if not count and not kept:
                    tell(f"  no tool here is of the class `{said.split()[0]}`")
                else:
                    tell(f"  {other} changed" if other or kept else "  nothing changed: it was so already")
                for row in kept:
                    tell(f"  {visible(row.backend)}.{visible(row.tool)} stays {row.action}, as you said of it by name")


def mode() -> str:
    """`enforce` or `observe`."""
    tell(
        "the rules can be in force now, or only be tried out: observe records what they would refuse or ask, and lets "
        "every call pass until `aegis mode enforce`"
    )
    means = {
        "enforce": "what the rules refuse is refused, and what they ask waits for you, from now on",
        "observe": "every call passes, and what the rules would have done is recorded: `aegis audit search`",
    }
    return _one_of("mode", ("enforce", "observe"), "enforce", means)


def _line(what: str, default: str = "") -> str:
    said = str(typer.prompt(what, default=default, show_default=bool(default), err=True)).strip()
    if said.lower() in LEAVE:
        raise typer.Abort
    return said


def _one_of(what: str, choices: Sequence[str], default: str, means: Mapping[str, str] | None = None) -> str:
    """`means`: what is told of each where somebody asks, by `?` or a word that is none of them."""
    asked = f"{what} ({'/'.join(choices)})"
    if sys.stderr.isatty() and len(asked) + len(default) + 6 > _width():
        tell(f"{what}: {', '.join(choices)}")
        asked = what
    while True:
        said = _line(asked, default).lower()
        found = [one for one in choices if said and one.startswith(said)]
        if said in choices or len(found) == 1:
            return said if said in choices else found[0]
        for name, text in (means or {}).items():
            tell(f"  {name}: {text}")
        if not means:
            tell(f"  one of: {', '.join(choices)}")


# --- who uses it ------------------------------------------------------------------------------------------------------


def clients(found: Sequence[tuple[str, str, str]]) -> list[str]:
    """The ids of those that shall use a server that no client's file has. `found`: id, name and file of each."""
    if not found:
        return []
    tell("which of these clients shall use it? Several with spaces between; or `all`, or `none`")
    for name, title, path in found:
        tell(f"  {name}: {visible(title)}, {visible(path)}")
    ids = [name for name, _, _ in found]
    default = ids[0] if len(ids) == 1 else "none"
    while True:
        said = _line("clients", default).lower().replace(",", " ").split()
        if said in (["none"], ["no"]):
            return []
        if said == ["all"]:
            return ids
        meant = [[one for one in ids if one == word] or [one for one in ids if one.startswith(word)] for word in said]
        if meant and all(len(one) == 1 for one in meant):
            return list(dict.fromkeys(one for (one,) in meant))
        wrong = next((word for word, one in zip(said, meant, strict=True) if len(one) != 1), "")
        tell(f"  `{visible(wrong)}` is none of {', '.join(ids)}")


# --- being told -------------------------------------------------------------------------------------------------------


def channel(config: Any, path: str) -> Told:
    """Asks how people are to be told of calls that wait, where the configuration does not say so."""
    if config is not None and (_has_channel(config.approval) or _ruled(config)):
        return Told()
    makers: dict[str, Callable[[str], Told]] = {
        "desktop": _desktop, "ntfy": _ntfy, "telegram": _telegram, "slack": _webhook("slack"),
        "feishu": _webhook("feishu"), "webhook": _webhook("generic"),
    }  # fmt: skip
    if sys.platform == "linux" and shutil.which("notify-send") is None:
        del makers["desktop"]
    tell("some calls will wait for your yes: `aegis pending` shows them. Where else should you be told of them?")
    name = _one_of("tell me by", ("terminal", *makers), "terminal")
    if name == "terminal":
        return Told()
    found = makers[name](path)
    if name in ("ntfy", "slack", "feishu", "webhook") and config_links(config):
        found = Told({**found.settings, **_links()}, found.secrets)
    return found


def config_links(config: Any) -> bool:
    """Whether links lead to this machine alone, as far as the configuration says."""
    return config is None or (config.approval.callback_base_url is None and config.approval.listen is None)


def _ruled(config: Any) -> bool:
    """Whether a person has been through this before: there are rules by tool, and so they have answered."""
    ways = (way for agent in config.agents.values() for way in agent.backends.values())
    return any(way.tool_allowlist is not None and way.approval_required for way in ways)


def _has_channel(approval: Any) -> bool:
    hooks = ("feishu", "generic", "slack", "discord", "teams")
    return bool(
        any(getattr(approval, name).webhook_url for name in hooks)
        or approval.slack.bot_token or approval.telegram.bot_token or approval.ntfy.topic_url
        or approval.desktop.enabled
    )  # fmt: skip


def _desktop(path: str) -> Told:
    return Told({("approval", "desktop", "enabled"): True})


def _ntfy(path: str) -> Told:
    tell("whoever knows the topic reads every request, so it has a name that nobody guesses")
    url = _address("topic", f"https://ntfy.sh/aegis-{secrets.token_urlsafe(18)}")
    say(f"subscribe to {visible(url)} in the ntfy app")
    return _kept(path, {("approval", "ntfy", "topic_url"): ("ntfy.topic", url)})


def _telegram(path: str) -> Told:
    token = _hidden("the bot's token (from @BotFather)")
    while not re.fullmatch(r"[@-]?[A-Za-z0-9_]+", chat := _line("chat id (a number, from @userinfobot)")):
        say("  a number like 123456789, or @name")
    tell("only listed people may decide there: add yourself under `approval.telegram.approvers`")
    told = _kept(path, {("approval", "telegram", "bot_token"): ("telegram.token", token)})
    return Told({**told.settings, ("approval", "telegram", "chat_id"): chat}, told.secrets)


def _webhook(name: str) -> Callable[[str], Told]:
    def ask(path: str) -> Told:
        url = _address("webhook's address", hidden=True)
        return _kept(path, {("approval", name, "webhook_url"): (f"{name}.webhook", url)})

    return ask


def _hidden(what: str) -> str:
    while True:
        said = str(typer.prompt(what, default="", show_default=False, hide_input=True, err=True)).strip()
        if said:
            return said


def _address(what: str, default: str = "", *, hidden: bool = False) -> str:
    while True:
        said = _hidden(what) if hidden else _line(what, default)
        if re.fullmatch(r"https?://[^\s/?#]+[^\s]*", said):
            return said
        say("  write it whole, like `https://example.org/…`")


def _kept(path: str, values: Mapping[tuple[str, ...], tuple[str, str]]) -> Told:
    """Secrets in files of their own beside the configuration, which refers to them."""
    held = {keys: (configuration.free_secret(path, name, value), value) for keys, (name, value) in values.items()}
    return Told(
        {keys: f"${{file:{configuration.SECRETS}/{os.path.basename(file)}}}" for keys, (file, _) in held.items()},
        dict(held.values()),
    )


def _links() -> dict[tuple[str, ...], Any]:
    """Where links in messages lead: to this machine alone, or to a second address that has the approval page alone."""
    address = local_address()
    if not address:
        return {}
    tell(
        f"links in messages lead to this machine alone. On {address}:{LINKS_PORT} others in this network, your phone "
        "too, reach the approval page and nothing else (http, so in a network that you trust)"
    )
    if not confirm("open it?"):
        return {}
    return {
        ("approval", "listen"): f"{address}:{LINKS_PORT}",
        ("approval", "callback_base_url"): f"http://{address}:{LINKS_PORT}",
    }


def local_address() -> str:
    """The address of this machine in its network, "" for none. No packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            found = str(probe.getsockname()[0])
        except OSError:
            return ""
    return "" if found.startswith(("127.", "0.")) else found
