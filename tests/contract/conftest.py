"""Each contract of a peer runs over every kind of wire."""

import pytest

from tests.support.wires import WIRES, MakeWire


@pytest.fixture(params=sorted(WIRES))
def make_wire(request: pytest.FixtureRequest) -> MakeWire:
    return WIRES[request.param]
