"""Every channel hears of every new ask and of its end, in its own time: none waits for another, no decision for any.

Messages are tried again with growing pauses, as long as their ticket waits, by the next daemon too; a channel that
wants them slower gets them slower. Channels through which people answer are listened to, each by a task that is begun
again when it fails. An answer counts only with the proof that the message about this very ticket carried. What fails is
told by the channel's name, since an address may be a secret.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any, Final, Literal, Protocol, cast

import msgspec

from aegis_daemon.approvals import links
from aegis_daemon.approvals.channels.notice import (
    Answering,
    Channel,
    Hear,
    Heard,
    Notice,
    Post,
    Posted,
    Reach,
    Showing,
    Trouble,
    cut,
)
from aegis_daemon.approvals.ticket import APPROVED, CONSUMED, EXPIRED, OPEN, PENDING, REJECTED, Ticket
from aegis_daemon.approvals.told import Told
from aegis_daemon.core.ports import Fault
from aegis_daemon.core.text import visible

_log = logging.getLogger("aegis.approvals")
TRIES: Final = 5
"""After so many a channel is said to fail; what asks nothing is given up then."""
TIMEOUT_S: Final = 10.0
PAUSES_S: Final = (1.0, 4.0, 15.0, 60.0)
"""Before the second and the following tries, each up to half longer at random; the last before all that follow."""
TOLD_MAX_S: Final = 300.0
"""The longest pause that a channel can ask for."""
CALM_S: Final = 60.0
"""A channel that has had no message for so long is not slowed down any more."""
AT_ONCE: Final = 8
"""Messages under way to one channel; the others wait for these."""
WAITING_MAX: Final = 256
"""Messages of one channel that are being delivered; more wait for their turn."""
SHOWN_MAX: Final = 16
"""Notifications on a desktop at once; more wait likewise."""
SENT_MAX: Final = 4096
"""Messages that are remembered, to say in them how it ended."""
AGAIN_MAX_S: Final = 60.0
"""The longest pause before a listener is begun again, but for half more at random."""
WELL_AFTER_S: Final = 20.0
"""A listener that has gone on for so long is well again."""
TESTS_MAX, TESTS_IN_S = 3, 60.0
"""Tests in so many seconds: people must not learn to overlook messages."""
_AGAIN: Final = frozenset({408, 425, 429})
_TOO_MANY: Final = 429
_VOUCHED: Final = frozenset({"telegram", "slack"})
"""Their platforms say who pressed. Where `approval.confirm: code` is set or two must agree, no others decide."""
_ENDS: Final = frozenset({"approved", "rejected", "expired", "consumed"})


class Answer(msgspec.Struct, frozen=True):
    """What came back; `retry_after_s` where it said how long to wait."""

    status: int
    body: bytes
    retry_after_s: float | None = None


class Wire(Reach, Protocol):
    """What the daemon does for the notifier."""

    async def send(self, post: Post, timeout_s: float) -> Answer:
        """One request. Raises `Fault`, `ValueError`."""
        ...


class Decide(Protocol):
    """Takes a decision for a person, and gives the text that tells them what became of it. May raise."""

    def __call__(self, id: str, approve: bool, *, by: str, via: str, note: str, voter: str) -> Awaitable[str]:
        """As `manage.api.Governor.decide`."""
        ...


class Settings(msgspec.Struct, frozen=True):
    """What a reload may change: `base` begins the links, `codes` says whether messages show the page's code."""

    channels: tuple[Channel, ...] = ()
    base: str = ""
    codes: bool = False


class Row(msgspec.Struct, frozen=True):
    """How a channel is doing. `state` is ok, failing, deaf (its answers are not heard) or unused."""

    name: str
    buttons: bool
    state: Literal["ok", "failing", "deaf", "unused"]
    sent: int
    failed: int
    waiting: int
    last_error: str
    last_ok_at: float | None


class TooManyTests(Exception):
    """The last tests are only just over."""


class _State:
    """What is known of one channel."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.tasks: set[asyncio.Task[None]] = set()
        self.room = asyncio.Semaphore(AT_ONCE)
        self.shown: dict[str, asyncio.Task[None]] = {}
        self.later: dict[str, Ticket] = {}
        self.listener: asyncio.Task[None] | None = None
        self.sent = 0
        self.failed = 0
        self.error = ""
        self.error_is_last = False
        self.deaf = ""
        self.last_ok: float | None = None
        self.pace = 0.0
        """seconds between two messages; none before a channel has asked for less"""
        self.turn = asyncio.Lock()
        """of a channel that is slowed down: who holds it sends next"""
        self._next = 0.0
        self._slowed = 0.0

    @property
    def full(self) -> bool:
        """Whether what more is to be told has to wait."""
        return len(self.tasks) >= WAITING_MAX or len(self.shown) >= SHOWN_MAX

    def pause(self, now: float) -> float:
        """Seconds until the next message may leave; none takes a place before it does."""
        if abs(now - self._next) > max(CALM_S, 2 * self.pace):  # long ago, or the clock was set
            self.pace = 0.0
        return max(0.0, self._next - now) if self.pace else 0.0

    def left(self, now: float) -> None:
        """A message leaves."""
        if self.pace:
            self._next = now + self.pace

    def slow(self, now: float, began: float, told: float | None) -> None:
        """A message that left at `began` was one too many; `told`: the pause that the channel asks for."""
        if told is not None and told > 0:
            self.pace = min(max(told, 1.0), TOLD_MAX_S)
        elif began > self._slowed or not self.pace:  # else one of the same burst
            self.pace = min(max(1.0, 2 * self.pace), PAUSES_S[-1])
        self._next = max(self._next, now + self.pace)
        self._slowed = now

    def well(self, now: float, *, message: bool = True) -> None:
        self.pace *= 0.9 if self.pace <= 2.0 else 0.7
        if self.pace < 0.1:
            self.pace = 0.0
        self.sent += message
        self.last_ok = now
        self.error_is_last = False

    def ill(self, why: str) -> None:
        self.failed += 1
        self.error = why
        self.error_is_last = True

    @property
    def row(self) -> Row:
        state: Literal["ok", "failing", "deaf", "unused"] = "ok" if self.last_ok is not None else "unused"
        if self.deaf or self.error_is_last:
            state = "deaf" if self.deaf else "failing"
        return Row(
            name=self.channel.name,
            buttons=_answers(self.channel) is not None,
            state=state,
            sent=self.sent,
            failed=self.failed,
            waiting=len(self.tasks) + len(self.later),
            last_error=self.deaf or self.error,
            last_ok_at=self.last_ok,
        )

    def end(self) -> list[asyncio.Task[None]]:
        tasks = [*self.tasks, *self.shown.values()]
        self.later.clear()
        if self.listener is not None:
            tasks.append(self.listener)
            self.listener = None
        for task in tasks:
            task.cancel()
        return tasks


class _Try(msgspec.Struct, frozen=True):
    """How one try went: `why` it failed, empty where it did not; whether `again` may help, `told` seconds later."""

    why: str = ""
    again: bool = False
    too_many: bool = False
    told: float | None = None
    body: bytes = b""


class _Sent(msgspec.Struct):
    """A message that can still be changed."""

    notice: Notice
    handle: str
    state: _State
    how: str = ""
    told: str = ""
    busy: bool = False


class Notifier:
    """Give `happened` the desk's events; `use` other settings on a reload.

    `wall` gives seconds since the epoch; `sleep` takes seconds; `find` gives the ticket with an id or call id, or None.
    """

    def __init__(
        self,
        key: bytes,
        wire: Wire,
        *,
        wall: Callable[[], float],
        find: Callable[[str], Ticket | None],
        decide: Decide,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        shown: Callable[[str], str] = str,
        told: Told | None = None,
        open: Callable[[], Iterable[Ticket]] = tuple,
    ) -> None:
        """`shown` gives arguments as they may be told; `told` outlives the daemon; `open` gives the open tickets."""
        self.settings = Settings()
        self._key = key
        self._wire = wire
        self._wall = wall
        self._find = find
        self._decide = decide
        self._sleep = sleep
        self._shown = shown
        self._told_of = told
        self._open = open
        self._states: dict[str, _State] = {}
        self._messages: dict[tuple[str, str], _Sent] = {}
        self._ending: set[asyncio.Task[Any]] = set()
        self._tests: list[float] = []
        self._closed = False

    def use(self, settings: Settings) -> None:
        """Swaps the channels: what is the same object goes on, the others end, new ones begin. Needs a running loop."""
        self.settings = settings
        before, self._states = self._states, {}
        kept = set()
        for channel in settings.channels:
            state = before.get(channel.name)
            if state is not None and state.channel is channel:
                self._states[channel.name] = before.pop(channel.name)
                kept.add(channel.name)
                continue
            self._states[channel.name] = state = _State(channel)
            answering = _answers(channel)
            if answering is not None and not self._closed:
                state.listener = asyncio.ensure_future(self._listen(state, answering))
        for state in before.values():
            for task in state.end():
                self._ending.add(task)
                task.add_done_callback(self._ending.discard)
            self._messages = {key: sent for key, sent in self._messages.items() if sent.state is not state}
        if not self._closed:
            for state in self._states.values():
                if state.channel.name not in kept:
                    self._catch_up(state)

    def _catch_up(self, state: _State) -> None:
        """Tells a channel that is new, or whose daemon is, of what waits and it has not heard of."""
        heard = self._told_of.by(state.channel.name) if self._told_of is not None else {}
        for ticket in self._open():
            handle = heard.get(ticket.call_id)
            if ticket.state == PENDING and (handle is None or isinstance(state.channel, Showing)):
                self._begin(state, ticket)
            elif handle:
                self._messages[state.channel.name, ticket.call_id] = _Sent(self.notice(ticket), handle, state)

    async def close(self) -> None:
        """Ends every listener, and gives up what has not been delivered."""
        self._closed = True
        tasks = [task for state in self._states.values() for task in state.end()]
        await asyncio.gather(*tasks, *self._ending, return_exceptions=True)

    # --- how they are doing -------------------------------------------------------------------------------------

    def rows(self) -> list[Row]:
        """Every channel."""
        return [state.row for state in self._states.values()]

    def warnings(self) -> list[str]:
        """What is wrong with channels, one sentence each."""
        said = []
        for row in self.rows():
            if row.state == "deaf":
                said.append(f"answers from {row.name} are not heard: {row.last_error}")
            elif row.state == "failing":
                said.append(f"the last message to {row.name} was not delivered: {row.last_error}")
        return said

    # --- telling ------------------------------------------------------------------------------------------------

    def happened(self, event: str, ticket: Ticket) -> None:
        """One of the desk's events. Returns at once. Needs a running loop."""
        if self._closed or not self._states:
            return
        if event == "opened":
            for state in self._states.values():
                self._begin(state, ticket)
        elif event in _ENDS:
            if event != "approved" and self._told_of is not None:
                self._told_of.forget(ticket.call_id)
            self._ended(ticket)

    def notice(self, ticket: Ticket) -> Notice:
        """What is said of a ticket."""
        settings = self.settings
        bound = links.binding(ticket)
        return Notice(
            id=ticket.id,
            call_id=ticket.call_id,
            agent=ticket.agent,
            backend=ticket.backend,
            tool=ticket.name,
            arguments=self._shown(ticket.arguments),
            command=self._shown_text(ticket.command),
            cwd=self._shown_text(ticket.cwd),
            unlike=ticket.unlike,
            created=ticket.created,
            expires=ticket.expires,
            rule=ticket.rule,
            approve_url=links.url(self._key, settings.base, ticket, "approve"),
            reject_url=links.url(self._key, settings.base, ticket, "reject"),
            code=links.code(self._key, bound) if settings.codes else "",
            proof=links.proof(self._key, bound),
        )

    def _shown_text(self, text: str) -> str:
        return str(msgspec.json.decode(self._shown(msgspec.json.encode(text).decode()))) if text else ""

    def _begin(self, state: _State, ticket: Ticket) -> None:
        channel = state.channel
        if state.full:
            state.later[ticket.call_id] = ticket
            return
        notice = self.notice(ticket)
        if not self._may_answer(channel, ticket):
            notice = msgspec.structs.replace(notice, proof="")

        def over(task: asyncio.Task[None]) -> None:
            state.tasks.discard(task)
            if state.shown.get(ticket.call_id) is task:
                del state.shown[ticket.call_id]
            while state.later and not state.full and not self._closed:
                waiting = state.later.pop(next(iter(state.later)))
                if waiting.state == PENDING:
                    self._begin(state, waiting)

        if isinstance(channel, Showing):
            task = asyncio.ensure_future(self._show(state, channel, ticket, notice))
            state.shown[ticket.call_id] = task
        else:
            task = asyncio.ensure_future(self._tell(state, ticket, notice))
            state.tasks.add(task)
        task.add_done_callback(over)

    async def _tell(self, state: _State, ticket: Ticket, notice: Notice) -> None:
        """The message, and then, should it be over by now, how it ended."""
        handle = await self._deliver(
            state,
            ticket.id,
            lambda: state.channel.post(notice, self._wall()),
            lambda: ticket.state == PENDING,
            lasting=True,
        )
        if handle is not None and ticket.state in OPEN and self._told_of is not None:
            self._told_of.add(ticket.call_id, state.channel.name, handle)
        if not handle:
            return
        while len(self._messages) >= SENT_MAX:
            del self._messages[next(iter(self._messages))]
        self._messages[state.channel.name, ticket.call_id] = _Sent(notice, handle, state)
        if ticket.state != PENDING:
            self._ended(ticket)

    async def _deliver(
        self,
        state: _State,
        id: str,
        post: Callable[[], Post | None],
        wanted: Callable[[], bool],
        *,
        message: bool = True,
        lasting: bool = False,
    ) -> str | None:
        """Tries until it is taken, is refused, or is not wanted any more; without `lasting`, at most TRIES times.

        What the channel calls the message, "" where it calls it nothing; None where it was not taken.
        """
        tries = 0
        pause = 0.0
        while True:
            if pause:
                await self._sleep(pause)
            async with state.turn if state.pace else state.room:
                if not wanted():  # of many that wait, those that are over take nobody's turn
                    return None
                if (rest := state.pause(self._wall())) > 0:
                    await self._sleep(rest)
                    if not wanted():
                        return None
                began = self._wall()
                state.left(began)
                made = await self._try(state.channel, post)
            if not made.why:
                state.well(self._wall(), message=message)
                return self._handle(state.channel, made.body)
            if made.too_many:
                state.slow(self._wall(), began, made.told)
                if lasting:
                    pause = 0.0
                    continue
            tries += 1
            if tries == TRIES or not made.again:
                state.ill(made.why)
                _log.warning("the %s channel was not told of `%s`: %s", state.channel.name, id, made.why)
                if not (lasting and made.again):
                    return None
            pause = PAUSES_S[min(tries, len(PAUSES_S)) - 1] * random.uniform(1.0, 1.5)  # noqa: S311  no secret
            pause = max(pause, min(made.told or 0.0, TOLD_MAX_S))

    async def _try(self, channel: Channel, post: Callable[[], Post | None]) -> _Try:
        try:
            made = post()
            if made is None:
                return _Try()
            async with asyncio.timeout(TIMEOUT_S):
                answer = await self._wire.send(made, TIMEOUT_S)
            fault = channel.fault(answer.status, answer.body)
        except TimeoutError:
            return _Try(f"no answer within {TIMEOUT_S:.0f} s", True)
        except Fault as trouble:
            return _Try(f"it cannot be reached ({trouble.reason})", True)
        except Trouble as trouble:
            return _Try(str(trouble))
        except Exception as error:  # a channel's fault is its own; the text may hold the address, the kind does not
            return _Try(f"it cannot be reached ({type(error).__name__})", True)
        if fault is None:
            return _Try(body=answer.body)
        limited = answer.status in _AGAIN
        told = (answer.retry_after_s or _retry_after(answer.body)) if limited or answer.status >= 500 else None
        return _Try(fault, not 400 <= answer.status < 500 or limited, answer.status == _TOO_MANY, told)

    @staticmethod
    def _handle(channel: Channel, body: bytes) -> str:
        try:
            return channel.handle(body)
        except Exception:  # the message was taken, whatever it is called
            _log.exception("the %s channel cannot name its message", channel.name)
            return ""

    # --- how it ended -------------------------------------------------------------------------------------------

    def _ended(self, ticket: Ticket) -> None:
        how = ending(ticket)
        for state in self._states.values():
            state.later.pop(ticket.call_id, None)
            shown = state.shown.get(ticket.call_id)
            if shown is not None and shown is not _current():
                shown.cancel()
            sent = self._messages.get((state.channel.name, ticket.call_id))
            if sent is None or not how:
                continue
            sent.how = how
            if not sent.busy:
                sent.busy = True
                task = asyncio.ensure_future(self._close(sent, ticket))
                state.tasks.add(task)
                task.add_done_callback(state.tasks.discard)

    async def _close(self, sent: _Sent, ticket: Ticket) -> None:
        """Says in the message how it ended; what more happens meanwhile is said after that."""
        channel = sent.state.channel
        try:
            while sent.told != sent.how:
                sent.told = how = sent.how
                await self._deliver(
                    sent.state,
                    ticket.id,
                    partial(channel.closing, sent.notice, sent.handle, how),
                    lambda how=how: sent.how == how,  # type: ignore[misc]
                    message=False,
                )
        finally:
            sent.busy = False
            if ticket.state != APPROVED:
                self._messages.pop((channel.name, ticket.call_id), None)

    async def _show(self, state: _State, channel: Showing, ticket: Ticket, notice: Notice) -> None:
        """A program of this machine shows it; its output decides."""
        shown = False
        try:
            async with aclosing(self._lines(channel.command(notice))) as lines:
                async for line in lines:
                    if not shown:
                        shown = True
                        state.well(self._wall())
                    heard = channel.pressed(notice, line)
                    if heard is not None:
                        await self.hear(state.channel, heard)
        except Exception as error:
            why = str(error) if isinstance(error, Trouble | Fault) else type(error).__name__
            state.ill(why)
            _log.warning("the %s channel was not told of `%s`: %s", state.channel.name, ticket.id, why)
            return
        if not shown:
            state.well(self._wall())

    def _lines(self, argv: tuple[str, ...]) -> Any:
        return self._wire.run(argv)

    # --- answers ------------------------------------------------------------------------------------------------

    def _may_answer(self, channel: Channel, ticket: Ticket) -> bool:
        """Whether its buttons decide. A code that the page asks for, or a second person, is not got round by one."""
        known = channel.name in _VOUCHED or not (self.settings.codes or ticket.people > 1)
        return _answers(channel) is not None and known

    def hearing(self, channel: Channel) -> Hear:
        """`hear` for one channel: for answers that come another way than by its `listen`."""
        return partial(self.hear, channel)

    def posted(self, name: str, headers: Mapping[str, str], body: bytes) -> bool:
        """Takes an answer that a channel's platform posted to us; False where it did not. Needs a running loop."""
        state = self._states.get(name)
        if self._closed or state is None or not isinstance(state.channel, Posted):
            return False
        return state.channel.posted(headers, body, self._wall(), self._wire, self.hearing(state.channel))

    async def hear(self, channel: Channel, heard: Heard) -> str:
        """Decides what a person answered, and says what became of it. Never raises."""
        try:
            return await self._heard(channel, heard)
        except Exception:
            _log.exception("an answer from %s could not be taken", channel.name)
            return "Nothing was decided: Aegis could not take the answer; its log says why."

    async def _heard(self, channel: Channel, heard: Heard) -> str:
        state = self._states.get(channel.name)
        ticket = self._find(heard.id)
        if ticket is None:
            return "Nothing was decided: this request is over, and no longer known."
        if state is None or state.channel is not channel or not self._may_answer(channel, ticket):
            return "Nothing was decided: Aegis takes no answers from here."
        right = links.proof(self._key, links.binding(ticket))
        if not hmac.compare_digest(right.encode(), heard.proof.encode("utf-8", "surrogatepass")):
            _log.warning("an answer from %s to `%s` had a wrong proof", channel.name, ticket.id)
            return "Nothing was decided: this answer belongs to another request."
        if ticket.state != PENDING:
            return f"Nothing was changed: `{ticket.id}` was {ending(ticket)}."
        note = cut(heard.note, 500)
        return await self._decide(
            ticket.call_id, heard.approve, by=heard.by, via=channel.name, note=note, voter=heard.voter
        )

    async def _listen(self, state: _State, channel: Answering) -> None:
        loop = asyncio.get_running_loop()
        failures = 0

        def well() -> None:
            nonlocal failures
            failures, state.deaf = 0, ""

        while True:
            timer = loop.call_later(WELL_AFTER_S, well)
            told: float | None = None
            try:
                await channel.listen(self._wire, self.hearing(state.channel))
                well()
                return  # answers come another way
            except (Trouble, Fault) as trouble:
                why = str(trouble)
                told = trouble.retry_after_s if isinstance(trouble, Trouble) else None
            except Exception as error:  # the text may hold an address, the kind does not
                why = f"it failed ({type(error).__name__})"
            finally:
                timer.cancel()
            if why != state.deaf:
                _log.warning("answers from %s are not heard: %s", state.channel.name, why)
            state.deaf = why
            pause = min(AGAIN_MAX_S, 2.0**failures) * random.uniform(1.0, 1.5)  # noqa: S311  no secret
            failures = min(failures + 1, 10)
            await self._sleep(max(pause, min(told or 0.0, TOLD_MAX_S)))

    # --- news ---------------------------------------------------------------------------------------------------

    @property
    def reaches(self) -> bool:
        """Whether there is any channel."""
        return bool(self._states) and not self._closed

    async def tell(self, notice: Notice) -> bool:
        """Sends what asks nothing through every channel, and waits for them; whether any of them took it."""
        found = await asyncio.gather(*(self._told(state, notice) for state in list(self._states.values())))
        return any(found)

    async def _told(self, state: _State, notice: Notice) -> bool:
        channel = state.channel
        if isinstance(channel, Showing):
            why = await self._shown_once(channel, notice)
            if why:
                state.ill(why)
            else:
                state.well(self._wall())
            return not why
        handle = await self._deliver(
            state, notice.id, lambda: channel.post(notice, self._wall()), lambda: not self._closed
        )
        return handle is not None

    def alarm(self, headline: str, text: str) -> bool:
        """Something is wrong with Aegis itself: every channel is told, once. False where there is none yet.

        Returns at once. Needs a running loop.
        """
        if not self.reaches:
            return False
        now = self._wall()
        notice = Notice(
            id="ALARM", call_id=f"{int(now * 1000):032x}", agent="aegis", backend="", tool="", arguments="{}",
            created=now, expires=now, approve_url="", reject_url="", test=True, alarm=True, headline=headline,
            rows=(("What", text), ("See", "aegis status")),
        )  # fmt: skip
        task = asyncio.ensure_future(self.tell(notice))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return True

    # --- tests --------------------------------------------------------------------------------------------------

    async def test(self, only: str | None = None) -> list[tuple[str, str]]:
        """Sends a test message through each channel, or one: names, and why it failed, empty where it did not.

        A channel whose answers are not heard has failed too. Raises `KeyError` for a channel that is not configured,
        `TooManyTests`.
        """
        states = list(self._states.values()) if only is None else [self._states[only]]
        now = asyncio.get_running_loop().time()
        self._tests = [at for at in self._tests if now - at < TESTS_IN_S]
        if len(self._tests) >= TESTS_MAX:
            raise TooManyTests
        self._tests.append(now)
        found = await asyncio.gather(*(self._test(state) for state in states))
        return list(zip((state.channel.name for state in states), found, strict=True))

    async def _test(self, state: _State) -> str:
        channel = state.channel
        now = self._wall()
        notice = Notice(
            id="TEST", call_id="0" * 32, agent="nobody", backend="none", tool="test", arguments="{}", created=now,
            expires=now, approve_url="", reject_url="", rule="aegis notify test", test=True,
        )  # fmt: skip
        if isinstance(channel, Showing):
            why = await self._shown_once(channel, notice)
        else:
            why = (await self._try(channel, partial(channel.post, notice, now))).why
        if why:
            state.error, state.error_is_last = why, True
            return why
        state.well(self._wall(), message=False)
        return f"sent, but answers are not heard: {state.deaf}" if state.deaf else ""

    async def _shown_once(self, channel: Showing, notice: Notice) -> str:
        """A program of this machine shows what nobody answers; why it did not."""
        try:
            async with asyncio.timeout(TIMEOUT_S), aclosing(self._lines(channel.command(notice))) as lines:
                async for _ in lines:
                    pass
        except TimeoutError:
            return f"its program did not end within {TIMEOUT_S:.0f} s"
        except (Trouble, Fault) as trouble:
            return str(trouble)
        except Exception as error:
            return f"it failed ({type(error).__name__})"
        return ""


def ending(ticket: Ticket) -> str:
    """How a ticket ended, as its messages say it; empty while it waits."""
    by = visible(cut(ticket.by, 100)) or "somebody"
    note = f": {visible(cut(ticket.note, 200))}" if ticket.note else ""
    return {
        APPROVED: f"approved by {by}{note}",
        CONSUMED: f"approved by {by}, and has run{note}",
        REJECTED: f"rejected by {by}{note}",
        EXPIRED: f"approved by {by}, and expired without having run"
        if ticket.by
        else "expired: nobody decided in time",
    }.get(ticket.state, "")


def _answers(channel: Channel) -> Answering | None:
    return cast(Answering, channel) if isinstance(channel, Answering) and channel.answers else None


def _current() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


class _Parameters(msgspec.Struct):
    retry_after: float | None = None


class _Limited(msgspec.Struct):
    """Where platforms say it in the body: Discord at the top, Telegram in `parameters`; in seconds."""

    retry_after: float | None = None
    parameters: _Parameters | None = None


def _retry_after(body: bytes) -> float | None:
    try:
        said = msgspec.json.decode(body, type=_Limited)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return said.retry_after or (said.parameters.retry_after if said.parameters is not None else None)
