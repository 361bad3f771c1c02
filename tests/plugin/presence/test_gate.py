import pytest

from plugin.presence.gate import BREAKER_FAILURES, RETRY_AFTER, Gate


def failed(gate: Gate, times: int, *, now: float = 0.0, rand: float = 0.999) -> Gate:
    """Fail so many times one after the other, each as soon as the gate lets it."""
    for _ in range(times):
        now = max(now, gate.until)
        gate = gate.failed(now, now, reason="reset", rand=rand)
    return gate


def test_a_new_gate_lets_everything_pass() -> None:
    assert Gate().width(0.0, 8) == 8


def test_nothing_passes_while_the_gate_waits_and_everything_afterwards() -> None:
    gate = Gate().failed(10.0, 10.0, reason="timeout", rand=0.5)

    assert gate.until == 10.25
    assert gate.reason == "timeout"
    assert gate.width(10.2, 8) == 0
    assert gate.width(10.25, 8) == 8


def test_waits_grow_to_sixty_seconds() -> None:
    gate, waits = Gate(), list[float]()
    for _ in range(10):
        now = max(0.0, gate.until)
        gate = gate.failed(now, now, reason="reset", rand=1.0)
        waits.append(gate.until - now)

    assert waits == pytest.approx([0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60])


def test_requests_that_fail_together_lengthen_the_wait_once_but_all_count_for_the_breaker() -> None:
    gate = Gate()
    for now in (10.0, 10.01, 10.02, 10.03, 10.04):
        gate = gate.failed(0.0, now, reason="timeout", rand=0.999)

    assert gate.until < 10.5
    assert gate.waves == 1
    assert gate.broken


def test_after_five_failures_in_a_row_one_probe_passes_at_a_time() -> None:
    gate = failed(Gate(), BREAKER_FAILURES - 1)
    assert not gate.broken
    gate = failed(gate, 1)

    assert gate.broken
    assert gate.width(gate.until, 8) == 1


def test_one_answer_closes_the_breaker() -> None:
    gate = failed(Gate(), 7).answered(500.0)

    assert not gate.broken
    assert gate.width(500.0, 8) == 8
    assert gate.well_since(499.0)
    assert not gate.well_since(500.0)


def test_a_server_that_asks_to_be_left_alone_is_left_alone_although_others_are_still_answered() -> None:
    gate = Gate().deferred(10.0, 30.0).answered(11.0)

    assert gate.width(39.9, 8) == 0
    assert gate.reason == RETRY_AFTER
    assert gate.width(40.0, 8) == 8
    assert gate.answered(41.0).reason is None


def test_a_longer_wait_that_was_asked_for_is_not_shortened_by_a_failure() -> None:
    gate = Gate().deferred(10.0, 30.0).failed(10.5, 10.5, reason="reset", rand=0.5)

    assert gate.until == 40.0
    assert gate.reason == RETRY_AFTER
    assert gate.failures == 1


def test_hurrying_ends_a_wait_of_our_own_and_none_that_was_asked_for() -> None:
    assert failed(Gate(), 1).hurried(0.1).width(0.1, 8) == 8
    assert failed(Gate(), 5).hurried(0.1).width(100.0, 8) == 1
    assert Gate().deferred(0.0, 30.0).hurried(0.1).width(0.1, 8) == 0
