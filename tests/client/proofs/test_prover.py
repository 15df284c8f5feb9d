"""The prover: one proof at a time, what waits for it, how long it counts, and refusals in a row."""

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from attestkit._crypto.hashes import sha256
from attestkit.client.proofs.proof import Proof
from attestkit.client.proofs.prover import MAX_KEYS, PAUSE_SECONDS, REFUSALS
from attestkit.client.services.service import Question
from attestkit.client.wire.drivers import ReconnectError, drive, drive_async
from attestkit.client.wire.observed_peer import ObservedPeer
from attestkit.client.wire.steps import Receive, Run, Send, Steps, Wait
from attestkit.errors import ConfigError, UsageError, VerificationError
from attestkit.ra_tls import PeerRefusedError
from tests.client.stub_proofs import (
    ANSWER,
    CLOSING,
    MAX_AGE,
    SECONDS,
    TIMEOUT,
    Channel,
    Rig,
    StubService,
    peer_of,
    proof_of,
)

HOUR = MAX_AGE.total_seconds()
A, B = peer_of(b"a"), peer_of(b"b")


def refuse(peer: ObservedPeer | None) -> Proof:
    """Refuse a peer, as a Verifier does."""
    raise VerificationError(f"evidence of {peer and peer.spki!r}: wrong", reason="report_data")


def prove(rig: Rig, peer: ObservedPeer | None, channel: Channel | None = None) -> Channel:
    """Prove a connection."""
    channel = channel or Channel()
    drive(rig.prover.steps(peer), channel)
    return channel


def refused(rig: Rig, peer: ObservedPeer, channel: Channel | None = None) -> PeerRefusedError:
    """Return the refusal of a connection."""
    with pytest.raises(PeerRefusedError) as caught:
        prove(rig, peer, channel)
    return caught.value


# -- one proof -------------------------------------------------------------------------------------


def test_key_is_asked_once() -> None:
    """The first connection is asked with a new nonce; later ones with its key are not."""
    rig = Rig()
    assert not rig.prover.accepts(A.spki_sha256)
    assert rig.prover.newest is None
    channel = prove(rig, A)
    [nonce] = rig.appraiser.nonces
    assert bytes(channel.sent).startswith(b"GET /evidence?nonce=" + nonce.hex().encode() + b" HTTP")
    assert rig.prover.accepts(A.spki_sha256)
    assert rig.prover.newest is rig.events[0]
    assert prove(rig, A).sent == b""
    prove(rig, B)
    assert len(set(rig.appraiser.nonces)) == 2
    assert [type(event) for event in rig.events] == [Proof, Proof]


def test_proof_afresh_is_asked_anyway() -> None:
    """`afresh` makes a proof even of a proven key, which moves its end."""
    rig = Rig()
    prove(rig, A)
    rig.clock.seconds += HOUR / 2
    drive(rig.prover.steps(A, afresh=True), Channel())
    assert len(rig.appraiser.nonces) == 2
    rig.clock.seconds += HOUR * 3 / 4
    assert rig.prover.accepts(A.spki_sha256)


def test_server_that_closes_after_its_answer() -> None:
    """The key is proven, and the connection carries no request."""
    rig = Rig()
    with pytest.raises(ReconnectError):
        prove(rig, A, Channel(CLOSING))
    assert prove(rig, A).sent == b""


def test_several_questions() -> None:
    """Each is asked on the same connection; one that closes after the first is refused."""
    rig = Rig(StubService(questions=3))
    assert prove(rig, A).sent.count(b"GET ") == 3
    assert refused(rig, B, Channel(CLOSING)).reason == "connection"


def test_certificate_may_be_bound_in_place_of_the_key() -> None:
    """A proof of a certificate's hash is for connections with this certificate alone."""
    rig = Rig()
    digest = sha256(A.certificate)
    rig.appraiser.judge = lambda _: proof_of(digest, at=rig.clock.now(), kind="tls-certificate")
    prove(rig, A)
    assert prove(rig, A).sent == b""
    renewed = A._replace(certificate=b"renewed")
    assert refused(rig, renewed).reason == "other_key"


def test_proof_about_another_key_is_refused() -> None:
    """The connection must have the key that is accepted."""
    rig = Rig()
    rig.appraiser.judge = lambda _: proof_of(B.spki_sha256, at=rig.clock.now())
    assert refused(rig, A).reason == "other_key"


def test_proof_that_began_before_forget_does_not_count() -> None:
    """Its nonce and evidence are older: the question is asked once more, with another nonce."""
    rig = Rig()
    channel = Channel(held=True)
    with ThreadPoolExecutor(1) as threads:
        proving = threads.submit(prove, rig, A, channel)
        assert channel.asked.wait(TIMEOUT)
        rig.prover.forget()
        channel.gate.set()
        proving.result(TIMEOUT)
    assert channel.sent.count(b"GET ") == 2
    assert len(set(rig.appraiser.nonces)) == 2
    assert [type(event) for event in rig.events] == [Proof]


def test_proof_that_began_before_forget_on_a_connection_that_ends() -> None:
    """Nothing can be asked on it again, and another connection has to be opened."""
    rig = Rig()
    channel = Channel(CLOSING, held=True)
    with ThreadPoolExecutor(1) as threads:
        proving = threads.submit(prove, rig, A, channel)
        assert channel.asked.wait(TIMEOUT)
        rig.prover.forget()
        channel.gate.set()
        with pytest.raises(ReconnectError):
            proving.result(TIMEOUT)
    assert not rig.prover.accepts(A.spki_sha256)
    assert rig.events == []


# -- services that are proven apart ----------------------------------------------------------------


def test_service_apart() -> None:
    """Questions go over a connection of their own; the connection itself is sent nothing."""
    rig = Rig(StubService("apart", questions=2))
    asked: list[Question] = []

    def fetch(question: Question) -> bytes:
        asked.append(question)
        return b"ok"

    rig.fetch = fetch

    def judge(peer: ObservedPeer | None) -> Proof:
        assert peer is None  # the key at that time is trusted for nothing
        return proof_of(A.spki_sha256, at=rig.clock.now())

    rig.appraiser.judge = judge
    assert prove(rig, A).sent == b""
    assert len(asked) == 2
    assert refused(rig, B).reason == "other_key"
    drive(rig.prover.steps(None, afresh=True), Channel())
    assert len(asked) == 6


def test_sealed_requests_take_any_key() -> None:
    """A proof without a TLS key is of requests that are sealed: any connection carries them."""
    rig = Rig(StubService("apart"))
    rig.appraiser.judge = lambda _: proof_of(b"k", at=rig.clock.now(), kind="hpke")
    prove(rig, A)
    assert prove(rig, B).sent == b""
    assert rig.prover.accepts(bytes(32))
    rig.clock.seconds += HOUR
    assert not rig.prover.accepts(bytes(32))


# -- many at a time --------------------------------------------------------------------------------


def test_threads_share_one_proof() -> None:
    """Of 16 threads with connections of one key, one asks, and the others wait for it."""
    rig, first = Rig(), Channel(held=True)
    with ThreadPoolExecutor(17) as threads:
        leader = threads.submit(prove, rig, A, first)
        assert first.asked.wait(TIMEOUT)
        others = [threads.submit(prove, rig, A) for _ in range(16)]
        first.gate.set()
        leader.result(TIMEOUT)
        assert [one.result(TIMEOUT).sent for one in others] == [b""] * 16
    assert len(rig.appraiser.nonces) == 1


def test_proofs_of_several_keys_are_made_in_turn() -> None:
    """Never two at a time, and each key gets its own."""
    rig, at_once, most = Rig(), 0, 0
    lock = threading.Lock()

    def judge(peer: ObservedPeer | None) -> Proof:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        found = rig.appraiser.accept(peer)
        with lock:
            at_once -= 1
        return found

    rig.appraiser.judge = judge
    peers = [peer_of(b"%d" % (number % 8)) for number in range(32)]
    with ThreadPoolExecutor(32) as threads:
        list(threads.map(lambda peer: prove(rig, peer), peers))
    assert (most, len(rig.appraiser.nonces)) == (1, 8)


def test_tasks_share_one_proof() -> None:
    """Of 50 tasks of an event loop one asks."""
    rig, leader = Rig(), AsyncChannel(held=True)

    async def main() -> None:
        first = asyncio.ensure_future(drive_async(rig.prover.steps(A), leader))
        await leader.asked.wait()
        channels = [AsyncChannel() for _ in range(50)]
        others = [asyncio.ensure_future(drive_async(rig.prover.steps(A), one)) for one in channels]
        await asyncio.sleep(0)
        leader.gate.set()
        await asyncio.wait_for(asyncio.gather(first, *others), TIMEOUT)
        assert {bytes(one.sent) for one in channels} == {b""}

    asyncio.run(main())
    assert len(rig.appraiser.nonces) == 1


class AsyncChannel:
    """As `Channel`, of an event loop."""

    def __init__(self, *, held: bool = False) -> None:
        self.sent = bytearray()
        self.asked, self.gate = asyncio.Event(), asyncio.Event()
        self.held = held

    async def send(self, data: bytes, _seconds: float) -> None:
        """Take a question."""
        self.sent += data
        self.asked.set()

    async def receive(self, _limit: int, _seconds: float) -> bytes:
        """Return an answer."""
        if self.held:
            await self.gate.wait()
        return ANSWER


def test_cancelled_task_lets_others_prove() -> None:
    """If the task that asks is cancelled, one that waits asks on its own connection."""
    rig, leader, second = Rig(), AsyncChannel(held=True), AsyncChannel()

    async def main() -> None:
        first = asyncio.ensure_future(drive_async(rig.prover.steps(A), leader))
        await leader.asked.wait()
        other = asyncio.ensure_future(drive_async(rig.prover.steps(A), second))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        await asyncio.wait_for(other, TIMEOUT)

    asyncio.run(main())
    assert second.sent
    assert rig.prover.accepts(A.spki_sha256)
    assert len(rig.events) == 1  # a cancellation is no refusal


@pytest.mark.parametrize("at", range(4))
def test_proof_may_end_at_any_step(at: int) -> None:
    """A driver that stops after any step blocks no other, and accepts nothing before the end."""
    rig = Rig()
    steps = rig.prover.steps(A)
    advance(steps, at)
    steps.close()
    assert rig.prover.accepts(A.spki_sha256) == (at == 3)
    prove(rig, A)
    assert rig.prover.accepts(A.spki_sha256)


def advance(steps: Steps, count: int) -> object:
    """Perform some steps, and return the next one: question, answer, verification, report."""
    step = next(steps)
    for _ in range(count):
        answer: Any = None
        if isinstance(step, Receive):
            answer = ANSWER
        elif isinstance(step, Run):
            answer = step.work()
        else:
            assert isinstance(step, Send)
        step = steps.send(answer)
    return step


def test_waiting_ends() -> None:
    """Waiting for another proof is limited in time, and does not count as a refusal."""
    rig = Rig()
    leader, waiter = rig.prover.steps(A), rig.prover.steps(B)
    next(leader)
    step = next(waiter)
    assert isinstance(step, Wait)
    assert step.seconds == 2 * SECONDS
    with pytest.raises(PeerRefusedError) as caught:
        waiter.throw(TimeoutError())
    assert caught.value.reason == "timeout"
    assert rig.events == []
    leader.close()


def test_waiters_share_a_refusal_of_their_key() -> None:
    """One with the same key is refused as well without asking; one with another asks itself."""
    rig = Rig()
    rig.appraiser.judge = lambda peer: refuse(peer) if peer == A else rig.appraiser.accept(peer)
    leader, same, other = (rig.prover.steps(peer) for peer in (A, A, B))
    advance(leader, 2)
    waits = [next(same), next(other)]
    with pytest.raises(VerificationError) as caught:
        refuse(A)
    leader.throw(caught.value)  # the verification's error; the report is the next step
    with pytest.raises(PeerRefusedError) as first:
        leader.send(None)
    errors = []
    for wait in waits:
        assert isinstance(wait, Wait)
        error = wait.future.exception(TIMEOUT)
        assert isinstance(error, PeerRefusedError)
        errors.append(error)
    with pytest.raises(PeerRefusedError) as second:
        same.throw(errors[0])
    assert second.value is not first.value
    assert second.value.reason == first.value.reason == "report_data"
    assert isinstance(other.throw(errors[1]), Send)
    other.close()


# -- what refuses, and what does not ---------------------------------------------------------------


def test_refusal_has_reason_and_cause() -> None:
    """Errors of services and of verification are reported unchanged."""
    rig = Rig()
    rig.appraiser.judge = refuse
    error = refused(rig, A)
    assert error.reason == "report_data"
    assert isinstance(error.__cause__, VerificationError)
    assert rig.events == [error]
    assert not rig.prover.accepts(A.spki_sha256)


def test_unexpected_errors_refuse() -> None:
    """An unexpected error refuses the server; its text is not shown."""
    rig = Rig()

    def fail(_: object) -> Proof:
        raise ValueError("secret")

    rig.appraiser.judge = fail
    error = refused(rig, A)
    assert error.reason == "internal"
    assert "ValueError" in str(error)
    assert "secret" not in str(error)


def test_no_answer_in_time_refuses() -> None:
    """An error of time from the channel is a refusal, which counts."""
    rig = Rig()
    steps = rig.prover.steps(A)
    advance(steps, 1)
    steps.throw(TimeoutError())
    with pytest.raises(PeerRefusedError) as caught:
        steps.send(None)
    assert caught.value.reason == "timeout"
    assert "10 s" in str(caught.value)


def test_lost_connection_is_no_refusal() -> None:
    """It may be tried again, however often it is lost; those who wait go on."""
    rig = Rig()
    for _ in range(REFUSALS + 1):
        steps, waiter = rig.prover.steps(A), rig.prover.steps(A)
        advance(steps, 1)
        wait = next(waiter)
        assert isinstance(wait, Wait)
        with pytest.raises(ConnectionResetError):
            steps.throw(ConnectionResetError())
        assert wait.future.result(TIMEOUT) is None
        waiter.close()
    assert rig.events == []
    prove(rig, A)


@pytest.mark.parametrize(
    "error",
    [
        UsageError("h11 is missing", reason="missing_dependency"),
        ConfigError("pins: malformed", reason="syntax"),
    ],
)
def test_errors_of_the_caller_are_no_refusal(error: Exception) -> None:
    """They are raised as they are, and count nothing."""
    rig = Rig()

    def fail(_: object) -> Proof:
        raise error

    rig.appraiser.judge = fail
    for _ in range(REFUSALS + 1):
        with pytest.raises(type(error)) as caught:
            prove(rig, A)
        assert caught.value is error
    assert rig.events == []


# -- refusals in a row -----------------------------------------------------------------------------


def refuse_all(rig: Rig) -> None:
    """Refuse until it is refused without asking."""
    rig.appraiser.judge = refuse
    for _ in range(REFUSALS):
        assert refused(rig, A).reason == "report_data"


def test_server_is_refused_at_once_after_three() -> None:
    """No connection is tried for 30 s, nothing is asked, and the text has the last refusal."""
    rig = Rig()
    refuse_all(rig)
    channel = Channel()
    error = refused(rig, A, channel)
    assert error.reason == "refused_recently"
    assert "evidence of b'a': wrong" in str(error)
    assert "30 s" in str(error)
    assert channel.sent == b""
    with pytest.raises(PeerRefusedError):
        rig.prover.check_open()
    assert len(rig.events) == REFUSALS


def test_one_is_tried_after_the_pause() -> None:
    """If it is refused, the pause begins anew; if it is accepted, refusals are counted anew."""
    rig = Rig()
    refuse_all(rig)
    rig.clock.seconds += PAUSE_SECONDS
    assert refused(rig, A).reason == "report_data"
    assert refused(rig, A).reason == "refused_recently"
    rig.clock.seconds += PAUSE_SECONDS
    rig.appraiser.judge = rig.appraiser.accept
    prove(rig, A)
    rig.appraiser.judge = refuse
    for _ in range(REFUSALS):
        assert refused(rig, B).reason == "report_data"
    assert refused(rig, B).reason == "refused_recently"


def test_connection_with_a_proven_key_ends_the_row() -> None:
    """Behind a load balancer with one bad machine, the good ones remain in use."""
    rig = Rig()
    prove(rig, A)
    rig.appraiser.judge = refuse
    for _ in range(3):
        for _ in range(REFUSALS - 1):
            assert refused(rig, B).reason == "report_data"
        assert prove(rig, A).sent == b""


# -- how long a proof counts -----------------------------------------------------------------------


def test_proof_ends() -> None:
    """At its end the key is unknown, the generation another, and the next connection asked."""
    rig = Rig()
    prove(rig, A)
    before = rig.prover.generation
    rig.clock.seconds += HOUR - 1
    assert rig.prover.accepts(A.spki_sha256)
    assert rig.prover.generation == before
    rig.clock.seconds += 1
    assert rig.prover.generation != before
    assert not rig.prover.accepts(A.spki_sha256)
    assert rig.prover.newest is None
    assert prove(rig, A).sent


def test_each_key_has_its_end() -> None:
    """The generation changes at the first end; the other key remains proven."""
    rig = Rig()
    prove(rig, A)
    rig.clock.seconds += HOUR / 2
    prove(rig, B)
    before = rig.prover.generation
    rig.clock.seconds += HOUR / 2
    assert rig.prover.generation == before + 1
    assert not rig.prover.accepts(A.spki_sha256)
    assert rig.prover.accepts(B.spki_sha256)
    rig.clock.seconds += HOUR / 2
    assert rig.prover.generation == before + 2


def test_newest_proof_may_end_first() -> None:
    """A proof whose own time is over is not shown, even if an older one is valid."""
    rig = Rig()
    prove(rig, A)
    minute = timedelta(minutes=1)
    rig.appraiser.judge = lambda peer: proof_of(
        (peer or A).spki_sha256, at=rig.clock.now(), age=minute
    )
    prove(rig, B)
    rig.clock.seconds += 60
    assert rig.prover.newest is None
    assert rig.prover.accepts(A.spki_sha256)
    assert not rig.prover.accepts(B.spki_sha256)


def test_time_of_verification_counts() -> None:
    """The end is that of the proof, however long its verification took."""
    rig = Rig()

    def slow(peer: ObservedPeer | None) -> Proof:
        found = rig.appraiser.accept(peer)
        rig.clock.seconds += 600
        return found

    rig.appraiser.judge = slow
    prove(rig, A)
    rig.clock.seconds += HOUR - 601
    assert rig.prover.accepts(A.spki_sha256)
    rig.clock.seconds += 1
    assert not rig.prover.accepts(A.spki_sha256)


def test_keys_are_bounded() -> None:
    """The oldest is forgotten, and then its connections carry no new request."""
    rig = Rig()
    for number in range(MAX_KEYS):
        prove(rig, peer_of(b"%d" % number))
    before = rig.prover.generation
    prove(rig, A)
    assert rig.prover.generation != before
    assert not rig.prover.accepts(peer_of(b"0").spki_sha256)
    assert rig.prover.accepts(peer_of(b"1").spki_sha256)
    assert rig.prover.accepts(A.spki_sha256)


def test_observed_key_is_kept_of_many() -> None:
    """Of a proof of more keys than are kept, that of the connection is."""
    rig = Rig()
    keys = [A.spki_sha256, *(peer_of(b"%d" % number).spki_sha256 for number in range(MAX_KEYS))]
    rig.appraiser.judge = lambda _: proof_of(*keys, at=rig.clock.now())
    prove(rig, A)
    assert rig.prover.accepts(A.spki_sha256)
    assert rig.prover.accepts(keys[1])
    assert not rig.prover.accepts(keys[-1])


def test_forgotten_proofs() -> None:
    """`forget` ends all: the generation changes, and the next connection is asked."""
    rig = Rig()
    prove(rig, A)
    before = rig.prover.generation
    rig.prover.forget()
    assert rig.prover.generation != before
    assert rig.prover.newest is None
    assert prove(rig, A).sent


# -- closing, forks, observers ---------------------------------------------------------------------


def test_closed_while_a_proof_is_made() -> None:
    """Its result is not accepted, and no waiting connection goes on."""
    rig = Rig()
    leader, waiter = rig.prover.steps(A), rig.prover.steps(A)
    run = advance(leader, 2)
    wait = next(waiter)
    rig.prover.close()
    assert isinstance(run, Run)
    with pytest.raises(UsageError) as caught:
        leader.send(run.work())
    assert caught.value.reason == "closed"
    assert isinstance(wait, Wait)
    assert wait.future.result(TIMEOUT) is None
    for steps in (waiter, rig.prover.steps(A)):
        with pytest.raises(UsageError) as caught:
            steps.send(None)
        assert caught.value.reason == "closed"
    assert not rig.prover.accepts(A.spki_sha256)
    assert rig.events == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forked_process_does_not_wait_for_its_parent() -> None:
    """Proofs survive a fork; the parent's lock and its unfinished proof do not block the child."""
    rig = Rig()
    prove(rig, A)
    leader = rig.prover.steps(B)
    next(leader)
    with rig.prover._lock:
        child = os.fork()
        if child == 0:  # no pytest in here
            status = 1
            try:
                kept = rig.prover.accepts(A.spki_sha256)
                prove(rig, B)
                status = 0 if kept and rig.prover.accepts(B.spki_sha256) else 2
            finally:
                os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    leader.close()


def test_observer_that_fails_undoes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Its error is logged; the proof, or the refusal, stands."""

    def fail(_: object) -> None:
        raise RuntimeError("of the observer")

    rig = Rig(on_proof=fail)
    with caplog.at_level(logging.INFO, "attestkit.client"):
        prove(rig, A)
        rig.appraiser.judge = refuse
        assert refused(rig, B).reason == "report_data"
    assert rig.prover.accepts(A.spki_sha256)
    messages = [record.getMessage() for record in caplog.records]
    assert messages.count("on_proof failed") == 2
    assert "https://server.example: proven (stub; tls-spki)" in messages


def test_observer_may_prove() -> None:
    """It is called once the proof counts, so that it may use the prover itself."""
    proofs: list[object] = []

    def again(event: object) -> None:
        proofs.append(event)
        if len(proofs) == 1:
            drive(rig.prover.steps(A, afresh=True), Channel())

    rig = Rig(on_proof=again)
    prove(rig, A)
    assert len(proofs) == 2


@pytest.mark.parametrize("judge", [None, refuse])
def test_observer_is_called_in_a_thread(judge: Callable[..., Proof] | None) -> None:
    """On asyncio it does not block the event loop, for proofs and for refusals."""
    seen: list[int] = []
    rig = Rig(on_proof=lambda _: seen.append(threading.get_ident()))
    rig.appraiser.judge = judge or rig.appraiser.accept

    async def main() -> None:
        await drive_async(rig.prover.steps(A), AsyncChannel())

    if judge is None:
        asyncio.run(main())
    else:
        with pytest.raises(PeerRefusedError):
            asyncio.run(main())
    assert len(seen) == 1
    assert seen[0] != threading.get_ident()


def test_prover_names_its_server() -> None:
    """Host and port are those of the origin."""
    rig = Rig()
    assert (rig.prover.host, rig.prover.port) == ("server.example", 443)


def test_headers_for_the_evidence() -> None:
    """Those that the caller passes are in the question, which is sent before anything is proven."""
    rig = Rig()
    rig.appraiser.evidence_headers = (("Authorization", "Bearer key"),)
    assert b"\r\nAuthorization: Bearer key\r\n" in prove(rig, A).sent
