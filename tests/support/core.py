"""What the Go agent leaves on disk, written by hand."""

import json
import sqlite3
from pathlib import Path

from plugin.store.interface import CoreState
from plugin.sync.core import read_core_state
from plugin.sync.record import UNSET_TIME
from plugin.sync.walk import Problem

NAME = "core/go-io/task-5"
TIME = "2026-04-14T13:00:00.123456789+01:00"
TIME_MS = 1_776_168_000_123


class Core:
    """The Go agent's root: what it would have written, written by hand."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sync = root / "sync"
        self.sync.mkdir(parents=True)

    def write(self, name: str, value: object) -> None:
        (self.sync / name).write_text(value if isinstance(value, str) else json.dumps(value))

    def database(self, value: object, *, table: str = "entries") -> sqlite3.Connection:
        """Open the database as the Go agent does, put the queue's row in it and leave it open."""
        database = sqlite3.connect(self.root / "db.duckdb", isolation_level=None)
        database.execute("PRAGMA journal_mode=WAL")
        database.execute(
            f"CREATE TABLE {table} (group_name TEXT, entry_key TEXT, entry_value TEXT, expires_at INTEGER,"
            " PRIMARY KEY (group_name, entry_key))"
        )
        text = value if isinstance(value, str | bytes) else json.dumps(value)
        database.execute(f"INSERT INTO {table} VALUES ('sync_queue', 'queue', ?, NULL)", (text,))  # noqa: S608  # own name
        database.execute(f"INSERT INTO {table} VALUES ('sync_queue', 'other', 'x', NULL)")  # noqa: S608  # own name
        return database

    def read(self) -> tuple[CoreState, tuple[Problem, ...]]:
        return read_core_state(self.root, self.sync, agent_id="fallback")

    def files(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in self.root.rglob("*") if path.is_file()}


def entry(*dispatches: object, agent: str = "codex", queued_at: str = TIME, **more: object) -> dict[str, object]:
    return {"agent_id": agent, "dispatches": dispatches, "queued_at": queued_at, "next_attempt": UNSET_TIME} | more


def ids(state: CoreState) -> list[str]:
    return [record.id for _, record, _ in state.queue]


def scanned_as_in_go(name: str = NAME, **changes: object) -> dict[str, object]:
    """Return a scanned record as the Go agent queues it."""
    content: dict[str, object] = {
        "agent": "codex",
        "branch": "agent/fix",
        "id": name,
        "issue": 42,
        "org": "core",
        "pr_url": "",
        "process_id": "p-1",
        "question": "",
        "repo": "go-io",
        "runs": 3,
        "started_at": TIME,
        "status": "completed",
        "task": "fix it",
        "updated_at": TIME,
        "workspace": name,
    }
    return content | changes
