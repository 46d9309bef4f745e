from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from logging_by_hand import ARGUMENTS, RESULT, Ingested, change, denied, fill, hold, intent, opened, outcome, whole_call
from proving import second

from aegis_daemon.audit import keys, removals, rollup, store, warrants
from aegis_daemon.audit.checkpoint import origin
from aegis_daemon.audit.journal import Journal, boot_id
from aegis_daemon.audit.merkle import Frontier
from aegis_daemon.audit.notary import Duties, Notary
from aegis_daemon.audit.record import Admin
from aegis_daemon.audit.removals import Removals, merged
from aegis_daemon.audit.retention import DAY, Keeper, Policy, plan, purged
from aegis_daemon.audit.store import Reader
from aegis_daemon.audit.verify import Report, Trust

START = 1_750_000_000_000_000
HOUR = 3_600_000_000


@pytest.fixture
def anyio_backend() -> Any:
    return "asyncio"


class Clock:
    """A calendar that a test turns; an hour goes by with every record."""

    def __init__(self, each: int = HOUR) -> None:
        self.now = START
        self.each = each
        self.leapt = 0
        """what the calendar was set forward"""

    def __call__(self) -> tuple[int, int]:
        self.now += self.each
        return self.wall(), self.now - START

    def wall(self) -> int:
        return self.now + self.leapt


class Home:
    """A journal, its store, and what the writer process does with it, step by step."""

    def __init__(self, at: Path) -> None:
        self.clock = Clock()
        self.db_path = at / "audit.db"
        self.directory = at / "journal"
        self.filled = Ingested(self.directory, self.db_path)
        self.said: list[str] = []
        self.key = at / "audit.key"
        self.steps = 0
        self.monotonic = 0.0
        self.boot = boot_id()
        self.between: Callable[[], None] = lambda: None
        self.begin(Policy())

    def begin(self, policy: Policy) -> None:
        """A new writer."""
        self.filled.ingester.close()
        duties = Duties(str(self.key), every=1)
        self.notary = Notary(duties, self.said.append)
        self.keeper = Keeper(
            self.db_path, policy, self.hear, lambda: self.clock.wall() / 1e6, lambda: self.monotonic,
            lambda: (self.boot, self.clock.now - START), duties,
        )  # fmt: skip

    def hear(self, line: str) -> None:
        """What the keeper says; an order that it wants is kept with its signature."""
        if line.startswith("remove "):
            _, action, signature, detail = line.split(" ", 3)
            self.wish = Admin(action=action, by="retention", detail=detail, signature=signature)
            line = f"remove {action} {detail}"
        self.said.append(line)

    @property
    def db(self) -> sqlite3.Connection:
        self.filled.ingester.step(None)
        db = self.filled.ingester.db
        assert db is not None
        db.execute("PRAGMA synchronous=OFF")  # nobody pulls the plug here
        return db

    def sign(self) -> None:
        self.filled.all()
        while self.notary.step(self.db):
            pass

    def work(self, most: int = 5000) -> None:
        """The keeper, until it has nothing to do."""
        db, seq = self.db, self.filled.ingester.seq
        while self.keeper.due_in(seq) <= 0 and most:
            self.keeper.step(db, seq)
            self.steps += 1
            most -= 1
            self.between()

    def report(self) -> Report:
        with Reader(self.db_path) as reader:
            return reader.verify(trust=Trust(ring=tuple(keys.read_ring(self.key))))

    def signed(self, action: str, detail: str, by: str = "ann") -> Admin:
        """An order as the daemon writes it."""
        self.filled.all()
        name = origin("default", warrants.chain_of(self.db))
        signer = keys.Signer(keys.load_or_make(self.key))
        word = signer.word(name, warrants.text(name, action, detail, by))
        return Admin(action=action, by=by, detail=detail, signature=word)

    def order(self, log: Journal, action: str, detail: str) -> None:
        self.give(log, self.signed(action, detail))

    def give(self, log: Journal, order: Admin) -> None:
        log.append(order)
        self.filled.all()
        self.work()

    def rows(self, table: str) -> list[int]:
        return [row[0] for row in self.db.execute(f"SELECT seq FROM {table} ORDER BY seq")]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path)
    yield made
    made.filled.close()


def test_the_words_of_a_removal_are_read_as_they_are_written() -> None:
    found = Removals()
    found.add(removals.read(50, "purge", removals.purge_detail(20, "why: 3")))
    for detail in removals.erase_details([30, 21, 22, 23, 30], "why"):
        found.add(removals.read(50, "erase", detail))
    assert found.purged == 20
    assert found.bodiless([20, 21, 23, 24, 29, 30, 31]) == [20, 24, 29, 31]
    found.add(removals.read(60, "purge_bodies", removals.purge_bodies_detail(99, "x")))
    assert found.bodiless(range(1, 62)) == [60, 61]
    assert merged([(5, 6), (1, 2), (3, 3), (6, 9)]) == [(1, 3), (5, 9)]


@pytest.mark.parametrize(
    ("action", "detail"),
    [
        ("reload", "records 1 to 9: x"),
        ("purge", "records 2 to 9: x"),
        ("purge", "records 1 to 9"),
        ("purge", "records 1 to 09: x"),
        ("erase", "bodies of records 1 to 9: x"),
        ("erase", "bodies of records 1,,2: x"),
        ("erase", "bodies of records 0: x"),
        ("purge_bodies", "records 1 to 9: x"),
    ],
)
def test_other_words_remove_nothing(action: str, detail: str) -> None:
    assert removals.read(50, action, detail) is None


def test_nothing_is_removed_that_is_newer_than_its_order() -> None:
    removal = removals.read(50, "purge", "records 1 to 99: x")
    assert removal is not None
    assert removal.last == 49
    removal = removals.read(50, "erase", "bodies of records 40-60, 70: x")
    assert removal is not None
    assert removal.ranges == ((40, 49),)


async def test_a_purge_leaves_a_log_that_still_verifies(home: Home) -> None:
    with opened(home.directory, clock=home.clock) as log:
        fill(log, range(30))
        home.sign()
        fill(log, range(30, 50))
        home.sign()
        home.order(log, "purge", removals.purge_detail(60, "asked for"))
        report = home.report()
        assert report.faults == []
        assert (report.purged, report.records, report.last_seq) == (60, 41, 101)
        assert (report.checked_calls, report.checked_bodies) == (20, 40)
        assert home.rows("records") == list(range(61, 102))
        assert home.rows("calls")[0] == 61
        assert home.rows("bodies")[0] == 61
        assert home.rows("leaves") == list(range(1, 61))
        assert home.rows("removals") == [101]
        assert [row[0] for row in home.db.execute("SELECT size FROM checkpoints")] == [60, 100]
        fill(log, range(50, 60))
        home.begin(Policy())  # a new writer, which finds its tree in the hashes
        home.sign()
        assert home.said[-1] == "checkpoint 121"
        home.order(log, "purge", removals.purge_detail(121, "asked for"))
        report = home.report()
        assert (report.faults, report.purged, report.signed) == ([], 121, 121)


async def test_calls_that_reach_beyond_a_purge_stay_whole_until_the_next(home: Home) -> None:
    with opened(home.directory, clock=home.clock) as log:
        fill(log, range(5))  # 1 to 10
        log.append(hold(90), ARGUMENTS)  # 11
        log.append(intent(91), ARGUMENTS)  # 12
        fill(log, range(5, 8))  # to 18
        log.append(intent(92), ARGUMENTS)  # 19
        home.sign()  # 19
        log.append(intent(90), ARGUMENTS)
        log.append(outcome(92), RESULT)
        fill(log, range(8, 10))
        home.order(log, "purge", removals.purge_detail(19, "x"))
        assert [seq for seq in home.rows("records") if seq < 20] == [11, 12, 19]
        report = home.report()
        assert (report.faults, report.purged) == ([], 19)
        assert report.checked_calls == 5
        log.append(outcome(90), RESULT)
        log.append(outcome(91), RESULT)
        home.sign()
        assert home.report().faults == []
        home.order(log, "purge", removals.purge_detail(home.filled.ingester.seq, "x"))
        assert home.rows("calls") == []
        assert home.rows("records") == [home.filled.ingester.seq]
        assert home.report().faults == []


async def test_a_purge_is_sound_and_goes_on_wherever_it_is_broken_off(home: Home, monkeypatch: Any) -> None:
    monkeypatch.setattr("aegis_daemon.audit.retention.ROWS", 7)
    monkeypatch.setattr("aegis_daemon.audit.retention.ROWS_MAX", 7)
    with opened(home.directory, clock=home.clock) as log:
        for number in range(60):  # overlapping calls of all kinds
            log.append(hold(number) if number % 3 == 0 else intent(number), ARGUMENTS)
            if number % 3 == 1:
                log.append(denied(1000 + number), ARGUMENTS)
            if number % 3 == 0 and number > 9:
                log.append(intent(number - 9), ARGUMENTS)
            if number > 15 and number % 13:
                log.append(outcome(number - 15), RESULT)
        home.sign()
        last = home.filled.ingester.seq
        log.append(outcome(59), RESULT)
        whole_call(log, 700)
        log.append(home.signed("purge", removals.purge_detail(last, "x")))
        home.filled.all()

        seen: list[int] = []
        while home.db.execute("SELECT 1 FROM removals WHERE done = 0").fetchall():
            home.work(most=len(seen))
            assert home.report().faults == []
            seen.append(purged(home.db))
            home.begin(Policy())  # the process was killed: a new one knows nothing, and compares anew
        assert purged(home.db) == last
        assert home.report().faults == []
        assert len(set(seen)) >= 5  # it was seen halfway


@pytest.mark.parametrize(
    "evil",
    [
        "UPDATE records SET record = replace(record, 'writer', 'nobody') WHERE seq = 7",
        "UPDATE bodies SET body = '{}' WHERE seq = 7",
        "DELETE FROM bodies WHERE seq = 7",
        "DELETE FROM records WHERE seq = 7",
        "UPDATE checkpoints SET root = zeroblob(32)",
    ],
)
async def test_a_purge_never_hides_a_change(home: Home, evil: str) -> None:
    with opened(home.directory, clock=home.clock) as log:
        fill(log, range(30))
        home.sign()
        change(home.db_path, evil)
        before = home.report().faults
        assert before
        home.order(log, "purge", removals.purge_detail(60, "x"))
        assert home.said[-1].startswith("kept ")
        assert "nothing is purged" in home.said[-1]
        assert purged(home.db) == 0
        assert home.report().faults == before


async def test_a_purge_compares_with_what_was_signed_and_not_with_what_is_kept_beside_it(home: Home) -> None:
    from test_verify_twice import chained

    with opened(home.directory, clock=home.clock) as log:
        fill(log, range(30))
        home.sign()
        db = home.db
        db.execute("UPDATE records SET record = replace(record, 'writer', 'nobody') WHERE seq = 7")
        chained(db, 7)
        tree = Frontier()
        for (hash,) in db.execute("SELECT hash FROM records WHERE seq <= 60 ORDER BY seq"):
            tree.add(bytes.fromhex(hash))
        assert db.execute("UPDATE checkpoints SET root = ? WHERE size = 60", (tree.root(),)).rowcount == 1
        home.order(log, "purge", removals.purge_detail(60, "x"))
        assert "records 1 to 60 are not those that were signed; nothing is purged" in home.said[-1]
        assert purged(home.db) == 0


@pytest.mark.parametrize("feigned", ["", "moved", "old", "other"])
async def test_an_order_without_the_keys_word_for_it_removes_nothing_and_hides_nothing(
    home: Home, tmp_path: Path, feigned: str
) -> None:
    with opened(home.directory, clock=home.clock) as log:
        fill(log, range(30))
        home.sign()
        order = home.signed("purge", removals.purge_detail(20, "x"))
        order.detail = removals.purge_detail(60, "x")
        if not feigned:
            order.signature = ""
        elif feigned == "old":  # the word for another order
            order.signature = home.signed("purge_bodies", removals.purge_bodies_detail(60, "x")).signature
        elif feigned == "other":
            home.key, key = tmp_path / "other", home.key
            order.signature = home.signed("purge", order.detail).signature
            home.key = key
        home.give(log, order)
        assert next(line for line in home.said if "did not sign" in line).startswith("kept record 61 ")
        assert (purged(home.db), home.db.execute("SELECT done FROM removals").fetchall()) == (0, [(1,)])
        assert [(fault.seq, fault.kind) for fault in home.report().faults] == [(61, "removal_unsigned")]
        db = home.db  # so somebody else does it, who can write to the file
        for seq, stored in db.execute("SELECT seq, hash FROM records WHERE seq <= 60").fetchall():
            db.execute("INSERT INTO leaves VALUES (?, ?)", (seq, bytes.fromhex(stored)))
        for table in ("records", "calls", "bodies"):
            db.execute(f"DELETE FROM {table} WHERE seq <= 60")
        rollup.rebuild(db)
        kinds = [(fault.seq, fault.kind) for fault in home.report().faults]
        assert sorted(kinds) == [(1, "missing"), (61, "removal_unsigned")]
        home.sign()
        log_ = second().Log(db)
        assert sorted((seq, kind) for seq, kind, _ in log_.examine()) == sorted(kinds)


async def test_an_order_that_was_signed_is_carried_out_after_the_key_was_changed(home: Home) -> None:
    with opened(home.directory, clock=home.clock) as log:
        fill(log, range(30))
        home.sign()
        order = home.signed("purge", removals.purge_detail(60, "x"))
        keys.use(home.key, keys.prepare(home.key))
        home.give(log, order)
        home.sign()
        assert (purged(home.db), home.report().faults) == (60, [])


async def test_what_is_gone_without_a_record_is_missed(home: Home) -> None:
    with opened(home.directory, clock=home.clock) as log:
        fill(log, range(30))
        home.sign()
        home.order(log, "purge", removals.purge_detail(60, "x"))
        fill(log, range(30, 40))
        home.sign()
        db = home.db
        for seq, stored in db.execute("SELECT seq, hash FROM records WHERE seq <= 70").fetchall():
            db.execute("INSERT INTO leaves VALUES (?, ?)", (seq, bytes.fromhex(stored)))
        for table in ("records", "calls", "bodies"):
            db.execute(f"DELETE FROM {table} WHERE seq <= 70")
        assert [(fault.seq, fault.kind) for fault in home.report().faults] == [(1, "missing")]


async def test_what_grew_too_old_is_asked_for_once_a_day_and_purged_by_a_record(home: Home) -> None:
    with opened(home.directory, clock=home.clock) as log:
        fill(log, range(36))  # 72 records, 3 days
        home.sign()
        home.begin(Policy(days=2))
        home.work()
        assert not [line for line in home.said if line.startswith("remove")]  # signed at 72 alone
        for number in range(36, 72):
            whole_call(log, number)
            home.sign()  # 74, 76, …, 144
        home.monotonic += 86_401
        home.work()
        (line,) = [line for line in home.said if line.startswith("remove")]
        assert line == "remove purge records 1 to 94: `audit.retention_days` is 2"
        home.give(log, home.wish)
        assert purged(home.db) == 94
        home.monotonic += 700
        home.work()
        assert len([line for line in home.said if line.startswith("remove")]) == 1
        assert home.report().faults == []


async def test_bodies_may_go_earlier_than_their_records(home: Home) -> None:
    with opened(home.directory, clock=home.clock) as log:
        fill(log, range(20))
        log.append(hold(77), ARGUMENTS)  # 41
        fill(log, range(20, 50))
        home.sign()
        home.begin(Policy(bodies_days=1))
        home.work()
        (line,) = [line for line in home.said if line.startswith("remove")]
        assert line == "remove purge_bodies bodies of records 1 to 76: `audit.bodies_days` is 1"
        home.give(log, home.wish)
        report = home.report()
        assert (report.faults, report.records, report.erased_bodies) == ([], 102, 75)
        assert home.rows("bodies")[:2] == [41, 77]
        with Reader(home.db_path) as reader:
            gone, kept = reader.show(f"{3:032x}").call, reader.show(f"{77:032x}").call
        assert (gone.arguments, gone.result, gone.arguments_hash) == (None, None, "")
        assert kept.arguments == ARGUMENTS.decode()
        assert home.report().faults == []


async def test_a_purge_keeps_the_order_that_says_why_a_call_that_stays_has_no_body(home: Home) -> None:
    with opened(home.directory, clock=home.clock) as log:
        fill(log, range(5))
        log.append(hold(77), ARGUMENTS)  # 11
        home.filled.all()
        home.order(log, "erase", "bodies of records 11: x")  # 12
        home.order(log, "erase", "bodies of records 3: x")
        fill(log, range(5, 10))  # to 23
        home.sign()
        home.order(log, "purge", removals.purge_detail(23, "x"))
        assert home.rows("records") == [11, 12, 24]
        report = home.report()
        assert (report.faults, report.erased_bodies) == ([], 1)
        log.append(outcome(77), RESULT)
        home.sign()
        home.order(log, "purge", removals.purge_detail(25, "x"))
        assert home.rows("calls") == []
        home.sign()
        home.order(log, "purge", removals.purge_detail(26, "x"))
        assert home.rows("records") == [27]
        assert home.rows("removals") == [27]
        assert home.report().faults == []


async def test_what_sqlite_frees_is_overwritten(home: Home) -> None:
    assert home.db.execute("PRAGMA secure_delete").fetchone() == (1,)


async def test_windows_exports_and_witnesses_hold_a_purge(home: Home, tmp_path: Path) -> None:
    exports = tmp_path / "exports.db"
    with opened(home.directory, clock=home.clock) as log:
        for number in range(50):
            whole_call(log, number)
            home.sign()
    now = home.clock.now
    old = now - DAY

    def last(policy: Policy) -> tuple[int, str]:
        found = plan(home.db, old, policy, now)
        return found.last, found.held

    assert last(Policy()) == (74, "")
    free = datetime.fromtimestamp((old + 1.5 * DAY) / 1e6, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    why = f"the limit of 3 calls still counts what is newer; it can go from {free} on"
    assert last(Policy(window_s=86_400 / 2, window="the limit of 3 calls")) == (62, why)
    see = "; see `aegis audit exports`"
    behind, unseen = (
        f"the export `a` has nothing of this log yet{see}", f"no witness (`w`, `v`) has seen any of this log yet{see}",
    )  # fmt: skip
    keeps, sees = Policy(exports=str(exports), keep=("a",)), Policy(exports=str(exports), witnesses=("w", "v"))
    assert (last(keeps), last(sees)) == ((0, behind), (0, unseen))  # there is no such file
    chain = warrants.chain_of(home.db)
    change(
        exports,
        "CREATE TABLE cursors (sink, chain, seq, hash, keep, updated_us)",
        "CREATE TABLE witnessed (witness, chain, size, at_us)",
        f"INSERT INTO cursors VALUES ('b', '{chain}', 3, '', 0, 0), ('a', 'another', 90, '', 1, 0)",
        f"INSERT INTO witnessed VALUES ('gone', 'aegis/t/{chain}', 60, 0), ('w', 'aegis/t/another', 60, 0)",
    )
    assert (last(keeps), last(sees)) == ((0, behind), (0, unseen))  # others, and of another log
    change(
        exports,
        f"INSERT INTO cursors VALUES ('a', '{chain}', 33, '', 1, 0)",
        f"INSERT INTO witnessed VALUES ('w', 'aegis/t/{chain}', 20, 0), ('v', 'aegis/t/{chain}', 18, 0)",
    )
    behind = f"the export `a` has records up to 33 only{see}"
    assert (last(keeps), last(sees)) == ((32, behind), (20, f"no witness (`w`, `v`) has seen more than record 20{see}"))
    behind = f"the export `new` has nothing of this log yet{see}"
    assert last(Policy(exports=str(exports), keep=("a", "new"))) == (0, behind)
    change(home.db_path, "DELETE FROM checkpoints")
    assert last(Policy()) == (0, "no checkpoint that covers them was signed")


def signed(home: Home, log: Journal, numbers: range) -> None:
    """Calls with a checkpoint behind each of them."""
    for number in numbers:
        whole_call(log, number)
        home.sign()


def looked(home: Home, days: int) -> list[str]:
    """What a keeper says that looks for what is older, now."""
    home.filled.all()
    home.begin(Policy(days=days))
    home.said.clear()
    home.sign()
    home.work()
    return home.said[:]


@pytest.mark.parametrize("leap_days", [3, 100, 20_000])
async def test_a_calendar_that_leaps_forward_makes_nothing_old(home: Home, leap_days: int) -> None:
    with opened(home.directory, clock=home.clock) as log:
        signed(home, log, range(24))  # two days
        assert looked(home, 3)[-1] == "kept "
        home.clock.leapt = leap_days * DAY
        assert "the clock went forward" in looked(home, 3)[-1]
        signed(home, log, range(24, 30))  # half a day in that time
        assert "the clock went forward" in looked(home, 3)[-1]
        by_hand = plan(home.db, home.clock.wall() - 3 * DAY, Policy(), home.clock.wall())
        assert by_hand.last >= 47  # whoever is asked knows what day it is
        signed(home, log, range(30, 48))  # by now three days have passed since the first ones, and all know it
        (leapt,) = [line for line in looked(home, 3) if line.startswith("remove")]
        home.clock.leapt = 0  # and it is put right again
        (right,) = [line for line in looked(home, 3) if line.startswith("remove")]
        assert leapt == right
        assert right.startswith("remove purge records 1 to 2")


async def test_the_time_between_two_boots_counts_for_half_the_age_at_most(home: Home) -> None:
    with opened(home.directory, clock=home.clock) as log:
        signed(home, log, range(24))  # two days
        home.boot = log.boot = "another"
        home.clock.leapt = 1000 * DAY  # it was off for years, or it comes up with a wrong date
        signed(home, log, range(24, 30))
        assert "the clock went forward" in looked(home, 5)[-1]  # two, half of five and a half
        signed(home, log, range(30, 40))
        assert [line for line in looked(home, 5) if line.startswith("remove purge records 1 to ")]
        assert "the clock went forward" in looked(home, 9)[-1]


async def test_a_short_time_between_two_boots_counts_as_it_is(home: Home) -> None:
    with opened(home.directory, clock=home.clock) as log:
        signed(home, log, range(6))
        found = []
        for boot in (log.boot, "another"):
            home.boot = log.boot = boot
            home.clock.now += 12 * HOUR
            signed(home, log, range(6, 12) if boot == "another" else range(12, 18))
            home.clock.now += 12 * HOUR
            found.append([line for line in looked(home, 1) if line.startswith("remove")])
        assert all(found)


async def test_a_purged_store_gives_its_pages_back(home: Home) -> None:
    with opened(home.directory, clock=home.clock) as log:
        for number in range(300):
            log.append(intent(number), b'{"text":"%s"}' % (b"x" * 7500))
            log.append(outcome(number), RESULT)
        home.sign()
        home.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        before = home.db_path.stat().st_size
        home.order(log, "purge", removals.purge_detail(600, "x"))
        assert home.db_path.stat().st_size < before / 8
        assert home.report().faults == []
        assert home.db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_a_store_of_an_earlier_version_can_be_purged_too(home: Home) -> None:
    with opened(home.directory, clock=home.clock) as log:
        fill(log, range(30))
        home.filled.all()
        home.begin(Policy())
        db = sqlite3.connect(home.db_path, isolation_level=None)
        for table in ("leaves", "removals"):
            db.execute(f"DROP TABLE {table}")
        db.execute("PRAGMA auto_vacuum=NONE")
        db.execute("VACUUM")
        db.execute("PRAGMA user_version=1")
        db.close()
        fill(log, range(30, 40))
        home.sign()
        assert home.db.execute("PRAGMA auto_vacuum").fetchone() == (2,)
        home.order(log, "purge", removals.purge_detail(80, "x"))
        assert (home.report().faults, home.report().purged) == ([], 80)


def test_a_store_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    store.ensure_schema(tmp_path / "audit.db")
    change(tmp_path / "audit.db", f"PRAGMA user_version={store.SCHEMA + 1}")
    with pytest.raises(sqlite3.DatabaseError, match="run a newer Aegis"):
        store.ensure_schema(tmp_path / "audit.db")
    with pytest.raises(OSError, match="this Aegis reads"):
        Reader(tmp_path / "audit.db")
