"""The database file: create it, look at it before a byte is written, open it so that a commit lasts."""

import contextlib
import os
import re
import resource
import sqlite3
from contextlib import closing
from pathlib import Path

from plugin.crash import point
from plugin.store import schema

NAME = "agentic-sync.db"
FAMILY = (NAME, f"{NAME}-wal", f"{NAME}-shm", f"{NAME}-journal")
CHECKED_BYTES = 64 * 1024 * 1024  # a larger file is not read through at every start
PAGE_BYTES = 4096
BUSY_S = 5.0
CACHE_KIB = 16 * 1024
JOURNAL_BYTES = 16 * 1024 * 1024
CHECKPOINT_PAGES = 2000
_HEADER = b"SQLite format 3\x00"
_MOUNTS = Path("/proc/self/mountinfo")
_REMOTE = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "fuse.sshfs", "fuse.glusterfs", "fuse.rclone"}


class Damaged(Exception):
    """The file is not what was written: it must be set aside, and never written to."""


class Newer(Exception):
    """The file was written by a newer version; it is left as it is."""


def create(path: Path) -> bool:
    """Create an empty file where there is none, readable by its owner alone; return whether there was none."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return False
    return True


def size_of(path: Path) -> int:
    """Return a file's size in bytes; 0 when it is not there."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def may_grow(path: Path, growth: int) -> bool:
    """Say whether this process may make the file so many bytes larger."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return limit == resource.RLIM_INFINITY or not growth or size_of(path) + growth <= limit


def file_system(folder: Path, mounts: str) -> str:
    """Return the type of the file system a folder lies on, from the text of /proc/self/mountinfo; "" if unknown."""
    best, kind = -1, ""
    for line in mounts.splitlines():
        mount, _, device = line.partition(" - ")
        # Blanks and backslashes are written in octal.
        place = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), mount.split(" ")[4]).rstrip("/")
        if len(place) >= best and f"{folder}/".startswith(f"{place}/"):
            best, kind = len(place), device.split(" ")[0]
    return kind


def is_remote(folder: Path) -> bool:
    """Say whether the folder lies on a network file system, where the log's shared index is not safe."""
    if not _MOUNTS.exists():
        return False
    mounts = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
    return file_system(folder.resolve(), mounts) in _REMOTE


def open_writer(folder: Path, *, remote: bool, made: bool = False) -> sqlite3.Connection:
    """Open the one connection that writes; raise Damaged, Newer, sqlite3.Error or OSError.

    An empty file is a new one, unless it was `made` before.
    """
    path = folder / NAME
    examined = _examine(path, made=made)
    mode = path.stat().st_mode & 0o700
    for one in FAMILY:
        # What lies beside the file was made with its permissions, which may have been too few then.
        with contextlib.suppress(FileNotFoundError):
            (folder / one).chmod(mode)
    db = connect(path, mode="rw")
    try:
        if not examined:
            _check(db, path, made=made)
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute(f"PRAGMA journal_mode = {'TRUNCATE' if remote else 'WAL'}")
        # A rollback journal is only safe once its folder knows of it, too.
        db.execute(f"PRAGMA synchronous = {'EXTRA' if remote else 'FULL'}")
        db.execute("PRAGMA fullfsync = 1")
        db.execute("PRAGMA checkpoint_fullfsync = 1")
        db.execute(f"PRAGMA journal_size_limit = {JOURNAL_BYTES}")
        db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        db.execute("PRAGMA temp_store = MEMORY")
        db.execute("PRAGMA secure_delete = FAST")
        schema.migrate(db, backup=folder / f"{NAME}.backup")
        # Nothing is written before the commit, so only a commit can find the disk full.
        db.execute("PRAGMA cache_spill = 0")
        # SQLite opens a file that it must not write to without a word.
        db.execute("BEGIN IMMEDIATE")
        db.execute("ROLLBACK")
    except sqlite3.DatabaseError as error:
        db.close()
        if is_damage(error):
            raise Damaged(f"{path} is damaged ({error})") from error
        raise
    except BaseException:
        db.close()
        raise
    return db


def open_reader(folder: Path) -> sqlite3.Connection:
    """Open the file for reading only; an empty database where there is none. Damaged, Newer, sqlite3.Error.

    Of an older file a copy in memory is read, which alone may be led to the newest version.
    """
    path = folder / NAME
    if not path.exists():
        return _newest(None)
    db = connect(path, mode="ro")
    try:
        version = _check_version(db, path)
    except sqlite3.OperationalError:
        db.close()
        if size_of(folder / FAMILY[1]):
            raise
        # The log's index cannot be made here; where no log was left behind, the file alone is the whole truth.
        db = connect(path, mode="ro", immutable=True)
        version = _check_version(db, path)
    if version == schema.VERSION:
        return db
    with closing(db):
        return _newest(db)


def _newest(old: sqlite3.Connection | None) -> sqlite3.Connection:
    db = sqlite3.connect(":memory:", isolation_level=None)
    if old is not None:
        old.backup(db)
    schema.migrate(db, backup=None)
    return db


def connect(path: Path, *, mode: str, immutable: bool = False) -> sqlite3.Connection:
    """Connect to a file that exists, without transactions of Python's own."""
    uri = f"{path.absolute().as_uri()}?mode={mode}{'&immutable=1' if immutable else ''}"
    return sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_S, cached_statements=256)


def _examine(path: Path, *, made: bool) -> bool:
    """Refuse what is damaged or newer without writing a byte; False when it cannot be told without writing."""
    if not size_of(path):
        if made:
            raise Damaged(f"{path} is empty")
        return True
    _examine_header(path)
    db = connect(path, mode="ro")
    try:
        _check(db, path, made=made)
    except sqlite3.DatabaseError as error:
        if is_damage(error):
            raise Damaged(f"{path} is damaged ({error})") from error
        if isinstance(error, sqlite3.OperationalError):
            # A journal that must be rolled back first, for one.
            return False
        raise
    finally:
        db.close()
    return True


def _examine_header(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        header = os.read(fd, 100)
    finally:
        os.close(fd)
    if not header.startswith(_HEADER):
        raise Damaged(f"{path} is damaged (it is not a database)")
    version, application = int.from_bytes(header[60:64]), int.from_bytes(header[68:72])
    if application == schema.APPLICATION_ID:
        _refuse_newer(version, path)


def _check(db: sqlite3.Connection, path: Path, *, made: bool) -> None:
    version = _check_version(db, path)
    if made and not version:
        raise Damaged(f"{path} is empty")
    if lost := schema.missing(db):
        raise Damaged(f"{path} is damaged (it has no {', '.join(lost)})")
    if path.stat().st_size <= CHECKED_BYTES:
        verdict: str = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise Damaged(f"{path} is damaged ({verdict})")


def _check_version(db: sqlite3.Connection, path: Path) -> int:
    application, version = schema.version_of(db)
    tables: int = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if tables and application != schema.APPLICATION_ID:
        raise Damaged(f"{path} is the database of another program")
    _refuse_newer(version, path)
    return version


def _refuse_newer(version: int, path: Path) -> None:
    if version > schema.VERSION:
        raise Newer(
            f"{path} was written by a newer agentic-sync (version {version} of its tables, this one knows "
            f"{schema.VERSION}), and is left as it is: run that version, or choose another state_dir"
        )


def is_damage(error: sqlite3.Error) -> bool:
    """Say whether an error means that the file is not what was written."""
    # A text that is no UTF-8 was not written by us; Python finds it, and has no name for it.
    return name_of(error).startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")) or "decode to UTF-8" in str(error)


def name_of(error: sqlite3.Error) -> str:
    """Return SQLite's name of an error; an empty text for one that Python raised by itself."""
    return getattr(error, "sqlite_errorname", None) or ""


def sync_folder(folder: Path) -> None:
    """Make what was renamed in a folder last."""
    point("folder.changed")
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
