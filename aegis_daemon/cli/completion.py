"""`aegis completion`: the script by which a shell asks what may come next, printed or put where the shell looks.

The answers themselves are Typer's (`_AEGIS_COMPLETE`). Nothing of them is ever evaluated by a shell of ours, and what
is asked is the `aegis` of PATH, never the one of a directory that a person has only begun to type (`./aegis`).
"""

from __future__ import annotations

import os
import re
from typing import Annotated, Final

import typer

from aegis_daemon.cli.console import DONE, USAGE, Problem, emit, say, visible
from aegis_daemon.cli.options import Json, new_app

app = new_app()

BASH: Final = r"""# aegis: completion for bash. `aegis completion bash --install` puts it where bash-completion looks.
_aegis_completion() {
    local IFS=$'\n'
    COMPREPLY=($(COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD _AEGIS_COMPLETE=complete_bash aegis 2>/dev/null))
}
complete -o default -F _aegis_completion aegis
"""
ZSH: Final = r"""#compdef aegis
# aegis: completion for zsh. `aegis completion zsh --install` puts it into a directory for `fpath`.
_aegis() {
    local -a found
    local line
    for line in "${(@f)$(_AEGIS_COMPLETE=complete_fish _TYPER_COMPLETE_FISH_ACTION=get-args \
        _TYPER_COMPLETE_ARGS="${words[1,$CURRENT]}" aegis 2>/dev/null)}"; do
        [[ -n $line ]] || continue
        if [[ $line == *$'\t'* ]]; then
            found+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}")
        else
            found+=("${line//:/\\:}")
        fi
    done
    if (( $#found )); then _describe -V aegis found; else _files; fi
}
if [[ $funcstack[1] == _aegis ]]; then _aegis "$@"; else compdef _aegis aegis; fi
"""
FISH: Final = r"""# aegis: completion for fish. `aegis completion fish --install` puts it where fish looks.
function __aegis_complete
    set -lx _AEGIS_COMPLETE complete_fish
    set -lx _TYPER_COMPLETE_FISH_ACTION get-args
    set -lx _TYPER_COMPLETE_ARGS (commandline -cp)
    aegis 2>/dev/null
end
complete --command aegis --no-files --arguments '(__aegis_complete)' --condition 'test -n "$(__aegis_complete)"'
"""
SCRIPTS: Final = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def place(shell: str) -> str:
    """Where that shell finds the script by itself, or where a person has it look (zsh)."""
    home = os.path.expanduser("~")
    data, config = os.environ.get("XDG_DATA_HOME", ""), os.environ.get("XDG_CONFIG_HOME", "")
    data = data if data.startswith("/") else f"{home}/.local/share"
    config = config if config.startswith("/") else f"{home}/.config"
    return {
        "bash": f"{data}/bash-completion/completions/aegis",
        "zsh": f"{data}/zsh/site-functions/_aegis",
        "fish": f"{config}/fish/completions/aegis.fish",
    }[shell]


def hint(shell: str) -> str:
    """What the person does for it to be used."""
    return {
        "bash": "open a new terminal; without the package `bash-completion`: `. <(aegis completion bash)` in ~/.bashrc",
        "zsh": f"once in ~/.zshrc, before `compinit`: `fpath=({os.path.dirname(place('zsh'))} $fpath)`; a new terminal",
        "fish": "open a new terminal",
    }[shell]


@app.command()
def completion(
    shell: Annotated[
        str | None,
        typer.Argument(
            metavar="SHELL", help="`bash`, `zsh` or `fish`; else that of $SHELL.", autocompletion=lambda: list(SCRIPTS)
        ),
    ] = None,
    install: Annotated[bool, typer.Option("--install", help="Put it where the shell looks.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Take it away again.")] = False,
    as_json: Json = False,
) -> int:
    """Print the script that completes commands, options, tickets, agents, servers and tools, or install it."""
    name = shell if shell is not None else os.environ.get("SHELL", "").rpartition("/")[2]
    if name not in SCRIPTS:
        what = f"no completion for `{visible(name, 40)}`" if name else "the shell is not known"
        raise Problem(what, "name one: `aegis completion bash`, `zsh` or `fish`", USAGE)
    path = place(name)
    if remove:
        if ours(path):
            os.unlink(path)
            say(f"removed {visible(path)}")
        else:
            say(f"{visible(path)} is not there, or not ours")
    elif install:
        if os.path.lexists(path) and not ours(path):
            raise Problem(f"`{path}` is there and was not written by Aegis", "look at it, and move it away")
        from aegis_daemon.clients.files import write_private

        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_private(path, SCRIPTS[name].encode())
        say(f"wrote {visible(path)}; {hint(name)}")
    elif not as_json:
        print(SCRIPTS[name], end="")
    if as_json:
        emit({"shell": name, "path": path, "installed": ours(path), "script": SCRIPTS[name]})
    return DONE


def ours(path: str) -> bool:
    """Whether that file is such a script of ours."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return re.search(r"^# aegis: completion for ", file.read(400), re.M) is not None
    except OSError:
        return False
