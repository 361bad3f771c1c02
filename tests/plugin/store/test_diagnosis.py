"""What is said of a state folder that cannot be one: where the trouble is, and what to do."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from plugin.clock import SystemClock
from plugin.errors import StoreUnavailable
from plugin.store.diagnosis import judge
from plugin.store.interface import StoreHealth, StoreState
from plugin.store.sqlite import open_store
from tests.support.stores import put


async def health_of(folder: Path) -> StoreHealth:
    """Open a store there, which must refuse a call."""
    store = open_store(folder, clock=SystemClock())
    with pytest.raises(StoreUnavailable):
        await put(store, "a")
    health = store.health
    await store.close()
    return health


def a_file_in_its_place(folder: Path) -> Path:
    (folder / "state").write_bytes(b"")
    return folder / "state"


def a_file_on_the_way(folder: Path) -> Path:
    (folder / "file").write_bytes(b"")
    return folder / "file" / "a" / "state"


def a_link_to_nowhere(folder: Path) -> Path:
    (folder / "state").symlink_to(folder / "gone" / "state")
    return folder / "state"


def a_link_to_itself(folder: Path) -> Path:
    (folder / "loop").symlink_to(folder / "loop")
    return folder / "loop" / "state"


def a_parent_that_cannot_be_made(_: Path) -> Path:
    return Path("/proc/agentic/state")


def a_name_too_long(folder: Path) -> Path:
    return folder / ("x" * 300)


def a_null_character(folder: Path) -> Path:
    return folder / "a\0b"


def half_a_character(folder: Path) -> Path:
    return folder / "a\ud800b"


def a_path_too_long(folder: Path) -> Path:
    return folder.joinpath(*["x" * 200] * 30)


@pytest.mark.parametrize(
    ("odd", "says"),
    [
        (a_file_in_its_place, "is no folder: move that away"),
        (a_file_on_the_way, "file is no folder: move that away"),
        (a_link_to_nowhere, "is no folder: move that away"),
        (a_link_to_itself, "remove that link"),
        (a_parent_that_cannot_be_made, "cannot be made in /proc: make it"),
        (a_name_too_long, "too long: choose a shorter state_dir"),
        (a_path_too_long, "too long: choose a shorter state_dir"),
        (a_null_character, "no path can have: choose another state_dir"),
        (half_a_character, "no path can have: choose another state_dir"),
    ],
)
async def test_of_an_odd_state_folder_one_sentence_says_what_to_do(
    tmp_path: Path, odd: Callable[[Path], Path], says: str
) -> None:
    folder = odd(tmp_path)
    health = await health_of(folder)
    assert health.state is StoreState.UNUSABLE
    assert health.reason is not None
    assert says in health.reason
    assert str(folder)[:20] in health.reason
    assert health.reason.isprintable()
    assert "Errno" not in health.reason


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_of_a_folder_that_may_not_be_made_it_is_said_who_does_not_allow_it(tmp_path: Path, number: int) -> None:
    folder = tmp_path / "a" / "state"
    state, reason = judge(OSError(number, os.strerror(number)), folder)
    assert state is StoreState.READ_ONLY
    assert f"change the permissions of {tmp_path}," in reason
