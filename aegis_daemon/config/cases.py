"""Cases say in YAML what becomes of a call; each is judged by the stages themselves, and told where it is otherwise.

A file of cases is as strict as the configuration: unknown keys, agents, backends and rules are faults, all told at
once. What the policies see of the time is fixed, so that a case that passes today passes tomorrow.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Annotated, Any, Final, Literal

import msgspec
from pydantic import BeforeValidator, Field, PlainValidator, ValidationError, model_validator

from aegis_daemon.config.coverage import Coverage, Mark, means, same
from aegis_daemon.config.explain import Step, Unasked, asked, opinions, step
from aegis_daemon.config.load import Reading, load
from aegis_daemon.config.overlay import plain
from aegis_daemon.config.runtime import build
from aegis_daemon.config.schema import BackendName, Config, JsonMapping, Name, Section, called, fault, shown
from aegis_daemon.config.source import ConfigFaults, Fault, Path, Source, read, read_file
from aegis_daemon.core.call import Call
from aegis_daemon.core.roots import UnreadableRoots, left
from aegis_daemon.core.runtime import Runtime
from aegis_daemon.core.stage import Gate
from aegis_daemon.core.verdict import Deny, Hold, Opinion, Reason
from aegis_daemon.policy.transforms import Transform, Unredacted
from aegis_daemon.stages import ORDER
from aegis_daemon.stages.policy import Policy
from aegis_daemon.wire.methods import TO_CLIENT, TO_SERVER, Rule

ENDING: Final = ".test.yaml"
NOON: Final = 1_735_732_800.0
"""What policies take for now where a case does not say: Wednesday, 1 January 2025, 12:00 UTC."""
WITHHELD: Final = "withheld"
_METHODS: Final = tuple(
    sorted({name for table in (TO_SERVER, TO_CLIENT) for name, row in table.items() if row.rule is not Rule.PING})
)
_SHOWN_BY: Final = frozenset({"tool", "resource", "prompt"})

Verdict = Literal["allow", "deny", "ask", "hidden"]


def _as_words(value: object) -> str:
    if isinstance(value, str) and value.strip():
        return value
    raise fault(f"{shown(value)} is not a text", "put it in quotes")


def _as_calls(value: object) -> tuple[str, ...]:
    named = value if isinstance(value, list) else [value]
    if not named:
        raise fault("no tool is called", "write it as `backend.tool`")
    return tuple(_as_words(one) for one in named)


def _as_method(value: object) -> str:
    text = _as_words(value)
    if text not in _METHODS:
        raise fault(f"there is no method {shown(text)} to judge", f"known are {', '.join(_METHODS)}")
    return text


def _as_moment(value: object) -> float:
    try:
        found = datetime.fromisoformat(_as_words(value))
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise fault(f"{shown(value)} is no time", "write it like `2026-11-26T09:00:00Z`, with its zone, in quotes")
    return found.timestamp()


def _as_answer(value: object) -> Any:
    if value == WITHHELD or isinstance(value, dict):
        return value
    raise fault(f"{shown(value)} is no answer", f"write what is left of `answer`, or `{WITHHELD}`")


Words = Annotated[str, BeforeValidator(_as_words)]
Left = Annotated[dict[str, Any] | str, PlainValidator(_as_answer)]


class Case(Section):
    """One call, or several that are alike but for their tool, and what is to become of it."""

    name: Words
    agent: Name | None = None
    call: Annotated[tuple[str, ...] | None, PlainValidator(_as_calls)] = None
    method: Annotated[str | None, PlainValidator(_as_method)] = None
    backend: BackendName | None = None
    uri: Words | None = None
    prompt: Words | None = None
    arguments: JsonMapping = Field(default={})
    at: Annotated[float | None, PlainValidator(_as_moment)] = None
    expect: Verdict | None = None
    by: Words | None = None
    answer: JsonMapping | None = None
    content: tuple[JsonMapping, ...] | None = None
    expect_answer: Left | None = None
    expect_content: tuple[JsonMapping, ...] | None = None
    expect_logged: JsonMapping | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Case:
        if (self.call is None) == (self.method is None):
            raise fault("a case has a `call` or a `method`", "write `call: backend.tool`, or `method` and `backend`")
        if self.method is not None and self.backend is None:
            raise fault("a `method` needs a `backend`", "add `backend: NAME`")
        named = (self.uri is not None) + (self.prompt is not None)
        if named > (self.method is not None):
            raise fault("`uri` and `prompt` belong to a `method`, one of them", "remove what is too much")
        expects = (self.expect, self.expect_answer, self.expect_content, self.expect_logged)
        if all(one is None for one in expects):
            raise fault("the case expects nothing", "add `expect: allow`, `deny`, `ask` or `hidden`")
        wants_answer = self.expect_answer is not None or self.expect_content is not None
        if wants_answer != (self.answer is not None or self.content is not None):
            raise fault("`answer` or `content` goes with `expect_answer` or `expect_content`", "add the other one")
        if self.answer is not None and self.method not in (None, "tools/call", "roots/list"):
            raise fault("only answers of tools and to `roots/list` are changed by rules", "remove `answer`")
        return self


class Cases(Section):
    """A whole file. `config` counts from it; `agent` is whose calls these are where a case names nobody."""

    config: Words | None = None
    agent: Name | None = None
    cases: tuple[Case, ...]


class Result(msgspec.Struct, frozen=True):
    """What became of one call of a case; `wrong` says what should have been otherwise, "" where nothing."""

    file: str
    line: int
    name: str
    agent: str
    call: str
    expected: str
    got: str
    by: tuple[str, ...]
    steps: tuple[Step, ...]
    wrong: str = ""


class Run(msgspec.Struct):
    """The cases of all files that are judged by one configuration."""

    config: str
    results: list[Result]
    coverage: Coverage


def run(files: Sequence[str], config: str) -> tuple[list[Run], list[Fault]]:
    """Judges every case of these files; those that name no configuration by `config`.

    Nothing is judged where anything is wrong with a file or a configuration: then there are only faults.
    """
    faults: list[Fault] = []
    houses: dict[str, _House] = {}
    read_cases: list[tuple[_Reading, Cases, _House]] = []
    for file in files:
        reading = _Reading.of(file)
        found = reading.cases()
        named = found.config if found is not None else None
        path = config if named is None else os.path.normpath(os.path.join(os.path.dirname(file), named))
        if path not in houses:
            try:
                houses[path] = _House(path, load(path).config)
            except ConfigFaults as error:
                faults += error.faults
                continue
        if found is not None:
            reading.agree(found, houses[path].config, houses[path].coverage)
            read_cases.append((reading, found, houses[path]))
        faults += reading.source.told()
    if faults:
        return [], list(dict.fromkeys(faults))
    for reading, found, house in read_cases:
        house.results += house.judged(found, reading.source)
    return [Run(house.path, house.results, house.coverage) for house in houses.values()], []


def beside(path: str) -> list[str]:
    """Every file of cases in a directory and those below it, hidden ones left out; or the file itself."""
    if not os.path.isdir(path):
        return [path]
    found = []
    for where, below, files in os.walk(path):
        below[:] = sorted(name for name in below if not name.startswith(".") and name != "node_modules")
        found += [os.path.join(where, name) for name in sorted(files) if name.endswith(ENDING)]
    return found


def usual(config: str) -> list[str]:
    """Every file of cases beside a configuration and beside each of its policy files. Raises `ConfigFaults`."""
    places = [os.path.dirname(config), *map(os.path.dirname, load(config).config.policy.files)]
    found: list[str] = []
    for place in dict.fromkeys(os.path.abspath(one) for one in places):
        found += [os.path.join(place, name) for name in sorted(os.listdir(place)) if name.endswith(ENDING)]
    return found


# --- what is written --------------------------------------------------------------------------------------------------


class _Reading(Reading):
    """A file of cases on its way to `Cases`; every step notes its faults in `source` and goes on."""

    @classmethod
    def of(cls, file: str) -> _Reading:
        try:
            return cls(read(read_file(file), file), os.path.dirname(file), {})
        except ConfigFaults as error:
            source = Source(file, "")
            source.faults += [msgspec.structs.replace(one, hint="name a file of cases") for one in error.faults]
            return cls(source, "", {})

    def cases(self) -> Cases | None:
        root = self.source.root
        if root is None or not isinstance(root.value, dict):
            if not self.source.faults:
                self.source.fault(0, 0, (), "the file holds no cases", "write `cases:` and a list below it")
            return None
        data = plain(root)
        for case in data["cases"] if isinstance(data.get("cases"), list) else ():
            if isinstance(case, dict):  # a key without a value is as good as none
                for key in [key for key, value in case.items() if value is None]:
                    del case[key]
        try:
            found = Cases.model_validate(data)
        except ValidationError as error:
            for one in error.errors(include_url=False):
                self._invalid(one)
            return None
        if not found.cases:
            self._fault(("cases",), "there are no cases", "add one")
        return found

    def _unknown_hint(self, path: Path, name: str) -> str:
        known = list((Case if len(path) > 1 else Cases).model_fields)
        near = self._nearest(name, known)
        return f"did you mean `{near}`?" if near else f"known here: {', '.join(f'`{one}`' for one in known)}"

    def agree(self, cases: Cases, config: Config, coverage: Coverage) -> None:
        """What a case names has to be there: with a slip in a name, a refusal would prove nothing."""
        if cases.agent is not None:
            self._known(("agent",), "agent", cases.agent, config.agents)
        for index, case in enumerate(cases.cases):
            here: Path = ("cases", index)
            if case.agent is not None:
                self._known((*here, "agent"), "agent", case.agent, config.agents)
            elif cases.agent is None:
                self._fault(here, "`agent` is missing", "add `agent`, here or for the whole file")
            if case.backend is not None:
                self._known((*here, "backend"), "backend", case.backend, config.backends)
            for call in case.call or ():
                if called(call, config.backends) is None:
                    word, _, tool = call.partition(".")
                    near = self._nearest(word, list(config.backends))
                    hint = f"did you mean `{near}.{tool}`?" if near and tool else "write it as `backend.tool`"
                    self._fault((*here, "call"), f"{shown(call)} is no tool of a backend", hint)
            if case.by is not None and case.by not in ORDER and not coverage.named(case.by):
                words = {word for place in coverage.rules for word in (place, *place.split("."))}
                near = self._nearest(case.by, sorted(words | set(ORDER)))
                hint = f"did you mean `{near}`?" if near else "name a stage, a policy's `@id`, or a rule by its place"
                self._fault((*here, "by"), f"there is no rule {shown(case.by)}", hint)

    def _known(self, path: Path, what: str, name: str, known: Iterable[str]) -> None:
        if name not in known:
            near = self._nearest(name, list(known))
            hint = f"did you mean `{near}`?" if near else f"add it to the configuration's `{what}s`"
            self._fault(path, f"unknown {what} {shown(name)}", hint)


# --- what becomes of it -----------------------------------------------------------------------------------------------


class _House:
    """One configuration, its stages, and a clock that shows what a case says."""

    def __init__(self, path: str, config: Config) -> None:
        self.path = path
        self.config = config
        self.coverage = Coverage(config)
        self.results: list[Result] = []
        self._now = NOON
        self._runtime: Runtime = build(config, "", lambda: self._now)

    def judged(self, cases: Cases, source: Source) -> Iterator[Result]:
        for index, case in enumerate(cases.cases):
            line = source.at(("cases", index))[0] + 1
            agent = case.agent or cases.agent or ""
            for what, backend, method, params in self._calls(case):
                yield self._judged(case, source.name, line, agent, what, backend, method, params)

    def _calls(self, case: Case) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
        for name in case.call or ():
            found = called(name, self.config.backends)
            assert found is not None  # `agree` has looked
            yield name, found[0], "tools/call", {"name": found[1], "arguments": case.arguments}
        if case.method is not None:
            assert case.backend is not None
            params = dict(case.arguments)
            if case.uri is not None:
                params["uri"] = case.uri
            if case.prompt is not None:
                params["name"] = case.prompt
            about = case.uri or case.prompt
            yield f"{case.method} of {case.backend}{f': {about}' if about else ''}", case.backend, case.method, params

    def _judged(
        self, case: Case, file: str, line: int, agent: str, what: str, backend: str, method: str, params: dict[str, Any]
    ) -> Result:
        expected = case.expect or "an answer"
        self._now = NOON if case.at is None else case.at
        try:
            call = asked(self._runtime, agent, backend, method, params)
        except Unasked as error:
            return Result(file, line, case.name, agent, what, expected, "no call", (), (), str(error))
        said = self._opinions(call)
        steps = tuple(step(gate, opinion, call, 0.0) for gate, opinion in said)
        got, stage = self._verdict(call, said)
        marks = self.coverage.marks(call, said, 0.0)
        by = _by(got, stage, marks)
        wrong = _otherwise(case, got, by, self.coverage)
        if got in ("allow", "ask"):
            more, notes = self._changed(case, call)
            wrong = wrong or more
            marks += notes
        self.coverage.note(marks)
        return Result(file, line, case.name, agent, what, expected, got, by, steps, wrong)

    def _opinions(self, call: Call) -> tuple[tuple[Gate, Opinion], ...]:
        try:
            return opinions(self._runtime, call, 0.0)
        except Exception as error:  # which the pipeline refuses
            text = f"a fault in a stage ({type(error).__name__}: {error})"
            return ((self._runtime.pipeline.gates[0], Deny(Reason("internal", text, code="fault", detail=text))),)

    def _verdict(self, call: Call, said: tuple[tuple[Gate, Opinion], ...]) -> tuple[Verdict, str]:
        """As if the mode were `enforce`."""
        for gate, opinion in said:
            if isinstance(opinion, Deny):
                named = call.subject in _SHOWN_BY and call.name is not None
                hidden = named and not all(
                    one.visible(call.principal, call.backend, call.subject or "", call.name or "") for one, _ in said
                )
                return ("hidden" if hidden else "deny"), gate.name
        held = any(isinstance(opinion, Hold) for _, opinion in said)
        return ("ask", "approval") if held else ("allow", "")

    # --- answers

    def _changed(self, case: Case, call: Call) -> tuple[str, list[Mark]]:
        """What is not as expected of what is left of the answer and of the log; and the rules that were at work."""
        if call.method == "roots/list":
            return self._roots(case, call)
        transforms = self._runtime.transforms
        found = () if transforms is None or call.method != "tools/call" else transforms.of(call.backend, call.name)
        marks: list[Mark] = []
        logged = call.arguments
        try:
            for transform in found:
                logged = transform.logged(logged)
        except Unredacted:
            logged = WITHHELD
        for transform in found:
            marks += self.coverage.redactions(
                transform.tool, transform, lambda one: not same(one.logged(call.arguments), call.arguments)
            )
        wrong = ""
        if case.expect_logged is not None and not same(logged, case.expect_logged):
            wrong = f"the log would have {_json(logged)}"
        if case.answer is None and case.content is None:
            return wrong, marks
        result = _result(case)
        for transform in found:
            marks += self.coverage.redactions(transform.tool, transform, lambda one: _changes(one, call, result))
        try:
            cleaned = result
            for transform in found:
                cleaned = transform.value(call.arguments, cleaned)
        except Unredacted:
            return wrong or ("" if case.expect_answer == WITHHELD else "the answer is withheld"), marks
        return wrong or _unlike(case, cleaned), marks

    def _roots(self, case: Case, call: Call) -> tuple[str, list[Mark]]:
        gate = self._runtime.pipeline.gate("policy")
        if case.answer is None:
            return "", []
        try:
            seen, _ = left(call, case.answer, self._runtime.pipeline)
        except UnreadableRoots as error:
            return ("" if case.expect_answer == WITHHELD else f"the roots are withheld: {error}"), []
        marks: list[Mark] = []
        if isinstance(gate, Policy) and gate.judges_roots:
            for root in case.answer["roots"]:
                marks += self.coverage.roots(gate.root_rulings(call, root, 0.0))
        return ("" if same(seen, case.expect_answer) else f"the server would see {_json(seen)}"), marks


def _by(got: Verdict, stage: str, marks: list[Mark]) -> tuple[str, ...]:
    """The stage that decides, and the rules by which; for what passes, all that let it pass."""
    if got == "allow":
        return tuple(dict.fromkeys(place for mark in marks for place in (mark.stage, mark.place)))
    refused = got != "ask"
    places = [
        mark.place
        for mark in marks
        if mark.stage == stage and (not refused or mark.did not in ("let a call pass", "permitted a call"))
    ]
    return (stage, *dict.fromkeys(places))


def _otherwise(case: Case, got: Verdict, by: tuple[str, ...], coverage: Coverage) -> str:
    """What is not as the case expects of the verdict; "" where nothing."""
    wanted = case.expect
    fine = got == wanted or (wanted == "deny" and got == "hidden") or (wanted is None and got in ("allow", "ask"))
    rules = ", ".join(f"`{one}`" for one in by) or "no rule"
    if not fine:
        return f"{_SAID[got]}, by {rules}" if by else _SAID[got]
    if case.by is not None:
        where = {rule.place for rule in coverage.rules.values() if rule.where == case.by}
        if not any(means(case.by, one) or one in where for one in by):
            return f"it is by {rules}"
    return ""


_SAID: Final[dict[str, str]] = {
    "allow": "it is allowed",
    "deny": "it is refused",
    "ask": "a person is asked",
    "hidden": "it is refused, and hidden",
}


def _result(case: Case) -> dict[str, Any]:
    """A tool's result: structured content comes with the same as text, as servers send it."""
    result: dict[str, Any] = {}
    if case.answer is not None:
        result["structuredContent"] = case.answer
        result["content"] = [{"type": "text", "text": _json(case.answer)}]
    if case.content is not None:
        result["content"] = list(case.content)
    return result


def _changes(transform: Transform, call: Call, result: dict[str, Any]) -> bool:
    try:
        return not same(transform.value(call.arguments, result), result)
    except Unredacted:
        return False


def _unlike(case: Case, cleaned: dict[str, Any]) -> str:
    """What is not as expected of what is left of an answer."""
    if case.expect_answer is not None:
        structured = cleaned.get("structuredContent")
        if not same(structured, case.expect_answer):
            return f"what is left of the answer is {_json(structured)}"
        if case.content is None:
            text = cleaned["content"][0].get("text", "")
            if not same(msgspec.json.decode(text), case.expect_answer):
                return f"what is left of the answer's text is {text}"
    if case.expect_content is not None and not same(cleaned.get("content"), list(case.expect_content)):
        return f"what is left of the content is {_json(cleaned.get('content'))}"
    return ""


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
