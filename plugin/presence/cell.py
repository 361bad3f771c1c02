"""One cell: what one guild is to show of one agent, what it showed last, and when to say it again. Pure.

The steps below change a cell and `decide` reads it; none of them waits, looks at a clock or draws a random number.
What is confirmed is only ever what a 2xx confirmed, at the place where the agent is now; after anything ambiguous it
is unknown (None), so that the next value is always sent, even when it is the old one again.
"""

import math
from dataclasses import dataclass

from plugin.presence.state import Status

GAP_S = 1.0
FORGET_S = 300.0
FIRST = -3.0
URGENT = -2.0
CHANGE = -1.0
# These keep announcements from the wrong ears, so they wait for nothing.
_AT_ONCE = (Status.BUSY, Status.OFFLINE)
# A guild that shows one of these of an agent that is gone misleads most.
_MISLEADING = (Status.BUSY, Status.ON_CALL)

Place = tuple[str, str]  # user id, endpoint


@dataclass(slots=True, eq=False)
class Cell:
    """What is wanted (with a version), what was sent and confirmed, and when it may go again.

    Times are monotonic seconds, but `confirmed_at`, which is shown to people. `due_at` is when it is sent though
    nothing changed; a PUT that begins uses it up. `refused` is the serial of the session whose token was refused.
    """

    agent_id: str
    wanted: Status | None = None
    version: int = 0
    sent: Status | None = None
    sent_version: int = 0
    sent_at: float = -math.inf
    confirmed: Status | None = None
    confirmed_at: float | None = None
    user_id: str | None = None
    endpoint: str | None = None
    due_at: float = math.inf
    parked_until: float = -math.inf
    reason: str | None = None
    forget_at: float = math.inf
    refused: int = 0
    refusals: int = 0
    failures: int = 0
    failing_since: float = math.inf
    in_flight: bool = False
    queued_at: float = math.inf

    @property
    def retired(self) -> bool:
        """Whether its agent left the guild."""
        return self.forget_at < math.inf

    @property
    def may_show(self) -> bool:
        """Whether the guild may show something else than offline because of us."""
        return self.sent is not None and self.confirmed is not Status.OFFLINE

    def over(self, now: float) -> bool:
        """Whether its agent left and the guild knows, or has been told for long enough."""
        return self.retired and (self.forget_at <= now or not self.may_show)


@dataclass(frozen=True, slots=True)
class Send:
    """Send what is wanted; the lower the rank, the sooner."""

    rank: float


@dataclass(frozen=True, slots=True)
class Wait:
    """Do nothing before `until`."""

    until: float


@dataclass(frozen=True, slots=True)
class Forget:
    """The agent left and the guild knows, or cannot be told: drop the cell."""


Action = Send | Wait | Forget


def decide(cell: Cell, now: float) -> Action:
    """Return what to do with a cell at `now`."""
    if cell.in_flight:
        return Wait(math.inf)
    if cell.over(now):
        return Forget()
    if cell.wanted is None:
        return Wait(math.inf)
    if cell.parked_until > now:
        return Wait(min(cell.parked_until, cell.forget_at))
    at, rank = _when(cell, cell.wanted)
    return Send(rank) if at <= now else Wait(min(at, cell.forget_at))


def _when(cell: Cell, wanted: Status) -> tuple[float, float]:
    """Return when the cell goes and its rank: changes before everything else, then what is due longest."""
    if cell.confirmed is wanted or cell.version == cell.sent_version:
        return cell.due_at, cell.due_at
    if wanted is Status.OFFLINE and (cell.confirmed or cell.sent) in _MISLEADING:
        return -math.inf, FIRST
    if wanted in _AT_ONCE:
        return -math.inf, URGENT
    return cell.sent_at + GAP_S, CHANGE


def want(cell: Cell, status: Status) -> None:
    """Show `status` from now on."""
    if status is not cell.wanted:
        cell.wanted = status
        cell.version += 1


def begin(cell: Cell, now: float) -> Status:
    """Return the status that the PUT which starts now carries."""
    if cell.wanted is None:
        raise ValueError(cell)
    if cell.sent_version != cell.version:
        cell.sent_at = now
    cell.sent, cell.sent_version = cell.wanted, cell.version
    cell.due_at = math.inf
    return cell.wanted


def accept(cell: Cell, status: Status, place: Place, *, wall: float, due_at: float) -> None:
    """Take a 2xx for `status` at `place`; refresh it at `due_at`."""
    if place == (cell.user_id, cell.endpoint):
        cell.confirmed, cell.confirmed_at = status, wall
    cell.due_at = min(cell.due_at, due_at)
    cell.refused = cell.refusals = 0
    unpark(cell)


def doubt(cell: Cell) -> None:
    """Nobody knows what the guild shows."""
    cell.confirmed = cell.confirmed_at = None


def park(cell: Cell, until: float, reason: str) -> None:
    """Leave the cell alone until `until`, or until the configuration or the session changes."""
    cell.parked_until, cell.reason = until, reason
    cell.due_at = min(cell.due_at, until)


def unpark(cell: Cell) -> None:
    """Let the cell go on."""
    cell.parked_until, cell.reason = -math.inf, None


def release(cell: Cell, now: float) -> None:
    """Send a parked cell now: what it was parked for may have changed."""
    if cell.reason is not None:
        unpark(cell)
        retry(cell, now)


def retry(cell: Cell, at: float) -> None:
    """Send the cell again at `at` at the latest."""
    cell.due_at = min(cell.due_at, at)


def fail(cell: Cell, now: float) -> None:
    """Count a PUT that the guild failed on."""
    cell.failures += 1
    cell.failing_since = min(cell.failing_since, now)


def recover(cell: Cell) -> None:
    """The guild answered properly."""
    cell.failures, cell.failing_since = 0, math.inf


def move(cell: Cell, place: Place, now: float) -> None:
    """The agent is at `place` in this guild; at a new place nothing is confirmed."""
    if place != (cell.user_id, cell.endpoint):
        cell.user_id, cell.endpoint = place
        doubt(cell)
        unpark(cell)
        retry(cell, now)


def resend(cell: Cell, now: float) -> None:
    """Send the cell now, whatever is confirmed and whatever it was parked for."""
    unpark(cell)
    cell.version += 1
    cell.sent_at = -math.inf
    cell.due_at = now


def lose(cell: Cell, at: float) -> None:
    """The guild was away and may have lost what it showed: tell it again at `at`, unless a change goes first."""
    doubt(cell)
    recover(cell)
    cell.due_at = at


def retire(cell: Cell, now: float) -> None:
    """The agent left the guild: show it offline, then forget the cell."""
    want(cell, Status.OFFLINE)
    release(cell, now)
    cell.forget_at = min(cell.forget_at, now + FORGET_S)


def revive(cell: Cell) -> None:
    """The agent is back."""
    cell.forget_at = math.inf
