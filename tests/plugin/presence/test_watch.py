"""How states come in: the poll, what the host pushes, and agents that cannot be read."""

import asyncio
import itertools
import logging

import pytest

from plugin.presence.watch import MANY, READS
from tests.support.clock import settle
from tests.support.guilds import Setting, configured, running

ONE = [("ada", "g1")]


async def test_every_agent_is_read_once_a_turn_whatever_the_number_of_its_guilds() -> None:
    setting = Setting(configured([("ada", f"g{n}") for n in range(5)] + [("bob", "g1")]))
    async with running(setting):
        assert setting.host.reads == {"ada": 1, "bob": 1}
        assert len(setting.bench.puts) == 6
        await setting.after(33)
        assert setting.host.reads == {"ada": 2, "bob": 2}
        assert len(setting.bench.puts) == 6


async def test_turns_come_every_interval_give_or_take_a_tenth() -> None:
    setting = Setting(configured(ONE, interval_s=10))
    async with running(setting, start_s=0):
        at = [setting.clock.monotonic()]
        for _ in range(600):
            reads = setting.host.reads["ada"]
            await setting.clock.advance(0.1)
            if setting.host.reads["ada"] > reads:
                at.append(setting.clock.monotonic())
    gaps = [later - earlier for earlier, later in itertools.pairwise(at)]
    assert all(8.8 <= gap <= 11.2 for gap in gaps)
    assert max(gaps) - min(gaps) > 0.2


async def test_the_poll_finds_what_the_host_did_not_push() -> None:
    setting = Setting(configured(ONE))
    async with running(setting):
        setting.host.states["ada"] = "working"
        await setting.after(33.1)
        assert setting.bench.shown("ada", "g1") == "on_call"


async def test_no_more_than_64_readings_are_in_flight_and_turns_never_overlap() -> None:
    agents = [f"a{n}" for n in range(READS + 20)]
    setting = Setting(configured([(agent, "g1") for agent in agents], interval_s=1))
    setting.host.hold = asyncio.Event()
    async with running(setting, start_s=20):
        assert setting.host.most == READS
        assert set(setting.host.reads.values()) == {1}
        assert len(setting.host.reads) == READS
        setting.host.hold.set()
        setting.host.hold = None
        await setting.after(0.05)
        assert len(setting.host.reads) == len(agents)
        assert set(setting.host.reads.values()) == {1}


async def test_a_slow_host_is_given_a_rest_between_two_turns() -> None:
    setting = Setting(configured(ONE, interval_s=10))
    setting.host.hold = asyncio.Event()
    async with running(setting, start_s=60):
        setting.host.hold.set()
        await setting.after(0.9)
        assert setting.host.reads["ada"] == 1
        await setting.after(0.2)
        assert setting.host.reads["ada"] == 2


async def test_the_first_turn_of_many_cells_waits_a_little_and_that_of_few_does_not() -> None:
    few = Setting(configured([(f"a{n}", "g1") for n in range(MANY)]))
    async with running(few, start_s=0):
        assert len(few.host.reads) == MANY
    many = Setting(configured([(f"a{n}", "g1") for n in range(MANY + 1)]))
    async with running(many, start_s=0):
        assert len(many.host.reads) == 0
        await many.after(5)
        assert len(many.bench.puts) == MANY + 1


async def test_a_push_is_sent_25_ms_later_and_only_its_last_state() -> None:
    setting = Setting(configured(ONE))
    async with running(setting):
        setting.push("ada", "working")
        await setting.after(0.01)
        setting.push("ada", "busy")
        await setting.after(0.014)
        assert setting.bench.statuses("ada") == ["idle"]
        await setting.after(0.002)
        assert setting.bench.statuses("ada") == ["idle", "busy"]


async def test_a_push_during_a_reading_wins_over_what_is_read() -> None:
    setting = Setting(configured(ONE))
    setting.host.hold = asyncio.Event()
    async with running(setting, start_s=0):
        setting.presence.state_changed("ada", "busy")
        await setting.after(1)
        setting.host.hold.set()
        await setting.after(1)
        assert setting.bench.statuses("ada") == ["busy"]


async def test_a_failed_reading_that_began_before_a_push_says_nothing() -> None:
    setting = Setting(configured(ONE, interval_s=300), states={})
    setting.host.hold = asyncio.Event()
    async with running(setting, start_s=0):
        setting.presence.state_changed("ada", "busy")
        await setting.after(1)
        setting.host.hold.set()
        await setting.after(1)
        assert setting.presence.status().agents[0].state == "busy"
        await setting.after(100)
        assert setting.bench.statuses("ada") == ["busy"]


async def test_a_reading_that_began_after_a_push_wins_over_the_push() -> None:
    setting = Setting(configured(ONE, interval_s=0.1))
    async with running(setting, start_s=0):
        # Pushed just before the next reading: it is older than what is read, although it would be applied after it.
        await setting.clock.advance(0.085)
        setting.presence.state_changed("ada", "busy")
        setting.host.states["ada"] = "working"
        await setting.after(5)
        assert setting.bench.statuses("ada") == ["idle", "on_call"]


async def test_pushes_for_agents_that_nobody_shows_are_ignored() -> None:
    setting = Setting(configured(ONE))
    async with running(setting):
        setting.presence.state_changed("zoe", "busy")
        await setting.after(1)
        assert setting.bench.statuses("ada") == ["idle"]


async def test_an_agent_that_cannot_be_read_shows_offline_after_sixty_seconds_and_comes_back() -> None:
    setting = Setting(configured(ONE, interval_s=300, refresh_s=80_000))
    async with running(setting):
        del setting.host.states["ada"]
        while setting.host.reads["ada"] < 2:
            await setting.after(1)
        await setting.after(57)
        assert setting.bench.statuses("ada") == ["idle"]
        await setting.after(4)
        assert setting.bench.statuses("ada") == ["idle", "offline"]
        setting.host.states["ada"] = "idle"
        await setting.after(300)
        assert setting.bench.statuses("ada") == ["idle", "offline", "idle"]


async def test_an_agent_that_cannot_be_read_three_times_shows_offline() -> None:
    setting = Setting(configured(ONE, interval_s=5))
    async with running(setting):
        del setting.host.states["ada"]
        await setting.after(11.2)
        assert setting.bench.statuses("ada") == ["idle"]
        await setting.after(5.5)
        assert setting.bench.statuses("ada") == ["idle", "offline"]


async def test_a_push_makes_an_unreadable_agent_known_again() -> None:
    setting = Setting(configured(ONE, interval_s=5), states={})
    async with running(setting):
        await setting.after(17)
        assert setting.bench.statuses("ada") == ["offline"]
        setting.presence.state_changed("ada", "busy")
        await setting.after(1)
        assert setting.bench.shown("ada", "g1") == "busy"


async def test_a_state_without_a_status_is_skipped_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "plugin.presence.watch")
    setting = Setting(configured(ONE, interval_s=1))
    async with running(setting):
        setting.host.states["ada"] = "x" * 100_000
        await setting.after(10)
        for number in range(50):
            setting.push("ada", f"odd-{number}")
            await setting.after(0.1)
        assert setting.bench.statuses("ada") == ["idle"]
        assert setting.presence.status().agents[0].state == "odd-49"
    lines = [record.__dict__["fields"] for record in caplog.records]
    assert lines[0] == {"agent": "ada", "state": "x" * 64}
    assert len(lines) == 16


async def test_unreadable_agents_are_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "plugin.presence.trouble")
    setting = Setting(configured([(f"a{n}", "g1") for n in range(20)], interval_s=1), states={})
    async with running(setting):
        await setting.after(30)
        assert len(caplog.records) == 1
        setting.host.states.update({f"a{n}": "idle" for n in range(20)})
        await setting.after(2)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


async def test_nothing_is_read_while_presence_is_off() -> None:
    setting = Setting(configured(ONE, center_url=None))
    async with running(setting):
        await setting.after(100)
        await settle()
        assert not setting.host.reads
        assert not setting.bench.logins
