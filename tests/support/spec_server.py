"""A server of the methods that the JSON-RPC specification's examples call, over standard input and output.

It needs `protocol` alone. Start it with the word of a framing to force that.
"""

import asyncio
import sys

from protocol.claim import claim

WIRE = claim()

from msgspec import Struct  # noqa: E402 -- the wire is claimed before anything that might print is imported

from protocol.framing import Framing  # noqa: E402
from protocol.methods import Context, Method, MethodTable  # noqa: E402
from protocol.peer import Peer  # noqa: E402
from protocol.stdio import open_stream  # noqa: E402


class Pair(Struct, frozen=True):
    minuend: int
    subtrahend: int


class Numbers(Struct, frozen=True):
    a: int = 0
    b: int = 0
    c: int = 0
    d: int = 0
    e: int = 0


class Nothing(Struct, frozen=True):
    pass


async def subtract(_context: Context, params: Pair) -> int:
    print("a stray print", params)  # noqa: T201 -- it must not reach the wire
    return params.minuend - params.subtrahend


async def add(_context: Context, params: Numbers) -> int:
    return params.a + params.b + params.c + params.d + params.e


async def get_data(_context: Context, _params: Nothing) -> list[object]:
    await asyncio.sleep(0)
    return ["hello", 5]


TABLE = MethodTable(
    [
        Method(name="subtract", handler=subtract, params=Pair, result=int),
        Method(name="sum", handler=add, params=Numbers, result=int),
        Method(name="update", handler=add, params=Numbers, notification=True),
        Method(name="notify_hello", handler=add, params=Numbers, notification=True),
        Method(name="notify_sum", handler=add, params=Numbers, notification=True),
        Method(name="get_data", handler=get_data, params=Nothing, result=list[object]),
    ]
)


async def main() -> None:
    framing = Framing(sys.argv[1]) if len(sys.argv) > 1 else None
    peer = Peer(await open_stream(WIRE), TABLE, framing=framing)
    await peer.run()
    await peer.drain(10)
    await peer.close()


asyncio.run(main())
