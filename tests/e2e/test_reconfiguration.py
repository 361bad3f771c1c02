"""A configuration that changes while everything is in flight, and a second plugin on the folder of the first."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import cast

import pytest

from plugin.loopback.faults import Delay
from plugin.loopback.guild import LoopbackGuild
from plugin.loopback.host import LoopbackHost
from plugin.loopback.platform import LoopbackPlatform
from protocol.errors import RpcError
from tests.support.fleet import TOKEN, Fleet, dispatch, field, fleet_on_loopback


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncGenerator[Fleet]:
    async with fleet_on_loopback(tmp_path, agents=("claude", "codex"), guilds=("build", "lobby")) as fleet:
        yield fleet


async def configure(host: LoopbackHost, fleet: Fleet, **parts: object) -> list[str]:
    answer = await host.call("configure", {"config": fleet.config(**parts)})
    return cast("list[str]", field(answer, "changed"))


async def test_configure_while_a_batch_is_in_flight_loses_and_doubles_nothing(fleet: Fleet) -> None:
    released = asyncio.Event()
    fleet.platform.menu.add(Delay(until=released), route="sync")
    async with LoopbackPlatform(tokens=("other-token",)) as other, fleet.host() as host:
        push = asyncio.create_task(host.call("agentic.sync.push", {"dispatches": [dispatch(1)]}))
        await fleet.platform.wait_until(lambda platform: len(platform.pushes) == 1)
        moved = {"base_url": other.url, "api_key": "other-token"}
        assert set(await configure(host, fleet, platform=moved)) == {"platform.api_key", "platform.base_url"}
        released.set()
        await push
        await host.call("agentic.sync.push", {"dispatches": [dispatch(2)]})
        await other.wait_until(lambda platform: len(platform.records) == 1)
    assert [record.id for record in fleet.platform.records] == ["work-1"]
    assert [record.id for record in other.records] == ["work-2"]
    assert {arrival.token for arrival in fleet.platform.arrivals} == {TOKEN}
    assert {arrival.token for arrival in other.arrivals} == {"other-token"}


async def test_configure_while_puts_are_in_flight_moves_agents_between_guilds(fleet: Fleet) -> None:
    released = asyncio.Event()
    build, lobby = fleet.guilds
    build.menu.add(Delay(until=released), times=2)
    async with fleet.host() as host:
        await build.wait_until(lambda guild: len(guild.arrivals) == 2)
        left = [{"agent_id": agent, "guild_node_id": "lobby"} for agent in fleet.agents]
        assert await configure(host, fleet, bindings=left) == ["bindings"]
        released.set()
        await build.wait_until(lambda guild: set(guild.presence.values()) == {"offline"} and len(guild.presence) == 2)
        await host.set_state("codex", "busy")
        await lobby.wait_until(lambda guild: guild.presence.get("user-codex") == "busy")
        assert build.presence["user-codex"] == "offline"


async def test_a_disabled_identity_is_set_offline_and_a_new_one_shown_at_once(fleet: Fleet) -> None:
    identities = [{"agent_id": agent, "api_key": f"key-{agent}"} for agent in fleet.agents]
    async with fleet.host() as host:
        await fleet.wait_shown("codex", "idle")
        await configure(host, fleet, identities=[identities[0], {**identities[1], "enabled": False}])
        await fleet.wait_shown("codex", "offline")
        await configure(host, fleet, identities=identities)
        await fleet.wait_shown("codex", "idle")


async def test_what_cannot_change_at_run_time_is_refused_and_the_old_configuration_stays(fleet: Fleet) -> None:
    async with fleet.host() as host:
        with pytest.raises(RpcError) as caught:
            await configure(host, fleet, root=str(fleet.folder / "elsewhere"), presence={"interval_s": 0})
        assert caught.value.code == -32015
        with pytest.raises(RpcError) as caught:
            await configure(host, fleet, root=str(fleet.folder / "elsewhere"))
        assert caught.value.code == -32015
        problems = cast("list[dict[str, str]]", field(caught.value.data, "detail"))
        assert {problem["path"] for problem in problems} == {"root", "state_dir"}
        assert field(await host.call("agentic.sync.push", {"dispatches": [dispatch(1)]}), "count") == 1


async def test_limits_given_at_initialize_are_in_force_from_then_on(fleet: Fleet) -> None:
    async with fleet.host(limits={"max_message_bytes": 4096}) as host:
        large = {"dispatches": [{**dispatch(1), "task": "x" * 8192}]}
        await host.peer.notify("agentic.sync.push", large)
        with pytest.raises(RpcError):
            await host.call("agentic.sync.push", large, timeout_s=2)
        assert await host.call("ping") == {}
        assert field(await host.call("agentic.sync.status"), "queued") == 0


async def test_a_token_file_that_appears_later_starts_the_sending(fleet: Fleet) -> None:
    token_file = fleet.folder / "token"
    platform = {"base_url": fleet.platform.url, "api_key_file": str(token_file)}
    async with fleet.host(platform=platform) as host:
        answer = await host.call("agentic.sync.push", {"dispatches": [dispatch(1)]})
        assert (field(answer, "count"), field(answer, "queued"), field(answer, "offline")) == (0, 1, True)
        token_file.write_text(f"{TOKEN}\n")
        answer = await host.call("agentic.sync.push", {"queue_only": True})
        assert (field(answer, "count"), field(answer, "queued")) == (1, 0)


async def test_configure_reads_a_token_file_again_though_nothing_else_changed(fleet: Fleet) -> None:
    token_file = fleet.folder / "token"
    token_file.write_text("wrong-token")
    platform = {"base_url": fleet.platform.url, "api_key_file": str(token_file)}
    async with fleet.host(platform=platform) as host:
        answer = await host.call("agentic.sync.push", {"dispatches": [dispatch(1)]})
        assert field(field(answer, "gate"), "state") == "parked"
        token_file.write_text(TOKEN)
        assert await configure(host, fleet, platform=platform) == []
        await fleet.platform.wait_until(lambda platform: len(platform.records) == 1)


async def test_a_second_plugin_says_who_has_the_folder_sends_nothing_and_takes_over(fleet: Fleet) -> None:
    first = fleet.host()
    await first.start()
    await first.call("agentic.sync.status")
    second = fleet.host()
    await second.start()
    status = await second.call("agentic.sync.status")
    assert field(field(status, "store"), "state") == "in_use"
    assert field(field(status, "store"), "pid") == first.pid
    presence = await second.call("agentic.presence.status")
    assert field(presence, "pid") == first.pid
    assert str(first.pid) in str(field(presence, "off"))
    with pytest.raises(RpcError) as caught:
        await second.call("agentic.sync.push", {"dispatches": [dispatch(2)]})
    assert caught.value.code == -32014
    assert str(first.pid) in caught.value.message
    assert second.reads.total() == 0  # presence is the first one's, too
    await first.call("agentic.sync.push", {"dispatches": [dispatch(1)]})
    await first.kill()
    await second.wait_for_reads("codex", 1)
    assert "off" not in cast("dict[str, object]", await second.call("agentic.presence.status"))
    answer = await second.call("agentic.sync.push", {"dispatches": [dispatch(3)]})
    assert field(answer, "count") == 1
    assert await second.stop() == 0
    assert [record.id for record in fleet.platform.records] == ["work-1", "work-3"]


async def test_a_cancelled_push_is_answered_as_cancelled_and_its_work_is_still_sent(fleet: Fleet) -> None:
    released = asyncio.Event()
    fleet.platform.menu.add(Delay(until=released), route="sync")
    async with fleet.host() as host:
        push = asyncio.create_task(host.call("agentic.sync.push", {"dispatches": [dispatch(1)]}))
        await fleet.platform.wait_until(lambda platform: len(platform.pushes) == 1)
        push.cancel()
        with pytest.raises(asyncio.CancelledError):
            await push
        released.set()
        await fleet.platform.wait_until(lambda platform: len(platform.records) == 1)
        assert await host.call("ping") == {}


async def test_an_agent_that_the_host_cannot_read_keeps_its_state_and_then_shows_offline(fleet: Fleet) -> None:
    lobby: LoopbackGuild = fleet.guilds[1]
    async with fleet.host() as host:
        await fleet.wait_shown("codex", "idle")
        del host.agents["codex"]
        await lobby.wait_until(lambda guild: guild.presence.get("user-codex") == "offline")
        host.agents["codex"] = "working"
        await lobby.wait_until(lambda guild: guild.presence.get("user-codex") == "on_call")
