"""What a leader knows of one follower."""

from __future__ import annotations

from zmqraft.core.progress import Progress


def acknowledged(index: int) -> Progress:
    """A follower that is known to have everything up to an index."""
    progress = Progress(index, 0.0)
    progress.sent(index - 1, index, 0)
    assert progress.maybe_update(1)
    return progress


def test_a_conflict_behind_the_match_is_no_denial() -> None:
    """Also where the conflicting term begins below the match: up to there its entries are the leader's (seed 3603)."""
    progress = acknowledged(7)
    progress.sent(7, 20, 0)
    progress.sent(20, 21, 0)
    # The first of them got lost. It ends with 8, of an older term, which began with 7.
    assert progress.maybe_decrease(9, 2)
    assert progress.next == 9
    progress.sent(8, 9, 0)
    assert progress.maybe_decrease(7, 1)
    assert progress.next == 8
    progress.sent(7, 8, 0)
    assert progress.maybe_update(1)


def test_what_was_acknowledged_is_denied() -> None:
    progress = acknowledged(7)
    progress.sent(7, 20, 0)
    assert not progress.maybe_decrease(1, 1)
    assert progress.next == 8
