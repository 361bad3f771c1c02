"""Whatever comes in, in whatever order: each request gets exactly one answer, unless it was told that it gets none."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any, TypeAlias

from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.peer import Limits
from tests.support.clock import settle
from tests.support.stage import Stage
from tests.support.wires import memory_wire, notification, request, served, until

IDS = st.sampled_from([1, 2, 3, "1", 1.0])
NAMES = st.sampled_from(["a", "b"])

REQUESTS = st.one_of(
    st.builds(request, st.sampled_from(["hold", "stubborn", "slow_to_die"]), IDS, NAMES.map(lambda name: [name])),
    st.builds(request, st.sampled_from(["echo", "nowhere", "fail", "ping"]), IDS, st.just(["text"])),
)
CANCELS = IDS.map(lambda id_: notification("$/cancelRequest", {"id": id_}))
SILENCES = IDS.map(lambda id_: notification("notifications/cancelled", {"requestId": id_}))
NOTICES = st.builds(notification, st.sampled_from(["hold", "fail", "nowhere"]), NAMES.map(lambda name: [name]))
MESSAGES = st.one_of(REQUESTS, REQUESTS, CANCELS, SILENCES, NOTICES)
BATCHES = st.lists(MESSAGES, min_size=1, max_size=5)


Message: TypeAlias = dict[str, Any]


class Turns(int):
    """Let the peer run for so many turns of the loop."""


class Release(str):
    """Let the handlers of that name finish."""

    __slots__ = ()


Step: TypeAlias = Message | list[Message] | Turns | Release

STEPS = st.one_of(MESSAGES, MESSAGES, BATCHES, st.integers(1, 12).map(Turns), NAMES.map(Release))


def key(id_: object) -> tuple[type, object]:
    return type(id_), id_


@given(st.lists(STEPS, max_size=30), st.sampled_from(["drain", "release", "close"]))
@settings(max_examples=150, deadline=None)
def test_each_request_is_answered_exactly_once(steps: list[Step], end: str) -> None:
    asyncio.run(play(steps, end))


async def play(steps: list[Step], end: str) -> None:
    stage = Stage()
    wire = await memory_wire()
    async with served(wire, stage.table(), limits=Limits(handlers=2, waiting=3)) as (host, peer):
        for step in steps:
            match step:
                case Turns():
                    await settle(step)
                case Release():
                    stage.release(step)
                case _:
                    await host.send(step)
        asked = Counter(key(one["id"]) for one in messages(steps) if "id" in one)
        await until(lambda: peer.stats.requests + peer.stats.busy + peer.stats.duplicates == asked.total())
        if end == "drain":
            await peer.drain(0.0)
        closing = asyncio.create_task(peer.close(timeout_s=10)) if end == "close" else None
        await asyncio.sleep(0)
        stage.release("a", "b")
        if closing is None:
            await peer.idle()
            await wire.end_input()
            await peer.close()
        else:
            await closing
        answered: Counter[object] = Counter()
        while (message := await host.receive()) is not None:
            together: list[Message] = [message] if "id" in message else message
            answered.update(key(one["id"]) for one in together)
    silences = (one for one in messages(steps) if one["method"] == "notifications/cancelled")
    silenced = Counter(key(one["params"]["requestId"]) for one in silences)
    for id_, times in asked.items():
        assert times - silenced[id_] <= answered[id_] <= times, id_
    assert answered.keys() <= asked.keys()


def messages(steps: list[Step]) -> Iterator[Message]:
    for step in steps:
        if isinstance(step, list):
            yield from step
        elif isinstance(step, dict):
            yield step
