"""The configuration's keys as values: their names everywhere, what they accept, and the schema that says so.

Everything here is derived from the structs in `plugin/config.py`.
"""

import inspect
from collections.abc import Iterable, Iterator
from functools import cache
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

import msgspec
from msgspec import NODEFAULT, Struct
from msgspec.structs import FieldInfo

from plugin.config.settings import About, Config
from plugin.secret import Secret

PREFIX = "AGENTIC_SYNC_"
FILE_VARIABLE = f"{PREFIX}CONFIG"  # names the file; no key of the configuration
CHOICE = ("api_key", "api_key_env", "api_key_file")  # at most one of them in one place


class Key(Struct, frozen=True, kw_only=True):
    """One setting: its dotted path, its type and default, and what is said of it.

    `a[].b` is a member of each element of the list `a`; it has no variable of its own.
    """

    path: str
    kind: object  # the annotation of the struct's field
    default: object
    about: About

    @property
    def variable(self) -> str:
        """The name in the environment that every key has."""
        return PREFIX + self.path.replace(".", "_").upper()

    @property
    def environment(self) -> tuple[str, ...]:
        """Every name in the environment, in order of precedence."""
        return () if "[]" in self.path else (*self.about.environment, self.variable)

    @property
    def secret(self) -> bool:
        """Whether the value must never be shown."""
        return bare(self.kind) is Secret

    @property
    def default_text(self) -> str:
        """The default in words."""
        if self.default is NODEFAULT:
            return "required"
        if isinstance(self.default, float):
            return f"{self.default:g}"
        return self.about.default or ("none" if vacant(self.default) else msgspec.json.encode(self.default).decode())


@cache
def keys() -> tuple[Key, ...]:
    """Return every key in the order of the structs; `bindings` and `identities` are one key each."""
    return tuple(_keys(Config, ""))


def _keys(struct: type[Struct], prefix: str) -> Iterator[Key]:
    for field in msgspec.structs.fields(struct):
        path = prefix + field.name
        if section := struct_of(field.type):
            yield from _keys(section, f"{path}.")
        else:
            yield _key(path, field)


def bare(kind: object) -> object:
    """Return the type within `Annotated` and `| None`."""
    while True:
        arguments = get_args(kind)
        if get_origin(kind) is Annotated:
            kind = arguments[0]
        elif NoneType in arguments:
            kind = next(argument for argument in arguments if argument is not NoneType)
        else:
            return kind


def struct_of(kind: object) -> type[Struct] | None:
    """Return the struct that an annotation stands for, if it stands for one."""
    kind = bare(kind)
    return kind if isinstance(kind, type) and issubclass(kind, Struct) else None


def element_of(kind: object) -> object:
    """Return the type of a list's elements, or None when an annotation is no list."""
    kind = bare(kind)
    return get_args(kind)[0] if get_origin(kind) is tuple else None


def vacant(default: object) -> bool:
    """Return whether a field with this default takes null and empty text for "not given"."""
    return default is None or default == ""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint at the known name nearest to a misspelt one, or nothing when none is near."""
    import difflib  # noqa: PLC0415 - for a mistake only

    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; the nearest known one is {close[0]}" if close else ""


def expectation(kind: object) -> str:
    """Say in words what a leaf accepts."""
    if words := _about(kind).expected:
        return words
    leaf = _leaf_schema(kind)
    if "enum" in leaf:
        return f"one of {', '.join(leaf['enum'])}"
    match leaf["type"]:
        case "boolean":
            return "true or false"
        case "integer" | "number" as name:
            least = f"above {leaf['exclusiveMinimum']:g}" if "exclusiveMinimum" in leaf else f"from {leaf['minimum']}"
            return f"a {'whole ' if name == 'integer' else ''}number {least} to {leaf['maximum']:.16g}"
        case _:
            least, most = leaf.get("minLength", 0), leaf.get("maxLength")
            return f"text of {least} to {most} characters on one line" if most else "text on one line"


def schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of what a host may give, with defaults; secrets are `writeOnly` without one.

    It accepts what the types accept; rules between settings and on URLs and files are in `plugin/config/rules.py`.
    """
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_schema(Config)}


def table() -> list[Key]:
    """Return every key, and after each list the members of its elements."""
    rows: list[Key] = []
    for key in keys():
        rows.append(key)
        if element := struct_of(element_of(key.kind)):
            rows.extend(_key(f"{key.path}[].{field.name}", field) for field in msgspec.structs.fields(element))
    return rows


def _key(path: str, field: FieldInfo) -> Key:
    return Key(path=path, kind=field.type, default=field.default, about=_about(field.type))


def _schema(kind: object) -> dict[str, Any]:
    if struct := struct_of(kind):
        fields = msgspec.structs.fields(struct)
        schema: dict[str, Any] = {
            "type": "object",
            "description": inspect.cleandoc(struct.__doc__ or "").partition("\n")[0],
            "properties": {field.name: _member_schema(field) for field in fields},
            "required": [field.name for field in fields if field.required],
            "additionalProperties": False,
        }
        if {field.name for field in fields}.issuperset(CHOICE):
            nothing: dict[str, Any] = {"enum": [None, ""]}
            schema["anyOf"] = [
                {"properties": {other: nothing for other in CHOICE if other != chosen}} for chosen in CHOICE
            ]
        return schema
    if element := element_of(kind):
        return {"type": "array", "items": _schema(element)}
    return _leaf_schema(kind)


def _member_schema(field: FieldInfo) -> dict[str, Any]:
    about, schema = _about(field.type), _schema(field.type)
    if about.label:
        schema = {"title": about.label, "description": about.help, **schema}
    if vacant(field.default):
        schema["type"] = [schema["type"], "null"]
    elif not field.required and not struct_of(field.type):
        schema["default"] = msgspec.json.decode(msgspec.json.encode(field.default))
    if bare(field.type) is Secret:
        schema["writeOnly"] = True
    return schema


def _about(kind: object) -> About:
    found = [note for note in get_args(kind)[1:] if isinstance(note, About)] if get_origin(kind) is Annotated else []
    return found[0] if found else About("", "")


def _leaf_schema(kind: object) -> dict[str, Any]:
    schema = msgspec.json.schema(kind, schema_hook=lambda _: {"type": "string"})  # only Secret is foreign to msgspec
    return schema["anyOf"][0] if "anyOf" in schema else schema
