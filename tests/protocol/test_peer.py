"""What is inside a peer's contract and shows only to who looks closely: tasks, turns, contexts, races."""

import asyncio
import sys
import time
from collections import Counter
from contextvars import ContextVar
from pathlib import Path
from types import FrameType

import pytest

from protocol.errors import CallTimeout, Code
from protocol.framing import Framing
from protocol.methods import Context, Method, MethodTable
from protocol.peer import Limits, Peer
from tests.support.clock import settle
from tests.support.stage import Named, Nothing, Stage
from tests.support.wires import PATIENCE_S, Raw, memory_wire, notification, request, served, until

VAR: ContextVar[str] = ContextVar("VAR", default="clean")


@pytest.fixture
def stage() -> Stage:
    return Stage()


def ok(id_: object, result: object) -> dict[str, object]:
    return {"jsonrpc": "2.0", "id": id_, "result": result}


async def test_handlers_that_never_wait_cost_no_task() -> None:
    tasks: set[asyncio.Task[object] | None] = set()

    async def look(_context: Context, _params: Nothing) -> None:
        tasks.add(asyncio.current_task())

    table = MethodTable([Method(name="look", handler=look, params=Nothing)])
    async with served(await memory_wire(), table) as (host, _):
        await host.send(*(request("look", at) for at in range(20)))
        assert len(await host.answers(20)) == 20
        assert len(tasks) == 1


async def test_a_handler_that_waits_keeps_its_task_and_another_reads_on(stage: Stage) -> None:
    tasks: dict[str, list[object]] = {}

    async def look(context: Context, params: Named) -> None:
        tasks[params.name] = [asyncio.current_task()]
        await stage.hold(context, params)
        tasks[params.name].append(asyncio.current_task())

    table = MethodTable([Method(name="look", handler=look, params=Named)])
    async with served(await memory_wire(), table) as (host, _):
        await host.send(request("look", 1, ["a"]), request("look", 2, ["b"]))
        await stage.wait_entered("a", "b")
        stage.release("a", "b")
        await host.answers(2)
    assert len(set(tasks["a"])) == len(set(tasks["b"])) == 1
    assert tasks["a"] != tasks["b"]


async def test_context_variables_of_one_handler_are_not_those_of_another() -> None:
    seen: list[str] = []

    async def soil(_context: Context, params: Named) -> None:
        seen.append(VAR.get())
        VAR.set("dirty")
        if params.name == "waits":
            await asyncio.sleep(0)
            seen.append(VAR.get())

    table = MethodTable([Method(name="soil", handler=soil, params=Named)])
    async with served(await memory_wire(), table) as (host, _):
        await host.send(*(request("soil", at, ["waits" if at == 2 else "runs"]) for at in range(5)))
        await host.answers(5)
    assert sorted(seen) == ["clean"] * 5 + ["dirty"]


async def test_others_get_their_turn_during_a_burst_of_calls(stage: Stage) -> None:
    turns = 0

    def turn() -> None:
        nonlocal turns
        turns += 1
        asyncio.get_running_loop().call_soon(turn)

    async with served(await memory_wire(), stage.table()) as (host, peer):
        turn()
        await host.send(*(request("ping", at) for at in range(500)))
        before = turns
        await until(lambda: peer.stats.requests == 500)
        assert turns - before >= 500 // 32
        await host.answers(500)


async def test_the_answers_of_a_burst_share_a_write(stage: Stage) -> None:
    wire = await memory_wire()
    writes: list[bytes] = []
    write, write_now = wire.ours.write, wire.ours.write_now

    class Counting:
        read = wire.ours.read
        close = wire.ours.close

        async def write(self, data: bytes) -> None:
            writes.append(data)
            await write(data)

        def write_now(self, data: bytes) -> bool:
            writes.append(data)
            return write_now(data)

    async with served(wire._replace(ours=Counting()), stage.table()) as (host, _):
        await host.send(*(request("ping", at) for at in range(64)))
        await host.answers(64)
        assert len(writes) == 1
        await host.request("ping", "alone")
        await host.receive()
        assert len(writes) == 2


@pytest.mark.parametrize(("method", "most"), [("echo", 25), ("ping", 24)], ids=["a coroutine", "at once"])
async def test_a_call_that_does_not_wait_takes_few_function_calls(stage: Stage, method: str, most: int) -> None:
    counts: Counter[str] = Counter()

    def count(frame: FrameType, event: str, _arg: object) -> None:
        if event == "call" and Path(frame.f_code.co_filename).parent.name in {"protocol", "jsonrpcserver", "oslash"}:
            counts[frame.f_code.co_name] += 1

    params = ["x"] if method == "echo" else []
    async with served(await memory_wire(), stage.table()) as (host, peer):
        await host.request(method, "the library is loaded", params)
        await host.receive()
        await host.send(*(request(method, at, params) for at in range(400)))
        sys.setprofile(count)
        await until(lambda: peer.stats.requests == 401)
        sys.setprofile(None)
        await host.answers(400)
    assert counts["decode"] == 400
    assert counts["_decode_untyped"] == 0
    assert sum(counts.values()) < 400 * most, counts.most_common(60)


async def test_an_answer_that_meets_the_deadline_of_its_call_still_counts(stage: Stage) -> None:
    async with served(await memory_wire(), stage.table(), framing=Framing.NDJSON) as (host, peer):
        for _ in range(20):
            call = asyncio.create_task(peer.call("q", timeout_s=0.02, result=int))
            asked = await host.receive()
            await host.send(ok(asked["id"], 5))
            time.sleep(0.03)  # noqa: ASYNC251 -- the loop finds the answer and the deadline in the same turn
            try:
                assert await call == 5
            except CallTimeout:
                assert await host.receive() == notification("$/cancelRequest", {"id": asked["id"]})
            await host.nothing_before()


async def test_limits_can_be_changed_while_it_runs(stage: Stage) -> None:
    limits = Limits(handlers=1, waiting=1)
    async with served(await memory_wire(), stage.table(), limits=limits) as (host, peer):
        await host.send(*(request("hold", at, [str(at)]) for at in range(3)))
        assert (await host.receive())["error"]["code"] == Code.BUSY
        peer.limit(Limits(handlers=2, waiting=2, max_message_bytes=200))
        await host.send(request("hold", 3, ["3"]), request("echo", 4, ["x" * 300]))
        assert (await host.receive())["error"]["data"]["kind"] == "message_too_large"
        await stage.wait_entered("0")
        stage.release(*"0123")
        assert await host.answers(3) == {0: "0", 1: "1", 3: "3"}


class Failing:
    """A stream with a defect."""

    def __init__(self, where: str) -> None:
        self.where = where

    async def read(self) -> bytes:
        if self.where == "read":
            raise ZeroDivisionError
        await asyncio.Event().wait()
        return b""

    async def write(self, data: bytes) -> None:
        self.write_now(data)

    def write_now(self, data: bytes) -> bool:
        del data
        raise ZeroDivisionError

    async def close(self) -> None:
        pass


@pytest.mark.parametrize("where", ["read", "write"])
async def test_a_defect_of_the_stream_is_not_hidden(where: str) -> None:
    peer = Peer(Failing(where), MethodTable([]), framing=Framing.NDJSON)
    await peer.notify("n")
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(ZeroDivisionError):
            await peer.run()
        await peer.close()


async def test_a_handler_that_is_given_up_in_its_first_step_is_answered_once(stage: Stage) -> None:
    peers: list[Peer] = []

    async def leave(_context: Context, _params: Nothing) -> str:
        peers[0]._intake.abandon()  # pyright: ignore[reportPrivateUsage] -- as close does, which would hide the rest
        return "late"

    table = stage.table(Method(name="leave", handler=leave, params=Nothing))
    async with served(await memory_wire(), table) as (host, peer):
        peers.append(peer)
        await host.send(request("leave", 1), request("ping", 2), request("leave", 1))
        answers = [await host.receive() for _ in range(3)]
        assert [answer["id"] for answer in answers] == [1, 2, 1]
        assert [answer.get("error", {}).get("code") for answer in answers] == [Code.CLOSED, None, Code.CLOSED]
        await host.nothing_before()


@pytest.mark.parametrize("others", [0, 2])
async def test_a_handler_that_ends_in_a_cancellation_at_once_is_answered(stage: Stage, others: int) -> None:
    async def stop(_context: Context, _params: Nothing) -> None:
        raise asyncio.CancelledError

    table = stage.table(Method(name="stop", handler=stop, params=Nothing))
    async with served(await memory_wire(), table) as (host, _):
        await host.send(request("stop", 0), *(request("ping", at) for at in range(1, others + 1)))
        answers = [await host.receive() for _ in range(others + 1)]
        assert [answer["id"] for answer in answers] == list(range(others + 1))
        assert answers[0]["error"]["code"] == Code.INTERNAL_ERROR
        await host.nothing_before()


async def test_a_program_that_ends_ends_its_handlers(stage: Stage) -> None:
    wire = await memory_wire()
    peer = Peer(wire.ours, stage.table())
    running = asyncio.create_task(peer.run())
    await wire.theirs.write(b'[{"jsonrpc":"2.0","id":1,"method":"hold","params":["a"]}]\n')
    await stage.wait_entered("a")
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.wait(others, timeout=PATIENCE_S)
    assert all(task.cancelled() for task in others)
    assert running in others
    assert stage.cancelled == ["a"]


@pytest.mark.parametrize("alone", [True, False])
async def test_a_handler_whose_task_is_ended_from_outside_is_answered(stage: Stage, *, alone: bool) -> None:
    wire = await memory_wire()
    async with served(wire, stage.table()) as (host, peer):
        await host.send(request("hold", 1, ["a"]) if alone else [request("hold", 1, ["a"])])
        await stage.wait_entered("a")
        (task,) = peer._intake.tasks  # pyright: ignore[reportPrivateUsage] -- nobody else can know it
        task.cancel()
        answer = await host.receive()
        assert (answer if alone else answer[0])["error"]["code"] == Code.CLOSED
        assert task.cancelled()
        await host.nothing_before()


async def test_a_defect_of_a_handlers_task_ends_the_run(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(_context: Context, _params: Nothing) -> None:
        raise LookupError

    def untraceable() -> str:
        raise ZeroDivisionError

    table = MethodTable([Method(name="fail", handler=fail, params=Nothing)])
    for message in (request("fail", 1), [request("fail", 1)]):
        wire = await memory_wire()
        peer = Peer(wire.ours, table, trace_id=untraceable)
        await Raw(wire.theirs).send(message)
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(ZeroDivisionError):
                await peer.run()
            await peer.close()
    defects = [record for record in caplog.records if record.name == "protocol.peer"]
    assert [record.exc_info is not None for record in defects] == [True, True]


async def test_a_handler_may_end_its_own_connection_without_being_interrupted(stage: Stage) -> None:
    peers: list[Peer] = []

    async def leave(_context: Context, _params: Nothing) -> None:
        await peers[0].close(timeout_s=5)
        stage.say(stage.noted, "closed")

    table = stage.table(Method(name="leave", handler=leave, params=Nothing))
    async with served(await memory_wire(), table) as (host, peer):
        peers.append(peer)
        await host.request("leave", 1)
        assert (await host.receive())["error"]["code"] == Code.CLOSED
        assert await host.receive() is None
        await stage.wait_noted(1)
        await settle()
