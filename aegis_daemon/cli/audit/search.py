"""`aegis audit search`: calls that are like what is asked for, page by page; it says how far it looked."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import msgspec
import typer

from aegis_daemon.cli.audit.log import Count, Db, micros, opened, what
from aegis_daemon.cli.console import compact, emit, local, say, show, visible
from aegis_daemon.cli.options import Agent, Backend, Json, Since, Tool, nobody

PATIENCE_S: Final = 10.0
STATUSES: Final = ("success", "error", "denied", "unknown", "pending", "would")
VERDICTS: Final = ("allowed", "denied", "asked", "error", "unknown", "would", "pending", "success")
WITHIN: Final = ("arguments", "results", "both")
CALLS: Final = {
    "created_at": "when",
    "call_id": "call",
    "agent_id": "agent",
    "what": "what",
    "arguments": "arguments",
    "verdict": "outcome",
    "took": "took",
}


def _known(value: str | None, words: tuple[str, ...]) -> str | None:
    if value is not None and value not in words:
        raise typer.BadParameter(f"`{visible(value)}` is none of {', '.join(words)}")
    return value


def _by(row: Mapping[str, Any]) -> str:
    if not row["stage"]:
        return ""
    return f" (would be refused: {row['stage']})" if row["would"] else f" ({row['stage']})"


def search(
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="Looked for in the arguments, or where `--in` says.")
    ] = None,
    agent: Agent = None,
    backend: Backend = None,
    tool: Tool = None,
    status: Annotated[
        str | None,
        typer.Option(
            "--status",
            metavar="WORD",
            callback=lambda value: _known(value, STATUSES),
            help=f"One of {', '.join(STATUSES)}.",
        ),
    ] = None,
    verdict: Annotated[
        str | None,
        typer.Option(
            "--verdict",
            metavar="WORD",
            callback=lambda value: _known(value, VERDICTS),
            help="allowed, denied, asked (a person), error, unknown, would (be refused), pending or success.",
        ),
    ] = None,
    stage: Annotated[
        str | None, typer.Option("--stage", metavar="NAME", help="Refused at this stage (globs work).")
    ] = None,
    policy: Annotated[
        str | None, typer.Option("--policy", metavar="ID", help="Decided by this rule (globs work).")
    ] = None,
    approver: Annotated[
        str | None, typer.Option("--approver", metavar="NAME", help="Approved or rejected by them (globs work).")
    ] = None,
    since: Since = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="TIME", help="Before that time; a time without a zone is local.")
    ] = None,
    within: Annotated[
        str,
        typer.Option(
            "--in",
            metavar="PART",
            callback=lambda value: _known(value, WITHIN),
            help="Where TEXT is looked for: arguments, results or both.",
        ),
    ] = "arguments",
    limit: Count = 50,
    before: Annotated[
        int | None, typer.Option("--before", metavar="SEQ", help="The next page: the last row's `seq`.")
    ] = None,
    db: Db = None,
    as_json: Json = False,
) -> None:
    """Calls, newest first."""
    if status is not None and verdict is not None:
        raise typer.BadParameter("`--status` and `--verdict` are two words for the same; give one of them")
    with opened(db) as reader:
        from aegis_daemon.audit.search import Query, find

        query = Query(
            agent=agent,
            backend=backend,
            tool=tool,
            verdict=verdict or status,
            stage=stage,
            policy=policy,
            approver=approver,
            since=micros(since),
            until=micros(until),
            text=text,
            within=within,  # type: ignore[arg-type]  # checked above
        )
        found = find(reader, query, limit=limit, before=before, patience_s=PATIENCE_S)
        purged = reader.purged() if not found.rows else 0
    rows = [msgspec.structs.asdict(row) for row in found.rows]
    if as_json:
        emit(rows)
    else:
        shown = [
            {
                **row,
                "created_at": local(row["created_at"]),
                "call_id": row["call_id"][:12],
                "what": what(row),
                "arguments": compact(row["arguments"] or ""),
                "verdict": row["exec_status"] + _by(row),
                "took": f"{row['exec_duration_ms']} ms" if row["finished_at"] else None,
            }
            for row in rows
        ]
        options = (agent, backend, tool, status, verdict, stage, policy, approver, since, until, text, before)
        asked = any(each is not None for each in options)
        empty = f"no call is kept (records 1 to {purged} were purged)" if purged else "no call was recorded yet"
        empty = "no recorded call matches all of that" if asked else empty
        if db is None:  # another log may know others
            empty = nobody(agent=agent, backend=backend) or empty
        if found.looked_to is not None:
            empty = "none so far"
        if text is not None and within == "arguments":
            empty += "; TEXT is looked for in the arguments alone (`--in both` looks in results too)"
        show(shown, CALLS, empty)
    if found.looked_to is not None:
        reached = datetime.fromtimestamp(found.looked_to_ts / 1e6, UTC).isoformat()
        say(
            f"looked back to {local(reached)} only, in {PATIENCE_S:.0f} s: "
            f"go on with `--before {found.looked_to}`, or ask for less time with `--since` and `--until`"
        )
    elif not as_json and len(rows) == limit:
        say(f"older ones: repeat with `--before {rows[-1]['seq']}`, or see one with `aegis audit show CALL`")
