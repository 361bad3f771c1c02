"""Open the database file: create it, refuse what is not ours, set the promises of durability."""

import os
import re
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from plugin.store import schema

NAME = "agentic-sync.db"
JOURNALS = (f"{NAME}-journal", f"{NAME}-wal")
FAMILY = (f"{NAME}-shm", *JOURNALS, NAME)  # the file itself comes last: while it lies there, nothing else was moved
CHECKED_BYTES = 64 * 1024 * 1024  # a larger file is not read through at every start
BUSY_S = 5.0
JOURNAL_BYTES = 16 * 1024 * 1024
MOUNTS = Path("/proc/self/mountinfo")
# What a file system is called whose files other machines may have open: a shared-memory index is not safe there.
# fmt: off
REMOTE = frozenset({
    "9p", "afs", "beegfs", "ceph", "cifs", "davfs", "fuse.ceph", "fuse.davfs2", "fuse.gcsfuse",
    "fuse.glusterfs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs", "gfs2", "glusterfs", "gpfs", "lustre",
    "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "smb3", "smbfs", "vboxsf", "virtiofs",
})
# fmt: on


class Damaged(Exception):
    """The file is not what was written: it must be set aside, and never written to."""


class Newer(Exception):
    """The file was written by a newer version; it is left as it is."""


def make(folder: Path) -> bool:
    """Create the file where there is none, readable by its owner alone; return whether there was none."""
    path = folder / NAME
    try:
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        return False
    os.close(fd)
    sync(folder)
    return True


def sync(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def mounts() -> str:
    """Return the table of mounted file systems; an empty text where the kernel keeps none."""
    try:
        return MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""


def remote_kind(folder: Path, table: str) -> str | None:
    """Return the name of the network file system that the folder lies on, by a table like /proc/self/mountinfo."""
    where, best, kind = f"{folder.resolve()}/", "", ""
    for line in table.splitlines():
        fields, _, tail = line.partition(" - ")
        # Blanks and backslashes in a place are written in octal. Of two mounts on one place the later one is seen.
        place = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields.split(" ")[4]).rstrip("/") + "/"
        if where.startswith(place) and len(place) >= len(best):
            best, kind = place, tail.split(" ")[0]
    return kind if kind in REMOTE else None


def open_writer(
    folder: Path, *, journal: str = "WAL", steps: Sequence[schema.Step] = schema.STEPS
) -> tuple[sqlite3.Connection, bool]:
    """Open the one connection that writes, and say whether the tables had to be made.

    The file is looked at before anything is written to it. Raises Damaged, Newer, sqlite3.Error or OSError.
    """
    path = folder / NAME
    version = _examine(path, steps)
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=BUSY_S)
    try:
        if version == 0:
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        if db.execute(f"PRAGMA journal_mode = {journal}").fetchone()[0] != journal.lower():
            db.execute("PRAGMA journal_mode = TRUNCATE")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA fullfsync = 1")
        db.execute("PRAGMA checkpoint_fullfsync = 1")
        db.execute("PRAGMA secure_delete = 0")
        db.execute(f"PRAGMA journal_size_limit = {JOURNAL_BYTES}")
        # SQLite opens a file that it may not write to for reading, and says so only when it is too late.
        db.execute("BEGIN IMMEDIATE")
        db.execute("ROLLBACK")
        schema.migrate(db, version, folder / f"{NAME}.v{version}.backup", steps=steps)
    except BaseException:
        db.close()
        raise
    return db, version == 0


def open_reader(folder: Path) -> sqlite3.Connection:
    """Open the file for reading only: beside its writer, or in a folder that cannot be written to."""
    try:
        return _reader(folder / NAME, "mode=ro")
    except sqlite3.OperationalError:
        # The log's index cannot be made here. Where no log was left behind, the file alone is the whole truth.
        if any(size_of(folder / name) for name in JOURNALS):
            raise
        return _reader(folder / NAME, "immutable=1")


def _reader(path: Path, how: str) -> sqlite3.Connection:
    db = sqlite3.connect(
        f"{path.absolute().as_uri()}?{how}", uri=True, isolation_level=None, check_same_thread=False, timeout=BUSY_S
    )
    try:
        db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except BaseException:
        db.close()
        raise
    return db


def _examine(path: Path, steps: Sequence[schema.Step]) -> int:
    """Return the version of the tables, 0 for an empty file; nothing is written, nor the log folded in."""
    newest = len(steps)
    # Only a connection that writes can roll a transaction back that was cut off.
    how = "mode=rw" if size_of(path.with_name(JOURNALS[0])) else "mode=ro"
    try:
        with closing(_reader(path, how)) as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            (application,) = db.execute("PRAGMA application_id").fetchone()
            (tables,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            if tables and application != schema.APPLICATION_ID:
                raise Damaged(f"{path} is a database of another program")
            if version > newest:
                raise Newer(
                    f"{path} was written by a newer agentic-sync (version {version} of its tables, this one knows "
                    f"{newest}); it is left as it is: run that version, or choose another state_dir"
                )
            if version == newest and (gone := schema.missing(db, steps)):
                raise Damaged(f"{path} is damaged: it has no {', '.join(gone)}")
            if size_of(path) <= CHECKED_BYTES:
                (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
                if verdict != "ok":
                    raise Damaged(f"{path} is damaged: {verdict}")
    except sqlite3.Error as error:
        if is_damage(error):
            raise Damaged(f"{path} is damaged: {error}") from error
        raise
    return version if tables else 0


def size_of(path: Path) -> int:
    """Return a file's size in bytes, 0 where there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def is_damage(error: sqlite3.Error) -> bool:
    """Say whether an error means that the file is not what was written."""
    name = name_of(error)
    # A text that is no UTF-8 any more has no name of SQLite's: Python finds it.
    undecodable = isinstance(error, sqlite3.OperationalError) and not name
    return undecodable or name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB"))


def is_foreseen(error: sqlite3.Error) -> bool:
    """Say whether an error is the file's or the disk's, rather than of the statement that met it."""
    name = name_of(error)
    return is_damage(error) or (isinstance(error, sqlite3.OperationalError) and name != "SQLITE_ERROR")


def name_of(error: sqlite3.Error) -> str:
    """Return SQLite's name of an error; an empty text for one that Python raised by itself."""
    return getattr(error, "sqlite_errorname", None) or ""
