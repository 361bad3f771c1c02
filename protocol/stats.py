"""What a connection has counted."""

from msgspec import Struct


class Stats(Struct, kw_only=True):
    """Counts since the connection began; the last two say how it is now."""

    requests: int = 0  # admitted
    notifications: int = 0  # admitted
    malformed: int = 0  # bytes that are no frame, payloads that are no message
    busy: int = 0  # requests refused for want of a place
    refused: int = 0  # requests refused since the intake was stopped
    duplicates: int = 0  # requests refused since their id was in flight
    cancelled: int = 0  # requests that were cancelled before they were through
    calls: int = 0  # of ours, sent
    timeouts: int = 0  # calls of ours that were not answered in time
    dropped_in: int = 0  # notifications that found no place, or came after the intake was stopped
    dropped_late: int = 0  # answers that nobody waited for
    dropped_out: int = 0  # messages of ours that could not be sent
    open_calls: int = 0  # calls of ours that wait for their answer
    unsent_bytes: int = 0  # of messages of ours that the other side has not taken
