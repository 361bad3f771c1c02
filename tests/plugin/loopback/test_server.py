import asyncio
import hashlib
import socket
import sys
from email.utils import parsedate_to_datetime

import pytest

from plugin.errors import NoAnswer
from plugin.loopback.faults import (
    Cut,
    Delay,
    Hang,
    Kind,
    LostRows,
    RateLimit,
    Reset,
    RetryAfter,
    Status,
    garbage,
    login_page,
    other_json,
    unauthorised,
)
from plugin.loopback.platform import LoopbackPlatform
from plugin.secret import Secret
from plugin.web import Answer, Reach, Web
from tests.support.client import opened
from tests.support.clock import FakeClock

TOKEN = Secret("loopback-token")
BODY = b'{"agent_id":"a","dispatches":[{"id":"1","repo":"r"}]}'


async def push(web: Web, platform: LoopbackPlatform, body: bytes = BODY, key: str | None = None) -> Answer:
    headers = None if key is None else {"Idempotency-Key": key}
    return await web.request("POST", f"{platform.url}/v1/agent/sync", token=TOKEN, body=body, headers=headers)


async def test_an_arrival_says_what_came_before_any_fault() -> None:
    clock = FakeClock()
    async with LoopbackPlatform(clock=clock) as platform, opened() as web:
        platform.menu.add(Status(code=500))
        await push(web, platform, key="k")
        [arrival] = platform.arrivals
        assert (arrival.number, arrival.at, arrival.route, arrival.method) == (0, 1000.0, "sync", "POST")
        assert (arrival.path, arrival.host) == ("/v1/agent/sync", platform.url.removeprefix("http://"))
        assert (arrival.token, arrival.key, arrival.agent, arrival.ids) == ("loopback-token", "k", "a", ("1",))
        assert (arrival.body_bytes, arrival.body_sha256) == (len(BODY), hashlib.sha256(BODY).hexdigest())
        assert "loopback-token" not in repr(arrival)
        assert platform.records == []


async def test_what_goes_nowhere_is_recorded_and_answered_404() -> None:
    async with LoopbackPlatform() as platform, opened() as web:
        for method, path in (("GET", "/v1/agent/sync"), ("PUT", "/elsewhere/%7Bx%7D"), ("GET", "/")):
            assert (await web.request(method, platform.url + path, token=TOKEN)).status == 404
        assert [arrival.route for arrival in platform.arrivals] == ["unknown"] * 3


async def test_a_prefix_is_part_of_the_url_and_of_the_routes() -> None:
    async with LoopbackPlatform(prefix="/core/api") as platform, opened() as web:
        assert platform.url.endswith("/core/api")
        assert (await push(web, platform)).status == 201


async def test_down_refuses_and_resets_and_up_listens_on_the_same_port() -> None:
    async with LoopbackPlatform() as platform, opened() as web:
        url = platform.url
        platform.menu.add(Hang())
        hanging = asyncio.create_task(push(web, platform))
        await platform.wait_until(lambda p: p.in_flight == 1)
        await platform.down()
        assert not platform.listening
        with pytest.raises(NoAnswer) as caught:
            await hanging
        assert caught.value.cause == "reset"
        with pytest.raises(NoAnswer) as caught:
            await push(web, platform)
        assert caught.value.cause == "refused"
        await platform.down()
        await platform.up()
        await platform.up()
        assert (platform.url, platform.listening) == (url, True)
        assert (await push(web, platform)).status == 201


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can keep a port without listening")
async def test_nobody_else_gets_the_port_while_it_is_down() -> None:
    async with LoopbackPlatform() as platform:
        await platform.down()
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", int(platform.url.rpartition(":")[2])))


async def test_moving_leaves_the_old_port_and_answers_on_a_new_one() -> None:
    async with LoopbackPlatform() as platform, opened() as web:
        old = platform.url
        assert await platform.move() == platform.url != old
        assert (await push(web, platform)).status == 201
        with pytest.raises(NoAnswer) as caught:
            await web.request("GET", old)
        assert caught.value.cause == "refused"


@pytest.mark.parametrize("kind", [Hang(), Delay(until=asyncio.Event(), late=True), Delay(seconds=3600)])
async def test_stopping_never_waits_for_what_hangs(kind: Kind) -> None:
    platform = LoopbackPlatform()
    await platform.start()
    async with opened() as web:
        platform.menu.add(kind, times=None)
        tasks = [asyncio.create_task(push(web, platform)) for _ in range(5)]
        await platform.wait_until(lambda p: p.in_flight == 5)
        async with asyncio.timeout(10):
            await platform.stop()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(end, NoAnswer) for end in ended)
    await platform.stop()


async def test_a_server_that_never_started_stops() -> None:
    await LoopbackPlatform().stop()


async def test_a_caller_that_leaves_is_no_longer_in_flight() -> None:
    async with LoopbackPlatform() as platform, opened() as web:
        platform.menu.add(Hang(), times=None)
        for expected in (1, 1):
            task = asyncio.create_task(push(web, platform))
            await platform.wait_until(lambda p: p.in_flight == 1)
            task.cancel()
            await platform.wait_until(lambda p: p.in_flight == 0)
            assert (platform.most_in_flight, platform.most_in_flight_of["a"]) == (expected, expected)


async def test_requests_at_the_same_time_are_counted_for_all_and_for_each() -> None:
    gate = asyncio.Event()
    async with LoopbackPlatform() as platform, opened() as web:
        platform.menu.add(Delay(until=gate), times=None)
        bodies = [b'{"agent_id":"%s","dispatches":[]}' % agent for agent in (b"a", b"a", b"b")]
        tasks = [asyncio.create_task(push(web, platform, body)) for body in bodies]
        await platform.wait_until(lambda p: p.in_flight == 3)
        gate.set()
        await asyncio.gather(*tasks)
        assert platform.most_in_flight == 3
        assert platform.most_in_flight_of == {"a": 2, "b": 1}


async def test_waiting_for_what_never_comes_times_out() -> None:
    async with LoopbackPlatform() as platform:
        with pytest.raises(TimeoutError):
            await platform.wait_until(lambda p: bool(p.records), timeout_s=0.05)


async def test_waiting_ends_when_someone_notifies() -> None:
    async with LoopbackPlatform() as platform:
        waiting = asyncio.create_task(platform.wait_until(lambda p: "x" in p.poison))
        await asyncio.sleep(0)
        platform.poison.add("x")
        platform.notify()
        await waiting


@pytest.mark.parametrize("kind", [Reset(), Cut(), Hang(), Status(code=503), unauthorised(), login_page(), garbage()])
@pytest.mark.parametrize("applied", [False, True])
async def test_a_fault_takes_effect_only_when_it_says_so(kind: Kind, *, applied: bool) -> None:
    async with LoopbackPlatform() as platform, opened(Reach(timeout_s=0.2 if kind == Hang() else 20)) as web:
        platform.menu.add(kind, applied=applied)
        if isinstance(kind, Status):
            assert (await push(web, platform)).status == kind.code
        else:
            with pytest.raises(NoAnswer):
                await push(web, platform)
        assert [record.id for record in platform.records] == (["1"] if applied else [])
        assert len(platform.arrivals) == 1


async def test_other_json_is_json_of_another_shape() -> None:
    async with LoopbackPlatform() as platform, opened() as web:
        platform.menu.add(other_json())
        answer = await push(web, platform)
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
        assert b"synced" in answer.body


async def test_retry_after_comes_as_seconds_and_as_a_date() -> None:
    clock = FakeClock()
    async with LoopbackPlatform(clock=clock) as platform, opened() as web:
        platform.menu.add(RetryAfter(seconds=7))
        platform.menu.add(RetryAfter(seconds=90, as_date=True, code=503))
        seconds, date = await push(web, platform), await push(web, platform)
        assert (seconds.status, seconds.headers["retry-after"]) == (429, "7")
        assert date.status == 503
        assert parsedate_to_datetime(date.headers["retry-after"]).timestamp() == clock.now() + 90


async def test_an_exhausted_limit_comes_with_a_good_answer() -> None:
    clock = FakeClock()
    async with LoopbackPlatform(clock=clock) as platform, opened() as web:
        platform.menu.add(RateLimit(reset_s=30))
        platform.menu.add(RateLimit(reset_s=30, as_epoch=False))
        epoch, seconds = await push(web, platform), await push(web, platform)
        assert (epoch.status, epoch.headers["x-ratelimit-remaining"]) == (201, "0")
        assert epoch.headers["x-ratelimit-reset"] == str(int(clock.now()) + 30)
        assert seconds.headers["x-ratelimit-reset"] == "30"


async def test_a_delay_waits_before_the_effect_or_after_it() -> None:
    clock = FakeClock()
    async with LoopbackPlatform(clock=clock) as platform, opened() as web:
        for applied, records in ((False, 0), (True, 2)):
            platform.menu.add(Delay(seconds=60), applied=applied)
            task = asyncio.create_task(push(web, platform))
            await platform.wait_until(lambda p: p.in_flight == 1)
            assert len(platform.records) == records
            await clock.advance(60)
            assert (await task).status == 201
        assert len(platform.records) == 2


@pytest.mark.parametrize("late", [False, True])
async def test_a_late_effect_comes_though_the_caller_has_left(*, late: bool) -> None:
    gate = asyncio.Event()
    async with LoopbackPlatform() as platform, opened() as web:
        platform.menu.add(Delay(until=gate, late=late))
        task = asyncio.create_task(push(web, platform))
        await platform.wait_until(lambda p: p.in_flight == 1)
        task.cancel()
        await platform.wait_until(lambda p: p.in_flight == 0)
        gate.set()
        if late:
            await platform.wait_until(lambda p: len(p.records) == 1)
        assert (await push(web, platform, b'{"agent_id":"a","dispatches":[]}')).status == 201
        assert len(platform.records) == (1 if late else 0)


async def test_lost_rows_are_lost_before_the_request_takes_effect() -> None:
    async with LoopbackPlatform() as platform, opened() as web:
        await push(web, platform)
        await push(web, platform)
        platform.menu.add(LostRows())
        assert (await push(web, platform)).status == 201
        assert len(platform.records) == 1
