"""`aegis policy suggest`: the least that agents need, by what they did. Reads the log and prints; changes nothing."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from aegis_daemon.cli.audit.log import Db, opened
from aegis_daemon.cli.config import checked
from aegis_daemon.cli.console import DONE, USAGE, Problem, emit, say, visible
from aegis_daemon.cli.options import Agent, Config, Json
from aegis_daemon.cli.policy.replay import Past_, calls, micros, progress

if TYPE_CHECKING:
    from aegis_daemon.config.load import Loaded
    from aegis_daemon.config.replay import Judge
    from aegis_daemon.config.suggest import Learner, Suggestion
    from aegis_daemon.core.past import Past

_MERGE: Final = {
    "yaml": "merge it in, a list in the place of the one that is there",
    "cedar": "name the file in `policy.files`, beside those that are there",
}
"""format → what is to be done with it in the configuration"""
_WIDEST: Final = 60
"""Behind longer commands, what they do does not line up."""


def suggest(
    since: Past_ = "7d",
    agent: Agent = None,
    format: Annotated[str, typer.Option("--format", metavar="WORD", help="`yaml`, or `cedar` for policies.")] = "yaml",
    observed: Annotated[
        bool, typer.Option("--observed", help="Also learn from calls that only mode `observe` let pass.")
    ] = False,
    config: Config = None,
    db: Db = None,
    as_json: Json = False,
) -> int:
    """Print the lists and rules that permit what was done and nothing more, to be merged into the file by hand.

    Learned from calls that succeeded and that today's file lets pass; what is printed was checked against them.
    """
    from aegis_daemon.config.overlay import merged, settings, whole
    from aegis_daemon.config.replay import Judge
    from aegis_daemon.config.source import ConfigFaults, read_file
    from aegis_daemon.config.suggest import Learner, proved
    from aegis_daemon.config.suggest import suggest as suggested
    from aegis_daemon.config.suggested import as_cedar, as_yaml

    if format not in ("yaml", "cedar"):
        raise Problem(f"`{format}` is no format", "write `--format yaml` or `--format cedar`", USAGE)
    loaded = checked(config)
    present = settings(read_file(loaded.path), loaded.path)
    span: dict[str, Any] = {"since": micros(since), "until": int(time.time() * 1e6)}
    learner = Learner(loaded.config, observed=observed)

    def judged_by(made: Suggestion) -> Judge:
        above = made.settings()
        if format == "cedar":
            policy = present.get("policy") or {}
            above = {"policy": {"text": f"{policy.get('text') or ''}\n{as_cedar(made, loaded.config, ())}"}}
        base = os.path.dirname(loaded.path)
        try:
            return Judge(whole(merged(present, above), "the suggestion", base).config)
        except ConfigFaults as faults:
            raise Problem(
                f"what was made of the log cannot be used: {faults.faults[0]}", "please report this"
            ) from None

    with opened(db) as reader:

        def again() -> Iterator[Past]:
            with progress("checking", reader, span, None, reader.past(**span)) as past:
                yield from past

        with progress("learning", reader, span, None, reader.past(**span)) as past:
            for one in past:
                learner.add(one)
        made = proved(suggested(learner, since, agent), learner, judged_by, again)
    if as_json:
        emit(_rows(made))
    else:
        header = _header(learner, since, format, loaded.path)
        text = as_cedar(made, loaded.config, header) if format == "cedar" else as_yaml(made, header)
        print(text, end="")
    _tell(learner, made)
    if any(entry.kind != "unused" for entry in made.entries):
        changed = {"--since": since if since != "7d" else None, "--format": format if format != "yaml" else None}
        same = [*_options({"--agent": agent, **changed}), *["--observed"] * observed]
        _next(same, _options({"--config": config, "--db": db}), format, loaded, printed=as_json or sys.stdout.isatty())
    return DONE


def _options(given: Mapping[str, str | None]) -> list[str]:
    return [word for name, value in given.items() if value is not None for word in (name, value)]


def _next(same: list[str], where: list[str], format: str, loaded: Loaded, *, printed: bool) -> None:
    """What to type to make use of it; `printed`: it is in no file yet. `same` and `where` are options as given."""
    file = f"suggested.{format}" if printed else "FILE"
    path = shlex.quote(loaded.path) if loaded.path else '"$(aegis config path)"'
    steps = [
        (f"{shlex.join(['aegis', 'policy', 'suggest', *same, *where])} > {file}", "keep it, and read it"),
        (f"{shlex.join(['aegis', 'policy', 'replay', '--policy', file, *where])}", "what it would decide otherwise"),
        (f"${{EDITOR:-vi}} {path}", _MERGE[format]),
        ("aegis daemon reload", "take it up"),
    ]
    if loaded.config.mode == "observe":
        steps.append(("aegis mode enforce", "let it hold; until then it is only observed"))
    steps = steps if printed else steps[1:]
    width = min(_WIDEST, max(len(command) for command, _ in steps))
    say("next:")
    for command, why in steps:
        say(f"  {visible(command).ljust(width)}  # {why}")


def _header(learner: Learner, since: str, format: str, path: str) -> list[str]:
    lines = [f"by `aegis policy suggest`: the least that {calls(learner.calls)} of the last {since} needed"]
    lines += _left_out(learner)
    lines.append("what it would change: `aegis policy replay --policy THIS_FILE`")
    lines.append(f"to use it: in `{path or 'the configuration'}` {_MERGE[format]}; then `aegis daemon reload`")
    return lines


def _left_out(learner: Learner) -> list[str]:
    lines = []
    for count, what in (
        (learner.refused, "refused"),
        (learner.failed, "failed or without an end"),
        (learner.now_refused, "refused by today's file, though they passed then"),
    ):
        if count:
            lines.append(f"not learned from: {calls(count)} {what}")
    if learner.once_refused:
        lines.append(f"learned from {calls(learner.once_refused)} that mode `observe` alone let pass")
    return lines


def _tell(learner: Learner, made: Suggestion) -> None:
    rules = len(made.entries)
    say(f"learned from {calls(learner.calls)}: {rules} suggestion{'s' * (rules != 1)}; nothing was changed")
    for line in _left_out(learner):
        say(f"  {line}")
    if learner.now_refused and not learner.once_refused:
        say("  `--observed` learns from those of them that mode `observe` let pass, too")


def _rows(made: Suggestion) -> list[dict[str, Any]]:
    from aegis_daemon.config.source import dotted

    return [
        {
            "kind": entry.kind,
            "path": dotted(entry.path),
            "value": None if entry.value is None else json.dumps(entry.value),
            "agent_id": entry.agent,
            "backend_id": entry.backend,
            "tool_name": entry.tool,
            "argument": entry.argument,
            "calls": entry.calls,
            "few": entry.few,
            "observed": entry.observed,
            "reason": entry.reason,
        }
        for entry in made.entries
    ]
