import tracemalloc
from collections.abc import Iterator

import pytest

from protocol.errors import FrameError
from protocol.framing import MAX_HEADER_BYTES, Decoder, Framing, encode

BOM = b"\xef\xbb\xbf"
LIMIT = 100
PIECES = [1, 2, 3, 7, 10_000]


def cut(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def frames(data: bytes, size: int = 10_000, *, limit: int = LIMIT, framing: Framing | None = None) -> list[bytes | str]:
    """Return all frames of `data` fed in pieces, errors as their kind."""
    decoder = Decoder(limit, framing)
    found = [frame for piece in cut(data, size) for frame in decoder.feed(piece)]
    return [frame.kind if isinstance(frame, FrameError) else frame for frame in found + decoder.end()]


def block(payload: bytes) -> bytes:
    return encode(payload, Framing.CONTENT_LENGTH)


@pytest.mark.parametrize("size", PIECES)
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'{"a":1}\n[2]\n', [b'{"a":1}', b"[2]"]),
        (b'{"a":1}\r\n\r\n\n  \n{"b":2}\r\n', [b'{"a":1}', b'{"b":2}']),
        (b'\r\n\n \t{"a":1}\n', [b'{"a":1}']),
        (BOM + b'{"a":1}\n', [b'{"a":1}']),
        (b"\n" + BOM + b'\n{"a":1}\n', [b'{"a":1}']),
        (b'{"a":1}', [b'{"a":1}']),
        (b'{"a":1}\n \t\r', [b'{"a":1}']),
        (b'\x00garbage\n{"a":1}\n', [b"\x00garbage", b'{"a":1}']),
        (b'17\n{"a":1}\n', [b"17", b'{"a":1}']),
        ('{"a":"é\u2028"}\n'.encode(), ['{"a":"é\u2028"}'.encode()]),
        (b"", []),
        (b" \r\n", []),
        (BOM, []),
    ],
)
def test_each_line_of_json_is_a_frame(data: bytes, expected: list[bytes], size: int) -> None:
    assert frames(data, size) == expected


@pytest.mark.parametrize("size", PIECES)
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"Content-Length: 2\r\n\r\n{}Content-Length: 3\r\n\r\n[1]", [b"{}", b"[1]"]),
        (b"Content-Length: 2\n\n{}", [b"{}"]),
        (b"CONTENT-length:2\r\n\r\n{}", [b"{}"]),
        (b"Content-Length : \t 002 \r\n\r\n{}", [b"{}"]),
        (b"Content-Type: application/vscode-jsonrpc; charset=utf-8\r\nContent-Length: 2\r\n\r\n{}", [b"{}"]),
        (b"Content-Length: 2\r\nX: :\r\n\r\n{}", [b"{}"]),
        (b"Content-Length: 2\r\ncontent-length: 2\r\n\r\n{}", [b"{}"]),
        (b"\r\nContent-Length: 2\r\n\r\n{}\r\n\n  \r\nContent-Length: 2\r\n\r\n[]", [b"{}", b"[]"]),
        (BOM + b"Content-Length: 2\r\n\r\n{}", [b"{}"]),
        (b"Content-Length: 4\r\n\r\n\r\n\n Content-Length: 0\r\n\r\n", [b"\r\n\n ", b""]),
        (block('"é"'.encode()), ['"é"'.encode()]),
        (block(b"{}") + b"\r\n \n", [b"{}"]),
    ],
)
def test_each_body_after_its_headers_is_a_frame(data: bytes, expected: list[bytes], size: int) -> None:
    assert frames(data, size) == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b" \n", None),
        (BOM, None),
        (b"\n{", Framing.NDJSON),
        (b"[", Framing.NDJSON),
        (b"\xff", Framing.NDJSON),
        (b'"', Framing.NDJSON),
        ("é".encode(), Framing.NDJSON),
        (BOM + b"\r\nC", Framing.CONTENT_LENGTH),
        (b"x", Framing.CONTENT_LENGTH),
    ],
)
def test_the_first_byte_that_is_not_blank_decides(data: bytes, expected: Framing | None) -> None:
    decoder = Decoder(LIMIT)
    assert decoder.framing is None
    decoder.feed(data)
    assert decoder.framing is expected


def test_a_given_framing_is_not_detected() -> None:
    decoder = Decoder(LIMIT, Framing.NDJSON)
    assert decoder.framing is Framing.NDJSON
    assert decoder.feed(b"Content-Length: 2\r\n") == [b"Content-Length: 2"]
    assert frames(b'{"a":1}\n' + block(b"{}"), framing=Framing.CONTENT_LENGTH) == ["bad_header", b"{}"]


@pytest.mark.parametrize("size", PIECES)
@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_a_line_over_the_limit_is_one_error_and_reading_goes_on(size: int, ending: bytes) -> None:
    lines = [b"x" * LIMIT, b"y" * (LIMIT + 1), b"{}", b"z" * (LIMIT * 20), b"[]"]
    data = b'{"a":1}' + ending + ending.join(lines) + ending
    expected = [b'{"a":1}', b"x" * LIMIT, "message_too_large", b"{}", "message_too_large", b"[]"]
    assert frames(data, size) == expected


@pytest.mark.parametrize("size", PIECES)
def test_a_last_line_over_the_limit_is_one_error(size: int) -> None:
    for length in (LIMIT + 1, LIMIT * 20):
        assert frames(b"[" + b"x" * length, size) == ["message_too_large"]
    assert frames(b"[" + b"x" * (LIMIT - 1), size) == [b"[" + b"x" * (LIMIT - 1)]


@pytest.mark.parametrize("size", PIECES)
def test_a_body_over_the_limit_is_one_error_and_reading_goes_on(size: int) -> None:
    data = block(b"x" * LIMIT) + block(b"y" * (LIMIT + 1)) + block(b"{}") + block(b"z\n" * LIMIT) + block(b"[]")
    assert frames(data, size) == [b"x" * LIMIT, "message_too_large", b"{}", "message_too_large", b"[]"]


def test_a_message_that_is_too_large_is_reported_before_it_ends() -> None:
    for start in (b"[" + b"x" * (LIMIT * 2), b"Content-Length: 101\r\n\r\n"):
        (error,) = Decoder(LIMIT).feed(start)
        assert isinstance(error, FrameError)


@pytest.mark.parametrize("framing", Framing)
def test_the_limit_can_change_between_messages(framing: Framing) -> None:
    decoder = Decoder(5)
    decoder.limit(3)
    message = encode(b'"1234"', framing)
    kinds: list[bool] = []
    for limit in (3, 6, 5, 7):
        decoder.limit(limit)
        (frame,) = decoder.feed(encode(b"[1]", framing))
        assert frame == b"[1]"
        kinds += [isinstance(frame, FrameError) for frame in decoder.feed(message)]
    assert kinds == [True, False, True, False]


BAD = {
    "no number": b"Content-Length: two\r\n\r\n",
    "empty": b"Content-Length:\r\n\r\n",
    "negative": b"Content-Length: -2\r\n\r\n",
    "signed": b"Content-Length: +2\r\n\r\n",
    "fraction": b"Content-Length: 2.0\r\n\r\n",
    "underscore": b"Content-Length: 1_0\r\n\r\n",
    "huge": b"Content-Length: 1" + b"0" * 12 + b"\r\n\r\n",
    "thousands of digits": b"Content-Length: " + b"9" * 5_000 + b"\r\n\r\n",
    "not ASCII": "Content-Length: ٢\r\n\r\n".encode(),
    "absent": b"Content-Type: json\r\n\r\n",
    "contradictory": b"Content-Length: 2\r\nContent-Length: three\r\n\r\n",
    "no colon": b"Starting up ...\r\n",
    "no name": b"Starting up: [12:00]\r\n",
    "too long a line": b"X: " + b"y" * MAX_HEADER_BYTES + b"\r\n\r\n",
    "too many lines": b"X: y\r\n" * (MAX_HEADER_BYTES // 6 + 1) + b"\r\n",
}


@pytest.mark.parametrize("size", [1, 5, 10_000])
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_a_bad_header_is_one_error_and_reading_goes_on_at_the_next_header(bad: bytes, size: int) -> None:
    body = b'{"Content-Length: 1":"\\nContent-Length: 1"}'
    assert frames(bad + body + block(b"[1]") + block(b"[2]"), size) == ["bad_header", b"[1]", b"[2]"]
    assert frames(block(b"[0]") + bad + block(b"[1]"), size) == [b"[0]", "bad_header", b"[1]"]
    assert frames(bad, size) == ["bad_header"]


@pytest.mark.parametrize("size", PIECES)
def test_a_contradiction_is_settled_by_the_later_length(size: int) -> None:
    data = b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n[1]" + block(b"{}")
    assert frames(data, size) == ["bad_header", b"[1]", b"{}"]


@pytest.mark.parametrize("size", [1, 300, 10_000])
def test_a_header_is_found_after_a_long_body_of_unknown_length(size: int) -> None:
    data = b"Content-Length: x\r\n\r\n{" + b"y" * (3 * MAX_HEADER_BYTES) + b"}Content-Type: a\r\n" + block(b"[1]")
    assert frames(data, size) == ["bad_header", b"[1]"]


@pytest.mark.parametrize("size", [1, 300, 20_000])
def test_a_header_is_looked_for_at_the_end_of_a_line_only(size: int) -> None:
    data = b"Content-Length: x\r\n\r\n" + b"y" * MAX_HEADER_BYTES + b"Content-Length: 2" + b" " * 300 + b"\r\n\r\n{}"
    assert frames(data + block(b"[1]"), size) == ["bad_header", b"[1]"]


def test_a_header_block_of_8_kib_is_read() -> None:
    length = b"Content-Length: 2\r\n"
    filler = b"X: " + b"y" * (MAX_HEADER_BYTES - len(length) - 5) + b"\r\n"
    assert len(filler + length) == MAX_HEADER_BYTES
    assert frames(filler + length + b"\r\n{}", 100) == [b"{}"]
    assert frames(b"y" + filler + length + b"\r\n{}", 100) == ["bad_header", b"{}"]


@pytest.mark.parametrize("data", [b"C", b"Content-Length: 2\r\n", b"Content-Length: 2\r\n\r\n", block(b"{}")[:-1]])
@pytest.mark.parametrize("size", PIECES)
def test_a_stream_that_ends_inside_a_message_is_an_error(data: bytes, size: int) -> None:
    assert frames(block(b"{}") + data, size) == [b"{}", "truncated"]


def test_the_end_inside_a_message_that_was_reported_is_no_second_error() -> None:
    assert frames(block(b"x" * LIMIT * 2)[:-1]) == ["message_too_large"]
    assert frames(b"noise\r\nCont") == ["bad_header"]


def test_what_is_encoded_counts_bytes() -> None:
    assert encode('"é"'.encode(), Framing.CONTENT_LENGTH) == b'Content-Length: 4\r\n\r\n"\xc3\xa9"'
    assert encode(b"{}", Framing.NDJSON) == b"{}\n"


ENDLESS = {
    "line": (b"[", b"x"),
    "body": (b"Content-Length: 900000000\r\n\r\n", b"x"),
    "line of a header": (b"X: ", b"x"),
    "header block": (b"Content-Length: 1\r\n", b"X: y\r\n"),
    "noise": (b"Content-Length: x\r\n\r\n", b"x"),
    "noise in lines": (b"Content-Length: x\r\n\r\n", b"xxxxxxx\n"),
    "blanks": (b"", b" "),
}


@pytest.mark.parametrize(("start", "more"), ENDLESS.values(), ids=ENDLESS.keys())
def test_what_never_ends_takes_no_more_memory_than_the_limit(start: bytes, more: bytes) -> None:
    limit = 256 * 1024
    piece = more * (64 * 1024 // len(more))
    decoder = Decoder(limit)
    errors = len(decoder.feed(start))
    tracemalloc.start()
    try:
        for _ in range(20):
            errors += len(decoder.feed(piece))
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < limit
    assert peak < 8 * limit
    assert errors <= 1


@pytest.mark.parametrize("framing", Framing)
def test_a_large_message_in_tiny_pieces_takes_linear_time(framing: Framing) -> None:
    # Copying what is pending for each byte would move 500 GB here, and run into the test's time limit.
    payload = b"[" + b"1" * 1_000_000 + b"]"
    assert frames(encode(payload, framing), 1, limit=2_000_000) == [payload]
