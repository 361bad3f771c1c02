"""What `initialize` tells of the actions: the manifest's own words, which were made from the code once and for all."""

from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from plugin import __version__, launch
from plugin.errors import PluginError
from protocol.methods import MethodTable


class Offer(Struct, frozen=True):
    """The part of a manifest that a host is told at the start."""

    version: str
    actions: list[dict[str, object]]
    host_callbacks: list[dict[str, object]]


def read(find: Callable[[], Path] = launch.find) -> Offer | None:
    """Return the offer of this plugin's manifest.json; None when the file is missing, broken or of another version."""
    try:
        found = msgspec.json.decode(find().read_bytes(), type=Offer)
    except (PluginError, OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    return found if found.version == __version__ else None


def build(table: MethodTable) -> Offer:
    """Make the offer from the code: the same, at the price of all the schemas."""
    from plugin import manifest  # noqa: PLC0415 - not wanted where the file is

    described = manifest.build(table)
    return Offer(version=__version__, actions=described["actions"], host_callbacks=described["host_callbacks"])
