"""What the host says an agent is doing, and what the guilds are to be shown of it. Pure."""

import math
from dataclasses import dataclass, replace
from enum import StrEnum

KEEP_S = 60.0
KEEP_FAILURES = 3
WORD_CHARS = 64


class Status(StrEnum):
    """What a guild can be shown; its `exhausted` and `unknown` are the backend's own and never sent."""

    IDLE = "idle"
    ON_CALL = "on_call"
    BUSY = "busy"
    OFFLINE = "offline"


# A working agent is in a single turn and still takes messages; a busy one must not be given announcements.
_STATUSES = {
    "idle": Status.IDLE,
    "working": Status.ON_CALL,
    "busy": Status.BUSY,
    "offline": Status.OFFLINE,
}


def status_of(state: str) -> Status | None:
    """Return what guilds are shown for a host's state, None for a state that no guild has a word for."""
    return _STATUSES.get(state)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What is known of one agent: the host's last word, and for how long it could not be asked.

    `read_at` is wall-clock seconds, `failing_since` monotonic ones.
    """

    state: str | None = None
    status: Status | None = None
    read_at: float | None = None
    failures: int = 0
    failing_since: float = math.inf

    def heard(self, state: str, wall: float) -> "Reading":
        """Take the host's word, of which the beginning is kept; a state that has no status leaves it as it was."""
        return Reading(state=state[:WORD_CHARS], status=status_of(state) or self.status, read_at=wall)

    def missed(self, now: float) -> "Reading":
        """Count a reading that failed."""
        return replace(self, failures=self.failures + 1, failing_since=min(self.failing_since, now))

    @property
    def stale_at(self) -> float:
        """When the last word stops counting, in monotonic seconds; infinity while the agent can be read."""
        return -math.inf if self.failures >= KEEP_FAILURES else self.failing_since + KEEP_S

    def shown(self, now: float) -> Status | None:
        """Return what guilds are to show: offline when the agent could not be read for long, None for nothing yet."""
        return Status.OFFLINE if self.stale_at <= now else self.status
