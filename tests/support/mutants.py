"""Known bugs of Raft implementations as switches: each patches the code under test while its context lasts.

``python tests/support/mutants.py`` looks for the first seed of the simulator that catches each, up to 2,000; of those
that the simulator can express, unless they are named.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
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
    "a refusal leads below the match": 89,
    "refusals state the term of before": 1,
    "a rejected candidate restarts the timer": 2,
    "own vote does not count in a joint configuration": 7,
    "any candidate gets the vote": 1,
    "a leader that is heard keeps nobody from voting": 1,
    "who was removed is listened to": 1,
    "a candidate waits for votes instead of answers": 1,
    "a leader without a majority leads on": 1,
    "older terms commit by counting": 1,
    "appends cut the log": 3,
    "unverified entries commit": 18,
    "match survives its term": 106,
    "match goes back": 20,
    "an append below the snapshot is refused": 235,
    "an append below the commit index is refused": 7,
    "leader counts what it has not synced": 2,
    "conflicts are found one by one": 18,
    "a log that does not match stays behind a snapshot": 25,
    "an older snapshot is taken": 42,
    "members change without a joint configuration": 43,
    "new majority is enough": 12,
    "configuration outlives its entry": 27,
    "only who began a change ends it": 1,
    "a new leader appends nothing": 1,
    "the final configuration does not wait": 1,
    "strangers are not voted for": 12,
    "who is no member does not vote": 28,
    "vote is not stored": 1,
    "applied before it is committed": 1,
    "what was applied before a restart is not applied again": 1,
    "a sync of before counts in a later term": 951,
    "a leader whose disk hangs leads on": 371,
    "updates outlive the term in which they came": 31,
    "request ids are not looked up": 1,
    "request ids do not travel with a snapshot": 69,
    "ids that were forgotten are taken when the clock is set back": 189,
    "the last reply goes to the route of the first request": 14,
    "updates without bound are taken": 1340,
    "any secret is good": 1,
    "a message that does not decode stops the peer": 5,
    "a change is done when it is appended": 1,
    "a configuration is stored before its entry, and missed without it": 42,
    "reads are answered by whoever believes that it leads": 457,
    "a new leader answers reads before an entry of its term": 50,
    "entries are applied over an installed snapshot": 2,
    "a chunk that comes twice is written twice": 606,
    "another leader's chunks go on where the last one's ended": 1632,
    "the configuration of a snapshot is not taken": 42,
    "a snapshot has the newest configuration": 96,
    "nothing is synced": 1,
    "failed syncs are ignored": 6,
    "a failed write is passed over": 4,
    "new names are not synced": 1,
    "truncation is not synced": 372,
    "a half-made newest file stops the start": 5,
    "an interrupted installation is not noticed": 42,
    "zeros at the end are taken for entries": 2,
    "checksums are not compared": 1,
    "what a failed sync has left in the cache is believed": 20,
}
#: Those that no seed up to 2,000 has found, and what it takes.
NOT_FOUND_BY_SEEDS = frozenset(
    {
        # A candidate with a change that was cut off, whose members stay away.
        "a candidate waits for the majority of a configuration that is over",
        # A leader that has joined by somebody's snapshot, and a member behind that missed changes below it.
        "a snapshot without a configuration leaves the old one",
        # A read at a leader that is cut off, and answers to it which are late by an election.
        "answers of before a read confirm it",
        # A power cut between an installation and the end of its turn, with a change below the snapshot.
        "a peer does not look into its snapshot for the configuration",
    }
)
#: Those that no seed can find, since what they spoil is not in the simulator, or not in its invariants.
NOT_SIMULATED = frozenset(
    {
        # They only disturb or slow down, as far as faults do not.
        "a removed leader leaves at once",
        # They only matter together with another bug: peers refuse to do what it would do, and leaders tell nobody that
        # more is committed than what it has acknowledged to them.
        "a notice commits unverified entries",
        "a second leader of a term is followed",
        "a failed write is forgotten",
        # No disk is lost, and no state file is of somebody else.
        "a follower that has lost its data is asked on and on",
        "a follower that has lost its data is counted",
        "a follower that has lost its data confirms reads",
        "an id that comes back is the peer that it was",
        "a vote outlives its term on disk",
        "a term below the log's is taken as it is",
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


def _search(name: str, seeds_max: int) -> bool:
    began = time.process_time()
    found = first_seed(next(mutant for mutant in MUTANTS if mutant.name == name), seeds_max)
    what = f"not in {seeds_max:,} seeds" if found is None else f"seed {found.seed}, {found.message:.150}"
    print(f"{name}: {what} ({time.process_time() - began:.1f} s)", flush=True)
    return found is not None


def main() -> None:
    """Search, and say how many were found."""
    parser = argparse.ArgumentParser(description="Look for the first seed that finds each mutant.")
    parser.add_argument(
        "words", nargs="*", metavar="WORD", help="those with one of these in their names; by default all"
    )
    parser.add_argument("--seeds", type=int, default=2000, metavar="N", help="up to this one (default: 2000)")
    parser.add_argument("--jobs", type=int, default=1, metavar="J", help="in so many processes (default: 1)")
    options = parser.parse_args()
    names = [mutant.name for mutant in MUTANTS if mutant.name not in NOT_SIMULATED]
    if options.words:
        names = [mutant.name for mutant in MUTANTS if any(word in mutant.name for word in options.words)]
    with ProcessPoolExecutor(options.jobs) as executor:
        found = sum(executor.map(_search, names, [options.seeds] * len(names)))
    print(f"{found} of {len(names)} found in {options.seeds:,} seeds; {len(NOT_SIMULATED)} are not simulated")


if __name__ == "__main__":
    main()
