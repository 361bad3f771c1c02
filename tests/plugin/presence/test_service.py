"""Presence as a whole: what it says of itself, refreshing, a new configuration at run time, and leaving."""

import asyncio
import logging

import pytest

from plugin.config import Config, Fabric, Identity
from plugin.presence.roster import off
from plugin.presence.status import AgentStatus, CellStatus, GateStatus, GuildStatus, LeaveReport, RefreshResult
from plugin.secret import Secret
from tests.support.clock import settle
from tests.support.guilds import CENTER, Reply, Setting, configured, known, running

ONE = [("ada", "g1")]
TWO = [("ada", "g1"), ("ada", "g2")]
DAY = 80_000
HANGS = Reply(status=None, cause="timeout", delay_s=10)


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
        assert [one.guild_node_id for one in status.guilds] == ["g3"]
        assert setting.presence.status("zoe").agents == []


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
        assert (agent(setting).guilds[0].state, agent(setting).guilds[0].reason) == ("parked", off(config))
        assert setting.presence.status().guilds == []
        assert await refreshed(setting) == RefreshResult(sent=0, failed=0, pending=0)
        await setting.presence.reconfigure(configured(ONE))
        await setting.after(0.1)
        assert setting.bench.shown("ada", "g1") == "idle"


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


# --- refresh


async def test_refresh_sends_everything_again_now() -> None:
    setting = Setting(configured([*TWO, ("bob", "g1")], refresh_s=DAY))
    async with running(setting):
        assert await refreshed(setting, within_s=0.1) == RefreshResult(sent=3, failed=0, pending=0)
        assert len(setting.bench.puts) == 6
        assert await refreshed(setting, "bob", within_s=0.1) == RefreshResult(sent=1, failed=0, pending=0)
        assert setting.bench.statuses("bob") == ["idle", "idle", "idle"]
        await setting.after(1000)
        assert len(setting.bench.puts) == 7


async def test_refresh_answers_within_five_seconds_whatever_hangs() -> None:
    setting = Setting(configured([("ada", "g1"), ("bob", "g2"), ("cyd", "g3")], refresh_s=DAY))
    async with running(setting):
        setting.bench.always["g1"] = HANGS
        setting.bench.always["g2"] = Reply(status=404)
        assert await refreshed(setting) == RefreshResult(sent=1, failed=1, pending=1)


async def test_a_put_in_flight_when_refresh_is_asked_for_does_not_count() -> None:
    setting = Setting(configured(ONE, refresh_s=DAY))
    async with running(setting):
        setting.bench.replies["g1"].extend([Reply(delay_s=2), Reply(delay_s=7)])
        setting.push("ada", "busy")
        await setting.after(1)
        assert await refreshed(setting) == RefreshResult(sent=0, failed=0, pending=1)
        assert setting.bench.statuses("ada") == ["idle", "busy", "busy"]
        await setting.after(100)
        assert setting.bench.statuses("ada") == ["idle", "busy", "busy"]


async def test_a_refresh_right_after_one_that_failed_waits_for_nothing() -> None:
    setting = Setting(configured(ONE, refresh_s=DAY))
    async with running(setting):
        setting.bench.replies["g1"].append(Reply(status=500))
        assert await refreshed(setting, within_s=0.01) == RefreshResult(sent=0, failed=1, pending=0)
        assert await refreshed(setting, within_s=0.01) == RefreshResult(sent=1, failed=0, pending=0)


async def test_refresh_counts_neither_who_was_not_read_yet_nor_who_is_leaving() -> None:
    setting = Setting(configured([*TWO, ("bob", "g1")], refresh_s=DAY), states={"ada": "idle"})
    async with running(setting):
        setting.bench.always["g2"] = Reply(status=500)
        await setting.presence.reconfigure(configured([*ONE, ("bob", "g1")], refresh_s=DAY))
        await setting.after(1)
        assert await refreshed(setting) == RefreshResult(sent=1, failed=0, pending=0)


async def test_refresh_tries_what_is_parked_and_what_waits_for_reasons_of_our_own() -> None:
    setting = Setting(configured([("ada", "g1"), ("bob", "g2"), ("cyd", "g3")], refresh_s=DAY))
    setting.bench.always["g1"] = Reply(status=404)
    setting.bench.always["g2"] = Reply(status=500)
    setting.bench.replies[CENTER].append(Reply(status=500))
    async with running(setting):
        await setting.after(300)
        setting.bench.always.clear()
        assert await refreshed(setting, within_s=0.1) == RefreshResult(sent=3, failed=0, pending=0)


async def test_refresh_of_an_agent_whose_login_is_refused_tries_it_and_counts_a_failure() -> None:
    setting = Setting(configured(TWO, refresh_s=DAY))
    setting.bench.always[CENTER] = Reply(status=401)
    async with running(setting):
        await setting.after(300)
        logins = len(setting.bench.logins)
        assert await refreshed(setting, within_s=0.1) == RefreshResult(sent=0, failed=2, pending=0)
        assert len(setting.bench.logins) == logins + 1


async def test_a_token_that_is_refused_during_a_refresh_is_renewed_and_counts_once() -> None:
    setting = Setting(configured(TWO, refresh_s=DAY))
    async with running(setting):
        setting.bench.revoke("ada")
        assert await refreshed(setting, within_s=0.1) == RefreshResult(sent=2, failed=0, pending=0)


# --- reconfigure


async def test_a_new_target_is_sent_at_once() -> None:
    setting = Setting(configured(ONE, refresh_s=DAY))
    async with running(setting):
        setting.bench.join("ada", "g2")
        setting.bench.join("bob", "g1")
        setting.host.states["bob"] = "busy"
        await setting.presence.reconfigure(configured([*TWO, ("bob", "g1")], refresh_s=DAY))
        await setting.after(0.1)
        assert setting.bench.shown("ada", "g2") == "idle"
        assert setting.bench.shown("bob", "g1") == "busy"
        assert setting.bench.statuses("ada", "g1") == ["idle"]


async def test_a_removed_target_is_sent_offline_and_forgotten() -> None:
    setting = Setting(configured([*TWO, ("bob", "g1")], refresh_s=DAY))
    async with running(setting):
        await setting.presence.reconfigure(configured(ONE, refresh_s=DAY))
        await setting.after(0.1)
        assert setting.bench.shown("ada", "g2") == "offline"
        assert setting.bench.shown("bob", "g1") == "offline"
        assert setting.bench.shown("ada", "g1") == "idle"
        assert [one.guild_node_id for one in setting.presence.status().guilds] == ["g1"]
        assert setting.bench.dropped == ["g2"]
        reads = setting.host.reads["bob"]
        setting.push("bob", "busy")
        await setting.after(100)
        assert setting.host.reads["bob"] == reads
        assert setting.bench.shown("bob", "g1") == "offline"


async def test_a_disabled_identity_is_sent_offline_and_comes_back_when_enabled() -> None:
    setting = Setting(configured(ONE, refresh_s=DAY))
    async with running(setting):
        await setting.presence.reconfigure(configured(ONE, identities=[known("ada", enabled=False)], refresh_s=DAY))
        await setting.after(0.1)
        assert setting.bench.shown("ada", "g1") == "offline"
        assert agent(setting).identity == "disabled"
        await setting.presence.reconfigure(setting.config)
        await setting.after(0.1)
        assert setting.bench.shown("ada", "g1") == "idle"


async def test_a_removed_target_that_cannot_be_told_is_forgotten_after_five_minutes() -> None:
    setting = Setting(configured(TWO, refresh_s=DAY))
    async with running(setting):
        setting.bench.always["g2"] = Reply(status=500)
        await setting.presence.reconfigure(configured(ONE, refresh_s=DAY))
        await setting.after(299)
        assert len(setting.presence.status().guilds) == 2
        await setting.after(70)
        assert len(setting.presence.status().guilds) == 1
        tries = len(setting.bench.puts)
        await setting.after(300)
        assert len(setting.bench.puts) == tries


async def test_the_five_minutes_count_from_the_removal_and_a_parked_target_is_tried_once_more() -> None:
    setting = Setting(configured(TWO, refresh_s=DAY))
    async with running(setting):
        setting.bench.always["g2"] = Reply(status=404)
        setting.push("ada", "offline")
        await setting.after(10)
        tries = len(setting.bench.puts)
        await setting.presence.reconfigure(configured(ONE, refresh_s=DAY))
        await setting.after(200)
        assert len(setting.bench.puts) == tries + 1
        await setting.presence.reconfigure(configured(ONE, refresh_s=DAY))
        await setting.after(101)
        assert len(setting.presence.status().guilds) == 1


async def test_a_target_that_was_removed_shows_nothing_but_offline_whatever_its_agent_does() -> None:
    setting = Setting(configured(TWO, refresh_s=DAY))
    async with running(setting):
        setting.bench.always["g2"] = Reply(status=500)
        await setting.presence.reconfigure(configured(ONE, refresh_s=DAY))
        setting.push("ada", "busy")
        await setting.after(1)
        setting.bench.always.clear()
        await setting.after(60)
        assert setting.bench.shown("ada", "g1") == "busy"
        assert setting.bench.shown("ada", "g2") == "offline"


async def test_agents_and_guilds_that_come_and_go_leave_nothing_behind() -> None:
    setting = Setting(configured(ONE, refresh_s=DAY))
    async with running(setting):
        tasks = len(asyncio.all_tasks())
        for number in range(20):
            setting.bench.join(f"b{number}", f"h{number}")
            setting.host.states[f"b{number}"] = "idle"
            await setting.presence.reconfigure(configured([*ONE, (f"b{number}", f"h{number}")], refresh_s=DAY))
            await setting.after(1)
        await setting.presence.reconfigure(setting.config)
        await setting.after(1)
        assert len(asyncio.all_tasks()) == tasks
        assert len(setting.presence._roster.agents) == 1  # pyright: ignore[reportPrivateUsage] - what must not grow
        assert len(setting.bench.dropped) == 20


async def test_a_removed_target_that_is_refused_is_forgotten_after_five_minutes_too() -> None:
    setting = Setting(configured(TWO, refresh_s=DAY))
    async with running(setting):
        setting.bench.always["g2"] = Reply(status=404)
        await setting.presence.reconfigure(configured(ONE, refresh_s=DAY))
        await setting.after(301)
        assert len(setting.presence.status().guilds) == 1


async def test_a_target_that_comes_back_before_it_was_told_keeps_its_cell() -> None:
    setting = Setting(configured(ONE, refresh_s=DAY))
    async with running(setting):
        setting.bench.replies["g1"].append(Reply(delay_s=3))
        setting.push("ada", "busy")
        await setting.after(1)
        await setting.presence.reconfigure(configured([]))
        await setting.after(1)
        await setting.presence.reconfigure(setting.config)
        await setting.after(3)
        assert setting.bench.statuses("ada") == ["idle", "busy"]
        assert agent(setting).guilds[0].state == "in_sync"


async def test_a_configuration_that_changes_nothing_sends_nothing() -> None:
    setting = Setting(configured(TWO, refresh_s=DAY))
    async with running(setting):
        await setting.presence.reconfigure(configured(TWO, refresh_s=DAY))
        await setting.after(20)
        assert len(setting.bench.puts) == 2
        assert len(setting.bench.logins) == 1


async def test_another_user_id_is_sent_though_the_status_is_the_same() -> None:
    setting = Setting(configured(ONE, refresh_s=DAY))
    async with running(setting):
        await setting.presence.reconfigure(
            configured(ONE, identities=[known("ada", fabric_user_id="two")], refresh_s=DAY)
        )
        await setting.after(0.1)
        assert setting.bench.rows["https://g1.example", "two"] == "idle"
        assert len(setting.bench.logins) == 1


async def test_who_left_a_guild_is_set_offline_as_who_it_was_there() -> None:
    setting = Setting(configured(TWO, identities=[known("ada", fabric_user_id="one")], refresh_s=DAY))
    async with running(setting):
        await setting.presence.reconfigure(
            configured(ONE, identities=[known("ada", fabric_user_id="two")], refresh_s=DAY)
        )
        await setting.after(0.1)
        assert setting.bench.rows["https://g2.example", "one"] == "offline"
        assert ("https://g2.example", "two") not in setting.bench.rows
        assert setting.bench.rows["https://g1.example", "two"] == "idle"
        assert [one.guild_node_id for one in setting.presence.status().guilds] == ["g1"]


async def test_another_key_logs_in_again_and_sends_nothing_that_is_shown_already() -> None:
    setting = Setting(configured(ONE, refresh_s=DAY))
    async with running(setting):
        identity = Identity(agent_id="ada", api_key_env="ADA_KEY")
        await setting.presence.reconfigure(configured(ONE, identities=[identity], refresh_s=DAY))
        await setting.after(0.1)
        assert agent(setting).identity == "no_credential"
        await setting.presence.reconfigure(setting.config)
        await setting.after(0.1)
        assert len(setting.bench.logins) == 2
        assert len(setting.bench.puts) == 1


async def test_a_login_under_way_for_the_old_key_is_void() -> None:
    setting = Setting(configured(ONE, refresh_s=DAY))
    setting.bench.replies[CENTER].append(Reply(delay_s=5))
    async with running(setting):
        identity = Identity(agent_id="ada", api_key=Secret("other"))
        await setting.presence.reconfigure(configured(ONE, identities=[identity], refresh_s=DAY))
        await setting.after(6)
        assert setting.bench.keys == ["key-ada", "other"]
        assert setting.bench.puts[0].token == "token-2-ada-g1"
    assert setting.bench.most["login ada"] == 1


async def test_another_center_means_new_sessions_and_the_old_connections_are_closed() -> None:
    setting = Setting(configured(TWO, refresh_s=DAY))
    async with running(setting):
        setting.bench.replies["g1"].append(Reply(delay_s=3))
        setting.push("ada", "busy")
        await setting.after(1)
        fabric = Fabric(center_url="https://other.example")
        await setting.presence.reconfigure(configured(TWO, fabric=fabric, refresh_s=DAY))
        await setting.after(0.1)
        assert len(setting.bench.logins) == 2
        assert setting.bench.closed == 1
        await setting.after(3)
        assert setting.bench.statuses("ada", "g1") == ["idle", "busy"]


async def test_another_source_is_sent_everywhere_and_a_shorter_refresh_counts_at_once() -> None:
    setting = Setting(configured(TWO, refresh_s=DAY))
    async with running(setting):
        await setting.presence.reconfigure(configured(TWO, refresh_s=DAY, source="other"))
        await setting.after(0.1)
        assert len(setting.bench.puts) == 4
        await setting.presence.reconfigure(configured(TWO, refresh_s=10, source="other"))
        await setting.after(15.1)
        assert len(setting.bench.puts) >= 6


async def test_fewer_requests_at_once_count_from_now_on() -> None:
    agents = [f"a{n}" for n in range(20)]
    setting = Setting(configured([(name, "g1") for name in agents], refresh_s=DAY))
    setting.bench.always["g1"] = Reply(delay_s=1)
    async with running(setting):
        await setting.presence.reconfigure(configured([(name, "g1") for name in agents], concurrency_per_guild=2))
        await setting.after(1.5)
        setting.bench.most.clear()
        await setting.after(20)
        assert setting.bench.most["g1"] <= 2
        assert len(setting.bench.rows) == 20


async def test_turning_presence_off_shows_everybody_offline() -> None:
    setting = Setting(configured(TWO, refresh_s=DAY))
    async with running(setting):
        await setting.presence.reconfigure(configured(TWO, center_url=None))
        await setting.after(0.1)
        assert setting.bench.shown("ada", "g1") == setting.bench.shown("ada", "g2") == "offline"
        assert setting.presence.status().guilds == []
        reads = setting.host.reads["ada"]
        await setting.after(100)
        assert setting.host.reads["ada"] == reads


# --- leaving


async def test_leaving_shows_everybody_offline_busy_and_on_call_first() -> None:
    states = {"ada": "idle", "bob": "busy", "cyd": "offline", "dan": "working", "eve": "idle"}
    config = configured([(name, "g1") for name in states], refresh_s=DAY, concurrency_per_guild=1)
    setting = Setting(config, states=states)
    async with running(setting):
        sent = len(setting.bench.puts)
        assert await setting.leave(1.5, within_s=0.1) == (4, 0)
        assert [put.user_id for put in setting.bench.puts[sent:]] == ["user-bob", "user-dan", "user-ada", "user-eve"]
        assert {put.status for put in setting.bench.puts[sent:]} == {"offline"}
    assert setting.bench.closed == 1


async def test_run_ends_when_presence_has_left() -> None:
    setting = Setting(configured(ONE))
    running_task = asyncio.ensure_future(setting.presence.run())
    await setting.after(0.1)
    await setting.leave(1.5, within_s=0.1)
    async with asyncio.timeout(10):
        await running_task
    assert await setting.presence.leave(1.5) == LeaveReport(sent=0, missed=0)


async def test_what_was_queued_before_leaving_does_not_go_first() -> None:
    states = {"ada": "idle", "bob": "busy", "cyd": "idle"}
    config = configured([(name, "g1") for name in states], refresh_s=DAY, concurrency_per_guild=1)
    setting = Setting(config, states=states)
    async with running(setting):
        setting.bench.replies["g1"].append(Reply(delay_s=1))
        setting.push("cyd", "busy")
        await setting.after(0.1)
        setting.push("ada", "offline")
        await setting.after(0.1)
        sent = len(setting.bench.puts)
        assert await setting.leave(1.5) == (3, 0)
        assert [put.user_id for put in setting.bench.puts[sent:]] == ["user-bob", "user-cyd", "user-ada"]


async def test_an_agent_that_was_just_coming_online_is_shown_offline_too() -> None:
    setting = Setting(configured(ONE, refresh_s=DAY), states={"ada": "offline"})
    async with running(setting):
        setting.bench.replies["g1"].append(Reply(delay_s=0.5))
        setting.push("ada", "busy")
        await setting.after(0.1)
        assert await setting.leave(1.5) == (1, 0)
        assert setting.bench.shown("ada", "g1") == "offline"


async def test_a_configuration_that_comes_while_leaving_is_too_late() -> None:
    setting = Setting(configured(TWO, refresh_s=DAY))
    async with running(setting):
        setting.bench.always["g2"] = HANGS
        leaving = asyncio.create_task(setting.presence.leave(5.0))
        await setting.after(0.1)
        await setting.presence.reconfigure(setting.config)
        await setting.after(5)
        assert await leaving == LeaveReport(sent=1, missed=1)
        assert setting.bench.statuses("ada", "g1") == ["idle", "offline"]


async def test_leaving_lets_what_is_in_flight_end_and_drops_what_is_queued() -> None:
    setting = Setting(configured([("ada", "g1"), ("bob", "g1")], refresh_s=DAY, concurrency_per_guild=1))
    async with running(setting):
        setting.bench.replies["g1"].append(Reply(delay_s=1))
        setting.push("ada", "busy")
        setting.push("bob", "busy")
        await setting.after(0.1)
        assert await setting.leave(1.5) == (2, 0)
        assert setting.bench.statuses("ada") == ["idle", "busy", "offline"]
        assert setting.bench.statuses("bob") == ["idle", "offline"]


async def test_what_cannot_be_told_before_the_deadline_is_missed_and_costs_no_other_guild_its_time() -> None:
    agents = [f"a{n}" for n in range(20)]
    setting = Setting(configured([(name, guild) for name in agents for guild in ("g1", "g2", "g3")], refresh_s=DAY))
    async with running(setting):
        setting.bench.always["g1"] = HANGS
        setting.bench.always["g2"] = Reply(status=404)
        assert await setting.leave(1.5) == (20, 40)
        assert all(setting.bench.shown(name, "g3") == "offline" for name in agents)


async def test_leaving_tries_a_guild_behind_an_open_breaker_once_more() -> None:
    setting = Setting(configured([("ada", "g1"), ("bob", "g1")], refresh_s=DAY))
    async with running(setting):
        setting.bench.always["g1"] = Reply(status=None, cause="refused")
        setting.push("ada", "busy")
        await setting.after(300)
        setting.bench.always.clear()
        assert await setting.leave(1.5) == (2, 0)


async def test_leaving_with_tokens_that_count_no_more_logs_in_once() -> None:
    setting = Setting(configured(TWO, refresh_s=DAY))
    async with running(setting):
        setting.bench.revoke("ada")
        assert await setting.leave(1.5) == (2, 0)
        assert len(setting.bench.logins) == 2


async def test_leaving_when_no_login_is_granted_misses_at_once() -> None:
    setting = Setting(configured(TWO, refresh_s=DAY))
    async with running(setting):
        setting.bench.revoke("ada")
        setting.bench.always[CENTER] = Reply(status=403)
        assert await setting.leave(1.5, within_s=0.1) == (0, 2)


async def test_leaving_sends_nothing_for_cells_that_never_showed_anything() -> None:
    setting = Setting(configured(ONE))
    setting.bench.always[CENTER] = Reply(status=401)
    async with running(setting):
        assert await setting.leave(1.5, within_s=0.1) == (0, 0)
        assert setting.bench.puts == []


async def test_for_a_hot_restart_nothing_is_sent_and_what_is_in_flight_ends() -> None:
    setting = Setting(configured(TWO, refresh_s=DAY, offline_at_exit=False))
    async with running(setting):
        setting.bench.replies["g1"].append(Reply(delay_s=1))
        setting.push("ada", "busy")
        await setting.after(0.1)
        setting.push("ada", "offline")
        await setting.after(0.1)
        assert await setting.leave(1.5, within_s=1) == (0, 0)
        assert setting.bench.shown("ada", "g1") == "busy"
        assert setting.bench.statuses("ada", "g1") == ["idle", "busy"]


async def test_after_leaving_nothing_moves_presence_any_more() -> None:
    setting = Setting(configured(ONE))
    async with running(setting):
        await setting.leave(1.5, within_s=0.1)
        puts, reads = len(setting.bench.puts), setting.host.reads["ada"]
        setting.push("ada", "busy")
        await setting.presence.reconfigure(configured(TWO))
        await setting.after(100)
        assert len(setting.bench.puts) == puts
        assert setting.host.reads["ada"] == reads


async def test_leaving_before_presence_runs_is_over_at_once_and_run_then_ends() -> None:
    setting = Setting(configured(ONE))
    assert await setting.presence.leave(1.5) == LeaveReport(sent=0, missed=0)
    async with asyncio.timeout(10):
        await setting.presence.run()
    assert setting.bench.puts == []


async def test_presence_that_was_cancelled_closes_its_connections_and_can_run_again() -> None:
    setting = Setting(configured(ONE, refresh_s=DAY))
    async with running(setting):
        pass
    assert setting.bench.closed == 1
    async with running(setting):
        setting.push("ada", "busy")
        await setting.after(0.1)
        assert setting.bench.shown("ada", "g1") == "busy"


# --- the log


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
