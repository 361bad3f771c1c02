"""The platform's gate in this process: what the store keeps of it, reckoned in a clock that never jumps."""

from msgspec import UNSET

from plugin.clock import Clock, rfc3339
from plugin.store.interface import Gate, GateState
from plugin.sync.outcome import LONGEST_LIMIT_S, LONGEST_WAIT_S, RATE_LIMITED
from plugin.sync.params import GateView


class LiveGate:
    """Hold a platform's gate and say when a request may pass.

    The stored gate knows the wall clock only; a wait that it puts further away than any wait can be (the clock was
    set back) is pulled in.
    """

    def __init__(self, stored: Gate, clock: Clock) -> None:
        self._clock = clock
        self.set(stored)
        most_s = LONGEST_LIMIT_S if stored.reason == RATE_LIMITED else LONGEST_WAIT_S
        self._due = min(self._due, clock.monotonic() + most_s)

    @property
    def gate(self) -> Gate:
        """Return the gate as it was last decided."""
        return self._gate

    @property
    def open(self) -> bool:
        """Whether requests pass freely."""
        return self._gate.state is GateState.READY

    @property
    def wait_s(self) -> float:
        """How long until a request may pass: as the probe when the gate is closed; 0 when one may now."""
        return max(0.0, self._due - self._clock.monotonic())

    def set(self, gate: Gate) -> None:
        """Take a newly decided gate."""
        self._gate = gate
        until_ms = 0 if gate.until_ms is None else gate.until_ms
        self._due = self._clock.monotonic() + max(0.0, until_ms / 1000 - self._clock.now())

    def hurry(self) -> None:
        """Let the probe go now: what the gate was closed for may have changed."""
        self._due = self._clock.monotonic()

    def limited(self) -> bool:
        """Whether the platform asked us to stay away for a time that is not over."""
        return self._gate.reason == RATE_LIMITED and self.wait_s > 0

    def view(self) -> GateView:
        """Return the gate for a person; the time is reckoned anew, the clock may have been set since."""
        # A limit whose time is over holds up nobody: it must not be shown until the next push happens to come.
        if self.open or (self._gate.reason == RATE_LIMITED and not self.limited()):
            return GateView(state=GateState.READY)
        wait_s = self.wait_s
        until = rfc3339(round((self._clock.now() + wait_s) * 1000)) if wait_s else UNSET
        return GateView(state=self._gate.state, reason=self._gate.reason or UNSET, until=until)
