"""Tell a person how presence stands. Pure: it reads agents and guilds and changes nothing."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from msgspec import UNSET

from plugin.clock import rfc3339
from plugin.presence.agent import Agent
from plugin.presence.cell import Cell
from plugin.presence.gate import Gate
from plugin.presence.guild import NO_USER_ID, Guild
from plugin.presence.roster import Member
from plugin.presence.status import AgentStatus, CellStatus, GateStatus, GuildStatus

CellState = Literal["in_sync", "pending", "parked", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Now:
    """The moment that a report is about, by both clocks."""

    monotonic: float
    wall: float

    def date(self, at: float) -> str:
        """Write a monotonic time as a date."""
        return date(self.wall + at - self.monotonic)


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """Another process has the state folder, and presence with it; `reason` is for a person."""

    reason: str
    pid: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What an agent's report depends on beside the agent: `off` says why presence is off, gates are by guild."""

    now: Now
    off: str | None
    center: Gate
    gates: Mapping[str, Gate]


def date(wall: float) -> str:
    """Write wall-clock seconds as RFC 3339."""
    return rfc3339(round(wall * 1000))


def agent_status(agent_id: str, member: Member, agent: Agent | None, around: Around) -> AgentStatus:
    """Describe one bound agent."""
    identity = _identity(member, agent, around.off)
    shown = agent if agent is not None and agent.active and around.off is None else None
    reading = None if shown is None else shown.reading
    return AgentStatus(
        agent_id=agent_id,
        state=None if reading is None else reading.state,
        read_at=None if reading is None or reading.read_at is None else date(reading.read_at),
        identity=identity,
        guilds=[_cell_status(guild_id, shown, around, around.off or identity) for guild_id in member.guilds],
    )


def guild_status(guild: Guild, cells: Collection[Cell], now: Now) -> GuildStatus:
    """Describe one guild, given its cells."""
    return GuildStatus(
        guild_node_id=guild.guild_id,
        endpoint=next((cell.endpoint for cell in cells if cell.endpoint is not None), None),
        gate=_gate_status(guild, cells, now),
        in_flight=guild.lane.in_flight,
        puts=guild.puts,
        failures=guild.failures,
    )


def _identity(member: Member, agent: Agent | None, off: str | None) -> str:
    if off is not None:
        return "off"
    if agent is None or member.standing != "ready":
        return member.standing
    if agent.session is not None and agent.user_id is None:
        return NO_USER_ID
    return agent.refusal or "ready"


def _cell_status(guild_id: str, agent: Agent | None, around: Around, why_not: str) -> CellStatus:
    cell = None if agent is None else agent.cells.get(guild_id)
    if agent is None or cell is None:
        return CellStatus(
            guild_node_id=guild_id,
            wanted=None,
            confirmed=None,
            confirmed_at=None,
            state="parked",
            reason=why_not if agent is None else "left",
        )
    state, reason = _cell_state(cell, agent, around.center, around.gates[guild_id], around.now.monotonic)
    return CellStatus(
        guild_node_id=guild_id,
        wanted=cell.wanted,
        confirmed=cell.confirmed,
        confirmed_at=None if cell.confirmed_at is None else date(cell.confirmed_at),
        state=state,
        reason=UNSET if reason is None else reason,
    )


def _cell_state(cell: Cell, agent: Agent, center: Gate, gate: Gate, now: float) -> tuple[CellState, str | None]:
    if cell.parked_until > now:
        return "parked", cell.reason
    if cell.wanted is not None and cell.confirmed is cell.wanted:
        return "in_sync", None
    no_session = agent.session_at(now) is None or (agent.wants_session and cell.refused != 0)
    if no_session and agent.refusal is not None:
        return "parked", agent.refusal
    if cell.wanted is None:
        return "pending", "the agent's state is not known yet"
    reason = gate.reason if gate.shut(now) else None
    if no_session:
        why = center.reason if center.shut(now) else agent.failure
        reason = "no session yet" if why is None else f"no session yet: {why}"
    return "unknown" if cell.sent is not None and cell.confirmed is None else "pending", reason


def _gate_status(guild: Guild, cells: Collection[Cell], now: Now) -> GateStatus:
    gate = guild.lane.gate
    if gate.shut(now.monotonic):
        until = now.date(max(gate.until, now.monotonic))
        return GateStatus(state="waiting", reason=gate.reason or UNSET, until=until)
    parked = [cell for cell in cells if cell.parked_until > now.monotonic]
    if parked and len(parked) == len(cells):
        first = min(parked, key=lambda cell: cell.parked_until)
        return GateStatus(state="parked", reason=first.reason or UNSET, until=now.date(first.parked_until))
    return GateStatus(state="ready")
