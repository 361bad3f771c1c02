"""The guards that `make guards` removes are there to be removed, and so are the tests that should miss them."""

import ast
from pathlib import Path

import pytest

from tests.guards.remove import Guard, guards

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("guard", guards(), ids=lambda guard: guard.name)
def test_a_guard_and_the_tests_that_need_it_exist(guard: Guard) -> None:
    text = (ROOT / guard.file).read_text()
    assert guard.removed(text) != text
    # Tests that cannot even be collected have not missed the guard.
    assert not guard.file.endswith(".py") or ast.parse(guard.removed(text))
    assert guard.tests
    for test in guard.tests:
        path, _, name = test.partition("::")
        assert f"def {name.partition('[')[0]}(" in (ROOT / path).read_text()
