"""The least that draining a durable queue takes with the same packages: SQLite, httpx over aiohttp, msgspec.

Rows are read and checked, a claim is on the disk before it is sent, and what was acknowledged moves to the ledger in
one transaction. The disk is one thread's. While two agents' requests are out, those of two others are recorded, and
their next claimed, in one commit. Nothing fails here: whatever does is an exception.
"""

import asyncio
import hashlib
import sqlite3
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import aiohttp
import httpx
import msgspec
from httpx_aiohttp import AiohttpTransport

TABLES = """
CREATE TABLE outbox (row INTEGER PRIMARY KEY, agent TEXT, id TEXT, sha256 BLOB, body BLOB);
CREATE INDEX outbox_version ON outbox (id, sha256);
CREATE INDEX outbox_line ON outbox (agent, row);
CREATE TABLE batch (agent TEXT PRIMARY KEY, key TEXT, rows TEXT) WITHOUT ROWID;
CREATE TABLE ledger (url TEXT, id TEXT, sha256 BLOB, at_ms INTEGER, PRIMARY KEY (url, id)) WITHOUT ROWID;
CREATE TABLE history (id INTEGER PRIMARY KEY, agent TEXT, bytes INTEGER, at_ms INTEGER);
"""
TIMEOUT_S = 30.0


class Claim(NamedTuple):
    """An agent's next request, as it is on the disk; `rows` is the JSON text of their numbers."""

    agent: str
    key: str
    rows: str
    records: int
    body: bytes


class _Data(msgspec.Struct):
    synced: int


class _Answer(msgspec.Struct):
    data: _Data


def opened(path: Path, queued: Iterable[tuple[str, str, bytes]]) -> sqlite3.Connection:
    """Make a file that holds (agent, id, body) of records; each commit lasts."""
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA journal_mode = WAL").fetchall()
    db.execute("PRAGMA synchronous = FULL")
    db.executescript(TABLES)
    db.execute("BEGIN")
    rows = ((agent, name, hashlib.sha256(body).digest(), body) for agent, name, body in queued)
    db.executemany("INSERT INTO outbox (agent, id, sha256, body) VALUES (?, ?, ?, ?)", rows)
    db.execute("COMMIT")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return db


def left(db: sqlite3.Connection) -> tuple[int, int]:
    """Count what is queued or claimed, and the ledger."""
    queued, delivered = db.execute(
        "SELECT (SELECT count(*) FROM outbox) + (SELECT count(*) FROM batch), (SELECT count(*) FROM ledger)"
    ).fetchone()
    return queued, delivered


async def drain(db: sqlite3.Connection, url: str, token: str, *, agents: Sequence[str], most: int) -> None:
    """Send all that the agents have queued, so many records a request, two requests at once."""
    sending = asyncio.Lock()
    loop = asyncio.get_running_loop()
    transport = AiohttpTransport(client=lambda: aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()))
    decode = msgspec.json.Decoder(_Answer).decode
    extensions = {"timeout": httpx.Timeout(None).as_dict()}
    target = httpx.URL(f"{url}/v1/agent/sync")
    headers = {
        "authorization": f"Bearer {token}",
        "content-type": "application/json",
        "accept": "application/json",
        "accept-encoding": "identity",
    }

    async def send(claim: Claim) -> None:
        stream = httpx.ByteStream(claim.body)
        sent = headers | {"idempotency-key": claim.key}
        request = httpx.Request("POST", target, headers=sent, stream=stream, extensions=extensions)
        request.read()
        async with asyncio.timeout(TIMEOUT_S):
            response = await transport.handle_async_request(request)
            answer = decode(await response.aread())
            await response.aclose()
        assert response.is_success
        assert answer.data.synced == claim.records

    async def pair(thread: ThreadPoolExecutor, both: Sequence[str]) -> None:
        claims: list[Claim] = []
        while claims := await loop.run_in_executor(thread, _turn, db, url, claims, both, most):
            async with sending:
                await asyncio.gather(*map(send, claims))

    with ThreadPoolExecutor(1) as thread:
        async with asyncio.TaskGroup() as group:
            for first in range(0, len(agents), 2):
                group.create_task(pair(thread, agents[first : first + 2]))
    await transport.aclose()


def _turn(db: sqlite3.Connection, url: str, done: Sequence[Claim], agents: Sequence[str], most: int) -> list[Claim]:
    """Record what was acknowledged and claim what the agents send next: one commit."""
    now_ms = time.time_ns() // 1_000_000
    db.execute("BEGIN IMMEDIATE")
    for claim in done:
        db.execute(
            "INSERT INTO ledger SELECT ?, id, sha256, ? FROM outbox WHERE row IN (SELECT value FROM json_each(?))"
            " ON CONFLICT DO UPDATE SET sha256 = excluded.sha256, at_ms = excluded.at_ms",
            (url, now_ms, claim.rows),
        )
        db.execute("DELETE FROM outbox WHERE row IN (SELECT value FROM json_each(?))", (claim.rows,))
        db.execute("DELETE FROM batch WHERE agent = ?", (claim.agent,))
        db.execute("INSERT INTO history (agent, bytes, at_ms) VALUES (?, ?, ?)", (claim.agent, len(claim.body), now_ms))
    claims = [claim for agent in agents if (claim := _claimed(db, agent, most))]
    db.execute("COMMIT")
    return claims


def _claimed(db: sqlite3.Connection, agent: str, most: int) -> Claim | None:
    """Read, check and put together what goes next, and write down that it does."""
    found = db.execute("SELECT row, id, sha256, body FROM outbox WHERE agent = ? ORDER BY row LIMIT ?", (agent, most))
    members = found.fetchall()
    if not members:
        return None
    numbers, names, sums, bodies = zip(*members, strict=True)
    assert [hashlib.sha256(body).digest() for body in bodies] == list(sums)
    key = hashlib.sha256(msgspec.json.encode((agent, sorted(zip(names, sums, strict=True))))).hexdigest()
    rows = msgspec.json.encode(numbers).decode()
    db.execute("INSERT INTO batch VALUES (?, ?, ?)", (agent, key, rows))
    body = b'{"agent_id":%b,"dispatches":[%b]}' % (msgspec.json.encode(agent), b",".join(bodies))
    return Claim(agent, key, rows, len(members), body)
