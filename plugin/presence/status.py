"""What the presence actions take and answer."""

from collections.abc import Iterator
from typing import Literal

from msgspec import UNSET, Struct, UnsetType


class PresenceStatusParams(Struct, frozen=True, kw_only=True):
    """Whose presence to show; everybody's without `agent_id`."""

    agent_id: str | None = None


class RefreshParams(Struct, frozen=True, kw_only=True):
    """Whose presence to send again; everybody's without `agent_id`."""

    agent_id: str | None = None


class StateChange(Struct, frozen=True, kw_only=True):
    """What an agent is doing now."""

    agent_id: str
    state: str


class AgentStateChangedParams(Struct, frozen=True, kw_only=True):
    """One change, as `agent_id` and `state`, or several in `states`."""

    agent_id: str | None = None
    state: str | None = None
    states: list[StateChange] | None = None

    def __post_init__(self) -> None:
        """Refuse half a change, and none at all."""
        if (self.agent_id is None) != (self.state is None):
            raise ValueError("agent_id and state go together")
        if self.agent_id is None and not self.states:
            raise ValueError("expected agent_id and state, or states")

    def changes(self) -> Iterator[tuple[str, str]]:
        """Yield (agent_id, state) of each change."""
        if self.agent_id is not None and self.state is not None:
            yield self.agent_id, self.state
        for change in self.states or ():
            yield change.agent_id, change.state


class RefreshResult(Struct, frozen=True, kw_only=True):
    """How many presences were sent again, how many failed, and how many had no result after 5 s; those go on."""

    sent: int
    failed: int
    pending: int


class LeaveReport(Struct, frozen=True, kw_only=True):
    """How many presences were set offline, and how many could not be before the deadline."""

    sent: int
    missed: int


class CellStatus(Struct, frozen=True, kw_only=True):
    """What one guild is to show of an agent, and what it confirmed last; `confirmed` is null when that is unknown."""

    guild_node_id: str
    wanted: str | None
    confirmed: str | None
    confirmed_at: str | None
    state: Literal["in_sync", "pending", "parked", "unknown"]
    reason: str | UnsetType = UNSET


class AgentStatus(Struct, frozen=True, kw_only=True):
    """What the host says of an agent and how its guilds stand; `identity` is `ready`, or why nothing is sent."""

    agent_id: str
    state: str | None
    read_at: str | None
    identity: str
    guilds: list[CellStatus]


class GateStatus(Struct, frozen=True, kw_only=True):
    """Whether a guild may be contacted, why not, and when it is tried next."""

    state: Literal["ready", "waiting", "parked"]
    reason: str | UnsetType = UNSET
    until: str | UnsetType = UNSET


class GuildStatus(Struct, frozen=True, kw_only=True):
    """How one guild is doing; `puts` and `failures` count since the start."""

    guild_node_id: str
    endpoint: str | None
    gate: GateStatus
    in_flight: int
    puts: int
    failures: int


class PresenceStatus(Struct, frozen=True, kw_only=True):
    """Everything that is shown where; `last_tick_at` is when the host was last asked about its agents.

    `off` says why nothing is sent for anybody, `pid` which other process has the state folder, and presence with it.
    """

    agents: list[AgentStatus]
    guilds: list[GuildStatus]
    last_tick_at: str | None
    tick_ms: float | None
    off: str | UnsetType = UNSET
    pid: int | UnsetType = UNSET
