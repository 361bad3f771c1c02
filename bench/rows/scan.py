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
    "With a report, a workspace takes 21 µs in a first scan, and 10 in the floor. Of the 11 between, 0.8 go into "
    "finding its name, 1.9 into the versions of both files (fstat), without which nothing could be left unread the "
    "next time, 2.3 into seeing that its report lies behind no link (lstat), 0.7 into exact numbers and times, 2.6 "
    "into the canonical form, 0.9 into its hash, and the rest into sizes, errors of each file and what is remembered. "
    "Without one, 1.7 go into the exception that says so. To pause the garbage collector, or to read in two threads, "
    "gains nothing. To come below 1.5, versions would have to be kept from run to run, so that only the very first "
    "scan is cold, or the loop would have to leave Python."
)
BARE = "As with a report: what a scan has to do beyond reading and decoding."
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
            at_most(f"{COLD}, against {READ}", ratio(figures, COLD, READ), 1.5, why=WHY if report else BARE),
            at_most(f"{WARM}, against {STAT}", ratio(figures, WARM, STAT), 2.0),
        ),
        note="The floors know the files' names, a scan has to find them; both see that a report is absent. "
        "Reading, the floor looks at no version, size or link, and hashes nothing.",
    )


def _scan_ms(scanner: Scanner) -> float:
    started = time.perf_counter()
    scanner.scan()
    return (time.perf_counter() - started) * 1000
