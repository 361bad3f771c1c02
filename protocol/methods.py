"""The method table: what may be called, with which parameters, and what a handler gets to know. No I/O."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar, cast

import msgspec
from msgspec.structs import force_setattr

from protocol.convert import Mismatch, convert
from protocol.errors import Code, ErrorData, RpcError
from protocol.messages import Id, Params

P = TypeVar("P", bound=msgspec.Struct)
T = TypeVar("T")

META: Final = "_meta"
PROGRESS: Final = "$/progress"
_NAME_CHARS: Final = 64  # of an unknown parameter, repeated to its sender


class Remote(Protocol):
    """The other side of the wire."""

    async def call(self, method: str, params: object = None, *, timeout_s: float, result: type[T]) -> T:
        """Call the other side and return its answer as `result`."""
        ...

    async def notify(self, method: str, params: object = None) -> None:
        """Tell the other side; waits while it does not read."""
        ...

    def notify_soon(self, method: str, params: object = None) -> bool:
        """Tell the other side without waiting; False when there was no room."""
        ...


class Context(msgspec.Struct, eq=False):
    """What a handler may know of the call that it serves.

    `request_id` is None in a notification; `params` are as they came. `callbacks` are what `after_answer` was given, in
    that order.
    """

    peer: Remote
    method: str
    request_id: Id
    params: Params
    callbacks: tuple[Callable[[], None], ...] = ()

    @property
    def meta(self) -> dict[str, object]:
        """Return the `_meta` of by-name params, which the params struct never sees."""
        meta = self.params.get(META) if isinstance(self.params, dict) else None
        return cast("dict[str, object]", meta) if isinstance(meta, dict) else {}

    async def progress(self, done: float, total: float | None = None, message: str | None = None) -> None:
        """Report progress, if the call has a `_meta.progressToken`, a text or a number; waits while nobody reads."""
        token = self.meta.get("progressToken")
        if not isinstance(token, str | int | float) or isinstance(token, bool):
            return
        parts = {"done": done, "total": total, "message": message}
        value = {name: part for name, part in parts.items() if part is not None}
        await self.peer.notify(PROGRESS, {"token": token, "value": value})

    def after_answer(self, callback: Callable[[], None]) -> None:
        """Run `callback` once the answer to this call was written; never, if it goes unanswered."""
        self.callbacks = (*self.callbacks, callback)


Handler: TypeAlias = Callable[[Context, P], object]
"""What serves a method: `async def`, or `def` where it never waits, which then costs no coroutine.

A `def` may also return a coroutine, for the calls that do wait.
"""


class Method(msgspec.Struct, Generic[P], frozen=True, kw_only=True):
    """A method that may be called.

    `result` is the type of what the handler returns. `notification`: nobody expects a result; who sends an id all the
    same gets null. `urgent` methods take no handler slot and run while all are busy, and after the intake was stopped:
    they must be quick or rare, and must not call the other side. `timeout_ms` and `idempotent` are told to callers,
    and enforce nothing here. Required params must come before optional ones: ValueError.
    """

    name: str
    handler: Handler[P]
    params: type[P]
    result: object = None
    title: str = ""
    description: str = ""
    aliases: tuple[str, ...] = ()
    notification: bool = False
    urgent: bool = False
    timeout_ms: int | None = None
    idempotent: bool = False
    fields: tuple[str, ...] = ()  # made here: the params as they are named on the wire, in declared order
    names: frozenset[str] = frozenset()  # the same, to look them up

    def __post_init__(self) -> None:
        fields = msgspec.structs.fields(self.params)
        required = [one.required for one in fields]
        if required != sorted(required, reverse=True):
            raise ValueError(f"{self.name}: required params come before optional ones, so that an array can carry them")
        names = tuple(one.encode_name for one in fields)
        force_setattr(self, "fields", names)
        force_setattr(self, "names", frozenset(names))


class MethodTable:
    """Methods by name and alias; iterates in the order given. Raises ValueError for a name that is given twice."""

    def __init__(self, methods: Iterable[Method[Any]]) -> None:
        self._methods = tuple(methods)
        self._by_name: dict[str, Method[Any]] = {}
        for method in self._methods:
            for name in (method.name, *method.aliases):
                if name in self._by_name:
                    raise ValueError(f"Two methods are called {name}")
                self._by_name[name] = method

    def get(self, name: str) -> Method[Any] | None:
        """Return the method of that name or alias."""
        return self._by_name.get(name)

    def __iter__(self) -> Iterator[Method[Any]]:
        return iter(self._methods)

    def __len__(self) -> int:
        return len(self._methods)


def convert_params(method: Method[P], params: Params) -> P:
    """Return params, by name or by position, as the method's struct; None is the same as none.

    `_meta` is left out; any other name that the struct does not have is refused. Raises RpcError (-32602) that names
    the path, by name also where the params came by position.
    """
    try:
        if isinstance(params, dict) and method.names.issuperset(params):
            return convert(params, method.params)
        return convert(_by_name(method, params), method.params)
    except Mismatch as misfit:
        data = ErrorData(kind="invalid_params", path=misfit.path, detail=misfit.detail)
        raise RpcError(Code.INVALID_PARAMS, "Invalid params", data) from None


def _by_name(method: Method[P], params: Params) -> dict[str, object]:
    if params is None:
        return {}
    if isinstance(params, list):
        if len(params) > len(method.fields):
            raise Mismatch("$", f"Expected at most {len(method.fields)} params, got {len(params)}")
        return dict(zip(method.fields, params, strict=False))
    if unknown := params.keys() - method.names - {META}:
        name = min(unknown)[:_NAME_CHARS]
        raise Mismatch(f"$.{name}", f"Unknown param; expected one of: {', '.join(method.fields) or '(none)'}")
    return {name: value for name, value in params.items() if name != META}
