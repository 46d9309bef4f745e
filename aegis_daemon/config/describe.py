"""What the settings are, told from the models alone: the JSON Schema, the table of settings, the masked dump."""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files
from types import UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

import msgspec
from pydantic.fields import FieldInfo

from aegis_daemon.config.schema import NOT_YET, Config, Kind, Secret, Section
from aegis_daemon.core.units import short_duration

_PLACEHOLDER: Final = {
    "backends": "<backend>",
    "queue": "<backend>",
    "agents": "<agent>",
    "approvers": "<user>",
    "rate_limits": "<tool>",
    "global_rate_limits": "<tool>",
    "constraints": "<tool>",
    "transforms": "<tool>",
    "arguments": "<argument>",
    "budgets": "<argument>",
    "proof": "<n>",
    "exports": "<export>",
    "resource": "<attribute>",
    "witnesses": "<witness>",
}


class Shape(msgspec.Struct):
    """What may stand at one place: a section's keys, a table's values under any key, or a value."""

    kind: Literal["section", "table", "value"]
    type: str
    keys: dict[str, Shape] = {}
    item: Shape | None = None
    default: Any = None
    required: bool = False
    description: str = ""

    def below(self, path: tuple[str | int, ...]) -> Shape | None:
        """The shape at a path from here; None where no setting is."""
        here: Shape | None = self
        for step in path:
            if here is None or here.kind == "value":
                return None
            here = here.item if here.kind == "table" else here.keys.get(str(step))
        return here


def _shape(annotation: Any, kinds: tuple[str, ...] = ()) -> Shape:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        named = tuple(extra.name for extra in args[1:] if isinstance(extra, Kind))
        return _shape(args[0], named or kinds)
    if isinstance(annotation, type) and issubclass(annotation, Section):
        keys = {_key(name, field): _field(field) for name, field in annotation.model_fields.items()}
        return Shape("section", "mapping", keys)
    if kinds:
        return Shape("value", kinds[0])
    if origin in (Union, UnionType):
        (found,) = (one for one in args if one is not type(None))
        return _shape(found)
    if origin is dict:
        return Shape("table", "mapping", item=_shape(args[1]))
    if origin is tuple and isinstance(args[0], type) and issubclass(args[0], Section):
        return Shape("table", "list", item=_shape(args[0]))
    if origin is tuple:
        return Shape("value", f"list of {_plural(_shape(args[0]).type)}")
    if origin is Literal:
        return Shape("value", " or ".join(f"`{one}`" for one in args))
    return Shape("value", {str: "text", Secret: "secret"}[annotation])


def _plural(name: str) -> str:
    return name if name.startswith("`") else f"{name}s"


def _field(field: FieldInfo) -> Shape:
    kinds = tuple(extra.name for extra in field.metadata if isinstance(extra, Kind))
    shape = _shape(field.annotation, kinds)
    shape.default = None if field.is_required() else field.default
    shape.required = field.is_required()
    shape.description = field.description or ""
    return shape


def _key(name: str, field: FieldInfo) -> str:
    return field.validation_alias if isinstance(field.validation_alias, str) else name


SHAPE: Final = _shape(Config)
"""The whole file."""


def places(name: str) -> list[str]:
    """Every place, dotted, where a key of this name may stand."""
    return [path for path, _ in _walk(SHAPE, "") if path.rpartition(".")[2] == name]


def _walk(shape: Shape, path: str) -> list[tuple[str, Shape]]:
    found: list[tuple[str, Shape]] = []
    for name, below in shape.keys.items():
        here = f"{path}.{name}" if path else name
        found.append((here, below))
        while below.kind == "table" and below.item is not None:
            here = f"{here}.{_PLACEHOLDER.get(name, '<name>')}"
            below = below.item
            if below.kind == "value":
                found.append((here, below))
        found.extend(_walk(below, here))
    return found


def describe_settings() -> list[tuple[str, str, str, str]]:
    """`(path, type, default, description)` of every setting, in the order of the file; `<agent>` stands for a name."""
    rows: list[tuple[str, str, str, str]] = []
    table = Shape("table", "")
    for path, shape in _walk(SHAPE, ""):
        if shape.kind == "table":
            table = shape
        elif shape.kind == "value":
            description = shape.description or table.description
            rows.append((path, shape.type, _default(shape), description))
    return rows


def _default(shape: Shape) -> str:
    value = shape.default
    if shape.required:
        return "required"
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if shape.type == "duration":
        return short_duration(value)
    if value == ():
        return "[]"
    return str(value)


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of the file, for editors. Names that refer to each other are checked by `load` alone."""
    schema = Config.model_json_schema(by_alias=True)
    refused = {row.path[0]: row for row in NOT_YET if row.refused and row.path[0] not in Config.model_fields}
    for name, row in refused.items():
        schema["properties"][name] = {"not": {}, "description": f"{row.message}; {row.hint}"}
    _untitle(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "aegis.yaml"}


def _untitle(schema: Any) -> None:
    # pydantic titles every property after its name, which editors show in place of the description
    if isinstance(schema, dict):
        if isinstance(schema.get("title"), str):
            del schema["title"]
        for value in schema.values():
            _untitle(value)
    elif isinstance(schema, list):
        for value in schema:
            _untitle(value)


def masked(config: Config) -> dict[str, Any]:
    """The whole configuration, defaults filled in, as plain JSON values under the file's own keys; secrets masked."""
    return config.model_dump(mode="json", by_alias=True)


def digest(config: Config) -> str:
    """Hex SHA-256 that is equal where the settings are, however they were written; 64 characters.

    Values left at their default do not enter, so that a version with more settings gives the same digest. Neither do
    secrets, whose digest would let a weak one be guessed: a rotated token changes nothing here.
    """
    kept = config.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    if config.policy.statements:  # what is in the files, which alone are named here
        kept["policy"]["statements"] = [[one.id, one.est] for one in config.policy.statements]
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def starter() -> str:
    """The commented file that `aegis config init` writes; loads without a warning."""
    return files("aegis_daemon.config").joinpath("starter.yaml").read_text(encoding="utf-8")
