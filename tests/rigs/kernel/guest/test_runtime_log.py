"""The runtime log on a real register: events, a kill at the worst moments, a foreign extend."""

import hashlib
import os
import signal
from collections.abc import Callable

import pytest

from attestkit.attester import Attester
from attestkit.backends.configfs_tsm import ConfigfsTsm
from attestkit.backends.tdx.rtmr import Rtmrs
from attestkit.errors import JournalError, ReplayError, UnsupportedError
from tests.dcap import judge
from tests.rigs.kernel.guest.machine import HAS_REGISTERS, RUNTIME_LOG, MadeUpTd, has_registers
from tests.untyped import untyped

ASKED = bytes(range(64))


def _attester() -> Attester:
    return Attester(ConfigfsTsm())


def _names(tee: Attester) -> list[str]:
    return [event.name for event in tee.event_log().runtime]


@has_registers
def test_events_are_in_register_and_log(td: MadeUpTd) -> None:
    """After each event the whole log, firmware's and ours, replays to what the quote says."""
    with _attester() as tee:
        for number in range(3):
            tee.emit_event(f"event-{number}", b"payload")
            evidence = tee.attest(ASKED)
            assert evidence.quote is not None
            evidence.event_log.check(evidence.quote)
        assert _names(tee) == ["event-0", "event-1", "event-2"]
    assert td.get("extend_calls") == 3
    with _attester() as later:
        assert _names(later) == ["event-0", "event-1", "event-2"]
        quote = later.get_quote(ASKED)
    now = 1_900_000_000
    verdict = judge(quote.raw, td.pki.collateral(now), td.pki.root_der, now)
    assert verdict.status == "UpToDate", verdict.text


def _killed_while_emitting(extend: Callable[[Rtmrs, int, bytes], None]) -> None:
    """Let a child emit an event and extend as `extend` does, which kills it."""
    child = os.fork()
    if not child:
        try:
            pytest.MonkeyPatch().setattr(Rtmrs, "extend", extend)
            _attester().emit_event("lost-or-kept", b"payload")
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


@has_registers
@pytest.mark.parametrize("done", [False, True])
def test_a_kill_leaves_an_event_in_both_or_neither(td: MadeUpTd, *, done: bool) -> None:
    """Killed just before or just after the extend: the register itself tells which it was."""
    original = Rtmrs.extend

    def extend(self: Rtmrs, register: int, digest: bytes) -> None:
        if done:
            original(self, register, digest)
        os.kill(os.getpid(), signal.SIGKILL)

    with _attester() as tee:
        tee.emit_event("before", b"payload")
    _killed_while_emitting(extend)
    assert (RUNTIME_LOG / "runtime_event.pending").exists()
    with _attester() as tee:
        tee.emit_event("after", b"payload")
        evidence = tee.attest(ASKED)
        assert evidence.quote is not None
        evidence.event_log.check(evidence.quote)
        assert _names(tee) == ["before", *(["lost-or-kept"] if done else []), "after"]
    assert td.get("extend_calls") == 2 + done


@has_registers
def test_a_foreign_extend_is_not_passed_over(td: MadeUpTd) -> None:
    """Somebody else's extend has no event: no more are emitted, no evidence is made."""
    with _attester() as tee:
        tee.emit_event("ours", b"payload")
        untyped(ConfigfsTsm()).extend_rtmr(3, hashlib.sha384(b"theirs").digest())
        with pytest.raises(JournalError):
            tee.emit_event("another", b"payload")
        with pytest.raises(ReplayError):
            tee.attest(ASKED)
        assert tee.get_quote(ASKED).rtmrs == td.registers()


@pytest.mark.skipif(HAS_REGISTERS, reason="this kernel has register files")
def test_a_kernel_without_files_has_no_events(td: MadeUpTd) -> None:
    """They are refused, nothing is pending, and evidence has the firmware's log alone."""
    with _attester() as tee:
        with pytest.raises(UnsupportedError):
            tee.emit_event("name", b"payload")
        evidence = tee.attest(ASKED)
        assert evidence.quote is not None
        evidence.event_log.check(evidence.quote)
        assert evidence.event_log.runtime == ()
    assert td.registers() == td.boot_registers
