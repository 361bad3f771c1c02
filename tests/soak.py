"""A long storm by seed: `python -m tests.soak --seconds 600 --kills 500 --seed 1`.

First the plugin runs for so long, unkilled, with a third of all requests going wrong; its memory, file descriptors and
log are watched, and how long a push takes. Half-way it is suspended for a minute. Then it is killed so often, each time
at a random moment. At the end the faults stop, and what is owed is looked for. The exit code is 0 only when every
promise was kept.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.support.fleet import Fleet, fleet_on_loopback
from tests.support.oracle import Verdict, shown
from tests.support.storm import Sample, Storm, storm_over

AGENTS = ("claude", "codex", "gemini", "hermes")
GUILDS = ("build", "lobby", "ops")
SHARE = 0.3
EARLY = 0.3
DELIVERY_S = 900.0
PRESENCE_S = 120.0
MIB = 1024 * 1024
MAX_GROWTH_BYTES = 16 * MIB
MAX_GROWTH_FDS = 16
MAX_WAL_BYTES = 64 * MIB
MAX_SLOWER = 3.0
LEAST_PUSHES = 5_000  # in a quarter: of fewer, the p99 is chance
SUSPENDED_S = 60.0


def main() -> int:
    """Run the storm and say how it went."""
    parser = argparse.ArgumentParser(prog="soak", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600, help="how long it runs unkilled")
    parser.add_argument("--suspended", type=float, default=SUSPENDED_S, help="for how long it is suspended half-way")
    parser.add_argument("--kills", type=int, default=500, help="how often it is killed after that")
    parser.add_argument("--seed", type=int, default=1, help="the same seed draws the same faults and lives")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="agentic-sync-soak-") as folder:
        return asyncio.run(soak(Path(folder), options.seconds, options.suspended, options.kills, options.seed))


async def soak(folder: Path, seconds: float, suspended_s: float, kills: int, seed: int) -> int:
    """Return the exit code."""
    began_at = time.monotonic()
    async with (
        fleet_on_loopback(folder, agents=AGENTS, guilds=GUILDS) as fleet,
        storm_over(fleet, seed=seed, share=SHARE) as storm,
    ):
        problems: list[str] = []
        if seconds > 0:
            problems += await _unkilled(storm, seconds, suspended_s)
        for number in range(1, kills + 1):
            await storm.live_and_die(storm.rng.uniform(0.05, 1.0), early=storm.rng.random() < EARLY)
            if number % 50 == 0:
                _say(f"{number} kills, {len(storm.oracle.owed)} records owed, {_delivered(storm)} delivered")
        problems += await _settle(fleet, storm)
        _report(fleet, storm, time.monotonic() - began_at)
    for problem in problems:
        _say(f"BROKEN: {problem}")
    _say("Every promise was kept." if not problems else f"{len(problems)} promises were broken (seed {seed}).")
    return 1 if problems else 0


async def _unkilled(storm: Storm, seconds: float, suspended_s: float) -> list[str]:
    every_s = max(0.2, seconds / 200)
    async with storm.host() as host:
        await storm.live(host, seconds / 2, every_s=every_s)
        await storm.suspend(host, suspended_s)
        _say(f"suspended for {suspended_s:.0f} s, and going on")
        await storm.live(host, seconds / 2, every_s=every_s)
    samples = storm.samples
    _say(f"{seconds:.0f} s unkilled: {len(storm.oracle.owed)} records owed, {_delivered(storm)} delivered")
    pushes = 0
    for tenth in range(10):
        last = samples[len(samples) * (tenth + 1) // 10 - 1]
        _show(last, storm.push_s[pushes : last.pushes])
        pushes = last.pushes
    return judge(samples, storm.push_s)


def judge(samples: Sequence[Sample], push_s: Sequence[float]) -> list[str]:
    """Say what grew: the last quarter against the second, when everything had been used once."""
    quarter = max(1, len(samples) // 4)
    early, late = samples[quarter : 2 * quarter] or samples, samples[-quarter:]
    rss = statistics.median(one.rss_bytes for one in late) - statistics.median(one.rss_bytes for one in early)
    fds = statistics.median(one.fds for one in late) - statistics.median(one.fds for one in early)
    wal = max(one.wal_bytes for one in samples)
    slower = _p99(_within(late, push_s)) / _p99(_within(early, push_s))
    _say(
        f"growth: memory {rss / MIB:+.1f} MiB, descriptors {fds:+.0f}, p99 of a push x {slower:.2f};"
        f" largest log {wal / MIB:.1f} MiB"
    )
    found = {
        f"memory grew by {rss / MIB:.1f} MiB": rss > MAX_GROWTH_BYTES,
        f"file descriptors grew by {fds:.0f}": fds > MAX_GROWTH_FDS,
        f"the log grew to {wal / MIB:.1f} MiB": wal > MAX_WAL_BYTES,
        f"the p99 of a push grew {slower:.1f}-fold": slower > MAX_SLOWER and len(_within(late, push_s)) >= LEAST_PUSHES,
    }
    return [problem for problem, is_so in found.items() if is_so]


def _within(samples: Sequence[Sample], push_s: Sequence[float]) -> Sequence[float]:
    return push_s[samples[0].pushes : samples[-1].pushes]


def _p99(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=100)[98] if len(values) > 1 else 1.0


async def _settle(fleet: Fleet, storm: Storm) -> list[str]:
    storm.calm()
    problems: list[str] = []
    async with storm.host() as host:
        began_at = time.monotonic()
        try:
            await shown(fleet, host, PRESENCE_S)
            _say(f"every guild was right {time.monotonic() - began_at:.1f} s after the faults")
        except TimeoutError:
            problems.append(f"a guild was wrong {PRESENCE_S:.0f} s after the faults")
        await host.call("configure", {"config": fleet.config()})  # a closed gate probes at once
        verdict = await storm.oracle.holds(host, DELIVERY_S)
        _say(f"all that was owed had arrived {time.monotonic() - began_at:.1f} s after the faults")
    return [*problems, *_wrong(verdict)]


def _wrong(verdict: Verdict) -> list[str]:
    found = {
        "lost": verdict.lost,
        "altered": verdict.altered,
        "never handed in": verdict.unknown,
        "keys that came with two bodies": verdict.keys_with_two_bodies,
        "keys with two effects": verdict.keys_with_two_effects,
        "delivered twice, under different keys": verdict.doubled,
        "sent again in another batch": verdict.regrouped,
    }
    return [f"{what}: {len(ids)}, such as {sorted(ids)[:3]}" for what, ids in found.items() if ids]


def _delivered(storm: Storm) -> int:
    return len({record.id for record in storm.oracle.platform.records})


def _report(fleet: Fleet, storm: Storm, took_s: float) -> None:
    pushes = fleet.platform.pushes
    keys = len({arrival.key for arrival in pushes})
    _say(f"took {took_s:.0f} s, {storm.kills} kills, {sum(weather.served for weather in storm.weather)} faults")
    doubled = storm.oracle.verdict().doubled
    _say(f"{len(storm.oracle.owed)} records owed of {len(storm.oracle.offered)} handed in")
    _say(f"{_delivered(storm)} records delivered, {len(doubled)} of them twice under different keys")
    for arrival in pushes if doubled else ():
        if min(doubled) in arrival.ids:
            _say(f"  {min(doubled)} came in request {arrival.number}, one of {len(arrival.ids)}, key {arrival.key}")
    _say(f"{len(pushes)} requests for {keys} keys: {len(pushes) - keys} resends")
    _say(f"{sum(len(guild.puts) for guild in fleet.guilds)} presence updates took effect")
    for what, values in (("a start", storm.starts_s), ("a push", storm.push_s)):
        if len(values) > 1:
            cut = statistics.quantiles(values, n=100)
            _say(f"{what}: median {cut[49]:.3f} s, p99 {cut[98]:.3f} s, longest {max(values):.3f} s ({len(values)})")


def _show(sample: Sample, push_s: Sequence[float]) -> None:
    _say(
        f"  {sample.at_s:6.0f} s  memory {sample.rss_bytes / MIB:6.1f} MiB  descriptors {sample.fds:3d}"
        f"  log {sample.wal_bytes / MIB:5.1f} MiB  ping {sample.ping_s * 1000:6.1f} ms"
        f"  push p99 {_p99(push_s) * 1000:6.1f} ms"
    )


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
