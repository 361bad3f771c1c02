import json

from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import FrameError
from protocol.framing import Decoder, Framing, encode

LIMIT = 40
TOKENS = st.sampled_from(
    [b"Content-Length: ", b"content-LENGTH:", b"0", b"3", b"12", b"41", b":", b"X: y\r\n", b"X-", b"\r\n", b"\n", b"\r"]
) | st.sampled_from(
    [b" ", b"\t", b"{", b"[1]", b'"', b"\xef\xbb\xbf", b"\xef", b"\xbb", b"\x00", b"\xff", b"x" * 39, b"y" * 300]
)
STREAMS = st.binary(max_size=120) | st.lists(TOKENS | st.binary(max_size=3), max_size=30).map(b"".join)
PIECES = st.lists(st.integers(1, 60), min_size=1, max_size=8)
FORCED = st.none() | st.sampled_from(Framing)


def frames(data: bytes, sizes: list[int], framing: Framing | None = None, limit: int = LIMIT) -> list[bytes | str]:
    """Return all frames of `data` fed in pieces of `sizes`, over and over; errors as their kind."""
    decoder = Decoder(limit, framing)
    found: list[bytes | FrameError] = []
    turn = 0
    while data:
        size = sizes[turn % len(sizes)]
        found += decoder.feed(data[:size])
        data = data[size:]
        turn += 1
    return [frame.kind if isinstance(frame, FrameError) else frame for frame in found + decoder.end()]


@settings(max_examples=400)
@given(STREAMS, PIECES, FORCED)
def test_any_bytes_give_the_same_frames_in_whatever_pieces(
    data: bytes, sizes: list[int], framing: Framing | None
) -> None:
    whole = frames(data, [max(1, len(data))], framing)
    assert frames(data, sizes, framing) == whole
    assert frames(data, [1], framing) == whole
    for frame in whole:
        assert frame in {"message_too_large", "bad_header", "truncated"} or len(frame) <= LIMIT


@given(STREAMS, st.lists(st.sampled_from([b"{}", b'{"a":"\\u000a"}', b"[1,2]"]), min_size=1), PIECES)
def test_messages_after_any_noise_are_found_again(noise: bytes, payloads: list[bytes], sizes: list[int]) -> None:
    lines = b"[" + noise + b"\n" + b"".join(encode(payload, Framing.NDJSON) for payload in payloads)
    assert frames(lines, sizes)[-len(payloads) :] == payloads
    lost = b"Content-Length: ?\r\n" + noise.replace(b"\n", b"").replace(b"\r", b"")
    blocks = lost + b"".join(encode(payload, Framing.CONTENT_LENGTH) for payload in payloads)
    assert frames(blocks, sizes) == ["bad_header", *payloads]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
MESSAGES = st.lists((st.dictionaries(st.text(max_size=5), JSON, max_size=3) | st.lists(JSON, max_size=3)), max_size=8)
BLANKS = st.sampled_from([b"", b"\n", b"\r\n", b" \t\r\n", b"\n\n"])


def payload(message: object) -> bytes:
    return json.dumps(message, ensure_ascii=False).encode("utf-8", "replace")


@given(MESSAGES, BLANKS, st.sampled_from([b"\n", b"\r\n"]), PIECES, FORCED)
def test_lines_come_back_as_they_were_framed(
    messages: list[object], blanks: bytes, ending: bytes, sizes: list[int], framing: Framing | None
) -> None:
    sent = [payload(message) for message in messages]
    framing = framing and Framing.NDJSON
    stream = blanks + b"".join(encode(each, Framing.NDJSON)[:-1] + ending + blanks for each in sent)
    assert frames(stream, sizes, framing, limit=100_000) == sent
    assert frames(stream.rstrip(), sizes, framing, limit=100_000) == sent


@given(st.lists(st.binary(max_size=80), max_size=8), BLANKS, PIECES, FORCED)
def test_bodies_come_back_as_they_were_framed(
    sent: list[bytes], blanks: bytes, sizes: list[int], framing: Framing | None
) -> None:
    framing = framing and Framing.CONTENT_LENGTH
    stream = blanks + b"".join(encode(each, Framing.CONTENT_LENGTH) + blanks for each in sent)
    assert frames(stream, sizes, framing, limit=80) == sent
