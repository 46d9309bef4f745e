from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis_daemon.approvals import links
from aegis_daemon.approvals.links import Bound
from aegis_daemon.approvals.ticket import Ticket

KEY, OTHER = b"k" * 32, b"o" * 32
BOUND = Bound(b"b" * 32, 2_000_000_000)


def ticket(**changes: Any) -> Ticket:
    facts: dict[str, Any] = {
        "id": "K7Q2", "call_id": "ab" * 16, "digest": "cd" * 32, "agent": "amy", "backend": "files",
        "method": "tools/call", "name": "post", "arguments": "{}", "rule": "rule", "created": 1000.0, "expires": 1600.5,
    }  # fmt: skip
    return Ticket(**{**facts, **changes})


@given(st.binary(min_size=1), st.text(min_size=1), st.sampled_from(["approve", "reject"]), st.integers(0, 2**40))
def test_a_token_says_what_it_was_made_for(key: bytes, id: str, action: str, expires: int) -> None:
    bound = Bound(b"x" * 32, expires)
    token = links.make(key, id, action, bound)
    assert links.read(key, id, action, token) == bound
    assert len(token) <= links.TOKEN_MAX


def test_a_token_is_for_one_key_one_id_and_one_action() -> None:
    token = links.make(KEY, "K7Q2", "approve", BOUND)
    assert links.read(OTHER, "K7Q2", "approve", token) is None
    assert links.read(KEY, "K7Q2", "reject", token) is None
    assert links.read(KEY, "K7Q3", "approve", token) is None
    assert links.read(KEY, "k7q2", "approve", token) is None
    # Neither field can lend the other its characters.
    assert links.read(KEY, "K7Q2a", "pprove", token) is None


def test_no_character_of_a_token_can_be_changed_dropped_or_added() -> None:
    token = links.make(KEY, "K7Q2", "approve", BOUND)
    for at in range(len(token)):
        for char in "AZaz09-_+/=. é":
            changed = token[:at] + char + token[at + 1 :]
            assert (links.read(KEY, "K7Q2", "approve", changed) is None) is (changed != token), changed
        assert links.read(KEY, "K7Q2", "approve", token[:at] + token[at + 1 :]) is None
    for more in ("=", "\n", "A", "%", token):
        assert links.read(KEY, "K7Q2", "approve", token + more) is None
        assert links.read(KEY, "K7Q2", "approve", more + token) is None


@given(st.text() | st.text(st.sampled_from("ABCDabcd0123-_="), max_size=links.TOKEN_MAX))
def test_nothing_else_is_a_token_and_nothing_else_raises(text: str) -> None:
    assert links.read(KEY, "K7Q2", "approve", text) is None


def test_two_tickets_never_share_links_even_for_the_same_call() -> None:
    one, two = ticket(), ticket(call_id="ba" * 16)
    assert links.binding(one) != links.binding(two)
    assert links.binding(one) != links.binding(ticket(digest="dc" * 32))
    assert links.binding(one) == links.binding(ticket(arguments="changed", name="other", expires=9.0)), (
        "the digest speaks for those"
    )


@pytest.mark.parametrize("base", ["https://aegis.example/x", "https://aegis.example/x/"])
def test_a_link_has_seed_as_shape(base: str) -> None:
    made = urlsplit(links.url(KEY, base, ticket(), "reject"))
    assert f"{made.scheme}://{made.netloc}{made.path}" == "https://aegis.example/x/callback/approval"
    asked = {name: value for name, (value,) in parse_qs(made.query).items()}
    assert list(asked) == ["id", "action", "token"]
    assert (asked["id"], asked["action"]) == ("K7Q2", "reject")
    assert links.read(KEY, **asked) == Bound(links.binding(ticket()), 1600)


def test_a_code_is_six_digits_that_the_link_does_not_tell() -> None:
    codes = {links.code(KEY, bytes([n]) * 32) for n in range(64)}
    assert len(codes) > 60
    assert all(len(code) == 6 and code.isascii() and code.isdigit() for code in codes)
    assert links.code(KEY, BOUND.binding) == links.code(KEY, BOUND.binding) != links.code(OTHER, BOUND.binding)
