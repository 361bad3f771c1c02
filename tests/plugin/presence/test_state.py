import pytest

from plugin.presence.state import Reading, Status, status_of


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("idle", Status.IDLE),
        ("working", Status.ON_CALL),
        ("busy", Status.BUSY),
        ("offline", Status.OFFLINE),
        ("exhausted", None),
        ("unknown", None),
        ("on_call", None),
        ("Idle", None),
        ("", None),
    ],
)
def test_a_host_state_is_one_of_four_statuses_or_none(state: str, status: Status | None) -> None:
    assert status_of(state) is status


def test_a_state_without_a_status_leaves_the_status_as_it_was() -> None:
    reading = Reading().heard("busy", 10.0).heard("exhausted", 20.0)

    assert reading.state == "exhausted"
    assert reading.read_at == 20.0
    assert reading.shown(0.0) is Status.BUSY


def test_an_agent_nobody_could_ask_about_yet_shows_nothing() -> None:
    assert Reading().shown(1e9) is None
    assert Reading().missed(100.0).shown(100.0) is None


def test_an_unreadable_agent_keeps_its_status_for_two_failures_and_is_offline_after_the_third() -> None:
    reading = Reading().heard("busy", 0.0)
    shown: list[Status | None] = []
    for now in (100.0, 101.0, 102.0):
        reading = reading.missed(now)
        shown.append(reading.shown(now))

    assert shown == [Status.BUSY, Status.BUSY, Status.OFFLINE]


def test_an_unreadable_agent_is_offline_sixty_seconds_after_its_first_failure() -> None:
    reading = Reading().heard("idle", 0.0).missed(100.0)

    assert reading.stale_at == 160.0
    assert reading.shown(159.9) is Status.IDLE
    assert reading.shown(160.0) is Status.OFFLINE


def test_an_agent_that_can_be_read_again_shows_what_it_does() -> None:
    reading = Reading().heard("idle", 0.0).missed(1.0).missed(2.0).missed(3.0).heard("working", 4.0)

    assert reading.failures == 0
    assert reading.shown(1e9) is Status.ON_CALL


def test_of_a_state_that_no_host_has_no_more_is_kept_than_a_person_reads() -> None:
    reading = Reading().heard("x" * 1_000_000, 1.0)
    assert reading.state is not None
    assert len(reading.state) == 64
