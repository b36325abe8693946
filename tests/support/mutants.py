"""Known bugs of Raft implementations as switches: each patches the code under test while its context lasts.

``python tests/support/mutants.py`` looks for the first seed of the simulator that catches each, up to 2,000.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

from support.mutant import Mutant
from support.mutants_of_raft import RAFT
from support.mutants_of_server import SERVER
from support.mutants_of_storage import STORAGE
from zmqraft.testing.simulator import RunResult, run_seed

MUTANTS = RAFT + SERVER + STORAGE
#: The first seed that finds each.
SEEDS = {
    "vote is forgotten": 1,
    "candidates do not vote for themselves": 1,
    "late replies are taken for answers": 1,
    "a refusal leads below the match": 47,
    "own vote does not count in a joint configuration": 15,
    "any candidate gets the vote": 3,
    "a candidate waits for votes instead of answers": 4,
    "a leader without a majority leads on": 1,
    "appends cut the log": 5,
    "unverified entries commit": 60,
    "match survives its term": 41,
    "match goes back": 4,
    "an append below the snapshot is refused": 70,
    "an append below the commit index is refused": 12,
    "leader counts what it has not synced": 1,
    "members change without a joint configuration": 8,
    "new majority is enough": 8,
    "configuration outlives its entry": 8,
    "only who began a change ends it": 8,
    "a new leader appends nothing": 11,
    "the final configuration does not wait": 8,
    "vote is not stored": 1,
    "applied before it is committed": 1,
    "what was applied before a restart is not applied again": 1,
    "updates outlive the term in which they came": 30,
    "request ids are not looked up": 1,
    "request ids do not travel with a snapshot": 6,
    "a message that does not decode stops the peer": 5,
    "entries are applied over an installed snapshot": 6,
    "a snapshot has the newest configuration": 10,
    "nothing is synced": 1,
    "failed syncs are ignored": 7,
    "a failed write is passed over": 1,
    "new names are not synced": 1,
}
#: Those that 2,000 seeds did not find: they need more leaders in a row than faults bring about, and a power cut between
#: a truncation and the next sync, which brings back nothing that matters.
NOT_FOUND_BY_SEEDS = frozenset({"older terms commit by counting", "truncation is not synced"})
#: Those that no seed can find, since what they spoil is not in the simulator, or not in its invariants.
NOT_SIMULATED = frozenset(
    {
        # They only disturb or slow down, as far as faults do not.
        "refusals state the term of before",
        "a rejected candidate restarts the timer",
        "a leader that is heard keeps nobody from voting",
        "who was removed is listened to",
        "conflicts are found one by one",
        "strangers are not voted for",
        "a removed leader leaves at once",
        "a leader whose disk hangs leads on",
        # They only matter together with another bug.
        "a second leader of a term is followed",
        "a failed write is forgotten",
        # No disk is lost, and no state file is of somebody else.
        "a follower that has lost its data is asked on and on",
        "a follower that has lost its data is counted",
        "a follower that has lost its data confirms reads",
        "an id that comes back is the peer that it was",
        "a vote outlives its term on disk",
        "a term below the log's is taken as it is",
        "zeros at the end are taken for entries",
        # Clients repeat what is not answered, know the secret, and are few.
        "the last reply goes to the route of the first request",
        "a change is done when it is appended",
        "any secret is good",
        "updates without bound are taken",
    }
)


def first_seed(mutant: Mutant, seeds_max: int = 2000) -> RunResult | None:
    """The first seed of the simulator that catches it."""
    with mutant.patch():
        for seed in range(1, seeds_max + 1):
            result = run_seed(seed)
            if result.violation not in (None, "undelivered"):
                return result
    return None


if __name__ == "__main__":
    for each in MUTANTS:
        if len(sys.argv) < 2 or any(word in each.name for word in sys.argv[1:]):
            began = time.process_time()
            found = first_seed(each)
            what = "not in 2,000 seeds" if found is None else f"seed {found.seed}, {found.message:.150}"
            print(f"{each.name}: {what} ({time.process_time() - began:.1f} s)", flush=True)
