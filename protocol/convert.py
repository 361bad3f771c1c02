"""Decoded JSON to typed values, and where it does not fit. Pure."""

import re
from typing import Final, TypeVar

import msgspec

from protocol.errors import ProtocolError

T = TypeVar("T")

_AT: Final = re.compile(r"(?P<detail>.*) - at (?P<key>`key` in )?`(?P<path>[^`]*)`", re.DOTALL)
_FIELD: Final = re.compile(r"Object (?:missing required|contains unknown) field `(?P<name>[^`]*)`")


class Mismatch(ProtocolError):
    """A value that is not of the type it must be: `path` says where (`$` is the whole), `detail` what was expected."""

    def __init__(self, path: str, detail: str) -> None:
        super().__init__(f"{path}: {detail}")
        self.path = path
        self.detail = detail


def convert(value: object, shape: type[T]) -> T:
    """Return decoded JSON as a `shape`; nothing is coerced. Raises Mismatch."""
    try:
        return msgspec.convert(value, shape)
    except msgspec.ValidationError:
        pass  # once more: looking at each key for a number takes three times as long, and is seldom needed
    try:
        return msgspec.convert(value, shape, str_keys=True)
    except msgspec.ValidationError as error:
        raise _mismatch(str(error)) from None


def _mismatch(text: str) -> Mismatch:
    """Split what msgspec says; a field that is missing or unknown becomes part of the path."""
    found = _AT.fullmatch(text)
    path, detail = (found["path"], found["detail"]) if found else ("$", text)
    if found and found["key"]:
        detail += " as a key"
    elif field := _FIELD.fullmatch(detail):
        path = f"{path}.{field['name']}"
    return Mismatch(path, detail)
