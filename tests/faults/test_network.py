"""The network and the servers misbehave; the plugin, a real process, works through it: work arrives once, guilds agree.

Elsewhere: what each failure is called, deadlines, sizes, certificates and proxies (tests/plugin/test_web_*.py); what
each answer means (tests/plugin/sync/test_outcome.py, tests/plugin/presence/test_outcome.py); when what is tried again,
with 413 and poison records (tests/plugin/sync/test_sender*.py, tests/plugin/sync/test_go_faults.py); tokens that rotate
and guilds that move or lose rows (tests/plugin/presence/test_fabric.py, tests/plugin/presence/test_guild.py).
"""

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest

from plugin.config import Fabric
from plugin.loopback import faults
from plugin.loopback.faults import Cut, Drip, Hang, Kind, NotHttp, RateLimit, Reset, RetryAfter, Status
from plugin.loopback.guild import LoopbackCenter, LoopbackGuild
from plugin.loopback.host import LoopbackHost
from plugin.loopback.platform import LoopbackPlatform
from plugin.loopback.server import Server
from plugin.presence.guild import UNWELL
from plugin.presence.service import Presence
from tests.support.certificates import CA_FILE, server_tls
from tests.support.clock import FakeClock, settle
from tests.support.fleet import TOKEN, Fleet, dispatch, field, fleet_on_loopback
from tests.support.guilds import Agents, configured
from tests.support.sync import BrittlePlatform, world

REQUEST_S = 0.5  # the deadline of a request here, so that what hangs is soon over
STATES = ("busy", "offline")  # other changes of an agent go out once a second only
SAID_AND_DONE: list[tuple[str, Kind, bool]] = [
    *((f"{code}", Status(code=code), False) for code in (500, 502, 503, 504, 408, 425)),
    ("500-done", Status(code=500), True),
    ("reset", Reset(), False),
    ("reset-done", Reset(), True),
    ("cut", Cut(), False),
    ("cut-done", Cut(), True),
    ("hang", Hang(), False),
    ("hang-done", Hang(), True),
    ("drip-done", Drip(), True),
    ("endless-done", faults.endless(), True),
    ("no-http-done", NotHttp(), True),
    ("login-page", faults.login_page(), False),
    ("garbage-done", faults.garbage(), True),
    ("other-json-done", faults.other_json(), True),
    ("204", Status(code=204), False),
    ("403", faults.forbidden(), False),
    ("404", Status(code=404), False),
]


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncGenerator[Fleet]:
    async with fleet_on_loopback(tmp_path) as fleet:
        yield fleet


def impatient(fleet: Fleet) -> dict[str, dict[str, object]]:
    """The parts of a configuration with which no request takes long."""
    return {
        "platform": {"base_url": fleet.platform.url, "api_key": TOKEN, "timeout_s": REQUEST_S},
        "fabric": {"center_url": fleet.center.url, "timeout_s": REQUEST_S},
    }


def host_of(fleet: Fleet, parts: dict[str, dict[str, object]]) -> LoopbackHost:
    return fleet.host(platform=parts["platform"], fabric=parts["fabric"])


async def try_again_now(host: LoopbackHost, config: dict[str, object]) -> None:
    """Hurry what waits after a failure, as a person would who has repaired something."""
    await host.call("configure", {"config": config})
    await host.call("agentic.presence.refresh")


async def settled(host: LoopbackHost) -> None:
    """Wait until nothing is queued; each call waits for what is being sent."""
    async with asyncio.timeout(20):
        while field(await host.call("agentic.sync.push", {"queue_only": True}), "queued"):
            pass


async def gate_of(host: LoopbackHost) -> dict[str, str]:
    return cast("dict[str, str]", field(await host.call("agentic.sync.status"), "gate"))


def servers_of(fleet: Fleet) -> list[Server]:
    return [fleet.platform, fleet.center, *fleet.guilds]


async def test_whatever_the_servers_answer_and_however_they_do_not_work_arrives_once_and_guilds_agree(
    fleet: Fleet,
) -> None:
    (guild,) = fleet.guilds
    async with host_of(fleet, impatient(fleet)) as host:
        await fleet.wait_shown("codex", "idle")
        config = fleet.config(**impatient(fleet))
        for number, (name, kind, applied) in enumerate(SAID_AND_DONE):
            state = STATES[number % 2]
            fleet.platform.menu.add(kind, route="sync", applied=applied)
            guild.menu.add(kind, applied=applied)
            answer = await host.call("agentic.sync.push", {"dispatches": [dispatch(number)]})
            assert (field(answer, "count"), field(answer, "queued"), field(answer, "dead")) == (0, 1, 0), name
            assert field(field(answer, "gate"), "state") in {"waiting", "parked"}, name
            await host.set_state("codex", state)
            await guild.wait_until(lambda guild: not guild.menu.faults)
            await try_again_now(host, config)
            await settled(host)
            await fleet.wait_shown("codex", state)
    assert [record.id for record in fleet.platform.records] == [f"work-{n}" for n in range(len(SAID_AND_DONE))]
    for number in range(len(SAID_AND_DONE)):
        sent = [push for push in fleet.platform.pushes if push.ids == (f"work-{number}",)]
        assert len(sent) >= 2
        assert len({(push.key, push.body_sha256) for push in sent}) == 1


async def test_an_outage_of_everything_ends_by_itself(fleet: Fleet) -> None:
    async with host_of(fleet, impatient(fleet)) as host:
        await fleet.wait_shown("codex", "idle")
        for server in servers_of(fleet):
            await server.down()
        answer = await host.call("agentic.sync.push", {"dispatches": [dispatch(1)]})
        assert (field(answer, "success"), field(answer, "offline"), field(answer, "queued")) == (True, True, 1)
        assert field(field(answer, "gate"), "state") == "waiting"
        await host.set_state("codex", "busy")
        await host.wait_for_log(lambda line: line.message == UNWELL.starts)  # the guild was tried, and tried again
        for server in servers_of(fleet):
            await server.up()
        await fleet.platform.wait_until(lambda platform: len(platform.records) == 1)
        await fleet.wait_shown("codex", "busy")


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_a_redirect_takes_no_token_and_no_key_to_another_server(fleet: Fleet, code: int) -> None:
    (guild,) = fleet.guilds
    async with LoopbackPlatform(tokens=(TOKEN,)) as elsewhere, fleet.host() as host:
        await fleet.wait_shown("codex", "idle")
        for server in (fleet.platform, guild):
            server.menu.add(faults.redirect(f"{elsewhere.url}/v1/agent/sync", code), times=None)
        fleet.center.rotate("codex")
        answer = await host.call("agentic.sync.push", {"dispatches": [dispatch(1)]})
        assert (field(answer, "count"), field(answer, "queued")) == (0, 1)
        assert field(field(answer, "gate"), "state") == "parked"
        assert field(await host.call("agentic.sync.pull"), "stale") is True
        await host.set_state("codex", "busy")
        await guild.wait_until(lambda guild: len(guild.arrivals) > 1)
        status = await host.call("agentic.presence.status")
        agents = cast("list[dict[str, list[dict[str, object]]]]", field(status, "agents"))
        assert [cell["state"] for agent in agents for cell in agent["guilds"]] != ["in_sync"]
        for server in servers_of(fleet):
            server.menu.clear()
        fleet.center.menu.add(faults.redirect(f"{elsewhere.url}/api/auth/agent/session", code))
        await try_again_now(host, fleet.config())
        await fleet.center.wait_until(lambda center: not center.menu.faults)
        await fleet.platform.wait_until(lambda platform: len(platform.records) == 1)
        await try_again_now(host, fleet.config())
        await fleet.wait_shown("codex", "busy")
        assert elsewhere.arrivals == []


@pytest.mark.parametrize(("certificate", "trusted"), [("loopback", False), ("elsewhere", True)])
async def test_with_a_wrong_certificate_nothing_is_sent_and_it_is_said(
    tmp_path: Path, certificate: str, *, trusted: bool
) -> None:
    ca: dict[str, object] = {"ca_file": CA_FILE} if trusted else {}
    async with fleet_on_loopback(tmp_path, tls=server_tls(certificate)) as fleet:
        platform = {"base_url": fleet.platform.url, "api_key": TOKEN}
        fabric = {"center_url": fleet.center.url}
        async with fleet.host(platform={**platform, **ca}, fabric={**fabric, **ca}) as host:
            answer = await host.call("agentic.sync.push", {"dispatches": [dispatch(1)]})
            assert field(answer, "queued") == 1
            assert cast("str", field(field(answer, "gate"), "reason")).startswith("tls")
            await host.wait_for_reads("codex", 2)
            assert [arrival for server in servers_of(fleet) for arrival in server.arrivals] == []
            if not trusted:
                both = {"platform": {**platform, "ca_file": CA_FILE}, "fabric": {**fabric, "ca_file": CA_FILE}}
                await try_again_now(host, fleet.config(**both))
                await fleet.platform.wait_until(lambda platform: len(platform.records) == 1)
                await fleet.wait_shown("codex", "idle")


async def test_names_that_do_not_resolve_are_said_and_the_right_ones_work_at_once(fleet: Fleet) -> None:
    wrong: dict[str, dict[str, object]] = {
        "platform": {"base_url": "https://platform.invalid", "api_key": TOKEN},
        "fabric": {"center_url": "https://center.invalid"},
    }
    async with host_of(fleet, wrong) as host:
        answer = await host.call("agentic.sync.push", {"dispatches": [dispatch(1)]})
        assert field(answer, "queued") == 1
        assert cast("str", field(field(answer, "gate"), "reason")).startswith("dns")
        await host.call("configure", {"config": fleet.config()})
        assert (await gate_of(host))["state"] == "ready"  # another address's failures are not this one's
        await host.call("agentic.presence.refresh")
        await fleet.platform.wait_until(lambda platform: len(platform.records) == 1)
        await fleet.wait_shown("codex", "idle")


@pytest.mark.parametrize("as_date", [False, True])
async def test_a_server_that_asks_to_be_left_alone_is(fleet: Fleet, *, as_date: bool) -> None:
    (guild,) = fleet.guilds
    async with fleet.host() as host:
        await fleet.wait_shown("codex", "idle")
        before = len(guild.arrivals)
        # A date has whole seconds: three of them are at least two, which is longer than any first wait of our own.
        fleet.platform.menu.add(RetryAfter(seconds=3, as_date=as_date), route="sync")
        guild.menu.add(RetryAfter(seconds=3, as_date=as_date, code=503))
        answer = await host.call("agentic.sync.push", {"dispatches": [dispatch(1)]})
        assert field(field(answer, "gate"), "state") == "waiting"
        await host.set_state("codex", "busy")
        again = await host.call("agentic.sync.push", {"dispatches": [dispatch(2)]})
        assert field(again, "queued") == 2
        await fleet.platform.wait_until(lambda platform: len(platform.records) == 2)
        await fleet.wait_shown("codex", "busy")
    refused, tried_again = fleet.platform.pushes[:2]
    assert tried_again.at - refused.at >= 1.9
    assert guild.arrivals[before + 1].at - guild.arrivals[before].at >= 1.9


@pytest.mark.parametrize("as_epoch", [False, True])
async def test_an_exhausted_limit_is_waited_out_before_it_is_broken(fleet: Fleet, *, as_epoch: bool) -> None:
    fleet.platform.menu.add(RateLimit(reset_s=2, as_epoch=as_epoch), route="sync")
    async with fleet.host() as host:
        answer = await host.call("agentic.sync.push", {"dispatches": [dispatch(1)]})
        assert field(answer, "count") == 1
        answer = await host.call("agentic.sync.push", {"dispatches": [dispatch(2)]})
        assert (field(answer, "count"), field(answer, "queued")) == (0, 1)
        assert (await gate_of(host))["state"] == "waiting"
        await fleet.platform.wait_until(lambda platform: len(platform.records) == 2)
    first, second = fleet.platform.pushes
    assert second.at - first.at >= 0.9


async def test_a_guild_that_lost_its_rows_is_told_again(fleet: Fleet) -> None:
    async with fleet.host(presence={"interval_s": 0.5, "refresh_s": 1}):
        await fleet.wait_shown("codex", "idle")
        fleet.guilds[0].lose_rows()
        await fleet.wait_shown("codex", "idle")


async def test_one_of_ten_guilds_that_hangs_holds_up_no_other_and_no_work(tmp_path: Path) -> None:
    guilds = [f"guild-{number}" for number in range(10)]
    async with fleet_on_loopback(tmp_path, guilds=guilds) as fleet:
        hanging, *others = fleet.guilds
        # With one request at a time to each guild, the one that hangs has all that any of them shared.
        async with fleet.host(presence={"interval_s": 0.5, "concurrency_per_guild": 1}) as host:
            await fleet.wait_shown("codex", "idle")
            hanging.menu.add(Hang(), times=None)
            for state, shown in (("busy", "busy"), ("working", "on_call"), ("busy", "busy")):
                await host.set_state("codex", state)
                for guild in others:
                    await guild.wait_until(lambda guild, shown=shown: guild.presence["user-codex"] == shown)
                assert hanging.in_flight == 1
            answer = await host.call("agentic.sync.push", {"dispatches": [dispatch(1)]})
            assert field(answer, "count") == 1
            hanging.menu.clear()
            await hanging.down()
            await hanging.up()
            await fleet.wait_shown("codex", "busy")


async def test_an_hour_of_refused_tokens_costs_few_probes_and_loses_nothing(tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("old")
    clock = FakeClock()
    platform = BrittlePlatform(clock=clock)
    async with (
        platform,
        world(
            tmp_path,
            platform=platform,
            clock=clock,
            platform_settings={"api_key": None, "api_key_file": str(token_file)},
        ) as one,
    ):
        for name in ("a", "b", "c"):
            assert (await one.push(name)).count == 0
        probes = one.requests
        for _ in range(360):
            await clock.advance(10)
            await one.quiet()
        assert platform.records == []
        assert 5 <= one.requests - probes <= 20
        token_file.write_text(TOKEN)
        await clock.advance(301)
        await one.until_drained()
        assert sorted(one.delivered()) == ["a", "b", "c"]


@asynccontextmanager
async def town(clock: FakeClock, center: LoopbackCenter, guild: LoopbackGuild) -> AsyncGenerator[Presence]:
    """Presence of one agent with real servers, under a clock of the test's."""
    async with center, guild:
        center.add("codex", guild)
        config = configured([("codex", guild.node_id)], fabric=Fabric(center_url=center.url))
        presence = Presence(
            agents=Agents({"codex": "idle"}),
            config=config,
            environ={},
            clock=clock,
            rng=random.Random(7),  # noqa: S311 - jitter
        )
        task = asyncio.create_task(presence.run())
        try:
            yield presence
        finally:
            task.cancel()
            (ended,) = await asyncio.gather(task, return_exceptions=True)
    assert not isinstance(ended, Exception)


@pytest.mark.parametrize("refuses", ["guild", "center"])
async def test_an_hour_of_refused_logins_or_guild_tokens_costs_few_requests_and_ends_by_itself(refuses: str) -> None:
    clock = FakeClock()
    center, guild = LoopbackCenter(clock=clock), LoopbackGuild("lobby", clock=clock)
    refusing: Server = guild if refuses == "guild" else center
    refusing.menu.add(faults.unauthorised(), times=None)
    async with town(clock, center, guild):
        await refusing.wait_until(lambda server: len(server.arrivals) >= 1)
        for _ in range(360):
            await clock.advance(10)
            await idle(center, guild)
        assert guild.puts == []
        assert 5 <= len(refusing.arrivals) <= 45
        assert len(center.arrivals) <= 45
        refusing.menu.clear()
        await clock.advance(301)
        await guild.wait_until(lambda guild: guild.presence.get("user-codex") == "idle")


async def test_a_clock_that_jumps_by_a_day_neither_delays_presence_nor_repeats_it() -> None:
    clock = FakeClock()
    center, guild = LoopbackCenter(clock=clock), LoopbackGuild("lobby", clock=clock)
    async with town(clock, center, guild) as presence:
        await guild.wait_until(lambda guild: guild.presence.get("user-codex") == "idle")
        for jump_s, state, shown in ((-86_400, "busy", "busy"), (2 * 86_400, "working", "on_call")):
            arrivals = len(guild.arrivals)
            guild.menu.add(Status(code=500))
            clock.jump(jump_s)
            presence.state_changed("codex", state)
            for _ in range(3):
                await clock.advance(1)
                await idle(center, guild)
            assert guild.presence["user-codex"] == shown
            assert len(guild.arrivals) == arrivals + 2
        assert len(center.arrivals) == 1


async def idle(*servers: Server) -> None:
    """Let requests that were begun come to their end."""
    for _ in range(5):
        await settle()
        async with asyncio.timeout(20):
            for server in servers:
                await server.wait_until(lambda server: server.in_flight == 0)
