"""Runs contestants in turn, so that what else the machine does hits all of them."""

from collections.abc import Awaitable, Callable, Mapping

from bench.values import Figure

Contestant = Callable[[], Awaitable[float]]


async def race(contestants: Mapping[str, Contestant], runs: int, *, warm_up: bool = True) -> tuple[Figure, ...]:
    """Let each run once a round, forwards and backwards in turn; the round before the first does not count."""
    names = list(contestants)
    values: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-1 if warm_up else 0, runs):
        for name in names if number % 2 else reversed(names):
            value = await contestants[name]()
            if number >= 0:
                values[name].append(value)
    return tuple(Figure(contestant=name, values=tuple(values[name])) for name in names)
