"""Processes killed at any point: what a call said is stored is there, and a batch stays what it was."""

from pathlib import Path

import pytest

from plugin.store.interface import StoreState
from tests.support.crash import child, enqueue_for_ever, fill_disk, send_for_ever
from tests.support.stores import claim, opened, take, waiting


@pytest.mark.parametrize("lines", [1, 40, 173])
async def test_what_a_call_said_is_stored_survives_a_kill(tmp_path: Path, lines: int) -> None:
    async with child(enqueue_for_ever, tmp_path) as process:
        said = [await process.line() for _ in range(lines)]
        said += await process.kill()
    async with opened(tmp_path) as store:
        assert store.health.state is StoreState.OK
        stored = await store.rows(limit=1_000_000)
        assert {row.record_id for row in stored} >= set(said)
        assert all(row.body.startswith(f'{{"id":"{row.record_id}"'.encode()) for row in stored)
        counts = await store.counts()
        assert (counts.queued, counts.bytes) == (len(stored), sum(len(row.body) for row in stored))


@pytest.mark.parametrize("lines", [8, 13, 30, 121])
async def test_a_batch_keeps_members_and_key_over_a_kill(tmp_path: Path, lines: int) -> None:
    async with child(send_for_ever, tmp_path) as process:
        said = [await process.line() for _ in range(lines)]
        said += await process.kill()
    stored = [line.split()[1] for line in said if line.startswith("stored")]
    acknowledged = {line.split()[1] for line in said if line.startswith("acknowledged")}
    _, key, members = [line for line in said if line.startswith("sent")][-1].split()
    sent = members.split(",")
    async with opened(tmp_path) as store:
        left = await waiting(store)
        assert not acknowledged & set(left)
        # The last acknowledgement may have been committed without having been said.
        assert set(stored) - acknowledged - set(sent) <= set(left)
        if sent[0] in left:
            batch = await take(store, max_records=1)
            assert (batch.key, list(batch.record_ids)) == (key, sent)
        else:
            assert not set(sent) & set(left)


async def test_a_full_disk_refuses_new_work_but_still_sends_and_recovers(tmp_path: Path) -> None:
    async with child(fill_disk, tmp_path) as process:
        assert await process.rest() == ["refused store_unavailable full", "claimed", "held", "recovered"]
    async with opened(tmp_path) as store:
        assert "after" in await waiting(store)
        assert await claim(store) is not None
