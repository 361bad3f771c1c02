"""What holds for every answer, batch and gate."""

from hypothesis import given, settings
from hypothesis import strategies as st

from plugin.errors import BadEndpoint, NoAnswer
from plugin.store.interface import Acknowledged, Batch, Dead, Failed, Gate, GateState, SetApart, Split
from plugin.sync.outcome import decide
from plugin.web import Answer
from tests.support.outcomes import NOW_MS, acknowledgement, batch, sent

NUMBERS = st.integers(min_value=-5, max_value=2**70).map(str)
HEADERS = st.dictionaries(
    st.sampled_from(["retry-after", "x-ratelimit-remaining", "x-ratelimit-reset"]), NUMBERS | st.text(max_size=40)
)
# What these say is not about the records: the token, the address, the way there, the rate.
ABOUT_OTHERS = {401, 402, 403, 404, 405, 407, 408, 410, 425, 426, 429, *range(300, 400)}
ANSWERS = st.builds(
    Answer,
    status=st.integers(min_value=100, max_value=999) | st.sampled_from([200, 401, 413, 422, 429, 500, 503]),
    headers=HEADERS,
    body=st.binary(max_size=200),
)
ACKNOWLEDGEMENTS = st.builds(acknowledgement, st.integers(min_value=0, max_value=10), HEADERS)
SILENCES = st.builds(NoAnswer, st.text(), cause=st.sampled_from(["timeout", "refused", "dns"]))
ENDPOINTS = st.builds(BadEndpoint, st.text())
COUNTS = st.integers(min_value=0, max_value=10**6)
BATCHES = st.builds(
    batch,
    st.integers(min_value=2, max_value=50),
    failures=COUNTS,
    passes_at_failure=COUNTS,
    suspect=st.booleans(),
    body_bytes=st.integers(min_value=1, max_value=5_000),
) | st.builds(batch, st.just(1), failures=COUNTS, passes_at_failure=COUNTS, suspect=st.booleans(), apart=st.booleans())
OPEN_GATES = st.builds(Gate, passes=COUNTS, max_bytes=st.none() | st.integers(min_value=1024, max_value=2**26))
CLOSED_GATES = st.builds(
    Gate,
    state=st.sampled_from([GateState.WAITING, GateState.PARKED]),
    reason=st.text(max_size=20),
    until_ms=st.integers(min_value=0, max_value=2 * NOW_MS),
    failures=COUNTS,
    passes=COUNTS,
    max_bytes=st.none() | st.integers(min_value=1024, max_value=2**26),
)
RANDS = st.floats(min_value=0, max_value=1, exclude_max=True)


@settings(max_examples=400, deadline=None)
@given(
    outcome=ANSWERS | ACKNOWLEDGEMENTS | SILENCES | ENDPOINTS,
    of=BATCHES,
    gate=OPEN_GATES | CLOSED_GATES,
    probe=st.booleans(),
    rand=RANDS,
)
def test_every_outcome_keeps_the_promises(
    outcome: Answer | NoAnswer | BadEndpoint, of: Batch, gate: Gate, *, probe: bool, rand: float
) -> None:
    decision = decide(outcome, sent(of, probe=probe), gate, now_ms=NOW_MS, rand=rand)
    change, after = decision.change, decision.gate

    # Only a 2xx acknowledges, and only an acknowledgement is a pass.
    acknowledged = isinstance(change, Acknowledged)
    assert after.passes == gate.passes + acknowledged
    if acknowledged:
        assert isinstance(outcome, Answer)
        assert 200 <= outcome.status < 300
        assert 0 <= change.synced <= len(of.rows)

    # A record dies only alone, and only for a 4xx; a batch is cut only when it can be.
    if isinstance(change, Dead):
        assert isinstance(outcome, Answer)
        assert 400 <= outcome.status < 500
        assert len(change.answer.encode()) <= 3 * 4096
    if isinstance(change, Dead | SetApart):
        assert len(of.rows) == 1
    if isinstance(change, Split):
        assert len(of.rows) > 1

    # Without an answer about its records, a batch stays as it is.
    if isinstance(outcome, NoAnswer | BadEndpoint) and not of.apart:
        assert change == Failed(counts=False)

    # The gate says when it opens, and that is never far away; what came late does not touch it.
    if gate.state is not GateState.READY and not probe:
        assert (after.state, after.until_ms, after.failures) == (gate.state, gate.until_ms, gate.failures)
    elif after.state is GateState.READY:
        assert (after.reason, after.until_ms, after.failures) == (None, None, 0)
    elif after != gate:
        assert after.until_ms is not None
        assert 0 < after.until_ms - NOW_MS <= 3_600_000
        if after.reason != "rate_limited":
            assert after.until_ms - NOW_MS <= 360_000
        assert after.reason is not None


@settings(max_examples=50, deadline=None)
@given(headers=HEADERS, of=BATCHES, gate=OPEN_GATES | CLOSED_GATES, probe=st.booleans(), rand=RANDS)
def test_an_answer_that_says_nothing_of_the_records_leaves_their_batch_as_it_is(
    headers: dict[str, str], of: Batch, gate: Gate, *, probe: bool, rand: float
) -> None:
    for status in ABOUT_OTHERS:
        answer = Answer(status=status, headers=headers)
        change = decide(answer, sent(of, probe=probe), gate, now_ms=NOW_MS, rand=rand).change
        assert change == Failed(counts=False) or (of.apart and isinstance(change, SetApart)), status


@settings(max_examples=100, deadline=None)
@given(outcomes=st.lists(ANSWERS | ACKNOWLEDGEMENTS | SILENCES, max_size=60), of=BATCHES, rand=RANDS)
def test_whatever_came_before_one_acknowledged_probe_opens_the_gate(
    outcomes: list[Answer | NoAnswer], of: Batch, rand: float
) -> None:
    gate = Gate()
    for outcome in [*outcomes, acknowledgement(1)]:
        probe = gate.state is not GateState.READY
        gate = decide(outcome, sent(of, probe=probe), gate, now_ms=NOW_MS, rand=rand).gate
    assert gate.state is GateState.READY
