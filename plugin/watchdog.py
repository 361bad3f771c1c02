"""The thread that ends the process when nothing else can: past a deadline, or when the parent is gone."""

import contextlib
import os
import select
import sys
import threading
import time
from collections.abc import Callable

POLL_S = 1.0
STUCK = 70  # EX_SOFTWARE: a supervisor sees that the end was forced


class Watchdog:
    """Watch the parent, and hold deadlines, from a thread of its own that no stuck event loop can stop.

    The parent is watched by its pid, not by a signal tied to the thread that launched us: that would fire while the
    host lives on. On Linux the thread sleeps in poll() on a pidfd; elsewhere it looks once a second.
    """

    def __init__(self, *, on_parent_gone: Callable[[], None], exit_process: Callable[[int], object] = os._exit) -> None:
        self._on_parent_gone = on_parent_gone
        self._exit_process = exit_process
        self._deadline: float | None = None
        self._reason = ""
        self._wake_read, self._wake_write = os.pipe()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Start watching."""
        self._thread.start()

    def arm(self, seconds: float, reason: str) -> None:
        """End the process `seconds` from now, unless `stop` comes first; an earlier deadline stays in force."""
        deadline = time.monotonic() + seconds
        if self._deadline is None or deadline < self._deadline:
            self._deadline, self._reason = deadline, reason
            os.write(self._wake_write, b"!")

    def stop(self) -> None:
        """Stop watching: the process is about to end by itself."""
        self._stopped.set()
        os.write(self._wake_write, b"!")
        self._thread.join(timeout=POLL_S)
        if not self._thread.is_alive():
            os.close(self._wake_read)
            os.close(self._wake_write)

    def _run(self) -> None:
        parent = os.getppid()
        parent_fd = _pidfd(parent)
        poller = select.poll()
        poller.register(self._wake_read, select.POLLIN)
        if parent_fd is not None:
            poller.register(parent_fd, select.POLLIN)
        watching = True
        while not self._stopped.is_set():
            ready = poller.poll(self._timeout_ms(poll_parent=watching and parent_fd is None))
            if any(fd == self._wake_read for fd, _ in ready):
                os.read(self._wake_read, 64)
            if watching and (any(fd == parent_fd for fd, _ in ready) or os.getppid() != parent):
                watching = False
                if parent_fd is not None:
                    poller.unregister(parent_fd)
                self._on_parent_gone()
            if self._deadline is not None and time.monotonic() >= self._deadline and not self._stopped.is_set():
                self._end()
                break
        if parent_fd is not None:
            os.close(parent_fd)

    def _timeout_ms(self, *, poll_parent: bool) -> int | None:
        waits = [POLL_S] if poll_parent else []
        if self._deadline is not None:
            waits.append(max(0.0, self._deadline - time.monotonic()))
        return int(min(waits) * 1000) + 1 if waits else None

    def _end(self) -> None:
        # Nobody may read stderr any more; ending is all that is left to do.
        with contextlib.suppress(OSError):
            os.write(2, f"agentic-sync: {self._reason}; ended by the watchdog\n".encode())
        self._exit_process(STUCK)


def _pidfd(pid: int) -> int | None:
    if sys.platform != "linux":
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        # An old kernel, or the parent is gone already: looking at getppid() once a second covers both.
        return None
