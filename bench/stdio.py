"""Runs a contestant as a subprocess and loads it over its pipes: prepared bytes in, answers counted, nothing decoded.

The client's own cost is its own: what is measured is the processor time of the contestant's process, all threads.
"""

import os
import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from bench.process import cpu_s

IN_FLIGHT: Final = 64
_ANSWER: Final = b'"id":'  # once in each answer, and in nothing else that comes
_READ_BYTES: Final = 1024 * 1024
_SETTLED_S: Final = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """A program that serves its stdin and stdout, and what to say to it."""

    name: str
    argv: Sequence[str]
    method: str
    params: object
    initialize: object
    initialized: str | None = None  # a notification that its protocol wants after the answer
    headers: bool = False  # Content-Length framing

    def frame(self, method: str, params: object, call_id: int | None) -> bytes:
        """Return a message as its bytes on the wire; a notification without an id."""
        head = {"jsonrpc": "2.0", "method": method} if call_id is None else {"jsonrpc": "2.0", "id": call_id}
        body = msgspec.json.encode({**head, "method": method, "params": params})
        return b"Content-Length: %d\r\n\r\n%b" % (len(body), body) if self.headers else body + b"\n"


class Running:
    """A contestant's process, from its start to its end; `with` ends it."""

    def __init__(self, contestant: Contestant) -> None:
        self.contestant = contestant
        one = [contestant.frame(contestant.method, contestant.params, number) for number in range(1, IN_FLIGHT + 1)]
        self._burst, self._single = b"".join(one), one[0]
        self._hello = contestant.frame("initialize", contestant.initialize, 0)
        self._started = time.perf_counter()
        self._process = subprocess.Popen(
            contestant.argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_plain_environ(),
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._into, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def greet(self) -> tuple[float, float]:
        """Send `initialize`; return the seconds and the processor seconds from the start to its answer."""
        os.write(self._into, self._hello)
        self._hear()
        took = time.perf_counter() - self._started, self.cpu_s()
        if self.contestant.initialized is not None:
            os.write(self._into, self.contestant.frame(self.contestant.initialized, {}, None))
        return took

    def cpu_s(self) -> float:
        """Return the processor seconds that all of its threads have taken."""
        return cpu_s(self._process.pid)

    def load(self, bursts: int) -> float:
        """Send so many bursts, each once the one before is answered; return the processor seconds of a request."""
        before = self.cpu_s()
        for _ in range(bursts):
            os.write(self._into, self._burst)
            self._take(IN_FLIGHT)
        return (self.cpu_s() - before) / bursts / IN_FLIGHT

    def ask(self, times: int) -> float:
        """Send one request after the other; return how many were answered in a second."""
        before = time.perf_counter()
        for _ in range(times):
            os.write(self._into, self._single)
            self._take(1)
        return times / (time.perf_counter() - before)

    def settle(self) -> None:
        """Wait until it does nothing any more."""
        before = -1.0
        while (now := self.cpu_s()) - before > _SETTLED_S / 100:
            before = now
            time.sleep(_SETTLED_S)  # it has no event for "idle": only its clock, standing still, shows that

    def memory_mib(self) -> float:
        """Return the memory that it occupies, what it shares with other processes included."""
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="ascii")
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def _hear(self) -> None:
        """Read the whole first answer."""
        data = b""
        while not self._whole(data):
            more = os.read(self._out, _READ_BYTES)
            assert more, f"{self.contestant.name} has ended"
            data += more

    def _whole(self, data: bytes) -> bool:
        if not self.contestant.headers:
            return data.endswith(b"\n")
        head, _, body = data.partition(b"\r\n\r\n")
        found = re.search(rb"Content-Length: (\d+)", head)
        return found is not None and len(body) >= int(found[1])

    def _take(self, answers: int) -> None:
        tail = b""
        while answers:
            data = os.read(self._out, _READ_BYTES)
            assert data, f"{self.contestant.name} has ended"
            seen = tail + data
            assert b'"error":' not in seen, f"{self.contestant.name} answered {seen[:500]!r}"
            answers -= seen.count(_ANSWER)
            tail = seen[1 - len(_ANSWER) :]


def _plain_environ() -> dict[str, str]:
    """Return the environment without switches of Python: compiled modules are kept, as on a user's machine."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
