"""The server verifier: one proof at a time, services that are proven apart, and what waits."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from attestkit._crypto.hashes import sha256
from attestkit.client.proofs.proof import Proof
from attestkit.client.services.service import Question
from attestkit.client.wire.observed_peer import ObservedPeer
from attestkit.client.wire.steps import ReconnectError, Send, Wait, drive
from attestkit.errors import VerificationError
from attestkit.ra_tls import PeerRefusedError
from tests.client.proofs.stub_proofs import (
    CLOSING,
    SECONDS,
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

# -- one proof -------------------------------------------------------------------------------------


def test_key_is_asked_once() -> None:
    """The first connection is asked with a new nonce; later ones with its key are not."""
    rig = Rig()
    assert not rig.server_verifier.accepts(A)
    assert rig.server_verifier.newest is None
    channel = prove(rig, A)
    [nonce] = rig.appraiser.nonces
    assert bytes(channel.sent).startswith(b"GET /evidence?nonce=" + nonce.hex().encode() + b" HTTP")
    assert rig.server_verifier.accepts(A)
    assert rig.server_verifier.newest is rig.events[0]
    assert prove(rig, A).sent == b""
    prove(rig, B)
    assert len(set(rig.appraiser.nonces)) == 2
    assert [type(event) for event in rig.events] == [Proof, Proof]


def test_proof_afresh_is_asked_anyway() -> None:
    """`afresh` makes a proof even of a proven key, which moves its end."""
    rig = Rig()
    prove(rig, A)
    rig.clock.seconds += HOUR / 2
    drive(rig.server_verifier.steps(A, afresh=True), Channel())
    assert len(rig.appraiser.nonces) == 2
    rig.clock.seconds += HOUR * 3 / 4
    assert rig.server_verifier.accepts(A)


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
    assert rig.server_verifier.accepts(A)
    renewed = A._replace(certificate=b"renewed")
    assert not rig.server_verifier.accepts(renewed)
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
        rig.server_verifier.forget()
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
        rig.server_verifier.forget()
        channel.gate.set()
        with pytest.raises(ReconnectError):
            proving.result(TIMEOUT)
    assert not rig.server_verifier.accepts(A)
    assert rig.events == []


def test_forget_of_one_proof_leaves_a_newer_one() -> None:
    """A request that was sent under an older proof does not end what was proven since."""
    rig = Rig()
    prove(rig, B)
    first = rig.server_verifier.newest
    prove(rig, A)
    second, before = rig.server_verifier.newest, rig.server_verifier.generation
    rig.server_verifier.forget(lambda newest: newest == first)
    assert rig.server_verifier.newest is second
    assert rig.server_verifier.generation == before
    for _ in range(2):
        rig.server_verifier.forget(lambda newest: newest == second)
        assert rig.server_verifier.newest is None
        assert not rig.server_verifier.accepts(A)
        assert rig.server_verifier.generation == before + 1


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
    drive(rig.server_verifier.steps(None, afresh=True), Channel())
    assert len(asked) == 6


def test_sealed_requests_take_any_key() -> None:
    """A proof without a TLS key is of requests that are sealed: any connection carries them."""
    rig = Rig(StubService("apart"))
    rig.appraiser.judge = lambda _: proof_of(b"k", at=rig.clock.now(), kind="hpke")
    prove(rig, A)
    assert prove(rig, B).sent == b""
    assert rig.server_verifier.accepts(peer_of(bytes(32)))
    rig.clock.seconds += HOUR
    assert not rig.server_verifier.accepts(peer_of(bytes(32)))


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


def test_proof_is_shared_with_those_that_need_any() -> None:
    """A caller that needs the newest proof waits for the one that is being made, of any key."""
    rig = Rig()
    found: list[Proof] = []
    leader, waiter = rig.server_verifier.steps(A), rig.server_verifier.steps(B, made=found)
    next(leader)
    assert isinstance(next(waiter), Wait)
    drive(leader, Channel())
    with pytest.raises(StopIteration):
        waiter.send(None)
    assert found == rig.events == [rig.server_verifier.newest]


def test_proof_is_made_if_only_an_older_one_is_valid() -> None:
    """Without a valid newest proof one is made, also if the key of the peer is accepted."""
    rig = Rig()
    prove(rig, A)
    rig.appraiser.judge = lambda peer: proof_of(
        (peer or A).spki_sha256, at=rig.clock.now(), age=timedelta(minutes=1)
    )
    prove(rig, B)
    rig.clock.seconds += 60
    assert rig.server_verifier.accepts(A)
    found: list[Proof] = []
    drive(rig.server_verifier.steps(A, made=found), Channel())
    assert found == [rig.server_verifier.newest]
    assert len(rig.appraiser.nonces) == 3


def test_tasks_share_one_proof() -> None:
    """Of 50 tasks of an event loop one asks."""
    rig, leader = Rig(), AsyncChannel(held=True)

    async def main() -> None:
        first = asyncio.ensure_future(drive_async(rig.server_verifier.steps(A), leader))
        await leader.asked.wait()
        channels = [AsyncChannel() for _ in range(50)]
        others = [
            asyncio.ensure_future(drive_async(rig.server_verifier.steps(A), one))
            for one in channels
        ]
        await asyncio.sleep(0)
        leader.gate.set()
        await asyncio.wait_for(asyncio.gather(first, *others), TIMEOUT)
        assert {bytes(one.sent) for one in channels} == {b""}

    asyncio.run(main())
    assert len(rig.appraiser.nonces) == 1


def test_cancelled_task_lets_others_prove() -> None:
    """If the task that asks is cancelled, one that waits asks on its own connection."""
    rig, leader, second = Rig(), AsyncChannel(held=True), AsyncChannel()

    async def main() -> None:
        first = asyncio.ensure_future(drive_async(rig.server_verifier.steps(A), leader))
        await leader.asked.wait()
        other = asyncio.ensure_future(drive_async(rig.server_verifier.steps(A), second))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        await asyncio.wait_for(other, TIMEOUT)

    asyncio.run(main())
    assert second.sent
    assert rig.server_verifier.accepts(A)
    assert len(rig.events) == 1  # a cancellation is no refusal


@pytest.mark.parametrize("at", range(4))
def test_proof_may_end_at_any_step(at: int) -> None:
    """A driver that stops after any step blocks no other, and accepts nothing before the end."""
    rig = Rig()
    steps = rig.server_verifier.steps(A)
    advance(steps, at)
    steps.close()
    assert rig.server_verifier.accepts(A) == (at == 3)
    prove(rig, A)
    assert rig.server_verifier.accepts(A)


def test_waiting_ends() -> None:
    """Waiting for another proof is limited in time, and does not count as a refusal."""
    rig = Rig()
    leader, waiter = rig.server_verifier.steps(A), rig.server_verifier.steps(B)
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
    leader, same, other = (rig.server_verifier.steps(peer) for peer in (A, A, B))
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
