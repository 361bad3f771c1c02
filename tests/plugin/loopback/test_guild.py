import asyncio
import contextlib
from collections.abc import AsyncGenerator

import msgspec
import pytest

from plugin.loopback.faults import Delay, LostRows, Reset, Status
from plugin.loopback.guild import LoopbackCenter, LoopbackGuild
from plugin.secret import Secret
from plugin.web import Answer, Web
from tests.support.client import opened
from tests.support.clock import FakeClock


class Seat(msgspec.Struct, forbid_unknown_fields=True):
    node_id: str
    endpoint: str
    token: str
    ttl_s: float | None = None


class Session(msgspec.Struct, forbid_unknown_fields=True):
    user_id: str
    guilds: list[Seat]
    expires_at: str | None = None


class Refusal(msgspec.Struct):
    error: str


async def login(web: Web, center: LoopbackCenter, agent: str, api_key: str | None = None) -> Answer:
    body = msgspec.json.encode({"agent_id": agent, "api_key": api_key or f"key-{agent}"})
    return await web.request("POST", f"{center.url}/api/auth/agent/session", body=body)


async def session(web: Web, center: LoopbackCenter, agent: str) -> Session:
    answer = await login(web, center, agent)
    assert answer.status == 200
    return msgspec.json.decode(answer.body, type=Session)


async def put(web: Web, seat: Seat, user_id: str, status: str = "idle", **more: str) -> Answer:
    body = msgspec.json.encode({"status": status, "source": "test", **more})
    url = f"{seat.endpoint}/api/agents/{user_id}/presence"
    return await web.request("PUT", url, token=Secret(seat.token), body=body)


def error(answer: Answer) -> str:
    return msgspec.json.decode(answer.body, type=Refusal).error


@contextlib.asynccontextmanager
async def town() -> AsyncGenerator[tuple[LoopbackCenter, LoopbackGuild, LoopbackGuild, Web]]:
    """A center with agent `a` in both guilds, and `b` in the second."""
    async with LoopbackCenter() as center, LoopbackGuild("g1") as one, LoopbackGuild("g2") as two, opened() as web:
        center.add("a", one, two)
        center.add("b", two)
        yield center, one, two, web


async def test_a_session_names_the_user_and_every_guild_with_its_own_token() -> None:
    async with town() as (center, one, two, web):
        got = await session(web, center, "a")
        assert got.user_id == "user-a"
        assert [(seat.node_id, seat.endpoint) for seat in got.guilds] == [("g1", one.url), ("g2", two.url)]
        assert len({seat.token for seat in got.guilds}) == 2
        assert (got.expires_at, got.guilds[0].ttl_s) == (None, None)
        assert [seat.node_id for seat in (await session(web, center, "b")).guilds] == ["g2"]
        assert [entry.agent for entry in center.logins] == ["a", "b"]
        assert center.login_count("a") == 1
        assert [arrival.agent for arrival in center.arrivals] == ["a", "b"]


async def test_a_session_may_tell_when_it_and_its_rows_expire() -> None:
    async with LoopbackCenter(expires_at="2030-01-01T00:00:00Z") as center, LoopbackGuild("g", ttl_s=90) as guild:
        center.add("a", guild, api_key="k", user_id="u-7")
        async with opened() as web:
            body = msgspec.json.encode({"agent_id": "a", "api_key": "k"})
            answer = await web.request("POST", f"{center.url}/api/auth/agent/session", body=body)
            got = msgspec.json.decode(answer.body, type=Session)
            assert (got.user_id, got.expires_at, got.guilds[0].ttl_s) == ("u-7", "2030-01-01T00:00:00Z", 90)


async def test_a_wrong_key_is_401_an_unknown_agent_403_and_nonsense_422() -> None:
    async with town() as (center, _one, _two, web):
        wrong, unknown = await login(web, center, "a", "key-b"), await login(web, center, "c")
        assert (wrong.status, error(wrong)) == (401, "unauthorised")
        assert (unknown.status, error(unknown)) == (403, "forbidden")
        url = f"{center.url}/api/auth/agent/session"
        for body in (b"{}", b"nonsense", b'{"agent_id":"a","api_key":""}'):
            assert (await web.request("POST", url, body=body)).status == 422
        assert center.logins == []
        assert len(center.arrivals) == 5
        assert "key-a" not in repr(center.members)


async def test_a_put_takes_its_place_and_is_logged() -> None:
    clock = FakeClock()
    async with LoopbackCenter() as center, LoopbackGuild("g", clock=clock) as guild, opened() as web:
        center.add("a", guild)
        [seat] = (await session(web, center, "a")).guilds
        for status in ("busy", "idle"):
            assert (await put(web, seat, "user-a", status)).status == 200
            await clock.advance(5)
        assert guild.presence == {"user-a": "idle"}
        logged = [(entry.user_id, entry.status, entry.source, entry.at, entry.arrival) for entry in guild.puts]
        assert logged == [("user-a", "busy", "test", 1000.0, 0), ("user-a", "idle", "test", 1005.0, 1)]
        assert {entry.token for entry in guild.puts} == {seat.token}
        assert {f"http://{entry.host}" for entry in guild.puts} == {guild.url}
        assert seat.token not in repr(guild.puts)


@pytest.mark.parametrize("status", ["idle", "on_call", "busy", "offline"])
async def test_each_status_that_hosts_may_send_is_taken(status: str) -> None:
    async with town() as (center, one, _two, web):
        seat = (await session(web, center, "a")).guilds[0]
        assert (await put(web, seat, "user-a", status)).status == 200
        assert one.presence["user-a"] == status


@pytest.mark.parametrize("status", ["exhausted", "unknown", "working", ""])
async def test_the_backends_own_states_and_unknown_ones_are_refused(status: str) -> None:
    async with town() as (center, one, _two, web):
        seat = (await session(web, center, "a")).guilds[0]
        assert (await put(web, seat, "user-a", status)).status == 422
        assert (await put(web, seat, "user-a", source="")).status == 422
        assert (one.presence, one.puts, len(one.arrivals)) == ({}, [], 2)


async def test_a_token_counts_for_its_own_user_at_its_own_guild_only() -> None:
    async with town() as (center, one, two, web):
        first, second = (await session(web, center, "a")).guilds
        swapped = Seat(node_id="g2", endpoint=two.url, token=first.token)
        assert (await put(web, swapped, "user-a")).status == 401
        other_user = await put(web, second, "user-b")
        assert (other_user.status, error(other_user)) == (403, "forbidden")
        assert (await put(web, second, "user-a")).status == 200
        assert [arrival.token for arrival in two.arrivals] == [first.token, second.token, second.token]
        assert one.arrivals == []


async def test_a_put_without_a_token_is_refused() -> None:
    async with town() as (_center, one, _two, web):
        answer = await web.request(
            "PUT", f"{one.url}/api/agents/user-a/presence", body=b'{"status":"idle","source":"s"}'
        )
        assert (answer.status, error(answer)) == (401, "unauthorised")


async def test_a_login_brings_the_same_tokens_until_they_are_rotated() -> None:
    async with town() as (center, _one, _two, web):
        before = await session(web, center, "a")
        others = await session(web, center, "b")
        assert await session(web, center, "a") == before
        center.rotate("a")
        for seat in before.guilds:
            assert (await put(web, seat, "user-a")).status == 401
        assert (await put(web, others.guilds[0], "user-b")).status == 200
        after = await session(web, center, "a")
        assert not {seat.token for seat in after.guilds} & {seat.token for seat in before.guilds}
        assert (await put(web, after.guilds[0], "user-a")).status == 200


async def test_leaving_a_guild_makes_its_token_invalid_and_the_session_shorter() -> None:
    async with town() as (center, one, _two, web):
        left, stayed = (await session(web, center, "a")).guilds
        center.add("a", *(guild for guild in center.members["a"].guilds if guild is not one))
        assert [seat.node_id for seat in (await session(web, center, "a")).guilds] == ["g2"]
        assert (await put(web, left, "user-a")).status == 401
        assert (await put(web, stayed, "user-a")).status == 200


async def test_a_center_that_lost_its_rows_has_revoked_every_token() -> None:
    async with town() as (center, _one, _two, web):
        seat = (await session(web, center, "a")).guilds[0]
        center.menu.add(LostRows())
        fresh = (await session(web, center, "a")).guilds[0]
        assert (await put(web, seat, "user-a")).status == 401
        assert (await put(web, fresh, "user-a")).status == 200


async def test_a_guild_that_moved_keeps_its_node_id_rows_and_tokens() -> None:
    async with town() as (center, one, _two, web):
        old = (await session(web, center, "a")).guilds[0]
        await put(web, old, "user-a", "busy")
        await one.move()
        new = (await session(web, center, "a")).guilds[0]
        assert (new.node_id, new.token, one.presence) == (old.node_id, old.token, {"user-a": "busy"})
        assert new.endpoint != old.endpoint
        assert (await put(web, new, "user-a")).status == 200


async def test_a_guild_that_lost_its_rows_still_knows_its_tokens() -> None:
    async with town() as (center, one, _two, web):
        seat = (await session(web, center, "a")).guilds[0]
        await put(web, seat, "user-a")
        one.lose_rows()
        assert one.presence == {}
        assert (await put(web, seat, "user-a")).status == 200
        assert len(one.puts) == 2


async def test_faults_are_chosen_by_user_and_by_agent() -> None:
    async with town() as (center, _one, two, web):
        center.menu.add(Status(code=503), agent="b", times=None)
        two.menu.add(Status(code=500), agent="user-b", times=None)
        assert (await login(web, center, "b")).status == 503
        seat = (await session(web, center, "a")).guilds[1]
        assert (await put(web, seat, "user-a")).status == 200
        two.menu.add(Reset(), agent="user-a", applied=True)
        assert (await put(web, Seat(node_id="g2", endpoint=two.url, token="any"), "user-b")).status == 500


async def test_the_most_in_flight_is_known_for_the_guild_and_each_user() -> None:
    gate = asyncio.Event()
    async with town() as (center, _one, two, web):
        seat_a, seat_b = (await session(web, center, "a")).guilds[1], (await session(web, center, "b")).guilds[0]
        two.menu.add(Delay(until=gate), times=None)
        tasks = [asyncio.create_task(put(web, seat_a, "user-a")) for _ in range(2)]
        tasks.append(asyncio.create_task(put(web, seat_b, "user-b")))
        await two.wait_until(lambda guild: guild.in_flight == 3)
        gate.set()
        await asyncio.gather(*tasks)
        assert two.most_in_flight == 3
        assert two.most_in_flight_of == {"user-a": 2, "user-b": 1}


async def test_paths_and_prefixes_can_be_those_of_another_backend() -> None:
    async with (
        LoopbackCenter(prefix="/center", path="/login") as center,
        LoopbackGuild("g", prefix="/guild", path="/who/{user_id}") as guild,
        opened() as web,
    ):
        center.add("a", guild)
        body = msgspec.json.encode({"agent_id": "a", "api_key": "key-a"})
        assert (await web.request("POST", f"{center.url}/login", body=body)).status == 200
        token = Secret(center.token("a", guild))
        body = b'{"status":"idle","source":"s"}'
        assert (await web.request("PUT", f"{guild.url}/who/user-a", token=token, body=body)).status == 200
        assert guild.presence == {"user-a": "idle"}
