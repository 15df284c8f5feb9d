"""Runtime log on a real register: events, kills and a foreign extend."""

import hashlib
import os
import signal
from collections.abc import Callable

import pytest

from attestkit.attester import Attester
from attestkit.backends.configfs_tsm import ConfigfsTsm
from attestkit.backends.tdx.rtmr import RtmrAccess
from attestkit.errors import JournalError, ReplayError, UnsupportedError
from tests.clients.python_dcap_qvl import verify_with_dcap_qvl
from tests.rigs.kernel.guest.machine import HAS_REGISTERS, RUNTIME_LOG, SimulatedTd, has_registers
from tests.untyped import untyped

REPORT_DATA = bytes(range(64))


def _attester() -> Attester:
    return Attester(ConfigfsTsm())


def _names(tee: Attester) -> list[str]:
    return [event.name for event in tee.event_log().runtime]


@has_registers
def test_events_are_in_register_and_log_on_kernel(td: SimulatedTd) -> None:
    """After each event the complete log replays to the quote's registers."""
    with _attester() as tee:
        for number in range(3):
            tee.emit_event(f"event-{number}", b"payload")
            evidence = tee.attest(report_data=REPORT_DATA)
            assert evidence.quote is not None
            evidence.event_log.check(evidence.quote)
        assert _names(tee) == ["event-0", "event-1", "event-2"]
    assert td.get("extend_calls") == 3
    with _attester() as later:
        assert _names(later) == ["event-0", "event-1", "event-2"]
        quote = later.get_quote(REPORT_DATA)
    now = 1_900_000_000
    verdict = verify_with_dcap_qvl(quote.raw, td.pki.collateral(now), td.pki.root_der, now)
    assert verdict.status == "UpToDate", verdict.text


def _kill_while_emitting(extend: Callable[[RtmrAccess, int, bytes], None]) -> None:
    """Let a child emit an event, and be killed by `extend`."""
    child = os.fork()
    if not child:
        try:
            pytest.MonkeyPatch().setattr(RtmrAccess, "extend", extend)
            _attester().emit_event("lost-or-kept", b"payload")
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


@has_registers
@pytest.mark.parametrize("done", [False, True])
def test_kill_around_extend_keeps_log_and_register_consistent(
    td: SimulatedTd, *, done: bool
) -> None:
    """The register reveals whether the extend took place."""
    original = RtmrAccess.extend

    def extend(self: RtmrAccess, register: int, digest: bytes) -> None:
        if done:
            original(self, register, digest)
        os.kill(os.getpid(), signal.SIGKILL)

    with _attester() as tee:
        tee.emit_event("before", b"payload")
    _kill_while_emitting(extend)
    assert (RUNTIME_LOG / "runtime_event.pending").exists()
    with _attester() as tee:
        tee.emit_event("after", b"payload")
        evidence = tee.attest(report_data=REPORT_DATA)
        assert evidence.quote is not None
        evidence.event_log.check(evidence.quote)
        assert _names(tee) == ["before", *(["lost-or-kept"] if done else []), "after"]
    assert td.get("extend_calls") == 2 + done


@has_registers
def test_foreign_extend_prevents_events_and_evidence(td: SimulatedTd) -> None:
    """The extend has no event in the log."""
    with _attester() as tee:
        tee.emit_event("ours", b"payload")
        untyped(ConfigfsTsm()).extend_rtmr(3, hashlib.sha384(b"foreign").digest())
        with pytest.raises(JournalError):
            tee.emit_event("another", b"payload")
        with pytest.raises(ReplayError):
            tee.attest(report_data=REPORT_DATA)
        assert tee.get_quote(REPORT_DATA).rtmrs == td.registers()


@pytest.mark.skipif(HAS_REGISTERS, reason="this kernel has register files")
def test_kernel_without_register_files_rejects_events(td: SimulatedTd) -> None:
    """Nothing is pending, and evidence has the firmware's log only."""
    with _attester() as tee:
        with pytest.raises(UnsupportedError):
            tee.emit_event("name", b"payload")
        evidence = tee.attest(report_data=REPORT_DATA)
        assert evidence.quote is not None
        evidence.event_log.check(evidence.quote)
        assert evidence.event_log.runtime == ()
    assert td.registers() == td.boot_registers
