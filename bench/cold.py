"""Bare: the least that a first scan has to do once it knows the files' names, with msgspec and nothing of the plugin.

It does what the floor does, and takes versions, looks for links, bounds sizes, puts each record into its canonical form
and hashes that. What the files say is taken to be as it should be; only a report may be missing.
"""

import hashlib
import os
import stat
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

_Version = tuple[int, int, int, int]
_Folders = Mapping[str, Sequence[str]]

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_STATUS_MAX_BYTES, _REPORT_MAX_BYTES = 1024 * 1024, 8 * 1024 * 1024
_UNSET_TIME = "0001-01-01T00:00:00Z"


class Seen(Struct, frozen=True, gc=False):
    """What a second scan has to know of a workspace: the versions of both files, and the hash of its record."""

    status: _Version
    report: _Version | None
    fingerprint: str


class _Status(Struct, frozen=True, kw_only=True, gc=False):
    status: str
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


class _Body(Struct, frozen=True, gc=False):
    agent: str
    agent_type: str
    branch: str
    changes: object
    findings: Raw | UnsetType
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
    status: str
    task: str
    updated_at: str
    workspace: str


_decode_status = msgspec.json.Decoder(_Status).decode
_decode_report = msgspec.json.Decoder(dict[str, Any], float_hook=float).decode
_encode = msgspec.json.Encoder(order="deterministic").encode


def by_folder(base: Path, statuses: Sequence[str]) -> _Folders:
    """Return the names of the workspaces in each folder below `base`, of the paths of their files."""
    folders: defaultdict[str, list[str]] = defaultdict(list)
    for path in map(Path, statuses):
        if path.name == "status.json":
            folders[str(path.parent.parent.relative_to(base))].append(path.parent.name)
    return folders


def look(base: str, folders: _Folders) -> dict[str, Seen]:
    """Look at the workspaces of each folder below `base`; return what was seen of each."""
    seen: dict[str, Seen] = {}
    for folder, names in folders.items():
        dir_fd = os.open(f"{base}/{folder}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for name in names:
            seen[f"{folder}/{name}"] = _look(f"{folder}/{name}", name, dir_fd)
        os.close(dir_fd)
    return seen


def _look(workspace: str, name: str, dir_fd: int) -> Seen:
    data, version = _read(f"{name}/status.json", dir_fd, _STATUS_MAX_BYTES)
    status = _decode_status(data)
    report_version, report, findings, changes = None, UNSET, UNSET, UNSET
    try:
        data, report_version = _read(f"{name}/.meta/report.json", dir_fd, _REPORT_MAX_BYTES)
    except FileNotFoundError:
        pass
    else:
        assert not stat.S_ISLNK(os.lstat(f"{name}/.meta", dir_fd=dir_fd).st_mode)
        report = _decode_report(data)
        findings, changes = Raw(_encode(report["findings"])), report["changes"]
        report["findings"] = findings  # sent twice, encoded once
    body = _encode(_body(workspace, status, report, findings, changes))
    return Seen(version, report_version, hashlib.sha256(body).hexdigest())


def _read(path: str, dir_fd: int, max_bytes: int) -> tuple[bytes, _Version]:
    fd = os.open(path, _FLAGS, dir_fd=dir_fd)
    info = os.fstat(fd)
    assert stat.S_ISREG(info.st_mode)
    assert info.st_size <= max_bytes
    data = os.read(fd, info.st_size + 1)
    os.close(fd)
    return data, (info.st_mtime_ns, info.st_ctime_ns, info.st_size, info.st_ino)


def _body(workspace: str, status: _Status, report: object, findings: Raw | UnsetType, changes: object) -> _Body:
    agent = status.agent or ""
    return _Body(
        agent,
        agent,
        status.branch or "",
        changes,
        findings,
        workspace,
        status.issue or 0,
        status.org or "",
        status.pr_url or "",
        status.process_id or "",
        status.question or "",
        status.repo or "",
        report,
        status.runs or 0,
        status.started_at or _UNSET_TIME,
        status.status,
        status.task or "",
        status.updated_at or _UNSET_TIME,
        workspace,
    )
