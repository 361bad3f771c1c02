"""How the store and a platform's gate are, in the words that hosts are told."""

from enum import StrEnum


class GateState(StrEnum):
    """Whether requests may go to the platform."""

    READY = "ready"
    WAITING = "waiting"
    PARKED = "parked"


class StoreState(StrEnum):
    """How the store is; `recovered` is `ok` after a damaged file was set aside and salvaged."""

    OK = "ok"
    RECOVERED = "recovered"
    FULL = "full"
    READ_ONLY = "read_only"
    UNUSABLE = "unusable"
    IN_USE = "in_use"
