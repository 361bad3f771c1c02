"""Say that something is wrong once, then every ten minutes how often, and once when it is over."""

import logging
from dataclasses import dataclass, field

from plugin.clock import Clock

REPEAT_S = 600.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Trouble:
    """A kind of trouble: what is logged when it starts, and when it ends for all whom it affects.

    It is logged again while it lasts if it `repeats`, and for each that is newly affected if it is about `each`.
    """

    starts: str
    ends: str
    level: int = logging.WARNING
    repeats: bool = True
    each: bool = True


@dataclass(slots=True)
class _Episode:
    logged_at: float
    count: int = 0
    affected: set[str] = field(default_factory=set[str])


class Troubles:
    """Hold the troubles that last, each with where it is and whom it affects."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._open: dict[tuple[Trouble, str], _Episode] = {}

    def add(self, trouble: Trouble, *, where: str, who: str, reason: str) -> None:
        """Count that `who` has this trouble at `where`; log it if that is news, or if it has lasted long."""
        now = self._clock.monotonic()
        episode = self._open.get((trouble, where))
        news = episode is None or (trouble.each and who not in episode.affected)
        if episode is None:
            episode = self._open[trouble, where] = _Episode(logged_at=now)
        episode.count += 1
        episode.affected.add(who)
        if news or (trouble.repeats and now - episode.logged_at >= REPEAT_S):
            episode.logged_at = now
            fields = {"where": where, "who": who, "reason": reason, "count": episode.count}
            fields["affected"] = len(episode.affected)
            _log.log(trouble.level, trouble.starts, extra={"fields": fields})

    def forget(self, who: str) -> None:
        """`who` is no more: every trouble it had is over."""
        for trouble, where in [key for key, episode in self._open.items() if who in episode.affected]:
            self.end(trouble, where=where, who=who)

    def end(self, trouble: Trouble, *, where: str, who: str) -> None:
        """`who` has it no longer; log it when that was the last one."""
        episode = self._open.get((trouble, where)) if self._open else None
        if episode is None or who not in episode.affected:
            return
        episode.affected.remove(who)
        if not episode.affected:
            del self._open[trouble, where]
            _log.info(trouble.ends, extra={"fields": {"where": where, "who": who, "count": episode.count}})
