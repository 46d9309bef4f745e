"""Splunk's HTTP Event Collector gets each batch in one request, and with `ack` it counts once Splunk has it indexed.

`POST /services/collector/event`, gzip, `Authorization: Splunk TOKEN`, JSON objects one after another. With
acknowledgement every request names our channel, Splunk answers with an `ackId`, and `POST /services/collector/ack`
is asked for it; what is not acknowledged in time is sent again as a whole. A request that Splunk finds too large is
cut in two, a single event that is too large goes without its bodies, and where that is too large as well a gap event
takes its place. No redirect is followed, no proxy is used.

Source: Splunk Enterprise, "Format events for HTTP Event Collector", "About HTTP Event Collector Indexer
Acknowledgment", "Troubleshoot HTTP Event Collector" (codes).
"""

from __future__ import annotations

import gzip
import socket
import time
import uuid
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from aegis_daemon.exports.event import Encode, Event, too_long
from aegis_daemon.exports.exchange import Exchange
from aegis_daemon.exports.sink import Sink, Trouble, aside

POLL_S: Final = (0.2, 0.5, 1.0, 2.0)
"""Pauses before the first, second, … look for an acknowledgement; the last for all that follow."""
_WORDS: Final = {
    1: "its token is disabled",
    2: "it wants a token",
    3: "it cannot read the authorization",
    4: "it does not know the token",
    5: "it found no event in the request",
    6: "it cannot read an event",
    7: "the token may not write to that index",
    8: "it has an internal error",
    9: "it is busy",
    10: "it wants a channel: the token has acknowledgement enabled, so set `ack: true`",
    11: "it cannot read the channel",
    12: "an event in the request is empty",
    13: "an event in the request is blank",
    14: "acknowledgement is disabled for the token: set `ack: false`, or enable it in Splunk",
    23: "it is shutting down",
    26: "its queues are full",
    27: "its acknowledgement channel is full",
}


class Settings(msgspec.Struct, frozen=True):
    """`token` is the secret; durations in seconds."""

    url: str
    token: str
    ack: bool = False
    ack_timeout: float = 60.0
    index: str | None = None
    source: str = "aegis"
    sourcetype: str = "aegis:ocsf"
    host: str = ""
    ca_file: str | None = None
    timeout: float = 30.0


class _Answer(msgspec.Struct):
    code: int = -1
    ackId: int | None = None  # noqa: N815  Splunk's name
    acks: dict[str, bool] = {}


class Hec(Sink):
    """One collector, over one connection."""

    def __init__(
        self, settings: Settings, encode: Encode, *, sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._encode = encode
        self._sleep = sleep
        self._clock = clock
        self._channel = str(uuid.uuid4())
        parts = urlsplit(settings.url)
        self._base = (
            parts.path.rstrip("/").removesuffix("/services/collector/event").removesuffix("/services/collector")
        )
        self._exchange = Exchange(settings.url, settings.ca_file, settings.timeout)
        self._closing = False

    async def send(self, batch: list[Event]) -> None:
        """Returns once Splunk took the batch, or has indexed it where `ack` is set."""
        await aside(lambda: self._send(batch))

    async def close(self) -> None:
        """Closes the connection, and ends a wait for an acknowledgement."""
        self._closing = True
        self._exchange.drop()

    def _send(self, batch: list[Event]) -> None:
        body = b"\n".join(self._wrapped(event) for event in batch)
        status, answer, after = self._ask("event", gzip.compress(body, 5), packed=True)
        if status == 413:
            if len(batch) > 1:
                half = len(batch) // 2
                self._send(batch[:half])
                self._send(batch[half:])
                return
            event = batch[0]
            bare = event.bare()
            if bare is not event:
                self._send([bare])
                return
            if event.kind not in ("gap", "test"):
                self.skipped += (event,)
                self._send([too_long(event)])
                return
        if status != 200 or answer.code not in (0, -1):
            raise Trouble(_fault(status, answer), after)
        if self._settings.ack:
            if answer.ackId is None:
                raise Trouble(
                    "it gave no acknowledgement id: enable indexer acknowledgement for the token, or set `ack: false`"
                )
            self._wait_for(answer.ackId)

    def _wrapped(self, event: Event) -> bytes:
        settings = self._settings
        head: dict[str, Any] = {
            "time": f"{event.ts // 1_000_000}.{event.ts % 1_000_000:06}",
            "host": settings.host or socket.gethostname(),
            "source": settings.source,
            "sourcetype": settings.sourcetype,
        }
        if settings.index:
            head["index"] = settings.index
        head["event"] = msgspec.Raw(self._encode(event))
        head["fields"] = {"aegis_uid": event.uid, "aegis_kind": event.kind}
        return msgspec.json.encode(head)

    def _wait_for(self, ack: int) -> None:
        ends = self._clock() + self._settings.ack_timeout
        looks = 0
        asked = msgspec.json.encode({"acks": [ack]})
        while True:
            self._sleep(POLL_S[min(looks, len(POLL_S) - 1)])
            looks += 1
            status, answer, after = self._ask(f"ack?channel={self._channel}", asked)
            if status == 200 and answer.acks.get(str(ack)):
                return
            if status not in (200, 503):
                raise Trouble(_fault(status, answer), after)
            if self._clock() >= ends or self._closing:
                raise Trouble(
                    f"what was sent is not indexed after {self._settings.ack_timeout:.0f} s; it is sent again"
                )

    def _ask(self, what: str, body: bytes, *, packed: bool = False) -> tuple[int, _Answer, float | None]:
        headers = {
            "Authorization": f"Splunk {self._settings.token}",
            "Content-Type": "application/json",
            "User-Agent": "aegis",
        }
        if packed:
            headers["Content-Encoding"] = "gzip"
        if self._settings.ack:
            headers["X-Splunk-Request-Channel"] = self._channel
        path = f"{self._base}/services/collector/{what}"
        answer = self._exchange.post(path, body, headers)
        return answer.status, _read(answer.body), answer.after_s


def _read(data: bytes) -> _Answer:
    try:
        return msgspec.json.decode(data, type=_Answer)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _Answer()


def _fault(status: int, answer: _Answer) -> str:
    """In words of ours alone: what it says may be what we sent."""
    word = _WORDS.get(answer.code)
    return f"it answered {status}" + (f": {word}" if word else "")


def make(settings: Settings, encode: Encode) -> Hec:
    """The sink."""
    return Hec(settings, encode)
