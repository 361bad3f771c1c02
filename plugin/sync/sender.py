"""Sends what the outbox holds: one loop that sleeps until something is due, and the requests in flight.

At most two requests are in flight, one per agent, so each agent's order is kept: an agent's next batch is not claimed
before what came of its last is recorded, at the earliest in the same commit. While both are out the next two are
claimed ahead, so that no request waits for the disk, and one commit does for two. What an answer does is decided in
`plugin/sync/outcome.py`; here it is only asked for, obeyed and recorded. A request that a stop cut off is no failure:
nothing is recorded of it, and its batch goes out again with the same key.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from plugin.clock import Clock, wait_until_set
from plugin.config import Sync
from plugin.crash import point
from plugin.errors import BadEndpoint, NoAnswer, StoreUnavailable
from plugin.retry import step_s
from plugin.secret import Secret
from plugin.store.interface import Batch, BatchChange, Failed, Gate, GateState, Store
from plugin.sync import journal
from plugin.sync.gate import LiveGate
from plugin.sync.outcome import LONGEST_WAIT_S, Outcome, Sent, decide, overhear
from plugin.sync.params import GateView
from plugin.sync.platform import Platform, request_body
from plugin.sync.tally import Tallies
from plugin.web import Answer

LOOK_S = 30.0
_MAX_REQUESTS = 2
_MAX_READY = 2  # claimed ahead, so that no request waits for the disk while others are out
_MAX_FLIGHTS = 4  # answered ones included, until their answers are recorded
_STORE_STEPS_S = (1.0, 5.0)
_LEAST_WAIT_S = 0.05  # a row that fell due while it was looked at


@dataclass(slots=True)
class _Lane:
    """A platform as the sender uses it; `token` is the one its last request carried."""

    platform: Platform
    gate: LiveGate | None = None  # None until the store was asked
    prober: str | None = None  # the agent whose request is the closed gate's probe
    token: Secret | None = None


class Sender:
    """The one sender of a store: `run` it once, `kick` it when there may be something to send."""

    def __init__(
        self, *, store: Store, platform: Platform, sync: Sync, clock: Clock, rand: Callable[[], float]
    ) -> None:
        self.tallies = Tallies()
        self._store = store
        self._clock = clock
        self._rand = rand
        self._sync = sync
        self._lane = _Lane(platform)
        self._flights: dict[str, asyncio.Task[None]] = {}
        self._unanswered: set[str] = set()  # the agents of those flights whose requests are out
        self._ready: list[Batch] = []  # claimed and not sent; whatever is forgotten here is claimed again
        self._lost_agent: str | None = None
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()
        self._main: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()
        self._stopping = False

    @property
    def changed(self) -> asyncio.Event:
        """Return an event that is set when what is said here may have changed; take a new one for each wait."""
        return self._changed

    @property
    def in_flight(self) -> int:
        """How many requests are out, or answered and not recorded yet."""
        return len(self._flights)

    @property
    def gate(self) -> GateView:
        """The gate as a person sees it."""
        gate = self._lane.gate
        return GateView(state=GateState.READY) if gate is None else gate.view()

    @property
    def limited(self) -> bool:
        """Whether the platform asked this key to stay away for now."""
        gate = self._lane.gate
        return gate is not None and gate.limited()

    def obstacle(self, agent_id: str | None = None) -> str | None:
        """Say why nothing (of the agent) can be sent now; None when something can, or is being tried."""
        lane = self._lane
        if agent_id in self._flights:
            return None
        if self._stopping:
            return "the plugin is stopping; what is queued goes out at its next start"
        if not self._sync.enabled:
            return "sync.enabled is false: nothing is sent"
        if lane.platform.token() is None:
            return f"no token for the platform: {lane.platform.token_problem}"
        gate = lane.gate
        if gate is None or gate.open or lane.prober is not None or gate.wait_s == 0:
            return None
        return journal.explain(gate.gate)

    def kick(self, agent_id: str | None = None) -> str | None:
        """Say that something (of the agent) may have been queued, and send it; return the obstacle if there is one."""
        self._look(self._lane)
        obstacle = self.obstacle(agent_id)
        if obstacle is None:
            self._wake.set()
        self._notify()
        return obstacle

    def look(self) -> None:
        """Look now whether something can be sent: the token may be there, or another one."""
        self._look(self._lane)
        self._wake.set()

    def use(self, platform: Platform, sync: Sync) -> None:
        """Send to this platform from the next request on; a closed gate probes at once, a rate limit apart."""
        lane = self._lane
        self._sync = sync
        if platform.url == lane.platform.url:
            lane.platform = platform
            if lane.gate is not None and not lane.gate.limited():
                lane.gate.hurry()
        else:
            self._lane = _Lane(platform)
        self._wake.set()
        self._notify()

    async def overhear(self, url: str, answer: Answer) -> None:
        """Obey a rate limit in an answer of the platform at `url` to something other than a push."""
        lane = self._lane
        if url != lane.platform.url or overhear(answer, Gate(), now_ms=self._now_ms()) == Gate():
            return
        try:
            gate = await self._load(lane)
            before = gate.gate
            gate.set(overhear(answer, before, now_ms=self._now_ms()))
            # A probe under way was sent before the limit was known: what comes of it must not open the gate.
            lane.prober = None
            journal.gate_moved(before, gate.gate, url)
            self._wake.set()
            self._notify()
            await self._store.set_gate(url, gate.gate)
        except StoreUnavailable as error:
            # The gate in memory holds it, if there is one; a store that is another process's has its own.
            journal.store_failed(error, first=False)

    async def run(self) -> None:
        """Send until `stop`; wait first until this process owns the store."""
        if self._stopping:
            return
        self._ended.clear()
        try:
            async with asyncio.TaskGroup() as group:
                self._main = group.create_task(self._loop(group))
        finally:
            self._ended.set()
            self._notify()

    async def stop(self, deadline_s: float) -> None:
        """Start nothing more, let what is in flight be answered and recorded, cut off what outlasts the deadline."""
        self._stopping = True
        self._notify()
        if self._main is None:
            return
        self._main.cancel()
        end = self._clock.monotonic() + deadline_s
        while self._flights and (left_s := end - self._clock.monotonic()) > 0:
            await wait_until_set(self._changed, left_s, self._clock)
        for task in self._flights.values():
            task.cancel()
        await self._ended.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _loop(self, group: asyncio.TaskGroup) -> None:
        failures = 0
        while True:
            self._wake.clear()
            try:
                wait_s = await self._step(group)
                failures = 0
            except StoreUnavailable as error:
                failures += 1
                journal.store_failed(error, first=failures == 1)
                wait_s = step_s(failures, rand=self._rand(), steps=_STORE_STEPS_S)
            await wait_until_set(self._wake, wait_s, self._clock)

    async def _step(self, group: asyncio.TaskGroup) -> float:
        """Send what may be sent now; return how long there will be nothing to do."""
        await self._store.wait_ready()
        lane = self._lane
        gate = await self._load(lane)
        while True:
            hold_s = self._hold_s(lane, gate)
            if hold_s > 0 and not gate.open:
                # Batches are formed and stay, but which goes next will be another question then.
                self._ready.clear()
            while hold_s == 0 and (batch := self._next()) is not None:
                token = lane.platform.token()
                if token is None:
                    return 0.0
                self._launch(group, lane, gate, batch, token)
                hold_s = self._hold_s(lane, gate)
            if self._ready:
                return hold_s or LONGEST_WAIT_S
            if hold_s > 0 and not self._may_claim_ahead(lane, gate):
                return hold_s
            claimed = await self._claim(lane.platform.url, gate)
            if lane is not self._lane:
                self._ready.clear()
                return 0.0
            self._ready += claimed
            if not claimed:
                return hold_s or await self._idle_s()

    def _next(self) -> Batch | None:
        """Take the first ready batch whose agent has no request under way; the last one's answer may be recorded."""
        for place, batch in enumerate(self._ready):
            if batch.agent_id not in self._flights:
                return self._ready.pop(place)
        return None

    def _may_claim_ahead(self, lane: _Lane, gate: LiveGate) -> bool:
        """Whether nothing but the requests that are out keeps another from going."""
        return self._sync.enabled and gate.open and lane.prober is None and bool(self._unanswered)

    async def _load(self, lane: _Lane) -> LiveGate:
        """Return the lane's gate, as the store kept it when nobody asked before."""
        if lane.gate is None:
            stored = await self._store.gate(lane.platform.url)
            # Somebody else may have asked meanwhile, and moved it.
            if lane.gate is None:
                lane.gate = LiveGate(stored, self._clock)
                self._notify()
        return lane.gate

    def _hold_s(self, lane: _Lane, gate: LiveGate) -> float:
        """Return how long no request may go, 0 when one may; the end of a request in flight wakes the loop anyway."""
        if not self._sync.enabled:
            return LONGEST_WAIT_S
        parked = gate.gate.state is GateState.PARKED
        if lane.platform.token(anew=parked and gate.wait_s == 0) is None:
            return LOOK_S
        self._look(lane)
        if lane.prober is not None or len(self._unanswered) >= _MAX_REQUESTS or len(self._flights) >= _MAX_FLIGHTS:
            return LONGEST_WAIT_S
        return min(gate.wait_s, LOOK_S) if parked else gate.wait_s

    def _look(self, lane: _Lane) -> None:
        """Probe a parked gate at once when the token is another than was refused, or nobody tried since the start."""
        if lane.gate is not None and lane.gate.gate.state is GateState.PARKED:
            token = lane.platform.token()
            if token is not None and token != lane.token:
                lane.gate.hurry()

    async def _claim(self, url: str, gate: LiveGate) -> tuple[Batch, ...]:
        if not gate.open and self._lost_agent is not None:
            # What made the last request fail may be in that batch: another agent's is the better probe.
            batches = await self._claim_for(url, gate, {self._lost_agent})
            if batches:
                return batches
        return await self._claim_for(url, gate, set())

    async def _claim_for(self, url: str, gate: LiveGate, shunned: set[str]) -> tuple[Batch, ...]:
        most = self._sync.batch_bytes
        learned = gate.gate.max_bytes
        busy = self._unanswered | {batch.agent_id for batch in self._ready} | shunned
        return await self._store.claim(
            url,
            busy=busy,
            settling=set(self._flights) - busy,
            most=_MAX_READY if gate.open else 1,
            max_records=self._sync.batch_records,
            max_bytes=most if learned is None else min(most, learned),
            now_ms=self._now_ms(),
        )

    async def _idle_s(self) -> float:
        if self._flights:
            return LONGEST_WAIT_S
        due_ms = await self._store.next_due_ms()
        if not due_ms:
            return LONGEST_WAIT_S
        return min(max(due_ms / 1000 - self._clock.now(), _LEAST_WAIT_S), LONGEST_WAIT_S)

    def _launch(self, group: asyncio.TaskGroup, lane: _Lane, gate: LiveGate, batch: Batch, token: Secret) -> None:
        if not gate.open:
            lane.prober = batch.agent_id
        lane.token = token
        flight = group.create_task(self._fly(lane, gate, batch, token))
        self._flights[batch.agent_id] = flight
        self._unanswered.add(batch.agent_id)
        # Not in a `finally` of the flight itself: one that is cancelled before it began would never get there.
        flight.add_done_callback(lambda _: self._landed(lane, batch.agent_id))

    def _landed(self, lane: _Lane, agent_id: str) -> None:
        del self._flights[agent_id]
        self._unanswered.discard(agent_id)
        self._probed(lane, agent_id)
        self._wake.set()
        self._notify()

    def _probed(self, lane: _Lane, agent_id: str) -> None:
        if lane.prober == agent_id:
            lane.prober = None
            self._wake.set()

    async def _fly(self, lane: _Lane, gate: LiveGate, batch: Batch, token: Secret) -> None:
        platform, body = lane.platform, request_body(batch)
        outcome = await self._ask(platform, batch, body, token)
        probe = lane.prober == batch.agent_id
        sent = Sent(batch=batch, url=platform.url, payload_bytes=len(body), probe=probe)
        before = gate.gate
        decision = decide(outcome, sent, before, now_ms=self._now_ms(), rand=self._rand())
        gate.set(decision.gate)
        self._lost_agent = batch.agent_id if isinstance(decision.change, Failed) else None
        journal.gate_moved(before, decision.gate, platform.url)
        journal.batch_changed(batch, decision.change)
        self.tallies.change(batch, decision.change)
        # Its verdict is known: the gate need not wait until it is recorded as well.
        self._probed(lane, batch.agent_id)
        self._unanswered.discard(batch.agent_id)
        self._wake.set()
        await self._record(batch, decision.change, platform.url, gate)

    async def _ask(self, platform: Platform, batch: Batch, body: bytes, token: Secret) -> Outcome:
        self.tallies.request(batch)
        point("request.formed")
        try:
            answer = await platform.sync(batch, body, token)
        except (NoAnswer, BadEndpoint) as failure:
            return failure
        point("request.answered")
        return answer

    async def _record(self, batch: Batch, change: BatchChange, url: str, gate: LiveGate) -> None:
        """Record a change, however long the store cannot take it: until then the agent stays busy, and the rows unsent.

        A mere failure is tried once; the gate in memory holds it.
        """
        failures = 0
        while True:
            try:
                await self._store.record(batch, change, platform=url, gate=gate.gate, now_ms=self._now_ms())
            except StoreUnavailable as error:
                failures += 1
                journal.store_failed(error, first=failures == 1)
                if isinstance(change, Failed):
                    return
                await self._clock.sleep(step_s(failures, rand=self._rand(), steps=_STORE_STEPS_S))
            else:
                return

    def _now_ms(self) -> int:
        return round(self._clock.now() * 1000)
