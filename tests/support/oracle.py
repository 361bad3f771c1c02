"""Says whether anything was lost: what was handed in, what is owed for it, and what the servers got.

A record is owed from the moment that the call which handed it in returned. What a call that failed handed in may arrive
or not. The servers note each request before any fault, so nothing escapes by going wrong.
"""

import asyncio
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from plugin.loopback.guild import LoopbackGuild
from plugin.loopback.host import LoopbackHost
from plugin.loopback.platform import LoopbackPlatform
from plugin.loopback.server import Arrival
from protocol.errors import RpcError
from tests.support.fleet import Fleet

SHOWN_AS = {"idle": "idle", "working": "on_call", "busy": "busy", "offline": "offline"}
DELIVERY_S = 40.0
PRESENCE_S = 40.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is wrong, by record id or key; nothing, when every promise was kept.

    `doubled` are records with two effects under different keys. That is no broken promise where a batch whose outcome
    was unknown was split afterwards; everywhere else it is. `regrouped` are records that went out again under another
    key, in anything but a part of the batch that they were in.
    """

    lost: frozenset[str]
    altered: frozenset[str]
    unknown: frozenset[str]
    keys_with_two_bodies: frozenset[str]
    keys_with_two_effects: frozenset[str]
    doubled: frozenset[str]
    regrouped: frozenset[str]

    @property
    def kept(self) -> bool:
        """Return whether every promise was kept."""
        return not (
            self.lost
            or self.altered
            or self.unknown
            or self.keys_with_two_bodies
            or self.keys_with_two_effects
            or self.regrouped
        )


@dataclass(slots=True)
class Oracle:
    """Hands in records and remembers what is owed."""

    platform: LoopbackPlatform
    offered: dict[str, Mapping[str, object]] = field(default_factory=dict[str, Mapping[str, object]])
    owed: set[str] = field(default_factory=set[str])

    def make(self, count: int = 1, *, size: int = 20) -> list[dict[str, object]]:
        """Make new work; nothing is owed for it yet."""
        first = len(self.offered)
        made: list[dict[str, object]] = [
            {"id": f"work-{number}", "repo": "core", "task": f"{number} é {'x' * size}", "n": [number, 1.5, None]}
            for number in range(first, first + count)
        ]
        self.offered |= {str(one["id"]): one for one in made}
        return made

    def owe(self, made: Iterable[Mapping[str, object]]) -> None:
        """Count work as owed: whoever has it has said so."""
        self.owed |= {str(one["id"]) for one in made}

    async def push(
        self, host: LoopbackHost, made: Sequence[Mapping[str, object]], *, agent: str = "fleet", timeout_s: float = 30.0
    ) -> object:
        """Hand work in; it is owed once this returns. RpcError when the plugin refused or died."""
        params = {"agent_id": agent, "dispatches": made, "queue_only": True}
        answer = await host.call("agentic.sync.push", params, timeout_s=timeout_s)
        self.owe(made)
        return answer

    async def delivered(self, within_s: float = DELIVERY_S, *, of: Collection[str] | None = None) -> None:
        """Wait until the platform has these, or all that is owed; TimeoutError names none, the verdict does."""
        left = set(self.owed if of is None else of)
        seen = 0

        def all_there(platform: LoopbackPlatform) -> bool:
            nonlocal seen
            left.difference_update(record.id for record in platform.records[seen:])
            seen = len(platform.records)
            return not left

        await self.platform.wait_until(all_there, within_s)

    async def holds(self, host: LoopbackHost, within_s: float = DELIVERY_S) -> Verdict:
        """With the faults over: wait for what is owed, see a fresh record pass, and judge."""
        try:
            await self.push(host, self.make())
            await self.delivered(within_s)
        except (TimeoutError, RpcError):
            self.owe(self.make())  # what should have passed did not: it counts as lost
        return self.verdict()

    def verdict(self) -> Verdict:
        """Judge what the platform has by now."""
        records, pushes = self.platform.records, self.platform.pushes
        came = {id_ for arrival in pushes for id_ in arrival.ids} | {record.id for record in records}
        bodies = {(arrival.key or "", arrival.body_sha256) for arrival in pushes}
        effects = {(record.key or "", record.arrival) for record in records}
        return Verdict(
            lost=frozenset(self.owed - {record.id for record in records}),
            altered=frozenset(record.id for record in records if record.body != self.offered.get(record.id)),
            unknown=frozenset(came - self.offered.keys()),
            keys_with_two_bodies=_twice(key for key, _ in bodies),
            keys_with_two_effects=_twice(key for key, _ in effects),
            doubled=_twice(record.id for record in records),
            regrouped=frozenset(_regrouped(pushes)),
        )


async def shown(fleet: Fleet, host: LoopbackHost, within_s: float = PRESENCE_S) -> None:
    """Wait until every guild shows what every agent is doing; TimeoutError when one doesn't in time."""

    def is_true(guild: LoopbackGuild) -> bool:
        return all(guild.presence.get(f"user-{agent}") == SHOWN_AS[host.agents[agent]] for agent in fleet.agents)

    async with asyncio.timeout(within_s):
        for guild in fleet.guilds:
            await guild.wait_until(is_true, within_s)


def _regrouped(pushes: Iterable[Arrival]) -> Iterator[str]:
    last: dict[str, Arrival] = {}
    for arrival in pushes:
        for id_ in arrival.ids:
            before = last.get(id_, arrival)
            if arrival.key != before.key and not set(arrival.ids) < set(before.ids):
                yield id_
            last[id_] = arrival


def _twice(values: Iterable[str]) -> frozenset[str]:
    return frozenset(value for value, times in Counter(values).items() if times > 1)
