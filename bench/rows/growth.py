"""What one more costs when there are many already: records queued, agents that have some, workspaces, messages."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from bench.process import cpu_s
from bench.race import race
from bench.rows.enqueue import over_wire, queues, rate, rewritten
from bench.rows.growth_presence import presence_curves
from bench.stage import config, folder, launched, serving, work
from bench.values import Curve, Figure, Goal, Table, at_most
from bench.workspaces import go_ms, write
from plugin.sync.scan import Scanner

QUEUED = (0, 1_000, 10_000, 100_000)
AGENTS = (10, 100, 1_000, 10_000)
WORKSPACES = (10, 100, 1_000, 10_000, 100_000)
GO_WORKSPACES = 10_000  # more would take minutes
IN_FLIGHT = (1, 10, 100, 1_000)
ENQUEUES = 200
REQUESTS = 5_000
LONGEST_S = 300.0
OURS, GO = "agentic-sync", "the Go way"

Point = Callable[[], Awaitable[float]]


async def measure(runs: int) -> list[Table]:
    """Measure all curves."""
    ours = [await _queued(runs), await _agents(runs), await _workspaces(runs), await _in_flight(runs)]
    return [*ours, *await presence_curves(runs)]


async def _queued(runs: int) -> Table:
    with folder() as home:
        async with queues(home, QUEUED) as hosts:
            took = {
                length: lambda host=host: _enqueue_ms(over_wire(host))
                for length, host in zip(QUEUED, hosts, strict=True)
            }
            ours = await _curve(OURS, took, runs)
        go = {length: lambda length=length: rewritten(home, length, 1) for length in QUEUED}
        return Table(
            row="growth-queued",
            title="One more record, by how many are queued",
            unit="ms",
            x="records queued",
            curves=(ours, await _curve(f"{GO}: the queue rewritten", go, runs)),
            goals=(_flat(ours, "One more record at 100,000 queued, against at none", 1.2),),
        )


async def _enqueue_ms(enqueue: Callable[[int], Awaitable[object]]) -> float:
    return 1000 / await rate(enqueue, ENQUEUES)


async def _agents(runs: int) -> Table:
    curve = await _curve(OURS, {many: lambda many=many: _sent_ms(many) for many in AGENTS}, runs)
    return Table(
        row="growth-lines",
        title="A record sent, by how many agents have one queued",
        unit="ms of CPU a record",
        x="agents",
        curves=(curve,),
        goals=(_flat(curve, "A record among 10,000 agents', against one among 100", 1.2, since=100),),
        note="Each agent's record is a request of its own.",
    )


async def _sent_ms(agents: int) -> float:
    with folder() as home:
        async with launched(home) as host, serving(agents) as (url, came):
            for number in range(agents):
                given = {"agent_id": f"agent-{number}", "queue_only": True, "dispatches": [work(number)]}
                await host.call("agentic.sync.push", given)
            used_s = cpu_s(host.pid)
            await host.call("configure", {"config": config(home, url)})
            async with asyncio.timeout(LONGEST_S):
                await came.readline()
            await host.call("agentic.sync.push", {"agent_id": f"agent-{agents - 1}", "queue_only": True})
            return (cpu_s(host.pid) - used_s) * 1000 / agents


async def _workspaces(runs: int) -> Table:
    ours: list[Figure] = []
    go: list[Figure] = []
    with folder() as home:
        scanner = Scanner(home)
        for before, count in zip((0, *WORKSPACES), WORKSPACES, strict=False):
            write(home, range(before, count), report=True)
            scanner.scan()

            async def warm(count: int = count) -> float:
                return _scan_us(scanner) / count

            async def read(count: int = count) -> float:
                return go_ms(home) * 1000 / count

            ours += await race({OURS: warm}, runs)
            if count <= GO_WORKSPACES:
                go += await race({GO: read}, runs)
    curve = Curve(name=OURS, points=_points(WORKSPACES, ours))
    return Table(
        row="growth-workspaces",
        title="A workspace in a scan that finds nothing new, by how many there are",
        unit="µs of CPU a workspace",
        x="workspaces",
        curves=(curve, Curve(name=f"{GO}: all read each time", points=_points(WORKSPACES[: len(go)], go))),
        goals=(_flat(curve, "A workspace among 100,000, against one among 1,000", 1.5, since=1_000),),
    )


def _scan_us(scanner: Scanner) -> float:
    started = time.process_time()
    scanner.scan()
    return (time.process_time() - started) * 1e6


async def _in_flight(runs: int) -> Table:
    with folder() as home:
        async with launched(home) as host:

            async def ping(_place: int) -> object:
                return await host.call("ping")

            async def cpu_us(callers: int) -> float:
                used_s = cpu_s(host.pid)
                await rate(ping, REQUESTS, callers=callers)
                return (cpu_s(host.pid) - used_s) * 1e6 / REQUESTS

            curve = await _curve(OURS, {many: lambda many=many: cpu_us(many) for many in IN_FLIGHT}, runs)
    return Table(
        row="growth-messages",
        title="One more message, by how many are in flight",
        unit="µs of CPU a request",
        x="messages in flight",
        curves=(curve,),
        goals=(_flat(curve, "A message among 1,000, against one among 10", 1.2, since=10),),
    )


async def _curve(name: str, points: Mapping[int, Point], runs: int) -> Curve:
    """Measure the points in turn, a median each."""
    figures = await race({str(x): point for x, point in points.items()}, runs)
    return Curve(name=name, points=_points(list(points), figures))


def _points(xs: Sequence[int], figures: Sequence[Figure]) -> tuple[tuple[float, float], ...]:
    return tuple((x, figure.median) for x, figure in zip(xs, figures, strict=True))


def _flat(curve: Curve, what: str, limit: float, *, since: int = 0) -> Goal:
    first = next(y for x, y in curve.points if x >= since)
    return at_most(what, curve.points[-1][1] / first, limit)
