"""One valid request to one answer, through jsonrpcserver; and the boundary where exceptions become error objects.

jsonrpcserver 5 gets whole batches, responses, null params and messages that it did not check itself wrong, and puts
the text of unknown exceptions on the wire. So it is given one call at a time, decoded and classified before, whose
method exists, and no exception but its own gets through to it.
"""

import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Coroutine
from types import CoroutineType
from typing import Any, Final, NamedTuple, TypeAlias, cast

from protocol.eager import Rest, begin
from protocol.errors import Code, EncodeError, ErrorData, RpcError
from protocol.messages import Notification, Request, encode_error, encode_result
from protocol.methods import Context, Method, MethodTable, convert_params

logger = logging.getLogger(__name__)

_LIBRARY: Final = "jsonrpcserver"
_MONADS: Final = "oslash"  # of which it needs one
_NAME_CHARS: Final = 64  # of a method's name, repeated to its sender

Translate: TypeAlias = Callable[[Exception], RpcError | None]
"""What turns an exception of the program into an error for the wire; None for one that it does not know."""


def new_trace_id() -> str:
    """Return a random id that joins an internal error on the wire with its log entry."""
    return os.urandom(8).hex()


def untranslated(_error: Exception) -> RpcError | None:
    """Know no exception."""
    return None


class Dispatcher:
    """Runs the handlers of a table.

    An RpcError that a handler raises is the answer; so is what `translate` makes of another exception. The rest, and
    results that JSON cannot carry, are -32603 with a trace id and without a word of the exception, which is logged.
    """

    def __init__(
        self,
        table: MethodTable,
        *,
        translate: Translate = untranslated,
        trace_id: Callable[[], str] = new_trace_id,
    ) -> None:
        self._table = table
        self._translate = translate
        self._trace_id = trace_id
        self._library: _Library | None = None
        self._entries: dict[str | None, _Entry] = {}  # None: of a method that does not exist

    def begin(self, call: Request | Notification, context: Context) -> "bytes | Unfinished | None":
        """Call the handler and take its first step; return the answer, None for a notification, or what is to come.

        Only cancellation gets out.
        """
        library = self._library or self._load()
        entry = self._entries.get(context.method) or self._entries[None]
        outcome = library.call(entry.request, context, entry.run)
        # Neither oslash's Either nor jsonrpcserver has a public way to what is inside.
        if isinstance(outcome, library.left):
            error = outcome._error.data  # noqa: SLF001
            # What is not from an entry is from the library's own boundary, and holds the text of an exception.
            return self._refuse(call, error if isinstance(error, RpcError) else self._internal(call.method, None))
        result = outcome._value.result  # noqa: SLF001
        if isinstance(result, Rest):
            return self._finish(call, cast("Rest[object]", result), mute=entry.mute)
        return self._answer(call, None if entry.mute else result)

    async def run(self, call: Request | Notification, context: Context) -> bytes | None:
        """Call the handler and see it through; only cancellation gets out."""
        answer = self.begin(call, context)
        return answer if answer is None or isinstance(answer, bytes) else await answer

    async def _finish(self, call: Request | Notification, waiting: Rest[object], *, mute: bool) -> bytes | None:
        try:
            result = await waiting
        except Exception as error:  # noqa: BLE001 -- as in an entry
            return self._refuse(call, self.explain(error, call.method))
        return self._answer(call, None if mute else result)

    def _answer(self, call: Request | Notification, result: object) -> bytes | None:
        if isinstance(call, Notification):
            return None
        try:
            return encode_result(call.id, result)
        except EncodeError as failure:
            return encode_error(call.id, self.explain(failure, call.method))

    def explain(self, error: Exception, method: str) -> RpcError:
        """Return the error object for an exception of the handler of `method`, and log what it does not tell."""
        if isinstance(error, RpcError):
            return error
        translated = self._translate(error)
        if translated is not None:
            return translated
        return self._internal(method, error)

    def _internal(self, method: str, error: Exception | None) -> RpcError:
        trace_id = self._trace_id()
        fields = {"method": method, "trace_id": trace_id}
        logger.error("A handler failed", exc_info=error, extra={"fields": fields})
        return RpcError(Code.INTERNAL_ERROR, "Internal error", ErrorData(kind="internal", trace_id=trace_id))

    def _refuse(self, call: Request | Notification, error: RpcError) -> bytes | None:
        if isinstance(call, Notification):
            level = logging.DEBUG if error.code == Code.METHOD_NOT_FOUND else logging.WARNING
            fields = {"method": call.method[:_NAME_CHARS], "code": error.code, "data": error.data}
            logger.log(level, "A notification could not be handled", extra={"fields": fields})
            return None
        try:
            return encode_error(call.id, error)
        except EncodeError as failure:
            return encode_error(call.id, self.explain(failure, call.method))

    def _load(self) -> "_Library":
        library = self._library = _load()

        def miss(context: Context, /) -> object:
            failure = not_found(context.method)
            return library.error(failure.code, failure.message, failure)

        self._entries[None] = _Entry(library.request("", [], None), miss)
        for method in self._table:
            entry = _entry(method, self.explain, library)
            self._entries.update(dict.fromkeys((method.name, *method.aliases), entry))
        return library


def not_found(method: str) -> RpcError:
    """Return the error for a method that is not in the table."""
    data = ErrorData(kind="method_not_found", detail=f"There is no method {method[:_NAME_CHARS]}")
    return RpcError(Code.METHOD_NOT_FOUND, "Method not found", data)


class _Library(NamedTuple):
    """What is used of jsonrpcserver, which has no complete types."""

    request: Callable[[str, list[Any], object], Any]
    call: Callable[[Any, Context, "_Run"], Any]
    right: Callable[[Any], Any]
    success: Callable[[object], Any]
    error: Callable[[int, str, object], Any]
    left: type


class _Entry(NamedTuple):
    """A handler in the form that jsonrpcserver calls: with its context, which holds the params, too.

    So the library's request is the same for all calls of a method, and it need not take params apart that it may not.
    The result of a handler that waits is its `Rest`: the library's own way to await it starts a handler too late to
    know whether it waits.
    """

    request: object
    run: "_Run"
    mute: bool = False


_Run: TypeAlias = Callable[[Context], object]
Unfinished: TypeAlias = Coroutine[Any, Any, bytes | None]
"""The answer of a handler that waits, to be awaited in the task that took its first step."""


def _entry(method: Method[Any], explain: Callable[[Exception, str], RpcError], library: _Library) -> _Entry:
    handler, right, success = method.handler, library.right, library.success

    def run(context: Context, /) -> object:
        try:
            result = handler(context, convert_params(method, context.params))
            if isinstance(result, CoroutineType):
                result = begin(cast("Coroutine[Any, Any, object]", result))
        except Exception as error:  # noqa: BLE001 -- whatever a handler raises becomes an error object here, or in _finish
            failure = explain(error, method.name)
            return library.error(failure.code, failure.message, failure)
        return right(success(result))

    return _Entry(library.request(method.name, [], None), run, method.notification)


def _load() -> _Library:
    """Import jsonrpcserver, when the first call needs it.

    Its package imports jsonschema for a validator that is not used here, and oslash every monad there is: many times
    the time of all the rest. So their modules are imported under packages that were not executed, and that nobody else
    gets to see.
    """
    hollow = [name for name in (_LIBRARY, _MONADS) if name not in sys.modules]
    try:
        for name in hollow:
            spec = importlib.util.find_spec(name)
            if spec is None:
                raise ModuleNotFoundError(f"{name} is not installed", name=name)
            sys.modules[name] = importlib.util.module_from_spec(spec)
        return _import()
    finally:
        for name in hollow:
            sys.modules.pop(name, None)


def _import() -> _Library:
    from jsonrpcserver import dispatcher, request, result  # noqa: PLC0415 -- see _load

    library: Any = dispatcher  # its types are incomplete
    made: Any = result
    # Its Success makes the same of any arguments, in three times the time.
    return _Library(request.Request, library.call, made.Right, made.SuccessResult, made.Error, library.Left)
