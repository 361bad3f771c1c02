"""A fleet on loopback for end-to-end tests: a real platform, center and guilds, and the plugin as a real process."""

import os
import ssl
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

from plugin.loopback.guild import LoopbackCenter, LoopbackGuild
from plugin.loopback.host import LoopbackHost
from plugin.loopback.platform import LoopbackPlatform
from protocol.framing import Framing

TOKEN = "loopback-token"
OURS = ("AGENT", "CORE_", "XDG_")


def environment(folder: Path, **more: str) -> dict[str, str]:
    """The environment of this process, without the settings of the person who runs the tests."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    return {**clean, "HOME": str(folder), **more}


class Fleet:
    """The servers, and the configuration that points a plugin at them."""

    def __init__(
        self, folder: Path, *, agents: Iterable[str], guilds: Iterable[str], tls: ssl.SSLContext | None = None
    ) -> None:
        self.folder = folder
        self.agents = tuple(agents)
        self.platform = LoopbackPlatform(tokens=(TOKEN,), tls=tls)
        self.center = LoopbackCenter(tls=tls)
        self.guilds = [LoopbackGuild(name, tls=tls) for name in guilds]

    def config(self, **parts: object) -> dict[str, object]:
        config: dict[str, object] = {
            "agent_id": "fleet",
            "root": str(self.folder / "root"),
            "platform": {"base_url": self.platform.url, "api_key": TOKEN},
            "fabric": {"center_url": self.center.url},
            "presence": {"interval_s": 0.5},
            "bindings": [
                {"agent_id": agent, "guild_node_id": guild.node_id} for agent in self.agents for guild in self.guilds
            ],
            "identities": [{"agent_id": agent, "api_key": f"key-{agent}"} for agent in self.agents],
        }
        return {**config, **parts}

    def host(
        self,
        *,
        framing: Framing = Framing.NDJSON,
        initialize: bool = True,
        environ: Mapping[str, str] | None = None,
        manifest_path: Path | None = None,
        **parts: object,
    ) -> LoopbackHost:
        host = LoopbackHost(
            environ={**environment(self.folder), **(environ or {})},
            config=self.config(**parts),
            manifest_path=manifest_path,
            framing=framing,
            initialize=initialize,
        )
        host.agents.update(dict.fromkeys(self.agents, "idle"))
        return host

    async def wait_shown(self, agent: str, status: str, timeout_s: float = 20.0) -> None:
        for guild in self.guilds:
            await guild.wait_until(lambda guild: guild.presence.get(f"user-{agent}") == status, timeout_s)


@asynccontextmanager
async def fleet_on_loopback(
    folder: Path,
    *,
    agents: Iterable[str] = ("codex",),
    guilds: Iterable[str] = ("lobby",),
    tls: ssl.SSLContext | None = None,
) -> AsyncGenerator[Fleet]:
    """Start the servers; they are gone afterwards."""
    fleet = Fleet(folder, agents=agents, guilds=guilds, tls=tls)
    async with fleet.platform, fleet.center:
        for guild in fleet.guilds:
            await guild.start()
        for agent in fleet.agents:
            fleet.center.add(agent, *fleet.guilds)
        try:
            yield fleet
        finally:
            for guild in fleet.guilds:
                await guild.stop()


def dispatch(number: int) -> dict[str, object]:
    """Some finished work."""
    return {"id": f"work-{number}", "repo": "core", "task": f"task {number}", "status": "completed"}


def field(answer: object, name: str) -> object:
    """One member of an answer."""
    return cast("dict[str, object]", answer)[name]
