"""What the Go agent left behind: its queue, ledger, context, history and times, read without touching a file."""

import hashlib
import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Literal, TypeVar, cast

import msgspec

from plugin.errors import BadParams
from plugin.store.interface import AgentTimes, ContextRow, CoreState, HistoryEntry, Record
from plugin.sync.record import core_fingerprint, decode, instant, make_record, text_of
from plugin.sync.walk import Problem, problem
from plugin.sync.workspace import read_status

# The mark of the import. It says nothing of the files, so they come in once per store: what they say later is the
# Go agent's own business, or our mirror of what we have.
MARK = "core"
MAX_BYTES = 256 * 1024 * 1024

_BUSY_S = 5.0
_T = TypeVar("_T")

# What every record from a scan has, and hardly any other.
_SCANNED = frozenset(
    ("id", "workspace", "repo", "org", "task", "agent", "branch", "status", "question", "issue", "runs", "process_id")
)


class _Entry(msgspec.Struct, frozen=True, kw_only=True):
    agent_id: str | None = None
    fleet_node_id: int | None = None
    dispatches: list[object] | None = None
    queued_at: str | None = None


class _Past(msgspec.Struct, frozen=True, kw_only=True):
    direction: Literal["push", "pull"]
    synced_at: str
    agent_id: str | None = None
    fleet_node_id: int | None = None
    payload_size: int | None = None
    items_count: int | None = None


class _Times(msgspec.Struct, frozen=True, kw_only=True):
    last_push_at: str | None = None
    last_pull_at: str | None = None


def read_core_state(root: Path, state_dir: Path, *, agent_id: str) -> tuple[CoreState, tuple[Problem, ...]]:
    """Read the Go agent's state and what of it could not be taken; every other part is taken all the same.

    A file comes from `state_dir`, or from `<root>/sync` when it isn't there; the queue from `<root>/db.duckdb`, when
    that has one. `agent_id` is whose an entry is that names none. Nothing is raised, and no file is changed; it blocks
    on the disk.

    The queue keeps its order, and each record its id. Left out are a record that is in it twice, and one from a scan
    that the ledger shows as delivered: the Go agent takes entries off its queue only after it has sent several. The
    ledger comes as a scan compares it: the Go agent writes another text when the record had been queued before.
    """
    reader = _Reader(root, state_dir)
    ledger = dict(reader.ledger())
    state = CoreState(
        queue=tuple(reader.queue(agent_id, ledger)),
        ledger=tuple((record_id, reader.as_scanned(record_id, text)) for record_id, text in ledger.items()),
        context=tuple(reader.context()),
        history=tuple(reader.history()),
        times=reader.times(),
    )
    return state, tuple(reader.problems)


class _Reader:
    """Reads part after part; `problems` gets what is wrong with them."""

    def __init__(self, root: Path, state_dir: Path) -> None:
        self.problems: list[Problem] = []
        self._database = root / "db.duckdb"
        self._folders = (state_dir, root / "sync")
        self._workspaces = os.path.realpath(root / "workspace")

    def queue(self, agent_id: str, ledger: dict[str, str]) -> Iterator[tuple[str, Record, int]]:
        path, entries = self._database, self._stored_queue()
        if entries is None:
            path, entries = self._list("queue.json")
        written_ms = _written_ms(path)
        seen: set[tuple[str, str, str]] = set()
        for index, element in enumerate(entries):
            entry = self._convert(path, f"entry {index}", element, _Entry)
            if entry is None:
                continue
            owner = entry.agent_id or agent_id
            queued_ms = self._ms(path, f"entry {index}: queued_at", entry.queued_at) or written_ms
            for position, dispatch in enumerate(entry.dispatches or ()):
                record = self._record(path, f"entry {index}: dispatches[{position}]", dispatch, entry, ledger)
                if record is not None and (key := (owner, record.id, record.fingerprint)) not in seen:
                    seen.add(key)
                    yield owner, record, queued_ms

    def ledger(self) -> Iterator[tuple[str, str]]:
        path, value = self._file("ledger.json")
        if not isinstance(value, dict | None):
            self.problems.append(Problem(str(path), "is no object; the Go agent's ledger isn't taken over"))
            return
        for record_id, text in cast("dict[str, object]", value or {}).items():
            if isinstance(text, str):
                yield record_id, text
            else:
                self.problems.append(Problem(str(path), f"{record_id!r} has no text; the entry isn't taken over"))

    def as_scanned(self, record_id: str, text: str) -> str:
        """Return a ledger's text as a scan would write it.

        For a record that had been queued the Go agent writes its `updated_at` as it stands, and 0 for its runs. When
        the workspace still says that very time, nothing happened there since.
        """
        updated_at, _, runs = text.rpartition("#")
        if runs != "0" or not updated_at or ".." in record_id.split("/"):
            return text
        status = read_status(self._workspaces, record_id)
        if status is None or status.updated_at != updated_at:
            return text
        return _core_fingerprint(updated_at, status.runs or 0) or text

    def context(self) -> Iterator[ContextRow]:
        path, elements = self._list("context.json")
        for index, element in enumerate(elements):
            row = self._convert(path, f"row {index}", element, dict[str, object])
            if row is not None:
                body = msgspec.json.encode(row)
                expires = row.get("expires_at")
                yield ContextRow(
                    id=text_of(row.get("id")) or hashlib.sha256(body).hexdigest(),
                    body=body,
                    expires_ms=self._ms(path, f"row {index}: expires_at", expires)
                    if isinstance(expires, str)
                    else None,
                )

    def history(self) -> Iterator[HistoryEntry]:
        path, elements = self._list("records.json")
        for index, element in enumerate(elements):
            where = f"record {index}"
            past = self._convert(path, where, element, _Past)
            at_ms = past and self._ms(path, where, past.synced_at)
            if past is not None and at_ms is not None:
                yield HistoryEntry(
                    agent_id=past.agent_id or "",
                    fleet_node_id=past.fleet_node_id,
                    direction=past.direction,
                    payload_bytes=past.payload_size or 0,
                    items=past.items_count or 0,
                    at_ms=at_ms,
                )

    def times(self) -> AgentTimes:
        path, value = self._file("status.json")
        said = self._convert(path, "it", value, _Times) if value is not None else None
        return AgentTimes(
            last_push_ms=self._ms(path, "last_push_at", said.last_push_at) if said else None,
            last_pull_ms=self._ms(path, "last_pull_at", said.last_pull_at) if said else None,
        )

    def _record(self, path: Path, where: str, dispatch: object, entry: _Entry, ledger: dict[str, str]) -> Record | None:
        content = self._convert(path, where, dispatch, dict[str, object])
        if content is None:
            return None
        updated_at, runs = content.get("updated_at"), content.get("runs")
        updated_at = updated_at if isinstance(updated_at, str) else ""
        core = _core_fingerprint(updated_at, runs if isinstance(runs, int) else 0) if updated_at else None
        try:
            record = make_record(content, fleet_node_id=entry.fleet_node_id, core_fingerprint=core, path=where)
        except BadParams as error:
            self.problems.append(problem(str(path), error))
            return None
        scanned = content.keys() >= _SCANNED and record.id == content["workspace"]
        text = ledger.get(record.id)
        delivered = scanned and updated_at and text is not None and text in (core, f"{updated_at}#0")
        return None if delivered else record

    def _stored_queue(self) -> list[object] | None:
        """Return the queue in the Go agent's database; None when the file beside it counts."""
        try:
            text = _queue_row(self._database)
            value = decode(text) if text else None
        except (sqlite3.Error, OSError, ValueError, RecursionError) as error:
            self.problems.append(problem(str(self._database), error))
            return None
        if text and not isinstance(value, list | None):
            self.problems.append(Problem(str(self._database), "its queue is no list; the file is taken"))
            return None
        return cast("list[object]", value or []) if text else None

    def _list(self, name: str) -> tuple[Path, list[object]]:
        path, value = self._file(name)
        if isinstance(value, list):
            return path, cast("list[object]", value)
        if value is not None:
            self.problems.append(Problem(str(path), "is no list; it isn't taken over"))
        return path, []

    def _file(self, name: str) -> tuple[Path, object]:
        """Return where the file is and what it says: None when it is nowhere, empty, or cannot be used."""
        path = self._folders[0] / name
        for path in (folder / name for folder in self._folders):
            try:
                data = _read(path)
                return path, decode(data) if data.strip() else None
            except FileNotFoundError:
                continue
            except (OSError, ValueError, RecursionError) as error:
                self.problems.append(problem(str(path), error))
                break
        return path, None

    def _convert(self, path: Path, where: str, value: object, kind: type[_T]) -> _T | None:
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            self.problems.append(Problem(str(path), f"{where}: {error}; it isn't taken over"))
            return None

    def _ms(self, path: Path, where: str, text: str | None) -> int | None:
        try:
            moment = instant(text or "")
        except ValueError as error:
            self.problems.append(Problem(str(path), f"{where}: {error}; taken as unset"))
            return None
        return None if moment is None else round(moment.timestamp() * 1000)


def _core_fingerprint(updated_at: str, runs: int) -> str | None:
    try:
        return core_fingerprint(updated_at, runs)
    except ValueError:
        return None


def _read(path: Path) -> bytes:
    info = path.stat()
    if not stat.S_ISREG(info.st_mode):
        raise ValueError("isn't a regular file; it isn't taken over")
    if info.st_size > MAX_BYTES:
        raise ValueError(f"has more than {MAX_BYTES} bytes; it isn't taken over")
    return path.read_bytes()


def _written_ms(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns // 1_000_000
    except OSError:
        return 0


def _queue_row(path: Path) -> str | bytes | None:
    """Read the queue's row, leaving nothing behind: reading a database that nobody has open would make a journal."""
    if not path.is_file():
        return None
    alone = not _has_journal(path)
    row = _select(path, "immutable=1" if alone else "mode=ro")
    if alone and _has_journal(path):
        # Somebody opened it meanwhile: what was read without a lock may be half of a change.
        row = _select(path, "mode=ro")
    return row


def _select(path: Path, how: str) -> str | bytes | None:
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True, timeout=_BUSY_S)) as database:
        if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'entries'").fetchone() is None:
            return None
        row: tuple[object] | None = database.execute(
            "SELECT entry_value FROM entries WHERE group_name = 'sync_queue' AND entry_key = 'queue'"
        ).fetchone()
    return row[0] if row is not None and isinstance(row[0], str | bytes) else None


def _has_journal(path: Path) -> bool:
    return any(path.with_name(f"{path.name}{suffix}").exists() for suffix in ("-wal", "-journal"))
