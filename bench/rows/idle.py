"""What the plugin costs by the hour when nothing changes: 1,000 agents in 10 guilds, reckoned from some turns."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass

from bench.fleet import Guilds, Plugin, guilds, pairs, plugin
from bench.process import wake_ups, written_bytes
from bench.values import Figure, Table, at_most

AGENTS, EACH = 1_000, 10
TURNS = 2  # in one window; a turn is 30 s
WINDOWS = 3
REFRESH_S, OFTEN = 300, 10  # refreshed ten times as often as by default, a window shows it


@dataclass(frozen=True, slots=True)
class Cost:
    """What was used since the start, or an hour."""

    cpu_s: float
    wake_ups: float
    written_bytes: float
    questions: float


async def measure(runs: int) -> list[Table]:
    """Measure turns in which no cell is due, then turns with refreshes."""
    windows = min(runs, WINDOWS)
    async with guilds() as town:
        quiet = await _costs(town, windows, refresh_s=86_400, first_turn=2)
        often = await _costs(town, windows, refresh_s=REFRESH_S / OFTEN, first_turn=3)
    due = [_usual(one, other) for one, other in zip(quiet, often, strict=True)]
    kinds = {"no cell is due": quiet, "with refreshes": due}
    puts = AGENTS * EACH * 3600 // REFRESH_S
    return [
        Table(
            row="idle",
            title="Idle: CPU, with 1,000 agents in 10 guilds and nothing changing",
            unit="s an hour",
            figures=tuple(_figure(name, [cost.cpu_s for cost in costs]) for name, costs in kinds.items()),
            goals=(
                at_most("bytes written to disk:", max(cost.written_bytes for cost in [*quiet, *often]), 0),
                at_most(
                    "questions to the host, an agent and interval:",
                    statistics.median(cost.questions for cost in quiet) / (AGENTS * 120),
                    1.1,  # turns come 10 % earlier or later, at random
                ),
            ),
            note=f"The default configuration. Refreshes are {puts:,} PUTs an hour, measured at {OFTEN} times as many.",
        ),
        Table(
            row="idle-wakes",
            title="Idle: how often the process wakes up",
            unit="an hour",
            figures=tuple(_figure(name, [cost.wake_ups for cost in costs]) for name, costs in kinds.items()),
        ),
    ]


async def _costs(town: Guilds, windows: int, *, refresh_s: float, first_turn: int) -> list[Cost]:
    """Return what each of so many windows cost, by the hour."""
    await town.clear()
    costs: list[Cost] = []
    async with plugin(town, pairs(AGENTS), refresh_s=refresh_s) as it:
        await town.wait(AGENTS * EACH)
        await _turn(it, first_turn)
        for number in range(windows):
            began, before = time.monotonic(), _used(it)
            await _turn(it, first_turn + TURNS * (number + 1))
            hours = (time.monotonic() - began) / 3600
            costs.append(Cost(*((b - a) / hours for a, b in zip(astuple(before), astuple(_used(it)), strict=True))))
    return costs


async def _turn(it: Plugin, number: int) -> None:
    for agent in ("a0", f"a{AGENTS - 1}"):
        await it.host.wait_for_reads(agent, number, timeout_s=120)


def _used(it: Plugin) -> Cost:
    pid = it.host.pid
    return Cost(it.cpu_s, wake_ups(pid), written_bytes(pid), it.reads)


def _usual(quiet: Cost, often: Cost) -> Cost:
    """Return what refreshes at the usual pace come to."""
    return Cost(*(a + (b - a) / OFTEN for a, b in zip(astuple(quiet), astuple(often), strict=True)))


def _figure(name: str, values: Sequence[float]) -> Figure:
    return Figure(contestant=name, values=tuple(values))
