"""Keeps one folder: its lock, its connection, and what is known of its health. Used by the writer thread alone.

What can go wrong, and what is done about it:

    another process has the folder      its pid is told; the folder is taken over when that one ends
    the file is damaged, gone, foreign  set it aside, salvage what can be read, go on with a fresh one
    the file is newer, or unusable      leave it as it is; look again from time to time
    the disk is full                    nothing more is taken in; what is there leaves, in the room of the reserve
    the folder is read-only             read what is there; writes are refused
"""

import contextlib
import errno
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path

from plugin.clock import Clock
from plugin.errors import StoreInUse, StoreUnavailable
from plugin.store import file, recovery, schema
from plugin.store.interface import StoreHealth, StoreState
from plugin.store.lock import Lock, Owner
from plugin.store.reserve import Reserve

LOG = logging.getLogger(__name__)
FREED_PAGES = 1000
_NO_ROOM = ("SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_FSYNC", "SQLITE_IOERR_SHMSIZE", "SQLITE_IOERR_TRUNCATE")


class Trouble(Exception):
    """The store cannot do it now; `again` when something was done about it, so that another attempt may work."""

    def __init__(self, error: StoreUnavailable, *, again: bool = False) -> None:
        super().__init__(str(error))
        self.error = error
        self.again = again


class Keeper:
    """Own a folder and the connections to its file."""

    def __init__(
        self,
        folder: Path,
        *,
        clock: Clock,
        steps: Sequence[schema.Step] = schema.STEPS,
        mounts: Callable[[], str] = file.mounts,
    ) -> None:
        self.health = StoreHealth(state=StoreState.OK)
        self.busy = False  # something was written since the last rest
        self.full = False  # the reserve is spent
        self._folder = folder
        self._clock = clock
        self._steps = steps
        self._mounts = mounts
        self._lock = Lock(folder / "state.lock")
        self._reserve = Reserve(folder / "agentic-sync.reserve")
        self._well = self.health  # what health returns to
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._looked_at = float("-inf")

    @property
    def contested(self) -> bool:
        """Return whether another process has the folder."""
        return self.health.state is StoreState.IN_USE

    @property
    def writable(self) -> bool:
        """Return whether the file is open for writing."""
        return self._writer is not None

    def look(self, *, every_s: float) -> None:
        """Do what is left to do for the store to be well: own the folder, open the file, take room for the reserve.

        Nothing is done within `every_s` of the last attempt, and nothing raised: `health` tells.
        """
        now = time.monotonic()
        if (self._writer is not None and not self.full) or now - self._looked_at < every_s:
            return
        self._looked_at = now
        try:
            if self._writer is None:
                if not self._own():
                    return
                self._writer = self._open()
                self._close_reader()
                if not self._lock.owner().made:
                    self._sign(made=True)
            self._keep_reserve()
        except file.Newer as newer:
            self._fail(StoreState.UNUSABLE, str(newer))
        except (OSError, sqlite3.Error, file.Damaged) as error:
            self._fail(*_judge(error, self._folder))
            if self.full:
                self._reserve.spend()
            if self._writer is None:
                self._open_reader()
        else:
            self._recover()

    # -- the folder ----------------------------------------------------------------------------------------------

    def _own(self) -> bool:
        """Try to own the folder; False while another process does, OSError when no file can be made in it."""
        if self._lock.held:
            return True
        self._make_folder()
        if self._lock.take():
            self._sign(made=self._lock.owner().made)
            return True
        pid = self._lock.owner().pid
        if not self.contested:
            LOG.warning("the state folder is in use by another process", extra={"fields": {"pid": pid}})
        self.health = StoreHealth(state=StoreState.IN_USE, pid=pid, reason=f"in use by pid {pid}")
        return False

    def _make_folder(self) -> None:
        is_new = not self._folder.exists()
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if is_new:
            file.sync(self._folder.parent)
        if self._folder.stat().st_mode & 0o077:
            try:
                self._folder.chmod(0o700)
            except PermissionError:
                LOG.warning("the state folder is open to others", extra={"fields": {"folder": str(self._folder)}})

    def _sign(self, *, made: bool) -> None:
        try:
            self._lock.sign(Owner(pid=os.getpid(), started_at=self._clock.now(), made=made))
        except OSError as error:
            # The lock holds without it; only whom it belongs to is not told.
            LOG.warning("the lock could not be signed", extra={"fields": {"error": str(error)}})

    # -- the file ------------------------------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        """Open the file for writing, replacing what is damaged."""
        path = self._folder / file.NAME
        if recovery.unfinished(self._folder) is not None:
            return self._replace("a salvage was cut off and has been carried on")
        if not file.size_of(path) and any(file.size_of(self._folder / name) for name in file.JOURNALS):
            return self._replace(f"{path} was gone or empty, and only its log was left")
        try:
            file.make(self._folder)
            writer, is_new = self._open_file()
        except file.Damaged as damaged:
            return self._replace(str(damaged))
        if is_new and self._lock.owner().made:
            self._report(f"{path} was gone or empty: what was queued in it is lost", None)
        return writer

    def _open_file(self) -> tuple[sqlite3.Connection, bool]:
        kind = file.remote_kind(self._folder, self._mounts())
        if kind is not None:
            fields = {"folder": str(self._folder), "file_system": kind}
            LOG.warning("the state folder is on a network file system; a local one is safer", extra={"fields": fields})
        return file.open_writer(self._folder, journal="WAL" if kind is None else "TRUNCATE", steps=self._steps)

    def _replace(self, reason: str) -> sqlite3.Connection:
        place = recovery.set_aside(self._folder, now_ms=round(self._clock.now() * 1000))
        salvage = recovery.refill(self._folder, place, steps=self._steps)
        writer, _ = self._open_file()
        self._report(reason, salvage)
        return writer

    def _report(self, reason: str, salvage: recovery.Salvage | None) -> None:
        health = StoreHealth(state=StoreState.RECOVERED, reason=reason)
        if salvage is not None:
            health = replace(health, salvaged=salvage.salvaged, lost=salvage.lost, set_aside=salvage.set_aside)
        fields = {"reason": reason, "salvaged": health.salvaged, "lost": health.lost, "set_aside": health.set_aside}
        LOG.error("the store was damaged and has been replaced", extra={"fields": fields})
        self._well = health

    def _open_reader(self) -> None:
        if self._reader is None and self.health.state is StoreState.READ_ONLY:
            try:
                self._reader = file.open_reader(self._folder)
            except sqlite3.Error as error:
                self.health = replace(self.health, reason=f"{self.health.reason}; nor can it be read: {error}")

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    # -- its health ----------------------------------------------------------------------------------------------

    def _fail(self, state: StoreState, reason: str) -> None:
        self.full = self.full or state is StoreState.FULL
        if self.health.state is not state:
            LOG.error("the store cannot be used", extra={"fields": {"state": state.value, "reason": reason}})
        self.health = replace(self._well, state=state, reason=reason)

    def _recover(self) -> None:
        self.full = False
        if self.health not in (self._well, StoreHealth(state=StoreState.OK)):
            LOG.info("the store can be used again")
        self.health = self._well

    def refusal(self) -> StoreUnavailable:
        """Return what a caller is told."""
        if self.contested:
            pid = self.health.pid
            whose = f"the state folder is in use by another agentic-sync (pid {pid})"
            return StoreInUse(f"{whose}; this one takes over when it ends", pid=pid)
        return StoreUnavailable(self.health.reason or "the store is not open")

    # -- its use -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def using(self, *, writes: bool) -> Generator[sqlite3.Connection]:
        """Lend a connection; raise Trouble where there is none, and after an error of SQLite, mended or not."""
        db = self._writer
        if db is None and not writes:
            db = self._reader
        if db is None:
            raise Trouble(self.refusal())
        try:
            yield db
        except sqlite3.Error as error:
            again = self._mend(error)
            raise Trouble(StoreUnavailable(self.health.reason or str(error)), again=again) from error

    def _mend(self, error: sqlite3.Error) -> bool:
        """Do something about an error; return whether another attempt may work."""
        if self._writer is None:
            # Whoever may not write cannot mend either.
            self._close_reader()
            return False
        if file.is_damage(error):
            self._close_writer()
            try:
                self._writer = self._replace(f"{self._folder / file.NAME} is damaged: {error}")
            except (OSError, sqlite3.Error, file.Damaged) as again:
                self._fail(*_judge(again, self._folder))
                return False
            self._recover()
            return True
        self._fail(*_judge(error, self._folder))
        if self.full:
            self._make_room()
            return True
        self._close_writer()
        return False

    def _keep_reserve(self) -> None:
        try:
            self._reserve.keep()
        except OSError as error:
            if _judge(error, self._folder)[0] is StoreState.FULL:
                raise
            LOG.warning("no room could be kept for when the disk is full", extra={"fields": {"error": str(error)}})

    def _make_room(self) -> None:
        """Give the reserve away, and what the log holds to the file: the log's own room can be used again."""
        self._reserve.spend()
        self._tidy("PRAGMA wal_checkpoint(RESTART)")

    def rest(self) -> None:
        """Nothing to do for a while: give the log's room and freed pages back, a bounded number at a time."""
        before = self._tidy("PRAGMA freelist_count")
        self._tidy(f"PRAGMA incremental_vacuum({FREED_PAGES})")
        self._tidy("PRAGMA wal_checkpoint(TRUNCATE)")
        self.busy = 0 < self._tidy("PRAGMA freelist_count") < before

    def _tidy(self, pragma: str) -> int:
        """Run a pragma that may fail; return the number that it answers with, 0 when there is none."""
        try:
            found = [] if self._writer is None else self._writer.execute(pragma).fetchall()
        except sqlite3.Error as error:
            # The next operation meets it, too, and is told.
            LOG.debug("the store could not be tidied", extra={"fields": {"pragma": pragma, "error": str(error)}})
            return 0
        return found[0][0] if found else 0

    def close(self) -> None:
        """Close, which folds the log into the file, and let go of the folder."""
        self._close_reader()
        self._close_writer()
        self._lock.release()


def _judge(error: Exception, folder: Path) -> tuple[StoreState, str]:
    """Return what an error makes of the store, and what a person should do."""
    name = ""
    if isinstance(error, sqlite3.Error):
        name = file.name_of(error)
    elif isinstance(error, OSError):
        name = errno.errorcode.get(error.errno or 0, "")
    if name.startswith(_NO_ROOM) or name in {"ENOSPC", "EDQUOT", "EFBIG"}:
        hint = "make room; nothing is taken in until then, and what is queued is still sent"
        return StoreState.FULL, f"the disk of {folder} is full ({error}): {hint}"
    if name.startswith("SQLITE_READONLY") or name in {"EROFS", "EACCES", "EPERM"}:
        return StoreState.READ_ONLY, f"{folder} cannot be written to ({error}): change its permissions, or state_dir"
    return StoreState.UNUSABLE, f"the store in {folder} cannot be used: {error}"
