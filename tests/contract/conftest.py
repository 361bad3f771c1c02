"""Each contract of a peer runs over every kind of wire, each contract of a store over every engine."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from tests.support.store import ENGINES, Shelf, shelf_on
from tests.support.wires import WIRES, MakeWire


@pytest.fixture(params=sorted(WIRES))
def make_wire(request: pytest.FixtureRequest) -> MakeWire:
    return WIRES[request.param]


@pytest.fixture(params=sorted(ENGINES))
async def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Shelf]:
    async with shelf_on(tmp_path / "state", ENGINES[request.param]) as opened:
        yield opened
