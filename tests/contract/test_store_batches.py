"""What any engine of the store promises of batches: who is next, what stays as it was sent, what an answer does."""

from dataclasses import replace

import pytest

from plugin.store.interface import (
    Acknowledged,
    AgentTimes,
    Batch,
    BatchChange,
    Dead,
    Failed,
    Gate,
    GateState,
    RowState,
    SetApart,
    Split,
)
from tests.support.store import NOW_MS, PLATFORM, ROOM, Shelf, acknowledged, drain, record

FAILED = Failed(counts=True)
DEAD = Dead(reason="refused", status=422, answer="no such repo")


# -- what a batch is ---------------------------------------------------------------------------------------------


async def test_nothing_is_claimed_where_nothing_waits(shelf: Shelf) -> None:
    assert await shelf.claim() is None
    await shelf.bury("dead")
    assert await shelf.claim() is None


async def test_a_batch_holds_what_was_enqueued_in_order(shelf: Shelf) -> None:
    last = (await shelf.put("b", "a", "c")).last_row
    batch = await shelf.take()
    assert batch.record_ids == ("b", "a", "c")
    assert batch.bodies == tuple(record(name).body for name in "bac")
    assert batch.rows == tuple(row.row for row in await shelf.store.rows())
    assert batch.rows[-1] == last
    assert (batch.agent_id, batch.failures, batch.passes_at_failure) == ("codex", 0, 0)
    assert (batch.suspect, batch.apart, batch.fleet_node_id) == (False, False, None)


async def test_a_batch_has_at_most_so_many_records_and_bytes_but_always_one(shelf: Shelf) -> None:
    await shelf.put(*"abcde", size=100)
    first = await shelf.take(max_records=2)
    assert first.record_ids == ("a", "b")
    await shelf.note(first, acknowledged())
    second = await shelf.take(max_bytes=299)
    assert second.record_ids == ("c", "d")
    await shelf.note(second, acknowledged())
    assert (await shelf.take(max_bytes=1)).record_ids == ("e",)


async def test_a_batch_is_of_one_fleet_node_so_that_history_can_name_it(shelf: Shelf) -> None:
    nodes = (7, 7, None, 7)
    records = [record(name, fleet_node_id=node) for name, node in zip("abcd", nodes, strict=True)]
    await shelf.store.enqueue("codex", records, caps=ROOM, now_ms=NOW_MS)
    for names, node in (("ab", 7), ("c", None), ("d", 7)):
        batch = await shelf.take()
        assert (batch.record_ids, batch.fleet_node_id) == (tuple(names), node)
        await shelf.note(batch, acknowledged())
    assert [entry.fleet_node_id for entry in await shelf.store.history("push")] == [7, None, 7]


async def test_the_key_says_who_sends_what_in_whatever_order(shelf: Shelf) -> None:
    async def key_of(*names: str, agent: str = "codex", version: int = 1) -> str:
        records = [record(name, version=version) for name in names]
        await shelf.store.enqueue(agent, records, caps=ROOM, now_ms=NOW_MS)
        batch = await shelf.take()
        await shelf.note(batch, acknowledged())
        return batch.key

    key = await key_of("a", "b")
    assert await key_of("b", "a") == key
    others = [await key_of("a"), await key_of("a", "b", agent="other"), await key_of("a", "b", version=2)]
    assert len({key, *others}) == 4


# -- who is next -------------------------------------------------------------------------------------------------


async def test_the_agent_whose_row_waits_longest_is_next_unless_it_is_busy(shelf: Shelf) -> None:
    for name, agent in (("a", "one"), ("b", "two"), ("c", "one"), ("d", "three")):
        await shelf.put(name, agent=agent)
    first = await shelf.take()
    assert (first.agent_id, first.record_ids) == ("one", ("a", "c"))
    second = await shelf.take("one")
    assert (second.agent_id, second.record_ids) == ("two", ("b",))
    assert (await shelf.take("one", "two")).agent_id == "three"
    assert await shelf.claim("one", "two", "three") is None
    await shelf.note(first, acknowledged())
    assert (await shelf.take()).agent_id == "two"


async def test_a_batch_once_claimed_comes_back_as_it_was_after_a_new_start(shelf: Shelf) -> None:
    await shelf.put("a", "b")
    claimed = await shelf.take()
    await shelf.put("c")
    await shelf.put("d", agent="other")
    assert await shelf.take() == claimed
    await shelf.reopen()
    assert await shelf.take(max_records=1, max_bytes=1) == claimed
    await shelf.note(claimed, acknowledged())
    assert (await shelf.take()).record_ids == ("c",)


async def test_batches_that_were_formed_come_before_new_ones_oldest_first(shelf: Shelf) -> None:
    await shelf.put("a", agent="one")
    await shelf.put("b", agent="two")
    await shelf.take()
    await shelf.take("one")
    await shelf.put("c", agent="three")
    assert (await shelf.take()).agent_id == "one"
    assert (await shelf.take("one")).agent_id == "two"
    assert (await shelf.take("one", "two")).agent_id == "three"


async def test_a_batch_that_failed_three_times_lets_everything_else_pass_before_it(shelf: Shelf) -> None:
    await shelf.put("bad")
    bad = await shelf.take()
    for failures in range(3):
        assert (await shelf.take()).failures == failures
        await shelf.note(bad, FAILED)
        await shelf.put(f"good{failures}")
        await shelf.put(f"fine{failures}", agent="other")
    order = [await shelf.take()]
    await shelf.note(order[0], acknowledged())
    order.append(await shelf.take())
    await shelf.note(order[1], acknowledged())
    order.append(await shelf.take())
    assert [batch.record_ids for batch in order] == [
        ("good0", "good1", "good2"),
        ("fine0", "fine1", "fine2"),
        ("bad",),
    ]
    assert (order[2].key, order[2].failures) == (bad.key, 3)


async def test_a_suspect_lets_everything_else_pass_before_it_after_one_failure(shelf: Shelf) -> None:
    await shelf.put("a", "b")
    await shelf.note(await shelf.take(), Split(suspect=True))
    await shelf.put("c", agent="other")
    first = await shelf.take()
    assert (first.record_ids, first.suspect) == (("a",), True)
    await shelf.note(first, FAILED)
    assert (await shelf.take()).record_ids == ("b",)
    assert await drain(shelf.store) == ["b", "c", "a"]


async def test_a_row_apart_is_claimed_alone_once_due_and_after_all_the_others(shelf: Shelf) -> None:
    (row,) = await shelf.set_apart("apart", due_ms=NOW_MS + 300_000)
    assert await shelf.claim(now_ms=NOW_MS + 299_999) is None
    later = await shelf.claim(now_ms=NOW_MS + 300_000)
    assert later is not None
    assert (later.rows, later.record_ids, later.bodies) == ((row,), ("apart",), (record("apart").body,))
    assert (later.apart, later.agent_id) == (True, "codex")
    assert await shelf.claim("codex", now_ms=NOW_MS + 300_000) is None
    await shelf.put("a", agent="other")
    other = await shelf.claim(now_ms=NOW_MS + 300_000)
    assert other is not None
    assert other.record_ids == ("a",)
    await shelf.note(later, acknowledged())
    assert await shelf.names() == ["a"]


async def test_a_row_apart_keeps_the_key_that_it_had_alone(shelf: Shelf) -> None:
    await shelf.put("a")
    alone = await shelf.take()
    await shelf.note(alone, SetApart(due_ms=NOW_MS, reason="500"))
    assert (await shelf.take()).key == alone.key


async def test_a_row_apart_is_due_when_the_clock_was_put_back_by_a_day(shelf: Shelf) -> None:
    await shelf.set_apart("far", due_ms=NOW_MS + 86_400_000)
    await shelf.set_apart("near", agent="other", due_ms=NOW_MS + 310_000)
    assert (await shelf.take()).record_ids == ("far",)
    assert await shelf.claim("codex") is None


# -- what an answer does -----------------------------------------------------------------------------------------


async def test_what_was_acknowledged_leaves_and_is_remembered(shelf: Shelf) -> None:
    records = [record(name, core_fingerprint="then#1", fleet_node_id=7) for name in "ab"]
    await shelf.store.enqueue("codex", records, caps=ROOM, now_ms=NOW_MS)
    await shelf.put("c")
    gate = Gate(passes=4)
    change = Acknowledged(synced=1, payload_bytes=123)
    await shelf.note(await shelf.take(), change, gate=gate, now_ms=NOW_MS + 9)
    store = await shelf.reopen()
    assert await shelf.names() == ["c"]
    marks = [(one.id, one.fingerprint, one.core_fingerprint) for one in records]
    assert set(await store.known(PLATFORM, marks)) == {0, 1}
    assert await store.ledger_size() == 2
    (entry,) = await store.history("push")
    assert (entry.agent_id, entry.fleet_node_id, entry.items) == ("codex", 7, 2)
    assert (entry.payload_bytes, entry.at_ms, entry.direction) == (123, NOW_MS + 9, "push")
    assert await store.times("codex") == AgentTimes(last_push_ms=NOW_MS + 9, last_pull_ms=None)
    assert await store.gate(PLATFORM) == gate


async def test_acknowledging_twice_is_acknowledging_once(shelf: Shelf) -> None:
    await shelf.put("a")
    batch = await shelf.take()
    await shelf.note(batch, acknowledged())
    await shelf.put("b")
    await shelf.note(batch, acknowledged())
    assert await shelf.names() == ["b"]
    assert len(await shelf.store.history("push")) == 1


async def test_a_failure_counts_only_when_it_says_so_and_notes_the_passes_of_the_first(shelf: Shelf) -> None:
    await shelf.put("a", "b")
    batch = await shelf.take()
    await shelf.note(batch, Failed(counts=False), gate=Gate(passes=3))
    assert await shelf.take() == batch
    await shelf.note(batch, FAILED, gate=Gate(passes=5))
    await shelf.note(batch, FAILED, gate=Gate(passes=9))
    await shelf.note(batch, FAILED)
    await shelf.reopen()
    assert await shelf.take() == replace(batch, failures=3, passes_at_failure=5)


async def test_the_passes_of_a_gate_that_does_not_change_are_noted_too(shelf: Shelf) -> None:
    await shelf.store.set_gate(PLATFORM, Gate(passes=8))
    await shelf.put("a")
    await shelf.note(await shelf.take(), FAILED)
    assert (await shelf.take()).passes_at_failure == 8


@pytest.mark.parametrize("suspect", [True, False])
async def test_a_split_makes_two_halves_with_keys_of_their_own(shelf: Shelf, *, suspect: bool) -> None:
    await shelf.put(*"abcde")
    whole = await shelf.take()
    await shelf.note(whole, FAILED)
    await shelf.note(whole, Split(suspect=suspect))
    await shelf.put("f")
    await shelf.reopen()
    halves: list[Batch] = []
    for _ in range(2):
        halves.append(await shelf.take())
        await shelf.note(halves[-1], acknowledged())
    assert [half.record_ids for half in halves] == [("a", "b", "c"), ("d", "e")]
    assert {(half.suspect, half.failures, half.passes_at_failure) for half in halves} == {(suspect, 0, 0)}
    assert len({whole.key, *(half.key for half in halves)}) == 3
    assert (await shelf.take()).record_ids == ("f",)


async def test_a_refused_row_becomes_a_dead_letter_with_what_was_said(shelf: Shelf) -> None:
    await shelf.put("a")
    await shelf.note(await shelf.take(), DEAD, gate=Gate(state=GateState.READY, passes=1))
    await shelf.put("b")
    await shelf.reopen()
    (dead,) = await shelf.store.rows(state=RowState.DEAD)
    assert (dead.record_id, dead.reason, dead.status, dead.answer) == ("a", "refused", 422, "no such repo")
    assert dead.body == record("a").body
    assert (await shelf.take()).record_ids == ("b",)
    assert await shelf.store.ledger_size() == 0


async def test_a_row_apart_can_die_and_come_back(shelf: Shelf) -> None:
    (row,) = await shelf.set_apart("a")
    await shelf.note(await shelf.take(), DEAD)
    assert (await shelf.store.counts()).dead == 1
    assert await shelf.store.retry_dead([row], now_ms=NOW_MS) == 1
    batch = await shelf.take()
    assert (batch.record_ids, batch.apart, batch.failures) == (("a",), False, 0)


async def test_a_row_apart_that_fails_again_waits_again(shelf: Shelf) -> None:
    await shelf.set_apart("a")
    batch = await shelf.take()
    await shelf.note(batch, FAILED)
    assert await shelf.take() == batch
    await shelf.note(batch, SetApart(due_ms=NOW_MS + 5, reason="502"))
    assert await shelf.claim() is None
    (row,) = await shelf.store.rows()
    assert (row.state, row.reason) == (RowState.APART, "502")


@pytest.mark.parametrize("change", [FAILED, Split(suspect=True), DEAD, SetApart(due_ms=1, reason="r")])
async def test_a_batch_that_is_no_more_as_it_was_sent_is_not_changed(shelf: Shelf, change: BatchChange) -> None:
    await shelf.put("a", "b")
    whole = await shelf.take()
    await shelf.note(whole, Split(suspect=False))
    half = await shelf.take()
    gate = Gate(passes=2)
    await shelf.note(whole, change, gate=gate)
    await shelf.note(replace(half, key="another"), change)
    assert await shelf.take() == half
    assert await shelf.store.gate(PLATFORM) == gate
    assert {row.state for row in await shelf.store.rows()} == {RowState.WAITING}


async def test_an_acknowledgement_holds_also_for_what_was_split_meanwhile(shelf: Shelf) -> None:
    await shelf.put("a", "b", "c")
    whole = await shelf.take(max_records=2)
    await shelf.note(whole, Split(suspect=False))
    await shelf.note(whole, acknowledged())
    assert await drain(shelf.store) == ["c"]
    assert await shelf.names() == []


# -- gates -------------------------------------------------------------------------------------------------------


async def test_each_platform_has_a_gate_of_its_own(shelf: Shelf) -> None:
    gates = {
        PLATFORM: Gate(
            state=GateState.WAITING, reason="timeout", until_ms=NOW_MS, failures=3, passes=2**40, max_bytes=5
        ),
        "https://elsewhere.test": Gate(state=GateState.PARKED, reason="unauthorised"),
    }
    for platform, gate in gates.items():
        await shelf.store.set_gate(platform, Gate(passes=1))
        await shelf.store.set_gate(platform, gate)
    store = await shelf.reopen()
    assert {platform: await store.gate(platform) for platform in gates} == gates
    assert await store.gate("https://never.test") == Gate()


async def test_a_change_without_a_gate_leaves_the_gate(shelf: Shelf) -> None:
    gate = Gate(state=GateState.WAITING, reason="503", until_ms=7, failures=1)
    await shelf.store.set_gate(PLATFORM, gate)
    await shelf.deliver("a")
    assert await shelf.store.gate(PLATFORM) == gate
