import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from plugin.sync.record import core_fingerprint, make_record

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
FLOATS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70).map(float)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | FLOATS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


def with_repo(repo: str, rest: dict[str, object]) -> dict[str, object]:
    return {**rest, "repo": f"r{repo}"}


OBJECTS = st.builds(
    with_repo,
    TEXTS,
    st.dictionaries(TEXTS | st.sampled_from(["id", "workspace", "agent", "agent_type"]), VALUES, max_size=6),
)


def printed(number: float) -> str:
    """Print a double as JavaScript and Go do: in digits below 1e21, with an exponent above."""
    return format(Decimal(repr(number)), "f") if 1e-6 <= abs(number) < 1e21 else repr(number)


@settings(max_examples=100, deadline=None)
@given(OBJECTS)
def test_a_record_made_from_its_own_body_is_the_same_record(obj: dict[str, object]) -> None:
    record = make_record(obj)
    assert make_record(json.loads(record.body)) == record
    assert make_record(msgspec.json.decode(record.body)) == record


@settings(max_examples=100, deadline=None)
@given(OBJECTS)
def test_a_round_trip_through_json_changes_nothing(obj: dict[str, object]) -> None:
    record = make_record(obj)
    assert make_record(json.loads(json.dumps(obj))) == record
    assert make_record(json.loads(json.dumps(obj, ensure_ascii=False, sort_keys=True, indent=1))) == record
    assert make_record(msgspec.json.decode(msgspec.json.encode(obj))) == record
    assert make_record(dict(reversed(obj.items()))) == record


@settings(max_examples=100, deadline=None)
@given(FLOATS)
def test_a_number_that_went_through_another_language_is_the_same(number: float) -> None:
    assert make_record({"repo": "r", "n": number}) == make_record({"repo": "r", "n": json.loads(printed(number))})


@settings(max_examples=100, deadline=None)
@given(
    st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29), timezones=st.just(UTC)),  # noqa: DTZ001 - hypothesis adds the zone
    st.integers(-24 * 60 + 1, 24 * 60 - 1),
    st.sampled_from(["T", " "]),
    st.sampled_from(["auto", "seconds", "milliseconds"]),
)
def test_the_core_fingerprint_is_the_moment_however_it_is_written(
    moment: datetime, offset_min: int, separator: str, precision: str
) -> None:
    expected = f"{moment.replace(microsecond=0, tzinfo=None).isoformat()}Z#3"
    there = moment.astimezone(timezone(timedelta(minutes=offset_min)))
    assert core_fingerprint(there.isoformat(separator, precision), 3) == expected
    assert core_fingerprint(moment.isoformat(separator, precision).replace("+00:00", "Z"), 3) == expected
