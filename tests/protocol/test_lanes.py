import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.lanes import Lanes, Place
from protocol.messages import Notification
from protocol.methods import Context
from protocol.session import Fate, Stage, Work
from tests.support.stage import Listener


def work(size: int = 10, *, urgent: bool = False) -> Work[str]:
    return Work(Notification("m", None, size), Context(Listener(), "m", None, None), urgent=urgent)


def lanes(handlers: int = 2, waiting: int = 4, waiting_bytes: int = 100) -> Lanes[str]:
    return Lanes(handlers=handlers, waiting=waiting, waiting_bytes=waiting_bytes)


def enter(into: Lanes[str], *works: Work[str]) -> list[Place]:
    places: list[Place] = []
    for one in works:
        place = into.place(size=one.call.size, urgent=one.urgent)
        if place is Place.RUN:
            into.start(one)
        elif place is Place.WAIT:
            into.wait(one)
        places.append(place)
    return places


def test_work_runs_then_waits_then_finds_no_place() -> None:
    assert enter(lanes(), *(work() for _ in range(7))) == [Place.RUN] * 2 + [Place.WAIT] * 4 + [Place.NOWHERE]


def test_bytes_that_wait_are_bounded_and_bytes_that_run_are_not() -> None:
    all_lanes = lanes(handlers=1)
    assert enter(all_lanes, work(1_000), work(60), work(41), work(40)) == [
        Place.RUN, Place.WAIT, Place.NOWHERE, Place.WAIT,
    ]  # fmt: skip


def test_who_leaves_makes_room_for_the_first_who_waits() -> None:
    all_lanes = lanes(handlers=1)
    one, two, three = work(), work(90), work()
    enter(all_lanes, one, two, three)
    assert all_lanes.leave(one) is two
    assert two.stage is Stage.STARTED
    assert enter(all_lanes, work(91)) == [Place.NOWHERE]
    assert all_lanes.leave(two) is three
    assert all_lanes.leave(three) is None
    assert list(all_lanes) == []


def test_urgent_work_takes_no_slot_gives_none_and_is_bounded() -> None:
    all_lanes = lanes(handlers=1, waiting=2)
    urgent = [work(urgent=True) for _ in range(3)]
    one, two = work(), work()
    assert enter(all_lanes, *urgent) == [Place.RUN, Place.RUN, Place.NOWHERE]
    assert enter(all_lanes, one, two) == [Place.RUN, Place.WAIT]
    assert all_lanes.leave(urgent[0]) is None
    assert enter(all_lanes, urgent[2]) == [Place.RUN]
    assert all_lanes.leave(one) is two


def test_withdrawn_work_gives_its_place_back() -> None:
    all_lanes = lanes(handlers=1, waiting=1)
    one, two, three = work(), work(100), work(100)
    enter(all_lanes, one, two)
    all_lanes.withdraw(two)
    assert enter(all_lanes, three) == [Place.WAIT]
    assert all_lanes.leave(one) is three


@pytest.mark.parametrize("urgent", [True, False])
def test_it_is_crowded_when_half_of_the_places_are_taken(*, urgent: bool) -> None:
    all_lanes = lanes(handlers=0, waiting=4)
    enter(all_lanes, work(urgent=urgent))
    assert not all_lanes.crowded
    enter(all_lanes, work(urgent=urgent))
    assert all_lanes.crowded


def test_a_first_step_is_due_until_it_is_taken() -> None:
    all_lanes = lanes()
    one, two, three = work(), work(), work()
    enter(all_lanes, one, two, three)
    assert all_lanes.due == 2
    assert all_lanes.begin(one)
    assert one.stage is Stage.RUNNING
    two.fate = Fate.CANCELLED
    assert not all_lanes.begin(two)
    assert two.stage is Stage.STARTED
    assert all_lanes.due == 0
    all_lanes.leave(one)
    assert all_lanes.due == 1


@given(st.lists(st.one_of(st.tuples(st.integers(1, 50), st.booleans()), st.sampled_from(["leave", "withdraw"]))))
def test_no_bound_is_ever_passed_and_nobody_overtakes(steps: list[tuple[int, bool] | str]) -> None:
    all_lanes = lanes(handlers=2, waiting=3)
    running: list[Work[str]] = []
    waiting: list[Work[str]] = []
    for step in steps:
        if isinstance(step, tuple):
            one = work(step[0], urgent=step[1])
            (place,) = enter(all_lanes, one)
            if place is not Place.NOWHERE:
                (running if place is Place.RUN else waiting).append(one)
        elif step == "leave" and running:
            following = all_lanes.leave(running.pop(0))
            if following is not None:
                assert following is waiting.pop(0)
                running.append(following)
        elif step == "withdraw" and waiting:
            all_lanes.withdraw(waiting.pop())
        assert sum(not one.urgent for one in running) <= 2
        assert sum(one.urgent for one in running) <= 3
        assert len(waiting) <= 3
        assert sum(one.call.size for one in waiting) <= 100
        assert not waiting or sum(not one.urgent for one in running) == 2
        assert set(all_lanes) == {*running, *waiting}


def test_work_whose_first_step_is_being_taken_is_there_and_has_no_place() -> None:
    all_lanes = lanes(handlers=1)
    all_lanes.first = work()
    assert list(all_lanes) == [all_lanes.first]
    assert enter(all_lanes, work()) == [Place.RUN]


def test_work_that_enters_after_its_first_step_takes_a_place_and_is_not_due() -> None:
    all_lanes = lanes(handlers=1)
    one, two = work(), work()
    all_lanes.enter(one)
    assert all_lanes.due == 0
    assert enter(all_lanes, two) == [Place.WAIT]
    assert all_lanes.leave(one) is two
