"""A host that misbehaves: the plugin as a real process, its pipes as bytes, and what the kernel says of its memory."""

import asyncio
import fcntl
import os
import signal
import stat
import termios
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from plugin.launch import find, launch
from protocol.framing import Framing, encode

PATIENCE_S = 30.0
LEAVES_IN_S = 1.5 + 1.0 + 5.0  # the deadline, the watchdog's second, and room for a busy machine
_READ_BYTES = 64 * 1024

Message: TypeAlias = dict[str, Any]


class RawHost:
    """One running plugin. Nothing is read of it before `read` or `until` asks; `wire` keeps all bytes that were read.

    `answer` gives what to write back for a call of the plugin's; by default it is left unanswered.
    """

    def __init__(self, process: asyncio.subprocess.Process, framing: Framing) -> None:
        self.process = process
        self.framing = framing
        self.answer: Callable[[Message], Iterable[Message]] = lambda _call: ()
        self.messages: list[Message] = []
        self.wire = bytearray()
        self.stderr = bytearray()
        self._unframed = bytearray()
        self._next_id = 0
        self._stderr = asyncio.create_task(self._keep_stderr())

    async def send(self, *messages: object) -> None:
        """Write whole messages; waits while the plugin does not read."""
        await self.write(b"".join(encode(msgspec.json.encode(message), self.framing) for message in messages))

    async def write(self, data: bytes) -> None:
        """Write bytes as they are; waits while the plugin does not read."""
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        async with asyncio.timeout(PATIENCE_S):
            await self.process.stdin.drain()

    async def write_apart(self, data: bytes) -> None:
        """Write bytes so that the plugin reads each for itself."""
        assert self.process.stdin is not None
        fd: int = self.process.stdin.transport.get_extra_info("pipe").fileno()
        unread = termios.TIOCOUTQ if stat.S_ISSOCK(os.fstat(fd).st_mode) else termios.FIONREAD
        for start in range(len(data)):
            await self.write(data[start : start + 1])
            async with asyncio.timeout(PATIENCE_S):
                while any(fcntl.ioctl(fd, unread, bytes(4))):  # noqa: ASYNC110  the kernel tells nobody when it is read
                    await asyncio.sleep(0.001)

    async def read(self, most_bytes: int = _READ_BYTES) -> list[Message]:
        """Read once, answer what the plugin asks, return the messages that are complete; none at the end."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            data = await self.process.stdout.read(most_bytes)
        self.wire += data
        came: list[Message] = []
        self._unframed += data
        came.extend(self._messages())
        listening = self.process.stdin is not None and not self.process.stdin.is_closing()
        for message in came:
            if listening and self.process.returncode is None and "method" in message and "id" in message:
                await self.send(*self.answer(message))
        self.messages += came
        return came

    async def until(self, done: Callable[[Message], bool]) -> Message:
        """Read until such a message comes."""
        while True:
            came = await self.read()
            for message in came:
                if done(message):
                    return message
            assert came or self.process.stdout is None or not self.process.stdout.at_eof(), "the plugin has ended"

    async def read_while(self, lacking: Callable[[], bool]) -> None:
        """Read, and answer what the plugin asks, as long as something is lacking; in time, and before it ends."""
        async with asyncio.timeout(PATIENCE_S):
            while lacking():
                came = await self.read()
                assert came or self.process.stdout is None or not self.process.stdout.at_eof(), "the plugin has ended"

    async def call(self, method: str, params: object = None) -> Message:
        """Send a request and read until it is answered; return the answer."""
        self._next_id += 1
        call_id = f"call-{self._next_id}"
        await self.send({"jsonrpc": "2.0", "id": call_id, "method": method, "params": params})
        return await self.until(lambda message: message.get("id") == call_id and "method" not in message)

    async def result(self, method: str, params: object = None) -> Any:  # noqa: ANN401  JSON
        """Call, and return the result; an error answer fails the test."""
        answer = await self.call(method, params)
        assert "error" not in answer, answer
        return answer["result"]

    async def rest(self) -> list[Message]:
        """Read to the end; return what came."""
        assert self.process.stdout is not None
        came: list[Message] = []
        while not self.process.stdout.at_eof():
            came += await self.read()
        return came

    def take_at_most(self, count: int) -> None:
        """Take so many bytes off the pipe at a time from now on, and those only when `read` asks."""
        self._transport().get_pipe_transport(1).max_size = count
        vars(self.process.stdout)["_limit"] = count - 1  # what asyncio would read ahead

    def hang_up(self) -> None:
        """Close the plugin's standard input at once; what it has not taken yet is dropped."""
        assert self.process.stdin is not None
        self.process.stdin.transport.abort()

    def stop_reading(self) -> None:
        """Close the plugin's standard output at this end: it breaks when the plugin writes."""
        self._transport().get_pipe_transport(1).close()

    async def gone(self, within_s: float = LEAVES_IN_S) -> int:
        """Wait for the end of the process, which must come in time; return its exit code."""
        async with asyncio.timeout(within_s):
            await asyncio.shield(self._stderr)  # it ends with the process, though its output may be unread
        await self.rest()
        return await self.process.wait()

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    def memory_mib(self, which: str = "VmHWM") -> float:
        """What the process takes: VmHWM at its most, VmRSS now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        line = next(line for line in status.splitlines() if line.startswith(f"{which}:"))
        return int(line.split()[1]) / 1024

    async def end(self) -> None:
        """Kill what is left."""
        if self.process.returncode is None:
            self.process.kill()
        await self._stderr
        self._transport().close()
        await self.process.wait()

    def _messages(self) -> Iterable[Message]:
        """Take whole messages off what was read. By hand: what is tested must not judge itself."""
        start, mark = 0, b"\n" if self.framing is Framing.NDJSON else b"\r\n\r\n"
        while (end := self._unframed.find(mark, start)) >= 0:
            begin, after = start, end + 1
            if self.framing is Framing.CONTENT_LENGTH:
                begin = end + len(mark)
                after = end = begin + int(self._unframed[start:begin].removeprefix(b"Content-Length: "))
            if after > len(self._unframed):
                break
            yield msgspec.json.decode(self._unframed[begin:end])
            start = after
        del self._unframed[:start]

    def _transport(self) -> Any:  # noqa: ANN401  asyncio has no public name for it, nor another way to one pipe
        return vars(self.process)["_transport"]

    async def _keep_stderr(self) -> None:
        assert self.process.stderr is not None
        while data := await self.process.stderr.read(_READ_BYTES):
            self.stderr += data


@asynccontextmanager
async def raw_host(
    environ: Mapping[str, str], config: Mapping[str, object] | None = None, *, framing: Framing = Framing.NDJSON
) -> AsyncGenerator[RawHost]:
    """Launch the plugin as its manifest says; with a configuration, initialize it. What is left is killed."""
    asked = launch(find(), environ=environ)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *asked.argv, stdin=pipe, stdout=pipe, stderr=pipe, cwd=asked.cwd, env=dict(asked.environ)
    )
    host = RawHost(process, framing)
    try:
        if config is not None:
            await host.result("initialize", {"protocol_version": 1, "config": config})
        yield host
    finally:
        await host.end()
