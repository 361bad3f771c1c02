"""What the three actions take alike: an agent under one of its names, a fleet node."""

from typing import Annotated

from msgspec import Meta

from plugin.errors import BadParams

MAX_AGENT_CHARS = 255  # what the platform takes
_MAX_NODE = 2**63 - 1

_Agent = Annotated[str, Meta(max_length=MAX_AGENT_CHARS)]
AgentName = Annotated[_Agent | None, Meta(description="The agent; the configured one when absent.")]
AgentAlias = Annotated[_Agent | None, Meta(description="Another name of agent_id.")]
FleetNode = Annotated[
    Annotated[int, Meta(ge=0, le=_MAX_NODE)] | str | None,
    Meta(description="The fleet node that the work belongs to; kept in the history, never sent."),
]


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
