"""What sync says in the log, and of a closed gate to a person."""

import logging
from typing import assert_never

from plugin.clock import rfc3339
from plugin.errors import StoreUnavailable
from plugin.store.interface import Acknowledged, Batch, BatchChange, Dead, Failed, Gate, GateState, SetApart, Split
from plugin.sync.outcome import FORBIDDEN, RATE_LIMITED, UNAUTHORISED

_LOG = logging.getLogger(__name__)
_EXPLAINED = {
    UNAUTHORISED: "the platform refused the token (401): nothing is lost, sending goes on once a good one is there",
    FORBIDDEN: "the platform forbids this key or address to sync (403): nothing is lost, it is tried again",
    RATE_LIMITED: "the platform asked to be left alone for a while",
}


def explain(gate: Gate) -> str:
    """Say in a sentence why a closed gate is closed."""
    reason = gate.reason or "closed"
    return _EXPLAINED.get(reason, reason)


def gate_moved(before: Gate, after: Gate, url: str) -> None:
    """Log that a gate closed, parked or opened; further failures of a closed one are not worth more than debug."""
    fields: dict[str, object] = {"platform": url, "reason": after.reason, "failures": after.failures}
    if after.until_ms is not None:
        fields["until"] = rfc3339(after.until_ms)
    same = (before.state, before.reason) == (after.state, after.reason)
    match after.state:
        case GateState.READY:
            if before.state is not GateState.READY:
                _LOG.info(
                    "the platform takes work again",
                    extra={"fields": {"platform": url, "reason": before.reason, "failures": before.failures}},
                )
        case GateState.WAITING if after.reason == RATE_LIMITED:
            _LOG.log(logging.DEBUG if same else logging.INFO, "the platform's rate limit", extra={"fields": fields})
        case GateState.WAITING:
            level = logging.WARNING if before.state is GateState.READY else logging.DEBUG
            _LOG.log(level, "the platform cannot be used; what is queued waits", extra={"fields": fields})
        case GateState.PARKED:
            level = logging.DEBUG if same else logging.ERROR
            _LOG.log(level, "the platform refuses every request; what is queued waits", extra={"fields": fields})
        case _:
            assert_never(after.state)


def batch_changed(batch: Batch, change: BatchChange) -> None:
    """Log what became of a batch, where that is more than the usual."""
    fields: dict[str, object] = {"agent_id": batch.agent_id, "records": len(batch.rows)}
    match change:
        case Acknowledged():
            skipped = len(batch.rows) - change.synced
            fields["skipped"] = skipped
            level = logging.WARNING if skipped else logging.DEBUG
            _LOG.log(level, "the platform acknowledged a batch", extra={"fields": fields})
        case Dead():
            fields |= {"record": batch.record_ids[0], "reason": change.reason}
            _LOG.error("a record was refused and is now a dead letter", extra={"fields": fields})
        case SetApart():
            fields |= {"record": batch.record_ids[0], "reason": change.reason, "until": rfc3339(change.due_ms)}
            level = logging.DEBUG if batch.apart else logging.WARNING
            _LOG.log(level, "a record makes the platform fail and is set apart", extra={"fields": fields})
        case Split():
            _LOG.info("a batch is split to find what the platform does not take", extra={"fields": fields})
        case Failed():
            pass
        case _:
            assert_never(change)


def store_failed(error: StoreUnavailable, *, first: bool) -> None:
    """Log that the store cannot be used for now: once, then for those who look closer."""
    _LOG.log(
        logging.WARNING if first else logging.DEBUG,
        "the store cannot be used; sync tries again",
        extra={"fields": {"problem": error.message}},
    )
