"""The whole way of evidence, on each kind of guest: made, sent, read, and judged by others."""

import hashlib
import os
import time
from typing import get_args

import pytest

import attestkit
from attestkit import Attestation, EventLog, backends
from attestkit.attestation import Encoding
from attestkit.attestation.wire.evidence_parts import SevSnp
from attestkit.backends.linux.paths import KernelPaths
from attestkit.errors import BackendUnavailableError, UnsupportedError
from attestkit.event_log.runtime_events import runtime_event
from attestkit.snp_report import SnpReport
from tests import dcap
from tests.rigs.emulator import requires_fuse
from tests.rigs.suite.guests import EXTENDING, OTHERS, OUTER_NAMESPACE, SNP, TDX, Guest

pytestmark = [pytest.mark.rig, requires_fuse]

NONCE = bytes(range(1, 65))
AGENT = "dstack_agent"  # which may run on the machine that runs the tests


def judge(quote: bytes, guest: Guest, root: bytes | None) -> dcap.Verdict:
    """Return what dcap-qvl says of a quote now; a root of None is Intel's."""
    return dcap.judge(quote, guest.emulator.collateral(), root, int(time.time()))


def test_the_files_are_those_of_the_guest(guest: Guest) -> None:
    """Wherever they are: not the real machine's, and the user's who mounted them."""
    assert guest.elsewhere == (OUTER_NAMESPACE not in os.environ)
    assert (guest.paths == KernelPaths()) == (not guest.elsewhere)
    assert guest.paths.boot_id.read_text().strip() == guest.emulator.boot_id
    guest.boot()
    assert guest.paths.boot_id.read_text().strip() == guest.emulator.boot_id
    assert guest.paths.boot_id.stat().st_uid == os.geteuid()


def test_evidence_survives_the_way(guest: Guest) -> None:
    """In every encoding it says the same where it arrives, and still agrees with itself."""
    with guest.attester() as tee:
        made = tee.attest(NONCE)
    for encoding in get_args(Encoding):
        data = made.to_bytes(encoding)
        read = Attestation.from_bytes(data)
        assert read == made
        assert read.report_data == NONCE
        assert read.to_bytes() == data
        if guest.is_snp:
            continue
        assert read.platform == "dstack-tdx"
        assert read.quote is not None
        assert read.quote.report_data == NONCE
        read.event_log.check(read.quote)


@pytest.mark.parametrize("running", TDX, indirect=True)
def test_others_believe_it_by_the_emulators_root_alone(guest: Guest) -> None:
    """dcap-qvl accepts the quote with the emulator's root, and refuses it with Intel's."""
    with guest.attester() as tee:
        quote = Attestation.from_bytes(tee.attest(NONCE).to_bytes()).quote
    assert quote is not None
    accepted = judge(quote.raw, guest, guest.emulator.trust_anchor)
    assert (accepted.status, accepted.text) == ("UpToDate", "")
    assert judge(quote.raw, guest, None).status == dcap.REJECT
    changed = bytearray(quote.raw)
    changed[48 + 520] ^= 1  # in the report data
    assert judge(bytes(changed), guest, guest.emulator.trust_anchor).status == dcap.REJECT


@pytest.mark.parametrize("running", EXTENDING, indirect=True)
def test_an_event_is_in_register_log_and_evidence(guest: Guest) -> None:
    """Where the kernel extends registers: RTMR3 becomes what the event makes of it."""
    digest = runtime_event("of the suite", b"payload").digest
    with guest.attester() as tee:
        before = tee.registers()
        assert tee.emit_event("of the suite", b"payload").digest == digest
        after = tee.registers()
        quote, log = tee.quote_and_log(NONCE)
    assert after == (*before[:3], hashlib.sha384(before[3] + digest).digest()) == quote.rtmrs
    assert [event.name for event in log.runtime] == ["of the suite"]
    log.check(quote)
    with guest.attester() as tee:  # another program, or this one later
        assert [event.name for event in tee.event_log().runtime] == ["of the suite"]


@pytest.mark.parametrize("running", OTHERS, indirect=True)
def test_without_a_register_nothing_is_emitted(guest: Guest) -> None:
    """Elsewhere: the text says what is missing, and evidence is as before."""
    with guest.attester() as tee:
        before = tee.attest(NONCE)
        for _ in range(2):
            with pytest.raises(UnsupportedError, match=r"register") as refused:
                tee.emit_event("of the suite", b"payload")
            assert guest.is_snp or "6.16" in str(refused.value)
        after = tee.attest(NONCE)
    assert after.event_log == before.event_log
    assert after.runtime_events == ()
    if after.quote is not None and before.quote is not None:
        assert after.quote.rtmrs == before.quote.rtmrs


def test_the_firmwares_log_is_that_of_the_machine(guest: Guest) -> None:
    """It is read whole, and replays to the first registers; an SNP guest has none."""
    with guest.attester() as tee:
        log = tee.event_log()
        if guest.is_snp:
            assert log == EventLog()
            return
        assert tee.registers()[:3] == log.replay()[:3]
    assert {event.register for event in log.events} == {0, 1, 2}


@pytest.mark.parametrize("running", SNP, indirect=True)
def test_what_amd_says(guest: Guest) -> None:
    """An SNP guest's evidence holds a report over what was asked, and the host's certificates."""
    with guest.attester() as tee:
        assert not tee.has_quotes
        with pytest.raises(UnsupportedError, match="attest"):
            tee.get_quote(NONCE)
        with pytest.raises(UnsupportedError, match="register"):
            tee.registers()
        evidence = Attestation.from_bytes(tee.attest(NONCE).to_bytes())
    assert (evidence.platform, evidence.quote) == ("dstack-amd-sev-snp", None)
    platform = evidence.evidence.platform
    assert isinstance(platform, SevSnp)
    assert SnpReport.parse(platform.report).report_data == NONCE
    assert len(platform.cert_chain) == 2


def test_the_backend_is_found(guest: Guest) -> None:
    """Nobody names it: configfs-tsm comes first, the device where that is missing; or nothing."""
    leave_out = (AGENT,) if guest.elsewhere else ()
    if guest.kind.found:
        assert backends.detect(leave_out=leave_out) is guest.kind.cls
    else:
        with pytest.raises(BackendUnavailableError) as nothing:
            backends.detect(leave_out=leave_out)
        text = str(nothing.value)
        assert f"configfs_tsm: {guest.paths.tsm_report}: configfs is not mounted" in text
        assert "tdx_ioctl: no way to a quote" in text
        assert str(guest.paths.tdx_attest_conf) in text
        assert "option generation" in text
    seen = backends.probe_all(None if not guest.elsewhere else guest.paths)
    able = [name for name in backends.HARDWARE if seen[name] is None]
    assert able == ([guest.kind.cls.name] if guest.kind.found else [])
    if not guest.elsewhere and guest.kind.found and not guest.options:
        with attestkit.open() as tee:  # all that a program needs
            assert tee.backend.name == guest.kind.cls.name
            assert not tee.simulated
            assert tee.attest(NONCE).report_data == NONCE
