"""`aegis policy`: whether policies can be used, and what the rules say of one call. Reads files, changes nothing."""

from __future__ import annotations

import difflib
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aegis_daemon.cli import link
from aegis_daemon.cli.audit.log import Db, opened
from aegis_daemon.cli.config import checked, fault_row, tell
from aegis_daemon.cli.console import DONE, USAGE, WRONG, Problem, emit, rich, say, visible
from aegis_daemon.cli.options import Config, Json, new_app
from aegis_daemon.cli.policy.cases import cases
from aegis_daemon.cli.policy.replay import replay
from aegis_daemon.cli.policy.suggest import suggest
from aegis_daemon.core.past import NAME_CAP

if TYPE_CHECKING:
    from aegis_daemon.config.load import Fault, Loaded

app = new_app()
_HERE = "the command line"


@app.command()
def validate(
    files: Annotated[
        list[str] | None, typer.Argument(metavar="[FILE…]", help="Policy files; else those of the configuration.")
    ] = None,
    config: Config = None,
    no_pins: Annotated[
        bool, typer.Option("--no-pins", help="Do not hold them against the tools that the daemon knows.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Check policies and tell everything that is wrong with them at once. Changes nothing.

    Also tells where they and the rules on arguments do not fit the tools that the daemon knows.
    """
    from aegis_daemon.config.load import ConfigFaults, load

    faults: list[Fault] = []
    warnings: tuple[Fault, ...] = ()
    count = tools = 0
    try:
        loaded = _beside(files, link.paths(config).config) if files else load(link.paths(config).config)
        count = len(loaded.config.policy.statements)
        warnings = loaded.warnings
        if not no_pins:
            unfit, surprising, tools = held_against_pins(loaded, link.paths(config).state_db, quiet=as_json)
            faults, warnings = unfit, (*warnings, *surprising)
    except ConfigFaults as found:
        faults = found.faults
    if as_json:
        emit([fault_row(one, "fault") for one in faults] + [fault_row(one, "warning") for one in warnings])
        return WRONG if faults else DONE
    tell(faults, warnings)
    if faults:
        say(f"{len(faults)} fault{'s' * (len(faults) != 1)} found; nothing was changed")
        return WRONG
    valid = f"{count} polic{'y is' if count == 1 else 'ies are'} valid" if count else "there are no policies"
    against = f"held against {tools} tool{'s' * (tools != 1)}"
    if tools and count:
        valid += f", and {against}"
    elif tools and loaded.config.constraints:
        valid += f"; the rules on arguments were {against}"
    say(valid)
    return DONE


def _beside(files: list[str], config: str) -> Loaded:
    """These policies, read beside the agents, roles and backends of the configuration. Raises `ConfigFaults`."""
    import msgspec

    from aegis_daemon.config.load import ConfigFaults, loads
    from aegis_daemon.config.source import Fault

    def read(named: dict[str, Any]) -> Loaded:
        return loads(json.dumps({**named, "policy": {"files": files}}), _HERE, base=os.getcwd())  # JSON is YAML

    named = _named(config)
    try:
        try:
            loaded = read(named)
        except ConfigFaults as found:
            if all(one.file != _HERE or one.path.startswith("policy.") for one in found.faults):
                raise
            named = {}
            loaded = read(named)
    except ConfigFaults as found:
        told = [Fault("", 0, 0, "", one.message, one.hint) if one.file == _HERE else one for one in found.faults]
        raise ConfigFaults(told) from None
    # Without a configuration nothing is known of who there is.
    return loaded if named else msgspec.structs.replace(loaded, warnings=())


def _named(config: str) -> dict[str, Any]:
    """Who and what a configuration names, whatever else is wrong with it; nothing if it cannot be read."""
    from aegis_daemon.config.load import ConfigFaults
    from aegis_daemon.config.overlay import settings
    from aegis_daemon.config.source import read_file

    try:
        found = settings(read_file(config), config)
    except ConfigFaults:
        return {}
    agents, backends = found.get("agents"), found.get("backends")
    if not isinstance(agents, dict) or not isinstance(backends, dict):
        return {}
    roles = {name: one.get("roles") if isinstance(one, dict) else None for name, one in agents.items()}
    return {
        "agents": {name: {"roles": one} if isinstance(one, list) else {} for name, one in roles.items()},
        "backends": {name: {} for name in backends},
    }


def held_against_pins(loaded: Loaded, state_db: str, *, quiet: bool) -> tuple[list[Fault], list[Fault], int]:
    """Faults and warnings of the rules by the tools that are pinned, and how many these are. Raises `Problem`."""
    from aegis_daemon.config.fitting import Pinned, Unread, faults, review
    from aegis_daemon.config.slips import slips

    try:
        pinned = Pinned(state_db)
    except Unread as error:
        raise Problem(str(error), "leave the tools out with `--no-pins`") from None
    if quiet or not sys.stderr.isatty():
        found = review(loaded.config, pinned)
    else:
        from rich.progress import Progress

        with Progress(console=rich(stderr=True), transient=True) as bar:
            task = bar.add_task("tools", total=len(pinned))
            found = review(loaded.config, pinned, lambda done: bar.update(task, completed=done))
    surprising = [*faults(loaded, found.warnings), *slips(loaded, pinned.tools())]
    return faults(loaded, found.faults), surprising, len(pinned)


@app.command()
def explain(
    call: Annotated[str, typer.Argument(metavar="CALL", help="A call id of the log, or BACKEND.TOOL with --agent.")],
    agent: Annotated[str | None, typer.Option("--agent", metavar="ID", help="Who would call.")] = None,
    args: Annotated[str, typer.Option("--args", metavar="JSON", help="The arguments.")] = "{}",
    method: Annotated[str, typer.Option("--method", metavar="NAME", help="Another method than a tool's call.")] = "",
    config: Config = None,
    db: Db = None,
    as_json: Json = False,
) -> int:
    """Tell what each stage says of a call by today's file, and which rule decides. Exit 1 where it is refused."""
    from aegis_daemon.config.explain import Unasked
    from aegis_daemon.config.explain import explain as explained
    from aegis_daemon.config.fitting import Pinned, Unread, fitted
    from aegis_daemon.config.runtime import build

    agent, backend, method, params = _asked(call, agent, args, method, db)
    loaded = checked(config).config
    try:
        pinned = Pinned(link.paths(config).state_db)
        runtime = fitted(build(loaded, ""), loaded, pinned)
    except Unread as error:
        raise Problem(str(error), "start the daemon once, which mends or refuses it") from None
    try:
        steps = explained(runtime, agent, backend, method, params, time.monotonic())
    except Unasked as error:
        raise Problem(str(error), "check the arguments") from None
    decided = next((step for step in steps if step.opinion == "deny"), None)
    held = next((step for step in steps if step.opinion == "hold"), None)
    verdict = "deny" if decided else "hold" if held else "allow"
    if runtime.pipeline.observe and decided is not None:
        verdict = "allow"
    if as_json:
        rows = [{name: getattr(step, name) for name in step.__struct_fields__} for step in steps]
        emit({"agent": agent, "backend": backend, "method": method, "verdict": verdict, "stages": rows})
    else:
        for step in steps:
            print(visible(f"{step.stage:10} {step.opinion:5} {step.rule}".rstrip()))
        by = (
            f" by {decided.stage}: {decided.text}"
            if decided
            else f" until a person agrees: {held.rule}"
            if held
            else ""
        )
        print(visible(f"{'allowed' if verdict == 'allow' else 'refused' if decided else 'held'}{by}"))
        tool = str(params.get("name", "")) if method == "tools/call" else ""
        for note in _unknown(loaded, agent, backend, tool, pinned.tools().get(backend, set())):
            say(note)
        if runtime.pipeline.observe and decided is not None:
            say("mode is `observe`: it would pass, and be recorded as refused")
    return WRONG if verdict == "deny" else DONE


def _unknown(config: Any, agent: str, backend: str, tool: str, tools: set[str]) -> list[str]:
    """Names that the file does not have, and a tool that the server does not, as far as that is known; for people."""
    told = []
    for what, name, known in (("agent", agent, config.agents), ("backend", backend, config.backends)):
        if name not in known:
            near = difflib.get_close_matches(name[:80], list(known)[:1000], 1)
            hint = f"; did you mean `{visible(near[0])}`?" if near else ""
            told.append(f"the file names no {what} `{visible(name)}`{hint}")
    if tool and tools and tool not in tools:
        near = difflib.get_close_matches(tool[:80], sorted(tools)[:2000], 1)
        known = "1 other is known" if len(tools) == 1 else f"{len(tools)} others are known"
        hint = f"did you mean `{visible(near[0])}`?" if near else known
        told.append(f"`{visible(backend)}` has no tool `{visible(tool)}`; {hint}")
    return told


def _asked(
    call: str, agent: str | None, args: str, method: str, db: str | None
) -> tuple[str, str, str, dict[str, Any]]:
    """Agent, backend, method and parameters of what is to be explained. Raises `Problem`."""
    if agent is None:
        return _recorded(call, db)
    backend, dot, name = call.partition(".")
    try:
        arguments = json.loads(args)
    except ValueError:
        raise Problem("`--args` is no JSON", 'write it like `--args \'{"path": "/x"}\'`', USAGE) from None
    if method and method != "tools/call":
        if not isinstance(arguments, dict):
            raise Problem("`--args` is no object", "give the method's parameters", USAGE)
        return agent, backend, method, arguments
    if not dot or not name:
        raise Problem(f"`{call}` names no tool", "write `BACKEND.TOOL`", USAGE)
    return agent, backend, "tools/call", {"name": name, "arguments": arguments}


def _recorded(id: str, db: str | None) -> tuple[str, str, str, dict[str, Any]]:
    from aegis_daemon.audit.store import Ambiguous, NotFound

    if "." in id:  # ids are hexadecimal
        raise Problem(f"`{id}` is no id of a call", "for a call that was not made add `--agent ID`", USAGE)
    with opened(db) as reader:
        try:
            found = reader.show(id).call
        except NotFound as error:
            raise Problem(str(error), "for a call that was not made write `BACKEND.TOOL --agent ID`") from None
        except Ambiguous as error:
            raise Problem(str(error), f"one of {', '.join(error.ids)}") from None
    try:
        arguments = json.loads(found.arguments or "")
    except ValueError:
        raise Problem(
            "the arguments of that call are not kept whole", "give them with `--args` and `--agent`"
        ) from None
    if len(found.tool_name) > NAME_CAP and found.method == "tools/call":
        raise Problem("the log has only the beginning of that tool's name", "write `BACKEND.TOOL --agent ID`")
    if found.method == "tools/call":
        return found.agent_id, found.backend_id, found.method, {"name": found.tool_name, "arguments": arguments}
    return found.agent_id, found.backend_id, found.method, arguments


app.command("test")(cases)
app.command()(replay)
app.command()(suggest)
