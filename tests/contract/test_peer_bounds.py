"""That nothing grows: floods, readers that do not read, and both together. Each ends with everything answered once."""

import asyncio
import json

import pytest

from protocol.errors import CallTimeout, Code
from protocol.framing import Framing
from protocol.methods import Context, Method, MethodTable
from protocol.outlet import SOON_BYTES
from protocol.peer import Limits, Peer
from tests.support.stage import Named, Stage
from tests.support.wires import PATIENCE_S, MakeWire, Raw, notification, request, running, served

KIB = 1024


@pytest.fixture
def stage() -> Stage:
    return Stage()


async def settled(peer: Peer) -> None:
    """Wait until a peer has taken whatever it can take now."""
    before = None
    while before != peer.stats:
        before = peer.stats
        await asyncio.sleep(0.02)


async def pour(host: Raw, data: bytes) -> None:
    for start in range(0, len(data), 64 * KIB):
        await host.send_bytes(data[start : start + 64 * KIB])


class TestFlood:
    async def test_a_hundred_thousand_notifications_are_all_handled_when_handlers_are_quick(
        self, make_wire: MakeWire
    ) -> None:
        seen = 0
        most = 0

        async def count(_context: Context, _params: Named) -> None:
            nonlocal seen, most
            seen += 1
            most = max(most, len(asyncio.all_tasks()))

        table = MethodTable(
            [
                Method(name="count", handler=count, params=Named, notification=True),
                *(method for method in Stage().table() if method.name == "ping"),
            ]
        )
        async with served(await make_wire(), table) as (host, peer):
            await pour(host, (json.dumps(notification("count")) + "\n").encode() * 100_000)
            await host.nothing_before()
            await peer.idle()
            assert seen == 100_000
            assert peer.stats.dropped_in == 0
            assert most < 30

    @pytest.mark.parametrize("method", ["hold", "urgent"])
    async def test_with_handlers_that_wait_the_rest_is_dropped_and_the_peer_stays_responsive(
        self, make_wire: MakeWire, stage: Stage, method: str
    ) -> None:
        limits = Limits(waiting=100)
        table = stage.table(Method(name="urgent", handler=stage.hold, params=Named, urgent=True))
        async with served(await make_wire(), table, limits=limits, framing=Framing.NDJSON) as (host, peer):
            await pour(host, (json.dumps(notification(method, ["x"])) + "\n").encode() * 20_000)
            calling = asyncio.create_task(peer.call("q", timeout_s=PATIENCE_S, result=int))
            assert (await host.receive())["method"] == "q"
            await host.send({"jsonrpc": "2.0", "id": 1, "result": 5})
            assert await calling == 5
            assert len(asyncio.all_tasks()) < 130
            taken = 108 if method == "hold" else 100
            assert (peer.stats.notifications, peer.stats.dropped_in) == (taken, 20_000 - taken)
            stage.release("x")
            await peer.idle()
            assert len(stage.entered) == taken

    async def test_a_flood_of_requests_is_answered_once_each(self, make_wire: MakeWire, stage: Stage) -> None:
        async with served(await make_wire(), stage.table()) as (host, peer), asyncio.TaskGroup() as group:
            flood = "".join(json.dumps(request("echo", at, [str(at)])) + "\n" for at in range(20_000)).encode()
            group.create_task(pour(host, flood))
            assert await host.answers(20_000) == {at: str(at) for at in range(20_000)}
            assert peer.stats.busy == 0

    async def test_a_flood_of_pings_is_answered_while_every_handler_is_busy(
        self, make_wire: MakeWire, stage: Stage
    ) -> None:
        limits = Limits(handlers=1, waiting=10)
        async with served(await make_wire(), stage.table(), limits=limits) as (host, _), asyncio.TaskGroup() as group:
            await host.send(*(request("hold", f"h{at}", ["a"]) for at in range(11)))
            flood = "".join(json.dumps(request("ping", at)) + "\n" for at in range(5_000)).encode()
            group.create_task(pour(host, flood))
            assert await host.answers(5_000) == {at: {} for at in range(5_000)}
            stage.release("a")
            assert len(await host.answers(11)) == 11


class TestSlowReader:
    async def test_handlers_wait_with_their_answers_and_everything_comes_in_the_end(
        self, make_wire: MakeWire, stage: Stage
    ) -> None:
        limits = Limits(unsent_bytes=256 * KIB, handlers=4)
        async with served(await make_wire(), stage.table(), limits=limits) as (host, peer):
            count, size = 400, 32 * KIB
            await host.send(*(request("echo", at, ["x", size]) for at in range(count)))
            await settled(peer)
            # 12.5 MiB are asked for; what is made of it is what is unsent, and one answer for each handler.
            assert peer.stats.unsent_bytes < limits.unsent_bytes + 5 * size
            assert peer.stats.requests == count
            await host.request("hold", "late", ["a"])
            await host.send(notification("$/cancelRequest", {"id": "late"}))
            answers = await host.answers(count + 1)
            assert answers.pop("late")["code"] == Code.CANCELLED
            assert answers == dict.fromkeys(range(count), "x" * size)

    async def test_reading_stops_before_refusals_that_nobody_reads(self, make_wire: MakeWire, stage: Stage) -> None:
        limits = Limits(unsent_bytes=64 * KIB, handlers=1, waiting=4)
        async with (
            served(await make_wire(), stage.table(), limits=limits) as (host, peer),
            asyncio.TaskGroup() as group,
        ):
            await host.send(*(request("hold", f"h{at}", [f"h{at}"]) for at in range(5)))
            lines = [json.dumps(request("echo", at, ["x" * 50])) + "\n" for at in range(20_000)]
            pouring = group.create_task(pour(host, "".join(lines).encode()))
            await settled(peer)
            assert not pouring.done()
            assert peer.stats.unsent_bytes < limits.unsent_bytes + KIB
            answers = await host.answers(20_000)
            assert {error["code"] for error in answers.values()} == {Code.BUSY}
            stage.release(*(f"h{at}" for at in range(5)))
            assert (await host.answers(5)).keys() == {f"h{at}" for at in range(5)}

    async def test_answers_and_cancels_are_read_while_our_own_go_unread(
        self, make_wire: MakeWire, stage: Stage
    ) -> None:
        limits = Limits(unsent_bytes=64 * KIB, handlers=4)
        async with (
            served(await make_wire(), stage.table(), limits=limits, framing=Framing.NDJSON) as (host, peer),
            asyncio.TaskGroup() as group,
        ):
            call = group.create_task(peer.call("q", timeout_s=PATIENCE_S, result=int))
            assert (await host.receive())["method"] == "q"
            await host.request("hold", "h", ["a"])
            await stage.wait_entered("a")
            await host.send(*(request("echo", at, ["x", 64 * KIB]) for at in range(10)))
            await settled(peer)
            with pytest.raises(CallTimeout):
                await peer.call("no room", timeout_s=0.01, result=int)
            await host.send({"jsonrpc": "2.0", "id": 1, "result": 5}, notification("$/cancelRequest", {"id": "h"}))
            assert await call == 5
            await stage.wait_cancelled("a")
            answers = await host.answers(11)
            assert answers["h"]["code"] == Code.CANCELLED

    async def test_requests_and_their_cancels_do_not_pile_up_answers(self, make_wire: MakeWire, stage: Stage) -> None:
        limits = Limits(unsent_bytes=64 * KIB, handlers=1)
        async with (
            served(await make_wire(), stage.table(), limits=limits) as (host, peer),
            asyncio.TaskGroup() as group,
        ):
            await host.request("hold", "h", ["a"])
            pairs = [(request("hold", at, ["b"]), notification("$/cancelRequest", {"id": at})) for at in range(5_000)]
            lines = "".join(json.dumps(one) + "\n" for pair in pairs for one in pair)
            group.create_task(pour(host, lines.encode()))
            await settled(peer)
            assert peer.stats.requests < 5_000
            assert peer.stats.unsent_bytes < limits.unsent_bytes + KIB
            answers = await host.answers(5_000)
            assert {error["code"] for error in answers.values()} == {Code.CANCELLED}
            stage.release("a", "b")
            assert (await host.receive())["id"] == "h"

    async def test_notices_wait_or_are_dropped(self, make_wire: MakeWire) -> None:
        async with served(await make_wire(), MethodTable([]), framing=Framing.NDJSON) as (host, peer):
            sent = 0
            while peer.notify_soon("log", ["x" * 1_000]):
                sent += 1
                await asyncio.sleep(0)
            assert sent * 1_000 < SOON_BYTES + 512 * KIB
            assert peer.stats.dropped_out == 1
            notifying = asyncio.create_task(peer.notify("patient"))
            messages = await host.receive_many(sent + 1)
            await notifying
            assert messages[-1] == notification("patient")

    async def test_two_peers_that_flood_each_other_both_finish(self, make_wire: MakeWire) -> None:
        wire = await make_wire()
        ends = Stage(), Stage()
        async with (
            running(Peer(wire.ours, ends[0].table(), framing=Framing.NDJSON)) as one,
            running(Peer(wire.theirs, ends[1].table(), framing=Framing.NDJSON)) as two,
            asyncio.TaskGroup() as group,
        ):
            calls = [
                group.create_task(peer.call("echo", ["x", 10 * KIB], timeout_s=PATIENCE_S, result=str))
                for _ in range(500)
                for peer in (one, two)
            ]
        assert {len(call.result()) for call in calls} == {10 * KIB}
