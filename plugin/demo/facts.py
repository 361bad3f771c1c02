"""What the demo shows at one moment, as values: gathered by the world, drawn by the screen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Finished work, counted at both ends: what the agents made, and what the platform has."""

    made: int = 0
    delivered: int = 0
    queued: int = 0
    dead: int = 0
    requests: int = 0
    resent: int = 0
    platform_up: bool = False
    plugin_pid: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that must be so at the end, and whether it is."""

    name: str
    found: str
    good: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """One frame of the demo."""

    elapsed_s: float = 0.0
    step: int = 0  # from 1; its sentence is outline[step - 1]
    outline: Sequence[str] = ()
    work: Work = Work()
    depths: Sequence[int] = ()  # how full the outbox was, oldest first
    guilds: Sequence[str] = ()
    doing: Mapping[str, str] = field(default_factory=dict[str, str])  # agent -> the host's word
    shown: Mapping[str, Sequence[str]] = field(
        default_factory=dict[str, Sequence[str]]
    )  # agent -> what each guild shows
    events: Sequence[str] = ()
    checks: Sequence[Check] = ()
