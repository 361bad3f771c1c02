"""What the platform refuses: too much at once, single records, records that break it."""

import itertools
from pathlib import Path

import pytest

from plugin.loopback.faults import Status
from plugin.store.interface import RowState
from tests.support.sync import TOKEN, World, has, world


async def test_a_413_makes_batches_smaller_and_the_limit_is_remembered(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.platform.max_records = 3
        await one.push(*(f"r{number:02}" for number in range(20)))
        await one.until_drained()
        assert sorted(one.delivered()) == [f"r{number:02}" for number in range(20)]
        learned = (await one.store.gate(one.platform.url)).max_bytes
        assert learned is not None
        seen = len(one.platform.pushes)
        one.platform.max_records = None
        one.platform.max_bytes = None
        await one.push(*(f"s{number:02}" for number in range(60)))
        await one.until_drained()
        assert all(push.body_bytes <= learned + 100 for push in one.platform.pushes[seen:])


async def test_a_single_record_too_large_becomes_a_dead_letter(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.platform.max_bytes = 300
        large = {"id": "large", "repo": "x", "task": "t" * 1_000}
        small = {"id": "small", "repo": "x"}
        result = await one.call(dispatches=[small, large, small | {"id": "last"}])
        assert (result.count, result.queued, result.dead) == (2, 0, 1)
        (dead,) = await one.rows(RowState.DEAD)
        assert (dead.record_id, dead.status) == ("large", 413)
        assert sorted(one.delivered()) == ["last", "small"]


async def test_only_the_refused_record_becomes_a_dead_letter(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.platform.poison = {"r13"}
        result = await one.push(*(f"r{number:02}" for number in range(30)))
        assert (result.count, result.queued, result.dead) == (29, 0, 1)
        assert result.error
        (dead,) = await one.rows(RowState.DEAD)
        assert (dead.record_id, dead.status) == ("r13", 422)
        assert "not acceptable" in (dead.answer or "")
        assert sorted(one.delivered()) == sorted({f"r{number:02}" for number in range(30)} - {"r13"})


async def test_a_dead_letter_never_shows_the_token(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        body = b'{"message": "bad", "headers": {"authorization": "Bearer %s"}}' % TOKEN.encode()
        one.platform.menu.add(Status(code=400, body=body))
        await one.push("a")
        (dead,) = await one.rows(RowState.DEAD)
        assert TOKEN not in (dead.answer or "")
        assert "***" in (dead.answer or "")


@pytest.mark.parametrize("agent", ["other", "codex"])
async def test_a_record_that_breaks_the_platform_is_set_apart_and_holds_up_nobody(tmp_path: Path, agent: str) -> None:
    async with world(tmp_path) as one:
        one.platform.indigestible = {"r05"}
        await one.push(*(f"r{number:02}" for number in range(12)))
        await one.push("other", agent=agent)
        await one.advance_until(one.drained)
        assert sorted(one.delivered()) == sorted({f"r{n:02}" for n in range(12)} - {"r05"} | {"other"})
        (apart,) = await one.rows(RowState.APART)
        assert apart.record_id == "r05"
        assert one.open
        assert (await one.push("more")).count == 1

        alone = alone_requests(one, "r05")
        await one.advance_until(lambda: has(len(alone_requests(one, "r05")) >= len(alone) + 3), step_s=10)
        times = alone_requests(one, "r05")[len(alone) - 1 :]
        # Due times are whole milliseconds.
        assert all(later - earlier >= 299.999 for earlier, later in itertools.pairwise(times))
        assert one.open

        one.platform.indigestible = set()
        await one.advance_until(lambda: has("r05" in one.delivered()), step_s=10)
        await one.until(lambda: one.service.sender.in_flight == 0)
        assert await one.rows() == ()


async def test_a_batch_whose_answers_are_lost_in_a_proxy_four_times_is_not_sent_as_halves(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.platform.menu.add(Status(code=504), times=4, agent="slow", applied=True)
        await one.push("a", "b", "c", "d", agent="slow")
        for number in range(8):
            await one.push(f"other{number}", agent="other")
            await one.advance_until(lambda number=number: has(f"other{number}" in one.delivered()))
        await one.advance_until(one.drained)
        keys = [push.key for push in one.platform.pushes if push.agent == "slow"]
        assert len(keys) == 5
        assert len(set(keys)) == 1
        assert [name for name in one.delivered() if name in "abcd"] == ["a", "b", "c", "d"]


def alone_requests(one: World, record_id: str) -> list[float]:
    """When a record was sent in a request of its own."""
    return [push.at for push in one.platform.pushes if push.ids == (record_id,)]
