import argparse
import json
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from plugin import __version__, manifest
from plugin.actions import PROTOCOL_VERSION
from plugin.app import App
from plugin.cli import readme
from plugin.cli.command import parser
from plugin.cli.manifest import act, check, write
from plugin.config import Config
from plugin.config.keys import keys, table
from plugin.config.sources import load
from plugin.errors import ConfigInvalid, PluginError
from plugin.launch import find, launch
from protocol.methods import MethodTable

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def methods() -> MethodTable:
    return App(environ={"AGENTIC_SYNC_CONFIG": "/dev/null"}).table


@pytest.fixture(scope="module")
def built(methods: MethodTable) -> dict[str, Any]:
    return manifest.build(methods)


@pytest.fixture
def checkout(tmp_path: Path, methods: MethodTable) -> Path:
    """A folder with the generated files, all in step with the code."""
    (tmp_path / "docs").mkdir()
    markers = "".join(f"<!-- {name}:begin -->\n<!-- {name}:end -->\n" for name in ("actions", "config"))
    (tmp_path / "README.md").write_text(f"# before\n{markers}after\n", encoding="utf-8")
    write(tmp_path, methods)
    return tmp_path


def test_the_files_of_this_checkout_are_in_step_with_the_code(methods: MethodTable) -> None:
    assert check(ROOT, methods) == [], "run: agentic-sync manifest --write"


def test_a_manifest_that_was_written_passes_the_check(checkout: Path, methods: MethodTable) -> None:
    assert check(checkout, methods) == []
    text = (checkout / "manifest.json").read_text(encoding="utf-8")
    assert text.endswith("}\n")
    write(checkout, methods)
    assert (checkout / "manifest.json").read_text(encoding="utf-8") == text


def test_the_command_prints_checks_and_writes(
    checkout: Path, methods: MethodTable, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(*arguments: str) -> int:
        return act(parser().parse_args(["manifest", *arguments]), root=checkout, table=methods)

    path = checkout / "manifest.json"
    assert (command(), capsys.readouterr().out) == (0, path.read_text(encoding="utf-8"))
    assert command("--check") == 0
    path.write_text("{}", encoding="utf-8")
    assert command("--check") == 1
    assert "license" in capsys.readouterr().err
    assert command("--write") == 0
    assert command("--check") == 0


def test_each_difference_is_named_by_its_place(checkout: Path, methods: MethodTable) -> None:
    path = checkout / "manifest.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document["actions"][0]["idempotent"] = 0
    document["unknown"] = None
    document["runtime"]["args"].append("--more")
    del document["license"]
    document["config_ui"]["log.level"]["env"] = []
    path.write_text(json.dumps(document), encoding="utf-8")
    places = {problem.removeprefix("manifest.json: ").split()[0] for problem in check(checkout, methods)}
    assert places == {
        *("actions[0].idempotent", "unknown", "runtime.args[1]", "license"),
        *("config_ui.log.level.env", "config_ui.log.level.env[0]"),
    }


def test_the_same_words_in_another_form_are_told(checkout: Path, methods: MethodTable) -> None:
    path = checkout / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8"))), encoding="utf-8")
    assert len(check(checkout, methods)) == 1


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff", b"[" * 100_000])
def test_a_file_that_cannot_be_read_is_one_problem(checkout: Path, methods: MethodTable, content: bytes | None) -> None:
    for name in ("manifest.json", manifest.SCHEMA_FILE):
        (checkout / name).unlink() if content is None else (checkout / name).write_bytes(content)
    assert len(check(checkout, methods)) == 2


def test_the_manifest_keeps_its_own_format(built: dict[str, Any]) -> None:
    schema: Any = jsonschema.Draft202012Validator(manifest.format_schema())
    schema.check_schema(schema.schema)
    schema.validate(built)
    for name in built:
        assert not schema.is_valid({key: value for key, value in built.items() if key != name}), name


def test_it_says_what_the_package_says_of_itself(built: dict[str, Any]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (built["id"], built["version"]) == (project["name"], __version__)
    assert (built["description"], built["license"]) == (project["description"], project["license"])
    assert built["compatibility"]["python"] == project["requires-python"]
    assert built["runtime"]["command"] in project["scripts"]
    assert built["protocol"]["version"] == PROTOCOL_VERSION


def test_every_action_of_the_table_and_nothing_else_is_an_action(built: dict[str, Any], methods: MethodTable) -> None:
    actions = {action["name"]: action for action in built["actions"]}
    assert actions.keys() == {
        *("agentic.sync.push", "agentic.sync.pull", "agentic.sync.status"),
        *("agentic.presence.status", "agentic.presence.refresh"),
    }
    for name, action in actions.items():
        method = methods.get(name)
        assert method is not None
        assert (action["aliases"], action["title"]) == ([*method.aliases], method.title)
        assert action["timeout_ms"] == method.timeout_ms
        assert action["idempotent"] == method.idempotent
        assert action["description"]
        jsonschema.Draft202012Validator.check_schema(action["params_schema"])
        jsonschema.Draft202012Validator.check_schema(action["result_schema"])


def test_a_schema_refuses_the_params_that_the_plugin_refuses(built: dict[str, Any]) -> None:
    for action in built["actions"]:
        accepts: Any = jsonschema.Draft202012Validator(action["params_schema"])
        assert accepts.is_valid({"agent_id": "a", "_meta": {"progressToken": 1}})
        assert not accepts.is_valid({"agentid": "a"})


def test_the_schema_of_a_callback_says_what_a_host_gets(built: dict[str, Any]) -> None:
    callbacks = {callback["method"]: callback["params_schema"] for callback in built["host_callbacks"]}
    progress: Any = jsonschema.Draft202012Validator(callbacks["$/progress"])
    assert progress.is_valid({"token": 1.5, "value": {"done": 1, "total": 2, "message": "m"}})
    assert not progress.is_valid({"token": "t", "value": {"total": 2}})
    log: Any = jsonschema.Draft202012Validator(callbacks["log"])
    line = {"message": "m", "logger": "l", "time": "t"}
    assert [
        level for level in ("debug", "info", "warn", "error", "fatal") if log.is_valid({**line, "level": level})
    ] == [*("debug", "info", "warn", "error")]


def test_every_schema_stands_alone(built: dict[str, Any]) -> None:
    """A host hands each one to a validator by itself: all that it points to must be in it."""
    callbacks = [
        part for callback in built["host_callbacks"] for part in (callback["params_schema"], callback["result_schema"])
    ]
    schemas = [part for action in built["actions"] for part in (action["params_schema"], action["result_schema"])]
    for schema in [*schemas, *callbacks, built["config_schema"]]:
        if schema is not None:
            assert references(schema) <= {f"#/$defs/{name}" for name in schema.get("$defs", {})}


def references(schema: object) -> set[str]:
    """Every reference in a schema, found in its text."""
    return set(re.findall(r'"\$ref": "([^"]*)"', json.dumps(schema)))


def test_the_host_callbacks_are_what_the_plugin_calls_by_default(built: dict[str, Any]) -> None:
    callbacks = {callback["method"]: callback for callback in built["host_callbacks"]}
    assert callbacks.keys() == {Config().host.read_agent_state_method, Config().host.log_method, "$/progress"}
    assert [name for name, callback in callbacks.items() if callback["required"]] == ["ReadAgentState"]
    accepts: Any = jsonschema.Draft202012Validator(callbacks["ReadAgentState"]["result_schema"])
    assert accepts.is_valid({"state": "idle"})
    assert not accepts.is_valid({"state": 5})
    assert callbacks["log"]["result_schema"] is None


def test_every_setting_is_in_the_schema_and_has_a_form(built: dict[str, Any]) -> None:
    assert built["config_ui"].keys() == {key.path for key in table()}
    for key in keys():
        fragment: Any = built["config_schema"]
        for name in key.path.split("."):
            fragment = fragment["properties"][name]
        assert fragment["title"] == built["config_ui"][key.path]["label"]


def test_the_schema_refuses_the_unknown_keys_that_the_plugin_refuses(built: dict[str, Any]) -> None:
    accepts: Any = jsonschema.Draft202012Validator(built["config_schema"])
    assert accepts.is_valid({"sync": {"enabled": False}})
    sources: list[dict[str, object]] = [
        {"snyc": {}},
        {"sync": {"enable": False}},
        {"bindings": [{"agent_id": "a", "guild": "g"}]},
    ]
    for unknown in sources:
        assert not accepts.is_valid(unknown)
        with pytest.raises(ConfigInvalid):
            load({"AGENTIC_SYNC_CONFIG": "/dev/null"}, unknown)


@pytest.mark.parametrize("action", ["push", "pull", "status"])
@pytest.mark.parametrize("name", ["agent_id", "agent-id", "_arg"])
def test_the_schema_says_how_long_an_agents_name_may_be(built: dict[str, Any], action: str, name: str) -> None:
    (schema,) = [one["params_schema"] for one in built["actions"] if one["name"] == f"agentic.sync.{action}"]
    accepts: Any = jsonschema.Draft202012Validator(schema)
    assert accepts.is_valid({name: "é" * 255})
    assert accepts.is_valid({name: None})
    assert not accepts.is_valid({name: "é" * 256})


def test_secrets_are_sensitive_and_write_only_and_have_no_default(built: dict[str, Any]) -> None:
    ui = built["config_ui"]
    secrets = {path for path, setting in ui.items() if setting["sensitive"]}
    assert secrets == {"platform.api_key", "identities[].api_key"}
    assert ui["platform.api_key"]["env"][:2] == ["CORE_AGENT_API_KEY", "CORE_BRAIN_KEY"]
    assert {path for path, setting in ui.items() if setting["restart"]} >= {"root", "state_dir", "limits.handlers"}
    platform = built["config_schema"]["properties"]["platform"]["properties"]["api_key"]
    assert platform["writeOnly"] is True
    assert "default" not in platform


def test_the_host_waits_longer_than_the_plugin_takes(built: dict[str, Any]) -> None:
    assert built["runtime"]["shutdown_grace_ms"] > Config().shutdown_grace_s * 1000


def test_no_setting_is_pinned_by_the_environment_of_the_launch(built: dict[str, Any]) -> None:
    assert built["runtime"]["env"] == {}


def test_a_stale_table_in_the_readme_is_told_and_brought_up_to_date(checkout: Path, methods: MethodTable) -> None:
    path = checkout / "README.md"
    fresh = path.read_text(encoding="utf-8")
    assert fresh.startswith("# before\n<!-- actions:begin -->\n| action |")
    assert fresh.endswith("<!-- config:end -->\nafter\n")
    assert "`agentic.sync.push`" in fresh
    assert "| `presence.interval_s` | `AGENTIC_SYNC_PRESENCE_INTERVAL_S` | `30` |" in fresh
    path.write_text(fresh.replace("| `30` |", "| `31` |"), encoding="utf-8")
    assert len(check(checkout, methods)) == 1
    readme.write(path, methods)
    assert path.read_text(encoding="utf-8") == fresh


def test_a_readme_without_its_markers_is_told_and_left_alone(checkout: Path, methods: MethodTable) -> None:
    path = checkout / "README.md"
    for text in ("# nothing\n", "<!-- config:begin -->\n", "<!-- config:begin -->\n<!-- config:end -->\n"):
        path.write_text(text, encoding="utf-8")
        assert len(check(checkout, methods)) == 1
        with pytest.raises(PluginError):
            readme.write(path, methods)
        assert path.read_text(encoding="utf-8") == text
    path.unlink()
    assert len(check(checkout, methods)) == 1


def test_a_launched_plugin_answers_as_its_manifest_says(built: dict[str, Any], tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path), "AGENTIC_SYNC_CONFIG": os.devnull, "AGENTIC_SYNC_SYNC_ENABLED": "false"}
    process = launch(find(), environ={"PATH": os.environ["PATH"], **home})
    requests = [
        {"jsonrpc": "2.0", "id": number, "method": method}
        for number, method in enumerate(("initialize", "rpc.discover"))
    ]
    done = subprocess.run(
        process.argv,
        input="".join(json.dumps(request) + "\n" for request in requests),
        cwd=process.cwd,
        env=dict(process.environ),
        capture_output=True,
        encoding="utf-8",
        check=True,
        timeout=40,
    )
    answers = {
        answer["id"]: answer["result"] for answer in map(json.loads, done.stdout.splitlines()) if "result" in answer
    }
    for member in ("actions", "host_callbacks", "capabilities"):
        assert answers[0][member] == built[member]
    described = {method["name"]: method for method in answers[1]["methods"]}
    for action in built["actions"]:
        names = [param["name"] for param in described[action["name"]]["params"]]
        assert names == list(action["params_schema"]["properties"])
        assert described[action["name"]].get("x-aliases", []) == action["aliases"]


def test_an_installed_package_has_no_files_to_write_or_check(
    tmp_path: Path, methods: MethodTable, capsys: pytest.CaptureFixture[str]
) -> None:
    for options in (argparse.Namespace(write=True, check=False), argparse.Namespace(write=False, check=True)):
        assert act(options, root=tmp_path, table=methods) == 1
        assert str(tmp_path) in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
