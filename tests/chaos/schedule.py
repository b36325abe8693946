"""Which faults a run gets, and when: drawn from its seed before it begins.

Knows nothing of how they are brought about. The rule: faults come in storms, in two or three rows of them side by side,
so that none is alone, and behind each storm is a calm, in which the cluster gets on. The same seed, length and kinds
give the same faults.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from random import Random

__all__ = ["KINDS", "Fault", "draw_faults", "draw_size"]


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. Times are in seconds, ``at`` after the beginning of the first storm; ``number`` is what its further
    choices are drawn from. ``victim`` is the peer that has to be prepared for it before it starts."""

    kind: str
    at: float
    duration: float
    number: int
    victim: str | None = None

    def __str__(self) -> str:
        of = f" of {self.victim}" if self.victim else ""
        return f"{self.kind}{of} at {self.at:.1f} s for {self.duration:.1f} s (#{self.number})"


#: For each kind: how often it is drawn, and the range of its duration.
KINDS: dict[str, tuple[float, float, float]] = {
    "kill": (3, 0.3, 4),
    "kill of a minority": (2, 0.3, 4),
    "kill of all": (1, 0.3, 2),
    "pause": (3, 0.3, 20),
    "partition": (5, 0.4, 8),
    "slow disk": (2, 0.5, 6),
    "failing sync": (2, 0.5, 4),
    "full disk": (1.5, 0.5, 4),
    "clock step": (2, 1.5, 8),
    "change of members": (2.5, 0.3, 4),
    "hanging client": (2, 0.3, 8),
}
#: Kinds that come to a peer which is drawn beforehand.
_PREPARED = ("full disk", "clock step")
#: A disk is full only once in a storm: it may take until the end of that until somebody writes enough to notice.
_ONCE = "full disk"
_STORM_S = (2.0, 22.0)
_CALM_S = (2.0, 4.0)
#: The first faults of a storm begin within so many seconds: less than any lasts, so that they meet.
_GUST_S = 0.25
_SHORTEST_S = 0.3


def draw_size(seed: int) -> int:
    """How many peers the cluster of a seed has."""
    return 3 if seed % 2 else 5


def draw_faults(seed: int, seconds: float, kinds: Collection[str]) -> list[Fault]:
    """The faults of a seed, in the order of their beginning, all of them over after ``seconds``."""
    random = Random(f"{seed} faults")
    # Some runs are full of a kind, others have hardly any of it.
    weights = {kind: KINDS[kind][0] * random.choice((0.3, 1, 3)) for kind in KINDS if kind in kinds}
    prepared = {kind: str(random.randint(1, draw_size(seed))) for kind in _PREPARED}
    faults: list[Fault] = []
    storm = 0.0
    while seconds - storm >= 2 * _SHORTEST_S + _GUST_S:
        end = min(storm + _between(random, *_STORM_S), seconds)
        left = dict(weights)
        for _ in range(random.choice((2, 2, 3))):
            at = storm + random.uniform(0, _GUST_S)
            while end - at >= _SHORTEST_S:
                kind = random.choices(list(left), list(left.values()))[0]
                if kind == _ONCE:
                    del left[kind]
                _, shortest, longest = KINDS[kind]
                duration = _between(random, shortest, longest)
                if at + duration > end - _GUST_S - _SHORTEST_S:
                    # There is no room for another: it lasts until the end, so that no other one is left alone there.
                    duration = end - at
                faults.append(Fault(kind, at, duration, random.randrange(1 << 30), prepared.get(kind)))
                at += duration + random.uniform(0, _GUST_S)
        storm = end + random.uniform(*_CALM_S)
    return sorted(faults, key=lambda fault: (fault.at, fault.number))


def _between(random: Random, low: float, high: float) -> float:
    """Many short ones, some that are long."""
    return float(low * (high / low) ** random.random())
