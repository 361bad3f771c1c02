"""Every setting, its type, default and help: the one source of the config schema, the README's table and the loader.

Times are seconds, sizes are bytes. Where each value comes from is in `plugin/config/sources.py`. Each field carries an
`About`: what a form calls it, what it does, which other environment names set it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from plugin.secret import Secret

MOST_SECONDS = 86_400.0  # one day: longer waits are mistakes, and infinity is none
MOST_COUNT = 2**53 - 1  # what every JSON reader keeps exact
_PRINTABLE = r"^[^\u0000-\u001f\u007f]*(?![\s\S])"

Seconds = Annotated[float, Meta(gt=0, le=MOST_SECONDS)]
Count = Annotated[int, Meta(ge=1, le=MOST_COUNT)]
Text = Annotated[str, Meta(pattern=_PRINTABLE)]
Name = Annotated[str, Meta(min_length=1, max_length=255, pattern=_PRINTABLE)]
Address = Annotated[str, Meta(min_length=1, pattern=_PRINTABLE)]
Level = Literal["debug", "info", "warn", "error"]


class About(Struct, frozen=True):
    """What a form and a reader need to know of a field beside its type."""

    label: str
    help: str
    environment: tuple[str, ...] = ()  # names that come before AGENTIC_SYNC_<PATH>
    expected: str | None = None  # in words, what the type cannot say
    default: str | None = None  # in words, a default that is reckoned at start
    advanced: bool = False
    restart: bool = False  # cannot change at run time


_CA_FILE = About(
    "Extra CA file", "A PEM file of certificate authorities trusted besides the system's own.", advanced=True
)
_PROXY = About(
    "Proxy",
    "The proxy that requests go through; the proxy variables of the environment are not read.",
    expected="an http or https URL",
    advanced=True,
)
_INSECURE = About(
    "Allow plain http", "Permit http to hosts other than this machine; tokens then travel unprotected.", advanced=True
)
_HOSTS = About(
    "Allowed hosts", "The only hosts that may be contacted, as `host` or `.domain`; empty means any.", advanced=True
)
_API_KEY_ENV = About("API key variable", "The environment variable that holds the API key.", advanced=True)


class Platform(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The platform's API: where it is, who we are to it, and how it may be reached."""

    base_url: Annotated[
        Address,
        About(
            "Platform URL",
            "Where the platform's API is; a path prefix is kept.",
            environment=("CORE_API_URL",),
            expected="an https URL",
        ),
    ] = "https://api.lthn.sh"
    api_key: Annotated[
        Secret | None,
        About(
            "Platform API key",
            "The token sent to the platform; prefer a file or a variable to writing it down.",
            environment=("CORE_AGENT_API_KEY", "CORE_BRAIN_KEY"),
        ),
    ] = None
    api_key_env: Annotated[Text | None, _API_KEY_ENV] = None
    api_key_file: Annotated[
        Text | None,
        About(
            "API key file",
            "The file that holds the platform's API key; it may appear or change later.",
            default="<CORE_HOME or HOME>/.claude/brain.key",
        ),
    ] = None
    timeout_s: Annotated[Seconds, About("Timeout", "Deadline of a whole request, in seconds.", advanced=True)] = 30.0
    ca_file: Annotated[Text | None, _CA_FILE] = None
    proxy: Annotated[Text | None, _PROXY] = None
    allow_insecure_http: Annotated[bool, _INSECURE] = False
    allow_hosts: Annotated[tuple[Name, ...], _HOSTS] = ()


class Sync(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How finished work is scanned, batched and carried over from the Go agent."""

    enabled: Annotated[bool, About("Sync", "Bring finished work to the platform.")] = True
    batch_records: Annotated[
        int, Meta(ge=1, le=1000), About("Records per request", "Most records in one request.", advanced=True)
    ] = 50
    batch_bytes: Annotated[
        int, Meta(ge=1024, le=64 * 1024 * 1024), About("Bytes per request", "Most bytes in one request.", advanced=True)
    ] = 1024 * 1024
    mirror_json: Annotated[
        bool,
        About("Mirror the queue", "Keep the Go agent's queue.json in step, for tools that read it.", advanced=True),
    ] = False
    import_core_state: Annotated[
        bool, About("Import the Go agent's state", "Take over its queue, ledger and context once.", advanced=True)
    ] = True


class Queue(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The caps of the outbox, dead letters included."""

    max_records: Annotated[Count, About("Most records", "Records that the outbox holds at most.", advanced=True)] = (
        100_000
    )
    max_bytes: Annotated[Count, About("Most bytes", "Bytes that the outbox holds at most.", advanced=True)] = (
        512 * 1024 * 1024
    )


class Fabric(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The guilds' center and the paths of their contract; presence is off without `center_url`."""

    center_url: Annotated[
        Text | None,
        About(
            "Fabric center URL",
            "Where agents log in to their guilds; presence is off without it.",
            expected="an https URL",
        ),
    ] = None
    session_path: Annotated[
        str,
        Meta(pattern=r"^/[^\u0000-\u0020\u007f?#]*(?![\s\S])"),
        About(
            "Session path", "The center's path for a login.", expected="a path that starts with a slash", advanced=True
        ),
    ] = "/api/auth/agent/session"
    presence_path: Annotated[
        str,
        Meta(pattern=r"^/[^\u0000-\u0020\u007f?#]*\{user_id\}[^\u0000-\u0020\u007f?#]*(?![\s\S])"),
        About(
            "Presence path",
            "A guild's path for the presence of a user.",
            expected="a path that starts with a slash and contains {user_id}",
            advanced=True,
        ),
    ] = "/api/agents/{user_id}/presence"
    timeout_s: Annotated[Seconds, About("Timeout", "Deadline of a whole request, in seconds.", advanced=True)] = 10.0
    ca_file: Annotated[Text | None, _CA_FILE] = None
    proxy: Annotated[Text | None, _PROXY] = None
    allow_insecure_http: Annotated[bool, _INSECURE] = False
    allow_hosts: Annotated[tuple[Name, ...], _HOSTS] = ()


class Presence(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often presence is read and refreshed, and how hard a guild may be hit."""

    enabled: Annotated[bool, About("Presence", "Show in every guild what its agents are doing.")] = True
    interval_s: Annotated[
        float,
        Meta(ge=0.1, le=MOST_SECONDS),
        About("Poll interval", "Seconds between two readings of an agent's state."),
    ] = 30.0
    refresh_s: Annotated[
        float,
        Meta(ge=1, le=MOST_SECONDS),
        About("Refresh interval", "Seconds after which an unchanged presence is sent again.", advanced=True),
    ] = 300.0
    source: Annotated[Name, About("Source", "The `source` sent with every presence.", advanced=True)] = "plexum-host"
    concurrency_per_guild: Annotated[
        int,
        Meta(ge=1, le=64),
        About(
            "Requests per guild",
            "Most requests in flight to one guild; fewer with more than 64 guilds, which share 512.",
            advanced=True,
        ),
    ] = 8
    offline_at_exit: Annotated[
        bool, About("Offline at exit", "Show every agent offline when the plugin ends; false for hot restarts.")
    ] = True


class Binding(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An agent that belongs to a guild; several channels of one guild are one target."""

    agent_id: Annotated[Name, About("Agent", "The agent, as the host names it.")]
    guild_node_id: Annotated[Name, About("Guild", "The guild's node id, as the session names it.")]
    channel_id: Annotated[Text | None, About("Channel", "The channel; presence does not depend on it.")] = None


class Identity(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who an agent is to the guilds; without `fabric_user_id` its session says."""

    agent_id: Annotated[Name, About("Agent", "The agent, as the host names it.")]
    fabric_user_id: Annotated[
        Text | None, About("Fabric user", "The agent's user id; without it, the one its session states.")
    ] = None
    enabled: Annotated[bool, About("Enabled", "Whether this agent's presence is shown.")] = True
    api_key: Annotated[Secret | None, About("API key", "The key that logs this agent in to the center.")] = None
    api_key_env: Annotated[Text | None, _API_KEY_ENV] = None
    api_key_file: Annotated[
        Text | None, About("API key file", "The file that holds the agent's API key; it may appear or change later.")
    ] = None


class Host(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What this host calls the methods that the plugin asks of it."""

    read_agent_state_method: Annotated[
        Name, About("State method", "What the host calls its ReadAgentState.", advanced=True)
    ] = "ReadAgentState"
    log_method: Annotated[Name, About("Log method", "What the host calls its log notification.", advanced=True)] = "log"
    timeout_s: Annotated[Seconds, About("Timeout", "Deadline of a call to the host, in seconds.", advanced=True)] = 10.0


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of the wire; they cannot change at run time."""

    max_message_bytes: Annotated[
        int,
        Meta(ge=1024, le=MOST_COUNT),
        About("Largest message", "Bytes of the largest message read.", advanced=True, restart=True),
    ] = 16 * 1024 * 1024
    handlers: Annotated[
        Count, About("Requests at once", "Requests that are handled at the same time.", advanced=True, restart=True)
    ] = 8
    waiting: Annotated[
        Count,
        About("Requests waiting", "Requests that may wait before more are refused.", advanced=True, restart=True),
    ] = 1024
    waiting_bytes: Annotated[
        Count, About("Bytes waiting", "Bytes of all requests that may wait.", advanced=True, restart=True)
    ] = 64 * 1024 * 1024


class Log(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is logged to the host."""

    level: Annotated[Level, About("Log level", "The least serious line that is sent to the host.")] = "info"


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole configuration; `agent_id`, `root` and `state_dir` are never empty once loaded."""

    agent_id: Annotated[
        Text,
        Meta(max_length=255),
        About(
            "Agent", "The agent that a call means when it names none.", environment=("AGENT_NAME",), default="host name"
        ),
    ] = ""
    root: Annotated[
        Text,
        About(
            "Root folder",
            "The Go agent's folder; workspaces are in `<root>/workspace`.",
            environment=("CORE_WORKSPACE",),
            default="<CORE_HOME or HOME>/Code/.core",
            restart=True,
        ),
    ] = ""
    state_dir: Annotated[
        Text,
        About("State folder", "Where the outbox and its ledger are kept.", default="<root>/sync", restart=True),
    ] = ""
    platform: Platform = Platform()
    sync: Sync = Sync()
    queue: Queue = Queue()
    fabric: Fabric = Fabric()
    presence: Presence = Presence()
    bindings: Annotated[
        tuple[Binding, ...], About("Bindings", "Which agent belongs to which guild; channels of one guild are one.")
    ] = ()
    identities: Annotated[tuple[Identity, ...], About("Identities", "Who each agent is to the guilds.")] = ()
    host: Host = Host()
    limits: Limits = Limits()
    log: Log = Log()
    shutdown_grace_s: Annotated[
        Seconds, About("Shutdown grace", "Seconds that a `shutdown` may take to finish its work.", advanced=True)
    ] = 5.0


def home(environ: Mapping[str, str]) -> Path:
    """Return the folder that the Go agent calls home: CORE_HOME, else HOME, else the account's."""
    return Path(environ.get("CORE_HOME") or environ.get("HOME") or Path.home())
