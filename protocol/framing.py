"""Frames on a byte stream: bytes in, frames out. Pure: it reads nothing, writes nothing, waits for nothing.

The first byte that is not blank decides between the framings: a letter begins a header block (`Content-Length: 12`),
anything else is a line of JSON (NDJSON). What is no frame comes out as a `FrameError`, in its place among the frames:

- A message over the limit is reported once, as soon as that is known, and skipped to its end without being kept.
- After a bad header nothing says where its body ends. The decoder is lost then, and silent, until a line ends in
  `Content-Length: <digits>`: there a header block begins. JSON has no newline inside a string, so no body can forge it.

Frames do not depend on the pieces in which the bytes come. Work is linear in the bytes, memory is bounded by the limit.
"""

import re
from enum import StrEnum
from typing import Final, TypeAlias

from protocol.errors import FrameError

MAX_HEADER_BYTES: Final = 8 * 1024

_MAX_DIGITS: Final = 12  # a longer Content-Length is garbage: no stream is skipped by the terabyte
_BLANK: Final = b" \t\r\n"
_BOM: Final = b"\xef\xbb\xbf"
_WINDOW: Final = 256  # how much of the end of a line is searched for a header
_HEADER_AT_END: Final = re.compile(rb"content-length[ \t]*:[ \t]*([0-9]{1,%d})[ \t\r]*\Z" % _MAX_DIGITS, re.IGNORECASE)

Frame: TypeAlias = bytes | FrameError


class Framing(StrEnum):
    """How messages are told apart on the stream."""

    NDJSON = "ndjson"
    CONTENT_LENGTH = "content-length"


def encode(payload: bytes, framing: Framing) -> bytes:
    """Frame one payload. For NDJSON it must hold no newline; what `protocol.messages` encodes has none."""
    if framing is Framing.NDJSON:
        return payload + b"\n"
    return b"Content-Length: %d\r\n\r\n%b" % (len(payload), payload)


class Decoder:
    """Cut a byte stream into frames of at most `max_message_bytes`; `framing` is detected unless it is given.

    Blank lines, CRLF for LF, and a BOM at the start of the stream are tolerated in both framings; header names are
    case-insensitive; headers other than Content-Length are ignored.
    """

    def __init__(self, max_message_bytes: int, framing: Framing | None = None) -> None:
        self._max_bytes = max_message_bytes
        self._framing = framing
        self._cutter: _Lines | _Blocks | None = None

    @property
    def framing(self) -> Framing | None:
        """Return the framing in use, None until it is known."""
        return self._framing

    def feed(self, data: bytes) -> list[Frame]:
        """Take the next bytes of the stream and return the frames that they complete, oldest first."""
        if self._cutter is None:
            data = data.lstrip(_BOM + _BLANK)
            if not data:
                return []
            self._cutter = self._begin(data)
        return self._cutter.feed(data)

    def limit(self, max_message_bytes: int) -> None:
        """Allow messages of at most so many bytes from now on, also for a line that has begun."""
        self._max_bytes = max_message_bytes
        if self._cutter is not None:
            self._cutter.max_bytes = max_message_bytes

    def end(self) -> list[Frame]:
        """Say that the stream has ended and return what its last bytes were. Feed nothing after it."""
        return [] if self._cutter is None else self._cutter.end()

    def _begin(self, data: bytes) -> "_Lines | _Blocks":
        if self._framing is None:
            self._framing = Framing.CONTENT_LENGTH if data[:1].isalpha() else Framing.NDJSON
        return _Lines(self._max_bytes) if self._framing is Framing.NDJSON else _Blocks(self._max_bytes)


class _Lines:
    """NDJSON. A CR before the newline does not count against the limit; other blanks around a message do."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._line = bytearray()  # the line that is not complete
        self._skipping = False  # it is over the limit, and was reported

    def feed(self, data: bytes) -> list[Frame]:
        frames: list[Frame] = []
        *lines, rest = data.split(b"\n")
        most = self.max_bytes
        for line in lines:
            if self._line or self._skipping or len(line) > most:
                frames += self._complete(line)
            elif message := line.strip(_BLANK):
                frames.append(message)
        if not self._skipping:
            self._line += rest
            if len(self._line) > self.max_bytes + len(b"\r"):
                self._line.clear()
                self._skipping = True
                frames.append(_too_large(self.max_bytes))
        return frames

    def end(self) -> list[Frame]:
        return self._complete(b"")

    def _complete(self, line: bytes) -> list[Frame]:
        if self._skipping:
            self._skipping = False
            return []
        if self._line:
            line = bytes(self._line) + line
            self._line.clear()
        if len(line) - line.endswith(b"\r") > self.max_bytes:
            return [_too_large(self.max_bytes)]
        line = line.strip(_BLANK)
        return [line] if line else []


class _Blocks:
    """Content-Length: a block of header lines, a blank line, a body."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._line = bytearray()  # the header line that is not complete
        self._block_bytes = 0  # in the complete lines of the header block
        self._length: int | None = None  # what the header block says
        self._lost = False  # a header was bad, and was reported
        self._body = bytearray()
        self._missing = 0  # bytes of the body still to come
        self._skipping = False  # the body is over the limit, and was reported

    def feed(self, data: bytes) -> list[Frame]:
        frames: list[Frame] = []
        start = 0
        while start < len(data):
            if self._missing:
                piece = data[start : start + self._missing]
                start += len(piece)
                frames += self._extend_body(piece)
            elif (end := data.find(b"\n", start)) >= 0:
                line = bytes(self._line) + data[start:end]
                self._line.clear()
                start = end + 1
                frames += self._complete_line(line)
            else:
                frames += self._extend_line(data[start:])
                break
        return frames

    def end(self) -> list[Frame]:
        unfinished = self._missing or self._block_bytes or self._line.strip(_BLANK)
        if not unfinished or self._lost or self._skipping:
            return []
        return [FrameError("The stream ended inside a message", kind="truncated")]

    def _extend_body(self, piece: bytes) -> list[Frame]:
        self._missing -= len(piece)
        if not self._skipping:
            self._body += piece
        return [] if self._missing else self._complete_body()

    def _complete_body(self) -> list[Frame]:
        frames: list[Frame] = [] if self._skipping else [bytes(self._body)]
        self._body.clear()
        self._skipping = False
        return frames

    def _extend_line(self, piece: bytes) -> list[Frame]:
        self._line += piece
        if not self._lost and self._block_bytes + len(self._line) >= MAX_HEADER_BYTES:
            return self._lose("its header block is too long")
        if self._lost and len(self._line) > MAX_HEADER_BYTES:
            del self._line[:-_WINDOW]
        return []

    def _complete_line(self, line: bytes) -> list[Frame]:
        frames: list[Frame] = []
        if not self._lost:
            if not line.strip(_BLANK):
                return self._complete_block() if self._block_bytes else []
            frames += self._header(line)
        if self._lost and (found := _HEADER_AT_END.search(line[-_WINDOW:])):
            self._lost = False
            frames += self._header(found.group())
        return frames

    def _header(self, line: bytes) -> list[Frame]:
        self._block_bytes += len(line) + len(b"\n")
        if self._block_bytes > MAX_HEADER_BYTES:
            return self._lose("its header block is too long")
        name, colon, value = line.partition(b":")
        name = name.strip(_BLANK).lower()
        if not colon or not name.replace(b"-", b"").isalnum():
            return self._lose("a line where headers belong is none")
        if name != b"content-length":
            return []
        value = value.strip(_BLANK)
        if not value.isdigit() or len(value) > _MAX_DIGITS:
            return self._lose("its Content-Length is no number of bytes")
        if self._length not in {None, int(value)}:
            return self._lose("it has two different Content-Lengths")
        self._length = int(value)
        return []

    def _complete_block(self) -> list[Frame]:
        length, self._length, self._block_bytes = self._length, None, 0
        if length is None:
            return self._lose("its header block has no Content-Length")
        self._missing = length
        if length > self.max_bytes:
            self._skipping = True
            return [_too_large(self.max_bytes)]
        return [] if length else self._complete_body()

    def _lose(self, reason: str) -> list[Frame]:
        self._lost, self._length, self._block_bytes = True, None, 0
        return [FrameError(f"A message cannot be read: {reason}", kind="bad_header")]


def _too_large(max_bytes: int) -> FrameError:
    return FrameError(f"A message is longer than {max_bytes} bytes; it was skipped", kind="message_too_large")
