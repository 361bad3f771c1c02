"""Keeps one folder: its lock, its connection, and what is known of its health. Used by the writer thread alone.

What can go wrong, and what is done about it:

    another process has the folder      wait until it ends; callers are told its pid
    the file is damaged                 set it aside, salvage what can be read, go on with a fresh one
    the file is newer, or unusable      leave it as it is; look again from time to time
    the disk is full                    new work is refused; what is queued leaves in the room set aside for that
    the folder is read-only             read what is there; writes are refused
"""

import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from plugin.clock import Clock
from plugin.errors import StoreInUse, StoreUnavailable
from plugin.store import diagnosis, file, recovery
from plugin.store.interface import StoreHealth, StoreState
from plugin.store.lock import Lock, Owner
from plugin.store.reserve import ALLOCATE, Allocate, Reserve

LOG = logging.getLogger(__name__)
CONTESTED_S = 0.25
REOPEN_S = 1.0
OVERLAP_S = 2.0
VACUUM_PAGES = 1000
# While nothing is set aside: what is written must fit into what was.
LEAN_VACUUM_PAGES = 250
LEAN_CHECKPOINT_PAGES = 64
LEAN_REST_S = 2.0


class Keeper:
    """Own a folder and the connections to its file."""

    def __init__(
        self,
        folder: Path,
        *,
        clock: Clock,
        is_remote: Callable[[Path], bool] = file.is_remote,
        allocate: Allocate | None = ALLOCATE,
    ) -> None:
        self.health = StoreHealth(state=StoreState.OK)  # replaced as a whole, so any thread may read it
        self.writer: sqlite3.Connection | None = None
        self.reader: sqlite3.Connection | None = None
        self.dirty = False  # something was written since the last checkpoint
        self._folder = folder
        self._path = folder / file.NAME  # looked at with every commit: too dear to be put together each time
        self._clock = clock
        self._is_remote = is_remote
        self._lock = Lock(folder / "state.lock")
        self._reserve = Reserve(folder, allocate=allocate)
        self._well = self.health  # what health returns to
        self._since = clock.monotonic()
        self._next_try = 0.0
        self._next_rest = 0.0

    @property
    def uncontested(self) -> bool:
        """Return whether no other process owns the folder."""
        return self._lock.held or self.health.state is not StoreState.IN_USE

    @property
    def overlapping(self) -> bool:
        """Return whether the folder's owner may be our predecessor, still ending: then callers wait."""
        return self.health.state is StoreState.IN_USE and self._clock.monotonic() - self._since < OVERLAP_S

    def refusal(self, cause: BaseException | None = None) -> StoreUnavailable:
        """Return the error for a call that cannot be served now; a new one each time, as each caller raises its own."""
        health = self.health
        if health.state is StoreState.IN_USE:
            return StoreInUse(health.reason or "the state folder is in use", pid=health.pid)
        error = StoreUnavailable(health.reason or f"the store in {self._folder} cannot be used now: {cause}")
        error.__cause__ = cause
        return error

    # -- the folder and the file -----------------------------------------------------------------------------------

    def attend(self) -> None:
        """Try to own the folder and to open the file, unless that is done or was tried just now."""
        if self.writer is not None:
            if self._reserve.lacking and self._clock.monotonic() >= self._next_rest:
                self.rest()  # who has no pause must notice room as well
            return
        started = time.monotonic()
        if started < self._next_try:
            return
        try:
            if not self._own():
                self._next_try = started + CONTESTED_S
                return
            self._adopt(self._open_with_room())
        except file.Newer as newer:
            self._fail(StoreState.UNUSABLE, str(newer))
        except (file.Damaged, OSError, ValueError, sqlite3.Error) as error:
            self._fail(*diagnosis.judge(error, self._folder))
            self._open_reader()
        # An attempt that reads through a large file is not made again at once.
        ended = time.monotonic()
        self._next_try = ended + max(REOPEN_S, 10 * (ended - started))

    def _own(self) -> bool:
        """Own the folder, and say so at once; False while another process does."""
        if self._lock.held:
            return True
        if not self._folder.exists():
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            file.sync_folder(self._folder.parent)
        if not self._lock.take():
            self._wait_for_owner()
            return False
        self._sign(made=self._lock.owner().made)
        return True

    def _sign(self, *, made: bool) -> None:
        with contextlib.suppress(OSError):  # on a full disk others learn of us what they can
            self._lock.sign(Owner(pid=os.getpid(), started_at=self._clock.now(), made=made))

    def _wait_for_owner(self) -> None:
        pid = self._lock.owner().pid
        if self.health.state is not StoreState.IN_USE or self.health.pid != pid:
            LOG.warning("the state folder is in use by another process", extra={"fields": {"pid": pid}})
        self.health = StoreHealth(
            state=StoreState.IN_USE,
            pid=pid,
            reason=f"{self._folder} is in use by another agentic-sync (pid {pid}); this one takes over when it ends: "
            "stop that one, or choose another state_dir",
        )

    def _open_with_room(self) -> sqlite3.Connection:
        """Open the file for writing; with the room that was set aside when there is no other."""
        try:
            return self._open()
        except (OSError, sqlite3.Error) as error:
            state, _ = diagnosis.judge(error, self._folder)
            if state is not StoreState.FULL or not self._reserve.free():
                raise
            return self._open()

    def _open(self) -> sqlite3.Connection:
        """Open the file for writing, with what has to be done before; `_well` says what that was."""
        finished = recovery.finish(self._folder, now=self._clock.now())
        if finished is not None:
            self._well = _report("a salvage was cut off and has been carried on", finished)
        before = self._lock.owner()
        remote = self._is_remote(self._folder)
        try:
            if recovery.has_leftovers(self._folder):
                raise file.Damaged(f"{self._path} is gone or empty, but its log is there")  # noqa: TRY301 - one way to mend
            missing = file.create(self._path)
            writer = file.open_writer(self._folder, remote=remote, made=before.made and not missing)
        except file.Damaged as damaged:
            writer = self._mend(damaged, remote=remote)
        else:
            if missing and before.made:
                self._well = _report(f"{self._path} was gone: what was queued in it is lost", None)
        if not before.made:
            self._sign(made=True)
        if remote:
            LOG.warning(
                "the state folder is on a network file system: slower, and only as safe as its locks",
                extra={"fields": {"state_dir": str(self._folder)}},
            )
            self._reserve.renounce("it is on a network file system")
        return writer

    def _mend(self, damaged: file.Damaged, *, remote: bool) -> sqlite3.Connection:
        salvage = recovery.replace(self._folder, now=self._clock.now())
        self._well = _report(str(damaged), salvage)
        return file.open_writer(self._folder, remote=remote)

    def _adopt(self, writer: sqlite3.Connection) -> None:
        self._close_reader()
        self.writer = writer
        if self._covered():
            self._be_well()
        else:
            self._be_full()

    def _open_reader(self) -> None:
        # Opened anew each time: whoever can write to the file may have done so.
        self._close_reader()
        if self.health.state is StoreState.READ_ONLY:
            with contextlib.suppress(file.Damaged, file.Newer, OSError, sqlite3.Error):
                self.reader = file.open_reader(self._folder)

    def _close_reader(self) -> None:
        if self.reader is not None:
            self.reader.close()
            self.reader = None

    def give_up(self, reason: str) -> None:
        """Take notice that this will never be usable again."""
        self.health = replace(self._well, state=StoreState.UNUSABLE, reason=reason)

    def _fail(self, state: StoreState, reason: str) -> None:
        if self.health.state is not state:
            LOG.error("the store cannot be used", extra={"fields": {"state": state.value, "reason": reason}})
        self.health = replace(self._well, state=state, reason=reason)

    def _be_well(self) -> None:
        if self.health.state not in {StoreState.OK, self._well.state}:
            LOG.info("the store can be used", extra={"fields": {"was": self.health.state.value}})
        self.health = self._well
        self._keep_log_within(file.CHECKPOINT_PAGES)

    def _be_full(self) -> None:
        """Let what is queued leave in little room, and look for more from time to time."""
        self._fail(StoreState.FULL, diagnosis.full(self._folder))
        self._keep_log_within(LEAN_CHECKPOINT_PAGES)
        self._next_rest = self._clock.monotonic() + LEAN_REST_S
        self.dirty = True

    def _keep_log_within(self, pages: int) -> None:
        if self.writer is not None:
            self.writer.execute(f"PRAGMA wal_autocheckpoint = {pages}")

    # -- its use -------------------------------------------------------------------------------------------------

    def admits(self) -> bool:
        """Say, within a transaction that takes new work in, whether what is queued could still leave on a full disk."""
        if self._covered():
            return True
        self._be_full()
        return False

    def _covered(self) -> bool:
        try:
            growth = self._growth()
            return self._reserve.covers(growth) and file.may_grow(self._path, growth)
        except (OSError, sqlite3.Error):
            return False

    def _growth(self) -> int:
        """Return by how much the file will grow once its log is brought home, in bytes."""
        if self.writer is None:
            return 0
        (pages,) = self.writer.execute("PRAGMA page_count").fetchone()
        return max(0, int(pages) * file.PAGE_BYTES - file.size_of(self._path))

    def failed(self, error: sqlite3.Error, *, final: bool, drains: bool) -> bool:
        """Take notice of an error; unless it is `final`, mend what can be, and return whether to try once more.

        What `drains` the outbox may use the room that is set aside for it.
        """
        state, reason = diagnosis.judge(error, self._folder)
        if not final:
            if file.is_damage(error):
                return self._mend_running(error)
            if state is StoreState.FULL and self._make_room(drains=drains):
                return True
        self._fail(state, reason)
        return False

    def _mend_running(self, error: sqlite3.Error) -> bool:
        if self.writer is not None:
            self.writer.close()
            self.writer = None
        damaged = file.Damaged(f"{self._path} is damaged ({error})")
        try:
            self._adopt(self._mend(damaged, remote=self._is_remote(self._folder)))
        except (file.Damaged, file.Newer, OSError, sqlite3.Error) as problem:
            self._fail(StoreState.UNUSABLE, f"{damaged} and could not be replaced: {problem}")
            return False
        return True

    def _make_room(self, *, drains: bool) -> bool:
        """Bring the log home, so that its room is used again; False when it is not worth another attempt."""
        if self.writer is None:
            return False
        freed = drains and self._reserve.free()
        if freed:
            self._be_full()
        elif self.health is not self._well:
            return False
        try:
            self.writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except sqlite3.Error:
            return freed
        return True

    def worked(self, *, changed: bool) -> None:
        """Take notice of a commit: whatever was wrong is over. What keeps writes out is over only after a write."""
        self.dirty = self.dirty or changed
        shut = self.health.state in {StoreState.FULL, StoreState.READ_ONLY}
        if self.health is self._well or (shut and not changed):
            return
        if self._covered():
            self._be_well()
        else:
            self._be_full()

    def rest(self) -> None:
        """Nothing to do for a while: bring the log home, and give back freed pages, some at a time."""
        self.dirty = False
        if self.writer is None:
            return
        lean = self._reserve.lacking
        with contextlib.suppress(sqlite3.Error):  # it is done again after the next write
            self._give_back(self.writer, lean=lean)
        if lean:
            self._look_for_room()
        else:
            with contextlib.suppress(OSError, sqlite3.Error):
                self._reserve.trim(self._growth())

    def _give_back(self, db: sqlite3.Connection, *, lean: bool) -> None:
        """Give back room; on a full disk, where others may take it, only if we would then be over the worst.

        The log keeps the room that it takes again and again: a commit that must make it grow waits twice as long.
        """
        (free,) = db.execute("PRAGMA freelist_count").fetchone()
        logged = file.size_of(self._folder / file.FAMILY[1])
        most, spared = (LEAN_VACUUM_PAGES, 0) if lean else (VACUUM_PAGES, VACUUM_PAGES)
        if free > spared and (not lean or self._reserve.fits(logged + free * file.PAGE_BYTES)):
            db.execute(f"PRAGMA incremental_vacuum({most})").fetchall()
            self.dirty = True
        cut = self._reserve.fits(logged) if lean else logged > file.JOURNAL_BYTES
        # A reader in another process must not hold up the next write.
        db.execute("PRAGMA busy_timeout = 0")
        try:
            db.execute(f"PRAGMA wal_checkpoint({'TRUNCATE' if cut else 'PASSIVE'})").fetchall()
        finally:
            db.execute(f"PRAGMA busy_timeout = {round(file.BUSY_S * 1000)}")

    def _look_for_room(self) -> None:
        if not self._covered():
            self._be_full()
        elif self.health.state is StoreState.FULL:
            self._be_well()

    def close(self) -> None:
        """Close, which brings the log home, and let go of the folder."""
        self._close_reader()
        if self.writer is not None:
            self.writer.close()
            self.writer = None
            self._reserve.covers(0)  # a later start may find the disk full
        self._lock.release()


def _report(reason: str, salvage: recovery.Salvage | None) -> StoreHealth:
    health = StoreHealth(state=StoreState.RECOVERED, reason=reason)
    if salvage is not None:
        health = replace(health, salvaged=salvage.salvaged, lost=salvage.lost, set_aside=salvage.set_aside)
    fields = {"reason": reason, "salvaged": health.salvaged, "lost": health.lost, "set_aside": health.set_aside}
    LOG.error("the store was damaged and has been replaced", extra={"fields": fields})
    return health
