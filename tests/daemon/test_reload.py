"""Calls go on while a large configuration is read, and of two reloads the later one has the last word."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from e2e.house import Home, call

OPEN = "backends: {work: {}}\nagents: {default: {backends: {work: {allowed: true}}}}\n"
POLICIES = "".join(
    f'    permit(principal, action, resource) when {{ context.arguments.key like "k{number}*" }};\n'
    for number in range(3_000)
)
LARGE = f"{OPEN}policy:\n  text: |\n{POLICIES}"


@pytest.fixture
def home() -> Iterator[Home]:
    made = Home(OPEN).launch()
    yield made
    made.close()


def test_calls_are_answered_while_a_reload_reads_thousands_of_policies(home: Home) -> None:
    agent = home.count().handshake()
    home.configure(LARGE)
    done = threading.Event()

    def reload() -> None:
        try:
            home.ask("reload")
        finally:
            done.set()

    with ThreadPoolExecutor() as pool:
        reloaded = pool.submit(reload)
        answered = 0
        while not done.is_set():
            answer = agent.asks(call(answered, "post", key="k1"))
            answered += not done.is_set() and "result" in answer
        reloaded.result(60)
    # One may be answered before the reload begins; held up by it, there would be no second.
    assert answered > 2, answered
    assert "error" in agent.asks(call("after", "post", key="other"))


def test_a_reload_that_takes_long_does_not_undo_a_later_one(home: Home) -> None:
    home.configure(LARGE)
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(home.ask, "reload")
        for _ in range(5):  # answered meanwhile: by then the other has begun to read
            home.ask("status")
        home.configure(f"{OPEN}denials: error\n")
        quick = pool.submit(home.ask, "reload")
        slow.result(60)
        quick.result(60)
    assert "result" in home.count().handshake().asks(call(1, "post", key="other")), "no policy says otherwise any more"
