"""A damaged file is set aside whole, and what can be read of it goes into a fresh one, row by row.

It may be cut off at any point: the fresh file takes the old one's place only once it is complete, and the folder that
it is made in says, for as long as it is there, that the work is not done.
"""

import os
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from plugin.store import schema
from plugin.store.file import FAMILY, JOURNALS, NAME, make, open_writer, size_of, sync

ASIDE = "agentic-sync.corrupt-"
WORK = "salvage"
# What is copied besides the outbox. Totals are counted anew.
NUMBERED = ("batch", "context", "history")
KEYED = ("ledger", "pulled", "times", "gate", "import")
MOST_PROBES = 100_000
MOST_FAILURES = 20_000

_Row = tuple[object, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Salvage:
    """What was saved of the outbox, in records, and how many more there were; None when nobody can know."""

    salvaged: int | None
    lost: int | None
    set_aside: str


def unfinished(folder: Path) -> Path | None:
    """Return the place of a salvage that was cut off."""
    return next((work.parent for work in sorted(folder.glob(f"{ASIDE}*/{WORK}"))), None)


def set_aside(folder: Path, *, now_ms: int) -> Path:
    """Move the file and its logs into a folder of their own; return it. What was cut off before is carried on."""
    place = unfinished(folder) or _new_place(folder, now_ms)
    if not (place / NAME).exists():
        for name in FAMILY:
            with suppress(FileNotFoundError):
                os.rename(folder / name, place / name)  # noqa: PTH104 - of a name that is there: replaces nothing
    sync(place)
    sync(folder)
    return place


def _new_place(folder: Path, now_ms: int) -> Path:
    place, taken = folder / f"{ASIDE}{now_ms}", 0
    while place.exists():
        taken += 1
        place = folder / f"{ASIDE}{now_ms}-{taken}"
    place.mkdir(mode=0o700)
    try:
        (place / WORK).mkdir(mode=0o700)
    except OSError:
        place.rmdir()
        raise
    sync(place)
    sync(folder)
    return place


def refill(folder: Path, place: Path, *, steps: Sequence[schema.Step] = schema.STEPS) -> Salvage:
    """Put a fresh file in the folder, made of what can be read in a place, which stays as it was found."""
    work = place / WORK
    saved = lost = None
    # Where there is a file already, it is the fresh one: only the end of this was cut off.
    if not size_of(folder / NAME):
        shutil.rmtree(work)
        old, new = work / "old", work / "new"
        for made in (work, old, new):
            made.mkdir(mode=0o700)
        for name in (*JOURNALS, NAME):
            with suppress(FileNotFoundError):
                shutil.copyfile(place / name, old / name)
        make(new)
        fresh, _ = open_writer(new, journal="MEMORY", steps=steps)
        with closing(fresh), closing(sqlite3.connect(old / NAME, isolation_level=None)) as damaged:
            saved, lost = _copy(damaged, fresh)
        os.replace(new / NAME, folder / NAME)  # noqa: PTH105 - a half-made file never lies there
        sync(folder)
    shutil.rmtree(work)
    return Salvage(salvaged=saved, lost=lost, set_aside=str(place))


def _copy(old: sqlite3.Connection, db: sqlite3.Connection) -> tuple[int, int | None]:
    db.execute("BEGIN IMMEDIATE")
    saved, lost = _copy_outbox(old, db)
    for table in (*NUMBERED, *KEYED):
        columns = _columns(db, table)
        for row in _rows(old, table, columns, []):
            _insert(db, table, columns, row)
    # What is left of a batch whose record was lost goes out in another one.
    db.execute("UPDATE outbox SET batch = NULL WHERE batch NOT IN (SELECT id FROM batch)")
    with suppress(sqlite3.DatabaseError):
        for table, number in old.execute("SELECT name, seq FROM sqlite_sequence").fetchall():
            _skip_numbers(db, table, number)
    db.execute("COMMIT")
    return saved, lost


def _copy_outbox(old: sqlite3.Connection, db: sqlite3.Connection) -> tuple[int, int | None]:
    """Copy rows with their bodies; a body that is not what was stored is found out when it is to be sent."""
    expected: int | None = None
    with suppress(sqlite3.DatabaseError):
        (expected,) = old.execute("SELECT ifnull(sum(records), 0) FROM totals").fetchone()
    troubles: list[sqlite3.DatabaseError] = []
    columns = _columns(db, "outbox")
    saved, without_body = 0, set[object]()
    for row in _rows(old, "outbox", columns, troubles):
        body = _body(old, row[0])
        if body is None:
            without_body.add(row[0])
        elif _insert(db, "outbox", columns, row):
            _insert(db, "body", ["row", "body", "sha256"], (row[0], *body))
            saved += 1
    if expected is None and troubles:
        return saved, None
    return saved, max(len(without_body), (expected or 0) - saved)


def _columns(db: sqlite3.Connection, table: str) -> list[str]:
    return [name for (name,) in db.execute("SELECT name FROM pragma_table_info(?)", (table,))]


def _rows(
    old: sqlite3.Connection, table: str, columns: Sequence[str], troubles: list[sqlite3.DatabaseError]
) -> Iterator[_Row]:
    """Yield what can be read of a table: from its beginning up to the damage, from its end down to it, one by one.

    Rows may come twice.
    """
    numbered = table not in KEYED
    key = "rowid" if numbered else columns[0]
    what = f'SELECT {"rowid" if numbered else "0"}, {", ".join(columns)} FROM "{table}"'  # noqa: S608 - our own names
    ends: list[int] = []
    for direction in ("ASC", "DESC"):
        number = 0
        try:
            for number, *values in old.execute(f"{what} ORDER BY {key} {direction}"):  # noqa: B007 - it is, below
                yield tuple(values)
        except sqlite3.DatabaseError as trouble:
            troubles.append(trouble)
            ends.append(number)
        else:
            return
    if numbered:
        yield from _probe(old, what, range(ends[0] + 1, ends[1] or ends[0] + MOST_PROBES))


def _probe(old: sqlite3.Connection, what: str, numbers: Sequence[int]) -> Iterator[_Row]:
    """Yield the rows that can be read one by one; give up where there is nothing but damage."""
    failures = 0
    for number in numbers[:MOST_PROBES]:
        try:
            _, *values = old.execute(f"{what} WHERE rowid = ?", (number,)).fetchone() or (None,)
            failures = 0
        except sqlite3.DatabaseError:
            failures += 1
            if failures > MOST_FAILURES:
                return
        else:
            if values:
                yield tuple(values)


def _body(old: sqlite3.Connection, row: object) -> _Row | None:
    try:
        return old.execute("SELECT body, sha256 FROM body WHERE row = ?", (row,)).fetchone()
    except sqlite3.DatabaseError:
        return None


def _insert(db: sqlite3.Connection, table: str, columns: Sequence[str], row: _Row) -> bool:
    """Insert a row unless it is there; one with a value that no longer fits its column is lost."""
    names, marks = ", ".join(columns), ", ".join("?" * len(columns))
    insert = f'INSERT OR IGNORE INTO "{table}" ({names}) VALUES ({marks})'  # noqa: S608 - our own names
    try:
        return db.execute(insert, row).rowcount > 0
    except sqlite3.IntegrityError:
        return False


def _skip_numbers(db: sqlite3.Connection, table: str, number: int) -> None:
    """Have a table's next row numbered after the old file's: a number is never used twice."""
    found = db.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).fetchone()
    db.execute("DELETE FROM sqlite_sequence WHERE name = ?", (table,))
    db.execute("INSERT INTO sqlite_sequence VALUES (?, ?)", (table, max(number, *(found or (0,)))))
