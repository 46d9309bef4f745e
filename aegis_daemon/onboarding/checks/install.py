"""The installation lasts: the wrapper is beside the command, and neither is gone when a cache is cleared."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from importlib import metadata

from aegis_daemon.clients.standing import WRAPPER
from aegis_daemon.onboarding.scene import Finding, Scene


def check(scene: Scene) -> Iterator[Finding]:
    """Where this Aegis is."""
    for path in dict.fromkeys((scene.python, scene.here.wrapper)):
        both = (path, os.path.realpath(path)) if path == scene.here.wrapper else (path,)
        if path and any(part in one for part in scene.ephemeral for one in both):
            yield Finding("install-ephemeral", f"`{path}` is in a cache", path)
            break
    missing = sorted(name for name in needed() if not there(name))
    if missing:
        yield Finding("install-incomplete", f"missing: {', '.join(missing)}")
    if not scene.here.wrapper:
        yield Finding("wrapper-missing", f"nothing of that name is in `{os.path.dirname(scene.python)}`")
        return
    for path in dict.fromkeys((scene.here.wrapper, *([scene.service.program] if scene.service is not None else []))):
        if place := checkout(path, str(scene.home)):
            yield Finding("install-checkout", f"`{path}` is part of the checkout `{place}`", path)
            break
    first = shutil.which(WRAPPER, path=scene.env.get("PATH"))
    if first is not None and os.path.realpath(first) != os.path.realpath(scene.here.wrapper):
        yield Finding("wrapper-elsewhere", f"`{first}` comes before `{scene.here.wrapper}`", first)


def checkout(path: str, home: str) -> str:
    """The checkout of a repository in which a program lies; "" for none. One that holds the whole home does not count.

    :param path: absolute; of a link what counts is where it leads. :param home: the person's own directory.
    """
    at, own = os.path.dirname(os.path.realpath(path)), os.path.realpath(home)
    while at != os.path.dirname(at) and not f"{own}/".startswith(f"{at}/"):
        if os.path.lexists(os.path.join(at, ".git")):
            return at
        at = os.path.dirname(at)
    return ""


def needed() -> list[str]:
    """The packages that this one needs here, without those of extras."""
    try:
        wanted = metadata.requires("aegis-mcp") or []
    except metadata.PackageNotFoundError:
        return []
    plain = [one for one in wanted if "extra ==" not in one and "win32" not in one]
    return [found[0] for one in plain if (found := re.match(r"[\w.-]+", one)) is not None]


def there(name: str) -> bool:
    """Whether a package is installed."""
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
