"""Every check runs beside the others, within a bound, and none keeps the others from telling what they found."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

from aegis_daemon.onboarding.checks import clients, config, daemon, files, install, log, machine
from aegis_daemon.onboarding.codes import CODES
from aegis_daemon.onboarding.scene import Finding, Scene

Check = Callable[[Scene], Iterator[Finding]]
CHECKS: Final[tuple[tuple[str, Check], ...]] = (
    ("the installation", install.check),
    ("the daemon", daemon.check),
    ("starting the daemon", daemon.autostart),
    ("files and permissions", files.check),
    ("the configuration", config.check),
    ("clients and the programs of servers", clients.check),
    ("the clock", machine.clock),
    ("the disk", machine.disk),
    ("the log", log.check),
)
"""what it looks at → who looks"""
BOUND_S: Final = 15.0
"""After this, what a check has not told is not waited for."""


def examine(scene: Scene, *, bound: float = BOUND_S) -> list[Finding]:
    """Everything that is found, worst first, else in the order of the codes. Changes nothing."""
    found: list[Finding] = []
    lock = threading.Lock()
    open_checks = dict(CHECKS)

    def run(name: str, check: Check) -> None:
        try:
            told = list(check(scene))
        except Exception as error:  # a check with a fault is one more finding, not the end of the others
            if scene.env.get("AEGIS_DEBUG"):
                import traceback

                traceback.print_exc()
            told = [Finding("check-unfinished", f"{name}: {type(error).__name__}: {error}", name)]
        with lock:
            if open_checks.pop(name, None) is not None:
                found.extend(told)

    threads = [threading.Thread(target=run, args=row, daemon=True) for row in CHECKS]
    for thread in threads:
        thread.start()
    until = time.monotonic() + bound
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    with lock:
        found += [Finding("check-unfinished", f"{name}: no answer within {bound:g} s", name) for name in open_checks]
        open_checks.clear()
    found = _once(found)
    order = {name: at for at, name in enumerate(CODES)}
    rank = {"error": 0, "warning": 1, "note": 2}
    return sorted(found, key=lambda one: (rank[one.severity], order[one.code], one.subject, one.text))


def _once(found: list[Finding]) -> list[Finding]:
    """Without the daemon's warnings of what the checks of clients' files say more exactly."""
    files = {one.subject for one in found if one.code.startswith("client-") and one.subject}

    def repeats(one: Finding) -> bool:
        return one.code == "daemon-warns" and any(f" in {path} " in f"{one.text} " for path in files)

    return [one for one in found if not repeats(one)]


def mend(found: list[Finding]) -> tuple[list[Finding], list[tuple[Finding, str]]]:
    """Does the safe things: (what was mended, what could not be and why). The rest is a person's."""
    done: list[Finding] = []
    failed: list[tuple[Finding, str]] = []
    for one in found:
        if one.mend is None:
            continue
        try:
            one.mend()
        except OSError as error:
            failed.append((one, (error.strerror or str(error)).lower()))
        else:
            done.append(one)
    return done, failed
