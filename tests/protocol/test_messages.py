import json
from typing import Any

import msgspec
import pytest

from protocol.errors import Code, EncodeError, ErrorData, RpcError
from protocol.messages import (
    MAX_BATCH_MEMBERS,
    Batch,
    Id,
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
    join_batch,
)


def parse(**members: object) -> Incoming:
    return decode(json.dumps(members).encode())


def invalid(message: Incoming, code: int = Code.INVALID_REQUEST) -> Invalid:
    assert isinstance(message, Invalid)
    assert message.code == code
    return message


def response(message: Incoming) -> Response:
    assert isinstance(message, Response)
    return message


def test_a_message_with_a_method_and_an_id_is_a_request() -> None:
    payload = b'{"jsonrpc":"2.0","method":"subtract","params":[42,23],"id":1}'
    assert decode(payload) == Request(1, "subtract", [42, 23], len(payload))


def test_a_message_with_a_method_and_no_id_is_a_notification() -> None:
    payload = b'{"jsonrpc":"2.0","method":"update","params":{"a":1}}'
    assert decode(payload) == Notification("update", {"a": 1}, len(payload))


@pytest.mark.parametrize("raw", ["0", '""', '"1"', "1.0", "-1.5", "null", str(2**80), str(-(10**400)), '"é"'])
def test_an_id_comes_back_with_its_type(raw: str) -> None:
    request = decode(f'{{"jsonrpc":"2.0","method":"m","id":{raw}}}'.encode())
    assert isinstance(request, Request)
    assert encode_result(request.id, None) == f'{{"jsonrpc":"2.0","id":{raw},"result":null}}'.encode()


def test_null_params_are_absent_params() -> None:
    for members in ({"params": None}, {}):
        request = parse(jsonrpc="2.0", id=1, method="m", **members)
        assert isinstance(request, Request)
        assert request.params is None


def test_unknown_members_and_meta_are_let_through() -> None:
    request = parse(jsonrpc="2.0", id=1, method="m", params={"_meta": {"t": 1}}, _meta={}, trace="x")
    assert isinstance(request, Request)
    assert request.params == {"_meta": {"t": 1}}


def test_a_byte_order_mark_is_ignored() -> None:
    assert isinstance(decode(b'\xef\xbb\xbf{"jsonrpc":"2.0","method":"m"}'), Notification)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_bytes_like_payload_is_decoded(kind: type[bytes]) -> None:
    assert isinstance(decode(kind(b'{"jsonrpc":"2.0","method":"m"}')), Notification)
    assert isinstance(decode(kind(b'\xef\xbb\xbf{"jsonrpc":"2.0","method":"m"}')), Notification)


UNREADABLE = {
    "nothing": b"",
    "blank": b"   ",
    "byte order mark": b"\xef\xbb\xbf",
    "broken object": b'{"jsonrpc":"2.0","method":"foobar, "params":"bar","baz]',
    "broken batch": b'[{"jsonrpc":"2.0","method":"sum","params":[1,2,4],"id":"1"},{"jsonrpc":"2.0","method"]',
    "two values": b'{"jsonrpc":"2.0","method":"m","id":1}{}',
    "NaN": b'{"jsonrpc":"2.0","method":"m","id":NaN}',
    "infinity": b'{"jsonrpc":"2.0","method":"m","params":[Infinity],"id":1}',
    "too large a number": b'{"jsonrpc":"2.0","method":"m","params":[1e999],"id":1}',
    "too long an integer": b'{"jsonrpc":"2.0","method":"m","id":%b}' % (b"9" * 5_000),
    "not UTF-8": b'{"jsonrpc":"2.0","method":"\xff","id":1}',
    "half a surrogate pair": b'"\\ud800"',
    "deep arrays": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "binary": b"\x00\xff\xfe",
}


@pytest.mark.parametrize("payload", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_bytes_that_are_no_json_are_a_parse_error_without_id(payload: bytes) -> None:
    error = invalid(decode(payload), Code.PARSE_ERROR)
    assert error.id is None
    assert error.data.kind == "parse_error"
    assert error.data.detail


@pytest.mark.parametrize(
    ("members", "echoed"),
    [
        ({"jsonrpc": "2.0", "method": 1, "params": "bar"}, None),
        ({"jsonrpc": "2.0", "method": 1, "id": 7}, 7),
        ({"jsonrpc": "2.0", "method": None, "id": "x"}, "x"),
        ({"jsonrpc": "2.0", "method": "m", "params": "bar", "id": 7}, 7),
        ({"jsonrpc": "2.0", "method": "m", "params": 0, "id": ""}, ""),
        ({"jsonrpc": "2.0", "method": "m", "params": False, "id": 0}, 0),
        ({"jsonrpc": "2.0", "method": "m", "id": {}}, None),
        ({"jsonrpc": "2.0", "method": "m", "id": [1]}, None),
        ({"jsonrpc": "2.0", "method": "m", "id": True}, None),
        ({"jsonrpc": "2.0", "method": "m", "id": False}, None),
        ({"jsonrpc": "1.0", "method": "m", "id": 7}, 7),
        ({"jsonrpc": 2.0, "method": "m", "id": 7}, 7),
        ({"method": "m", "id": 1.5}, 1.5),
        ({"method": "m"}, None),
        ({"foo": "boo"}, None),
        ({"foo": "boo", "id": 7}, 7),
        ({"foo": "boo", "id": True}, None),
        ({}, None),
    ],
)
def test_an_impossible_message_is_refused_with_its_id_if_it_has_a_usable_one(
    members: dict[str, object], echoed: Id
) -> None:
    error = invalid(parse(**members))
    assert (error.id, type(error.id)) == (echoed, type(echoed))
    assert error.data.kind == "invalid_request"
    assert not error.void


@pytest.mark.parametrize("payload", [b"1", b'"x"', b"null", b"true", b"1.5"])
def test_a_scalar_is_no_message(payload: bytes) -> None:
    assert invalid(decode(payload)).id is None


def test_an_answer_without_a_result_is_marked_since_it_may_be_one() -> None:
    error = invalid(parse(jsonrpc="2.0", id=5))
    assert (error.id, error.void) == (5, True)


def test_a_result_is_a_response() -> None:
    assert parse(jsonrpc="2.0", id=3, result={"a": [1]}) == Response(3, {"a": [1]}, None)
    assert parse(jsonrpc="2.0", id=3, result=None) == Response(3, None, None)
    assert parse(id=3, result=1, error=None) == Response(3, 1, None)
    assert parse(id=3, error=None) == Response(3, None, None)


def test_an_error_is_a_response_even_beside_a_result() -> None:
    for members in ({}, {"result": 1}):
        answer = response(parse(jsonrpc="2.0", id="a", error={"code": -5, "message": "no", "data": [1]}, **members))
        assert (answer.id, answer.result) == ("a", None)
        assert answer.error is not None
        assert (answer.error.code, answer.error.message, answer.error.data) == (-5, "no", [1])


@pytest.mark.parametrize("error", ["no", 1, [], {}, {"code": "1", "message": "m"}, {"code": True}, {"message": "m"}])
def test_a_malformed_error_is_still_a_response(error: object) -> None:
    answer = response(parse(jsonrpc="2.0", id=1, error=error))
    assert answer.error is not None
    assert isinstance(answer.error.data, ErrorData)
    assert (answer.error.code, answer.error.data.kind) == (Code.INTERNAL_ERROR, "malformed_answer")


@pytest.mark.parametrize("members", [{}, {"message": None}, {"message": 5}])
def test_an_error_without_a_message_keeps_its_code_and_data(members: dict[str, object]) -> None:
    error = response(parse(jsonrpc="2.0", id=1, error={"code": -7, "data": {"k": 1}, **members})).error
    assert error is not None
    assert (error.code, error.data) == (-7, {"k": 1})
    assert isinstance(error.message, str)


@pytest.mark.parametrize("id_", [[], {}, True])
def test_a_response_with_an_impossible_id_is_not_answered(id_: object) -> None:
    assert response(parse(jsonrpc="2.0", id=id_, result=1)).id is None


def test_a_response_of_another_version_is_not_answered() -> None:
    assert response(parse(id=1, result=1)).result == 1


def test_a_batch_is_taken_member_by_member() -> None:
    payload = (
        b'[{"jsonrpc":"2.0","method":"sum","params":[1],"id":"1"},{"jsonrpc":"2.0","method":"note"},'
        b'{"foo":"boo"},1,[],{"jsonrpc":"2.0","id":4,"result":"r"}]'
    )
    batch = decode(payload)
    assert isinstance(batch, Batch)
    request, note, *refused, answer = batch.items
    assert isinstance(request, Request)
    assert isinstance(note, Notification)
    assert [invalid(item).id for item in refused] == [None, None, None]
    assert answer == Response(4, "r", None)


def test_the_members_of_a_batch_share_its_size() -> None:
    payload = b'[{"jsonrpc":"2.0","method":"a"},{"jsonrpc":"2.0","method":"bcd"}]'
    batch = decode(payload)
    assert isinstance(batch, Batch)
    sizes = [item.size for item in batch.items if isinstance(item, Notification)]
    assert len(payload) <= sum(sizes) < len(payload) + len(sizes)


def test_an_empty_batch_is_one_invalid_request() -> None:
    assert invalid(decode(b"[]")).id is None


def test_a_batch_is_bounded() -> None:
    longest = decode(b"[" + b"1," * (MAX_BATCH_MEMBERS - 1) + b"1]")
    assert isinstance(longest, Batch)
    assert len(longest.items) == MAX_BATCH_MEMBERS
    assert invalid(decode(b"[" + b"1," * MAX_BATCH_MEMBERS + b"1]")).id is None


def test_what_is_encoded_is_what_the_specification_says() -> None:
    error = RpcError(-32601, "Method not found", ErrorData(kind="method_not_found"))
    assert encode_request(1, "m", [1]) == b'{"jsonrpc":"2.0","id":1,"method":"m","params":[1]}'
    assert encode_request("a", "m") == b'{"jsonrpc":"2.0","id":"a","method":"m"}'
    assert encode_notification("m", {}) == b'{"jsonrpc":"2.0","method":"m","params":{}}'
    assert encode_notification("m") == b'{"jsonrpc":"2.0","method":"m"}'
    assert encode_result("", 19) == b'{"jsonrpc":"2.0","id":"","result":19}'
    assert encode_error(None, RpcError(-1, "x")) == b'{"jsonrpc":"2.0","id":null,"error":{"code":-1,"message":"x"}}'
    assert json.loads(encode_error(2, error))["error"] == {
        "code": -32601,
        "message": "Method not found",
        "data": {"kind": "method_not_found", "retryable": False},
    }


def test_an_invalid_message_brings_the_error_to_answer_with() -> None:
    refused = invalid(decode(b'{"foo":1,"id":3}'))
    answer = json.loads(encode_error(refused.id, refused.error))
    assert answer["id"] == 3
    assert answer["error"]["code"] == Code.INVALID_REQUEST
    assert answer["error"]["data"]["kind"] == "invalid_request"


def test_a_batch_is_joined_from_encoded_messages() -> None:
    assert json.loads(join_batch([encode_result(1, "a"), encode_result(2, "b")])) == [
        {"jsonrpc": "2.0", "id": 1, "result": "a"},
        {"jsonrpc": "2.0", "id": 2, "result": "b"},
    ]


def circle() -> list[Any]:
    inner: list[Any] = []
    inner.append(inner)
    return inner


UNWRITABLE = {
    "object": object(),
    "complex number": 1j,
    "half a surrogate pair": "\ud800",
    "too long an integer": 10**5_000,
    "null as a key": {None: 1},
    "circle": circle(),
    "exception inside": {"a": [ValueError("x")]},
}


@pytest.mark.parametrize("value", UNWRITABLE.values(), ids=UNWRITABLE.keys())
def test_a_value_that_json_cannot_carry_is_an_encode_error(value: object) -> None:
    with pytest.raises(EncodeError):
        encode_result(1, value)
    with pytest.raises(EncodeError):
        encode_error(1, RpcError(-1, "x", value))
    with pytest.raises(EncodeError):
        encode_request(1, "m", [value])


def test_no_encoded_message_holds_a_newline() -> None:
    pretty = msgspec.Raw(b'{\n  "a": "b\\n"\n}')
    encoded = encode_result(1, [pretty, "a\nb"])
    assert b"\n" not in encoded
    assert json.loads(encoded)["result"] == [{"a": "b\n"}, "a\nb"]
