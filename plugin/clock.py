"""Time as an argument: everything that waits or dates something is handed a `Clock`."""

import asyncio
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """The two clocks and the one way to wait; tests hand in a fake that is advanced by hand."""

    def now(self) -> float:
        """Return the wall clock in seconds since 1970; it may jump, so it only dates what is stored or shown."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never jump; every wait and deadline inside the process is reckoned in them."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait for `seconds` of monotonic time; zero or less yields once."""
        ...


class SystemClock:
    """The machine's clocks and the event loop's timer."""

    def now(self) -> float:
        """Return the wall clock in seconds since 1970."""
        return time.time()

    def monotonic(self) -> float:
        """Return monotonic seconds."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait for `seconds`."""
        await asyncio.sleep(max(0.0, seconds))


async def wait_until_set(event: asyncio.Event, seconds: float, clock: Clock) -> bool:
    """Wait for the event, at most `seconds` of the clock's time; return whether it is set."""
    if event.is_set():
        return True
    if seconds <= 0:
        return False
    waiting = asyncio.ensure_future(event.wait())
    sleeping = asyncio.ensure_future(clock.sleep(seconds))
    try:
        await asyncio.wait((waiting, sleeping), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (waiting, sleeping):
            task.cancel()
        await asyncio.gather(waiting, sleeping, return_exceptions=True)
    return event.is_set()


def rfc3339(ms: int) -> str:
    """Write wall-clock milliseconds since 1970 as people and other programs read them, in UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
