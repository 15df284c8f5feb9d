"""Certificates are read as `cryptography` reads them, and paths hold only link by link."""

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from functools import cache

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit._crypto.pem import split_pem
from attestkit._crypto.x509.cert_path import PathCertificate, check_path, read_path_certificate
from attestkit._crypto.x509.vendor_roots import AWS_ROOT
from attestkit.attestation import Attestation
from attestkit.errors import CollateralExpiredError, FormatError, SignatureError
from tests.attestation.samples import mutations
from tests.vectors import HAVE_SHARED, data, needs_shared

NOW = datetime(2026, 8, 1, tzinfo=timezone.utc)
DAY = timedelta(days=1)


def real() -> list[bytes]:
    """Return the certificates of AMD and AWS that are at hand."""
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
def key(name: str) -> ec.EllipticCurvePrivateKey:
    """Return somebody's key."""
    del name  # tells keys apart
    return ec.generate_private_key(ec.SECP384R1())


def made(
    name: str,
    issuer: str,
    *extensions: x509.ExtensionType,
    until: datetime = NOW + DAY,
    signer: str = "",
) -> bytes:
    """Return a certificate with critical extensions; who signs it is called as the issuer."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]))
        .public_key(key(name).public_key())
        .serial_number(5)
        .not_valid_before(NOW - DAY)
        .not_valid_after(until)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(key(signer or issuer), SHA384()).public_bytes(Encoding.DER)


def authority(path_length: int | None = None) -> x509.BasicConstraints:
    """Return what makes a certificate an authority's."""
    return x509.BasicConstraints(ca=True, path_length=path_length)


def path(*certificates: bytes) -> list[tuple[str, PathCertificate]]:
    """Return a path, each certificate called by its place."""
    return [(f"#{at}", read_path_certificate(der)) for at, der in enumerate(certificates)]


@pytest.mark.filterwarnings("ignore:Parsed a serial number")  # those of AMD's chips are zero
@pytest.mark.parametrize("at", range(len(real())))
def test_real_certificates(at: int) -> None:
    """Every field is what `cryptography` finds."""
    der = real()[at]
    ours, theirs = read_path_certificate(der), x509.load_der_x509_certificate(der)
    spki = theirs.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert ours.der == der
    assert ours.signed == theirs.tbs_certificate_bytes
    assert ours.signature == theirs.signature
    assert ours.issuer == theirs.issuer.public_bytes()
    assert ours.subject == theirs.subject.public_bytes()
    assert ours.spki == spki
    assert ours.valid_from == theirs.not_valid_before_utc
    assert ours.valid_until == theirs.not_valid_after_utc
    assert list(ours.extensions) == [e.oid.dotted_string for e in theirs.extensions]
    assert ours.critical == {e.oid.dotted_string for e in theirs.extensions if e.critical}
    try:
        basic = theirs.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        basic = x509.BasicConstraints(ca=False, path_length=None)
    assert (ours.authority, ours.path_length) == (basic.ca, basic.path_length)
    try:
        usage = theirs.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        assert ours.key_usage is None
    else:
        assert ours.key_usage is not None
        assert (0 in ours.key_usage) == usage.digital_signature
        assert (5 in ours.key_usage) == usage.key_cert_sign
        assert (6 in ours.key_usage) == usage.crl_sign


def test_times_beyond_2049() -> None:
    """They have four digits of the year, and are read to the second."""
    until = datetime(2050, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    assert read_path_certificate(made("a", "a", until=until)).valid_until == until


@pytest.mark.parametrize("serial", [b"\0", b"\x80", b"\x7f" * 20])
def test_serial_numbers_do_not_matter(serial: bytes) -> None:
    """Zero, negative or long, they are no part of a path."""
    der = made("a", "a")
    at = der.index(b"\x02\x01\x05")
    changed = bytearray(der[:at] + bytes([2, len(serial)]) + serial + der[at + 3 :])
    for start in (0, der.index(b"\x30", 1)):  # both SEQUENCEs around it grow
        end = start + 2 + (der[start + 1] & 0x7F)
        size = int.from_bytes(der[start + 2 : end], "big") + len(serial) - 1
        changed[start + 2 : end] = size.to_bytes(end - start - 2, "big")
    assert read_path_certificate(bytes(changed)).subject == read_path_certificate(der).subject


def test_a_path() -> None:
    """Three links hold; without one, or in another order, nothing does."""
    root, middle = made("root", "root", authority()), made("middle", "root", authority(0))
    leaf = made("leaf", "middle")
    check_path(path(leaf, middle, root), NOW)
    for wrong, reason in (
        ((leaf, root), "untrusted_root"),
        ((leaf, middle, made("root", "root2", authority())), None),
        ((leaf, root, middle), "untrusted_root"),
        ((middle, leaf, root), "untrusted_root"),
        ((made("leaf", "other"), middle, root), "cert_bad_signature"),
        ((leaf, middle, middle), "untrusted_root"),
        ((middle, root), "cert_not_authority"),
    ):
        if reason is None:  # nobody looks at who signed the anchor
            check_path(path(*wrong), NOW)
            continue
        with pytest.raises(SignatureError) as caught:
            check_path(path(*wrong), NOW)
        assert caught.value.reason == reason


def test_names_count_beside_keys() -> None:
    """A signature of the authority's key is not enough where another issuer is named."""
    root = made("root", "root", authority())
    check_path(path(made("leaf", "root", signer="root"), root), NOW)
    with pytest.raises(SignatureError, match="#0 names another issuer than #1"):
        check_path(path(made("leaf", "another", signer="root"), root), NOW)


def test_the_length_of_a_path() -> None:
    """As many authorities may stand below as an authority says."""
    root = made("root", "root", authority(1))
    upper = made("upper", "root", authority())
    lower = made("lower", "upper", authority())
    leaf = made("leaf", "lower")
    with pytest.raises(SignatureError, match="#3 allows 1 authorities below it, there are 2"):
        check_path(path(leaf, lower, upper, root), NOW)
    check_path(path(leaf, lower, upper, made("root", "root", authority(2))), NOW)


def test_every_link_is_dated() -> None:
    """A certificate out of its time ends the path, the anchor's too."""
    late = NOW - timedelta(seconds=1)
    good = (made("leaf", "middle"), made("middle", "root", authority()))
    root = made("root", "root", authority())
    expired = (
        made("leaf", "middle", until=late),
        made("middle", "root", authority(), until=late),
        made("root", "root", authority(), until=late),
    )
    for at in range(3):
        chain = [*good, root]
        chain[at] = expired[at]
        with pytest.raises(CollateralExpiredError, match=f"#{at} is valid from 2026-07-31"):
            check_path(path(*chain), NOW)
        check_path(path(*chain), late)


def test_what_is_critical_must_be_known() -> None:
    """An extension that we do not handle ends the path wherever it is."""
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"")
    root = made("root", "root", authority(), unknown)
    with pytest.raises(SignatureError, match=r"#1 has a critical extension.*: 1\.2\.3\.4"):
        check_path(path(made("leaf", "root"), root), NOW)


def edited(find: bytes, replace: bytes) -> bytes:
    """Return a certificate with some bytes replaced by as many."""
    der = made("a", "a", authority(1))
    assert der.count(find) == 1
    assert len(find) == len(replace)
    return der.replace(find, replace)


@pytest.mark.parametrize(
    ("der", "text"),
    [
        (lambda: b"", "0x30 wanted"),
        (lambda: made("a", "a") + b"\0", "behind"),
        (lambda: edited(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x01"), "version"),
        (lambda: edited(b"260731000000Z", b"261331000000Z"), "no such time"),
        (lambda: edited(b"260731000000Z", b"2607310000+00"), "not a time"),
        (lambda: edited(b"\x01\x01\xff\x02\x01\x01", b"\x01\x01\x00\x02\x01\x01"), "path length"),
        (lambda: edited(b"\x01\x01\xff\x02\x01\x01", b"\x01\x01\xff\x02\x01\xff"), "path length"),
        (lambda: b"\x30\x84\x01\x00\x00\x00" + bytes(1 << 24), "over 16384"),
    ],
)
def test_certificates_that_are_none(der: Callable[[], bytes], text: str) -> None:
    """Each broken rule is named, under one reason."""
    with pytest.raises(FormatError, match=f"not an X.509 certificate.*{text}") as caught:
        read_path_certificate(der())
    assert caught.value.reason == "cert_malformed"


def test_an_algorithm_told_in_two_ways() -> None:
    """The algorithm outside the signed part must be the one inside."""
    der = made("a", "a")
    name = bytes.fromhex("06082a8648ce3d040303")
    at = der.rindex(name)
    assert at != der.index(name)
    with pytest.raises(FormatError, match="two ways"):
        read_path_certificate(der[:at] + name[:-1] + b"\2" + der[at + len(name) :])


def test_an_extension_that_is_there_twice() -> None:
    """Nobody can say which counts."""
    oids = [x509.ObjectIdentifier(f"1.2.3.{n}") for n in (4, 5)]
    der = made("a", "a", *(x509.UnrecognizedExtension(oid, b"") for oid in oids))
    four, five = b"\x06\x03\x2a\x03\x04", b"\x06\x03\x2a\x03\x05"
    with pytest.raises(FormatError, match=r"1\.2\.3\.4 is there twice"):
        read_path_certificate(der.replace(five, four))


@needs_shared
@pytest.mark.parametrize("which", [0, 1])
def test_every_byte_of_a_chain_counts(which: int) -> None:
    """A changed byte in leaf or authority ends a path to AMD's root."""
    chain = [
        data("snp/virtee-sev/vcek_milan.der"),
        *split_pem(data("snp/virtee-sev/cert_chain_milan").decode()),
    ]
    check_path(path(*chain), NOW)
    for at in range(len(chain[which])):
        changed = bytearray(chain[which])
        changed[at] ^= 1
        tampered = [*chain[:which], bytes(changed), *chain[which + 1 :]]
        with pytest.raises((FormatError, SignatureError)):
            check_path(path(*tampered), NOW)


@settings(deadline=None)  # machines are busy
@given(st.binary(max_size=60) | mutations(*real()))
def test_any_bytes(der: bytes) -> None:
    """Whatever comes, it is read or refused with our error."""
    try:
        found = read_path_certificate(der)
    except FormatError:
        return
    assert found.der == der
