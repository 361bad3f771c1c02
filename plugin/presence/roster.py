"""Who is shown where: brings agents, guilds and cells in line with the configuration."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from plugin.config import Config, Identity
from plugin.credentials import identity_credential
from plugin.presence import cell as step
from plugin.presence.agent import Agent
from plugin.presence.cell import Cell
from plugin.presence.guild import Guild, Surroundings

Standing = Literal["ready", "disabled", "no_identity"]


@dataclass(frozen=True, slots=True)
class Member:
    """A bound agent: who it is, and the guilds that it belongs to, each once."""

    identity: Identity | None
    guilds: tuple[str, ...]

    @property
    def standing(self) -> Standing:
        """Whether anything may be sent for it."""
        if self.identity is None:
            return "no_identity"
        return "ready" if self.identity.enabled else "disabled"


def members(config: Config) -> dict[str, Member]:
    """Return every bound agent, in the order of the bindings."""
    identities = {identity.agent_id: identity for identity in config.identities}
    guilds: dict[str, dict[str, None]] = {}
    for binding in config.bindings:
        guilds.setdefault(binding.agent_id, {})[binding.guild_node_id] = None
    return {agent_id: Member(identities.get(agent_id), tuple(bound)) for agent_id, bound in guilds.items()}


def off(config: Config) -> str | None:
    """Return why presence is off, None when it is on."""
    if not config.presence.enabled:
        return "presence.enabled is false"
    return "fabric.center_url is not set" if config.fabric.center_url is None else None


class Roster:
    """Hold the agents and the guilds.

    An agent is there as long as it is shown or has a cell, a guild as long as it has a cell.
    """

    def __init__(self, around: Surroundings, environ: Mapping[str, str], *, opened: Callable[[Guild], None]) -> None:
        """Take what is told of each new guild."""
        self.agents: dict[str, Agent] = around.agents
        self.guilds: dict[str, Guild] = {}
        self._around = around
        self._environ = environ
        self._opened = opened

    def apply(self, wanted: Mapping[str, Member]) -> None:
        """Make the cells those of `wanted`; whoever is in it no more is shown offline, then forgotten.

        What was parked goes again: whoever changed the configuration may have mended what it was parked for.
        """
        for agent in self.agents.values():
            agent.active = False
        for agent_id, member in wanted.items():
            if member.identity is not None and member.standing == "ready":
                self._admit(agent_id, member.identity, member.guilds)
        for agent in list(self.agents.values()):
            if agent.active:
                self._around.center.hurry(agent)
            else:
                self._retire(agent, agent.cells)
                self._discard_if_over(agent)

    def pairs(self) -> Iterator[tuple[Guild, Cell]]:
        """Yield every cell, with its guild."""
        for agent in self.agents.values():
            for guild_id, cell in agent.cells.items():
                yield self.guilds[guild_id], cell

    def forget(self, guild_id: str, cell: Cell) -> Guild | None:
        """Remove a cell; return its guild when that was its last and it is gone too."""
        agent, guild = self.agents[cell.agent_id], self.guilds[guild_id]
        del agent.cells[guild_id]
        self._discard_if_over(agent)
        guild.size -= 1
        return None if guild.size else self.guilds.pop(guild_id)

    def _admit(self, agent_id: str, identity: Identity, guilds: Collection[str]) -> None:
        agent = self.agents.get(agent_id)
        if agent is None:
            agent = Agent(agent_id, identity, identity_credential(identity, self._environ))
            self.agents[agent_id] = agent
        agent.active = True
        self._identify(agent, identity)
        self._retire(agent, agent.cells.keys() - set(guilds))
        for guild_id in guilds:
            self._seat(agent, guild_id)

    def _identify(self, agent: Agent, identity: Identity) -> None:
        old, agent.identity = agent.identity, identity
        if _key(old) != _key(identity):
            agent.credential = identity_credential(identity, self._environ)
            self._around.center.drop(agent)

    def _seat(self, agent: Agent, guild_id: str) -> None:
        guild = self.guilds.get(guild_id)
        if guild is None:
            guild = self.guilds[guild_id] = Guild(guild_id, self._around)
            self._opened(guild)
        cell = agent.cells.get(guild_id)
        if cell is None:
            cell = agent.cells[guild_id] = Cell(agent.agent_id)
            guild.size += 1
        step.revive(cell)
        if agent.shown is not None:
            step.want(cell, agent.shown)
        if agent.session is not None and guild_id not in agent.session.seats:
            self._around.center.ask(agent)
        guild.reseat(cell, agent, configured=True)

    def _retire(self, agent: Agent, guild_ids: Collection[str]) -> None:
        now = self._around.clock.monotonic()
        for guild_id in list(guild_ids):
            step.retire(agent.cells[guild_id], now)
            self.guilds[guild_id].lane.put(agent.cells[guild_id])

    def _discard_if_over(self, agent: Agent) -> None:
        if not agent.active and not agent.cells:
            self.agents.pop(agent.agent_id, None)
            self._around.center.forget(agent)
            self._around.troubles.forget(agent.agent_id)


def _key(identity: Identity) -> tuple[object, ...]:
    return identity.api_key, identity.api_key_env, identity.api_key_file
