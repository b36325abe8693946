"""Which faults a run gets: drawn from its seed before it begins, as a list, so that a shorter one can be tried as well.

Knows nothing of how they are brought about. The rule: a fault says when it begins, how long it lasts and how strong it
is, and has a number that its further choices are drawn from.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

__all__ = ["KINDS", "Fault", "draw_faults"]


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. ``value`` is its strength, ``number`` what its choices are drawn from."""

    kind: str
    at: float
    duration: float
    value: float
    number: int

    def __str__(self) -> str:
        return f"{self.kind} at {self.at:.3f} s for {self.duration:.3f} s, strength {self.value:.3g} (#{self.number})"


#: For each kind: how often it is drawn, the longest duration, the range of its strength, how many there are at most.
KINDS: dict[str, tuple[float, float, float, float, int]] = {
    "partition": (0.6, 3.0, -2, 7, 4),
    "loss": (0.3, 3.0, 0.02, 0.3, 2),
    "reply loss": (0.3, 3.0, 0.02, 0.3, 2),
    "duplicates": (0.3, 4.0, 0.05, 0.5, 2),
    "delay": (0.4, 3.0, 0.01, 0.1, 2),
    "slow link": (0.35, 3.0, 0.02, 0.5, 3),
    "reconnect": (0.4, 0.0, 1, 6, 4),
    "kill": (0.4, 2.0, 0, 1, 3),
    "power cut": (0.5, 2.0, 0, 25, 4),
    "power cut of all": (0.15, 1.0, 0, 1, 1),
    "power cut in the middle": (0.4, 1.0, 0, 8, 5),
    "pause": (0.3, 3.0, 0, 1, 2),
    "slow disk": (0.3, 2.0, 0.002, 0.2, 2),
    "hanging disk": (0.15, 1.0, 0.5, 2.0, 1),
    "failed sync": (0.25, 1.0, 0, 1, 2),
    "full disk": (0.2, 1.5, 0, 1, 1),
    "clock rate": (0.2, 3.0, 0.5, 2.0, 2),
    "clock step": (0.2, 2.0, -32400, 32400, 2),
    "foreign crash": (0.15, 1.0, 0, 1, 2),
    "flipped bit": (0.08, 1.0, 0, 1, 1),
    "compaction": (0.6, 0.0, 0, 1, 8),
    "change of members": (0.4, 0.0, 1, 5, 5),
    "transfer": (0.2, 0.0, 0, 1, 3),
}


def draw_faults(seed: int, seconds: float) -> list[Fault]:
    """The faults of a seed, in the order of their beginning: each kind is on or off, at least one is on."""
    random = Random(f"{seed} faults")
    kinds = [kind for kind, (share, *_) in KINDS.items() if random.random() < share]
    kinds = kinds or [random.choice(list(KINDS))]
    faults = []
    for kind in kinds:
        _, longest, low, high, count_max = KINDS[kind]
        for _ in range(random.randint(1, count_max)):
            at = random.uniform(0.3, seconds - 1.0)
            # Some are over before an election is.
            duration = random.uniform(0.1, 1.0) ** random.choice((1, 2)) * longest
            faults.append(Fault(kind, at, duration, random.uniform(low, high), random.randrange(1 << 30)))
    return sorted(faults, key=lambda fault: (fault.at, fault.kind, fault.number))
