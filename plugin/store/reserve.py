"""Room on the disk that is kept for later: a full disk must not keep what is queued from leaving."""

import contextlib
import errno
import os
from pathlib import Path

RESERVE_BYTES = 2 * 1024 * 1024


class Reserve:
    """A file that is there only to be removed once the disk is full."""

    def __init__(self, path: Path, *, size: int = RESERVE_BYTES) -> None:
        self._path = path
        self._size = size

    def keep(self) -> None:
        """Take the room unless it is taken; raise OSError, having taken none, when there is too little."""
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(fd).st_size < self._size:
                take(fd, self._size)
        except OSError:
            self.spend()
            raise
        finally:
            os.close(fd)

    def spend(self) -> None:
        """Give the room back to the disk; what can't be removed gives none."""
        with contextlib.suppress(OSError):
            self._path.unlink()


def take(fd: int, size: int) -> None:
    """Have the disk set aside `size` bytes for an empty file; OSError when it can't."""
    try:
        os.posix_fallocate(fd, 0, size)
    except AttributeError:
        fill(fd, size)  # macOS has no such call
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}:
            raise
        fill(fd, size)  # nor have some file systems


def fill(fd: int, size: int) -> None:
    """Write zeros from the beginning until the file has `size` bytes."""
    written = 0
    while written < size:
        written += os.pwrite(fd, bytes(size - written), written)
