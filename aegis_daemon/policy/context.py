"""What a policy is shown of a call is what the call says, in values that Cedar can hold, or the call is not judged.

Cedar has no fractions, no null and no integers beyond 64 bits, and takes `{"__entity": …}` in JSON for a real entity.
So fractions and larger integers become decimal text, what is null is left out, and such keys are refused. A policy is
shown the arguments that it names, and all of them only where it names the whole.

Every argument is looked at twice: as it is, and folded, without what a careless server may overlook (case, width,
invisible characters, percent escapes, spaces at the ends). A call has to be allowed either way.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from decimal import Decimal
from typing import Any, Final
from unicodedata import normalize
from urllib.parse import unquote

from aegis_daemon.policy.dialect import Est, Path, kind_of
from aegis_daemon.wire.jsonrpc import fold

MAX_DEPTH: Final = 32
MAX_VALUES: Final = 20_000
MAX_TEXT: Final = 1 << 17
"""Characters, in all that policies look at: folding and comparing them takes 5 to 50 ms then, whatever they are."""
RESERVED: Final = frozenset({"__entity", "__extn", "__expr"})
_ROUNDS: Final = 3
_LONG: Final = 64


class Doubt(Exception):
    """The call cannot be judged; the text says why, without the value."""


def plain(value: Any) -> Any:
    """The value as Cedar can hold it. Raises `Doubt`."""
    return _Plainly().value(value, 0)


class _Plainly:
    def __init__(self) -> None:
        self.left = MAX_VALUES
        self.text = MAX_TEXT

    def value(self, value: Any, depth: int) -> Any:
        self.left -= 1
        if depth > MAX_DEPTH or self.left < 0:
            raise Doubt("the arguments are too deep or too many to be judged")
        kind = type(value)
        if kind is str:
            return self._within(value)
        if kind is bool:
            return value
        if kind is int:
            return value if -(2**63) <= value < 2**63 else str(value)
        if kind is float:
            return decimal(value)
        if kind is dict:
            made = {}
            for key, item in value.items():
                if key in RESERVED:
                    raise Doubt(f"an argument has the key `{key}`, which no policy can tell from an entity")
                if item is not None:
                    made[self._within(key)] = self.value(item, depth + 1)
            return made
        if kind is list:
            return [self.value(item, depth + 1) for item in value if item is not None]
        raise Doubt("an argument is of a kind that no policy can judge")

    def _within(self, text: str) -> str:
        self.text -= len(text)
        if self.text < 0:
            raise Doubt("the arguments are too long to be judged")
        return text


def decimal(number: float) -> str:
    """`0.1`, `1.0`, `100.0`: all digits, always with a point."""
    text = format(Decimal(repr(number)), "f")
    return text if "." in text else f"{text}.0"


def folded(value: Any) -> Any:
    """The same value with every text folded; keys stay as they are."""
    kind = type(value)
    if kind is str:
        return folded_text(value)
    if kind is dict:
        return {key: folded(item) for key, item in value.items()}
    if kind is list:
        return [folded(item) for item in value]
    return value


def folded_text(text: str) -> str:
    """Without percent escapes, case, width, invisible characters and spaces at the ends."""
    return _bare(text).strip()


def _bare(text: str) -> str:
    for _ in range(_ROUNDS):
        if "%" not in text:
            break
        before, text = text, unquote(text)
        if text == before:
            break
    if len(text) < _LONG:
        return fold(text)
    # The same as `fold`, which asks of one character after the other what they are: each is asked once.
    before, text = text, normalize("NFKC", text)
    if len(text) > 4 * len(before):  # one character may stand for eighteen
        raise Doubt("an argument is longer than it looks")
    text = normalize("NFKC", text.casefold())
    unseen = {ord(char): None for char in set(text) if not fold(char)}
    return normalize("NFKC", text.translate(unseen))


def folded_est(node: Est) -> Est:
    """A policy that says of folded values what the given one says of values as they are."""
    if isinstance(node, list):
        return [folded_est(one) for one in node]
    if not isinstance(node, dict):
        return node
    if len(node) == 1:
        ((key, value),) = node.items()
        if key == "Value":
            return {"Value": folded_text(value)} if isinstance(value, str) else node
        if key == "like":
            return {"like": {"left": folded_est(value["left"]), "pattern": _folded_pattern(value["pattern"])}}
        if isinstance(value, list) and key not in ("Set", "and", "or"):  # `ip("…")` and the like
            return {key: [one if "Value" in one else folded_est(one) for one in value]}
    return {key: value if key in ("attr", "entity_type") else folded_est(value) for key, value in node.items()}


def _folded_pattern(pattern: list[Any]) -> list[Any]:
    runs: list[Any] = []
    for one in pattern:
        if one == "Wildcard":
            runs.append(one)
        elif runs and runs[-1] != "Wildcard":
            runs[-1] += one["Literal"]
        else:
            runs.append(one["Literal"])
    made = [run if run == "Wildcard" else _bare(run) for run in runs]
    if made and made[0] != "Wildcard":
        made[0] = made[0].lstrip()
    if made and made[-1] != "Wildcard":
        made[-1] = made[-1].rstrip()
    found: list[Any] = []
    for run in made:
        found += ["Wildcard"] if run == "Wildcard" else [{"Literal": char} for char in run]
    return found


def takes_instants(node: Est) -> bool:
    """Whether it makes an instant of something that is no literal: those have capitals that folding would take."""
    if isinstance(node, list):
        return any(takes_instants(one) for one in node)
    if not isinstance(node, dict):
        return False
    made = node.get("datetime")
    if isinstance(made, list) and any("Value" not in one for one in made):
        return True
    return any(takes_instants(one) for one in node.values())


# --- the arguments


class Looks:
    """What policies look at in the arguments: sorted once, so that a call pays for what it brings and not for them.

    :param paths: what they name; None: all of it. :param kinds: what they compare paths with. :param pairs: paths that
    they compare with each other.
    """

    def __init__(
        self,
        paths: Iterable[Path],
        kinds: Mapping[Path, frozenset[str]],
        pairs: Iterable[tuple[Path, Path]],
        *,
        whole: bool,
    ) -> None:
        self._names = _Names(paths)
        self._whole = whole
        self._pairs = tuple(pairs)
        self._kinds: dict[str, list[tuple[Path, frozenset[str]]]] = {}
        for path, allowed in kinds.items():
            self._kinds.setdefault(path[0], []).append((path, allowed))

    def shown(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments that policies look at, after `check`. Raises `Doubt`."""
        self.check(arguments)
        names = self._names.below
        found = plain(arguments if self._whole else {name: arguments[name] for name in arguments if name in names})
        assert isinstance(found, dict)
        return found

    def check(self, arguments: dict[str, Any]) -> None:
        """Raises `Doubt` where an argument hides behind another spelling or is of a kind that it is not compared with.

        To Cedar `["x"] == "x"` and `"5" == 5` are false, which is no reason for a server not to take the one for the
        other.
        """
        self._names.check(arguments)
        for name in arguments:
            for path, allowed in self._kinds.get(name, ()):
                _check_kind(arguments, path, 0, allowed)
        for one, other in self._pairs:
            first, second = _at(arguments, one), _at(arguments, other)
            if first is not None and second is not None and kind_of(first) != kind_of(second):
                raise Doubt(f"the arguments `{'.'.join(one)}` and `{'.'.join(other)}` are of two kinds")


class _Names:
    """The names that policies know at one place, and those below each."""

    def __init__(self, paths: Iterable[Path]) -> None:
        rests: dict[str, list[Path]] = {}
        for path in paths:
            if path:
                rests.setdefault(path[0], []).append(path[1:])
        self.below = {name: _Names(rest) for name, rest in rests.items()}
        self._deeper = [(name, below) for name, below in self.below.items() if below.below]
        self._longest = 4 * max(map(len, rests), default=0) + 32
        self._spelt: dict[str, list[str]] = {}
        for name in rests:
            self._spelt.setdefault(folded_text(name), []).append(name)

    def check(self, holder: Any) -> None:
        """Raises `Doubt` where a key may be taken for one of these names and is none."""
        if type(holder) is not dict or not self.below:
            return
        if len(holder) > MAX_VALUES:
            raise Doubt("the arguments are too many to be judged")
        for key in holder:
            if len(key) <= self._longest:
                for name in self._spelt.get(folded_text(key), ()):
                    if name != key:
                        raise Doubt(f"the argument `{name}` is spelt in another way")
        for name, below in self._deeper:
            below.check(holder.get(name))


def undisguised(holder: dict[str, Any], names: Collection[str]) -> None:
    """Raises `Doubt` where a key may be taken for one of these names and is none."""
    spelt = _spellings(holder, names)
    for name in names:
        if any(key not in names for key in spelt.get(folded_text(name), ())):
            raise Doubt(f"the argument `{name}` is spelt in another way")


def _at(here: Any, path: Path) -> Any:
    for step in path:
        here = here.get(step) if type(here) is dict else None
    return here


def _spellings(holder: dict[str, Any], steps: Iterable[str]) -> dict[str, list[str]]:
    """The keys of an object, by what a careless reader takes them for; without those too long for any step."""
    if len(holder) > MAX_VALUES:
        raise Doubt("the arguments are too many to be judged")
    longest = 4 * max(map(len, steps)) + 32
    found: dict[str, list[str]] = {}
    for key in holder:
        if len(key) <= longest:
            found.setdefault(folded_text(key), []).append(key)
    return found


def _check_kind(here: Any, path: Path, index: int, allowed: frozenset[str]) -> None:
    for position in range(index, len(path)):
        step = path[position]
        if step == "":
            for item in here if type(here) is list else ():
                _check_kind(item, path, position + 1, allowed)
            return
        if type(here) is not dict or step not in here:
            return
        here = here[step]
    if here is not None and kind_of(here) not in allowed:
        raise Doubt(
            f"the argument `{'.'.join(step for step in path if step)}` is of another kind than the rules expect"
        )


# --- the rest of the context


def instant(epoch: float) -> dict[str, int]:
    """UTC. `weekday` is 1 on Monday and 7 on Sunday."""
    seconds = int(epoch)
    days, rest = divmod(seconds, 86400)
    return {"epoch": seconds, "hour": rest // 3600, "minute": rest % 3600 // 60, "weekday": (days + 3) % 7 + 1}


Facts = Callable[[], dict[str, Any] | None]
"""A part of the context that is made only where a policy looks at it; None where there is none."""
