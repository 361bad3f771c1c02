"""Presence over real HTTP, against the center and the guilds of the loopback, which misbehave as the menu says."""

import asyncio
import logging
import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import msgspec
import pytest

from plugin import config
from plugin.clock import SystemClock
from plugin.errors import BadEndpoint, NoAnswer
from plugin.loopback.faults import (
    Cut,
    Delay,
    Drip,
    Hang,
    Kind,
    LostRows,
    NotHttp,
    Reset,
    RetryAfter,
    Status,
    endless,
    garbage,
    redirect,
    unauthorised,
)
from plugin.loopback.guild import LoopbackCenter, LoopbackGuild
from plugin.presence.fabric import WebFabric
from plugin.presence.service import Presence
from plugin.presence.session import Seat
from plugin.presence.state import Status as Shown
from plugin.presence.status import CellStatus, LeaveReport, RefreshResult
from plugin.secret import Secret
from tests.support.guilds import Agents, configured, known


class Town:
    """A center, guilds, and presence for agents that are all members of all guilds."""

    def __init__(self, *guilds: LoopbackGuild, agents: tuple[str, ...] = ("ada",), timeout_s: float = 10.0) -> None:
        self.center = LoopbackCenter()
        self.guilds = guilds
        self.agents = agents
        self.host = Agents(dict.fromkeys(agents, "idle"))
        self.timeout_s = timeout_s
        self.presence: Presence

    def config(self, **presence: object) -> config.Config:
        pairs = [(agent, guild.node_id) for agent in self.agents for guild in self.guilds]
        fabric = config.Fabric(center_url=self.center.url, timeout_s=self.timeout_s)
        plain = configured(pairs, fabric=fabric, identities=[known(agent) for agent in self.agents])
        return msgspec.structs.replace(plain, presence=msgspec.convert(presence, config.Presence))

    def push(self, state: str) -> None:
        for agent in self.agents:
            self.host.states[agent] = state
            self.presence.state_changed(agent, state)

    async def wait_shown(self, status: str) -> None:
        """Wait until every guild shows this status of every agent."""
        for guild in self.guilds:
            await guild.wait_until(
                lambda guild: all(guild.presence.get(f"user-{agent}") == status for agent in self.agents)
            )

    def cell(self, guild: LoopbackGuild, agent: str = "ada") -> CellStatus:
        (found,) = self.presence.status(agent).agents
        return next(cell for cell in found.guilds if cell.guild_node_id == guild.node_id)


@asynccontextmanager
async def open_town(town: Town, *, wait: bool = True, **presence: object) -> AsyncGenerator[Town]:
    """Start everything and wait until every guild shows idle."""
    async with town.center:
        for guild in town.guilds:
            await guild.start()
        for agent in town.agents:
            town.center.add(agent, *town.guilds)
        town.presence = Presence(
            agents=town.host,
            config=town.config(**presence),
            environ={},
            clock=SystemClock(),
            rng=random.Random(7),  # noqa: S311 - jitter
        )
        task = asyncio.create_task(town.presence.run())
        try:
            if wait:
                await town.wait_shown("idle")
            yield town
        finally:
            task.cancel()
            (ended,) = await asyncio.gather(task, return_exceptions=True)
            for guild in town.guilds:
                await guild.stop()
    assert not isinstance(ended, Exception)


async def test_every_guild_is_told_with_the_token_that_was_issued_for_it() -> None:
    town = Town(LoopbackGuild("g1"), LoopbackGuild("g2", prefix="/deep/down"), agents=("ada", "bob"))
    async with open_town(town, source="this-host"):
        town.push("working")
        await town.wait_shown("on_call")
        for guild in town.guilds:
            assert {put.token for put in guild.puts} == {town.center.token(agent, guild) for agent in town.agents}
            assert {put.source for put in guild.puts} == {"this-host"}
            assert guild.arrivals[0].headers["content-type"] == "application/json"
        assert [town.center.login_count(agent) for agent in town.agents] == [1, 1]


@pytest.mark.parametrize(
    ("fault", "applied"),
    [
        (Reset(), True),
        (Reset(), False),
        (Cut(), True),
        (Hang(), True),
        (Drip(), True),
        (endless(), True),
        (NotHttp(), True),
        (Status(code=500), True),
        (Status(code=502), False),
        (redirect("https://elsewhere.example/"), True),
    ],
    ids=["reset-after", "reset-before", "cut", "hang", "drip", "endless", "no-http", "500", "502", "redirect"],
)
async def test_whatever_goes_wrong_the_guild_is_corrected_although_the_agent_is_back_where_it_was(
    fault: Kind, *, applied: bool
) -> None:
    guild = LoopbackGuild("g1")
    # A redirect parks the cell until its refresh; everything else is tried again by itself.
    redirected = isinstance(fault, Status) and fault.code == 307
    async with open_town(Town(guild, timeout_s=0.5), refresh_s=1 if redirected else 300) as town:
        town.push("busy")
        await town.wait_shown("busy")
        guild.menu.add(fault, applied=applied)
        town.push("offline")
        await guild.wait_until(lambda guild: not guild.menu.faults)
        town.push("busy")
        sent = len(guild.puts)
        await guild.wait_until(lambda guild: len(guild.puts) > sent and guild.puts[-1].status == "busy")
        assert guild.presence["user-ada"] == "busy"


async def test_an_answer_of_2xx_with_any_body_is_an_acknowledgement() -> None:
    guild = LoopbackGuild("g1")
    async with open_town(Town(guild)) as town:
        guild.menu.add(garbage(), applied=True)
        assert await town.presence.refresh() == RefreshResult(sent=1, failed=0, pending=0)


async def test_rotated_tokens_bring_one_login_for_all_guilds() -> None:
    town = Town(*(LoopbackGuild(f"g{n}") for n in range(4)))
    async with open_town(town):
        town.center.rotate("ada")
        town.push("busy")
        await town.wait_shown("busy")
        assert town.center.login_count("ada") == 2


async def test_a_guild_that_refuses_every_token_is_parked_and_the_others_go_on() -> None:
    one, two = LoopbackGuild("g1"), LoopbackGuild("g2")
    town = Town(one, two)
    async with open_town(town):
        one.menu.add(unauthorised(), times=None)
        assert await town.presence.refresh() == RefreshResult(sent=1, failed=1, pending=0)
        assert town.cell(one).reason == "unauthorised"
        town.push("busy")
        await two.wait_until(lambda guild: guild.presence["user-ada"] == "busy")
        assert town.center.login_count("ada") <= 3


@pytest.mark.parametrize("status", [403, 404, 409])
async def test_a_refusal_parks_the_cell(status: int) -> None:
    guild = LoopbackGuild("g1")
    async with open_town(Town(guild)) as town:
        guild.menu.add(Status(code=status))
        assert await town.presence.refresh() == RefreshResult(sent=0, failed=1, pending=0)
        assert (town.cell(guild).state, town.cell(guild).reason) == ("parked", f"http_{status}")


async def test_a_redirect_is_not_followed_and_takes_no_token_anywhere() -> None:
    one, two = LoopbackGuild("g1"), LoopbackGuild("g2")
    async with open_town(Town(one, two)) as town:
        one.menu.add(redirect(f"{two.url}/api/agents/user-ada/presence"))
        assert await town.presence.refresh() == RefreshResult(sent=1, failed=1, pending=0)
        assert {arrival.token for arrival in two.arrivals} == {town.center.token("ada", two)}


@pytest.mark.parametrize("as_date", [False, True])
async def test_retry_after_is_read_in_both_forms(*, as_date: bool) -> None:
    guild = LoopbackGuild("g1")
    async with open_town(Town(guild)) as town:
        guild.menu.add(RetryAfter(seconds=200, as_date=as_date))
        assert await town.presence.refresh() == RefreshResult(sent=0, failed=1, pending=0)
        gate = town.presence.status().guilds[0].gate
        assert (gate.state, gate.reason) == ("waiting", "retry_after")


async def test_a_guild_that_hangs_holds_up_no_other() -> None:
    hanging, well = LoopbackGuild("g1"), LoopbackGuild("g2")
    agents = tuple(f"a{n}" for n in range(12))
    town = Town(hanging, well, agents=agents)
    async with open_town(town):
        hanging.menu.add(Hang(), times=None)
        for state, shown in (("busy", "busy"), ("offline", "offline"), ("idle", "idle")):
            town.push(state)
            await well.wait_until(lambda guild, shown=shown: set(guild.presence.values()) == {shown})
        assert hanging.in_flight == 8
        assert well.most_in_flight <= 8


async def test_no_more_requests_than_configured_are_in_flight_and_one_per_agent() -> None:
    guild = LoopbackGuild("g1")
    town = Town(guild, agents=tuple(f"a{n}" for n in range(20)))
    gate = asyncio.Event()
    guild.menu.add(Delay(until=gate), times=None)
    async with open_town(town, wait=False, concurrency_per_guild=3):
        await guild.wait_until(lambda guild: guild.in_flight == 3)
        gate.set()
        await town.wait_shown("idle")
    assert guild.most_in_flight == 3
    assert max(guild.most_in_flight_of.values()) == 1


async def test_a_guild_that_lost_its_rows_is_told_again_by_the_refresh() -> None:
    guild = LoopbackGuild("g1")
    town = Town(guild, agents=("ada", "bob"))
    async with open_town(town, refresh_s=1):
        guild.menu.add(LostRows())
        await guild.wait_until(lambda guild: not guild.menu.faults)
        await town.wait_shown("idle")


async def test_a_guild_that_was_down_is_told_everything_again() -> None:
    guild = LoopbackGuild("g1")
    town = Town(guild, agents=("ada", "bob"))
    async with open_town(town):
        await guild.down()
        town.push("busy")
        for _ in range(6):
            await town.presence.refresh("ada")
        assert town.presence.status().guilds[0].gate.reason == "refused"
        guild.lose_rows()
        await guild.up()
        await town.presence.refresh("ada")
        await town.wait_shown("busy")


async def test_a_guild_that_moved_is_found_with_the_next_session() -> None:
    guild = LoopbackGuild("g1")
    async with open_town(Town(guild, timeout_s=1)) as town:
        await guild.move()
        town.center.rotate("ada")
        await town.presence.reconfigure(
            config.Config(
                fabric=town.config().fabric,
                bindings=town.config().bindings,
                identities=(config.Identity(agent_id="ada", api_key_env="NEW"),),
            )
        )
        await town.presence.reconfigure(town.config())
        await guild.wait_until(lambda guild: guild.puts[-1].host == guild.url.removeprefix("http://"))
        assert guild.puts[-1].token == town.center.token("ada", guild)


async def test_leaving_shows_everybody_offline_over_http() -> None:
    town = Town(LoopbackGuild("g1"), LoopbackGuild("g2"), agents=tuple(f"a{n}" for n in range(10)))
    async with open_town(town):
        assert await town.presence.leave(10.0) == LeaveReport(sent=20, missed=0)
        await town.wait_shown("offline")


async def test_the_paths_of_the_contract_are_configurable_and_a_user_id_is_one_segment() -> None:
    user = "a/b ü%?#.."
    guild = LoopbackGuild("g1", path="/v2/{user_id}/status")
    center = LoopbackCenter(path="/v2/login", prefix="/center")
    async with center, guild:
        center.add("ada", guild, user_id=user)
        fabric = WebFabric(
            config.Fabric(center_url=f"{center.url}/", session_path="/v2/login", presence_path="/v2/{user_id}/status"),
            config.Presence(),
        )
        answer = await fabric.login("ada", Secret("key-ada"))
        assert answer.status == 200
        seat = Seat(guild.url, Secret(center.token("ada", guild)))
        assert (await fabric.put("g1", seat, user, Shown.BUSY)).status == 200
        assert guild.presence == {user: "busy"}
        for bad in ("", ".", ".."):
            with pytest.raises(BadEndpoint):
                await fabric.put("g1", seat, bad, Shown.BUSY)
        await fabric.close()


async def test_a_center_that_is_not_configured_is_not_contacted() -> None:
    fabric = WebFabric(config.Fabric(), config.Presence())
    with pytest.raises(BadEndpoint):
        await fabric.login("ada", Secret("key"))
    await fabric.close()


async def test_an_authority_file_that_cannot_be_used_is_a_bad_endpoint() -> None:
    fabric = WebFabric(config.Fabric(center_url="https://127.0.0.1:1", ca_file="/nowhere.pem"), config.Presence())
    with pytest.raises(BadEndpoint):
        await fabric.login("ada", Secret("key"))


async def test_plain_http_to_other_machines_is_refused() -> None:
    fabric = WebFabric(config.Fabric(), config.Presence())
    assert fabric.check("http://127.0.0.1:8000/") == "http://127.0.0.1:8000"
    with pytest.raises(BadEndpoint):
        fabric.check("http://guild.example")


async def test_closing_lets_what_is_in_flight_end() -> None:
    guild, gate = LoopbackGuild("g1"), asyncio.Event()
    async with guild:
        guild.tokens["t"] = "u"
        guild.menu.add(Delay(until=gate))
        fabric = WebFabric(config.Fabric(), config.Presence())
        put = asyncio.create_task(fabric.put("g1", Seat(guild.url, Secret("t")), "u", Shown.IDLE))
        await guild.wait_until(lambda guild: guild.in_flight == 1)
        closing = asyncio.create_task(fabric.close())
        await asyncio.sleep(0)
        gate.set()
        assert (await put).status == 200
        await closing


async def test_closing_does_not_wait_longer_than_a_request_may_take_and_dropping_does_not_wait_at_all() -> None:
    guild = LoopbackGuild("g1")
    async with guild:
        guild.menu.add(Hang(), times=None)
        for end in ("drop", "close"):
            fabric = WebFabric(config.Fabric(timeout_s=1.0), config.Presence())
            put = asyncio.create_task(fabric.put("g1", Seat(guild.url, Secret("t")), "u", Shown.IDLE))
            await guild.wait_until(lambda guild: guild.in_flight == 1)
            await (fabric.close() if end == "close" else fabric.drop("g1"))
            with pytest.raises(NoAnswer):
                await put
            await guild.wait_until(lambda guild: guild.in_flight == 0)
            await fabric.drop("never-opened")
            await fabric.close()


async def test_no_token_and_no_key_is_in_any_log_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    one, two = LoopbackGuild("g1"), LoopbackGuild("g2")
    async with open_town(Town(one, two, timeout_s=0.5)) as town:
        for kind in (Reset(), Cut(), Hang(), NotHttp(), Status(code=500), unauthorised(), redirect(two.url)):
            one.menu.add(kind)
            await town.presence.refresh()
        town.center.menu.add(Status(code=500))
        town.center.menu.add(Reset())
        town.center.rotate("ada")
        await town.presence.refresh()
        assert town.center.login_count("ada") >= 2
        lines = [f"{record.getMessage()} {record.__dict__}" for record in caplog.records]
        shown = repr(town.presence.status())
    assert len(lines) > 10
    assert not [line for line in [*lines, shown] if "token-" in line or "key-ada" in line]
