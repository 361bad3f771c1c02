import hashlib
import json
from contextlib import suppress

import pytest

from plugin.errors import BadParams
from plugin.sync.record import UNSET_TIME, core_fingerprint, decode, instant, make_record, parse_dispatches


def body_of(**content: object) -> dict[str, object]:
    body: dict[str, object] = json.loads(make_record(content).body)
    return body


@pytest.mark.parametrize(
    ("given", "record_id"),
    [
        ({"id": "a", "workspace": "w"}, "a"),
        ({"id": "", "workspace": "w"}, "w"),
        ({"id": None, "workspace": "w"}, "w"),
        ({"id": ["a"], "workspace": "w"}, "w"),
        ({"workspace": "core/go-io/task-5"}, "core/go-io/task-5"),
        ({"id": 7, "repo": "r"}, "7"),
        ({"id": 7.9, "repo": "r"}, "7"),
        ({"id": -7, "repo": "r"}, "-7"),
        ({"id": True, "repo": "r"}, "true"),
        ({"id": False, "repo": "r"}, "false"),
        ({"repo": "r", "workspace": 12}, "12"),
    ],
)
def test_the_id_is_the_given_one_else_the_workspace(given: dict[str, object], record_id: str) -> None:
    record = make_record(given)
    assert record.id == record_id
    assert json.loads(record.body)["id"] == record_id


def test_without_id_and_workspace_the_content_names_the_record() -> None:
    one, same, other = (
        make_record({"repo": "r", "n": 1}),
        make_record({"n": 1.0, "repo": "r"}),
        make_record({"repo": "s"}),
    )
    assert one.id == same.id
    assert one.id != other.id
    assert one.id == make_record({"repo": "r", "n": 1, "id": None}).id


def test_the_fingerprint_is_the_hash_of_the_body_that_is_sent() -> None:
    record = make_record({"repo": "r", "b": {"y": 1, "x": [1, 2.5, None, True]}, "text": "ü<&>"})
    assert record.fingerprint == hashlib.sha256(record.body).hexdigest()
    assert record.body.decode() == (
        f'{{"b":{{"x":[1,2.5,null,true],"y":1}},"id":"{record.id}","repo":"r","text":"ü<&>"}}'
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (0, -0.0),
        (100, 1e2),
        (2**53, float(2**53)),
        (9223372036854776000, float(2**63)),  # what JavaScript and Go print for it
        (10**20, 1e20),
        (10**22, 1e22),
        (10**300, 1e300),
    ],
)
def test_the_same_number_in_another_notation_is_the_same_record(one: object, other: object) -> None:
    assert make_record({"repo": "r", "n": [one]}) == make_record({"repo": "r", "n": [other]})


@pytest.mark.parametrize(("one", "other"), [(2**53, 2**53 + 1), (1, 1.5), (1, "1"), (1, True), (None, 0), (0.1, 0.2)])
def test_different_values_are_different_records(one: object, other: object) -> None:
    first, second = make_record({"id": "a", "repo": "r", "n": one}), make_record({"id": "a", "repo": "r", "n": other})
    assert first.fingerprint != second.fingerprint


def test_integers_of_any_size_are_sent_digit_by_digit() -> None:
    numbers = [2**53 + 1, 2**64, 10**30 + 7, -(2**63) - 1]
    assert body_of(repo="r", n=numbers)["n"] == numbers


def test_agent_type_repeats_agent_unless_it_is_given() -> None:
    assert body_of(repo="r", agent="codex")["agent_type"] == "codex"
    assert body_of(repo="r", agent="codex", agent_type="claude")["agent_type"] == "claude"
    assert "agent_type" not in body_of(repo="r")


def test_what_is_given_is_not_changed() -> None:
    given: dict[str, object] = {"repo": "r", "agent": "codex", "n": {"x": 1.0}}
    make_record(given)
    assert given == {"repo": "r", "agent": "codex", "n": {"x": 1.0}}
    assert list(given) == ["repo", "agent", "n"]


def test_node_and_core_fingerprint_are_kept_but_not_sent() -> None:
    record = make_record({"repo": "r"}, fleet_node_id=42, core_fingerprint="t#1")
    assert (record.fleet_node_id, record.core_fingerprint) == (42, "t#1")
    assert record.body == make_record({"repo": "r"}).body


@pytest.mark.parametrize(
    "given", [{}, {"id": "a"}, {"repo": "", "workspace": ""}, {"repo": None}, {"repo": 5}, {"workspace": ["w"]}]
)
def test_a_record_that_the_platform_would_drop_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(BadParams) as caught:
        make_record(given, path="$.dispatches[3]")
    assert caught.value.path == "$.dispatches[3]"


def nested(depth: int) -> list[object]:
    value: list[object] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("value", [object(), "\ud800", nested(100_000)], ids=["object", "surrogate", "depth"])
def test_what_has_no_json_form_is_refused(value: object) -> None:
    with pytest.raises(BadParams) as caught:
        make_record({"repo": "r", "x": value}, path="$.dispatches[0]")
    assert caught.value.path == "$.dispatches[0]"


@pytest.mark.parametrize(
    ("value", "dispatches"),
    [
        ([], []),
        ([{"a": 1}, {"b": 2}], [{"a": 1}, {"b": 2}]),
        (({"a": 1},), [{"a": 1}]),
        ({"a": 1}, [{"a": 1}]),
        ('[{"a": 1}]', [{"a": 1}]),
        ('  {"a": 1}\n', [{"a": 1}]),
        ("[]", []),
    ],
)
def test_dispatches_are_a_list_of_objects_or_one_object_or_a_string_of_these(
    value: object, dispatches: list[dict[str, object]]
) -> None:
    assert parse_dispatches(value) == dispatches


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (None, "$.dispatches"),
        (5, "$.dispatches"),
        (True, "$.dispatches"),
        ("", "$.dispatches"),
        ("a=b,c=d", "$.dispatches"),
        ('[{"a":1}', "$.dispatches"),
        ("null", "$.dispatches"),
        ('"[{}]"', "$.dispatches"),
        ("[" * 100_000, "$.dispatches"),
        ([{"a": 1}, {"b": 1}, None], "$.dispatches[2]"),
        (["{}"], "$.dispatches[0]"),
        ([[1]], "$.dispatches[0]"),
        ("[{}, 1.5]", "$.dispatches[1]"),
        ("[{}, {}, false]", "$.dispatches[2]"),
        ([{"a": 1}, object()], "$.dispatches[1]"),
    ],
)
def test_anything_else_is_refused_by_its_path(value: object, path: str) -> None:
    with pytest.raises(BadParams) as caught:
        parse_dispatches(value)
    assert caught.value.path == path


@pytest.mark.parametrize(
    ("updated_at", "text"),
    [
        ("2026-04-14T12:00:00Z", "2026-04-14T12:00:00Z"),
        ("2026-04-14T12:00:00.999999999Z", "2026-04-14T12:00:00Z"),
        ("2026-04-14T00:30:00.5+01:00", "2026-04-13T23:30:00Z"),
        ("2026-04-14T12:00:00-02:30", "2026-04-14T14:30:00Z"),
        ("0987-04-14T12:00:00Z", "0987-04-14T12:00:00Z"),
        ("", UNSET_TIME),
        (UNSET_TIME, UNSET_TIME),
    ],
)
def test_the_core_fingerprint_is_the_time_in_utc_and_whole_seconds_and_the_runs(updated_at: str, text: str) -> None:
    assert core_fingerprint(updated_at, 3) == f"{text}#3"


@pytest.mark.parametrize(
    "text", ["2026-13-14T12:00:00Z", "2026-02-30T12:00:00Z", "2026-04-14T12:60:00Z", "2026-04-14T25:00:00Z"]
)
def test_a_time_with_a_number_out_of_range_has_no_core_fingerprint(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        core_fingerprint(text, 1)


def test_midnight_at_the_end_of_a_day_is_the_next_day_if_python_reads_it() -> None:
    with suppress(ValueError):  # not every Python does
        assert core_fingerprint("2026-04-14T24:00:00Z", 1) == "2026-04-15T00:00:00Z#1"


@pytest.mark.parametrize("text", ["soon", "2026-04-14", "2026-04-14T12:00:00", "0001-01-01T00:00:00+01:00", "12"])
def test_what_is_no_moment_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        instant(text)


@pytest.mark.parametrize("text", ["", UNSET_TIME, "0001-01-01T00:00:00.000Z", "0001-01-01T00:00:00+00:00"])
def test_a_time_that_was_never_set_is_none(text: str) -> None:
    assert instant(text) is None


def test_a_number_that_overflows_is_refused() -> None:
    with pytest.raises(ValueError, match="out of range"):
        decode('{"n": 1e400}')
