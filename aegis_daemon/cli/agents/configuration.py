"""What the configuration says of wired servers, and the secrets that it names: written whole, or put back as it was."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Collection
from contextlib import suppress
from secrets import token_urlsafe
from typing import TYPE_CHECKING, Any, Final

from aegis_daemon.cli import link
from aegis_daemon.cli.agents.diff import plain_word
from aegis_daemon.cli.agents.planning import Work
from aegis_daemon.cli.console import Problem
from aegis_daemon.cli.decision import own_key
from aegis_daemon.cli.editing import edited, written
from aegis_daemon.clients import files, trial
from aegis_daemon.clients.plans import Change
from aegis_daemon.manage.client import DaemonAway, Refused

if TYPE_CHECKING:
    from aegis_daemon.clients.catalog import Client


SECRETS: Final = "secrets"
"""The directory beside the configuration where headers of servers go that clients had in their files."""


def configure(work: Work) -> None:
    """What the configuration has to say, so that what is wired can be used. Raises `Problem`."""
    from aegis_daemon.config.opening import HEAD, opened
    from aegis_daemon.config.splice import Change as Put
    from aegis_daemon.config.splice import splice

    path = work.paths.config
    base = os.path.dirname(path)
    changes = [(plan.client, change) for plan in work.plans for change in plan.changes]
    if not changes or work.here.isolated:
        return

    def edit(text: str) -> str:
        for client, change in changes:
            put = server_settings(client, change)
            done = opened(text, path, change.agent, change.backend, put, base=base)
            if done.steps:
                work.edits.append(done)
                work.secrets |= (
                    server_secrets(work, client, change) if any("made known" in s.text for s in done.steps) else {}
                )
            text = done.text
        return text

    if not os.path.lexists(path):
        work.config_old, new = b"", edit(HEAD)
        for keys, value in closed_api(work).items():
            new = splice(new, Put(keys, "put", value))[0]
    else:
        work.config_old, new = edited(path, edit)
    work.config_new = new.encode()


def closed_api(work: Work) -> dict[tuple[str, ...], str]:
    """What a new configuration says so that its API asks for a token; the file that is to hold it is in `work`.

    Without one every user of the machine may read what agents do. The command line, the inbox (`aegis ui`) and the
    links of messages need none; a program finds it in that file.
    """
    token = token_urlsafe(32)
    path = free_secret(work.paths.config, "api.token", token)
    work.secrets[path] = token
    return {("server", "api_token"): f"${{file:{SECRETS}/{os.path.basename(path)}}}"}


def server_settings(client: Client, change: Change) -> dict[str, Any]:
    """What the configuration says of a server that the daemon reaches itself; nothing of one that is handed over."""
    server = change.server
    if server is None or server.kind != "http":
        return {}
    named = {what: f"${{file:{SECRETS}/{os.path.basename(path)}}}" for what, (path, _) in _held(client, change).items()}
    found: dict[str, Any] = {"url": named.get("", trial.expanded(server.url, os.environ, client.env_syntax))}
    if server.transport in ("sse", "websocket"):
        found["transport"] = server.transport
    found["headers"] = {name: text for name, text in named.items() if name}
    return found


def server_secrets(work: Work, client: Client, change: Change) -> dict[str, str]:
    """The files to which `server_settings` refers, and what they hold."""
    del work
    if change.server is None or change.server.kind != "http":
        return {}
    return dict(_held(client, change).values())


def _held(client: Client, change: Change) -> dict[str, tuple[str, str]]:
    """Each header, and "" for the address where it may hold a secret: the file that is to hold it, and its text.

    The same as long as nothing is written: a file that is there keeps its name, unless it says the same.
    """
    server = change.server
    assert server is not None
    values = {name: trial.expanded(value, os.environ, client.env_syntax) for name, value in server.headers.items()}
    url = trial.expanded(server.url, os.environ, client.env_syntax)
    if secretive(url) or url != server.url:  # the value of a variable may be anything
        values[""] = url
    taken: dict[str, str] = {}
    found = {}
    for what, value in values.items():
        path = free_secret(link.paths().config, f"{change.backend}.{(what or 'url').lower()}", value, taken)
        taken[path] = what
        found[what] = (path, value)
    return found


def free_secret(config: str, name: str, value: str, taken: Collection[str] = ()) -> str:
    """The path of a file for a secret beside the configuration, that is free or holds just this already.

    :param name: the wish; what a path or a reference cannot hold is left out. :param taken: paths that are given away.
    """
    base = os.path.join(os.path.dirname(config), SECRETS)
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip(".-") or "secret"
    for number in itertools.count(1):
        path = os.path.join(base, plain if number == 1 else f"{plain}-{number}")
        if path not in taken and (not os.path.lexists(path) or _holds(path, value)):
            break
    return path


def _holds(path: str, value: str) -> bool:
    """Whether a file of ours holds just this. What a link leads to is somebody else's."""
    try:
        return not os.path.islink(path) and files.read(path) == value.encode()
    except (OSError, files.Unfit):
        return False


def secretive(url: str) -> bool:
    """Whether an address may hold a secret: a login, anything behind its path, or a part of it that nobody guesses.

    One with a `$` counts: in a file of its own it stands for itself, and in the configuration something could be put
    in there.
    """
    return any(char in url for char in "@?#$") or plain_word(url) != url


def write_config(work: Work) -> None:
    """Writes the configuration and what it refers to, and has it reloaded. Raises `Problem`; then it is as it was."""
    if work.config_new == work.config_old:
        return
    path = work.paths.config
    try:
        _write_secrets(work)
        if work.config_old:
            written(path, work.config_old, work.config_new, keep=False)
        else:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            files.write_new(path, work.config_new)
    except FileExistsError as there:
        config_back(work)
        raise Problem(f"`{there.filename}` has appeared meanwhile; nothing was done", "repeat it") from None
    except BaseException:
        config_back(work)
        raise
    try:
        link.call("reload", key=own_key())
    except DaemonAway:
        pass  # the first wrapper that is started starts one
    except Refused as refused:
        config_back(work)
        raise Problem(f"the daemon refuses the file, so it was put back: {refused.message}", refused.hint) from None


def _write_secrets(work: Work) -> None:
    """Raises `FileExistsError` for a file that holds something else."""
    for secret, text in work.secrets.items():
        os.makedirs(os.path.dirname(secret), mode=0o700, exist_ok=True)
        if not _holds(secret, text):
            files.note(secret)
            files.write_new(secret, text.encode())
            work.made.append(secret)


def config_back(work: Work) -> None:
    """Puts the configuration back as it was before `write_config`, where nobody has changed it since."""
    from aegis_daemon.config.rewrite import Moved, replace

    if work.config_new == work.config_old:
        return
    path = work.paths.config
    with suppress(Moved, OSError):
        if work.config_old:
            replace(path, work.config_new, work.config_old, keep=False)
        elif files.read(path) == work.config_new:
            os.unlink(path)
    while work.made:
        with suppress(OSError):
            os.unlink(work.made.pop())
    with suppress(DaemonAway, Refused):
        link.call("reload", key=own_key())
