"""What the export process is to do, as the daemon tells it in its first line."""

from __future__ import annotations

from typing import Any

import msgspec


class Target(msgspec.Struct, frozen=True):
    """One export, or one witness (whose `format` says nothing); `settings` are those of its type."""

    name: str
    type: str
    settings: dict[str, Any]
    format: str = "ocsf"
    begin: str = "start"
    bodies: bool = True
    keep: bool = False


class Job(msgspec.Struct, frozen=True):
    """What to do: the log's file, the cursors' file, and the receivers."""

    store: str
    cursors: str
    exports: list[Target]
    witnesses: list[Target] = []
    doubt: str = ""
    """`module:function` by which it is seen whether the log's key signed a checkpoint; of the daemon's choosing, since
    siblings do not know each other. Called with the key's path, origin, size and note; gives what is wrong, "" for
    nothing."""
    key_file: str = ""
    metrics: dict[str, Any] | None = None
    """where the daemon's numbers go (`otlp.Settings`)"""
