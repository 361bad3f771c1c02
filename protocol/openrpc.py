"""The method table as documents: OpenRPC, and JSON Schema. Pure; generated from the types that validate the params."""

from collections.abc import Mapping
from inspect import cleandoc
from typing import Any, Final, TypeAlias, cast

import msgspec

from protocol.errors import Code
from protocol.methods import Method, MethodTable

OPENRPC: Final = "1.3.2"
DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

Document: TypeAlias = dict[str, object]

ERRORS: Final[Mapping[int, str]] = {
    Code.PARSE_ERROR: "Parse error",
    Code.INVALID_REQUEST: "Invalid Request",
    Code.METHOD_NOT_FOUND: "Method not found",
    Code.INVALID_PARAMS: "Invalid params",
    Code.INTERNAL_ERROR: "Internal error",
    Code.CLOSED: "The connection is closed",
    Code.BUSY: "Too many requests are waiting",
    Code.CANCELLED: "Request cancelled",
}
"""What any method of any peer may be answered with."""

_COMPONENTS: Final = "#/components/schemas/{name}"


def describe(table: MethodTable, *, title: str, version: str, errors: Mapping[int, str] | None = None) -> Document:
    """Return the OpenRPC document of a table; `errors` are codes and messages of its own, beside the common ones."""
    methods = tuple(table)
    shapes = [shape for method in methods for shape in (method.params, method.result)]
    schemas, components = msgspec.json.schema_components(shapes, schema_hook=_anything, ref_template=_COMPONENTS)
    every = {**ERRORS, **(errors or {})}
    components = _tidy(components)
    return {
        "openrpc": OPENRPC,
        "info": {"title": title, "version": version},
        "methods": [
            _method(method, components[_name(schemas[2 * at])], schemas[2 * at + 1], every)
            for at, method in enumerate(methods)
        ],
        "components": {
            "schemas": components,
            "errors": {_error_name(code): {"code": code, "message": text} for code, text in every.items()},
        },
    }


def schema_of(shape: object) -> Document:
    """Return a JSON Schema 2020-12 of a type that stands alone; its root is the type itself, not a reference."""
    schema = _tidy(msgspec.json.schema(shape, schema_hook=_anything))
    definitions: Document = schema.pop("$defs", {})
    root: Any = schema
    if "$ref" in schema and not _refers(definitions, schema["$ref"]):
        root = definitions.pop(_name(schema))
    return {"$schema": DIALECT, **root, **({"$defs": definitions} if definitions else {})}


def _tidy(schema: Any) -> Any:  # noqa: ANN401 -- any part of a schema, and the same part back
    """Take the indentation of the source out of descriptions, which Python does by itself only from 3.13 on."""
    match schema:
        case dict():
            parts = cast("dict[str, Any]", schema).items()
            return {name: cleandoc(part) if _is_text(name, part) else _tidy(part) for name, part in parts}
        case list():
            return [_tidy(part) for part in cast("list[Any]", schema)]
        case _:
            return schema


def _is_text(name: str, part: object) -> bool:
    return name == "description" and isinstance(part, str)


def _anything(kind: type) -> Document:
    """Let `object` stand for any JSON value, as `Any` does."""
    if kind is object:
        return {"description": "Any JSON value."}
    raise NotImplementedError


def _method(
    method: Method[Any], params: Mapping[str, Any], result: Mapping[str, Any], errors: Mapping[int, str]
) -> Document:
    required = params.get("required", [])
    document: Document = {
        "name": method.name,
        "summary": method.title or method.name,
        "description": _described(method),
        "paramStructure": "either",
        "params": [_param(name, params["properties"][name], required=name in required) for name in method.fields],
    }
    if not method.notification:
        document["result"] = {"name": "result", "required": True, "schema": result}
        document["errors"] = [{"$ref": f"#/components/errors/{_error_name(code)}"} for code in errors]
    if method.aliases:
        document["x-aliases"] = list(method.aliases)
    if method.timeout_ms is not None:
        document["x-timeout-ms"] = method.timeout_ms
    if method.idempotent:
        document["x-idempotent"] = True
    return document


def _described(method: Method[Any]) -> str:
    parts = [method.description, f"Also called {', '.join(method.aliases)}." if method.aliases else ""]
    return " ".join(part for part in parts if part)


def _param(name: str, schema: Mapping[str, Any], *, required: bool) -> Document:
    text = {"description": schema["description"]} if "description" in schema else {}
    return {"name": name, **text, "required": required, "schema": schema}


def _name(reference: Mapping[str, Any]) -> str:
    return str(reference["$ref"]).rpartition("/")[2]


def _error_name(code: int) -> str:
    return f"E{-code}"


def _refers(definitions: Document, reference: str) -> bool:
    return msgspec.json.encode({"$ref": reference})[1:-1] in msgspec.json.encode(definitions)
