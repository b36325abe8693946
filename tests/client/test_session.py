"""The client's session in virtual time: finding the leader, repeating, deadlines (SPEC section 2 "Clients")."""

from __future__ import annotations

import pytest

from support.session_driver import GRACE_S, SECRET, TIMEOUT_S, URLS, Driver, Sent, Sink
from zmqraft.client.requests import (
    BroadcastUrlRequest,
    ClusterInfoRequest,
    ConfigUpdateRequest,
    LogInfoRequest,
    MessageRequest,
    UpdateRequest,
)
from zmqraft.client.results import ClusterInfo, LogInfo
from zmqraft.client.session import ClientSession
from zmqraft.constants import ABSENT, INTEGER_MAX
from zmqraft.errors import (
    ClosedError,
    ConfigUpdateInProgressError,
    ConfigUpdateRefusedError,
    ConfigurationError,
    LocalProtocolError,
    NotLeaderError,
    RequestExpiredError,
    RequestTimeoutError,
)
from zmqraft.protocol.request_id import new_request_id
from zmqraft.protocol.schema import Protocols

TICK = 0.001
NEW_URL = "tcp://127.0.0.1:9047"


def ready(peer_id: str = "1") -> Driver:
    """A session that has found its leader and has nothing to do."""
    driver = Driver.following(peers=[(None, URLS[peer_id])])
    sink = driver.update(b"first")
    driver.find_leader(peer_id)
    driver.committed(driver.read_one(b"="), 1)
    assert sink.result == 1
    return driver


def asked_in_turn(driver: Driver, count: int) -> list[Sent]:
    """What a search asks of so many peers, none of which answers."""
    asked = []
    for _ in range(count):
        asked += driver.read()
        driver.advance(TIMEOUT_S + TICK)
    return asked


class TestFindingTheLeader:
    def test_nothing_happens_before_something_is_asked(self) -> None:
        driver = Driver.following()
        driver.advance(10)
        assert driver.session.next_time() is None
        assert driver.session.url is None
        assert driver.read() == []

    def test_the_first_seed_leads(self) -> None:
        driver = Driver.following()
        sink = driver.update(b"data")
        driver.find_leader("1")
        message = driver.read_one(b"=")
        assert message.url == URLS["1"]
        assert message.arguments == (b"data",)
        driver.committed(message, 7)
        assert sink.result == 7
        assert driver.links == [URLS["1"]]

    def test_a_named_leader_is_followed(self) -> None:
        driver = Driver.following(peers=[(None, URLS["2"])])
        driver.update()
        driver.cluster_info(driver.read_one(b"^"), "3")
        driver.find_leader("3")
        assert driver.read_one(b"=").url == URLS["3"]

    def test_a_named_leader_is_followed_by_the_ids_of_the_seeds(self) -> None:
        driver = Driver.following(peers=[("a", URLS["2"]), ("b", URLS["1"]), ("c", URLS["3"])])
        driver.update()
        driver.reply(driver.read_one(b"^"), Protocols.REQUEST_CONFIG, False, "c", [])
        assert driver.read_one(b"^").url == URLS["3"]

    def test_a_silent_peer_is_left_after_the_timeout(self) -> None:
        driver = Driver.following()
        driver.update()
        assert driver.read_one(b"^").url == URLS["1"]
        driver.advance(TIMEOUT_S - TICK)
        assert driver.read() == []
        driver.advance(TICK)
        driver.find_leader("2")
        assert driver.links == [URLS["1"], URLS["2"]]

    def test_without_a_leader_every_peer_is_asked_and_then_there_is_grace(self) -> None:
        driver = Driver.following()
        driver.update()
        for peer_id in URLS:
            question = driver.read_one(b"^")
            assert question.url == URLS[peer_id]
            driver.cluster_info(question, None)
        assert driver.session.url is None
        driver.advance(GRACE_S - TICK)
        assert driver.read() == []
        driver.advance(TICK)
        assert driver.read_one(b"^").url == URLS["1"]

    def test_peers_that_name_one_another_are_asked_once_in_a_pass(self) -> None:
        driver = Driver.following()
        driver.update()
        for peer_id, named in (("1", "2"), ("2", "1"), ("3", "2")):
            question = driver.read_one(b"^")
            assert question.url == URLS[peer_id]
            driver.cluster_info(question, named)
        assert driver.read() == []
        assert driver.session.url is None

    def test_a_silent_peer_is_passed_over_in_the_next_pass_only(self) -> None:
        driver = Driver.following()
        driver.update()
        driver.read()
        driver.advance(TIMEOUT_S)
        asked = []
        for _ in range(7):
            question = driver.read_one(b"^")
            asked.append(question.url)
            if question.url == URLS["1"]:
                driver.advance(TIMEOUT_S)
            else:
                driver.cluster_info(question, None)
            if driver.session.url is None:
                driver.advance(GRACE_S)
        pairs = [URLS["2"], URLS["3"]]
        assert asked[:4] == pairs + pairs
        assert sorted(asked[4:7]) == sorted(URLS.values())

    def test_when_all_are_silent_all_are_asked_for_ever_but_not_busily(self) -> None:
        driver = Driver.following()
        sink = driver.update(deadline_s=60)
        driver.advance(59.9)
        asked = [message.url for message in driver.read()]
        passes = 59.9 / (3 * TIMEOUT_S + GRACE_S)
        assert set(asked) == set(URLS.values())
        assert 3 * (passes - 1) <= len(asked) <= 3 * (passes + 1)
        assert sink.pending
        driver.advance(0.2)
        assert isinstance(sink.result, RequestTimeoutError)
        driver.advance(2)
        assert driver.session.next_time() is None
        assert driver.session.url is None

    def test_urls_that_cannot_be_connected_to_are_not_taken_over(self) -> None:
        driver = Driver.following(peers=[(None, URLS["1"])])
        driver.update()
        peers = [["x", "ipc:///tmp/x"], ["y", "tcp://0.0.0.0:1"], ["2", URLS["2"]]]
        driver.reply(driver.read_one(b"^"), Protocols.REQUEST_CONFIG, False, "x", peers)
        assert driver.read_one(b"^").url == URLS["2"]

    def test_a_malformed_configuration_is_counted_and_its_sender_is_silent(self) -> None:
        driver = Driver.following()
        driver.update()
        question = driver.read_one(b"^")
        driver.reply(question, Protocols.REQUEST_CONFIG, True, "1", [["1"]])
        driver.reply(question, Protocols.REQUEST_CONFIG, True, 5, [])
        driver.reply_frames(question, b"\x01")
        assert driver.session.counters.malformed_replies == 3
        driver.advance(TIMEOUT_S)
        assert driver.read_one(b"^").url == URLS["2"]

    def test_a_search_ends_when_nobody_waits_any_more(self) -> None:
        driver = Driver.following()
        sink = driver.update(deadline_s=0.1)
        driver.advance(1)
        assert isinstance(sink.result, RequestTimeoutError)
        assert driver.session.url is None
        assert driver.session.next_time() is None
        driver.read()
        driver.update()
        driver.read_one(b"^")


class TestUpdates:
    def test_many_in_flight_keep_their_order(self) -> None:
        driver = ready()
        sinks = [driver.update(b"%d" % n) for n in range(100)]
        messages = driver.read()
        assert [message.arguments[0] for message in messages] == [b"%d" % n for n in range(100)]
        for index, message in reversed(list(enumerate(messages))):
            driver.committed(message, index + 2)
        assert [sink.result for sink in sinks] == list(range(2, 102))
        assert driver.session.request_count == 0

    def test_false_with_the_leader_goes_there_with_the_same_id(self) -> None:
        driver = ready("1")
        sinks = [driver.update(b"a"), driver.update(b"b")]
        first, second = driver.read()
        driver.not_leader(first, "3")
        driver.find_leader("3")
        again = driver.read()
        assert [(m.id, m.arguments, m.url) for m in again] == [
            (first.id, first.arguments, URLS["3"]),
            (second.id, second.arguments, URLS["3"]),
        ]
        for index, message in enumerate(again):
            driver.committed(message, index + 2)
        assert [sink.result for sink in sinks] == [2, 3]

    def test_false_without_a_leader_asks_the_others_first(self) -> None:
        driver = ready("1")
        driver.update()
        driver.not_leader(driver.read_one(b"="), None)
        assert driver.read_one(b"^").url in (URLS["2"], URLS["3"])

    def test_false_alone_is_final(self) -> None:
        driver = ready()
        sink = driver.update(request_id=bytes(range(12)))
        driver.reply(driver.read_one(b"="), Protocols.REQUEST_UPDATE, False, ABSENT)
        assert isinstance(sink.result, RequestExpiredError)
        assert bytes(range(12)).hex() in str(sink.result)
        driver.advance(5)
        assert driver.read() == []

    def test_silence_asks_the_next_peer_and_repeats_with_the_same_id(self) -> None:
        driver = ready("1")
        sink = driver.update()
        first = driver.read_one(b"=")
        driver.advance(TIMEOUT_S - TICK)
        assert driver.read() == []
        driver.advance(TICK)
        question = driver.read_one(b"^")
        assert question.url != URLS["1"]
        driver.cluster_info(question, "1")
        driver.find_leader("1")
        again = driver.read_one(b"=")
        assert (again.id, again.arguments) == (first.id, first.arguments)
        driver.committed(again, 2)
        assert sink.result == 2

    def test_a_leader_that_fell_silent_is_left_out_of_two_passes(self) -> None:
        driver = ready("1")
        driver.update()
        driver.read()
        driver.advance(TIMEOUT_S)
        asked = []
        for _ in range(3):
            while driver.session.url is not None:
                question = driver.read_one(b"^")
                asked.append(question.url)
                driver.cluster_info(question, None)
            driver.advance(GRACE_S)
        assert URLS["1"] not in asked[:4]
        assert URLS["1"] in asked[4:]

    def test_a_leader_that_fell_silent_is_asked_again_at_once_if_it_is_named(self) -> None:
        driver = ready("1")
        driver.update()
        driver.read()
        driver.advance(TIMEOUT_S)
        driver.cluster_info(driver.read_one(b"^"), "1")
        assert driver.read_one(b"^").url == URLS["1"]

    def test_an_early_true_restarts_the_timer(self) -> None:
        driver = ready()
        sink = driver.update()
        message = driver.read_one(b"=")
        driver.advance(TIMEOUT_S - TICK)
        driver.accepted(message)
        driver.advance(TIMEOUT_S - TICK)
        assert driver.read() == []
        driver.committed(message, 2)
        assert sink.result == 2

    def test_early_trues_do_not_prove_that_the_leader_commits(self) -> None:
        """A leader cut off from its followers accepts everything (SPEC section 5, 5): it must be left."""
        driver = ready("1")
        sink = driver.update(b"lost")
        driver.accepted(driver.read_one(b"="))
        for _ in range(6):
            driver.advance(0.1)
            driver.update()
            for message in driver.read():
                if message.type == b"=":
                    driver.accepted(message)
        assert driver.session.counters.searches == 1
        assert sink.pending

    def test_a_leader_that_commits_is_not_left_for_one_that_waits_in_a_queue(self) -> None:
        driver = ready()
        waiting = driver.update(b"waiting")
        message = driver.read_one(b"=")
        before = [driver.update(b"%d" % n) for n in range(20)]
        others = driver.read()
        # What was sent later than "waiting" is not answered; what commits was sent before, in an earlier round.
        for _ in range(20):
            driver.advance(0.2)
            driver.committed(message, 2) if waiting.pending else driver.committed(others.pop(0), 3)
        assert driver.session.counters.searches == 0
        assert driver.session.counters.repeated_requests == 0
        assert sum(not sink.pending for sink in before) == 19

    def test_one_that_was_overtaken_is_sent_again_over_the_same_connection(self) -> None:
        driver = ready()
        sink = driver.update(b"dropped")
        dropped = driver.read_one(b"=")
        for n in range(6):
            driver.advance(0.1)
            driver.update()
            for message in driver.read():
                driver.committed(message, 2 if message.id == dropped.id else 10 + n)
        assert sink.result == 2
        assert driver.session.counters.repeated_requests == 1
        assert driver.session.counters.searches == 0

    def test_what_the_socket_has_not_taken_yet_is_not_sent_twice(self) -> None:
        driver = ready()
        first, second = Sink(), Sink()
        for sink in (first, second):
            driver.session.start(UpdateRequest(SECRET, new_request_id(), b"data", sink), driver.now)
        message = driver.session.next_frames()
        assert message is not None
        driver.session.sent()
        driver.session.tick(driver.now + TIMEOUT_S / 2)
        driver.now += TIMEOUT_S / 2
        driver.session.receive([message[0], b"\x01", b"\x02"], driver.now)
        driver.session.tick(driver.now + TIMEOUT_S / 2)
        assert first.result == 2
        driver.read_one(b"=")
        assert driver.session.counters.repeated_requests == 0

    def test_an_answer_to_an_earlier_try_does_not_make_others_look_overtaken(self) -> None:
        driver = ready()
        driver.update(b"first")
        first = driver.read_one(b"=")
        driver.advance(TIMEOUT_S / 2)
        driver.update(b"waits")
        second, third = driver.update(b"second"), driver.update(b"third")
        _, message, other = driver.read()
        driver.advance(TIMEOUT_S / 4)
        driver.committed(message, 2)
        # Now "first" is overdue and was overtaken: its repetition waits for the socket when its answer comes.
        driver.now += TIMEOUT_S / 4
        driver.session.tick(driver.now)
        driver.session.receive([first.id, b"\x01", b"\x03"], driver.now)
        driver.advance(TIMEOUT_S / 2)
        assert driver.session.counters.repeated_requests == 2, "first, and the one that waits before second"
        driver.committed(other, 4)
        assert (second.result, third.result) == (2, 4)

    def test_a_refusal_from_one_who_was_only_asked_whether_it_leads_is_ignored(self) -> None:
        driver = Driver.following()
        request_id = new_request_id()
        sink = driver.update(request_id=request_id)
        driver.read_one(b"^")
        driver.not_leader(request_id, "3")
        assert driver.read() == []
        assert driver.links == [URLS["1"]]
        assert sink.pending

    def test_the_reply_to_an_earlier_try_counts_and_the_next_one_is_dropped(self) -> None:
        driver = Driver.for_peer()
        sink = driver.update()
        first = driver.read_one(b"=")
        driver.advance(TIMEOUT_S)
        again = driver.read_one(b"=")
        assert again.id == first.id
        driver.committed(first, 4)
        driver.committed(again, 4)
        assert sink.result == 4
        assert driver.session.counters.unknown_replies == 1

    @pytest.mark.parametrize(
        "frames",
        [
            (),
            (b"\x01", b"\xc1"),
            (b"\x01", b"\xc0"),
            (b"\x01", b"\x00"),
            (b"\x01", b"\xc3"),
            (b"\x01", b"\xa1x"),
            (b"\x01", b"\xff"),
            (b"", b"\x05"),
            (b"", b"\x90"),
        ],
        ids=repr,
    )
    def test_malformed_replies_are_dropped_and_counted(self, frames: tuple[bytes, ...]) -> None:
        driver = ready()
        sink = driver.update()
        message = driver.read_one(b"=")
        driver.reply_frames(message, *frames)
        assert driver.session.counters.malformed_replies == 1
        assert sink.pending
        driver.committed(message, INTEGER_MAX)
        assert sink.result == INTEGER_MAX

    def test_unknown_replies_are_dropped_and_counted(self) -> None:
        driver = ready()
        driver.committed(new_request_id(), 5)
        driver.session.receive([], driver.now)
        driver.session.receive([b""], driver.now)
        assert driver.session.counters.unknown_replies == 3

    @pytest.mark.parametrize("data", [b"", "text"])
    def test_what_peers_would_ignore_is_refused(self, data: bytes) -> None:
        with pytest.raises(LocalProtocolError):
            UpdateRequest(SECRET, new_request_id(), data, Sink())

    def test_an_id_of_another_length_is_refused(self) -> None:
        with pytest.raises(LocalProtocolError):
            UpdateRequest(SECRET, bytes(11), b"data", Sink())


class TestDeadlinesAndCancellation:
    def test_a_deadline_passes_at_its_time(self) -> None:
        driver = ready()
        sink = driver.update(deadline_s=0.25, request_id=bytes(range(12)))
        driver.advance(0.25 - TICK)
        assert sink.pending
        driver.advance(TICK)
        assert isinstance(sink.result, RequestTimeoutError)
        assert isinstance(sink.result, TimeoutError)
        assert bytes(range(12)).hex() in str(sink.result)
        assert driver.session.request_count == 0

    def test_a_deadline_passes_also_while_no_leader_is_known(self) -> None:
        driver = Driver.following()
        sink = driver.update(deadline_s=7)
        driver.advance(7)
        assert isinstance(sink.result, RequestTimeoutError)

    def test_a_late_reply_is_dropped(self) -> None:
        driver = ready()
        sink = driver.update(deadline_s=0.1)
        message = driver.read_one(b"=")
        driver.advance(0.2)
        driver.committed(message, 2)
        assert isinstance(sink.result, RequestTimeoutError)
        assert driver.session.counters.unknown_replies == 1

    @pytest.mark.parametrize("ended_by", ["deadline", "cancel"])
    @pytest.mark.parametrize("follows_leader", [True, False])
    def test_silence_is_noticed_by_requests_that_are_all_given_up_earlier(
        self, ended_by: str, follows_leader: bool
    ) -> None:
        """None of them waits as long as a reply may take, so none is ever overdue."""
        driver = ready("1") if follows_leader else Driver.for_peer("1")
        links = len(driver.links)
        for _ in range(4):
            request = LogInfoRequest(SECRET, Sink(), driver.now + (0.4 if ended_by == "deadline" else 1e9))
            driver.start(request)
            driver.advance(0.4)
            driver.session.cancel(request)
        assert driver.session.counters.searches >= 1
        assert len(driver.links) > links

    def test_a_peer_that_answers_others_is_not_asked_why_one_was_given_up(self) -> None:
        driver = Driver.for_peer("1")
        driver.update(deadline_s=0.3)
        update = driver.read_one(b"=")
        driver.advance(0.2)
        driver.accepted(update)
        driver.advance(1)
        assert driver.read() == []
        assert len(driver.links) == 1

    def test_what_is_cancelled_before_it_was_sent_is_not_sent(self) -> None:
        driver = ready()
        sink = Sink()
        request = UpdateRequest(SECRET, new_request_id(), b"data", sink)
        driver.session.start(request, driver.now)
        assert driver.session.cancel(request)
        assert driver.read() == []
        assert sink.pending

    def test_what_is_cancelled_later_is_not_repeated(self) -> None:
        driver = ready()
        sink = Sink()
        request = UpdateRequest(SECRET, new_request_id(), b"data", sink)
        driver.start(request)
        driver.read()
        assert driver.session.cancel(request)
        assert not driver.session.cancel(request)
        driver.advance(5)
        assert driver.read() == []
        assert sink.pending
        assert driver.session.next_time() is None

    def test_many_deadlines_far_away_do_not_pile_up(self) -> None:
        driver = ready()
        for index in range(5000):
            driver.update(deadline_s=3600)
            driver.committed(driver.read_one(b"="), index + 2)
        assert len(driver.session._deadlines) < 200


class TestTwins:
    """The same request id twice in one session: both wait for the one outcome."""

    ID = bytes(range(12))

    def test_both_get_the_index_and_one_message_goes_out(self) -> None:
        driver = ready()
        sinks = [driver.update(request_id=self.ID) for _ in range(3)]
        driver.committed(driver.read_one(b"="), 9)
        assert [sink.result for sink in sinks] == [9, 9, 9]
        assert driver.session.request_count == 0

    def test_both_get_a_final_refusal(self) -> None:
        driver = ready()
        sinks = [driver.update(request_id=self.ID) for _ in range(2)]
        driver.reply(driver.read_one(b"="), Protocols.REQUEST_UPDATE, False, ABSENT)
        assert [type(sink.result) for sink in sinks] == [RequestExpiredError] * 2

    @pytest.mark.parametrize("shorter", [0, 1, 2])
    def test_each_has_its_own_deadline(self, shorter: int) -> None:
        driver = ready()
        sinks = [driver.update(request_id=self.ID, deadline_s=0.2 if n == shorter else 60) for n in range(3)]
        message = driver.read_one(b"=")
        driver.advance(0.3)
        assert [sink.pending for sink in sinks] == [n != shorter for n in range(3)]
        driver.committed(message, 9)
        assert [sink.result for n, sink in enumerate(sinks) if n != shorter] == [9, 9]

    def test_the_one_that_remains_is_repeated(self) -> None:
        driver = ready()
        driver.update(request_id=self.ID, deadline_s=0.2)
        sink = driver.update(request_id=self.ID)
        driver.read()
        driver.advance(TIMEOUT_S + TICK)
        driver.cluster_info(driver.read_one(b"^"), "2", leads=True)
        driver.committed(driver.read_one(b"="), 9)
        assert sink.result == 9

    def test_what_was_not_sent_yet_is_sent_for_the_one_that_remains(self) -> None:
        driver = ready()
        sinks = [Sink(), Sink()]
        requests = [UpdateRequest(SECRET, self.ID, b"data", sink) for sink in sinks]
        for request in requests:
            driver.session.start(request, driver.now)
        assert driver.session.cancel(requests[0])
        driver.committed(driver.read_one(b"="), 9)
        assert sinks[0].pending
        assert sinks[1].result == 9

    def test_another_kind_of_request_is_refused(self) -> None:
        driver = ready()
        first, second = driver.update(request_id=self.ID), Sink()
        driver.start(ConfigUpdateRequest(SECRET, self.ID, [("1", URLS["1"])], second))
        assert isinstance(second.result, LocalProtocolError)
        driver.committed(driver.read_one(b"="), 9)
        assert first.result == 9

    def test_closing_ends_both(self) -> None:
        driver = ready()
        sinks = [driver.update(request_id=self.ID) for _ in range(2)]
        driver.session.close()
        assert [type(sink.result) for sink in sinks] == [ClosedError] * 2


class TestQueries:
    def test_cluster_info(self) -> None:
        driver, sink = ready(), Sink()
        driver.start(ClusterInfoRequest(SECRET, sink))
        driver.cluster_info(driver.read_one(b"^"), "1", leads=True)
        assert sink.result == ClusterInfo(True, "1", tuple(URLS.items()))

    def test_cluster_info_tells_of_new_peers_where_a_later_search_finds_the_leader(self) -> None:
        """So it does in zmq-raft: who asks from time to time can lose all peers that it began with."""
        driver, sink = ready(), Sink()
        driver.start(ClusterInfoRequest(SECRET, sink))
        message = driver.read_one(b"^")
        driver.reply(message, Protocols.REQUEST_CONFIG, True, "1", [["1", URLS["1"]], ["9", NEW_URL]])
        assert sink.result.peers == (("1", URLS["1"]), ("9", NEW_URL))
        driver.update()
        assert driver.read_one(b"=").url == URLS["1"]
        driver.advance(TIMEOUT_S)
        assert NEW_URL in [sent.url for sent in asked_in_turn(driver, 4)]

    def test_cluster_info_of_one_that_leads_no_longer_is_asked_elsewhere(self) -> None:
        driver, sink = ready("1"), Sink()
        driver.start(ClusterInfoRequest(SECRET, sink))
        driver.cluster_info(driver.read_one(b"^"), "2")
        assert sink.pending
        driver.find_leader("2")
        driver.cluster_info(driver.read_one(b"^"), "2", leads=True)
        assert sink.result.leader_id == "2"

    def test_log_info(self) -> None:
        driver, sink = ready(), Sink()
        driver.start(LogInfoRequest(SECRET, sink))
        driver.reply(driver.read_one(b"%"), Protocols.REQUEST_LOG_INFO, True, "1", 5, 1, 1200, 1234, 1240, 0, 7)
        assert sink.result == LogInfo(True, "1", 5, 1, 1200, 1234, 1240, 0, 7)

    @pytest.mark.parametrize(
        ("frames", "url"), [((b"tcp://h:1",), "tcp://h:1"), ((b"",), None), ((), None)], ids=["url", "empty", "absent"]
    )
    def test_broadcast_url(self, frames: tuple[bytes, ...], url: str | None) -> None:
        driver, sink = ready(), Sink()
        driver.start(BroadcastUrlRequest(SECRET, sink))
        driver.reply_frames(driver.read_one(b"*"), *frames)
        assert sink.result == url

    def test_a_query_without_reply_is_repeated_while_the_leader_answers_others(self) -> None:
        driver, sink = ready(), Sink()
        driver.start(BroadcastUrlRequest(SECRET, sink))
        for index in range(20):
            driver.advance(0.1)
            driver.update()
            for message in driver.read():
                if message.type == b"=":
                    driver.committed(message, 2 + index)
        assert driver.session.counters.searches == 0
        assert driver.session.counters.repeated_requests in (3, 4)

    def test_a_query_without_reply_leads_to_the_next_peer(self) -> None:
        driver, sink = ready("1"), Sink()
        driver.start(BroadcastUrlRequest(SECRET, sink))
        driver.read()
        driver.advance(TIMEOUT_S)
        assert driver.read_one(b"^").url != URLS["1"]

    def test_ids_of_requests_in_flight_are_not_given_out_again(self) -> None:
        driver, sink = ready(), Sink()
        driver.start(BroadcastUrlRequest(SECRET, sink))
        taken = driver.read_one(b"*").id
        driver.session._next_id = 2**32 - 3
        seen = set()
        for _ in range(10):
            other = Sink()
            driver.start(BroadcastUrlRequest(SECRET, other))
            message = driver.read_one(b"*")
            seen.add(message.id)
            assert 1 <= len(message.id) <= 4
            driver.reply_frames(message)
        assert len(seen) == 10
        assert taken not in seen
        assert sink.pending


class TestMessages:
    def test_the_first_reply_is_the_result(self) -> None:
        driver, sink = ready(), Sink()
        driver.start(MessageRequest(SECRET, b"kv", [b"get", b"key"], sink))
        message = driver.read_one(b"kv")
        assert message.arguments == (b"get", b"key")
        driver.reply_frames(message, b"found", b"")
        assert sink.result == [b"found", b""]

    def test_silence_has_the_leader_checked_and_the_message_is_not_repeated(self) -> None:
        driver, sink = ready(), Sink()
        driver.start(MessageRequest(SECRET, b"kv", [], sink))
        driver.read()
        for _ in range(5):
            driver.advance(TIMEOUT_S)
            checks = driver.read()
            assert {message.type for message in checks} <= {b"^"}
            for check in checks:
                driver.cluster_info(check, "1", leads=True)
        assert driver.session.counters.searches == 0
        assert sink.pending

    def test_it_goes_out_again_to_another_leader(self) -> None:
        driver, sink = ready("1"), Sink()
        driver.start(MessageRequest(SECRET, b"kv", [b"x"], sink))
        driver.read()
        driver.advance(2 * TIMEOUT_S)
        check, question = driver.read()
        assert (check.url, question.url == URLS["1"]) == (URLS["1"], False)
        driver.cluster_info(question, None, leads=True)
        assert driver.read_one(b"kv").arguments == (b"x",)

    @pytest.mark.parametrize(("message_type", "frames"), [(b"", []), (b"kv", ["text"]), ("kv", [])])
    def test_what_is_not_bytes_is_refused(self, message_type: bytes, frames: list[bytes]) -> None:
        with pytest.raises(LocalProtocolError):
            MessageRequest(SECRET, message_type, frames, Sink())


class TestConfigUpdate:
    PEERS = (("1", URLS["1"]), ("4", "tcp://10.0.0.4:8047"))

    def start(self, driver: Driver) -> Sink:
        sink = Sink()
        driver.start(ConfigUpdateRequest(SECRET, new_request_id(), self.PEERS, sink))
        return sink

    def test_accepted_then_done(self) -> None:
        driver = ready()
        sink = self.start(driver)
        message = driver.read_one(b"&")
        for _ in range(3):
            driver.advance(0.4)
            driver.reply(message, Protocols.CONFIG_UPDATE, 1)
        driver.reply(message, Protocols.CONFIG_UPDATE, 1, 77)
        assert sink.result == 77

    def test_the_new_peers_are_known_once_it_is_done(self) -> None:
        driver = ready()
        self.start(driver)
        driver.reply(driver.read_one(b"&"), Protocols.CONFIG_UPDATE, 1, 77)
        driver.update()
        assert driver.read_one(b"=").url == URLS["1"]
        driver.advance(TIMEOUT_S)
        assert "tcp://10.0.0.4:8047" in [sent.url for sent in asked_in_turn(driver, 4)]

    def test_not_the_leader(self) -> None:
        driver = ready("1")
        sink = self.start(driver)
        message = driver.read_one(b"&")
        driver.reply(message, Protocols.CONFIG_UPDATE, 0, "3")
        driver.find_leader("3")
        again = driver.read_one(b"&")
        assert (again.id, again.arguments) == (message.id, message.arguments)
        driver.reply(again, Protocols.CONFIG_UPDATE, 1, 77)
        assert sink.result == 77

    def test_refused(self) -> None:
        driver = ready()
        sink = self.start(driver)
        error = {"name": "TypeError", "message": "peers must be an array"}
        driver.reply(driver.read_one(b"&"), Protocols.CONFIG_UPDATE, 2, error)
        assert isinstance(sink.result, ConfigUpdateRefusedError)
        assert (sink.result.name, sink.result.reason) == ("TypeError", "peers must be an array")

    @pytest.mark.parametrize(("status", "error"), [(3, ConfigUpdateInProgressError), (4, RequestExpiredError)])
    def test_other_refusals(self, status: int, error: type[Exception]) -> None:
        driver = ready()
        sink = self.start(driver)
        driver.reply(driver.read_one(b"&"), Protocols.CONFIG_UPDATE, status)
        assert isinstance(sink.result, error)

    @pytest.mark.parametrize("values", [(5,), (2, "text"), (1, "x"), (0, 5)], ids=repr)
    def test_malformed(self, values: tuple[object, ...]) -> None:
        driver = ready()
        sink = self.start(driver)
        driver.reply(driver.read_one(b"&"), Protocols.CONFIG_UPDATE, *values)
        assert driver.session.counters.malformed_replies == 1
        assert sink.pending


class TestOnePeer:
    def test_requests_go_out_at_once(self) -> None:
        driver = Driver.for_peer()
        sink = driver.update()
        driver.committed(driver.read_one(b"="), 3)
        assert sink.result == 3

    @pytest.mark.parametrize("leader_id", ["3", None])
    def test_not_the_leader_is_an_error(self, leader_id: str | None) -> None:
        driver = Driver.for_peer()
        sink = driver.update()
        driver.not_leader(driver.read_one(b"="), leader_id)
        assert isinstance(sink.result, NotLeaderError)
        assert sink.result.leader_id == leader_id

    def test_cluster_info_of_a_follower_is_a_result(self) -> None:
        driver, sink = Driver.for_peer(), Sink()
        driver.start(ClusterInfoRequest(SECRET, sink))
        driver.cluster_info(driver.read_one(b"^"), "2")
        assert sink.result == ClusterInfo(False, "2", tuple(URLS.items()))

    def test_silence_makes_a_new_connection_to_the_same_peer(self) -> None:
        driver = Driver.for_peer()
        driver.update()
        first = driver.read_one(b"=")
        driver.advance(TIMEOUT_S)
        assert driver.read_one(b"=").id == first.id
        assert driver.links == [URLS["1"], URLS["1"]]

    def test_it_stays_with_its_peer_whatever_that_says_of_others(self) -> None:
        """Whether the peer is well is found out by a question whose answer names all of them."""
        driver = Driver.for_peer("2")
        driver.start(MessageRequest(SECRET, b"kv", [], Sink()))
        driver.read()
        driver.advance(TIMEOUT_S)
        driver.cluster_info(driver.read_one(b"^"), "1")
        driver.advance(10 * TIMEOUT_S)
        assert driver.session.counters.searches > 1
        assert set(driver.links) == {URLS["2"]}

    def test_needs_one_url(self) -> None:
        peers: list[tuple[str | None, str]] = [(None, URLS["1"]), (None, URLS["2"])]
        for wrong in (peers, []):
            with pytest.raises(ConfigurationError):
                ClientSession(wrong, secret=b"", timeout_s=1, grace_delay_s=1, follows_leader=False)


class TestHeartbeat:
    def test_the_leader_is_found_and_asked_again_without_requests(self) -> None:
        driver = Driver.following(heartbeat_s=2.0)
        driver.advance(0)
        driver.find_leader("1")
        driver.advance(2.0 - TICK)
        assert driver.read() == []
        driver.advance(TICK)
        driver.cluster_info(driver.read_one(b"^"), "1", leads=True)
        driver.advance(2.0)
        driver.cluster_info(driver.read_one(b"^"), "3")
        driver.find_leader("3")

    def test_a_question_to_another_leader_is_forgotten(self) -> None:
        driver = Driver.following(heartbeat_s=2.0)
        driver.advance(0)
        driver.find_leader("1")
        driver.advance(2.0)
        driver.read_one(b"^")
        driver.update()
        driver.not_leader(driver.read_one(b"="), "3")
        driver.find_leader("3")
        driver.committed(driver.read_one(b"="), 1)
        driver.advance(2.0 - TICK)
        assert driver.read() == []
        driver.advance(TICK)
        driver.cluster_info(driver.read_one(b"^"), "3", leads=True)
        assert driver.session.counters.searches == 0

    def test_a_silent_leader_is_left(self) -> None:
        driver = Driver.following(heartbeat_s=2.0)
        driver.advance(0)
        driver.find_leader("1")
        driver.advance(2.0)
        driver.read_one(b"^")
        driver.advance(TIMEOUT_S)
        assert driver.read_one(b"^").url == URLS["2"]

    def test_it_brings_new_peers(self) -> None:
        driver = Driver.following(peers=[(None, URLS["1"])], heartbeat_s=1.0)
        driver.advance(0)
        driver.reply(driver.read_one(b"^"), Protocols.REQUEST_CONFIG, True, "1", [["1", URLS["1"]]])
        driver.advance(1.0)
        new = [["1", URLS["1"]], ["4", "tcp://10.0.0.4:8047"]]
        driver.reply(driver.read_one(b"^"), Protocols.REQUEST_CONFIG, True, "1", new)
        driver.update()
        driver.read()
        driver.advance(TIMEOUT_S)
        asked = {message.url for message in driver.read() if message.url != URLS["1"]}
        assert asked == {"tcp://10.0.0.4:8047"}


class TestClosing:
    def test_everything_fails_and_nothing_is_wanted(self) -> None:
        driver = ready()
        sinks = [driver.update(), driver.update()]
        driver.session.close()
        assert [type(sink.result) for sink in sinks] == [ClosedError] * 2
        assert driver.session.url is None
        assert driver.session.next_time() is None
        assert driver.session.next_frames() is None
        late = driver.update()
        assert isinstance(late.result, ClosedError)
        driver.session.close()

    def test_a_blocked_socket_drops_what_has_ended(self) -> None:
        """What a small ZMQ_SNDHWM did not take stays in the session, and is not sent once nobody waits for it."""
        driver = ready()
        requests = [UpdateRequest(SECRET, new_request_id(), b"%d" % n, Sink()) for n in range(1000)]
        for request in requests:
            driver.session.start(request, driver.now)
        for request in requests[:-1]:
            driver.session.cancel(request)
        assert driver.read_one(b"=").arguments == (b"999",)
