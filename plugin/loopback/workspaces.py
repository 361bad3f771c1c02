"""Workspaces on this machine, written the way the Go agent writes them."""

import secrets
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TypedDict, Unpack

import msgspec


class Fields(TypedDict, total=False):
    """What else a status may say; what is empty is left out of the file."""

    org: str
    task: str
    agent: str
    branch: str
    issue: int
    process_id: str
    question: str
    pr_url: str
    runs: int
    started_at: datetime


def write_workspace(
    root: Path,
    name: str,
    *,
    status: str,
    repo: str,
    now: datetime,
    report: Mapping[str, object] | None = None,
    **fields: Unpack[Fields],
) -> Path:
    """Write the workspace `<root>/workspace/<name>` and return its folder; what it said before is replaced.

    `now`, with its time zone, becomes `updated_at`. Each file is replaced in one step, the report first, so that
    whoever sees the status sees its report.
    """
    folder = root / "workspace" / name
    (folder / "repo").mkdir(parents=True, exist_ok=True)
    (folder / ".meta").mkdir(exist_ok=True)
    if report is not None:
        _write(folder / ".meta" / "report.json", report)
    said = {key: value for key, value in fields.items() if value}
    _write(
        folder / "status.json",
        {"status": status, "repo": repo, "started_at": now, "runs": 0, **said, "updated_at": now},
    )
    return folder


def _write(path: Path, value: Mapping[str, object]) -> None:
    part = path.with_name(f"{path.name}.tmp.{secrets.token_hex(4)}")
    part.write_bytes(msgspec.json.encode(value))
    part.rename(path)
