import logging

import pytest

from plugin.presence.trouble import REPEAT_S, Trouble, Troubles
from tests.support.clock import FakeClock

LASTING = Trouble("it is wrong", "it is well")
SINGLE = Trouble("it is odd", "it is even", logging.ERROR, repeats=False)
MASS = Trouble("all is wrong", "all is well", each=False)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def troubles(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> Troubles:
    caplog.set_level(logging.DEBUG, "plugin.presence.trouble")
    return Troubles(clock)


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str, object]]:
    found = [(record.levelname, record.getMessage(), record.__dict__["fields"]["count"]) for record in caplog.records]
    caplog.clear()
    return found


async def test_a_trouble_is_logged_when_it_starts_every_ten_minutes_with_its_count_and_when_it_ends(
    troubles: Troubles, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        troubles.add(LASTING, where="g1", who="ada", reason="reset")
    assert lines(caplog) == [("WARNING", "it is wrong", 1)]
    await clock.advance(REPEAT_S - 1)
    troubles.add(LASTING, where="g1", who="ada", reason="reset")
    assert lines(caplog) == []
    await clock.advance(1)
    troubles.add(LASTING, where="g1", who="ada", reason="reset")
    assert lines(caplog) == [("WARNING", "it is wrong", 7)]
    troubles.end(LASTING, where="g1", who="ada")
    troubles.end(LASTING, where="g1", who="ada")
    assert lines(caplog) == [("INFO", "it is well", 7)]
    troubles.add(LASTING, where="g1", who="ada", reason="reset")
    assert lines(caplog) == [("WARNING", "it is wrong", 1)]


async def test_one_that_does_not_repeat_is_logged_once_while_it_lasts(
    troubles: Troubles, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        troubles.add(SINGLE, where="g1", who="ada", reason="x")
        await clock.advance(REPEAT_S)
    assert lines(caplog) == [("ERROR", "it is odd", 1)]


def test_those_who_join_a_trouble_are_one_line_with_their_number_and_it_ends_with_the_last(
    troubles: Troubles, caplog: pytest.LogCaptureFixture
) -> None:
    everybody = [f"agent-{number}" for number in range(1_000)]
    for who in everybody:
        troubles.add(LASTING, where="g1", who=who, reason="x")
    assert affected(caplog) == [("x", 1)]
    troubles.tell()
    troubles.tell()
    assert affected(caplog) == [("x", 1_000)]
    for who in everybody[:-1]:
        troubles.end(LASTING, where="g1", who=who)
    troubles.tell()
    assert lines(caplog) == []
    troubles.end(LASTING, where="g1", who=everybody[-1])
    assert lines(caplog) == [("INFO", "it is well", 1_000)]


def test_each_reason_is_a_line_of_its_own_once_however_often_it_changes(
    troubles: Troubles, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        for reason in ("x", "y"):
            for who in ("ada", "bob"):
                troubles.add(LASTING, where="g1", who=who, reason=reason)
            troubles.tell()
    assert affected(caplog) == [("x", 1), ("x", 2), ("y", 1), ("y", 2)]
    troubles.end(LASTING, where="g1", who="ada")
    troubles.end(LASTING, where="g1", who="bob")
    assert lines(caplog) == [("INFO", "it is well", 12)]


def test_of_those_who_joined_the_ones_that_are_well_again_are_not_told(
    troubles: Troubles, caplog: pytest.LogCaptureFixture
) -> None:
    for who in ("ada", "bob", "cyd"):
        troubles.add(LASTING, where="g1", who=who, reason="x")
    troubles.end(LASTING, where="g1", who="cyd")
    troubles.tell()
    troubles.add(LASTING, where="g1", who="dan", reason="x")
    troubles.end(LASTING, where="g1", who="dan")
    troubles.tell()
    assert affected(caplog) == [("x", 1), ("x", 2)]


def test_who_was_well_and_is_not_again_is_news(troubles: Troubles, caplog: pytest.LogCaptureFixture) -> None:
    for who in ("ada", "bob"):
        troubles.add(LASTING, where="g1", who=who, reason="x")
    troubles.tell()
    troubles.end(LASTING, where="g1", who="ada")
    troubles.add(LASTING, where="g1", who="ada", reason="x")
    troubles.tell()
    assert affected(caplog) == [("x", 1), ("x", 2), ("x", 2)]


def affected(caplog: pytest.LogCaptureFixture) -> list[tuple[str, int]]:
    fields = [record.__dict__["fields"] for record in caplog.records]
    caplog.clear()
    return [(line["reason"], line["affected"]) for line in fields]


def test_a_trouble_of_many_is_one_line(troubles: Troubles, caplog: pytest.LogCaptureFixture) -> None:
    for who in ("ada", "bob", "cyd"):
        troubles.add(MASS, where="host", who=who, reason=f"{who} is not known")
    troubles.tell()
    assert len(lines(caplog)) == 1


def test_who_is_forgotten_has_no_trouble_any_more(troubles: Troubles, caplog: pytest.LogCaptureFixture) -> None:
    troubles.add(LASTING, where="g1", who="ada", reason="x")
    troubles.add(SINGLE, where="g2", who="ada", reason="x")
    troubles.add(LASTING, where="g2", who="bob", reason="x")
    lines(caplog)
    troubles.forget("ada")
    assert [text for _, text, _ in lines(caplog)] == ["it is well", "it is even"]


def test_the_same_trouble_elsewhere_is_another(troubles: Troubles, caplog: pytest.LogCaptureFixture) -> None:
    troubles.add(LASTING, where="g1", who="ada", reason="x")
    troubles.add(LASTING, where="g2", who="ada", reason="x")
    assert len(lines(caplog)) == 2
    troubles.end(LASTING, where="g1", who="ada")
    assert len(lines(caplog)) == 1
