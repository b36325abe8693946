"""A counter moves from a file into a cluster whose peers run a `CounterMachine`, once, however often this is run."""

import sys
from pathlib import Path

from zmqraft import new_request_id, request_id_from_text
from zmqraft.machines import CounterClient


def request_id_beside(path: Path) -> bytes:
    """The id of this move, written down before it is used: a run that was interrupted is repeated with the same one."""
    note = path.with_suffix(".request-id")
    if not note.exists():
        note.write_text(new_request_id().hex())
    return request_id_from_text(note.read_text())


def migrate(path: Path, counter: CounterClient) -> int:
    return counter.add(int(path.read_text()), path.stem, request_id=request_id_beside(path))


with CounterClient(["127.0.0.1:8047"], secret="name of the cluster", deadline_s=30) as counter:
    path = Path(sys.argv[1])
    print(f"{path.stem} is {migrate(path, counter)} in the cluster")
    print(f"and after one more {counter.add(1, path.stem)}")
