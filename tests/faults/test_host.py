"""The host misbehaves, and the plugin, a real process, neither grows nor hangs nor loses anything.

Elsewhere: each rule of the wire for itself, with bounds of a few bytes (tests/contract, tests/protocol), regular files
and a host that is killed (tests/e2e/test_lifecycle.py), when an agent that can't be read shows offline
(tests/plugin/presence/test_watch.py).
"""

import asyncio
import contextlib
import itertools
import random
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Collection, Iterable
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from plugin.loopback.faults import Hang
from plugin.presence.watch import UNREADABLE
from plugin.watchdog import STUCK
from protocol.framing import Framing
from tests.support.fleet import Fleet, dispatch, environment, fleet_on_loopback
from tests.support.rawhost import Message, RawHost, raw_host

MIB = 1024 * 1024
FLOOD = 100_000
# What the process may take at its most: the interpreter and its libraries, and with the default limits 64 MiB of
# requests that wait, 16 MiB of answers that nobody reads, and a message of 16 MiB.
MOST_MEMORY_MIB = 256

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncGenerator[Fleet]:
    async with fleet_on_loopback(tmp_path) as fleet:
        yield fleet


@pytest.fixture(params=list(Framing))
async def host(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[RawHost]:
    framing: Framing = request.param
    config: dict[str, object] = {"root": str(tmp_path / "root"), "presence": {"enabled": False}}
    async with raw_host(environment(tmp_path), config, framing=framing) as host:
        yield host


def request(number: int) -> Message:
    """One of a flood: what is answered at once, what is handled, what is unknown, what is never answered.

    And now and then what its handler has to wait for, so that others wait for a handler.
    """
    methods = ("ping", "agentic.presence.status", "no.such.method", "AgentStateChanged")
    method = "agentic.sync.status" if number % 1000 < 40 and number % 4 != 3 else methods[number % 4]
    call: Message = {"jsonrpc": "2.0", "method": method, "id": number}
    if number % 4 == 3:
        del call["id"]
        call["params"] = {"agent_id": f"agent-{number % 100}", "state": "busy"}
    return call


def answers_of(messages: Iterable[Message]) -> Counter[object]:
    return Counter(message["id"] for message in messages if "id" in message and "method" not in message)


async def flood(host: RawHost, numbers: Iterable[int], at_once: int = 500) -> None:
    for some in batches(numbers, at_once):
        await host.send(*[request(number) for number in some])


def long_request(number: int) -> Message:
    methods = ("ping", "agentic.presence.status")
    return {"jsonrpc": "2.0", "id": f"{number}{'-' * 16_384}", "method": methods[number % 2]}


async def flood_until_stuck(host: RawHost) -> int:
    """Send requests with long ids, so that their answers are as long, until no more are taken; return how many."""
    for count in itertools.count(50, 50):
        check_memory(host)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                await host.send(*[long_request(number) for number in range(count - 50, count)])
                continue
        return count
    raise AssertionError


async def all_answered(host: RawHost, asked: Collection[object]) -> None:
    """Read until so many answers have come."""
    left = len(asked)
    while left > 0:
        came = await host.read()
        assert came or host.process.stdout is None or not host.process.stdout.at_eof(), "the plugin has ended"
        left -= sum(answers_of(came).values())


def batches(numbers: Iterable[int], size: int) -> Iterable[list[int]]:
    source = iter(numbers)
    while some := list(itertools.islice(source, size)):
        yield some


def check_memory(host: RawHost) -> None:
    assert host.memory_mib() < MOST_MEMORY_MIB


async def leave(host: RawHost) -> None:
    """End it in order: it is still all there."""
    check_memory(host)
    assert await host.result("ping") == {}
    host.hang_up()
    await host.rest()
    assert await host.gone() == 0


async def test_a_flood_of_a_hundred_thousand_is_answered_one_by_one(host: RawHost) -> None:
    flooding = asyncio.create_task(flood(host, range(FLOOD)))
    asked = {number for number in range(FLOOD) if number % 4 != 3}
    await all_answered(host, asked)
    await flooding
    answered = answers_of(host.messages)
    del answered["call-1"]
    assert answered.keys() == asked
    assert set(answered.values()) == {1}
    await leave(host)


async def test_a_host_that_does_not_read_is_read_no_more_and_gets_every_answer_once_it_does(host: RawHost) -> None:
    count = await flood_until_stuck(host)
    asked = {long_request(number)["id"] for number in range(count)}
    await all_answered(host, asked)
    assert answers_of(host.messages).keys() - {"call-1"} == asked
    await leave(host)


async def test_a_host_that_reads_slowly_gets_whole_messages(host: RawHost) -> None:
    for number in range(50):
        await host.send({"jsonrpc": "2.0", "id": number, "method": "rpc.discover"})
    while len(answers_of(host.messages)) < 51:
        await host.read(1000)
    documents = [message["result"] for message in host.messages if "openrpc" in message.get("result", {})]
    assert len(documents) == 50
    assert all(document == documents[0] for document in documents)
    await leave(host)


async def test_messages_may_come_in_any_pieces(host: RawHost) -> None:
    message = b'{"jsonrpc":"2.0","id":"\xc3\xa9","method":"ping"}'
    framed = (
        message + b"\n" if host.framing is Framing.NDJSON else b"Content-Length: %d\r\n\r\n" % len(message) + message
    )
    await host.write_apart(framed)
    assert (await host.until(lambda answer: answer.get("id") == "\u00e9"))["result"] == {}
    await leave(host)


async def test_half_a_message_at_the_end_costs_nothing_but_itself(host: RawHost) -> None:
    await host.result("agentic.sync.status")  # all that it takes is loaded: on a busy machine that is a second
    await host.send({"jsonrpc": "2.0", "id": 1, "method": "agentic.sync.status"})
    half = b'{"jsonrpc":"2.0","id":2,"method":"pi'
    await host.write(half if host.framing is Framing.NDJSON else b"Content-Length: 100\r\n\r\n" + half)
    host.hang_up()
    answers = {message["id"]: message for message in await host.rest() if "id" in message}
    assert "result" in answers[1]
    assert answers[None]["error"]["code"] == -32700
    assert await host.gone() == 0


async def test_a_message_of_64_mib_is_skipped_and_said(host: RawHost) -> None:
    before = host.memory_mib()
    size = 64 * MIB
    if host.framing is Framing.CONTENT_LENGTH:
        await host.write(b"Content-Length: %d\r\n\r\n" % size)
    for _ in range(64):
        await host.write(b"x" * MIB)
    if host.framing is Framing.NDJSON:
        await host.write(b"\n")
    answer = await host.until(lambda message: "error" in message)
    assert (answer["id"], answer["error"]["code"]) == (None, -32600)
    assert answer["error"]["data"]["kind"] == "message_too_large"
    assert host.memory_mib() - before < 3 * 16
    await leave(host)


async def test_the_largest_message_and_the_longest_batch_are_taken_within_bounds(host: RawHost) -> None:
    large = {**dispatch(1), "task": "x" * (15 * MIB)}
    refused = await host.call("agentic.sync.push", {"dispatches": [large], "nonsense": 1})
    assert refused["error"]["code"] == -32602
    await host.send([1] * 60_000)
    answer = cast("Any", await host.until(lambda message: isinstance(message, list)))
    assert len(answer) == 60_000
    await host.send([1] * 7_000_000)
    assert (await host.until(lambda message: "error" in message))["error"]["code"] == -32600
    await leave(host)


async def test_garbage_is_answered_as_such_and_the_next_message_is_found(host: RawHost) -> None:
    rng = random.Random(7)  # noqa: S311  garbage
    for _ in range(50):
        await host.write(rng.randbytes(64 * 1024) + b"\n")
    # A line that ends in a header is where a reader that is lost finds its way again.
    await host.write(b"\n")
    await host.send({"jsonrpc": "2.0", "id": "found", "method": "ping"})
    assert (await host.until(lambda message: message.get("id") == "found"))["result"] == {}
    errors = [message["error"]["code"] for message in host.messages if "error" in message]
    assert errors
    assert set(errors) <= {-32700, -32600}
    await leave(host)


@pytest.mark.parametrize("end", ["eof", "sigterm", "broken"])
async def test_it_leaves_in_time_though_nobody_reads_and_what_was_pushed_is_delivered_later(
    fleet: Fleet, end: str
) -> None:
    fleet.platform.menu.add(Hang(), times=None)
    fleet.center.menu.add(Hang(), times=None)
    async with raw_host(environment(fleet.folder), fleet.config()) as host:
        pushed = {"dispatches": [dispatch(number) for number in range(20)], "queue_only": True}
        await host.send({"jsonrpc": "2.0", "id": 1, "method": "agentic.sync.push", "params": pushed})
        await fleet.platform.wait_until(lambda platform: len(platform.pushes) == 1)
        await flood_until_stuck(host)
        match end:
            case "eof":
                host.hang_up()
            case "sigterm":
                host.terminate()
            case _:
                host.stop_reading()
        assert await host.gone() in {0, STUCK}
    fleet.platform.menu.clear()
    fleet.center.menu.clear()
    async with raw_host(environment(fleet.folder), fleet.config()) as host:
        await fleet.platform.wait_until(lambda platform: len(platform.records) == 20)
        await leave(host)
    assert sorted(record.id for record in fleet.platform.records) == sorted(f"work-{number}" for number in range(20))
    assert len({push.key for push in fleet.platform.pushes}) == 1


SKIPPED = "a state that no guild has a word for is skipped"


def calls_of(host: RawHost, method: str) -> int:
    return sum(message.get("method") == method for message in host.messages)


def warnings_of(host: RawHost) -> list[Message]:
    lines = [message["params"] for message in host.messages if message.get("method") == "log"]
    return [line for line in lines if line["level"] == "warn"]


async def test_a_host_that_reads_byte_by_byte_delays_no_work_and_the_plugin_leaves_in_time_with_nothing_lost(
    fleet: Fleet,
) -> None:
    async with raw_host(environment(fleet.folder), fleet.config()) as host:
        host.take_at_most(1)
        before = len(host.wire)
        reading = asyncio.create_task(read_byte_by_byte(host))
        pushed = {"dispatches": [dispatch(number) for number in range(20)]}
        await host.send({"jsonrpc": "2.0", "id": 1, "method": "agentic.sync.push", "params": pushed})
        await fleet.platform.wait_until(lambda platform: len(platform.records) == 20)
        fleet.platform.menu.add(Hang(), times=None)
        pushed = {"dispatches": [dispatch(20)]}
        await host.send({"jsonrpc": "2.0", "id": 2, "method": "agentic.sync.push", "params": pushed})
        await fleet.platform.wait_until(lambda platform: len(platform.pushes) == 2)
        await flood_until_stuck(host)
        assert len(host.wire) - before < 4096  # less than a page, with which the pipe would take more
        host.hang_up()
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        host.take_at_most(64 * 1024)
        assert await host.gone() in {0, STUCK}
    fleet.platform.menu.clear()
    async with raw_host(environment(fleet.folder), fleet.config()) as host:
        await fleet.platform.wait_until(lambda platform: len(platform.records) == 21)
        await leave(host)
    assert len({push.key for push in fleet.platform.pushes}) == 2


async def read_byte_by_byte(host: RawHost) -> None:
    while True:
        await host.read(1)
        await asyncio.sleep(0.1)  # how slow it is


def state_answer(call: Message, state: object) -> Message:
    return {"jsonrpc": "2.0", "id": call["id"], "result": state}


NONSENSE: list[object] = [
    *(None, 7, True, [], {}, "", {"state": None}, {"state": 7}, {"states": ["busy"]}, {"state": "x" * MIB}),
]


def never(_call: Message) -> Iterable[Message]:
    return ()


def twice(call: Message) -> Iterable[Message]:
    """The right answer, and another for the same call."""
    return [state_answer(call, {"state": "working"}), state_answer(call, {"state": "busy"})]


def with_nonsense(call: Message) -> Iterable[Message]:
    if call["method"] != "ReadAgentState":
        return []
    return [state_answer(call, NONSENSE[call["id"] % len(NONSENSE)])]


def with_errors(call: Message) -> Iterable[Message]:
    essay = {"code": 1, "message": "x" * MIB}  # for the first call, whose failure is logged
    errors: list[object] = ["no", essay, 7, {}, {"code": "x"}, {"code": -32601, "message": 7}, {"code": 2**63}]
    return [{"jsonrpc": "2.0", "id": call["id"], "error": errors[call["id"] % len(errors)]}]


def with_an_essay(call: Message) -> Iterable[Message]:
    return [state_answer(call, {"state": "x" * MIB})]


def to_others(call: Message) -> Iterable[Message]:
    """Answers for calls that nobody made."""
    return [state_answer({"id": other}, {"state": "busy"}) for other in (call["id"] + 1000, "x", None, 1.5, [1])]


class Late:
    """Answer each call only when the next one has come."""

    def __init__(self) -> None:
        self.due: Message | None = None

    def __call__(self, call: Message) -> Iterable[Message]:
        late, self.due = self.due, call
        return [] if late is None else [state_answer(late, {"state": "busy"})]


def good(call: Message) -> Iterable[Message]:
    return [state_answer(call, {"state": "busy"})]


@pytest.mark.parametrize("answer", [never, with_nonsense, with_an_essay, with_errors, to_others, Late()])
async def test_an_agent_whose_state_cannot_be_read_is_said_and_recovers(fleet: Fleet, answer: Any) -> None:  # noqa: ANN401
    config = fleet.config(presence={"interval_s": 0.1}, host={"timeout_s": 0.1})
    async with raw_host(environment(fleet.folder), config) as host:
        host.answer = answer
        for asked in range(1, 16):
            await host.read_while(lambda asked=asked: calls_of(host, "ReadAgentState") < asked)
            status = await host.result("agentic.presence.status")
            assert len(msgspec.json.encode(status)) < 10_000
            assert status["agents"][0]["state"] not in {"busy", "working", "idle"}
        assert "busy" not in fleet.guilds[0].presence.values()
        assert any(line["message"] in {UNREADABLE.starts, SKIPPED} for line in warnings_of(host))
        assert max(map(len, map(msgspec.json.encode, warnings_of(host)))) < 10_000
        host.answer = good
        await host.read_while(lambda: fleet.guilds[0].presence.get("user-codex") != "busy")
        await leave(host)


async def test_a_second_answer_to_one_question_counts_for_nothing(fleet: Fleet) -> None:
    config = fleet.config(presence={"interval_s": 0.1})
    async with raw_host(environment(fleet.folder), config) as host:
        host.answer = twice
        await host.read_while(lambda: calls_of(host, "ReadAgentState") < 5)
        status = await host.result("agentic.presence.status")
        assert status["agents"][0]["state"] == "working"
        assert {put.status for put in fleet.guilds[0].puts} == {"on_call"}
        await leave(host)
