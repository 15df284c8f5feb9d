"""Ten thousand requests under random kernel faults: correct responses, and no leaks.

Continuous integration makes a part of them, in proportion to `ATTESTKIT_MOST_EXAMPLES`.
"""

import fcntl
import random
import threading
from collections import Counter
from pathlib import Path

import pytest

import attestkit
from attestkit.backends.simulator.faults.fault_specs import NAMED, OPERATIONS
from attestkit.errors import AttestKitError
from attestkit.event_log.journal import LOCK, replay_from
from tests.rigs.emulator import Emulator, emulator, requires_fuse
from tests.thorough import MOST

pytestmark = [pytest.mark.slow, pytest.mark.rig, requires_fuse]

REQUESTS = min(10_000, 20 * MOST)
DESCRIPTORS = Path("/proc/self/fd")
# A foreign extend is a permanent error; a slow host only delays; the QGS has its own tests; an
# unloaded driver stays unloaded.
LEFT_OUT = {"foreign_extend", "provider_leaves", "slow"}
LEFT_OUT |= {name for name in NAMED if name.startswith("qgs_")}
ERRNOS = ("EIO", "EINTR", "ENOMEM", "EINVAL", "EACCES", "ENOENT", "EROFS", "ENXIO", "ETIMEDOUT")


def any_fault(chance: random.Random) -> str:
    """Return a fault that is triggered once, now or after a few operations."""
    if chance.random() < 0.4:
        spec = chance.choice(sorted(NAMED.keys() - LEFT_OUT))
    else:
        # EBUSY is retried with delays, so it is less frequent.
        error = "EBUSY" if chance.random() < 0.05 else chance.choice(ERRNOS)
        operation = chance.choice(OPERATIONS)
        if operation == "rmdir" and error == "ENOENT":
            error = "EIO"  # ENOENT would be false: the backend could not know that the entry exists
        spec = f"{operation}={error}"
    return f"{spec}:1@{chance.choice((0, 0, 0, 1, 2))}"


def is_lock_free(folder: Path) -> bool:
    """Return whether another process could lock the runtime log."""
    with (folder / LOCK).open("rb+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


class RandomClient:
    """Client that makes random requests of one Attester."""

    def __init__(self, tee: attestkit.Attester, chance: random.Random) -> None:
        self._tee = tee
        self._chance = chance
        self.answers: Counter[str] = Counter()
        self.acknowledged = 0

    def quote(self) -> None:
        """Request a quote, and check its report data."""
        report_data = self._chance.randbytes(64)
        assert self._tee.get_quote(report_data).report_data == report_data

    def evidence(self) -> None:
        """Request evidence, and check its log."""
        evidence = self._tee.attest(report_data=self._chance.randbytes(32), pad=True)
        assert evidence.quote is not None
        evidence.event_log.check(evidence.quote)

    def event(self) -> None:
        """Emit an event."""
        self._tee.emit_event("random", self._chance.randbytes(8))
        self.acknowledged += 1

    def make_request(self) -> None:
        """Make one of the requests; only an AttestKitError may be raised."""
        requests = (self.quote, self.evidence, self.event)
        try:
            self._chance.choices(requests, (90, 5, 5))[0]()
        except AttestKitError as error:
            self.answers[type(error).__name__] += 1
        else:
            self.answers["good"] += 1


def recover(machine: Emulator, tee: attestkit.Attester) -> None:
    """Clear the faults, and make one good request, which removes leftover entries."""
    machine.clear_faults()
    tee.get_quote(bytes(64))


@pytest.mark.slow
def test_random_faults_leave_no_resources() -> None:
    """No descriptor, entry, thread or lock is left, and each acknowledged event is logged."""
    chance = random.Random(20261124)
    with emulator() as machine, attestkit.open("configfs_tsm", root=machine.root) as tee:
        client = RandomClient(tee, chance)
        client.event()  # opens the journal, whose lock file stays open
        recover(machine, tee)
        before, threads = sorted(DESCRIPTORS.iterdir()), threading.enumerate()
        for _ in range(REQUESTS):
            if chance.random() < 0.3:
                machine.clear_faults()
                machine.fault(any_fault(chance))
            client.make_request()
        recover(machine, tee)
        assert machine.entries() == []
        assert sorted(DESCRIPTORS.iterdir()) == before
        assert threading.enumerate() == threads
        assert is_lock_free(machine.root / "run/log/dstack")
        events = tee.event_log().runtime
        assert replay_from(bytes(48), events) == machine.rtmr(3)
        assert len(events) >= client.acknowledged
        tee.emit_event("last", b"")
    assert client.answers.total() == REQUESTS
    assert client.answers["good"] > REQUESTS // 2
    assert sum(client.answers.values()) - client.answers["good"] > REQUESTS // 20
    assert len(client.answers) > 4
