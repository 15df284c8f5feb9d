"""Calls of a server verifier, for its tests."""

import asyncio
from typing import Any

import pytest

from attestkit.client.proofs.proof import Proof
from attestkit.client.wire import steps as wire_steps
from attestkit.client.wire.observed_peer import ObservedPeer
from attestkit.client.wire.steps import Receive, Run, Send, Steps, drive
from attestkit.errors import VerificationError
from attestkit.ra_tls import PeerRefusedError
from tests.client.proofs.stub_proofs import (
    ANSWER,
    MAX_AGE,
    Channel,
    Rig,
    peer_of,
)

HOUR = MAX_AGE.total_seconds()
A, B = peer_of(b"a"), peer_of(b"b")


def refuse(peer: ObservedPeer | None) -> Proof:
    """Refuse a peer, as a Verifier does."""
    raise VerificationError(f"evidence of {peer and peer.spki!r}: wrong", reason="report_data")


def prove(rig: Rig, peer: ObservedPeer | None, channel: Channel | None = None) -> Channel:
    """Prove a connection."""
    channel = channel or Channel()
    drive(rig.server_verifier.steps(peer), channel)
    return channel


def refused(rig: Rig, peer: ObservedPeer, channel: Channel | None = None) -> PeerRefusedError:
    """Return the refusal of a connection."""
    with pytest.raises(PeerRefusedError) as caught:
        prove(rig, peer, channel)
    return caught.value


async def drive_async(performed: Steps, channel: wire_steps.Channel) -> None:
    """Verify a server as `drive` does, on the event loop; the channel's methods are awaited."""
    await wire_steps.drive_steps(performed, channel, wire_steps.AWAITED)


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
