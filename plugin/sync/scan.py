"""Find finished workspaces below a root, reading only what changed since the last look."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from msgspec import Struct

from plugin.store.interface import Record
from plugin.sync.record import fingerprint
from plugin.sync.walk import Mark, Problem, Walk, version
from plugin.sync.workspace import REPORT, STATUS, Reading, read_workspace

# A file that was written this shortly before it was read may change again without a new time stamp
# (file systems count in steps of up to two seconds), so it is read once more at the next scan.
_SETTLED_NS = 2_000_000_000


class Candidate(Struct, frozen=True, kw_only=True, gc=False):
    """A finished workspace as the last scan saw it, without its body: 10,000 of them fit in some MiB."""

    id: str  # its path below the workspaces: "core/go-io/task-5"
    fingerprint: str
    core_fingerprint: str | None
    base: str

    def load(self) -> Record | None:
        """Read the workspace again and return its record as it is now, maybe newer than the fingerprint.

        None when it is gone, unreadable, or no longer finished: it runs again, and the next scan finds its end.
        """
        try:
            reading = read_workspace(self.base, self.id, f"{self.base}/{self.id}")
        except OSError:
            return None
        if reading is None or reading.body is None:
            return None
        return Record(
            id=self.id,
            fingerprint=fingerprint(reading.body),
            body=reading.body,
            core_fingerprint=reading.core_fingerprint,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanResult:
    """What a scan found: candidates by path, the number of workspaces of any status, what was skipped.

    `problems` are all that stand now, `new_problems` those of them that the scan before did not see.
    """

    candidates: tuple[Candidate, ...]
    workspaces: int
    problems: tuple[Problem, ...]
    new_problems: tuple[Problem, ...]


class _Seen(Struct, frozen=True, gc=False):
    """What the last scan knows of one workspace, and of which versions of its files."""

    status: Mark
    report: Mark | None
    settled: bool
    candidate: Candidate | None
    problems: tuple[Problem, ...]


class Scanner:
    """Scan `<root>/workspace` again and again; one scan at a time, in any thread.

    A folder with a regular `status.json` is a workspace at depth 1 or 3, or when it has both `repo/` and `.meta/`;
    nothing below a workspace is one. Links that leave the workspaces are not followed, and each folder is seen once:
    a link to one that is reached without it adds nothing.
    """

    def __init__(self, root: Path, *, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._folder = root / "workspace"
        self._now_ns = now_ns
        self._seen: dict[str, _Seen] = {}
        self._problems: frozenset[Problem] = frozenset()

    def scan(self) -> ScanResult:
        """Look at every workspace, reading those whose files changed; blocks on the disk, and raises nothing.

        A workspace that cannot be used is skipped and said in `problems`; it is read again once its files change.
        """
        base = os.path.realpath(self._folder)
        settled_ns = self._now_ns() - _SETTLED_NS
        found: dict[str, _Seen] = {}

        def look(name: str, folder: str, dir_fd: int | None) -> bool:
            seen = self._seen.get(name)
            if seen is None or not _is_same(seen, folder, dir_fd):
                reading = read_workspace(base, name, folder, dir_fd)
                if reading is None:
                    return False
                seen = _see(base, name, reading, settled_ns)
            found[name] = seen
            return True

        walk = Walk(base, look)
        walk.run()
        self._seen = {name: found[name] for name in sorted(found)}
        return self._result(walk.problems)

    def _result(self, problems: list[Problem]) -> ScanResult:
        candidates: list[Candidate] = []
        for seen in self._seen.values():
            problems.extend(seen.problems)
            if seen.candidate is not None:
                candidates.append(seen.candidate)
        new = tuple(one for one in problems if one not in self._problems)
        self._problems = frozenset(problems)
        return ScanResult(
            candidates=tuple(candidates), workspaces=len(self._seen), problems=tuple(problems), new_problems=new
        )


def _see(base: str, name: str, reading: Reading, settled_ns: int) -> _Seen:
    body, status, report = reading.body, reading.status, reading.report
    candidate = (
        None
        if body is None
        else Candidate(id=name, fingerprint=fingerprint(body), core_fingerprint=reading.core_fingerprint, base=base)
    )
    settled = status[0] < settled_ns and (report is None or report[0] < settled_ns)
    return _Seen(status, report, settled, candidate, reading.problems)


def _is_same(seen: _Seen, folder: str, dir_fd: int | None) -> bool:
    """Say whether a workspace is as it was seen; OSError when it can't be seen whether there is a status."""
    return seen.settled and version(f"{folder}/{STATUS}", dir_fd) == seen.status and _same_report(seen, folder, dir_fd)


def _same_report(seen: _Seen, folder: str, dir_fd: int | None) -> bool:
    if seen.candidate is None and seen.report is None:
        return True  # not finished: its report doesn't matter
    path = f"{folder}/{REPORT}"
    if seen.report is None and not os.access(path, os.F_OK, dir_fd=dir_fd):
        return True  # half the cost of a stat that finds nothing
    try:
        return version(path, dir_fd) == seen.report
    except OSError:
        return False
