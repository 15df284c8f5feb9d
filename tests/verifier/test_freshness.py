"""Tests of freshness: each of the 64 bytes of report data is compared."""

from datetime import datetime
from typing import Final

import pytest

from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import Evidence, NitroEnclave, Stack
from attestkit.errors import PolicyError, VerificationError
from attestkit.quote import Quote
from attestkit.verifier import Verifier
from tests.raising import raises
from tests.verifier.platforms import amd, aws, intel

SIGNED: Final = bytes(range(64))  # all bytes differ, so that none can replace another
STACK: Final = Stack(SIGNED, (), "")
TD: Final = intel.evidence(report_data=SIGNED)
GUEST: Final = Attestation(Evidence(amd.evidence(), STACK))
ENCLAVE: Final = Attestation(Evidence(NitroEnclave(aws.document()), STACK))


def get_quote(attestation: Attestation) -> Quote:
    """Return the quote of TDX evidence."""
    assert attestation.quote is not None
    return attestation.quote


EVIDENCE: Final[dict[str, tuple[Attestation | Quote, Verifier, datetime]]] = {
    "TDX": (TD, intel.verifier(), intel.NOW),
    "a bare quote": (get_quote(TD), intel.verifier(), intel.NOW),
    "SEV-SNP": (GUEST, Verifier(trust_anchor=amd.ark()), amd.NOW),
    "Nitro": (ENCLAVE, Verifier(trust_anchor=aws.root()), aws.NOW),
}
every_platform = pytest.mark.parametrize("name", EVIDENCE)


def flip_report_data_bit(index: int) -> bytes:
    """Return SIGNED with one bit of one byte flipped."""
    return SIGNED[:index] + bytes([SIGNED[index] ^ 1 << index % 8]) + SIGNED[index + 1 :]


@every_platform
def test_verify_signed_report_data_passes(name: str) -> None:
    """Evidence with the expected report data passes."""
    evidence, verifier, now = EVIDENCE[name]
    found = verifier.verify(evidence, report_data=SIGNED, now=now)
    assert found.claims.report_data == SIGNED


@every_platform
def test_verify_report_data_with_one_bit_flipped_is_rejected(name: str) -> None:
    """Report data that differs in one bit is rejected."""
    evidence, verifier, now = EVIDENCE[name]
    for index in range(64):
        with raises(PolicyError, "report_data"):
            verifier.verify(evidence, report_data=flip_report_data_bit(index), now=now)
            pytest.fail(f"byte {index} may change")


@pytest.mark.parametrize("name", ["TDX", "SEV-SNP", "Nitro"])
def test_verify_stack_report_data_with_one_bit_flipped_is_rejected(name: str) -> None:
    """The unsigned copy of the report data must equal the signed report data."""
    genuine, verifier, now = EVIDENCE[name]
    assert isinstance(genuine, Attestation)
    for index in range(64):
        stack = genuine.evidence.stack._replace(report_data=flip_report_data_bit(index))
        evidence = Attestation(genuine.evidence._replace(stack=stack))
        for report_data in (SIGNED, flip_report_data_bit(index), None):
            with raises(VerificationError, "report_data_mismatch"):
                verifier.verify(evidence, report_data=report_data, now=now)
                pytest.fail(f"byte {index} may change, with {report_data!r} expected")
