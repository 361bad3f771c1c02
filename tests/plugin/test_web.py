import asyncio
import contextlib
import gc
import gzip
import logging
import os
import shutil
import socket
import ssl
import sys
import time
import traceback
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from types import FrameType
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugin import __version__
from plugin.endpoint import segment
from plugin.errors import BadEndpoint, ConfigInvalid, NoAnswer
from plugin.loopback.faults import (
    Cut,
    Delay,
    Drip,
    FaultMenu,
    Hang,
    Kind,
    NotHttp,
    Reset,
    Status,
    endless,
    login_page,
    redirect,
    unauthorised,
)
from plugin.loopback.guild import LoopbackGuild
from plugin.loopback.platform import LoopbackPlatform
from plugin.secret import Secret
from plugin.web import PIECE_BYTES, Answer, Reach, Web, tls_context
from tests.support.certificates import CA_FILE, server_tls
from tests.support.client import opened
from tests.support.clock import settle

SECRET = "s3cret-of-a-test"
TOKEN = Secret("loopback-token")
PATIENT = Reach(timeout_s=20)
HASTY = Reach(timeout_s=0.2)

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[object]]


@contextlib.asynccontextmanager
async def raw_server(talk: Talk) -> AsyncGenerator[str]:
    """Serve each connection with `talk`, then close it; for what no HTTP server would do."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def no_answer(request: Awaitable[Answer]) -> NoAnswer:
    async with asyncio.timeout(50):
        with pytest.raises(NoAnswer) as caught:
            await request
    return caught.value


async def ask(web: Web, platform: LoopbackPlatform) -> Answer:
    return await web.request("GET", f"{platform.url}/v1/agent/status", query={"agent_id": "a"}, token=TOKEN)


async def push(web: Web, platform: LoopbackPlatform, body: bytes = b'{"agent_id":"a","dispatches":[]}') -> Answer:
    return await web.request("POST", f"{platform.url}/v1/agent/sync", token=TOKEN, body=body)


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


# What comes out when no whole answer comes


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        (Reset(), "reset"),
        (Cut(), "closed"),
        (NotHttp(), "not_http"),
        (NotHttp(raw=b"HTTP/1.1 200 OK\r\nX: %s\r\n\r\n" % (b"y" * 100_000)), "not_http"),
        (NotHttp(raw=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"), "not_http"),
        (NotHttp(raw=b""), "closed"),
        (NotHttp(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort"), "closed"),
        (Status(code=200, headers={"Content-Encoding": "gzip"}, body=b"not gzip"), "not_http"),
        (endless(), "too_large"),
    ],
)
@pytest.mark.parametrize("applied", [False, True])
async def test_a_failure_has_its_cause_and_the_next_request_passes(kind: Kind, cause: str, *, applied: bool) -> None:
    async with LoopbackPlatform() as platform, opened() as web:
        platform.menu.add(kind, applied=applied)
        failure = await no_answer(push(web, platform, b'{"agent_id":"a","dispatches":[{"repo":"r"}]}'))
        assert failure.cause == cause
        assert failure.retryable
        assert len(platform.records) == (1 if applied else 0)
        assert (await push(web, platform)).status == 201
        assert len(platform.arrivals) == 2


@pytest.mark.parametrize("kind", [Hang(), Drip(), Delay(until=asyncio.Event())])
async def test_the_deadline_is_for_the_whole_request_whatever_drips(kind: Kind) -> None:
    async with LoopbackPlatform() as platform, opened(HASTY) as web:
        platform.menu.add(kind)
        started = time.monotonic()
        assert (await no_answer(push(web, platform))).cause == "timeout"
        assert time.monotonic() - started < 10


async def test_headers_that_drip_are_cut_off_too() -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while not writer.is_closing() and not reader.at_eof():
            writer.write(b"X: y\r\n")
            with contextlib.suppress(TimeoutError, ConnectionError):
                await asyncio.wait_for(reader.read(1), 0.02)

    async with raw_server(drip) as url, opened(HASTY) as web:
        assert (await no_answer(web.request("GET", url))).cause == "timeout"


async def test_a_server_that_never_reads_is_given_up() -> None:
    release = asyncio.Event()

    async def deaf(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await release.wait()

    async with raw_server(deaf) as url, opened(HASTY) as web:
        assert (await no_answer(web.request("POST", url, body=b"x" * 20_000_000))).cause == "timeout"
        release.set()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux offers the option")
async def test_the_kernel_gives_up_a_connection_whose_bytes_nobody_takes() -> None:
    async with LoopbackPlatform() as platform, opened() as web:
        await ask(web, platform)
        peer = ("127.0.0.1", int(platform.url.rpartition(":")[2]))
        sockets = [thing for thing in gc.get_objects() if isinstance(thing, socket.socket) and thing.fileno() >= 0]
        patience = [
            link.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) for link in sockets if goes_to(link, peer)
        ]
        assert patience == [20_000]


def goes_to(link: socket.socket, peer: tuple[str, int]) -> bool:
    with contextlib.suppress(OSError):
        return link.getpeername() == peer
    return False


async def test_getting_a_connection_has_a_deadline_of_its_own() -> None:
    # TLS against a server that says nothing: the handshake is part of getting a connection.
    reach = Reach(timeout_s=50, connect_s=0.2)
    async with raw_server(lambda reader, _writer: reader.read()) as url, opened(reach) as web:
        assert (await no_answer(web.request("GET", url.replace("http", "https")))).cause == "timeout"


async def test_nobody_listening_is_refused() -> None:
    async with LoopbackPlatform() as platform, opened() as web:
        await platform.down()
        assert (await no_answer(ask(web, platform))).cause == "refused"
        await platform.up()
        assert (await ask(web, platform)).status == 200


async def test_a_name_that_does_not_exist_is_dns() -> None:
    # Where there is no network, a resolver takes its time to say so.
    async with opened(Reach(timeout_s=50, connect_s=50)) as web:
        failure = await no_answer(web.request("GET", "https://no-such-host.invalid/"))
        assert failure.cause == "dns"
        assert "no-such-host.invalid" in str(failure)


async def test_an_answer_as_large_as_allowed_passes_and_one_byte_more_does_not() -> None:
    async with LoopbackPlatform() as platform, opened(Reach(max_answer_bytes=100_000)) as web:
        platform.menu.add(Status(code=200, body=b"x" * 100_000))
        assert len((await ask(web, platform)).body) == 100_000
        platform.menu.add(Status(code=200, body=b"x" * 100_001))
        assert (await no_answer(ask(web, platform))).cause == "too_large"


async def test_what_is_packed_is_unpacked_and_bounded_unpacked() -> None:
    packed = {"Content-Encoding": "gzip"}
    async with LoopbackPlatform() as platform, opened(Reach(max_answer_bytes=100_000)) as web:
        platform.menu.add(Status(code=200, headers=packed, body=gzip.compress(b"plain")))
        assert (await ask(web, platform)).body == b"plain"
        platform.menu.add(Status(code=200, headers=packed, body=gzip.compress(b"x" * 10_000_000)))
        assert (await no_answer(ask(web, platform))).cause == "too_large"


# TLS


async def test_a_certificate_of_an_unknown_authority_is_refused_before_anything_is_sent() -> None:
    async with LoopbackPlatform(tls=server_tls("loopback")) as platform, opened() as web:
        failure = await no_answer(ask(web, platform))
        assert failure.cause == "tls"
        assert "ca_file" in str(failure)
        assert platform.arrivals == []


async def test_an_authority_of_ones_own_is_trusted_by_file() -> None:
    async with LoopbackPlatform(tls=server_tls("loopback")) as platform, opened(Reach(ca_file=CA_FILE)) as web:
        assert (await ask(web, platform)).status == 200
        assert (await web.request("GET", platform.url.replace("127.0.0.1", "localhost"))).status == 404


async def test_a_certificate_for_another_name_is_refused() -> None:
    async with LoopbackPlatform(tls=server_tls("elsewhere")) as platform, opened(Reach(ca_file=CA_FILE)) as web:
        assert (await no_answer(ask(web, platform))).cause == "tls"
        assert platform.arrivals == []


async def test_a_server_without_tls_is_told_apart() -> None:
    async with LoopbackPlatform() as platform, opened() as web:
        failure = await no_answer(web.request("GET", platform.url.replace("http:", "https:"), token=TOKEN))
        assert failure.cause == "tls"
        assert platform.arrivals == []


def test_tls_is_verified_new_enough_and_shared() -> None:
    for context in (tls_context(None), tls_context(CA_FILE)):
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname
        assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert tls_context(CA_FILE) is tls_context(CA_FILE)
    assert tls_context(None) is not tls_context(CA_FILE)


def test_a_file_of_authorities_that_changed_is_read_anew(tmp_path: Path) -> None:
    copy = tmp_path / "ca.pem"
    shutil.copy(CA_FILE, copy)
    before = tls_context(str(copy))
    os.utime(copy, (1, 1))
    assert tls_context(str(copy)) is not before


@pytest.mark.parametrize("text", [None, "", "not a certificate"])
def test_a_file_of_authorities_that_cannot_be_used_is_a_config_error(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "ca.pem"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigInvalid) as caught:
        Web(Reach(ca_file=str(path)))
    assert caught.value.path == "ca_file"


@pytest.mark.parametrize("url", ["nonsense", "ftp://h", "socks5://h:1", "http:///x", "http://me:pa55word@h:port"])
def test_a_proxy_that_cannot_be_used_is_a_config_error(url: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        Web(Reach(proxy=url))
    assert caught.value.path == "proxy"
    assert "pa55word" not in str(caught.value)


# Secrets


FAULTS: list[Kind] = [
    Reset(),
    Cut(),
    NotHttp(),
    Hang(),
    endless(),
    NotHttp(raw=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
    Status(code=200, headers={"Content-Encoding": "gzip"}, body=b"not gzip"),
]


def everything_shown(failure: BaseException) -> str:
    told = traceback.TracebackException.from_exception(failure, capture_locals=True)
    return "\n".join([*told.format(), str(failure), repr(failure), repr(failure.args), repr(vars(failure))])


async def failures(web: Web, platform: LoopbackPlatform) -> AsyncGenerator[NoAnswer]:
    async def send(url: str) -> NoAnswer:
        return await no_answer(web.request("POST", url, token=Secret(SECRET), body=b"{}"))

    for kind in FAULTS:
        platform.menu.add(kind)
        yield await send(f"{platform.url}/v1/agent/sync")
    yield await send(platform.url.replace("http:", "https:"))
    yield await send("https://no-such-host.invalid/")
    await platform.down()
    yield await send(f"{platform.url}/v1/agent/sync")


async def test_no_failure_and_no_log_line_holds_the_token(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("httpx").setLevel(logging.NOTSET)
    count = 0
    async with LoopbackPlatform() as platform, opened(Reach(timeout_s=0.5)) as web:
        async for failure in failures(web, platform):
            count += 1
            assert (failure.__cause__, failure.__context__) == (None, None)
            assert SECRET not in everything_shown(failure)
    assert count == len(FAULTS) + 3
    assert SECRET not in caplog.text
    assert [record for record in caplog.records if record.name == "httpx"] == []


async def test_what_is_shown_of_an_answer_is_its_status() -> None:
    async with LoopbackPlatform() as platform, opened() as web:
        platform.menu.add(Status(code=200, headers={"X": SECRET}, body=SECRET.encode()))
        answer = await ask(web, platform)
        assert answer.body == SECRET.encode()
        assert SECRET not in repr(answer)


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


async def test_a_url_is_parsed_once_a_request_and_its_origin_judged_once_and_for_all() -> None:
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
                await web.request("PUT", f"{guild.url}/api/agents/u{number}/presence", body=b"{}")
        finally:
            sys.setprofile(None)
        assert len(guild.arrivals) == requests + 1
    assert (calls["urlparse"], calls["check_target"]) == (requests, requests)
    assert (calls["_origin"], calls["_check_scheme"], calls["_address"]) == (0, 0, 0)
