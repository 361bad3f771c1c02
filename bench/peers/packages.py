"""Bare: the packages that the job requires, each loaded and made ready as the plugin has it idle, and nothing else.

Of jsonrpcserver only the modules that dispatch, without the validator and the monads that its package imports.
"""

import asyncio
import sqlite3
import sys
import tempfile
from importlib.util import find_spec, module_from_spec
from pathlib import Path

import aiohttp
import httpx
import msgspec
from httpx_aiohttp import AiohttpTransport
from msgspec import Struct

for name in ("jsonrpcserver", "oslash"):
    sys.modules[name] = module_from_spec(find_spec(name))
from jsonrpcserver import dispatcher, request, result  # noqa: E402 - see above


class Params(Struct):
    """What is called with, and what comes back."""

    agent_id: str
    n: int


class Request(Struct):
    """The only message that this server knows."""

    id: int
    params: Params


def connected() -> AiohttpTransport:
    """Prepare the client, its authorities loaded; as in the idle plugin, nothing is sent."""
    tls = httpx.create_ssl_context(verify=True, trust_env=False)
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls), trust_env=False)
    return AiohttpTransport(verify=tls, trust_env=False, client=session)


def opened(path: Path) -> sqlite3.Connection:
    """Open a database that keeps what it committed, and commit."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("CREATE TABLE work (id TEXT PRIMARY KEY, body BLOB) WITHOUT ROWID")
    db.execute("INSERT INTO work VALUES ('task', x'00')")
    return db


def echo(params: Params) -> object:
    """Answer with the params."""
    return result.Success(params)


async def serve(path: Path) -> None:
    """Answer each line, with all that was loaded kept."""
    kept = connected(), opened(path)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, sys.stdout)
    writer = asyncio.StreamWriter(transport, protocol, None, loop)
    decoder, encoder, call = msgspec.json.Decoder(Request), msgspec.json.Encoder(), request.Request("echo", [], None)
    while line := await reader.readline():
        asked = decoder.decode(line)
        answer = dispatcher.call(call, asked.params, echo)
        writer.write(encoder.encode({"jsonrpc": "2.0", "id": asked.id, "result": answer._value.result}) + b"\n")  # noqa: SLF001 - there is no public way to it
        await writer.drain()
    del kept


with tempfile.TemporaryDirectory() as folder:
    asyncio.run(serve(Path(folder) / "bare.db"))
