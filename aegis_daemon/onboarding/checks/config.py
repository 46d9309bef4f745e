"""The configuration is there, right, in force, and nobody else can change it or read its secrets."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from aegis_daemon.config.fitting import Pinned, Unread
from aegis_daemon.config.load import ConfigFaults, Fault, digest
from aegis_daemon.config.slips import slips
from aegis_daemon.onboarding.checks.files import tighten
from aegis_daemon.onboarding.scene import Finding, Scene

SHOWN: Final = 5
_FILE: Final = re.compile(r"(?<!\$)\$\{file:([^{}]+)\}")
_PERMS: Final = re.compile(r"can change the rules|able to read the tokens")
"""Warnings of the file's permissions, which have codes of their own here."""


def check(scene: Scene) -> Iterator[Finding]:
    """The file, and what it says."""
    path = scene.paths.config
    if not os.path.lexists(path):
        yield Finding("config-missing", f"there is no `{path}`", path)
        return
    if not os.access(path, os.R_OK) and scene.paths.doors:
        return  # in the isolated tier it is root's and the daemon's
    yield from _rights(path, told=not scene.paths.doors)
    try:
        loaded = scene.settings.loaded()
    except ConfigFaults as found:
        yield from _several("config-faulty", found.faults, path)
        return
    warnings = [*loaded.warnings]
    with suppress(Unread):  # without its pins nothing is known of the tools' arguments
        warnings += slips(loaded, Pinned(scene.paths.state_db).tools())
    said = set(map(str, scene.status["warnings"])) if scene.status is not None else set()
    shown = [one for one in warnings if not _PERMS.search(one.message) and str(one) not in said]
    yield from _several("config-warning", shown, path)
    status = scene.status
    if status is not None and status["config"] and os.path.realpath(status["config"]) == os.path.realpath(path):
        in_force = status["config_digest"]
        if in_force is not None and in_force != digest(loaded.config):
            yield Finding("config-not-in-force", f"`{path}` says something else than the daemon read", path)


def _several(code: str, faults: list[Fault], path: str) -> Iterator[Finding]:
    for one in faults[:SHOWN]:
        yield Finding(code, str(one), path)
    if len(faults) > SHOWN:
        yield Finding(code, f"{len(faults) - SHOWN} more", path)


def _rights(path: str, *, told: bool) -> Iterator[Finding]:
    try:
        found = os.stat(path)
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read(1 << 20)
    except OSError:
        return  # `load` says why
    mode = stat.S_IMODE(found.st_mode)
    root_and_daemon = found.st_uid == 0 and os.geteuid() != 0
    if mode & 0o022 and not root_and_daemon:
        fix = f"`aegis doctor --fix`, or `chmod go-w {path}`"
        yield Finding("config-open", f"`{path}` has mode {mode:04o}", path, fix, tighten(path, 0o022))
    if mode & (0o004 if root_and_daemon else 0o044) and holds_secret(text):
        fix = f"`aegis doctor --fix`, `chmod 600 {path}`, or write `${{env:NAME}}` in place of the secrets"
        yield Finding("config-secret-open", f"`{path}` holds tokens, mode {mode:04o}", path, fix, tighten(path))
    base = os.path.dirname(os.path.abspath(path))
    for name in dict.fromkeys(_FILE.findall(text)):
        file_path = os.path.normpath(os.path.join(base, os.path.expanduser(name)))
        if told and os.path.dirname(file_path) == os.path.join(base, "secrets"):
            continue  # the check of our own files tells
        with suppress(OSError):
            there = os.stat(file_path)
            if stat.S_ISREG(there.st_mode) and there.st_mode & 0o077 and there.st_uid == os.geteuid():
                mode = stat.S_IMODE(there.st_mode)
                text_ = f"`{file_path}`, to which the configuration refers, has mode {mode:04o}"
                if file_path.startswith(f"{base}/"):
                    fix = f"`aegis doctor --fix`, or `chmod 600 {file_path}`"
                    yield Finding("config-secret-open", text_, file_path, fix, tighten(file_path))
                else:  # other programs may use it as well
                    yield Finding("config-secret-open", text_, file_path, f"`chmod 600 {file_path}`")


_SECRET: Final = re.compile(
    r"""^[ \t]*(?:-[ \t]+)?["']?[\w.-]*(?:token|secret|password|api_key|webhook_url)["']?[ \t]*:[ \t]*"""
    r"""["']?(?!\$\{|null\b|~|["'])[^\s#"'{\[]{8,}""",
    re.M | re.I,
)


def holds_secret(text: str) -> bool:
    """Whether a secret is written into the text itself, rather than looked up."""
    return _SECRET.search(text) is not None
