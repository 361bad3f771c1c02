"""A file of allocated blocks beside the database: the room in which what is queued can still leave on a full disk.

To forget a record takes room, too: the log must say so. So some is set aside while there is any, and given up when a
write that lets the outbox drain finds none. It covers what the file grows by once the log is brought home, so that the
log can then begin anew, and a margin for what such writes add.
"""

import contextlib
import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path

LOG = logging.getLogger(__name__)
NAME = "agentic-sync.reserve"
MARGIN_BYTES = 3 * 1024 * 1024
STEP_BYTES = 1024 * 1024
LEAST_BYTES = MARGIN_BYTES + STEP_BYTES
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

Allocate = Callable[[int, int, int], None]  # as os.posix_fallocate, which some systems lack
ALLOCATE: Allocate | None = getattr(os, "posix_fallocate", None)


class Reserve:
    """The room that is set aside in one folder; without effect where a file system cannot do so."""

    def __init__(self, folder: Path, *, allocate: Allocate | None = ALLOCATE) -> None:
        self._path = folder / NAME
        self._allocate = allocate
        self._bytes = 0
        self._used = True

    @property
    def lacking(self) -> bool:
        """Return whether nothing is set aside, though it should be."""
        return self._used and not self._bytes

    def renounce(self, why: object) -> None:
        """Do without from now on."""
        LOG.debug("no room is set aside for a full disk", extra={"fields": {"path": str(self._path), "why": str(why)}})
        self._used, self._bytes = False, 0

    def covers(self, growth: int) -> bool:
        """Set aside, unless that is done, so much and the margin, in bytes; False when there is no room for it."""
        if not self._used or (self._bytes and growth + MARGIN_BYTES <= self._bytes):
            return True
        return self._lay(_size(growth))

    def trim(self, growth: int) -> None:
        """Give back what is more than it takes to cover so much."""
        if _size(growth) < self._bytes:
            self._lay(_size(growth))

    def fits(self, freed: int) -> bool:
        """Say whether there would be room for the least that is set aside, were so many bytes freed."""
        return self._has_room(LEAST_BYTES - freed)

    def free(self) -> bool:
        """Give all of it up; return whether there was any. What an earlier process set aside is ours."""
        self._bytes = 0
        if not self._used:
            return False
        try:
            was = self._path.lstat().st_blocks
            self._path.unlink()
        except OSError:
            # It is gone, and its room with it; or it never was ours to remove.
            return False
        return was > 0

    def _lay(self, size: int) -> bool:
        """Make the file so large, with blocks for all of it; one that cannot grow stays as it was."""
        if not self._has_room(size):
            return False
        try:
            self._make(size)
        except OSError as error:
            if error.errno in NO_ROOM:
                return False
            self.renounce(error)
        else:
            self._bytes = size
        return True

    def _make(self, size: int) -> None:
        if self._allocate is None:
            raise OSError(errno.ENOSYS, "this system cannot allocate a file's blocks")
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            self._allocate(fd, 0, size)
            os.ftruncate(fd, size)
        except OSError:
            # What is left of an attempt only takes room.
            os.ftruncate(fd, self._bytes)
            if not self._bytes:
                self._path.unlink()
            raise
        finally:
            os.close(fd)

    def _has_room(self, size: int) -> bool:
        """Say whether so much may fit: an attempt that must fail would take all there is for a moment."""
        try:
            disk = os.statvfs(self._path.parent)
        except OSError:
            return True
        with contextlib.suppress(OSError):
            size -= self._path.lstat().st_blocks * 512
        return not disk.f_blocks or size <= disk.f_bfree * disk.f_frsize


def _size(growth: int) -> int:
    return STEP_BYTES * ((growth + MARGIN_BYTES) // STEP_BYTES + 1)
