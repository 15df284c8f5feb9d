"""Certificates of TPM keys: paths by key identifier or signature, CRLs, Google's extension."""

import contextlib
import json
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from attestkit._crypto.pem import split_pem
from attestkit._crypto.x509.ak_certificates.crl import (
    check_revocation,
    is_crl,
    read_ak_crl,
    read_crl_urls,
    read_issuer_urls,
)
from attestkit._crypto.x509.ak_certificates.gce_extension import (
    GCE_EXTENSION,
    read_gce_extension,
)
from attestkit._crypto.x509.ak_certificates.path import (
    EK_USAGE,
    AkPath,
    IssuerMissingError,
    find_ak_path,
)
from attestkit._crypto.x509.cert_path import PathCertificate, read_path_certificate
from attestkit._crypto.x509.vendor_roots import google_roots
from attestkit.errors import (
    AttestKitError,
    CollateralExpiredError,
    FormatError,
    SignatureError,
)
from tests.pki.certificates import key_usage, name_of
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import data, needs_shared

NOW = datetime(2026, 3, 1, tzinfo=timezone.utc)
GOOGLE = [("Google's root", read_path_certificate(root)) for root in google_roots()]
VTPM = "vtpm/gcp/"


def pem(name: str) -> list[PathCertificate]:
    """Return the certificates of a PEM file of Google's samples."""
    return [read_path_certificate(der) for der in split_pem(data(VTPM + name).decode())]


def fixture_chain() -> list[PathCertificate]:
    """Return the chain of the Confidential VM of February 2026."""
    fixture = json.loads(data(VTPM + "vaportpm/test-gcp-tdx-fixture.json"))
    text = fixture["attestation"]["gcp"]["ak_cert_chain"]
    return [read_path_certificate(der) for der in split_pem(text)]


class Authority:
    """A CA on P-256 that issues the certificates of these tests."""

    def __init__(self, name: str, issuer: "Authority | None" = None, **options: Any) -> None:
        self.name, self.key = name_of(name), ec.generate_private_key(ec.SECP256R1())
        self.built = (issuer or self).issue(self.name, self.key.public_key(), **options)

    def issue(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        *,
        length: int | None = None,
        leaf: bool = False,
        usages: tuple[str, ...] = (EK_USAGE,),
        days: int = 3650,
        identifiers: bool = True,
        more: tuple[tuple[str, bytes, bool], ...] = (),
    ) -> PathCertificate:
        """Return a certificate by this CA."""
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - timedelta(days=1))
            .not_valid_after(NOW + timedelta(days=days))
            .add_extension(x509.BasicConstraints(not leaf, length), critical=True)
            .add_extension(
                key_usage(*(("digital_signature",) if leaf else ("key_cert_sign", "crl_sign"))),
                critical=True,
            )
        )
        if usages:
            found = x509.ExtendedKeyUsage([x509.ObjectIdentifier(usage) for usage in usages])
            builder = builder.add_extension(found, critical=False)
        if identifiers:
            own = x509.SubjectKeyIdentifier.from_public_key(key)
            issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
            builder = builder.add_extension(own, critical=False)
            builder = builder.add_extension(issuer, critical=False)
        for oid, value, critical in more:
            unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value)
            builder = builder.add_extension(unknown, critical=critical)
        der = builder.sign(self.key, SHA256()).public_bytes(Encoding.DER)
        return read_path_certificate(der)

    def leaf(self, **options: Any) -> PathCertificate:
        """Return an AK certificate by this CA."""
        key = ec.generate_private_key(ec.SECP256R1()).public_key()
        return self.issue(name_of("leaf"), key, **{"leaf": True, "usages": (), **options})

    def crl(self, *serials: int, start: datetime = NOW, days: int = 7) -> bytes:
        """Return the DER of a CRL of this CA."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.name)
            .last_update(start)
            .next_update(start + timedelta(days=days))
        )
        for serial in serials:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW)
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(self.key, SHA256()).public_bytes(Encoding.DER)


def find(leaf: PathCertificate, authorities: list[PathCertificate], root: Authority) -> AkPath:
    """Return the path to `root` at the time of these tests."""
    return find_ak_path(leaf, authorities, [("the root", root.built)], NOW)


# -- genuine certificates --------------------------------------------------------------------------


@needs_shared
def test_paths_of_googles_certificates_lead_to_the_built_in_roots() -> None:
    """The genuine chain of 2026 ends at the root in use, which is built in."""
    leaf, *authorities = fixture_chain()
    path = find_ak_path(leaf, authorities, GOOGLE, NOW)
    assert [certificate for _, certificate in path.certificates] == [leaf, *authorities]
    assert path.chain[-1] == google_roots()[0]


@needs_shared
def test_of_two_intermediates_of_one_name_the_one_with_the_key_is_found() -> None:
    """Key identifiers select the issuer; without it the path is incomplete, not forged."""
    [ak], [ek_issuer], [ak_issuer] = map(
        pem, [f"salrashid123/{n}.pem" for n in ("akcert", "ek_intermediate", "ak_intermediate")]
    )
    for authorities in ([ek_issuer, ak_issuer], [ak_issuer, ek_issuer]):
        path = find_ak_path(ak, authorities, GOOGLE, NOW)
        assert path.certificates[1][1] == ak_issuer
    with pytest.raises(IssuerMissingError) as caught:
        find_ak_path(ak, [ek_issuer], GOOGLE, NOW)
    assert caught.value.reason == "missing"
    assert caught.value.certificate == ak


@needs_shared
def test_urls_and_instance_of_a_genuine_certificate() -> None:
    """AIA, CRL points and the instance are those of `expected.json`."""
    leaf, intermediate, _ = fixture_chain()
    [issuer_url], [crl_url] = read_issuer_urls(leaf), read_crl_urls(intermediate)
    assert issuer_url.startswith("http://privateca-content-65d1688e-")
    assert issuer_url.endswith(".storage.googleapis.com/810af313406ad3e2079b/ca.crt")
    assert crl_url.endswith(".storage.googleapis.com/032bf9d39db4fa06aade/crl.crl")
    expected = json.loads(data("vtpm/expected.json"))["gcp/vaportpm/test-gcp-tdx-fixture.json"]
    gce = read_gce_extension(leaf.extensions)
    assert gce is not None
    found = gce._asdict()
    for name, value in expected["gce"].items():
        if name != "security_properties_der":
            assert found[name] == value, name
    assert gce.is_production is True
    assert gce.security_version == 0


@needs_shared
def test_each_cut_and_each_changed_length_of_googles_extension_is_refused_cleanly() -> None:
    """A malformed extension is a FormatError, whatever the fault."""
    value = fixture_chain()[0].extensions[GCE_EXTENSION]
    for size in range(len(value)):
        with pytest.raises(FormatError):
            read_gce_extension({GCE_EXTENSION: value[:size]})
    for at in range(len(value)):
        changed = value[:at] + bytes([value[at] ^ 0x81]) + value[at + 1 :]
        with contextlib.suppress(FormatError):
            read_gce_extension({GCE_EXTENSION: changed})


@needs_shared
def test_each_changed_byte_of_an_ak_certificate_is_refused() -> None:
    """No byte of the certificate is outside of the signature's protection."""
    leaf, *authorities = fixture_chain()
    for at in range(len(leaf.der)):
        changed = leaf.der[:at] + bytes([leaf.der[at] ^ 1]) + leaf.der[at + 1 :]
        with pytest.raises(AttestKitError):
            find_ak_path(read_path_certificate(changed), authorities, GOOGLE, NOW)


@needs_shared
def test_the_genuine_crl_counts_while_it_is_valid() -> None:
    """The CRL of May 2024 covers the intermediate, and has expired since."""
    [ak], [issuer] = pem("salrashid123/akcert.pem"), pem("salrashid123/ak_intermediate.pem")
    path = find_ak_path(ak, [issuer], GOOGLE, NOW)
    der = data(VTPM + "salrashid123/intermediate.crl")
    assert is_crl(der)
    assert not is_crl(ak.der)
    crl = read_ak_crl(der)
    found = check_revocation(path, [crl], datetime(2024, 5, 8, tzinfo=timezone.utc))
    assert found.checked == (path.certificates[1],)
    assert not found.unknown
    with pytest.raises(CollateralExpiredError) as caught:
        check_revocation(path, [crl], NOW)
    assert caught.value.reason == "crl_expired"
    assert check_revocation(path, [], NOW).unknown == (path.certificates[1],)


# -- paths -----------------------------------------------------------------------------------------


def test_without_key_identifiers_the_signature_decides() -> None:
    """Of issuers of one name, the one that signed is used, in any order."""
    root = Authority("root")
    one, two = (Authority("issuer", root, identifiers=False) for _ in range(2))
    leaf = two.leaf(identifiers=False)
    path = find(leaf, [one.built, two.built], root)
    assert path.certificates[1][1] == two.built
    with pytest.raises(SignatureError) as caught:
        find(leaf, [one.built], root)
    assert caught.value.reason == "cert_bad_signature"


def test_a_root_of_the_same_name_is_not_trusted() -> None:
    """A root is trusted by its key, and a self-signed certificate at hand is not."""
    trusted = Authority("root", identifiers=False)
    other = Authority("root", identifiers=False)
    with pytest.raises(SignatureError) as caught:
        find(other.leaf(identifiers=False), [], trusted)
    assert caught.value.reason == "untrusted_root"
    other = Authority("another root")
    with pytest.raises(SignatureError) as caught:
        find(other.leaf(), [other.built], trusted)
    assert caught.value.reason == "untrusted_root"


@every_case(
    ("issuer", "leaf", "reason"),
    [
        ({"usages": ("2.23.133.8.3",)}, {}, "cert_constraints"),
        ({}, {"usages": ("1.3.6.1.5.5.7.3.1",)}, "cert_constraints"),
        ({"days": -0.5}, {}, "cert_expired"),
        ({}, {"days": -0.5}, "cert_expired"),
        ({}, {"leaf": False}, "cert_not_authority"),
        ({"leaf": True}, {}, "cert_not_authority"),
        ({}, {"more": (("1.2.3.4", b"\x05\x00", True),)}, "cert_unknown_extension"),
    ],
)
def test_a_certificate_that_breaks_a_rule_is_refused(
    issuer: dict[str, Any], leaf: dict[str, Any], reason: str
) -> None:
    """Usages, validity, CA flag and critical extensions are checked on each certificate."""
    root = Authority("root")
    authority = Authority("issuer", root, **issuer)
    with pytest.raises(AttestKitError) as caught:
        find(authority.leaf(**leaf), [authority.built], root)
    assert caught.value.reason == reason


def test_usages_are_required_only_where_present() -> None:
    """A path without extended key usages is valid."""
    root = Authority("root", usages=("1.2.3",))  # a trust anchor is trusted as it is
    authority = Authority("issuer", root, usages=())
    assert find(authority.leaf(), [authority.built], root)


def test_the_path_length_of_a_ca_is_respected() -> None:
    """A CA of path length 0 certifies no other CA."""
    root = Authority("root", length=0)
    authority = Authority("issuer", root)
    with pytest.raises(SignatureError) as caught:
        find(authority.leaf(), [authority.built], root)
    assert caught.value.reason == "cert_not_authority"


def test_long_paths_and_loops_end() -> None:
    """A path has at most 8 certificates, and a search verifies at most 32 signatures."""
    authorities = [Authority("0")]
    for at in range(1, 9):
        authorities.append(Authority(str(at), authorities[-1]))
    built = [authority.built for authority in authorities[1:]]
    assert find(authorities[6].leaf(), built, authorities[0])
    with pytest.raises(SignatureError) as caught:
        find(authorities[7].leaf(), built, authorities[0])
    assert caught.value.reason == "chain_length"
    # Two CAs that certify each other, and many copies of one name.
    one, two = Authority("one"), Authority("two")
    loop = [one.issue(two.name, two.key.public_key()), two.issue(one.name, one.key.public_key())]
    with pytest.raises(AttestKitError):
        find(one.leaf(), loop, authorities[0])
    copies = [Authority("same", authorities[0], identifiers=False).built for _ in range(40)]
    with pytest.raises(SignatureError) as caught:
        find(Authority("same").leaf(identifiers=False), copies, authorities[0])
    assert caught.value.reason == "chain_length"


# -- revocation ------------------------------------------------------------------------------------


def test_a_revoked_certificate_is_refused_at_any_place_of_the_path() -> None:
    """Leaf and intermediate are looked up in the CRLs of their issuers only."""
    root = Authority("root")
    authority = Authority("issuer", root)
    leaf = authority.leaf()
    path = find(leaf, [authority.built], root)
    for der in (root.crl(authority.built.serial), authority.crl(leaf.serial)):
        with pytest.raises(SignatureError) as caught:
            check_revocation(path, [read_ak_crl(der)], NOW)
        assert caught.value.reason == "cert_revoked"
    crls = [read_ak_crl(der) for der in (root.crl(1), authority.crl(2), Authority("x").crl(3))]
    assert len(check_revocation(path, crls, NOW).checked) == 2


def test_a_crl_that_the_issuer_did_not_sign_is_refused() -> None:
    """A changed CRL never makes a certificate count as checked."""
    root = Authority("root")
    path = find(root.leaf(), [], root)
    der = root.crl()
    for at in range(len(der)):
        changed = der[:at] + bytes([der[at] ^ 1]) + der[at + 1 :]
        try:
            found = check_revocation(path, [read_ak_crl(changed)], NOW)
        except AttestKitError:
            continue
        assert not found.checked  # of another issuer
    with pytest.raises(SignatureError) as caught:
        check_revocation(path, [read_ak_crl(Authority("root").crl())], NOW)
    assert caught.value.reason == "crl_bad_signature"


def test_a_crl_ends_at_its_next_update() -> None:
    """A CRL is valid from thisUpdate on, and no longer at nextUpdate, as Intel's and AMD's."""
    root = Authority("root")
    path = find(root.leaf(), [], root)
    crl, last = read_ak_crl(root.crl()), NOW + timedelta(days=7) - timedelta(seconds=1)
    for at in (NOW, last):
        assert check_revocation(path, [crl], at).checked
    for at in (NOW - timedelta(seconds=1), last + timedelta(seconds=1)):
        with pytest.raises(CollateralExpiredError) as caught:
            check_revocation(path, [crl], at)
        assert caught.value.reason == "crl_expired"


def test_a_crl_with_a_critical_extension_of_an_entry_is_refused() -> None:
    """Such an entry may be of another issuer (RFC 5280, 5.3.3), so the list is not understood."""
    root = Authority("root")
    path = find(root.leaf(), [], root)
    for critical in (False, True):
        entry = (
            x509.RevokedCertificateBuilder()
            .serial_number(1)
            .revocation_date(NOW)
            .add_extension(x509.CRLReason(x509.ReasonFlags.key_compromise), critical=critical)
        )
        der = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(root.name)
            .last_update(NOW)
            .next_update(NOW + timedelta(days=7))
            .add_revoked_certificate(entry.build())
            .sign(root.key, SHA256())
            .public_bytes(Encoding.DER)
        )
        if not critical:
            assert check_revocation(path, [read_ak_crl(der)], NOW).checked
            continue
        with raises(FormatError, "unsupported", start="malformed CRL: ", part="2.5.29.21"):
            check_revocation(path, [read_ak_crl(der)], NOW)


def test_each_cut_of_a_crl_is_refused_cleanly() -> None:
    """A truncated or oversized CRL is a FormatError."""
    der = Authority("root").crl(5)
    for size in range(len(der)):
        with pytest.raises(FormatError):
            read_ak_crl(der[:size])
    with pytest.raises(FormatError) as caught:
        read_ak_crl(bytes((1 << 20) + 1))
    assert caught.value.reason == "too_large"
