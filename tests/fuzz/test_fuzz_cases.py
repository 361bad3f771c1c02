"""The fuzzer's targets over their seeds and all that was ever found, without the fuzzer: `make fuzz` looks for more."""

from typing import Protocol

import pytest

from tests.fuzz import frames, messages, params


class Target(Protocol):
    SEEDS: tuple[bytes, ...]
    FOUND: tuple[bytes, ...]

    def one_input(self, data: bytes) -> None: ...


TARGETS: dict[str, Target] = {"frames": frames, "messages": messages, "params": params}
CASES = [
    pytest.param(target, case, id=f"{name}-{index}")
    for name, target in TARGETS.items()
    for index, case in enumerate((*target.SEEDS, *target.FOUND))
]


@pytest.mark.parametrize(("target", "case"), CASES)
def test_no_known_case_breaks_a_promise(target: Target, case: bytes) -> None:
    target.one_input(case)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_no_beginning_of_a_case_breaks_a_promise(target: Target) -> None:
    for case in (*target.SEEDS, *target.FOUND):
        for end in range(min(len(case), 200)):
            target.one_input(case[:end])
