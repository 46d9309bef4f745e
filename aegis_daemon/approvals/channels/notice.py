"""What a channel is told, and what it makes of it. Channels do no IO: what they need of the network is handed to them.

Every text in a notice may be an agent's: a channel shows it through `core.text.visible`, escaped as its platform asks,
and cut to what the platform takes (`cut`). A test notice has no links and no proof: a channel shows it without buttons.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Final, Protocol, runtime_checkable

import msgspec

from aegis_daemon.core.text import visible

NAME_CHARS: Final = 200
"""Shown of an agent's, a tool's, a backend's or a rule's name."""


class Notice(msgspec.Struct, frozen=True):
    """One ask. `arguments` is JSON text, times are seconds since the epoch.

    `code` is empty unless pages ask for it; `proof` is what an answer from a chat must repeat (`links.proof`).
    """

    id: str
    call_id: str
    agent: str
    backend: str
    tool: str
    arguments: str
    created: float
    approve_url: str
    reject_url: str
    code: str = ""
    expires: float = 0.0
    rule: str = ""
    proof: str = ""
    test: bool = False
    alarm: bool = False
    """whether what it tells is that something is wrong with Aegis itself"""
    headline: str = ""
    """what a message begins with that tells something and asks nothing, and is a test likewise"""
    rows: tuple[tuple[str, str], ...] = ()
    """what it says: labels of our own, and texts"""
    command: str = ""
    """how the server is started, where the agent's end handed that over, and in which directory"""
    cwd: str = ""
    unlike: str = ""
    """what is different from the server of the call that was approved last, where that was another one"""
    look_url: str = ""
    """where a person sees more of it; a channel shows it as a link"""


class Post(msgspec.Struct, frozen=True):
    """One request. The url and the headers may hold secrets."""

    url: str
    headers: Mapping[str, str]
    body: bytes
    method: str = "POST"


class Channel(Protocol):
    """One way to reach people. `name` is its key in the configuration and in the log."""

    @property
    def name(self) -> str:
        """As in `approval.<name>`."""
        ...

    def post(self, notice: Notice, now: float) -> Post:
        """What to send; `now` in seconds since the epoch, since some sign the time."""
        ...

    def fault(self, status: int, body: bytes) -> str | None:
        """None where the answer says that the message was taken, else why not, without secrets."""
        ...

    def handle(self, body: bytes) -> str:
        """What names the sent message later, out of the answer to `post`; empty where nothing can change it."""
        ...

    def closing(self, notice: Notice, handle: str, how: str) -> Post | None:
        """Makes the message say how it ended (`approved by ann`) and takes its buttons; None where that cannot be."""
        ...


class Heard(msgspec.Struct, frozen=True):
    """What a person answered. `id` is a call id or a ticket id; `by` names the person, `voter` tells persons apart."""

    id: str
    proof: str
    approve: bool
    voter: str
    by: str
    note: str = ""


Hear = Callable[[Heard], Awaitable[str]]
"""Decides, and gives the text that tells the person what became of it. Never raises."""


class Socket(Protocol):
    """A WebSocket that is open; iterating ends when it is closed."""

    def __aiter__(self) -> AsyncIterator[str]:
        """Text messages."""
        ...

    async def send(self, text: str) -> None:
        """One text message."""
        ...

    async def close(self) -> None:
        """Ends it. Never raises."""
        ...


class Reach(Protocol):
    """What the daemon does for channels. All of it raises `core.ports.Fault`, whose text holds no address."""

    async def fetch(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        timeout_s: float,
    ) -> tuple[int, bytes]:
        """The answer's status and body (at most 1 MB). Follows no redirects."""
        ...

    def lines(self, url: str, headers: Mapping[str, str]) -> AsyncIterator[bytes]:
        """A response read line by line, none longer than 64 KB, until it ends; silent for 2 minutes is a fault."""
        ...

    async def websocket(self, url: str) -> Socket:
        """Opens one within 10 s; messages are at most 1 MB."""
        ...

    def run(self, argv: tuple[str, ...]) -> AsyncIterator[bytes]:
        """A program's lines of output until it ends. Closing the iterator interrupts the program."""
        ...


@runtime_checkable
class Answering(Protocol):
    """A channel through which people can decide."""

    @property
    def answers(self) -> bool:
        """Whether it is set up for that: someone is mapped, and there is a way to hear them."""
        ...

    async def listen(self, reach: Reach, hear: Hear) -> None:
        """Hears people until cancelled. Raises on trouble (`Trouble` to say which): it is begun again, later each time.

        Returns at once where answers come another way.
        """
        ...


@runtime_checkable
class Posted(Protocol):
    """A channel whose platform posts what people answer to an address of ours, signed."""

    def posted(self, headers: Mapping[str, str], body: bytes, now: float, reach: Reach, hear: Hear) -> bool:
        """Takes one answer; False where the platform did not send it, or not now. Names of headers are lower case.

        Returns at once, since platforms wait for seconds only; the person is told there what became of it.
        """
        ...


@runtime_checkable
class Showing(Protocol):
    """A channel that runs a program of this machine in place of a request."""

    def command(self, notice: Notice) -> tuple[str, ...]:
        """The program and its arguments. It is interrupted when the ask is over. Raises `Trouble`."""
        ...

    def pressed(self, notice: Notice, line: bytes) -> Heard | None:
        """What a line of its output decides."""
        ...


class Trouble(Exception):
    """Why a channel cannot do its work, in words without secrets; `retry_after_s` where it was told how long."""

    def __init__(self, text: str, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


# --- what messages have in common -------------------------------------------------------------------------------------

UNLIKE: Final = "Not the server approved before; different"
TITLE: Final = "Aegis asks: may this call run?"
TEST_TITLE: Final = "Aegis test message: nothing waits, there is nothing to decide"


def title(notice: Notice) -> str:
    """What a message begins with."""
    return notice.headline or (TEST_TITLE if notice.test else TITLE)


def facts(notice: Notice) -> list[tuple[str, str]]:
    """What a message says beside the arguments: labels, and texts in which everything can be seen."""
    if notice.headline:
        return [(label, visible(cut(text, NAME_CHARS))) for label, text in notice.rows if text]
    rows = [
        ("Agent", notice.agent),
        ("Tool", notice.tool),
        ("Backend", notice.backend),
        ("Server", notice.command),
        ("Directory", notice.cwd),
        (UNLIKE, notice.unlike),
        ("Rule", notice.rule),
        ("Id", notice.id),
        ("Code for the page", notice.code),
    ]
    return [(label, visible(cut(text, NAME_CHARS))) for label, text in rows if text]


def shown(
    notice: Notice, names: int, arguments: int, size: Callable[[str], int] = len
) -> tuple[list[tuple[str, str]], str, bool]:
    """`facts` and the arguments, each cut to the sizes given, and whether that is the whole call.

    What is not the whole call must not be approved from: the page shows it all.
    """
    told = [(label, cut(text, names, size)) for label, text in facts(notice)]
    seen = visible(notice.arguments)
    part = cut(seen, arguments, size)
    named = dict(told)
    raw = {"Agent": notice.agent, "Tool": notice.tool, "Backend": notice.backend}
    raw |= {"Server": notice.command, "Directory": notice.cwd, UNLIKE: notice.unlike}
    return told, part, part == seen and all(named.get(label, "") == visible(text) for label, text in raw.items())


def cut(text: str, most: int, size: Callable[[str], int] = len) -> str:
    """The text, or its beginning and `…`, so that it measures at most `most` by `size` (see `utf8`, `utf16`)."""
    if size(text) <= most:
        return text
    low, high = 0, min(len(text), most)
    while low < high:
        middle = (low + high + 1) // 2
        if size(text[:middle] + "…") <= most:
            low = middle
        else:
            high = middle - 1
    return text[:low] + "…"


def utf8(text: str) -> int:
    """Bytes."""
    return len(text.encode("utf-8", "surrogatepass"))


def utf16(text: str) -> int:
    """Code units, as some platforms count."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2
