"""What a request costs: processor time with 64 in flight, and round trips one at a time."""

import contextlib
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from bench.contestants import FLOOR, JSONRPCSERVER, MCP, PLUGIN, PYGLS, contestants, ping
from bench.race import Contestant, race
from bench.stdio import IN_FLIGHT, Running
from bench.values import Table, at_least, at_most, ratio

US: Final = 1_000_000
_SLICE_S: Final = 0.15  # how long a contestant has its turn
_SLICES: Final = 5  # of a round: the others' work on this machine comes and goes


async def measure(runs: int) -> list[Table]:
    """Keep all of them running, and load one after the other."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        rivals = [stack.enter_context(Running(one)) for one in (*contestants(Path(folder)), ping(Path(folder)))]
        for rival in rivals:
            rival.greet()
            rival.settle()
            rival.load(30)
            rival.settle()
        return [await _cpu(rivals, runs), await _round_trips(rivals, runs)]


async def _cpu(rivals: list[Running], runs: int) -> Table:
    turns = {rival.contestant.name: _turn(partial(_us, rival, _bursts(rival))) for rival in rivals}
    figures = await race(turns, runs * _SLICES)
    return Table(
        row="wire",
        title=f"Processor time of a request, {IN_FLIGHT} in flight",
        unit="µs",
        figures=figures,
        goals=(
            at_most("to the floor", ratio(figures, PLUGIN, FLOOR), 2.5),
            at_least("pygls to the plugin", ratio(figures, PYGLS, PLUGIN), 20),
            at_least("mcp to the plugin", ratio(figures, MCP, PLUGIN), 35),
            at_least("jsonrpcserver to the plugin", ratio(figures, JSONRPCSERVER, PLUGIN), 7),
        ),
        note="The plugin answers agentic.presence.status: the typed action that does no I/O. The others answer with "
        "their params.",
    )


async def _round_trips(rivals: list[Running], runs: int) -> Table:
    turns = {
        rival.contestant.name: _turn(partial(rival.ask, max(20, int(_SLICE_S * rival.ask(20))))) for rival in rivals
    }
    figures = await race(turns, runs * _SLICES)
    return Table(
        row="round-trips",
        title="Round trips, one at a time",
        unit="1/s",
        figures=figures,
        goals=(at_least("to the floor", ratio(figures, PLUGIN, FLOOR), 0.8),),
    )


def _us(rival: Running, bursts: int) -> float:
    return rival.load(bursts) * US


def _bursts(rival: Running) -> int:
    return max(1, int(_SLICE_S / rival.load(3) / IN_FLIGHT))


def _turn(run: Callable[[], float]) -> Contestant:
    async def turn() -> float:
        return run()

    return turn
