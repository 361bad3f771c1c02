"""A host for this machine: it launches the plugin from its manifest as a subprocess and plays the agents."""

import asyncio
import os
import signal
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from plugin.host import AgentState, LogParams, ReadAgentStateParams
from plugin.launch import find, launch
from plugin.manifest import ProgressParams
from protocol.errors import Code, ErrorData, RpcError
from protocol.framing import Framing
from protocol.methods import Context, Method, MethodTable
from protocol.peer import Peer
from protocol.stdio import open_fds

MAX_LOGS = 10_000
MAX_STDERR_LINES = 1_000


class LoopbackHost:
    """Launch the plugin, answer its calls for agents, keep its log lines; `async with` starts and stops it.

    `agents` says what each agent is doing; an agent that isn't in it is an error to the plugin. `reads` counts how
    often each was asked for. `stderr` holds the last lines that the plugin wrote there.
    """

    def __init__(
        self,
        *,
        environ: Mapping[str, str],
        config: Mapping[str, object] | None = None,
        manifest_path: Path | None = None,
        framing: Framing = Framing.NDJSON,
        initialize: bool = True,
    ) -> None:
        self.agents: dict[str, str] = {}
        self.reads: Counter[str] = Counter()
        self.logs: deque[LogParams] = deque(maxlen=MAX_LOGS)
        self.progress: list[ProgressParams] = []
        self.stderr: deque[str] = deque(maxlen=MAX_STDERR_LINES)
        self.answer: Callable[[str], Awaitable[object]] = self._answer
        self._environ = environ
        self._config = config
        self._manifest_path = manifest_path or find()
        self._framing = framing
        self._initialize = initialize
        self._changed = asyncio.Condition()
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            if self._process is not None:
                await self.kill()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def process(self) -> asyncio.subprocess.Process:
        """The plugin's process; there is one once `start` was called."""
        if self._process is None:
            raise RuntimeError("The plugin was not started")
        return self._process

    @property
    def pid(self) -> int:
        """The plugin's process."""
        return self.process.pid

    async def start(self) -> None:
        """Launch the plugin as its manifest says, and initialize it with the configuration."""
        asked = launch(self._manifest_path, environ=self._environ)
        plugin_in, our_out = os.pipe()
        our_in, plugin_out = os.pipe()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *asked.argv,
                stdin=plugin_in,
                stdout=plugin_out,
                stderr=asyncio.subprocess.PIPE,
                cwd=asked.cwd,
                env=dict(asked.environ),
            )
        finally:
            os.close(plugin_in)
            os.close(plugin_out)
        self.peer = Peer(await open_fds(our_in, our_out), self._table(), framing=self._framing)
        self._tasks = [asyncio.create_task(self.peer.run()), asyncio.create_task(self._read_stderr())]
        if self._initialize:
            params: dict[str, object] = {"protocol_version": 1, "host": {"name": "loopback"}}
            if self._config is not None:
                params["config"] = self._config
            await self.call("initialize", params)
            await self.peer.notify("initialized", None)

    async def call(self, method: str, params: object = None, *, timeout_s: float = 30.0) -> object:
        """Call a method of the plugin; raise RpcError on an error answer."""
        return await self.peer.call(method, params, timeout_s=timeout_s, result=object)

    async def set_state(self, agent_id: str, state: str, *, tell: bool = True) -> None:
        """Let an agent do something; `tell` also sends AgentStateChanged."""
        self.agents[agent_id] = state
        if tell:
            await self.peer.notify("AgentStateChanged", {"agent_id": agent_id, "state": state})

    async def stop(self, *, timeout_s: float = 15.0) -> int:
        """Shut the plugin down in order, or kill it when it does not go; return its exit code."""
        if self.process.returncode is None:
            try:
                async with asyncio.timeout(timeout_s):
                    await self.call("shutdown", timeout_s=timeout_s)
                    await self.peer.notify("exit", None)
                    await self.process.wait()
            except (TimeoutError, RpcError):
                await self.kill()
        return await self._gone()

    async def close_input(self) -> int:
        """Close the pipe to the plugin, as a host that ends does; wait for its end and return its exit code."""
        await self.peer.close()
        return await self._gone()

    async def terminate(self) -> int:
        """Send SIGTERM, wait for the end, return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return await self._gone()

    async def kill(self) -> int:
        """Kill the plugin with SIGKILL."""
        if self.process.returncode is None:
            self.process.kill()
        return await self._gone()

    async def wait_for_log(self, found: Callable[[LogParams], bool], *, timeout_s: float = 20.0) -> LogParams:
        """Wait for a log line that has come or will come."""
        async with asyncio.timeout(timeout_s), self._changed:
            while True:
                for line in self.logs:
                    if found(line):
                        return line
                await self._changed.wait()

    async def wait_for_reads(self, agent_id: str, count: int, *, timeout_s: float = 20.0) -> None:
        """Wait until the plugin has asked for an agent that often."""
        async with asyncio.timeout(timeout_s), self._changed:
            await self._changed.wait_for(lambda: self.reads[agent_id] >= count)

    async def _gone(self) -> int:
        code = await self.process.wait()
        await self.peer.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        return code

    async def _read_stderr(self) -> None:
        stderr = self.process.stderr
        if stderr is None:
            return
        while line := await stderr.readline():
            self.stderr.append(line.decode(errors="replace").rstrip())

    async def _answer(self, agent_id: str) -> object:
        state = self.agents.get(agent_id)
        if state is None:
            raise RpcError(Code.INVALID_PARAMS, f"No agent {agent_id!r} here", ErrorData(kind="unknown_agent"))
        return AgentState(state=state)

    async def _read_agent_state(self, _context: Context, params: ReadAgentStateParams) -> object:
        self.reads[params.agent_id] += 1
        async with self._changed:
            self._changed.notify_all()
        return await self.answer(params.agent_id)

    async def _log(self, _context: Context, params: LogParams) -> None:
        self.logs.append(params)
        async with self._changed:
            self._changed.notify_all()

    async def _progress(self, _context: Context, params: ProgressParams) -> None:
        self.progress.append(params)

    def _table(self) -> MethodTable:
        return MethodTable(
            [
                Method(
                    name="ReadAgentState",
                    handler=self._read_agent_state,
                    params=ReadAgentStateParams,
                    result=AgentState,
                    title="Read agent state",
                    description="Say what an agent is doing.",
                ),
                Method(
                    name="log",
                    handler=self._log,
                    params=LogParams,
                    notification=True,
                    title="Log",
                    description="Take a log line.",
                ),
                Method(
                    name="$/progress",
                    handler=self._progress,
                    params=ProgressParams,
                    notification=True,
                    title="Progress",
                    description="Take how far a call is.",
                ),
            ]
        )
