"""Reads what the system says of a process: its CPU time, memory, wake-ups and writes. Linux only."""

import re
import time
from pathlib import Path

CPU_CLOCK = 2  # the clock of a process that counts what the scheduler gave it, in nanoseconds


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of all threads, user and system."""
    return time.clock_gettime((~pid << 3) | CPU_CLOCK)


def private_mib(pid: int) -> float:
    """Return the memory that would be free if the process ended, in MiB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(_number(text, name) for name in ("Private_Clean:", "Private_Dirty:", "Swap:")) / 1024


def wake_ups(pid: int) -> int:
    """Return how often a thread waited and went on."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(_number((task / "status").read_text(), "voluntary_ctxt_switches:") for task in tasks)


def written_bytes(pid: int) -> int:
    """Return the bytes that the process had written to storage."""
    return _number(Path(f"/proc/{pid}/io").read_text(), "write_bytes:")


def _number(text: str, name: str) -> int:
    found = re.search(rf"^{name}\s*(\d+)", text, re.MULTILINE)
    assert found, f"{name} is not in the text of /proc"
    return int(found[1])
