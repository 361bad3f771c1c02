"""The claim is a process's first act, so each test is a process of its own: its wire, its standard error."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# What a careless program does before, after and while it speaks: each line with STRAY must never be on the wire.
PROGRAM = """
import sys
print("STRAY before", end="")  # still in the buffer when the descriptors move
from protocol.claim import claim
wire = claim()
import atexit, os, subprocess
print("STRAY import")
atexit.register(print, "STRAY exit")
os.write(1, b"STRAY raw\\n")
subprocess.run([sys.executable, "-c", "import sys; print('STRAY child', len(sys.stdin.read()))"], check=True)
subprocess.run(["sh", "-c", "echo STRAY shell; cat"], check=True)
os.write(wire.write_fd, b"got " + os.read(wire.read_fd, 100))
print("STRAY late")
"""

REPORT = """
import json, os, subprocess, sys
from protocol.claim import claim
wire = claim()
child = "import os, sys\\nfor fd in map(int, sys.argv[1:]):\\n try: os.fstat(fd); print(fd)\\n except OSError: pass"
run = [sys.executable, "-c", child, "0", "1", "2", *map(str, wire)]
open_in_child = subprocess.run(run, close_fds=False, capture_output=True, check=True, text=True, stdin=0).stdout.split()
report = {
    "wire": list(wire),
    "input": os.read(wire.read_fd, 10).decode(),
    "null": [os.fstat(fd).st_rdev == os.stat(os.devnull).st_rdev for fd in (0, 1, 2)],
    "open_in_child": open_in_child,
    "inheritable": [os.get_inheritable(fd) for fd in (0, 1, 2, *wire)],
    "read0": os.read(0, 10).decode(),
}
os.write(1, b"one\\n")
os.write(wire.write_fd, b"wire\\n")
with open(sys.argv[1], "w") as out:
    json.dump(report, out)
"""


def run(program: str, *arguments: str, redirect: str = "", data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    shell = ["sh", "-c", f'exec "$@" {redirect}', "sh", sys.executable, "-c", program, *arguments]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", "PYTHONUNBUFFERED": ""}
    return subprocess.run(shell, input=data, capture_output=True, check=True, timeout=50, env=environ)


def test_no_stray_print_reaches_the_wire_and_nobody_else_reads_it() -> None:
    done = run(PROGRAM, data=b"message\n")
    assert done.stdout == b"got message\n"
    stray = done.stderr.decode()
    for where in ("before", "import", "exit", "raw", "child 0", "shell", "late"):
        assert f"STRAY {where}" in stray


def test_no_stray_print_reaches_the_wire_where_standard_error_is_the_wire_too() -> None:
    done = run(PROGRAM, redirect="2>&1", data=b"message\n")
    assert done.stdout == b"got message\n"
    assert done.stderr == b""


@pytest.mark.parametrize("redirect", ["", "<&-", ">&-", "2>&-", "<&- >&-", "<&- 2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_standard_streams_that_came_closed_are_the_null_device(redirect: str, tmp_path: Path) -> None:
    report_file = tmp_path / "report"
    done = run(REPORT, str(report_file), redirect=redirect, data=b"hello")
    report = json.loads(report_file.read_text())
    no_input, no_output, no_error = (closed in redirect.split() for closed in ("<&-", ">&-", "2>&-"))
    assert report["input"] == ("" if no_input else "hello")
    assert report["read0"] == ""
    assert done.stdout == (b"" if no_output else b"wire\n")
    assert done.stderr == (b"" if no_error else b"one\n")
    assert report["null"] == [True, no_error, no_error]
    assert report["open_in_child"] == ["0", "1", "2"]
    assert report["inheritable"] == [True, True, True, False, False]
    assert min(report["wire"]) > 2


def test_the_claim_can_come_before_everything_that_is_slow_or_talks() -> None:
    program = """
import sys
from protocol.claim import claim
print(sorted({"asyncio", "msgspec", "logging", "jsonrpcserver", "protocol.errors"} & sys.modules.keys()))
"""
    assert run(program).stdout == b"[]\n"
