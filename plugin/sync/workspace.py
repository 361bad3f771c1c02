"""One workspace on the disk, read into a record: `status.json` and, when there, `.meta/report.json`."""

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, cast

import msgspec

from plugin.store.interface import Record
from plugin.sync.record import UNSET_TIME, core_fingerprint, decode, encode, seal
from plugin.sync.walk import Mark, Problem, inside, printable, problem, regular

SYNCED = frozenset(("completed", "merged", "failed", "blocked"))
STATUS_MAX_BYTES = 1024 * 1024
REPORT_MAX_BYTES = 8 * 1024 * 1024


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What `status.json` says; unknown keys are ignored, null is the same as absent."""

    status: str | None = None
    agent: str | None = None
    repo: str | None = None
    org: str | None = None
    task: str | None = None
    branch: str | None = None
    issue: int | None = None
    process_id: str | None = None
    started_at: str | None = None
    updated_at: str | None = None
    question: str | None = None
    runs: int | None = None
    pr_url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What reading a workspace gave: its record when it is to be synced, the versions read, what was wrong."""

    record: Record | None
    status: Mark | None
    report: Mark | None
    problems: tuple[Problem, ...]


_T = TypeVar("_T")


class _Refused(ValueError):
    """A file that must not be used; the text says why."""


def read_workspace(base: str, name: str, status_mark: Mark | None = None) -> Reading:
    """Read the workspace `<base>/<name>`; `base` is a real path, and no link that leaves it is followed.

    `status_mark` is the version of its status, where that was seen just now. Nothing is raised and nothing on the disk
    is changed. A version is taken before its file is read, so a file that changes meanwhile differs from it at the
    next look.
    """
    path = f"{base}/{name}/status.json"
    finished, mark, problems = _load(path, base, STATUS_MAX_BYTES, _finished, status_mark)
    if finished is None:
        return Reading(record=None, status=mark, report=None, problems=problems)
    status, core = finished
    report, report_mark, problems = _load(report_path(base, name), base, REPORT_MAX_BYTES, _object)
    if report and os.path.islink(meta := f"{base}/{name}/.meta") and not inside(meta, base):  # noqa: PTH114  # see `version`
        report, problems = None, (Problem(printable(meta), "is a link that leaves the workspaces; not read"),)
    try:
        record = seal(_content(name, status, report or {}), core_fingerprint=core)
    except (ValueError, RecursionError) as error:  # a name that isn't UTF-8, a report as deep as can be decoded
        record, problems = None, (*problems, problem(path, error, mark))
    return Reading(record=record, status=mark, report=report_mark, problems=problems)


def read_status(base: str, name: str) -> Status | None:
    """Read the status of the workspace `<base>/<name>`; None when there is none that can be read."""
    return _load(f"{base}/{name}/status.json", base, STATUS_MAX_BYTES, _decode_status)[0]


def report_path(base: str, name: str) -> str:
    """Return where a workspace's report lies."""
    return f"{base}/{name}/.meta/report.json"


def _finished(data: bytes) -> tuple[Status, str] | None:
    status = _decode_status(data)
    return (status, core_fingerprint(status.updated_at or "", status.runs or 0)) if status.status in SYNCED else None


def _object(data: bytes) -> dict[str, object] | None:
    value = decode(data)
    if not isinstance(value, dict | None):
        raise _Refused(f"is a {type(value).__name__}; expected an object")
    return cast("dict[str, object] | None", value)


def _load(
    path: str, base: str, max_bytes: int, decoded: Callable[[bytes], _T], mark: Mark | None = None
) -> tuple[_T | None, Mark | None, tuple[Problem, ...]]:
    """Return what a file says, the version that says it, and what was wrong; nothing at all when it isn't there."""
    try:
        fd = _open(path, base)
        try:
            mark = mark or regular(os.fstat(fd))
            data = _read(fd, mark, max_bytes)
        finally:
            os.close(fd)
        return decoded(data), mark, ()
    except (FileNotFoundError, NotADirectoryError):
        return None, None, ()
    except (OSError, ValueError, RecursionError) as error:
        return None, mark, (problem(path, error, mark),)


def _open(path: str, base: str) -> int:
    try:
        return os.open(path, _FLAGS)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
    if not inside(path, base):
        raise _Refused("is a link that leaves the workspaces; not read")
    return os.open(os.path.realpath(path), _FLAGS)


def _read(fd: int, mark: Mark | None, max_bytes: int) -> bytes:
    if mark is None:
        raise _Refused("isn't a regular file")
    size = mark[2]
    if size > max_bytes:
        raise _Refused(f"has {size} bytes; at most {max_bytes} are read")
    # One byte more than the version says: a file that grew meanwhile shows as malformed, and is read again.
    return os.read(fd, size + 1)


def _content(name: str, status: Status, report: dict[str, object]) -> dict[str, object]:
    return {
        "id": name,
        "workspace": name,
        "repo": status.repo or "",
        "org": status.org or "",
        "task": status.task or "",
        "agent": status.agent or "",
        "branch": status.branch or "",
        "status": status.status,
        "question": status.question or "",
        "issue": status.issue or 0,
        "runs": status.runs or 0,
        "process_id": status.process_id or "",
        "pr_url": status.pr_url or "",
        "started_at": status.started_at or UNSET_TIME,
        "updated_at": status.updated_at or UNSET_TIME,
        **_lifted(report),
    }


def _lifted(report: dict[str, object]) -> dict[str, object]:
    """Return what isn't empty: the report, its findings (only objects, as the Go agent sends them), its changes."""
    if not report:
        return {}
    lifted: dict[str, object] = {"report": report}
    findings, changes = report.get("findings"), report.get("changes")
    if isinstance(findings, list):
        elements = cast("list[object]", findings)
        objects: list[object] = (
            elements if {*map(type, elements)} == {dict} else [one for one in elements if type(one) is dict]
        )
        if objects:
            raw = msgspec.Raw(encode(objects))  # most of a record, and sent twice: encoded once
            lifted["findings"] = raw
            if objects is elements:
                lifted["report"] = {**report, "findings": raw}
    if isinstance(changes, dict) and changes:
        lifted["changes"] = changes
    return lifted


_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_decode_status = msgspec.json.Decoder(Status).decode
