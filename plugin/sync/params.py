"""What the three actions take and answer.

Apart from what does the work, so that a host learns of the actions before any of that is loaded.
"""

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from plugin.errors import BadParams
from plugin.store.state import GateState, StoreState

MAX_AGENT_CHARS = 255  # what the platform takes
_MAX_NODE = 2**63 - 1

_Agent = Annotated[str, Meta(max_length=MAX_AGENT_CHARS)]
AgentName = Annotated[_Agent | None, Meta(description="The agent; the configured one when absent.")]
AgentAlias = Annotated[_Agent | None, Meta(description="Another name of agent_id.")]
FleetNode = Annotated[
    Annotated[int, Meta(ge=0, le=_MAX_NODE)] | str | None,
    Meta(description="The fleet node that the work belongs to; kept in the history, never sent."),
]


class GateView(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The gate as a person sees it; `until` is when the next probe may go.

    Without it, it may go now: with the next work there is.
    """

    state: GateState
    reason: str | UnsetType = UNSET
    until: str | UnsetType = UNSET


class PushParams(Struct, frozen=True, kw_only=True):
    """Whose work, and which; without `dispatches`, or with none in it, finished workspaces are looked for."""

    agent_id: AgentName = None
    fleet_node_id: FleetNode = None
    dispatches: Annotated[
        list[dict[str, Any]] | dict[str, Any] | str | None,
        Meta(description="Finished work: a list of objects, one object, or a JSON string of either."),
    ] = None
    queue_only: Annotated[bool | None, Meta(description="Send what is queued; don't look for finished work.")] = None
    agent_id_dashed: AgentAlias = msgspec.field(default=None, name="agent-id")
    fleet_node_id_dashed: FleetNode = msgspec.field(default=None, name="fleet-node-id")
    arg: AgentAlias = msgspec.field(default=None, name="_arg")


class PushResult(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the platform acknowledged during the call, and what is left: all of one agent.

    `offline` says that nothing can be sent now, `error` why; what is queued goes out by itself later.
    """

    success: bool
    count: int
    queued: int
    dead: int
    offline: bool
    error: str | UnsetType = UNSET
    gate: GateView | UnsetType = UNSET


JsonObject = dict[str, Any]


class PullParams(Struct, frozen=True, kw_only=True):
    """For which agent, and from which time on."""

    agent_id: AgentName = None
    fleet_node_id: FleetNode = None
    since: Annotated[
        str | None, Meta(description="Only rows created at this time or later; they join those of earlier pulls.")
    ] = None
    agent_id_dashed: AgentAlias = msgspec.field(default=None, name="agent-id")
    fleet_node_id_dashed: FleetNode = msgspec.field(default=None, name="fleet-node-id")
    arg: AgentAlias = msgspec.field(default=None, name="_arg")


class PullResult(Struct, frozen=True, kw_only=True):
    """Rows, newest first; `stale` when they come from the cache, which was filled at `fetched_at`."""

    success: bool
    count: int
    context: list[JsonObject]
    stale: bool
    fetched_at: str | None


class StatusParams(Struct, frozen=True, kw_only=True):
    """For which agent; without one the queue's numbers are those of all agents."""

    agent_id: AgentName = None
    agent_id_dashed: AgentAlias = msgspec.field(default=None, name="agent-id")
    arg: AgentAlias = msgspec.field(default=None, name="_arg")


class StoreView(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the store is; `salvaged` and `lost` count rows of a damaged file, which lies in `set_aside`."""

    state: StoreState
    reason: str | UnsetType = UNSET
    salvaged: int | UnsetType = UNSET
    lost: int | UnsetType = UNSET
    set_aside: str | UnsetType = UNSET
    pid: int | UnsetType = UNSET


class SyncStatus(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How sync stands: `in_flight` counts requests, `ledger` records that the platform has, `bytes` what is queued.

    `enabled` is the setting `sync.enabled`: while it is false, nothing is sent.
    """

    agent_id: str
    status: str
    queued: int
    context_count: int
    dead: int
    bytes: int
    ledger: int
    in_flight: int
    enabled: bool
    gate: GateView
    store: StoreView
    last_push_at: str | UnsetType = UNSET
    last_pull_at: str | UnsetType = UNSET
    oldest_queued_at: str | UnsetType = UNSET
    remote_error: str | UnsetType = UNSET


def agent_of(*names: str | None, default: str) -> str:
    """Return the first name that is not empty."""
    return next(filter(None, names), default)


def node_of(*nodes: int | str | None) -> int | None:
    """Return the first node given, also when it is written as text; BadParams when that is no whole number."""
    node = next((node for node in nodes if node is not None and node != ""), None)
    if not isinstance(node, str):
        return node
    text = node.strip()
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(_MAX_NODE)) and int(text) <= _MAX_NODE):
        raise BadParams("fleet_node_id is not a whole number from 0", path="$.fleet_node_id")
    return int(text)
