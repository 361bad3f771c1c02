"""`agentic.sync.pull`: fresh rows when there are any, the kept ones otherwise."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from plugin.errors import BadParams, StoreUnavailable
from plugin.loopback import faults
from plugin.loopback.faults import Cut, Delay, Hang, Reset, RetryAfter, Status
from plugin.store.interface import Store
from plugin.sync.platform import Platform, Scope
from plugin.sync.pull import Pull, PullParams, PullResult, recognise
from tests.support.clock import FakeClock
from tests.support.outcomes import answer
from tests.support.sync import TOKEN, BrittlePlatform, World, configuration, world
from tests.support.trouble import TroubledStore


def row(name: object, *, created: str = "2026-01-01T00:00:00Z", **more: object) -> dict[str, object]:
    return {"id": name, "type": "observation", "content": "x", "created_at": created, **more}


async def pull(one: World, **given: object) -> PullResult:
    return await one.service.pull(msgspec.convert(given, PullParams))


def ids(result: PullResult) -> list[Any]:
    return [each["id"] for each in result.context]


def said(body: object, status: int = 200) -> Status:
    return Status(code=status, body=json.dumps(body).encode())


async def test_fresh_rows_are_answered_and_kept(tmp_path: Path) -> None:
    clock = FakeClock()
    async with BrittlePlatform(clock=clock) as platform:
        platform.context_rows = [row("a"), row("b", created="2026-01-02T00:00:00Z")]
        async with world(tmp_path, platform=platform, clock=clock) as one:
            fresh = await pull(one)
            assert (fresh.success, fresh.count, fresh.stale) == (True, 2, False)
            assert ids(fresh) == ["b", "a"]
            assert fresh.context[1] == row("a")
            assert fresh.fetched_at == "2023-11-14T22:13:20.000Z"
        await platform.down()
        async with world(tmp_path, platform=platform, clock=clock) as one:
            kept = await pull(one)
            assert (kept.success, kept.stale, kept.fetched_at) == (True, True, fresh.fetched_at)
            assert kept.context == fresh.context


async def test_a_cache_that_was_never_filled_is_an_empty_list(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        await one.platform.down()
        assert msgspec.to_builtins(await pull(one)) == {
            "success": True,
            "count": 0,
            "context": [],
            "stale": True,
            "fetched_at": None,
        }


@pytest.mark.parametrize(
    "fault",
    [
        Status(code=500),
        Status(code=422),
        faults.unauthorised(),
        RetryAfter(seconds=9),
        faults.redirect("http://127.0.0.1:9/"),
        Reset(),
        Cut(),
        faults.login_page(),
        faults.garbage(),
        faults.other_json(),
        said([row("x")]),
        said({"error": "x"}),
        said({"data": None}),
        said({"data": {"rows": []}}),
        said({"data": ["text", 7]}),
    ],
)
async def test_what_holds_no_list_of_rows_leaves_the_cache_alone(tmp_path: Path, fault: faults.Kind) -> None:
    async with world(tmp_path) as one:
        one.platform.context_rows = [row("a")]
        await pull(one)
        one.platform.menu.add(fault, times=None, route="context")
        result = await pull(one)
        assert (result.success, ids(result), result.stale) == (True, ["a"], True)
        one.platform.menu.clear()
        assert ids(await pull(one)) == ["a"]


async def test_a_truly_empty_answer_empties_the_cache(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.platform.context_rows = [row("a")]
        await pull(one)
        one.platform.context_rows = []
        assert not (await pull(one)).stale
        await one.platform.down()
        assert (await pull(one)).context == []


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ({"data": [row("a")], "items": [row("b")]}, ["a"]),
        ({"data": {"context": [row("a")]}}, ["a"]),
        ({"data": {"context": [], "items": [row("a")]}}, ["a"]),
        ({"data": {"memories": [row("a")]}, "context": [row("b")]}, ["a"]),
        ({"context": [row("a")]}, ["a"]),
        ({"data": {}, "memories": [row("a")]}, ["a"]),
        ({"data": []}, []),
        ({"items": []}, []),
        ({"data": [row("a"), 7, None, "x"]}, ["a"]),
        ({"data": ["x"], "items": [row("a")]}, ["a"]),
    ],
)
def test_rows_are_found_where_platforms_put_them(body: object, found: list[str]) -> None:
    rows = recognise(answer(200, json.dumps(body).encode()))
    assert rows is not None
    assert [each["id"] for each in rows] == found


async def test_a_since_pull_merges_and_asks_for_that_time(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.platform.context_rows = [row("a"), row("b")]
        await pull(one)
        one.platform.context_rows = [row("b", created="2026-02-02T00:00:00Z", content="new")]
        since = "2026-02-01T00:00:00+01:00"
        fresh = await pull(one, since=since)
        assert ids(fresh) == ["b"]
        assert one.platform.arrivals[-1].query == {"agent_id": "codex", "since": since}
        await one.platform.down()
        kept = await pull(one)
        assert ids(kept) == ["b", "a"]
        assert kept.context[0]["content"] == "new"


async def test_expired_rows_are_not_served(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        rows = [
            row("over", expires_at="2023-01-01T00:00:00Z"),
            row("soon", expires_at="2023-11-14T22:14:00Z"),
            row("never", expires_at="0001-01-01T00:00:00Z"),
            row("odd", expires_at="some day"),
        ]
        one.platform.menu.add(said({"data": rows}), route="context")
        assert ids(await pull(one)) == ["soon", "never", "odd"]
        await one.platform.down()
        assert ids(await pull(one)) == ["soon", "never", "odd"]
        await one.clock.advance(60)
        assert ids(await pull(one)) == ["never", "odd"]


async def test_at_most_a_thousand_rows_are_kept(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.platform.menu.add(said({"data": [row(number) for number in range(1_005)]}), route="context")
        assert (await pull(one)).count == 1_000
        await one.platform.down()
        assert ids(await pull(one)) == list(range(1_000))


async def test_rows_without_an_id_are_kept_too(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.platform.menu.add(said({"data": [{"content": "x"}, {"content": "y"}]}), route="context")
        await pull(one)
        await one.platform.down()
        assert (await pull(one)).context == [{"content": "x"}, {"content": "y"}]


async def test_each_platform_and_agent_has_a_cache_of_its_own(tmp_path: Path) -> None:
    async with world(tmp_path) as one, BrittlePlatform() as other:
        one.platform.context_rows = [row("a")]
        await pull(one)
        await one.platform.down()
        assert (await pull(one, agent_id="other")).context == []
        await other.down()
        await one.service.reconfigure(configuration(tmp_path, other.url))
        assert (await pull(one)).context == []
        await one.service.reconfigure(configuration(tmp_path, one.platform.url))
        assert ids(await pull(one)) == ["a"]


async def test_without_a_token_nothing_is_asked(tmp_path: Path) -> None:
    async with world(tmp_path, platform_settings={"api_key": None, "api_key_file": str(tmp_path / "none")}) as one:
        result = await pull(one)
        assert (result.success, result.context, result.stale) == (True, [], True)
        assert one.platform.arrivals == []


async def test_a_token_that_came_meanwhile_is_seen_and_sending_starts(tmp_path: Path) -> None:
    file = tmp_path / "brain.key"
    async with world(tmp_path, platform_settings={"api_key": None, "api_key_file": str(file)}) as one:
        await one.push("a")
        await one.quiet()
        file.write_text(TOKEN, encoding="utf-8")
        assert not (await pull(one)).stale
        await one.until_drained()


async def test_a_rate_limit_holds_for_pulls_too(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.platform.menu.add(RetryAfter(seconds=30), route="sync")
        await one.push("a")
        seen = len(one.platform.arrivals)
        assert (await pull(one)).stale
        assert len(one.platform.arrivals) == seen
        await one.clock.advance(31)
        assert not (await pull(one)).stale


async def test_a_closed_gate_is_no_reason_not_to_ask(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.platform.menu.add(Status(code=500), route="sync")
        await one.push("a")
        assert not one.open
        assert not (await pull(one)).stale


async def test_a_platform_that_hangs_is_waited_for_a_moment_when_there_is_a_cache(tmp_path: Path) -> None:
    async with world(tmp_path) as one, impatience(one, patience_s=0.02) as hurried:
        one.platform.context_rows = [row("a")]
        await pull(one)
        one.platform.menu.add(Hang(), times=None, route="context")
        async with asyncio.timeout(one.config.platform.timeout_s / 2):
            result = await hurried(PullParams())
        assert (ids(result), result.stale) == (["a"], True)


async def test_what_a_slow_platform_answers_after_all_is_kept_for_the_next_pull(tmp_path: Path) -> None:
    async with world(tmp_path) as one, impatience(one, patience_s=0) as hurried:
        one.platform.context_rows = [row("a")]
        await pull(one)
        one.platform.context_rows = [row("b")]
        late = asyncio.Event()
        one.platform.menu.add(Delay(until=late), times=1, route="context")
        results = await asyncio.gather(hurried(PullParams()), hurried(PullParams()))
        assert [(ids(result), result.stale) for result in results] == [(["a"], True)] * 2
        await one.platform.wait_until(lambda server: len(server.arrivals) == 2)
        one.platform.menu.add(Hang(), times=None, route="context")
        late.set()
        while not await kept(one, "b"):
            await one.quiet()
        assert len(one.platform.arrivals) == 2


async def test_a_question_that_nobody_waits_for_is_given_up_at_the_end(tmp_path: Path) -> None:
    async with world(tmp_path) as one, impatience(one, patience_s=0) as hurried:
        await pull(one)
        one.platform.menu.add(Hang(), times=None, route="context")
        for asked in (2, 2, 3):
            if asked == 3:
                await hurried.finish()
            assert (await hurried(PullParams())).stale
            await one.platform.wait_until(lambda server, asked=asked: len(server.arrivals) == asked)


async def test_a_platform_that_is_slow_is_waited_for_when_there_is_no_cache(tmp_path: Path) -> None:
    async with world(tmp_path) as one, impatience(one, patience_s=0) as hurried:
        one.platform.context_rows = [row("a")]
        one.platform.menu.add(Delay(seconds=10), times=None, route="context")
        asking = one.tasks.create_task(hurried(PullParams()))
        await one.platform.wait_until(lambda server: len(server.arrivals) == 1)
        await one.clock.advance(10)
        assert not (await asking).stale


async def test_a_cache_that_cannot_be_read_is_no_cache(tmp_path: Path) -> None:
    def broken(store: Store) -> Store:
        troubled = TroubledStore(store)
        troubled.full = {"context"}
        return troubled.as_store()

    async with world(tmp_path, wrap=broken) as one:
        one.platform.context_rows = [row("a")]
        assert ids(await pull(one)) == ["a"]


@asynccontextmanager
async def impatience(one: World, *, patience_s: float) -> AsyncGenerator[Pull]:
    """Make a pull with hardly any patience, on connections of its own."""
    scope = Scope(one.config, Platform.of(one.config, {}))
    pull = Pull(store=one.store, sender=one.service.sender, scope=scope, clock=one.clock, patience_s=patience_s)
    try:
        yield pull
    finally:
        await pull.finish()
        await scope.platform.retire()


async def kept(one: World, name: str) -> bool:
    """Return whether the cache holds just this row."""
    cached = await one.store.context(one.platform.url, one.config.agent_id, now_ms=0)
    return [json.loads(body)["id"] for body in cached.rows] == [name]


async def test_what_keeps_context_from_coming_is_logged_once_and_its_end_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "plugin.sync.pull")
    async with world(tmp_path) as one:
        for fault in (faults.NotHttp(), faults.login_page()):
            one.platform.menu.add(fault, times=3)
            for _ in range(3):
                await pull(one)
        await pull(one)
        await pull(one)
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING", "INFO"]


async def test_fresh_rows_are_answered_even_if_they_cannot_be_kept(tmp_path: Path) -> None:
    def full(store: Store) -> Store:
        troubled = TroubledStore(store)
        troubled.full = {"replace_context", "merge_context"}
        return troubled.as_store()

    async with world(tmp_path, wrap=full) as one:
        one.platform.context_rows = [row("a")]
        assert ids(await pull(one)) == ["a"]
        assert ids(await pull(one, since="2025-01-01T00:00:00Z")) == ["a"]


async def test_neither_platform_nor_store_is_an_error(tmp_path: Path) -> None:
    def broken(store: Store) -> Store:
        troubled = TroubledStore(store)
        troubled.full = {"context"}
        return troubled.as_store()

    async with world(tmp_path, wrap=broken) as one:
        await one.platform.down()
        with pytest.raises(StoreUnavailable):
            await pull(one)


async def test_a_pull_is_history(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.platform.context_rows = [row("a")]
        await pull(one, **{"agent-id": "fred", "fleet-node-id": "7"})
        (entry,) = await one.store.history("pull")
        assert (entry.agent_id, entry.fleet_node_id, entry.items) == ("fred", 7, 1)
        assert entry.payload_bytes > 50
        times = await one.store.times("fred")
        assert times.last_pull_ms == round(one.clock.now() * 1000)


async def test_wrong_parameters_are_refused(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        with pytest.raises(BadParams) as caught:
            await pull(one, fleet_node_id="x")
        assert caught.value.path == "$.fleet_node_id"
        assert one.platform.arrivals == []
