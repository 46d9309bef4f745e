"""`aegis policy replay`: which recorded calls would be decided otherwise now. Reads the log, changes nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import typer

from aegis_daemon.cli import link
from aegis_daemon.cli.audit.log import Db, opened
from aegis_daemon.cli.config import checked, tell
from aegis_daemon.cli.console import CELL_MAX, DONE, WRONG, Problem, emit, rich, say, show, visible
from aegis_daemon.cli.options import Agent, Backend, Config, Json, Limit, Tool, since_epoch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aegis_daemon.audit.store import Reader
    from aegis_daemon.config.load import Loaded
    from aegis_daemon.config.replay import Change, Tally
    from aegis_daemon.core.past import Past

EVERY: Final = 200
"""Calls between two steps of the progress bar."""
_COLUMNS: Final = {
    "calls": "calls",
    "who": "agent",
    "what": "what",
    "change": "then -> now",
    "rule": "rule",
    "call": "call",
}
_WORDS: Final = {"allow": "allowed", "ask": "asked", "deny": "refused", "unknown": "unknown"}
Past_ = Annotated[str, typer.Option("--since", metavar="TIME", help="Not older than `10m`, `7d`, or an RFC 3339 time.")]
Until = Annotated[str | None, typer.Option("--until", metavar="TIME", help="Before that time.")]


def replay(
    policy: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            metavar="FILE",
            help="In place of the configuration's policies; YAML is laid over the whole file. Repeatable.",
        ),
    ] = None,
    since: Past_ = "7d",
    until: Until = None,
    agent: Agent = None,
    backend: Backend = None,
    tool: Tool = None,
    limit: Limit = None,
    every: Annotated[bool, typer.Option("--list", help="Each such call, rather than how many are alike.")] = False,
    config: Config = None,
    db: Db = None,
    as_json: Json = False,
) -> int:
    """Judge recorded calls by today's file, or another, and tell which would be decided otherwise.

    Exit 1 where one would, or where it was stopped before the end. Limits, budgets and pauses are not replayed, and
    mode `observe` counts as `enforce`.
    """
    from aegis_daemon.config.replay import Judge, Tally

    loaded = candidate(config, policy)
    tally = Tally(Judge(loaded.config))
    span = {"agent": agent, "backend": backend, "tool": tool, "since": micros(since), "until": micros(until)}
    listed = _Listed(as_json) if every else None
    with opened(db) as reader:
        finished = _replay(reader, span, limit, tally, listed)
    if listed is not None:
        listed.close()
    elif as_json:
        emit([_row(one) for one in tally.changes()])
    else:
        show([_shown(one) for one in tally.changes()], _COLUMNS, "")
    _sum_up(tally, finished=finished)
    return WRONG if tally.changed or not finished else DONE


def candidate(config: str | None, policies: list[str] | None) -> Loaded:
    """The configuration to judge by. Raises `Problem` after telling every fault."""
    if not policies:
        return checked(config)
    from aegis_daemon.config.load import ConfigFaults
    from aegis_daemon.config.overlay import with_policies

    path = link.paths(config).config
    try:
        loaded = with_policies(path, policies)
    except ConfigFaults as found:
        tell(found.faults, ())
        raise Problem("these policies cannot be used", "mend the faults above; nothing was replayed") from None
    tell([], loaded.warnings)
    return loaded


def micros(text: str | None) -> int | None:
    """Microseconds since the epoch. Raises `Problem`."""
    seconds = since_epoch(text)
    return None if seconds is None else int(seconds * 1e6)


@contextmanager
def progress(
    what: str, reader: Reader, span: dict[str, Any], limit: int | None, calls: Iterable[Past]
) -> Iterator[Any]:
    """The calls, with a bar on a terminal."""
    calls = islice(calls, limit)
    if not sys.stderr.isatty():
        yield calls
        return
    from rich.progress import Progress

    total = reader.count_past(**span)
    with Progress(console=rich(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=min(total, limit) if limit is not None else total)

        def counted() -> Iterator[Past]:
            for number, past in enumerate(calls):
                if number % EVERY == 0:
                    bar.update(task, completed=number)
                yield past

        yield counted()


def _replay(reader: Reader, span: dict[str, Any], limit: int | None, tally: Tally, listed: _Listed | None) -> bool:
    """False where somebody stopped it (Ctrl-C); what was seen until then counts."""
    try:
        with progress("replaying", reader, span, limit, reader.past(**span)) as calls:
            for past in calls:
                change = tally.add(past)
                if change is not None and listed is not None:
                    listed.add(change)
    except KeyboardInterrupt:
        return False
    return True


class _Listed:
    """Each call as it is found, so that a million of them take no room: lines, or one array of rows."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._first = True
        if as_json:
            sys.stdout.write("[")

    def add(self, change: Change) -> None:
        if not self._as_json:
            row = _shown(change)
            parts = (_when(change.ts), row["call"], row["who"], row["what"], row["change"], row["rule"])
            print("  ".join(visible(str(part), CELL_MAX) for part in parts).rstrip())
            return
        import json

        sys.stdout.write(("" if self._first else ",\n") + json.dumps(_row(change), separators=(",", ":")))
        self._first = False

    def close(self) -> None:
        if self._as_json:
            sys.stdout.write("]\n")
        sys.stdout.flush()


def _row(change: Change) -> dict[str, Any]:
    row = msgspec.structs.asdict(change)
    row["created_at"] = datetime.fromtimestamp(row.pop("ts") / 1e6, UTC).isoformat(timespec="microseconds")
    return row


def _when(ts: int) -> str:
    return datetime.fromtimestamp(ts / 1e6).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _shown(change: Change) -> dict[str, Any]:
    name = f"{change.backend_id}.{change.tool_name}" if change.tool_name else change.backend_id
    was = {"observe": "allowed (observe)"}.get(change.then_stage, _WORDS[change.then] + _by(change.then_stage))
    return {
        "calls": change.calls,
        "who": change.agent_id,
        "what": name if change.method == "tools/call" else f"{change.method} {name}",
        "change": f"{was} -> {_WORDS[change.now]}{_by(change.now_stage)}",
        "rule": change.rule,
        "call": change.call_id[:12],
    }


def _by(stage: str) -> str:
    return f" ({stage})" if stage else ""


def number(count: int) -> str:
    """`1 204`."""
    return f"{count:,}".replace(",", " ")


def calls(count: int) -> str:
    """`1 call`, `1 204 calls`."""
    return f"{number(count)} call{'s' * (count != 1)}"


def _sum_up(tally: Tally, *, finished: bool) -> None:
    parts = [f"{number(tally.as_before)} as before"]
    for count, what in (
        (tally.refused, "would be refused"),
        (tally.asked, "would be asked"),
        (tally.allowed, "would be allowed"),
        (tally.unknown, "unknown"),
    ):
        if count:
            parts.append(f"{number(count)} {what}")
    say(f"{calls(tally.calls)}: {', '.join(parts)}")
    if tally.strangers:
        say(f"  {number(tally.strangers)} of these are of agents or backends that are not configured any more")
    if tally.unknown:
        say("  unknown: a rule looks at what is not in the log as it was (redacted, erased), or at what limits counted")
    if tally.left_out:
        say(f"  {calls(tally.left_out)} more ended by a limit, a pause or a fault; those are not replayed")
    if tally.ungrouped:
        say(f"  {calls(tally.ungrouped)} of too many kinds to list; `--list` has each")
    if not finished:
        say("stopped before the end: older calls were not looked at")
