"""The method table of the plugin: every name that a host may call, in one place."""

from collections.abc import Awaitable
from typing import Annotated, Any, Protocol

from msgspec import UNSET, Meta, Struct

from plugin import errors
from plugin.errors import ConfigInvalid, PluginError
from plugin.presence.status import (
    AgentStateChangedParams,
    PresenceStatus,
    PresenceStatusParams,
    RefreshParams,
    RefreshResult,
)
from plugin.sync.params import PullParams, PullResult, PushParams, PushResult, StatusParams, SyncStatus
from protocol.errors import Code, ErrorData, RpcError
from protocol.methods import Context, Method, MethodTable

PROTOCOL_VERSION = 1


_OWN_ERRORS = (
    errors.Upstream,
    errors.Unauthorised,
    errors.HostCallFailed,
    errors.StoreInUse,
    errors.ConfigInvalid,
    errors.QueueFull,
    errors.StoreUnavailable,
)
ERRORS = {
    Code.PROTOCOL_VERSION: "The protocol version is not spoken here",
    **{error.code: (error.__doc__ or "").partition("\n")[0] for error in _OWN_ERRORS},
}
"""What a method of the plugin may be answered with, beside what any peer says."""


class Nothing(Struct, frozen=True, kw_only=True):
    """No parameters, or an empty answer."""


class Party(Struct, frozen=True, kw_only=True):
    """Who is at one end of the wire."""

    name: str
    version: str | None = None


class InitializeParams(Struct, frozen=True, kw_only=True):
    """What a host says of itself, and the configuration it gives."""

    protocol_version: int | None = None
    host: Party | None = None
    config: dict[str, object] | None = None


class Capabilities(Struct, frozen=True, kw_only=True):
    """What this plugin can do on the wire."""

    framing: tuple[str, ...] = ("ndjson", "content-length")
    batch: bool = True
    cancel: bool = True
    progress: bool = True
    configure: bool = True
    agent_state_changed: bool = True


class InitializeResult(Struct, frozen=True, kw_only=True):
    """Who the plugin is and what it offers; `actions` and `host_callbacks` are the manifest's."""

    protocol_version: int
    plugin: Party
    actions: list[dict[str, object]]
    host_callbacks: list[dict[str, object]]
    capabilities: Capabilities


class ConfigureParams(Struct, frozen=True, kw_only=True):
    """The whole configuration that the host gives from now on."""

    config: dict[str, object]


class ConfigureResult(Struct, frozen=True, kw_only=True):
    """What a new configuration changed, as dotted paths."""

    applied: bool
    changed: Annotated[list[str], Meta(examples=[["platform.base_url"]])]


class Handlers(Protocol):
    """What the application does for each method; every one may raise a PluginError."""

    async def initialize(self, context: Context, params: InitializeParams, /) -> InitializeResult:
        """Agree on the protocol's version and take the host's configuration."""
        ...

    async def configure(self, context: Context, params: ConfigureParams, /) -> ConfigureResult:
        """Replace the configuration that the host gave."""
        ...

    def discover(self, context: Context, params: Nothing, /) -> dict[str, object]:
        """Describe every method as an OpenRPC document."""
        ...

    async def shutdown(self, context: Context, params: Nothing, /) -> None:
        """Stop the work, record it, and say that presence is over."""
        ...

    def exit(self, context: Context, params: Nothing, /) -> None:
        """End the process."""
        ...

    async def push(self, context: Context, params: PushParams, /) -> PushResult:
        """Bring finished work to the platform."""
        ...

    async def pull(self, context: Context, params: PullParams, /) -> PullResult:
        """Bring fleet context back."""
        ...

    async def sync_status(self, context: Context, params: StatusParams, /) -> SyncStatus:
        """Say how sync stands."""
        ...

    def presence_status(
        self, context: Context, params: PresenceStatusParams, /
    ) -> PresenceStatus | Awaitable[PresenceStatus]:
        """Say what every guild shows."""
        ...

    async def presence_refresh(self, context: Context, params: RefreshParams, /) -> RefreshResult:
        """Send every status again."""
        ...

    def agent_state_changed(self, context: Context, params: AgentStateChangedParams, /) -> Awaitable[None] | None:
        """Take a change that the host pushes."""
        ...


def _ping(_context: Context, _params: Nothing) -> Nothing:
    return Nothing()


def _initialized(_context: Context, _params: Nothing) -> None:
    return None


def method_table(handlers: Handlers) -> MethodTable:
    """List every method that the plugin serves, bound to what does it."""
    return MethodTable([*_begin(handlers), *_about(handlers), *_end(handlers), *_sync(handlers), *_presence(handlers)])


def _begin(handlers: Handlers) -> list[Method[Any]]:
    return [
        Method(
            name="initialize",
            handler=handlers.initialize,
            params=InitializeParams,
            result=InitializeResult,
            title="Initialize",
            description="Agree on the protocol's version, take the host's configuration, say what the plugin offers.",
        ),
        Method(
            name="initialized",
            handler=_initialized,
            params=Nothing,
            notification=True,
            title="Initialized",
            description="Accepted; nothing depends on it.",
        ),
        Method(
            name="configure",
            handler=handlers.configure,
            params=ConfigureParams,
            result=ConfigureResult,
            title="Configure",
            description="Replace the whole configuration that the host gave before, without losing state.",
        ),
    ]


def _about(handlers: Handlers) -> list[Method[Any]]:
    return [
        Method(
            name="ping",
            handler=_ping,
            params=Nothing,
            result=Nothing,
            urgent=True,
            title="Ping",
            description="Answered even when every handler is busy.",
        ),
        Method(
            name="rpc.discover",
            handler=handlers.discover,
            params=Nothing,
            result=dict[str, Any],
            title="Discover",
            description="Describe every method as an OpenRPC document.",
        ),
    ]


def _end(handlers: Handlers) -> list[Method[Any]]:
    return [
        Method(
            name="shutdown",
            handler=handlers.shutdown,
            params=Nothing,
            result=None,
            urgent=True,
            title="Shut down",
            description="Stop the work, record what is in flight, set presence offline; then wait for exit.",
        ),
        Method(
            name="exit",
            handler=handlers.exit,
            params=Nothing,
            notification=True,
            urgent=True,
            title="Exit",
            description="End the process: code 0 after shutdown, else 1.",
        ),
    ]


def _sync(handlers: Handlers) -> list[Method[Any]]:
    return [
        Method(
            name="agentic.sync.push",
            aliases=("agent.sync.push",),
            handler=handlers.push,
            params=PushParams,
            result=PushResult,
            timeout_ms=30_000,
            idempotent=False,
            title="Push finished work",
            description="Store dispatches in the outbox, or scan workspaces for finished ones, and send what is due.",
        ),
        Method(
            name="agentic.sync.pull",
            aliases=("agent.sync.pull",),
            handler=handlers.pull,
            params=PullParams,
            result=PullResult,
            timeout_ms=35_000,
            idempotent=True,
            title="Pull fleet context",
            description="Fetch fleet context into the cache; answer from the cache when the platform can't be reached, "
            "or hasn't answered after 5 s.",
        ),
        Method(
            name="agentic.sync.status",
            aliases=("agent.sync.status",),
            handler=handlers.sync_status,
            params=StatusParams,
            result=SyncStatus,
            timeout_ms=35_000,
            idempotent=True,
            title="Sync status",
            description="Say what is queued, dead and delivered, and how the platform and the store are.",
        ),
    ]


def _presence(handlers: Handlers) -> list[Method[Any]]:
    return [
        Method(
            name="agentic.presence.status",
            handler=handlers.presence_status,
            params=PresenceStatusParams,
            result=PresenceStatus,
            timeout_ms=5_000,
            idempotent=True,
            title="Presence status",
            description="Say what every agent is doing and what every guild was last told.",
        ),
        Method(
            name="agentic.presence.refresh",
            handler=handlers.presence_refresh,
            params=RefreshParams,
            result=RefreshResult,
            timeout_ms=10_000,
            idempotent=True,
            title="Refresh presence",
            description="Send every status again, now.",
        ),
        Method(
            name="AgentStateChanged",
            handler=handlers.agent_state_changed,
            params=AgentStateChangedParams,
            notification=True,
            urgent=True,  # it must not wait behind pushes that wait for the platform
            title="Agent state changed",
            description="The host pushes a change; presence follows at once instead of at the next poll.",
        ),
    ]


def to_rpc_error(error: Exception) -> RpcError | None:
    """Put a PluginError into the wire's form; None for anything else."""
    if not isinstance(error, PluginError):
        return None
    detail = (
        [{"path": path, "problem": text} for path, text in error.problems] if isinstance(error, ConfigInvalid) else None
    )
    data = ErrorData(
        kind=error.kind,
        retryable=error.retryable,
        retry_after_ms=UNSET if error.retry_after_s is None else round(error.retry_after_s * 1000),
        path=UNSET if error.path is None else error.path,
        detail=UNSET if detail is None else detail,
    )
    return RpcError(error.code, error.message, data)
