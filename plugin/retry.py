"""How long to wait before the next try: pure functions over a count, a schedule and a random number."""

from email.utils import parsedate_to_datetime

STEPS_S = (1.0, 5.0, 15.0, 60.0, 300.0)
JITTER = 0.2


def step_s(failures: int, *, rand: float, steps: tuple[float, ...] = STEPS_S, jitter: float = JITTER) -> float:
    """Return the wait in seconds after the n-th failure in a row (n >= 1): the n-th step, the last one for ever.

    `rand` is a number in [0, 1) that spreads the wait over +- `jitter` of the step.
    """
    step = steps[min(max(failures, 1), len(steps)) - 1]
    return step * (1 + jitter * (2 * rand - 1))


def full_jitter_s(failures: int, *, rand: float, first_s: float = 0.5, cap_s: float = 60.0) -> float:
    """Return the wait in seconds after the n-th failure in a row (n >= 1): anywhere up to first x 2^(n-1), capped."""
    ceiling = min(cap_s, first_s * 2.0 ** min(max(failures, 1) - 1, 32))
    return ceiling * rand


def retry_after_s(header: str | None, *, now: float, most_s: float) -> float | None:
    """Read a Retry-After header: seconds or an HTTP date against the wall clock `now`, clamped to [0, most_s].

    None when the header is absent or says nothing usable.
    """
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.isdigit():
        # Any count with this many digits is past the clamp, and too long for float().
        return most_s if len(text) > 15 else min(float(text), most_s)  # noqa: PLR2004
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    try:
        seconds = date.timestamp() - now
    except (OverflowError, ValueError):
        return None
    return min(max(seconds, 0.0), most_s)
