"""`agentic.sync.push`: what is taken, what is answered, and how long it waits."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from plugin.errors import BadParams, PluginError, QueueFull, StoreUnavailable
from plugin.loopback.faults import Delay, Hang, Status
from plugin.secret import Secret
from plugin.store.interface import RowState, Store
from plugin.sync.push import PushParams
from protocol.convert import Mismatch, convert
from tests.support.clock import settle
from tests.support.sync import TOKEN, World, dispatches, finish, keys_of, world
from tests.support.trouble import TroubledStore


async def refused(one: World, **params: object) -> PluginError:
    """Push what must be refused; nothing of it may be stored or sent."""
    with pytest.raises(PluginError) as caught:
        await one.call(**params)
    assert await one.rows() == ()
    assert one.platform.arrivals == []
    return caught.value


# -- who and what -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "agent"),
    [
        ({}, "codex"),
        ({"_arg": "third"}, "third"),
        ({"agent-id": "second", "_arg": "third"}, "second"),
        ({"agent_id": "first", "agent-id": "second", "_arg": "third"}, "first"),
        ({"agent_id": "", "agent-id": None, "_arg": "third"}, "third"),
    ],
)
async def test_the_agent_is_the_first_name_that_is_not_empty(
    tmp_path: Path, names: dict[str, object], agent: str
) -> None:
    async with world(tmp_path) as one:
        await one.call(dispatches=dispatches("a"), **names)
        assert one.platform.pushes[0].agent == agent


async def test_an_agent_id_of_255_characters_is_taken_and_a_longer_one_refused(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        for name in ("agent_id", "agent-id", "_arg"):
            with pytest.raises(Mismatch) as caught:
                convert({name: "é" * 256, "dispatches": dispatches("a")}, PushParams)
            assert caught.value.path == f"$.{name}"
        assert (await one.push("a", agent="é" * 255)).count == 1


@pytest.mark.parametrize(
    ("given", "node"), [({"fleet_node_id": 7}, 7), ({"fleet-node-id": " 42 "}, 42), ({"fleet_node_id": ""}, None)]
)
async def test_the_fleet_node_is_kept_and_never_sent(
    tmp_path: Path, given: dict[str, object], node: int | None
) -> None:
    async with world(tmp_path) as one:
        await one.call(dispatches=dispatches("a"), **given)
        assert "fleet_node_id" not in one.platform.records[0].body
        (entry,) = await one.store.history("push")
        assert (entry.direction, entry.agent_id, entry.items, entry.fleet_node_id) == ("push", "codex", 1, node)


@pytest.mark.parametrize("node", ["x", "-1", "1.5", "9" * 30])
async def test_a_fleet_node_that_is_no_number_is_refused(tmp_path: Path, node: str) -> None:
    async with world(tmp_path) as one:
        error = await refused(one, fleet_node_id=node, dispatches=dispatches("a"))
        assert error.path == "$.fleet_node_id"


@pytest.mark.parametrize("given", [{"id": "a", "repo": "x"}, '{"id": "a", "repo": "x"}', ' [{"id": "a", "repo": "x"}]'])
async def test_one_object_and_json_text_are_taken_too(tmp_path: Path, given: object) -> None:
    async with world(tmp_path) as one:
        assert (await one.call(dispatches=given)).count == 1
        assert one.delivered() == ["a"]


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("repo=x", "$.dispatches"),
        ("7", "$.dispatches"),
        ('[{"repo": "x"}, null]', "$.dispatches[1]"),
        ([{"repo": "x"}, {"task": "neither repo nor workspace"}], "$.dispatches[1]"),
        ({}, "$.dispatches[0]"),
    ],
)
async def test_garbage_is_refused_with_its_path_and_nothing_of_the_call_is_stored(
    tmp_path: Path, given: object, path: str
) -> None:
    async with world(tmp_path) as one:
        finish(tmp_path, "core/go-io/task-1")
        error = await refused(one, dispatches=given)
        assert isinstance(error, BadParams)
        assert error.path == path


# -- what is answered -------------------------------------------------------------------------------------------------


async def test_a_call_while_backing_off_sends_nothing_and_says_so(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.platform.menu.add(Status(code=503))
        first = await one.push("a")
        assert (first.success, first.count, first.queued, first.offline) == (True, 0, 1, True)
        assert first.error
        second = await one.push("b")
        assert (second.success, second.count, second.queued, second.offline) == (True, 0, 2, True)
        assert len(one.platform.pushes) == 1
        assert not isinstance(second.gate, msgspec.UnsetType)
        assert second.gate.state == "waiting"


async def test_an_answer_without_trouble_has_neither_error_nor_gate(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        assert msgspec.to_builtins(await one.push("a")) == {
            "success": True,
            "count": 1,
            "queued": 0,
            "dead": 0,
            "offline": False,
        }


async def test_count_includes_what_waited_before_and_nothing_of_other_agents(tmp_path: Path) -> None:
    async with world(tmp_path, sync={"batch_records": 1}) as one:
        one.platform.menu.add(Status(code=503))
        await one.push("a")
        await one.until_closed(1)
        await one.push("x", agent="other")
        held = asyncio.Event()
        one.platform.menu.add(Delay(until=held))
        await one.clock.advance(2)
        await one.platform.wait_until(lambda server: server.in_flight == 1)
        push = one.pushing("b")
        await queued(one, 3)
        held.set()
        assert (await push).count == 2
        await one.until_drained()
        assert sorted(one.delivered()) == ["a", "b", "x"]


async def queued(one: World, records: int) -> None:
    """Wait until so many records are in the outbox."""
    async with asyncio.timeout(20):
        while (await one.store.counts()).queued < records:
            await settle()


async def test_given_work_is_sent_again_even_if_the_ledger_knows_it(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.platform.deduplicate = False
        assert (await one.push("a")).count == 1
        assert (await one.push("a")).count == 1
        assert one.delivered() == ["a", "a"]


async def test_the_same_record_is_not_queued_twice(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        await one.platform.down()
        assert (await one.push("a", "b")).queued == 2
        assert (await one.push("b", "c")).queued == 3


async def test_a_full_queue_refuses_the_whole_call(tmp_path: Path) -> None:
    async with world(tmp_path, queue={"max_records": 2}) as one:
        await one.platform.down()
        await one.push("a")
        with pytest.raises(QueueFull):
            await one.push("b", "c")
        assert [row.record_id for row in await one.rows()] == ["a"]


async def test_a_push_is_never_forwarded_without_being_stored(tmp_path: Path) -> None:
    def full(store: Store) -> Store:
        troubled = TroubledStore(store)
        troubled.full = {"enqueue"}
        return troubled.as_store()

    async with world(tmp_path, wrap=full) as one:
        with pytest.raises(StoreUnavailable):
            await one.push("a")
        await one.clock.advance(400)
        assert one.platform.arrivals == []


async def test_a_store_that_fails_after_the_work_was_taken_is_no_failure_of_the_call(tmp_path: Path) -> None:
    def full(store: Store) -> Store:
        troubled = TroubledStore(store)
        troubled.full = {"unsettled", "counts"}
        return troubled.as_store()

    async with world(tmp_path, wrap=full) as one:
        result = await one.push("a")
        assert result.success
        assert result.error
        await one.until_drained()


async def test_a_push_that_nothing_can_be_sent_of_asks_the_store_for_nothing_more(tmp_path: Path) -> None:
    troubled: list[TroubledStore] = []

    def full(store: Store) -> Store:
        troubled.append(TroubledStore(store))
        troubled[0].full = {"unsettled", "counts"}
        return troubled[0].as_store()

    async with world(tmp_path, wrap=full, platform_settings={"api_key": None}) as one:
        await one.push("a")
        result = await one.push("b", "c")
        assert (result.success, result.count, result.queued, result.dead, result.offline) == (True, 0, 3, 0, True)
        assert troubled[0].refused == []


# -- how long it waits ------------------------------------------------------------------------------------------------


async def test_a_call_waits_twenty_seconds_at_most_and_the_sender_goes_on(tmp_path: Path) -> None:
    release = asyncio.Event()
    async with world(tmp_path) as one:
        one.platform.menu.add(Delay(until=release))
        push = one.pushing("a")
        await one.platform.wait_until(lambda server: server.in_flight == 1)
        await one.clock.advance(19.9)
        assert not push.done()
        await one.clock.advance(0.2)
        result = await push
        assert (result.count, result.queued, result.offline) == (0, 1, False)
        release.set()
        await one.until_drained()
        assert one.delivered() == ["a"]


async def test_a_cancelled_call_leaves_its_work_to_the_sender(tmp_path: Path) -> None:
    release = asyncio.Event()
    async with world(tmp_path) as one:
        one.platform.menu.add(Delay(until=release))
        push = one.pushing("a")
        await one.platform.wait_until(lambda server: server.in_flight == 1)
        push.cancel()
        await settle()
        release.set()
        await one.until_drained()
        assert one.delivered() == ["a"]


async def test_many_callers_at_once_each_get_their_work_through_once(tmp_path: Path) -> None:
    async with world(tmp_path, sync={"batch_records": 5}) as one:
        pushes = [one.pushing(f"{agent}{number}", agent=agent) for number in range(20) for agent in "xy"]
        results = [await push for push in pushes]
        assert all(result.success and result.count >= 1 and not result.offline for result in results)
        assert sorted(one.delivered()) == sorted(f"{agent}{number}" for number in range(20) for agent in "xy")
        assert len(set(keys_of(one.platform.pushes))) == len(one.platform.pushes)


async def test_another_agents_stuck_request_holds_up_no_call(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.platform.menu.add(Hang(), agent="stuck")
        stuck = one.pushing("a", agent="stuck")
        await one.platform.wait_until(lambda server: server.in_flight == 1)
        assert (await one.push("b", agent="fine")).count == 1
        stuck.cancel()


async def test_progress_is_told_when_it_is_asked_for(tmp_path: Path) -> None:
    told: list[tuple[float, float | None]] = []

    async def progress(done: float, total: float | None, _message: str | None) -> None:
        told.append((done, total))

    async with world(tmp_path, sync={"batch_records": 2}) as one:
        params = msgspec.convert({"dispatches": dispatches("a", "b", "c", "d")}, PushParams)
        await one.service.push(params, progress)
    assert told[-1] == (4, 4)
    assert told == sorted(told)


async def test_the_token_is_in_no_answer(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        for code in (400, 401, 404, 500):
            one.platform.menu.add(Status(code=code, body=f"your token is {TOKEN}".encode()))
        for number in range(4):
            result = await one.push(f"r{number}")
            assert TOKEN not in repr(result)
            await one.clock.advance(400)
        await one.until_drained()
        assert TOKEN not in repr(await one.rows(RowState.DEAD))
        assert TOKEN not in repr(Secret(TOKEN))
