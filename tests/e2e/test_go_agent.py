"""The plugin takes the Go agent's place: what that one had delivered stays delivered, what it had queued goes out."""

import hashlib
import json
import sqlite3
from collections.abc import AsyncGenerator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from plugin.loopback.workspaces import write_workspace
from tests.support.fleet import Fleet, dispatch, field, fleet_on_loopback

THEN = datetime(2026, 4, 14, 12, 0, 0, tzinfo=UTC)


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncGenerator[Fleet]:
    async with fleet_on_loopback(tmp_path) as fleet:
        yield fleet


def finish(root: Path, name: str) -> None:
    write_workspace(root, name, status="completed", repo="core", task=name, agent="codex", runs=3, now=THEN)


def entry(agent: str, *dispatches: dict[str, object]) -> dict[str, object]:
    return {
        "agent_id": agent,
        "dispatches": list(dispatches),
        "queued_at": "2026-04-14T12:00:00Z",
        "attempts": 4,
        "next_attempt": "2026-04-14T12:05:00Z",
    }


def leave_behind(root: Path) -> dict[Path, str]:
    """Leave what the Go agent leaves; return each file's hash."""
    finish(root, "core/delivered/task-1")
    finish(root, "core/fresh/task-2")
    folder = root / "sync"
    folder.mkdir(parents=True)
    files: dict[str, object] = {
        "queue.json": [entry("codex", dispatch(99))],  # older than the row in the database, which wins
        "ledger.json": {"core/delivered/task-1": "2026-04-14T12:00:00Z#3"},
        "context.json": [{"id": "memory-1", "content": "a lesson"}],
        "records.json": [
            {
                "agent_id": "codex",
                "direction": "push",
                "payload_size": 512,
                "items_count": 3,
                "synced_at": "2026-03-31T12:00:00Z",
            }
        ],
        "status.json": {"last_push_at": "2026-03-31T12:00:00Z", "last_pull_at": "0001-01-01T00:00:00Z"},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    with closing(sqlite3.connect(root / "db.duckdb")) as db:
        db.execute("CREATE TABLE entries (group_name TEXT, entry_key TEXT, entry_value TEXT, expires_at INTEGER)")
        queued = json.dumps([entry("codex", dispatch(1)), entry("claude", dispatch(2))])
        db.execute("INSERT INTO entries VALUES ('sync_queue', 'queue', ?, NULL)", (queued,))
        db.commit()
    return {path: hashed(path) for path in [*folder.iterdir(), root / "db.duckdb"]}


def hashed(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


async def test_the_go_agents_queue_goes_out_and_its_deliveries_stay_delivered(fleet: Fleet) -> None:
    before = leave_behind(fleet.folder / "root")
    async with fleet.host() as host:
        await fleet.platform.wait_until(lambda platform: len(platform.records) == 2)
        assert [(record.agent, record.id) for record in fleet.platform.records] == [
            ("codex", "work-1"),
            ("claude", "work-2"),
        ]
        answer = await host.call("agentic.sync.push")
        assert field(answer, "count") == 1
        assert fleet.platform.records[-1].id == "core/fresh/task-2"
        await fleet.platform.down()
        pulled = await host.call("agentic.sync.pull")
        assert (field(pulled, "context"), field(pulled, "stale")) == ([{"id": "memory-1", "content": "a lesson"}], True)
        await fleet.platform.up()
    assert {path: hashed(path) for path in before} == before


async def test_the_go_agents_state_is_taken_over_once(fleet: Fleet) -> None:
    leave_behind(fleet.folder / "root")
    for _ in range(2):
        async with fleet.host() as host:
            await fleet.platform.wait_until(lambda platform: len(platform.records) >= 2)
            await host.call("agentic.sync.push")
    assert len(fleet.platform.records) == 3
    assert len({arrival.key for arrival in fleet.platform.pushes}) == len(fleet.platform.pushes)


async def test_a_corrupt_part_is_reported_and_left_alone_and_the_others_are_taken(fleet: Fleet) -> None:
    root = fleet.folder / "root"
    leave_behind(root)
    ledger = root / "sync" / "ledger.json"
    ledger.write_text("{half a led")
    async with fleet.host() as host:
        await fleet.platform.wait_until(lambda platform: len(platform.records) == 2)
        line = await host.wait_for_log(lambda line: "ledger.json" in str(line.fields))
        assert line.level in {"warn", "error"}
    assert ledger.read_text() == "{half a led"


async def test_nothing_is_taken_over_when_it_is_not_wanted(fleet: Fleet) -> None:
    leave_behind(fleet.folder / "root")
    async with fleet.host(sync={"import_core_state": False}) as host:
        answer = await host.call("agentic.sync.push", {"queue_only": True})
        assert (field(answer, "count"), field(answer, "queued")) == (0, 0)
    assert fleet.platform.records == []
