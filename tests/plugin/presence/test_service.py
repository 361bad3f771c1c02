"""What presence says of itself, and what it logs."""

import asyncio
import logging

import msgspec
import pytest

from plugin.config import Config
from plugin.presence.report import Taken
from plugin.presence.roster import off
from plugin.presence.service import IN_FLIGHT
from plugin.presence.status import AgentStatus, CellStatus, GateStatus, GuildStatus, RefreshResult
from tests.support.clock import settle
from tests.support.guilds import CENTER, Reply, Setting, configured, known, running

ONE = [("ada", "g1")]
TWO = [("ada", "g1"), ("ada", "g2")]
DAY = 80_000


def agent(setting: Setting, agent_id: str = "ada") -> AgentStatus:
    (found,) = setting.presence.status(agent_id).agents
    return found


async def refreshed(setting: Setting, agent_id: str | None = None, *, within_s: float = 5.0) -> RefreshResult:
    asked = asyncio.ensure_future(setting.presence.refresh(agent_id))
    await setting.after(within_s)
    assert asked.done()
    return await asked


async def test_status_says_what_every_guild_shows() -> None:
    setting = Setting(configured(ONE, refresh_s=DAY))
    async with running(setting):
        status = setting.presence.status()
    at = "2023-11-14T22:13:20.000Z"
    cell = CellStatus(guild_node_id="g1", wanted="idle", confirmed="idle", confirmed_at=at, state="in_sync")
    assert status.agents == [
        AgentStatus(agent_id="ada", state="idle", read_at=at, identity="ready", guilds=[cell]),
    ]
    assert status.guilds == [
        GuildStatus(
            guild_node_id="g1",
            endpoint="https://g1.example",
            gate=GateStatus(state="ready"),
            in_flight=0,
            puts=1,
            failures=0,
        )
    ]
    assert status.last_tick_at == at
    assert status.tick_ms == 0.0


async def test_status_of_one_agent_holds_that_agent_and_its_guilds() -> None:
    setting = Setting(configured([*TWO, ("bob", "g3")]))
    async with running(setting):
        status = setting.presence.status("bob")
        assert [one.agent_id for one in status.agents] == ["bob"]
        assert status.guilds == [one for one in setting.presence.status().guilds if one.guild_node_id == "g3"]
        assert status.guilds[0].endpoint == "https://g3.example"
        nobody = setting.presence.status("zoe")
        assert (nobody.agents, nobody.guilds) == ([], [])


async def test_several_channels_of_one_guild_are_one_target() -> None:
    setting = Setting(configured([*ONE, *ONE, *ONE]))
    async with running(setting):
        assert setting.bench.statuses("ada") == ["idle"]
        assert len(agent(setting).guilds) == 1


async def test_agents_that_are_disabled_or_have_no_identity_are_shown_as_such_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "plugin.presence.trouble")
    config = configured(
        [("ada", "g1"), ("bob", "g1"), ("cyd", "g1")], identities=[known("ada"), known("bob", enabled=False)]
    )
    setting = Setting(config)
    async with running(setting):
        await setting.after(100)
        await setting.presence.reconfigure(config)
        assert [one.identity for one in setting.presence.status().agents] == ["ready", "disabled", "no_identity"]
        assert [(cell.state, cell.reason) for cell in agent(setting, "cyd").guilds] == [("parked", "no_identity")]
        assert {put.user_id for put in setting.bench.puts} == {"user-ada"}
        assert set(setting.host.reads) == {"ada"}
    assert [record.__dict__["fields"]["reason"] for record in caplog.records] == ["disabled", "no_identity"]


@pytest.mark.parametrize("config", [configured(ONE, center_url=None), configured(ONE, enabled=False)])
async def test_presence_that_is_off_waits_says_so_and_can_be_turned_on(config: Config) -> None:
    setting = Setting(config)
    async with running(setting):
        assert agent(setting).identity == "off"
        assert setting.presence.status().off == off(config)
        assert (agent(setting).guilds[0].state, agent(setting).guilds[0].reason) == ("parked", off(config))
        assert setting.presence.status().guilds == []
        assert await refreshed(setting) == RefreshResult(sent=0, failed=0, pending=0)
        await setting.presence.reconfigure(configured(ONE))
        await setting.after(0.1)
        assert setting.bench.shown("ada", "g1") == "idle"


@pytest.mark.parametrize("config", [configured(ONE), configured(ONE, enabled=False)])
async def test_presence_in_a_folder_that_another_process_has_says_which_one(config: Config) -> None:
    setting = Setting(config)  # it does not run: that begins when the other one ends
    taken = Taken(reason="/state is in use (pid 4711)", pid=4711)
    status = setting.presence.status(taken=taken)
    why = off(config) or taken.reason
    assert (status.off, status.pid) == (why, 4711)
    (found,) = status.agents
    assert (found.identity, found.guilds[0].state, found.guilds[0].reason) == ("off", "parked", why)


async def test_presence_that_is_on_has_no_reason_to_be_off() -> None:
    setting = Setting(configured(ONE))
    async with running(setting):
        status = setting.presence.status()
        assert status.off is status.pid is msgspec.UNSET
        assert status.agents[0].guilds[0].state == "in_sync"


async def test_an_agent_that_was_not_read_yet_is_pending() -> None:
    setting = Setting(configured(ONE), states={})
    async with running(setting):
        assert agent(setting).guilds[0].state == "pending"
        assert agent(setting).state is None


async def test_status_says_why_something_is_not_shown_yet() -> None:
    setting = Setting(configured([("ada", "g1"), ("bob", "g2"), ("cyd", "g1")], refresh_s=DAY))
    async with running(setting):
        setting.bench.always["g1"] = Reply(status=None, cause="refused")
        setting.push("ada", "busy")
        await setting.after(60)
        setting.push("cyd", "busy")
        setting.bench.always[CENTER] = Reply(status=502)
        setting.bench.revoke("bob")
        setting.push("bob", "busy")
        await setting.after(60)
        found = {one.agent_id: (one.guilds[0].state, one.guilds[0].reason) for one in setting.presence.status().agents}
        assert found == {
            "ada": ("unknown", "refused"),
            "bob": ("pending", "no session yet: http_502"),
            "cyd": ("unknown", "refused"),
        }


async def test_status_after_leaving_says_so() -> None:
    setting = Setting(configured(ONE))
    async with running(setting):
        await setting.leave(1.5, within_s=0.1)
        assert [(one.state, one.reason) for one in agent(setting).guilds] == [("parked", "left")]


async def test_a_turn_in_which_something_was_sent_is_one_line_and_a_quiet_one_is_none(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "plugin.presence")
    setting = Setting(configured([(f"a{n}", "g1") for n in range(20)], refresh_s=DAY, interval_s=10))
    async with running(setting):
        await setting.after(11)
        assert [record.__dict__["fields"]["sent"] for record in caplog.records] == [20]
        await setting.after(200)
        await settle()
    assert len(caplog.records) == 1


async def test_many_guilds_share_what_may_be_in_flight_and_fewer_get_more_again() -> None:
    agents, guilds = [f"agent{number}" for number in range(8)], [f"g{number}" for number in range(IN_FLIGHT // 3)]
    setting = Setting(configured([(name, guild) for name in agents for guild in guilds], interval_s=1, refresh_s=DAY))
    setting.bench.always = {guild: Reply(until=asyncio.Event()) for guild in guilds}
    async with running(setting, start_s=0):
        await setting.after(1)
        assert {setting.bench.most[guild] for guild in guilds} == {3}
        for reply in setting.bench.always.values():
            assert reply.until is not None
            reply.until.set()
        await setting.after(1)
        await setting.presence.reconfigure(configured([(name, "g0") for name in agents], interval_s=1, refresh_s=DAY))
        await setting.after(5)
        setting.bench.most.clear()
        await refreshed(setting)
        assert setting.bench.most["g0"] == 8


async def test_more_guilds_than_may_be_in_flight_get_one_request_each() -> None:
    guilds = [f"g{number}" for number in range(IN_FLIGHT + 1)]
    setting = Setting(configured([(name, guild) for name in ("ada", "bob") for guild in guilds], refresh_s=DAY))
    async with running(setting, start_s=6):
        assert {setting.bench.most[guild] for guild in guilds} == {1}
        assert len(setting.bench.puts) == 2 * len(guilds)
