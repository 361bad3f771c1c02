"""What an error makes of the store, and what a person should do about it."""

import errno
import os
import sqlite3
from pathlib import Path

from plugin.store import file, reserve
from plugin.store.interface import StoreState

# A file system may find only at the end of a write, or of a sync, that there is no room, or no quota, for it.
NO_ROOM = {
    *("SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_FSYNC", "SQLITE_IOERR_TRUNCATE", "SQLITE_IOERR_SHMSIZE"),
    *(errno.errorcode[number] for number in reserve.NO_ROOM),
}
_ELSE = "or choose another state_dir"


def judge(error: Exception, folder: Path) -> tuple[StoreState, str]:
    """Return what an error makes of the store, and what a person should do."""
    match error:
        case sqlite3.Error():
            name = file.name_of(error)
        case OSError(errno=int(number)):
            name = errno.errorcode.get(number, "")
        case _:
            name = ""
    if name in NO_ROOM:
        return StoreState.FULL, full(folder)
    if (
        name.startswith("SQLITE_READONLY")
        or name in {"EROFS", "EACCES", "EPERM"}
        or (name.startswith("SQLITE_CANTOPEN") and not os.access(folder, os.W_OK))
    ):
        return StoreState.READ_ONLY, _unwritable(folder)
    return StoreState.UNUSABLE, _unusable(name, error, folder)


def full(folder: Path) -> str:
    """Say that there is no room, and how much there must be."""
    least = reserve.LEAST_BYTES // (1024 * 1024)
    return f"the disk of {folder} is full: make room, {least} MiB or more; what is queued is safe and still sent"


def _unwritable(folder: Path) -> str:
    if _is_there(folder):
        return f"{folder} cannot be written to: change its permissions, {_ELSE}"
    return f"{folder} cannot be reached or made: change the permissions of {_nearest(folder)}, {_ELSE}"


def _unusable(name: str, error: Exception, folder: Path) -> str:
    if isinstance(error, ValueError):
        return f"{str(folder)!a} has characters that no path can have: choose another state_dir"
    match name:
        case "ENAMETOOLONG":
            return f"the path of the state folder is too long: choose a shorter state_dir than {folder}"
        case "ELOOP":
            return f"{folder} leads through a symbolic link to itself: remove that link, {_ELSE}"
        case "SQLITE_BUSY":
            return f"another program has locked the database in {folder}: close it"
        case "ENOTDIR" | "EEXIST" | "ENOENT" if not folder.is_dir():
            return _unmade(folder)
        case _:
            return f"the store in {folder} cannot be used: {error}"


def _unmade(folder: Path) -> str:
    nearest = _nearest(folder / "within")
    if nearest.is_dir():
        return f"{folder} is not there and cannot be made in {nearest}: make it, {_ELSE}"
    return f"{folder} cannot be made, as {nearest} is no folder: move that away, {_ELSE}"


def _nearest(folder: Path) -> Path:
    """Return the nearest thing above that is there."""
    return next(one for one in folder.parents if _is_there(one) or one.is_symlink() or one == one.parent)


def _is_there(path: Path) -> bool:
    return os.access(path, os.F_OK)  # pathlib raises where a folder on the way may not be looked into
