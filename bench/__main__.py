"""Measure rows of the benchmark: `make bench` for all of them, `make bench ROW=presence` for a part.

Prints each table with its ratios and whether its goals are met. A run of all rows writes bench/results.json, and the
tables and charts of docs/performance.md. The exit code says whether it ran, not whether the goals are met.
"""

import argparse
import asyncio
import importlib
import sys
from pathlib import Path
from typing import Protocol, cast

import msgspec
from rich.console import Console

from bench.charts import charts
from bench.machine import machine
from bench.report import markdown, outcome, show
from bench.values import Table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results.json"
PAGE = ROOT / "docs" / "performance.md"
CHARTS = ROOT / "docs" / "performance"
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
ROWS = ("wire", "start", "enqueue", "drain", "scan", "presence", "latency", "idle", "growth")


class Row(Protocol):
    """What a module of bench/rows has."""

    async def measure(self, runs: int) -> list[Table]:
        """Measure in so many rounds."""
        ...


def main() -> int:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(
        prog="bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"some of: {', '.join(ROWS)}")
    parser.add_argument("--runs", type=int, default=5, help="how many rounds each figure is the median of (5)")
    options = parser.parse_args()
    if unknown := [row for row in options.rows if row not in ROWS]:
        parser.error(f"there is no row {unknown[0]!r}; there are {', '.join(ROWS)}")
    console = Console(highlight=False, width=110)
    where = machine()
    console.print(", ".join(f"{name} {value}" for name, value in where.items()))
    tables: list[Table] = []
    for name in options.rows or ROWS:
        row = cast("Row", importlib.import_module(f"bench.rows.{name}"))
        for table in asyncio.run(row.measure(options.runs)):
            show(table, console)
            tables.append(table)
    _summary(tables, console)
    if not options.rows:
        write(where, tables)
    return 0


def _summary(tables: list[Table], console: Console) -> None:
    goals = [(table, goal) for table in tables for goal in table.goals]
    console.print()
    console.print(f"{sum(goal.met for _, goal in goals)} of {len(goals)} goals met")
    for table, goal in goals:
        if not goal.met:
            console.print(f"  {table.row}: {outcome(goal)}", style="red")


def write(where: dict[str, str], tables: list[Table]) -> None:
    """Write the results, the page's tables and its charts."""
    goals = [{"row": one.row, **msgspec.to_builtins(goal), "met": goal.met} for one in tables for goal in one.goals]
    results = msgspec.json.encode({"machine": where, "goals": goals, "tables": tables})
    RESULTS.write_bytes(msgspec.json.format(results, indent=1) + b"\n")
    head, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, tail = rest.partition(END)
    about = "\n".join(f"- {name}: {value}" for name, value in where.items())
    PAGE.write_text(f"{head}{BEGIN}\n\nMeasured on:\n\n{about}\n\n{markdown(tables)}\n{END}{tail}")
    CHARTS.mkdir(exist_ok=True)
    for name, svg in charts(tables).items():
        (CHARTS / f"{name}.svg").write_text(svg)


if __name__ == "__main__":
    sys.exit(main())
