"""A refused call becomes the smallest change of the file after which it passes, and nobody else gains by it.

Neither is believed: the changed text is read again, the rules are built from it, and the call is judged by them; then
who may use what is compared before and after. Pure but for the files that `${file:…}` names. A pattern that denies is
never widened, since nobody can tell what else it was written for.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from aegis_daemon.config.load import Loaded, digest, loads
from aegis_daemon.config.runtime import build
from aegis_daemon.config.schema import Access, Config
from aegis_daemon.config.source import ConfigFaults, Fault, Path, Source, dotted, read
from aegis_daemon.config.splice import Change, Unknown, changed, plain, splice
from aegis_daemon.core.call import Call
from aegis_daemon.core.names import Names, Restricted, meanings, plain_name, plain_uri
from aegis_daemon.core.principal import Principal
from aegis_daemon.core.runtime import Runtime
from aegis_daemon.core.verdict import Deny, Hold
from aegis_daemon.wire.jsonrpc import Frame, Kind
from aegis_daemon.wire.methods import SERVER_REQUESTS, TO_CLIENT, TO_SERVER, Direction, Era

CHANGES_MAX: Final = 64
"""More are no small change, and a person would not read them."""
COMPARED: Final = 200_000
"""Questions of who may use what that are asked before and after; some 2 us each."""
LISTS: Final = {
    "tool": ("tool_allowlist", "tool_denylist"),
    "resource": ("resource_allowlist", "resource_denylist"),
    "prompt": ("prompt_allowlist", "prompt_denylist"),
}
ASKABLE: Final = ("sampling", "elicitation", "roots")
_MAGIC: Final = "*?["
_STAND_IN: Final = "https://stand-in.invalid/0123456789abcdef"


class Asked(msgspec.Struct, frozen=True):
    """A refused call, as the rules look at it: `names` are those that it needs, nearly always one.

    `subject` is tool, resource, prompt or server_request; empty for a call that names nothing.
    """

    agent: str
    backend: str
    method: str
    subject: str
    names: tuple[str, ...]


class Step(msgspec.Struct, frozen=True):
    """One change of the file: the setting, and what a person is told of it."""

    path: str
    text: str


class Edited(msgspec.Struct, frozen=True):
    """The new text and how it came to be. No steps: the rules let the call pass as they are.

    `waits` is the rule because of which a person is asked for every such call all the same. `warnings` are those that
    the old text did not have.
    """

    text: str
    steps: tuple[Step, ...]
    waits: str = ""
    warnings: tuple[Fault, ...] = ()
    digest: str = ""
    """of the old text's settings, see `config.load.digest`"""


class Stuck(Exception):
    """No change is made, and what a person can do by hand. `line` of the file counts from 1; 0 for none."""

    def __init__(self, message: str, hint: str, line: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.line = line


class Anything(dict[str, str]):
    """An environment in which every variable is set. What it holds is a secret, and no rule depends on one."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> str:
        return _STAND_IN


def permit(text: str, name: str, asked: Asked, *, base: str = "/", env: Mapping[str, str] | None = None) -> Edited:
    """The text of a configuration after the smallest change with which the call passes.

    :param name: what faults call the file. :param base: the directory from which its paths count.
    :param env: where `${env:NAME}` looks; by default every variable has a stand-in.
    :raises ConfigFaults: the text has faults as it is. :raises Stuck: nothing can, or should, be changed by program.
    """
    env = Anything() if env is None else env
    first = loads(text, name, base=base, env=env)
    _sensible(asked)
    work = _Work(text, name, asked, base, env, first)
    while not work.passes():
        changes = work.obstacle()
        if not changes:
            raise Stuck("no rule of the file refuses this call, and it does not pass", "see `aegis audit show`")
        work.make(changes)
    if work.steps:
        work.close()
        work.compare()
    known = {(one.path, one.message) for one in first.warnings}
    return Edited(
        work.text,
        tuple(work.steps),
        work.waits(),
        tuple(one for one in work.loaded.warnings if (one.path, one.message) not in known),
        work.first_digest,
    )


def difference(old: str, new: str, *, context: int = 2) -> list[str]:
    """A unified diff without its head, line by line. What may be a secret is left out of lines that were there before.

    A line that is wholly new was made here and holds none, so it is shown as it is.
    """
    before, after = old.split("\n"), new.split("\n")
    found: list[str] = []
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    for group in matcher.get_grouped_opcodes(context):
        found.append(f"@@ line {group[0][1] + 1} @@")
        for what, i1, i2, j1, j2 in group:
            kept = [_shown(old, number) for number in range(i1, i2)]
            if what == "equal":
                found += [f" {line}" for line in kept]
                continue
            found += [f"-{line}" for line in kept]
            found += [f"+{after[at] if what == 'insert' else _shown(new, at)}".rstrip("\r") for at in range(j1, j2)]
    return found


def with_mode(text: str, name: str, mode: str) -> str:
    """The text of a configuration that says this `mode`, and else what it said.

    :raises ConfigFaults: it cannot be read. :raises Stuck: the setting is not changed by program.
    """
    change = Change(("mode",), "put", mode)
    source = read(text, name)
    if source.faults:
        raise ConfigFaults(source.told())
    by_hand = f"write `mode: {mode}` at the top of the file by hand"
    try:
        data = plain(text)
        if isinstance(data, dict) and data.get("mode") == mode:
            return text
        made, line = splice(text, change)
    except Unknown as unknown:
        raise Stuck(f"`mode` is not changed by program: {unknown.what}", by_hand, unknown.line) from None
    if not _says(made, changed(data, change)):
        raise Stuck("`mode` is not changed by program: other settings share what is written there", by_hand, line)
    return made


def _shown(text: str, line: int) -> str:
    return Source("", text).make(line, 0, (), "", "").source


# --- what the call needs ----------------------------------------------------------------------------------------------


def _sensible(asked: Asked) -> None:
    if asked.subject == "task":
        raise Stuck(
            "a task answers only to the session that began it, whatever the rules say", "ask for it where it was begun"
        )
    if not asked.backend:
        raise Stuck("the call was for no backend in particular", "allow one under `agents` by hand")
    for name in asked.names:
        if asked.subject in ("tool", "prompt") and not plain_name(name):
            raise Stuck(
                "the name holds characters that cannot be seen, or that look like others, and no list can allow it",
                "a server that offers such a name is not to be trusted with it",
            )
        if asked.subject == "resource":
            try:
                plain_uri(name)
            except ValueError:
                raise Stuck("nobody can tell what this address names", "mend the agent, or its server") from None
        if asked.subject == "server_request" and name not in ASKABLE:
            raise Stuck(
                f"what a server asks with `{asked.method}` is never passed on to a client",
                f"only {', '.join(f'`{one}`' for one in ASKABLE)} can be allowed",
            )


def _targets(asked: Asked) -> tuple[str, ...]:
    """The names as the lists see them: a resource also by its plain address."""
    if asked.subject != "resource":
        return asked.names
    return tuple(dict.fromkeys(one for name in asked.names for one in (name, plain_uri(name))))


def _taken_for(asked: Asked, targets: Sequence[str]) -> tuple[str, ...]:
    """The same, and what else may be denied as one of them."""
    others = [one for name in asked.names for one in meanings(name)] if asked.subject == "resource" else []
    return tuple(dict.fromkeys([*targets, *others]))


def _listed(name: str) -> str:
    """The name as an entry of a list that stands for this name alone."""
    return "".join(f"[{char}]" if char in _MAGIC else char for char in name)


def _spellings(asked: Asked, backend: str) -> tuple[str, ...]:
    """The tools of a backend that `tool` and `backend.tool`, as everybody's lists have them, may stand for."""
    if asked.subject != "tool":
        return ()
    both = (asked.names[0], f"{asked.backend}.{asked.names[0]}")
    return tuple(dict.fromkeys((*both, *(one.removeprefix(f"{backend}.") for one in both))))


def _is_pattern(entry: str) -> bool:
    return any(char in entry for char in _MAGIC)


def _probe(asked: Asked, principal: Principal) -> Call:
    """The call, as far as rules on names look at it."""
    asks = asked.subject == "server_request"
    row = (TO_CLIENT if asks else TO_SERVER)[asked.method]
    name = asked.names[0] if asked.names else None
    params: dict[str, Any] = {}
    if asked.method == "subscriptions/listen":
        name, params = None, {"resourceSubscriptions": list(asked.names)}
    elif asked.method == "completion/complete" and name is not None:
        ref = {"type": f"ref/{asked.subject}", "name" if asked.subject == "prompt" else "uri": name}
        params = {"ref": ref}
    elif name is not None and not asks and row.key is not None:
        params = {row.key: name}
    direction = Direction.TO_CLIENT if asks else Direction.TO_SERVER
    frame = Frame(Kind.REQUEST, 1, asked.method, params, {})
    era = Era.LEGACY if row.legacy else Era.MODERN
    return Call("0" * 32, 1, "", principal, direction, row, asked.subject or None, name, asked.backend, era, frame)


class _Work:
    """One text on its way; every change is read back before the next one is looked for."""

    def __init__(self, text: str, name: str, asked: Asked, base: str, env: Mapping[str, str], loaded: Loaded) -> None:
        self.name = name
        self.asked = asked
        self.base = base
        self.env = env
        self.text = text
        self.loaded = loaded
        self.before = self.runtime = _strict(loaded.config)
        self.first_digest = self.before.digest
        self.steps: list[Step] = []

    @property
    def config(self) -> Config:
        """The settings of the text as it is by now."""
        return self.loaded.config

    def _verdict(self) -> Any:
        rule = self.runtime.agents.get(self.asked.agent)
        principal = rule.principal if rule is not None else Principal(self.asked.agent)
        return self.runtime.pipeline.admit(_probe(self.asked, principal), 0.0)

    def passes(self) -> bool:
        """Whether the rules let the call pass, perhaps once a person agrees."""
        return not isinstance(self._verdict(), Deny)

    def waits(self) -> str:
        """The rule because of which a person is asked."""
        verdict = self._verdict()
        return verdict.ask.rule if isinstance(verdict, Hold) else ""

    # --- changing

    def make(self, changes: Sequence[tuple[Change, str]]) -> None:
        """Makes the changes, reads the text again and builds its rules."""
        for change, says in changes:
            if len(self.steps) >= CHANGES_MAX:
                raise Stuck(f"more than {CHANGES_MAX} changes would be needed", "change the rules by hand")
            try:
                wanted = changed(plain(self.text), change)
                text, line = splice(self.text, change)
            except Unknown as unknown:
                raise Stuck(
                    f"`{dotted(change.path)}` is not changed by program: {unknown.what}",
                    f"do it by hand: {says}",
                    unknown.line,
                ) from None
            if not _says(text, wanted):
                raise Stuck(
                    f"`{dotted(change.path)}` is not changed by program: other settings share what is written there",
                    f"do it by hand: {says}",
                    line,
                )
            self.text = text
            self.steps.append(Step(dotted(change.path), says))
        try:
            self.loaded = loads(self.text, self.name, base=self.base, env=self.env)
        except ConfigFaults as faults:
            raise Stuck(f"the changed file would have a fault: {faults.faults[0]}", "change it by hand") from None
        self.runtime = _strict(self.loaded.config)

    def _line(self, path: Path) -> int:
        return read(self.text, self.name).at(path)[0] + 1

    # --- what stands in the way

    def obstacle(self) -> list[tuple[Change, str]]:
        """What takes the next obstacle away. Raises `Stuck`."""
        asked, config = self.asked, self.config
        agent = config.agents.get(asked.agent)
        access = agent.backends.get(asked.backend) if agent is not None else None
        route = ("agents", asked.agent, "backends", asked.backend)
        opened = config.defaults.unlisted == "observe"
        if access is None:
            if not opened:
                return self._opens(route)
        elif not access.allowed:
            return self._switches_on(route, access)
        elif asked.subject == "server_request":
            return [
                (Change((*route, "server_requests"), "append", name), f"`{name}` is added to what the server may ask")
                for name in asked.names
                if name not in access.server_requests
            ]
        elif asked.subject in LISTS:
            found = self._own_lists(route, access)
            if found:
                return found
        return self._everybodys() if asked.subject == "tool" else []

    def _narrow(self) -> dict[str, Any]:
        """Access to the names of the call and nothing else. A backend that is only allowed shows everything it has."""
        asked = self.asked
        lists: dict[str, Any] = {allow: [] for allow, _ in LISTS.values()}
        if asked.subject in LISTS:
            lists[LISTS[asked.subject][0]] = [_listed(name) for name in _targets(asked)]
        elif asked.subject == "server_request":
            lists["server_requests"] = list(asked.names)
        return lists

    def _opens(self, route: Path) -> list[tuple[Change, str]]:
        asked = self.asked
        changes: list[tuple[Change, str]] = []
        if asked.backend not in self.config.backends:
            says = f"the backend `{asked.backend}` is made known"
            changes.append((Change(("backends", asked.backend), "put", {}), says))
        says = f"`{asked.agent}` may use `{asked.backend}`, for {self._what()} alone"
        return [*changes, (Change(route, "put", {"allowed": True, **self._narrow()}), says)]

    def _switches_on(self, route: Path, access: Access) -> list[tuple[Change, str]]:
        narrow = self._narrow()
        wide = [
            key
            for key, wanted in {"server_requests": [], **narrow}.items()
            if set(getattr(access, key) or ()) - set(wanted)
        ]
        line = self._line((*route, "allowed"))
        if wide:
            raise Stuck(
                f"`{dotted(route)}` is switched off, and its `{wide[0]}` would let more than this call pass",
                f"write `allowed: true` there by hand (line {line}) if all of it is meant",
                line,
            )
        changes = [
            (Change((*route, key), "put", wanted), f"`{key}` leaves {self._what() if wanted else 'nothing'}")
            for key, wanted in narrow.items()
            if getattr(access, key) is None and key != "server_requests"
        ]
        # Last: what is switched on is narrow by then, whatever becomes of this.
        says = f"`{self.asked.agent}` may use `{self.asked.backend}`"
        return [*changes, (Change((*route, "allowed"), "put", True), says)]

    def _own_lists(self, route: Path, access: Access) -> list[tuple[Change, str]]:
        allow, deny = LISTS[self.asked.subject]
        targets = _targets(self.asked)
        found = self._undenied((*route, deny), getattr(access, deny), targets)
        if found:
            return found
        allowed = getattr(access, allow)
        if allowed is None:
            return []
        names = Names(allowed)
        return [
            (Change((*route, allow), "append", _listed(name)), f"`{name}` is added to `{dotted((*route, allow))}`")
            for name in targets
            if name not in names
        ]

    def _undenied(self, path: Path, entries: Sequence[str], targets: Sequence[str]) -> list[tuple[Change, str]]:
        taken_for = _taken_for(self.asked, targets)
        for index, entry in enumerate(entries):
            if entry in targets and not _is_pattern(entry):
                continue
            if any(name in Restricted([entry]) for name in taken_for):
                line = self._line((*path, index))
                what = "the pattern" if _is_pattern(entry) else "the name"
                raise Stuck(
                    f"line {line} denies it with {what} `{entry}` in `{dotted(path)}`, and that is never "
                    "widened, since it may be there for more than this call",
                    f"by hand: write in its place the names that `{entry}` is there for, without `{targets[0]}`, and "
                    "then `aegis daemon reload`",
                    line,
                )
        return [
            (Change(path, "drop", entry), f"`{entry}` is taken off `{dotted(path)}`")
            for entry in dict.fromkeys(entries)
            if entry in targets
        ]

    def _everybodys(self) -> list[tuple[Change, str]]:
        """The file's own `deny` and `allow`, which hold for every agent."""
        asked, config = self.asked, self.config
        name = asked.names[0]
        both = (name, f"{asked.backend}.{name}")
        found = self._undenied(("deny", "tools"), config.deny.tools, both)
        allow = None if config.allow is None else Names(config.allow.tools)
        if not found and (allow is None or any(one in allow for one in both)):
            return []
        if config.defaults.unlisted == "observe":
            raise Stuck(
                "`deny` and `allow` hold for agents that no rule lists too (`defaults.unlisted: observe`), and those "
                "would gain by it",
                "set `defaults.unlisted: deny`, or change the file by hand",
            )
        if found:
            return found
        changes = [
            (Change(("allow", "tools"), "append", _listed(one)), f"`{one}` is added to `allow.tools`") for one in both
        ]
        return [min(changes, key=self._price)]

    def _price(self, change: tuple[Change, str]) -> int:
        """How many other lists have to be changed for it, so that nobody else gains."""
        trial = _Work(self.text, self.name, self.asked, self.base, self.env, self.loaded)
        trial.before = self.before
        trial.make([change])
        return len(list(trial.gained()))

    def _what(self) -> str:
        shown = ", ".join(f"`{name}`" for name in self.asked.names)
        return f"the {self.asked.subject} {shown}" if self.asked.subject in LISTS else shown or "lists"

    # --- nobody else

    def close(self) -> None:
        """Denies to others what they would gain by a change of the rules that hold for everybody."""
        changes = []
        for agent, backend, name in self.gained():
            path = ("agents", agent, "backends", backend, "tool_denylist")
            says = f"`{name}` stays refused to `{agent}` on `{backend}`"
            changes.append((Change(path, "append", _listed(name)), says))
        if changes:
            self.make(changes)
            if not self.passes():
                raise Stuck("the call cannot be allowed without others gaining by it", "change the file by hand")

    def gained(self) -> Iterator[tuple[str, str, str]]:
        """The configured agents, backends and tools that are open now, were closed, and are not the call's own."""
        asked = self.asked
        if asked.subject != "tool":
            return
        for agent, settings in self.config.agents.items():
            for backend in settings.backends:
                for name in _spellings(asked, backend):
                    if (agent, backend, name) == (asked.agent, asked.backend, asked.names[0]):
                        continue
                    if _opened(self.before, self.runtime, agent, backend, "tool", name):
                        yield agent, backend, name

    def compare(self) -> None:
        """Who may use what, before and after, over every name that the file and the call speak of."""
        asked, targets = self.asked, set(_targets(self.asked))
        agents = dict.fromkeys((*self.config.agents, asked.agent, "another-agent"))
        backends = dict.fromkeys((*self.config.backends, asked.backend, "another-backend"))
        most = max(100, COMPARED // (len(agents) * len(backends)))
        for subject in ("tool", "resource", "prompt", "server_request"):
            names = ["another-name", *_mentioned(self.config, subject)]
            if subject == asked.subject:
                spelt = [name for backend in backends for name in _spellings(asked, backend)]
                names = [*targets, *spelt, *names]
            # The changes are known, and none is to a name that the call has not; this is to find what nobody thought
            # of, so a part of a very long list will do.
            for name in list(dict.fromkeys(names))[:most]:
                for agent in agents:
                    for backend in backends:
                        own = (agent, backend, subject) == (asked.agent, asked.backend, asked.subject)
                        if own and name in targets:
                            continue
                        if _opened(self.before, self.runtime, agent, backend, subject, name):
                            raise Stuck(
                                f"`{agent}` would gain the {subject.replace('_', ' ')} `{name}` on `{backend}` too",
                                "change the file by hand",
                            )
        if self.before.isolated and not self.runtime.isolated:
            raise Stuck(
                f"`{asked.agent}` would run as the daemon's own user, which ends the isolated tier",
                f"add `agents.{asked.agent}` by hand, with `identities`",
            )


def _says(text: str, wanted: Any) -> bool:
    """Whether a spliced text can be read, and holds this: an anchor may have gone with what was cut out."""
    try:
        return bool(plain(text) == wanted)
    except Unknown:
        return False


def _strict(config: Config) -> Runtime:
    """The rules as they are when they are enforced; observing lets everything pass."""
    return build(config.model_copy(update={"mode": "enforce"}), digest(config))


def _opened(before: Runtime, after: Runtime, agent: str, backend: str, subject: str, name: str) -> bool:
    principal = Principal(agent)
    return after.pipeline.visible(principal, backend, subject, name) and not before.pipeline.visible(
        principal, backend, subject, name
    )


def _mentioned(config: Config, subject: str) -> Iterator[str]:
    """Every name that a list of the file gives for things of this kind; of patterns, their own text."""
    keys = LISTS.get(subject, ())
    for agent in config.agents.values():
        for access in agent.backends.values():
            for key in keys:
                yield from getattr(access, key) or ()
            if subject == "tool":
                yield from access.approval_required
                yield from access.rate_limits
    if subject == "tool":
        yield from config.deny.tools
        yield from config.allow.tools if config.allow is not None else ()
    if subject == "server_request":
        yield from dict.fromkeys(SERVER_REQUESTS.values())
