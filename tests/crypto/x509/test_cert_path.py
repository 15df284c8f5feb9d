"""Certificates are read like `cryptography` reads them, and a path is valid link by link."""

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from functools import cache

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestkit._crypto.pem import split_pem
from attestkit._crypto.x509.cert_path import PathCertificate, check_path, read_path_certificate
from attestkit._crypto.x509.vendor_roots import AWS_ROOT
from attestkit.attestation import Attestation
from attestkit.errors import CollateralExpiredError, FormatError, SignatureError
from tests.pki.certificates import name_of
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import HAVE_SHARED, data

NOW = datetime(2026, 8, 1, tzinfo=timezone.utc)
DAY = timedelta(days=1)
SERIAL_ZERO = bytes.fromhex("a003020102020100")  # version 3 and serial number 0, as in AMD's


def real_certificates() -> list[bytes]:
    """Return the available certificates of AMD and AWS."""
    found = [AWS_ROOT]
    if not HAVE_SHARED:
        return found
    for name in ("milan", "milan_vlek", "genoa", "genoa_vlek", "turin_vcek", "turin_vlek"):
        found += split_pem(data(f"snp/go-sev-guest/ask_ark_{name}.pem").decode())
    found += [data(f"snp/virtee-sev/vcek_{name}.der") for name in ("milan", "turin")]
    document = Attestation.from_bytes(
        data("dstack/dstack-attest/nitro_attestation.bin")
    ).nitro_document
    assert document is not None
    return [*found, document.certificate, *document.cabundle]


@cache
def key_of(name: str) -> ec.EllipticCurvePrivateKey:
    """Return the key of a name."""
    del name  # derives distinct keys
    return ec.generate_private_key(ec.SECP384R1())


def make_certificate(
    name: str,
    issuer: str,
    *extensions: x509.ExtensionType,
    until: datetime = NOW + DAY,
    signer: str = "",
) -> bytes:
    """Return a certificate with critical extensions, signed by `signer` or else by its issuer."""
    public = key_of(name).public_key()
    builder = x509.CertificateBuilder(name_of(issuer), name_of(name), public, 5, NOW - DAY, until)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(key_of(signer or issuer), SHA384()).public_bytes(Encoding.DER)


def authority_extensions(path_length: int | None = None) -> x509.BasicConstraints:
    """Return the extensions of an authority."""
    return x509.BasicConstraints(ca=True, path_length=path_length)


def make_path(*certificates: bytes) -> list[tuple[str, PathCertificate]]:
    """Return a path of certificates named by their position."""
    return [(f"#{at}", read_path_certificate(der)) for at, der in enumerate(certificates)]


def with_serial_one(der: bytes) -> bytes:
    """Return `der`, the serial number changed to 1 if it is 0, which `cryptography` rejects."""
    return der.replace(SERIAL_ZERO, SERIAL_ZERO[:-1] + b"\1", 1)


@every_case("at", range(len(real_certificates())))
def test_read_certificate_of_vendors_matches_cryptography(at: int) -> None:
    """Every field matches the one read by `cryptography`."""
    der = real_certificates()[at]
    found = read_path_certificate(der)
    expected = x509.load_der_x509_certificate(with_serial_one(der))
    spki = expected.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert found.der == der
    assert with_serial_one(found.signed) == expected.tbs_certificate_bytes
    assert found.signature == expected.signature
    assert found.issuer == expected.issuer.public_bytes()
    assert found.subject == expected.subject.public_bytes()
    assert found.spki == spki
    assert found.valid_from == expected.not_valid_before_utc
    assert found.valid_until == expected.not_valid_after_utc
    assert list(found.extensions) == [e.oid.dotted_string for e in expected.extensions]
    assert found.critical == {e.oid.dotted_string for e in expected.extensions if e.critical}
    try:
        basic = expected.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        basic = x509.BasicConstraints(ca=False, path_length=None)
    assert (found.authority, found.path_length) == (basic.ca, basic.path_length)
    try:
        usage = expected.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        assert found.key_usage is None
    else:
        assert found.key_usage is not None
        assert (0 in found.key_usage) == usage.digital_signature
        assert (5 in found.key_usage) == usage.key_cert_sign
        assert (6 in found.key_usage) == usage.crl_sign


def test_read_certificate_of_generalized_time() -> None:
    """Years after 2049 have four digits, and are read to the second."""
    until = datetime(2050, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    assert read_path_certificate(make_certificate("a", "a", until=until)).valid_until == until


@pytest.mark.parametrize("serial", [b"\0", b"\x80", b"\x7f" * 20])
def test_check_path_ignores_serial_numbers(serial: bytes) -> None:
    """Zero, negative and long serial numbers are accepted."""
    der = make_certificate("a", "a")
    at = der.index(b"\x02\x01\x05")
    changed = bytearray(der[:at] + bytes([2, len(serial)]) + serial + der[at + 3 :])
    for start in (0, der.index(b"\x30", 1)):  # both enclosing SEQUENCEs grow
        end = start + 2 + (der[start + 1] & 0x7F)
        size = int.from_bytes(der[start + 2 : end], "big") + len(serial) - 1
        changed[start + 2 : end] = size.to_bytes(end - start - 2, "big")
    assert read_path_certificate(bytes(changed)).subject == read_path_certificate(der).subject


def test_check_path_requires_every_link_in_order() -> None:
    """Three links are valid; a missing link or another order is not."""
    root, middle = (
        make_certificate("root", "root", authority_extensions()),
        make_certificate("middle", "root", authority_extensions(0)),
    )
    leaf = make_certificate("leaf", "middle")
    check_path(make_path(leaf, middle, root), NOW)
    for wrong, reason in (
        ((leaf, root), "untrusted_root"),
        ((leaf, middle, make_certificate("root", "root2", authority_extensions())), None),
        ((leaf, root, middle), "untrusted_root"),
        ((middle, leaf, root), "untrusted_root"),
        ((make_certificate("leaf", "other"), middle, root), "cert_bad_signature"),
        ((leaf, middle, middle), "untrusted_root"),
        ((middle, root), "cert_not_authority"),
    ):
        if reason is None:  # the signature of the anchor is not checked
            check_path(make_path(*wrong), NOW)
            continue
        with raises(SignatureError, reason):
            check_path(make_path(*wrong), NOW)


def test_check_path_compares_issuer_names() -> None:
    """A signature by the authority's key is invalid under another issuer name."""
    root = make_certificate("root", "root", authority_extensions())
    check_path(make_path(make_certificate("leaf", "root", signer="root"), root), NOW)
    with raises(SignatureError, "untrusted_root"):
        check_path(make_path(make_certificate("leaf", "another", signer="root"), root), NOW)


def test_check_path_enforces_path_length() -> None:
    """At most as many authorities follow as pathLenConstraint allows."""
    root = make_certificate("root", "root", authority_extensions(1))
    upper = make_certificate("upper", "root", authority_extensions())
    lower = make_certificate("lower", "upper", authority_extensions())
    leaf = make_certificate("leaf", "lower")
    with raises(SignatureError, "cert_not_authority"):
        check_path(make_path(leaf, lower, upper, root), NOW)
    check_path(
        make_path(leaf, lower, upper, make_certificate("root", "root", authority_extensions(2))),
        NOW,
    )


def test_check_path_checks_validity_of_every_certificate() -> None:
    """An expired or not yet valid certificate fails, including the anchor."""
    late = NOW - timedelta(seconds=1)
    valid = (
        make_certificate("leaf", "middle"),
        make_certificate("middle", "root", authority_extensions()),
    )
    root = make_certificate("root", "root", authority_extensions())
    expired = (
        make_certificate("leaf", "middle", until=late),
        make_certificate("middle", "root", authority_extensions(), until=late),
        make_certificate("root", "root", authority_extensions(), until=late),
    )
    for at in range(3):
        chain = [*valid, root]
        chain[at] = expired[at]
        with raises(
            CollateralExpiredError, "cert_expired", start=f"#{at} is valid from 2026-07-31"
        ):
            check_path(make_path(*chain), NOW)
        check_path(make_path(*chain), late)


def test_check_path_with_unknown_critical_extension_fails() -> None:
    """An unknown critical extension fails in any certificate."""
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"")
    root = make_certificate("root", "root", authority_extensions(), unknown)
    with raises(
        SignatureError, "cert_unknown_extension", text="#1: unknown critical extension: 1.2.3.4"
    ):
        check_path(make_path(make_certificate("leaf", "root"), root), NOW)


def replace_bytes(find: bytes, replace: bytes) -> bytes:
    """Return a certificate with some bytes replaced by as many others."""
    der = make_certificate("a", "a", authority_extensions(1))
    assert der.count(find) == 1
    assert len(find) == len(replace)
    return der.replace(find, replace)


VERSION_3 = b"\xa0\x03\x02\x01\x02"
BASIC = b"\x01\x01\xff\x02\x01\x01"  # an authority with path length 1
WRONG_BASIC = ("wrong_value", "basic constraints")


@every_case(
    ("der", "reason", "subject"),
    [
        (lambda: b"", "truncated", "DER"),
        (lambda: make_certificate("a", "a") + b"\0", "trailing_data", "DER"),
        (
            lambda: replace_bytes(VERSION_3, VERSION_3[:-1] + b"\1"),
            "unsupported_version",
            "version",
        ),
        (lambda: replace_bytes(b"260731000000Z", b"261331000000Z"), "wrong_value", "time"),
        (lambda: replace_bytes(b"260731000000Z", b"2607310000+00"), "wrong_value", "time"),
        (lambda: replace_bytes(BASIC, BASIC.replace(b"\xff", b"\0")), *WRONG_BASIC),
        (lambda: replace_bytes(BASIC, BASIC[:-1] + b"\xff"), *WRONG_BASIC),
        (lambda: b"\x30\x84\x01\x00\x00\x00" + bytes(1 << 24), "too_large", "16777222 bytes"),
    ],
)
def test_read_certificate_of_invalid_der_fails(
    der: Callable[[], bytes], reason: str, subject: str
) -> None:
    """Each violated rule is named."""
    with raises(FormatError, reason, start=f"malformed X.509: {subject}"):
        read_path_certificate(der())


def test_read_certificate_with_different_signature_algorithms_fails() -> None:
    """The outer signature algorithm must equal the signed one."""
    der = make_certificate("a", "a")
    name = bytes.fromhex("06082a8648ce3d040303")
    at = der.rindex(name)
    assert at != der.index(name)
    with raises(FormatError, "inconsistent"):
        read_path_certificate(der[:at] + name[:-1] + b"\2" + der[at + len(name) :])


def test_read_certificate_with_duplicate_extension_fails() -> None:
    """Each extension may occur once (RFC 5280, 4.2)."""
    oids = [x509.ObjectIdentifier(f"1.2.3.{n}") for n in (4, 5)]
    der = make_certificate("a", "a", *(x509.UnrecognizedExtension(oid, b"") for oid in oids))
    four, five = b"\x06\x03\x2a\x03\x04", b"\x06\x03\x2a\x03\x05"
    with raises(FormatError, "duplicate", part="1.2.3.4"):
        read_path_certificate(der.replace(five, four))
