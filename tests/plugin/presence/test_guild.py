"""What one guild is told and when, while it answers well."""

import asyncio
import logging

import pytest

from plugin.presence.status import CellStatus, GateStatus
from tests.support.guilds import Reply, Setting, configured, running

ONE = [("ada", "g1")]
TWO = [("ada", "g1"), ("ada", "g2")]
DAY = 80_000
LOST = Reply(status=None, cause="timeout", applied=True)


def cell(setting: Setting, agent: str = "ada", guild: str = "g1") -> CellStatus:
    (found,) = setting.presence.status(agent).agents
    return next(one for one in found.guilds if one.guild_node_id == guild)


def gate(setting: Setting, guild: str = "g1") -> GateStatus:
    return next(one.gate for one in setting.presence.status().guilds if one.guild_node_id == guild)


def times(setting: Setting, guild: str = "g1") -> list[float]:
    return [put.at for put in setting.bench.puts if put.guild_id == guild]


async def test_a_status_is_sent_once_and_not_again_while_nothing_changes() -> None:
    setting = Setting(configured(ONE, refresh_s=DAY))
    async with running(setting):
        await setting.after(1000)
        assert setting.bench.statuses("ada") == ["idle"]
        assert cell(setting).state == "in_sync"
        assert setting.host.reads["ada"] > 30


async def test_the_latest_status_wins_and_only_one_is_in_flight() -> None:
    setting = Setting(configured(ONE, refresh_s=DAY))
    setting.bench.replies["g1"].append(Reply(delay_s=5))
    async with running(setting):
        for state in ("busy", "offline", "busy"):
            setting.push("ada", state)
            await setting.after(1)
        assert setting.bench.statuses("ada") == ["idle"]
        await setting.after(5)
        assert setting.bench.statuses("ada") == ["idle", "busy"]
    assert setting.bench.most["cell g1 user-ada"] == 1


async def test_busy_and_offline_go_at_once_and_other_changes_once_a_second_the_last_one_always() -> None:
    setting = Setting(configured(ONE, refresh_s=DAY))
    async with running(setting):
        await setting.after(10)
        for state in ("working", "idle", "working", "idle", "working"):
            setting.push("ada", state)
            await setting.after(0.1)
        assert setting.bench.statuses("ada") == ["idle", "on_call"]
        setting.push("ada", "busy")
        await setting.after(0.1)
        setting.push("ada", "idle")
        await setting.after(0.8)
        assert setting.bench.statuses("ada") == ["idle", "on_call", "busy"]
        await setting.after(0.3)
        assert setting.bench.statuses("ada") == ["idle", "on_call", "busy", "idle"]
        at = times(setting)
        assert at[3] - at[2] == pytest.approx(1.0)


async def test_a_refresh_is_no_change_and_holds_no_change_back() -> None:
    setting = Setting(configured(ONE, refresh_s=2, interval_s=500))
    async with running(setting):
        while len(setting.bench.puts) < 3:
            await setting.clock.advance(0.05)
        setting.push("ada", "working")
        await setting.after(0.1)
        assert setting.bench.shown("ada", "g1") == "on_call"


async def test_a_timed_out_put_that_was_applied_is_corrected_although_the_agent_is_back_where_it_was() -> None:
    setting = Setting(configured(ONE, refresh_s=DAY))
    async with running(setting):
        await setting.after(10)
        setting.bench.replies["g1"].append(Reply(status=None, cause="timeout", applied=True, delay_s=10))
        setting.push("ada", "busy")
        await setting.after(1)
        setting.push("ada", "idle")
        await setting.after(9.05)
        assert setting.bench.shown("ada", "g1") == "busy"
        await setting.after(1)
        assert setting.bench.shown("ada", "g1") == "idle"
        assert cell(setting).state == "in_sync"


@pytest.mark.parametrize("lost", [LOST, Reply(status=500, applied=True), Reply(status=302, applied=True)])
async def test_after_an_ambiguous_outcome_what_the_guild_shows_is_unknown(lost: Reply) -> None:
    setting = Setting(configured(ONE, refresh_s=DAY))
    async with running(setting):
        setting.bench.always["g1"] = lost
        setting.push("ada", "busy")
        await setting.after(0.1)
        assert cell(setting).confirmed is None
        assert cell(setting).confirmed_at is None
        assert cell(setting).state == ("parked" if lost.status == 302 else "unknown")


@pytest.mark.parametrize("status", [403, 404, 409, 429])
async def test_a_4xx_leaves_what_was_confirmed(status: int) -> None:
    setting = Setting(configured(ONE, refresh_s=DAY))
    async with running(setting):
        setting.bench.always["g1"] = Reply(status=status)
        setting.push("ada", "busy")
        await setting.after(0.1)
        assert cell(setting).confirmed == "idle"
        assert cell(setting).wanted == "busy"


async def test_unchanged_cells_are_sent_again_at_times_drawn_for_each() -> None:
    agents = [f"a{n}" for n in range(50)]
    setting = Setting(configured([(agent, "g1") for agent in agents], refresh_s=100))
    async with running(setting):
        await setting.after(48)
        assert len(setting.bench.puts) == 50
        await setting.after(104)
    again = sorted(at - 1000 for at in times(setting)[50:100])
    assert again[0] >= 50
    assert again[-1] <= 150.2
    assert again[-1] - again[0] > 60
    assert all(setting.bench.shown(agent, "g1") == "idle" for agent in agents)


async def test_a_guild_that_lost_its_rows_is_healed_by_the_refresh() -> None:
    setting = Setting(configured(ONE, refresh_s=100))
    async with running(setting):
        setting.bench.rows.clear()
        await setting.after(151)
        assert setting.bench.shown("ada", "g1") == "idle"


async def test_a_guild_that_states_a_ttl_is_refreshed_within_a_third_of_it() -> None:
    setting = Setting(configured(ONE, refresh_s=DAY))
    setting.bench.ttl_s["g1"] = 90
    async with running(setting):
        await setting.after(300)
    gaps = [later - earlier for earlier, later in zip(times(setting), times(setting)[1:], strict=False)]
    assert len(gaps) >= 9
    assert all(22 <= gap <= 30.01 for gap in gaps)


async def test_a_guild_that_hangs_slows_no_other() -> None:
    agents = [f"a{n}" for n in range(20)]
    setting = Setting(configured([(agent, guild) for agent in agents for guild in ("g1", "g2")], refresh_s=DAY))
    setting.bench.always["g1"] = Reply(status=None, cause="timeout", delay_s=10)
    setting.bench.always["g2"] = Reply(delay_s=0.01)
    async with running(setting, start_s=0.2):
        assert all(setting.bench.shown(agent, "g2") == "idle" for agent in agents)
        assert setting.bench.most["g1"] == 8


async def test_a_guild_that_is_not_in_the_session_is_never_contacted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "plugin.presence.trouble")
    setting = Setting(configured(TWO, refresh_s=100))
    setting.bench.members["ada"].remove("g2")
    async with running(setting):
        assert (cell(setting, guild="g2").state, cell(setting, guild="g2").reason) == ("parked", "not_in_session")
        assert gate(setting, "g2").state == "parked"
        await setting.after(1000)
        assert times(setting, "g2") == []
        assert [record.getMessage() for record in caplog.records] == ["agents have no usable place in a guild"]
        # It may join later: the session is asked for again, at the pace of the refresh.
        assert 3 <= len(setting.bench.logins) <= 20
        setting.bench.join("ada", "g2")
        await setting.after(151)
        assert setting.bench.shown("ada", "g2") == "idle"


async def test_a_guild_whose_endpoint_must_not_be_contacted_is_parked_with_the_reason() -> None:
    setting = Setting(configured(TWO, refresh_s=DAY))
    setting.bench.bad_endpoints.add(setting.bench.endpoints["g2"])
    async with running(setting):
        await setting.after(100)
        assert times(setting, "g2") == []
        assert cell(setting, guild="g2").state == "parked"
        assert str(cell(setting, guild="g2").reason).startswith("bad_endpoint: ")
        assert cell(setting, guild="g1").state == "in_sync"


async def test_a_guild_that_moved_is_told_at_its_new_endpoint_with_the_new_token() -> None:
    setting = Setting(configured(ONE, refresh_s=DAY))
    async with running(setting):
        setting.bench.endpoints["g1"] = "https://elsewhere.example"
        setting.bench.revoke("ada")
        await setting.presence.refresh()
        await setting.after(1)
        assert setting.bench.rows["https://elsewhere.example", "user-ada"] == "idle"
        assert setting.presence.status().guilds[0].endpoint == "https://elsewhere.example"


async def test_a_put_that_ends_after_its_agent_moved_confirms_nothing() -> None:
    setting = Setting(configured(TWO, refresh_s=DAY))
    async with running(setting):
        setting.bench.replies["g1"].append(Reply(delay_s=5))
        setting.push("ada", "busy")
        await setting.after(1)
        setting.bench.endpoints["g1"] = "https://elsewhere.example"
        setting.bench.replies["g2"].append(Reply(status=401))
        setting.push("ada", "offline")
        await setting.after(1)
        setting.push("ada", "busy")
        await setting.after(3.2)
        assert setting.bench.rows["https://elsewhere.example", "user-ada"] == "busy"


async def test_what_is_in_flight_when_presence_is_cancelled_is_unknown() -> None:
    setting = Setting(configured(ONE, refresh_s=DAY))
    async with running(setting):
        setting.bench.replies["g1"].append(Reply(until=asyncio.Event()))
        setting.push("ada", "busy")
        await setting.after(0.1)
        assert setting.presence.status().guilds[0].in_flight == 1
    assert cell(setting).confirmed is None
    async with running(setting):
        assert cell(setting).state == "in_sync"
        assert setting.bench.shown("ada", "g1") == "busy"


async def test_trouble_is_logged_when_it_starts_and_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "plugin.presence.trouble")
    setting = Setting(configured([(f"a{n}", "g1") for n in range(20)], refresh_s=DAY))
    setting.bench.always["g1"] = Reply(status=500)
    async with running(setting):
        await setting.after(500)
        setting.bench.always.clear()
        await setting.after(100)
        setting.bench.replies["g1"].append(Reply(status=500))
        setting.push("a0", "busy")
        await setting.after(100)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "a guild does not take presence"),
        ("INFO", "a guild takes presence again"),
    ]


async def test_agents_that_a_guild_refuses_at_once_are_a_line_each_turn_and_status_tells_of_each(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "plugin.presence.trouble")
    everybody = [f"agent-{number}" for number in range(200)]
    setting = Setting(configured([(name, "g1") for name in everybody]))
    setting.bench.always["g1"] = Reply(status=403)
    async with running(setting):
        await setting.after(90)
        told = [record.__dict__["fields"]["affected"] for record in caplog.records]
        assert (told[0], told[-1]) == (1, 200)
        assert len(told) <= 4
        assert {one.guilds[0].reason for one in setting.presence.status().agents} == {"http_403"}
