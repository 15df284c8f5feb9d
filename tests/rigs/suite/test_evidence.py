"""Evidence on each type of guest: made, encoded, parsed and verified."""

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
from tests.raising import raises
from tests.rigs.emulator import requires_fuse
from tests.rigs.suite.guests import EXTENDING, OTHERS, OUTER_NAMESPACE, SNP, TDX, Guest

pytestmark = [pytest.mark.rig, requires_fuse]

NONCE = bytes(range(1, 65))
AGENT = "dstack_agent"  # may run on the machine of the tests


def verify_with_dcap_qvl(quote: bytes, guest: Guest, root: bytes | None) -> dcap.Verdict:
    """Return dcap-qvl's verdict on a quote at the current time; a root of None is Intel's."""
    return dcap.judge(quote, guest.emulator.collateral(), root, int(time.time()))


def test_guest_files_are_the_emulators(guest: Guest) -> None:
    """They are not the real machine's, and belong to the user of the mount."""
    assert guest.elsewhere == (OUTER_NAMESPACE not in os.environ)
    assert (guest.paths == KernelPaths()) == (not guest.elsewhere)
    assert guest.paths.boot_id.read_text().strip() == guest.emulator.boot_id
    guest.boot()
    assert guest.paths.boot_id.read_text().strip() == guest.emulator.boot_id
    assert guest.paths.boot_id.stat().st_uid == os.geteuid()


def test_evidence_round_trips_in_each_encoding(guest: Guest) -> None:
    """Parsed evidence is equal and consistent."""
    with guest.attester() as tee:
        made = tee.attest(report_data=NONCE, pad=True)
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
def test_dcap_qvl_accepts_quote_under_emulators_root_only(guest: Guest) -> None:
    """It rejects the quote under Intel's root."""
    with guest.attester() as tee:
        quote = Attestation.from_bytes(tee.attest(report_data=NONCE, pad=True).to_bytes()).quote
    assert quote is not None
    accepted = verify_with_dcap_qvl(quote.raw, guest, guest.emulator.trust_anchor)
    assert (accepted.status, accepted.text) == ("UpToDate", "")
    assert verify_with_dcap_qvl(quote.raw, guest, None).status == dcap.REJECT
    changed = bytearray(quote.raw)
    changed[48 + 520] ^= 1  # in the report data
    assert (
        verify_with_dcap_qvl(bytes(changed), guest, guest.emulator.trust_anchor).status
        == dcap.REJECT
    )


@pytest.mark.parametrize("running", EXTENDING, indirect=True)
def test_event_is_in_register_log_and_evidence(guest: Guest) -> None:
    """On kernels that extend registers."""
    digest = runtime_event("of the suite", b"payload").digest
    with guest.attester() as tee:
        before = tee.registers()
        assert tee.emit_event("of the suite", b"payload").digest == digest
        after = tee.registers()
        quote, log = tee.evidence_source.quote_and_log(NONCE)
    assert after == (*before[:3], hashlib.sha384(before[3] + digest).digest()) == quote.rtmrs
    assert [event.name for event in log.runtime] == ["of the suite"]
    log.check(quote)
    with guest.attester() as tee:  # like another process
        assert [event.name for event in tee.event_log().runtime] == ["of the suite"]


@pytest.mark.parametrize("running", OTHERS, indirect=True)
def test_event_without_register_is_unsupported(guest: Guest) -> None:
    """The error names the missing feature, and evidence is unchanged."""
    with guest.attester() as tee:
        before = tee.attest(report_data=NONCE, pad=True)
        for _ in range(2):
            with raises(UnsupportedError, "no_registers") as refused:
                tee.emit_event("of the suite", b"payload")
            assert ("register" if guest.is_snp else "Linux 6.16") in str(refused.value)
        after = tee.attest(report_data=NONCE, pad=True)
    assert after.event_log == before.event_log
    assert after.runtime_events == ()
    if after.quote is not None and before.quote is not None:
        assert after.quote.rtmrs == before.quote.rtmrs


def test_boot_log_replays_to_the_registers_of_the_guest(guest: Guest) -> None:
    """An SNP guest has no log."""
    with guest.attester() as tee:
        log = tee.event_log()
        if guest.is_snp:
            assert log == EventLog()
            return
        assert tee.registers()[:3] == log.replay()[:3]
    assert {event.register for event in log.events} == {0, 1, 2}


@pytest.mark.parametrize("running", SNP, indirect=True)
def test_snp_evidence_has_report_and_host_certificates(guest: Guest) -> None:
    """Quotes and registers are unsupported."""
    with guest.attester() as tee:
        assert not tee.has_quotes
        with raises(UnsupportedError, "no_quote"):
            tee.get_quote(NONCE)
        with raises(UnsupportedError, "no_registers"):
            tee.registers()
        evidence = Attestation.from_bytes(tee.attest(report_data=NONCE, pad=True).to_bytes())
    assert (evidence.platform, evidence.quote) == ("dstack-amd-sev-snp", None)
    platform = evidence.evidence.platform
    assert isinstance(platform, SevSnp)
    assert SnpReport.parse(platform.report).report_data == NONCE
    assert len(platform.cert_chain) == 2


def test_detect_selects_the_guests_backend(guest: Guest) -> None:
    """configfs-tsm is first, then the device."""
    leave_out = (AGENT,) if guest.elsewhere else ()
    if guest.kind.found:
        assert backends.detect(leave_out=leave_out) is guest.kind.cls
    else:
        with raises(BackendUnavailableError, "no_backend") as nothing:
            backends.detect(leave_out=leave_out)
        text = str(nothing.value)
        assert f"configfs_tsm: {guest.paths.tsm_report}: configfs is not mounted" in text
        assert "QGS configuration" in text
        assert str(guest.paths.tdx_attest_conf) in text
        assert "generation (of an out-of-tree driver)" in text
    seen = backends.probe_all(None if not guest.elsewhere else guest.paths)
    able = [name for name in backends.HARDWARE if seen[name] is None]
    assert able == ([guest.kind.cls.name] if guest.kind.found else [])
    if not guest.elsewhere and guest.kind.found and not guest.options:
        with attestkit.open() as tee:  # the default call of a program
            assert tee.backend.name == guest.kind.cls.name
            assert not tee.simulated
            assert tee.attest(report_data=NONCE, pad=True).report_data == NONCE
