"""Cache of an SEV-SNP verifier: it saves signatures and changes no outcome."""

from datetime import timedelta
from typing import Any

import pytest

from attestkit._crypto.x509 import cert_path
from attestkit.attestation.wire.evidence_parts import SevSnp
from attestkit.errors import AttestKitError, SignatureError
from attestkit.verifier import Verifier, chain_cache
from attestkit.verifier.platforms.snp import authenticator
from attestkit.verifier.platforms.snp.authenticator import Snp
from tests.raising import raises
from tests.verifier.platforms import amd
from tests.verifier.platforms.snp import test_revocation as simulated


@pytest.fixture
def signatures(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the certificates whose signatures are verified."""
    found: list[str] = []

    def check(named: Any, issuer: Any, *rest: Any) -> None:
        found.append(named[0])
        cert_path.check_issued(named, issuer, *rest)

    monkeypatch.setattr(chain_cache, "check_issued", check)
    return found


def outcome(snp: Snp, platform: SevSnp, now: Any = amd.NOW) -> str:
    """Return the reason of a refusal; empty if the evidence is authentic."""
    try:
        snp.authenticate(platform, now)
    except AttestKitError as error:
        return error.reason
    return ""


def test_second_report_of_a_chip_needs_no_certificate_signature(signatures: list[str]) -> None:
    """Each link of a path is verified once; a new chip needs only its own."""
    snp = Snp(amd.ark())
    for _ in range(3):
        assert outcome(snp, amd.evidence()) == ""
    assert signatures == ["the ASK", "the VCEK"]
    assert outcome(snp, amd.evidence(amd.report({0x50: b"other"}))) == ""
    another = amd.leaf(amd.extensions(), valid_until=amd.NOW + timedelta(days=30))
    assert outcome(snp, amd.evidence(chain=(amd.ask(), another))) == ""
    assert signatures == ["the ASK", "the VCEK", "the VCEK"]


def test_warm_verifier_has_the_outcomes_of_a_fresh_one() -> None:
    """Certificates, dates, signature and match with the report are checked for each report."""
    own = amd.leaf(amd.extensions(), private=amd.p384_key("another chip"))
    expired = amd.leaf(amd.extensions(), valid_until=amd.NOW - timedelta(days=1))
    forged = amd.leaf(amd.extensions(), signed_by="somebody")
    changed = bytearray(amd.report())
    changed[0x60] ^= 1
    other_tcb = amd.report({0x180: bytes((4, 0, 0, 0, 0, 0, 24, 213))})
    cases = [
        (amd.evidence(), amd.NOW),
        (amd.evidence(chain=(amd.ask(), own)), amd.NOW),
        (amd.evidence(chain=(amd.ask(), expired)), amd.NOW),
        (amd.evidence(chain=(amd.ask(), forged)), amd.NOW),
        (amd.evidence(chain=(amd.vcek(),)), amd.NOW),
        (amd.evidence(bytes(changed)), amd.NOW),
        (amd.evidence(other_tcb), amd.NOW),
        (amd.evidence(amd.report({0x1A0: b"\7" * 64})), amd.NOW),
        (amd.evidence(amd.report({0x48: b"\4"})), amd.NOW),
        (amd.evidence(amd.report({0x08: (0xB0000).to_bytes(8, "little")})), amd.NOW),
        (amd.evidence(), amd.NOW + 2 * amd.YEAR),
        (amd.evidence(), amd.NOW - 2 * amd.YEAR),
    ]
    warm = Snp(amd.ark())
    expected = [outcome(Snp(amd.ark()), *case) for case in cases]
    assert expected.count("") == 1
    for _ in range(2):
        assert [outcome(warm, *case) for case in cases] == expected


def test_nothing_refused_is_stored() -> None:
    """Forged certificates do not fill the caches."""
    snp = Snp(amd.ark())
    own = amd.leaf(amd.extensions(), private=amd.p384_key("another chip"))
    for number in range(3):
        forged = amd.leaf(amd.extensions(), signed_by=f"somebody {number}")
        assert outcome(snp, amd.evidence(chain=(amd.ask(), forged))) == "cert_bad_signature"
        assert outcome(snp, amd.evidence(chain=(amd.ask(), own))) == "report_bad_signature"
    assert len(snp._parsed) == 0
    assert len(snp._cache._issued) == 2  # of the ASK, and of the other chip's VCEK
    assert len(snp._keys) == 1


def test_caches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest entries are removed first."""
    monkeypatch.setattr(authenticator, "_CHIPS", 2)
    snp = Snp(amd.ark())
    for day in range(1, 6):
        leaf = amd.leaf(amd.extensions(), valid_until=amd.NOW + timedelta(days=day))
        assert outcome(snp, amd.evidence(chain=(amd.ask(), leaf))) == ""
    assert len(snp._parsed) == 2
    assert len(snp._cache._issued) <= 4
    assert outcome(snp, amd.evidence()) == ""


def test_bundles_with_lists_share_the_caches_of_their_verifier(signatures: list[str]) -> None:
    """A bundle with CRLs needs no certificate signature again, and its lists count."""
    verifier = Verifier(trust_anchor=simulated.guest().trust_anchor)
    now, expected = simulated.NOW, simulated.REPORT_DATA
    for _ in range(2):
        verifier.verify_bundle(simulated.bundle(simulated.crl()), report_data=expected, now=now)
    assert len(signatures) == 2
    with raises(SignatureError, "cert_revoked"):
        verifier.verify_bundle(
            simulated.bundle(simulated.crl(simulated.ASK)), report_data=expected, now=now
        )
    verifier.verify(simulated.evidence(), report_data=expected, now=now)
    assert len(signatures) == 2
