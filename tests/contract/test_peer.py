"""What a peer answers to requests and notifications. The other side is raw, so that each byte counts."""

import asyncio
import logging

import pytest

from protocol.errors import Code, RpcError
from protocol.framing import Framing
from protocol.methods import Context, Method
from protocol.peer import Limits
from tests.support.stage import Named, Nothing, Stage
from tests.support.wires import MakeWire, Raw, notification, request, served, until


@pytest.fixture
def stage() -> Stage:
    return Stage()


def ok(id_: object, result: object) -> dict[str, object]:
    return {"jsonrpc": "2.0", "id": id_, "result": result}


async def test_a_request_is_answered_by_name_by_position_and_by_alias(make_wire: MakeWire, stage: Stage) -> None:
    async with served(await make_wire(), stage.table()) as (host, _):
        await host.request("echo", 1, {"text": "a", "times": 2})
        assert await host.receive() == ok(1, "aa")
        await host.request("echo", 2, ["b", 3])
        assert await host.receive() == ok(2, "bbb")
        await host.request("same", 3, ["c"])
        assert await host.receive() == ok(3, "c")
        await host.request("hold", 4, None)
        stage.release("one")
        assert await host.receive() == ok(4, "one")


@pytest.mark.parametrize("id_", [0, "", "1", 1.0, 1.5, 2**70, -3, None])
async def test_an_id_comes_back_with_its_type(make_wire: MakeWire, stage: Stage, id_: object) -> None:
    async with served(await make_wire(), stage.table()) as (host, _):
        await host.request("ping", id_)
        answer = await host.receive()
        assert answer == ok(id_, {})
        assert type(answer["id"]) is type(id_)


async def test_what_is_wrong_with_a_request_is_said(make_wire: MakeWire, stage: Stage) -> None:
    async with served(await make_wire(), stage.table()) as (host, _):
        await host.send(
            request("nowhere", 1),
            request("echo", 2, {"text": 5}),
            request("echo", 3, {"text": "a", "odd": 1}),
            request("fail", 4),
            {"jsonrpc": "2.0", "id": 5},
            {"jsonrpc": "1.0", "id": 6, "method": "ping"},
        )
        await host.send_bytes(b'{"jsonrpc": "2.0", "method": "foobar, "params": "bar", "baz]\n')
        answers = await host.answers(7)
        assert {id_: error["code"] for id_, error in answers.items()} == {
            1: Code.METHOD_NOT_FOUND,
            2: Code.INVALID_PARAMS,
            3: Code.INVALID_PARAMS,
            4: Code.INTERNAL_ERROR,
            5: Code.INVALID_REQUEST,
            6: Code.INVALID_REQUEST,
            None: Code.PARSE_ERROR,
        }
        assert answers[2]["data"]["path"] == "$.text"
        assert answers[3]["data"]["path"] == "$.odd"
        assert answers[4]["data"].keys() == {"kind", "retryable", "trace_id"}
        await host.nothing_before()


async def test_the_error_that_a_handler_raises_is_the_answer(make_wire: MakeWire, stage: Stage) -> None:
    stage.error = RpcError(-32099, "Out of tea", {"kind": "tea"})
    async with served(await make_wire(), stage.table()) as (host, _):
        await host.request("fail", 1)
        assert (await host.receive())["error"] == {"code": -32099, "message": "Out of tea", "data": {"kind": "tea"}}


async def test_a_notification_is_never_answered(
    make_wire: MakeWire, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(await make_wire(), stage.table()) as (host, peer):
        with caplog.at_level(logging.DEBUG, logger="protocol"):
            await host.send(
                notification("nowhere"),
                notification("fail"),
                notification("echo", {"text": 5}),
                notification("note", ["a"]),
                notification("echo", ["b"]),
            )
            await stage.wait_noted(1)
            await host.nothing_before()
        assert peer.stats.notifications == 5
        levels = [record.levelno for record in caplog.records if "notification" in record.getMessage()]
        assert sorted(levels) == [logging.DEBUG, logging.WARNING, logging.WARNING]


async def test_a_request_to_a_method_for_notifications_gets_null(make_wire: MakeWire, stage: Stage) -> None:
    async with served(await make_wire(), stage.table()) as (host, _):
        await host.request("note", 1, ["a"])
        assert await host.receive() == ok(1, None)


async def test_handlers_run_at_once_up_to_the_limit_and_start_in_order(make_wire: MakeWire, stage: Stage) -> None:
    names = [f"n{at}" for at in range(7)]
    async with served(await make_wire(), stage.table(), limits=Limits(handlers=3)) as (host, _):
        await host.send(*(request("hold", name, [name]) for name in names))
        await stage.wait_entered("n0", "n1", "n2")
        await host.nothing_before()
        assert stage.entered == ["n0", "n1", "n2"]
        stage.release("n1")
        assert await host.receive() == ok("n1", "n1")
        await stage.wait_entered("n3")
        stage.release(*names)
        assert (await host.answers(6)).keys() == {*names} - {"n1"}
        assert stage.entered == names
        assert stage.most_at_once == 3


async def test_calls_start_in_order_whether_they_came_in_a_batch_or_alone(make_wire: MakeWire, stage: Stage) -> None:
    async with served(await make_wire(), stage.table()) as (host, _):
        await host.send(
            [request("hold", 1, ["a"]), request("hold", 2, ["b"])],
            request("hold", 3, ["c"]),
            [request("hold", 4, ["d"])],
            request("hold", 5, ["e"]),
        )
        await stage.wait_entered(*"abcde")
        assert stage.entered == [*"abcde"]
        stage.release(*"abcde")
        assert len(await host.receive_many(4)) == 4


async def test_what_finds_no_place_is_busy_and_urgent_methods_always_find_one(
    make_wire: MakeWire, stage: Stage
) -> None:
    limits = Limits(handlers=1, waiting=2)
    async with served(await make_wire(), stage.table(), limits=limits) as (host, peer):
        await host.send(*(request("hold", at, [str(at)]) for at in range(4)))
        refused = await host.receive()
        assert refused["id"] == 3
        assert refused["error"]["code"] == Code.BUSY
        assert refused["error"]["data"]["kind"] == "busy"
        assert refused["error"]["data"]["retryable"] is True
        assert refused["error"]["data"]["retry_after_ms"] > 0
        await host.send(notification("note"))
        await host.nothing_before()
        assert (peer.stats.busy, peer.stats.dropped_in) == (1, 1)
        stage.release("0", "1", "2")
        assert await host.answers(3) == {0: "0", 1: "1", 2: "2"}
        assert stage.noted == []


async def test_waiting_requests_are_bounded_by_their_bytes(make_wire: MakeWire, stage: Stage) -> None:
    limits = Limits(handlers=1, waiting_bytes=10_000)
    async with served(await make_wire(), stage.table(), limits=limits) as (host, _):
        await host.request("hold", 0, ["0"])
        await host.send(*(request("echo", at, ["x" * 4_000]) for at in range(1, 4)))
        assert (await host.receive())["error"]["code"] == Code.BUSY
        stage.release("0")
        assert (await host.answers(3)).keys() == {0, 1, 2}
        await host.request("echo", 4, ["y"])
        assert await host.receive() == ok(4, "y")


async def test_a_second_request_with_an_id_in_flight_is_refused(make_wire: MakeWire, stage: Stage) -> None:
    async with served(await make_wire(), stage.table()) as (host, peer):
        await host.send(request("hold", 1, ["first"]), request("hold", 1, ["second"]))
        refused = await host.receive()
        assert (refused["id"], refused["error"]["code"]) == (1, Code.INVALID_REQUEST)
        assert refused["error"]["data"]["kind"] == "duplicate_id"
        await host.send(request("echo", "1", ["text"]), request("echo", 1.0, ["float"]))
        assert await host.receive_many(2) == [ok("1", "text"), ok(1.0, "float")]
        stage.release("first")
        assert await host.receive() == ok(1, "first")
        await host.request("echo", 1, ["again"])
        assert await host.receive() == ok(1, "again")
        assert stage.entered == ["first"]
        assert peer.stats.duplicates == 1


async def test_requests_whose_id_is_null_are_all_answered(make_wire: MakeWire, stage: Stage) -> None:
    async with served(await make_wire(), stage.table()) as (host, _):
        await host.send(request("hold", None, ["a"]), request("hold", None, ["b"]))
        await stage.wait_entered("a", "b")
        stage.release("a", "b")
        assert [one["result"] for one in await host.receive_many(2)] == ["a", "b"]


class TestFraming:
    @pytest.mark.parametrize("framing", Framing)
    async def test_answers_go_out_in_the_framing_of_the_first_bytes(
        self, make_wire: MakeWire, stage: Stage, framing: Framing
    ) -> None:
        async with served(await make_wire(), stage.table()) as (host, peer):
            framed = Raw(host.stream, framing)
            await framed.request("echo", 1, ["ü" * 100])
            assert await framed.receive() == ok(1, "ü" * 100)
            assert peer.framing is framing

    async def test_bytes_that_are_no_message_are_answered_and_reading_goes_on(
        self, make_wire: MakeWire, stage: Stage
    ) -> None:
        limits = Limits(max_message_bytes=1_000)
        async with served(await make_wire(), stage.table(), limits=limits) as (host, peer):
            await host.request("echo", 1, ["x" * 2_000])
            answer = await host.receive()
            assert (answer["id"], answer["error"]["code"]) == (None, Code.INVALID_REQUEST)
            assert answer["error"]["data"]["kind"] == "message_too_large"
            await host.send_bytes(b"\xff\xfe\n\n" + b"[" * 900 + b"\n")
            assert [one["error"]["code"] for one in await host.receive_many(2)] == [Code.PARSE_ERROR] * 2
            await host.nothing_before()
            assert peer.stats.malformed == 3

    async def test_a_bad_header_is_a_parse_error(self, make_wire: MakeWire, stage: Stage) -> None:
        async with served(await make_wire(), stage.table()) as (host, _):
            framed = Raw(host.stream, Framing.CONTENT_LENGTH)
            await framed.send_bytes(b"Content-Length: many\r\n\r\n")
            answer = await framed.receive()
            assert (answer["error"]["code"], answer["error"]["data"]["kind"]) == (Code.PARSE_ERROR, "bad_header")
            await framed.nothing_before()


class TestContext:
    async def test_progress_goes_to_who_asked_for_it(self, make_wire: MakeWire, stage: Stage) -> None:
        async def work(context: Context, _params: Named) -> object:
            await context.progress(1, 2, "half")
            await context.progress(2)
            return context.meta

        table = stage.table(Method(name="work", handler=work, params=Named))
        async with served(await make_wire(), table) as (host, _):
            await host.request("work", 1, {"name": "x", "_meta": {"progressToken": "t", "other": 1}})
            first, second, answer = await host.receive_many(3)
            assert first == notification(
                "$/progress", {"token": "t", "value": {"done": 1, "total": 2, "message": "half"}}
            )
            assert second == notification("$/progress", {"token": "t", "value": {"done": 2}})
            assert answer == ok(1, {"progressToken": "t", "other": 1})
            await host.request("work", 2, {"_meta": None})
            assert await host.receive() == ok(2, {})

    async def test_what_is_to_follow_the_answer_follows_it(self, make_wire: MakeWire, stage: Stage) -> None:
        told: list[bool] = []

        async def work(context: Context, params: Named) -> object:
            context.after_answer(lambda: stage.noted.append(f"after {params.name}"))
            context.after_answer(lambda: told.append(context.peer.notify_soon(params.name)))
            await stage.hold(context, params)
            return params.name

        table = stage.table(Method(name="work", handler=work, params=Named))
        async with served(await make_wire(), table) as (host, _):
            await host.request("work", 1, ["a"])
            await stage.wait_entered("a")
            assert stage.noted == []
            stage.release("a")
            assert await host.receive_many(2) == [ok(1, "a"), notification("a")]
            await host.send([request("work", 2, ["b"]), request("hold", 3, ["c"])])
            stage.release("b")
            await stage.wait_entered("b", "c")
            await host.nothing_before()
            assert stage.noted == ["after a"]
            stage.release("c")
            assert len(await host.receive()) == 2
            assert await host.receive() == notification("b")
            await host.send(request("work", 4, ["d"]))
            await stage.wait_entered("d")
            await host.send(notification("notifications/cancelled", {"requestId": 4}))
            await host.nothing_before()
            assert stage.noted == ["after a", "after b"]

    async def test_a_failure_after_the_answer_does_not_end_the_writing(self, make_wire: MakeWire, stage: Stage) -> None:
        failures: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: failures.append(context))

        async def work(context: Context, _params: Nothing) -> None:
            context.after_answer(lambda: failures.append({"never": 1 // 0}))

        table = stage.table(Method(name="work", handler=work, params=Nothing))
        async with served(await make_wire(), table) as (host, _):
            await host.request("work", 1)
            assert await host.receive() == ok(1, None)
            await host.nothing_before()
        assert [type(one["exception"]) for one in failures] == [ZeroDivisionError]


async def test_the_hook_for_the_first_message_runs_before_it_is_handled(make_wire: MakeWire, stage: Stage) -> None:
    seen: list[str | None] = []
    gate = asyncio.Event()

    async def first(method: str | None) -> None:
        seen.append(method)
        await gate.wait()

    async with served(await make_wire(), stage.table(), on_first_message=first) as (host, _):
        await host.send(request("hold", 1, ["a"]), request("ping", 2))
        await until(lambda: bool(seen))
        assert stage.entered == []
        gate.set()
        assert await host.receive() == ok(2, {})
        assert seen == ["hold"]
        stage.release("a")
        assert await host.receive() == ok(1, "a")
    for message, method in (([request("echo", 1, ["a"]), 1], "echo"), ({"foo": 1}, None), (notification("x"), "x")):
        seen.clear()
        async with served(await make_wire(), stage.table(), on_first_message=first) as (host, _):
            await host.send(message)
            await host.request("ping", 9)
            while (await host.receive()) != ok(9, {}):
                pass
            assert seen == [method]
