from collections.abc import Generator
from pathlib import Path

import pytest

from plugin.store.keeper import Keeper
from tests.support.clock import FakeClock


@pytest.fixture
def idle(tmp_path: Path) -> Generator[Keeper]:
    """A keeper that this thread looks after itself."""
    one = Keeper(tmp_path, clock=FakeClock())
    one.attend()
    yield one
    one.close()
