"""The server verifier: refusals, also in a row, end of a proof, closing, forks, observers."""

import asyncio
import logging
import threading
from collections.abc import Callable
from datetime import timedelta

import pytest

from attestkit.client.proofs.proof import Proof
from attestkit.client.proofs.server_verifier import MAX_KEYS, PAUSE_SECONDS, REFUSALS
from attestkit.client.services.service import Question
from attestkit.client.wire.observed_peer import ObservedPeer
from attestkit.client.wire.steps import Run, Wait, drive
from attestkit.errors import ConfigError, UsageError, VerificationError
from attestkit.ra_tls import PeerRefusedError
from tests.client.proofs.stub_proofs import (
    TIMEOUT,
    Channel,
    Rig,
    StubService,
    peer_of,
    proof_of,
)
from tests.client.proofs.verifier_calls import (
    HOUR,
    A,
    AsyncChannel,
    B,
    advance,
    drive_async,
    prove,
    refuse,
    refused,
)
from tests.processes import in_child

# -- what refuses, and what does not ---------------------------------------------------------------


def test_refusal_has_reason_and_cause() -> None:
    """Errors of services and of verification are reported unchanged."""
    rig = Rig()
    rig.appraiser.judge = refuse
    error = refused(rig, A)
    assert error.reason == "report_data"
    assert isinstance(error.__cause__, VerificationError)
    assert rig.events == [error]
    assert not rig.server_verifier.accepts(A)


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
    steps = rig.server_verifier.steps(A)
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
        steps, waiter = rig.server_verifier.steps(A), rig.server_verifier.steps(A)
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
        rig.server_verifier.check_open()
    assert len(rig.events) == REFUSALS


def test_other_key_than_that_of_evidence_from_apart_is_a_refusal() -> None:
    """Evidence that is accepted and names another key does not end the row."""
    rig = Rig(StubService("apart"))
    asked: list[Question] = []

    def fetch(question: Question) -> bytes:
        asked.append(question)
        return b"ok"

    rig.fetch = fetch
    rig.appraiser.judge = lambda _: proof_of(A.spki_sha256, at=rig.clock.now())
    reasons = [refused(rig, B).reason for _ in range(2 * REFUSALS)]
    assert reasons == ["other_key"] * REFUSALS + ["refused_recently"] * REFUSALS
    assert len(asked) == REFUSALS


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
    before = rig.server_verifier.generation
    rig.clock.seconds += HOUR - 1
    assert rig.server_verifier.accepts(A)
    assert rig.server_verifier.generation == before
    rig.clock.seconds += 1
    assert rig.server_verifier.generation != before
    assert not rig.server_verifier.accepts(A)
    assert rig.server_verifier.newest is None
    assert prove(rig, A).sent


def test_each_key_has_its_end() -> None:
    """The generation changes at the first end; the other key remains proven."""
    rig = Rig()
    prove(rig, A)
    rig.clock.seconds += HOUR / 2
    prove(rig, B)
    before = rig.server_verifier.generation
    rig.clock.seconds += HOUR / 2
    assert rig.server_verifier.generation == before + 1
    assert not rig.server_verifier.accepts(A)
    assert rig.server_verifier.accepts(B)
    rig.clock.seconds += HOUR / 2
    assert rig.server_verifier.generation == before + 2


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
    assert rig.server_verifier.newest is None
    assert rig.server_verifier.accepts(A)
    assert not rig.server_verifier.accepts(B)


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
    assert rig.server_verifier.accepts(A)
    rig.clock.seconds += 1
    assert not rig.server_verifier.accepts(A)


def test_keys_are_bounded() -> None:
    """The oldest is forgotten, and then its connections carry no new request."""
    rig = Rig()
    for number in range(MAX_KEYS):
        prove(rig, peer_of(b"%d" % number))
    before = rig.server_verifier.generation
    prove(rig, A)
    assert rig.server_verifier.generation != before
    assert not rig.server_verifier.accepts(peer_of(b"0"))
    assert rig.server_verifier.accepts(peer_of(b"1"))
    assert rig.server_verifier.accepts(A)


def test_observed_key_is_kept_of_many() -> None:
    """Of a proof of more keys than are kept, that of the connection is."""
    rig = Rig()
    peers = [A, *(peer_of(b"%d" % number) for number in range(MAX_KEYS))]
    keys = [peer.spki_sha256 for peer in peers]
    rig.appraiser.judge = lambda _: proof_of(*keys, at=rig.clock.now())
    prove(rig, A)
    assert rig.server_verifier.accepts(A)
    assert rig.server_verifier.accepts(peers[1])
    assert not rig.server_verifier.accepts(peers[-1])


def test_forgotten_proofs() -> None:
    """`forget` ends all: the generation changes, and the next connection is asked."""
    rig = Rig()
    prove(rig, A)
    before = rig.server_verifier.generation
    rig.server_verifier.forget()
    assert rig.server_verifier.generation != before
    assert rig.server_verifier.newest is None
    assert prove(rig, A).sent


# -- closing, forks, observers ---------------------------------------------------------------------


def test_closed_while_a_proof_is_made() -> None:
    """Its result is not accepted, and no waiting connection goes on."""
    rig = Rig()
    leader, waiter = rig.server_verifier.steps(A), rig.server_verifier.steps(A)
    run = advance(leader, 2)
    wait = next(waiter)
    rig.server_verifier.close()
    assert isinstance(run, Run)
    with pytest.raises(UsageError) as caught:
        leader.send(run.work())
    assert caught.value.reason == "closed"
    assert isinstance(wait, Wait)
    assert wait.future.result(TIMEOUT) is None
    for steps in (waiter, rig.server_verifier.steps(A)):
        with pytest.raises(UsageError) as caught:
            steps.send(None)
        assert caught.value.reason == "closed"
    assert not rig.server_verifier.accepts(A)
    assert rig.events == []


def test_forked_process_does_not_wait_for_its_parent() -> None:
    """Proofs survive a fork; the parent's lock and its unfinished proof do not block the child."""
    rig = Rig()
    prove(rig, A)
    leader = rig.server_verifier.steps(B)
    next(leader)

    def child() -> None:
        assert rig.server_verifier.accepts(A)
        prove(rig, B)
        assert rig.server_verifier.accepts(B)

    with rig.server_verifier._lock:
        assert in_child(child)
    leader.close()


def test_proof_ends_in_a_process_that_was_forked_while_it_was_accepted() -> None:
    """The key of a proof was stored, and its end was not yet."""
    rig = Rig()
    prove(rig, A)

    def child() -> None:
        assert rig.server_verifier.accepts(A)
        rig.clock.seconds += HOUR
        assert not rig.server_verifier.accepts(A)

    with rig.server_verifier._lock:
        rig.server_verifier._next_end = float("inf")
        assert in_child(child)


def test_observer_that_fails_undoes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Its error is logged; the proof, or the refusal, stands."""

    def fail(_: object) -> None:
        raise RuntimeError("of the observer")

    rig = Rig(on_proof=fail)
    with caplog.at_level(logging.INFO, "attestkit.client"):
        prove(rig, A)
        rig.appraiser.judge = refuse
        assert refused(rig, B).reason == "report_data"
    assert rig.server_verifier.accepts(A)
    messages = [record.getMessage() for record in caplog.records]
    assert messages.count("on_proof failed") == 2
    assert "https://server.example: proven (stub; tls-spki)" in messages


def test_observer_may_prove() -> None:
    """It is called once the proof counts, so that it may use the server verifier itself."""
    proofs: list[object] = []

    def again(event: object) -> None:
        proofs.append(event)
        if len(proofs) == 1:
            drive(rig.server_verifier.steps(A, afresh=True), Channel())

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
        await drive_async(rig.server_verifier.steps(A), AsyncChannel())

    if judge is None:
        asyncio.run(main())
    else:
        with pytest.raises(PeerRefusedError):
            asyncio.run(main())
    assert len(seen) == 1
    assert seen[0] != threading.get_ident()


def test_server_verifier_names_its_server() -> None:
    """Host and port are those of the origin."""
    rig = Rig()
    assert (rig.server_verifier.host, rig.server_verifier.port) == ("server.example", 443)


def test_headers_for_the_evidence() -> None:
    """Those that the caller passes are in the question, which is sent before anything is proven."""
    rig = Rig()
    rig.appraiser.evidence_headers = (("Authorization", "Bearer key"),)
    assert b"\r\nAuthorization: Bearer key\r\n" in prove(rig, A).sent
