"""`agentic.sync.push`: work goes on disk, then out; the caller waits for its own, within bounds."""

from collections.abc import Awaitable, Callable

from msgspec import UNSET

from plugin.clock import Clock, wait_until_set
from plugin.errors import StoreUnavailable
from plugin.store.interface import Enqueued, GateState, Record, Store
from plugin.sync.intake import Intake
from plugin.sync.params import PushParams, PushResult, agent_of, node_of
from plugin.sync.platform import Scope
from plugin.sync.record import make_record, parse_dispatches
from plugin.sync.sender import Sender
from plugin.sync.takeover import Takeover
from plugin.sync.tally import Tally

WAIT_S = 20.0

Progress = Callable[[float, float | None, str | None], Awaitable[None]]


class Push:
    """Serve the action for any number of callers at once."""

    def __init__(
        self, *, store: Store, sender: Sender, takeover: Takeover, intake: Intake, scope: Scope, clock: Clock
    ) -> None:
        self._store = store
        self._takeover = takeover
        self._sender = sender
        self._intake = intake
        self._scope = scope
        self._clock = clock

    async def __call__(self, params: PushParams, progress: Progress | None = None) -> PushResult:
        """Store what is given or found, then wait until it is settled, nothing can be sent, or 20 s are over.

        BadParams, QueueFull, StoreUnavailable: nothing of the call was stored.
        """
        agent_id = agent_of(params.agent_id, params.agent_id_dashed, params.arg, default=self._scope.config.agent_id)
        node = node_of(params.fleet_node_id, params.fleet_node_id_dashed)
        records = _records(params.dispatches, node)
        with self._sender.tallies.watching(agent_id) as tally:
            enqueued = await self._intake.take(agent_id, records, queue=self._scope.config.queue)
            left_out = 0
            if not records and not params.queue_only and self._may_scan():
                left_out = await self._scan(agent_id, node)
                enqueued = await self._intake.take(agent_id, (), queue=self._scope.config.queue)
            return await self._finish(agent_id, enqueued, tally, left_out=left_out, progress=progress)

    def _may_scan(self) -> bool:
        """Finished workspaces stay where they are, on disk, as long as it is unclear where they should go."""
        return self._scope.config.sync.enabled and self._scope.platform.token() is not None

    async def _scan(self, agent_id: str, node: int | None) -> int:
        await self._takeover.ensure()
        return await self._intake.scan(
            agent_id, platform=self._scope.platform.url, queue=self._scope.config.queue, fleet_node_id=node
        )

    async def _finish(
        self, agent_id: str, enqueued: Enqueued, tally: Tally, *, left_out: int, progress: Progress | None
    ) -> PushResult:
        """Wait and report. The work is stored: the store failing from here on is no failure of the call.

        When nothing can be sent, the queue is as it was left, and need not be asked again.
        """
        trouble: list[str] = []
        queued, dead = enqueued.queued, enqueued.dead
        obstacle = self._sender.kick(agent_id)
        if obstacle is None:
            try:
                await self._settle(agent_id, enqueued.last_row, progress)
                counts = await self._store.counts(agent_id)
                queued, dead = counts.queued, counts.dead
            except StoreUnavailable as error:
                trouble.append(f"the store cannot be read: {error.message}")
            obstacle = self._sender.obstacle(agent_id)
        gate = self._sender.gate
        if obstacle is not None:
            trouble.append(obstacle)
        if tally.refused:
            trouble.append(f"the platform refused {tally.refused} of the records; they are dead letters")
        if left_out:
            trouble.append(f"the queue is full: {left_out} finished workspaces wait on disk")
        return PushResult(
            success=True,
            count=tally.acknowledged,
            queued=queued,
            dead=dead,
            offline=obstacle is not None,
            error="; ".join(trouble) or UNSET,
            gate=UNSET if gate.state is GateState.READY else gate,
        )

    async def _settle(self, agent_id: str, row: int, progress: Progress | None) -> None:
        end = self._clock.monotonic() + WAIT_S
        most = 0
        while self._sender.obstacle(agent_id) is None:
            changed = self._sender.changed
            waiting = await self._store.unsettled(agent_id, up_to_row=row)
            most = max(most, waiting)
            if progress is not None and most:
                await progress(most - waiting, most, None)
            if waiting == 0 or not await wait_until_set(changed, end - self._clock.monotonic(), self._clock):
                return


def _records(dispatches: object, fleet_node_id: int | None) -> list[Record]:
    """Make every record before any is stored."""
    if dispatches is None:
        return []
    return [
        make_record(one, fleet_node_id=fleet_node_id, path=f"$.dispatches[{position}]")
        for position, one in enumerate(parse_dispatches(dispatches))
    ]
