"""A running peer: the thread with the sockets and the clock, around the engine.

Knows nothing of Raft's rules or of what messages mean; that is the engine's. The rule: one thread owns every socket and
the engine; whatever other threads want goes through `call_soon`. A turn drains the sockets (bounded), steps the engine,
sends what may go first, syncs once, sends the rest, applies, answers: group commit comes for free, since what arrives
during a sync is the next turn's batch. Heartbeats come from the same thread, so a peer whose disk hangs stops leading.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from random import Random
from types import TracebackType
from typing import Any, TypeVar

import zmq

from zmqraft.api import LogBase, PersistenceBase, ReadyEmitter, StateMachineBase
from zmqraft.client.arguments import Bytes
from zmqraft.constants import ENTRY_HEADER_SIZE
from zmqraft.core.configuration import ClusterConfiguration
from zmqraft.core.raft import Role
from zmqraft.errors import ClosedError, ConfigurationError, PeerFailedError, RemoteProtocolError, ZmqRaftError
from zmqraft.protocol.zmq_io import Poller
from zmqraft.server.applier import (
    APPLY_SIZE_MAX,
    Applier,
    InlineApplier,
    ThreadApplier,
    ViewHandler,
    restore_state,
)
from zmqraft.server.catching_up import CatchUpProgress
from zmqraft.server.compaction import Compactor
from zmqraft.server.engine import BackgroundSync, Engine
from zmqraft.server.local_updates import LocalUpdates
from zmqraft.server.peer_calls import LinkAction
from zmqraft.server.rpc_socket import ZmqRpcSocket
from zmqraft.server.settings import Settings
from zmqraft.server.sync_thread import SyncThread
from zmqraft.server.transfer_requests import TransferRequests

__all__ = ["ZmqRaft"]

logger = logging.getLogger(__name__)

#: The most messages that are taken from one socket in a turn, so that a flood cannot starve heartbeats.
_DRAIN_MAX = 4096
#: Replies that may wait for one slow client; further ones are dropped, and the client asks again.
_ROUTER_SNDHWM = 16384
#: Replies that are under way when a peer is closed get this long to leave.
_CLOSE_LINGER_MS = 200
_POLL_MS_MAX = 60_000
#: How long a leader that is closed waits for another to take over, in seconds.
_MAKING_WAY_TIMEOUT = 1.0
#: How long the end of a peer waits for a state machine's snapshot that gives no next chunk, in seconds.
_COMPACTING_TIMEOUT = 30.0

_Result = TypeVar("_Result")


class ZmqRaft(ReadyEmitter):
    """One peer of a cluster, in a thread of its own.

    Use it with ``with`` (or ``async with``): it starts on entry and is closed on exit. `build_peer` makes one from
    settings. Events, for `on`, called in the peer's thread:

    - ``state`` (role, term): "follower", "candidate", "leader" or "client"
    - ``config`` (`ClusterConfiguration`): the configuration that counts has changed
    - ``snapshot`` (index): a snapshot of this index, from the leader, has taken the place of the log
    - ``compact`` (index): the log's first index has moved up behind a snapshot of this index
    - ``error`` (exception): the peer has failed and is about to stop
    - ``close`` (): the peer has ended
    """

    def __init__(
        self,
        settings: Settings,
        log: LogBase,
        persistence: PersistenceBase,
        state_machine: StateMachineBase,
        *,
        random: Random | None = None,
        resources: contextlib.ExitStack | None = None,
    ) -> None:
        """The peer owns ``log``, ``persistence``, ``state_machine`` and ``resources`` from here on and closes them.

        Raises ConfigurationError or CorruptionError when the data does not fit the settings; and what the state machine
        raises, when it is to be restored from the snapshot.
        """
        super().__init__()
        self.settings = settings
        self._log = log
        self._state_machine = state_machine
        self._resources = resources or contextlib.ExitStack()
        self._resources.callback(log.close)
        self._resources.callback(persistence.close)
        restore_state(state_machine, log.snapshot)
        self.engine = Engine(
            settings,
            log,
            persistence,
            last_applied=state_machine.last_applied,
            now=time.monotonic(),
            random=random or Random(),
            on_message=self._on_message,
        )
        self._compactor = Compactor(settings, self.engine, log)
        self._transfers = TransferRequests(settings.id, self.engine)
        self._local_updates = LocalUpdates(settings, self.engine.last_applied)
        self._seen_role: tuple[Role, int] | None = None
        self._seen_configuration: ClusterConfiguration | None = None
        self._seen_urls: dict[str, str] = {}
        self._calls: deque[Callable[[], None]] = deque()
        self._wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self._wake_reader, False)
        os.set_blocking(self._wake_writer, False)
        self._wake_lock = threading.Lock()
        self._closing = False
        self._close_until: float | None = None
        self._lifecycle = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()
        self._error: BaseException | None = None
        # Owned by the thread:
        self._messages: list[list[bytes]] = []
        self._router: zmq.Socket[bytes]
        self._links: dict[str, ZmqRpcSocket] = {}
        self._poller = Poller()

    # --- what it is; from any thread --------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """The id of the peer."""
        return self.settings.id

    @property
    def secret(self) -> bytes:
        """The secret of the cluster."""
        return self.settings.secret

    @property
    def url(self) -> str:
        """The url under which clients and other peers reach it."""
        return self.settings.url

    @property
    def state(self) -> str:
        """ "follower", "candidate", "leader" or "client"; "closed" before and after, "failed" after an error."""
        if self._error is not None:
            return "failed"
        if self._ended.is_set() or self._thread is None:
            return "closed"
        return self.engine.raft.role.value

    @property
    def leader_id(self) -> str | None:
        """The id of the leader, as far as the peer knows."""
        return self.engine.raft.known_leader_id

    @property
    def catch_up_progress(self) -> CatchUpProgress | None:
        """How far a peer that is not yet a member has come with reading the log of the cluster; None for a member."""
        return self.engine.catch_up_progress

    @property
    def error(self) -> BaseException | None:
        """Why the peer has failed; None when it has not."""
        return self._error

    # --- life; from any thread --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Bind and run. Returns when the sockets are bound; raises ConfigurationError when they cannot be."""
        with self._lifecycle:
            if self._thread is not None or self._ended.is_set():
                raise ClosedError("a peer can be started once")
            self._thread = threading.Thread(target=self._run, name=f"zmqraft {self.id}", daemon=True)
            self._thread.start()
        while not self.wait_ready(0.1):
            if self._ended.is_set():
                break
        if not self.is_ready and self._error is not None:
            error = self._error
            raise error if isinstance(error, ZmqRaftError) else PeerFailedError(f"the peer failed: {error}") from error

    def close(self) -> None:
        """Stop: nothing more is answered, the sockets and files are closed. Returns when it has; may be called twice.

        From the peer's own thread (a callback) it only asks for it.
        """
        with self._lifecycle:
            self._closing = True
            thread = self._thread
        self._wake()
        if thread is None:
            self._end()
        elif thread is not threading.current_thread():
            thread.join()

    def wait_closed(self, timeout_s: float | None = None) -> bool:
        """Wait until the peer has ended, at most ``timeout_s`` seconds. Returns whether it has."""
        return self._ended.wait(timeout_s)

    def __enter__(self) -> ZmqRaft:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> ZmqRaft:
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Run ``callback`` in the peer's thread. Nothing happens after the peer has ended. From any thread."""
        self._calls.append(callback)
        self._wake()

    def send(self, route: tuple[bytes, bytes], frames: Sequence[bytes]) -> None:
        """Answer a message that the state machine got from a client. From any thread."""
        message = [*route, *frames]
        self.call_soon(lambda: self._messages.append(message))

    def update(self, data: Bytes, *, request_id: bytes | None = None, deadline_s: float | None = None) -> Future[Any]:
        """Append ``data`` to the log, through whoever leads, and have it applied here. From any thread.

        The future gets what this peer's state machine returned for the entry (see `StateMachineBase.apply_entries`).
        It fails as `ZmqRaftClient.request_update` does, with ResultForgottenError when the entry had been applied here
        before this call, and with ClosedError when the peer ends. Cancelling it leaves open whether the update gets
        into the log. Its callbacks run in the threads of the peer: they must not wait, nor close the peer. While 8192
        are in flight this call waits.
        """
        return self._local_updates.update(data, request_id, deadline_s)

    def wait_applied(self, index: int) -> Future[int]:
        """A future that has its result, the index of the last entry applied, as soon as this peer's state machine has
        applied the entry at ``index``: from then on one reads here what was written there. From any thread.

        It fails with ClosedError when the peer ends.
        """
        return self._local_updates.wait_applied(index)

    def read_index(self, *, deadline_s: float | None = None) -> Future[int]:
        """Make this peer's state machine fresh enough for a linearizable read. From any thread.

        The future has its result, an index, when the leader, whoever that is, has confirmed that it still led after
        this call (see `ZmqRaftClient.read_index`), and all that was committed by then is applied here. It fails with
        NotSupportedError when the leader is a peer of zmq-raft, RequestTimeoutError and ClosedError.
        """
        return self._local_updates.read_index(deadline_s)

    def compact(self, *, force: bool = False) -> Future[int]:
        """Take a snapshot of the state machine, and let it stand for the entries up to there. From any thread.

        The future gets the snapshot's index when it is complete on the disk. It takes the place of the entries as soon
        as every request id up to there may be forgotten (``requestIdTtl``), also after a restart; or at once, if
        ``force``. That is safe among peers of ours: the ids stay in the index files and travel with the snapshot, but
        zmq-raft passes over them there, and a peer of it that gets the snapshot could take an update twice.

        The future fails with ConfigurationError when the state machine offers no snapshots, with what it raised, with
        StorageFailedError when the snapshot could not be written (the peer goes on), or ClosedError.
        """
        future = self._compactor.request(force=force, install=False)
        self._wake()
        return future

    def install_snapshot(self, *, force: bool = False) -> Future[int]:
        """Compact the log with the snapshot that was dropped at ``data.compact.install``. From any thread.

        The future gets its index when this is done and the dropped file is taken away, or fails: FileNotFoundError,
        CorruptionError, ValueError when it is no snapshot of this log, or of entries that are not yet applied here, or
        (unless ``force``) whose request ids are still remembered; else as that of `compact`.
        """
        future = self._compactor.request(force=force, install=True)
        self._wake()
        return future

    def transfer_leadership(self, target_id: str | None = None) -> Future[None]:
        """Let another peer lead: ``target_id``, or by default the one that has the most entries. From any thread.

        Thesis 3.10. The target stands for election at once; clients that wait meanwhile are sent there. The future gets
        its result when this peer leads no more, and fails with NotLeaderError when it does not lead, ValueError when
        the target is no other member, RequestTimeoutError when it is not one of ours or cannot take over within an
        election timeout (this peer goes on then), and ClosedError.
        """
        future = self._transfers.request(target_id)
        self._wake()
        return future

    def _wake(self) -> None:
        # The lock: a number of a closed pipe may be another file's soon. BlockingIOError: it is awake anyway.
        with self._wake_lock, contextlib.suppress(BlockingIOError):
            if not self._ended.is_set():
                os.write(self._wake_writer, b"\0")

    # --- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with (
                zmq.Context() as context,
                self._sockets(context),
                self._applier() as applier,
                ThreadPoolExecutor(1, f"zmqraft {self.id} prepares") as preparing,
                contextlib.closing(SyncThread(f"zmqraft {self.id} syncs")) as syncing,
                self._compacting(applier),
            ):
                self._state_machine.start(self)
                self.set_ready()
                self._loop(context, applier, preparing, syncing)
        except BaseException as error:
            self._fail(error)
        finally:
            self._end()

    def _fail(self, error: BaseException) -> None:
        self._error = error
        if isinstance(error, ZmqRaftError):
            logger.critical("%s: stopped: %s", self.id, error)
        else:
            logger.critical("%s: stopped by an unexpected error", self.id, exc_info=error)
        self.emit("error", error)

    def _end(self) -> None:
        if self._ended.is_set():
            return
        self._compactor.close()
        self._transfers.close()
        self._local_updates.close()
        try:
            self._state_machine.close()
            self._resources.close()
        except Exception as error:
            if self._error is None:
                self._fail(error)
        with self._wake_lock:
            self._ended.set()
            os.close(self._wake_writer)
            os.close(self._wake_reader)
        self.emit("close")

    @contextlib.contextmanager
    def _sockets(self, context: zmq.Context[zmq.Socket[bytes]]) -> Iterator[None]:
        """The ROUTER socket, bound, and the DEALERs while they last. After a failure nothing more leaves them."""
        self._router = context.socket(zmq.ROUTER)
        linger = 0
        try:
            self._bind_router()
            self._poller.register(self._router, zmq.POLLIN)
            self._poller.register(self._wake_reader, zmq.POLLIN)
            yield
            linger = _CLOSE_LINGER_MS
        finally:
            for link in self._links.values():
                link.close()
            self._router.close(linger)

    def _bind_router(self) -> None:
        router, url = self._router, self.settings.bind_url
        size_max = max(self.settings.max_log_entry_data_size + ENTRY_HEADER_SIZE, self.settings.peer_msg_data_size)
        router.setsockopt(zmq.MAXMSGSIZE, size_max)
        router.sndhwm = _ROUTER_SNDHWM
        router.setsockopt(zmq.TCP_KEEPALIVE, 1)
        if "[" in url:
            router.setsockopt(zmq.IPV6, 1)
        try:
            router.bind(url)
        except zmq.ZMQError as error:
            raise ConfigurationError(f"cannot bind {url}: {error.strerror}") from error

    @contextlib.contextmanager
    def _applier(self) -> Iterator[Applier]:
        applier: Applier
        if self._state_machine.inline:
            applier = InlineApplier(
                self._state_machine, self.engine.applied, self.engine.last_applied, self._local_updates
            )
        else:
            applier = ThreadApplier(
                self._state_machine,
                lambda index: self.call_soon(lambda: self.engine.applied(index)),
                lambda error: self.call_soon(lambda: self._raise(error)),
                f"zmqraft {self.id} applies",
                self.engine.last_applied,
                self._local_updates,
            )
        try:
            yield applier
        finally:
            applier.close()

    @contextlib.contextmanager
    def _compacting(self, applier: Applier) -> Iterator[None]:
        thread = SyncThread(f"zmqraft {self.id} compacts")
        self._compactor.attach(_CompactionHost(self, applier, thread))
        try:
            yield
        finally:
            self._compactor.close()
            if not thread.close(_COMPACTING_TIMEOUT):
                logger.error("%s: a snapshot is still being written; it is left behind", self.id)

    def _raise(self, error: BaseException) -> None:
        raise PeerFailedError(f"the state machine failed to apply entries: {error!r}") from error

    def _loop(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        applier: Applier,
        preparing: ThreadPoolExecutor,
        syncing: SyncThread,
    ) -> None:
        engine, log = self.engine, self._log
        preparation: Future[None] | None = None
        deadline = others_deadline = -math.inf
        while not (self._closing and self._has_made_way()):
            self._follow_engine(context)
            has_work = self._receive(self._poll(deadline))
            now = time.monotonic()
            if not has_work and now < deadline:
                deadline = min(engine.next_deadline(now), others_deadline)
                continue
            self._send(engine.begin_turn(now, time.time()))
            actions = engine.finish_turn(time.monotonic(), in_background=True)
            if (sync := engine.take_sync()) is not None:
                syncing.submit(sync.run, partial(self._synced, sync), self._sync_failed)
            # Who waits for an answer comes first: a leader for what its followers have on disk, clients for what is
            # applied. What is left for peers is news of a commit, mostly.
            self._reply()
            if self._apply(applier):
                self._reply()
            self._send(actions)
            if log.wants_preparation and (preparation is None or preparation.done()):
                # What makes it fail makes the next append fail.
                preparation = preparing.submit(log.prepare)
            now = time.monotonic()
            self._transfers.tick(now)
            machine_deadline = self._state_machine.tick(now)
            others_deadline = min(math.inf if machine_deadline is None else machine_deadline, self._compactor.tick(now))
            deadline = min(engine.next_deadline(now), others_deadline)

    def _has_made_way(self) -> bool:
        """Whether the peer may end: a leader lets another take over first, so that nobody has to wait for an
        election."""
        engine, now = self.engine, time.monotonic()
        if self._close_until is None:
            self._close_until = now + _MAKING_WAY_TIMEOUT
            if len(engine.raft.configuration.peers) > 1:
                engine.begin_transfer(None, now, must=True)
        return not engine.is_making_way or now >= self._close_until

    def _synced(self, sync: BackgroundSync) -> None:
        self.call_soon(lambda: self.engine.synced(sync))

    def _sync_failed(self, error: BaseException) -> None:
        def fail() -> None:
            raise error

        self.call_soon(fail)

    def _poll(self, deadline: float) -> Sequence[object]:
        """What can be read, when something can or the deadline has come."""
        wait_ms = min(math.ceil(max(deadline - time.monotonic(), 0.0) * 1000), _POLL_MS_MAX) if deadline > 0 else 0
        return self._poller.poll(wait_ms)

    def _receive(self, readable: Sequence[object]) -> bool:
        """Hand in what has arrived. Returns whether a turn has something to do; see `Engine.receive_reply`."""
        engine, has_work = self.engine, False
        if self._wake_reader in readable:
            has_work = True
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_reader, 65536)
            for _ in range(len(self._calls)):
                self._calls.popleft()()
        for peer_id, link in self._links.items():
            if link.socket in readable:
                if link.has_kept and link.flush():
                    self._watch(link)
                    has_work = True
                for frames in link.receive():
                    has_work = engine.receive_reply(peer_id, frames, time.monotonic()) or has_work
        if self._router in readable:
            has_work = True
            now, wall_seconds = time.monotonic(), time.time()
            for frames, entries in engine.open_intake(wall_seconds).drain(self._router, _DRAIN_MAX):
                engine.receive_other(frames, entries, now, wall_seconds)
        return has_work

    def _send(self, actions: list[LinkAction]) -> None:
        for action in actions:
            link = self._links.get(action.peer_id)
            if link is None:
                continue
            if action.message is not None and not link.is_stuck:
                if not link.send(*action.message, keep=action.keep):
                    self._watch(link)
            else:
                # What cannot leave is repeated.
                self._poller.unregister(link.socket)
                link.reset()
                self._poller.register(link.socket, zmq.POLLIN)

    def _watch(self, link: ZmqRpcSocket) -> None:
        """Poll a link for room as long as it keeps a message."""
        self._poller.register(link.socket, zmq.POLLIN | zmq.POLLOUT if link.has_kept else zmq.POLLIN)

    def _apply(self, applier: Applier) -> bool:
        """Hand out what is to be applied. Returns whether there was anything."""
        engine, has_applied = self.engine, False
        if (snapshot := engine.take_restore()) is not None:
            applier.restore(snapshot)
            self._compactor.snapshot_installed()
            self.emit("snapshot", snapshot.index)
            has_applied = True
        while applier.has_room and (batch := engine.take_committed(APPLY_SIZE_MAX)) is not None:
            applier.submit(batch, engine.raft.current_term)
            has_applied = True
        return has_applied

    def _reply(self) -> None:
        replies = self.engine.take_replies()
        replies.extend(self._messages)
        self._messages.clear()
        if len(replies):
            replies.flush(self._router)

    def _on_message(self, route: tuple[bytes, bytes], message_type: bytes, frames: Sequence[bytes]) -> None:
        """Whoever knows the secret can send such a message: one that the state machine stumbles over stops nobody."""
        try:
            self._state_machine.on_message(route, message_type, frames)
        except ZmqRaftError:
            raise
        except Exception as error:
            logger.warning("%s: the state machine failed on a message %r", self.id, message_type, exc_info=error)
            raise RemoteProtocolError(f"the state machine failed on a message: {error!r}") from error

    def _match_links(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        """Keep one DEALER to each other peer."""
        urls = self.engine.link_urls
        for peer_id, link in list(self._links.items()):
            if urls.get(peer_id) != link.url:
                self._poller.unregister(link.socket)
                link.close()
                del self._links[peer_id]
        for peer_id, url in urls.items():
            if peer_id not in self._links:
                link = ZmqRpcSocket(context, url, reconnect_interval_ms=self.settings.rpc_timeout)
                self._links[peer_id] = link
                self._poller.register(link.socket, zmq.POLLIN)

    def _follow_engine(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        """Tell the state machine and the listeners what has changed in the engine, and keep the links to its peers."""
        raft = self.engine.raft
        if self.engine.link_urls is not self._seen_urls:
            self._seen_urls = self.engine.link_urls
            self._match_links(context)
        if raft.configuration is not self._seen_configuration:
            self._seen_configuration = raft.configuration
            self.emit("config", raft.configuration)
        if (raft.role, raft.current_term) != self._seen_role:
            self._seen_role = (raft.role, raft.current_term)
            self._state_machine.role_changed(raft.role.value, raft.current_term)
            self.emit("state", raft.role.value, raft.current_term)


class _CompactionHost:
    """Takes the steps of a compaction to the threads where they belong, and what comes of them to the peer's."""

    def __init__(self, peer: ZmqRaft, applier: Applier, thread: SyncThread) -> None:
        self._peer = peer
        self._applier = applier
        self._thread = thread

    def take_view(self, on_view: ViewHandler) -> None:
        self._applier.take_view(lambda index, view: self._peer.call_soon(lambda: on_view(index, view)))

    def in_background(
        self,
        work: Callable[[], _Result],
        on_done: Callable[[_Result], None],
        on_error: Callable[[BaseException], None],
    ) -> None:
        results: list[_Result] = []

        def done() -> None:
            self._peer.call_soon(lambda: on_done(results[0]))

        self._thread.submit(
            lambda: results.append(work()), done, lambda error: self._peer.call_soon(lambda: on_error(error))
        )

    def compacted(self, index: int) -> None:
        self._peer.emit("compact", index)
