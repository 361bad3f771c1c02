"""What a store remembers besides the outbox: context, history, times, the Go agent's state. Any engine must pass."""

import json
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

import pytest

from plugin.store.interface import AgentTimes, CachedContext, ContextRow, CoreState, HistoryEntry, RowState, Store
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

PULL = HistoryEntry(agent_id=AGENT, fleet_node_id=7, direction="pull", payload_bytes=10, items=1, at_ms=NOW_MS)
NOTHING = CachedContext(rows=(), fetched_ms=None)


@pytest.fixture(params=sorted(ENGINES))
def open_engine(request: pytest.FixtureRequest) -> OpenStore:
    return ENGINES[request.param]


@pytest.fixture
async def store(open_engine: OpenStore, tmp_path: Path) -> AsyncGenerator[Store]:
    opened = open_engine(tmp_path / "state")
    yield opened
    await opened.close()


def row(name: str, version: int = 1, *, expires_ms: int | None = None) -> ContextRow:
    return ContextRow(id=name, body=json.dumps([name, version]).encode(), expires_ms=expires_ms)


async def cached(store: Store, *, now_ms: int = NOW_MS) -> list[tuple[str, int]]:
    found = await store.context(PLATFORM, AGENT, now_ms=now_ms)
    return [tuple(json.loads(body)) for body in found.rows]


async def test_context_that_was_never_pulled_is_empty_and_has_no_time(store: Store) -> None:
    assert await store.context(PLATFORM, AGENT, now_ms=NOW_MS) == NOTHING


async def test_a_full_pull_replaces_the_cache(open_engine: OpenStore, tmp_path: Path) -> None:
    store = open_engine(tmp_path)
    await store.replace_context(PLATFORM, AGENT, [row("a"), row("b")], entry=PULL)
    await store.replace_context(PLATFORM, AGENT, [row("c"), row("b", 2)], entry=replace(PULL, at_ms=NOW_MS + 9))
    await store.close()
    store = open_engine(tmp_path)
    assert await cached(store) == [("c", 1), ("b", 2)]
    assert (await store.context(PLATFORM, AGENT, now_ms=NOW_MS)).fetched_ms == NOW_MS + 9
    await store.replace_context(PLATFORM, AGENT, [], entry=PULL)
    assert await store.context(PLATFORM, AGENT, now_ms=NOW_MS) == CachedContext(rows=(), fetched_ms=NOW_MS)
    await store.close()


async def test_a_partial_pull_comes_before_what_was_there(store: Store) -> None:
    await store.replace_context(PLATFORM, AGENT, [row("a"), row("b"), row("c")], entry=PULL)
    await store.merge_context(PLATFORM, AGENT, [row("d"), row("b", 2)], entry=PULL)
    assert await cached(store) == [("d", 1), ("b", 2), ("a", 1), ("c", 1)]


async def test_of_two_rows_with_one_id_the_newer_one_stays(store: Store) -> None:
    await store.replace_context(PLATFORM, AGENT, [row("a", 3), row("b"), row("a", 2)], entry=PULL)
    assert await cached(store) == [("a", 3), ("b", 1)]
    await store.merge_context(PLATFORM, AGENT, [row("b", 3), row("b", 2)], entry=PULL)
    assert await cached(store) == [("b", 3), ("a", 3)]


async def test_only_the_newest_rows_are_kept(store: Store) -> None:
    await store.replace_context(PLATFORM, AGENT, [row("a"), row("b"), row("c")], entry=PULL, keep=2)
    assert await cached(store) == [("a", 1), ("b", 1)]
    await store.merge_context(PLATFORM, AGENT, [row("d")], entry=PULL, keep=2)
    assert await cached(store) == [("d", 1), ("a", 1)]


async def test_rows_that_expired_are_not_served(store: Store) -> None:
    await store.replace_context(PLATFORM, AGENT, [row("a", expires_ms=NOW_MS), row("b")], entry=PULL)
    assert await cached(store, now_ms=NOW_MS - 1) == [("a", 1), ("b", 1)]
    assert await cached(store, now_ms=NOW_MS) == [("b", 1)]


async def test_each_platform_and_agent_has_a_cache_of_its_own(store: Store) -> None:
    await store.replace_context(PLATFORM, AGENT, [row("a")], entry=PULL)
    await store.replace_context(OTHER_PLATFORM, AGENT, [row("b")], entry=PULL)
    await store.replace_context(PLATFORM, "other", [row("a", 2)], entry=PULL)
    await store.replace_context(OTHER_PLATFORM, AGENT, [], entry=PULL)
    assert await cached(store) == [("a", 1)]


async def test_a_pull_is_in_the_history_and_in_the_agents_times(store: Store) -> None:
    await store.replace_context(PLATFORM, AGENT, [], entry=PULL)
    later = replace(PULL, fleet_node_id=None, at_ms=NOW_MS + 5)
    await store.merge_context(PLATFORM, AGENT, [], entry=later)
    assert await store.history("pull") == (PULL, later)
    assert await store.history("push") == ()
    assert await store.times(AGENT) == AgentTimes(last_push_ms=None, last_pull_ms=NOW_MS + 5)
    assert await store.times("nobody") == AgentTimes(last_push_ms=None, last_pull_ms=None)


async def test_the_last_hundred_entries_of_each_direction_are_kept(store: Store) -> None:
    await put(store, "a")
    await acknowledge(store, await take(store))
    for number in range(103):
        await store.replace_context(PLATFORM, AGENT, [], entry=replace(PULL, at_ms=number))
    assert [entry.at_ms for entry in await store.history("pull")] == list(range(3, 103))
    assert len(await store.history("push")) == 1


OLD_PULL = HistoryEntry(agent_id=AGENT, fleet_node_id=None, direction="pull", payload_bytes=1, items=1, at_ms=10)
CORE = CoreState(
    queue=((AGENT, record("queued", core="tuesday#2"), 100), ("other", record("second"), 200)),
    ledger=(("sent", "monday#1"),),
    context=(row("a"), row("b")),
    history=(OLD_PULL,),
    times=AgentTimes(last_push_ms=8, last_pull_ms=9),
)


async def take_over(store: Store, state: CoreState = CORE, *, mark: str = "core") -> bool:
    return await store.import_core(state, platform=PLATFORM, agent_id=AGENT, mark=mark, now_ms=NOW_MS)


async def test_the_go_agents_state_is_imported_once(open_engine: OpenStore, tmp_path: Path) -> None:
    store = open_engine(tmp_path)
    assert not await store.imported("core")
    assert await take_over(store)
    assert not await take_over(store)
    await store.close()
    store = open_engine(tmp_path)
    assert await store.imported("core")
    assert not await take_over(store)
    rows = await store.rows(state=RowState.WAITING)
    assert [(row.agent_id, row.record_id, row.queued_ms) for row in rows] == [
        (AGENT, "queued", 100),
        ("other", "second", 200),
    ]
    assert await cached(store) == [("a", 1), ("b", 1)]
    assert (await store.context(PLATFORM, AGENT, now_ms=NOW_MS)).fetched_ms == 9
    assert await store.history("pull") == (OLD_PULL,)
    assert await store.times(AGENT) == AgentTimes(last_push_ms=8, last_pull_ms=9)
    await store.close()


async def test_what_is_queued_already_is_not_imported_twice(store: Store) -> None:
    await put(store, "queued")
    await take_over(store)
    assert await waiting(store) == ["queued", "second"]


async def test_an_imported_ledger_compares_core_fingerprints(store: Store) -> None:
    await take_over(store)
    done = await scan(store, record("sent", core="monday#1"), record("sent", 2, core="monday#2"), record("sent", 3))
    assert (done.known, done.added) == (1, 2)
    assert await store.ledger_size() == 1
    assert (await scan(store, record("sent", core="monday#1"), platform=OTHER_PLATFORM)).added == 1


async def test_after_a_delivery_the_ledger_compares_real_fingerprints(store: Store) -> None:
    await take_over(store, replace(CORE, queue=()))
    await put(store, "sent")
    await acknowledge(store, await take(store))
    done = await scan(store, record("sent", 2, core="monday#1"), record("sent"))
    assert (done.known, done.added) == (1, 1)


async def test_what_we_did_ourselves_outlasts_an_import(store: Store) -> None:
    await put(store, "sent")
    await acknowledge(store, await take(store), now_ms=NOW_MS + 1)
    await store.replace_context(PLATFORM, AGENT, [row("ours")], entry=PULL)
    await take_over(store)
    assert await cached(store) == [("ours", 1)]
    assert await store.times(AGENT) == AgentTimes(last_push_ms=NOW_MS + 1, last_pull_ms=NOW_MS)
    assert (await scan(store, record("sent", 2, core="monday#1"))).added == 1
