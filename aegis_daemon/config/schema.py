"""Every setting has its name, type, default and one-line description here, and nowhere else.

The loader, the JSON Schema, the README's table and `config show` are all made from these models. Durations are float
seconds. Names, defaults and meanings: seed A's configuration (kept as they are), seed B's `deny` and `allow`, and the
additions listed in the README.
"""

from __future__ import annotations

import difflib
import hmac
import re
from collections.abc import Iterable
from decimal import Decimal
from math import isfinite
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

import msgspec
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainSerializer,
    PlainValidator,
    PrivateAttr,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from aegis_daemon.config.source import HIDDEN_NAME
from aegis_daemon.core.units import UnitError, go_duration, parse_duration, parse_rate, short_duration
from aegis_daemon.policy.budgets import MOST, PLACES, exact, units
from aegis_daemon.policy.dialect import Statement
from aegis_daemon.policy.paths import BadRoot, canonical_root
from aegis_daemon.policy.patterns import BadPattern, compile_pattern
from aegis_daemon.policy.secrets import KINDS
from aegis_daemon.policy.sql import DIALECTS, OPERATIONS
from aegis_daemon.policy.transforms import BadPath, compile_path
from aegis_daemon.policy.urls import DEFAULT_PORTS, BadHost, canonical_host
from aegis_daemon.wire.headers import is_protocols_own
from aegis_daemon.wire.jsonrpc import WireFault, encode, parse

MASK: Final = "********"
NO_PLACEHOLDER: Final = "`${env:…}` and `${file:…}` are not replaced here"
PLACEHOLDERS: Final = "they work in tokens, secrets, urls, `args`, `env` and `headers`; write the value itself"

_HIDDEN = re.compile(HIDDEN_NAME, re.IGNORECASE)
_LOGIN = re.compile(r"://[^/\s]*:[^/\s]*@")


class Secret:
    """A text that never prints: `str()`, `repr()`, f-strings, dumps and the JSON Schema show a mask.

    Compares in constant time; `reveal()` is the only way to the text.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself: for the place that sends or compares it, never for one that shows it."""
        return self._text

    def __str__(self) -> str:
        return MASK

    def __repr__(self) -> str:
        return f"Secret({MASK})"

    def __format__(self, spec: str) -> str:
        return format(MASK, spec)

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(
            self._text.encode("utf-8", "surrogatepass"), other._text.encode("utf-8", "surrogatepass")
        )

    def __hash__(self) -> int:
        return hash(self._text)

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a secret is not copied to another process or file; pass the place it comes from")

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            _as_secret, serialization=core_schema.plain_serializer_function_ser_schema(_mask)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string"}


def reveal(text: str | Secret) -> str:
    """The text of a value that may or may not be a secret."""
    return text.reveal() if isinstance(text, Secret) else text


def fault(message: str, hint: str = "") -> PydanticCustomError:
    """An error whose text the loader shows as it is. Only for use inside validators."""
    return PydanticCustomError("aegis", "{message}", {"message": message, "hint": hint})


# --- the types of single values; the text in `Kind` is what the README's table calls them


class Kind(msgspec.Struct, frozen=True):
    """What a value is called in the table of settings."""

    name: str


def _as_secret(value: object) -> Secret:
    if isinstance(value, Secret):
        return value
    if isinstance(value, str):
        return Secret(value)
    raise fault("not a text", "put the value in quotes")


def _mask(value: object) -> object:
    return MASK if isinstance(value, Secret) else value


def _as_text(value: object) -> str | Secret:
    if isinstance(value, Secret | str):
        return value
    raise fault("not a text", "put the value in quotes")  # the value may be a secret: a PIN, say


def _as_plain(value: object, what: str = "a text") -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Secret):
        raise fault(NO_PLACEHOLDER, PLACEHOLDERS)
    raise fault(f"{shown(value)} is not {what}", "put it in quotes")


def _as_command(value: object) -> str:
    text = _as_plain(value, "a program")
    words = text.split()
    if not words or "\x00" in text:
        raise fault("the program has no name", "write the program's name or path, and its arguments in `args`")
    if len(words) > 1 and "/" not in words[0]:
        raise fault("`command` is the program alone", "keep its first word, and write the others in `args`")
    return text


def _as_path(value: object) -> str:
    text = _as_plain(value, "a path")
    if not text.strip() or "\x00" in text:
        raise fault("the path is empty", "write a path, or remove the key")
    return text


def _as_variable(value: object) -> str:
    text = _as_plain(value, "a variable's name")
    if not text or re.search(r"[=\x00\s]", text):
        raise fault(f"`{text[:60]}` cannot be a variable's name", "write it like `API_KEY`")
    return text


def _as_header(value: object) -> str:
    text = _as_plain(value, "a header's name")
    if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", text):  # RFC 9110 §5.6.2
        raise fault(f"`{text[:60]}` cannot be a header's name", "write it like `X-Api-Key`")
    if is_protocols_own(text):
        raise fault(f"the header `{text}` is the protocol's own", "remove it; it is set where it belongs")
    return text


def _as_header_value(value: object) -> str | Secret:
    text = _as_text(value)
    if re.search(r"[\r\n\x00]", reveal(text)):
        raise fault("the header's value holds a line break", "write it on one line")
    return text


def _hide_named(values: object) -> object:
    """What is called a token, key or password, or is an address with a password, is a secret without being asked."""
    if not isinstance(values, dict):
        return values
    return {
        name: Secret(text) if isinstance(text, str) and (_HIDDEN.fullmatch(str(name)) or _LOGIN.search(text)) else text
        for name, text in values.items()
    }


def _hide_all(values: object) -> object:
    """What all of them are for is to show that we may."""
    if not isinstance(values, dict):
        return values
    return {name: Secret(text) if isinstance(text, str) else text for name, text in values.items()}


def _as_token(value: object, source: str = "make one with `openssl rand -hex 32`") -> Secret:
    secret = _as_secret(value)
    if len(secret.reveal()) < 16:
        raise fault(f"the token has {len(secret.reveal())} characters, at least 16 are needed", source)
    if not re.fullmatch(r"[\x21-\x7e]+", secret.reveal()):
        raise fault("the token holds characters that no header can carry", source)
    return secret


def _as_collector_token(value: object) -> Secret:
    return _as_token(value, "Splunk issues it: Settings, Data inputs, HTTP Event Collector")


def _as_url(schemes: tuple[str, ...]) -> Any:
    def check(value: object) -> str | Secret:
        text = reveal(_as_text(value))
        try:
            parts = urlsplit(text)
            parts.port  # noqa: B018  raises for a bad one
        except ValueError:
            raise fault("not a url", f"write it like `{schemes[0]}://localhost:8080/mcp`") from None
        if parts.scheme.lower() not in schemes or not parts.hostname or re.search(r"[\s\x00-\x1f\x7f]", text):
            known = ", ".join(f"`{scheme}://`" for scheme in schemes)
            raise fault("not a url of this kind", f"start it with {known} and a host name")
        hidden = isinstance(value, Secret) or parts.username is not None or parts.password is not None or parts.query
        return Secret(text) if hidden else text

    return check


def _as_webhook(value: object) -> Secret | None:
    if value is None or (isinstance(value, str | Secret) and not value):
        return None  # seed A's example has `webhook_url: ""` for "none"
    return Secret(reveal(_as_url(("https", "http"))(value)))


def _as_seconds(least: float) -> Any:
    def check(value: object) -> float:
        if isinstance(value, Secret):
            raise fault(NO_PLACEHOLDER, PLACEHOLDERS)
        try:
            seconds = parse_duration(value)
        except UnitError as error:
            raise fault(error.message, error.hint) from None
        if seconds < least:
            raise fault(f"`{value}` is too short", f"write at least `{short_duration(least)}`")
        return seconds

    return check


def _as_name(value: object) -> str:
    value = _as_plain(value, "a name")
    if not value or len(value) > 128 or value in (".", "..") or re.search(r"[\s\x00-\x1f\x7f/\\?#%]", value):
        raise fault(
            f"`{value[:60]}` cannot be a name",
            "use up to 128 letters, digits, `-`, `_` or `.`; it becomes part of addresses",
        )
    return value


def _as_backend_name(value: object) -> str:
    name = _as_name(value)
    if "__" in name:
        raise fault(f"`{name}` cannot be a backend's name", "use one `_`; two separate the backend from its tool")
    return name


def _as_glob(value: object) -> str:
    value = _as_plain(value, "a name or pattern")
    if not value.strip() or value != value.strip() or re.search(r"[\x00-\x1f\x7f]", value):
        raise fault(f"`{value}` is not a name or pattern", "write a name like `publish`, or a pattern like `delete_*`")
    return value


def _as_tool(value: object) -> str:
    name = _as_glob(value)
    if re.search(r"[*?\[\]]", name):
        raise fault(f"`{name}` is a pattern, and a limit counts one tool", "write one limit for each tool's own name")
    return name


def _as_fact(value: object) -> Any:
    if isinstance(value, str | bool | int):
        return value
    if isinstance(value, list | tuple) and all(isinstance(item, str | bool | int) for item in value):
        return tuple(value)
    if isinstance(value, Secret):
        raise fault(NO_PLACEHOLDER, PLACEHOLDERS)
    raise fault(f"{shown(value)} is not a fact", "write a text, a whole number, `true` or `false`, or a list of those")


def _as_proved_call(value: object) -> str:
    name = _as_plain(value, "a tool")
    if not name.isprintable() or len(name) > 1024 or "." not in name.strip("."):
        raise fault(f"{shown(value)} names no tool of a backend", "write it as `backend.tool`")
    return name


def _as_json_mapping(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise fault(f"{shown(value)} is not a mapping", "write `{ name: value }`")
    waiting: list[object] = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Secret):
            raise fault(NO_PLACEHOLDER, PLACEHOLDERS)
        if isinstance(one, float) and not isfinite(one):
            raise fault("no call can have these arguments", "write a number that JSON has")
        if isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
    try:
        parse(encode({"jsonrpc": "2.0", "id": 0, "method": "tools/call", "params": {"name": "x", "arguments": value}}))
    except (WireFault, TypeError, ValueError, RecursionError) as error:
        raise fault("no call can have these arguments", f"{error}; change them") from None
    return value


def _as_chat_id(value: object) -> str:
    text = str(value) if type(value) is int else _as_plain(value, "an id")
    if not re.fullmatch(r"[@#]?-?[A-Za-z0-9_.-]{1,64}", text):
        raise fault(f"{shown(value)} is not the id of a chat or a chat's user", "copy it from the chat")
    return text


def _as_person(value: object) -> str:
    text = _as_plain(value, "a person's name")
    if not text.strip() or text != text.strip() or len(text) > 64 or not text.isprintable():
        raise fault(f"{shown(value)} is not a person's name", "write up to 64 characters; best the user name here")
    return text


def _as_governed(value: object) -> str:
    name = _as_glob(value)
    if re.search(r"[*?\[\]]", name):
        raise fault(f"`{name}` is a pattern, and rules on arguments are for one tool", "write one for each tool's name")
    return name


def _as_argument(value: object) -> str:
    text = _as_plain(value, "an argument's name")
    if not text or len(text) > 256 or not text.isprintable():
        raise fault(f"{shown(value)} is not an argument's name", "write it as the tool's schema does")
    return text


def _as_root(value: object) -> str:
    text = _as_path(value)
    try:
        canonical_root(text)
    except BadRoot as error:
        raise fault(f"paths cannot be below {shown(value)}: {error}", "write an absolute path like `/data`") from None
    return text


def _as_rule_host(value: object) -> str:
    text = _as_plain(value, "a host's name")
    try:
        return canonical_host(text)
    except BadHost as error:
        raise fault(f"{shown(value)} is not a host", str(error)) from None


def _as_scheme(value: object) -> str:
    text = _as_plain(value, "a scheme").lower()
    if text not in DEFAULT_PORTS:
        raise fault(f"{shown(value)} is not a scheme that can be allowed", f"known are {', '.join(DEFAULT_PORTS)}")
    return text


def _as_pattern(value: object) -> str:
    text = _as_plain(value, "a regular expression")
    try:
        compile_pattern(text)
    except BadPattern as error:
        hint = "write it in RE2's syntax, without lookaround and back references; it has to match the whole text"
        raise fault(f"{shown(value)} cannot be used: {error}", hint) from None
    return text


def _as_amount(value: object) -> Decimal:
    number = exact(value)
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,16}(\.[0-9]{1,12})?", value):
        number = Decimal(value)
    if number is None or units(abs(number)) is None:
        most = f"at most {PLACES} places, and not beyond {MOST}"
        raise fault(f"{shown(value)} is not a number that is held exactly", f"write digits, with {most}")
    return number


def _as_scalar(value: object) -> Any:
    if type(value) in (str, bool) or exact(value) is not None:
        return value
    if isinstance(value, Secret):
        raise fault(NO_PLACEHOLDER, PLACEHOLDERS)
    raise fault(f"{shown(value)} is not a single value", "write a text, a number, `true` or `false`")


def _as_operation(value: object) -> str:
    text = _as_plain(value, "an operation").upper()
    if text not in OPERATIONS:
        raise fault(f"{shown(value)} is not an operation that can be allowed", f"known are {', '.join(OPERATIONS)}")
    return text


def _as_dialects(value: object) -> tuple[str, ...]:
    named = [value] if isinstance(value, str) else value
    if not isinstance(named, list | tuple) or not named:
        raise fault(f"{shown(value)} is not a dialect", "write a dialect's name, or a list of names")
    for one in named:
        if one not in DIALECTS:
            raise fault(f"{shown(one)} is not a dialect of SQL", f"known are {', '.join(DIALECTS)}")
    return tuple(named)


def _as_json_path(value: object) -> str:
    text = _as_plain(value, "a path")
    try:
        compile_path(text)
    except BadPath as error:
        hint = "write JSONPath (RFC 9535) like `$.response.user.email` or `$.request.password`"
        raise fault(f"{shown(value)} is not a path: character {error.at}: {error}", hint) from None
    return text


def _as_secret_kind(value: object) -> str:
    text = _as_plain(value, "a kind of secret")
    if text not in KINDS and not re.fullmatch(r"env:[A-Za-z_][A-Za-z0-9_]*|file:.+", text):
        near = difflib.get_close_matches(text, KINDS, 1, 0.6)
        known = f"did you mean `{near[0]}`?" if near else "take the word after `secret:` in what was replaced"
        raise fault(f"{shown(value)} is no kind of secret", f"{known}, or write `env:NAME` for a variable")
    return text


OFF: Final = "off"


AUTO: Final = "auto"


def _as_hold(value: object) -> str | float:
    seconds: str | float = AUTO if value == AUTO else _as_seconds(0)(value)
    return seconds


def _as_listen(value: object) -> str:
    if value is False or value == OFF:
        return OFF
    text = str(value) if type(value) is int else _as_plain(value, "an address to listen at")
    host, colon, port = text.rpartition(":")
    good = colon and port.isascii() and port.isdigit() and int(port) < 65536 and not re.search(r"[\s/@]", host)
    if not good or (":" in host and not (host.startswith("[") and host.endswith("]"))):
        raise fault(
            f"{shown(value)} is not an address to listen at", "write it like `127.0.0.1:18070` or `[::1]:18070`"
        )
    return text


def _as_syslog(value: object) -> str:
    text = _as_plain(value, "an address")
    hint = "write it like `udp://host:514`, `tcp://host:514`, `tls://host:6514` or `unix:///dev/log`"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise fault(f"{shown(value)} is not the address of a syslog receiver", hint) from None
    local = parts.scheme == "unix" and not parts.netloc and parts.path.startswith("/")
    remote = parts.scheme in ("udp", "tcp", "tls") and parts.hostname and port and parts.path in ("", "/")
    if not (local or remote) or parts.username is not None or parts.query or re.search(r"[\s\x00-\x1f\x7f]", text):
        raise fault(f"{shown(value)} is not the address of a syslog receiver", hint)
    return text


def _as_host(value: object) -> str:
    text = _as_plain(value, "a host's name")
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", text):
        raise fault(f"{shown(value)} is not a host's name", "write it like `aegis.example`, without scheme and port")
    return text.lower()


def _as_origin(value: object) -> str:
    text = _as_plain(value, "an origin")
    if not re.fullmatch(r"https?://[^\s/?#@]+/?", text, re.IGNORECASE):
        raise fault(f"{shown(value)} is not an origin", "write it like `https://console.example`")
    return text.lower().rstrip("/")


def shown(value: object) -> str:
    """A value as an error text repeats it: short, in backticks; mappings and lists by their kind."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, dict | list | tuple):
        return "a mapping" if isinstance(value, dict) else "a list"
    return f"`{str(value)[:60]}`"


_DURATION_SCHEMA = {
    "anyOf": [
        {"type": "number", "minimum": 0},
        {"type": "string", "pattern": r"^(0|([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h|d))+$"},
    ]
}
_DURATION = (
    PlainSerializer(go_duration, return_type=str, when_used="json"),
    WithJsonSchema(_DURATION_SCHEMA),
    Kind("duration"),
)
_TEXT = (PlainSerializer(_mask), WithJsonSchema({"type": "string"}))

Seconds = Annotated[float, BeforeValidator(_as_seconds(0)), *_DURATION]
Hold = Annotated[
    float | Literal["auto"],
    PlainValidator(_as_hold),
    PlainSerializer(lambda value: value if value == AUTO else go_duration(value), return_type=str, when_used="json"),
    WithJsonSchema({"anyOf": [{"const": "auto"}, *_DURATION_SCHEMA["anyOf"]]}),
    Kind("`auto` or duration"),
]
Timeout = Annotated[float, BeforeValidator(_as_seconds(0.001)), *_DURATION]
Flag = Annotated[bool, Field(strict=True), Kind("true or false")]
Count = Annotated[int, Field(strict=True, ge=1, le=1_000_000_000), Kind("number")]
SessionCount = Annotated[int, Field(strict=True, ge=1, le=270), Kind("number")]  # the shim's ledger has 272 slots
Uid = Annotated[int, Field(strict=True, ge=0, le=2**32 - 2), Kind("uid")]
Token = Annotated[Secret, PlainValidator(_as_token), WithJsonSchema({"type": "string"}), Kind("secret")]
CollectorToken = Annotated[
    Secret, PlainValidator(_as_collector_token), WithJsonSchema({"type": "string"}), Kind("secret")
]
SigningSecret = Annotated[Secret, Kind("secret")]
Webhook = Annotated[Secret | None, PlainValidator(_as_webhook), *_TEXT, Kind("url, secret")]
Text = Annotated[str | Secret, PlainValidator(_as_text), *_TEXT, Kind("text")]
BackendUrl = Annotated[str | Secret, PlainValidator(_as_url(("http", "https", "ws", "wss"))), *_TEXT, Kind("url")]
WebUrl = Annotated[str | Secret, PlainValidator(_as_url(("http", "https"))), *_TEXT, Kind("url")]
HeaderText = Annotated[str | Secret, PlainValidator(_as_header_value), *_TEXT, Kind("text")]
Command = Annotated[str, BeforeValidator(_as_command), Kind("program")]
PathText = Annotated[str, BeforeValidator(_as_path), Kind("path")]
Variable = Annotated[str, BeforeValidator(_as_variable), Kind("name")]
Header = Annotated[str, BeforeValidator(_as_header), Kind("name")]
Name = Annotated[str, BeforeValidator(_as_name), Kind("name")]
BackendName = Annotated[str, BeforeValidator(_as_backend_name), Kind("name")]
Glob = Annotated[str, BeforeValidator(_as_glob), Kind("pattern")]
ToolName = Annotated[str, BeforeValidator(_as_tool), Kind("name")]
HostName = Annotated[str, BeforeValidator(_as_host), Kind("name")]
Origin = Annotated[str, BeforeValidator(_as_origin), Kind("origin")]
ChatId = Annotated[str, BeforeValidator(_as_chat_id), Kind("id")]
Person = Annotated[str, BeforeValidator(_as_person), Kind("name")]
PolicyText = Annotated[str, BeforeValidator(_as_plain), Kind("text")]
Listen = Annotated[str, BeforeValidator(_as_listen), Kind("address")]
SyslogAddress = Annotated[str, BeforeValidator(_as_syslog), Kind("address")]
FactValue = Annotated[
    str | bool | int | tuple[str | bool | int, ...],
    PlainValidator(_as_fact),
    WithJsonSchema({"type": ["string", "boolean", "integer", "array"]}),
    Kind("text, number, true, false or a list"),
]

GovernedTool = Annotated[str, BeforeValidator(_as_governed), Kind("name")]
ArgumentName = Annotated[str, BeforeValidator(_as_argument), Kind("name")]
Root = Annotated[str, BeforeValidator(_as_root), Kind("path")]
RuleHost = Annotated[str, BeforeValidator(_as_rule_host), Kind("name")]
Scheme = Annotated[str, BeforeValidator(_as_scheme), Kind("scheme")]
Pattern = Annotated[str, BeforeValidator(_as_pattern), Kind("regular expression")]
Amount = Annotated[
    Decimal,
    PlainValidator(_as_amount),
    PlainSerializer(lambda value: f"{value:f}", return_type=str, when_used="json"),
    WithJsonSchema({"type": ["number", "string"]}),
    Kind("number"),
]
SingleValue = Annotated[
    str | bool | int | float,
    PlainValidator(_as_scalar),
    WithJsonSchema({"type": ["string", "boolean", "number"]}),
    Kind("value"),
]
Operation = Annotated[str, BeforeValidator(_as_operation), Kind("operation")]
Dialects = Annotated[
    tuple[str, ...],
    PlainValidator(_as_dialects),
    PlainSerializer(list, when_used="json"),
    WithJsonSchema({"type": ["string", "array"], "items": {"type": "string"}}),
    Kind("name or list of names"),
]
ProvedCall = Annotated[str, BeforeValidator(_as_proved_call), Kind("name")]
JsonMapping = Annotated[
    dict[str, Any], PlainValidator(_as_json_mapping), WithJsonSchema({"type": "object"}), Kind("mapping")
]
JsonPath = Annotated[str, BeforeValidator(_as_json_path), Kind("path")]
SecretKind = Annotated[str, BeforeValidator(_as_secret_kind), Kind("kind")]


# --- the sections


class Section(BaseModel):
    """A mapping of the file: unknown keys are faults, and nothing changes once it is loaded."""

    # Only the whole is read, so only for that a validator is made: a tenth of a daemon's start.
    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_by_name=True, validate_by_alias=True, defer_build=True
    )


class RateLimit(Section):
    """At most `max_count` successful calls in any `window`; also written `10/minute`, `1/day`, `5/2h`."""

    window_s: Timeout = Field(
        validation_alias="window",
        serialization_alias="window",
        description="Length of the sliding window; a call stops counting this long after it was made.",
    )
    max_count: Count = Field(description="Successful calls allowed in any one window.")

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [handler.resolve_ref_schema(handler(schema)), {"type": "string"}]}

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: object) -> object:
        if isinstance(value, dict | RateLimit):
            return value
        if not isinstance(value, str):
            raise fault(f"{shown(value)} is not a rate limit", "write `{ window: 24h, max_count: 1 }` or `1/day`")
        try:
            window, count = parse_rate(value)
        except UnitError as error:
            raise fault(error.message, error.hint) from None
        return {"window": window, "max_count": count}


class Server(Section):
    """The HTTP address, and what one session or agent may have in flight."""

    listen: Listen = Field(default="127.0.0.1:18070", description="Address of the HTTP server; `off` for none.")
    read_timeout: Seconds = Field(default=300.0, description="Longest time to read one HTTP request.")
    write_timeout: Seconds = Field(default=300.0, description="Longest time to write one HTTP answer.")
    api_token: Token | None = Field(
        default=None, description="Bearer token of the management API; at least 16 characters."
    )
    read_token: Token | None = Field(
        default=None, description="Bearer token that may read over the management API and nothing more."
    )
    allowed_hosts: tuple[HostName, ...] = Field(
        default=(), description="Names, beside localhost and addresses, that requests may use for this server."
    )
    allowed_origins: tuple[Origin, ...] = Field(
        default=(), description="Web pages that may use this server, like `https://console.example`."
    )
    insecure_open_api: Flag = Field(
        default=False,
        description="Lets whoever reaches the API decide approvals without a token; for old integrations only.",
    )
    max_in_flight_session: SessionCount = Field(
        default=256, description="Calls that one session may have open, at most 270; more are refused."
    )
    max_sessions_agent: Count = Field(
        default=256,
        description="Sessions that one agent may have; one at its own address counts once, with all of its servers.",
    )
    max_in_flight_agent: Count = Field(
        default=1024, description="Calls that one agent may have open over all its sessions."
    )


class Backend(Section):
    """One MCP server: `command` for a process, `url` for an address, neither for what the shim hands over."""

    command: Command | None = Field(
        default=None, description="Program to run; a path with a slash counts from the config file."
    )
    args: tuple[Text, ...] = Field(
        default=(), description="Arguments of the program; `${env:NAME}` and `${file:PATH}` work."
    )
    env: Annotated[dict[Variable, Text], BeforeValidator(_hide_named)] = Field(
        default={}, description="Variables added to the program's environment; `${env:NAME}` and `${file:PATH}` work."
    )
    cwd: PathText | None = Field(
        default=None, description="Working directory of the program; counts from the config file."
    )
    url: BackendUrl | None = Field(
        default=None, description="Address of a server that runs elsewhere (http, https, ws, wss)."
    )
    transport: Literal["auto", "streamable-http", "sse", "websocket"] = Field(
        default="auto", description="How to speak to `url`."
    )
    headers: Annotated[dict[Header, HeaderText], BeforeValidator(_hide_named)] = Field(
        default={}, description="Headers sent to `url`; `${env:NAME}` and `${file:PATH}` work."
    )
    health_url: WebUrl | None = Field(default=None, description="Address asked for the backend's health.")
    timeout: Timeout = Field(default=120.0, description="Longest wait for the answer to one call.")
    count_tool_errors: Flag = Field(
        default=False, description="Counts a call whose result says `isError` against rate limits as well."
    )
    tools_idempotent: tuple[Glob, ...] = Field(
        default=(), description="Tools that a later version may call again after a lost answer; this one never does."
    )


class Queue(Section):
    """A backend's lane, in which calls of all agents run one after another, and its limits over all agents."""

    enabled: Flag = Field(
        default=False, description="Runs the backend's calls one at a time; limits below hold either way."
    )
    delay_min: Seconds = Field(
        default=60.0, description="Shortest pause between the end of a call and the start of the next."
    )
    delay_max: Seconds = Field(default=600.0, description="Longest such pause; the real one is random between the two.")
    max_pending: Count = Field(default=50, description="Calls that may wait in the lane; more are refused.")
    bypass_tools: tuple[Glob, ...] = Field(
        default=(), description="Tools that do not wait in the lane; limits hold for them."
    )
    global_rate_limits: dict[ToolName, RateLimit] = Field(
        default={}, description="Limit of each tool over all agents together."
    )


class Access(Section):
    """What one agent may do on one backend."""

    allowed: Flag = Field(default=False, description="Whether the agent may use this backend at all.")
    tool_allowlist: tuple[Glob, ...] | None = Field(
        default=None, description="The only tools the agent sees and may call; without it, all that are not denied."
    )
    tool_denylist: tuple[Glob, ...] = Field(default=(), description="Tools hidden from the agent and refused by name.")
    resource_allowlist: tuple[Glob, ...] | None = Field(
        default=None, description="The only resource URIs the agent may read."
    )
    resource_denylist: tuple[Glob, ...] = Field(
        default=(), description="Resource URIs hidden from the agent and refused."
    )
    prompt_allowlist: tuple[Glob, ...] | None = Field(default=None, description="The only prompts the agent may get.")
    prompt_denylist: tuple[Glob, ...] = Field(default=(), description="Prompts hidden from the agent and refused.")
    rate_limits: dict[ToolName, RateLimit] = Field(default={}, description="Limit of each tool for this agent.")
    approval_required: tuple[Glob, ...] = Field(default=(), description="Tools whose every call waits for a person.")
    second_approver: tuple[Glob, ...] = Field(
        default=(), description="Tools whose every call waits for two different people, who both have to agree."
    )
    server_requests: tuple[Literal["sampling", "elicitation", "roots"], ...] = Field(
        default=(), description="What the backend may ask of the agent; nothing unless listed."
    )


class Agent(Section):
    """One client: who it is and what it may use."""

    display_name: str | None = Field(default=None, description="Name shown to people.")
    backends: dict[Name, Access] = Field(
        default={}, description="What the agent may use; backends not listed are refused."
    )
    identities: tuple[Uid, ...] = Field(
        default=(),
        description="System users (uids) whose processes may be this agent; empty means the daemon's own user.",
    )
    auth_token: Token | None = Field(
        default=None, description="Bearer token the agent shows over HTTP; at least 16 characters."
    )
    roles: tuple[Name, ...] = Field(default=(), description="Roles, for policies.")
    attributes: dict[Name, FactValue] = Field(default={}, description="Facts about the agent, for policies.")
    tenant: Name = Field(
        default="default",
        description="Tenant the agent belongs to; this version keeps none apart, so `default` alone is taken.",
    )
    hold: Seconds | None = Field(
        default=None, description="How long a call of this agent is held for a person; see `approval.hold`."
    )


class Feishu(Section):
    """Approval requests to a Feishu or Lark bot."""

    webhook_url: Webhook = Field(default=None, description="Webhook of the bot; empty for none.")
    secret: SigningSecret | None = Field(default=None, description="Signing secret of the bot, where it has one.")


class Generic(Section):
    """Approval requests to any webhook."""

    webhook_url: Webhook = Field(default=None, description="Where requests are posted as JSON; empty for none.")
    secret: SigningSecret | None = Field(default=None, description="Signs the posts (Standard Webhooks) when set.")


class Slack(Section):
    """Approval requests to Slack: `webhook_url` for links alone, `bot_token` and `channel` for buttons."""

    webhook_url: Webhook = Field(default=None, description="Incoming webhook, which has links alone; empty for none.")
    bot_token: SigningSecret | None = Field(default=None, description="Bot token (`xoxb-…`), to send with buttons.")
    channel: ChatId | None = Field(default=None, description="Channel that the bot writes to, by its id.")
    app_token: SigningSecret | None = Field(
        default=None, description="App-level token (`xapp-…`): hears clicks by Socket Mode, without a public address."
    )
    signing_secret: SigningSecret | None = Field(
        default=None, description="Checks clicks that Slack posts to `/callback/slack`, where that is public."
    )
    approvers: dict[ChatId, Person] = Field(
        default={}, description="Who may decide there: a Slack user's id, and the person's name."
    )
    api_url: WebUrl = Field(default="https://slack.com/api", description="Where Slack's methods are, if elsewhere.")


class Discord(Section):
    """Approval requests to a Discord channel."""

    webhook_url: Webhook = Field(default=None, description="Webhook of the channel; empty for none.")


class Teams(Section):
    """Approval requests to Microsoft Teams."""

    webhook_url: Webhook = Field(default=None, description="Address of the Teams workflow; empty for none.")


class Telegram(Section):
    """Approval requests by a Telegram bot, decided there without a public address."""

    bot_token: SigningSecret | None = Field(default=None, description="The bot's token; no other program may poll it.")
    chat_id: ChatId | None = Field(default=None, description="Chat that the bot writes to, by its number or `@name`.")
    approvers: dict[ChatId, Person] = Field(
        default={}, description="Who may decide there: a Telegram user's number, in quotes, and the person's name."
    )
    api_url: WebUrl = Field(
        default="https://api.telegram.org", description="Bot API server, for those who run their own."
    )


class Ntfy(Section):
    """Approval requests by ntfy."""

    topic_url: Webhook = Field(
        default=None, description="Topic to publish to; whoever knows it reads every request, so keep it secret."
    )
    token: SigningSecret | None = Field(default=None, description="Access token for both topics, where they need one.")
    reply_topic_url: Webhook = Field(
        default=None, description="Topic for answers; whoever reads `topic_url` can decide with it. Empty: links alone."
    )


class Desktop(Section):
    """Approval requests on the desktop of the daemon's user."""

    enabled: Flag = Field(default=False, description="Shows notifications (`notify-send`, or `osascript` on macOS).")
    buttons: Flag = Field(
        default=False,
        description="Adds Approve and Reject; whoever, or whatever program, reaches the desktop then decides as you.",
    )


class Approval(Section):
    """How calls that need a person's word ask for it."""

    timeout: Timeout = Field(default=600.0, description="How long a request waits before it is refused.")
    hold: Hold = Field(
        default=AUTO,
        description="How long a call is held for a person before the agent is told to repeat it later: `auto` for what "
        "the client is known to bear, a duration, or `0s` to hold none.",
    )
    hold_clients: dict[Glob, Seconds] = Field(
        default={}, description="The same by the name that a client gives itself, or a pattern of names."
    )
    max_pending_per_agent: Count = Field(
        default=64, description="Requests one agent may have waiting; more are refused."
    )
    max_grant: Seconds = Field(
        default=28800.0, description="How long an approval may be remembered (`aegis approve --for`); `0` is never."
    )
    feishu: Feishu = Field(default=Feishu(), description="Feishu or Lark.")
    generic: Generic = Field(default=Generic(), description="Any webhook.")
    slack: Slack = Field(default=Slack(), description="Slack.")
    discord: Discord = Field(default=Discord(), description="Discord.")
    teams: Teams = Field(default=Teams(), description="Microsoft Teams.")
    telegram: Telegram = Field(default=Telegram(), description="Telegram.")
    ntfy: Ntfy = Field(default=Ntfy(), description="ntfy.")
    desktop: Desktop = Field(default=Desktop(), description="The desktop.")
    callback_base_url: WebUrl | None = Field(default=None, description="What approval links start with.")
    listen: Listen | None = Field(default=None, description="A second address that serves the approval page alone.")
    confirm: Literal["button", "code"] = Field(default="button", description="What the approval page asks for.")
    get_decides: Flag = Field(default=False, description="Lets opening a link decide; link previews then decide too.")


_BUCKET_KEYS: Final = (
    "region", "endpoint", "access_key_id", "secret_access_key", "session_token", "ca_file", "timeout",
)  # fmt: skip
"""How a bucket is reached."""


def _check_key_pair(section: Export | Witness) -> None:
    if (section.access_key_id is None) != (section.secret_access_key is None):
        raise fault(
            "`access_key_id` and `secret_access_key` belong together", "set both, or none to use the machine's role"
        )


class Export(Section):
    """One place to which the log is copied as it grows: in order, at least once, without ever holding up a call."""

    type: Literal["jsonl", "hec", "syslog", "security_lake"] = Field(
        description="What it is: a file of JSON lines, Splunk's HTTP event collector, a syslog receiver, or a lake "
        "of Parquet files as Amazon Security Lake lays it out."
    )
    format: Literal["ocsf", "aegis", "cef"] | None = Field(
        default=None,
        description="How events are written; `ocsf` (1.8.0; 1.1.0 in a lake) by default, and `cef` over syslog.",
    )
    begin: Literal["start", "now"] = Field(
        default="start", description="Where a new export begins: with the first record there is, or with the next one."
    )
    bodies: Flag = Field(
        default=True, description="Whether arguments and results go along, as far as the log has them."
    )
    keep: Flag = Field(
        default=False, description="Keeps what this export has not had yet, even beyond `audit.retention_days`."
    )
    path: PathText | None = Field(
        default=None,
        description="Of `jsonl`: the file, which gets only new lines; of `security_lake`: a directory instead of a "
        "bucket. It counts from the config file.",
    )
    rotate_mb: Count = Field(
        default=100,
        description="Of `jsonl`: size at which a file is finished and the next one begun, beside every day.",
    )
    url: WebUrl | None = Field(default=None, description="Of `hec`: the collector, like `https://splunk.example:8088`.")
    token: CollectorToken | None = Field(default=None, description="Of `hec`: its token.")
    ack: Flag = Field(
        default=False, description="Of `hec`: waits for indexer acknowledgement, which the token has to have enabled."
    )
    ack_timeout: Timeout = Field(
        default=60.0, description="Of `hec`: how long before what is not indexed is sent again."
    )
    index: Name | None = Field(default=None, description="Of `hec`: the index; the token's own by default.")
    source: Name = Field(default="aegis", description="Of `hec`: the source.")
    sourcetype: Name | None = Field(
        default=None, description="Of `hec`: the source type; `aegis:ocsf` and the like by default."
    )
    address: SyslogAddress | None = Field(
        default=None,
        description="Of `syslog`: `udp://host:514`, `tcp://host:514`, `tls://host:6514` or `unix:///dev/log`.",
    )
    facility: Annotated[int, Field(strict=True, ge=0, le=23), Kind("number")] = Field(
        default=13, description="Of `syslog`: the facility's number (RFC 5424); 13 is log audit."
    )
    max_bytes: Annotated[int, Field(strict=True, ge=1024, le=60_000), Kind("number")] = Field(
        default=8192,
        description="Of `syslog`: longest message; an event that would be longer goes without arguments and result.",
    )
    host: HostName | None = Field(
        default=None,
        description="Of `hec` and `syslog`: the name under which this machine appears; its own by default.",
    )
    bucket: Name | None = Field(default=None, description="Of `security_lake`: the bucket of S3 it writes to.")
    lake_source: Name = Field(
        default="aegis",
        description="Of `security_lake`: what its sources begin with; they are `aegis-api` and so on, one a class.",
    )
    classes: tuple[Literal["api", "finding", "entity", "lifecycle"], ...] = Field(
        default=("api", "finding", "entity", "lifecycle"),
        min_length=1,
        description="Of `security_lake`: what it gets of calls and approvals (`api`, OCSF class 6003), changed "
        "definitions (`finding`, 2004), changes of Aegis (`entity`, 3004), and starts and stops (`lifecycle`, 6002).",
    )
    region: Name = Field(default="us-east-1", description="Of `security_lake`: the region, of the bucket as in paths.")
    account: Name = Field(
        default="external", description="Of `security_lake`: the account's number in paths, where there is one."
    )
    every: Timeout = Field(
        default=300.0, description="Of `security_lake`: how long events gather before they are written to a file."
    )
    endpoint: WebUrl | None = Field(
        default=None, description="Of `security_lake`: address of a store that is not AWS's and speaks S3."
    )
    access_key_id: SigningSecret | None = Field(
        default=None,
        description="Of `security_lake`: its access key; else that of the environment, or of the machine's role.",
    )
    secret_access_key: SigningSecret | None = Field(
        default=None, description="Of `security_lake`: the access key's secret."
    )
    session_token: SigningSecret | None = Field(
        default=None, description="Of `security_lake`: the session token that goes with a temporary key."
    )
    ca_file: PathText | None = Field(
        default=None,
        description="Certificates to trust instead of the system's (`security_lake`: beside them); counts from the "
        "config file.",
    )
    timeout: Timeout = Field(default=30.0, description="Longest wait for the receiver.")

    @model_validator(mode="after")
    def _is_whole(self) -> Export:
        needs, may = _EXPORT_KEYS[self.type]
        for key in needs:
            if getattr(self, key) is None:
                raise fault(f"an export of type `{self.type}` needs `{key}`", f"add `{key}`")
        for key in sorted(self.model_fields_set - {"type", "format", "begin", "bodies", "keep"} - {*needs, *may}):
            raise fault(f"`{key}` does nothing for an export of type `{self.type}`", f"remove `{key}`")
        if self.format == "cef" and self.type != "syslog":
            raise fault(f"`cef` is not written by an export of type `{self.type}`", "write `ocsf` or `aegis`")
        if self.type == "security_lake":
            if self.format not in (None, "ocsf"):
                raise fault("a lake holds OCSF alone", "remove `format`")
            if self.path is not None and self.bucket is not None:
                raise fault("a lake is a directory or a bucket, not both", "remove `path` or `bucket`")
            if self.path is None and self.bucket is None:
                raise fault("an export of type `security_lake` needs `path` or `bucket`", "set one of them")
        _check_key_pair(self)
        return self


_EXPORT_KEYS: Final[dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "jsonl": (("path",), ("rotate_mb",)),
    "hec": (
        ("url", "token"),
        ("ack", "ack_timeout", "index", "source", "sourcetype", "host", "ca_file", "timeout"),
    ),
    "syslog": (("address",), ("facility", "host", "max_bytes", "ca_file", "timeout")),
    "security_lake": (
        (),
        ("path", "lake_source", "classes", "account", "every", "bucket", *_BUCKET_KEYS),
    ),
}
"""Of each type of export: the keys it needs, and those it may have beside the ones that all have."""


class Checkpoints(Section):
    """When what the log holds is signed."""

    every: Count = Field(default=1000, description="Records after which a checkpoint is signed at once.")
    seconds: Timeout = Field(default=10.0, description="Longest time that a record waits for its checkpoint.")


class Witness(Section):
    """One place that gets each signed checkpoint, to keep it where the daemon cannot change it."""

    type: Literal["file", "http", "s3"] = Field(
        description="What it is: a file to which checkpoints are appended, a URL to which they are posted, or a bucket "
        "of S3 in which each is an object that is never overwritten."
    )
    path: PathText | None = Field(
        default=None,
        description="Of `file`: the file, counting from the config file; better another user's, only to append to.",
    )
    url: WebUrl | None = Field(default=None, description="Of `http`: where checkpoints are posted.")
    token: Token | None = Field(default=None, description="Of `http`: sent as a bearer token.")
    bucket: Name | None = Field(default=None, description="Of `s3`: the bucket; it should have Object Lock.")
    region: Name = Field(default="us-east-1", description="Of `s3`: the bucket's region.")
    endpoint: WebUrl | None = Field(
        default=None, description="Of `s3`: address of a store that is not AWS's and speaks S3."
    )
    access_key_id: SigningSecret | None = Field(
        default=None, description="Of `s3`: the access key; else that of the environment, or of the machine's role."
    )
    secret_access_key: SigningSecret | None = Field(default=None, description="Of `s3`: the access key's secret.")
    session_token: SigningSecret | None = Field(
        default=None, description="Of `s3`: the session token that goes with a temporary key."
    )
    ca_file: PathText | None = Field(
        default=None,
        description="Of `http` and `s3`: certificates to trust beside the system's, or instead of them (`http`); "
        "counts from the config file.",
    )
    timeout: Timeout = Field(default=30.0, description="Of `http` and `s3`: longest wait for the answer.")

    @model_validator(mode="after")
    def _is_whole(self) -> Witness:
        needs, may = _WITNESS_KEYS[self.type]
        if getattr(self, needs) is None:
            raise fault(f"a witness of type `{self.type}` needs `{needs}`", f"add `{needs}`")
        for key in sorted(self.model_fields_set - {"type", needs, *may}):
            raise fault(f"`{key}` does nothing for a witness of type `{self.type}`", f"remove `{key}`")
        _check_key_pair(self)
        return self


_WITNESS_KEYS: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "file": ("path", ()),
    "http": ("url", ("token", "ca_file", "timeout")),
    "s3": ("bucket", _BUCKET_KEYS),
}
"""Of each type of witness: the key it needs, and those it may have."""


class Audit(Section):
    """The log of every governed request."""

    db_path: PathText | None = Field(
        default=None,
        description="The log's file, counting from the config file; `audit.db` in the state directory by default.",
    )
    retention_days: Count | None = Field(
        default=None,
        description="Days for which records are kept; then they are purged but for their hashes. For ever by default.",
    )
    durability: Literal["full", "process"] = Field(
        default="full",
        description="What a record survives: `full` a power loss, `process` any crash but the machine's.",
    )
    bodies_days: Count | None = Field(
        default=None, description="Days for which arguments and results are kept, where that is less."
    )
    max_size: Count = Field(
        default=10_240, description="MiB of the log's file (and of its backlog) from which `aegis status` warns."
    )
    exports: dict[Name, Export] = Field(default={}, description="Where the log is copied to, by name.")
    key_file: PathText | None = Field(
        default=None,
        description="The key that signs checkpoints, counting from the config file; `audit.key` beside it by default.",
    )
    checkpoints: Checkpoints = Field(default=Checkpoints(), description="How soon the log is signed.")
    witnesses: dict[Name, Witness] = Field(
        default={}, description="Who gets each signed checkpoint, by name, to keep it for `aegis audit verify`."
    )


class Otlp(Section):
    """The collector that gets traces and numbers, by OTLP over HTTP."""

    endpoint: WebUrl = Field(description="Its address before `/v1/traces`, like `http://localhost:4318`.")
    protocol: Literal["http/protobuf"] = Field(default="http/protobuf", description="How it is spoken to.")
    headers: Annotated[dict[Header, HeaderText], BeforeValidator(_hide_all)] = Field(
        default={}, description="Headers that it wants, such as a key; `${env:NAME}` and `${file:PATH}` work."
    )
    traces: Flag = Field(default=True, description="Sends the spans of every call that is sampled.")
    sample: Annotated[float, Field(ge=0, le=1), Kind("number")] = Field(
        default=1.0,
        description="Share of calls that are sampled where the client's trace does not say so itself.",
    )
    metrics: Seconds = Field(default=60.0, description="How often the numbers of `/metrics` are sent; `0` for never.")
    service: Name = Field(default="aegis", description="The name of this daemon in traces (`service.name`).")
    resource: dict[Name, Text] = Field(default={}, description="More that is true of all that is sent, by attribute.")
    ca_file: PathText | None = Field(
        default=None, description="Certificates to trust instead of the system's; counts from the config file."
    )
    timeout: Timeout = Field(default=10.0, description="Longest wait for its answer.")


class Telemetry(Section):
    """What operators see of the daemon in numbers and traces; never arguments or results."""

    metrics: Flag = Field(default=True, description="Counts calls for `/metrics`.")
    tools: Annotated[int, Field(strict=True, ge=0, le=10_000), Kind("number")] = Field(
        default=0, description="How many tools get numbers of their own; the others are counted together."
    )
    otlp: Otlp | None = Field(default=None, description="An OpenTelemetry collector.")
    from_environment: Flag = Field(
        default=False,
        description="Takes what `otlp` leaves out from `OTEL_EXPORTER_OTLP_*`, `OTEL_SERVICE_NAME` and the like.",
    )


class Logging(Section):
    """The daemon's own log, `aegis logs`; what agents did is in the audit log."""

    format: Literal["text", "json"] = Field(default="text", description="Lines for people, or a JSON object each.")
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least that is written."
    )
    calls: Flag = Field(default=False, description="Writes a line for every call that ended, without its arguments.")
    rotate_mb: Count = Field(default=20, description="Size in MiB at which the log's file is begun anew.")
    files: Annotated[int, Field(strict=True, ge=0, le=100), Kind("number")] = Field(
        default=3, description="How many earlier files are kept, as `daemon.log.1` and so on."
    )


class Defaults(Section):
    """What is done with what no rule lists."""

    unlisted: Literal["deny", "observe"] = Field(
        default="deny",
        description="What happens to agents and backends that no rule lists: refused, or passed and recorded.",
    )


class ToolRules(Section):
    """Tools named for every agent and backend, by their own name or as `backend.tool`."""

    tools: tuple[Glob, ...] = Field(default=(), description="Tool names or patterns, each `tool` or `backend.tool`.")


class Pins(Section):
    """What a server says of its tools, prompts and templates is remembered, and a change stops them."""

    first_seen: Literal["trust", "hold"] = Field(
        default="trust",
        description="What is seen for the first time: taken for what it is, or not usable until a person trusts it.",
    )
    recheck: Timeout = Field(
        default=3600.0,
        description="How often a server in use is asked for its lists again, unless its clients do.",
    )


class ArgumentRule(Section):
    """What one argument has to be; all that is said has to hold, and it has to be there."""

    optional: Flag = Field(default=False, description="Lets a call leave the argument out.")
    each: Flag = Field(default=False, description="Takes a list, too, every item of which has to be so.")
    under: tuple[Root, ...] = Field(
        default=(),
        description="Directories below which the path has to lie, in every reading; symbolic links are not followed.",
    )
    hosts: tuple[RuleHost, ...] = Field(
        default=(), description="Hosts the URL may lead to: `name`, `*.name`, `name:port`, `1.2.3.4` or `[::1]`."
    )
    schemes: tuple[Scheme, ...] = Field(default=(), description="Schemes the URL may have; `https` where none is said.")
    domains: tuple[RuleHost, ...] = Field(
        default=(), description="Domains the e-mail address may be in: `name` or `*.name`."
    )
    least: Amount | None = Field(
        default=None, validation_alias="min", serialization_alias="min", description="The smallest number allowed."
    )
    most: Amount | None = Field(
        default=None, validation_alias="max", serialization_alias="max", description="The largest number allowed."
    )
    whole: Flag = Field(default=False, description="Allows whole numbers alone.")
    one_of: tuple[SingleValue, ...] = Field(default=(), description="The only values allowed.")
    matches: Pattern | None = Field(
        default=None, description="What the whole text has to match, in RE2's syntax; never slow, whatever the text."
    )
    max_length: Count | None = Field(default=None, description="The most characters the text may have.")

    @model_validator(mode="after")
    def _can_hold(self) -> ArgumentRule:
        number = self.least is not None or self.most is not None or self.whole
        forms = {
            "a number (`min`, `max`, `whole`)": number,
            "a path (`under`)": bool(self.under),
            "a URL (`hosts`, `schemes`)": bool(self.hosts or self.schemes),
            "an address (`domains`)": bool(self.domains),
        }
        wanted = [form for form, is_wanted in forms.items() if is_wanted]
        if number and (self.matches is not None or self.max_length is not None):
            wanted.append("a text (`matches`, `max_length`)")
        if len(wanted) > 1:
            raise fault(f"nothing is {' and '.join(wanted)} at once", "keep one of them")
        if self.least is not None and self.most is not None and self.least > self.most:
            raise fault(f"`min` of {self.least} is larger than `max` of {self.most}", "swap or change them")
        return self


class Budget(Section):
    """How much the values of an argument may add up to in any window, whatever the number of calls."""

    most: Amount = Field(
        validation_alias="max", serialization_alias="max", description="What may be spent in any one window."
    )
    window_s: Timeout = Field(
        validation_alias="window", serialization_alias="window", description="Length of the sliding window."
    )
    per: Literal["all", "agent"] = Field(
        default="all", description="Whose spending counts together: that of `all` agents, or each `agent`'s apart."
    )
    optional: Flag = Field(default=False, description="Lets a call leave the argument out; it then spends nothing.")

    @model_validator(mode="after")
    def _is_positive(self) -> Budget:
        if self.most < 0:
            raise fault(f"a budget of {self.most} is below zero", "write `0` to allow no spending, or deny the tool")
        return self


class Constraint(Section):
    """What a tool's arguments have to be, whoever calls it; anything that cannot be told is refused."""

    operations: tuple[Operation, ...] = Field(
        default=(), description="What the tool's SQL may do: `SELECT`, `INSERT`, `UPDATE`, `DELETE`, `MERGE`."
    )
    argument: ArgumentName | None = Field(
        default=None,
        description="Which argument holds the SQL; else each of `sql`, `query` and `statement` that is there.",
    )
    dialect: Dialects | None = Field(
        default=None,
        description="How the database reads SQL; without it the SQL has to pass as postgres, mysql, sqlite and tsql.",
    )
    functions: tuple[Name, ...] = Field(
        default=(), description="SQL functions allowed beside the harmless standard ones, with their schema if any."
    )
    arguments: dict[ArgumentName, ArgumentRule] = Field(default={}, description="What each argument has to be.")
    extra: Literal["allow", "forbid"] = Field(
        default="allow", description="Whether arguments may be sent of which no rule says anything."
    )
    budgets: dict[ArgumentName, Budget] = Field(
        default={}, description="How much the values of an argument may add up to."
    )

    @model_validator(mode="after")
    def _says_something(self) -> Constraint:
        if not self.operations and (self.argument is not None or self.dialect is not None or self.functions):
            raise fault("`argument`, `dialect` and `functions` do nothing without `operations`", "add `operations`")
        if not (self.operations or self.arguments or self.budgets or self.extra == "forbid"):
            raise fault("the constraint says nothing", "add `operations`, `arguments` or `budgets`, or remove it")
        return self


class Transform(Section):
    """What is taken out of a tool's arguments before they are logged, and of its answers before anybody sees them."""

    redact: tuple[JsonPath, ...] = Field(
        default=(), description="JSONPaths (RFC 9535) of what is replaced, from `$.request` and `$.response`."
    )
    unreadable: Literal["withhold", "pass"] = Field(
        default="withhold",
        description="What becomes of content that no path reaches, such as prose and images.",
    )

    @model_validator(mode="after")
    def _says_something(self) -> Transform:
        if not self.redact:
            raise fault("the transform says nothing", "add `redact`, or remove it")
        return self


class Secrets(Section):
    """What looks like a credential, and where it is replaced; the secrets of this file are replaced everywhere."""

    log: Literal["redact", "off"] = Field(
        default="redact",
        description="Replaces what looks like a credential in the log, on pages, in messages and in the API.",
    )
    answers: Literal["off", "redact", "withhold"] = Field(
        default="off",
        description="Does the same in what servers say, before agents get it; `withhold` drops the whole message.",
    )
    allow: tuple[SecretKind, ...] = Field(
        default=(),
        description="Kinds that are left alone, like `jwt`, and variables that hold no secret, as `env:NAME`.",
    )


class Policy(Section):
    """Policies in Cedar, which every call has to be permitted by as soon as there is one."""

    evaluator: Literal["cedar"] = Field(default="cedar", description="The language of the policies.")
    fail_mode: Literal["closed"] = Field(
        default="closed",
        validation_alias="failMode",
        serialization_alias="failMode",
        description="What happens to a call that cannot be judged: it is refused.",
    )
    files: tuple[PathText, ...] = Field(default=(), description="Files of policies; they count from the config file.")
    text: PolicyText | None = Field(default=None, description="Policies written right here.")

    _statements: tuple[Statement, ...] = PrivateAttr(default=())

    @property
    def statements(self) -> tuple[Statement, ...]:
        """What the loader read from `files` and `text`."""
        return self._statements

    def holding(self, statements: tuple[Statement, ...], files: tuple[str, ...]) -> Policy:
        """The same, with what was read, and where from."""
        made = self.model_copy(update={"files": files})
        made._statements = statements
        return made


def called(call: str, backends: Iterable[str]) -> tuple[str, str] | None:
    """Backend and tool of `backend.tool`, by the longest backend of that name; None where there is none."""
    found = max((name for name in backends if call.startswith(f"{name}.")), key=len, default=None)
    return None if found is None or len(call) == len(found) + 1 else (found, call[len(found) + 1 :])


class Proof(Section):
    """A tool call that must be refused, now and whenever the rules change."""

    agent: Name = Field(description="The agent that calls.")
    call: ProvedCall = Field(description="The tool, as `backend.tool`.")
    arguments: JsonMapping = Field(default={}, description="The arguments of the call.")


class Config(Section):
    """One whole configuration; what is left out has its default, and an empty one denies everything."""

    mode: Literal["enforce", "observe"] = Field(
        default="enforce",
        description="`observe` lets calls pass that a rule would refuse, and records that it would have.",
    )
    denials: Literal["auto", "error", "tool_result"] = Field(
        default="auto",
        description="How refusals read: JSON-RPC errors, tool results, or what suits the protocol version.",
    )
    defaults: Defaults = Field(default=Defaults(), description="What holds where nothing else is said.")
    server: Server = Field(default=Server(), description="The HTTP address, and what may be in flight.")
    backends: dict[BackendName, Backend] = Field(default={}, description="The MCP servers, by name.")
    queue: dict[Name, Queue] = Field(default={}, description="Lanes and limits over all agents, by backend.")
    agents: dict[Name, Agent] = Field(default={}, description="The clients, by name.")
    deny: ToolRules = Field(default=ToolRules(), description="Tools refused to every agent, whatever else allows them.")
    allow: ToolRules | None = Field(default=None, description="If given, the only tools that any agent may call.")
    constraints: dict[GovernedTool, Constraint] = Field(
        default={}, description="What arguments have to be, by tool name or `backend.tool`, for every agent."
    )
    transforms: dict[GovernedTool, Transform] = Field(
        default={}, description="What is redacted, by tool name or `backend.tool`, for every agent."
    )
    secrets: Secrets = Field(default=Secrets(), description="What must not be seen, wherever it turns up.")
    policy: Policy = Field(default=Policy(), description="Policies, down to the argument.")
    proof: tuple[Proof, ...] = Field(
        default=(),
        description="Calls that must be refused, on which the daemon tries its rules before it goes by them.",
    )
    approval: Approval = Field(default=Approval(), description="How a person is asked.")
    pins: Pins = Field(default=Pins(), description="What servers say of themselves, and what follows when it changes.")
    audit: Audit = Field(default=Audit(), description="The log.")
    telemetry: Telemetry = Field(default=Telemetry(), description="Numbers and traces.")
    logging: Logging = Field(default=Logging(), description="The daemon's own log.")

    _looked_up: frozenset[tuple[str, Secret]] = PrivateAttr(default=frozenset())

    @property
    def looked_up(self) -> frozenset[tuple[str, Secret]]:
        """What stands in the place of `${env:NAME}` and `${file:PATH}`, each with that name, as `env:NAME`."""
        return self._looked_up

    def knowing(self, looked_up: Iterable[tuple[str, str]]) -> Config:
        """The same, with what was looked up for it."""
        made = self.model_copy()
        made._looked_up = frozenset((name, Secret(text)) for name, text in looked_up)
        return made


# --- what this version knows but does not do


class NotYet(msgspec.Struct, frozen=True):
    """A key that is known and not yet acted on: refused where ignoring it would leave a rule unenforced."""

    path: tuple[str, ...]
    """Keys from the top; `*` stands for any one."""
    refused: bool
    message: str
    hint: str


NOT_YET: Final = (
    NotYet(
        ("backends", "*", "resilience"),
        True,
        "retries and circuit breakers are not supported by this version",
        "remove `resilience`; `timeout` holds without it",
    ),
    NotYet(
        ("backends", "*", "tools_idempotent"),
        False,
        "this version never repeats a call by itself",
        "it can stay for a later one",
    ),
)
"""In the order of the models. A key whose feature arrives loses its row here, and that is all there is to do."""
