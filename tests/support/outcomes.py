"""Batches, requests and answers for the tests of what an answer does."""

import json
from collections.abc import Mapping

from plugin.store.interface import Batch, Gate, GateState
from plugin.sync.outcome import Decision, Outcome, Sent, decide
from plugin.web import Answer

NOW_MS = 1_700_000_000_000
URL = "https://platform.example"


def batch(
    records: int = 3,
    *,
    failures: int = 0,
    passes_at_failure: int = 0,
    suspect: bool = False,
    apart: bool = False,
    body_bytes: int = 2_000,
) -> Batch:
    return Batch(
        id=1,
        agent_id="codex",
        key="k" * 64,
        bodies=tuple(b"x" * body_bytes for _ in range(records)),
        record_ids=tuple(f"r{number}" for number in range(records)),
        rows=tuple(range(1, records + 1)),
        failures=failures,
        passes_at_failure=passes_at_failure,
        suspect=suspect,
        apart=apart,
        fleet_node_id=None,
    )


def sent(of: Batch, *, probe: bool = False) -> Sent:
    return Sent(batch=of, url=URL, payload_bytes=sum(map(len, of.bodies)) + 40, probe=probe)


def answer(status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(status=status, headers=headers or {}, body=body)


def acknowledgement(synced: object, headers: Mapping[str, str] | None = None, status: int = 201) -> Answer:
    return answer(status, json.dumps({"data": {"synced": synced}}).encode(), headers)


def closed(
    state: GateState = GateState.WAITING, *, failures: int = 1, passes: int = 0, reason: str = "timeout"
) -> Gate:
    return Gate(state=state, reason=reason, until_ms=NOW_MS, failures=failures, passes=passes)


def outcome_of(outcome: Outcome, of: Batch | None = None, gate: Gate | None = None, *, rand: float = 0.5) -> Decision:
    """What an outcome does when its request went out through the gate as it is: as its probe when it is closed."""
    gate = gate or Gate()
    request = sent(of or batch(), probe=gate.state is not GateState.READY)
    return decide(outcome, request, gate, now_ms=NOW_MS, rand=rand)
