"""Which batch a store hands out next, and what an answer does to it: any engine must pass."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

import pytest

from plugin.store.interface import (
    Acknowledged,
    Batch,
    BatchChange,
    Caps,
    Dead,
    Failed,
    Gate,
    GateState,
    RowState,
    SetApart,
    Split,
    Store,
)
from tests.support.stores import (
    AGENT,
    ENGINES,
    NOW_MS,
    PLATFORM,
    OpenStore,
    acknowledge,
    claim,
    put,
    record,
    scan,
    take,
    waiting,
)

FAILED = Failed(counts=True)
REFUSED = Dead(reason="refused", status=422, answer="no")


@pytest.fixture(params=sorted(ENGINES))
def open_engine(request: pytest.FixtureRequest) -> OpenStore:
    return ENGINES[request.param]


@pytest.fixture
async def store(open_engine: OpenStore, tmp_path: Path) -> AsyncGenerator[Store]:
    opened = open_engine(tmp_path / "state")
    yield opened
    await opened.close()


async def change(store: Store, batch: Batch, change: BatchChange, *, gate: Gate | None = None) -> None:
    await store.record(batch, change, platform=PLATFORM, gate=gate, now_ms=NOW_MS)


async def fail(store: Store, batch: Batch, times: int = 1, *, passes: int = 0) -> None:
    for _ in range(times):
        await change(store, batch, FAILED, gate=Gate(passes=passes))


async def set_apart(store: Store, *, due_ms: int) -> None:
    await change(store, await take(store), SetApart(due_ms=due_ms, reason="500"))


async def test_nothing_is_claimed_from_an_empty_outbox(store: Store) -> None:
    assert await claim(store) is None


async def test_a_batch_holds_an_agents_oldest_rows_in_order(store: Store) -> None:
    await put(store, "b", "a")
    await put(store, "x", agent="other")
    await put(store, "c", "d")
    batch = await take(store, max_records=3)
    assert (batch.agent_id, batch.record_ids, batch.rows) == (AGENT, ("b", "a", "c"), (1, 2, 4))
    assert batch.bodies == tuple(record(name).body for name in "bac")
    assert (batch.failures, batch.passes_at_failure, batch.suspect, batch.apart) == (0, 0, False, False)


async def test_a_batch_is_bounded_in_bytes_but_one_row_always_fits(store: Store) -> None:
    await put(store, "a", "b", "c", size=100)
    batch = await claim(store, max_bytes=299)
    assert batch is not None
    assert batch.record_ids == ("a", "b")
    await acknowledge(store, batch)
    batch = await claim(store, max_bytes=1)
    assert batch is not None
    assert batch.record_ids == ("c",)


async def test_a_batch_is_of_one_fleet_node(store: Store) -> None:
    await put(store, "a", "b", node=1)
    await put(store, "c", node=2)
    await put(store, "d")
    batch = await take(store)
    assert (batch.record_ids, batch.fleet_node_id) == (("a", "b"), 1)
    await acknowledge(store, batch)
    assert [entry.fleet_node_id for entry in await store.history("push")] == [1]
    assert (await take(store)).fleet_node_id == 2


async def test_the_agent_whose_row_is_oldest_comes_first_unless_it_is_busy(store: Store) -> None:
    await put(store, "a", agent="zed")
    await put(store, "b", agent="amy")
    assert (await take(store, "zed")).agent_id == "amy"
    assert await claim(store, "zed", "amy") is None
    assert (await take(store)).agent_id == "amy"
    assert (await take(store, "amy")).agent_id == "zed"


async def test_a_batch_keeps_members_and_key_until_it_is_acknowledged(open_engine: OpenStore, tmp_path: Path) -> None:
    store = open_engine(tmp_path)
    await put(store, "a", "b", size=100)
    batch = await take(store)
    await put(store, "c")
    again = await claim(store, max_records=1, max_bytes=1)
    await change(store, batch, Failed(counts=False))
    await store.close()
    store = open_engine(tmp_path)
    assert again == batch == await take(store)
    await acknowledge(store, batch)
    assert (await take(store)).record_ids == ("c",)
    await store.close()


async def test_a_key_says_who_sends_what_in_whatever_order(store: Store) -> None:
    await put(store, "a", "b")
    first = await take(store)
    await acknowledge(store, first)
    await put(store, "b", "a")
    second = await take(store)
    assert second.record_ids == ("b", "a")
    assert second.key == first.key
    await acknowledge(store, second)
    await put(store, "a", "b", agent="other")
    third = await take(store)
    await acknowledge(store, third)
    await store.enqueue(AGENT, [record("a"), record("b", 2)], caps=Caps(records=9, bytes=999), now_ms=NOW_MS)
    fourth = await take(store)
    assert len({first.key, third.key, fourth.key}) == 3


async def test_acknowledged_rows_are_gone_and_remembered(store: Store) -> None:
    await put(store, "a", "b", size=100)
    gate = Gate(passes=8, max_bytes=500)
    await acknowledge(store, await take(store), gate=gate, now_ms=NOW_MS + 5)
    assert await store.rows() == ()
    assert (await store.counts()).bytes == 0
    assert await store.ledger_size() == 2
    assert await store.gate(PLATFORM) == gate
    assert (await store.times(AGENT)).last_push_ms == NOW_MS + 5
    (entry,) = await store.history("push")
    assert (entry.agent_id, entry.payload_bytes, entry.items, entry.at_ms) == (AGENT, 200, 2, NOW_MS + 5)


async def test_an_acknowledgement_may_be_recorded_again(store: Store) -> None:
    await put(store, "a")
    batch = await take(store)
    await acknowledge(store, batch)
    await put(store, "a")
    await acknowledge(store, batch, gate=Gate(failures=2))
    assert await waiting(store) == ["a"]
    assert len(await store.history("push")) == 1
    assert (await store.gate(PLATFORM)).failures == 2


async def test_a_version_acknowledged_later_is_the_one_the_ledger_has(store: Store) -> None:
    await scan(store, record("a", 1), record("a", 2))
    await acknowledge(store, await take(store))
    assert await store.ledger_size() == 1
    marks = [("a", record("a", version).fingerprint, None) for version in (1, 2)]
    assert set(await store.known(PLATFORM, marks)) == {1}


async def test_only_failures_that_count_are_counted(store: Store) -> None:
    await put(store, "a")
    batch = await take(store)
    await change(store, batch, Failed(counts=False), gate=Gate(passes=3))
    await fail(store, batch, passes=5)
    await fail(store, batch, passes=6)
    batch = await take(store)
    assert (batch.failures, batch.passes_at_failure) == (2, 5)


async def test_the_passes_at_the_failure_are_those_recorded_when_no_gate_is_given(store: Store) -> None:
    await store.set_gate(PLATFORM, Gate(passes=4))
    await put(store, "a")
    await change(store, await take(store), FAILED)
    assert (await take(store)).passes_at_failure == 4


async def test_order_is_kept_while_a_batch_fails_less_than_three_times(store: Store) -> None:
    await put(store, "a", "b")
    await fail(store, await take(store, max_records=1), 2)
    assert (await take(store)).record_ids == ("a",)


async def test_a_batch_that_failed_three_times_lets_the_others_go_first(store: Store) -> None:
    await put(store, "a", "b")
    await fail(store, await take(store, max_records=1), 3)
    later = await take(store)
    assert later.record_ids == ("b",)
    await acknowledge(store, later)
    assert (await take(store)).record_ids == ("a",)


async def test_batches_that_fail_are_tried_in_turn(store: Store) -> None:
    await put(store, "a", "b")
    first = await take(store, max_records=1)
    await fail(store, first, 3)
    second = await take(store)
    await fail(store, second, 3)
    assert (await take(store)).rows == first.rows
    await fail(store, first)
    assert (await take(store)).rows == second.rows


async def test_a_suspect_that_failed_lets_the_others_go_first(store: Store) -> None:
    await put(store, "a", "b")
    await change(store, await take(store), Split(suspect=True))
    suspect = await take(store)
    assert (suspect.record_ids, suspect.suspect) == (("a",), True)
    await fail(store, suspect)
    assert (await take(store)).record_ids == ("b",)


async def test_a_split_makes_two_batches_with_keys_of_their_own(store: Store) -> None:
    await put(store, "a", "b", "c")
    batch = await take(store)
    await fail(store, batch)
    await change(store, batch, Split(suspect=False))
    first = await take(store)
    assert (first.record_ids, first.suspect, first.failures) == (("a", "b"), False, 0)
    await acknowledge(store, first)
    second = await take(store)
    assert second.record_ids == ("c",)
    assert len({batch.key, first.key, second.key}) == 3


async def test_a_dead_row_is_kept_with_its_reason_and_holds_up_nobody(store: Store) -> None:
    await put(store, "a")
    batch = await take(store)
    await put(store, "b")
    await change(store, batch, REFUSED)
    (dead,) = await store.rows(state=RowState.DEAD)
    assert (dead.body, dead.reason, dead.status, dead.answer) == (batch.bodies[0], "refused", 422, "no")
    assert (await take(store)).record_ids == ("b",)


async def test_a_retried_dead_letter_goes_out_with_the_key_it_had(store: Store) -> None:
    await put(store, "a")
    batch = await take(store)
    await change(store, batch, REFUSED)
    await store.retry_dead(None, now_ms=NOW_MS)
    assert (await take(store)).key == batch.key


async def test_a_row_set_apart_goes_out_alone_when_it_is_due_after_all_others(store: Store) -> None:
    await put(store, "a")
    before = await take(store)
    await set_apart(store, due_ms=NOW_MS + 1000)
    (row,) = await store.rows()
    assert (row.state, row.reason) == (RowState.APART, "500")
    assert await claim(store, now_ms=NOW_MS + 999) is None
    assert await store.next_due_ms() == NOW_MS + 1000
    await put(store, "b")
    assert await store.next_due_ms() == 0
    assert (await take(store, now_ms=NOW_MS + 1000)).record_ids == ("b",)
    await acknowledge(store, await take(store))
    assert await claim(store, AGENT, now_ms=NOW_MS + 1000) is None
    apart = await take(store, now_ms=NOW_MS + 1000)
    assert (apart.record_ids, apart.apart, apart.key) == (("a",), True, before.key)
    await acknowledge(store, apart)
    assert await store.rows() == ()


async def test_a_row_set_apart_can_be_set_apart_again_or_die(store: Store) -> None:
    await put(store, "a")
    await set_apart(store, due_ms=NOW_MS)
    apart = await take(store)
    await change(store, apart, FAILED)
    await change(store, apart, SetApart(due_ms=NOW_MS + 5, reason="502"))
    assert await store.next_due_ms() == NOW_MS + 5
    await change(store, await take(store, now_ms=NOW_MS + 5), REFUSED)
    assert [row.state for row in await store.rows()] == [RowState.DEAD]
    assert await store.next_due_ms() is None


async def test_no_row_is_set_apart_for_more_than_310_seconds(store: Store) -> None:
    await put(store, "a")
    await set_apart(store, due_ms=NOW_MS + 86_400_000)
    assert await store.next_due_ms() == NOW_MS + 310_000


async def test_a_clock_set_back_by_a_day_does_not_hold_a_row_apart(store: Store) -> None:
    await put(store, "a")
    await set_apart(store, due_ms=NOW_MS + 300_000)
    assert (await take(store, now_ms=NOW_MS - 86_400_000)).apart


@pytest.mark.parametrize("late", [FAILED, Split(suspect=True), Acknowledged(synced=2, payload_bytes=9)])
async def test_a_change_to_a_batch_that_is_gone_is_none(store: Store, late: BatchChange) -> None:
    await put(store, "a", "b")
    batch = await take(store)
    await acknowledge(store, batch)
    await put(store, "c", "d")
    rows = await store.rows()
    await change(store, batch, late)
    assert await store.rows() == rows
    assert (await take(store)).failures == 0
    assert len(await store.history("push")) == 1


@pytest.mark.parametrize("late", [REFUSED, SetApart(due_ms=NOW_MS, reason="500")])
async def test_a_change_to_a_row_that_is_gone_is_none(store: Store, late: BatchChange) -> None:
    await put(store, "a")
    batch = await take(store)
    await acknowledge(store, batch)
    await change(store, batch, late)
    await change(store, replace(batch, apart=True), late)
    assert await store.rows() == ()


async def test_a_second_answer_to_a_row_that_was_retried_is_none(store: Store) -> None:
    await put(store, "a")
    batch = await take(store)
    dead = Dead(reason="no", status=422, answer="")
    await store.record(batch, dead, platform=PLATFORM, gate=None, now_ms=NOW_MS)
    await store.retry_dead(None, now_ms=NOW_MS)
    for late in (Failed(counts=True), dead, SetApart(due_ms=NOW_MS, reason="500")):
        await store.record(batch, late, platform=PLATFORM, gate=None, now_ms=NOW_MS)
    assert [row.state for row in await store.rows()] == [RowState.WAITING]
    assert (await take(store)).failures == 0


async def test_changes_that_make_no_sense_are_refused(store: Store) -> None:
    await put(store, "a", "b")
    batch = await take(store)
    for wrong in (REFUSED, SetApart(due_ms=NOW_MS, reason="500")):
        with pytest.raises(ValueError, match="one record"):
            await change(store, batch, wrong)
    await change(store, batch, Split(suspect=True))
    with pytest.raises(ValueError, match="one record"):
        await change(store, await take(store), Split(suspect=True))


async def test_a_gate_is_remembered_for_each_platform(open_engine: OpenStore, tmp_path: Path) -> None:
    store = open_engine(tmp_path)
    assert await store.gate(PLATFORM) == Gate()
    gate = Gate(state=GateState.PARKED, reason="unauthorised", until_ms=NOW_MS, failures=3, passes=40, max_bytes=65_536)
    await store.set_gate(PLATFORM, gate)
    await store.close()
    store = open_engine(tmp_path)
    assert await store.gate(PLATFORM) == gate
    assert await store.gate("https://else.example") == Gate()
    await store.close()


async def test_several_batches_are_of_an_agent_each(store: Store) -> None:
    for agent in ("one", "two", "three"):
        await put(store, f"{agent}1", f"{agent}2", agent=agent)
    found = await store.claim(PLATFORM, busy=["one"], most=5, max_records=1, max_bytes=1000, now_ms=NOW_MS)
    assert [batch.record_ids for batch in found] == [("two1",), ("three1",)]


async def test_an_agent_that_settles_is_passed_over_unless_its_last_batch_is_gone(store: Store) -> None:
    await put(store, "a", "b")

    async def answered(change: BatchChange) -> list[tuple[str, ...]]:
        batch = await take(store, max_records=1)
        _, found = await asyncio.gather(
            store.record(batch, change, platform=PLATFORM, gate=None, now_ms=NOW_MS),
            store.claim(PLATFORM, busy=(), settling=[AGENT], max_records=1, max_bytes=1000, now_ms=NOW_MS),
        )
        return [batch.record_ids for batch in found]

    assert await answered(Failed(counts=True)) == []
    assert await answered(Acknowledged(synced=1, payload_bytes=1)) == [("b",)]


async def test_what_a_late_acknowledgement_leaves_of_another_batch_goes_out(store: Store) -> None:
    await put(store, "a")
    late = await take(store)
    await store.record(late, REFUSED, platform=PLATFORM, gate=None, now_ms=NOW_MS)
    await store.retry_dead(None, now_ms=NOW_MS)
    await put(store, "b")
    assert (await take(store)).record_ids == ("a", "b")
    await acknowledge(store, late)
    assert (await take(store)).record_ids == ("b",)
