"""Find finished workspaces below a root, reading only what changed since the last look."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from plugin.store.interface import Record
from plugin.sync.walk import Mark, Problem, Walk, version
from plugin.sync.workspace import read_workspace, report_path

# A file that was written this shortly before it was read may change again without a new time stamp
# (file systems count in steps of up to two seconds), so it is read once more at the next scan.
_SETTLED_NS = 2_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A finished workspace as the last scan saw it, without its body: 10,000 of them fit in some MiB."""

    id: str  # its path below the workspaces: "core/go-io/task-5"
    fingerprint: str
    core_fingerprint: str | None
    base: str

    def load(self) -> Record | None:
        """Read the workspace again and return its record as it is now, maybe newer than the fingerprint.

        None when it is gone, unreadable, or no longer finished: it runs again, and the next scan finds its end.
        """
        return read_workspace(self.base, self.id).record


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanResult:
    """What a scan found: candidates by path, the number of workspaces of any status, what was skipped.

    `problems` are all that stand now, `new_problems` those of them that the scan before did not see.
    """

    candidates: tuple[Candidate, ...]
    workspaces: int
    problems: tuple[Problem, ...]
    new_problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the last scan knows of one workspace, and of which versions of its files."""

    status: Mark | None
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
        walk = Walk(base)
        found = {name: self._look(base, name, mark, settled_ns) for name, mark in walk.workspaces()}
        self._seen = dict(sorted(found.items()))
        problems = [*walk.problems]
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

    def _look(self, base: str, name: str, mark: Mark, settled_ns: int) -> _Seen:
        seen = self._seen.get(name)
        if seen is not None and seen.settled and seen.status == mark and _same_report(seen, base, name):
            return seen
        reading = read_workspace(base, name, mark)
        record = reading.record
        candidate = record and Candidate(
            id=record.id, fingerprint=record.fingerprint, core_fingerprint=record.core_fingerprint, base=base
        )
        newest_ns = max(mark[0] if mark else 0 for mark in (reading.status, reading.report))
        return _Seen(reading.status, reading.report, newest_ns < settled_ns, candidate, reading.problems)


def _same_report(seen: _Seen, base: str, name: str) -> bool:
    if seen.candidate is None and seen.report is None:
        return True  # not finished: its report doesn't matter
    path = report_path(base, name)
    if seen.report is None and not os.access(path, os.F_OK):
        return True  # half the cost of a stat that finds nothing
    try:
        return version(path) == seen.report
    except OSError:
        return False
