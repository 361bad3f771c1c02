"""A piece of finished work as the bytes that will be sent: pure functions from JSON objects to `Record`s.

The body is canonical JSON and the fingerprint its sha256, so the fingerprint survives every JSON round trip:

- keys are sorted, no blanks, text as UTF-8;
- a number is the decimal value of its shortest text: 1, 1.0 and 1e0 are one number, integers keep every digit;
- `id` is always there, and `agent_type` whenever `agent` is (the platform reads that name).
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import cast

import msgspec

from plugin.errors import BadParams
from plugin.store.interface import Record

UNSET_TIME = "0001-01-01T00:00:00Z"  # how the Go agent writes a time that was never set

_ZERO = datetime(1, 1, 1, tzinfo=UTC)
_PLAIN = re.compile(r"(\d{4}-\d\d-\d\dT(?!24)\d\d:\d\d:\d\d)(\.\d+)?Z", re.ASCII).fullmatch  # the usual form, in UTC
_EXACT = float(2**53)  # below it a float's integral value is the decimal value of its text


def make_record(
    obj: Mapping[str, object],
    *,
    fleet_node_id: int | None = None,
    core_fingerprint: str | None = None,
    path: str = "$",
) -> Record:
    """Make the record of one JSON object; making it again from its own body gives the same record.

    The id is the object's `id`, else its `workspace`, else a hash of its content; numbers and booleans count as
    their text. Raises `BadParams` naming `path` when neither `repo` nor `workspace` is a non-empty string (the platform
    drops such a record silently), or when the object has no JSON form. NaN and infinities, which JSON cannot say,
    become null.
    """
    try:
        plain: object = decode(msgspec.json.encode(obj))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise BadParams(f"{path} cannot be written as JSON: {error}", path=path) from error
    content = cast("dict[str, object]", plain)
    if not any(isinstance(content.get(key), str) and content[key] for key in ("repo", "workspace")):
        raise BadParams(
            f"{path} has neither `repo` nor `workspace`: the platform would drop it; give one a non-empty text",
            path=path,
        )
    return seal(content, fleet_node_id=fleet_node_id, core_fingerprint=core_fingerprint)


def seal(
    content: dict[str, object], *, fleet_node_id: int | None = None, core_fingerprint: str | None = None
) -> Record:
    """Make the record of an object that `decode` gave; `content` gets its `id` and `agent_type`."""
    if "agent" in content:
        content.setdefault("agent_type", content["agent"])
    record_id = text_of(content.pop("id", None)) or text_of(content.get("workspace")) or fingerprint(encode(content))
    content["id"] = record_id
    body = encode(content)
    return Record(
        id=record_id,
        fingerprint=fingerprint(body),
        body=body,
        core_fingerprint=core_fingerprint,
        fleet_node_id=fleet_node_id,
    )


def parse_dispatches(value: object, *, path: str = "$.dispatches") -> list[dict[str, object]]:
    """Read a `dispatches` parameter: a list of objects, one object, or a JSON string of either; `[]` gives `[]`.

    Anything else raises `BadParams` with the path of the element that is wrong.
    """
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except (ValueError, RecursionError) as error:
            raise BadParams(
                f"{path} is a string that is not JSON ({error}); give a list of objects", path=path
            ) from error
    if isinstance(value, Mapping):
        return [dict(cast("Mapping[str, object]", value))]
    if not isinstance(value, list | tuple):
        raise BadParams(f"{path} is {_kind(value)}; expected a list of objects", path=path)
    dispatches: list[dict[str, object]] = []
    for index, element in enumerate(cast("list[object]", value)):
        if not isinstance(element, Mapping):
            where = f"{path}[{index}]"
            raise BadParams(f"{where} is {_kind(element)}; expected an object", path=where)
        dispatches.append(dict(cast("Mapping[str, object]", element)))
    return dispatches


def core_fingerprint(updated_at: str, runs: int) -> str:
    """Return what the Go agent's ledger says of a workspace: "<updated_at in UTC, whole seconds>#<runs>".

    Raises ValueError when `updated_at` is neither empty nor an RFC 3339 time.
    """
    if plain := _PLAIN(updated_at):
        datetime.fromisoformat(updated_at)  # for its error: a month 13 is plain too
        return f"{plain[1]}Z#{runs}"  # as below, at half the price
    moment = instant(updated_at)
    text = UNSET_TIME if moment is None else f"{moment.isoformat(timespec='seconds')[:-6]}Z"
    return f"{text}#{runs}"


def instant(text: str) -> datetime | None:
    """Return the moment an RFC 3339 text names, in UTC; None when it is empty or the Go agent's zero time.

    Digits past the microsecond are cut off. Raises ValueError when the text is something else.
    """
    if not text:
        return None
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} says no time zone")
    if moment.tzinfo is not UTC:
        try:
            moment = moment.astimezone(UTC)
        except OverflowError as error:
            raise ValueError(f"{text!r} is out of range") from error
    return None if moment == _ZERO else moment


def _number(text: str) -> int | float:
    number = float(text)
    if not number.is_integer():
        if number in (float("inf"), float("-inf")):
            raise ValueError(f"{text} is out of range")
        return number
    return int(number) if -_EXACT < number < _EXACT else int(Decimal(repr(number)))


# Decodes JSON with its numbers in canonical form; raises ValueError or RecursionError when it is not JSON.
decode: Callable[[bytes | str], object] = msgspec.json.Decoder(float_hook=_number).decode
# Encodes what `decode` gave as canonical JSON, or a struct of such whose fields are declared in sorted order. (With
# order="sorted" the fields of a struct would be sorted each time.)
encode: Callable[[object], bytes] = msgspec.json.Encoder(order="deterministic").encode


def fingerprint(body: bytes) -> str:
    """Return the fingerprint of a canonical body."""
    return hashlib.sha256(body).hexdigest()


def text_of(value: object) -> str:
    """Return a value as an id: text as it is, numbers whole, booleans in words; empty for anything else."""
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case int() | float():
            return str(int(value))
        case _:
            return ""


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list() | tuple():
            return "a list"
        case _:
            return f"a {type(value).__name__}"
