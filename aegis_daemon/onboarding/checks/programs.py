"""What servers are started with is found by those who start it, and is new enough."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from aegis_daemon.onboarding.scene import Finding, Scene

DESKTOP: Final = frozenset({"claude-desktop", "lm-studio", "junie"})
"""Programs that a desktop starts and that do not ask a shell for its PATH, as editors do."""
_BARE: Final = {
    "darwin": "/usr/bin:/bin:/usr/sbin:/sbin",
    "linux": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/snap/bin:~/.local/bin:~/bin",
}
ASK_S: Final = 4.0
_VERSION: Final = re.compile(r"(\d+)\.(\d+)")
_OLDEST: Final = {"node": (18, 0), "python": (3, 10), "uv": (0, 0)}
_ENGINES: Final = frozenset({"docker", "podman"})
_PLACEHOLDER: Final = re.compile(r"[$%{]")


@dataclass(frozen=True, slots=True)
class Started:
    """A command line of a server, and who starts it."""

    words: tuple[str, ...]
    path: str
    """the PATH that its entry sets; "" for none"""
    named: str
    """for people"""
    subject: str
    desktop: bool
    trusted: bool = False
    """whether a person had it wired or configured as it is: nothing else is ever run, not even for its version"""


def check(scene: Scene, started: list[Started]) -> Iterator[Finding]:
    """Whether each command is found, and what its runtime says of itself."""
    runtimes: dict[tuple[str, str], Started] = {}
    for one in started:
        command = one.words[0]
        if _PLACEHOLDER.search(command) or (os.sep in command and not os.path.isabs(command)):
            continue  # only the client knows what that is
        path = one.path or scene.env.get("PATH") or os.defpath
        found = shutil.which(command, path=path)
        if found is None:
            yield Finding("command-missing", f"`{command}` of {one.named} is not on the PATH", one.subject)
            continue
        if (
            one.desktop
            and not os.path.isabs(command)
            and not one.path
            and shutil.which(command, path=bare(scene)) is None
        ):
            fix = f"write `{found}` in place of `{command}`"
            yield Finding("command-path", f"`{command}` of {one.named} is `{found}`", one.subject, fix)
        runtime = runtime_of(command) if one.trusted else None
        if runtime is not None:
            program = shutil.which("node", path=path) if runtime == "node" else found
            if program is None:
                yield Finding("command-missing", f"`{command}` of {one.named} needs `node`", one.subject)
            else:
                runtimes.setdefault((runtime, program), one)
    if runtimes:
        with ThreadPoolExecutor(len(runtimes)) as pool:
            for findings in pool.map(lambda row: list(_ask(row[0][0], row[0][1], row[1])), runtimes.items()):
                yield from findings


def bare(scene: Scene) -> str:
    """The PATH of what a desktop starts."""
    return _BARE.get(sys.platform, os.defpath).replace("~", str(scene.home))


def runtime_of(command: str) -> str | None:
    """`node`, `python`, `uv`, `docker`, `podman`; None for any other program."""
    name = command.rpartition("/")[2]
    if name in ("npx", "node", "npm"):
        return "node"
    if name in ("uvx", "uv"):
        return "uv"
    if re.fullmatch(r"python[\d.]*", name):
        return "python"
    return name if name in _ENGINES else None


def _ask(runtime: str, program: str, one: Started) -> Iterator[Finding]:
    engine = runtime in _ENGINES
    words = [program, "version", "--format", "{{.Server.Version}}"] if engine else [program, "--version"]
    try:
        done = subprocess.run(  # noqa: S603 - the program of an entry that is wired already
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=ASK_S,
            check=False, cwd="/",
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        yield Finding("check-unfinished", f"`{program}` did not tell its version within {ASK_S:g} s", program)
        return
    except OSError as error:
        yield Finding("runtime-broken", f"`{program}`: {error.strerror}", program)
        return
    said = (done.stdout.strip() or done.stderr.strip()).splitlines()
    if done.returncode:
        text = f"`{program}`: {(done.stderr.strip().splitlines() or said or ['no word'])[-1][:300]}"
        yield Finding("docker-away" if engine else "runtime-broken", f"{text}; {one.named} needs it", program)
        return
    version = _VERSION.search(said[0]) if said else None
    oldest = _OLDEST.get(runtime, (0, 0))
    if version is not None and (int(version[1]), int(version[2])) < oldest:
        wanted = ".".join(map(str, oldest)).removesuffix(".0")
        text = f"`{program}` is {said[0][:60]}, and {one.named} needs {wanted} or newer"
        yield Finding("runtime-old", text, program)
