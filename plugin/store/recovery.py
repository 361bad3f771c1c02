"""A damaged file is set aside whole, and what can be read of it goes into a fresh one, row by row.

The fresh file gets a name of its own once it is finished; only then is the damaged one moved, and its name taken. So a
crash on the way leaves either the damaged file as it was, and all begins again, or a finished one, and `finish` does
what was left to do.
"""

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from plugin.store import schema
from plugin.store.file import FAMILY, NAME, PAGE_BYTES, connect, create, name_of, size_of, sync_folder

SALVAGE = f"{NAME}.salvage"
PART = f"{NAME}.part"
ASIDE = "agentic-sync.corrupt-"
COPY = f"{NAME}.copy"
MAX_PROBES = 200_000
INTERIOR = 0x05  # a page that points to others, in SQLite's file format
# Those with numbered rows can be asked for row by row, past any damage; of the others both ends are read up to it.
_NUMBERED = (("body", "row"), ("batch", "id"), ("context", "position"), ("history", "id"))
_KEYED = ("ledger", "dropped", "pulled", "times", "gate", "import")

Row = tuple[object, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Salvage:
    """What was saved of the outbox, in records, and how many more there had been; where the damaged files lie."""

    salvaged: int | None
    lost: int | None
    set_aside: str


def finish(folder: Path, *, now: float) -> Salvage | None:
    """Carry on after a crash in the middle of a salvage; None when there was none. What was lost was not noted."""
    _clean(folder)
    if not (folder / SALVAGE).is_file():
        return None
    with closing(connect(folder / SALVAGE, mode="ro")) as db:
        counted, _ = _scan(db, "SELECT count(*) FROM outbox")
    salvaged = int(str(counted[0][0])) if counted else None
    # The file is moved last: while it is here, its place is one without it.
    places = [one for one in folder.glob(f"{ASIDE}*") if not ((folder / NAME).exists() and (one / NAME).exists())]
    place = max(places) if places else _place(folder, now)
    return Salvage(salvaged=salvaged, lost=None, set_aside=_move(folder, place))


def replace(folder: Path, *, now: float) -> Salvage:
    """Put a fresh file, with what could be read, in the place of the damaged one. OSError, sqlite3.Error."""
    salvaged, lost = 0, None
    try:
        for version in _versions(folder):
            _clean(folder)
            salvaged, lost = _attempt(folder, version)
            if salvaged:
                break
    except BaseException:
        _clean(folder)  # on a full disk it would be in the way
        raise
    (folder / PART).rename(folder / SALVAGE)
    sync_folder(folder)
    return Salvage(salvaged=salvaged, lost=lost, set_aside=_move(folder, _place(folder, now)))


def _versions(folder: Path) -> list[int]:
    """Return of which versions the damaged file may be; where that cannot be told, the newest is tried first."""
    if (old := _readable(folder / NAME)) is not None:
        with closing(old):
            return [schema.version_of(old)[1] or schema.VERSION]
    with contextlib.suppress(OSError), (folder / NAME).open("rb") as damaged:
        said = int.from_bytes(damaged.read(64)[60:])
        if 0 < said < schema.VERSION:
            return [schema.VERSION, said]
    return [schema.VERSION]


def _attempt(folder: Path, version: int) -> tuple[int, int | None]:
    """Copy what can be read of a file of this version; what was copied is led to the newest."""
    with _fresh(folder / PART, version) as db, _damaged(folder) as old:
        salvaged, lost = (0, None) if old is None else _copy(old, db)
        schema.migrate(db, backup=None)
        # What is left of a batch keeps its number; its key is made anew when it is claimed.
        db.execute("BEGIN")
        schema.restore(db)
        db.execute("COMMIT")
    return salvaged, lost


@contextlib.contextmanager
def _fresh(path: Path, version: int) -> Generator[sqlite3.Connection]:
    """Make a file with empty tables; it is on the disk at the end. Until then nobody would miss it."""
    create(path)
    db = connect(path, mode="rw")
    try:
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute("PRAGMA journal_mode = MEMORY")
        db.execute("PRAGMA synchronous = OFF")
        schema.migrate(db, backup=None, steps=schema.STEPS[:version])
        yield db
    finally:
        db.close()
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _clean(folder: Path) -> None:
    """Remove what is of use only while a salvage is under way."""
    for name in (PART, COPY, f"{COPY}-wal", f"{COPY}-shm"):
        (folder / name).unlink(missing_ok=True)


@contextlib.contextmanager
def _damaged(folder: Path) -> Generator[sqlite3.Connection | None]:
    """Open what is left of the file for reading; None when nothing can be read."""
    old = _readable(folder / NAME) or _mended_copy(folder)
    try:
        yield old
    finally:
        if old is not None:
            old.close()


def _readable(path: Path) -> sqlite3.Connection | None:
    # Of an empty file SQLite would delete the log.
    if not path.is_file() or not size_of(path):
        return None
    db = connect(path, mode="ro")
    with contextlib.suppress(sqlite3.DatabaseError):
        if not schema.missing(db):
            return db
    db.close()
    return None


def _mended_copy(folder: Path) -> sqlite3.Connection | None:
    """Give a copy the table of tables of a fresh file: where they begin is the same in every file of one version."""
    copy = folder / COPY
    create(copy)
    with contextlib.suppress(FileNotFoundError, IsADirectoryError):
        shutil.copyfile(folder / NAME, copy)
    with contextlib.suppress(FileNotFoundError):
        shutil.copyfile(folder / FAMILY[1], folder / f"{COPY}-wal")
    fresh = (folder / PART).read_bytes()
    with copy.open("r+b") as file:
        for number in _schema_pages(fresh):
            page = bytearray(fresh[(number - 1) * PAGE_BYTES : number * PAGE_BYTES])
            if number == 1:
                page[18:20] = b"\x02\x02"  # there may be a write-ahead log
                page[24:28], page[92:96] = b"\x00\x00\x00\x01", b"\x00\x00\x00\x00"  # the size is the file's own
                page[32:40] = bytes(8)  # no list of free pages
            file.seek((number - 1) * PAGE_BYTES)
            file.write(page)
    return _readable(copy)


def _schema_pages(file: bytes) -> list[int]:
    """Return the first page, which the table of tables begins on, and those that it goes on to."""
    if file[100] != INTERIOR:
        return [1]
    cells = range(112, 112 + 2 * int.from_bytes(file[103:105]), 2)
    places = [108, *(int.from_bytes(file[cell : cell + 2]) for cell in cells)]
    return [1, *(int.from_bytes(file[place : place + 4]) for place in places)]


def _copy(old: sqlite3.Connection, db: sqlite3.Connection) -> tuple[int, int | None]:
    """Copy what can be read; return how many records of the outbox were saved and, if that is known, lost."""
    last = {str(name): int(str(number)) for name, number in _scan(old, "SELECT name, seq FROM sqlite_sequence")[0]}
    db.execute("BEGIN")
    rows, whole = _numbered(old, "outbox", "row", last.get("outbox", 0))
    # A body that does not match its checksum is found when it would be sent.
    saved = sum(_insert(db, "outbox", row) for row in rows.values())
    there = {name for (name,) in db.execute("SELECT name FROM sqlite_schema")}
    for table, key in _NUMBERED:
        if table in there:
            for row in _numbered(old, table, key, last.get(table, last.get("outbox", 0)))[0].values():
                _insert(db, table, row)
    for table in _KEYED:
        for row in _both_ends(old, table):
            _insert(db, table, row)
    db.execute("DELETE FROM sqlite_sequence")
    db.executemany("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", list(last.items()))
    db.execute("COMMIT")
    counted, counts = _scan(old, "SELECT ifnull(sum(records), 0) FROM totals WHERE agent <> ''")
    if whole:
        return saved, len(rows) - saved
    there_were = max([len(rows), *(int(str(count)) for (count,) in counted)])
    return saved, there_were - saved if counts else None


def _numbered(old: sqlite3.Connection, table: str, key: str, last: int) -> tuple[dict[object, Row], bool]:
    """Return what can be read of a table by number, and whether that is all.

    It is read from both ends up to the damage, then row by row in between.
    """
    rows, whole = _scan(old, f"SELECT * FROM {table} NOT INDEXED ORDER BY {key}")  # noqa: S608 - our own names
    found = {row[0]: row for row in rows}
    if whole:
        return found, True
    low = max((int(str(number)) for number in found), default=0)
    rows, _ = _scan(old, f"SELECT * FROM {table} NOT INDEXED WHERE {key} > ? ORDER BY {key} DESC", low)  # noqa: S608
    high = min((int(str(row[0])) for row in rows), default=last + 1)
    for number in range(low + 1, min(high, low + MAX_PROBES)):
        one, _ = _scan(old, f"SELECT * FROM {table} NOT INDEXED WHERE {key} = ?", number)  # noqa: S608
        found |= {row[0]: row for row in one}
    return found | {row[0]: row for row in reversed(rows)}, False


def _both_ends(old: sqlite3.Connection, table: str) -> list[Row]:
    rows, whole = _scan(old, f"SELECT * FROM {table} ORDER BY 1, 2")  # noqa: S608 - our own names
    if not whole:
        rows += _scan(old, f"SELECT * FROM {table} ORDER BY 1 DESC, 2 DESC")[0]  # noqa: S608 - our own names
    return rows


def _scan(old: sqlite3.Connection, sql: str, *values: object) -> tuple[list[Row], bool]:
    """Read rows up to the end or to the damage; say whether it was the end."""
    rows: list[Row] = []
    try:
        for row in old.execute(sql, values):
            rows.append(row)  # noqa: PERF402 - what was read before an error is what counts
    except sqlite3.DatabaseError:
        return rows, False
    return rows, True


def _insert(db: sqlite3.Connection, table: str, row: Row) -> bool:
    try:
        db.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)  # noqa: S608 - our own names
    except sqlite3.IntegrityError:
        # Damage can also be a value that no longer fits its column, and a row found from both ends is there already.
        return False
    except sqlite3.OperationalError as error:
        if name_of(error) == "SQLITE_ERROR":  # the damage is in the schema: another number of columns
            return False
        raise
    return True


def _place(folder: Path, now: float) -> Path:
    """Make a folder for what is damaged."""
    stamp = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ")
    place, again = folder / f"{ASIDE}{stamp}", 1
    while place.exists():
        again += 1
        place = folder / f"{ASIDE}{stamp}-{again}"
    place.mkdir(mode=0o700)
    return place


def _move(folder: Path, place: Path) -> str:
    """Move the damaged file and its log to their place, and the finished one where they were; return the place."""
    for name in reversed(FAMILY):
        with contextlib.suppress(FileNotFoundError):
            (folder / name).rename(place / name)
    sync_folder(place)
    sync_folder(folder)
    (folder / SALVAGE).rename(folder / NAME)
    _clean(folder)
    sync_folder(folder)
    return str(place)


def has_leftovers(folder: Path) -> bool:
    """Say whether a log lies there whose file is gone or empty: then not all is lost."""
    return not size_of(folder / NAME) and bool(size_of(folder / FAMILY[1]))
