"""What a measurement says: figures of contestants, goals and whether they are met, curves of growth. Pure."""

import statistics
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct


class Figure(Struct, frozen=True, kw_only=True):
    """What one contestant took or did, one value a round, in the order of the rounds."""

    contestant: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle of the rounds."""
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """Half the distance between smallest and largest, as a share of the median."""
        return (max(self.values) - min(self.values)) / 2 / self.median if self.median else 0.0


class Goal(Struct, frozen=True, kw_only=True):
    """A bound on a ratio (or, without a rival, on the figure itself); `why` says what stands behind a miss."""

    what: str
    value: float
    limit: float
    bound: Literal["at most", "at least"]
    why: str = ""

    @property
    def met(self) -> bool:
        """Whether the value keeps to the limit."""
        return self.value <= self.limit if self.bound == "at most" else self.value >= self.limit


class Curve(Struct, frozen=True, kw_only=True):
    """How a figure grows: (x, y) in ascending x."""

    name: str
    points: tuple[tuple[float, float], ...]


class Table(Struct, frozen=True, kw_only=True):
    """One row of the benchmark: who took how much, which goals stand on it, how it grows."""

    row: str  # the name by which it is chosen
    title: str
    unit: str  # of the figures and of the curves' y
    figures: tuple[Figure, ...] = ()
    goals: tuple[Goal, ...] = ()
    curves: tuple[Curve, ...] = ()
    x: str = ""  # what the curves' x counts
    note: str = ""

    @property
    def drawn(self) -> bool:
        """Whether there is something to compare in a chart."""
        return bool(self.curves) or len(self.figures) > 1


def ratio(figures: Sequence[Figure], of: str, to: str) -> float:
    """Return the median of the rounds' ratios: both of a round saw the same machine."""
    named = {figure.contestant: figure for figure in figures}
    return statistics.median(one / other for one, other in zip(named[of].values, named[to].values, strict=True))


def at_most(what: str, value: float, limit: float, *, why: str = "") -> Goal:
    """Make a goal that is met by small values."""
    return Goal(what=what, value=value, limit=limit, bound="at most", why=why)


def at_least(what: str, value: float, limit: float, *, why: str = "") -> Goal:
    """Make a goal that is met by large values."""
    return Goal(what=what, value=value, limit=limit, bound="at least", why=why)
