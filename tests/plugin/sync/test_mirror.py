"""The queue in the Go agent's shape: exported, and as a file that follows it."""

import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from plugin.store.interface import QueueRow, RowState
from plugin.sync.mirror import Mirror, export_queue
from plugin.sync.record import UNSET_TIME, make_record
from tests.support.core import NAME, TIME_MS, Core, entry, scanned_as_in_go


@pytest.fixture
def core(tmp_path: Path) -> Core:
    return Core(tmp_path / "root")


def row(
    number: int, content: Mapping[str, object], *, agent: str = "codex", node: int | None = None, ms: int = 0
) -> QueueRow:
    record = make_record(content)
    return QueueRow(
        row=number,
        agent_id=agent,
        record_id=record.id,
        fingerprint=record.fingerprint,
        state=RowState.WAITING,
        queued_ms=TIME_MS + ms,
        fleet_node_id=node,
        body=record.body,
        reason=None,
        status=None,
        answer=None,
    )


ROWS = (
    row(1, scanned_as_in_go()),
    row(2, {"id": "b", "repo": "r", "n": 2**53 + 1, "text": "<ü>"}),
    row(3, {"id": "c", "repo": "r"}, node=42),
    row(4, {"id": "d", "repo": "r"}, agent="claude", ms=7),
    row(5, {"id": "e", "repo": "r"}, ms=7),
    row(6, {"id": "f", "repo": "r"}, ms=8),
)


def test_an_export_groups_the_rows_of_a_push() -> None:
    entries = msgspec.json.decode(export_queue(ROWS), type=list[dict[str, Any]])
    grouped = [[dispatch["id"] for dispatch in one["dispatches"]] for one in entries]
    assert grouped == [[NAME, "b"], ["c"], ["d"], ["e"], ["f"]]
    assert [one.get("fleet_node_id") for one in entries] == [None, 42, None, None, None]
    assert entries[0].keys() == {"agent_id", "dispatches", "queued_at", "next_attempt"}
    assert (entries[0]["queued_at"], entries[0]["next_attempt"]) == ("2026-04-14T12:00:00.123Z", UNSET_TIME)


def test_what_was_exported_imports_to_the_same_records(core: Core) -> None:
    (core.sync / "queue.json").write_bytes(export_queue(ROWS))
    state, problems = core.read()
    assert problems == ()
    assert [
        (agent, record.id, record.fingerprint, record.body, record.fleet_node_id, queued_ms)
        for agent, record, queued_ms in state.queue
    ] == [(one.agent_id, one.record_id, one.fingerprint, one.body, one.fleet_node_id, one.queued_ms) for one in ROWS]


def mirrored(path: Path) -> bytes:
    """Return what a mirror holds but the marks of who wrote it."""
    entries = json.loads(path.read_bytes())
    assert {one.pop("written_by") for one in entries} == {"agentic-sync"}
    return json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()


def test_only_what_a_mirror_wrote_is_removed(core: Core) -> None:
    path = core.sync / "queue.json"
    mirror = Mirror(path)
    mirror.remove()
    mirror.write(ROWS)
    Mirror(path).remove()
    assert not path.exists()
    for data in (export_queue(ROWS), b"", b"[]", b"{"):
        path.write_bytes(data)
        mirror.remove()
        assert path.read_bytes() == data


def test_what_was_mirrored_imports_like_what_was_exported(core: Core) -> None:
    Mirror(core.sync / "queue.json").write(ROWS)
    state, problems = core.read()
    assert problems == ()
    assert [record.body for _, record, _ in state.queue] == [one.body for one in ROWS]


def test_a_mirror_follows_the_queue_for_its_owner_alone(core: Core) -> None:
    path = core.sync / "queue.json"
    mirror = Mirror(path)
    mirror.write(ROWS)
    assert mirrored(path) == export_queue(ROWS)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    mirror.write(ROWS[:1])
    assert mirrored(path) == export_queue(ROWS[:1])
    mirror.write(())
    mirror.write(())
    assert list(core.sync.iterdir()) == []


def test_a_mirror_replaces_a_queue_of_the_go_agent(core: Core) -> None:
    core.write("queue.json", [entry({"repo": "r"})])
    Mirror(core.sync / "queue.json").write(ROWS)
    assert [path.name for path in core.sync.iterdir()] == ["queue.json"]


@pytest.mark.parametrize("text", ["{", '{"a":1}', "[5]", "[" * 100_000])
def test_a_mirror_never_loses_a_file_that_could_not_be_imported(core: Core, text: str) -> None:
    core.write("queue.json", text)
    Mirror(core.sync / "queue.json").write(())
    (kept,) = core.sync.iterdir()
    assert kept.name.startswith("queue.json.corrupt-")
    assert kept.read_text() == text


def test_a_mirror_that_cannot_be_written_leaves_the_file_as_it_was(core: Core) -> None:
    path = core.sync / ("q" * 250)  # there is no room for a longer name beside it
    path.write_text("[]")
    with pytest.raises(OSError, match="too long"):
        Mirror(path).write(ROWS)
    assert [(one.name, one.read_text()) for one in core.sync.iterdir()] == [(path.name, "[]")]
