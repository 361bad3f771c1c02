"""Sending everything again on request."""

import asyncio

from plugin.presence.status import RefreshResult
from tests.support.guilds import CENTER, Reply, Setting, configured, running

ONE = [("ada", "g1")]
TWO = [("ada", "g1"), ("ada", "g2")]
DAY = 80_000
HANGS = Reply(status=None, cause="timeout", delay_s=10)


async def refreshed(setting: Setting, agent_id: str | None = None, *, within_s: float = 5.0) -> RefreshResult:
    asked = asyncio.ensure_future(setting.presence.refresh(agent_id))
    await setting.after(within_s)
    assert asked.done()
    return await asked


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
