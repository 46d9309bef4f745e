"""What a tool may do is judged by the worst that anything about it says; nothing a server says of itself lowers that.

The classes, worst first: destroy, execute, money, message, write, unknown, read. Words of the name decide, whatever
their order; what the schema takes, however deep it says so, and what annotations say can only raise. `risks.toml` has
the tools of known servers, found by the program or address that a person configured, never by a name that a server
gives itself. A tool of which nothing is known is unknown, which is above read: it asks.
"""

from __future__ import annotations

import functools
import itertools
import re
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib.resources import files
from typing import Any, Final, Literal
from urllib.parse import unquote

from aegis_daemon.core.names import plain_name

Risk = Literal["destroy", "execute", "money", "message", "write", "unknown", "read"]
Confidence = Literal["high", "medium", "low"]

CLASSES: Final[tuple[Risk, ...]] = ("destroy", "execute", "money", "message", "write", "unknown", "read")
"""Worst first."""
VERSION: Final = 1
"""The version of the table that this reads."""


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_RANK: Final[Mapping[str, int]] = {name: len(CLASSES) - at for at, name in enumerate(CLASSES)}
_WORDS: Final[Mapping[Risk, frozenset[str]]] = {
    "destroy": _set(
        "delete deletes deleting deletion remove removes removing removal drop destroy purge wipe erase truncate clear "
        "reset uninstall kill terminate revoke unlink rm rmdir del prune discard overwrite flush clean cleanup trash "
        "empty revert rollback undeploy deprovision shutdown reboot unpublish decommission evict expire ban forget "
        "cancel detach dismantle nuke"
    ),
    "execute": _set(
        "exec execute executes eval evaluate invoke spawn deploy install launch restart rerun sudo powershell "
        "subprocess provision"
    ),
    "money": _set("pay charge refund withdraw purchase buy sell payout donate reimburse"),
    "message": _set("send sends reply publish notify broadcast announce tweet retweet dm sms"),
    "write": _set(
        "create creates add adds insert update updates edit write writes put modify append upsert save store upload "
        "rename move assign unassign enable disable restore import sync register configure approve merge push patch "
        "unlock unmark untag replace fill submit toggle init initialize unsubscribe grant transition reorder attach "
        "archive unarchive migrate"
    ),
}
"""Words that count wherever they stand."""
_LOOSE: Final[Mapping[Risk, frozenset[str]]] = {
    "execute": _set(
        "run command cmd shell bash terminal script sql trigger dispatch start stop call compile resume apply code"
    ),
    "money": _set(
        "payment payments invoice invoices order orders transfer transfers payouts deposit trade bid wallet "
        "transaction billing"
    ),
    "message": _set(
        "message messages post email emails mail comment comments invite invitation share forward chat notification "
        "notifications respond"
    ),
    "write": _set(
        "set change label tag mark pin fork branch commit star lock close open reopen copy convert click type press "
        "select drag hover navigate link follow join leave request schedule book stage switch rebase log track checkin "
        "subscribe complete checkout duplicate generate draft resize upgrade downgrade block upsize stash cherry "
        "pull rate vote react build download manage handle"
    ),
}
"""Words that are as often the name of a thing: `get_message` reads one, `message_user` sends one."""
_READS: Final = _set(
    "get gets list lists read reads search find fetch show describe view lookup look query count check status help "
    "ping version whoami inspect compare diff preview browse explain stat tail head grep tree info discover ls cat "
    "summarize summary analyze peek scan exists retrieve suggest recommend validate verify ask extract crawl "
    "screenshot echo calculate history blame recall"
)
_SECRETS: Final = _set(
    "secret secrets password passwords credential credentials env environ token tokens keychain cookie cookies apikey "
    "keys vault otp"
)
"""What is read there is better not read unseen."""
_DATABASES: Final = _set(
    "sql postgres postgresql mysql mariadb sqlite mssql oracle clickhouse snowflake bigquery duckdb redshift athena "
    "databricks trino presto cockroachdb neon database db graphql neo4j cypher soql gremlin neptune sparql cassandra "
    "cql surrealdb dgraph"
)
"""Where a text that is called `query` is code of theirs."""
_QUERIES: Final = _set("query queries q statement statements")
"""Words of arguments that are such a text."""
_JOINS: Final = frozenset(("and", "or", "then"))
_CHOICES: Final = _set("action actions operation operations method methods op ops command commands verb mode do")
"""Words of arguments whose fixed values are what the tool may be told to do."""
_FREE: Final = _set("action operation op verb do")
"""Arguments that, as any text, may tell the tool to do anything."""
_CODE: Final[Mapping[str, str]] = {
    "sql": "SQL", "statement": "a statement", "command": "a command line", "cmd": "a command line",
    "shell": "a shell's input", "script": "a script", "argv": "a command line", "code": "code",
    "commands": "command lines", "statements": "statements", "scripts": "scripts",
    "expression": "an expression", "javascript": "code", "function": "code", "powershell": "a script",
    "exec": "what to execute", "eval": "code", "program": "a program", "executable": "a program", "bash": "a script",
    "js": "code", "python": "code", "lua": "code", "ruby": "code", "perl": "code", "groovy": "code",
    "applescript": "a script", "graphql": "GraphQL", "mutation": "a mutation", "cypher": "Cypher", "soql": "SOQL",
    "gremlin": "Gremlin", "sparql": "SPARQL", "cql": "CQL", "plsql": "SQL", "tsql": "SQL",
}  # fmt: skip
_SOFT_CODE: Final = frozenset(("code", "expression", "function", "statement", "statements"))
"""These also name harmless things (a country's code): they count alone, and not for a tool that reads by its name."""
_ABOUT: Final = _set(
    "id ids name names type types kind path paths file files uri url dialect language lang version count limit timeout "
    "index format mode dir directory prefix suffix length size"
)
"""`script_id` is no script: an argument that ends so only says something about one."""
_MONEY: Final = frozenset(("amount", "price", "currency"))
_RECIPIENT: Final = frozenset(("to", "recipient", "recipients", "cc", "bcc", "phone_number", "chat_id", "channel_id"))
_BODY: Final = frozenset(("body", "text", "message", "subject", "content", "html"))
_NARROW: Final = _set(
    "delete remove drop destroy purge wipe erase truncate kill terminate unlink uninstall overwrite revoke"
)
"""Verbs that are hardly ever the name of a thing: what a tool takes says them where it begins or ends with one."""
_FILTERS: Final = _set("include exclude show with only is has hide filter list allow")
"""Flags that begin so choose what is shown."""
_MILD: Final = _set(
    "add adds enable disable merge sync fill assign register attach init initialize empty clean dm sms reply"
)
"""Flags that are called so may as well be about what is shown."""
_NOUNS: Final = _MILD | _set(
    "store archive patch import grant push edit move transition charge refund buy sell donate tweet broadcast deploy "
    "launch"
)
"""Texts that are called so are the name of a thing."""
_TO: Final = _set("with to by in into as")
_FETCHING: Final = _set("get list read select fetch show find query search describe view")
"""A choice that begins so stands beside others that tell the tool what to do."""
_OUT: Final = _set("output out save dest destination download export")
_FILES: Final = _set("file files filename path paths dir directory folder")
_FROM: Final = _set("input path file filename source_path url archive zip")
_MAKES: Final = _set("screenshot echo")
"""Reads that have no file to read: one that they take is written."""
_BAG: Final = _set("options opts init request config")
_PAYLOAD: Final = frozenset(("body", "data", "payload", "json", "form", "form_data"))
_ADDRESS: Final = frozenset(("url", "uri", "endpoint"))
_SENDING: Final = frozenset(("POST", "PUT", "PATCH", "DELETE"))
_GLUED: Final = ("delete", "remove", "destroy", "purge", "truncate", "erase", "uninstall", "execute", "revoke")
"""Verbs that are found in a word that begins or ends with them: `deletefile`."""
_THINGS: Final = _set(
    "all everything db database databases disk file files folder folders dir table tables row rows record records data "
    "item items mail email emails message messages user users account accounts repo branch page pages history cache "
    "queue log logs"
)
"""What a verb may be glued to: `dropdb`."""
_BESIDE: Final = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_BELOW: Final = (
    "additionalProperties", "unevaluatedProperties", "additionalItems", "propertyNames", "contains", "if", "then",
    "else",
)  # fmt: skip
_TABLES: Final = ("patternProperties", "dependentSchemas", "dependencies")
_NODES_MAX: Final = 2_000
_VARIANTS_MAX: Final = 60
_WEIGHT_MAX: Final = 20_000
"""Schemas and fixed values that are looked at for all that a tool takes."""
_REACH: Final[Mapping[str, str]] = {"url": "an address", "uri": "an address", "path": "a path", "webhook": "an address"}
_SHOUTED: Final = re.compile(r"([A-Z]{2,})([a-z]+)")
_SPLIT: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z][a-z]+|[a-z]+|[0-9]+|[^\x00-\x7f]+")


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool as its server lists it."""

    name: str
    schema: Mapping[str, Any] = field(default_factory=dict)
    annotations: Mapping[str, Any] = field(default_factory=dict)
    """`readOnlyHint` and so on; only what is there"""


@dataclass(frozen=True, slots=True)
class Judged:
    """A tool's class, how sure that is, and why, for people."""

    tool: str
    risk: Risk
    confidence: Confidence
    why: str


@dataclass(frozen=True, slots=True)
class Known:
    """A row of `risks.toml`."""

    id: str
    programs: tuple[str, ...]
    """words of a command line, without a version: `@modelcontextprotocol/server-git`, `mcp-server-git`"""
    hosts: tuple[str, ...]
    tools: Mapping[str, Risk]
    source: str
    checked: str


def worse(one: Risk, other: Risk) -> Risk:
    """The worse of two."""
    return one if _RANK[one] >= _RANK[other] else other


def words(name: str) -> tuple[str, ...]:
    """The words of a name, lower case: `deleteHTTPList`, `delete-http_list` → `delete`, `http`, `list`."""
    return tuple(word.lower() for word in _SPLIT.findall(name))


def prefix(names: Iterable[str]) -> str:
    """The word with which most names of a server begin and which says nothing (`git` of `git_log`); "" for none."""
    split = [found for name in names if len(found := words(name)) > 1]
    if len(split) < 2:
        return ""
    first: dict[str, int] = {}
    for one in split:
        first[one[0]] = first.get(one[0], 0) + 1
    word, count = max(first.items(), key=lambda pair: pair[1])
    return word if 2 * count > len(split) and _of_word(word) is None and word not in _READS else ""


@functools.cache
def known() -> tuple[Known, ...]:
    """Every row of the table of known servers."""
    table = tomllib.loads(files("aegis_daemon.onboarding").joinpath("risks.toml").read_text(encoding="utf-8"))
    if table["version"] != VERSION:
        raise RuntimeError(f"the table of risks has version {table['version']}, not {VERSION}; install aegis anew")
    return tuple(
        Known(
            row["id"], tuple(row.get("programs", ())), tuple(row.get("hosts", ())), row["tools"], row["source"],
            str(row["checked"]),
        )
        for row in table["server"]
    )  # fmt: skip


def known_server(command: Sequence[str] = (), host: str = "") -> Known | None:
    """The known server that a command line starts, or that answers at a host; None for any other."""
    plain = [_program(word) for word in command[:12]]
    for row in known():
        if host and any(fnmatchcase(host.lower(), pattern) for pattern in row.hosts):
            return row
        if any(program in plain for program in row.programs):
            return row
    return None


def _program(word: str) -> str:
    """A word without place or version: of `/usr/bin/server-x`, `server-x==1.2`, `@scope/server@1.2`, `ghcr.io/x:1`."""
    word = word.replace("\\", "/")
    at = word.rfind("node_modules/")
    if at >= 0:
        word = "/".join(word[at + len("node_modules/") :].split("/")[: 2 if word[at + 13 : at + 14] == "@" else 1])
    elif word.startswith("/"):
        word = word.rpartition("/")[2]
    word = re.split(r"==|>=|~=|\[", word)[0]
    name, version = word[:1] + word[1:].partition("@")[0], word[1:].partition("@")[2]
    word = name if version else word
    return word.partition(":")[0] if "/" in word and not word.startswith("@") else word


def judge(
    tools: Iterable[Tool], *, server: Known | None = None, trusted: bool = False, name: str = ""
) -> tuple[Judged, ...]:
    """Every tool's class, in their order.

    :param server: what is known of this very server. :param trusted: a person trusts what it says of itself, so that
        `readOnlyHint` and `destructiveHint` may lower a class too. :param name: of the server in the configuration.
    """
    every = tuple(tools)
    shared = {prefix(tool.name for tool in every)} | ({words(name)[0]} if words(name) else set())
    shared = {word for word in shared if word and _of_word(word) is None and word not in _READS}
    return tuple(_judge(tool, server, trusted, shared, name) for tool in every)


def _judge(tool: Tool, server: Known | None, trusted: bool, shared: set[str], name: str) -> Judged:
    if not plain_name(tool.name) or not tool.name.isascii():
        return Judged(tool.name, "unknown", "low", "its name holds characters that look like others")
    curated = server.tools.get(tool.name) if server is not None else None
    if curated is not None and server is not None:
        risk: Risk = curated
        confidence: Confidence = "high"
        reasons = [f"known from {server.id}"]
    else:
        risk, confidence, reasons = _by_name(tool.name, shared)
        if risk == "read" and (secret := next((word for word in words(tool.name) if word in _SECRETS), "")):
            risk, confidence, reasons = "unknown", "medium", [f"what it reads may be secret (`{secret}`)"]
        takes = _Takes.of(tool.schema)
        for other, why in (*_by_schema(takes, risk), *_by_query(tool, takes, name, shared)):
            if _RANK[other] > _RANK[risk]:
                risk, confidence = other, "medium"
                reasons.insert(0, why)
        for other, why in _doubts(tool, takes) if risk == "read" else ():
            if _RANK[other] > _RANK[risk]:
                risk, confidence = other, "medium"
                reasons.insert(0, why)
        if risk == "read" and (reach := _reach(takes)):
            confidence = "medium"
            reasons.append(reach)
    notes = tool.annotations
    if trusted and curated is None:
        if notes.get("readOnlyHint") is True:
            return Judged(tool.name, "read", "medium", "the server, which is trusted, says that it only reads")
        if notes.get("destructiveHint") is False and risk == "destroy":
            return Judged(tool.name, "write", "medium", "the server, which is trusted, says that it destroys nothing")
    raised = _by_annotations(notes)
    if raised is not None and _RANK[raised[0]] > _RANK[risk]:
        risk, confidence = raised[0], "medium"
        reasons.insert(0, raised[1])
    elif notes.get("readOnlyHint") is True and risk not in ("read", "unknown") and curated is None:
        reasons.append("though the server says that it only reads")
    return Judged(tool.name, risk, confidence, "; ".join(reasons))


def _of_word(word: str) -> Risk | None:
    for risk, known_words in _WORDS.items():
        if word in known_words:
            return risk
    return next((risk for risk, loose in _LOOSE.items() if word in loose), None)


def _hidden(name: str) -> Iterator[str]:
    """Words that another cut of a name would show: `getDELETEall`, `check_deletefile`, `dropdb`, `roll_back`."""
    found = words(name)
    yield from (one + other for one, other in itertools.pairwise(found))
    parts = [part.lower() for pair in _SHOUTED.findall(name) for part in pair]
    yield from parts
    for word in (*words(name), *parts):
        for verb in _GLUED:
            rest = len(word) - len(verb)
            if rest > 0 and (word.endswith(verb) or (word.startswith(verb) and rest > 2 and word[-4:] != "able")):
                yield verb
        for at in range(3, min(len(word) - 1, 16)):
            first, second = word[:at], word[at:]
            if _strict(first) and (second in _THINGS or _strict(second)):
                yield first
            elif first in _READS and _strict(second):
                yield second


def _strict(word: str) -> Risk | None:
    return next((risk for risk, listed in _WORDS.items() if word in listed), None)


def _unsure(found: Sequence[str]) -> str:
    """A word of a name that begins like a read and that may be more: `fetch_and_pop`, `get_publishing`; "" for none."""
    for join, word in itertools.pairwise(found):
        things = word.endswith("s") and not word.endswith("ss") and join != "then"
        if join in _JOINS and not things and word not in _READS:
            return word
    for word in found:
        if word[-1:] == "s" and word[:-1] in _NARROW:
            return word
        stem = word[:-3] if word.endswith("ing") and len(word) > 5 else ""
        if stem and any(_strict(one) for one in (stem, stem + "e", stem[:-1] if stem[-1] == stem[-2] else stem)):
            return word
    return ""


def _by_name(name: str, shared: Collection[str]) -> tuple[Risk, Confidence, list[str]]:
    found = words(name)
    if len(found) > 1 and found[0] in shared:
        found = found[1:]
    reads = bool(found) and found[0] in _READS
    strict = not reads or bool(_JOINS & set(found))
    worst: tuple[Risk, str] | None = None
    for word in (*found, *_hidden(name)):
        for table in (_WORDS, _LOOSE) if strict else (_WORDS,):
            for risk, listed in table.items():
                if word in listed and (worst is None or _RANK[risk] > _RANK[worst[0]]):
                    worst = (risk, word)
    if worst is not None:
        return worst[0], "high" if worst[1] == found[0] else "medium", [f"the word `{worst[1]}`"]
    if reads and len(found) > 1 and (loose := _of_word(found[0] + found[1])):
        return loose, "medium", [f"the words `{found[0]} {found[1]}`"]
    if reads and (word := _unsure(found)):
        return "unknown", "medium", [f"what `{word[:40]}` does is not known"]
    if reads:
        return "read", "high", [f"the word `{found[0]}`"]
    if len(found) > 1 and found[-1] in _READS and found[-1] in ("tree", "info", "status", "version", "search", "read"):
        return "read", "medium", [f"the word `{found[-1]}`"]
    return "unknown", "low", ["no word of its name is known"]


@dataclass(frozen=True, slots=True)
class _Takes:
    """What a tool takes, wherever in its schema it says so."""

    given: tuple[tuple[str, str, tuple[Mapping[str, Any], ...]], ...]
    """of each argument: its name, the same as `some_words`, and every schema that holds for it"""
    unseen: str = ""
    """why there may be more"""

    @classmethod
    def of(cls, schema: Mapping[str, Any]) -> _Takes:
        """Follows what is inside of what, and references within the schema; takes bounded time."""
        found: list[tuple[str, str, tuple[Mapping[str, Any], ...]]] = []
        unseen, weight, weighed = "", 0, 0
        seen: set[int] = set()
        todo: list[Any] = [schema]
        while todo:
            node = todo.pop()
            if not isinstance(node, dict) or id(node) in seen:
                continue
            seen.add(id(node))
            if len(seen) > _NODES_MAX:
                return cls(tuple(found), "its schema is too large to be read whole")
            beside, lost = _beside(schema, node)
            unseen = unseen or lost
            todo += beside
            todo += [node.get(key) for key in _BELOW]
            for key in (*_TABLES, "properties"):
                table = node.get(key)
                todo += table.values() if isinstance(table, dict) else ()
            properties = node.get("properties")
            for name, value in properties.items() if isinstance(properties, dict) else ():
                found.append((str(name), "_".join(words(str(name))), _variants(schema, value)))
            found += _open(schema, node)
            weight += sum(len(variants) + len(_choices(variants)) for _, _, variants in found[weighed:])
            if weight > _WEIGHT_MAX:
                return cls(tuple(found[:weighed]), "its schema is too large to be read whole")
            weighed = len(found)
        return cls(tuple(found), unseen)

    def named(self, names: Collection[str]) -> list[str]:
        """The names among these, sorted."""
        return sorted({plain for _, plain, _ in self.given if plain in names})


def _open(
    schema: Mapping[str, Any], node: Mapping[str, Any]
) -> Iterator[tuple[str, str, tuple[Mapping[str, Any], ...]]]:
    """Arguments that are named by a pattern or by a choice of names."""
    table = node.get("patternProperties")
    for name, value in table.items() if isinstance(table, dict) else ():
        yield str(name), "_".join(words(str(name))), _variants(schema, value)
    if "propertyNames" in node:
        named = _variants(schema, node["propertyNames"])
        value = node.get("additionalProperties", True)
        patterns = [one["pattern"] for one in named if isinstance(one.get("pattern"), str)]
        for name in (*_choices(named), *patterns):
            yield name, "_".join(words(name)), _variants(schema, value)


def _beside(schema: Mapping[str, Any], node: Mapping[str, Any]) -> tuple[list[Any], str]:
    """The schemas that hold for the same value as this one, or for its items, and why some may be missing."""
    found: list[Any] = []
    for key in _BESIDE:
        value = node.get(key)
        found += value if isinstance(value, list) else [value]
    for key in ("$ref", "$dynamicRef", "$recursiveRef"):
        if key in node:
            target = _pointed(schema, node[key])
            if target is None:
                return found, f"its schema is partly elsewhere (`{str(node[key])[:60]}`)"
            found.append(target)
    return found, ""


def _pointed(schema: Any, reference: Any) -> Any:
    """What a reference within the schema means (RFC 6901, in a fragment); None for any other."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    found = schema
    for part in unquote(reference[1:]).split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and part.isascii() and part.isdigit() and int(part[:6]) < len(found):
            found = found[int(part[:6])]
        elif isinstance(found, dict) and part in found:
            found = found[part]
        else:
            return None
    return found if reference == "#" or reference.startswith("#/") else None


def _variants(schema: Mapping[str, Any], value: Any) -> tuple[Mapping[str, Any], ...]:
    found: list[Mapping[str, Any]] = []
    seen: set[int] = set()
    todo = [{} if value is True else value]
    while todo and len(seen) < _VARIANTS_MAX:
        node = todo.pop()
        if isinstance(node, dict) and id(node) not in seen:
            seen.add(id(node))
            found.append(node)
            todo += _beside(schema, node)[0]
    return tuple(found)


def _by_schema(takes: _Takes, risk: Risk) -> Iterator[tuple[Risk, str]]:
    """What a tool takes may show what it does. At any rate nothing here is below what the name says."""
    plain = {plain for _, plain, _ in takes.given}
    if takes.unseen:
        yield "unknown", takes.unseen
    for name, as_words, variants in takes.given:
        word = _code(as_words, risk)
        if word and _takes_text(variants):
            yield "execute", f"it takes {_CODE[word]} (`{name[:60]}`)"
        if as_words in _FREE and _takes_text(variants):
            yield "unknown", f"it takes what to do as any text (`{name[:60]}`)"
        reached = sorted(one for one in plain if _reached(one)) if as_words.split("_")[-1] in ("method", "verb") else []
        if reached and (_takes_text(variants) or any(one.upper() in _SENDING for one in _choices(variants))):
            yield "write", f"it may send and change things (`{name[:60]}`, `{reached[0]}`)"
        for choice in _choices(variants) if not _CHOICES.isdisjoint(as_words.split("_")) else ():
            worst, _, _ = _by_name(choice, ())
            mild = risk == "read" and not any(
                word in one for one in _WORDS.values() for word in (*words(choice), *_hidden(choice))
            )
            if worst not in ("unknown", "read") and not mild:  # `post` is what a search looks for
                yield worst, f"its `{name[:60]}` may be `{choice[:40]}`"
    if risk != "read":
        money = takes.named(_MONEY)
        if "amount" in money or len(money) > 1:
            yield "money", f"it takes an amount (`{money[0]}`)"
    recipient, body = takes.named(_RECIPIENT), takes.named(_BODY)
    if recipient and body and not ("from" in plain and recipient == ["to"] and risk == "read"):
        yield "message", f"it takes a recipient and a text (`{recipient[0]}`, `{body[0]}`)"


def _code(name: str, risk: Risk) -> str:
    """The word for which an argument of this name is code; "" for none."""
    parts = name.split("_")
    if len(parts) > 1 and parts[-1] in _ABOUT:
        return ""
    found = next((word for word in _CODE if word in parts), "")
    return "" if found in _SOFT_CODE and (risk == "read" or len(parts) > 1) else found


def _by_query(tool: Tool, takes: _Takes, server: str, shared: Collection[str]) -> Iterator[tuple[Risk, str]]:
    """What is called `query` is code of a database's own, or nobody knows of what."""
    texts = {plain for _, plain, variants in takes.given if _takes_text(variants)}
    called = _QUERIES if _DATABASES.isdisjoint(words(server)) else {*_QUERIES, "where"}
    asked = sorted(one for one in texts if not called.isdisjoint(one.split("_")) and one.split("_")[-1] not in _ABOUT)
    if "query" in words(tool.name) and (said := sorted(texts & {"statement", "statements"})):
        yield "execute", f"it takes a query as a statement (`{said[0]}`)"
    if not asked:
        return
    if found := sorted(_DATABASES & {*words(tool.name), *words(server)}):
        yield "execute", f"it takes a query of `{found[0]}` (`{asked[0][:60]}`)"
    elif "query" in asked and set(words(tool.name)) - set(shared) - {"get", "read", "fetch"} <= {"query"}:
        yield "unknown", "nobody knows what its query may do (`query`)"


def _reached(name: str) -> bool:
    return name in _PAYLOAD or name.split("_")[-1] in (*_ADDRESS, "path", "route")


def _doubts(tool: Tool, takes: _Takes) -> Iterator[tuple[Risk, str]]:
    """What a tool takes that is called a read and does more: flags, choices, and files to write."""
    plain = {plain for _, plain, _ in takes.given}
    makes = not _MAKES.isdisjoint(words(tool.name))
    if not plain and tool.schema.get("additionalProperties", False) is not False:
        yield "unknown", "it takes anything"
    for name, as_words, variants in takes.given:
        parts, shown, text = as_words.split("_"), name[:60], _takes_text(variants)
        if told := _told(parts, variants):
            yield _strict(told) or "write", f"it may be told to `{told}` (`{shown}`)"
        for risk, choice in _choosable(_choices(variants)):
            yield risk, f"its `{shown}` may be `{choice[:40]}`"
        files = not _FILES.isdisjoint(parts)
        if text and ((files and not _OUT.isdisjoint(parts)) or (as_words in _OUT and plain & _FROM - {as_words})):
            yield "write", f"it may write a file (`{shown}`)"
        if text and files and makes:
            yield "write", f"it may write a file (`{shown}`)"
        if text and "webhook" in parts and plain & _PAYLOAD:
            yield "write", f"it may send and change things (`{shown}`)"
        if parts[-1] in _BAG and plain & _ADDRESS and _bag(variants):
            yield "unknown", f"it takes anything (`{shown}`)"
        if as_words == "pipeline" and any(one.get("type") == "array" for one in variants):
            yield "execute", f"it takes a pipeline (`{shown}`)"


def _told(parts: Sequence[str], variants: Sequence[Mapping[str, Any]]) -> str:
    """The verb that an argument of such a name tells a tool; "" for none."""
    flag = any("boolean" in (kind if isinstance(kind := one.get("type"), list) else [kind]) for one in variants)
    if flag or {one.lower() for one in _choices(variants)} in ({"true", "false"}, {"yes", "no"}):
        spoken = [] if parts[0] in _FILTERS else [word for word in parts if _strict(word) and word not in _MILD]
        return max(spoken, key=lambda word: _RANK[_strict(word) or "read"], default="")
    if parts[0] in _NARROW or parts[-1] in _NARROW:
        return parts[0] if parts[0] in _NARROW else parts[-1]
    verb = parts[0] if len(parts) == 1 or (len(parts) == 2 and parts[1] in _TO) else ""
    return verb if verb == "replacement" or (_strict(verb) and verb not in _NOUNS) else ""


def _choosable(choices: Sequence[str]) -> Iterator[tuple[Risk, str]]:
    """The choices, of any argument, that tell a tool to do more than read: alone, or beside a verb of reads."""
    told = {choice: _spoken(choice) for choice in choices}
    if len(choices) != 1 and _FETCHING.isdisjoint(verb for verb, _ in told.values()):
        return
    for choice, (verb, risk) in told.items():
        if risk is None and verb == "post" and "GET" in choices:
            yield "write", choice
        if risk is not None and not (choice == "write" and "read" in choices):  # a filter for what one may do
            yield risk, choice


@functools.lru_cache(maxsize=4_096)
def _spoken(choice: str) -> tuple[str, Risk | None]:
    """The first word of a choice, and the class of a verb there or hidden in it."""
    verb = next(iter(words(choice)), "")
    return verb, next((found for word in (verb, *_hidden(choice)) if (found := _strict(word))), None)


def _bag(variants: Iterable[Mapping[str, Any]]) -> bool:
    return any(one.get("type") == "object" and not one.get("properties") for one in variants)


def _takes_text(variants: Iterable[Mapping[str, Any]]) -> bool:
    for one in variants:
        if one.get("enum") or "const" in one:
            continue
        kind = one.get("type")
        if kind is None:
            if not any(key in one for key in ("anyOf", "oneOf", "allOf", "$ref", "properties")):
                return True
        elif kind in ("string", "array") or (isinstance(kind, list) and "string" in kind):
            return True
    return False


def _choices(variants: Iterable[Mapping[str, Any]]) -> list[str]:
    found: list[Any] = []
    for one in variants:
        fixed = one.get("enum")
        found += fixed if isinstance(fixed, list) else ()
        found.append(one.get("const"))
    return [one for one in found if isinstance(one, str)]


def _reach(takes: _Takes) -> str:
    for name, what in _REACH.items():
        if takes.named((name,)):
            return f"it takes {what} (`{name}`)"
    return ""


def _by_annotations(notes: Mapping[str, Any]) -> tuple[Risk, str] | None:
    """What a server admits. Silence proves nothing, so that a hint which is missing raises nothing either."""
    if notes.get("readOnlyHint") is True:
        return None
    if notes.get("destructiveHint") is True:
        return "destroy", "the server says that it may destroy (`destructiveHint`)"
    if notes.get("readOnlyHint") is False:
        return "write", "the server says that it does not only read (`readOnlyHint`)"
    return None
