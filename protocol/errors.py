"""What can go wrong on the wire.

ProtocolError
+-- FrameError            bytes that are no frame; the reader resynchronises and goes on
+-- EncodeError           a value that JSON cannot carry; nothing of it was written
+-- BadResult             the answer to our call is not of the type that the caller expects
+-- StreamClosed          the stream takes no more bytes: the other side is gone, or this side closed it
+-- RpcError              an error object: raised by a handler to answer it, raised by `Peer.call` when it came
    +-- PeerClosed        -32000  the other side is gone, or this side is closing
    +-- CallTimeout       -32001  our call was not answered in time
    +-- CallCancelled     -32800  the request was cancelled
"""

from enum import IntEnum

from msgspec import UNSET, Struct, UnsetType


class Code(IntEnum):
    """Error codes; those of JSON-RPC 2.0, then what this protocol adds."""

    PARSE_ERROR = -32700
    INVALID_REQUEST = -32600
    METHOD_NOT_FOUND = -32601
    INVALID_PARAMS = -32602
    INTERNAL_ERROR = -32603
    CLOSED = -32000
    TIMEOUT = -32001
    BUSY = -32013
    PROTOCOL_VERSION = -32022
    CANCELLED = -32800


class ErrorData(Struct, frozen=True, kw_only=True):
    """The `data` of an error object: a stable kind, and what helps a person or a retry. Never a secret."""

    kind: str
    retryable: bool = False
    retry_after_ms: int | UnsetType = UNSET
    path: str | UnsetType = UNSET
    detail: object = UNSET
    trace_id: str | UnsetType = UNSET


class ProtocolError(Exception):
    """The root of everything that this package raises."""


class FrameError(ProtocolError):
    """Bytes that are no frame. `kind` is `message_too_large`, `bad_header`, or `truncated`: the stream ended inside."""

    def __init__(self, message: str, *, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class EncodeError(ProtocolError):
    """A value that JSON cannot carry; nothing of it was written."""


class StreamClosed(ProtocolError):
    """The stream takes no more bytes: the other side is gone, or this side closed it."""


class BadResult(ProtocolError):
    """The answer to our call is not of the type that the caller expects; `path` says where, `detail` what was."""

    def __init__(self, method: str, path: str, detail: str) -> None:
        super().__init__(f"The answer to {method} does not fit at {path}: {detail}")
        self.method = method
        self.path = path
        self.detail = detail


class RpcError(ProtocolError):
    """A JSON-RPC error object as an exception: `code`, `message`, and `data` as it is or was on the wire."""

    def __init__(self, code: int, message: str, data: object = None) -> None:
        super().__init__(f"{message} ({code})")
        self.code = code
        self.message = message
        self.data = data


class PeerClosed(RpcError):
    """The other side is gone, or this side is closing."""

    def __init__(self, message: str = "The connection is closed") -> None:
        super().__init__(Code.CLOSED, message, ErrorData(kind="closed", retryable=True))


class CallTimeout(RpcError):
    """Our call was not answered in time; a cancel was sent and a late answer is dropped."""

    def __init__(self, method: str, timeout_s: float) -> None:
        super().__init__(
            Code.TIMEOUT, f"No answer to {method} within {timeout_s:g} s", ErrorData(kind="timeout", retryable=True)
        )


class CallCancelled(RpcError):
    """The request was cancelled by the side that made it."""

    def __init__(self) -> None:
        super().__init__(Code.CANCELLED, "Request cancelled", ErrorData(kind="cancelled", retryable=True))
