"""One at a time, among any number of processes: peers of the cluster run a `LockMachine`."""

from zmqraft.machines import LockClient


def write_report(token: int) -> None:
    """What is written to refuses a token below the highest that it has seen: that keeps out who was too slow, too."""
    print(f"writing with token {token}")


with LockClient(["127.0.0.1:8047"], secret="name of the cluster", deadline_s=30) as locks:
    lease = locks.acquire("report", lease_s=10, timeout_s=60)
    write_report(lease.token)
    renewed = locks.renew(lease, lease_s=10)  # None if it was lost meanwhile
    if renewed is not None:
        write_report(renewed.token)
        locks.release(renewed)
    print("holder:", locks.holder("report") or "nobody")
