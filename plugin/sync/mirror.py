"""The queue in the Go agent's shape: as an export, and as a file that follows the queue for tools that read it."""

import os
import secrets
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

import msgspec

from plugin.clock import rfc3339
from plugin.store.interface import QueueRow
from plugin.sync.record import UNSET_TIME

# A mirror's entries begin with who wrote them. The Go agent reads over that and writes no such thing.
_MARK = {"written_by": "agentic-sync"}
_HEAD = b"[" + msgspec.json.encode(_MARK)[:-1]


def export_queue(rows: Iterable[QueueRow]) -> bytes:
    """Return rows as the Go agent's queue: a JSON list with an entry for each push.

    Rows in a run that share agent, fleet node and time are one entry. The records are the stored bytes, so importing
    the export gives the same records.
    """
    return msgspec.json.encode(_entries(rows))


def _entries(rows: Iterable[QueueRow]) -> list[dict[str, object]]:
    entries: list[dict[str, object]] = []
    for (agent_id, node, queued_ms), group in groupby(
        rows, key=lambda row: (row.agent_id, row.fleet_node_id, row.queued_ms)
    ):
        entry: dict[str, object] = {"agent_id": agent_id}
        if node:
            entry["fleet_node_id"] = node
        entry["dispatches"] = [msgspec.Raw(row.body) for row in group]
        entry["queued_at"] = rfc3339(queued_ms)
        entry["next_attempt"] = UNSET_TIME
        entries.append(entry)
    return entries


class Mirror:
    """Keeps a `queue.json` as the queue is; blocks on the disk, so it belongs in a thread, one write at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ours = False

    def write(self, rows: Iterable[QueueRow]) -> None:
        """Replace the file in one step, readable by its owner alone; no rows: remove it, as the Go agent does.

        A file that was there before and holds no queue is never lost: it gets another name beside. Raises OSError when
        the disk refuses; the file is then what it was.
        """
        if not self._ours:
            self._set_aside()
            self._ours = True
        entries = [_MARK | entry for entry in _entries(rows)]
        if entries:
            self._replace(msgspec.json.encode(entries))
        else:
            self._path.unlink(missing_ok=True)
        _sync_folder(self._path.parent)

    def remove(self) -> None:
        """Remove the file if a mirror wrote it, also one of an earlier run; raises OSError when the disk refuses."""
        try:
            with self._path.open("rb") as file:
                ours = file.read(len(_HEAD)) == _HEAD
        except (FileNotFoundError, NotADirectoryError):
            return
        if ours:
            self._path.unlink(missing_ok=True)
            _sync_folder(self._path.parent)

    def _replace(self, data: bytes) -> None:
        part = self._path.with_name(f"{self._path.name}.tmp.{secrets.token_hex(4)}")
        try:
            with open(part, "xb", opener=_private) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self._path)
        finally:
            part.unlink(missing_ok=True)

    def _set_aside(self) -> None:
        try:
            msgspec.json.decode(self._path.read_bytes(), type=list[dict[str, object]] | None)
        except FileNotFoundError:
            return
        except (ValueError, RecursionError):
            self._path.rename(self._path.with_name(f"{self._path.name}.corrupt-{secrets.token_hex(4)}"))


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
