"""Finished workspaces on a disk, as the Go agent leaves them, and the least that reading them takes."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from plugin.loopback.workspaces import write_workspace

NOW = datetime(2026, 4, 14, 12, 0, 0, 123456, tzinfo=UTC)
LONG_AGO = (1_700_000_000, 1_700_000_000)  # settled: what was just written is read once more
MAX_BYTES = 16 * 1024  # of any of these files
REPORT: Mapping[str, object] = {
    "passed": True,
    "findings": [
        {
            "severity": "low",
            "file": f"pkg/io/reader_{number}.go",
            "line": 40 + number,
            "message": "the error is dropped",
        }
        for number in range(4)
    ],
    "changes": {"files_changed": 3, "insertions": 41, "deletions": 7},
}


def write(root: Path, numbers: range, *, report: bool) -> list[str]:
    """Write workspaces below `<root>/workspace`, 100 a repository; return the files that say something."""
    return [path for number in numbers for path in _write(root, number, report=report)]


def _write(root: Path, number: int, *, report: bool) -> Iterator[str]:
    name = f"core/repo-{number // 100}/task-{number}"
    task = "Close the file when the reader is cancelled, and say so in the log"
    folder = write_workspace(
        root,
        name,
        status="completed",
        repo=f"repo-{number // 100}",
        now=NOW,
        report=REPORT if report else None,
        org="core",
        agent="codex",
        branch=f"agent/task-{number}",
        task=task,
        runs=1,
    )
    paths = [folder / "status.json", *([folder / ".meta" / "report.json"] if report else [])]
    for path in paths:
        os.utime(path, LONG_AGO)
        yield str(path)


def read_ms(paths: Sequence[str], absent: Sequence[str]) -> float:
    """Read and decode files whose names are known, and see that others are absent; return the milliseconds."""
    started = time.perf_counter()
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        msgspec.json.decode(os.read(fd, MAX_BYTES))
        os.close(fd)
    for path in absent:
        os.access(path, os.F_OK)
    return (time.perf_counter() - started) * 1000


def stat_ms(paths: Sequence[str], absent: Sequence[str]) -> float:
    """Stat files whose names are known, and see that others are absent; return the milliseconds."""
    started = time.perf_counter()
    for path in paths:
        os.stat(path)  # noqa: PTH116 - the floor has no Path to make either
    for path in absent:
        os.access(path, os.F_OK)
    return (time.perf_counter() - started) * 1000


def go_ms(root: Path) -> float:
    """Find, read and decode every workspace, and encode its record, as the Go program does; return the milliseconds."""
    started = time.perf_counter()
    for path in sorted(_statuses(root / "workspace")):
        status = msgspec.json.decode(path.read_bytes())
        meta = path.parent / ".meta" / "report.json"
        report = msgspec.json.decode(meta.read_bytes()) if meta.exists() else None
        msgspec.json.encode({**status, "report": report} if report else status)
    return (time.perf_counter() - started) * 1000


def _statuses(workspaces: Path) -> Iterator[Path]:
    """Yield what the Go program's three patterns match: at depth one and three."""
    yield from workspaces.glob("*/status.json")
    yield from workspaces.glob("*/*/*/status.json")
