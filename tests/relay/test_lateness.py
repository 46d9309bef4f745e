"""Who keeps sessions waiting is known by what it did last."""

from __future__ import annotations

from aegis_daemon.relay.lateness import Lateness


def test_beginning_and_answering_are_kept_apart() -> None:
    late = Lateness()
    late.late("git", "bot", 5.0, begins=True)
    assert late.expected("git", "bot", begins=True, lived=False)
    assert late.expected("git", "bot", begins=False, lived=False)
    assert not late.expected("git", "bot", begins=False, lived=True)
    assert not late.expected("mail", "bot", begins=True, lived=False)
    late.late("git", "bot", 9.0, begins=False)
    late.late("git", "bot", 10.0, begins=True)
    assert late.since() == {"git": 5.0}
    late.in_time("git", begins=True)
    assert not late.expected("git", "bot", begins=True, lived=False)
    assert late.since() == {"git": 9.0}
    late.forget("git")
    assert late.since() == {}


def test_one_agent_makes_nobody_else_go_without_a_backend() -> None:
    late = Lateness()
    late.late("git", "one", 1.0, begins=False)
    assert late.expected("git", "one", begins=False, lived=True)
    assert not late.expected("git", "another", begins=False, lived=True)
    late.late("git", "two", 2.0, begins=False)
    late.late("git", "three", 3.0, begins=False)
    assert late.expected("git", "another", begins=False, lived=True)
    assert late.since() == {"git": 1.0}
    late.in_time("git", begins=False)
    assert not late.expected("git", "one", begins=False, lived=True)
