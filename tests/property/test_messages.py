import json

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from protocol.errors import Code, RpcError
from protocol.messages import (
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
    join_batch,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NUMBERS = st.integers() | st.integers(-(10**300), 10**300) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
IDS = st.none() | TEXT | NUMBERS
PARAMS = st.none() | st.lists(VALUES, max_size=4) | st.dictionaries(TEXT, VALUES, max_size=4)
# Objects that look like messages, right and wrong in every member.
MEMBERS = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.just("2.0") | VALUES,
        "id": IDS | VALUES,
        "method": TEXT | VALUES,
        "params": PARAMS | VALUES,
        "result": VALUES,
        "error": st.fixed_dictionaries({}, optional={"code": VALUES, "message": VALUES, "data": VALUES}) | VALUES,
        "other": VALUES,
    },
)


def answerable(message: Incoming) -> None:
    """Check what every value promises, and that what must be answered can be."""
    match message:
        case Batch(items=items):
            assert items
            for item in items:
                assert not isinstance(item, Batch)
                answerable(item)
        case Invalid():
            assert message.code in {Code.PARSE_ERROR, Code.INVALID_REQUEST}
            back = decode(encode_error(message.id, message.error))
            assert isinstance(back, Response)
            assert back.id == message.id
            assert back.error is not None
            assert back.error.code == message.code
        case Request(id=id_):
            assert not isinstance(id_, bool)
            assert isinstance(decode(encode_result(id_, None)), Response)
        case Notification() | Response():
            pass


@given(
    st.binary(max_size=200) | st.text(alphabet='{}[]":,0123456789eE.+-truefalsn\\ud8 \n', max_size=60).map(str.encode)
)
def test_no_bytes_make_decode_raise(payload: bytes) -> None:
    answerable(decode(payload))


@given(MEMBERS | st.lists(MEMBERS | VALUES, max_size=4) | VALUES)
def test_no_json_makes_decode_raise(value: object) -> None:
    answerable(decode(json.dumps(value).encode()))


@given(MEMBERS | MEMBERS.map(lambda members: {"jsonrpc": "2.0", **members}))
def test_a_message_means_the_same_by_itself_and_in_a_batch(members: dict[str, object]) -> None:
    text = json.dumps(members).encode()
    batch = decode(b"[%b]" % text)
    assert isinstance(batch, Batch)
    (member,) = batch.items
    assert unsized(decode(text)) == unsized(member)


def unsized(message: Incoming) -> str:
    """Write a message down, without what it took of its payload; 1, 1.0 and true are three."""
    return repr(replace(message, size=0) if isinstance(message, Request | Notification) else message)


@given(MEMBERS)
def test_an_answer_is_never_answered_and_nothing_else_is_dropped(members: dict[str, object]) -> None:
    is_answer = "method" not in members and ("result" in members or "error" in members)
    assert isinstance(decode(json.dumps(members).encode()), Response) == is_answer


@given(IDS, TEXT, PARAMS)
def test_calls_come_back_as_they_were_encoded(id_: str | float | None, method: str, params: object) -> None:
    request = decode(encode_request(id_, method, params))
    assert isinstance(request, Request)
    assert (request.id, type(request.id), request.method, request.params) == (id_, type(id_), method, params)
    note = decode(encode_notification(method, params))
    assert isinstance(note, Notification)
    assert (note.method, note.params) == (method, params)


@given(IDS, VALUES, st.integers(), TEXT)
def test_answers_come_back_as_they_were_encoded(id_: str | float | None, value: object, code: int, text: str) -> None:
    assert decode(encode_result(id_, value)) == Response(id_, value, None)
    answer = decode(encode_error(id_, RpcError(code, text, value)))
    assert isinstance(answer, Response)
    assert answer.error is not None
    assert (answer.id, answer.error.code, answer.error.message, answer.error.data) == (id_, code, text, value)


@settings(max_examples=50)
@given(st.lists(st.tuples(IDS, VALUES), min_size=1, max_size=5))
def test_a_joined_batch_comes_apart_again(answers: list[tuple[str | float | None, object]]) -> None:
    batch = decode(join_batch([encode_result(id_, value) for id_, value in answers]))
    assert batch == Batch(tuple(Response(id_, value, None) for id_, value in answers))
