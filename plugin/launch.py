"""From a manifest to a process: what a host does with `runtime`, and all that it must know to launch the plugin."""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, cast

import msgspec
from msgspec import Struct

from plugin.errors import PluginError

_PLACE = re.compile(r"\$\{([^}]*)\}")


class Restart(Struct, frozen=True, kw_only=True):
    """What the host does when the plugin ends by itself; waits double from `delay_ms` to `max_delay_ms`."""

    policy: Literal["never", "on-failure", "always"]
    delay_ms: int
    max_delay_ms: int


class Runtime(Struct, frozen=True, kw_only=True):
    """How the plugin is launched.

    In `command`, `args`, `cwd` and `env`, `${__dirname}` stands for the manifest's folder and `${config.KEY}` for what
    the host's configuration has at that dotted path, or nothing. A command without a slash is looked for on the PATH.
    """

    type: Literal["python"]
    command: str
    args: tuple[str, ...]
    cwd: str
    env: dict[str, str]
    start_timeout_ms: int
    shutdown_grace_ms: int
    restart: Restart


class _Launchable(Struct, frozen=True):
    """The part of a manifest that a launch needs."""

    runtime: Runtime


class Launch(Struct, frozen=True, kw_only=True):
    """A process to start."""

    argv: tuple[str, ...]
    cwd: Path
    environ: Mapping[str, str]


def find() -> Path:
    """Return the manifest of this very plugin: in the package when installed, above it in a checkout.

    Raises:
        PluginError: when it is in neither place.
    """
    package = Path(__file__).resolve().parent
    for folder in (package, package.parent):
        if (folder / "manifest.json").is_file():
            return folder / "manifest.json"
    raise PluginError(f"manifest.json is neither in {package} nor above it; install agentic-sync again")


def launch(
    path: Path,
    *,
    environ: Mapping[str, str],
    config: Mapping[str, object] | None = None,
    executable: Sequence[str] | None = None,
) -> Launch:
    """Read a manifest and return the process that it asks for; `executable` stands in for its command.

    Beside the PATH of `environ`, the folder of the running Python is searched for the command, and first: a plugin
    installed in a virtual environment is found though nobody activated it.

    Raises:
        PluginError: when the manifest can't be read, names an unknown `${...}`, or its command is nowhere.
    """
    runtime = _read(path).runtime
    folder = path.absolute().parent

    def fill(text: str) -> str:
        return _PLACE.sub(lambda found: _meaning(found[1], folder, config or {}), text)

    command = executable or (_locate(fill(runtime.command), environ),)
    return Launch(
        argv=(*command, *(fill(argument) for argument in runtime.args)),
        cwd=folder / fill(runtime.cwd),
        environ={**environ, **{name: fill(value) for name, value in runtime.env.items()}},
    )


def _read(path: Path) -> _Launchable:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Launchable)
    except OSError as exc:
        raise PluginError(f"{path} cannot be read: {exc.strerror}") from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise PluginError(f"{path} is no manifest: {exc}") from exc


def _meaning(name: str, folder: Path, config: Mapping[str, object]) -> str:
    if name == "__dirname":
        return str(folder)
    root, _, path = name.partition(".")
    if root != "config" or not path:
        raise PluginError(f"the manifest has ${{{name}}}; only ${{__dirname}} and ${{config.KEY}} are known")
    match _look_up(config, path):
        case None:
            return ""
        case str(text):
            return text
        case value:
            return msgspec.json.encode(value).decode()


def _look_up(tree: object, path: str) -> object:
    name, _, rest = path.partition(".")
    value = cast("Mapping[str, object]", tree).get(name) if isinstance(tree, Mapping) else None
    return _look_up(value, rest) if rest else value


def _locate(command: str, environ: Mapping[str, str]) -> str:
    folders = os.pathsep.join([str(Path(sys.executable).parent), environ.get("PATH", os.defpath)])
    import shutil  # noqa: PLC0415 - for hosts; the plugin itself only finds its manifest here

    found = shutil.which(command, path=folders)
    if found is None:
        raise PluginError(f"the command {command} is not found on the PATH; install agentic-sync, or name its place")
    return found
