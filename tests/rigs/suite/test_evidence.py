"""Each type of guest beyond the contract: its files, its quotes, and detection."""

import os
import time

import pytest

import attestkit
from attestkit import Attestation, backends
from attestkit.backends.linux.kernel_paths import KernelPaths
from attestkit.backends.registry import HARDWARE
from attestkit.errors import BackendUnavailableError
from tests.clients import python_dcap_qvl as dcap
from tests.raising import raises
from tests.rigs.emulator import requires_fuse
from tests.rigs.suite.guests import OUTER_NAMESPACE, TDX, Guest

pytestmark = [pytest.mark.slow, pytest.mark.rig, requires_fuse]

NONCE = bytes(range(1, 65))
AGENT = "dstack_agent"  # may run on the machine of the tests


def verify_with_dcap_qvl(quote: bytes, guest: Guest, root: bytes | None) -> dcap.Verdict:
    """Return dcap-qvl's verdict on a quote at the current time; a root of None is Intel's."""
    return dcap.verify_with_dcap_qvl(quote, guest.emulator.collateral(), root, int(time.time()))


def test_guest_files_are_the_emulators(guest: Guest) -> None:
    """They are not the real machine's, and belong to the user of the mount."""
    assert guest.elsewhere == (OUTER_NAMESPACE not in os.environ)
    assert (guest.paths == KernelPaths()) == (not guest.elsewhere)
    assert guest.paths.boot_id.read_text().strip() == guest.emulator.boot_id
    guest.boot()
    assert guest.paths.boot_id.read_text().strip() == guest.emulator.boot_id
    assert guest.paths.boot_id.stat().st_uid == os.geteuid()


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
    able = [name for name in HARDWARE if seen[name] is None]
    assert able == ([guest.kind.cls.name] if guest.kind.found else [])
    if not guest.elsewhere and guest.kind.found and not guest.options:
        with attestkit.open() as tee:  # the default call of a program
            assert tee.backend.name == guest.kind.cls.name
            assert not tee.simulated
            assert tee.attest(report_data=NONCE, pad=True).report_data == NONCE
