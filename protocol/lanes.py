"""Who runs, who waits, and who is turned away. Pure.

Work runs in the order in which it came, so many at once; so many more wait, by number and by bytes. Urgent work has
a lane of its own, where nobody waits. All of it is bounded: what finds no place is refused.
"""

from collections import deque
from collections.abc import Iterator
from enum import Enum, auto
from typing import Generic, TypeVar

from protocol.session import Fate, Stage, Work

H = TypeVar("H")


class Place(Enum):
    """Where a piece of work goes."""

    RUN = auto()
    WAIT = auto()
    NOWHERE = auto()


class Lanes(Generic[H]):
    """The work of one connection: at most `handlers` run, `waiting` of together `waiting_bytes` wait.

    At most `waiting` urgent ones run besides.
    """

    def __init__(self, *, handlers: int, waiting: int, waiting_bytes: int) -> None:
        self._waiting: deque[Work[H]] = deque()
        self._waiting_bytes = 0
        self._running: set[Work[H]] = set()
        self._urgent = 0
        self.crowded = False  # half of the places are taken: time to let handlers run before more is read
        self.limit(handlers=handlers, waiting=waiting, waiting_bytes=waiting_bytes)
        self.first: Work[H] | None = None  # work without a place, whose first step is being taken at this moment
        self.due = 0  # how many have a place and have yet to take their first step

    def limit(self, *, handlers: int, waiting: int, waiting_bytes: int) -> None:
        """Bound what comes from now on; what has its place keeps it."""
        self._handlers = handlers
        self._most_waiting = waiting
        self._most_bytes = waiting_bytes
        self._count()

    def __iter__(self) -> Iterator[Work[H]]:
        """Iterate over a snapshot of all that runs or waits."""
        first = () if self.first is None else (self.first,)
        return iter((*first, *self._running, *self._waiting))

    def place(self, *, size: int, urgent: bool) -> Place:
        """Say where work of that many bytes would go now."""
        if urgent:
            return Place.RUN if self._urgent < self._most_waiting else Place.NOWHERE
        if len(self._running) - self._urgent < self._handlers:
            return Place.RUN
        if len(self._waiting) < self._most_waiting and self._waiting_bytes + size <= self._most_bytes:
            return Place.WAIT
        return Place.NOWHERE

    def enter(self, work: Work[H]) -> None:
        """Give work a place among those that run."""
        self._running.add(work)
        self._urgent += work.urgent
        self._count()

    def start(self, work: Work[H]) -> None:
        """Give work a place, from which it has yet to take its first step."""
        work.stage = Stage.STARTED
        self.enter(work)
        self.due += 1

    def begin(self, work: Work[H]) -> bool:
        """Say that the first step of work is being taken; False when it was given up before."""
        self.due -= 1
        if work.fate is not Fate.NATURAL:
            return False
        work.stage = Stage.RUNNING
        return True

    def wait(self, work: Work[H]) -> None:
        """Put work at the end of those that wait."""
        self._waiting.append(work)
        self._waiting_bytes += work.call.size
        self._count()

    def leave(self, work: Work[H]) -> Work[H] | None:
        """Take work out that has run; return what runs in its place, started."""
        self._running.discard(work)
        self._urgent -= work.urgent
        if work.urgent or not self._waiting:
            self._count()
            return None
        following = self._waiting.popleft()
        self._waiting_bytes -= following.call.size
        self.start(following)
        return following

    def withdraw(self, work: Work[H]) -> None:
        """Take work out that still waits."""
        self._waiting.remove(work)
        self._waiting_bytes -= work.call.size
        self._count()

    def _count(self) -> None:
        self.crowded = 2 * max(len(self._waiting), self._urgent) >= self._most_waiting
