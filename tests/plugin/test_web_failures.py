"""What comes out of the client when no whole answer comes, and that no secret does."""

import asyncio
import contextlib
import gc
import gzip
import logging
import socket
import sys
import time
import traceback
from collections.abc import AsyncGenerator

import pytest

from plugin.errors import NoAnswer
from plugin.loopback.faults import (
    Cut,
    Delay,
    Drip,
    Hang,
    Kind,
    NotHttp,
    Reset,
    Status,
    endless,
)
from plugin.loopback.platform import LoopbackPlatform
from plugin.secret import Secret
from plugin.web import Reach, Web
from tests.support.client import HASTY, ask, no_answer, opened, push, raw_server

SECRET = "s3cret-of-a-test"


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
