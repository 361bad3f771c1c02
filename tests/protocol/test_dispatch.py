import asyncio
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from protocol.dispatch import Dispatcher, new_trace_id
from protocol.errors import Code, ErrorData, PeerClosed, RpcError
from protocol.messages import Id, Notification, Params, Request
from protocol.methods import Context, Method, MethodTable
from tests.support.stage import Listener
from tests.support.wires import Json

ROOT = Path(__file__).parents[2]
SECRET = "hunter2"


class Nothing(Struct, frozen=True):
    pass


class Pair(Struct, frozen=True):
    a: int
    b: int = 0


class OwnError(Exception):
    pass


async def add(_context: Context, params: Pair) -> int:
    return params.a + params.b


def raising(error: BaseException) -> Method[Any]:
    async def fail(_context: Context, _params: Nothing) -> None:
        raise error

    return Method(name="fail", handler=fail, params=Nothing)


def returning(value: object) -> Method[Any]:
    async def give(_context: Context, _params: Nothing) -> object:
        return value

    return Method(name="give", handler=give, params=Nothing)


ADD: Method[Any] = Method(name="add", handler=add, params=Pair, aliases=("plus",))


def translate(error: Exception) -> RpcError | None:
    return RpcError(-32010, "Mine", ErrorData(kind="mine")) if isinstance(error, OwnError) else None


def dispatcher(*methods: Method[Any]) -> Dispatcher:
    return Dispatcher(MethodTable(methods), translate=translate, trace_id=lambda: "trace-1")


async def run(dispatcher: Dispatcher, call: Request | Notification, context: Context) -> bytes | None:
    return await dispatcher.run(call, context)


async def dispatch(method: Method[Any], name: str | None = None, params: Params = None, id_: Id = 1) -> Json:
    name = name or method.name
    context = Context(Listener(), name, id_, params)
    payload = await run(dispatcher(method), Request(id_, name, params, 0), context)
    assert payload is not None
    answer = json.loads(payload)
    assert answer.pop("jsonrpc") == "2.0"
    assert answer.pop("id") == id_
    return answer


async def notify(method: Method[Any], name: str | None = None, params: Params = None) -> None:
    name = name or method.name
    context = Context(Listener(), name, None, params)
    assert await run(dispatcher(method), Notification(name, params, 0), context) is None


async def test_the_handler_gets_typed_params_and_its_result_is_the_answer() -> None:
    assert await dispatch(ADD, params={"a": 1, "b": 2}) == {"result": 3}
    assert await dispatch(ADD, params=[1, 2], id_="x") == {"result": 3}
    assert await dispatch(ADD, "plus", [1]) == {"result": 1}


@pytest.mark.parametrize("value", [None, 0, "", [], {}, [None], Pair(1), {"context": 1, "params": 2, "self": 3}])
async def test_any_result_that_json_has_is_passed_on(value: object) -> None:
    expected = {"a": 1, "b": 0} if isinstance(value, Pair) else value
    assert await dispatch(returning(value)) == {"result": expected}


@pytest.mark.parametrize("kind", ["at once", "later", "waits"])
async def test_a_handler_may_answer_at_once_or_later(kind: str) -> None:
    async def later(value: int) -> int:
        if kind == "waits":
            await asyncio.sleep(0)
        if value < 0:
            raise OwnError
        return value

    def give(_context: Context, params: Pair) -> object:
        if kind != "at once":
            return later(params.a)
        if params.a < 0:
            raise OwnError
        return params.a

    method = Method(name="give", handler=give, params=Pair)
    assert await dispatch(method, params=[7]) == {"result": 7}
    assert (await dispatch(method, params=[-1]))["error"]["code"] == -32010
    mute = Method(name="give", handler=give, params=Pair, notification=True)
    assert await dispatch(mute, params=[7]) == {"result": None}
    await notify(method, params=[7])


async def test_a_method_for_notifications_has_no_result() -> None:
    async def give(_context: Context, _params: Nothing) -> int:
        return 5

    method = Method(name="give", handler=give, params=Nothing, notification=True)
    assert await dispatch(method) == {"result": None}


async def test_an_unknown_method_is_named() -> None:
    answer = await dispatch(ADD, "subtract" * 1_000)
    assert answer["error"]["code"] == Code.METHOD_NOT_FOUND
    assert answer["error"]["data"]["kind"] == "method_not_found"
    assert "subtract" in answer["error"]["data"]["detail"]
    assert len(json.dumps(answer)) < 400


async def test_params_that_do_not_fit_are_refused_before_the_handler() -> None:
    answer = await dispatch(ADD, params={"a": "x"})
    assert answer["error"]["code"] == Code.INVALID_PARAMS
    assert answer["error"]["data"]["path"] == "$.a"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RpcError(7, "Seven"), {"code": 7, "message": "Seven"}),
        (RpcError(7, "Seven", {"x": [1]}), {"code": 7, "message": "Seven", "data": {"x": [1]}}),
        (PeerClosed("gone"), {"code": -32000, "message": "gone", "data": {"kind": "closed", "retryable": True}}),
        (OwnError(SECRET), {"code": -32010, "message": "Mine", "data": {"kind": "mine", "retryable": False}}),
    ],
)
async def test_errors_for_the_wire_are_passed_on(error: Exception, expected: object) -> None:
    assert await dispatch(raising(error)) == {"error": expected}


@pytest.mark.parametrize(
    "error", [ValueError(SECRET), ExceptionGroup(SECRET, [RpcError(1, SECRET)]), RecursionError(SECRET), TimeoutError()]
)
async def test_any_other_exception_is_internal_and_only_the_log_knows_more(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await dispatch(raising(error))
    data = {"kind": "internal", "retryable": False, "trace_id": "trace-1"}
    assert answer == {"error": {"code": Code.INTERNAL_ERROR, "message": "Internal error", "data": data}}
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert record.exc_info[1] is error
    assert vars(record)["fields"] == {"method": "fail", "trace_id": "trace-1"}


@pytest.mark.parametrize("method", [returning(object()), raising(RpcError(1, "x", object()))])
async def test_what_json_cannot_carry_is_internal(method: Method[Any], caplog: pytest.LogCaptureFixture) -> None:
    answer = await dispatch(method)
    assert answer["error"]["code"] == Code.INTERNAL_ERROR
    assert answer["error"]["data"]["trace_id"] == "trace-1"
    assert len(caplog.records) == 1


async def test_not_even_a_translation_that_fails_tells_what_happened(caplog: pytest.LogCaptureFixture) -> None:
    def broken(error: Exception) -> RpcError | None:
        raise ValueError(SECRET) from error

    faulty = Dispatcher(MethodTable([raising(OwnError())]), translate=broken, trace_id=lambda: "trace-1")
    payload = await run(faulty, Request(1, "fail", None, 0), Context(Listener(), "fail", 1, None))
    assert payload is not None
    assert SECRET.encode() not in payload
    error = json.loads(payload)["error"]
    assert (error["code"], error["data"]["trace_id"]) == (Code.INTERNAL_ERROR, "trace-1")
    assert SECRET in caplog.text


async def test_a_notification_is_never_answered_but_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        await notify(ADD, params=[1])
        await notify(returning(object()))
        assert caplog.records == []
        await notify(ADD, "unknown")
        await notify(ADD, params={"a": "x"})
        await notify(raising(RpcError(1, "x")))
        await notify(raising(ValueError(SECRET)))
    assert [record.levelno for record in caplog.records] == [
        logging.DEBUG, logging.WARNING, logging.WARNING, logging.ERROR, logging.WARNING,
    ]  # fmt: skip


@pytest.mark.parametrize("error", [asyncio.CancelledError(), KeyboardInterrupt(), SystemExit()])
async def test_what_must_get_out_gets_out(error: BaseException) -> None:
    with pytest.raises(type(error)):
        await dispatch(raising(error))


async def test_the_handler_is_given_the_context() -> None:
    seen: list[Context] = []

    async def look(context: Context, _params: Nothing) -> None:
        seen.append(context)

    context = Context(Listener(), "look", 1, None)
    table = MethodTable([Method(name="look", handler=look, params=Nothing)])
    await run(Dispatcher(table), Request(1, "look", None, 0), context)
    assert seen == [context]


def test_trace_ids_differ() -> None:
    assert len({new_trace_id() for _ in range(100)}) == 100


def python(program: str) -> str:
    command = [sys.executable, "-W", "error", "-c", program]
    return subprocess.run(command, capture_output=True, check=True, cwd=ROOT, text=True, timeout=60).stdout


LOAD = """
import asyncio, sys
from msgspec import Struct
from protocol.dispatch import Dispatcher
from protocol.messages import Request
from protocol.methods import Context, Method, MethodTable
class Nothing(Struct): pass
async def one(context, params): return 1
table = MethodTable([Method(name="one", handler=one, params=Nothing)])
def dispatch():
    dispatcher = Dispatcher(table)
    return asyncio.run(dispatcher.run(Request(1, "one", None, 0), Context(None, "one", 1, None)))
"""


def test_the_library_is_imported_late_and_without_what_is_not_used_of_it() -> None:
    program = f"{LOAD}\nassert not any('jsonrpc' in name for name in sys.modules)\nprint(dispatch())"
    program += "\nassert 'jsonrpcserver.dispatcher' in sys.modules"
    program += "\nassert not {'jsonrpcserver', 'jsonschema'} & set(sys.modules)"
    assert '"result":1' in python(program)


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_the_whole_library_can_be_imported_besides(*, first: bool) -> None:
    whole = (
        "import warnings\nwith warnings.catch_warnings():\n warnings.simplefilter('ignore')\n import jsonrpcserver\n"
    )
    whole += "print(jsonrpcserver.dispatch('[]'))"
    program = f"{LOAD}\n" + "\n".join([whole, "print(dispatch())"] if first else ["print(dispatch())", whole])
    output = python(program)
    assert '"result":1' in output
    assert "-32600" in output


def test_without_the_library_the_first_call_says_so() -> None:
    hide = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name == "jsonrpcserver" else find(name)
try:
    dispatch()
except ModuleNotFoundError as error:
    print(error.name)
"""
    assert python(LOAD + hide) == "jsonrpcserver\n"
