"""What it costs to look for finished work: the first time, and when nothing changed."""

import time
from pathlib import Path

from bench.race import race
from bench.stage import folder, launched, serving
from bench.values import Table, at_most, ratio
from bench.workspaces import go_ms, read_ms, stat_ms, write
from plugin.sync.scan import Scanner

WORKSPACES = 10_000
FILLED_S = 120.0
COLD, WARM, WIRE = "agentic-sync, cold", "agentic-sync, warm", "agentic-sync, a push that finds nothing new"
WHY = (
    "Each workspace is found by a stat, and its record made canonical and hashed, so that it need not be read again: "
    "in Python that is twice as much as reading."
)
READ, STAT, GO = "read + decode of the files", "stat of the files", "the Go way: read everything each time"


async def measure(runs: int) -> list[Table]:
    """Measure workspaces with a report, and without."""
    tables: list[Table] = []
    for report in (True, False):
        with folder() as home:
            paths = write(home / "root", range(WORKSPACES), report=report)
            tables.append(await _measure(home, paths, runs, report=report))
    return tables


async def _measure(home: Path, paths: list[str], runs: int, *, report: bool) -> Table:
    root = home / "root"
    scanner = Scanner(root)
    absent = [] if report else [path.replace("status.json", ".meta/report.json") for path in paths]
    assert len(scanner.scan().candidates) == WORKSPACES

    async def cold() -> float:
        return _scan_ms(Scanner(root))

    async def warm() -> float:
        return _scan_ms(scanner)

    async def read() -> float:
        return read_ms(paths, absent)

    async def stat() -> float:
        return stat_ms(paths, absent)

    async def go() -> float:
        return go_ms(root)

    async with serving() as (url, _), launched(home, url) as host:

        async def wire() -> float:
            started = time.perf_counter()
            await host.call("agentic.sync.push", timeout_s=FILLED_S)
            return (time.perf_counter() - started) * 1000

        await wire()
        figures = await race({READ: read, COLD: cold, STAT: stat, WARM: warm, WIRE: wire, GO: go}, runs)
    return Table(
        row="scan" if report else "scan-bare",
        title=f"A scan of {WORKSPACES:,} workspaces, {'each with a report' if report else 'none with a report'}",
        unit="ms",
        figures=figures,
        goals=(
            at_most(f"{COLD}, against {READ}", ratio(figures, COLD, READ), 1.5, why=WHY),
            at_most(f"{WARM}, against {STAT}", ratio(figures, WARM, STAT), 2.0),
        ),
        note="The floors know the files' names, a scan has to find them; both see that a report is absent.",
    )


def _scan_ms(scanner: Scanner) -> float:
    started = time.perf_counter()
    scanner.scan()
    return (time.perf_counter() - started) * 1000
