"""SGX PKI certificates and CRLs are written byte-exactly, and their dates are read back."""

import warnings
from datetime import datetime, timedelta, timezone

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.pem import encode_pem, split_pem
from attestkit._crypto.x509.simulated.certificate_encoder import Window
from attestkit._crypto.x509.simulated.sgx_certificates import (
    Authority,
    SgxPlatform,
    chain_window,
    crl_window,
    issue_certificate,
    issue_crl,
    sgx_extension,
)
from attestkit.errors import FormatError, UsageError
from tests.pki.certificates import key_usage
from tests.raising import raises

PLATFORM = SgxPlatform(
    ppid=bytes(range(16)),
    components=bytes([127, 128, 255, *range(13)]),
    pcesvn=0x80FF,
    cpusvn=bytes([127, 128, 255, *range(13)]),
    pceid=b"\x01\x02",
    fmspc=b"\x0a\x0b\x0c\x0d\x0e\x0f",
    sgx_type=2,
    instance_id=bytes(range(16, 32)),
    dynamic_platform=True,
    cached_keys=False,
    smt_enabled=True,
)
WINDOW = Window(
    datetime(2026, 9, 20, tzinfo=timezone.utc), datetime(2026, 10, 20, tzinfo=timezone.utc)
)
ROOT = Authority("Intel SGX Root CA", P256Key.from_scalar(bytes(31) + b"\x01"))
LEAF = Authority("Intel SGX PCK Certificate", P256Key.from_scalar(bytes(31) + b"\x02"))


SGX = sgx_extension(PLATFORM)


def make_certificate(window: Window = WINDOW, sgx: bytes | None = SGX) -> bytes:
    """Return a leaf certificate of the fixed keys."""
    return issue_certificate(
        LEAF,
        ROOT,
        serial=0x1234,
        validity=window,
        crl_url="https://crl.invalid/x",
        path_length=None,
        sgx=sgx,
    )


def test_issue_certificate_before_1950_is_usage_error() -> None:
    """UTCTime has two-digit years: 1949 would be read as 2049."""
    first = datetime(1950, 1, 1, tzinfo=timezone.utc)
    assert crl_window(issue_crl(ROOT, window=Window(first, first), number=1)).start == first
    for early in (first - timedelta(seconds=1), datetime(1, 1, 1, tzinfo=timezone.utc)):
        for window in (Window(early, first), Window(first, early)):
            with raises(UsageError, "out_of_range"):
                make_certificate(window)
            with raises(UsageError, "out_of_range"):
                issue_crl(ROOT, window=window, number=1)


def test_sgx_extension_integers_are_minimal() -> None:
    """An SVN of 128 or more has a leading zero octet, a smaller one has none."""
    made = sgx_extension(PLATFORM)
    head = bytes.fromhex("2a864886f84d010d01")
    assert head + b"\x02\x01" + b"\x02\x01\x7f" in made
    assert head + b"\x02\x02" + b"\x02\x02\x00\x80" in made
    assert head + b"\x02\x03" + b"\x02\x02\x00\xff" in made
    assert head + b"\x02\x11" + b"\x02\x03\x00\x80\xff" in made
    assert head + b"\x05" + b"\x0a\x01\x02" in made
    flags = [made[made.index(head + bytes([7, n])) + 13] for n in (1, 2, 3)]
    assert flags == [0xFF, 0, 0xFF]


def test_chain_window_is_intersection() -> None:
    """The validity of a chain is the intersection of its certificates' validities."""
    later = Window(WINDOW.start.replace(day=25), WINDOW.end.replace(day=25))
    pem = "".join(encode_pem("CERTIFICATE", make_certificate(window)) for window in (WINDOW, later))
    assert len(split_pem(pem)) == 2
    assert chain_window(pem) == Window(later.start, WINDOW.end)


def test_chain_window_with_library_warning_as_error_fails() -> None:
    """The library warns of a non-positive serial number; as an error, that is a FormatError."""
    original = make_certificate()
    at = original.index(b"\x02\x01\x02") + 3  # the serial number follows the version
    changed = original[: at + 2] + bytes([0x80 | original[at + 2]]) + original[at + 3 :]
    assert original[at : at + 4] == b"\x02\x02\x12\x34"
    chain = encode_pem("CERTIFICATE", changed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with raises(FormatError, "syntax"):
            chain_window(chain)
        warnings.simplefilter("ignore")
        assert chain_window(chain) == WINDOW


def _build_with_cryptography(
    serial: int, window: Window, crl_url: str, path_length: int | None, sgx: bytes | None
) -> bytes:
    """Return the certificate of ROOT for LEAF as `cryptography` builds it."""
    authority = path_length is not None
    signing = ("key_cert_sign", "crl_sign")
    usage = key_usage(*(signing if authority else ("digital_signature", "content_commitment")))
    issuer, public = ROOT.key.private.public_key(), LEAF.key.private.public_key()
    names = [x509.UniformResourceIdentifier(crl_url)]
    builder = (
        x509.CertificateBuilder(_name(ROOT.name), _name(LEAF.name), public, serial, *window)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False)
        .add_extension(
            x509.CRLDistributionPoints([x509.DistributionPoint(names, None, None, None)]),
            critical=False,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(usage, critical=True)
        .add_extension(x509.BasicConstraints(authority, path_length), critical=True)
    )
    if sgx is not None:
        oid = x509.ObjectIdentifier("1.2.840.113741.1.13.1")
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, sgx), critical=False)
    signed = builder.sign(ROOT.key.private, SHA256(), ecdsa_deterministic=True)
    return signed.public_bytes(Encoding.DER)


def _name(common_name: str) -> x509.Name:
    parts = (
        (NameOID.COMMON_NAME, common_name),
        (NameOID.ORGANIZATION_NAME, "Intel Corporation"),
        (NameOID.LOCALITY_NAME, "Santa Clara"),
        (NameOID.STATE_OR_PROVINCE_NAME, "CA"),
        (NameOID.COUNTRY_NAME, "US"),
    )
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in parts])


MOMENTS = st.datetimes(datetime.fromisoformat("1950-01-01"), datetime.fromisoformat("9998-01-01"))


@given(
    serial=st.integers(1, 2**159 - 1),
    start=MOMENTS.map(lambda moment: moment.replace(microsecond=0, tzinfo=timezone.utc)),
    path=st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=300),
    path_length=st.none() | st.integers(0, 300),
    sgx=st.none() | st.binary(max_size=70_000),
)
def test_issue_certificate_equals_cryptography(
    serial: int, start: datetime, path: str, path_length: int | None, sgx: bytes | None
) -> None:
    """The DER writer and the builder of `cryptography` give equal bytes."""
    window = Window(start, start + timedelta(days=200))
    url = f"https://crl.invalid/{path}"
    made = issue_certificate(
        LEAF,
        ROOT,
        serial=serial,
        validity=window,
        crl_url=url,
        path_length=path_length,
        sgx=sgx,
    )
    assert made == _build_with_cryptography(serial, window, url, path_length, sgx)


@given(
    number=st.integers(0, 2**70),
    revoked=st.lists(st.integers(1, 2**159 - 1), max_size=20),
    start=MOMENTS.map(lambda moment: moment.replace(microsecond=0, tzinfo=timezone.utc)),
)
def test_issue_crl_equals_cryptography(number: int, revoked: list[int], start: datetime) -> None:
    """CRLs match as well, including empty ones."""
    window = Window(start, start + timedelta(days=200))
    issuer = ROOT.key.private.public_key()
    builder = (
        x509.CertificateRevocationListBuilder(_name(ROOT.name), *window)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False)
    )
    for serial in revoked:
        entry = x509.RevokedCertificateBuilder(serial, start).add_extension(
            x509.CRLReason(x509.ReasonFlags.unspecified), critical=False
        )
        builder = builder.add_revoked_certificate(entry.build())
    signed = builder.sign(ROOT.key.private, SHA256(), ecdsa_deterministic=True)
    made = issue_crl(ROOT, window=window, number=number, revoked=revoked)
    assert made == signed.public_bytes(Encoding.DER)
