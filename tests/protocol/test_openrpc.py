import re
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import pytest
from jsonschema import Draft202012Validator, ValidationError, validate
from msgspec import Meta, Struct, field

from protocol.methods import Context, Method, MethodTable
from protocol.openrpc import DIALECT, describe, schema_of
from tests.support.wires import Json


class Tree(Struct, frozen=True):
    """A tree."""

    name: str
    children: list["Tree"] = []


class Settings(Struct, frozen=True, kw_only=True):
    """How it is done."""

    agent_id: Annotated[str, Meta(description="Whose it is.", min_length=1)] = field(name="agent-id")
    tree: Tree | None = None
    limit: Annotated[int, Meta(ge=0)] = 5


class Nothing(Struct, frozen=True):
    pass


async def idle(_context: Context, _params: Struct) -> None:
    pass


TABLE = MethodTable(
    [
        Method(
            name="sync.push",
            handler=idle,
            params=Settings,
            result=Tree | None,
            title="Push",
            description="Bring it there.",
            aliases=("push", "old.push"),
            timeout_ms=30_000,
            idempotent=True,
        ),
        Method(name="changed", handler=idle, params=Nothing, notification=True, aliases=("Changed",)),
        Method(name="ping", handler=idle, params=Nothing, result=Nothing),
    ]
)


@pytest.fixture
def document() -> dict[str, Any]:
    return describe(TABLE, title="Example", version="1.2.3", errors={-32010: "Upstream unavailable"})


def at(document: Mapping[str, Any], reference: str) -> Json:
    node: Any = document
    for part in reference.removeprefix("#/").split("/"):
        node = node[part]
    return node


def references(document: object) -> set[str]:
    """Return every `$ref` in a document."""
    text = msgspec.json.encode(document).decode()
    return set(re.findall(r'"\$ref":"([^"]*)"', text))


def fits(value: Json, schema: Mapping[str, Any]) -> bool:
    try:
        validate(value, schema)
    except ValidationError:
        return False
    return True


def test_it_says_what_it_is(document: dict[str, Any]) -> None:
    assert document["openrpc"] == "1.3.2"
    assert document["info"] == {"title": "Example", "version": "1.2.3"}
    assert [method["name"] for method in document["methods"]] == ["sync.push", "changed", "ping"]


def test_params_come_in_declared_order_under_their_wire_names(document: dict[str, Any]) -> None:
    push = document["methods"][0]
    assert push["paramStructure"] == "either"
    assert [(one["name"], one["required"]) for one in push["params"]] == [
        ("agent-id", True),
        ("tree", False),
        ("limit", False),
    ]
    assert push["params"][0]["description"] == "Whose it is."
    assert push["params"][2]["schema"] == {"type": "integer", "minimum": 0, "default": 5}
    assert document["methods"][2]["params"] == []


def test_a_notification_has_neither_result_nor_errors(document: dict[str, Any]) -> None:
    _, changed, ping = document["methods"]
    assert not {"result", "errors"} & changed.keys()
    assert ping["result"]["schema"] == {"$ref": "#/components/schemas/Nothing"}


def test_aliases_are_told_to_people_and_to_programs(document: dict[str, Any]) -> None:
    push, changed, ping = document["methods"]
    assert push["x-aliases"] == ["push", "old.push"]
    assert push["description"] == "Bring it there. Also called push, old.push."
    assert changed["description"] == "Also called Changed."
    assert "x-aliases" not in ping
    assert (push["x-timeout-ms"], push["x-idempotent"]) == (30_000, True)
    assert not {"x-timeout-ms", "x-idempotent"} & ping.keys()


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    found = references(document)
    assert "#/components/schemas/Tree" in found
    assert all(at(document, reference) for reference in found)


def test_errors_are_the_common_ones_and_the_tables_own(document: dict[str, Any]) -> None:
    errors = [at(document, one["$ref"]) for one in document["methods"][0]["errors"]]
    assert {"code": -32010, "message": "Upstream unavailable"} in errors
    assert {-32700, -32600, -32601, -32602, -32603, -32000, -32013, -32800} < {one["code"] for one in errors}
    plain = describe(TABLE, title="Example", version="1")
    assert len(at(plain, "components/errors")) == len(errors) - 1


def test_every_schema_is_one(document: dict[str, Any]) -> None:
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    for method in document["methods"]:
        for param in method["params"]:
            Draft202012Validator.check_schema(param["schema"])


def test_an_object_is_any_value() -> None:
    schema = schema_of(dict[str, object])
    assert fits({"a": [1, None, {"b": "c"}]}, schema)
    assert not fits([1], schema)


@pytest.mark.parametrize("shape", [Settings, Tree, Nothing, list[Tree], Tree | None, dict[str, int], int, None])
def test_a_schema_stands_alone(shape: object) -> None:
    schema = schema_of(shape)
    assert schema["$schema"] == DIALECT
    Draft202012Validator.check_schema(schema)
    assert all(at(schema, reference) for reference in references(schema))


def test_the_root_is_the_type_itself() -> None:
    schema = schema_of(Settings)
    assert schema["title"] == "Settings"
    assert schema["description"] == "How it is done."
    assert at(schema, "$defs").keys() == {"Tree"}
    assert "$defs" not in schema_of(Nothing)


def test_a_type_that_holds_itself_stays_a_reference() -> None:
    schema = schema_of(Tree)
    assert schema["$ref"] == "#/$defs/Tree"
    assert fits({"name": "a", "children": [{"name": "b"}]}, schema)
    assert not fits({"name": "a", "children": [{"name": 5}]}, schema)


def test_what_the_schema_takes_the_struct_takes() -> None:
    schema = schema_of(Settings)
    assert fits({"agent-id": "a", "tree": None, "limit": 0}, schema)
    assert not fits({"agent-id": "a", "limit": -1}, schema)
    assert not fits({"agent_id": "a"}, schema)


class Wordy(msgspec.Struct):
    """Say a thing.

    And explain it,
        with an example.
    """

    description: int = 0


def test_a_description_does_not_carry_the_indentation_of_the_source() -> None:
    schema = schema_of(list[Wordy])
    wordy = at(schema, "$defs/Wordy")
    assert wordy["description"] == "Say a thing.\n\nAnd explain it,\n    with an example."
    assert wordy["properties"]["description"]["type"] == "integer"
