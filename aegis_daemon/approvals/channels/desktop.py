"""A notification on the desktop of the daemon's user; its buttons, where wanted, are that user's word.

A program of the system shows it: `notify-send`, or `osascript` on macOS, which has no buttons. It gets a list of
arguments and never a shell; a body is markup to some desktops and has escapes of its own, so both are taken from it.

Sources: libnotify's `notify-send`, the Desktop Notifications Specification (markup), `osascript`.
"""

from __future__ import annotations

import os
import sys
from typing import Final

from aegis_daemon.approvals.channels.notice import Heard, Notice, Post, Trouble, shown, title

ARGUMENTS_CHARS: Final = 400
NAME_CHARS: Final = 100
_SCRIPT: Final = (
    "on run argv",
    "display notification (item 2 of argv) with title (item 1 of argv)",
    "end run",
)


class Desktop:
    """`approval.desktop`. `user` is who sits there: the daemon's own user."""

    name = "desktop"

    def __init__(self, user: str, *, buttons: bool = False, mac: bool = False) -> None:
        self._user = user
        self._buttons = buttons and not mac
        self._mac = mac

    @property
    def answers(self) -> bool:
        """Whether it has buttons."""
        return self._buttons

    def command(self, notice: Notice) -> tuple[str, ...]:
        """The program that shows it, and with buttons waits until one is pressed."""
        text, whole = _text(notice)
        if self._mac:
            script = [word for line in _SCRIPT for word in ("-e", line)]
            return ("osascript", *script, title(notice), text)
        options = ["--app-name=Aegis", "--category=im"]
        if self._buttons and notice.proof and not notice.test:
            options += ["--urgency=critical", "--print-id", "--wait"]
            options += ["--action=approve=Approve"] if whole else []
            options += ["--action=reject=Reject"]
        else:
            options.append("--urgency=normal")
        # notify-send expands backslashes of the body after we have made them, so each is doubled.
        from html import escape  # here, since its table of entities is large

        return ("notify-send", *options, "--", title(notice), escape(text).replace("\\", "\\\\"))

    def pressed(self, notice: Notice, line: bytes) -> Heard | None:
        """Which button: the program prints its name. Its first line is the notification's number."""
        action = line.strip()
        if not self._buttons or action not in (b"approve", b"reject"):
            return None
        return Heard(notice.call_id, notice.proof, action == b"approve", f"user:{self._user}", self._user)

    # It sends nothing over the network; the program's end is its answer.

    def post(self, notice: Notice, now: float) -> Post:
        """There is none."""
        raise Trouble("a desktop is not posted to")

    def fault(self, status: int, body: bytes) -> str | None:
        """There is no answer."""
        return None

    def handle(self, body: bytes) -> str:
        """The program closes the notification when it is interrupted."""
        return ""

    def closing(self, notice: Notice, handle: str, how: str) -> Post | None:
        """As `handle` says."""
        return None

    async def listen(self, reach: object, hear: object) -> None:
        """Answers come from the program that shows the notification."""


def configured(*, enabled: bool = False, buttons: bool = False) -> Desktop | None:
    """The channel of a section, None where it is off."""
    return Desktop(_user(), buttons=buttons, mac=sys.platform == "darwin") if enabled else None


def _user() -> str:
    try:
        import pwd

        return pwd.getpwuid(os.geteuid()).pw_name
    except (ImportError, KeyError):
        return f"uid {os.geteuid()}" if hasattr(os, "geteuid") else "the desktop's user"


def _text(notice: Notice) -> tuple[str, bool]:
    """What it says, and whether that is the whole call."""
    told, arguments, whole = shown(notice, NAME_CHARS, ARGUMENTS_CHARS)
    lines = [f"{label}: {value}" for label, value in told]
    if notice.headline:
        return "\n".join(lines), True
    lines.append(arguments)
    if not whole:
        lines.append(f"(cut; see `aegis pending`, then `aegis approve {notice.id}`)")
    return "\n".join(lines), whole
