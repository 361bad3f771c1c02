"""What it costs to look for finished work: the first time, and when nothing changed."""

import time
from pathlib import Path

from bench.cold import by_folder, look
from bench.race import race
from bench.stage import folder, launched, serving
from bench.values import Table, at_most, ratio
from bench.workspaces import go_ms, read_ms, stat_ms, write
from plugin.sync.scan import Scanner

WORKSPACES = 10_000
FILLED_S = 120.0
COLD, WARM, WIRE = "agentic-sync, cold", "agentic-sync, warm", "agentic-sync, a push that finds nothing new"
WHY = (
    "What a first scan needs takes 15.7 µs a workspace, 1.65 of the floor's 9.5, although it is told the names: 2.4 "
    "more for the versions of both files (fstat), without which nothing could be left unread the next time, 1.6 for "
    "seeing that the report lies behind no link (lstat), 1.2 for the canonical form and 1.0 for its hash. The plugin "
    "takes 3.2 more: 0.8 for finding the name, 0.6 for what the Go agent's ledger would say of it, 0.5 for calling a "
    "record's fields by their names, and 1.3 for order, links, errors of each file, and what becomes a candidate. To "
    "pause the garbage collector, or to read in two threads, gains nothing. To come below 1.5, versions would have to "
    "be kept from run to run, so that only the very first scan is cold, or the loop would have to leave Python."
)
WHY_NONE = (
    "What a first scan needs takes 9.0 µs, 1.5 of the floor's 5.9, and would be at 1.65 if it had to find the names. "
    "2.9 of it go into the report that is not there: an exception says so, 1.5 dearer than asking first, which would "
    "cost 1.1 where there is one. The plugin takes 2.6 more: 0.8 for the name, 0.6 for what the Go agent's ledger "
    "would say, 0.5 for the fields' names, and the rest as with a report."
)
READ, STAT, GO = "read + decode of the files", "stat of the files", "the Go way: read everything each time"
BARE = "what a first scan needs, in one loop (bare)"


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
    base, folders = str(root / "workspace"), by_folder(root / "workspace", paths)
    prints = {one.id: one.fingerprint for one in scanner.scan().candidates}
    assert len(prints) == WORKSPACES
    assert prints == {name: seen.fingerprint for name, seen in look(base, folders).items()}

    async def cold() -> float:
        return _scan_ms(Scanner(root))

    async def warm() -> float:
        return _scan_ms(scanner)

    async def read() -> float:
        return read_ms(paths, absent)

    async def bare() -> float:
        started = time.perf_counter()
        look(base, folders)
        return (time.perf_counter() - started) * 1000

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
        figures = await race({READ: read, BARE: bare, COLD: cold, STAT: stat, WARM: warm, WIRE: wire, GO: go}, runs)
    return Table(
        row="scan" if report else "scan-bare",
        title=f"A scan of {WORKSPACES:,} workspaces, {'each with a report' if report else 'none with a report'}",
        unit="ms",
        figures=figures,
        goals=(
            at_most(f"{COLD}, against {READ}", ratio(figures, COLD, READ), 1.5, why=WHY if report else WHY_NONE),
            at_most(f"{WARM}, against {STAT}", ratio(figures, WARM, STAT), 2.0),
        ),
        note="The floors know the files' names, a scan has to find them; both see that a report is absent. "
        "Reading, the floor looks at no version, size or link, and hashes nothing. Bare does; it knows the names, too.",
    )


def _scan_ms(scanner: Scanner) -> float:
    started = time.perf_counter()
    scanner.scan()
    return (time.perf_counter() - started) * 1000
