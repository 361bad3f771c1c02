"""Named points at which the tests kill the process, to see what survives; without the variable they do nothing.

`CRASH_AT_AGENTIC_SYNC=name` ends the process the first time that it comes to the point of this name, `name:3` the
third time: with SIGKILL, so nothing is closed, flushed or answered.
"""

import itertools
import os
import signal
from collections.abc import Callable

VARIABLE = "CRASH_AT_AGENTIC_SYNC"


def _nowhere(_name: str) -> None:
    """Pass."""


def armed(where: str) -> Callable[[str], None]:
    """Return what ends the process at the point that the variable's value names."""
    wanted, _, count = where.partition(":")
    times, last = itertools.count(1), int(count or 1)

    def pass_or_end(name: str) -> None:
        if name == wanted and next(times) == last:
            os.kill(os.getpid(), signal.SIGKILL)

    return pass_or_end


point: Callable[[str], None] = armed(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else _nowhere
