"""One agent: who it is to the guilds, what it is doing, and its session."""

import math
from dataclasses import dataclass, field

from plugin.config import Identity
from plugin.credentials import Credential
from plugin.presence.cell import Cell
from plugin.presence.session import Seat, Session
from plugin.presence.state import Reading, Status


@dataclass(slots=True, eq=False)
class Agent:
    """What is kept of one agent; times are monotonic seconds.

    `pushes` counts the states that the host pushed: a reading that began before the last push is older than it.
    `shown` is what its cells were last told. `epoch` moves when the credential does: a login begun before is void.
    """

    agent_id: str
    identity: Identity
    credential: Credential
    cells: dict[str, Cell] = field(default_factory=dict[str, Cell])
    active: bool = True
    reading: Reading = field(default_factory=Reading)
    shown: Status | None = None
    pushes: int = 0
    odd_states: frozenset[str] = frozenset()
    session: Session | None = None
    epoch: int = 0
    wants_session: bool = False
    login_at: float = -math.inf
    refusal: str | None = None
    refusals: int = 0
    failures: int = 0
    failure: str | None = None
    failing_since: float = math.inf
    in_flight: bool = False
    queued_at: float = math.inf

    def session_at(self, now: float) -> Session | None:
        """Return the session, unless its time is over."""
        return self.session if self.session is not None and self.session.expires_at > now else None

    def seat(self, guild_id: str) -> Seat | None:
        """Return the agent's place in a guild, None where it has none."""
        return None if self.session is None else self.session.seats.get(guild_id)

    @property
    def user_id(self) -> str | None:
        """Who it is to the guilds: as configured, else as its session says."""
        return self.identity.fabric_user_id or (None if self.session is None else self.session.user_id)
