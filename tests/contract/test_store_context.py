"""What any engine of the store promises of context, history and times, and of taking over the Go agent's state."""

from plugin.store.interface import AgentTimes, CachedContext, ContextRow, CoreState, HistoryEntry, RowState
from tests.support.store import NOW_MS, PLATFORM, Shelf, record

ELSEWHERE = "https://elsewhere.test"


def row(name: str, *, version: int = 1, expires_ms: int | None = None) -> ContextRow:
    return ContextRow(id=name, body=f'{{"id": "{name}", "v": {version}}}'.encode(), expires_ms=expires_ms)


def pulled(at_ms: int = NOW_MS, *, agent: str = "codex", items: int = 1) -> HistoryEntry:
    return HistoryEntry(agent_id=agent, fleet_node_id=3, direction="pull", payload_bytes=50, items=items, at_ms=at_ms)


async def bodies(shelf: Shelf, *, platform: str = PLATFORM, agent: str = "codex", now_ms: int = NOW_MS) -> list[bytes]:
    return list((await shelf.store.context(platform, agent, now_ms=now_ms)).rows)


def of(*rows: ContextRow) -> list[bytes]:
    return [one.body for one in rows]


# -- context -----------------------------------------------------------------------------------------------------


async def test_context_that_was_never_pulled_is_empty_and_undated(shelf: Shelf) -> None:
    assert await shelf.store.context(PLATFORM, "codex", now_ms=NOW_MS) == CachedContext(rows=(), fetched_ms=None)


async def test_a_full_pull_replaces_the_cache_and_is_noted(shelf: Shelf) -> None:
    await shelf.store.replace_context(PLATFORM, "codex", [row("a"), row("b")], entry=pulled(1))
    newer = [row("c"), row("b", version=2), row("d")]
    await shelf.store.replace_context(PLATFORM, "codex", newer, entry=pulled())
    store = await shelf.reopen()
    assert await bodies(shelf) == of(*newer)
    assert (await store.context(PLATFORM, "codex", now_ms=NOW_MS)).fetched_ms == NOW_MS
    assert await store.history("pull") == (pulled(1), pulled())
    assert await store.times("codex") == AgentTimes(last_push_ms=None, last_pull_ms=NOW_MS)
    await store.replace_context(PLATFORM, "codex", [], entry=pulled())
    assert await bodies(shelf) == []


async def test_a_merge_puts_new_rows_before_the_cached_and_the_same_id_replaces(shelf: Shelf) -> None:
    await shelf.store.replace_context(PLATFORM, "codex", [row("a"), row("b"), row("c")], entry=pulled(1))
    await shelf.store.merge_context(PLATFORM, "codex", [row("d"), row("b", version=2)], entry=pulled())
    assert await bodies(shelf) == of(row("d"), row("b", version=2), row("a"), row("c"))
    await shelf.store.merge_context(PLATFORM, "codex", [row("e")], entry=pulled(NOW_MS + 1))
    assert await bodies(shelf) == of(row("e"), row("d"), row("b", version=2), row("a"), row("c"))
    assert (await shelf.store.context(PLATFORM, "codex", now_ms=NOW_MS)).fetched_ms == NOW_MS + 1
    assert [entry.at_ms for entry in await shelf.store.history("pull")] == [1, NOW_MS, NOW_MS + 1]


async def test_of_two_rows_with_one_id_the_newer_stays(shelf: Shelf) -> None:
    await shelf.store.replace_context(PLATFORM, "codex", [row("a", version=2), row("b"), row("a")], entry=pulled())
    assert await bodies(shelf) == of(row("a", version=2), row("b"))


async def test_a_merge_keeps_so_many_of_the_newest(shelf: Shelf) -> None:
    await shelf.store.merge_context(PLATFORM, "codex", [row(f"old{n}") for n in range(5)], entry=pulled(), keep=4)
    assert await bodies(shelf) == of(*(row(f"old{n}") for n in range(4)))
    await shelf.store.merge_context(PLATFORM, "other", [row("kept")], entry=pulled())
    await shelf.store.merge_context(PLATFORM, "codex", [row("new"), row("old3")], entry=pulled(), keep=4)
    assert await bodies(shelf) == of(row("new"), row("old3"), row("old0"), row("old1"))
    assert await bodies(shelf, agent="other") == of(row("kept"))


async def test_a_merge_keeps_a_thousand_unless_told_otherwise(shelf: Shelf) -> None:
    await shelf.store.merge_context(PLATFORM, "codex", [row(f"r{n}") for n in range(1002)], entry=pulled())
    assert len(await bodies(shelf)) == 1000


async def test_expired_rows_are_not_served(shelf: Shelf) -> None:
    rows = [row("gone", expires_ms=NOW_MS), row("stays", expires_ms=NOW_MS + 1), row("for ever")]
    await shelf.store.replace_context(PLATFORM, "codex", rows, entry=pulled())
    assert await bodies(shelf) == of(*rows[1:])
    assert await bodies(shelf, now_ms=NOW_MS + 1) == of(rows[2])


async def test_each_platform_and_each_agent_has_a_cache_of_its_own(shelf: Shelf) -> None:
    places = [(PLATFORM, "codex"), (PLATFORM, "other"), (ELSEWHERE, "codex")]
    for version, (platform, agent) in enumerate(places):
        await shelf.store.replace_context(platform, agent, [row("a", version=version)], entry=pulled(agent=agent))
    await shelf.store.replace_context(PLATFORM, "other", [], entry=pulled(agent="other"))
    assert await bodies(shelf) == of(row("a", version=0))
    assert await bodies(shelf, agent="other") == []
    assert await bodies(shelf, platform=ELSEWHERE) == of(row("a", version=2))


# -- history and times -------------------------------------------------------------------------------------------


async def test_the_last_hundred_entries_of_each_direction_are_kept_oldest_first(shelf: Shelf) -> None:
    await shelf.deliver("pushed")
    for at_ms in range(103):
        await shelf.store.merge_context(PLATFORM, "codex", [], entry=pulled(at_ms))
    assert [entry.at_ms for entry in await shelf.store.history("pull")] == list(range(3, 103))
    assert [entry.direction for entry in await shelf.store.history("push")] == ["push"]


async def test_times_are_each_agents_own(shelf: Shelf) -> None:
    await shelf.deliver("a")
    await shelf.store.replace_context(PLATFORM, "other", [], entry=pulled(5, agent="other"))
    assert await shelf.store.times("codex") == AgentTimes(last_push_ms=NOW_MS, last_pull_ms=None)
    assert await shelf.store.times("other") == AgentTimes(last_push_ms=None, last_pull_ms=5)
    assert await shelf.store.times("nobody") == AgentTimes(last_push_ms=None, last_pull_ms=None)


# -- what the Go agent left --------------------------------------------------------------------------------------

LEFT = CoreState(
    queue=(
        ("codex", record("queued", core_fingerprint="then#1"), 10),
        ("other", record("theirs"), 11),
        ("codex", record("second"), 12),
    ),
    ledger=(("delivered", "then#2"), ("both", "then#3")),
    context=(row("c1"), row("c2")),
    history=(pulled(1), pulled(2)),
    times=AgentTimes(last_push_ms=20, last_pull_ms=21),
)


async def take_over(shelf: Shelf, left: CoreState = LEFT, *, mark: str = "core") -> bool:
    return await shelf.store.import_core(left, platform=PLATFORM, agent_id="codex", mark=mark, now_ms=NOW_MS)


async def test_the_go_agents_state_is_imported_once(shelf: Shelf) -> None:
    assert not await shelf.store.imported("core")
    assert await take_over(shelf)
    store = await shelf.reopen()
    assert await store.imported("core")
    assert not await store.imported("another")
    assert not await take_over(shelf)
    rows = [(one.agent_id, one.record_id, one.queued_ms, one.state) for one in await store.rows()]
    assert rows == [
        ("codex", "queued", 10, RowState.WAITING),
        ("other", "theirs", 11, RowState.WAITING),
        ("codex", "second", 12, RowState.WAITING),
    ]
    assert set(await store.known(PLATFORM, [("delivered", "x", "then#2"), ("both", "x", "then#9")])) == {0}
    assert await store.ledger_size() == 2
    assert await store.context(PLATFORM, "codex", now_ms=NOW_MS) == CachedContext(
        rows=tuple(of(*LEFT.context)), fetched_ms=21
    )
    assert await store.history("pull") == LEFT.history
    assert await store.times("codex") == LEFT.times
    assert (await shelf.take()).record_ids == ("queued", "second")


async def test_an_import_leaves_what_this_store_knows_better(shelf: Shelf) -> None:
    await shelf.deliver("both")
    await shelf.put("queued")
    await shelf.store.replace_context(PLATFORM, "codex", [row("mine")], entry=pulled())
    assert await take_over(shelf)
    assert await shelf.names() == ["queued", "theirs", "second"]
    assert await bodies(shelf) == of(row("mine"))
    both = record("both")
    assert set(await shelf.store.known(PLATFORM, [("both", both.fingerprint, None), ("both", "x", "then#3")])) == {0}
    assert await shelf.store.times("codex") == AgentTimes(last_push_ms=NOW_MS, last_pull_ms=NOW_MS)


async def test_context_without_a_time_is_dated_at_its_import(shelf: Shelf) -> None:
    undated = CoreState(
        queue=(), ledger=(), context=(row("c"),), history=(), times=AgentTimes(last_push_ms=None, last_pull_ms=None)
    )
    assert await take_over(shelf, undated)
    assert (await shelf.store.context(PLATFORM, "codex", now_ms=NOW_MS)).fetched_ms == NOW_MS
    assert await take_over(shelf, undated, mark="another")
