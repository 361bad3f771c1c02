"""How a connection ends: the intake stopped, the input over, the pipe broken, handlers that will not go."""

import asyncio

import pytest

from protocol.errors import Code, PeerClosed, StreamClosed
from protocol.framing import Framing
from protocol.methods import Context, Method, MethodTable
from protocol.peer import Limits, Peer
from tests.support.clock import settle
from tests.support.stage import Named, Stage
from tests.support.wires import PATIENCE_S, MakeWire, Raw, notification, request, running, served, until


@pytest.fixture
def stage() -> Stage:
    return Stage()


def ok(id_: object, result: object) -> dict[str, object]:
    return {"jsonrpc": "2.0", "id": id_, "result": result}


class TestStoppedIntake:
    async def test_requests_are_refused_notifications_dropped_and_urgent_ones_served(
        self, make_wire: MakeWire, stage: Stage
    ) -> None:
        async with served(await make_wire(), stage.table()) as (host, peer):
            await host.request("hold", 1, ["a"])
            await stage.wait_entered("a")
            peer.stop_intake()
            await host.send(request("echo", 2, ["x"]), notification("note"), request("nowhere", 3))
            answers = await host.answers(2)
            assert {id_: error["code"] for id_, error in answers.items()} == {2: Code.CLOSED, 3: Code.CLOSED}
            await host.nothing_before()
            await host.send([request("echo", 4, ["x"]), notification("note")])
            assert [one["error"]["code"] for one in await host.receive()] == [Code.CLOSED]
            assert (peer.stats.refused, peer.stats.dropped_in, stage.noted) == (3, 2, [])
            stage.release("a")
            assert await host.receive() == ok(1, "a")

    async def test_cancels_and_answers_still_count(self, make_wire: MakeWire, stage: Stage) -> None:
        async with (
            served(await make_wire(), stage.table(), framing=Framing.NDJSON) as (host, peer),
            asyncio.TaskGroup() as group,
        ):
            await host.request("hold", 1, ["a"])
            await stage.wait_entered("a")
            call = group.create_task(peer.call("q", timeout_s=PATIENCE_S, result=int))
            await host.receive()
            peer.stop_intake()
            await host.send(notification("$/cancelRequest", {"id": 1}), ok(1, 5))
            assert await call == 5
            assert (await host.receive())["error"]["code"] == Code.CANCELLED


class TestDrain:
    async def test_it_waits_for_what_runs_and_what_waits(self, make_wire: MakeWire, stage: Stage) -> None:
        async with served(await make_wire(), stage.table()) as (host, peer):
            await host.send(*(request("hold", at, [str(at)]) for at in range(10)), notification("hold", ["10"]))
            await stage.wait_entered("7")
            draining = asyncio.create_task(peer.drain(PATIENCE_S))
            stage.release(*map(str, range(10)))
            assert len(await host.answers(10)) == 10
            await stage.wait_entered("10")
            assert not draining.done()
            stage.release("10")
            assert await draining is True

    async def test_with_nothing_in_flight_it_is_true_at_once(self, make_wire: MakeWire, stage: Stage) -> None:
        async with served(await make_wire(), stage.table()) as (_, peer):
            assert await peer.drain(0.0) is True

    async def test_what_cannot_finish_is_answered_closed_once(self, make_wire: MakeWire, stage: Stage) -> None:
        async with served(await make_wire(), stage.table()) as (host, peer):
            await host.send(
                *(request("hold", name, [name]) for name in "abcdef"),
                request("stubborn", "s", ["s"]),
                request("slow_to_die", "t", ["t"]),
                request("hold", "waiting", ["w"]),
            )
            await stage.wait_entered(*"abcdefst")
            stage.release("a")
            assert await host.receive() == ok("a", "a")
            await stage.wait_entered("w")
            await host.send(request("hold", "late", ["l"]), notification("hold", ["n"]))
            await host.nothing_before()
            assert await peer.drain(0.01) is False
            answers = await host.answers(9)
            assert answers.keys() == {*"bcdefst", "waiting", "late"}
            assert {error["code"] for error in answers.values()} == {Code.CLOSED}
            await stage.wait_cancelled(*"bcdefstw")
            stage.release("s", "t", "n")
            await host.nothing_before()
            assert "l" not in stage.entered
            assert await peer.drain(PATIENCE_S) is True

    async def test_it_waits_until_the_answers_were_written(self, make_wire: MakeWire, stage: Stage) -> None:
        async with served(await make_wire(), stage.table()) as (host, peer):
            await host.send(*(request("echo", at, ["x" * 1_000, 1_000]) for at in range(2)))
            await until(lambda: peer.stats.requests == 2)
            await settle()
            draining = asyncio.create_task(peer.idle())
            await settle()
            assert not draining.done()
            await host.answers(2)
            await draining

    async def test_an_answer_that_nobody_reads_yet_stays_the_answer(self, make_wire: MakeWire, stage: Stage) -> None:
        async with served(await make_wire(), stage.table(), limits=Limits(unsent_bytes=1_000)) as (host, peer):
            await host.send(*(request("echo", at, ["x" * 1_000, 300]) for at in range(4)))
            await until(lambda: peer.stats.requests == 4)
            assert await peer.drain(0.01) is False
            answers = await host.answers(4)
            assert {len(answer) for answer in answers.values()} == {300_000}

    async def test_one_that_was_cancelled_and_will_not_go_is_answered_cancelled(
        self, make_wire: MakeWire, stage: Stage
    ) -> None:
        async with served(await make_wire(), stage.table()) as (host, peer):
            await host.request("stubborn", 1, ["s"])
            await stage.wait_entered("s")
            await host.send(notification("$/cancelRequest", {"id": 1}))
            await stage.wait_cancelled("s")
            assert await peer.drain(0.01) is False
            assert (await host.receive())["error"]["code"] == Code.CANCELLED
            stage.release("s")
            await host.nothing_before()

    async def test_a_batch_that_cannot_finish_is_answered_as_one(self, make_wire: MakeWire, stage: Stage) -> None:
        async with served(await make_wire(), stage.table()) as (host, peer):
            await host.send([request("hold", 1, ["a"]), request("echo", 2, ["b"]), request("hold", 3, ["c"])])
            await stage.wait_entered("a", "c")
            assert await peer.drain(0.01) is False
            answers = {one["id"]: one.get("result", one.get("error", {}).get("code")) for one in await host.receive()}
            assert answers == {1: Code.CLOSED, 2: "b", 3: Code.CLOSED}

    async def test_a_handler_that_drains_does_not_wait_for_itself(self, make_wire: MakeWire, stage: Stage) -> None:
        peers: list[Peer] = []

        async def shutdown(context: Context, _params: Named) -> str:
            peers[0].stop_intake()
            stage.say(stage.entered, "shutdown")
            return f"drained: {await peers[0].drain(PATIENCE_S, besides=context)}"

        table = stage.table(Method(name="shutdown", handler=shutdown, params=Named, urgent=True))
        async with served(await make_wire(), table) as (host, peer):
            peers.append(peer)
            await host.send(request("hold", 1, ["a"]), request("shutdown", 2))
            await stage.wait_entered("shutdown")
            await host.request("echo", 3, ["x"])
            assert (await host.receive())["error"]["code"] == Code.CLOSED
            stage.release("a")
            assert await host.receive_many(2) == [ok(1, "a"), ok(2, "drained: True")]

    async def test_a_handler_that_drains_in_vain_is_answered_itself(self, make_wire: MakeWire, stage: Stage) -> None:
        peers: list[Peer] = []

        async def shutdown(context: Context, _params: Named) -> str:
            return f"drained: {await peers[0].drain(0.01, besides=context)}"

        table = stage.table(Method(name="shutdown", handler=shutdown, params=Named, urgent=True))
        async with served(await make_wire(), table) as (host, peer):
            peers.append(peer)
            await host.send(request("hold", 1, ["a"]))
            await stage.wait_entered("a")
            await host.request("shutdown", 2)
            first, second = await host.receive_many(2)
            assert first["error"]["code"] == Code.CLOSED
            assert second == ok(2, "drained: False")


class TestEndOfInput:
    async def test_what_is_in_flight_is_still_answered(self, make_wire: MakeWire, stage: Stage) -> None:
        wire = await make_wire()
        peer, host = Peer(wire.ours, stage.table()), Raw(wire.theirs)
        await host.send(request("hold", 1, ["a"]), request("ping", 2))
        await host.send_bytes(b'{"jsonrpc":"2.0","id":3,"method":"echo","params":["no newline"]}')
        await wire.end_input()
        await peer.run()
        assert peer.stats.requests == 3
        draining = asyncio.create_task(peer.drain(PATIENCE_S))
        assert await host.answers(2) == {2: {}, 3: "no newline"}
        stage.release("a")
        assert await host.receive() == ok(1, "a")
        assert await draining is True
        await peer.close()
        assert await host.receive() is None
        await wire.theirs.close()

    async def test_a_message_cut_in_two_is_answered(self, make_wire: MakeWire, stage: Stage) -> None:
        wire = await make_wire()
        peer, host = Peer(wire.ours, stage.table()), Raw(wire.theirs, Framing.CONTENT_LENGTH)
        await host.send_bytes(b'Content-Length: 100\r\n\r\n{"jsonrpc"')
        await wire.end_input()
        await peer.run()
        assert (await host.receive())["error"]["code"] == Code.PARSE_ERROR
        await peer.close()
        await wire.theirs.close()

    async def test_a_handler_that_has_called_back_hears_of_it(self, make_wire: MakeWire, stage: Stage) -> None:
        wire = await make_wire()
        async with running(Peer(wire.ours, stage.table())):
            host = Raw(wire.theirs)
            await host.request("ask", 1, ["q"])
            assert (await host.receive())["method"] == "q"
            await wire.end_input()
            answer = await host.receive()
            assert (answer["id"], answer["error"]["code"]) == (1, Code.CLOSED)
        await wire.theirs.close()


class TestBrokenPipe:
    async def test_it_ends_the_run_and_fails_calls(self, make_wire: MakeWire, stage: Stage) -> None:
        ours, theirs, _ = await make_wire()
        peer = Peer(ours, stage.table(), framing=Framing.NDJSON)
        running = asyncio.create_task(peer.run())
        host = Raw(theirs)
        await host.request("hold", 1, ["a"])
        await stage.wait_entered("a")
        call = asyncio.create_task(peer.call("q", timeout_s=PATIENCE_S, result=int))
        await host.receive()
        await host.stream.close()
        async with asyncio.timeout(PATIENCE_S):
            await running
        with pytest.raises(PeerClosed):
            await call
        stage.release("a")
        async with asyncio.timeout(PATIENCE_S):
            await peer.drain(PATIENCE_S)
            while True:  # the first write may still be taken
                try:
                    await peer.notify("n")
                except PeerClosed:
                    break
                await asyncio.sleep(0)
        assert not peer.notify_soon("n")
        await peer.close()

    async def test_a_peer_whose_output_breaks_stops_reading(self, stage: Stage) -> None:
        stream = HalfBroken()
        peer = Peer(stream, stage.table(), framing=Framing.NDJSON)
        running = asyncio.create_task(peer.run())
        await peer.notify("n")
        async with asyncio.timeout(PATIENCE_S):
            await running
        await peer.close()
        assert stream.closed


class TestClose:
    async def test_everything_in_flight_gets_its_one_answer_and_then_the_end(
        self, make_wire: MakeWire, stage: Stage
    ) -> None:
        async with served(await make_wire(), stage.table()) as (host, peer):
            await host.send(*(request("hold", at, [str(at)]) for at in range(12)), request("stubborn", 12, ["s"]))
            await host.nothing_before()
            await stage.wait_entered("7")
            closing = asyncio.create_task(peer.close(timeout_s=PATIENCE_S))
            answers = await host.answers(13)
            assert {error["code"] for error in answers.values()} == {Code.CLOSED}
            assert await host.receive() is None
            await closing

    async def test_it_returns_in_time_whatever_a_handler_does(self, make_wire: MakeWire, stage: Stage) -> None:
        async with served(await make_wire(), stage.table()) as (host, peer):
            await host.request("stubborn", 1, ["s"])
            await stage.wait_entered("s")
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.gather(peer.close(timeout_s=0.05), peer.close(), peer.close())
            assert (await host.receive())["error"]["code"] == Code.CLOSED
            assert await host.receive() is None
            stage.release("s")

    async def test_it_returns_in_time_when_nobody_reads(self, make_wire: MakeWire, stage: Stage) -> None:
        async with served(await make_wire(), stage.table()) as (host, peer):
            await host.send(*(request("echo", at, ["x" * 1_000, 1_000]) for at in range(4)))
            await until(lambda: peer.stats.requests == 4)
            async with asyncio.timeout(PATIENCE_S):
                await peer.close(timeout_s=0.05)

    async def test_a_handler_may_close(self, make_wire: MakeWire, stage: Stage) -> None:
        peers: list[Peer] = []

        async def leave(_context: Context, _params: Named) -> None:
            await peers[0].close()

        table = stage.table(Method(name="leave", handler=leave, params=Named, notification=True))
        async with served(await make_wire(), table) as (host, peer):
            peers.append(peer)
            await host.send(notification("leave"))
            assert await host.receive() is None

    async def test_a_peer_that_never_ran_closes_its_stream_and_runs_no_more(self, make_wire: MakeWire) -> None:
        ours, theirs, _ = await make_wire()
        peer = Peer(ours, MethodTable([]), framing=Framing.NDJSON)
        await peer.notify("n")
        async with asyncio.timeout(PATIENCE_S):
            await peer.close()
            assert await theirs.read() == b""
            await peer.run()
        with pytest.raises(PeerClosed):
            await peer.call("q", timeout_s=PATIENCE_S, result=int)
        with pytest.raises(PeerClosed):
            await peer.notify("n")
        await theirs.close()

    async def test_cancelling_the_run_leaves_handlers_to_close(self, make_wire: MakeWire, stage: Stage) -> None:
        ours, theirs, _ = await make_wire()
        peer, host = Peer(ours, stage.table()), Raw(theirs)
        running = asyncio.create_task(peer.run())
        await host.request("hold", 1, ["a"])
        await stage.wait_entered("a")
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        stage.release("a")
        assert await host.receive() == ok(1, "a")
        await peer.close()
        await theirs.close()

    async def test_a_failing_hook_ends_the_run(self, make_wire: MakeWire, stage: Stage) -> None:
        async def first(_method: str | None) -> None:
            raise LookupError

        ours, theirs, _ = await make_wire()
        peer = Peer(ours, stage.table(), on_first_message=first)
        await Raw(theirs).request("ping", 1)
        with pytest.raises(LookupError):
            await peer.run()
        await peer.close()
        await theirs.close()


class HalfBroken:
    """A stream whose input stays open while its output is broken."""

    def __init__(self) -> None:
        self.closed = False

    async def read(self) -> bytes:
        await asyncio.Event().wait()
        return b""

    async def write(self, data: bytes) -> None:
        self.write_now(data)

    def write_now(self, data: bytes) -> bool:
        del data
        raise StreamClosed("broken")

    async def close(self) -> None:
        self.closed = True
