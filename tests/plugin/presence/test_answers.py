"""What a guild is told after it refused, failed, or asked to be left alone."""

import itertools

import pytest

from plugin.presence.guild import SPREAD_S
from plugin.presence.status import CellStatus, GateStatus
from tests.support.guilds import CENTER, Reply, Setting, configured, running

ONE = [("ada", "g1")]
TWO = [("ada", "g1"), ("ada", "g2")]
DAY = 80_000


def cell(setting: Setting, agent: str = "ada", guild: str = "g1") -> CellStatus:
    (found,) = setting.presence.status(agent).agents
    return next(one for one in found.guilds if one.guild_node_id == guild)


def gate(setting: Setting, guild: str = "g1") -> GateStatus:
    return next(one.gate for one in setting.presence.status().guilds if one.guild_node_id == guild)


def times(setting: Setting, guild: str = "g1") -> list[float]:
    return [put.at for put in setting.bench.puts if put.guild_id == guild]


async def test_one_token_refused_brings_one_login_and_one_retry_at_once() -> None:
    setting = Setting(configured(TWO, refresh_s=DAY))
    async with running(setting):
        setting.bench.revoke("ada")
        setting.push("ada", "busy")
        await setting.after(0.1)
        assert len(setting.bench.logins) == 2
        assert setting.bench.shown("ada", "g1") == setting.bench.shown("ada", "g2") == "busy"
        assert setting.bench.statuses("ada", "g1") == ["idle", "busy", "busy"]


async def test_a_put_refused_after_somebody_else_has_logged_in_is_retried_without_a_login() -> None:
    setting = Setting(configured(TWO, refresh_s=DAY))
    async with running(setting):
        setting.bench.revoke("ada")
        setting.bench.replies["g2"].append(Reply(delay_s=3))
        setting.push("ada", "busy")
        await setting.after(1)
        assert len(setting.bench.logins) == 2
        await setting.after(3)
        assert setting.bench.shown("ada", "g2") == "busy"
        assert len(setting.bench.logins) == 2


async def test_a_refused_cell_waits_for_the_new_token_and_the_other_guilds_go_on_meanwhile() -> None:
    setting = Setting(configured(TWO, refresh_s=DAY))
    async with running(setting):
        setting.bench.replies["g1"].append(Reply(status=401))
        setting.bench.replies[CENTER].append(Reply(delay_s=30))
        setting.push("ada", "busy")
        await setting.after(5)
        setting.push("ada", "offline")
        await setting.after(5)
        assert setting.bench.statuses("ada", "g1") == ["idle", "busy"]
        assert setting.bench.shown("ada", "g2") == "offline"
        await setting.after(25)
        assert setting.bench.statuses("ada", "g1") == ["idle", "busy", "offline"]


async def test_a_second_401_parks_the_agent_at_that_guild_for_growing_times_and_its_other_guilds_go_on() -> None:
    setting = Setting(configured([*TWO, ("bob", "g1")], refresh_s=DAY, interval_s=1000))
    async with running(setting):
        await setting.after(2)
        setting.bench.always["g1"] = Reply(status=401)
        setting.push("ada", "busy")
        await setting.after(0.1)
        assert (cell(setting).state, cell(setting).reason) == ("parked", "unauthorised")
        assert setting.bench.shown("ada", "g2") == "busy"
        before = setting.clock.monotonic()
        await setting.after(1000)
        tries = [at - before for at in times(setting) if at > before]
        first = [tries[n] for n in range(0, len(tries), 2)]
        gaps = [first[0], *(later - earlier for earlier, later in itertools.pairwise(first))]
        for gap, step in zip(gaps, [1, 5, 15, 60, 300, 300], strict=False):
            assert 0.75 * step <= gap <= 1.25 * step
        # Each try is the current token, one login, the new token: never more.
        assert len(setting.bench.logins) == 3 + len(first)
        setting.bench.always.clear()
        await setting.after(400)
        assert setting.bench.shown("ada", "g1") == "busy"


async def test_a_new_configuration_tries_a_refused_token_at_once_and_a_success_makes_the_next_wait_short() -> None:
    setting = Setting(configured(ONE, refresh_s=DAY, interval_s=1000))
    async with running(setting):
        setting.bench.always["g1"] = Reply(status=401)
        setting.push("ada", "busy")
        await setting.after(100)
        setting.bench.always.clear()
        await setting.presence.reconfigure(setting.config)
        await setting.after(0.1)
        assert setting.bench.shown("ada", "g1") == "busy"
        setting.bench.always["g1"] = Reply(status=401)
        setting.push("ada", "offline")
        await setting.after(0.1)
        setting.bench.always.clear()
        await setting.after(1.3)
        assert setting.bench.shown("ada", "g1") == "offline"


async def test_a_refusal_of_another_kind_ends_the_count_of_refused_tokens() -> None:
    setting = Setting(configured(ONE, refresh_s=DAY))
    async with running(setting):
        setting.bench.replies["g1"].extend([Reply(status=401), Reply(status=404), Reply(status=401)])
        setting.push("ada", "busy")
        await setting.after(1)
        assert cell(setting).reason == "http_404"
        await setting.presence.reconfigure(setting.config)
        await setting.after(0.1)
        assert setting.bench.shown("ada", "g1") == "busy"
        assert len(setting.bench.logins) == 3


async def test_two_guilds_that_refuse_every_token_do_not_drive_each_other_round() -> None:
    setting = Setting(configured(TWO, refresh_s=DAY))
    async with running(setting):
        setting.bench.always["g1"] = setting.bench.always["g2"] = Reply(status=401)
        setting.push("ada", "busy")
        await setting.after(300)
        assert len(setting.bench.logins) <= 20
        assert len(setting.bench.puts) <= 40


@pytest.mark.parametrize("status", [302, 400, 403, 404, 409])
async def test_a_refusal_parks_the_cell_until_its_refresh(status: int) -> None:
    setting = Setting(configured([*ONE, ("bob", "g1")], refresh_s=100))
    setting.bench.replies["g1"].append(Reply(status=status))
    async with running(setting):
        assert (cell(setting).state, cell(setting).reason) == ("parked", f"http_{status}")
        assert cell(setting, "bob").state == "in_sync"
        setting.push("ada", "busy")
        await setting.after(48)
        assert setting.bench.statuses("ada") == ["idle"]
        await setting.after(104)
        assert setting.bench.statuses("ada")[:2] == ["idle", "busy"]
        assert cell(setting).state == "in_sync"
        assert len(setting.bench.logins) == 2


async def test_a_parked_cell_goes_again_with_a_new_session_and_with_a_new_configuration() -> None:
    setting = Setting(configured(TWO, refresh_s=DAY))
    setting.bench.replies["g1"].extend([Reply(status=404), Reply(status=404)])
    async with running(setting):
        assert cell(setting).state == "parked"
        setting.bench.replies["g2"].append(Reply(status=401))
        setting.push("ada", "busy")
        await setting.after(0.1)
        assert setting.bench.statuses("ada", "g1") == ["idle", "busy"]
        assert cell(setting).state == "parked"
        await setting.presence.reconfigure(setting.config)
        await setting.after(0.1)
        assert setting.bench.shown("ada", "g1") == "busy"


@pytest.mark.parametrize(("status", "after", "wait_s"), [(429, "20", 20), (503, "20", 20), (429, "5000", 300)])
async def test_retry_after_holds_the_whole_guild_and_no_other(status: int, after: str, wait_s: float) -> None:
    setting = Setting(configured([*TWO, ("bob", "g1")], refresh_s=DAY, interval_s=1000))
    async with running(setting):
        await setting.after(2)
        setting.bench.replies["g1"].append(Reply(status=status, headers={"retry-after": after}))
        setting.push("ada", "busy")
        await setting.after(0.1)
        setting.push("bob", "busy")
        await setting.after(wait_s - 1)
        assert gate(setting).state == "waiting"
        assert gate(setting).reason == "retry_after"
        assert setting.bench.shown("ada", "g2") == "busy"
        assert len(times(setting)) == 3
        await setting.after(1.5)
        assert setting.bench.shown("ada", "g1") == setting.bench.shown("bob", "g1") == "busy"
        assert gate(setting) == GateStatus(state="ready")


@pytest.mark.parametrize("fault", [Reply(status=500), Reply(status=None, cause="refused"), Reply(status=503)])
async def test_a_guild_in_trouble_is_left_alone_ever_longer_and_one_probe_brings_it_back(fault: Reply) -> None:
    setting = Setting(configured([*TWO, ("bob", "g1")], refresh_s=DAY, interval_s=1000))
    async with running(setting):
        setting.bench.always["g1"] = fault
        setting.push("ada", "busy")
        await setting.after(600)
        tries = len(times(setting)) - 2
        assert 15 <= tries <= 45
        assert gate(setting).state == "waiting"
        assert setting.bench.shown("ada", "g2") == "busy"
        gaps = [later - earlier for earlier, later in zip(times(setting)[2:], times(setting)[3:], strict=False)]
        assert max(gaps) <= 60.1
        assert max(gaps) > 10
        setting.bench.always.clear()
        await setting.after(61)
        assert setting.bench.shown("ada", "g1") == "busy"
        assert len(setting.bench.logins) == 2


async def test_while_the_breaker_is_open_there_is_never_more_than_one_request() -> None:
    agents = [f"a{n}" for n in range(20)]
    setting = Setting(configured([(agent, "g1") for agent in agents], refresh_s=DAY))
    setting.bench.always["g1"] = Reply(status=None, cause="timeout", delay_s=10)
    async with running(setting, start_s=12):
        setting.bench.most.clear()
        await setting.after(300)
        assert setting.bench.most["g1"] == 1


async def test_after_an_outage_every_cell_is_unknown_and_sent_again_within_ten_seconds() -> None:
    agents = [f"a{n}" for n in range(40)]
    setting = Setting(configured([(agent, "g1") for agent in agents], refresh_s=DAY))
    async with running(setting):
        setting.bench.always["g1"] = Reply(status=None, cause="refused")
        setting.push("a0", "busy")
        await setting.after(60)
        setting.bench.rows.clear()
        setting.bench.always.clear()
        while setting.bench.shown("a0", "g1") is None:
            await setting.clock.advance(0.1)
        back = setting.clock.monotonic()
        await setting.after(0.5)
        assert sum(cell(setting, agent).state == "unknown" for agent in agents) > 20
        await setting.after(SPREAD_S)
        assert all(setting.bench.shown(agent, "g1") == "idle" for agent in agents[1:])
        at = [at - back for at in times(setting) if at > back]
        assert len(at) == 39
        assert max(at) - min(at) > SPREAD_S / 2


async def test_a_guild_that_goes_away_again_right_after_an_outage_is_away_for_every_cell() -> None:
    setting = Setting(configured([("ada", "g1"), ("bob", "g1")], refresh_s=DAY, interval_s=1000))
    async with running(setting):
        setting.bench.always["g1"] = Reply(status=None, cause="refused")
        setting.push("ada", "busy")
        setting.push("bob", "busy")
        await setting.after(60)
        setting.bench.replies["g1"].append(Reply())
        while setting.bench.replies["g1"]:
            await setting.clock.advance(0.1)
        await setting.after(60)
        assert gate(setting).state == "waiting"


async def test_a_cell_that_failed_once_long_ago_is_not_taken_for_the_culprit() -> None:
    setting = Setting(configured(ONE, refresh_s=DAY, interval_s=1000))
    async with running(setting):
        setting.bench.replies["g1"].append(Reply(status=500))
        setting.push("ada", "busy")
        await setting.after(60)
        assert cell(setting).state == "in_sync"
        setting.bench.always["g1"] = Reply(status=500)
        setting.push("ada", "offline")
        await setting.after(60)
        assert gate(setting).state == "waiting"


async def test_a_guild_behind_an_open_breaker_is_waiting_also_while_it_is_probed() -> None:
    setting = Setting(configured(ONE, refresh_s=DAY, interval_s=1000))
    async with running(setting):
        setting.bench.always["g1"] = Reply(status=None, cause="timeout", delay_s=10)
        setting.push("ada", "busy")
        await setting.after(60)
        for _ in range(100):
            await setting.after(1)
            assert gate(setting).state == "waiting"


async def test_one_cell_that_always_fails_costs_the_others_nothing() -> None:
    pairs = [(f"a{n}", "g1") for n in range(5)]
    setting = Setting(configured(pairs, refresh_s=DAY, interval_s=1000))
    poisoned = "user-a0"
    setting.bench.always[f"cell g1 {poisoned}"] = Reply(status=500)
    async with running(setting):
        await setting.after(100)
        for turn in range(40):
            setting.push("a1", "busy" if turn % 2 else "offline")
            before = setting.clock.monotonic()
            await setting.after(30)
            mine = [put.at - before for put in setting.bench.puts if put.user_id == "user-a1" and put.at > before]
            assert mine
            if turn:
                assert mine[0] < 1
        tries = [put for put in setting.bench.puts if put.user_id == poisoned]
        others = [put for put in setting.bench.puts if put.user_id in {"user-a2", "user-a3", "user-a4"}]
        assert len(tries) >= 20
        assert len(others) <= 9
