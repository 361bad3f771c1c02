import asyncio
from typing import Any

import pytest
from msgspec import UNSET, Struct, UnsetType, field

from protocol.errors import Code, ErrorData, RpcError
from protocol.messages import Params
from protocol.methods import Context, Method, MethodTable, convert_params
from tests.support.stage import Listener, Nothing


class Inner(Struct, frozen=True, forbid_unknown_fields=True):
    count: int


class Everything(Struct, frozen=True, kw_only=True):
    agent_id: str = field(name="agent-id")
    force: bool = field(name="_force")
    inner: Inner | None = None
    inners: list[Inner] = []
    counts: dict[int, int] = {}
    maybe: str | UnsetType = UNSET


class Backwards(Struct, frozen=True, kw_only=True):
    first: int = 1
    second: int


class Positive(Struct, frozen=True):
    number: int

    def __post_init__(self) -> None:
        if self.number <= 0:
            raise ValueError("Expected a number above 0")


async def idle(_context: Context, _params: Struct) -> None:
    pass


def method(params: type[Struct] = Nothing, name: str = "m", *aliases: str) -> Method[Any]:
    return Method(name=name, handler=idle, params=params, aliases=aliases)


def refusal(params: Params, shape: type[Struct] = Everything) -> ErrorData:
    with pytest.raises(RpcError) as raised:
        convert_params(method(shape), params)
    assert raised.value.code == Code.INVALID_PARAMS
    assert isinstance(raised.value.data, ErrorData)
    assert raised.value.data.kind == "invalid_params"
    assert raised.value.data.detail
    return raised.value.data


MISFITS: list[tuple[Params, str]] = [
    ({"_force": True}, "$.agent-id"),
    ({"agent-id": "a"}, "$._force"),
    ({"agent_id": "a", "_force": True}, "$.agent_id"),
    ({"agent-id": 5, "_force": True}, "$.agent-id"),
    ({"agent-id": "a", "_force": "true"}, "$._force"),
    ({"agent-id": "a", "_force": 1}, "$._force"),
    ({"agent-id": "a", "_force": True, "inner": {}}, "$.inner.count"),
    ({"agent-id": "a", "_force": True, "inner": {"count": 1, "odd": 2}}, "$.inner.odd"),
    ({"agent-id": "a", "_force": True, "inners": [{"count": 1}, {"count": "x"}]}, "$.inners[1].count"),
    ({"agent-id": "a", "_force": True, "counts": {"x": 1}}, "$.counts"),
    ({"agent-id": "a", "_force": True, "zebra": 1, "odd": 1}, "$.odd"),
    (["a"], "$._force"),
    (["a", 5], "$._force"),
    ([], "$.agent-id"),
    (["a", True, None, [], {}, "m", 7], "$"),
]


class TestParams:
    def test_by_name_and_by_position_are_the_same(self) -> None:
        by_name: Params = {"agent-id": "a", "_force": True, "inner": {"count": 1}, "counts": {"5": 6}}
        by_position: Params = ["a", True, {"count": 1}, [], {"5": 6}]
        expected = Everything(agent_id="a", force=True, inner=Inner(1), counts={5: 6})
        assert convert_params(method(Everything), by_name) == expected
        assert convert_params(method(Everything), by_position) == expected

    @pytest.mark.parametrize("params", [None, {}, [], {"_meta": {"progressToken": 1}}])
    def test_none_are_none_however_they_are_written(self, params: Params) -> None:
        assert convert_params(method(Nothing), params) == Nothing()

    def test_meta_is_left_out_also_where_unknown_fields_are_forbidden(self) -> None:
        assert convert_params(method(Inner), {"count": 1, "_meta": 5}) == Inner(1)

    @pytest.mark.parametrize(("params", "path"), MISFITS)
    def test_what_does_not_fit_is_named_by_its_path(self, params: Params, path: str) -> None:
        assert refusal(params).path == path

    def test_what_was_expected_is_said(self) -> None:
        assert "int" in str(refusal({"count": "x"}, Inner).detail)
        assert "count" in str(refusal({"number": 1}, Inner).detail)
        assert "at most 1" in str(refusal([1, 2], Inner).detail)

    def test_a_rule_of_the_struct_itself_is_a_refusal_too(self) -> None:
        assert refusal({"number": -1}, Positive).path == "$"

    def test_the_name_of_an_unknown_param_is_repeated_only_in_part(self) -> None:
        assert len(str(refusal({"x" * 100_000: 1}, Inner).path)) < 100


class TestTable:
    def test_methods_are_found_by_name_and_alias_and_keep_their_order(self) -> None:
        one, two = method(Nothing, "one", "uno", "eins"), method(Nothing, "two")
        table = MethodTable([one, two])
        assert [table.get(name) for name in ("one", "uno", "eins", "two", "three")] == [one, one, one, two, None]
        assert list(table) == [one, two]
        assert len(table) == 2

    @pytest.mark.parametrize(
        "second", [method(Nothing, "one"), method(Nothing, "x", "one"), method(Nothing, "y", "uno")]
    )
    def test_a_name_that_is_given_twice_is_refused(self, second: Method[Any]) -> None:
        with pytest.raises(ValueError, match=r"one|uno"):
            MethodTable([method(Nothing, "one", "uno"), second])

    def test_required_params_after_optional_ones_are_refused(self) -> None:
        with pytest.raises(ValueError, match="required"):
            method(Backwards)


class TestContext:
    def test_it_knows_the_call(self) -> None:
        context = Context(Listener(), "m", "id-1", {"x": 1, "_meta": {"a": 1}})
        assert (context.method, context.request_id, context.meta) == ("m", "id-1", {"a": 1})

    @pytest.mark.parametrize("params", [None, [1], {}, {"_meta": None}, {"_meta": [1]}, {"_meta": "x"}])
    def test_without_a_meta_object_there_is_none(self, params: Params) -> None:
        assert Context(Listener(), "m", 1, params).meta == {}

    @pytest.mark.parametrize("token", ["t", "", 0, 17, 1.5])
    def test_progress_goes_out_under_the_token(self, token: object) -> None:
        listener = Listener()
        context = Context(listener, "m", 1, {"_meta": {"progressToken": token}})
        asyncio.run(context.progress(3, 10, "three"))
        asyncio.run(context.progress(0.5))
        assert listener.told == [
            ("$/progress", {"token": token, "value": {"done": 3, "total": 10, "message": "three"}}),
            ("$/progress", {"token": token, "value": {"done": 0.5}}),
        ]

    @pytest.mark.parametrize("params", [None, {"_meta": {}}, {"_meta": {"progressToken": None}}])
    def test_nobody_is_told_who_did_not_ask(self, params: Params) -> None:
        listener = Listener()
        asyncio.run(Context(listener, "m", 1, params).progress(1))
        assert listener.told == []

    @pytest.mark.parametrize("token", [True, {"a": 1}, ["t"]])
    def test_what_cannot_be_a_token_asks_for_nothing(self, token: object) -> None:
        listener = Listener()
        asyncio.run(Context(listener, "m", 1, {"_meta": {"progressToken": token}}).progress(1))
        assert listener.told == []

    def test_what_follows_the_answer_is_kept_in_order(self) -> None:
        order: list[int] = []
        context = Context(Listener(), "m", 1, None)
        assert context.callbacks == ()
        context.after_answer(lambda: order.append(1))
        context.after_answer(lambda: order.append(2))
        for callback in context.callbacks:
            callback()
        assert order == [1, 2]
