"""The document that describes the API is made from the rows that serve it, so it cannot say anything else.

OpenAPI 3.1.1, JSON Schema 2020-12.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import msgspec
from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from aegis_daemon.manage import shapes
from aegis_daemon.manage.api import Permit

_REF: Final = "#/components/schemas/{model}"
_PROBLEM: Final = {"$ref": _REF.format(model="Problem")}
HTML: Final = {"text/html": {"schema": {"type": "string"}}}
_WHY: Final = {
    400: "A parameter is missing or has a value that it cannot have.",
    401: "No credential, or a wrong one; after too many wrong ones, any (`Retry-After` says for how long).",
    403: "The credential may not do this, or a page of another site sent the request.",
    404: "There is no such thing, or it was decided before.",
    408: "The body did not come in time.",
    410: "It is over: decided before, or expired; the text says by whom, when, and what became of it.",
    413: "The body is too large.",
    415: "The body is not of the type named here.",
    422: "The request can be read and says something that cannot be.",
    500: "A fault of the daemon's; its log says more.",
    503: "Something that is needed does not answer now.",
}
_OK: Final = 200


class Row(msgspec.Struct, frozen=True):
    """One operation of the API, and everything that is said and checked of it before its handler runs.

    `permit` is None where anybody may ask. `handler(web, request, caller, ask)` gives the answer's shape.
    """

    method: str
    path: str
    permit: Permit | None
    handler: Callable[..., Awaitable[Any]]
    answer: Any
    summary: str
    path_params: Mapping[str, dict[str, Any]] = {}
    query: type[shapes.Request] | None = None
    body: type[shapes.Request] | None = None
    refusals: tuple[int, ...] = ()
    """Statuses beside those that follow from the rest of the row."""

    @property
    def statuses(self) -> tuple[int, ...]:
        """Every status but 200 that the operation may have."""
        found = {500, 503, *self.refusals}
        if self.permit is not None:
            found |= {401, 403}
        if self.query is not None:
            found |= {422}
        if self.method == "POST":
            found |= {408, 413, 415, 422}
        return tuple(sorted(found))


class PageRow(msgspec.Struct, frozen=True):
    """One operation of the approval page, as people's browsers use it."""

    method: str
    path: str
    summary: str
    statuses: tuple[int, ...]
    body: type[shapes.Request] | None = None
    """What a program sends as JSON in place of the form, which is answered in JSON too."""
    answer: Any = None


class OtherRow(msgspec.Struct, frozen=True):
    """What is served beside the API and is no JSON: `types` are the media types of a 200, empty where it has no body.

    `takes` is the media type of the body that it is sent.
    """

    method: str
    path: str
    permit: Permit | None
    summary: str
    name: str
    types: tuple[str, ...] = ()
    statuses: tuple[int, ...] = ()
    takes: str = ""


def document(
    rows: Sequence[Row],
    pages: Sequence[PageRow],
    others: Sequence[OtherRow],
    *,
    version: str,
    security: Mapping[Permit, Sequence[Any]],
) -> dict[str, Any]:
    """The whole document. `security` is what each permit takes at present."""
    models: list[tuple[Any, JsonSchemaMode, TypeAdapter[Any]]] = [
        (shapes.Problem, "serialization", TypeAdapter(shapes.Problem))
    ]
    models += [(row.answer, "serialization", TypeAdapter(row.answer)) for row in rows]
    models += [(row.body, "validation", TypeAdapter(row.body)) for row in rows if row.body is not None]
    models += [(page.body, "validation", TypeAdapter(page.body)) for page in pages if page.body is not None]
    models += [(page.answer, "serialization", TypeAdapter(page.answer)) for page in pages if page.answer is not None]
    made, definitions = TypeAdapter.json_schemas([(key, mode, of) for key, mode, of in models], ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for row in rows:
        paths.setdefault(row.path, {})[row.method.lower()] = _operation(row, made, security)
    for page in pages:
        paths.setdefault(page.path, {})[page.method.lower()] = _page(page, made)
    for other in others:
        paths.setdefault(other.path, {})[other.method.lower()] = _other(other, security)
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "Aegis management API",
            "version": version,
            "description": "What people may ask of the daemon over HTTP. Instants are RFC 3339 in UTC.",
        },
        "paths": paths,
        "components": {
            "schemas": definitions.get("$defs", {}),
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "`server.api_token`, or `server.read_token` to read alone; where neither is set, "
                    "the content of the approver key file, from the daemon's own machine.",
                }
            },
        },
    }


def _operation(
    row: Row, made: Mapping[Any, dict[str, Any]], security: Mapping[Permit, Sequence[Any]]
) -> dict[str, Any]:
    answer = made[row.answer, "serialization"]
    operation: dict[str, Any] = {
        "operationId": row.handler.__name__,
        "summary": row.summary,
        "security": list(security[row.permit]) if row.permit is not None else [],
        "responses": {
            "200": {"description": "Done.", "content": {"application/json": {"schema": answer}}},
            **{str(status): _refusal(status) for status in row.statuses},
        },
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": schema} for name, schema in row.path_params.items()
    ]
    if row.query is not None:
        for name, schema in row.query.model_json_schema()["properties"].items():
            parameters.append({"name": name, "in": "query", "required": False, "schema": schema})
    if parameters:
        operation["parameters"] = parameters
    if row.body is not None:
        content = {"application/json": {"schema": made[row.body, "validation"]}}
        operation["requestBody"] = {"required": False, "content": content}
    return operation


def _refusal(status: int) -> dict[str, Any]:
    described: dict[str, Any] = {
        "description": f"{HTTPStatus(status).phrase}. {_WHY[status]}",
        "content": {"application/json": {"schema": _PROBLEM}},
    }
    if status == 401:
        described["headers"] = {"WWW-Authenticate": {"required": True, "schema": {"type": "string"}}}
    return described


def _other(other: OtherRow, security: Mapping[Permit, Sequence[Any]]) -> dict[str, Any]:
    done: dict[str, Any] = {"description": "Done."}
    if other.types:
        done["content"] = {kind: {"schema": {"type": "string"}} for kind in other.types}
    operation: dict[str, Any] = {
        "operationId": other.name,
        "summary": other.summary,
        "security": list(security[other.permit]) if other.permit is not None else [],
        "responses": {"200": done, **{str(status): _refusal(status) for status in other.statuses}},
    }
    if other.takes:
        operation["requestBody"] = {"required": True, "content": {other.takes: {"schema": {"type": "object"}}}}
    return operation


def _page(page: PageRow, made: Mapping[Any, dict[str, Any]]) -> dict[str, Any]:
    texts = {
        "id": {"type": "string", "minLength": 1, "maxLength": shapes.ID_MAX},
        "action": {"enum": ["approve", "reject"]},
        "token": {"type": "string", "minLength": 1, "maxLength": shapes.TOKEN_MAX},
    }
    statuses = {status: _WHY.get(status, "The page.") for status in (_OK, *page.statuses)}
    operation: dict[str, Any] = {
        "operationId": f"{page.method.lower()}_approval_page",
        "summary": page.summary,
        "security": [],
        "responses": {
            str(status): {"description": f"{HTTPStatus(status).phrase}. {why}", "content": HTML}
            for status, why in statuses.items()
        },
    }
    if page.body is None:
        operation["parameters"] = [
            {"name": name, "in": "query", "required": True, "schema": schema} for name, schema in texts.items()
        ]
    else:
        # A browser sends the first three in the address, where its page is.
        code = {"type": "string", "pattern": "^[0-9]{6}$", "description": "Where `approval.confirm` is `code`."}
        form = {
            "type": "object",
            "required": list(texts),
            "properties": {
                **texts,
                "form": {"type": "string", "description": "What the page's own form has; good once."},
                "decision": {"enum": ["approve", "reject"], "description": "By default what the link is for."},
                "code": code,
                "note": {"type": "string", "maxLength": shapes.NOTE_MAX},
            },
        }
        operation["requestBody"] = {
            "required": True,
            "content": {
                "application/x-www-form-urlencoded": {"schema": form},
                "application/json": {"schema": made[page.body, "validation"]},
            },
        }
        for status, response in operation["responses"].items():
            answer = made[page.answer, "serialization"] if status == str(_OK) else _PROBLEM
            response["content"] = {**HTML, "application/json": {"schema": answer}}
    return operation
