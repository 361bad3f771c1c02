"""One workspace on the disk, read into a record: `status.json` and, when there, `.meta/report.json`."""

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar, cast

import msgspec
from msgspec import UNSET

from plugin.sync.record import UNSET_TIME, core_fingerprint, decode, encode
from plugin.sync.walk import Mark, Problem, inside, is_link, printable, problem, regular, version

STATUS = "status.json"
REPORT = ".meta/report.json"
SYNCED = frozenset(("completed", "merged", "failed", "blocked"))
STATUS_MAX_BYTES = 1024 * 1024
REPORT_MAX_BYTES = 8 * 1024 * 1024


class Status(msgspec.Struct, frozen=True, kw_only=True, gc=False):
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


class Reading(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What reading a workspace gave: its body when it is to be synced, the versions read, what was wrong.

    A struct, as all that a scan makes by the 10,000: a dataclass costs four times as much. None can be in a cycle, so
    the garbage collector need not know them.
    """

    body: bytes | None
    core_fingerprint: str
    status: Mark
    report: Mark | None
    problems: tuple[Problem, ...]


class _Body(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The content of a record; the fields are in sorted order, so it is canonical as it is encoded."""

    agent: str
    agent_type: str
    branch: str
    changes: object
    findings: object
    id: str
    issue: int
    org: str
    pr_url: str
    process_id: str
    question: str
    repo: str
    report: object
    runs: int
    started_at: str
    status: str | None
    task: str
    updated_at: str
    workspace: str


_T = TypeVar("_T")


class _Place(msgspec.Struct, frozen=True, gc=False):
    """Where a workspace lies: below the real path `base` by its name, and the same from an open folder."""

    base: str
    name: str
    folder: str
    dir_fd: int | None

    def path(self, file: str) -> str:
        """Return the whole path of one of its files."""
        return f"{self.base}/{self.name}/{file}"


class _Refused(ValueError):
    """A file that must not be used; the text says why."""


def read_workspace(base: str, name: str, folder: str, dir_fd: int | None = None) -> Reading | None:
    """Read the workspace `name` below the real path `base`; None when it has no status that is a file.

    It lies at `folder`, relative to the open folder `dir_fd` unless that is None. No link that leaves `base` is
    followed, and nothing on the disk is changed. A version is taken before its file is read, so a file that changes
    meanwhile differs from it at the next look. Raises OSError when it can't be seen whether there is a status.
    """
    place = _Place(base, name, folder, dir_fd)
    finished, mark, problems = _load(place, STATUS, STATUS_MAX_BYTES, _finished)
    if mark is None:
        if not problems:
            return None
        # It could not be opened, maybe because it is no file, or for want of a right to it or to its folder.
        mark = version(f"{folder}/{STATUS}", dir_fd)
        if mark is None:
            return None
        problems = tuple(replace(one, version=mark) for one in problems)
    if finished is None:
        return Reading(body=None, core_fingerprint="", status=mark, report=None, problems=problems)
    status, core = finished
    report, report_mark, problems = _load_report(place)
    try:
        body = _encode(name, status, report or {})
    except (ValueError, RecursionError) as error:  # a name that isn't UTF-8, a report as deep as can be decoded
        body, problems = None, (*problems, problem(place.path(STATUS), error, mark))
    return Reading(body=body, core_fingerprint=core, status=mark, report=report_mark, problems=problems)


def read_status(base: str, name: str) -> Status | None:
    """Read the status of the workspace `<base>/<name>`; None when there is none that can be read."""
    return _load(_Place(base, name, f"{base}/{name}", None), STATUS, STATUS_MAX_BYTES, _decode_status)[0]


def _load_report(place: _Place) -> tuple[dict[str, object] | None, Mark | None, tuple[Problem, ...]]:
    report, mark, problems = _load(place, REPORT, REPORT_MAX_BYTES, _object)
    if (
        report
        and is_link(f"{place.folder}/.meta", place.dir_fd)
        and not inside(meta := place.path(".meta"), place.base)
    ):
        return None, mark, (Problem(printable(meta), "is a link that leaves the workspaces; not read"),)
    return report, mark, problems


def _finished(data: bytes) -> tuple[Status, str] | None:
    status = _decode_status(data)
    return (status, core_fingerprint(status.updated_at or "", status.runs or 0)) if status.status in SYNCED else None


def _object(data: bytes) -> dict[str, object] | None:
    value = decode(data)
    if not isinstance(value, dict | None):
        raise _Refused(f"is a {type(value).__name__}; expected an object")
    return cast("dict[str, object] | None", value)


def _load(
    place: _Place, file: str, max_bytes: int, decoded: Callable[[bytes], _T]
) -> tuple[_T | None, Mark | None, tuple[Problem, ...]]:
    """Return what a file says, the version that says it, and what was wrong; nothing at all when it isn't there."""
    mark = None
    try:
        fd = _open(place, file)
        try:
            mark = regular(os.fstat(fd))
            data = _read(fd, mark, max_bytes)
        finally:
            os.close(fd)
        return decoded(data), mark, ()
    except (FileNotFoundError, NotADirectoryError):
        return None, None, ()
    except (OSError, ValueError, RecursionError) as error:
        return None, mark, (problem(place.path(file), error, mark),)


def _open(place: _Place, file: str) -> int:
    try:
        return os.open(f"{place.folder}/{file}", _FLAGS, dir_fd=place.dir_fd)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
    path = place.path(file)
    if not inside(path, place.base):
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


def _encode(name: str, status: Status, report: dict[str, object]) -> bytes:
    agent = status.agent or ""
    report_, findings, changes = _lifted(report)
    return encode(
        _Body(
            agent=agent,
            agent_type=agent,
            branch=status.branch or "",
            changes=changes,
            findings=findings,
            id=name,
            issue=status.issue or 0,
            org=status.org or "",
            pr_url=status.pr_url or "",
            process_id=status.process_id or "",
            question=status.question or "",
            repo=status.repo or "",
            report=report_,
            runs=status.runs or 0,
            started_at=status.started_at or UNSET_TIME,
            status=status.status,
            task=status.task or "",
            updated_at=status.updated_at or UNSET_TIME,
            workspace=name,
        )
    )


def _lifted(report: dict[str, object]) -> tuple[object, object, object]:
    """Return what isn't empty: the report, its findings (only objects, as the Go agent sends them), its changes."""
    if not report:
        return UNSET, UNSET, UNSET
    findings, changes = report.get("findings"), report.get("changes")
    lifted: object = UNSET
    if isinstance(findings, list):
        elements = cast("list[object]", findings)
        objects: list[object] = (
            elements if {*map(type, elements)} == {dict} else [one for one in elements if type(one) is dict]
        )
        if objects:
            lifted = msgspec.Raw(encode(objects))  # most of a record, and sent twice: encoded once
            if objects is elements:
                report = {**report, "findings": lifted}
    return report, lifted, cast("object", changes) if changes and isinstance(changes, dict) else UNSET


_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_decode_status = msgspec.json.Decoder(Status).decode
