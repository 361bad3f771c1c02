"""Workspaces for tests, as the Go agent leaves them, and what a scan of them says."""

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from plugin.loopback.workspaces import write_workspace
from plugin.sync.record import UNSET_TIME
from plugin.sync.scan import Candidate, ScanResult

NOW = datetime(2026, 4, 14, 12, 0, 0, 123456, tzinfo=UTC)


def finished(root: Path, name: str, *, status: str = "completed", report: Mapping[str, object] | None = None) -> Path:
    return write_workspace(root, name, status=status, repo="go-io", now=NOW, report=report, agent="codex", runs=2)


def status_only(root: Path, name: str, **status: object) -> Path:
    """Write a workspace by hand: a folder with a status, and nothing else in it."""
    folder = root / "workspace" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "status.json").write_text(json.dumps({"status": "completed", "updated_at": UNSET_TIME} | status))
    return folder


def settle(root: Path) -> None:
    """Make every file look as if it had been written long ago."""
    for folder, _, names in os.walk(root):
        for name in names:
            os.utime(Path(folder) / name, (1_700_000_000, 1_700_000_000))


def ids(result: ScanResult) -> list[str]:
    return [candidate.id for candidate in result.candidates]


def only(result: ScanResult) -> Candidate:
    (candidate,) = result.candidates
    return candidate


def body(candidate: Candidate) -> dict[str, object]:
    record = candidate.load()
    assert record is not None
    loaded: dict[str, object] = json.loads(record.body)
    return loaded


def paths(result: ScanResult, root: Path) -> list[str]:
    return [os.path.relpath(problem.path, root / "workspace") for problem in result.problems]
