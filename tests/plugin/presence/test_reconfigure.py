"""A new configuration at run time, while requests are in flight."""

import asyncio

from plugin.config import Fabric, Identity
from plugin.presence.status import AgentStatus
from plugin.secret import Secret
from tests.support.guilds import CENTER, Reply, Setting, configured, known, running

ONE = [("ada", "g1")]
TWO = [("ada", "g1"), ("ada", "g2")]
DAY = 80_000


def agent(setting: Setting, agent_id: str = "ada") -> AgentStatus:
    (found,) = setting.presence.status(agent_id).agents
    return found


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
