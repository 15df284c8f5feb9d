"""Every one of the 64 bytes of report data counts: evidence of another request is never fresh."""

from datetime import datetime
from typing import Final

import pytest

from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import Evidence, NitroEnclave, Stack
from attestkit.errors import PolicyError, VerificationError
from attestkit.quote import Quote
from attestkit.verifier import Verifier
from tests.verifier import parcels
from tests.verifier.platforms import amd, aws

SIGNED: Final = bytes(range(64))  # no two bytes alike, so that none can stand for another
STACK: Final = Stack(SIGNED, (), "")
TD: Final = parcels.evidence(report_data=SIGNED)
GUEST: Final = Attestation(Evidence(amd.evidence(), STACK))
ENCLAVE: Final = Attestation(Evidence(NitroEnclave(aws.document()), STACK))


def bare(attestation: Attestation) -> Quote:
    """Return the quote of a TD alone."""
    assert attestation.quote is not None
    return attestation.quote


EVIDENCE: Final[dict[str, tuple[Attestation | Quote, Verifier, datetime]]] = {
    "TDX": (TD, parcels.verifier(), parcels.NOW),
    "a bare quote": (bare(TD), parcels.verifier(), parcels.NOW),
    "SEV-SNP": (GUEST, Verifier(trust_anchor=amd.ark()), amd.NOW),
    "Nitro": (ENCLAVE, Verifier(trust_anchor=aws.root()), aws.NOW),
}
every_platform = pytest.mark.parametrize("name", EVIDENCE)


def other(at: int) -> bytes:
    """Return what was signed with one bit of one byte the other way round."""
    return SIGNED[:at] + bytes([SIGNED[at] ^ 1 << at % 8]) + SIGNED[at + 1 :]


@every_platform
def test_the_report_data_that_was_signed(name: str) -> None:
    """The evidence of this request is taken, or what follows would hold for nothing."""
    evidence, judge, now = EVIDENCE[name]
    found = judge.verify(evidence, report_data=SIGNED, now=now)
    assert found.claims.report_data == SIGNED


@every_platform
@pytest.mark.parametrize("at", range(64))
def test_every_byte_counts(name: str, at: int) -> None:
    """Evidence whose report data differs in any one byte was made for another request."""
    evidence, judge, now = EVIDENCE[name]
    with pytest.raises(PolicyError) as caught:
        judge.verify(evidence, report_data=other(at), now=now)
    assert caught.value.reason == "report_data"


@pytest.mark.parametrize("name", ["TDX", "SEV-SNP", "Nitro"])
@pytest.mark.parametrize("at", range(64))
def test_every_byte_that_evidence_tells_counts(name: str, at: int) -> None:
    """What evidence says it was made for, beside what was signed, is held to that as well."""
    given, judge, now = EVIDENCE[name]
    assert isinstance(given, Attestation)
    stack = given.evidence.stack._replace(report_data=other(at))
    evidence = Attestation(given.evidence._replace(stack=stack))
    for report_data in (SIGNED, other(at), None):
        with pytest.raises(VerificationError) as caught:
            judge.verify(evidence, report_data=report_data, now=now)
        assert caught.value.reason == "report_data_mismatch"
