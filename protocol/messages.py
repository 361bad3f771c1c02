"""JSON-RPC 2.0 messages: bytes to values and back. Pure; no bytes make `decode` raise.

A valid call or answer is decoded once, into the struct of all that it may hold. Whatever does not fit is decoded again
without types, to say what is wrong with it, or that nothing is.

The keys decide what a message is:

| keys | value |
|---|---|
| `method` | `Request` when `id` is there, be it null; else `Notification` |
| `result` or `error`, without `method` | `Response` |
| an array | `Batch`, member by member; an empty one is `Invalid` |
| anything else | `Invalid`: it must be answered with an error |

A response is never `Invalid`, since two peers that answer answers never stop: a malformed one is a `Response` whose
error says so, and its version is not looked at. Unknown members of a message are ignored.
"""

from types import NoneType
from typing import Final, Literal, TypeAlias, cast

import msgspec
from msgspec import UNSET, Struct, UnsetType

from protocol.errors import Code, EncodeError, ErrorData, RpcError

MAX_BATCH_MEMBERS: Final = 65_536
"""The longest batch; each member costs an answer, so a 16 MiB batch of `1,1,1,...` would cost a gigabyte."""

BOM: Final = b"\xef\xbb\xbf"

Id: TypeAlias = str | int | float | None
"""A request's id, echoed with its type. Beware as a key: 1 and 1.0 are equal in Python, and are not the same id."""

Params: TypeAlias = list[object] | dict[str, object] | None


class Request(Struct, frozen=True, gc=False):
    """A call to be answered. `size` is what it took of the payload, in bytes (members of a batch share equally)."""

    id: Id
    method: str
    params: Params
    size: int


class Notification(Struct, frozen=True, gc=False):
    """A call that must never be answered, whatever is wrong with it."""

    method: str
    params: Params
    size: int


class Response(Struct, frozen=True, gc=False):
    """The answer to a call of ours: `error` if it is not None, else `result`. An id of an impossible type is None."""

    id: Id
    result: object
    error: RpcError | None


class Invalid(Struct, frozen=True, gc=False):
    """A message to answer with `error`. `id` is None unless a usable one could be read.

    `void` marks a message that has a version and an id and nothing else: from a host that drops a result of
    undefined, it is the answer to our call of that id, with the result None. If no such call waits, answer it.
    """

    id: Id
    code: int
    message: str
    data: ErrorData
    void: bool = False

    @property
    def error(self) -> RpcError:
        """Return the error to answer with."""
        return RpcError(self.code, self.message, self.data)


Item: TypeAlias = Request | Notification | Response | Invalid


class Batch(Struct, frozen=True, gc=False):
    """A batch, never empty. Its answers go out as one array, or not at all when there are none."""

    items: tuple[Item, ...]


Incoming: TypeAlias = Item | Batch

_Json: TypeAlias = dict[str, object] | list[object] | str | int | float | bool | None


class _Result(Struct, frozen=True, gc=False):
    """An answer; a struct is encoded faster than a dict."""

    jsonrpc: str
    id: Id
    result: object


class _Envelope(Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """A message other than a batch, as it ought to be."""

    jsonrpc: Literal["2.0"]
    method: str | UnsetType = UNSET
    id: Id | UnsetType = UNSET
    params: Params = None
    result: object = UNSET
    error: object = None


_ID_TYPES: Final = frozenset({str, int, float, NoneType})  # as decoding makes them, and no bool
_PARAMS_TYPES: Final = frozenset({dict, list, NoneType})
_TYPED_DECODER: Final = msgspec.json.Decoder(_Envelope)
_DECODER: Final = msgspec.json.Decoder(_Json)
_ENCODER: Final = msgspec.json.Encoder()


def decode(payload: bytes | bytearray | memoryview) -> Incoming:
    """Decode one payload and say what it is. A leading BOM is ignored. Never raises."""
    try:
        message = _TYPED_DECODER.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _decode_untyped(payload)
    id_, method = message.id, message.method
    if method is not UNSET:
        if id_ is not UNSET:
            return Request(id_, method, message.params, len(payload))
        return Notification(method, message.params, len(payload))
    if message.error is not None or message.result is UNSET or id_ is UNSET:
        return _decode_untyped(payload)
    return Response(id_, message.result, None)


def _decode_untyped(payload: bytes | bytearray | memoryview) -> Incoming:
    try:
        value = _DECODER.decode(payload[len(BOM) :] if payload[: len(BOM)] == BOM else payload)
    except msgspec.DecodeError as error:
        return _unreadable(str(error))
    except UnicodeDecodeError as error:
        return _unreadable(f"not UTF-8: {error.reason}")
    except RecursionError:
        return _unreadable("nested too deeply")
    if isinstance(value, dict):
        message = cast("dict[str, object]", value)
        return _call(message, len(payload)) if "method" in message else _no_call(message)
    if isinstance(value, list):
        return _batch(cast("list[object]", value), len(payload))
    return _NO_OBJECT


def _batch(members: list[object], size: int) -> Batch | Invalid:
    count = len(members)
    if not 1 <= count <= MAX_BATCH_MEMBERS:
        return _refuse(None, f"a batch has 1 to {MAX_BATCH_MEMBERS} members, this one has {count}")
    share = -(-size // count)
    return Batch(tuple([_classify(member, share) for member in members]))


def _classify(member: object, size: int) -> Item:
    if not isinstance(member, dict):
        return _NO_OBJECT
    message = cast("dict[str, object]", member)
    return _call(message, size) if "method" in message else _no_call(message)


def _no_call(message: dict[str, object]) -> Response | Invalid:
    if "result" in message or "error" in message:
        return _response(message)
    return _refuse(_id(message), "no method", void=message.keys() == {"jsonrpc", "id"})


def _call(message: dict[str, object], size: int) -> Request | Notification | Invalid:
    id_, method, params = cast("Id", message.get("id")), message["method"], message.get("params")
    if type(id_) not in _ID_TYPES:
        return _refuse(None, "an id is a string, a number or null")
    if message.get("jsonrpc") != "2.0":
        return _refuse(id_, 'jsonrpc is not "2.0"')
    if not isinstance(method, str):
        return _refuse(id_, "method is not a string")
    if type(params) not in _PARAMS_TYPES:
        return _refuse(id_, "params is neither an object nor an array")
    if "id" in message:
        return Request(id_, method, cast("Params", params), size)
    return Notification(method, cast("Params", params), size)


def _response(message: dict[str, object]) -> Response:
    error = message.get("error")
    if error is None:
        return Response(_id(message), message.get("result"), None)
    return Response(_id(message), None, _error(error))


def _error(value: object) -> RpcError:
    body = cast("dict[str, object]", value) if isinstance(value, dict) else {}
    code, message = body.get("code"), body.get("message")
    if not isinstance(code, int) or isinstance(code, bool):
        data = ErrorData(kind="malformed_answer", detail="error is not an object with an integer code")
        return RpcError(Code.INTERNAL_ERROR, "The other side answered with a malformed error", data)
    return RpcError(code, message if isinstance(message, str) else "The other side gave no message", body.get("data"))


def _id(message: dict[str, object]) -> Id:
    value = message.get("id")
    return cast("Id", value) if type(value) in _ID_TYPES else None


def _refuse(id_: Id, detail: str, *, void: bool = False) -> Invalid:
    data = ErrorData(kind="invalid_request", detail=detail)
    return Invalid(id_, Code.INVALID_REQUEST, "Invalid Request", data, void)


def _unreadable(detail: str) -> Invalid:
    return Invalid(None, Code.PARSE_ERROR, "Parse error", ErrorData(kind="parse_error", detail=detail))


_NO_OBJECT: Final = _refuse(None, "a message is an object")


def encode_request(id_: Id, method: str, params: object = None) -> bytes:
    """Encode a call to be answered; params that are None are left out. Raises EncodeError."""
    return _encode({"jsonrpc": "2.0", "id": id_, "method": method, **_given("params", params)})


def encode_notification(method: str, params: object = None) -> bytes:
    """Encode a call that is not answered; params that are None are left out. Raises EncodeError."""
    return _encode({"jsonrpc": "2.0", "method": method, **_given("params", params)})


def encode_result(id_: Id, result: object) -> bytes:
    """Encode the answer to the request `id_`. NaN and infinities become null. Raises EncodeError."""
    return _encode(_Result("2.0", id_, result))


def encode_error(id_: Id, error: RpcError) -> bytes:
    """Encode the refusal of the request `id_`, or of bytes without an id (None). Raises EncodeError."""
    body = {"code": error.code, "message": error.message, **_given("data", error.data)}
    return _encode({"jsonrpc": "2.0", "id": id_, "error": body})


def join_batch(parts: list[bytes]) -> bytes:
    """Join encoded messages to one batch. There is no empty batch: with no parts, send nothing."""
    return b"[%b]" % b",".join(parts)


def _given(name: str, value: object) -> dict[str, object]:
    return {} if value is None else {name: value}


def _encode(message: dict[str, object] | _Result) -> bytes:
    try:
        text = _ENCODER.encode(message)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise EncodeError(f"A message cannot be written as JSON: {error}") from error
    # Only a msgspec.Raw from elsewhere can hold a newline, between tokens; as one it would end an NDJSON frame.
    return text.replace(b"\n", b" ") if b"\n" in text else text
