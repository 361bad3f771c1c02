"""The very first act of a program that speaks on its standard streams: take them away from everybody else.

Imports next to nothing, so that it can run before anything that prints while it is imported.
"""

import fcntl
import os
from typing import NamedTuple

_STDIN, _STDOUT, _STDERR = 0, 1, 2


class Wire(NamedTuple):
    """The private, close-on-exec descriptors of the wire; whoever holds it closes them."""

    read_fd: int
    write_fd: int


def claim() -> Wire:
    """Move standard input and output to private descriptors. Call it once, before other imports.

    From then on descriptor 0 reads nothing, and 1 writes to standard error: a stray `print`, in Python or in C, also
    one that is flushed at exit, never reaches the wire. Where standard error itself is the wire (`2>&1`), 1 writes to
    nowhere. A standard stream that came closed is /dev/null: the input has ended, the output is not wanted.
    """
    null = _open_null()
    wire = Wire(_private(_STDIN), _private(_STDOUT))
    stray = null if os.path.samestat(os.fstat(_STDOUT), os.fstat(_STDERR)) else _STDERR
    os.dup2(null, _STDIN)
    os.dup2(stray, _STDOUT)
    os.close(null)
    return wire


def _open_null() -> int:
    """Open /dev/null above the standard descriptors, filling those that are closed on the way there."""
    while (null := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        os.set_inheritable(null, True)  # noqa: FBT003 - os has no keyword for it
    return null


def _private(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _STDERR + 1)
