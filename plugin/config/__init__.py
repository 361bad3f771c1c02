"""The configuration: every setting and its default, where values come from, and what may stand in them."""

from plugin.config.settings import (
    Binding,
    Config,
    Fabric,
    Host,
    Identity,
    Limits,
    Log,
    Platform,
    Presence,
    Queue,
    Sync,
    home,
)

__all__ = [
    "Binding",
    "Config",
    "Fabric",
    "Host",
    "Identity",
    "Limits",
    "Log",
    "Platform",
    "Presence",
    "Queue",
    "Sync",
    "home",
]
