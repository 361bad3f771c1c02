"""The examples of the JSON-RPC 2.0 specification, section 7, over a real process's standard input and output."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from protocol.framing import Decoder, Framing, encode
from tests.support.wires import Json

ROOT = Path(__file__).parents[2]
SERVER = ROOT / "tests" / "support" / "spec_server.py"

Check = Callable[[Json], bool]


def result(value: object, id_: object) -> Check:
    return lambda answer: answer == {"jsonrpc": "2.0", "result": value, "id": id_}


def error(code: int, message: str, id_: object) -> Check:
    def check(answer: Json) -> bool:
        about = answer.get("error", {})
        return answer.keys() == {"jsonrpc", "error", "id"} and (about["code"], about["message"], answer["id"]) == (
            code,
            message,
            id_,
        )

    return check


def each(*checks: Check) -> Check:
    """Check an array: for each of the checks a member, in any order."""

    def check(answer: Json) -> bool:
        members: list[Json] = answer
        return len(members) == len(checks) and all(any(map(one, members)) for one in checks)

    return check


INVALID = error(-32600, "Invalid Request", None)

EXAMPLES: dict[str, tuple[str, Check | None]] = {
    "positional": ('{"jsonrpc": "2.0", "method": "subtract", "params": [42, 23], "id": 1}', result(19, 1)),
    "positional the other way": (
        '{"jsonrpc": "2.0", "method": "subtract", "params": [23, 42], "id": 2}',
        result(-19, 2),
    ),
    "named": (
        '{"jsonrpc": "2.0", "method": "subtract", "params": {"subtrahend": 23, "minuend": 42}, "id": 3}',
        result(19, 3),
    ),
    "named the other way": (
        '{"jsonrpc": "2.0", "method": "subtract", "params": {"minuend": 42, "subtrahend": 23}, "id": 4}',
        result(19, 4),
    ),
    "notification": ('{"jsonrpc": "2.0", "method": "update", "params": [1,2,3,4,5]}', None),
    "notification of nothing known": ('{"jsonrpc": "2.0", "method": "foobar"}', None),
    "unknown method": (
        '{"jsonrpc": "2.0", "method": "foobar", "id": "1"}',
        error(-32601, "Method not found", "1"),
    ),
    "invalid JSON": (
        '{"jsonrpc": "2.0", "method": "foobar, "params": "bar", "baz]',
        error(-32700, "Parse error", None),
    ),
    "invalid request": ('{"jsonrpc": "2.0", "method": 1, "params": "bar"}', INVALID),
    "batch of invalid JSON": (
        '[{"jsonrpc": "2.0", "method": "sum", "params": [1,2,4], "id": "1"},{"jsonrpc": "2.0", "method"]',
        error(-32700, "Parse error", None),
    ),
    "empty batch": ("[]", INVALID),
    "batch of one invalid": ("[1]", each(INVALID)),
    "batch of three invalid": ("[1,2,3]", each(INVALID, INVALID, INVALID)),
    "batch of everything": (
        """[
        {"jsonrpc": "2.0", "method": "sum", "params": [1,2,4], "id": "1"},
        {"jsonrpc": "2.0", "method": "notify_hello", "params": [7]},
        {"jsonrpc": "2.0", "method": "subtract", "params": [42,23], "id": "2"},
        {"foo": "boo"},
        {"jsonrpc": "2.0", "method": "foo.get", "params": {"name": "myself"}, "id": "5"},
        {"jsonrpc": "2.0", "method": "get_data", "id": "9"}
        ]""",
        each(
            result(7, "1"), result(19, "2"), INVALID, error(-32601, "Method not found", "5"), result(["hello", 5], "9")
        ),
    ),
    "batch of notifications": (
        """[
        {"jsonrpc": "2.0", "method": "notify_sum", "params": [1,2,4]},
        {"jsonrpc": "2.0", "method": "notify_hello", "params": [7]}
        ]""",
        None,
    ),
}

MARKER = '{"jsonrpc": "2.0", "method": "sum", "params": [1, 1], "id": "marker"}'


class Server:
    """The server as a process, one message at a time."""

    def __init__(self, process: subprocess.Popen[bytes], framing: Framing) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin, self._stdout = process.stdin, process.stdout
        self._framing = framing
        self._decoder = Decoder(2**24, framing)
        self._frames: list[bytes] = []

    def send(self, text: str) -> None:
        self._stdin.write(encode(text.replace("\n", " ").encode(), self._framing))
        self._stdin.flush()

    def receive(self) -> Json:
        while not self._frames:
            data = os.read(self._stdout.fileno(), 65_536)
            assert data, "the server has ended"
            self._frames += [frame for frame in self._decoder.feed(data) if isinstance(frame, bytes)]
        return json.loads(self._frames.pop(0))


@contextmanager
def start(*arguments: str, framing: Framing) -> Generator[Server]:
    command = [sys.executable, str(SERVER), *arguments]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=environ, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        yield Server(process, framing)
        rest, complaints = process.communicate(timeout=50)
        assert rest == b""
        assert process.returncode == 0
        assert b"Traceback" not in complaints


@pytest.fixture(scope="module", params=Framing)
def server(request: pytest.FixtureRequest) -> Generator[Server]:
    with start(framing=request.param) as started:
        yield started


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_of_the_specification_is_answered_as_it_says(server: Server, name: str) -> None:
    text, check = EXAMPLES[name]
    server.send(text)
    if check is not None:
        answer = server.receive()
        assert check(answer), answer
    server.send(MARKER)
    assert server.receive() == {"jsonrpc": "2.0", "result": 2, "id": "marker"}


def test_there_are_fifteen_examples() -> None:
    assert len(EXAMPLES) == 15


def test_a_file_of_requests_becomes_a_file_of_answers(tmp_path: Path) -> None:
    requests = tmp_path / "in.jsonl"
    answers = tmp_path / "out.jsonl"
    lines = [f'{{"jsonrpc": "2.0", "method": "sum", "params": [{at}], "id": {at}}}' for at in range(3_000)]
    requests.write_text("\r\n".join(["\ufeff", *lines]), "utf-8")
    with requests.open("rb") as given, answers.open("wb") as taken:
        command = [sys.executable, str(SERVER)]
        done = subprocess.run(command, stdin=given, stdout=taken, cwd=ROOT, timeout=50, check=False)
    assert done.returncode == 0
    found = [json.loads(line) for line in answers.read_text().splitlines()]
    assert sorted(one["id"] for one in found) == list(range(3_000))
    assert all(one["result"] == one["id"] for one in found)


def test_a_forced_framing_is_spoken_whatever_comes() -> None:
    with start("content-length", framing=Framing.CONTENT_LENGTH) as started:
        started.send(MARKER)
        assert started.receive()["result"] == 2


HIDE_THE_PLUGIN = """
import importlib.abc, runpy, sys
class Wall(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"plugin", "httpx", "aiohttp", "platformdirs", "rich"}:
            raise ImportError(f"{name} must not be needed")
sys.meta_path.insert(0, Wall())
import pkgutil, protocol
for module in pkgutil.iter_modules(protocol.__path__, "protocol."):
    __import__(module.name)
runpy.run_path(sys.argv.pop())
"""


def test_the_protocol_works_without_the_plugin() -> None:
    command = [sys.executable, "-c", HIDE_THE_PLUGIN, str(SERVER)]
    done = subprocess.run(command, input=MARKER.encode(), capture_output=True, cwd=ROOT, timeout=50, check=False)
    assert json.loads(done.stdout) == {"jsonrpc": "2.0", "result": 2, "id": "marker"}, done.stderr
