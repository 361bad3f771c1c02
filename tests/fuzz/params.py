"""Params of every method that the plugin serves, under arbitrary JSON: they fit, or the refusal names a path.

The first byte chooses the method. When the second is 1 the params are built from the rest, else the rest is their JSON.
For a push the records that would be stored are made as well.
"""

import json

import msgspec

from plugin.app import App
from plugin.errors import BadParams
from plugin.presence.status import AgentStateChangedParams
from plugin.store.interface import Record
from plugin.sync.params import node_of
from plugin.sync.push import PushParams
from plugin.sync.record import make_record, parse_dispatches
from protocol.errors import Code, ErrorData, RpcError
from protocol.messages import Request, decode, encode_error
from protocol.methods import convert_params
from tests.fuzz.values import BUILT, Source, build

CHOICES = 2
METHODS = tuple(App(environ={"HOME": "/nonexistent"}).table)
PUSH = next(index for index, method in enumerate(METHODS) if method.name == "agentic.sync.push")
NAMES = (
    *sorted({name for method in METHODS for name in method.fields}),
    *("_meta", "repo", "workspace", "id", "agent", "state", "unknown"),
)
WORDS = (
    *(f'"{name}":'.encode() for name in NAMES),
    *(
        b'"repo":"',
        b'"workspace":"',
        b'"id":',
        b"null",
        b"true",
        b"1e400",
        b"9223372036854775808",
        b'"[{\\"repo\\":1}]"',
    ),
)
SEEDS = (
    *(bytes([index, 0]) + b"{}" for index in range(len(METHODS))),
    *(bytes([index, BUILT, 7, 2, 0, 4, 0, 2, 1, 6, 1, 0, 7, 2, 0, 4, 0]) for index in range(len(METHODS))),
    bytes([PUSH, 0]) + b'{"agent_id":"a","dispatches":[{"repo":"core","id":1.0,"runs":1e2}],"_meta":{"x":1}}',
    bytes([PUSH, 0]) + b'{"agent-id":"a","fleet-node-id":" 12 ","dispatches":"{\\"workspace\\":\\"w\\"}"}',
    bytes([PUSH, 0]) + b'["a",null,[{"repo":"core"},[]],false]',
    bytes([len(METHODS) - 1, 0]) + b'{"states":[{"agent_id":"a","state":"busy"}],"agent_id":"b","state":1}',
)
FOUND: tuple[bytes, ...] = ()


def one_input(data: bytes) -> None:
    """Convert params of one call; raise AssertionError where a refusal does not say what it must."""
    if len(data) < CHOICES:
        return
    text = json.dumps(build(Source(data[CHOICES:]), NAMES)).encode() if data[1] == BUILT else data[CHOICES:]
    request = decode(b'{"jsonrpc":"2.0","id":1,"method":"x","params":%b}' % text)
    if not isinstance(request, Request):
        return
    method = METHODS[data[0] % len(METHODS)]
    try:
        params = convert_params(method, request.params)
    except RpcError as error:
        check_refusal(error)
        return
    assert isinstance(params, method.params)
    match params:
        case PushParams():
            check_push(params)
        case AgentStateChangedParams():
            assert all(isinstance(agent, str) for agent, _ in params.changes())
        case _:
            pass


def check_refusal(error: RpcError) -> None:
    """A refusal is -32602 with a path and what was expected, and can be sent."""
    assert error.code == Code.INVALID_PARAMS
    assert isinstance(error.data, ErrorData)
    assert isinstance(error.data.path, str)
    assert error.data.path.startswith("$")
    assert isinstance(error.data.detail, str)
    encode_error(1, error)


def check_push(params: PushParams) -> None:
    """What a push would store is a record that makes itself again, or is refused by its path."""
    records: list[Record] = []
    path: str | None = "$"
    try:
        node = node_of(params.fleet_node_id)
        given = [] if params.dispatches is None else parse_dispatches(params.dispatches)
        records = [make_record(obj, fleet_node_id=node) for obj in given]
    except BadParams as error:
        path = error.path
    assert path is not None
    assert path.startswith("$")
    for record in records:
        again = make_record(msgspec.json.decode(record.body))
        assert (again.id, again.fingerprint, again.body) == (record.id, record.fingerprint, record.body)
