"""Batches: item by item, one array of answers, or nothing."""

import asyncio

import pytest

from protocol.errors import Code
from protocol.peer import Limits
from tests.support.stage import Stage
from tests.support.wires import MakeWire, notification, request, served


@pytest.fixture
def stage() -> Stage:
    return Stage()


def ok(id_: object, result: object) -> dict[str, object]:
    return {"jsonrpc": "2.0", "id": id_, "result": result}


async def test_members_are_answered_together_in_one_array(make_wire: MakeWire, stage: Stage) -> None:
    async with served(await make_wire(), stage.table()) as (host, _):
        members = [
            request("hold", 1, ["a"]),
            request("echo", 2, ["b"]),
            notification("note", ["c"]),
            {"foo": "boo"},
            request("nowhere", 3),
            {"jsonrpc": "2.0", "id": 99, "result": None},
        ]
        await host.send(members)
        await stage.wait_entered("a")
        await host.nothing_before()
        stage.release("a")
        answers = await host.receive()
        assert len(answers) == 4
        by_id = {one["id"]: one for one in answers}
        assert by_id[1] == ok(1, "a")
        assert by_id[2] == ok(2, "b")
        assert by_id[None]["error"]["code"] == Code.INVALID_REQUEST
        assert by_id[3]["error"]["code"] == Code.METHOD_NOT_FOUND


async def test_a_batch_that_needs_no_answer_gets_none(make_wire: MakeWire, stage: Stage) -> None:
    async with served(await make_wire(), stage.table()) as (host, _):
        await host.send([notification("note"), notification("nowhere")])
        await host.send([{"jsonrpc": "2.0", "id": 99, "result": 1}])
        await host.send([notification("$/cancelRequest", {"id": 1})])
        await stage.wait_noted(1)
        await host.nothing_before()


async def test_nonsense_is_answered_member_by_member(make_wire: MakeWire, stage: Stage) -> None:
    async with served(await make_wire(), stage.table()) as (host, _):
        await host.send([1, 2])
        answer = await host.receive()
        assert [one["error"]["code"] for one in answer] == [Code.INVALID_REQUEST] * 2
        await host.send([])
        assert (await host.receive())["error"]["code"] == Code.INVALID_REQUEST


async def test_a_cancelled_member_is_answered_in_the_array(make_wire: MakeWire, stage: Stage) -> None:
    async with served(await make_wire(), stage.table()) as (host, _):
        await host.send([request("hold", name, [name]) for name in "abc"])
        await stage.wait_entered("a", "b", "c")
        await host.send(notification("$/cancelRequest", {"id": "a"}))
        await host.send(notification("notifications/cancelled", {"requestId": "b"}))
        await stage.wait_cancelled("a", "b")
        await host.nothing_before()
        stage.release("c")
        answers = {one["id"]: one for one in await host.receive()}
        assert answers.keys() == {"a", "c"}
        assert answers["a"]["error"]["code"] == Code.CANCELLED
        assert answers["c"] == ok("c", "c")


async def test_each_member_takes_a_place_of_its_own(make_wire: MakeWire, stage: Stage) -> None:
    limits = Limits(handlers=1, waiting=2)
    async with served(await make_wire(), stage.table(), limits=limits) as (host, _):
        await host.send([request("hold", at, [str(at)]) for at in range(5)])
        await host.nothing_before()
        stage.release(*"01234")
        answers = {one["id"]: one for one in await host.receive()}
        assert [answers[at].get("result", answers[at].get("error", {}).get("code")) for at in range(5)] == [
            "0", "1", "2", Code.BUSY, Code.BUSY,
        ]  # fmt: skip


async def test_a_large_batch_of_quick_calls_is_not_busy(make_wire: MakeWire, stage: Stage) -> None:
    async with served(await make_wire(), stage.table()) as (host, _):
        async with asyncio.TaskGroup() as group:
            group.create_task(host.send([request("echo", at, [str(at)]) for at in range(4_000)]))
            answers = await host.receive()
        assert sorted((one["id"], one["result"]) for one in answers) == [(at, str(at)) for at in range(4_000)]
