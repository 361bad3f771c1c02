"""What a host reads before it launches the plugin, made from the code: the actions' structs and the settings.

The structs below are the format; `docs/manifest.schema.json` is made from them.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import msgspec
from msgspec import Struct, field

from plugin import __version__
from plugin.actions import PROTOCOL_VERSION, Capabilities
from plugin.config import Config, keys
from plugin.host import AgentState, LogParams, ReadAgentStateParams
from plugin.launch import Restart, Runtime
from protocol.methods import META, PROGRESS, Method, MethodTable
from protocol.openrpc import schema_of

ACTION_PREFIX = "agentic."
SCHEMA_FILE = "docs/manifest.schema.json"
_KILL_AFTER_MS = 1000  # past the plugin's own deadline
_CLOSED: dict[str, object] = {
    "patternProperties": {f"^{META}$": {}},
    "additionalProperties": False,
}  # what the plugin refuses by name


class Wire(Struct, frozen=True, kw_only=True):
    """How host and plugin speak."""

    jsonrpc: str
    version: int
    transport: Literal["stdio"]
    framing: tuple[str, ...]


class Compatibility(Struct, frozen=True, kw_only=True):
    """Where the plugin runs and which protocol versions it speaks."""

    python: str
    platforms: tuple[str, ...]
    protocol_versions: tuple[int, ...]


class Action(Struct, frozen=True, kw_only=True):
    """A method that the host may call; `timeout_ms` is how long to wait, `idempotent` that it may be called again."""

    name: str
    aliases: tuple[str, ...]
    title: str
    description: str
    params_schema: dict[str, Any]
    result_schema: dict[str, Any]
    timeout_ms: int | None
    idempotent: bool


class HostCallback(Struct, frozen=True, kw_only=True):
    """A method that the plugin calls on the host; a notification has no `result_schema`."""

    method: str
    required: bool
    reason: str
    params_schema: dict[str, Any]
    result_schema: dict[str, Any] | None


class Setting(Struct, frozen=True, kw_only=True):
    """How a form shows a setting; `env` are the variables that set it, `restart` that a change needs a new launch."""

    label: str
    help: str
    sensitive: bool
    advanced: bool
    restart: bool
    env: tuple[str, ...]


class Manifest(Struct, frozen=True, kw_only=True):
    """The whole of manifest.json."""

    schema: str = field(name="$schema")
    manifest_version: int
    id: str
    name: str
    version: str
    description: str
    license: str
    protocol: Wire
    runtime: Runtime
    compatibility: Compatibility
    actions: tuple[Action, ...]
    host_callbacks: tuple[HostCallback, ...]
    config_schema: dict[str, Any]
    config_ui: dict[str, Setting]
    capabilities: dict[str, Any]


class ProgressValue(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How much is done, of how much where that is known, and what a person may be told."""

    done: float
    total: float | None = None
    message: str | None = None


class ProgressParams(Struct, frozen=True, kw_only=True):
    """How far a call is that carried `_meta.progressToken`."""

    token: str | int | float
    value: ProgressValue


def build(table: MethodTable) -> dict[str, Any]:
    """Return the manifest as plain values, ready for JSON, in a stable order."""
    capabilities = Capabilities()
    manifest = Manifest(
        schema=f"./{SCHEMA_FILE}",
        manifest_version=1,
        id="agentic-sync",
        name="Agentic Sync",
        version=__version__,
        description="Brings finished agent work to a platform through a durable outbox, "
        "and keeps every guild's presence true.",
        license="EUPL-1.2",
        protocol=Wire(jsonrpc="2.0", version=PROTOCOL_VERSION, transport="stdio", framing=capabilities.framing),
        runtime=_runtime(),
        compatibility=Compatibility(
            python=">=3.11", platforms=("darwin", "linux"), protocol_versions=(PROTOCOL_VERSION,)
        ),
        actions=tuple(_action(method) for method in table if method.name.startswith(ACTION_PREFIX)),
        host_callbacks=_host_callbacks(),
        config_schema=keys.schema(),
        config_ui={key.path: _setting(key) for key in keys.table()},
        capabilities=msgspec.to_builtins(capabilities),
    )
    # Through JSON: the same lists and dicts as a host that reads the file has.
    return msgspec.json.decode(msgspec.json.encode(manifest))


def format_schema() -> dict[str, Any]:
    """Return the JSON Schema of the manifest's format."""
    return msgspec.json.decode(msgspec.json.encode(schema_of(Manifest)))


def render(document: Mapping[str, Any]) -> str:
    """Return a document as the text of its file."""
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"


def write(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document to its file."""
    path.write_text(render(document), encoding="utf-8")


def check(path: Path, document: Mapping[str, Any]) -> list[str]:
    """Return where a file differs from the document that the code makes; nothing when it is the same."""
    try:
        text = path.read_text(encoding="utf-8")
        found = msgspec.json.decode(text)
    except OSError as exc:
        return [f"{path.name}: cannot be read: {exc.strerror}"]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return [f"{path.name}: is not JSON"]
    there, here = dict(_leaves(found, "")), dict(_leaves(document, ""))
    places = [place for place in sorted(there | here) if there.get(place) != here.get(place)]
    problems = [f"{path.name}: {place} differs from the code" for place in places]
    if not problems and text != render(document):
        problems.append(f"{path.name}: says the same as the code in another form")
    return problems


def _runtime() -> Runtime:
    grace_ms = round(Config().shutdown_grace_s * 1000)
    return Runtime(
        type="python",
        command="agentic-sync",
        args=("serve",),
        cwd="${__dirname}",
        # No settings here: a variable comes before what `configure` says, and would pin it until the next launch.
        env={},
        start_timeout_ms=10_000,
        shutdown_grace_ms=grace_ms + _KILL_AFTER_MS,
        restart=Restart(policy="on-failure", delay_ms=1_000, max_delay_ms=60_000),
    )


def _action(method: Method[Any]) -> Action:
    return Action(
        name=method.name,
        aliases=method.aliases,
        title=method.title,
        description=method.description,
        params_schema={**schema_of(method.params), **_CLOSED},
        result_schema=schema_of(method.result),
        timeout_ms=method.timeout_ms,
        idempotent=method.idempotent,
    )


def _host_callbacks() -> tuple[HostCallback, ...]:
    host = Config().host
    return (
        HostCallback(
            method=host.read_agent_state_method,
            required=True,
            reason="Presence shows what each agent is doing; a plain text instead of the object is taken too. "
            "The setting host.read_agent_state_method renames it.",
            params_schema=schema_of(ReadAgentStateParams),
            result_schema=schema_of(AgentState),
        ),
        HostCallback(
            method=host.log_method,
            required=False,
            reason="Log lines, as notifications. The setting host.log_method renames it.",
            params_schema=schema_of(LogParams),
            result_schema=None,
        ),
        HostCallback(
            method=PROGRESS,
            required=False,
            reason="How far a long call is, as notifications, when the call carried _meta.progressToken.",
            params_schema=schema_of(ProgressParams),
            result_schema=None,
        ),
    )


def _setting(key: keys.Key) -> Setting:
    about = key.about
    return Setting(
        label=about.label,
        help=about.help,
        sensitive=key.secret,
        advanced=about.advanced,
        restart=about.restart,
        env=key.environment,
    )


def _leaves(value: object, place: str) -> Iterator[tuple[str, bytes]]:
    """Yield each leaf's place and its JSON, which tells true from 1."""
    if isinstance(value, Mapping) and value:
        for name, part in cast("Mapping[str, object]", value).items():
            yield from _leaves(part, f"{place}.{name}" if place else name)
    elif isinstance(value, list) and value:
        for position, part in enumerate(cast("list[object]", value)):
            yield from _leaves(part, f"{place}[{position}]")
    else:
        yield place or "all of it", msgspec.json.encode(value)
