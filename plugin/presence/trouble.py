"""Say that something is wrong once, then every ten minutes how often, and once when it is over."""

import logging
from dataclasses import dataclass, field

from plugin.clock import Clock

REPEAT_S = 600.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Trouble:
    """A kind of trouble: what is logged when it starts, and when it ends for all whom it affects.

    It is logged again while it lasts if it `repeats`; if it is about `each`, also for another reason, and when others
    have joined.
    """

    starts: str
    ends: str
    level: int = logging.WARNING
    repeats: bool = True
    each: bool = True


@dataclass(slots=True)
class _Episode:
    """One reason at one place."""

    reason: str
    logged_at: float = 0.0
    count: int = 0
    told: set[str] = field(default_factory=set[str])  # whom a line has counted


@dataclass(slots=True)
class _Place:
    """A trouble at one place: whom it affects, each with the episode that did so last, and its episodes."""

    affected: dict[str, _Episode] = field(default_factory=dict[str, _Episode])
    episodes: dict[str, _Episode] = field(default_factory=dict[str, _Episode])


class Troubles:
    """Hold the troubles that last, each with where it is and whom it affects; `tell` of those who joined now and then.

    A thousand who are affected at once are two lines: the first of them, then how many there are.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._open: dict[tuple[Trouble, str], _Place] = {}

    def add(self, trouble: Trouble, *, where: str, who: str, reason: str) -> None:
        """Count that `who` has this trouble at `where`; log it if the reason is news, or if it has lasted long."""
        place = self._open.setdefault((trouble, where), _Place())
        key = reason if trouble.each else ""
        news = key not in place.episodes
        episode = place.episodes.setdefault(key, _Episode(reason))
        place.affected[who] = episode
        episode.count += 1
        if news or (trouble.repeats and self._clock.monotonic() - episode.logged_at >= REPEAT_S):
            episode.reason = reason
            self._log(trouble, where, who, place, episode)

    def tell(self) -> None:
        """Log how many have joined each trouble, where some have since it was logged."""
        for (trouble, where), place in self._open.items():
            for episode in place.episodes.values() if trouble.each else ():
                joined = [who for who, one in place.affected.items() if one is episode and who not in episode.told]
                if joined:
                    self._log(trouble, where, joined[-1], place, episode)

    def forget(self, who: str) -> None:
        """`who` is no more: every trouble it had is over."""
        for trouble, where in [key for key, place in self._open.items() if who in place.affected]:
            self.end(trouble, where=where, who=who)

    def end(self, trouble: Trouble, *, where: str, who: str) -> None:
        """`who` has it no longer; log it when that was the last one."""
        place = self._open.get((trouble, where)) if self._open else None
        if place is None or who not in place.affected:
            return
        del place.affected[who]
        for episode in place.episodes.values():
            episode.told.discard(who)
        if not place.affected:
            del self._open[trouble, where]
            count = sum(episode.count for episode in place.episodes.values())
            _log.info(trouble.ends, extra={"fields": {"where": where, "who": who, "count": count}})

    def _log(self, trouble: Trouble, where: str, who: str, place: _Place, episode: _Episode) -> None:
        affected = [name for name, one in place.affected.items() if one is episode]
        episode.logged_at = self._clock.monotonic()
        episode.told.update(affected)
        fields = {"where": where, "who": who, "reason": episode.reason, "count": episode.count}
        fields["affected"] = len(affected)
        _log.log(trouble.level, trouble.starts, extra={"fields": fields})
