"""However policies are sorted into pieces, what they say is what Cedar says of all of them as one set, asked twice."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis_daemon.core.principal import Principal
from aegis_daemon.policy.cedar import _UNKNOWN, Engine, Question, passes
from aegis_daemon.policy.context import Doubt, folded
from aegis_daemon.policy.dialect import read
from aegis_daemon.policy.groups import FEW, Group, Piece

AMY = Principal("Amy", roles=("Dev",))
ALL = "permit(principal, action, resource);\n"
_TERMS = [
    'context.arguments has path', 'context.arguments.path like "/Secret*"', 'context.arguments.path == "/pub"',
    'context.arguments has n', 'context.arguments.n > 3', '!(context.arguments has Flag)', 'context.arguments.Flag == true',
    'context.target == "t"', 'context.target like "T*"', 'principal.team == "Red"', 'principal in Role::"Dev"',
    'principal has level', 'principal.level > 2', 'resource.name == "files"', 'context.arguments.path == principal.team',
    'context.arguments has who && context.arguments.who like "*ADMIN*"', 'context.time.hour == 12',
    'datetime(context.arguments.at) > datetime("2020-01-01")', '(context.arguments.n == 1 || context.arguments.path == "/X")',
]  # fmt: skip
_POLICIES = st.builds(
    lambda effect, terms, kind: f"{effect}(principal, action, resource) {kind} {{ {' && '.join(terms)} }};",
    st.sampled_from(["permit", "forbid"]),
    st.lists(st.sampled_from(_TERMS), min_size=1, max_size=3),
    st.sampled_from(["when", "when", "when", "unless"]),
)
_FILLING = "".join(
    f'forbid(principal, action, resource) when {{ context.arguments has x{n} && context.arguments.x{n} == "Y" }};\n'
    for n in range(FEW)
)
"""So many that they are sorted, and none of them about what is asked."""
_ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "path": st.sampled_from(["/pub", "/PUB", "/Secret/a", "/secret/a", "%2fsecret", None, 5]),
        "n": st.sampled_from([1, 4, "4"]),
        "Flag": st.booleans(),
        "who": st.sampled_from(["admin", "Admin", "bob", None]),
        "x3": st.sampled_from(["y", "Y", "z"]),
        "X3": st.just("Y"),
        "at": st.sampled_from(["2024-01-01", "2019-01-01", "soon"]),
    },
)
_ATTRIBUTES = st.sampled_from([{}, {"team": "Red"}, {"team": "red", "level": 3}, {"team": "/pub"}])


def _question(arguments: Any, target: str = "t") -> Question:
    facts = {"time": lambda: {"epoch": 0, "hour": 12, "minute": 0, "weekday": 1}}
    return Question(AMY, "files", "tools/call", "tool", target, "to_server", arguments, facts)


def _as_one_set(engine: Engine, asked: Question) -> bool:
    """The same question to every policy, as it is and folded, without any sorting."""
    group = Group(engine._members)
    context: dict[str, Any] = {"primitive": "tool", "target": asked.target, "direction": "to_server"}
    try:
        if "arguments" in group.reads:
            context["arguments"] = group.looks.shown(asked.arguments)
        context["time"] = asked.facts["time"]()
        bare = folded(context)
    except Doubt:
        return False
    exact, folds, _ = engine._principal(asked.principal, asked.server)
    # Policies that make an instant of an argument are asked as they are alone: folding would take its capitals.
    apart = {number: one for number, one in enumerate(engine._members) if "datetime" in str(one.statement.est)}
    others = {number: one for number, one in enumerate(engine._members) if number not in apart}
    both = [Piece(some) for some in (apart, others) if some]
    first = [piece.ask(_request(asked, context), exact) for piece in both]
    second = [piece.ask(_request(asked, bare), folds, fold=True) for piece in both if piece.folds or piece.by_name]
    kept = [one for piece, one in zip(both, first, strict=True) if not piece.folds and not piece.by_name]
    return passes(first) and passes([*kept, *second])


def _request(asked: Question, context: dict[str, Any]) -> dict[str, Any]:
    return {
        "principal": {"type": "Agent", "id": asked.principal.agent},
        "action": {"type": "Action", "id": asked.action},
        "resource": {"type": "Server", "id": asked.server},
        "context": context,
    }


@given(st.lists(_POLICIES, min_size=1, max_size=6), _ARGUMENTS, _ATTRIBUTES, st.booleans(), st.sampled_from("tTv"))
@settings(max_examples=100, deadline=None)
def test_pieces_decide_as_all_policies_in_one_set(
    texts: list[str], arguments: dict[str, Any], attributes: dict[str, Any], many: bool, target: str
) -> None:
    # Nothing is sorted by target here, which has a test of its own.
    texts = [text.replace('context.target == "t"', 'context.target like "t"') for text in texts]
    text = ALL + (_FILLING if many else "") + "\n".join(texts)
    engine = Engine(read(text, "p.cedar"), {"Amy": attributes}, ("files",))
    asked = _question(arguments, target)
    found = engine.judge(asked)
    assert found.allowed is _as_one_set(engine, asked), found
    assert engine.judge(asked) == found
    may = engine.possible(AMY, "files", "tools/call", "tool", target, "to_server")
    assert may or not found.allowed
    assert may is _possible_as_one_set(engine, target)


def _possible_as_one_set(engine: Engine, target: str) -> bool:
    every = Piece(dict(enumerate(engine._members)))
    context = {"primitive": "tool", "target": target, "direction": "to_server", "arguments": _UNKNOWN, "time": _UNKNOWN}
    asked = {
        "principal": 'Agent::"Amy"',
        "action": 'Action::"tools/call"',
        "resource": 'Server::"files"',
        "context": context,
    }
    outcome = every.ask_partly(asked, engine._principal(AMY, "files")[0])
    return bool(outcome.permits) and not outcome.forbids and not outcome.errors


def _many(count: int, condition: str) -> str:
    return "".join(f"forbid(principal, action, resource) when {{ {condition.format(n)} }};\n" for n in range(count))


def _asked(engine: Engine, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """How many policies Cedar is asked about in each go, and whether of the folded call."""
    seen: list[tuple[int, bool]] = []
    ask = Piece.ask

    def counted(self: Piece, *args: Any, fold: bool = False, **more: Any) -> Any:
        seen.append((len(self._members), fold))
        return ask(self, *args, fold=fold, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Piece, "ask", counted)
        engine.judge(_question(arguments))
    return seen


def test_policies_about_an_argument_that_is_not_there_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    text = ALL + _many(640, 'context.arguments has a{0} && context.arguments.a{0} == "Y"')
    engine = Engine(read(text, "p.cedar"), {}, ("files",))
    assert _asked(engine, {"b": "x"}, monkeypatch) == [(1, False)], "the permit alone"
    assert _asked(engine, {"a3": "x"}, monkeypatch) == [(10, False), (10, True)]
    assert not engine.judge(_question({"a3": "y"})).allowed
    assert not engine.judge(_question({"A3": "x"})).allowed, "spelt otherwise, a server may take it for the same"


def test_a_call_that_folding_changes_nothing_of_is_judged_once_more_only_by_what_has_capitals(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = ALL + _many(60, 'context.arguments.path like "/secret{0}/*"')
    engine = Engine(read(text, "p.cedar"), {}, ("files",))
    engine.judge(_question({"path": "/pub"}))
    assert _asked(engine, {"path": "/pub"}, monkeypatch) == [(60, False)]
    assert _asked(engine, {"path": "/Pub"}, monkeypatch) == [(60, False), (60, True)]
    mixed = text + 'forbid(principal, action, resource) when { context.arguments.path like "/Secret/*" };'
    engine = Engine(read(mixed, "p.cedar"), {}, ("files",))
    engine.judge(_question({"path": "/pub"}))
    assert _asked(engine, {"path": "/pub"}, monkeypatch) == [(60, False), (1, False), (1, True)]
    assert not engine.judge(_question({"path": "/secret/x"})).allowed


def test_what_names_alone_decide_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    text = ALL + 'forbid(principal, action, resource) when { context.arguments.path == "/no" };'
    engine = Engine(read(text, "p.cedar"), {}, ("files",))
    assert len(_asked(engine, {"path": "/a"}, monkeypatch)) == 2
    assert len(_asked(engine, {"path": "/b"}, monkeypatch)) == 1
    for agent in ("bob", "eve"):
        other = Question(Principal(agent), "files", "tools/call", "tool", "t", "to_server", {"path": "/a"}, {})
        assert engine.judge(other).allowed


def test_a_policy_that_fails_refuses_in_whatever_piece_it_is() -> None:
    text = ALL + _FILLING + "forbid(principal, action, resource) when { context.arguments.n > 3 };"
    engine = Engine(read(text, "p.cedar"), {}, ("files",))
    assert engine.judge(_question({"n": 1})).allowed
    failed = engine.judge(_question({}))
    assert (failed.allowed, failed.forbidden) == (False, True)
    assert f"p.cedar:{FEW + 2}:1" in failed.why


def test_a_call_with_every_name_there_asks_no_more_pieces_than_there_are_buckets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = ALL + _many(640, "context.arguments has a{0} && context.arguments.a{0} == 1")
    engine = Engine(read(text, "p.cedar"), {}, ("files",))
    assert len(_asked(engine, {f"a{n}": 2 for n in range(640)}, monkeypatch)) <= 65


def test_policies_alike_for_many_servers_and_methods_are_parsed_once() -> None:
    text = ALL + 'permit(principal, action == Action::"prompts/get", resource == Server::"s1");'
    engine = Engine(read(text, "p.cedar"), {}, [f"s{n}" for n in range(5)])
    assert engine.groups("s2", "tools/call", "t") == engine.groups("s3", "resources/read", "u")
    assert len(engine.groups("s1", "prompts/get", "p")) == 2
