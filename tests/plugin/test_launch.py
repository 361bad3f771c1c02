import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from plugin.errors import PluginError
from plugin.launch import find, launch

RUNTIME: dict[str, Any] = {
    "type": "python",
    "command": "some-plugin",
    "args": [],
    "cwd": "${__dirname}",
    "env": {},
    "start_timeout_ms": 1,
    "shutdown_grace_ms": 1,
    "restart": {"policy": "never", "delay_ms": 1, "max_delay_ms": 1},
}


def write(folder: Path, **runtime: object) -> Path:
    path = folder / "manifest.json"
    path.write_text(json.dumps({"more": 1, "runtime": {**RUNTIME, **runtime}}), encoding="utf-8")
    return path


def executable(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.touch()
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_the_places_in_a_manifest_take_the_folder_and_the_hosts_settings(tmp_path: Path) -> None:
    settings = {"log": {"level": "debug"}, "limits": {"handlers": 2}, "sync": {"enabled": False}, "agent_id": None}
    path = write(
        tmp_path,
        command="${__dirname}/run",
        args=["${config.log.level}-${config.limits.handlers}", "${config.sync.enabled}", "$HOME {}"],
        cwd="${__dirname}/sub",
        env={"A": "[${config.agent_id}${config.no.such}${config.log.level.deeper}]", "B": "${config.log}"},
    )
    executable(tmp_path / "run")
    started = launch(path, environ={"A": "old", "C": "kept"}, config=settings)
    assert started.argv == (str(tmp_path / "run"), "debug-2", "false", "$HOME {}")
    assert started.cwd == tmp_path / "sub"
    assert started.environ == {"A": "[]", "B": '{"level":"debug"}', "C": "kept"}


def test_a_command_is_found_on_the_path_and_in_the_running_environment(tmp_path: Path) -> None:
    path = write(tmp_path)
    found = executable(tmp_path / "bin" / "some-plugin")
    assert launch(path, environ={"PATH": str(found.parent)}).argv == (str(found),)
    script = Path(sys.executable).parent / "python"
    assert launch(write(tmp_path, command="python"), environ={"PATH": "/nowhere"}).argv == (str(script),)


def test_an_executable_stands_in_for_the_command_and_keeps_the_arguments(tmp_path: Path) -> None:
    path = write(tmp_path, args=["serve"])
    assert launch(path, environ={}, executable=["python", "-m", "x"]).argv == ("python", "-m", "x", "serve")


def test_a_relative_folder_is_below_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, cwd=".")
    monkeypatch.chdir(tmp_path)
    assert launch(Path("manifest.json"), environ={}, executable=["x"]).cwd == tmp_path


@pytest.mark.parametrize("runtime", [{"args": ["${env.HOME}"]}, {"cwd": "${config.}"}, {"command": "${__filename}"}])
def test_an_unknown_place_is_an_error(tmp_path: Path, runtime: dict[str, Any]) -> None:
    with pytest.raises(PluginError):
        launch(write(tmp_path, **runtime), environ={"PATH": os.defpath}, executable=None)


def test_a_command_that_is_nowhere_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PluginError):
        launch(write(tmp_path), environ={"PATH": str(tmp_path)})


def test_what_is_no_manifest_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    for content in (None, b"{", b"\xff", b"[]", b"{}", b'{"runtime": {"type": "python"}}'):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(PluginError):
            launch(path, environ={})


def test_the_manifest_of_this_plugin_is_found() -> None:
    assert find().name == "manifest.json"
    assert find().parent == Path(__file__).parent.parent.parent
