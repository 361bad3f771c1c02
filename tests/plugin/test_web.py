"""What the client sends, what it never does by itself, and how it ends."""

import asyncio
import contextlib
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugin import __version__
from plugin.endpoint import segment
from plugin.errors import BadEndpoint
from plugin.loopback.faults import (
    Delay,
    FaultMenu,
    Hang,
    Status,
    login_page,
    redirect,
    unauthorised,
)
from plugin.loopback.guild import LoopbackGuild
from plugin.loopback.platform import LoopbackPlatform
from plugin.secret import Secret
from plugin.web import PIECE_BYTES, Reach, Web
from tests.support.client import PATIENT, TOKEN, ask, no_answer, opened, push, raw_server
from tests.support.clock import settle

SECRET = "s3cret-of-a-test"


# What is sent


async def test_an_answer_of_any_status_comes_back_whole() -> None:
    async with LoopbackPlatform() as platform, opened() as web:
        platform.menu.add(Status(code=418, headers={"X-Odd": "yes"}, body=b"short and stout"))
        answer = await ask(web, platform)
        assert (answer.status, answer.headers["x-odd"], answer.body) == (418, "yes", b"short and stout")
        assert (await ask(web, platform)).status == 200


async def test_a_request_carries_its_token_its_type_and_our_name() -> None:
    async with LoopbackPlatform() as platform, opened() as web:
        assert (await push(web, platform)).status == 201
        [arrival] = platform.arrivals
        assert arrival.token == "loopback-token"
        assert arrival.headers["content-type"] == "application/json"
        assert arrival.headers["user-agent"] == f"agentic-sync/{__version__}"
        assert arrival.headers["accept-encoding"] == "identity"
        assert "cookie" not in arrival.headers


async def test_a_request_without_token_or_body_says_nothing_of_either() -> None:
    async with LoopbackPlatform() as platform, opened() as web:
        await web.request("GET", f"{platform.url}/v1/agent/status", headers={"Idempotency-Key": "k1"})
        [arrival] = platform.arrivals
        assert (arrival.token, arrival.key) == (None, "k1")
        assert "content-type" not in arrival.headers


async def test_a_large_body_arrives_whole() -> None:
    body = b'{"agent_id":"a","dispatches":[{"repo":"%s"}]}' % (b"x" * 5 * PIECE_BYTES)
    async with LoopbackPlatform() as platform, opened() as web:
        assert (await push(web, platform, body)).status == 201
        assert platform.arrivals[0].body_bytes == len(body)
        assert platform.arrivals[0].headers["content-length"] == str(len(body))


QUERIES = st.lists(st.dictionaries(st.text(max_size=8), st.text(max_size=12), max_size=3), min_size=1, max_size=20)


def encodable(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


@settings(max_examples=15, deadline=None)
@given(QUERIES.filter(lambda queries: all(encodable("".join([*q, *q.values()])) for q in queries)))
def test_query_values_arrive_as_they_were_given(queries: list[dict[str, str]]) -> None:
    async def scenario() -> None:
        async with LoopbackPlatform() as platform, opened() as web:
            for query in queries:
                await web.request("GET", f"{platform.url}/v1/agent/context", query=query)
            assert [arrival.query for arrival in platform.arrivals] == queries

    asyncio.run(scenario())


@settings(max_examples=15, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=12).filter(encodable), min_size=1, max_size=20))
def test_a_user_id_arrives_as_one_segment_of_the_path(users: list[str]) -> None:
    users = [user for user in users if user not in {".", ".."}]

    async def scenario() -> None:
        async with LoopbackGuild("g") as guild, opened() as web:
            for user in users:
                await web.request("PUT", f"{guild.url}/api/agents/{segment(user)}/presence", body=b"{}")
            assert [(arrival.route, arrival.agent) for arrival in guild.arrivals] == [("presence", u) for u in users]

    asyncio.run(scenario())


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nb", "a\x00b", "café"])
async def test_a_header_that_cannot_be_sent_is_refused_unshown_and_nothing_is_sent(value: str) -> None:
    async with LoopbackPlatform() as platform, opened() as web:
        for token, headers in ((Secret(value), None), (None, {"Idempotency-Key": value})):
            with pytest.raises(BadEndpoint) as caught:
                await web.request("GET", platform.url, token=token, headers=headers)
            assert value not in str(caught.value)
            assert caught.value.__context__ is None
        assert platform.arrivals == []


async def test_a_url_that_must_not_be_contacted_is_not() -> None:
    async with LoopbackPlatform() as platform, opened(Reach(allow_hosts=("elsewhere.example",))) as web:
        for url in (platform.url, "http://elsewhere.example", f"{platform.url}/?a=b"):
            with pytest.raises(BadEndpoint):
                await web.request("GET", url, token=TOKEN)
        assert platform.arrivals == []


@pytest.mark.parametrize("value", ["\ud800", "x" * 70_000])
async def test_a_query_that_cannot_be_sent_is_refused(value: str) -> None:
    async with LoopbackPlatform() as platform, opened() as web:
        with pytest.raises(BadEndpoint):
            await web.request("GET", platform.url, query={"since": value}, token=TOKEN)
        assert platform.arrivals == []


# What is not done by itself


async def test_a_redirect_is_not_followed() -> None:
    async with LoopbackPlatform() as platform, LoopbackPlatform() as other, opened() as web:
        for code in (301, 302, 303, 307, 308):
            platform.menu.add(redirect(f"{other.url}/v1/agent/status", code))
            assert (await ask(web, platform)).status == code
        assert len(platform.arrivals) == 5
        assert other.arrivals == []


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_cookies_are_refused(host: str) -> None:
    async with LoopbackPlatform() as platform, opened() as web:
        platform.menu.add(Status(code=200, headers={"Set-Cookie": "session=1; Path=/"}))
        for _ in range(2):
            await web.request("GET", platform.url.replace("127.0.0.1", host), token=TOKEN)
        assert "cookie" not in platform.arrivals[1].headers


async def test_the_environment_brings_no_proxy_and_no_password(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password mine\n", encoding="utf-8")
    netrc.chmod(0o600)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(netrc))
    async with LoopbackPlatform() as platform, opened() as web:
        answer = await web.request("GET", f"{platform.url}/v1/agent/status", query={"agent_id": "a"})
        assert answer.status == 401
        assert "authorization" not in platform.arrivals[0].headers


async def test_a_configured_proxy_is_used() -> None:
    asked: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        await writer.drain()

    async with raw_server(proxy) as url, opened(Reach(proxy=url.replace("//", "//me:mine@"))) as web:
        answer = await web.request("GET", "http://127.0.0.1:9/x")
        assert answer.body == b"hi"
        assert asked[0].startswith(b"GET http://127.0.0.1:9/x HTTP/1.1\r\n")
        assert b"\r\nProxy-Authorization: Basic bWU6bWluZQ==\r\n" in asked[0]
        # A tunnel is asked for without the token, which is for its other end alone.
        await no_answer(web.request("GET", "https://127.0.0.1:9/x", token=Secret(SECRET)))
        assert asked[1].startswith(b"CONNECT 127.0.0.1:9 HTTP/1.1\r\n")
        assert b"\r\nProxy-Authorization: Basic bWU6bWluZQ==\r\n" in asked[1]
        assert SECRET.encode() not in asked[1]


async def test_a_proxy_that_refuses_is_named() -> None:
    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    async with raw_server(proxy) as url, opened(Reach(proxy=url, timeout_s=20)) as web:
        failure = await no_answer(web.request("GET", "https://127.0.0.1:9/x", token=Secret(SECRET)))
        assert failure.cause == "refused"
        assert "407" in str(failure)


@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_on_a_dead_kept_connection_only_what_is_idempotent_goes_again_and_once(method: str) -> None:
    seen: list[bytes] = []

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in (b"HTTP/1.1 204 No Content\r\n\r\n", b""):
            seen.append((await reader.readuntil(b"\r\n\r\n")).partition(b" HTTP")[0])
            await reader.readexactly(2)
            writer.write(answer)
            await writer.drain()

    async with raw_server(once) as url, opened() as web:
        assert (await web.request(method, f"{url}/1", body=b"{}")).status == 204
        if method == "POST":
            assert (await no_answer(web.request(method, f"{url}/2", body=b"{}"))).cause == "closed"
            assert seen == [b"POST /1", b"POST /2"]
        else:
            assert (await web.request(method, f"{url}/2", body=b"{}")).status == 204
            assert seen == [b"PUT /1", b"PUT /2", b"PUT /2"]


# Cancelling, bounds and the end


async def test_two_hundred_cancelled_requests_leave_the_connections_usable() -> None:
    async with LoopbackPlatform() as platform, opened(Reach(connections=8, timeout_s=20)) as web:
        platform.menu.add(Hang(), times=None)
        for _ in range(25):
            tasks = [asyncio.create_task(ask(web, platform)) for _ in range(8)]
            seen = len(platform.arrivals)
            await platform.wait_until(lambda p, seen=seen: len(p.arrivals) > seen)
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(end, asyncio.CancelledError) for end in ended)
        platform.menu.clear()
        await platform.wait_until(lambda p: p.in_flight == 0)
        answers = await asyncio.gather(*(ask(web, platform) for _ in range(8)))
        assert [answer.status for answer in answers] == [200] * 8


async def test_no_more_requests_are_in_flight_than_connections_are_allowed() -> None:
    gate = asyncio.Event()
    async with LoopbackPlatform() as platform, opened(Reach(connections=3, timeout_s=20)) as web:
        platform.menu.add(Delay(until=gate), times=None)
        tasks = [asyncio.create_task(ask(web, platform)) for _ in range(12)]
        await platform.wait_until(lambda p: p.in_flight == 3)
        gate.set()
        assert {answer.status for answer in await asyncio.gather(*tasks)} == {200}
        assert platform.most_in_flight == 3


async def test_connections_are_kept_for_the_next_request() -> None:
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with raw_server(serve) as url, opened() as web:
        for _ in range(20):
            assert (await web.request("GET", url)).status == 204
    assert connections == 1


async def test_closing_ends_what_is_in_flight_and_refuses_what_comes_later() -> None:
    async with LoopbackPlatform() as platform:
        web = Web(PATIENT)
        platform.menu.add(Hang())
        flying = asyncio.create_task(no_answer(ask(web, platform)))
        await platform.wait_until(lambda p: p.in_flight == 1)
        await web.close()
        assert (await flying).cause == "closed"
        assert (await no_answer(ask(web, platform))).cause == "closed"
        await web.close()
        assert len(platform.arrivals) == 1


async def test_closing_never_waits_for_a_server_that_does_not_read() -> None:
    sending, release = asyncio.Event(), asyncio.Event()

    async def deaf(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(PIECE_BYTES)
        sending.set()
        await release.wait()

    async with raw_server(deaf) as url:
        web = Web(Reach(timeout_s=50))
        flying = asyncio.create_task(no_answer(web.request("POST", url, body=b"x" * 20_000_000)))
        await sending.wait()
        await settle(turns=1000)  # until the buffers on the way are full and the rest has to wait
        async with asyncio.timeout(20):
            await web.close()
            assert (await flying).cause in {"closed", "reset"}
        release.set()


async def test_closing_what_was_never_used_is_fine_and_final() -> None:
    web = Web(PATIENT)
    await web.close()
    async with LoopbackPlatform() as platform:
        assert (await no_answer(ask(web, platform))).cause == "closed"
        assert not platform.arrivals


async def test_a_login_page_and_a_refusal_are_answers_not_errors() -> None:
    async with LoopbackPlatform() as platform, opened() as web:
        platform.menu.add(login_page())
        platform.menu.add(unauthorised())
        assert (await ask(web, platform)).headers["content-type"] == "text/html"
        assert (await ask(web, platform)).status == 401
        assert platform.menu.faults == FaultMenu().faults


async def test_one_client_serves_many_origins_without_mixing_their_tokens() -> None:
    async with LoopbackPlatform() as one, LoopbackPlatform() as two, opened() as web:
        for platform, token in ((one, "1"), (two, "2"), (one, "1")):
            await web.request("GET", f"{platform.url}/{quote(token)}", token=Secret(token))
        assert {arrival.token for arrival in one.arrivals} == {"1"}
        assert {arrival.token for arrival in two.arrivals} == {"2"}
        assert all(arrival.host == one.url.removeprefix("http://") for arrival in one.arrivals)


# What it costs


async def test_a_new_url_is_parsed_once_and_its_origin_judged_once_and_for_all() -> None:
    requests = 20
    calls: Counter[str] = Counter()

    def count(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.endswith(("httpx/_urlparse.py", "plugin/endpoint.py")):
            calls[frame.f_code.co_name] += 1

    async with LoopbackGuild("g") as guild, opened() as web:
        await web.request("PUT", f"{guild.url}/api/agents/u/presence", body=b"{}")
        sys.setprofile(count)
        try:
            for number in range(requests):
                for _ in range(2):  # and not again when the same one follows
                    await web.request("PUT", f"{guild.url}/api/agents/u{number}/presence", body=b"{}")
        finally:
            sys.setprofile(None)
        assert len(guild.arrivals) == 2 * requests + 1
    assert (calls["urlparse"], calls["check_target"]) == (requests, requests)
    assert (calls["_origin"], calls["_check_scheme"], calls["_address"]) == (0, 0, 0)
