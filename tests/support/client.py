"""A client for tests of servers: the plugin's own HTTP layer, closed at the end."""

import contextlib
from collections.abc import AsyncGenerator

from plugin.web import Reach, Web


@contextlib.asynccontextmanager
async def opened(reach: Reach | None = None) -> AsyncGenerator[Web]:
    """Open a client that is as patient as a busy machine needs."""
    web = Web(reach or Reach(timeout_s=20))
    try:
        yield web
    finally:
        await web.close()
