"""What goes into a store and how much is there: any engine must pass."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

import pytest

from plugin.errors import QueueFull, StoreUnavailable
from plugin.store.interface import Caps, Dead, Enqueued, RowState, SetApart, Store, StoreState
from tests.support.stores import (
    AGENT,
    ENGINES,
    NOW_MS,
    OTHER_PLATFORM,
    PLATFORM,
    OpenStore,
    acknowledge,
    put,
    record,
    scan,
    take,
    waiting,
)

REFUSED = Dead(reason="refused", status=422, answer="no")


@pytest.fixture(params=sorted(ENGINES))
def open_engine(request: pytest.FixtureRequest) -> OpenStore:
    return ENGINES[request.param]


@pytest.fixture
async def store(open_engine: OpenStore, tmp_path: Path) -> AsyncGenerator[Store]:
    opened = open_engine(tmp_path / "state")
    yield opened
    await opened.close()


async def bury(store: Store, name: str) -> None:
    await put(store, name)
    await store.record(await take(store), REFUSED, platform=PLATFORM, gate=None, now_ms=NOW_MS)


async def test_a_fresh_store_is_well_and_empty(store: Store) -> None:
    await store.wait_ready()
    await store.wait_uncontested()
    assert store.health.state is StoreState.OK
    counts = await store.counts()
    assert (counts.queued, counts.dead, counts.bytes, counts.oldest_queued_ms) == (0, 0, 0, None)
    assert await store.next_due_ms() is None
    assert await store.ledger_size() == 0
    assert await store.rows() == ()


async def test_bodies_come_back_byte_for_byte(store: Store) -> None:
    bodies = (b'{"a": "\\u00e9", "b":1e400}', '{"ü":"\\ud800"}'.encode(), b"{" + b" " * 70_000 + b"}", b"\x00\xff")
    records = [replace(record(f"r{place}"), body=body) for place, body in enumerate(bodies)]
    await store.enqueue(AGENT, records, caps=Caps(records=9, bytes=100_000), now_ms=NOW_MS)
    assert (await take(store)).bodies == bodies
    assert tuple(row.body for row in await store.rows()) == bodies


async def test_records_keep_the_order_they_came_in(store: Store) -> None:
    await put(store, "c", "a")
    await put(store, "b")
    assert await waiting(store) == ["c", "a", "b"]


async def test_what_was_stored_is_there_after_a_restart(open_engine: OpenStore, tmp_path: Path) -> None:
    first = open_engine(tmp_path)
    await put(first, "a", "b")
    await first.close()
    second = open_engine(tmp_path)
    assert await waiting(second) == ["a", "b"]
    await second.close()


async def test_an_explicit_record_that_is_queued_is_known(store: Store) -> None:
    first = await put(store, "a", "b")
    assert first == Enqueued(added=2, known=0, left_out=0, last_row=2, queued=2, dead=0)
    second = await put(store, "b", "c", "c")
    assert second == Enqueued(added=1, known=2, left_out=0, last_row=3, queued=3, dead=0)
    assert await put(store, "a") == Enqueued(added=0, known=1, left_out=0, last_row=3, queued=3, dead=0)


async def test_an_enqueue_says_what_of_its_agent_is_queued_and_dead_after_it(store: Store) -> None:
    await bury(store, "dead")
    await put(store, "apart")
    await store.record(
        await take(store), SetApart(due_ms=NOW_MS, reason="500"), platform=PLATFORM, gate=None, now_ms=NOW_MS
    )
    together = await asyncio.gather(put(store, "a"), put(store, "b", agent="other"), put(store, "c", "d"))
    assert [(done.queued, done.dead) for done in together] == [(2, 1), (1, 0), (4, 1)]
    counts = await store.counts(AGENT)
    nothing = await put(store)
    assert (nothing.queued, nothing.dead) == (counts.queued, counts.dead) == (4, 1)


async def test_an_explicit_record_is_queued_for_each_agent_and_in_each_version(store: Store) -> None:
    await put(store, "a")
    assert (await put(store, "a", agent="other")).added == 1
    newer = await store.enqueue(AGENT, [record("a", 2)], caps=Caps(records=9, bytes=999), now_ms=NOW_MS)
    assert newer.added == 1


async def test_an_explicit_record_that_was_delivered_or_is_dead_is_queued_again(store: Store) -> None:
    await put(store, "sent")
    await acknowledge(store, await take(store))
    await bury(store, "dead")
    assert (await put(store, "sent", "dead")).added == 2


async def test_an_explicit_record_that_is_set_apart_is_known(store: Store) -> None:
    await put(store, "a")
    await store.record(
        await take(store), SetApart(due_ms=NOW_MS, reason="500"), platform=PLATFORM, gate=None, now_ms=NOW_MS
    )
    assert (await put(store, "a")).known == 1


async def test_the_last_row_is_the_newest_that_waits(store: Store) -> None:
    assert (await store.enqueue("nobody", [], caps=Caps(records=9, bytes=9), now_ms=NOW_MS)).last_row == 0
    await put(store, "a", "b")
    await put(store, "c", agent="other")
    assert (await put(store)).last_row == 2
    await take(store)
    assert (await put(store)).last_row == 2


async def test_row_numbers_are_never_used_twice(open_engine: OpenStore, tmp_path: Path) -> None:
    first = open_engine(tmp_path)
    await put(first, "a", "b")
    await acknowledge(first, await take(first))
    await first.close()
    second = open_engine(tmp_path)
    assert (await put(second, "c")).last_row == 3
    await second.close()


@pytest.mark.parametrize("caps", [Caps(records=2, bytes=10_000), Caps(records=100, bytes=250)])
async def test_explicit_records_go_in_all_or_none(store: Store, caps: Caps) -> None:
    await put(store, "a", size=100, caps=caps)
    with pytest.raises(QueueFull):
        await put(store, "b", "c", size=100, caps=caps)
    assert await waiting(store) == ["a"]
    assert (await store.counts()).bytes == 100
    assert (await put(store, "b", "a", size=100, caps=caps)).added == 1


async def test_a_body_larger_than_the_cap_never_fits(store: Store) -> None:
    with pytest.raises(QueueFull):
        await put(store, "a", size=101, caps=Caps(records=9, bytes=100))
    assert (await put(store, "b", size=100, caps=Caps(records=9, bytes=100))).added == 1


async def test_dead_letters_take_room(store: Store) -> None:
    await bury(store, "dead")
    with pytest.raises(QueueFull):
        await put(store, "a", caps=Caps(records=1, bytes=1000))


async def test_of_scanned_records_as_many_as_fit_go_in(store: Store) -> None:
    found = [record(name, size=100) for name in "abc"]
    done = await scan(store, *found, caps=Caps(records=2, bytes=1000))
    assert (done.added, done.known, done.left_out) == (2, 0, 1)
    assert await waiting(store) == ["a", "b"]
    done = await scan(store, *found, caps=Caps(records=9, bytes=299))
    assert (done.added, done.known, done.left_out) == (0, 2, 1)


async def test_a_scanned_record_that_can_never_fit_does_not_keep_others_out(store: Store) -> None:
    done = await scan(store, record("huge", size=500), record("small"), caps=Caps(records=9, bytes=400))
    assert (done.added, done.left_out) == (1, 1)


async def test_a_scanned_record_is_known_when_it_is_queued_for_any_agent(store: Store) -> None:
    await put(store, "a", agent="other")
    assert (await scan(store, record("a"))).known == 1


async def test_a_scanned_record_is_known_when_it_is_dead(store: Store) -> None:
    await bury(store, "a")
    done = await scan(store, record("a"), record("a", 2))
    assert (done.added, done.known) == (1, 1)


async def test_a_scanned_record_is_known_when_this_platform_has_this_version(store: Store) -> None:
    await put(store, "a")
    await acknowledge(store, await take(store))
    assert (await scan(store, record("a"))).known == 1
    assert (await scan(store, record("a", 2))).added == 1
    assert (await scan(store, record("a"), platform=OTHER_PLATFORM)).added == 1


async def test_a_core_fingerprint_says_nothing_of_what_we_delivered_ourselves(store: Store) -> None:
    await scan(store, record("a", core="monday#1"))
    await acknowledge(store, await take(store))
    assert (await scan(store, record("a", 2, core="monday#1"))).added == 1


async def test_a_dropped_dead_letter_is_not_scanned_again(store: Store) -> None:
    await bury(store, "a")
    assert await store.drop_dead(None) == 1
    assert (await scan(store, record("a"))).known == 1
    assert (await scan(store, record("a"), platform=OTHER_PLATFORM)).known == 1
    assert (await scan(store, record("a", 2))).added == 1
    assert await store.ledger_size() == 0
    assert (await put(store, "a")).added == 1


async def test_known_tells_what_a_scan_would_find_known(store: Store) -> None:
    await put(store, "sent")
    await acknowledge(store, await take(store))
    await put(store, "queued")
    marks = [
        (found.id, found.fingerprint, found.core_fingerprint)
        for found in (record("new"), record("sent"), record("sent", 2), record("queued"))
    ]
    assert set(await store.known(PLATFORM, marks)) == {1, 3}
    assert set(await store.known(OTHER_PLATFORM, marks)) == {3}


async def test_counts_are_of_one_agent_or_of_all(store: Store) -> None:
    await put(store, "a", "b", size=100, now_ms=5000)
    await put(store, "c", size=100, agent="other", now_ms=4000)
    await store.record(await take(store, "codex"), REFUSED, platform=PLATFORM, gate=None, now_ms=NOW_MS)
    everyone, mine, theirs = await store.counts(), await store.counts(AGENT), await store.counts("other")
    assert (everyone.queued, everyone.dead, everyone.bytes, everyone.oldest_queued_ms) == (2, 1, 300, 5000)
    assert (mine.queued, mine.dead, mine.bytes, mine.oldest_queued_ms) == (2, 0, 200, 5000)
    assert (theirs.queued, theirs.dead, theirs.bytes, theirs.oldest_queued_ms) == (0, 1, 100, None)
    assert (await store.counts("nobody")).oldest_queued_ms is None


async def test_the_oldest_row_counts_wherever_it_stands(store: Store) -> None:
    await put(store, "apart", now_ms=1000)
    change = SetApart(due_ms=NOW_MS, reason="500")
    await store.record(await take(store), change, platform=PLATFORM, gate=None, now_ms=NOW_MS)
    await put(store, "batched", now_ms=2000)
    batched = await take(store)
    await put(store, "free", now_ms=3000)
    assert (await store.counts()).oldest_queued_ms == 1000
    await store.record(batched, REFUSED, platform=PLATFORM, gate=None, now_ms=NOW_MS)
    assert (await store.counts()).oldest_queued_ms == 1000
    await acknowledge(store, await take(store, now_ms=NOW_MS - 1))
    await acknowledge(store, await take(store))
    assert (await store.counts()).oldest_queued_ms is None
    await store.retry_dead(None, now_ms=7000)
    await take(store)
    await put(store, "free", now_ms=8000)
    assert (await store.counts(AGENT)).oldest_queued_ms == 7000


async def test_unsettled_counts_what_waits_up_to_a_row(store: Store) -> None:
    await put(store, "a", "b", "c", "d")
    await put(store, "e", agent="other")
    assert await store.unsettled(AGENT, up_to_row=3) == 3
    await take(store, max_records=2)
    assert await store.unsettled(AGENT, up_to_row=1) == 1
    assert await store.unsettled(AGENT, up_to_row=3) == 3
    await acknowledge(store, await take(store))
    assert await store.unsettled(AGENT, up_to_row=3) == 1
    assert await store.unsettled(AGENT, up_to_row=99) == 2
    assert await store.unsettled("nobody", up_to_row=99) == 0


async def test_rows_are_listed_by_number_and_state(store: Store) -> None:
    await bury(store, "a")
    await put(store, "b", node=7)
    await put(store, "c", agent="other")
    dead, first, second = await store.rows()
    assert (dead.record_id, dead.state, dead.reason, dead.status, dead.answer) == (
        "a",
        RowState.DEAD,
        "refused",
        422,
        "no",
    )
    assert (first.agent_id, first.fleet_node_id, first.queued_ms, first.state) == (AGENT, 7, NOW_MS, RowState.WAITING)
    assert (second.agent_id, second.fingerprint) == ("other", record("c").fingerprint)
    assert await store.rows(state=RowState.WAITING) == (first, second)
    assert await store.rows(after=dead.row, limit=1) == (first,)


async def test_dead_letters_are_retried_or_dropped_by_row_or_all(store: Store) -> None:
    for name in "abcd":
        await bury(store, name)
    a, b, *_ = [row.row for row in await store.rows(state=RowState.DEAD)]
    assert await store.retry_dead([a, 999], now_ms=NOW_MS + 1) == 1
    assert await store.retry_dead([a], now_ms=NOW_MS + 1) == 0
    assert await store.drop_dead([b, b]) == 1
    assert await store.drop_dead([a]) == 0
    (again,) = await store.rows(state=RowState.WAITING)
    assert (again.record_id, again.queued_ms, again.reason, again.status) == ("a", NOW_MS + 1, None, None)
    assert await store.retry_dead(None, now_ms=NOW_MS) == 2
    assert (await take(store)).record_ids == ("a", "c", "d")


async def test_a_dead_letter_that_was_queued_anew_is_retried_once(store: Store) -> None:
    await bury(store, "a")
    await put(store, "a")
    assert await store.retry_dead(None, now_ms=NOW_MS) == 1
    assert (await take(store)).record_ids == ("a",)
    assert (await store.counts()).queued == 1


async def test_rows_that_a_late_answer_takes_leave_the_line(store: Store) -> None:
    await put(store, "a1")
    batch = await take(store)
    await store.record(batch, REFUSED, platform=PLATFORM, gate=None, now_ms=NOW_MS)
    await put(store, "b2", agent="other")
    await put(store, "a3")
    await store.retry_dead(None, now_ms=NOW_MS)
    await acknowledge(store, batch)
    assert [(await take(store)).record_ids, (await take(store, "other")).record_ids] == [("b2",), ("a3",)]


async def test_a_closed_store_says_so(open_engine: OpenStore, tmp_path: Path) -> None:
    store = open_engine(tmp_path)
    await store.close()
    await store.close()
    with pytest.raises(StoreUnavailable):
        await store.counts()
