"""What any engine of the store promises: taking in, counting, dead letters, the end."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from plugin.errors import QueueFull, StoreUnavailable
from plugin.store.interface import (
    AgentTimes,
    Caps,
    CoreState,
    Dead,
    Enqueued,
    Gate,
    GateState,
    HistoryEntry,
    QueueCounts,
    Record,
    RowState,
    Store,
    StoreState,
)
from tests.support.store import NOW_MS, PLATFORM, ROOM, Shelf, acknowledged, drain, record

NOTHING = CoreState(queue=(), ledger=(), context=(), history=(), times=AgentTimes(last_push_ms=None, last_pull_ms=None))
ENTRY = HistoryEntry(agent_id="a", fleet_node_id=None, direction="pull", payload_bytes=1, items=1, at_ms=NOW_MS)


def mark(one: Record) -> tuple[str, str, str | None]:
    return one.id, one.fingerprint, one.core_fingerprint


# -- enqueue -----------------------------------------------------------------------------------------------------


async def test_records_are_kept_in_order_byte_for_byte(shelf: Shelf) -> None:
    strange = [
        Record(id="é/\n ", fingerprint="f", body=b'{ "id" :\t"\xc3\xa9" ,"n":1e400}', fleet_node_id=-(2**62)),
        Record(id="", fingerprint="", body=b"", core_fingerprint="2026#1"),
        Record(id="large", fingerprint="f", body=bytes(range(256)) * 4096),
    ]
    for one in strange:
        await shelf.store.enqueue("codex", [one], caps=ROOM, now_ms=NOW_MS)
    store = await shelf.reopen()
    rows = await store.rows()
    assert [(row.record_id, row.fingerprint, row.body, row.fleet_node_id) for row in rows] == [
        (one.id, one.fingerprint, one.body, one.fleet_node_id) for one in strange
    ]
    assert {(row.agent_id, row.state, row.queued_ms) for row in rows} == {("codex", RowState.WAITING, NOW_MS)}
    assert [row.row for row in rows] == sorted({row.row for row in rows})


async def test_an_enqueue_says_what_it_did(shelf: Shelf) -> None:
    first = await shelf.put("a", "b")
    assert (first.added, first.known, first.left_out) == (2, 0, 0)
    second = await shelf.put("b", "c", "c")
    assert (second.added, second.known, second.left_out) == (1, 2, 0)
    assert await shelf.names() == ["a", "b", "c"]
    rows = await shelf.store.rows()
    assert (first.last_row, second.last_row) == (rows[1].row, rows[2].row)


async def test_an_enqueue_of_nothing_tells_the_newest_row_that_waits(shelf: Shelf) -> None:
    assert await shelf.put() == Enqueued(added=0, known=0, left_out=0, last_row=0)
    await shelf.set_apart("apart")
    await shelf.bury("dead")
    assert (await shelf.put()).last_row == 0
    newest = (await shelf.put("a", "b")).last_row
    await shelf.put("c", agent="other")
    assert (await shelf.put("a")).last_row == newest == (await shelf.put()).last_row


async def test_an_explicit_record_is_known_only_while_it_is_to_be_sent_for_this_agent(shelf: Shelf) -> None:
    await shelf.deliver("delivered")
    await shelf.bury("dead")
    await shelf.set_apart("apart")
    await shelf.put("waiting")
    assert (await shelf.put("waiting", "apart")).known == 2
    assert (await shelf.put("delivered", "dead")).added == 2
    assert (await shelf.put("waiting", "apart", agent="other")).added == 2
    newer = record("waiting", version=2)
    assert (await shelf.store.enqueue("codex", [newer], caps=ROOM, now_ms=NOW_MS)).added == 1


@pytest.mark.parametrize("caps", [Caps(records=3, bytes=10**6), Caps(records=10**6, bytes=120)])
async def test_explicit_records_that_do_not_all_fit_are_all_refused(shelf: Shelf, caps: Caps) -> None:
    await shelf.bury("dead")  # counts, too
    await shelf.put("a", agent="other", caps=caps)
    with pytest.raises(QueueFull):
        await shelf.put("b", "c", caps=caps)
    assert await shelf.names() == ["dead", "a"]
    assert (await shelf.put("a", "b", "b", agent="other", caps=caps)).added == 1
    with pytest.raises(QueueFull):
        await shelf.put("c", caps=caps)
    assert (await shelf.put("a", "b", agent="other", caps=caps)).known == 2


async def test_of_scanned_records_as_many_as_fit_go_in_by_order(shelf: Shelf) -> None:
    caps = Caps(records=10**6, bytes=120)
    await shelf.put("queued")
    done = await shelf.put("a", "queued", "b", "c", "d", caps=caps, scanned_for=PLATFORM)
    assert (done.added, done.known, done.left_out) == (2, 1, 2)
    assert await shelf.names() == ["queued", "a", "b"]
    full = await shelf.put("c", "d", caps=replace(caps, records=0), scanned_for=PLATFORM)
    assert (full.added, full.left_out) == (0, 2)


async def test_a_scanned_record_is_known_when_delivered_queued_for_anybody_or_dead(shelf: Shelf) -> None:
    await shelf.deliver("delivered")
    await shelf.bury("dead", agent="other")
    await shelf.set_apart("apart", agent="other")
    await shelf.put("waiting", agent="other")
    names = ("delivered", "dead", "apart", "waiting")
    store = shelf.store
    assert set(await store.known(PLATFORM, [mark(record(name)) for name in names])) == {0, 1, 2, 3}
    assert (await shelf.put(*names, scanned_for=PLATFORM)).known == 4

    newer = [record(name, version=2) for name in names]
    assert set(await store.known(PLATFORM, [mark(one) for one in newer])) == set()
    assert (await store.enqueue("codex", newer, caps=ROOM, now_ms=NOW_MS, scanned_for=PLATFORM)).added == 4


async def test_what_one_platform_has_another_has_not(shelf: Shelf) -> None:
    await shelf.deliver("a")
    marks = [mark(record("a"))]
    assert set(await shelf.store.known("https://elsewhere.test", marks)) == set()
    assert set(await shelf.store.known(PLATFORM, marks)) == {0}
    assert (await shelf.put("a", scanned_for="https://elsewhere.test")).added == 1


async def test_what_the_go_agent_delivered_is_known_by_its_own_fingerprint(shelf: Shelf) -> None:
    await shelf.store.import_core(
        replace(NOTHING, ledger=(("a", "then#1"),)), platform=PLATFORM, agent_id="codex", mark="m", now_ms=NOW_MS
    )
    same, later, without = (record("a", core_fingerprint=text) for text in ("then#1", "then#2", None))
    marks = [mark(one) for one in (same, later, without)]
    assert set(await shelf.store.known(PLATFORM, marks)) == {0}
    assert set(await shelf.store.known("https://elsewhere.test", marks)) == set()

    await shelf.store.enqueue("codex", [later], caps=ROOM, now_ms=NOW_MS, scanned_for=PLATFORM)
    await drain(shelf.store)
    # From now on the ledger knows what was really sent.
    other = replace(same, fingerprint="another version", core_fingerprint="then#2")
    assert set(await shelf.store.known(PLATFORM, [mark(other), mark(later)])) == {1}


async def test_what_many_callers_enqueue_at_once_is_all_there_and_each_is_told_of_its_own(shelf: Shelf) -> None:
    done = await asyncio.gather(*(shelf.put(f"r{n}", "shared", agent=f"agent{n % 3}") for n in range(60)))
    assert sum(one.added for one in done) == 63
    assert sum(one.known for one in done) == 57
    rows = {row.row: row.record_id for row in await shelf.store.rows()}
    assert sorted(rows.values()) == sorted([f"r{n}" for n in range(60)] + ["shared"] * 3)
    assert {rows[one.last_row] for one in done} <= set(rows.values())


# -- counts and rows ---------------------------------------------------------------------------------------------


async def test_counts_are_told_for_one_agent_and_for_all(shelf: Shelf) -> None:
    none = QueueCounts(queued=0, dead=0, bytes=0, oldest_queued_ms=None)
    assert await shelf.store.counts() == none
    await shelf.put("gone", now_ms=1)
    await drain(shelf.store)
    await shelf.bury("dead")
    await shelf.set_apart("apart")
    await shelf.put("a", "b", now_ms=NOW_MS + 5, size=100)
    await shelf.put("c", agent="other", now_ms=NOW_MS + 3)
    await shelf.put("d", agent="other", now_ms=NOW_MS + 4)
    store = await shelf.reopen()
    assert await store.counts("codex") == QueueCounts(queued=3, dead=1, bytes=280, oldest_queued_ms=NOW_MS)
    assert await store.counts("other") == QueueCounts(queued=2, dead=0, bytes=80, oldest_queued_ms=NOW_MS + 3)
    assert await store.counts() == QueueCounts(queued=5, dead=1, bytes=360, oldest_queued_ms=NOW_MS)
    assert await store.counts("nobody") == none


async def test_the_unsettled_are_the_agents_waiting_rows_up_to_one(shelf: Shelf) -> None:
    await shelf.set_apart("apart")
    await shelf.bury("dead")
    first = (await shelf.put("a")).last_row
    await shelf.put("x", agent="other")
    last = (await shelf.put("b", "c")).last_row
    store = shelf.store
    assert [await store.unsettled("codex", up_to_row=row) for row in (0, first, last, last + 9)] == [0, 1, 3, 3]
    assert await store.unsettled("nobody", up_to_row=last) == 0
    batch = await shelf.take(max_records=1)
    assert await store.unsettled("codex", up_to_row=first) == 1  # on its way, not there yet
    await shelf.note(batch, acknowledged())
    assert [await store.unsettled("codex", up_to_row=row) for row in (first, last)] == [0, 2]


async def test_rows_are_listed_by_number_state_and_page(shelf: Shelf) -> None:
    (dead,) = await shelf.bury("dead")
    (apart,) = await shelf.set_apart("apart")
    await shelf.put("a", "b", "c", agent="other")
    store = shelf.store
    assert await shelf.names() == ["dead", "apart", "a", "b", "c"]
    assert [row.row for row in await store.rows(state=RowState.DEAD)] == [dead]
    assert [row.row for row in await store.rows(state=RowState.APART)] == [apart]
    assert [row.record_id for row in await store.rows(state=RowState.WAITING, limit=2)] == ["a", "b"]
    assert [row.record_id for row in await store.rows(after=apart, limit=2)] == ["a", "b"]
    (refused,) = await store.rows(limit=1)
    assert (refused.agent_id, refused.reason, refused.status, refused.answer) == ("codex", "refused", 422, "no")
    assert refused.body == record("dead").body


async def test_the_next_row_is_due_now_or_when_the_first_one_apart_is(shelf: Shelf) -> None:
    store = shelf.store
    assert await store.next_due_ms() is None
    await shelf.bury("dead")
    assert await store.next_due_ms() is None
    await shelf.set_apart("late", due_ms=NOW_MS + 900)
    await shelf.set_apart("soon", due_ms=NOW_MS + 300, agent="other")
    assert await store.next_due_ms() == NOW_MS + 300
    await shelf.put("a")
    assert await store.next_due_ms() == 0


# -- dead letters ------------------------------------------------------------------------------------------------


async def test_dead_letters_go_back_to_their_place_in_the_order(shelf: Shelf) -> None:
    rows = await shelf.bury("a", "b")
    (kept,) = await shelf.bury("c")
    (waiting,) = [(await shelf.put("d")).last_row]
    assert await shelf.store.retry_dead([*rows, waiting, 10**9], now_ms=NOW_MS) == 2
    states = [(row.record_id, row.state, row.reason, row.status, row.answer) for row in await shelf.store.rows()]
    assert states == [
        ("a", RowState.WAITING, None, None, None),
        ("b", RowState.WAITING, None, None, None),
        ("c", RowState.DEAD, "refused", 422, "no"),
        ("d", RowState.WAITING, None, None, None),
    ]
    assert (await shelf.take()).record_ids == ("a", "b", "d")
    assert await shelf.store.retry_dead(None, now_ms=NOW_MS) == 1
    assert await shelf.store.retry_dead([kept], now_ms=NOW_MS) == 0


async def test_dropped_dead_letters_are_gone_and_no_scan_brings_that_version_back(shelf: Shelf) -> None:
    rows = await shelf.bury("a", "b", "c")
    (waiting,) = [(await shelf.put("d")).last_row]
    assert await shelf.store.drop_dead([rows[0], waiting]) == 1
    assert await shelf.names() == ["b", "c", "d"]
    assert await shelf.store.drop_dead(None) == 2
    assert await shelf.names() == ["d"]
    for platform in (PLATFORM, "https://elsewhere.test"):
        assert (await shelf.put("a", "b", "c", scanned_for=platform)).known == 3
    newer = record("a", version=2)
    assert (await shelf.store.enqueue("codex", [newer], caps=ROOM, now_ms=NOW_MS, scanned_for=PLATFORM)).added == 1
    assert (await shelf.put("b")).added == 1


async def test_the_ledger_counts_what_was_delivered_once_for_each_record(shelf: Shelf) -> None:
    await shelf.deliver("a", "b")
    await shelf.deliver("b", "c")
    await shelf.bury("dead")
    await shelf.store.drop_dead(None)
    assert await shelf.store.ledger_size() == 3


# -- beginning and end -------------------------------------------------------------------------------------------


async def test_a_store_gets_ready_and_says_that_it_is_well(shelf: Shelf) -> None:
    await shelf.store.wait_ready()
    await shelf.store.wait_uncontested()
    assert shelf.store.health.state is StoreState.OK


CALLS: list[Callable[[Store], Awaitable[object]]] = [
    lambda store: store.wait_ready(),
    lambda store: store.wait_uncontested(),
    lambda store: store.enqueue("a", [record("a")], caps=ROOM, now_ms=1),
    lambda store: store.known(PLATFORM, [("a", "b", None)]),
    lambda store: store.claim(PLATFORM, busy=(), max_records=1, max_bytes=1, now_ms=1),
    lambda store: store.gate(PLATFORM),
    lambda store: store.set_gate(PLATFORM, Gate(state=GateState.PARKED)),
    lambda store: store.next_due_ms(),
    lambda store: store.unsettled("a", up_to_row=1),
    lambda store: store.counts(),
    lambda store: store.ledger_size(),
    lambda store: store.rows(),
    lambda store: store.retry_dead(None, now_ms=1),
    lambda store: store.drop_dead(None),
    lambda store: store.replace_context(PLATFORM, "a", [], entry=ENTRY),
    lambda store: store.merge_context(PLATFORM, "a", [], entry=ENTRY),
    lambda store: store.context(PLATFORM, "a", now_ms=1),
    lambda store: store.times("a"),
    lambda store: store.history("pull"),
    lambda store: store.import_core(NOTHING, platform=PLATFORM, agent_id="a", mark="m", now_ms=1),
    lambda store: store.imported("m"),
]


async def test_every_call_after_the_end_is_refused_and_changes_nothing(shelf: Shelf) -> None:
    await shelf.store.close()
    for call in CALLS:
        with pytest.raises(StoreUnavailable):
            await call(shelf.store)
    store = await shelf.reopen()
    assert (await store.counts(), await store.gate(PLATFORM)) == (
        QueueCounts(queued=0, dead=0, bytes=0, oldest_queued_ms=None),
        Gate(),
    )
    assert not await store.imported("m")


async def test_a_store_may_be_closed_twice_and_at_once(shelf: Shelf) -> None:
    await asyncio.gather(shelf.store.close(), shelf.store.close())
    await shelf.store.close()


async def test_what_was_asked_for_before_the_end_is_done(shelf: Shelf) -> None:
    async with asyncio.TaskGroup() as tasks:
        done = [tasks.create_task(shelf.put(f"r{n}")) for n in range(30)]
        await asyncio.sleep(0)
        tasks.create_task(shelf.store.close())
    assert all(one.result().added == 1 for one in done)
    await shelf.reopen()
    assert len(await shelf.names()) == 30


async def test_a_refusal_is_no_trouble_for_what_was_asked_for_at_the_same_time(shelf: Shelf) -> None:
    tight = Caps(records=5, bytes=10**6)
    done = await asyncio.gather(
        shelf.put("a", "b", caps=tight),
        shelf.put("c", "d", "e", "f", caps=tight),
        shelf.put("g", "h", caps=tight),
        return_exceptions=True,
    )
    assert [type(one) for one in done] == [Enqueued, QueueFull, Enqueued]
    assert await shelf.names() == ["a", "b", "g", "h"]
    batch = await shelf.take(max_records=1)
    await shelf.note(batch, Dead(reason="r", status=400, answer=""))
    assert (await shelf.store.counts()).dead == 1
