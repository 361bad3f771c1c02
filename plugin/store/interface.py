"""What the store keeps and what may be asked of it: values, and the `Store` protocol that any engine must pass.

Every call returns after its commit. Every call may raise `StoreUnavailable` (disk full, read-only, unusable) or
`StoreInUse`; nothing of a call that raised is stored. Times are wall-clock milliseconds since 1970 and always an
argument. Bodies are the exact bytes of one JSON object; they come back as they went in.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from msgspec import Struct

from plugin.store.state import GateState, StoreState


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One finished piece of work, as it will be sent: an element of `dispatches`."""

    id: str
    fingerprint: str  # sha256 hex of the canonical bytes, taken when the record was made
    body: bytes
    core_fingerprint: str | None = None  # "<updated_at>#<runs>", what the Go agent's ledger would say; scanned only
    fleet_node_id: int | None = None  # kept for the history, never sent


@dataclass(frozen=True, slots=True, kw_only=True)
class Caps:
    """The most the outbox may hold, dead letters included."""

    records: int
    bytes: int


class Enqueued(Struct, frozen=True, kw_only=True):  # made for every call, in a tenth of a dataclass's time
    """What one enqueue did: rows added, records already queued or delivered, records left out for want of room."""

    added: int
    known: int
    left_out: int
    last_row: int  # the agent's newest WAITING row after the call; 0 when it has none
    queued: int  # the agent's rows after the call, WAITING and APART
    dead: int


class RowState(StrEnum):
    """Where an outbox row stands."""

    WAITING = "waiting"  # goes out in order
    APART = "apart"  # a culprit of 5xx answers: alone, every 300 s, holding up nobody
    DEAD = "dead"  # refused for good; kept until someone retries, exports or drops it


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A set of records that was or will be sent in one request, with the same bytes each time."""

    id: int
    agent_id: str
    key: str  # the Idempotency-Key: hash of the agent and the sorted (id, fingerprint) pairs
    bodies: tuple[bytes, ...]  # in the order of the rows
    record_ids: tuple[str, ...]
    rows: tuple[int, ...]
    failures: int  # 5xx answers to this batch since it was formed
    passes_at_failure: int  # the platform's `Gate.passes` when it first failed; 0 when it has not
    suspect: bool  # half of a batch that was split for its 5xx answers
    apart: bool  # a single row in state APART
    fleet_node_id: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """The platform's gate: closed after a failure, reopened by one probe when `until_ms` has come.

    `failures` counts consecutive failures (what the next wait is reckoned from), `passes` counts acknowledged
    requests ever, `max_bytes` is the largest batch the platform takes once a 413 taught us.
    """

    state: GateState = GateState.READY
    reason: str | None = None
    until_ms: int | None = None
    failures: int = 0
    passes: int = 0
    max_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledged:
    """Rows leave the outbox, the ledger learns them, history and the time of the last push are written."""

    synced: int
    payload_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The batch stays as it is; only its count of 5xx answers moves (`counts`), so that a culprit can be found."""

    counts: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The batch becomes two halves, each with its own key; `suspect` marks them as split for 5xx answers."""

    suspect: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Dead:
    """The batch's only row becomes a dead letter."""

    reason: str
    status: int | None
    answer: str  # the first 4 KiB of what the platform said


@dataclass(frozen=True, slots=True, kw_only=True)
class SetApart:
    """The batch's only row is set apart until `due_ms`."""

    due_ms: int
    reason: str


BatchChange = Acknowledged | Failed | Split | Dead | SetApart


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueCounts:
    """How much is in the outbox, for one agent or for all."""

    queued: int  # WAITING and APART
    dead: int
    bytes: int  # bodies of all of them
    oldest_queued_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueRow:
    """A row as a person sees it."""

    row: int
    agent_id: str
    record_id: str
    fingerprint: str
    state: RowState
    queued_ms: int
    fleet_node_id: int | None
    body: bytes
    reason: str | None
    status: int | None
    answer: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextRow:
    """One row of fleet context; `body` is its JSON object, `expires_ms` when it stops being served."""

    id: str
    body: bytes
    expires_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedContext:
    """What the cache holds for one (platform, agent), newest first; `fetched_ms` is None when never pulled."""

    rows: tuple[bytes, ...]
    fetched_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEntry:
    """One push or pull that happened; the last 100 per direction are kept."""

    agent_id: str
    fleet_node_id: int | None
    direction: str  # "push" or "pull"
    payload_bytes: int
    items: int
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentTimes:
    """When the agent last pushed and pulled."""

    last_push_ms: int | None
    last_pull_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreState:
    """What the Go agent left behind, decoded; imported once."""

    queue: tuple[tuple[str, Record, int], ...]  # (agent_id, record, queued_ms), oldest first
    ledger: tuple[tuple[str, str], ...]  # (record id, "<updated_at>#<runs>")
    context: tuple[ContextRow, ...]
    history: tuple[HistoryEntry, ...]
    times: AgentTimes


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreHealth:
    """The store's state for `agentic.sync.status`: counts of a salvage, where the old files lie, who has the lock."""

    state: StoreState
    reason: str | None = None
    salvaged: int | None = None  # records of the outbox, dead letters included
    lost: int | None = None
    set_aside: str | None = None
    pid: int | None = None


class Store(Protocol):
    """One state folder's store. Safe to call from any task of one event loop."""

    @property
    def health(self) -> StoreHealth:
        """Return how the store is, without waiting."""
        ...

    async def wait_ready(self) -> None:
        """Wait until this process owns the folder and the file is open; return at once when it does."""
        ...

    async def wait_uncontested(self) -> None:
        """Wait until no other process owns the folder; a folder that cannot be used at all is nobody's."""
        ...

    async def enqueue(
        self,
        agent_id: str,
        records: Sequence[Record],
        *,
        caps: Caps,
        now_ms: int,
        scanned_for: str | None = None,
    ) -> Enqueued:
        """Add records to the agent's queue, in order, in one transaction.

        Explicit records (`scanned_for` None): one already WAITING or APART for this agent with the same id and
        fingerprint is `known`; all the others go in, or none: `QueueFull` names what is full.
        Scanned records (`scanned_for` is the platform's URL): one in that platform's ledger (same fingerprint, or
        same core_fingerprint in a row imported from the Go agent), queued for any agent, or dead, with the same
        fingerprint is `known`; of the others as many as fit go in, in order; the rest is `left_out`, for the next scan.
        The cost does not grow with the length of the queue.
        """
        ...

    async def known(self, platform: str, marks: Sequence[tuple[str, str, str | None]]) -> Collection[int]:
        """Return the positions of those (id, fingerprint, core_fingerprint) that a scanned enqueue would find known."""
        ...

    async def claim(
        self,
        platform: str,
        *,
        busy: Collection[str],
        settling: Collection[str] = (),
        most: int = 1,
        max_records: int,
        max_bytes: int,
        now_ms: int,
    ) -> tuple[Batch, ...]:
        """Return the next batches to send, of an agent each and `most` of them; form and record them if need be.

        Agents in `busy` are passed over (their request is in flight). What came of the last batch of an agent in
        `settling` is being recorded by a call made before this one: such an agent is passed over, too, unless that call
        has taken effect.
        Formed batches come before new ones, oldest first. Those with `failures` >= 3 and suspects that failed come
        after new ones, fewest failures first, so that each is tried in turn; `Split` is recorded only for later
        failures. APART rows come last, once due; a time more than 310 s away has come: the clock jumped.
        A batch holds one agent's oldest WAITING rows of one fleet node in row order, at most max_records and max_bytes
        of bodies (one row always fits); it keeps members and key until it is acknowledged, split or dissolved by
        `Dead`/`SetApart`. A body whose sha256 no longer matches becomes a dead letter here and is never sent.
        On a full disk a batch is returned though it could not be recorded; `record` makes up for it.
        """
        ...

    async def record(self, batch: Batch, change: BatchChange, *, platform: str, gate: Gate | None, now_ms: int) -> None:
        """Record what an answer did to a batch, and the platform's new gate with it, in one transaction.

        A change to rows that are no longer as they were claimed is none, so a call may be repeated; the gate is
        recorded each time. ValueError: a `Split` of one record, a `Dead` or `SetApart` of several.
        """
        ...

    async def gate(self, platform: str) -> Gate:
        """Return the platform's gate; the ready one when nothing was recorded."""
        ...

    async def set_gate(self, platform: str, gate: Gate) -> None:
        """Record the platform's gate."""
        ...

    async def next_due_ms(self) -> int | None:
        """Return when the next row may go: 0 when one is WAITING, else the earliest APART row's time, else None."""
        ...

    async def unsettled(self, agent_id: str, *, up_to_row: int) -> int:
        """Count the agent's WAITING rows up to a row."""
        ...

    async def counts(self, agent_id: str | None = None) -> QueueCounts:
        """Count the outbox; the cost does not grow with its length."""
        ...

    async def ledger_size(self) -> int:
        """Count the ledger's rows."""
        ...

    async def rows(self, *, state: RowState | None = None, after: int = 0, limit: int = 1000) -> tuple[QueueRow, ...]:
        """List outbox rows by row number, for people and exports."""
        ...

    async def retry_dead(self, rows: Sequence[int] | None, *, now_ms: int) -> int:
        """Move dead letters (all, or those rows) back to WAITING; return how many.

        One whose record was queued anew meanwhile goes away instead.
        """
        ...

    async def drop_dead(self, rows: Sequence[int] | None) -> int:
        """Delete dead letters (all, or those rows) for good; return how many. A scan will not queue them again."""
        ...

    async def replace_context(
        self, platform: str, agent_id: str, rows: Sequence[ContextRow], *, entry: HistoryEntry, keep: int = 1000
    ) -> None:
        """Make these rows, newest first, the whole cache of (platform, agent); write history and last pull.

        Of two rows with one id the newer stays; the newest `keep` stay.
        """
        ...

    async def merge_context(
        self, platform: str, agent_id: str, rows: Sequence[ContextRow], *, entry: HistoryEntry, keep: int = 1000
    ) -> None:
        """Put these rows, newest first, before the cached ones; same id replaces; the newest `keep` stay."""
        ...

    async def context(self, platform: str, agent_id: str, *, now_ms: int) -> CachedContext:
        """Return the cached rows that have not expired, newest first."""
        ...

    async def times(self, agent_id: str) -> AgentTimes:
        """Return when the agent last pushed and pulled."""
        ...

    async def history(self, direction: str) -> tuple[HistoryEntry, ...]:
        """Return up to 100 entries of one direction, oldest first."""
        ...

    async def import_core(self, state: CoreState, *, platform: str, agent_id: str, mark: str, now_ms: int) -> bool:
        """Import the Go agent's state in one transaction with its `mark`; False when that mark is there already."""
        ...

    async def imported(self, mark: str) -> bool:
        """Say whether an import with this mark was done."""
        ...

    async def close(self) -> None:
        """Finish what was submitted, checkpoint, close and release the folder; later calls raise."""
        ...
