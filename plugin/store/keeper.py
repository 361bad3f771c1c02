"""Keeps one folder: its lock, its connection, and what is known of its health. Used by the writer thread alone.

What can go wrong, and what is done about it:

    another process has the folder      wait until it ends; callers are told its pid
    the file is damaged or foreign      set it aside, salvage what can be read, go on with a fresh one
    the file is newer, or unusable      leave it as it is; look again from time to time
    the disk is full                    the caller is told; the next write that works ends it
    the folder is read-only             read what is there; writes are refused
"""

import contextlib
import errno
import logging
import os
import sqlite3
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

from plugin.clock import Clock
from plugin.errors import StoreUnavailable
from plugin.store import file, recovery
from plugin.store.interface import StoreHealth, StoreState
from plugin.store.lock import Lock, Owner

LOG = logging.getLogger(__name__)
REOPEN_S = 1.0
FREED_PAGES = 1000


class Trouble(Exception):
    """The store cannot do it now; `again` when it was mended and the work can be done again."""

    def __init__(self, error: StoreUnavailable, *, again: bool = False) -> None:
        super().__init__(str(error))
        self.error = error
        self.again = again


class Keeper:
    """Own a folder and the connections to its file."""

    def __init__(self, folder: Path, *, clock: Clock) -> None:
        self.health = StoreHealth(state=StoreState.OK)
        self.busy = False  # something was written since the last checkpoint
        self._folder = folder
        self._clock = clock
        self._lock = Lock(folder / "state.lock")
        self._owned = False
        self._well = self.health  # what health returns to
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._tried_at = -REOPEN_S

    # -- the folder ----------------------------------------------------------------------------------------------

    def own(self) -> bool:
        """Try to own the folder; False while another process does. A folder that no file can be made in is nobody's."""
        try:
            self._make_folder()
            self._owned = self._lock.take()
        except OSError:
            # What is wrong with the folder is found and told when the file is opened.
            return True
        if not self._owned:
            pid = self._lock.owner().pid
            if self.health.state is not StoreState.IN_USE:
                LOG.warning("the state folder is in use by another process", extra={"fields": {"pid": pid}})
            self.health = StoreHealth(state=StoreState.IN_USE, pid=pid, reason=f"in use by pid {pid}")
        return self._owned

    def _make_folder(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._folder.stat().st_mode & 0o077:
            self._folder.chmod(0o700)

    # -- the file ------------------------------------------------------------------------------------------------

    def open(self) -> bool:
        """Open the file for writing, mending it if need be; False, with the reason in `health`, when that fails."""
        self._tried_at = time.monotonic()
        try:
            if not self._owned and not self.own():
                return False
            self._writer = self._open_writer()
        except file.Newer as newer:
            self._fail(StoreState.UNUSABLE, str(newer))
        except (OSError, sqlite3.Error) as error:
            self._fail(*_judge(error, self._folder))
        else:
            self._close_reader()
            self.health = self._well
            return True
        self._open_reader()
        return False

    def _open_writer(self) -> sqlite3.Connection:
        if not self._owned:
            # Taking the lock failed for a reason of the folder's: let it fail again, and be told.
            self._make_folder()
            self._owned = self._lock.take()
        before = self._lock.owner()
        path = self._folder / file.NAME
        missing = file.make(self._folder) or path.stat().st_size == 0
        try:
            writer = file.open_writer(self._folder)
        except file.Damaged as damaged:
            writer = self._mend(str(damaged))
        else:
            self._well = StoreHealth(state=StoreState.OK)
            if missing and before.made:
                self._well = self._report(f"{path} was gone or empty: what was queued in it is lost", None)
        self._lock.sign(Owner(pid=os.getpid(), started_at=self._clock.now(), made=True))
        return writer

    def _mend(self, reason: str) -> sqlite3.Connection:
        place = recovery.set_aside(self._folder, now_ms=round(self._clock.now() * 1000))
        file.make(self._folder)
        writer = file.open_writer(self._folder)
        try:
            salvage = recovery.salvage(place, writer)
        except BaseException:
            writer.close()
            raise
        self._well = self._report(reason, salvage)
        return writer

    def _report(self, reason: str, salvage: recovery.Salvage | None) -> StoreHealth:
        health = StoreHealth(state=StoreState.RECOVERED, reason=reason)
        if salvage is not None:
            health = replace(health, salvaged=salvage.salvaged, lost=salvage.lost, set_aside=salvage.set_aside)
        fields = {"reason": reason, "salvaged": health.salvaged, "lost": health.lost, "set_aside": health.set_aside}
        LOG.error("the store was damaged and has been replaced", extra={"fields": fields})
        return health

    def _open_reader(self) -> None:
        if self._reader is None and self.health.state is StoreState.READ_ONLY and (self._folder / file.NAME).exists():
            with contextlib.suppress(sqlite3.Error):
                self._reader = file.open_reader(self._folder)

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _fail(self, state: StoreState, reason: str) -> None:
        if self.health.state is not state:
            LOG.error("the store cannot be used", extra={"fields": {"state": state.value, "reason": reason}})
        self.health = replace(self._well, state=state, reason=reason)

    @property
    def writable(self) -> bool:
        """Return whether the file is open for writing."""
        return self._writer is not None

    # -- its use -------------------------------------------------------------------------------------------------

    def connection(self, *, writes: bool) -> sqlite3.Connection:
        """Return a connection that can do it, opening the file again from time to time; raise Trouble."""
        if self._writer is None and time.monotonic() - self._tried_at >= REOPEN_S:
            self.open()
        if self._writer is not None:
            return self._writer
        if self._reader is not None and not writes:
            return self._reader
        raise Trouble(StoreUnavailable(self.health.reason or "the store is not open"))

    @contextlib.contextmanager
    def translating(self) -> Generator[None]:
        """Turn an error of SQLite into Trouble, after mending what can be mended."""
        try:
            yield
        except sqlite3.Error as error:
            if file.is_damage(error) and self._writer is not None:
                self._writer.close()
                self._writer = None
                if self._mend_running(error):
                    raise Trouble(StoreUnavailable(str(error)), again=True) from error
            else:
                self._fail(*_judge(error, self._folder))
            raise Trouble(StoreUnavailable(self.health.reason or str(error))) from error

    def _mend_running(self, error: sqlite3.Error) -> bool:
        try:
            self._writer = self._mend(f"{self._folder / file.NAME} is damaged: {error}")
        except (OSError, sqlite3.Error, file.Damaged) as again:
            self._fail(StoreState.UNUSABLE, f"the store is damaged ({error}) and could not be replaced: {again}")
            return False
        self.health = self._well
        return True

    def wrote(self) -> None:
        """Take notice of a commit: whatever was wrong with writing is over."""
        self.busy = True
        if self.health is not self._well:
            LOG.info("the store can be written again")
            self.health = self._well

    def rest(self) -> None:
        """Nothing to do for a while: give the log's room and freed pages back."""
        self.busy = False
        if self._writer is not None:
            with contextlib.suppress(sqlite3.Error):  # it is done again after the next write
                self._writer.execute(f"PRAGMA incremental_vacuum({FREED_PAGES})").fetchall()
                self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        """Checkpoint, close, and let go of the folder."""
        self.rest()
        self._close_reader()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._lock.release()


def _judge(error: OSError | sqlite3.Error, folder: Path) -> tuple[StoreState, str]:
    """Return what an error makes of the store, and what a person should do."""
    name = file.name_of(error) if isinstance(error, sqlite3.Error) else errno.errorcode.get(error.errno or 0, "")
    if name in {"SQLITE_FULL", "ENOSPC", "EDQUOT", "EFBIG"} or name.startswith("SQLITE_IOERR_WRITE"):
        return StoreState.FULL, f"the disk of {folder} is full: make room; what is queued is safe and still sent"
    if name.startswith("SQLITE_READONLY") or name in {"EROFS", "EACCES", "EPERM"}:
        return StoreState.READ_ONLY, f"{folder} cannot be written to: change its permissions, or state_dir"
    return StoreState.UNUSABLE, f"the store in {folder} cannot be used: {error}"
