import msgspec
import pytest

from plugin.presence.status import AgentStateChangedParams, CellStatus, GateStatus


def read(text: str) -> AgentStateChangedParams:
    return msgspec.json.decode(text, type=AgentStateChangedParams)


def test_a_change_is_one_agent_or_a_list_or_both() -> None:
    one, two = '{"agent_id": "ada", "state": "busy"}', '{"agent_id": "bob", "state": "idle"}'

    assert list(read(one).changes()) == [("ada", "busy")]
    assert list(read(f'{{"states": [{one}, {two}]}}').changes()) == [("ada", "busy"), ("bob", "idle")]
    assert list(read(f'{{"agent_id": "cyd", "state": "", "states": [{two}]}}').changes()) == [
        ("cyd", ""),
        ("bob", "idle"),
    ]


def test_a_part_of_a_change_that_is_null_is_not_there() -> None:
    two = '{"agent_id": "bob", "state": "idle"}'

    assert list(read('{"agent_id": "ada", "state": "busy", "states": null}').changes()) == [("ada", "busy")]
    assert list(read(f'{{"agent_id": null, "state": null, "states": [{two}]}}').changes()) == [("bob", "idle")]


@pytest.mark.parametrize(
    "text",
    ["{}", '{"agent_id": "ada"}', '{"state": "busy"}', '{"states": []}', '{"states": [{"agent_id": "a"}]}', "[]"],
)
def test_half_a_change_and_none_at_all_are_refused(text: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        read(text)


def test_a_reason_that_is_not_there_is_left_out() -> None:
    cell = CellStatus(guild_node_id="g1", wanted="idle", confirmed=None, confirmed_at=None, state="pending")

    assert msgspec.to_builtins(cell) == {
        "guild_node_id": "g1",
        "wanted": "idle",
        "confirmed": None,
        "confirmed_at": None,
        "state": "pending",
    }
    assert msgspec.to_builtins(GateStatus(state="ready")) == {"state": "ready"}
