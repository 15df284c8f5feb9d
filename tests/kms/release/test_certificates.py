"""Certificates of a KMS have upstream's profile."""

import json
from datetime import datetime, timezone
from pathlib import Path
from subprocess import run

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key
from cryptography.x509 import load_der_x509_certificate

from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.pem import encode_pem, split_pem
from attestkit._crypto.x509.app_certificates import Certificate, read_certificate
from attestkit.errors import SignatureError, UsageError
from attestkit.kms.release.certificates import (
    LeafProfile,
    ValidityPeriod,
    check_domain,
    default_window,
    issue_app_ca,
    issue_root,
    issue_rpc,
    issue_temp_ca,
    needs_renewal,
    sign_app_certificate,
)
from attestkit.kms.release.roots import KmsRoots, derive_app_ca
from attestkit.ra_tls.certificate import (
    OID_APP_ID,
    OID_APP_INFO,
    OID_ATTESTATION,
    OID_CERT_USAGE,
)
from tests.runner.cases import every_case
from tests.vectors import data, needs_shared

UPSTREAM = "dstack/upstream-312dc605"
NOW = 1_796_000_000
DAY = 86_400
ROOTS = KmsRoots.from_seed(bytes(range(32)))
WINDOW = default_window(ROOTS, NOW)
ROOT = issue_root(ROOTS, WINDOW)
APP = bytes(range(20))
LEAF_KEY = P256Key.from_scalar(bytes(31) + b"\x07")
KEY_USAGE, BASIC, KEY_ID, ALT_NAMES, EXT_USAGE = (
    f"2.5.29.{number}" for number in (15, 19, 14, 17, 37)
)


def profile(certificate: Certificate) -> tuple[object, ...]:
    """Return what the certificates of two KMSs have in common: names and extensions in order."""
    own = {KEY_ID, OID_ATTESTATION, OID_APP_ID, OID_APP_INFO}  # values differ
    extensions = [
        (oid, None if oid in own else value) for oid, value in certificate.extensions.items()
    ]
    return certificate.subject, certificate.issuer, extensions, certificate.valid_from


def upstream_chain(name: str) -> list[Certificate]:
    """Return the certificates that an upstream KMS made."""
    text = data(f"{UPSTREAM}/{name}").decode()
    if name.endswith(".json"):
        text = "".join(json.loads(text)["certificate_chain"])
    return [read_certificate(encode_pem("CERTIFICATE", der)) for der in split_pem(text)]


@needs_shared
def test_rpc_and_root_have_upstream_profile() -> None:
    """Names, order and content of extensions, and start are those of the upstream KMS."""
    rpc, root = upstream_chain("kms_rpc.pem")
    ours = issue_rpc(ROOTS, ROOT, "localhost", WINDOW, evidence=b"evidence")
    assert profile(read_certificate(ours)) == profile(rpc)
    assert profile(read_certificate(ROOT)) == profile(root)


@needs_shared
def test_app_chain_has_upstream_profile() -> None:
    """Leaf and app CA are as SignCert of the upstream KMS made them; its root was given to it."""
    upstream = upstream_chain("tls_key.json")
    leaf = LeafProfile(
        LEAF_KEY.spki_der,
        "example.com",
        alt_names=upstream[0].alt_names,
        server_auth=True,
        client_auth=True,
        app_info=b"info" if OID_APP_INFO in upstream[0].extensions else None,
        evidence=b"evidence",
    )
    chain = sign_app_certificate(ROOTS, ROOT, APP, leaf, now=NOW)
    for ours, theirs in zip(chain[:2], upstream[:2], strict=True):
        assert profile(read_certificate(ours)) == profile(theirs)


def test_app_chain_verifies_with_openssl(tmp_path: Path) -> None:
    """OpenSSL builds the path from leaf to root."""
    chain = sign_app_certificate(ROOTS, ROOT, APP, LeafProfile(LEAF_KEY.spki_der, "app"), now=NOW)
    names = ("leaf.pem", "ca.pem", "root.pem")
    for name, pem in zip(names, chain, strict=True):
        (tmp_path / name).write_text(pem)
    command = ["openssl", "verify", "-CAfile", "root.pem", "-untrusted", "ca.pem", "leaf.pem"]
    found = run(command, cwd=tmp_path, capture_output=True, check=False)
    assert found.returncode == 0, found.stderr


def check_signed(certificate: Certificate, spki: bytes) -> None:
    """Check that the key of an issuer signed a certificate."""
    key = load_der_public_key(spki)
    parsed = load_der_x509_certificate(certificate.der)
    assert isinstance(key, EllipticCurvePublicKey)
    key.verify(parsed.signature, parsed.tbs_certificate_bytes, ECDSA(SHA256()))


def test_leaf_has_requested_names_and_extensions_in_order() -> None:
    """SAN, key usage and EKU come first, then app id, app info, usage and evidence."""
    leaf = LeafProfile(
        LEAF_KEY.spki_der,
        "name",
        "Organisation",
        ("example.com", "10.0.0.1", "::1"),
        server_auth=True,
        client_auth=True,
        not_before=1_700_000_000,
        not_after=1_900_000_000,
        app_info=b"info",
        evidence=b"evidence",
    )
    pem, app_ca, root = sign_app_certificate(ROOTS, ROOT, APP, leaf, now=NOW)
    found = read_certificate(pem)
    assert root == ROOT
    assert found.subject == "CN=name,O=Organisation"
    assert found.alt_names == ("example.com", "10.0.0.1", "::1")
    assert found.valid_from == datetime.fromtimestamp(1_700_000_000, timezone.utc)
    assert found.valid_until == datetime.fromtimestamp(1_900_000_000, timezone.utc)
    assert found.spki_der == LEAF_KEY.spki_der
    private = [OID_APP_ID, OID_APP_INFO, OID_CERT_USAGE, OID_ATTESTATION]
    assert list(found.extensions) == [ALT_NAMES, KEY_USAGE, EXT_USAGE, *private]
    assert [found.content(oid) for oid in private] == [APP, b"info", b"app:custom", b"evidence"]
    issuer = read_certificate(app_ca)
    check_signed(found, issuer.spki_der)
    assert issuer.spki_der == derive_app_ca(ROOTS, APP).spki_der
    assert list(issuer.extensions) == [KEY_USAGE, KEY_ID, BASIC, OID_APP_ID, OID_CERT_USAGE]
    assert issuer.content(OID_APP_ID) == APP
    assert issuer.content(OID_CERT_USAGE) == b"app:ca"
    check_signed(issuer, ROOTS.ca_spki)


def test_seeded_certificates_are_the_same_each_time() -> None:
    """With keys from a seed, certificates do not depend on the time."""
    later = default_window(ROOTS, NOW + DAY)
    again = KmsRoots.from_seed(bytes(range(32)))
    assert issue_root(again, later) == ROOT
    assert issue_temp_ca(again, later) == issue_temp_ca(ROOTS, WINDOW)
    assert issue_rpc(again, ROOT, "kms", later) == issue_rpc(ROOTS, ROOT, "kms", WINDOW)
    root = read_certificate(ROOT)
    assert root.valid_from == datetime(1975, 1, 1, tzinfo=timezone.utc)
    assert root.valid_until == datetime(2049, 12, 31, 23, 59, 59, tzinfo=timezone.utc)
    assert root.serial_number == ROOTS.serial_number("root-ca")


def test_random_roots_have_certificates_of_3650_days() -> None:
    """Without a seed, the validity ends 3650 days from now."""
    roots = KmsRoots.generate()
    window = default_window(roots, NOW)
    assert window.not_after == NOW + 3650 * DAY
    assert read_certificate(issue_root(roots, window)).serial_number > 0


@pytest.mark.parametrize(
    ("usage", "evidence", "expected"),
    [
        (b"kms:rpc", None, [OID_CERT_USAGE]),
        (None, None, []),
        (b"app:custom", b"e", [OID_CERT_USAGE, OID_ATTESTATION]),
    ],
)
def test_rpc_certificate_has_usage_and_evidence_as_given(
    usage: bytes | None, evidence: bytes | None, expected: list[str]
) -> None:
    """Faults can remove or replace the usage; evidence is optional."""
    pem = issue_rpc(ROOTS, ROOT, "127.0.0.1", WINDOW, usage=usage, evidence=evidence)
    found = read_certificate(pem)
    assert list(found.extensions) == [ALT_NAMES, KEY_USAGE, *expected]
    assert found.content(OID_CERT_USAGE) == usage
    assert found.alt_names == ("127.0.0.1",)
    assert found.spki_der == ROOTS.rpc_key.spki_der


@pytest.mark.parametrize(("left", "needed"), [(364, True), (365, True), (366, False)])
def test_needs_renewal_within_365_days(left: int, *, needed: bool) -> None:
    """A CA certificate is renewed when at most 365 days are left."""
    pem = issue_root(ROOTS, ValidityPeriod(0, NOW + left * DAY))
    assert needs_renewal(pem, NOW) is needed


@every_case(
    "domain",
    ["", ".", "a..b", "-a", "a-", "a" * 64, "a_b", "ä", "a\n", "fe80::1%eth0", "a." * 126 + "ab"],
)
def test_check_domain_rejects_invalid_labels(domain: str) -> None:
    """A domain has labels of 1 to 63 letters, digits and hyphens, and at most 253 characters."""
    with pytest.raises(UsageError) as caught:
        check_domain(domain)
    assert caught.value.reason == "wrong_value"


@every_case("domain", ["localhost", "a.b-c.D9", "127.0.0.1", "::1", "a." * 126 + "a"])
def test_check_domain_accepts_names_and_addresses(domain: str) -> None:
    """DNS names and IP addresses are valid."""
    check_domain(domain)


def test_sign_app_certificate_rejects_other_keys_and_times() -> None:
    """A key of another kind, a point off the curve, and times beyond 9999 are refused."""
    spki = LEAF_KEY.spki_der
    for wrong in (b"", spki[:-1], spki[27:], spki[:-64] + bytes(64), spki + b"\0"):
        with pytest.raises(SignatureError) as caught:
            sign_app_certificate(ROOTS, ROOT, APP, LeafProfile(wrong, "x"), now=NOW)
        assert caught.value.reason == "invalid_key"
    for not_after in (253_402_300_800, 1 << 64):
        leaf = LeafProfile(spki, "x", not_after=not_after)
        with pytest.raises(UsageError):
            sign_app_certificate(ROOTS, ROOT, APP, leaf, now=NOW)
    leaf = LeafProfile(spki, "x", not_before=2, not_after=1)
    with pytest.raises(UsageError):
        sign_app_certificate(ROOTS, ROOT, APP, leaf, now=NOW)


def test_app_ca_rejects_app_id_of_other_size() -> None:
    """An app id has 20 bytes."""
    with pytest.raises(UsageError):
        issue_app_ca(ROOTS, ROOT, bytes(19), WINDOW)
