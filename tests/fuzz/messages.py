"""The message decoder under arbitrary bytes: it never raises, and what it gives can be answered and sent on.

An input that begins with the byte 1 is a value to be built and written as JSON; any other is the payload.
"""

import json
import math
import re

from msgspec.structs import replace

from protocol.errors import Code
from protocol.messages import (
    BOM,
    Batch,
    Incoming,
    Invalid,
    Notification,
    Request,
    Response,
    decode,
    encode_error,
    encode_notification,
    encode_request,
    encode_result,
)
from tests.fuzz.values import BUILT, Source, build

NAMES = ("jsonrpc", "id", "method", "params", "result", "error", "code", "message", "data", "other")

WORDS = (
    *(b'"jsonrpc":"2.0"', b'"id":', b'"method":"', b'"params":', b'"result":', b'"error":', b'"code":', b'"message":"'),
    *(
        b"\\ud800",
        b"\\u0000",
        b"1e400",
        b"-0.0",
        b"18446744073709551616",
        b"null",
        b"\xef\xbb\xbf",
        b"[[[[[[[[[[[[[[[[",
    ),
)
SEEDS = (
    b'{"jsonrpc":"2.0","id":1,"method":"ping"}',
    b'{"jsonrpc":"2.0","method":"log","params":{"level":"info"}}',
    b'{"jsonrpc":"2.0","id":"a","result":{"state":"idle"}}',
    b'\xef\xbb\xbf{"jsonrpc":"2.0","id":1.5,"error":{"code":-32601,"message":"no","data":[1]}}',
    b'[{"jsonrpc":"2.0","id":null,"method":"x","params":[1,"\\u00e9"]},1,{},{"jsonrpc":"2.0","id":3}]',
    b'{"jsonrpc":"2.0","id":123456789012345678901234567890,"method":"x","params":[-0.0,1e300,null]}',
    b"[" * 2000,
    b'{"a":' * 2000,
    b"\x01\x07\x04\x00\x04\x00\x01\x01\x02\x00\x01\x02\x04\x00\x02\x03\x06\x01\x00\x02\x00",
)
FOUND: tuple[bytes, ...] = ()

_LARGEST = re.compile(rb"[0-9.eE+-]{300,}")  # numbers that may be infinite


def one_input(data: bytes) -> None:
    """Decode one payload; raise AssertionError where the decoder breaks a promise."""
    if data[:1] == bytes([BUILT]):
        data = json.dumps(build(Source(data[1:]), NAMES)).encode()
    message = decode(data)
    if not (isinstance(message, Invalid) and message.code == Code.PARSE_ERROR) and not _LARGEST.search(data):
        json.loads(data.removeprefix(BOM))  # what is read as JSON is JSON
    for item in message.items if isinstance(message, Batch) else (message,):
        check(item)


def check(message: Incoming) -> None:
    """Check one message that is no batch."""
    match message:
        case Request(id=id_, method=method, params=params):
            assert isinstance(decode(encode_result(id_, None)), Response)
            assert same(decode(encode_request(id_, method, params)), message)
        case Notification(method=method, params=params):
            assert same(decode(encode_notification(method, params)), message)
        case Invalid(id=id_, code=code):
            assert code in {Code.PARSE_ERROR, Code.INVALID_REQUEST}
            back = decode(encode_error(id_, message.error))
            assert isinstance(back, Response)
            assert back.error is not None
            assert back.error.code == code
        case Response(id=id_):
            assert not isinstance(id_, bool)
        case Batch():
            raise AssertionError("a batch in a batch")


def same(one: Incoming, other: Request | Notification) -> bool:
    """Compare calls but for their size; -0.0 and 0.0 are told apart, as ids are echoed with their type."""
    assert isinstance(one, Request | Notification)
    if isinstance(one, Request) and isinstance(other, Request):
        assert type(one.id) is type(other.id)
        if isinstance(one.id, float) and isinstance(other.id, float):
            assert math.copysign(1, one.id) == math.copysign(1, other.id)
    return replace(one, size=0) == replace(other, size=0)
