"""Ways in which a database file can be damaged: its bytes in, the damaged ones out."""

import re

from tests.support.stores import record

PAGE = 4096
TABLE_LEAF = 0x0D


def overwrite(data: bytes, start: int, end: int) -> bytes:
    return data[:start] + (b"garbage!" * ((end - start) // 8 + 1))[: end - start] + data[end:]


def page_with(data: bytes, text: bytes) -> int:
    return data.index(text) // PAGE * PAGE


def first_page(data: bytes) -> bytes:
    return overwrite(data, 0, PAGE)


def header(data: bytes) -> bytes:
    return overwrite(data, 0, 64)


def another_program(data: bytes) -> bytes:
    return data[:68] + b"\x00\x00\x00\x01" + data[72:]


def name_of_a_table(data: bytes) -> bytes:
    return data.replace(b"tableoutboxoutbox", b"tableoutbixoutbox")


def text_of_a_table(data: bytes) -> bytes:
    return data.replace(b"CREATE TABLE outbox", b"CREATE TABLE outbix")


def leaf_of_tables(data: bytes) -> bytes:
    at = page_with(data, b"CREATE TABLE outbox")
    return overwrite(data, at, at + PAGE)


def index_gone(data: bytes) -> bytes:
    return data.replace(b"CREATE INDEX outbox_line", b"CREATE INDEX outbox_lime")


def leaf_of_bodies(data: bytes) -> bytes:
    at = page_with(data, b'{"id":"r150"')
    return overwrite(data, at, at + PAGE)


def leaf_with(data: bytes, text: str) -> bytes:
    """Damage the leaf of a table that a text is on; indexes may have it, too."""
    places = [found.start() // PAGE * PAGE for found in re.finditer(re.escape(text.encode()), data)]
    leaf = next(at for at in places if data[at] == TABLE_LEAF)
    return overwrite(data, leaf, leaf + PAGE)


def two_leaves_of_rows(data: bytes) -> bytes:
    """Damage two leaves of the outbox, so that what lies between can be reached from neither end."""
    for name in ("r60", "r240"):
        data = leaf_with(data, record(name, size=700).fingerprint)
    return data


def second_half(data: bytes) -> bytes:
    return overwrite(data, len(data) // 2 // PAGE * PAGE, len(data))


def cut(data: bytes) -> bytes:
    """Cut the file at a page's end: a row that is cut itself is found out by its checksum, once it would be sent."""
    return data[: len(data) * 2 // 3 // PAGE * PAGE]
