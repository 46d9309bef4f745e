from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from logging_by_hand import intent

from aegis_daemon.audit.chain import Fault, digest, verify
from aegis_daemon.audit.record import GENESIS

Row = tuple[int, bytes, str]


def chain(size: int, after: int = 0, head: str = GENESIS) -> list[Row]:
    rows = []
    for seq in range(after + 1, after + size + 1):
        text = msgspec.json.encode(intent(seq, seq=seq, prev=head, kind="intent"))
        head = digest(text).hex()
        rows.append((seq, text, head))
    return rows


def faults(rows: list[Row]) -> list[tuple[int, str]]:
    return [(fault.seq, fault.kind) for fault in verify(rows)]


def forged(seq: int, prev: str) -> Row:
    text = msgspec.json.encode(intent(seq, seq=seq, prev=prev, kind="intent", note="forged"))
    return seq, text, digest(text).hex()


SIZE = 8
PLACES = st.integers(2, SIZE - 3)


def test_an_untouched_chain_has_no_fault() -> None:
    assert faults(chain(20)) == []


def test_a_chain_goes_on_behind_a_known_head() -> None:
    rows = chain(5)
    more = chain(3, 5, rows[-1][2])
    assert list(verify(more, 5, rows[-1][2])) == []
    assert [fault.kind for fault in verify(more, 5, rows[-2][2])] == ["bad_link"]


@given(PLACES)
def test_an_edited_record_is_named(place: int) -> None:
    rows = chain(SIZE)
    seq, text, stored = rows[place]
    rows[place] = (seq, text.replace(b'"writer"', b'"reader"', 1), stored)
    assert faults(rows) == [(seq, "edited")]


@given(PLACES)
def test_an_edited_record_with_a_new_hash_breaks_the_link_of_the_next(place: int) -> None:
    rows = chain(SIZE)
    seq, text, _ = rows[place]
    text = text.replace(b'"writer"', b'"reader"', 1)
    rows[place] = (seq, text, digest(text).hex())
    assert faults(rows) == [(seq + 1, "bad_link")]


@given(PLACES, st.integers(1, 2))
def test_deleted_records_are_missing(place: int, count: int) -> None:
    rows = chain(SIZE)
    del rows[place : place + count]
    found = list(verify(rows))
    assert [(fault.seq, fault.kind) for fault in found] == [(place + 1, "missing")]
    assert ("is missing" in found[0].text) == (count == 1)


@given(PLACES)
def test_deleting_and_closing_the_gap_is_found(place: int) -> None:
    rows = chain(SIZE)
    rest = [(seq - 1, text, stored) for seq, text, stored in rows[place + 1 :]]
    assert (place + 1, "reordered") in faults(rows[:place] + rest)


@given(PLACES)
def test_two_records_that_changed_places_are_found(place: int) -> None:
    rows = chain(SIZE)
    (one, first, first_hash), (two, second, second_hash) = rows[place], rows[place + 1]
    rows[place], rows[place + 1] = (one, second, second_hash), (two, first, first_hash)
    assert {(one, "reordered"), (two, "reordered")} <= set(faults(rows))


@given(PLACES)
def test_an_inserted_record_is_named_once_and_the_rest_is_not_blamed(place: int) -> None:
    rows = chain(SIZE)
    put = forged(rows[place][0], rows[place - 1][2])
    rest = [(seq + 1, text, stored) for seq, text, stored in rows[place:]]
    assert faults([*rows[:place], put, *rest]) == [(put[0], "inserted")]


def test_what_is_no_record_is_named_and_the_chain_goes_on_behind_it() -> None:
    rows = chain(SIZE)
    rows[3] = (4, b"{", rows[3][2])
    assert faults(rows) == [(4, "unreadable")]
    rows[3] = (4, b"[" * 100_000, rows[3][2])
    assert faults(rows) == [(4, "unreadable")]


@given(st.lists(st.integers(0, SIZE - 1), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_no_shuffle_of_the_contents_passes(places: list[int], random: object) -> None:
    rows = chain(SIZE)
    contents = [(text, stored) for _, text, stored in rows]
    mixed = contents[:]
    random.shuffle(mixed)  # type: ignore[attr-defined]
    found = faults([(seq, *content) for seq, content in enumerate(mixed, 1)])
    assert bool(found) == (mixed != contents)


def test_faults_say_where_and_what() -> None:
    assert list(verify(chain(3)[1:])) == [Fault(1, "missing", "record 1 is missing")]
