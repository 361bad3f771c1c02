"""What signals do in processes that a test launches."""

import contextlib
import signal
from collections.abc import Generator


@contextlib.contextmanager
def inherited(number: signal.Signals, meaning: signal.Handlers) -> Generator[None]:
    """Have processes that are launched meanwhile inherit this meaning, whatever these tests run under.

    `nohup` ignores SIGHUP, and a shell's background job SIGINT.
    """
    before = signal.signal(number, meaning)
    try:
        yield
    finally:
        signal.signal(number, before)
