"""Who owns a state folder: a flock on a file that names the owner, held for the life of the process."""

import fcntl
import os
from pathlib import Path

import msgspec

SIGNED_BYTES = 128


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """What the lock file says: who has it, since when, and whether a database was ever made beside it."""

    pid: int | None = None
    started_at: float | None = None
    made: bool = False


class Lock:
    """The lock on one folder; the kernel lets go of it when the process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    @property
    def held(self) -> bool:
        """Return whether this process is the owner."""
        return self._fd is not None

    def take(self) -> bool:
        """Become the owner, or be it already; False while another is. OSError where no such file can be made."""
        if self._fd is not None:
            return True
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        except OSError:
            os.close(fd)
            raise
        self._fd = fd
        return True

    def owner(self) -> Owner:
        """Read who owns the folder, or last did; an empty answer when the file says nothing."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Owner)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return Owner()

    def sign(self, owner: Owner) -> None:
        """Write who owns the folder; only the owner may. OSError when the disk is full."""
        if self._fd is None:
            raise RuntimeError("only the owner signs the lock")
        # In one write of one length: nobody reads half of it, nor what was there before.
        os.pwrite(self._fd, msgspec.json.encode(owner).ljust(SIGNED_BYTES), 0)
        os.ftruncate(self._fd, SIGNED_BYTES)
        if owner.made:
            os.fsync(self._fd)

    def release(self) -> None:
        """Let go; the file stays, since removing it would let two owners in."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
