"""Untrusted settings become checked values, and every mistake is kept rather than the first alone.

A text says what was expected and what kind of thing came, never the value: it may be a secret in the wrong place.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, cast

import msgspec
from msgspec import UNSET, Struct

from plugin.config.keys import CHOICE, bare, element_of, expectation, keys, nearest, struct_of, vacant
from plugin.config.settings import Config
from plugin.secret import Secret

PLATFORM_KEY = tuple(f"platform.{name}" for name in CHOICE)
_LONGEST_PATH = 100
_HUGE = 10**15


class Reading:
    """Read one source; `problems` gets a (path, text) for everything that is wrong in it."""

    def __init__(self, source: str, problems: list[tuple[str, str]]) -> None:
        self.source = source
        self._problems = problems

    def refuse(self, path: str, text: str) -> object:
        """Keep a problem with the source it came from; return UNSET, which stands for the value."""
        shown = path if len(path) <= _LONGEST_PATH and path.isprintable() else ascii(path[:_LONGEST_PATH])
        self._problems.append((shown, f"{text} ({self.source})"))
        return UNSET

    def tree(self, tree: Mapping[str, object]) -> dict[str, object]:
        """Read a nested tree of settings; return the sound ones by their dotted path."""
        found = dict(self._section(tree, Config, ""))
        self.choice([path for path in PLATFORM_KEY if path in found])
        return found

    def _section(self, tree: Mapping[Any, object], struct: type[Struct], prefix: str) -> Iterable[tuple[str, object]]:
        fields = {field.name: field for field in msgspec.structs.fields(struct)}
        for name, value in tree.items():
            path = f"{prefix}{name}"
            field = fields.get(name)
            if field is None:
                known = [*(f"{prefix}{other}" for other in fields), *(key.path for key in keys())]
                hint = "; a dot does not nest: write an object in an object" if path in known else nearest(path, known)
                self.refuse(path, f"unknown key{hint}")
            elif section := struct_of(field.type):
                if isinstance(value, Mapping):
                    yield from self._section(cast("Mapping[Any, object]", value), section, f"{path}.")
                else:
                    self._mismatch(path, "an object", value)
            elif not _absent(value, field.default) and (read := self.value(value, field.type, path)) is not UNSET:
                yield path, read

    def value(self, value: object, kind: object, path: str) -> object:
        """Read one value; return UNSET when anything in it is wrong."""
        if struct := struct_of(kind):
            return self._struct(value, struct, path)
        if element := element_of(kind):
            if not isinstance(value, list | tuple):
                return self._mismatch(path, "a list", value)
            items = cast("Iterable[object]", value)
            read = tuple(self.value(item, element, f"{path}[{i}]") for i, item in enumerate(items))
            return UNSET if UNSET in read else read
        return self._leaf(value, kind, path)

    def _struct(self, value: object, struct: type[Struct], path: str) -> object:
        if not isinstance(value, Mapping):
            return self._mismatch(path, "an object", value)
        members = cast("Mapping[Any, object]", value)
        fields = {field.name: field for field in msgspec.structs.fields(struct)}
        unknown = [name for name in members if name not in fields]
        for name in unknown:
            self.refuse(f"{path}.{name}", f"unknown key{nearest(str(name), fields)}")
        read: dict[str, object] = {}
        for name, field in fields.items():
            if name in members and not _absent(members[name], field.default):
                read[name] = self.value(members[name], field.type, f"{path}.{name}")
            elif field.required:
                self.refuse(f"{path}.{name}", f"missing; expected {expectation(field.type)}")
                read[name] = UNSET
        sound = self.choice([f"{path}.{name}" for name in CHOICE if name in read])
        return struct(**read) if sound and not unknown and UNSET not in read.values() else UNSET

    def _leaf(self, value: object, kind: object, path: str) -> object:
        if bare(kind) is int and isinstance(value, float) and value.is_integer():
            value = int(value)  # JSON does not tell 5.0 from 5
        try:
            return Secret(msgspec.convert(value, str)) if bare(kind) is Secret else msgspec.convert(value, kind)
        except msgspec.ValidationError:
            if bare(kind) is Secret:
                # A key of digits comes as a number where somebody forgot the quotes; it is a secret all the same.
                return self.refuse(path, f"expected {expectation(kind)}, got something else; put the key in quotes")
            return self._mismatch(path, expectation(kind), value)

    def choice(self, ways: list[str]) -> bool:
        """Refuse more than one way to give the key of one place; return whether that is well."""
        if len(ways) > 1:
            names = " and ".join(way.rpartition(".")[2] for way in ways)
            self.refuse(ways[1], f"{names} are given; only one of them may be")
        return len(ways) <= 1

    def _mismatch(self, path: str, expected: str, value: object) -> object:
        return self.refuse(path, f"expected {expected}, got {_kind(value)}")


def _absent(value: object, default: object) -> bool:
    return vacant(default) and (value is None or value == "")


def _kind(value: object) -> str:
    match value:
        case None:
            text = "null"
        case bool():
            text = str(value).lower()
        case int():
            text = str(value) if abs(value) < _HUGE else "a huge number"
        case float():
            text = f"{value:.15g}" if math.isfinite(value) else "a number that is not finite"
        case str():
            text = "other text" if value else "an empty text"
        case Mapping():
            text = "an object"
        case list() | tuple():
            text = "a list"
        case _:
            text = f"a {type(value).__name__}"
    return text
