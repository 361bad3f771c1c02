"""Guilds and their center as a process of its own, lean enough that it is never what limits a client.

Run as `python -m bench.guilds`: it prints its ports as JSON and ends with its input. The center issues every agent a
session in guilds g0, g1, ...; guilds share ten ports and differ by their path. Each answer comes 10 ms after its
request. What the benchmark asks beside the contract, at the center's port:

    POST /clear {"guilds": 10, "hung": ["g9"]}         forget all counts; so many guilds, some never answer
    POST /wait  {"puts": 9000, "except": ["g9"]}       answered once so many PUTs were, with {"at", "puts", "logins"}
    POST /log                                          every PUT answered since `clear`: [[user, status, at], ...]

`at` is the monotonic clock, which all processes of a machine share.
"""

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

DELAY_S = 0.010
PORTS = 10


class Asked(msgspec.Struct, frozen=True):
    """The bodies of all routes, with what each has; a default stands for the rest."""

    agent_id: str = ""
    status: str = ""
    guilds: int = PORTS
    hung: tuple[str, ...] = ()
    puts: int = 0
    without: tuple[str, ...] = msgspec.field(default=(), name="except")


class Count(msgspec.Struct, frozen=True):
    """How much was answered, and when the last of it was."""

    at: float
    puts: int
    logins: int


@dataclass
class Town:
    """All guilds, what they were told and who waits for it."""

    ports: list[int] = field(default_factory=list[int])
    guilds: int = PORTS
    hung: tuple[str, ...] = ()
    puts: Counter[str] = field(default_factory=Counter[str])
    logins: int = 0
    log: list[tuple[str, str, float]] = field(default_factory=list[tuple[str, str, float]])
    waiting: list[tuple[Asked, Callable[[object], None]]] = field(
        default_factory=list[tuple[Asked, Callable[[object], None]]]
    )

    def handle(self, path: str, asked: Asked, answer: Callable[[object], None]) -> None:
        """Serve one request; `answer` is called when its time has come."""
        loop = asyncio.get_running_loop()
        match path.split("/")[1:]:
            case [guild, "api", "agents", user, "presence"]:
                if guild not in self.hung:
                    loop.call_later(DELAY_S, self._shown, guild, user, asked.status, answer)
            case ["api", "auth", "agent", "session"]:
                loop.call_later(DELAY_S, self._logged_in, asked.agent_id, answer)
            case ["clear"]:
                self.guilds, self.hung, self.logins = asked.guilds, asked.hung, 0
                self.puts.clear()
                self.log.clear()
                answer({})
            case ["wait"]:
                self.waiting.append((asked, answer))
                self._tell()
            case ["log"]:
                answer(self.log)
            case _:
                raise ValueError(path)

    def _shown(self, guild: str, user: str, status: str, answer: Callable[[object], None]) -> None:
        answer({})
        self.puts[guild] += 1
        self.log.append((user, status, time.monotonic()))
        if self.waiting:
            self._tell()

    def _logged_in(self, agent: str, answer: Callable[[object], None]) -> None:
        self.logins += 1
        answer(
            {
                "user_id": f"user-{agent}",
                "guilds": [
                    {
                        "node_id": f"g{number}",
                        "endpoint": f"http://127.0.0.1:{self.ports[number % PORTS]}/g{number}",
                        "token": f"token-{number}-{agent}",
                    }
                    for number in range(self.guilds)
                ],
            }
        )

    def _tell(self) -> None:
        for waiting in self.waiting[:]:
            asked, answer = waiting
            puts = self.puts.total() - sum(self.puts[guild] for guild in asked.without)
            if puts >= asked.puts:
                self.waiting.remove(waiting)
                answer(Count(at=self.log[-1][2] if self.log else 0.0, puts=puts, logins=self.logins))


class Connection(asyncio.Protocol):
    """Just enough of HTTP/1.1: requests one after the other, each with the length of its body."""

    def __init__(self, town: Town) -> None:
        self._town = town
        self._read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the way to answer."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Serve what has come whole."""
        self._read += data
        head, found, rest = self._read.partition(b"\r\n\r\n")
        if not found:
            return
        _, _, after = head.lower().partition(b"\r\ncontent-length:")
        length = int(after.partition(b"\r\n")[0] or 0)
        if len(rest) < length:
            return
        self._read = rest[length:]
        path = head.split(b" ", 2)[1].decode()
        self._town.handle(path, msgspec.json.decode(rest[:length] or b"{}", type=Asked), self._answer)

    def _answer(self, value: object) -> None:
        body = msgspec.json.encode(value)
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        self._transport.write(head + body)


async def main() -> None:
    """Serve until the input ends."""
    town = Town()
    loop = asyncio.get_running_loop()
    for _ in range(PORTS + 1):
        server = await loop.create_server(lambda: Connection(town), "127.0.0.1", 0, backlog=2048)
        town.ports.append(server.sockets[0].getsockname()[1])
    sys.stdout.write(msgspec.json.encode(town.ports).decode() + "\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
