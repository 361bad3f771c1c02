import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jsonschema
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from plugin.config import Config
from plugin.config.keys import Key, keys, schema
from plugin.config.reading import Reading
from plugin.config.sources import changed, explain, load, value_at
from plugin.errors import ConfigInvalid

# A busy machine makes single examples slow; that is no failure.
STEADY = settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])
SCHEMA = schema()
VALIDATOR: Any = jsonschema.Draft202012Validator(SCHEMA)
JUNK: st.SearchStrategy[Any] = st.sampled_from(
    [
        *(None, True, False, 0, 1, -1, 5, 5.0, 0.1, 1e-9, 1e300, 10**400, -(2**63), [], {}, ["x"], [None]),
        *("", " ", "x", "a\n", "\x7f", "é", "\U0001f600", "info", "https://h", "/p/{user_id}", "/p"),
        *("x" * 255, "x" * 256, {"agent_id": "a"}),
    ]
)
TEXT = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=6).map(lambda text: f"x{text}x")
CHOICE = ("api_key", "api_key_env", "api_key_file")


def sound(fragment: Mapping[str, Any], name: str = "") -> st.SearchStrategy[Any]:
    """Values that a fragment of the schema accepts, its bounds among them."""
    least, most = fragment.get("minimum", 1e-9), fragment.get("maximum")
    match fragment:
        case {"enum": words}:
            return st.sampled_from(words)
        case {"type": "object"}:
            return sound_object(fragment)
        case {"type": "array", "items": items}:
            return st.lists(sound(items), max_size=3)
        case _:
            leaves: dict[str, st.SearchStrategy[Any]] = {
                "boolean": st.booleans(),
                "integer": st.sampled_from([least, float(least), most]),
                "number": st.sampled_from([least, most, 5]) | st.floats(1, 100),
                "string": st.just("/x/{user_id}/y") if name.endswith("_path") else TEXT,
            }
            kind = fragment["type"]
            return leaves[kind] if isinstance(kind, str) else st.sampled_from([None, ""]) | TEXT


def sound_object(fragment: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    members = {key: sound(part, key) for key, part in fragment["properties"].items() if key not in CHOICE[1:]}
    required = {key: members.pop(key) for key in fragment["required"]}
    return st.fixed_dictionaries(required, optional=members)


def spoilt(fragment: Mapping[str, Any], name: str = "") -> st.SearchStrategy[Any]:
    """Values that a fragment may refuse: anything anywhere, keys missing, keys that nobody knows."""
    match fragment.get("type"):
        case "object":
            members = {key: spoilt(part, key) for key, part in fragment["properties"].items()}
            return JUNK | st.fixed_dictionaries({}, optional=members | {"unknown": JUNK})
        case "array":
            return JUNK | st.lists(spoilt(fragment["items"]), max_size=3)
        case _:
            return sound(fragment, name) | JUNK


def read(tree: object) -> list[tuple[str, str]]:
    problems: list[tuple[str, str]] = []
    Reading("host", problems).tree(cast("dict[str, Any]", tree))
    return problems


def nested(fragment: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    for name in path.split("."):
        fragment = fragment["properties"][name]
    return fragment


def plant(path: str, value: object) -> dict[str, Any]:
    """A tree with one leaf."""
    for name in reversed(path.split(".")):
        value = {name: value}
    return cast("dict[str, Any]", value)


def merge(tree: dict[str, Any], other: dict[str, Any]) -> None:
    for name, value in other.items():
        if isinstance(value, dict) and name in tree:
            merge(tree[name], cast("dict[str, Any]", value))
        else:
            tree[name] = value


@STEADY
@given(tree=spoilt(SCHEMA))
def test_the_schema_accepts_exactly_what_the_reader_accepts(tree: object) -> None:
    assume(isinstance(tree, dict))
    problems = read(tree)
    assert VALIDATOR.is_valid(tree) == (not problems)


@STEADY
@given(tree=sound(SCHEMA))
def test_whatever_is_sound_by_the_schema_is_read_without_a_problem(tree: object) -> None:
    VALIDATOR.validate(tree)
    assert read(tree) == []


@STEADY
@given(key=st.sampled_from(keys()), value=JUNK, data=st.data())
def test_the_schema_and_the_reader_agree_on_each_key_alone(key: Key, value: object, data: st.DataObject) -> None:
    element = nested(SCHEMA, key.path).get("items", {})
    if "properties" in element:
        member = data.draw(st.sampled_from(sorted(element["properties"])))
        value = data.draw(st.sampled_from([value, [{"agent_id": "a", "guild_node_id": "g", member: value}]]))
    tree = plant(key.path, value)
    assert VALIDATOR.is_valid(tree) == (not read(tree))


WAYS = st.dictionaries(st.sampled_from(CHOICE), st.sampled_from([None, "", "x"]))


@STEADY
@given(platform=WAYS, identity=WAYS)
def test_the_schema_and_the_reader_agree_that_a_key_is_given_one_way(
    platform: dict[str, Any], identity: dict[str, Any]
) -> None:
    tree = {"platform": platform, "identities": [{"agent_id": "a", **identity}]}
    assert VALIDATOR.is_valid(tree) == (not read(tree))


@STEADY
@given(one=spoilt(SCHEMA["properties"]["presence"]), other=spoilt(SCHEMA["properties"]["bindings"]))
def test_a_mistake_hides_no_other(one: object, other: object) -> None:
    together = {path for path, _ in read({"presence": one, "bindings": other})}
    assert together == {path for path, _ in [*read({"presence": one}), *read({"bindings": other})]}


URL = st.sampled_from(["https://h", "http://127.0.0.1:1", "https://h.example/prefix"])
HOSTS = st.just(["h", "127.0.0.1", ".example", "api.lthn.sh"])


def identity(name: str) -> dict[str, str]:
    return {"agent_id": name, "api_key": name}


SPECIAL: dict[str, st.SearchStrategy[Any]] = {
    "root": TEXT.map("/{}".format),
    "state_dir": TEXT.map("/{}".format),
    "base_url": URL,
    "center_url": URL,
    "proxy": URL,
    "allow_hosts": HOSTS,
    "identities": st.lists(TEXT.map(identity), unique_by=str, max_size=3),
}
LOADABLE = [key for key in keys() if not key.path.endswith(("ca_file", "api_key_env", "api_key_file"))]


def given_value(key: Key) -> st.SearchStrategy[Any]:
    """Values that the whole of `load` accepts for a key, and takes for given."""
    name = key.path.rpartition(".")[2]
    if name in SPECIAL:
        return SPECIAL[name]
    return sound(nested(SCHEMA, key.path), name).filter(lambda value: value not in (None, ""))


def as_variable(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def as_toml(value: object) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(as_toml(item) for item in cast("list[Any]", value)) + "]"
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value).items()
        return "{" + ", ".join(f"{name} = {as_toml(part)}" for name, part in members if part is not None) + "}"
    return json.dumps(value, ensure_ascii=False)


def as_held(value: object, key: Key) -> object:
    """The value as the configuration holds it."""
    return Reading("expected", []).value(value, key.kind, key.path)


@STEADY
@given(firsts=st.dictionaries(st.sampled_from(LOADABLE), st.integers(0, 2), max_size=10), data=st.data())
def test_each_key_takes_the_value_of_the_first_source_that_gives_it(
    firsts: dict[Key, int], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.toml"
        environ = {"HOME": folder, "AGENTIC_SYNC_CONFIG": str(path)}
        host: dict[str, Any] = {}
        lines: list[str] = []
        expected: dict[str, object] = {}
        for key, first in firsts.items():
            one, two, three = (data.draw(given_value(key)) for _ in range(3))
            expected[key.path] = as_held((one, two, three)[first], key)
            if first == 0:
                environ[key.variable] = as_variable(one)
            if first <= 1:
                merge(host, plant(key.path, two))
            lines.append(f"{key.path} = {as_toml(three)}")
        path.write_text("\n".join(lines), encoding="utf-8")
        config = load(environ, host)
        assert {key.path: value_at(config, key.path) for key in firsts} == expected
        untouched = [key for key in keys() if key not in firsts and key.path not in {"agent_id", "root", "state_dir"}]
        assert all(value_at(config, key.path) == key.default for key in untouched)
        assert changed(config, load(environ, host)) == []
        assert set(changed(config, load({"HOME": folder, "AGENTIC_SYNC_CONFIG": os.devnull}))) <= {
            *expected,
            "state_dir",
        }


SECRET = "never-shown"
SHAPES = (
    [SECRET],
    {"x": SECRET},
    SECRET,
    [{"agent_id": [SECRET], "api_key": SECRET}],
    {"api_key": SECRET, "api_key_env": "x"},
)


def attempt(environ: dict[str, str], host: dict[str, Any]) -> Config | ConfigInvalid:
    try:
        return load(environ, host)
    except ConfigInvalid as invalid:
        return invalid


@STEADY
@given(tree=spoilt(SCHEMA), key=st.sampled_from(keys()), value=st.sampled_from(SHAPES))
def test_no_text_shows_a_value_wherever_it_was_put(tree: object, key: Key, value: object) -> None:
    host = cast("dict[str, Any]", tree) if isinstance(tree, dict) else {}
    environ = {"AGENTIC_SYNC_CONFIG": os.devnull, key.variable: json.dumps(value)}
    outcome = attempt(environ, host | plant(key.path, value))
    if isinstance(outcome, ConfigInvalid):
        assert SECRET not in f"{outcome} {outcome!r} {outcome.problems}"
    else:
        assert not key.secret or SECRET not in f"{outcome!r} {explain(outcome)}"
