"""Every command of `aegis` is one row of `COMMANDS`; a command's file is imported when it is used, and only then."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from typer.core import TyperGroup

from aegis_daemon import __version__
from aegis_daemon.cli import helping
from aegis_daemon.cli.console import AWAY, USAGE, WRONG, Problem, complain, remedy
from aegis_daemon.cli.options import new_app
from aegis_daemon.core.extras import REINSTALL
from aegis_daemon.manage.client import DaemonAway, Refused

if TYPE_CHECKING:
    from typer._click import Command, Context

COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "setup": ("setup.command", "Find agents and servers, propose rules, and put them through Aegis."),
    "demo": ("demo", "A five-minute tour, sandboxed; no other software needed."),
    "agents": ("agents.commands", "Agents, their servers, and putting them through Aegis."),
    "status": ("status", "The daemon, its sessions and what waits."),
    "pending": ("pending", "Calls that wait for a person."),
    "approve": ("approve", "Let waiting calls run, once."),
    "reject": ("reject", "Refuse waiting calls."),
    "notify": ("notify", "The ways by which people are told of waiting calls."),
    "allow": ("allow", "Change the rules so that a refused call passes."),
    "grants": ("grants", "Approvals that are remembered."),
    "pause": ("pause", "Stop an agent, or all of them, at once."),
    "resume": ("resume", "Let an agent, or all of them, go on."),
    "mode": ("mode", "Whether rules are enforced, and what they would have refused."),
    "policy": ("policy.commands", "Check policies, and tell what the rules say of a call."),
    "tools": ("tools", "What servers say of their tools, and what of it has changed."),
    "backends": ("backends", "MCP servers, and whether they answer."),
    "ui": ("ui", "Open the inbox in a browser."),
    "limits": ("limits", "Limits and how far they are used."),
    "queue": ("queue", "Calls in the backends' queues."),
    "audit": ("audit.commands", "What was asked, decided and answered."),
    "config": ("config", "Make, check and show the configuration."),
    "daemon": ("daemon.commands", "Start, stop and reload the daemon."),
    "logs": ("logs", "The daemon's own log."),
    "doctor": ("doctor", "Find everything that is wrong with this installation."),
    "uninstall": ("uninstall.command", "Take Aegis away, and leave everything as it was."),
    "completion": ("completion", "Completion of commands and names in the shell."),
    "version": ("version", "Which version this is."),
}
"""name → (module in this package that holds `app`, one line of help)"""


INTERRUPTED: Final = 130
"""what shells say of a command that ended by an interrupt"""


class Unread(Exception):
    """Whoever read our output has enough of it."""


class Root(TyperGroup):
    """Finds commands by `COMMANDS`, takes a configuration file in place of one, and words every error alike."""

    def list_commands(self, ctx: Context) -> list[str]:
        """In the table's order."""
        return list(COMMANDS)

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        """Imports the command."""
        if cmd_name not in COMMANDS:
            return None
        module, help_text = COMMANDS[cmd_name]
        whole = f"aegis_daemon.cli.{module}"
        try:
            app: typer.Typer = importlib.import_module(whole).app
        except ModuleNotFoundError as error:
            if error.name not in (whole, whole.rpartition(".")[0]):
                raise
            app = _missing(cmd_name)
        app.info.help = app.info.help if isinstance(app.info.help, str) else help_text
        command = typer.main.get_command(app)
        command.name = cmd_name
        command.help = help_text if not command.help else command.help
        command.short_help = help_text
        lighten(command)
        helping.dress(command, cmd_name)
        return command

    def format_commands(self, ctx: Context, formatter: Any) -> None:
        """The table, for which no command is imported."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def shell_complete(self, ctx: Context, incomplete: str) -> list[Any]:
        """Commands by their table: to import each takes longer than a person waits for a key."""
        from typer._click.shell_completion import CompletionItem

        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        return [CompletionItem(name, help=text) for name, (_, text) in COMMANDS.items() if name.startswith(incomplete)]

    def resolve_command(self, ctx: Context, args: list[str]) -> tuple[str | None, Command | None, list[str]]:
        """`aegis CONFIG` is `aegis daemon run --config CONFIG`."""
        name = args[0]
        if name in COMMANDS or name.startswith("-"):
            return super().resolve_command(ctx, args)
        if name.endswith((".yaml", ".yml")) or os.path.isfile(name):
            return super().resolve_command(ctx, ["daemon", "run", "--config", *args])
        if ctx.resilient_parsing:
            return None, None, args
        near = get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean `aegis {near[0]}`?" if near else "see `aegis --help`"
        raise Problem(f"no command and no file is called `{name}`", hint, USAGE)

    def invoke(self, ctx: Context) -> Any:
        """Runs the command. Typer would take a reader that has gone for a failure."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise Unread from None

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Runs, and ends the process with the exit status of the contract."""
        lighten(self)
        if "_AEGIS_COMPLETE" in os.environ:
            plain_completion()
        run = super().main
        sys.exit(guarded(lambda: run(args, prog_name, complete_var, False, windows_expand_args, **extra)))


class Plain:
    """How the text of an argument becomes its value, for the kinds that `COMMANDS` use."""

    def __init__(self, kind: type, low: int | None) -> None:
        self._kind = kind
        self._low = low

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """The value. Raises `typer.BadParameter`."""
        if value is None:
            return () if param.multiple or param.nargs == -1 else None
        if self._kind is not int:
            return value
        try:
            number = int(value)
        except ValueError:
            raise typer.BadParameter(f"`{value}` is no whole number", ctx=ctx, param=param) from None
        if self._low is not None and number < self._low:
            raise typer.BadParameter(f"`{number}` is less than {self._low}", ctx=ctx, param=param)
        return number


def _untyped(ctx: Any) -> None:
    """In place of the `<list[str]>` that Typer writes beside an argument in the help."""


def lighten(command: Any) -> None:
    """Spares a command, and those below it, the import of pydantic.

    Typer (0.29) builds a pydantic adapter for each argument, texts and numbers and `--help` included: `aegis status`
    takes 88 ms without and 179 ms with that. A Typer without the attribute needs no help.
    """
    params = command.get_params

    def light(ctx: Any) -> Any:
        found = params(ctx)
        for param in found:
            described = getattr(param, "type_descriptor", None)
            if described is not None and getattr(param, "_runtime_param", 0) is None:
                kind = described.annotation
                if getattr(param, "param_type_name", "") == "argument":
                    param.display_type_rich = _untyped
                if kind in (str, int, bool, list[str]):
                    param._runtime_param = Plain(kind, getattr(described.parameter_info, "min", None))
        return found

    command.get_params = light
    for below in getattr(command, "commands", {}).values():
        lighten(below)


def plain_completion() -> None:
    """Spares the shell's completion the import of Rich, which would take markup out of help texts that hold none."""
    with suppress(ImportError):
        from typer import _completion_classes

        _completion_classes.completion_init()  # which Typer does for its own options alone
        if hasattr(_completion_classes, "_sanitize_help_text"):
            _completion_classes._sanitize_help_text = lambda text: text


def guarded(command: Any) -> int:
    """The exit status of a command; whatever it raises is told in one or two lines, never as a traceback."""
    try:
        code = command()
        sys.stdout.flush()
    except Problem as problem:
        complain(problem.message, problem.hint)
        return problem.code
    except DaemonAway as away:
        from aegis_daemon.cli import link

        complain(*link.away(str(away)))
        return AWAY
    except Refused as refused:
        complain(refused.message, refused.hint)
        return WRONG
    except typer.Abort as left:
        interrupted = isinstance(left.__context__, KeyboardInterrupt)
        if interrupted and sys.stderr.isatty():
            print(file=sys.stderr)  # the terminal has written `^C` behind the question
        complain("left without an answer; nothing was changed")
        return INTERRUPTED if interrupted else WRONG
    except typer.Exit as done:
        return done.exit_code
    except (Unread, BrokenPipeError):
        # Whoever read the output has enough. What Python still holds must not be flushed to it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        return _unexpected(error)
    return code if isinstance(code, int) else 0


def _unexpected(error: Exception) -> int:
    say_usage = getattr(error, "format_message", None)
    if say_usage is not None:  # Typer's own, for a command line that makes no sense
        context = getattr(error, "ctx", None)
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error, file=sys.stderr)
        else:
            text = re.sub(r"'([^'`]*)'", r"`\1`", say_usage()).strip().rstrip(".")
            complain(text[:1].lower() + text[1:], f"see `{context.command_path if context else 'aegis'} --help`")
        return USAGE
    if os.environ.get("AEGIS_DEBUG"):
        import traceback

        traceback.print_exc()
    kind = type(error).__name__
    if isinstance(error, OSError) and error.filename:
        complain(f"`{error.filename}`: {error.strerror or kind}", remedy(error))
    else:
        complain(f"unexpected fault: {kind}: {error}", "set AEGIS_DEBUG=1 and repeat to see where; please report it")
    return WRONG


def _missing(name: str) -> typer.Typer:
    app = new_app()

    @app.command()
    def absent() -> None:
        raise Problem(f"`aegis {name}` is not part of this installation", f"install Aegis again, whole: {REINSTALL}")

    return app


app = typer.Typer(
    cls=Root,
    name="aegis",
    no_args_is_help=True,
    add_completion=False,  # `aegis completion` does that, and edits nobody's files
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    subcommand_metavar="COMMAND [ARGS]...  |  CONFIG",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="`aegis CONFIG` runs the daemon in the foreground with that file.",
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"aegis {__version__}")
        raise typer.Exit(0)


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Hard rules for AI agents: access, limits, approvals, queues and a tamper-evident log."""


def run() -> None:
    """The `aegis` command."""
    app(prog_name="aegis")


if __name__ == "__main__":
    run()
