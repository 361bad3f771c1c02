"""The platform's three routes as they go over the wire."""

import asyncio
import hashlib
import logging
from pathlib import Path

import pytest

from plugin.errors import BadEndpoint, ConfigInvalid
from plugin.loopback.faults import Delay, Status
from plugin.loopback.platform import LoopbackPlatform
from plugin.secret import Secret
from plugin.sync.platform import Platform, request_body
from tests.support.clock import settle
from tests.support.outcomes import batch
from tests.support.sync import TOKEN, configuration

SECRET = Secret(TOKEN)


def reach(path: Path, url: str, **settings: object) -> Platform:
    return Platform.of(configuration(path, url, settings), {})


def test_a_body_is_put_together_from_the_stored_bytes() -> None:
    one = batch(2, body_bytes=3)
    assert request_body(one) == b'{"agent_id":"codex","dispatches":[xxx,xxx]}'


async def test_a_batch_goes_out_under_its_key(tmp_path: Path) -> None:
    async with LoopbackPlatform(prefix="/api") as served:
        platform = reach(tmp_path, f"{served.url}/")
        assert platform.url == served.url
        body = b'{"agent_id": "codex", "dispatches": [{"id": "a", "repo": "x"}]}'
        answer = await platform.sync(batch(1), body, SECRET)
        assert (answer.status, answer.body) == (201, b'{"data":{"synced":1}}')
        (arrival,) = served.arrivals
        assert (arrival.path, arrival.key, arrival.token) == ("/api/v1/agent/sync", "k" * 64, TOKEN)
        assert arrival.body_sha256 == hashlib.sha256(body).hexdigest()
        assert arrival.headers["accept"] == arrival.headers["content-type"] == "application/json"
        await platform.retire()


async def test_query_values_are_encoded(tmp_path: Path) -> None:
    async with LoopbackPlatform() as served:
        platform = reach(tmp_path, served.url)
        agent, since = "a b&c=d+#%é", "2026-04-14T12:00:00+01:00"
        await platform.context(agent, since, SECRET)
        await platform.context(agent, None, SECRET)
        await platform.status(agent, SECRET)
        assert [arrival.query for arrival in served.arrivals] == [
            {"agent_id": agent, "since": since},
            {"agent_id": agent},
            {"agent_id": agent},
        ]
        await platform.retire()


async def test_a_refusals_text_never_repeats_the_token(tmp_path: Path) -> None:
    async with LoopbackPlatform() as served:
        platform = reach(tmp_path, served.url)
        served.menu.add(Status(code=422, body=f"no {TOKEN}, no {TOKEN}".encode()))
        served.menu.add(Status(code=200, body=f"data {TOKEN}".encode()))
        assert (await platform.status("a", SECRET)).body == b"no ***, no ***"
        assert (await platform.status("a", SECRET)).body == f"data {TOKEN}".encode()
        await platform.retire()


@pytest.mark.parametrize(
    "said",
    [
        rb'{"message":"Bearer sk\/live+7"}',
        rb'{"message":"Bearer \u0073k\u002Flive\u002b7"}',
        rb"see /login?token=sk%2Flive%2B7",
    ],
)
async def test_a_refusals_text_repeats_the_token_in_no_other_spelling(tmp_path: Path, said: bytes) -> None:
    async with LoopbackPlatform() as served:
        platform = reach(tmp_path, served.url)
        served.menu.add(Status(code=422, body=said))
        answer = await platform.status("a", Secret("sk/live+7"))
        assert b"***" in answer.body
        assert b"live" not in answer.body
        await platform.retire()


async def test_retired_connections_close_after_the_last_answer(tmp_path: Path) -> None:
    release = asyncio.Event()
    async with LoopbackPlatform() as served:
        platform = reach(tmp_path, served.url)
        served.menu.add(Delay(until=release))
        call = asyncio.create_task(platform.status("a", SECRET))
        await served.wait_until(lambda server: server.in_flight == 1)
        await platform.retire()
        await settle()
        release.set()
        assert (await call).status == 200
        await platform.retire()


async def test_an_address_that_must_not_be_contacted_is_said_at_each_call(tmp_path: Path) -> None:
    platform = reach(tmp_path, "http://platform.example/")
    assert platform.url == "http://platform.example"
    with pytest.raises(BadEndpoint):
        await platform.status("a", SECRET)
    await platform.retire()


def test_a_ca_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid):
        reach(tmp_path, "https://platform.example", ca_file=str(tmp_path / "none.pem"))


async def test_the_token_is_read_when_it_is_needed(tmp_path: Path) -> None:
    file = tmp_path / "brain.key"
    platform = reach(tmp_path, "https://platform.example", api_key=None, api_key_file=str(file))
    assert platform.token() is None
    assert platform.token_problem
    file.write_text(TOKEN, encoding="utf-8")
    assert platform.token() == SECRET
    assert platform.token(anew=True) == SECRET
    assert platform.token_problem == ""
    await platform.retire()


async def test_nothing_logs_the_token(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with LoopbackPlatform() as served:
        platform = reach(tmp_path, served.url)
        await platform.status("a", SECRET)
        await platform.retire()
    assert TOKEN not in caplog.text
