"""Ten thousand requests while the kernel fails at random: nothing is wrong, and nothing is left."""

import fcntl
import os
import random
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import attestkit
from attestkit.backends.simulator.faults.fault_specs import NAMED, OPERATIONS
from attestkit.errors import AttestKitError, BackendError
from attestkit.event_log.journal import LOCK, replay_from
from tests.rigs.emulator import Emulator, emulator, requires_fuse

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.rig, requires_fuse]

REQUESTS = 10_000
# An extend by somebody else is not forgiven, rightly; a slow host is only slow; the service of
# quotes has tests of its own; a driver that was unloaded does not come back.
LEFT_OUT = {
    "foreign_extend",
    "provider_leaves",
    "qgs_closes",
    "qgs_error",
    "qgs_truncates",
    "slow",
}
ERRNOS = ("EIO", "EINTR", "ENOMEM", "EINVAL", "EACCES", "ENOENT", "EROFS", "ENXIO", "ETIMEDOUT")


def any_fault(chance: random.Random) -> str:
    """Return a fault that strikes once, now or after a few good calls."""
    if chance.random() < 0.4:
        spec = chance.choice(sorted(NAMED.keys() - LEFT_OUT))
    else:
        # EBUSY is waited for, so it comes less often.
        error = "EBUSY" if chance.random() < 0.05 else chance.choice(ERRNOS)
        operation = chance.choice(OPERATIONS)
        if operation == "rmdir" and error == "ENOENT":
            error = "EIO"  # ENOENT would be a lie, and nobody could know that the entry is there
        spec = f"{operation}={error}"
    return f"{spec}:1@{chance.choice((0, 0, 0, 1, 2))}"


def descriptors() -> list[str]:
    """Return what this process has open."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(entry.readlink()))
        except FileNotFoundError:  # the folder's own
            continue
    return sorted(found)


def lock_is_free(folder: Path) -> bool:
    """Tell whether another program could lock the runtime log now."""
    with (folder / LOCK).open("rb+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


class Client:
    """One Attester that is asked for this and that."""

    def __init__(self, tee: attestkit.Attester, chance: random.Random) -> None:
        self._tee = tee
        self._chance = chance
        self.answers: Counter[str] = Counter()
        self.acknowledged = 0

    def quote(self) -> None:
        """Ask for a quote, which is over what was asked or is none."""
        asked = self._chance.randbytes(64)
        assert self._tee.get_quote(asked).report_data == asked

    def evidence(self) -> None:
        """Ask for evidence, whose log explains its quote."""
        evidence = self._tee.attest(self._chance.randbytes(32))
        assert evidence.quote is not None
        evidence.event_log.check(evidence.quote)

    def event(self) -> None:
        """Emit an event."""
        self._tee.emit_event("random", self._chance.randbytes(8))
        self.acknowledged += 1

    def ask(self) -> None:
        """Ask for one of them; only our errors come out."""
        requests: tuple[Callable[[], None], ...] = (self.quote, self.evidence, self.event)
        try:
            self._chance.choices(requests, (90, 5, 5))[0]()
        except AttestKitError as error:
            self.answers[type(error).__name__] += 1
        else:
            self.answers["good"] += 1


def settle(machine: Emulator, tee: attestkit.Attester) -> None:
    """Let nothing go wrong any more, and have one good request, which clears what was left."""
    machine.clear_faults()
    tee.get_quote(bytes(64))


@pytest.mark.slow
def test_nothing_is_left_after_ten_thousand_requests(capsys: pytest.CaptureFixture[str]) -> None:
    """No descriptor, entry, thread or lock; the log is true and every acknowledged event in it."""
    chance = random.Random(20261124)
    with emulator() as machine, attestkit.open("configfs_tsm", root=machine.root) as tee:
        client = Client(tee, chance)
        client.event()  # opens the journal, whose lock's file stays open
        settle(machine, tee)
        before, threads = descriptors(), threading.enumerate()
        for _ in range(REQUESTS):
            if chance.random() < 0.3:
                machine.clear_faults()
                machine.fault(any_fault(chance))
            client.ask()
        settle(machine, tee)
        assert machine.entries() == []
        assert descriptors() == before
        assert threading.enumerate() == threads
        assert lock_is_free(machine.root / "run/log/dstack")
        events = tee.event_log().runtime
        assert replay_from(bytes(48), events) == machine.rtmr(3)
        assert len(events) >= client.acknowledged
        tee.emit_event("last", b"")
    with capsys.disabled():
        sys.stdout.write(f"\n{REQUESTS} requests: {dict(client.answers.most_common())}\n")
    assert client.answers.total() == REQUESTS
    assert client.answers["good"] > REQUESTS // 2
    assert sum(client.answers.values()) - client.answers["good"] > REQUESTS // 20
    assert len(client.answers) > 4


def test_a_leak_would_show() -> None:
    """The checks above are not blind: an entry and a descriptor left behind are seen."""
    with emulator() as machine:
        before = descriptors()
        entry = machine.root / "sys/kernel/config/tsm/report/left"
        entry.mkdir()
        fd = os.open(entry / "provider", os.O_RDONLY)
        try:
            assert machine.entries() == ["left"]
            assert descriptors() != before
        finally:
            os.close(fd)
            entry.rmdir()


def test_an_entry_that_cannot_be_removed_is_removed_later() -> None:
    """`rmdir` fails: the quote is told as an error, and the next request clears the entry away."""
    with emulator() as machine, attestkit.open("configfs_tsm", root=machine.root) as tee:
        machine.fault("rmdir=EBUSY")
        with pytest.raises(BackendError, match="report/attestkit-"):
            tee.get_quote(b"")
        assert len(machine.entries()) == 1
        tee.get_quote(b"")
        assert machine.entries() == []
