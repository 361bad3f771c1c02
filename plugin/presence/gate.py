"""Whether a server may be contacted, and by how many requests at once. Pure: times and random numbers are arguments."""

import math
from dataclasses import dataclass, replace

from plugin.retry import full_jitter_s

BREAKER_FAILURES = 5
RETRY_AFTER = "retry_after"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """How one server has been doing; all times are monotonic seconds.

    `failures` counts requests in a row without a proper answer. Requests that were already in flight when a wait began
    fail together, so they lengthen it only once: `waves` counts the waits.
    """

    failures: int = 0
    waves: int = 0
    waiting_since: float = -math.inf
    until: float = -math.inf
    reason: str | None = None
    well_at: float = -math.inf

    @property
    def broken(self) -> bool:
        """Whether the breaker is open: one probe at a time, until one is answered."""
        return self.failures >= BREAKER_FAILURES

    @property
    def lasting(self) -> bool:
        """Whether a try after the first wait failed as well: worth telling somebody."""
        return self.waves > 1

    def shut(self, now: float) -> bool:
        """Whether the server is not contacted freely now."""
        return self.until > now or self.broken

    def width(self, now: float, most: int) -> int:
        """Return how many requests may be in flight now."""
        if self.until > now:
            return 0
        return 1 if self.broken else most

    def well_since(self, at: float) -> bool:
        """Whether the server gave somebody a proper answer after `at`: then who fails since is in trouble alone."""
        return self.well_at > at

    def answered(self, now: float) -> "Gate":
        """The server is at work, whatever it said; a time that it asked us to stay away still counts."""
        if self.reason == RETRY_AFTER and self.until > now:
            return replace(self, failures=0, waves=0, well_at=now)
        return Gate(well_at=now)

    def failed(self, began: float, now: float, *, reason: str, rand: float) -> "Gate":
        """A request that began at `began` failed: wait, longer each time."""
        if began < self.waiting_since:
            return replace(self, failures=self.failures + 1)
        waves = self.waves + 1
        until = now + full_jitter_s(waves, rand=rand)
        if self.until > until:
            return replace(self, failures=self.failures + 1, waves=waves)
        return replace(self, failures=self.failures + 1, waves=waves, waiting_since=now, until=until, reason=reason)

    def deferred(self, now: float, wait_s: float) -> "Gate":
        """The server asked us to stay away for `wait_s`."""
        return replace(self, waiting_since=now, until=max(self.until, now + wait_s), reason=RETRY_AFTER)

    def deferred_again(self, began: float) -> bool:
        """Whether the server sent away a request that began at `began`, after the wait that it had asked for."""
        return self.reason == RETRY_AFTER and began >= self.until

    def hurried(self, now: float) -> "Gate":
        """Somebody thinks that the server is well again: end a wait of our own, not one that it asked for."""
        return self if self.reason == RETRY_AFTER else replace(self, until=min(self.until, now))
