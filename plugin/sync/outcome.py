"""What an answer does to the batch that was sent and to the platform's gate. Pure: no clock, no random, no I/O.

Two rules stand behind every row. A batch changes only for an answer about that batch: whatever says nothing of its
records (no answer, a refused token, a wrong address, a rate limit) leaves them as they were, with their key. And the
gate opens for every answer that shows the platform at work, also for a refusal; only an acknowledgement is a pass.
"""

from dataclasses import dataclass, replace
from enum import Enum, auto
from http import HTTPStatus
from typing import Annotated, assert_never

import msgspec

from plugin.errors import BadEndpoint, NoAnswer
from plugin.retry import retry_after_s, step_s
from plugin.store.interface import (
    Acknowledged,
    Batch,
    BatchChange,
    Dead,
    Failed,
    Gate,
    GateState,
    SetApart,
    Split,
)
from plugin.web import Answer

Outcome = Answer | NoAnswer | BadEndpoint

APART_S = 300
# A batch that others pass is passed over from its 3rd 5xx on (the store's claim sees to that), so that it holds up
# nobody; it is split only for its 5th. A proxy that times out answers 5xx for what the platform took, and halves, which
# have other keys, would be taken once more: two tries under the same key, among others that pass, come in between.
SPLIT_FAILURES = 5
LONGEST_LIMIT_S = 3600.0
LONGEST_WAIT_S = 310.0
MAX_ANSWER_BYTES = 4096
RATE_LIMITED = "rate_limited"
UNAUTHORISED = "unauthorised"
FORBIDDEN = "forbidden"

_DEFAULT_LIMIT_S = 60.0
_LEAST_LIMIT_S = 1.0
_FIRST_PROBE_S = 60
_LAST_PROBE_S = 300
_LEAST_MAX_BYTES = 1024
_MOST_MAX_BYTES = 64 * 1024 * 1024
_REGROW_PASSES = 50
_MAX_REASON = 400
_MOST_DIGITS = 18
_SUCCESS = 2
_EPOCH_S = 1_000_000_000
_EPOCH_MS = 1_000_000_000_000


class _Kind(Enum):
    """What an answer is about."""

    ACKNOWLEDGED = auto()  # the batch is there
    UNREACHED = auto()  # nobody knows what became of it
    BROKEN = auto()  # the platform failed on it
    LIMITED = auto()  # too many requests
    DENIED = auto()  # the token
    MISDIRECTED = auto()  # the address
    TOO_LARGE = auto()  # the size
    REFUSED = auto()  # the records


_KINDS: dict[int, _Kind] = {
    HTTPStatus.UNAUTHORIZED: _Kind.DENIED,
    HTTPStatus.PAYMENT_REQUIRED: _Kind.MISDIRECTED,
    HTTPStatus.FORBIDDEN: _Kind.DENIED,
    HTTPStatus.NOT_FOUND: _Kind.MISDIRECTED,
    HTTPStatus.METHOD_NOT_ALLOWED: _Kind.MISDIRECTED,
    HTTPStatus.PROXY_AUTHENTICATION_REQUIRED: _Kind.MISDIRECTED,
    HTTPStatus.REQUEST_TIMEOUT: _Kind.UNREACHED,
    HTTPStatus.GONE: _Kind.MISDIRECTED,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: _Kind.TOO_LARGE,
    HTTPStatus.TOO_EARLY: _Kind.UNREACHED,
    HTTPStatus.UPGRADE_REQUIRED: _Kind.MISDIRECTED,
    HTTPStatus.TOO_MANY_REQUESTS: _Kind.LIMITED,
}
_FAMILIES = {3: _Kind.MISDIRECTED, 4: _Kind.REFUSED, 5: _Kind.BROKEN}


class _Data(msgspec.Struct, frozen=True):
    synced: Annotated[int, msgspec.Meta(ge=0)]


class _Contract(msgspec.Struct, frozen=True):
    data: _Data


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """One request as it went out: its batch, where to, how large, and whether it was a closed gate's probe."""

    batch: Batch
    url: str
    payload_bytes: int
    probe: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to record, both in one transaction."""

    change: BatchChange
    gate: Gate


@dataclass(frozen=True, slots=True)
class _Moment:
    now_ms: int
    rand: float


def decide(outcome: Outcome, sent: Sent, gate: Gate, *, now_ms: int, rand: float) -> Decision:
    """Return what an outcome does, given the gate as it stands when the outcome is known.

    `now_ms` is the wall clock, `rand` a number in [0, 1) for the jitter. The outcome of a request that was sent
    before the gate closed, and comes after, moves the gate's counts but neither opens nor prolongs it.
    """
    late = gate.state is not GateState.READY and not sent.probe
    decision = _judge(outcome, sent, gate, _Moment(now_ms, rand))
    if late:
        decided = decision.gate
        return replace(decision, gate=replace(gate, passes=decided.passes, max_bytes=decided.max_bytes))
    return decision


def overhear(answer: Answer, gate: Gate, *, now_ms: int) -> Gate:
    """Return the gate after an answer to something other than a batch.

    It tells nothing of pushes but a rate limit, which is the key's: that closes the gate, whatever it was closed for,
    unless an earlier limit ends later.
    """
    at = _Moment(now_ms, 0.0)
    wait_s = _limit_s(answer, at) if _kind(answer, at) is _Kind.LIMITED else _spent_s(answer, at)
    if not wait_s:
        return gate
    limited = _limited(gate, wait_s, at)
    lasts = gate.reason == RATE_LIMITED and (gate.until_ms or 0) >= (limited.until_ms or 0)
    return gate if lasts else limited


def _judge(outcome: Outcome, sent: Sent, gate: Gate, at: _Moment) -> Decision:
    match outcome:
        case NoAnswer():
            reason = f"{outcome.cause}: {outcome.message}"
            return Decision(change=_kept(sent.batch, reason, at), gate=_waiting(gate, reason, at))
        case BadEndpoint():
            return Decision(change=Failed(counts=False), gate=_parked(gate, outcome.message, at))
        case Answer():
            return _judge_answer(outcome, sent, gate, at)
        case _:
            assert_never(outcome)


def _judge_answer(answer: Answer, sent: Sent, gate: Gate, at: _Moment) -> Decision:
    change: BatchChange = Failed(counts=False)
    batch, reason = sent.batch, f"the platform answered {answer.status}"
    kind = _kind(answer, at)
    match kind:
        case _Kind.ACKNOWLEDGED:
            synced = min(_synced(answer) or 0, len(batch.rows))
            change = Acknowledged(synced=synced, payload_bytes=sent.payload_bytes)
            gate = _open(_passed(gate), answer, at)
        case _Kind.UNREACHED:
            if answer.status // 100 == _SUCCESS:
                reason += ", but without the data.synced of its contract: is it the platform that answers there?"
            change, gate = _kept(batch, reason, at), _waiting(gate, reason, at)
        case _Kind.BROKEN:
            return _broken(batch, gate, reason, at)
        case _Kind.LIMITED:
            gate = _limited(gate, _limit_s(answer, at), at)
        case _Kind.DENIED:
            denied = UNAUTHORISED if answer.status == HTTPStatus.UNAUTHORIZED else FORBIDDEN
            gate = _parked(gate, denied, at)
        case _Kind.MISDIRECTED:
            gate = _parked(gate, f"{reason} at {sent.url}: check platform.base_url", at)
        case _Kind.TOO_LARGE | _Kind.REFUSED:
            learned = _smaller(gate, batch) if kind is _Kind.TOO_LARGE and len(batch.rows) > 1 else gate
            change, gate = _refused(batch, answer, reason), _open(learned, answer, at)
        case _:
            assert_never(kind)
    return Decision(change=change, gate=gate)


def _kind(answer: Answer, at: _Moment) -> _Kind:
    status = answer.status
    if status // 100 == _SUCCESS:
        return _Kind.UNREACHED if _synced(answer) is None else _Kind.ACKNOWLEDGED
    if status == HTTPStatus.SERVICE_UNAVAILABLE and _retry_after(answer, at) is not None:
        return _Kind.LIMITED
    return _KINDS.get(status) or _FAMILIES.get(status // 100, _Kind.UNREACHED)


def _synced(answer: Answer) -> int | None:
    try:
        return msgspec.json.decode(answer.body, type=_Contract).data.synced
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _kept(batch: Batch, reason: str, at: _Moment) -> BatchChange:
    """Keep the batch as it is; one set apart goes back to its own wait, so that it is not first in line."""
    return _apart(reason, at) if batch.apart else Failed(counts=False)


def _apart(reason: str, at: _Moment) -> SetApart:
    return SetApart(due_ms=at.now_ms + APART_S * 1000, reason=reason)


def _broken(batch: Batch, gate: Gate, reason: str, at: _Moment) -> Decision:
    """Tell a platform that is down from a batch that it cannot digest: the latter fails while others pass.

    A culprit does not close the gate, and opens the one that it closed itself.
    """
    if batch.apart:
        return Decision(change=_apart(reason, at), gate=gate)
    others_pass = gate.passes > batch.passes_at_failure if batch.failures else gate.state is GateState.READY
    if others_pass and batch.failures + 1 >= (1 if batch.suspect else SPLIT_FAILURES):
        culprit = _apart(reason, at) if len(batch.rows) == 1 else Split(suspect=True)
        return Decision(change=culprit, gate=_ready(gate))
    return Decision(change=Failed(counts=True), gate=_waiting(gate, reason, at))


def _refused(batch: Batch, answer: Answer, reason: str) -> BatchChange:
    if len(batch.rows) > 1:
        return Split(suspect=False)
    text = answer.body[:MAX_ANSWER_BYTES].decode(errors="replace")
    return Dead(reason=reason, status=answer.status, answer=text)


def _waiting(gate: Gate, reason: str, at: _Moment) -> Gate:
    failures = 1 if gate.state is GateState.PARKED else gate.failures + 1
    wait_ms = round(step_s(failures, rand=at.rand) * 1000)
    return _closed(gate, GateState.WAITING, reason, at.now_ms + wait_ms, failures)


def _parked(gate: Gate, reason: str, at: _Moment) -> Gate:
    failures = gate.failures + 1 if gate.state is GateState.PARKED else 1
    wait_s = min(_FIRST_PROBE_S * 2 ** min(failures - 1, 8), _LAST_PROBE_S)
    return _closed(gate, GateState.PARKED, reason, at.now_ms + wait_s * 1000, failures)


def _limited(gate: Gate, wait_s: float, at: _Moment) -> Gate:
    failures = 0 if gate.state is GateState.PARKED else gate.failures
    return _closed(gate, GateState.WAITING, RATE_LIMITED, at.now_ms + round(wait_s * 1000), failures)


def _closed(gate: Gate, state: GateState, reason: str, until_ms: int, failures: int) -> Gate:
    return replace(gate, state=state, reason=reason[:_MAX_REASON], until_ms=until_ms, failures=failures)


def _open(gate: Gate, answer: Answer, at: _Moment) -> Gate:
    opened, wait_s = _ready(gate), _spent_s(answer, at)
    return _limited(opened, wait_s, at) if wait_s else opened


def _ready(gate: Gate) -> Gate:
    return replace(gate, state=GateState.READY, reason=None, until_ms=None, failures=0)


def _passed(gate: Gate) -> Gate:
    """Count a pass; now and then allow larger batches again, in case the platform's limit was lifted."""
    passes, max_bytes = gate.passes + 1, gate.max_bytes
    if max_bytes is not None and passes % _REGROW_PASSES == 0:
        max_bytes = max_bytes * 2 if max_bytes * 2 < _MOST_MAX_BYTES else None
    return replace(gate, passes=passes, max_bytes=max_bytes)


def _smaller(gate: Gate, batch: Batch) -> Gate:
    half = max(sum(map(len, batch.bodies)) // 2, _LEAST_MAX_BYTES)
    return replace(gate, max_bytes=half if gate.max_bytes is None else min(half, gate.max_bytes))


def _retry_after(answer: Answer, at: _Moment) -> float | None:
    return retry_after_s(answer.headers.get("retry-after"), now=at.now_ms / 1000, most_s=LONGEST_LIMIT_S)


def _limit_s(answer: Answer, at: _Moment) -> float:
    """Return how long the platform asks us to wait, a second at the least: a "0" is no invitation to hammer it."""
    wait_s = _retry_after(answer, at)
    if wait_s is None:
        wait_s = _reset_s(answer, at) or _DEFAULT_LIMIT_S
    return max(wait_s, _LEAST_LIMIT_S)


def _spent_s(answer: Answer, at: _Moment) -> float:
    """Return how long it is until there are calls again when this was the last one of a window; else 0."""
    spent = answer.headers.get("x-ratelimit-remaining", "").strip() == "0"
    return _reset_s(answer, at) if spent else 0.0


def _reset_s(answer: Answer, at: _Moment) -> float:
    """Read X-RateLimit-Reset: an epoch in seconds or milliseconds, or seconds from now, told apart by size."""
    text = answer.headers.get("x-ratelimit-reset", "").strip()
    if not (text.isascii() and text.isdigit()):
        return 0.0
    reset = int(text[:_MOST_DIGITS])
    if reset >= _EPOCH_MS:
        reset_s = (reset - at.now_ms) / 1000
    elif reset >= _EPOCH_S:
        reset_s = reset - at.now_ms / 1000
    else:
        reset_s = float(reset)
    return min(max(reset_s, 0.0), LONGEST_LIMIT_S)
