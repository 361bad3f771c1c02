"""What a peer asks of the other side: calls, their deadlines and ends, notifications. Also both sides at once."""

import asyncio
from collections.abc import Awaitable

import pytest
from msgspec import Struct

from protocol.errors import BadResult, CallTimeout, Code, EncodeError, PeerClosed, ProtocolError, RpcError
from protocol.framing import Framing
from protocol.methods import Context, Method, MethodTable
from protocol.peer import Limits, Peer
from tests.support.stage import Stage
from tests.support.wires import (
    PATIENCE_S,
    MakeWire,
    Raw,
    joined,
    notification,
    request,
    running,
    served,
    until,
)

EMPTY = MethodTable([])
NDJSON = Framing.NDJSON


class State(Struct, frozen=True):
    state: str


class States(Struct, frozen=True):
    all: list[State]


@pytest.fixture
def stage() -> Stage:
    return Stage()


def ok(id_: object, result: object) -> dict[str, object]:
    return {"jsonrpc": "2.0", "id": id_, "result": result}


async def test_calls_are_matched_to_answers_in_any_order(make_wire: MakeWire) -> None:
    async with served(await make_wire(), EMPTY, framing=NDJSON) as (host, peer), asyncio.TaskGroup() as group:
        first = group.create_task(peer.call("a", {"x": 1}, timeout_s=PATIENCE_S, result=int))
        second = group.create_task(peer.call("b", timeout_s=PATIENCE_S, result=State))
        assert await host.receive_many(2) == [request("a", 1, {"x": 1}), request("b", 2)]
        await host.send(ok(2, {"state": "idle"}), ok(1, 10))
        assert await second == State("idle")
        assert await first == 10
        third = group.create_task(peer.call("c", timeout_s=PATIENCE_S, result=str))
        await host.receive()
        await host.send([ok(3, "in a batch")])
        assert await third == "in a batch"
        assert peer.stats.calls == 3


async def test_an_error_answer_is_raised_with_all_that_it_says(make_wire: MakeWire) -> None:
    async with served(await make_wire(), EMPTY, framing=NDJSON) as (host, peer), asyncio.TaskGroup() as group:
        call = group.create_task(caught(peer.call("a", timeout_s=PATIENCE_S, result=int)))
        await host.receive()
        await host.send({"jsonrpc": "2.0", "id": 1, "error": {"code": -5, "message": "no", "data": [1]}})
        error = await call
        assert isinstance(error, RpcError)
        assert (error.code, error.message, error.data) == (-5, "no", [1])


async def test_a_result_of_another_type_names_where_it_differs(make_wire: MakeWire) -> None:
    async with served(await make_wire(), EMPTY, framing=NDJSON) as (host, peer), asyncio.TaskGroup() as group:
        call = group.create_task(caught(peer.call("a", timeout_s=PATIENCE_S, result=States)))
        await host.receive()
        await host.send(ok(1, {"all": [{"state": "x"}, {"state": 5}]}))
        error = await call
        assert isinstance(error, BadResult)
        assert (error.method, error.path) == ("a", "$.all[1].state")


async def test_an_answer_without_a_result_is_none(make_wire: MakeWire) -> None:
    async with served(await make_wire(), EMPTY, framing=NDJSON) as (host, peer), asyncio.TaskGroup() as group:
        call = group.create_task(peer.call("a", timeout_s=PATIENCE_S, result=type(None)))
        await host.receive()
        await host.send({"jsonrpc": "2.0", "id": 1})
        assert await call is None
        await host.send({"jsonrpc": "2.0", "id": 1})
        assert (await host.receive())["error"]["code"] == Code.INVALID_REQUEST
        await host.send([{"jsonrpc": "2.0", "id": 2}])
        assert len(await host.receive()) == 1


async def test_params_that_cannot_be_encoded_are_refused_and_cost_nothing(make_wire: MakeWire) -> None:
    async with served(await make_wire(), EMPTY, framing=NDJSON) as (host, peer):
        with pytest.raises(EncodeError):
            await peer.call("a", object(), timeout_s=PATIENCE_S, result=int)
        with pytest.raises(EncodeError):
            await peer.notify("a", object())
        await peer.notify("b")
        assert await host.receive() == notification("b")
        assert peer.stats.calls == 0


async def test_a_call_past_its_deadline_is_cancelled_and_a_late_answer_dropped(
    make_wire: MakeWire, stage: Stage
) -> None:
    async with served(await make_wire(), stage.table(), framing=NDJSON) as (host, peer):
        with pytest.raises(CallTimeout):
            await peer.call("a", timeout_s=0.01, result=int)
        assert await host.receive_many(2) == [request("a", 1), notification("$/cancelRequest", {"id": 1})]
        await host.send(ok(1, 5), ok(1, 6), ok(77, 7), ok("1", 8), {"jsonrpc": "2.0", "id": None, "result": 9})
        await host.nothing_before()
        assert (peer.stats.timeouts, peer.stats.dropped_late) == (1, 5)


async def test_a_caller_that_is_cancelled_cancels_its_call(make_wire: MakeWire, stage: Stage) -> None:
    async with served(await make_wire(), stage.table(), framing=NDJSON) as (host, peer):
        call = asyncio.create_task(peer.call("a", timeout_s=PATIENCE_S, result=int))
        assert await host.receive() == request("a", 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await host.receive() == notification("$/cancelRequest", {"id": 1})
        await host.send(ok(1, 5))
        await host.nothing_before()
        assert peer.stats.dropped_late == 1


async def test_an_answer_that_meets_the_cancel_of_its_caller_is_not_cancelled_on_the_wire(
    make_wire: MakeWire, stage: Stage
) -> None:
    async with served(await make_wire(), stage.table(), framing=NDJSON) as (host, peer):
        call = asyncio.create_task(peer.call("a", timeout_s=PATIENCE_S, result=int))
        await host.receive()
        await host.send(ok(1, 5))
        # The answer is read while the caller has yet to wake up; then it is cancelled.
        await until(lambda: peer.stats.open_calls == 0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await host.nothing_before()


async def test_at_the_end_of_the_input_every_call_fails_at_once(make_wire: MakeWire) -> None:
    async with served(await make_wire(), EMPTY, framing=NDJSON) as (host, peer), asyncio.TaskGroup() as group:
        calls = [group.create_task(caught(peer.call("a", timeout_s=PATIENCE_S, result=int))) for _ in range(3)]
        await host.receive_many(3)
        await host.stream.close()
        assert [type(await call) for call in calls] == [PeerClosed] * 3
        with pytest.raises(PeerClosed):
            await peer.call("a", timeout_s=PATIENCE_S, result=int)


async def test_a_call_that_waits_for_the_first_byte_fails_when_none_comes(make_wire: MakeWire) -> None:
    async with served(await make_wire(), EMPTY) as (host, peer), asyncio.TaskGroup() as group:
        call = group.create_task(caught(peer.call("a", timeout_s=PATIENCE_S, result=int)))
        await asyncio.sleep(0)
        await host.stream.close()
        assert isinstance(await call, PeerClosed)


class TestBeforeTheFirstByte:
    async def test_nothing_is_written_and_what_was_said_follows_in_order(
        self, make_wire: MakeWire, stage: Stage
    ) -> None:
        async with served(await make_wire(), stage.table()) as (host, peer), asyncio.TaskGroup() as group:
            await peer.notify("one")
            assert peer.notify_soon("two")
            call = group.create_task(peer.call("three", timeout_s=PATIENCE_S, result=int))
            with pytest.raises(CallTimeout):
                await peer.call("never", timeout_s=0.01, result=int)
            reading = group.create_task(host.stream.read())
            await asyncio.sleep(0.01)
            assert not reading.done()
            await host.send_bytes(b" \r\n\n")
            await asyncio.sleep(0.01)
            assert not reading.done()
            await host.request("ping", 1)
            replayed = Raw(_Replayed(await reading, host))
            messages = await replayed.receive_many(4)
            assert messages[:2] == [notification("one"), notification("two")]
            assert request("three", 1) in messages
            assert ok(1, {}) in messages
            await replayed.send(ok(1, 3))
            assert await call == 3

    async def test_the_oldest_are_dropped_where_there_are_too_many(self, make_wire: MakeWire) -> None:
        async with served(await make_wire(), EMPTY) as (host, peer):
            for at in range(1_000):
                await peer.notify("n", [at])
            assert not peer.stats.dropped_out < 500
            await host.send_bytes(b"{")
            first = await host.receive()
            assert first == notification("n", [peer.stats.dropped_out])
            kept = [first, *await host.receive_many(999 - peer.stats.dropped_out)]
            assert kept[-1] == notification("n", [999])

    async def test_with_a_forced_framing_the_peer_may_speak_first(self, make_wire: MakeWire) -> None:
        async with served(await make_wire(), EMPTY, framing=Framing.CONTENT_LENGTH) as (host, peer):
            await peer.notify("one")
            assert await Raw(host.stream, Framing.CONTENT_LENGTH).receive() == notification("one")


class TestBothSides:
    async def test_a_handler_calls_back_while_its_caller_waits(self, make_wire: MakeWire, stage: Stage) -> None:
        host_stage = Stage()
        host_stage.release("one")
        async with joined(await make_wire(), stage.table(), host_stage.table()) as (host, plugin):
            assert await host.call("ask", ["hold"], timeout_s=PATIENCE_S, result=str) == "one"
            assert host_stage.entered == ["one"]
            assert plugin.stats.calls == 1

    async def test_calls_back_pass_when_every_handler_waits_for_one(self, make_wire: MakeWire, stage: Stage) -> None:
        host_stage = Stage()
        ours, theirs, _ = await make_wire()
        limits = Limits(handlers=2)
        async with (
            running(Peer(ours, stage.table(), limits=limits)),
            running(Peer(theirs, host_stage.table(), framing=NDJSON)) as host,
            asyncio.TaskGroup() as group,
        ):
            calls = [group.create_task(host.call("ask", ["hold"], timeout_s=PATIENCE_S, result=str)) for _ in range(20)]
            await host_stage.wait_entered("one")
            host_stage.release("one")
            assert [await call for call in calls] == ["one"] * 20

    async def test_calls_nest_as_deep_as_there_are_handlers(self, make_wire: MakeWire) -> None:
        async def down(context: Context, params: Depth) -> int:
            if not params.left:
                return 0
            return 1 + await context.peer.call("down", [params.left - 1], timeout_s=PATIENCE_S, result=int)

        table = MethodTable([Method(name="down", handler=down, params=Depth)])
        async with joined(await make_wire(), table, table) as (host, _):
            assert await host.call("down", [14], timeout_s=PATIENCE_S, result=int) == 14

    async def test_a_deadline_here_cancels_the_handler_there(self, make_wire: MakeWire, stage: Stage) -> None:
        async with joined(await make_wire(), stage.table(), EMPTY) as (host, _):
            with pytest.raises(CallTimeout):
                await host.call("hold", ["a"], timeout_s=0.05, result=str)
            await stage.wait_cancelled("a")
            assert await host.call("ping", timeout_s=PATIENCE_S, result=dict) == {}
            assert host.stats.dropped_late == 1

    async def test_a_cancel_runs_through_a_chain_of_calls(self, make_wire: MakeWire, stage: Stage) -> None:
        host_stage = Stage()
        async with joined(await make_wire(), stage.table(), host_stage.table()) as (host, _):
            call = asyncio.create_task(host.call("ask", ["hold"], timeout_s=PATIENCE_S, result=str))
            await host_stage.wait_entered("one")
            call.cancel()
            await host_stage.wait_cancelled("one")

    async def test_many_calls_in_both_directions_are_each_answered_once(
        self, make_wire: MakeWire, stage: Stage
    ) -> None:
        async with joined(await make_wire(), stage.table(), Stage().table()) as ends:
            async with asyncio.TaskGroup() as group:
                calls = [
                    (at, group.create_task(end.call("echo", [str(at)], timeout_s=PATIENCE_S, result=str)))
                    for at in range(300)
                    for end in ends
                ]
            assert [(at, call.result()) for at, call in calls] == [(at, str(at)) for at in range(300) for _ in ends]


class Depth(Struct, frozen=True):
    left: int


class _Replayed:
    """A stream of which some bytes were read already."""

    def __init__(self, data: bytes, raw: Raw) -> None:
        self._data = data
        self._stream = raw.stream
        self.write = raw.stream.write
        self.write_now = raw.stream.write_now
        self.close = raw.stream.close

    async def read(self) -> bytes:
        data, self._data = self._data, b""
        return data or await self._stream.read()


async def caught(call: Awaitable[object]) -> ProtocolError:
    with pytest.raises(ProtocolError) as raised:
        await call
    return raised.value
