"""What can go wrong in the plugin, as values that the wire can carry.

    PluginError
    +-- ConfigInvalid        -32015  a setting is wrong; `problems` names every path
    +-- StoreUnavailable     -32017  disk full, read-only, or a newer schema
    |   +-- StoreInUse       -32014  another process owns the state folder
    +-- QueueFull            -32016  the caps of the outbox
    +-- Upstream             -32010  the other server did not do it
    |   +-- NoAnswer                 no (whole) answer came: the server may have done it all the same
    |   +-- Unauthorised     -32011  it refused the token
    +-- HostCallFailed       -32012  the host did not answer our call, or answered nonsense
    +-- BadEndpoint          -32015  a URL that must not be contacted
    +-- BadParams            -32602  a parameter is wrong in a way its type cannot say

Texts are for a person: what happened, where, what to do. No text ever holds a secret.
"""

from collections.abc import Sequence
from typing import ClassVar


class PluginError(Exception):
    """The root: a wire code, a stable `kind`, whether trying again can help, and where (`path`) it went wrong."""

    code: ClassVar[int] = -32603
    kind: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, path: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.path = path
        self.retry_after_s = retry_after_s


class ConfigInvalid(PluginError):
    """One or more settings are wrong; the configuration in force before stays."""

    code = -32015
    kind = "config_invalid"

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        """Take every (path, what is wrong and what was expected)."""
        self.problems = tuple(problems)
        super().__init__(
            "; ".join(f"{path}: {problem}" for path, problem in self.problems),
            path=self.problems[0][0] if self.problems else None,
        )


class StoreUnavailable(PluginError):
    """The store cannot take it now: disk full, folder read-only, file unusable, newer schema."""

    code = -32017
    kind = "store_unavailable"
    retryable = True


class StoreInUse(StoreUnavailable):
    """Another process owns the state folder; this one takes over when that one ends."""

    code = -32014
    kind = "store_in_use"

    def __init__(self, message: str, *, pid: int | None) -> None:
        super().__init__(message)
        self.pid = pid


class QueueFull(PluginError):
    """The outbox is at its cap; nothing of the refused call was stored."""

    code = -32016
    kind = "queue_full"
    retryable = True


class Upstream(PluginError):
    """A server answered, but not with what the contract says."""

    code = -32010
    kind = "upstream_unavailable"
    retryable = True


class NoAnswer(Upstream):
    """No whole answer came; whether the server acted is unknown. `cause` is one word for status and counters.

    Causes: timeout, refused, dns, tls, reset, not_http, too_large, closed.
    """

    def __init__(self, message: str, *, cause: str) -> None:
        super().__init__(message)
        self.cause = cause


class Unauthorised(Upstream):
    """The server refused the token."""

    code = -32011
    kind = "unauthorised"


class HostCallFailed(PluginError):
    """The host did not answer a call of ours, or answered with something else."""

    code = -32012
    kind = "host_callback_failed"
    retryable = True


class BadParams(PluginError):
    """A parameter is wrong; `path` says which."""

    code = -32602
    kind = "invalid_params"


class BadEndpoint(PluginError):
    """A URL that must not be contacted: wrong scheme, host, or form; the text says which rule."""

    code = -32015
    kind = "bad_endpoint"
