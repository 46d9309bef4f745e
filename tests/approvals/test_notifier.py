from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any

import pytest
from making import until
from test_links import KEY, ticket

from aegis_daemon.approvals import links, notifier
from aegis_daemon.approvals.channels.desktop import Desktop
from aegis_daemon.approvals.channels.feishu import Feishu
from aegis_daemon.approvals.channels.generic import Generic
from aegis_daemon.approvals.channels.notice import Channel, Hear, Heard, Notice, Post, Reach, Trouble
from aegis_daemon.approvals.notifier import Answer, Notifier, Settings, TooManyTests, ending
from aegis_daemon.approvals.ticket import APPROVED, CONSUMED, EXPIRED, PENDING, REJECTED, Ticket
from aegis_daemon.approvals.told import Told
from aegis_daemon.core.ports import Fault

Run = Callable[[Coroutine[Any, Any, Any]], Any]
GENERIC, FEISHU, CHAT = "https://generic.example/hidden", "https://feishu.example/hidden", "https://chat.example/hidden"


class Wire:
    """Answers posts as it is told, by address; a list is used up one by one, its last for all that follow."""

    def __init__(self, **answers: Any) -> None:
        self.answers = {"generic": [(200, b"")], "feishu": [(200, b'{"code":0}')], "chat": [(200, b"m1")], **answers}
        self.posts: list[tuple[str, dict[str, str], Any]] = []
        self.release = asyncio.Event()
        self.ran: list[tuple[str, ...]] = []
        self.prints: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.closed = 0

    async def send(self, post: Post, timeout_s: float) -> Answer:
        self.posts.append((post.url, dict(post.headers), json.loads(post.body)))
        answers = self.answers[post.url.partition("//")[2].partition(".")[0]]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if answer == "hang":
            await self.release.wait()
            answer = (200, b"m1")
        if isinstance(answer, Exception):
            raise answer
        return Answer(*answer)

    async def run(self, argv: tuple[str, ...]) -> AsyncIterator[bytes]:
        self.ran.append(argv)
        try:
            while (line := await self.prints.get()) is not None:
                if line == b"!":
                    raise Fault("missing", "`notify-send` is not installed")
                yield line
        finally:
            self.closed += 1

    async def fetch(self, method: str, url: str, headers: Mapping[str, str], body: Any, timeout_s: float) -> Any:
        raise NotImplementedError

    def lines(self, url: str, headers: Mapping[str, str]) -> AsyncIterator[bytes]:
        raise NotImplementedError

    async def websocket(self, url: str) -> Any:
        raise NotImplementedError

    def of(self, url: str) -> list[Any]:
        return [body for where, _, body in self.posts if where == url]


class Chat:
    """A channel with buttons: what it hears is put into `says`, what it is to raise too."""

    def __init__(self, name: str = "telegram") -> None:
        self.name = name
        self.answers = True
        self.says: asyncio.Queue[Heard | Exception | None] = asyncio.Queue()
        self.told: list[str] = []
        self.listening = 0
        self.begun = 0

    def post(self, notice: Notice, now: float) -> Post:
        return Post(CHAT, {}, json.dumps({"proof": notice.proof, "test": notice.test}).encode())

    def fault(self, status: int, body: bytes) -> str | None:
        return None if status == 200 else f"it answered {status}"

    def handle(self, body: bytes) -> str:
        return body.decode()

    def closing(self, notice: Notice, handle: str, how: str) -> Post | None:
        return Post(CHAT, {}, json.dumps({"handle": handle, "how": how}).encode(), "PATCH")

    async def listen(self, reach: Reach, hear: Hear) -> None:
        self.listening += 1
        self.begun += 1
        try:
            while True:
                said = await self.says.get()
                if said is None:
                    return
                if isinstance(said, Exception):
                    raise said
                self.told.append(await hear(said))
        finally:
            self.listening -= 1


class House:
    """A notifier with what it needs."""

    def __init__(
        self, wire: Wire, *channels: Channel, codes: bool = False, told: Told | None = None, tickets: Any = ()
    ) -> None:
        self.wire = wire
        self.tickets: list[Ticket] = list(tickets)
        self.decided: list[dict[str, Any]] = []
        self.pauses: list[float] = []
        self.patience: asyncio.Event | None = None
        self.notifier = Notifier(
            KEY, wire, wall=lambda: 5000.0, find=self.find, decide=self.decide, sleep=self.sleep,  # type: ignore[arg-type]
            told=told, open=lambda: self.tickets,
        )  # fmt: skip
        self.channels = channels or (Generic(GENERIC, "secret"), Feishu(FEISHU))
        self.notifier.use(Settings(self.channels, "https://aegis.example", codes))

    def find(self, id: str) -> Ticket | None:
        return next((one for one in self.tickets if id in (one.id, one.call_id)), None)

    async def decide(self, id: str, approve: bool, **more: Any) -> str:
        self.decided.append({"id": id, "approve": approve, **more})
        found = self.find(id)
        assert found is not None
        self.end(found, APPROVED if approve else REJECTED, more["by"])
        return f"{found.id} is {found.state}."

    def end(self, one: Ticket, state: str, by: str = "") -> None:
        one.state, one.by = state, by
        self.notifier.happened(state, one)

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        if self.patience is not None:
            await self.patience.wait()
        await asyncio.sleep(0)

    def ask(self, **changes: Any) -> Ticket:
        one = ticket(**changes)
        self.tickets.append(one)
        self.notifier.happened("opened", one)
        return one

    async def idle(self) -> None:
        await until(lambda: not any(row.waiting for row in self.notifier.rows()))

    def row(self, name: str) -> notifier.Row:
        return next(row for row in self.notifier.rows() if row.name == name)


def answered(one: Ticket, approve: bool = True, **changes: Any) -> Heard:
    proof = links.proof(KEY, links.binding(one))
    facts: dict[str, Any] = {"id": one.call_id, "proof": proof, "approve": approve, "voter": "user:ann", "by": "ann"}
    return Heard(**{**facts, **changes})


# --- alarms -----------------------------------------------------------------------------------------------------------


def test_an_alarm_goes_through_every_channel_once_with_nothing_to_press(run: Run) -> None:
    async def go() -> None:
        desktop = Desktop("ann", buttons=True)
        house = House(Wire(), Generic(GENERIC, "secret"), Feishu(FEISHU), desktop)
        house.wire.prints.put_nowait(None)
        assert house.notifier.alarm("Aegis alarm: nothing runs", "nothing refuses \x1b[31m`rm`")
        await until(lambda: len(house.wire.posts) == 2 and house.wire.closed == 1)
        (body,), (card,) = house.wire.of(GENERIC), house.wire.of(FEISHU)
        assert (body["event"], body["message"], body["approve_url"]) == ("alarm", "Aegis alarm: nothing runs", "")
        assert body["facts"][0][0] == "What"
        for shown in (json.dumps(card), *house.wire.ran[0]):
            assert "\x1b" not in shown
        assert "Aegis alarm: nothing runs" in json.dumps(card)
        assert "nothing refuses" in house.wire.ran[0][-1]
        assert not any(word.startswith("--action") for word in house.wire.ran[0])
        await house.notifier.close()
        assert not house.notifier.alarm("Aegis alarm: nothing runs", "again")

    run(go())


def test_an_alarm_waits_for_a_channel(run: Run) -> None:
    async def go() -> None:
        house = House(Wire())
        house.notifier.use(Settings((), "https://aegis.example"))
        assert not house.notifier.alarm("Aegis alarm", "nobody hears it")

    run(go())


# --- telling ----------------------------------------------------------------------------------------------------------


def test_every_channel_hears_of_a_new_ask_with_links_that_work(run: Run) -> None:
    async def go() -> None:
        house = House(Wire())
        house.ask()
        await house.idle()
        (body,), (card,) = house.wire.of(GENERIC), house.wire.of(FEISHU)
        assert body["approve_url"] == links.url(KEY, "https://aegis.example", ticket(), "approve")
        assert body["reject_url"] == links.url(KEY, "https://aegis.example", ticket(), "reject")
        assert "code" not in body
        assert body["approve_url"] in json.dumps(card)
        assert house.wire.posts[0][1]["webhook-id"]
        assert [(row.name, row.buttons, row.state, row.sent, row.last_ok_at) for row in house.notifier.rows()] == [
            ("generic", False, "ok", 1, 5000.0),
            ("feishu", False, "ok", 1, 5000.0),
        ]

    run(go())


def test_the_message_shows_the_code_where_pages_ask_for_one(run: Run) -> None:
    async def go() -> None:
        house = House(Wire(), codes=True)
        house.ask()
        await house.idle()
        assert house.wire.of(GENERIC)[0]["code"] == links.code(KEY, links.binding(ticket()))

    run(go())


def test_what_changes_nothing_is_no_news(run: Run) -> None:
    async def go() -> None:
        house = House(Wire())
        for event in ("attached", "waiter_gone", "approved", "rejected", "expired", "consumed"):
            house.notifier.happened(event, ticket())
        await house.idle()
        assert house.wire.posts == []

    run(go())


@pytest.mark.parametrize("trouble", [(500, b""), (408, b""), (302, b""), OSError("no route"), TimeoutError()])
def test_a_message_that_fails_is_tried_again_with_growing_pauses(run: Run, trouble: Any) -> None:
    async def go() -> None:
        house = House(Wire(generic=[trouble, trouble, (204, b"")]))
        house.ask()
        await house.idle()
        assert len(house.wire.of(GENERIC)) == 3
        assert 1 <= house.pauses[0] <= 1.5
        assert 4 <= house.pauses[1] <= 6
        assert len(house.wire.of(FEISHU)) == 1
        assert house.notifier.warnings() == []

    run(go())


def test_what_is_over_takes_no_turn_of_a_slow_channel(run: Run) -> None:
    async def go() -> None:
        house = House(Wire(chat=[(429, b"", 30.0), (200, b"m1")]), Chat())
        house.patience = asyncio.Event()
        over = [house.ask(call_id=f"{number:032x}") for number in range(20)]
        await until(lambda: house.pauses)
        for one in over:
            house.end(one, REJECTED)
        waits = house.ask(call_id="f" * 32)
        house.patience.set()
        await house.idle()
        told = [sent for sent in house.wire.of(CHAT) if "how" not in sent]
        assert told[-1]["proof"] == links.proof(KEY, links.binding(waits))
        assert len(told) <= notifier.AT_ONCE + 1, "those that were on their way, and the one that still waits"
        assert len(house.pauses) <= 2 + 1, "nobody waits for the turns of those that are over"

    run(go())


def test_a_channel_that_wants_messages_slower_gets_each_once_and_no_try_is_counted(run: Run) -> None:
    async def go() -> None:
        now, taken = 5000.0, [4990.0]

        def wall() -> float:
            return now

        async def sleep(seconds: float) -> None:
            nonlocal now
            until = now + seconds
            await asyncio.sleep(0)
            now = max(now, until)

        class Slow(Wire):
            async def send(self, post: Post, timeout_s: float) -> Answer:
                if now - taken[-1] < 1.0:
                    refused.append(now)
                    return Answer(429, b"", 1.0)
                taken.append(now)
                return await super().send(post, timeout_s)

        refused: list[float] = []
        house = House(Slow(), Chat())
        house.notifier._wall, house.notifier._sleep = wall, sleep
        for number in range(60):
            house.ask(call_id=f"{number:032x}")
        await house.idle()
        assert (house.row("telegram").sent, house.row("telegram").failed, len(taken)) == (60, 0, 61)
        assert len(refused) < 60, "most of them wait for their turn"
        assert now - 5000.0 < 120, "and not longer than they have to"

    run(go())


@pytest.mark.parametrize(
    ("answer", "least"),
    [
        ((429, b"", 33.0), 33.0),
        ((503, b"", 44.0), 44.0),
        ((429, b'{"ok":false,"parameters":{"retry_after":55}}'), 55.0),
        ((429, b'{"message":"limited","retry_after":6.5,"global":false}'), 6.5),
        ((429, b'{"retry_after":1e300}'), notifier.TOLD_MAX_S),
        ((429, b'{"retry_after":-9}'), 1.0),
        ((429, b'{"retry_after":"soon"}'), 1.0),
    ],
)
def test_a_channel_says_when_to_come_again_within_reason(run: Run, answer: Any, least: float) -> None:
    async def go() -> None:
        house = House(Wire(chat=[answer, (200, b"m1")]), Chat())
        house.ask()
        await house.idle()
        assert least <= house.pauses[0] <= max(least, 1.5)
        assert house.row("telegram").state == "ok"

    run(go())


def test_a_message_that_is_refused_is_not_repeated(run: Run) -> None:
    async def go() -> None:
        house = House(Wire(generic=[(410, b"")], feishu=[(404, b"")]))
        house.ask()
        await house.idle()
        assert (len(house.wire.of(GENERIC)), len(house.wire.of(FEISHU))) == (1, 1)
        assert [row.failed for row in house.notifier.rows()] == [1, 1]

    run(go())


def test_a_failure_is_told_without_any_secret(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def go() -> None:
        wire = Wire(generic=[OSError(f"cannot reach {GENERIC}")], feishu=[(200, b'{"code":19021,"msg":"hidden"}')])
        house = House(wire)
        one = house.ask()
        await until(lambda: len(wire.of(GENERIC)) > notifier.TRIES + 3)
        assert house.row("generic").waiting == 1, "it is tried as long as the ticket waits"
        assert min(sorted(house.pauses)[-3:]) >= notifier.PAUSES_S[-1]
        house.end(one, EXPIRED)
        await house.idle()
        assert house.notifier.warnings() == [
            "the last message to generic was not delivered: it cannot be reached (OSError)",
            "the last message to feishu was not delivered: it answered code 19021",
        ]

    with caplog.at_level(logging.WARNING, "aegis.approvals"):
        run(go())
    assert sorted(caplog.messages) == [
        "the feishu channel was not told of `K7Q2`: it answered code 19021",
        "the generic channel was not told of `K7Q2`: it cannot be reached (OSError)",
    ]


def test_a_channel_that_hangs_holds_up_no_other_and_is_given_up(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifier, "TIMEOUT_S", 0.05)

    async def go() -> None:
        house = House(Wire(generic=["hang"]))
        for number in range(20):
            house.ask(call_id=f"{number:032x}")
        await until(lambda: len(house.wire.of(FEISHU)) == 20)
        assert len(house.wire.of(GENERIC)) <= notifier.AT_ONCE
        house.wire.answers["generic"] = [(200, b"")]
        await house.idle()

    run(go())


def test_nobody_is_asked_again_once_it_is_decided(run: Run) -> None:
    async def go() -> None:
        house = House(Wire(generic=[(500, b"")]))
        house.patience = asyncio.Event()
        one = house.ask()
        await until(lambda: house.pauses)
        one.state = APPROVED
        house.patience.set()
        await house.idle()
        assert len(house.wire.of(GENERIC)) == 1

    run(go())


def test_what_waits_is_bounded_for_each_channel_and_the_end_waits_for_none(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifier, "WAITING_MAX", 3)

    async def go() -> None:
        house = House(Wire(generic=["hang"]))
        for number in range(3):
            house.ask(call_id=f"{number:032x}")
        await until(lambda: len(house.wire.posts) == 6)
        await until(lambda: house.row("feishu").waiting == 0)
        house.ask(call_id="3" * 32)
        over = house.ask(call_id="4" * 32)
        await until(lambda: house.row("feishu").sent == 5)
        assert (len(house.wire.of(GENERIC)), house.row("generic").waiting) == (3, 5)
        house.end(over, REJECTED)
        assert house.row("generic").waiting == 4
        house.wire.answers["generic"] = [(200, b"")]
        house.wire.release.set()
        await until(lambda: house.row("generic").sent == 4)
        house.wire.release.clear()
        house.wire.answers["generic"] = ["hang"]
        house.ask()
        await until(lambda: house.row("generic").waiting == 1)
        await house.notifier.close()
        assert house.row("generic").waiting == 0
        sent = len(house.wire.posts)
        house.ask()
        assert len(house.wire.posts) == sent

    run(go())


def test_a_new_daemon_tells_what_the_last_one_could_not_and_nothing_twice(run: Run) -> None:
    told = Told(sqlite3.connect(":memory:", isolation_level=None))

    async def go() -> None:
        house = House(Wire(generic=[(500, b"")]), Generic(GENERIC, "secret"), Chat(), told=told)
        one = house.ask(call_id="1" * 32)
        await until(lambda: house.row("telegram").sent == 1)
        await house.notifier.close()
        later = House(Wire(), Generic(GENERIC, "secret"), Chat(), told=told, tickets=[one])
        await later.idle()
        assert (len(later.wire.of(GENERIC)), len(later.wire.of(CHAT))) == (1, 0)
        later.end(one, REJECTED, "ann")
        await later.idle()
        assert [body["handle"] for body in later.wire.of(CHAT)] == ["m1"], "the message that an earlier daemon sent"
        assert told.by("telegram") == told.by("generic") == {}

    run(go())


def test_a_channel_that_a_reload_brings_hears_of_what_waits(run: Run) -> None:
    async def go() -> None:
        house = House(Wire(), Chat())
        house.ask()
        await house.idle()
        house.notifier.use(Settings((*house.channels, Feishu(FEISHU)), "https://aegis.example"))
        await house.idle()
        assert (len(house.wire.of(CHAT)), len(house.wire.of(FEISHU))) == (1, 1)

    run(go())


def test_a_reload_changes_whom_it_tells_and_keeps_what_is_the_same(run: Run) -> None:
    async def go() -> None:
        house = House(Wire())
        house.ask()
        await house.idle()
        house.notifier.use(Settings((house.channels[1],)))
        house.ask()
        await house.idle()
        assert len(house.wire.of(GENERIC)) == 1
        assert [(row.name, row.sent) for row in house.notifier.rows()] == [("feishu", 2)]

    run(go())


# --- how it ended -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "how"),
    [
        ({"state": PENDING}, ""),
        ({"state": APPROVED, "by": "ann"}, "approved by ann"),
        ({"state": CONSUMED, "by": "ann", "note": "go\n"}, "approved by ann, and has run: go\\n"),
        ({"state": REJECTED, "by": "\u202eann", "note": "no"}, "rejected by \\u202eann: no"),
        ({"state": EXPIRED}, "expired: nobody decided in time"),
        ({"state": EXPIRED, "by": "ann"}, "approved by ann, and expired without having run"),
    ],
)
def test_how_it_ended_is_said_in_one_line(changes: dict[str, Any], how: str) -> None:
    assert ending(ticket(**changes)) == how


def test_a_message_says_how_it_ended_and_what_became_of_it(run: Run) -> None:
    async def go() -> None:
        house = House(Wire(), Chat())
        one = house.ask()
        await house.idle()
        house.end(one, APPROVED, "ann")
        await house.idle()
        house.end(one, CONSUMED, "ann")
        await house.idle()
        house.end(one, CONSUMED, "ann")
        await house.idle()
        assert house.wire.of(CHAT)[1:] == [
            {"handle": "m1", "how": "approved by ann"},
            {"handle": "m1", "how": "approved by ann, and has run"},
        ]
        assert house.row("telegram").sent == 1

    run(go())


def test_what_is_over_before_the_message_is_out_is_said_in_it_all_the_same(run: Run) -> None:
    async def go() -> None:
        house = House(Wire(chat=["hang"]), Chat())
        one = house.ask()
        await until(lambda: house.wire.posts)
        house.end(one, EXPIRED)
        house.wire.release.set()
        await house.idle()
        assert house.wire.of(CHAT)[1:] == [{"handle": "m1", "how": "expired: nobody decided in time"}]

    run(go())


def test_a_message_that_cannot_be_changed_delays_nothing(run: Run) -> None:
    async def go() -> None:
        house = House(Wire(chat=[(200, b"m1"), "hang"]), Chat())
        one, other = house.ask(), house.ask(id="K7Q3", call_id="cd" * 16)
        await until(lambda: len(house.wire.posts) == 2)
        house.end(one, APPROVED, "ann")
        house.end(other, REJECTED, "ann")
        assert (one.state, other.state) == (APPROVED, REJECTED)
        await house.notifier.close()

    run(go())


def test_what_is_remembered_of_messages_is_bounded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifier, "SENT_MAX", 2)

    async def go() -> None:
        house = House(Wire(), Chat())
        asked = []
        for number in range(3):
            asked.append(house.ask(call_id=f"{number:032x}"))
            await house.idle()
        for one in asked:
            house.end(one, EXPIRED)
        await house.idle()
        assert len(house.wire.of(CHAT)) == 3 + 2

    run(go())


# --- answers ----------------------------------------------------------------------------------------------------------


def test_an_answer_with_the_messages_proof_decides(run: Run) -> None:
    async def go() -> None:
        chat = Chat()
        house = House(Wire(), chat)
        one = house.ask()
        await house.idle()
        proof = house.wire.of(CHAT)[0]["proof"]
        assert len(proof) == 16
        assert proof == links.proof(KEY, links.binding(one))
        chat.says.put_nowait(answered(one, note="n" * 600))
        await until(lambda: chat.told)
        assert chat.told == ["K7Q2 is approved."]
        (said,) = house.decided
        assert len(said.pop("note")) == 500
        assert said == {"id": "ab" * 16, "approve": True, "by": "ann", "via": "telegram", "voter": "user:ann"}
        chat.says.put_nowait(answered(one, approve=False))
        await until(lambda: len(chat.told) == 2)
        assert chat.told[1] == "Nothing was changed: `K7Q2` was approved by ann."
        assert len(house.decided) == 1

    run(go())


@pytest.mark.parametrize("wrong", [{"proof": ""}, {"proof": "x" * 16}, {"proof": "ü\ud800"}, {"id": "unknown"}])
def test_an_answer_that_proves_nothing_decides_nothing(run: Run, wrong: dict[str, Any]) -> None:
    async def go() -> None:
        chat = Chat()
        house = House(Wire(), chat)
        one = house.ask()
        house.tickets.append(ticket(id="OTHR", call_id="ef" * 16))
        chat.says.put_nowait(answered(one, **wrong))
        chat.says.put_nowait(answered(one, id="ef" * 16))  # another ticket's proof
        await until(lambda: len(chat.told) == 2)
        assert all(text.startswith("Nothing was decided") for text in chat.told)
        assert house.decided == []
        assert one.state == PENDING

    run(go())


def test_a_code_is_not_got_round_by_a_button_of_who_cannot_tell_people_apart(run: Run) -> None:
    async def go() -> None:
        known, unknown = Chat("telegram"), Chat("ntfy")
        house = House(Wire(), known, unknown, codes=True)
        one = house.ask()
        await house.idle()
        assert sorted(bool(body["proof"]) for body in house.wire.of(CHAT)) == [False, True]
        unknown.says.put_nowait(answered(one))
        await until(lambda: unknown.told)
        assert house.decided == []
        known.says.put_nowait(answered(one))
        await until(lambda: known.told)
        assert len(house.decided) == 1

    run(go())


def test_two_people_are_not_told_apart_where_nobody_says_who_pressed(run: Run) -> None:
    async def go() -> None:
        known, unknown = Chat("telegram"), Chat("ntfy")
        house = House(Wire(), known, unknown)
        one = house.ask(people=2)
        await house.idle()
        assert sorted(bool(body["proof"]) for body in house.wire.of(CHAT)) == [False, True]
        unknown.says.put_nowait(answered(one))
        await until(lambda: unknown.told)
        assert (house.decided, one.state) == ([], PENDING)
        known.says.put_nowait(answered(one))
        await until(lambda: known.told)
        assert len(house.decided) == 1

    run(go())


def test_a_fault_in_deciding_decides_nothing_and_ends_no_listener(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def go() -> None:
        chat = Chat()
        house = House(Wire(), chat)
        one = house.ask()
        house.notifier._decide = broken
        chat.says.put_nowait(answered(one))
        await until(lambda: chat.told)
        assert "Nothing was decided" in chat.told[0]
        assert chat.listening == 1

    run(go())
    assert "could not be taken" in caplog.text


async def broken(*args: Any, **more: Any) -> str:
    raise RuntimeError("the disk is full")


def test_a_listener_that_fails_is_begun_again_later_each_time_and_it_is_told(run: Run) -> None:
    async def go() -> None:
        chat = Chat()
        house = House(Wire(), chat)
        for trouble in (Trouble("another program polls"), Fault("connect", "no way"), OSError(CHAT)):
            chat.says.put_nowait(trouble)
        chat.says.put_nowait(Trouble("come later", 99.0))
        await until(lambda: chat.begun == 5)
        assert [1 <= house.pauses[0] <= 1.5, 2 <= house.pauses[1] <= 3, 4 <= house.pauses[2] <= 6] == [True] * 3
        assert house.pauses[3] == 99.0
        assert house.row("telegram").state == "deaf"
        assert house.notifier.warnings() == ["answers from telegram are not heard: come later"]
        one = house.ask()
        chat.says.put_nowait(answered(one))
        await until(lambda: house.decided)
        await house.notifier.close()
        assert chat.listening == 0

    run(go())


def test_a_listener_that_goes_on_is_well_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifier, "WELL_AFTER_S", 0.01)

    async def go() -> None:
        chat = Chat()
        house = House(Wire(), chat)
        chat.says.put_nowait(Trouble("away"))
        await until(lambda: chat.begun == 2)
        await until(lambda: house.row("telegram").state == "unused")
        await house.notifier.close()

    run(go())


def test_a_listener_that_has_nothing_to_listen_to_is_not_begun_again(run: Run) -> None:
    async def go() -> None:
        chat = Chat()
        house = House(Wire(), chat)
        chat.says.put_nowait(None)
        await until(lambda: chat.begun == 1 and not chat.listening)
        one = house.ask()
        told = await house.notifier.hearing(chat)(answered(one))  # its answers come another way
        assert told == "K7Q2 is approved."
        assert chat.begun == 1
        assert house.pauses == []

    run(go())


def test_a_reload_ends_listeners_of_what_went_and_leaves_the_others(run: Run) -> None:
    async def go() -> None:
        stays, goes, comes = Chat("slack"), Chat("telegram"), Chat("telegram")
        house = House(Wire(), stays, goes)
        await until(lambda: stays.listening and goes.listening)
        one = house.ask()
        house.notifier.use(Settings((stays, comes)))
        await until(lambda: comes.listening and not goes.listening)
        assert (stays.begun, goes.begun) == (1, 1)
        assert "takes no answers" in await house.notifier.hear(goes, answered(one))
        assert house.decided == []
        await house.notifier.close()
        assert stays.listening == comes.listening == 0

    run(go())


# --- the desktop ------------------------------------------------------------------------------------------------------


def test_a_press_on_the_desktop_decides(run: Run) -> None:
    async def go() -> None:
        house = House(Wire(), Desktop("ann", buttons=True))
        house.ask()
        house.wire.prints.put_nowait(b"7\n")
        await until(lambda: house.row("desktop").state == "ok")
        house.wire.prints.put_nowait(b"approve\n")
        await until(lambda: house.decided)
        assert (house.decided[0]["via"], house.decided[0]["voter"]) == ("desktop", "user:ann")
        house.wire.prints.put_nowait(None)
        await until(lambda: house.wire.closed)

    run(go())


def test_a_notification_is_taken_away_when_it_is_over(run: Run) -> None:
    async def go() -> None:
        house = House(Wire(), Desktop("ann", buttons=True))
        one = house.ask()
        house.wire.prints.put_nowait(b"7\n")
        await until(lambda: house.row("desktop").sent == 1)
        house.end(one, REJECTED, "bob")
        await until(lambda: house.wire.closed == 1)
        assert house.decided == []

    run(go())


def test_a_desktop_without_its_program_is_told_and_does_not_fill_up(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifier, "SHOWN_MAX", 2)

    async def go() -> None:
        house = House(Wire(), Desktop("ann"))
        house.wire.prints.put_nowait(b"!")
        house.ask()
        await until(lambda: house.row("desktop").failed == 1)
        assert house.row("desktop").last_error == "`notify-send` is not installed"
        await until(lambda: not house.notifier._states["desktop"].shown)
        for number in range(4):
            house.ask(call_id=f"{number:032x}")
        await until(lambda: len(house.wire.ran) == 3)
        assert house.row("desktop").waiting == 2, "they are shown when there is room"
        await house.notifier.close()
        assert house.wire.closed == 3

    run(go())


# --- tests ------------------------------------------------------------------------------------------------------------


def test_a_test_goes_through_each_channel_and_says_which_failed(run: Run) -> None:
    async def go() -> None:
        chat = Chat()
        house = House(Wire(generic=[(500, b"")]), Generic(GENERIC), Feishu(FEISHU), chat, Desktop("ann", buttons=True))
        house.wire.prints.put_nowait(None)
        assert await house.notifier.test() == [
            ("generic", "it answered 500"),
            ("feishu", ""),
            ("telegram", ""),
            ("desktop", ""),
        ]
        assert len(house.wire.of(GENERIC)) == 1, "a test is not repeated"
        assert house.wire.of(CHAT) == [{"proof": "", "test": True}]
        assert "http" not in json.dumps(house.wire.of(GENERIC) + house.wire.of(FEISHU))
        assert not any("--action" in word for word in house.wire.ran[0])
        assert house.row("feishu").sent == 0
        assert await house.notifier.test("feishu") == [("feishu", "")]
        with pytest.raises(KeyError):
            await house.notifier.test("pigeon")
        assert await house.notifier.test("feishu") == [("feishu", "")]
        with pytest.raises(TooManyTests):
            await house.notifier.test("feishu")
        await house.notifier.close()

    run(go())


def test_a_channel_that_does_not_hear_has_failed_its_test(run: Run) -> None:
    async def go() -> None:
        chat = Chat()
        house = House(Wire(), chat)
        house.patience = asyncio.Event()
        chat.says.put_nowait(Trouble("another program polls"))
        await until(lambda: house.row("telegram").state == "deaf")
        assert await house.notifier.test() == [("telegram", "sent, but answers are not heard: another program polls")]
        await house.notifier.close()

    run(go())
