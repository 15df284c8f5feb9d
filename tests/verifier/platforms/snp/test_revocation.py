"""Tests of revocation by AMD's lists: refused certificates, dates, and lists of others."""

import json
import pickle
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Final

import pytest

from attestkit._crypto.key_pairs import RsaKey
from attestkit._crypto.pem import encode_pem
from attestkit._crypto.x509.simulated.amd_certificates import AmdAuthority, issue_amd_crl
from attestkit._crypto.x509.simulated.certificate_encoder import Window
from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import SevSnp
from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.scenarios.config import Scenario, SnpConfig, SnpSigningKey
from attestkit.backends.simulator.snp import SnpSimulator
from attestkit.errors import (
    CollateralExpiredError,
    FormatError,
    SignatureError,
    UsageError,
)
from attestkit.verifier import EvidenceBundle, Verifier
from attestkit.verifier.claims import Authenticated
from attestkit.verifier.platforms.snp.authenticator import Snp
from tests.raising import raises
from tests.runner.cases import every_case
from tests.verifier.platforms import amd

NOW: Final = 1_790_000_000
DAY: Final = timedelta(days=1)
REPORT_DATA: Final = bytes(range(64))
ASK, ASVK, LEAF, ROOT = 0x20001, 0x20101, 0, 0x20000  # serial numbers, of Genoa
AT: Final = datetime.fromtimestamp(NOW, tz=amd.NOW.tzinfo)


@cache
def guest(key: SnpSigningKey = "VCEK") -> SnpSimulator:
    """Return a guest on a Genoa processor."""
    scenario = Scenario(platform="snp", snp=SnpConfig(signing_key=key))
    found: object = Simulator(seed=bytes(32), scenario=scenario, now=lambda: NOW)
    assert isinstance(found, SnpSimulator)
    return found


def crl(
    *revoked: int, start: datetime = AT - DAY, end: datetime = AT + DAY, name: str = ""
) -> bytes:
    """Return a CRL of the guest's root, or of another name with the same key."""
    root: AmdAuthority = guest()._chip._ark
    issuer = root._replace(name=name) if name else root
    return issue_amd_crl(issuer, window=Window(start, end), number=5, revoked=revoked)


def evidence(key: SnpSigningKey = "VCEK") -> Attestation:
    """Return evidence of the guest."""
    return Attester(guest(key)).attest(report_data=REPORT_DATA)


def authenticate(*crls: bytes, key: SnpSigningKey = "VCEK", **more: Any) -> Authenticated:
    """Return the signed content of the guest's evidence."""
    platform = evidence(key).evidence.platform
    assert isinstance(platform, SevSnp)
    return Snp(guest().trust_anchor, crls=crls, **more).authenticate(platform, AT)


def revocation(found: Authenticated) -> tuple[str, str]:
    """Return outcome and text of the step."""
    [step] = [step for step in found.steps if step.check == "revocation"]
    return step.outcome, step.text


def test_without_list_the_step_is_skipped() -> None:
    """Without a CRL revocation is not checked, and the result says so."""
    assert revocation(authenticate())[0] == "skipped"


@pytest.mark.parametrize("key", ["VCEK", "VLEK"])
def test_current_list_without_the_certificates_passes(key: SnpSigningKey) -> None:
    """A list of other serial numbers, and one in PEM, let the evidence pass."""
    other = ASVK if key == "VCEK" else ASK
    for given in (crl(), crl(other, 7), encode_pem("X509 CRL", crl(7)).encode()):
        outcome, text = revocation(authenticate(given, key=key))
        assert outcome == "passed"
        assert "CRL number 5 of the trust anchor" in text


@every_case(
    ("key", "serial", "name"),
    [
        ("VCEK", ASK, "the ASK"),
        ("VLEK", ASVK, "the ASVK"),
        ("VCEK", LEAF, "the VCEK"),
        ("VLEK", LEAF, "the VLEK"),
        ("VCEK", ROOT, "the trust anchor"),
    ],
)
def test_revoked_certificate_is_refused(key: SnpSigningKey, serial: int, name: str) -> None:
    """Each certificate of the path is refused if its serial number is listed, in any list."""
    for given in ((crl(serial),), (crl(), crl(9, serial)), (crl(serial), crl())):
        with raises(SignatureError, "cert_revoked", part=f"{name} certificate: revoked"):
            authenticate(*given, key=key)


@pytest.mark.parametrize(
    ("start", "end"),
    [(AT - 2 * DAY, AT - DAY), (AT - DAY, AT), (AT + DAY / 24, AT + DAY)],
)
def test_list_that_is_not_valid_now_is_an_error(start: datetime, end: datetime) -> None:
    """An expired list and one of the future are errors, also beside a current one."""
    old = crl(start=start, end=end)
    for given in ((old,), (crl(), old)):
        with raises(CollateralExpiredError, "crl_expired", part="kdsintf.amd.com/vcek/v1/Genoa"):
            authenticate(*given)
    with raises(SignatureError, "cert_revoked"):  # stays revoked
        authenticate(crl(ASK, start=start, end=end))


def test_dates_are_checked_at_every_verification() -> None:
    """A verifier with a warm cache refuses evidence after the list or a certificate expired."""
    platform = evidence().evidence.platform
    assert isinstance(platform, SevSnp)
    snp = Snp(guest().trust_anchor, crls=[crl()])
    snp.authenticate(platform, AT)
    with raises(CollateralExpiredError, "crl_expired"):
        snp.authenticate(platform, AT + 2 * DAY)
    with raises(CollateralExpiredError, "cert_expired"):
        snp.authenticate(platform, AT + 40 * 365 * DAY)
    snp.authenticate(platform, AT)


def test_list_of_another_root_is_not_enough() -> None:
    """If lists are given, one of the product's root is required."""
    for given in (crl(name="ARK-Milan"), crl(ASK, name="ARK-Milan")):
        with raises(SignatureError, "crl_missing", part="kdsintf.amd.com/vcek/v1/Genoa/crl"):
            authenticate(given)
    assert revocation(authenticate(crl(ASK, name="ARK-Milan"), crl()))[0] == "passed"


def test_list_must_be_signed_by_the_root() -> None:
    """A list with the root's name and another's signature is refused."""
    root: AmdAuthority = guest()._chip._ark
    forged = issue_amd_crl(
        root._replace(key=RsaKey(b"\1" * 32)),
        window=Window(AT - DAY, AT + DAY),
        number=5,
    )
    with raises(SignatureError, "crl_bad_signature"):
        authenticate(forged)


def test_malformed_list_is_an_error() -> None:
    """A list that is not one is an error before any evidence is verified."""
    with raises(UsageError, "wrong_value", part="amd_crls"):
        Snp(crls=[b"nothing"])


# -- Verifier and evidence bundles ----------------------------------------------------------------


def verifier(*crls: bytes) -> Verifier:
    """Return a verifier of the guest."""
    return Verifier(trust_anchor=guest().trust_anchor, amd_crls=crls)


def bundle(*crls: bytes) -> EvidenceBundle:
    """Return a bundle with lists, through its JSON."""
    made = EvidenceBundle(evidence().to_bytes(), None, AT, REPORT_DATA, crls)
    return EvidenceBundle.from_json(made.to_json())


def test_verifier_takes_lists_and_pickles_with_them() -> None:
    """Lists are an argument of Verifier; they are kept in its pickle."""
    for made in (verifier(crl(ASK)), pickle.loads(pickle.dumps(verifier(crl(ASK))))):
        with raises(SignatureError, "cert_revoked"):
            made.verify(evidence(), report_data=REPORT_DATA, now=NOW)
    result = verifier(crl()).verify(evidence(), report_data=REPORT_DATA, now=NOW)
    assert "revocation" not in result.not_proven


def test_bundle_has_lists() -> None:
    """The lists of a bundle are used; those of the verifier for the same root replace them."""
    revoked, clean = bundle(crl(ASK)), bundle(crl())
    assert revoked.amd_crls == (crl(ASK),)

    def verify(given: EvidenceBundle, *crls: bytes) -> bool:
        found = verifier(*crls).verify_bundle(given, report_data=REPORT_DATA, now=NOW)
        return "revocation" not in found.not_proven

    assert verify(clean)
    assert not verify(bundle())
    with raises(SignatureError, "cert_revoked"):
        verify(revoked)
    with raises(SignatureError, "cert_revoked"):
        verify(clean, crl(ASK))
    assert verify(clean, crl(ASK, name="ARK-Milan"))  # of another product: the bundle's count
    assert "amd_crls" not in bundle().to_json()  # as older versions write and read it


def test_list_of_bundle_with_bad_signature_is_refused() -> None:
    """A list that counts is never ignored: without it the result shows that nothing was checked."""
    altered = crl()[:-1] + bytes([crl()[-1] ^ 1])
    for lists in ((altered,), (crl(), altered)):
        with raises(SignatureError, "crl_bad_signature", part="replace it by the one"):
            verifier().verify_bundle(bundle(*lists), report_data=REPORT_DATA, now=NOW)
    found = verifier().verify_bundle(bundle(), report_data=REPORT_DATA, now=NOW)
    assert "revocation" in found.not_proven
    found = verifier(crl()).verify_bundle(bundle(altered), report_data=REPORT_DATA, now=NOW)
    assert "revocation" not in found.not_proven


@every_case(
    ("value", "reason"),
    [
        ([], "wrong_type"),
        ("AA==", "wrong_type"),
        (["AA=="] * 33, "too_many"),
        (["!"], "encoding"),
        ([1], "wrong_type"),
        (["A" * 400_000], "wrong_size"),
    ],
)
def test_malformed_lists_of_bundle_are_refused(value: object, reason: str) -> None:
    """Lists of a bundle are base64, at most 32 and 256 KiB in all."""
    text = json.dumps({**json.loads(bundle().to_json()), "amd_crls": value})
    with raises(FormatError, reason, part="amd_crls"):
        EvidenceBundle.from_json(text)
    with raises(UsageError, "wrong_type"):
        EvidenceBundle(b"e", None, AT, None, [b"crl"])  # type: ignore[arg-type]
