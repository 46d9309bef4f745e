"""A plan is carried out whole or not at all: under a lock, after a copy, only while its file is what it was made for.

What is changed and what the ledger says of it change together, so that there is always a way back.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from typing import Final

from aegis_daemon.clients import files, ledger
from aegis_daemon.clients.ledger import File, Ledger
from aegis_daemon.clients.plans import Plan

LOCK: Final = "wired.lock"


def new_change() -> str:
    """An id for a run of `wire`."""
    return secrets.token_hex(4)


def apply(plan: Plan, state_dir: str, *, change: str = "", now: float | None = None) -> str:
    """Carries a plan out: ledger, copy, file. Gives the path of the copy, "" where the file did not change.

    :param change: the run of `wire`; "" for one that takes us out.
    :raises files.Moved: the file is not any more what the plan was made for; nothing was changed.
    :raises OSError: it cannot be written; nothing was changed. :raises files.Unfit: nor may it be.
    :raises ledger.Unreadable: see there. An interrupt that comes when the file is changed leaves both changed.
    """
    with files.locked(os.path.join(state_dir, LOCK)):
        known = ledger.load(state_dir)
        if files.read(plan.path) != (None if plan.new else plan.before):
            raise files.Moved(plan.path)
        for left in files.leftovers(plan.path):  # of one that was killed: nobody else is at work now
            with suppress(OSError):
                os.unlink(left)
        copy = ""
        if plan.moves and not plan.new:
            copies = os.path.join(state_dir, ledger.BACKUPS)
            copy = files.back_up(copies, plan.path, plan.before, known.needed(), now)
        new = _written_down(plan, known, change, copy)
        if new == known and not plan.moves:
            return ""
        try:
            ledger.save(state_dir, new)
            _put(plan)
        except BaseException:
            done = plan.moves and _reads(plan.path) == _to_be(plan)
            if not done:  # else only what came then failed
                ledger.save(state_dir, known)
            raise
        if plan.moves and (found := files.read(plan.path)) != _to_be(plan):
            # Somebody was quicker. What is there now is theirs; the ledger says what was put.
            raise files.Moved(plan.path) if found is None else files.Moved(f"{plan.path} (right after)")
        return copy


def _put(plan: Plan) -> None:
    if plan.new:
        try:
            files.write_new(plan.path, plan.after)
        except FileExistsError:
            raise files.Moved(plan.path) from None
    elif plan.gone:
        os.unlink(plan.path)
    elif plan.moves:
        files.replace(plan.path, plan.before, plan.after)


def _to_be(plan: Plan) -> bytes | None:
    """What the file is to hold; None: there is to be none."""
    return None if plan.gone else plan.after


def _reads(path: str) -> bytes | None:
    try:
        return files.read(path)
    except (OSError, files.Unfit):
        return None


def _written_down(plan: Plan, known: Ledger, change: str, copy: str) -> Ledger:
    put = [one.record for one in plan.changes if one.record is not None]
    row = known.file(plan.path)
    unbroken = row is not None and bool(row.before) and row.after == files.digest(plan.before)
    rest = {record.ident for record in known.of(plan.path)} - set(plan.forget)
    if not put and not rest:
        return known.changed(plan.path, drop=plan.forget, file=None)
    if not plan.moves and row is not None and not put:
        return known.changed(plan.path, drop=plan.forget, file=row)
    after = files.digest(plan.after)
    kept = {"format": str(plan.client.format), "target": os.path.realpath(plan.path)}
    if put and unbroken and row is not None:
        runs = row.changes if change in row.changes else (*row.changes, change)
        file = File(plan.path, plan.client.id, row.before, after, row.backup, runs, plan.names, **kept)
    elif put:
        before = ledger.ABSENT if plan.new else files.digest(plan.before)
        file = File(plan.path, plan.client.id, before, after, copy, (change,), plan.names, **kept)
    else:
        # Some of it was taken out: the copy of the whole is the way back no more, each entry has its own.
        left = (*(row.left if row is not None else ()), *(one.name for one in plan.changes))
        file = File(plan.path, plan.client.id, "", after, "", (), left, **kept)
    return known.changed(plan.path, put=put, drop=plan.forget, file=file)


def forget(state_dir: str, path: str) -> None:
    """Drops what is known of a file that is gone. Raises `OSError`, `ledger.Unreadable`."""
    with files.locked(os.path.join(state_dir, LOCK)):
        known = ledger.load(state_dir)
        ledger.save(state_dir, known.changed(path, drop=[one.ident for one in known.of(path)], file=None))
