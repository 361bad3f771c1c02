"""Every setting, its type and its default: the one source of the config schema, the README's table and the loader.

Times are seconds, sizes are bytes. Where each value comes from is in `plugin/sources.py`.
"""

from typing import Annotated

from msgspec import Meta, Struct

from plugin.secret import Secret

Seconds = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]
Name = Annotated[str, Meta(min_length=1, max_length=255)]


class Platform(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The platform's API: where it is, who we are to it, and how it may be reached."""

    base_url: str = "https://api.lthn.sh"
    api_key: Secret | None = None
    api_key_env: str | None = None
    api_key_file: str | None = None
    timeout_s: Seconds = 30.0
    ca_file: str | None = None
    proxy: str | None = None
    allow_insecure_http: bool = False
    allow_hosts: tuple[str, ...] = ()


class Sync(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How finished work is scanned, batched and carried over from the Go agent."""

    enabled: bool = True
    batch_records: Annotated[int, Meta(ge=1, le=1000)] = 50
    batch_bytes: Annotated[int, Meta(ge=1024, le=64 * 1024 * 1024)] = 1024 * 1024
    mirror_json: bool = False
    import_core_state: bool = True


class Queue(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The caps of the outbox, dead letters included."""

    max_records: Count = 100_000
    max_bytes: Count = 512 * 1024 * 1024


class Fabric(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The guilds' center and the paths of their contract; presence is off without `center_url`."""

    center_url: str | None = None
    session_path: str = "/api/auth/agent/session"
    presence_path: str = "/api/agents/{user_id}/presence"
    timeout_s: Seconds = 10.0
    ca_file: str | None = None
    proxy: str | None = None
    allow_insecure_http: bool = False
    allow_hosts: tuple[str, ...] = ()


class Presence(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often presence is read and refreshed, and how hard a guild may be hit."""

    enabled: bool = True
    interval_s: Annotated[float, Meta(ge=0.1)] = 30.0
    refresh_s: Annotated[float, Meta(ge=1)] = 300.0
    source: Name = "plexum-host"
    concurrency_per_guild: Annotated[int, Meta(ge=1, le=64)] = 8
    offline_at_exit: bool = True


class Binding(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An agent that belongs to a guild; several channels of one guild are one target."""

    agent_id: Name
    guild_node_id: Name
    channel_id: str | None = None


class Identity(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who an agent is to the guilds; without `fabric_user_id` its session says."""

    agent_id: Name
    fabric_user_id: str | None = None
    enabled: bool = True
    api_key: Secret | None = None
    api_key_env: str | None = None
    api_key_file: str | None = None


class Host(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What this host calls the methods that the plugin asks of it."""

    read_agent_state_method: Name = "ReadAgentState"
    log_method: Name = "log"
    timeout_s: Seconds = 10.0


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of the wire; they cannot change at run time."""

    max_message_bytes: Annotated[int, Meta(ge=1024)] = 16 * 1024 * 1024
    handlers: Count = 8
    waiting: Count = 1024
    waiting_bytes: Count = 64 * 1024 * 1024


class Log(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is logged to the host."""

    level: Annotated[str, Meta(pattern="^(debug|info|warn|error)$")] = "info"


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole configuration; `agent_id`, `root` and `state_dir` are never empty once loaded."""

    agent_id: Annotated[str, Meta(max_length=255)] = ""
    root: str = ""
    state_dir: str = ""
    platform: Platform = Platform()
    sync: Sync = Sync()
    queue: Queue = Queue()
    fabric: Fabric = Fabric()
    presence: Presence = Presence()
    bindings: tuple[Binding, ...] = ()
    identities: tuple[Identity, ...] = ()
    host: Host = Host()
    limits: Limits = Limits()
    log: Log = Log()
    shutdown_grace_s: Seconds = 5.0
