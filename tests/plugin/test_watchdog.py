"""The watchdog is tested on real processes: what it guards is the end of one."""

import os
import signal
import subprocess
import sys
import textwrap
import threading

from plugin.watchdog import STUCK, Watchdog


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=30, check=False
    )


def test_a_process_that_hangs_is_ended_at_its_deadline() -> None:
    done = run(
        """
        import threading
        from plugin.watchdog import Watchdog
        watchdog = Watchdog(on_parent_gone=lambda: None)
        watchdog.start()
        watchdog.arm(0.05, "the test hangs")
        threading.Event().wait()
        """
    )
    assert done.returncode == STUCK
    assert "the test hangs" in done.stderr


def test_the_earlier_of_two_deadlines_holds() -> None:
    ended = threading.Event()
    codes: list[int] = []

    def end(code: int) -> None:
        codes.append(code)
        ended.set()

    watchdog = Watchdog(on_parent_gone=lambda: None, exit_process=end)
    watchdog.start()
    watchdog.arm(0.01, "early")
    watchdog.arm(3600, "late")
    assert ended.wait(20)
    assert codes == [STUCK]
    watchdog.stop()


def test_a_stopped_watchdog_ends_nothing() -> None:
    codes: list[int] = []
    watchdog = Watchdog(on_parent_gone=lambda: None, exit_process=codes.append)
    watchdog.start()
    watchdog.arm(3600, "never")
    watchdog.stop()
    assert not any(thread.name == "watchdog" and thread.is_alive() for thread in threading.enumerate())
    assert codes == []


CHILD = """
import os, threading
from plugin.watchdog import Watchdog
gone = threading.Event()
watchdog = Watchdog(on_parent_gone=gone.set)
watchdog.start()
os.write(1, b"watching")
if gone.wait(20):
    os.write(1, b"gone")
"""


def test_the_end_of_the_parent_is_noticed() -> None:
    read_fd, write_fd = os.pipe()
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', {CHILD!r}])\ntime.sleep(60)",
        ],
        stdout=write_fd,
    )
    os.close(write_fd)
    assert os.read(read_fd, 100) == b"watching"
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert os.read(read_fd, 100) == b"gone"
    os.close(read_fd)
