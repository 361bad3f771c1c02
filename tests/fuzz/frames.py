"""The frame decoder under arbitrary bytes in arbitrary pieces, in both framings.

The first bytes of an input choose the framing, the limit and the sizes of the pieces; the rest is the stream. Seeds and
found cases are run by `test_fuzz_cases.py`, and are what the fuzzer starts from.
"""

from protocol.errors import FrameError
from protocol.framing import MAX_HEADER_BYTES, Decoder, Framing

FRAMINGS = (None, *Framing)
KINDS = {"message_too_large", "bad_header", "truncated"}
CHOICES = 5
WORDS = (b"Content-Length: ", b"content-length:", b"\r\n\r\n", b"\r\n", b"\xef\xbb\xbf", b'{"id":1}', b"999999999999")
SEEDS = (
    b'\x00\x10\x03\x01\x07{"id":1}\n\r\n[1]\r\n' + b"x" * 40 + b"\n{}",
    b'\x01\x10\x01\x01\x01\n\n{"a":"\xff"}\n\xef\xbb\xbf{}',
    b"\x02\x20\x09\x02\x30Content-Length: 2\r\n\r\n{}content-LENGTH:40\n\n" + b"x" * 40 + b"Content-Length:2\n\n[]",
    b"\x00\x04\x02\x05\x01X: y\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n}Content-Length: 1\n\n1",
    b"\x02\x00\xff\xff\xffX-Long: " + b"y" * 9000 + b"\nContent-Length: 0\n\nContent-Length: 1000000000000\n\n",
)
FOUND: tuple[bytes, ...] = ()


def one_input(data: bytes) -> None:
    """Feed one stream in pieces and whole; raise AssertionError where the decoder breaks a promise."""
    choices, stream = data[:CHOICES], data[CHOICES:]
    if len(choices) < CHOICES:
        return
    framing, limit = FRAMINGS[choices[0] % len(FRAMINGS)], choices[1]
    in_pieces = frames(stream, [size + 1 for size in choices[2:]], framing, limit)
    assert in_pieces == frames(stream, [len(stream) + 1], framing, limit)
    assert all(frame in KINDS if isinstance(frame, str) else len(frame) <= limit for frame in in_pieces)
    assert sum(len(frame) for frame in in_pieces if isinstance(frame, bytes)) <= len(stream)


def frames(stream: bytes, sizes: list[int], framing: Framing | None, limit: int) -> list[bytes | str]:
    """Return all frames, errors as their kind; what the decoder keeps between two pieces is bounded."""
    decoder = Decoder(limit, framing)
    found: list[bytes | FrameError] = []
    start = turn = 0
    while start < len(stream):
        end = start + sizes[turn % len(sizes)]
        found += decoder.feed(stream[start:end])
        assert held_bytes(decoder) <= max(limit + 1, MAX_HEADER_BYTES) + max(sizes)
        start, turn = end, turn + 1
    return [frame.kind if isinstance(frame, FrameError) else frame for frame in found + decoder.end()]


def held_bytes(decoder: Decoder) -> int:
    """Count what a decoder keeps of messages that are not complete."""
    cutter: object = vars(decoder)["_cutter"]
    return 0 if cutter is None else sum(len(part) for part in vars(cutter).values() if isinstance(part, bytearray))
