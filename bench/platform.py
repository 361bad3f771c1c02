"""A loopback platform in a process of its own: `python -m bench.platform RECORDS`.

Prints its URL, and a line more once it has so many records.
"""

import asyncio
import sys

from plugin.loopback.platform import LoopbackPlatform

TOKEN = "loopback-token"  # noqa: S105 - the loopback platform's made-up one
FOR_EVER_S = 3600.0


async def main(records: int) -> None:
    """Serve until killed."""
    async with LoopbackPlatform(tokens=(TOKEN,)) as platform:
        print(platform.url, flush=True)  # noqa: T201 - what starts this reads it
        await platform.wait_until(lambda served: 0 < records <= len(served.records), FOR_EVER_S)
        print("all are here", flush=True)  # noqa: T201 - and this too
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
