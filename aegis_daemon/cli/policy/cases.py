"""`aegis policy test`: the cases beside the policies, and which rules none of them shows at work. Changes nothing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aegis_daemon.cli import link
from aegis_daemon.cli.config import fault_row, tell
from aegis_daemon.cli.console import DONE, USAGE, WRONG, Problem, emit, say, visible
from aegis_daemon.cli.options import Config, Json

if TYPE_CHECKING:
    from aegis_daemon.config.cases import Result, Run
    from aegis_daemon.config.coverage import Covered


def cases(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE|DIR…]",
            help="Files of cases, or directories with `*.test.yaml`; else those beside the rules.",
        ),
    ] = None,
    config: Config = None,
    as_json: Json = False,
    fail_uncovered: Annotated[
        bool, typer.Option("--fail-uncovered", help="Exit 1 also where a rule is never seen at work.")
    ] = False,
) -> int:
    """Judge the cases in `*.test.yaml` by the rules, and tell which rules no case shows at work."""
    from aegis_daemon.config.cases import run

    path = link.paths(config).config
    runs, faults = run(_files(files, path), path)
    if faults:
        if as_json:
            emit([fault_row(one, "fault") for one in faults])
        tell([] if as_json else faults, ())
        say(f"{len(faults)} fault{'s' * (len(faults) != 1)} found; no case was judged")
        return WRONG
    wrong = sum(bool(result.wrong) for one in runs for result in one.results)
    uncovered = sum(len(one.coverage.uncovered) for one in runs)
    if as_json:
        emit([row for one in runs for row in _rows(one)])
    else:
        for one in runs:
            _told(one)
    count = sum(len(one.results) for one in runs)
    rules = sum(len(one.coverage.rules) for one in runs)
    say(f"{count - wrong} of {count} calls are as expected; {rules - uncovered} of {rules} rules are covered")
    return WRONG if wrong or (fail_uncovered and uncovered) else DONE


def _files(named: list[str] | None, config: str) -> list[str]:
    """The files of cases. Raises `Problem` where there are none, lest nothing be taken for a good result."""
    from aegis_daemon.config.cases import beside, usual
    from aegis_daemon.config.load import ConfigFaults

    if not named:
        try:
            found = usual(config)
        except ConfigFaults as error:
            tell(error.faults, ())
            raise Problem("the configuration cannot be used", "mend it, or name files of cases") from None
        if not found:
            place = os.path.dirname(config)
            raise Problem(f"there is no `*.test.yaml` in `{place}` or beside a policy", "write one, or name it", USAGE)
        return found
    found = []
    for one in named:
        here = beside(one)
        if not here:
            raise Problem(f"there is no `*.test.yaml` in `{one}`", "write one, or name another directory", USAGE)
        found += here
    return list(dict.fromkeys(found))


def _told(run: Run) -> None:
    for result in run.results:
        place = f"{result.file}:{result.line}"
        what = f"{result.name} ({result.agent}: {result.call})"
        if not result.wrong:
            print(visible(f"ok     {place}: {what}"))
            continue
        print(visible(f"WRONG  {place}: {what}: expected {result.expected}, but {result.wrong}"))
        for step in result.steps:
            print(visible(f"         {step.stage:10} {step.opinion:5} {step.rule}".rstrip()))
    uncovered = run.coverage.uncovered
    if uncovered:
        print(visible(f"not covered in {run.config}:"))
        for rule in uncovered:
            print(
                visible(
                    f"  {rule.place}{f' ({rule.where})' if rule.where not in ('', rule.place) else ''}: {_lacks(rule)}"
                )
            )


def _lacks(rule: Covered) -> str:
    return f"has never {' and never '.join(rule.missing)}"


def _rows(run: Run) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {
            "kind": "case",
            "config": run.config,
            "file": result.file,
            "line": result.line,
            "name": result.name,
            "agent_id": result.agent,
            "call": result.call,
            "ok": not result.wrong,
            "expected": result.expected,
            "got": result.got,
            "by": ", ".join(result.by),
            "wrong": result.wrong,
            "stages": _stages(result),
        }
        for result in run.results
    ]
    rows += [
        {
            "kind": "rule",
            "config": run.config,
            "rule": rule.place,
            "place": rule.where,
            "covered": not rule.missing,
            "missing": ", ".join(rule.missing),
        }
        for rule in run.coverage.rules.values()
    ]
    return rows


def _stages(result: Result) -> str:
    return "; ".join(f"{one.stage} {one.opinion}{f' ({one.rule})' if one.rule else ''}" for one in result.steps)
