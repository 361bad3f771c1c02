"""Logins: when there is one, what a refused one does, and a center in trouble."""

import asyncio
import itertools
import json
import logging
import os
from pathlib import Path

import pytest

from plugin.config import Identity
from plugin.presence.fabric import LOGINS
from plugin.presence.status import AgentStatus
from plugin.secret import Secret
from tests.support.guilds import CENTER, Reply, Setting, configured, known, running

ONE = [("ada", "g1")]
TWO = [("ada", "g1"), ("ada", "g2")]
DAY = 80_000


def agent(setting: Setting, agent_id: str = "ada") -> AgentStatus:
    (found,) = setting.presence.status(agent_id).agents
    return found


def waits(setting: Setting) -> list[float]:
    at = [at for at, _ in setting.bench.logins]
    return [later - earlier for earlier, later in itertools.pairwise(at)]


async def test_an_agent_logs_in_once_for_all_its_guilds_with_its_own_key() -> None:
    setting = Setting(configured([("ada", f"g{n}") for n in range(5)], refresh_s=DAY))
    async with running(setting):
        await setting.after(100)
    assert len(setting.bench.logins) == 1
    assert setting.bench.keys == ["key-ada"]


async def test_logins_are_bounded_and_one_per_agent_is_in_flight() -> None:
    setting = Setting(configured([(f"a{n}", "g1") for n in range(LOGINS * 2)], refresh_s=DAY))
    setting.bench.always[CENTER] = Reply(delay_s=1)
    async with running(setting):
        assert setting.bench.most[CENTER] == LOGINS
        await setting.after(2.1)
        assert len(setting.bench.logins) == LOGINS * 2
        assert len(setting.bench.rows) == LOGINS * 2


async def test_a_session_is_renewed_when_its_time_is_over_and_something_is_to_be_sent() -> None:
    setting = Setting(configured(ONE, refresh_s=DAY))
    setting.bench.expires_s = 60.0
    async with running(setting):
        await setting.after(100)
        assert len(setting.bench.logins) == 1
        setting.push("ada", "busy")
        await setting.after(1)
        assert len(setting.bench.logins) == 2
        assert setting.bench.puts[-1].token == "token-2-ada-g1"
        await setting.after(1)
        setting.push("ada", "offline")
        await setting.after(1)
        assert len(setting.bench.logins) == 2


@pytest.mark.parametrize("status", [401, 403, 404, 302, 422])
async def test_a_refused_login_parks_the_agent_for_growing_times(status: int) -> None:
    setting = Setting(configured([*ONE, ("bob", "g1")], refresh_s=DAY))
    setting.bench.replies[CENTER].append(Reply(status=status))
    setting.bench.members["ada"].clear()
    async with running(setting):
        assert agent(setting).identity == ("unauthorised" if status == 401 else f"http_{status}")
        assert [guild.state for guild in agent(setting).guilds] == ["parked"]
        assert agent(setting, "bob").guilds[0].state == "in_sync"
    setting = Setting(configured(ONE, refresh_s=DAY))
    setting.bench.always[CENTER] = Reply(status=status)
    async with running(setting):
        await setting.after(1000)
        for wait, step in zip(waits(setting), [1, 5, 15, 60, 300, 300], strict=False):
            assert 0.79 * step <= wait <= 1.21 * step
        assert len(setting.bench.logins) >= 6
        assert setting.bench.puts == []
        setting.bench.always.clear()
        await setting.after(361)
        assert setting.bench.shown("ada", "g1") == "idle"
        assert agent(setting).identity == "ready"


@pytest.mark.parametrize(
    "fault", [Reply(status=500), Reply(status=None, cause="refused"), Reply(body=b"<html>"), Reply(status=429)]
)
async def test_a_center_in_trouble_is_tried_ever_less_often_until_it_is_back(fault: Reply) -> None:
    setting = Setting(configured([(f"a{n}", "g1") for n in range(10)], refresh_s=DAY))
    setting.bench.always[CENTER] = fault
    async with running(setting):
        await setting.after(600)
        assert 15 <= len(setting.bench.logins) <= 80
        assert agent(setting, "a0").identity == "ready"
        assert agent(setting, "a0").guilds[0].state == "pending"
        setting.bench.always.clear()
        await setting.after(125)
        assert len(setting.bench.rows) == 10
        # The next outage is one for all of them again.
        for number in range(10):
            setting.bench.revoke(f"a{number}")
            setting.push(f"a{number}", "busy")
        setting.bench.always[CENTER] = fault
        logins = len(setting.bench.logins)
        await setting.after(600)
        assert 15 <= len(setting.bench.logins) - logins <= 80


async def test_the_center_decides_how_long_it_is_left_alone() -> None:
    setting = Setting(configured([*ONE, ("bob", "g1")], refresh_s=DAY))
    setting.bench.always[CENTER] = Reply(status=503, headers={"retry-after": "40"})
    async with running(setting):
        setting.bench.always.clear()
        await setting.after(39)
        assert len(setting.bench.logins) == 2
        await setting.after(2)
        assert len(setting.bench.rows) == 2


async def test_a_center_in_trouble_takes_nothing_from_agents_that_have_a_session() -> None:
    setting = Setting(configured(ONE, refresh_s=DAY))
    async with running(setting):
        setting.bench.always[CENTER] = Reply(status=500)
        setting.push("ada", "busy")
        await setting.after(1)
        assert setting.bench.shown("ada", "g1") == "busy"


async def test_one_agent_whose_login_always_fails_does_not_hold_up_the_others() -> None:
    setting = Setting(configured([("ada", "g1"), ("bob", "g1")], refresh_s=DAY))

    setting.bench.always["login ada"] = Reply(status=500)
    async with running(setting):
        await setting.after(60)
        setting.bench.revoke("bob")
        setting.push("bob", "busy")
        await setting.after(61)
        assert setting.bench.shown("bob", "g1") == "busy"
        for turn in range(10):
            await setting.after(300)
            setting.bench.revoke("bob")
            setting.push("bob", "busy" if turn % 2 else "offline")
            await setting.after(1)
            assert setting.bench.shown("bob", "g1") == ("busy" if turn % 2 else "offline")


async def test_an_agent_whose_login_alone_fails_is_named_in_the_log_and_status_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "plugin.presence.trouble")
    setting = Setting(configured([("ada", "g1"), ("bob", "g1")], refresh_s=DAY))
    setting.bench.always["login ada"] = Reply(status=500)
    async with running(setting):
        await setting.after(30)
        setting.bench.revoke("bob")
        setting.push("bob", "busy")
        await setting.after(200)
        assert agent(setting, "ada").guilds[0].reason == "no session yet: http_500"
        setting.bench.always.clear()
        await setting.after(100)
        assert agent(setting, "ada").guilds[0].state == "in_sync"
    told = [(record.levelname, record.__dict__["fields"]["who"]) for record in caplog.records]
    assert told[-2:] == [("WARNING", "ada"), ("INFO", "ada")]


async def test_an_agent_without_a_key_is_parked_until_there_is_one(tmp_path: Path) -> None:
    file = tmp_path / "key"
    config = configured(ONE, identities=[Identity(agent_id="ada", api_key_file=str(file))])
    setting = Setting(config)
    async with running(setting):
        assert agent(setting).identity == "no_credential"
        assert setting.bench.logins == []
        file.write_text("from-a-file\n")
        await setting.after(7)
        assert setting.bench.keys == ["from-a-file"]
        assert setting.bench.shown("ada", "g1") == "idle"


async def test_a_refused_key_is_read_again_whatever_its_file_looks_like(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("key-1")
    stamp = file.stat().st_mtime_ns
    setting = Setting(configured(ONE, identities=[Identity(agent_id="ada", api_key_file=str(file))], interval_s=1000))
    setting.bench.always[CENTER] = Reply(status=401)
    async with running(setting):
        with file.open("r+") as opened:
            opened.write("key-2")
        os.utime(file, ns=(stamp, stamp))
        await setting.after(1.3)
        assert setting.bench.keys == ["key-1", "key-2"]
        # A new configuration tries at once, even if nothing else changed.
        await setting.after(200)
        with file.open("r+") as opened:
            opened.write("key-3")
        os.utime(file, ns=(stamp, stamp))
        setting.bench.always.clear()
        await setting.presence.reconfigure(setting.config)
        await setting.after(0.1)
        assert setting.bench.keys[-1] == "key-3"
        assert setting.bench.shown("ada", "g1") == "idle"
        # After a success the next refusal waits a second again.
        setting.bench.revoke("ada")
        setting.bench.replies[CENTER].append(Reply(status=401))
        setting.push("ada", "busy")
        await setting.after(1.4)
        assert setting.bench.shown("ada", "g1") == "busy"


async def test_another_key_starts_anew_and_the_old_keys_session_is_used_no_more() -> None:
    setting = Setting(configured(TWO, refresh_s=DAY, interval_s=1000))
    async with running(setting):
        setting.bench.always[CENTER] = Reply(status=401)
        setting.bench.replies["g1"].append(Reply(status=401))
        setting.push("ada", "busy")
        await setting.after(200)
        logins = len(setting.bench.logins)
        await setting.presence.reconfigure(
            configured(TWO, identities=[Identity(agent_id="ada", api_key=Secret("new"))], refresh_s=DAY)
        )
        setting.push("ada", "offline")
        await setting.after(1.3)
        assert setting.bench.keys[logins:] == ["new", "new"]
        assert setting.bench.statuses("ada", "g1") == setting.bench.statuses("ada", "g2") == ["idle", "busy"]


async def test_an_agent_that_is_forgotten_logs_in_no_more() -> None:
    setting = Setting(configured(ONE, refresh_s=DAY))
    setting.bench.always[CENTER] = Reply(status=401)
    async with running(setting):
        await setting.after(10)
        logins = len(setting.bench.logins)
        await setting.presence.reconfigure(configured([]))
        await setting.after(600)
        assert len(setting.bench.logins) == logins


async def test_an_agent_that_is_forgotten_while_it_logs_in_does_so_no_more() -> None:
    setting = Setting(configured([*ONE, ("bob", "g1")], refresh_s=DAY))
    setting.bench.always["login bob"] = Reply(status=401, delay_s=5)
    async with running(setting):
        await setting.presence.reconfigure(configured(ONE, refresh_s=DAY))
        await setting.after(600)
        assert [who for _, who in setting.bench.logins] == ["ada", "bob"]


async def test_a_server_that_always_asks_to_wait_is_logged_when_it_starts_and_when_it_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "plugin.presence")
    setting = Setting(configured(ONE, refresh_s=DAY))
    wait = Reply(status=429, headers={"retry-after": "10"})
    setting.bench.replies[CENTER].extend([wait] * 4)
    setting.bench.replies["g1"].extend([wait] * 4)
    async with running(setting):
        await setting.after(300)
    told = [(record.levelname, record.__dict__["fields"].get("where")) for record in caplog.records]
    assert told == [("WARNING", CENTER), ("INFO", CENTER), ("WARNING", "g1"), ("INFO", "g1"), ("INFO", None)]


async def test_a_login_that_was_cut_off_is_made_again_when_presence_runs_again() -> None:
    setting = Setting(configured(ONE, refresh_s=DAY))
    setting.bench.replies[CENTER].append(Reply(until=asyncio.Event()))
    async with running(setting):
        assert len(setting.bench.logins) == 1
    async with running(setting):
        assert setting.bench.shown("ada", "g1") == "idle"


async def test_the_configured_user_id_wins_over_the_sessions_and_that_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "plugin.presence.trouble")
    setting = Setting(configured(ONE, identities=[known("ada", fabric_user_id="chosen")], refresh_s=100))
    async with running(setting):
        for _ in range(3):
            setting.bench.revoke("ada")
            await setting.presence.refresh()
        assert {put.user_id for put in setting.bench.puts} == {"chosen"}
    assert len(caplog.records) == 1


async def test_without_any_user_id_nothing_is_sent_and_that_is_shown() -> None:
    setting = Setting(configured(ONE, refresh_s=DAY))
    setting.bench.users["ada"] = None
    async with running(setting):
        await setting.after(100)
        assert setting.bench.puts == []
        assert agent(setting).identity == "no_user_id"
        assert (agent(setting).guilds[0].state, agent(setting).guilds[0].reason) == ("parked", "no_user_id")


async def test_a_session_that_holds_unusable_guilds_is_used_for_the_others(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "plugin.presence.trouble")
    setting = Setting(configured(ONE, refresh_s=DAY))
    seat = {"node_id": "g1", "endpoint": "https://g1.example", "token": "given"}
    setting.bench.tokens["given"] = "ada"
    setting.bench.issued_for["given"] = "https://g1.example"
    body = json.dumps({"user_id": "user-ada", "guilds": [{"node_id": "broken"}, seat]}).encode()
    setting.bench.always[CENTER] = Reply(body=body)
    async with running(setting):
        assert setting.bench.shown("ada", "g1") == "idle"
    assert [record.__dict__["fields"]["reason"] for record in caplog.records] == ["1 left out"]
