"""Open the database file: create it, refuse what is not ours, set the promises of durability."""

import os
import sqlite3
import sys
from pathlib import Path

from plugin.store import schema

NAME = "agentic-sync.db"
FAMILY = (NAME, f"{NAME}-wal", f"{NAME}-shm")
CHECKED_BYTES = 64 * 1024 * 1024  # a larger file is not read through at every start
BUSY_MS = 5000
JOURNAL_BYTES = 16 * 1024 * 1024
REMOTE = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "fuse.sshfs"}


class Damaged(Exception):
    """The file is not what was written: it must be set aside, and never written to."""


class Newer(Exception):
    """The file was written by a newer version; it is left as it is."""


def make(folder: Path) -> bool:
    """Create the file where there is none, readable by its owner alone; return whether there was none."""
    try:
        os.close(os.open(folder / NAME, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return False
    return True


def is_remote(folder: Path) -> bool:
    """Say whether the folder lies on a network file system, where a shared-memory index is not safe."""
    if sys.platform != "linux":
        return False
    best, kind = "", ""
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        fields, _, tail = line.partition(" - ")
        place = fields.split()[4].replace("\\040", " ")
        if (str(folder) + "/").startswith(place.rstrip("/") + "/") and len(place) >= len(best):
            best, kind = place, tail.split()[0]
    return kind in REMOTE


def open_writer(folder: Path) -> sqlite3.Connection:
    """Open the one connection that writes; raise Damaged, Newer, sqlite3.Error or OSError.

    The file is looked at before anything is written to it.
    """
    path = folder / NAME
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=BUSY_MS / 1000)
    try:
        version = _examine(db, path)
        if version == 0:
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute(f"PRAGMA journal_mode = {'TRUNCATE' if is_remote(folder) else 'WAL'}")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA fullfsync = 1")
        db.execute("PRAGMA checkpoint_fullfsync = 1")
        db.execute(f"PRAGMA journal_size_limit = {JOURNAL_BYTES}")
        schema.migrate(db, version, folder / f"{NAME}.v{version}.backup")
    except BaseException:
        db.close()
        raise
    return db


def open_reader(folder: Path) -> sqlite3.Connection:
    """Open the file of a folder that cannot be written to, for reading only."""
    uri = (folder / NAME).absolute().as_uri()
    try:
        db = sqlite3.connect(f"{uri}?mode=ro", uri=True, isolation_level=None, check_same_thread=False)
        db.execute("SELECT count(*) FROM sqlite_schema")
    except sqlite3.OperationalError:
        # The log's index cannot be made here; without a log left behind, the file alone is the whole truth.
        db = sqlite3.connect(f"{uri}?immutable=1", uri=True, isolation_level=None, check_same_thread=False)
        db.execute("SELECT count(*) FROM sqlite_schema")
    return db


def _examine(db: sqlite3.Connection, path: Path) -> int:
    """Return the version of the tables, 0 for an empty file."""
    try:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        application = db.execute("PRAGMA application_id").fetchone()[0]
        tables = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        if tables and application != schema.APPLICATION_ID:
            raise Damaged(f"{path} is a database of another program")
        if version > schema.VERSION:
            raise Newer(
                f"{path} was written by a newer agentic-sync (version {version} of its tables, this one knows "
                f"{schema.VERSION}); it is left as it is: run that version, or choose another state_dir"
            )
        if path.stat().st_size <= CHECKED_BYTES:
            verdict = db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if verdict != "ok":
                raise Damaged(f"{path} is damaged: {verdict}")
    except sqlite3.DatabaseError as error:
        if is_damage(error):
            raise Damaged(f"{path} is damaged: {error}") from error
        raise
    return version if tables else 0


def is_damage(error: sqlite3.Error) -> bool:
    """Say whether an error means that the file is not what was written."""
    return name_of(error).startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB"))


def name_of(error: sqlite3.Error) -> str:
    """Return SQLite's name of an error; an empty text for one that Python raised by itself."""
    return getattr(error, "sqlite_errorname", None) or ""
