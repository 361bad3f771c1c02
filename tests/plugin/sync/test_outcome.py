"""Every row of the table: what an answer does to the batch, and to the gate."""

from email.utils import formatdate

import pytest

from plugin.errors import BadEndpoint, NoAnswer
from plugin.store.interface import Acknowledged, Dead, Failed, Gate, GateState, SetApart, Split
from plugin.sync.outcome import RATE_LIMITED, decide, overhear
from plugin.web import Answer
from tests.support.outcomes import NOW_MS, URL, acknowledgement, answer, batch, closed, outcome_of, sent

KEPT = Failed(counts=False)
COUNTED = Failed(counts=True)
SILENCE = NoAnswer("platform.example: the connection was refused", cause="refused")


def wait_s(gate: Gate) -> float:
    assert gate.until_ms is not None
    return (gate.until_ms - NOW_MS) / 1000


# -- acknowledged -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 202, 207])
def test_a_2xx_with_an_integer_synced_acknowledges(status: int) -> None:
    decision = outcome_of(acknowledgement(3, status=status))
    assert decision.change == Acknowledged(synced=3, payload_bytes=6040)
    assert decision.gate == Gate(passes=1)


@pytest.mark.parametrize(("said", "counted"), [(0, 0), (2, 2), (3, 3), (4, 3), (10**30, 3)])
def test_no_more_than_was_sent_counts_as_synced(said: int, counted: int) -> None:
    assert outcome_of(acknowledgement(said)).change == Acknowledged(synced=counted, payload_bytes=6040)


@pytest.mark.parametrize("said", [True, -1, 1.0, "3", None, [3], {"n": 3}])
def test_a_synced_that_is_no_count_is_no_acknowledgement(said: object) -> None:
    decision = outcome_of(acknowledgement(said))
    assert decision.change == KEPT
    assert decision.gate.state is GateState.WAITING


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<!doctype html><title>Log in</title>",
        b'{"data": {"synced": 1\xff',
        b'{"synced": 3}',
        b'{"data": []}',
        b"[]",
        b"null",
        b"[" * 100_000,
        b'{"data": {"synced": 3}, "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_a_2xx_that_is_not_the_contract_closes_the_gate_and_counts_nothing(body: bytes) -> None:
    decision = outcome_of(answer(200, body), batch(failures=2))
    assert decision.change == KEPT
    assert (decision.gate.state, decision.gate.failures, decision.gate.passes) == (GateState.WAITING, 1, 0)


def test_an_acknowledgement_of_the_probe_opens_the_gate() -> None:
    decision = outcome_of(acknowledgement(3), gate=closed(failures=7, passes=4))
    assert decision.gate == Gate(passes=5)


# -- not reached ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", [SILENCE, answer(408), answer(425), answer(100), answer(204), answer(600)])
def test_no_usable_answer_closes_the_gate_and_leaves_the_batch_alone(outcome: Answer | NoAnswer) -> None:
    decision = outcome_of(outcome, batch(failures=5))
    assert decision.change == KEPT
    assert (decision.gate.state, decision.gate.failures) == (GateState.WAITING, 1)
    assert wait_s(decision.gate) == 1.0


@pytest.mark.parametrize(("failures", "step"), [(0, 1), (1, 5), (2, 15), (3, 60), (4, 300), (5, 300), (10_000, 300)])
def test_the_gate_stays_closed_longer_and_longer_but_never_more_than_five_minutes(failures: int, step: int) -> None:
    gate = closed(failures=failures) if failures else Gate()
    assert wait_s(outcome_of(SILENCE, gate=gate).gate) == step
    assert wait_s(outcome_of(SILENCE, gate=gate, rand=0.0).gate) == pytest.approx(step * 0.8)
    assert step < wait_s(outcome_of(SILENCE, gate=gate, rand=0.999).gate) <= step * 1.2


def test_the_reason_says_what_failed() -> None:
    assert outcome_of(SILENCE).gate.reason == "refused: platform.example: the connection was refused"
    assert "503" in (outcome_of(answer(503)).gate.reason or "")


def test_a_reason_stays_short_whatever_is_said() -> None:
    assert len(outcome_of(NoAnswer("x" * 10_000, cause="tls")).gate.reason or "") <= 400


# -- 5xx --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [500, 501, 502, 503, 504, 511, 599])
def test_a_5xx_closes_the_gate_and_counts_against_the_batch(status: int) -> None:
    decision = outcome_of(answer(status), gate=Gate(passes=9))
    assert decision.change == COUNTED
    assert (decision.gate.state, decision.gate.failures, decision.gate.passes) == (GateState.WAITING, 1, 9)


def test_a_batch_that_fails_five_times_while_others_pass_is_split_and_the_gate_stays_open() -> None:
    gate = Gate(passes=8)
    decision = outcome_of(answer(500), batch(failures=4, passes_at_failure=7), gate)
    assert decision.change == Split(suspect=True)
    assert decision.gate == gate


def test_a_single_record_that_fails_while_others_pass_is_set_apart_for_300_s() -> None:
    decision = outcome_of(answer(500), batch(1, failures=4, passes_at_failure=7), Gate(passes=8))
    assert decision.change == SetApart(due_ms=NOW_MS + 300_000, reason="the platform answered 500")


def test_a_suspect_is_split_at_its_first_failure() -> None:
    decision = outcome_of(answer(500), batch(2, suspect=True), Gate(passes=1))
    assert decision.change == Split(suspect=True)
    assert isinstance(outcome_of(answer(500), batch(1, suspect=True), Gate(passes=1)).change, SetApart)


@pytest.mark.parametrize(
    ("failures", "passes_at_failure", "gate"),
    [
        (3, 7, Gate(passes=8)),  # not often enough
        (9, 8, Gate(passes=8)),  # nothing passed since
    ],
)
def test_without_evidence_a_failing_batch_is_no_culprit(failures: int, passes_at_failure: int, gate: Gate) -> None:
    failing = batch(failures=failures, passes_at_failure=passes_at_failure)
    decision = outcome_of(answer(500), failing, gate)
    assert decision.change == COUNTED
    assert decision.gate.state is GateState.WAITING


def test_a_suspect_that_fails_as_the_probe_is_not_split_before_another_passed() -> None:
    assert outcome_of(answer(500), batch(suspect=True), closed(passes=3)).change == COUNTED
    failed = batch(failures=1, passes_at_failure=3, suspect=True)
    assert outcome_of(answer(500), failed, closed(passes=3)).change == COUNTED
    assert outcome_of(answer(500), failed, closed(passes=4)).change == Split(suspect=True)


def test_a_culprit_opens_the_gate_that_it_closed() -> None:
    decision = outcome_of(answer(500), batch(failures=4, passes_at_failure=7), closed(failures=2, passes=8))
    assert decision.change == Split(suspect=True)
    assert decision.gate == Gate(passes=8)


@pytest.mark.parametrize("outcome", [SILENCE, answer(408), answer(502)])
def test_a_record_set_apart_goes_back_to_its_wait(outcome: Answer | NoAnswer) -> None:
    change = outcome_of(outcome, batch(1, apart=True), Gate(passes=3)).change
    assert isinstance(change, SetApart)
    assert change.due_ms == NOW_MS + 300_000


def test_a_record_set_apart_that_fails_again_leaves_the_gate_open() -> None:
    assert outcome_of(answer(502), batch(1, apart=True), Gate(passes=3)).gate == Gate(passes=3)


# -- rate limits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("said", "waited"),
    [
        ("7", 7),
        (formatdate(NOW_MS / 1000 + 90, usegmt=True), 90),
        ("0", 1),
        ("999999", 3600),
        (formatdate(NOW_MS / 1000 + 10**6, usegmt=True), 3600),
        (formatdate(NOW_MS / 1000 - 90, usegmt=True), 1),
    ],
)
def test_retry_after_is_honoured_and_nothing_counted(status: int, said: str, waited: int) -> None:
    decision = outcome_of(answer(status, headers={"retry-after": said}), gate=closed(failures=3, passes=5))
    assert decision.change == KEPT
    assert decision.gate == Gate(
        state=GateState.WAITING, reason="rate_limited", until_ms=NOW_MS + waited * 1000, failures=3, passes=5
    )


@pytest.mark.parametrize(
    ("headers", "waited"),
    [
        ({}, 60),
        ({"retry-after": "soon"}, 60),
        ({"x-ratelimit-reset": "42"}, 42),
        ({"x-ratelimit-reset": str(NOW_MS // 1000 + 30)}, 30),
        ({"x-ratelimit-reset": str(NOW_MS + 30_000)}, 30),
        ({"x-ratelimit-reset": "9" * 5_000}, 3600),
        ({"x-ratelimit-reset": "later"}, 60),
        ({"x-ratelimit-reset": "0"}, 60),
        ({"x-ratelimit-reset": "²"}, 60),
        ({"retry-after": "5", "x-ratelimit-reset": "42"}, 5),
    ],
)
def test_a_429_without_retry_after_waits_for_the_reset_else_a_minute(headers: dict[str, str], waited: int) -> None:
    assert wait_s(outcome_of(answer(429, headers=headers)).gate) == waited


def test_a_503_whose_retry_after_says_nothing_is_a_failure_like_any_other() -> None:
    decision = outcome_of(answer(503, headers={"retry-after": "soon"}))
    assert decision.change == COUNTED
    assert decision.gate.failures == 1


def test_the_last_call_of_a_window_counts_and_closes_the_gate_until_the_reset() -> None:
    headers = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(NOW_MS // 1000 + 20)}
    decision = outcome_of(acknowledgement(3, headers))
    assert decision.change == Acknowledged(synced=3, payload_bytes=6040)
    assert decision.gate == Gate(
        state=GateState.WAITING, reason="rate_limited", until_ms=NOW_MS + 20_000, failures=0, passes=1
    )


@pytest.mark.parametrize(
    "headers",
    [
        {"x-ratelimit-remaining": "1", "x-ratelimit-reset": "20"},
        {"x-ratelimit-remaining": "0"},
        {"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(NOW_MS // 1000 - 20)},
    ],
)
def test_a_window_with_calls_left_or_no_reset_to_come_leaves_the_gate_open(headers: dict[str, str]) -> None:
    assert outcome_of(acknowledgement(3, headers)).gate == Gate(passes=1)


@pytest.mark.parametrize(
    ("heard", "waited"),
    [
        (answer(429), 60),
        (answer(429, headers={"retry-after": "7"}), 7),
        (answer(503, headers={"retry-after": "7"}), 7),
        (answer(200, headers={"x-ratelimit-remaining": "0", "x-ratelimit-reset": "20"}), 20),
        (answer(404, headers={"x-ratelimit-remaining": "0", "x-ratelimit-reset": "20"}), 20),
    ],
)
@pytest.mark.parametrize("state", list(GateState))
def test_a_limit_in_an_answer_to_something_else_closes_the_gate(heard: Answer, waited: int, state: GateState) -> None:
    gate = Gate(passes=5, max_bytes=9) if state is GateState.READY else closed(state, failures=3, passes=5)
    limited = overhear(heard, gate, now_ms=NOW_MS)
    assert (limited.state, limited.reason, wait_s(limited)) == (GateState.WAITING, RATE_LIMITED, waited)
    assert (limited.passes, limited.max_bytes) == (gate.passes, gate.max_bytes)
    assert limited.failures == (3 if state is GateState.WAITING else 0)


@pytest.mark.parametrize("heard", [answer(200), answer(401), answer(500), answer(503), answer(302), answer(422)])
@pytest.mark.parametrize("gate", [Gate(), closed(), closed(GateState.PARKED, reason="unauthorised")])
def test_nothing_else_in_an_answer_to_something_else_moves_the_gate(heard: Answer, gate: Gate) -> None:
    assert overhear(heard, gate, now_ms=NOW_MS) == gate


def test_a_limit_that_ends_later_is_not_cut_short_by_another() -> None:
    first = overhear(answer(429, headers={"retry-after": "90"}), Gate(), now_ms=NOW_MS)
    assert overhear(answer(429, headers={"retry-after": "5"}), first, now_ms=NOW_MS) == first
    assert wait_s(overhear(answer(429, headers={"retry-after": "100"}), first, now_ms=NOW_MS)) == 100


# -- parked -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "reason"), [(401, "unauthorised"), (403, "forbidden")])
def test_a_refused_token_parks_the_gate_and_drops_nothing(status: int, reason: str) -> None:
    decision = outcome_of(answer(status), batch(failures=9))
    assert decision.change == KEPT
    assert decision.gate == Gate(state=GateState.PARKED, reason=reason, until_ms=NOW_MS + 60_000, failures=1)


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308, 402, 404, 405, 407, 410, 426])
def test_an_answer_about_the_address_parks_the_gate_and_says_what_to_check(status: int) -> None:
    decision = outcome_of(answer(status))
    assert decision.change == KEPT
    assert decision.gate.state is GateState.PARKED
    assert all(part in (decision.gate.reason or "") for part in (str(status), URL, "platform.base_url"))


def test_a_url_that_must_not_be_contacted_parks_the_gate() -> None:
    decision = outcome_of(BadEndpoint("platform.example: only https URLs are contacted"))
    assert decision.change == KEPT
    assert decision.gate.state is GateState.PARKED


@pytest.mark.parametrize(("failures", "waited"), [(1, 120), (2, 240), (3, 300), (4, 300), (10_000, 300)])
def test_a_parked_gate_is_probed_seldom(failures: int, waited: int) -> None:
    gate = closed(GateState.PARKED, failures=failures, reason="unauthorised")
    assert wait_s(outcome_of(answer(401), gate=gate).gate) == waited


def test_counts_start_anew_between_waiting_and_parked() -> None:
    assert outcome_of(answer(401), gate=closed(failures=9)).gate.failures == 1
    assert outcome_of(SILENCE, gate=closed(GateState.PARKED, failures=9)).gate.failures == 1
    assert outcome_of(answer(429), gate=closed(GateState.PARKED, failures=9)).gate.failures == 0


# -- refused records --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 406, 409, 411, 415, 418, 422, 431, 451])
def test_a_refused_batch_is_split_to_find_the_culprit(status: int) -> None:
    decision = outcome_of(answer(status), gate=closed(failures=3, passes=5))
    assert decision.change == Split(suspect=False)
    assert decision.gate == Gate(passes=5)


def test_a_refused_record_becomes_a_dead_letter_with_status_and_answer() -> None:
    decision = outcome_of(answer(422, "é".encode() * 3_000), batch(1))
    assert isinstance(decision.change, Dead)
    assert decision.change.status == 422
    assert decision.change.answer == "é" * 2_048
    assert "422" in decision.change.reason


def test_a_413_halves_the_batch_and_remembers_the_limit() -> None:
    decision = outcome_of(answer(413), batch(4, body_bytes=5_000), Gate(passes=5))
    assert decision.change == Split(suspect=False)
    assert decision.gate == Gate(passes=5, max_bytes=10_000)


def test_a_smaller_limit_is_never_forgotten_for_a_larger_one() -> None:
    decision = outcome_of(answer(413), batch(4, body_bytes=5_000), Gate(max_bytes=3_000))
    assert decision.gate.max_bytes == 3_000


def test_the_learned_limit_is_never_absurdly_small() -> None:
    assert outcome_of(answer(413), batch(2, body_bytes=10)).gate.max_bytes == 1024


def test_a_single_record_too_large_is_a_dead_letter_and_teaches_nothing() -> None:
    decision = outcome_of(answer(413, b"too large"), batch(1), Gate(max_bytes=9_000))
    assert isinstance(decision.change, Dead)
    assert decision.gate.max_bytes == 9_000


def test_the_learned_limit_grows_back_slowly_until_it_is_gone() -> None:
    gate, sizes = Gate(max_bytes=20_000_000), {20_000_000}
    for _ in range(120):
        gate = outcome_of(acknowledgement(3), gate=gate).gate
        sizes.add(gate.max_bytes or 0)
    assert sizes == {20_000_000, 40_000_000, 0}
    assert gate.passes == 120


# -- answers that come late -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", [SILENCE, answer(500), answer(401), answer(429), answer(404), answer(422)])
def test_an_answer_that_comes_after_the_gate_closed_does_not_move_it(outcome: Answer | NoAnswer) -> None:
    gate = closed(failures=2, passes=4)
    assert decide(outcome, sent(batch()), gate, now_ms=NOW_MS, rand=0.5).gate == gate


def test_an_acknowledgement_that_comes_after_the_gate_closed_only_counts() -> None:
    gate = closed(failures=2, passes=4)
    decision = decide(acknowledgement(3), sent(batch()), gate, now_ms=NOW_MS, rand=0.5)
    assert decision.change == Acknowledged(synced=3, payload_bytes=6040)
    assert decision.gate == closed(failures=2, passes=5)
