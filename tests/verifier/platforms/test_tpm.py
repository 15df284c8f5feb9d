"""Tests of a TPM without hardware evidence: what certifies its key, and its report data."""

from datetime import datetime, timezone
from typing import Any

import pytest

from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.hashes import sha256
from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import Tpm
from attestkit.errors import (
    CollateralError,
    CollateralExpiredError,
    FormatError,
    SignatureError,
    VerificationError,
)
from attestkit.verifier.claims import Authenticated
from attestkit.verifier.platforms.tpm import authenticate_tpm, restore_report_data
from attestkit.verifier.platforms.vtpm.ak_chain import AkChains
from attestkit.verifier.platforms.vtpm.attestation_key import (
    AkTrust,
    is_listed,
    read_attestation_key,
)
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import data, needs_shared
from tests.verifier.platforms.vtpm.made_tpm import (
    EXTRA,
    KEY,
    SPKI,
    authority,
    certificates,
    pcrs_of,
    public_area,
    vtpm_quote,
)

NOW = datetime(2026, 12, 1, tzinfo=timezone.utc)
DIGEST = sha256(SPKI)
OTHER = P256Key.from_scalar(b"\x12" * 32)


def trust(*listed: bytes, roots: tuple[bytes, ...] = (), now: datetime = NOW) -> AkTrust:
    """Return what a verifier trusts: keys, and roots of keys."""
    return AkTrust(AkChains(roots=roots), listed, now)


def authenticate(
    *, report_data: bytes = bytes(64), trusted: AkTrust | None = None, **changes: Any
) -> Authenticated:
    """Authenticate a made quote with some changes; its key is listed by default."""
    platform = Tpm(vtpm_quote()._replace(**changes))
    return authenticate_tpm(platform, report_data, trust(DIGEST) if trusted is None else trusted)


def certified() -> AkTrust:
    """Return trust in the root of the made certificates."""
    return trust(roots=(authority()[0].der,))


def outcomes(found: Authenticated) -> list[tuple[str, str]]:
    """Return check and outcome of each step."""
    return [(step.check, step.outcome) for step in found.steps]


@needs_shared
def test_tpm_evidence_of_confidential_containers_verifies_with_its_key() -> None:
    """The sample of the generic attester verifies if its key is listed, and else is unknown."""
    found = Attestation.from_bytes(data("vtpm/generic/trustee/tpm_evidence.json"))
    platform = found.evidence.platform
    assert isinstance(platform, Tpm)
    key = read_attestation_key(platform.vtpm_quote.ak_public, ())
    with raises(SignatureError, "ak_unknown"):
        authenticate_tpm(platform, found.report_data, trust())
    for listed in (key.spki, sha256(key.spki)):
        content = authenticate_tpm(platform, found.report_data, trust(listed))
        assert content.report_data == found.report_data
        assert content.vtpm is not None
        assert (content.vtpm.key_trust, len(content.vtpm.pcrs)) == ("listed", 24)
        assert content.vtpm.joins == ()


def test_tpm_with_listed_key_is_authentic() -> None:
    """A listed key gives facts, and its revocation is not checked without a certificate."""
    found = authenticate()
    assert outcomes(found) == [
        ("tpm_quote", "passed"),
        ("tpm_clock", "passed"),
        ("attestation_key", "passed"),
        ("attestation_key", "caution"),
        ("ak_revocation", "skipped"),
        ("hardware_to_ak", "skipped"),
    ]
    assert found.vtpm is not None
    assert (found.vtpm.key_trust, found.vtpm.attestation_key) == ("listed", SPKI)
    assert (found.vtpm.clock_ms, found.vtpm.reset_count, found.vtpm.restart_count) == (1000, 2, 3)
    assert (found.chain, found.status, found.device) == ((), None, b"")


@pytest.mark.parametrize("listed", [(), (sha256(OTHER.spki_der),), (OTHER.spki_der, b"", b"x")])
def test_tpm_with_unknown_key_is_refused(listed: tuple[bytes, ...]) -> None:
    """A key that nothing certifies never gives a result."""
    with raises(SignatureError, "ak_unknown"):
        authenticate(trusted=trust(*listed))


def test_tpm_key_is_listed_by_hash_or_value() -> None:
    """A list has the SHA-256 of a key, or the key."""
    assert is_listed(SPKI, [OTHER.spki_der, SPKI])
    assert is_listed(SPKI, [DIGEST])
    assert not is_listed(SPKI, [SPKI[:-1], DIGEST[:-1], sha256(OTHER.spki_der)])


def test_only_a_root_of_google_names_an_instance_of_google() -> None:
    """Another root certifies keys too; what its certificates say of Google's VMs is left out."""
    google = AkTrust(AkChains(authority()[0].der), (), NOW)
    found = authenticate(trusted=google, ak_certificates=certificates())
    assert found.vtpm is not None
    assert dict(found.vtpm.details)["gce_instance"] == "simulated-vm"
    assert outcomes(found)[-2] == ("instance", "passed")
    other = authenticate(trusted=certified(), ak_certificates=certificates())
    assert other.vtpm is not None
    assert other.vtpm.details == ()


def test_tpm_with_certified_key_is_authentic() -> None:
    """A certificate under a root of `ak_roots` certifies the key."""
    found = authenticate(trusted=certified(), ak_certificates=certificates())
    assert found.vtpm is not None
    assert found.vtpm.key_trust == "certificate"
    assert (len(found.chain), found.chain[-1]) == (3, authority()[0].der)
    assert [check for check, _ in outcomes(found)] == [
        "tpm_quote",
        "tpm_clock",
        "attestation_key",
        "attestation_key",
        "ak_certificate",
        "ak_revocation",
        "hardware_to_ak",
    ]


def test_tpm_key_comes_from_the_certificate_without_public_area() -> None:
    """Without public area, the key is the certificate's, whose attributes are not known."""
    found = authenticate(trusted=certified(), ak_certificates=certificates(), ak_public=b"")
    assert found.vtpm is not None
    assert found.vtpm.attestation_key == SPKI
    assert ("attestation_key", "caution") in outcomes(found)


def test_tpm_with_certificate_of_an_untrusted_root_is_refused_unless_listed() -> None:
    """A certificate that leads to no root proves nothing; a listed key does not need it."""
    with pytest.raises((SignatureError, CollateralError)):
        authenticate(trusted=trust(), ak_certificates=certificates())
    with pytest.raises((SignatureError, CollateralError)):
        authenticate(trusted=certified(), ak_certificates=certificates()[:1])
    found = authenticate(ak_certificates=certificates())
    assert found.vtpm is not None
    assert (found.vtpm.key_trust, found.vtpm.details, found.chain) == ("listed", (), ())
    assert ("ak_certificate", "skipped") in outcomes(found)


def test_tpm_with_expired_certificate_is_refused() -> None:
    """A certificate is judged at the time of the verification."""
    late = certified()._replace(now=datetime(2051, 1, 1, tzinfo=timezone.utc))
    with raises(CollateralExpiredError, "cert_expired"):
        authenticate(trusted=late, ak_certificates=certificates())


def test_tpm_with_certificate_of_another_key_is_refused() -> None:
    """The certificate must be of the key that signed the quote, also if that is listed."""
    for listed in ((), (DIGEST,)):
        with raises(SignatureError, "ak_mismatch"):
            authenticate(
                trusted=certified()._replace(trusted_aks=listed),
                ak_certificates=certificates(OTHER.spki_der),
            )


@every_case("attributes", [0x00040072, 0x00070072, 0x00010072, 0x00050070, 0x00050052])
def test_tpm_key_that_signs_other_data_is_refused(attributes: int) -> None:
    """A key that is not restricted, decrypts or may leave the TPM proves nothing."""
    with raises(SignatureError, "ak_attributes"):
        authenticate(ak_public=public_area(attributes))


@pytest.mark.parametrize("public", [SPKI, public_area()], ids=["key", "area"])
def test_tpm_reports_that_nothing_confirms_the_attributes_of_its_key(public: bytes) -> None:
    """A SubjectPublicKeyInfo has no attributes, and a public area is the sender's: a caution."""
    for trusted, chain in ((None, ()), (certified(), certificates())):
        found = authenticate(ak_public=public, trusted=trusted, ak_certificates=chain)
        assert ("attestation_key", "caution") in outcomes(found)


def test_tpm_key_that_google_certifies_is_restricted() -> None:
    """Google certifies only restricted keys; only a missing public area is a caution."""
    google = AkTrust(AkChains(authority()[0].der), (), NOW)
    for public, expected in ((public_area(), False), (b"", True)):
        found = authenticate(trusted=google, ak_certificates=certificates(), ak_public=public)
        assert (("attestation_key", "caution") in outcomes(found)) is expected


def test_tpm_report_data_that_a_quote_stands_for_are_restored() -> None:
    """Without the report data, their SHA-256 is accepted, and of a hash the first half, too."""
    expected = bytes(range(64))
    hashed, cut = sha256(expected) + bytes(32), expected[:32] + bytes(32)
    for signed, is_hash in ((hashed, False), (hashed, True), (cut, True), (expected, False)):
        assert restore_report_data(signed, expected, is_hash=is_hash) == expected
    other = expected[:31] + bytes(33)
    for signed, is_hash in ((cut, False), (other, True), (bytes(64), True)):
        assert restore_report_data(signed, expected, is_hash=is_hash) == signed


@every_case(
    ("public", "certificate", "reasons"),
    [
        (b"", (), ("missing",)),
        (b"", (b"x",), ("cert_malformed",)),
        (SPKI, (b"x",), ("cert_malformed",)),
        (b"\x30\x01", (), ("invalid_key",)),
        (public_area()[:-1], (), ("truncated",)),
        (public_area() + b"\0", (), ("trailing_data",)),
        (b"x", (), ("truncated", "unsupported_algorithm")),
    ],
)
def test_tpm_with_malformed_key_is_refused(
    public: bytes, certificate: tuple[bytes, ...], reasons: tuple[str, ...]
) -> None:
    """A malformed public area or certificate is refused, whatever is listed."""
    with pytest.raises((FormatError, SignatureError)) as caught:
        authenticate(ak_public=public, ak_certificates=certificate)
    assert caught.value.reason in reasons


def test_tpm_quote_by_another_key_is_refused() -> None:
    """The listed key must have signed the quote."""
    listed = trust(sha256(OTHER.spki_der))
    with raises(SignatureError, "tpm_quote_bad_signature"):
        authenticate(ak_public=public_area(key=OTHER), trusted=listed)


def test_tpm_quote_of_sha1_only_is_refused() -> None:
    """PCRs of SHA-1 alone prove nothing."""
    with raises(VerificationError, "pcr_selection"):
        authenticate(**vtpm_quote(pcrs=pcrs_of("sha1"))._asdict())
    both = pcrs_of("sha1") + pcrs_of("sha384")
    found = authenticate(**vtpm_quote(pcrs=both)._asdict())
    assert found.vtpm is not None
    assert {bank for bank, _, _ in found.vtpm.pcrs} == {"sha1", "sha384"}


def test_tpm_report_data_is_padded_qualifying_data_or_their_preimage() -> None:
    """Qualifying data are report data, or the SHA-256 of the report data beside the quote."""
    assert authenticate().report_data == EXTRA.ljust(64, b"\0")
    report_data = bytes(range(64))
    hashed = vtpm_quote(sha256(report_data))._asdict()
    assert authenticate(report_data=report_data, **hashed).report_data == report_data
    other = authenticate(report_data=bytes(64), **hashed).report_data
    assert other == sha256(report_data).ljust(64, b"\0")
    with raises(VerificationError, "tpm_qualifying_data"):
        authenticate(**vtpm_quote(bytes(65))._asdict())


def test_tpm_public_area_gives_the_key() -> None:
    """The key of a public area is that of its SubjectPublicKeyInfo."""
    assert read_attestation_key(public_area(), ()).spki == KEY.spki_der
    assert read_attestation_key(public_area(), ()).scheme == ("ecdsa", "sha256")
