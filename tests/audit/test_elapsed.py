"""Wrong dates, however many boots have one, make no log older than its boot clocks say, but for one part."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import msgspec

from aegis_daemon.audit.elapsed import Moment, old_enough

DAY = 86_400_000_000
MINUTE = 60_000_000
NOW = 1_780_000_000_000_000


def log(*boots: tuple[int, int]) -> sqlite3.Connection:
    """A record each minute of boots, each by what its calendar says at its beginning and its minutes."""
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE records (seq INTEGER PRIMARY KEY, hash, record)")
    for number, (ts, minutes) in enumerate(boots):
        for minute in range(minutes):
            record = {"kind": "start", "prev": "", "seq": 0, "boot": f"b{number}", "mono": minute * MINUTE}
            text = msgspec.json.encode({**record, "ts": ts + minute * MINUTE}).decode()
            db.execute("INSERT INTO records (record) VALUES (?)", (text,))
    return db


def test_two_boots_with_a_wrong_date_make_nothing_old() -> None:
    boots = ((NOW, 100), (NOW + 3650 * DAY, 5), (NOW + DAY // 10, 5), (NOW + 3651 * DAY, 2))
    with closing(log(*boots)) as db:
        assert old_enough(db, 112, 0, 90 * DAY, Moment("b3", 2 * MINUTE, NOW + 3651 * DAY)) == 0


def test_all_gaps_together_count_for_half_the_age() -> None:
    with closing(log((NOW, 30), (NOW + DAY, 30), (NOW + 2 * DAY, 30))) as db:
        last = Moment("b2", DAY // 2, NOW + 5 * DAY // 2)  # half a day of this boot, and two days that it was off
        assert old_enough(db, 90, 0, DAY * 9 // 10, last) == 60
        assert old_enough(db, 90, 0, DAY * 21 // 10, last) == 0
