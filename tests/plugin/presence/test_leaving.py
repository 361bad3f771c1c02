"""Leaving: everybody offline everywhere, as far as the deadline lets."""

import asyncio

from plugin.presence.status import LeaveReport
from tests.support.guilds import CENTER, Reply, Setting, configured, running

ONE = [("ada", "g1")]
TWO = [("ada", "g1"), ("ada", "g2")]
DAY = 80_000
HANGS = Reply(status=None, cause="timeout", delay_s=10)


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
