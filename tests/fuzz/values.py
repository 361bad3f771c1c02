"""JSON values out of arbitrary bytes, so that every mutation of an input is a well-formed value.

JSON is read by compiled code, which tells a fuzzer nothing of how near an input is to being well-formed.
"""

from collections.abc import Sequence

BUILT = 1  # the first byte of an input whose rest is built, not read as JSON
_MAX_DEPTH = 6
_NUMBERS = (0, 1, -1, 1.0, 0.5, 1e300, -0.0, 2**53, 2**63, 2**64, -(2**63), 10**40)
_TEXTS = ("", "2.0", "a", "\u00e9", "\U0001f600", "\x00", "\x7f", " 12 ", "1e400", "[]", '{"repo":"core"}', "x" * 256)


class Source:
    """Bytes to be taken one after the other; when they are used up, zeros."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self) -> int:
        """Return the next byte."""
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0


def build(source: Source, names: Sequence[str], depth: int = 0) -> object:
    """Build a value; `names` are the keys that its objects have."""
    choice, count = source.take() % 8, source.take() % 6
    if choice in {6, 7} and depth < _MAX_DEPTH:
        members = [(names[source.take() % len(names)], build(source, names, depth + 1)) for _ in range(count)]
        return dict(members) if choice == 7 else [value for _, value in members]
    return _leaf(choice, source, names)


def _leaf(choice: int, source: Source, names: Sequence[str]) -> object:
    which = source.take()
    match choice:
        case 1:
            return which % 2 == 1
        case 2:
            return _NUMBERS[which % len(_NUMBERS)]
        case 3:
            return int.from_bytes(bytes(source.take() for _ in range(which % 12)), signed=True)
        case 4:
            return _TEXTS[which % len(_TEXTS)]
        case 5:
            return names[which % len(names)]
        case _:
            return None
