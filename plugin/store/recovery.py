"""A damaged file is set aside whole, and what can be read of it goes into a fresh one, row by row."""

import contextlib
import hashlib
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from plugin.store.file import FAMILY, NAME

# Without these a table is of no use; `outbox` and `body` are one thing and are salvaged together.
PLAIN = ("batch", "ledger", "context", "pulled", "history", "times", "gate", "import")


@dataclass(frozen=True, slots=True, kw_only=True)
class Salvage:
    """What was saved of the outbox, in records; `lost` is what the old file counted beyond that."""

    salvaged: int
    lost: int
    set_aside: str


def set_aside(folder: Path, *, now_ms: int) -> Path:
    """Move the file and its log into a folder of their own; return it."""
    place = folder / f"agentic-sync.corrupt-{now_ms}"
    place.mkdir(mode=0o700)
    for name in FAMILY:
        with contextlib.suppress(FileNotFoundError):
            os.rename(folder / name, place / name)  # noqa: PTH104 - replaces nothing, as the folder is new
    _sync(place)
    _sync(folder)
    return place


def salvage(place: Path, db: sqlite3.Connection) -> Salvage:
    """Copy what can be read from a file that was set aside into an open, fresh database.

    A copy of it is read, so that what was set aside stays as it was found.
    """
    copy = place / "copy"
    copy.mkdir(mode=0o700)
    for name in FAMILY[:2]:
        with contextlib.suppress(FileNotFoundError):
            (copy / name).write_bytes((place / name).read_bytes())
    try:
        old = sqlite3.connect(copy / NAME, isolation_level=None)
        try:
            expected, saved = _copy(old, db)
        finally:
            old.close()
    finally:
        for leftover in copy.iterdir():
            leftover.unlink()
        copy.rmdir()
    return Salvage(salvaged=saved, lost=max(0, expected - saved), set_aside=str(place))


def _copy(old: sqlite3.Connection, db: sqlite3.Connection) -> tuple[int, int]:
    expected = 0
    with contextlib.suppress(sqlite3.DatabaseError):
        expected = old.execute("SELECT ifnull(sum(records), 0) FROM totals").fetchone()[0]
    db.execute("BEGIN IMMEDIATE")
    saved = 0
    for row in _rows(old, "outbox"):
        body = _body(old, row["row"])
        if body is not None and _insert(db, "outbox", row):
            db.execute("INSERT INTO body VALUES (?, ?, ?)", (row["row"], body, hashlib.sha256(body).digest()))
            saved += 1
    for table in PLAIN:
        for row in _rows(old, table):
            _insert(db, table, row)
    # A batch whose members are not all there cannot go out as it did; what is left of it gets a new one.
    db.execute("UPDATE outbox SET batch = NULL WHERE batch NOT IN (SELECT id FROM batch)")
    db.execute("DELETE FROM batch WHERE id NOT IN (SELECT batch FROM outbox WHERE batch IS NOT NULL)")
    db.execute("COMMIT")
    return expected, saved


def _rows(old: sqlite3.Connection, table: str) -> Iterator[dict[str, object]]:
    """Yield what can be read of a table: from its beginning up to the damage, then from its end down to it."""
    seen: set[object] = set()
    order = "rowid" if table in {"outbox", "batch", "context", "history"} else "1"
    for direction in ("ASC", "DESC"):
        try:
            cursor = old.execute(f"SELECT * FROM {table} ORDER BY {order} {direction}")  # noqa: S608 - our own names
            names = [column[0] for column in cursor.description]
            for values in cursor:
                row = dict(zip(names, values, strict=True))
                identity = row.get(names[0]) if order == "rowid" else tuple(values)
                if identity not in seen:
                    seen.add(identity)
                    yield row
        except sqlite3.DatabaseError:
            continue
        else:
            return


def _body(old: sqlite3.Connection, row: object) -> bytes | None:
    try:
        found = old.execute("SELECT body, sha256 FROM body WHERE row = ?", (row,)).fetchone()
    except sqlite3.DatabaseError:
        return None
    return found[0] if found is not None and hashlib.sha256(found[0]).digest() == found[1] else None


def _insert(db: sqlite3.Connection, table: str, row: dict[str, object]) -> bool:
    names, marks = ", ".join(row), ", ".join("?" * len(row))
    try:
        db.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(row.values()))  # noqa: S608 - our own names
    except sqlite3.Error:
        # Damage can also be a value that no longer fits its column: such a row is lost like one that can't be read.
        return False
    return True


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
