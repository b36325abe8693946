"""A leader's snapshot on the disk: failed calls, what a crash leaves, and what comes with it from the network."""

from __future__ import annotations

import errno
from random import Random

import pytest

from support.file_systems import MemoryDisk, ProbeFileSystem
from support.logs import batch_of, make_entry, read_all, request_id_at
from zmqraft.api import SnapshotBase, SnapshotContext
from zmqraft.errors import RemoteProtocolError, StorageError, StorageFailedError
from zmqraft.storage import FileLog, SnapshotFile, SnapshotWriter
from zmqraft.storage.snapshot_context import encode_context, parse_context

PEERS = [("1", "tcp://127.0.0.1:8047"), ("2", "tcp://127.0.0.1:8147")]
CONTEXT = SnapshotContext(PEERS, 7, request_id_at(1_700_000_000, 1) + (9).to_bytes(8, "little"), 1_600_000_000)


def open_files(disk: MemoryDisk | ProbeFileSystem) -> FileLog:
    return FileLog.open("/data/log", "/data/snap", fs=disk, capacity=8)


def fill(log: FileLog, count: int, term: int = 1) -> None:
    log.append(batch_of(*(make_entry(log.last_index + number, term) for number in range(1, count + 1))))
    log.sync()


def receive(log: FileLog, index: int, term: int = 2, data: bytes = b"state") -> SnapshotBase:
    receiver = log.begin_receive(index, term, len(data), CONTEXT)
    receiver.write(data)
    return receiver.finish()


def names(disk: MemoryDisk | ProbeFileSystem) -> list[str]:
    return [name for name in disk.listdir("/data") if not name.startswith("snap-")]


def test_the_log_and_the_snapshot_before_are_kept_with_the_date() -> None:
    disk = MemoryDisk()
    log = open_files(disk)
    fill(log, 20)
    before = log.snapshot
    log.install(receive(log, 30))
    assert disk.listdir("/data") == [
        "log",
        "log-2023-11-14-221320-0000",
        "snap",
        "snap-2023-11-14-221320-0000",
    ]
    assert log.index_files() == [("/data/log/00000/00/00/0000000000001f.rlog", 31, 30)]
    assert before.read(0, 9) == b""
    kept = FileLog.open("/data/log-2023-11-14-221320-0000", "/data/snap-2023-11-14-221320-0000", fs=disk)
    assert len(read_all(kept)) == 20
    kept.close()
    fill(log, 20, 2)
    log.close()


def test_no_file_of_the_log_before_stays_open() -> None:
    disk = ProbeFileSystem(MemoryDisk())
    log = open_files(disk)
    fill(log, 60)
    log.prepare()
    read_all(log)
    log.install(receive(log, 100))
    # As it was called when it was opened.
    assert [path for path in disk.open_paths.values() if "snap" not in path] == ["/data/log.new"]
    assert names(disk) == ["log", "log-2023-11-14-221320-0000", "snap"]
    fill(log, 20, 2)
    log.close()


@pytest.mark.parametrize("number", range(40))
def test_any_failed_call_of_an_install(number: int) -> None:
    """Before the snapshot is complete nothing has happened to the log; from then on it takes no more."""
    disk = ProbeFileSystem(MemoryDisk())
    log = open_files(disk)
    fill(log, 20)
    before = read_all(log)
    disk.fail_at = len(disk.events) + number
    installing = False
    try:
        snapshot = receive(log, 30)
        installing = True
        log.install(snapshot)
        fill(log, 1, 2)
    except StorageFailedError:
        assert (log.failure is not None) == installing
        if installing:
            with pytest.raises(StorageFailedError):
                log.append(batch_of(make_entry(log.last_index + 1, 9)))
        else:
            assert read_all(log) == before
            log.install(receive(log, 30))
    else:
        assert number > 15
    log.close()
    disk.fail_at = None
    log = open_files(disk)
    if log.snapshot.index == 0:
        assert read_all(log) == before
    else:
        assert (log.first_index, log.snapshot.read(0, 9), log.snapshot.context) == (31, b"state", CONTEXT)
    assert "snap.received" not in names(disk)
    log.close()


def test_a_full_disk_while_receiving_leaves_the_log_and_nothing_else() -> None:
    disk = ProbeFileSystem(MemoryDisk())
    log = open_files(disk)
    fill(log, 20)
    receiver = log.begin_receive(30, 2, 100, CONTEXT)
    disk.fail_call = "pwrite"
    disk.error = lambda: OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(StorageFailedError, match=r"snap\.received\.tmp: cannot write: No space left"):
        receiver.write(b"x")
    disk.fail_call = None
    with pytest.raises(StorageFailedError, match="takes no more writes since one failed"):
        receiver.write(b"x")
    receiver.abort()
    assert names(disk) == ["log", "snap"]
    fill(log, 1)
    log.close()


def test_what_is_left_of_a_received_one_goes_when_the_log_is_opened() -> None:
    disk = MemoryDisk()
    log = open_files(disk)
    fill(log, 20)
    receive(log, 30).close()
    log.begin_receive(31, 2, 9, CONTEXT).write(b"some")
    SnapshotWriter("/data/snap", 40, 2, fs=disk).write(b"some of one that was to mend a damaged log")
    disk.sync_directory("/data")
    disk = disk.crash()
    log = open_files(disk)
    assert (names(disk), log.snapshot.index, log.last_index) == (["log", "snap"], 0, 20)
    log.begin_receive(31, 2, 9, CONTEXT).write(b"some")
    log.close()
    assert names(disk) == ["log", "snap"]
    with pytest.raises(StorageError, match="is closed"):
        log.begin_receive(31, 2, 9, CONTEXT)


def test_the_data_is_synced_in_pieces() -> None:
    disk = ProbeFileSystem(MemoryDisk())
    log = open_files(disk)
    data = Random(1).randbytes(3 << 20)
    receiver = log.begin_receive(30, 2, len(data), CONTEXT)
    for at in range(0, len(data), 1 << 16):
        receiver.write(data[at : at + (1 << 16)])
    assert disk.calls().count(("fdatasync", "/data/snap.received.tmp")) == 3
    log.install(receiver.finish())
    opened = SnapshotFile.open("/data/snap", fs=disk)
    assert b"".join(opened.chunks()) == data
    assert opened.has_checksum
    opened.close()
    log.close()


# --- the context of another peer --------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [CONTEXT, SnapshotContext(), SnapshotContext.unknown(5), SnapshotContext(PEERS)])
def test_a_context_over_the_network(context: SnapshotContext) -> None:
    assert parse_context(encode_context(context)) == context
    assert parse_context(b"NEWS\3\0\0\0abc\0" + encode_context(context)) == context


def test_a_bad_context_over_the_network() -> None:
    """Any part and any change of one is another context, or an error of the sender's."""
    data = encode_context(CONTEXT)
    random = Random(1)
    changed = [data[:size] for size in range(1, len(data))]
    for position in range(len(data)):
        copy = bytearray(data)
        copy[position] ^= random.randrange(1, 256)
        changed.append(bytes(copy))
    errors = []
    for other in changed:
        try:
            parse_context(other)
        except RemoteProtocolError as error:
            errors.append(str(error))
    assert len(errors) > 50
    assert not [error for error in errors if "restore the data directory" in error]
