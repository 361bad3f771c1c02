"""What serving asks of the system before it begins."""

import subprocess
import sys

import pytest

LIMITED = """
import resource, sys
from plugin.cli.serve import raise_descriptors
soft, hard = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
raise_descriptors()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ("soft", "hard", "then"),
    [(64, 512, (512, 512)), (512, 512, (512, 512)), (64, 15_000, (10_240, 15_000)), (12_000, 15_000, (12_000, 15_000))],
)
def test_as_many_connections_are_allowed_as_a_thousand_guilds_need(soft: int, hard: int, then: tuple[int, int]) -> None:
    given = subprocess.run(
        [sys.executable, "-c", LIMITED, str(soft), str(hard)], check=False, capture_output=True, text=True
    )
    if "not allowed to raise maximum limit" in given.stderr:
        pytest.skip("this machine allows fewer descriptors")
    assert (given.returncode, given.stdout) == (0, f"{then[0]} {then[1]}\n")
