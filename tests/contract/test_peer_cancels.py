"""Requests that are cancelled: before they run, while they run, and when it is too late."""

import asyncio

import pytest

from protocol.errors import Code
from protocol.methods import Context, Method
from protocol.peer import Limits
from tests.support.stage import Nothing, Stage
from tests.support.wires import MakeWire, notification, request, served


@pytest.fixture
def stage() -> Stage:
    return Stage()


def ok(id_: object, result: object) -> dict[str, object]:
    return {"jsonrpc": "2.0", "id": id_, "result": result}


async def test_a_running_request_is_answered_cancelled(make_wire: MakeWire, stage: Stage) -> None:
    async with served(await make_wire(), stage.table()) as (host, peer):
        await host.request("hold", 7, ["a"])
        await stage.wait_entered("a")
        await host.send(notification("$/cancelRequest", {"id": 7}))
        answer = await host.receive()
        assert (answer["id"], answer["error"]["code"]) == (7, Code.CANCELLED)
        assert stage.cancelled == ["a"]
        assert peer.stats.cancelled == 1
        await host.nothing_before()


async def test_a_waiting_request_is_answered_at_once_and_never_runs(make_wire: MakeWire, stage: Stage) -> None:
    async with served(await make_wire(), stage.table(), limits=Limits(handlers=1)) as (host, _):
        await host.send(*(request("hold", name, [name]) for name in "abc"))
        await host.send(notification("$/cancelRequest", {"id": "b"}))
        answer = await host.receive()
        assert (answer["id"], answer["error"]["code"]) == ("b", Code.CANCELLED)
        stage.release("a", "b", "c")
        assert await host.answers(2) == {"a": "a", "c": "c"}
        assert stage.entered == ["a", "c"]


async def test_a_request_whose_cancel_comes_before_its_first_step_never_runs(make_wire: MakeWire, stage: Stage) -> None:
    async with served(await make_wire(), stage.table()) as (host, peer):
        members = [request("hold", 1, ["a"]), request("hold", 2, ["b"])]
        cancels = [notification("$/cancelRequest", {"id": 1}), notification("notifications/cancelled", [2])]
        await host.send([*members, *cancels])
        (answer,) = await host.receive()
        assert (answer["id"], answer["error"]["code"]) == (1, Code.CANCELLED)
        assert stage.entered == []
        assert peer.stats.cancelled == 2
        await host.send(*members, *cancels)
        assert (await host.receive())["error"]["code"] == Code.CANCELLED
        await host.nothing_before()
        assert peer.stats.cancelled == 4


async def test_the_alias_cancels_without_an_answer(make_wire: MakeWire, stage: Stage) -> None:
    async with served(await make_wire(), stage.table(), limits=Limits(handlers=1)) as (host, _):
        await host.send(request("hold", 1, ["a"]), request("hold", 2, ["b"]), request("stubborn", 3, ["c"]))
        await stage.wait_entered("a")
        await host.send(*(notification("notifications/cancelled", {"requestId": id_}) for id_ in (2, 1)))
        await stage.wait_entered("c")
        await host.send(notification("notifications/cancelled", {"requestId": 3, "reason": "why not"}))
        await stage.wait_cancelled("c")
        stage.release("c")
        await host.nothing_before()
        assert stage.cancelled == ["a", "c"]


async def test_a_handler_that_finishes_all_the_same_is_answered_once_with_its_result(
    make_wire: MakeWire, stage: Stage
) -> None:
    async with served(await make_wire(), stage.table()) as (host, _):
        await host.request("stubborn", 1, ["a"])
        await stage.wait_entered("a")
        for _ in range(3):
            await host.send(notification("$/cancelRequest", {"id": 1}))
        await stage.wait_cancelled("a")
        await host.nothing_before()
        assert stage.cancelled == ["a"]
        stage.release("a")
        assert await host.receive() == ok(1, "a")
        await host.nothing_before()


async def test_a_handler_that_takes_its_time_to_die_is_answered_when_it_is_through(
    make_wire: MakeWire, stage: Stage
) -> None:
    async with served(await make_wire(), stage.table()) as (host, _):
        await host.request("slow_to_die", 1, ["a"])
        await stage.wait_entered("a")
        await host.send(notification("$/cancelRequest", {"id": 1}))
        await stage.wait_cancelled("a")
        await host.nothing_before()
        stage.release("a")
        answer = await host.receive()
        assert (answer["id"], answer["error"]["code"]) == (1, Code.CANCELLED)
        await host.nothing_before()


async def test_a_cancel_that_means_nothing_in_flight_does_nothing(make_wire: MakeWire, stage: Stage) -> None:
    async with served(await make_wire(), stage.table()) as (host, peer):
        await host.request("hold", 1, ["a"])
        await stage.wait_entered("a")
        strange: list[object] = [2, "1", 1.0, None, True, [1], {}]
        for id_ in strange:
            await host.send(notification("$/cancelRequest", {"id": id_}))
        await host.send(notification("$/cancelRequest"), notification("$/cancelRequest", []))
        await host.nothing_before()
        stage.release("a")
        assert await host.receive() == ok(1, "a")
        await host.send(notification("$/cancelRequest", {"id": 1}))
        await host.nothing_before()
        assert peer.stats.cancelled == 0


async def test_a_cancel_that_wants_an_answer_gets_null(make_wire: MakeWire, stage: Stage) -> None:
    async with served(await make_wire(), stage.table()) as (host, _):
        await host.request("hold", 1, ["a"])
        await host.request("$/cancelRequest", 2, {"id": 1})
        answers = await host.answers(2)
        assert answers[2] is None
        assert answers[1]["code"] == Code.CANCELLED


async def test_the_next_request_gets_the_place_of_the_cancelled(make_wire: MakeWire, stage: Stage) -> None:
    async with served(await make_wire(), stage.table(), limits=Limits(handlers=1)) as (host, _):
        await host.send(request("hold", 1, ["a"]), request("hold", 2, ["b"]))
        await stage.wait_entered("a")
        await host.send(notification("$/cancelRequest", {"id": 1}))
        await stage.wait_entered("b")
        stage.release("b")
        assert (await host.receive())["error"]["code"] == Code.CANCELLED
        assert await host.receive() == ok(2, "b")


async def test_a_handler_that_awaits_something_cancelled_elsewhere_is_answered(
    make_wire: MakeWire, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    async def stray(_context: Context, _params: Nothing) -> None:
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.cancel)
        await future

    table = stage.table(Method(name="stray", handler=stray, params=Nothing))
    async with served(await make_wire(), table, trace_id=lambda: "trace-1") as (host, _):
        await host.request("stray", 1)
        answer = await host.receive()
        assert answer["error"]["code"] == Code.INTERNAL_ERROR
        assert answer["error"]["data"]["trace_id"] == "trace-1"
        await host.send(notification("stray"))
        await host.nothing_before()
    assert any(getattr(record, "fields", {}).get("trace_id") == "trace-1" for record in caplog.records)
