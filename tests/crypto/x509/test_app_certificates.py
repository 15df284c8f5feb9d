"""Certificates match the agent's byte for byte, and are read completely or raise FormatError."""

import json
import pickle
from datetime import datetime, timezone
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import example, given
from hypothesis import strategies as st

from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.x509.app_certificates import (
    Certificate,
    certificate_pem,
    check_leaf_fields,
    issue_ca,
    issue_leaf,
    read_certificate,
)
from attestkit.errors import FormatError, UsageError
from tests.pki.certificates import name_of
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import data, needs_shared

CA_KEY, LEAF_KEY = (P256Key.from_scalar(bytes([n]) * 32) for n in (1, 2))
YEAR_1975, YEAR_2050 = 157_766_400, 2_524_608_000
ARC = "1.3.6.1.4.1.62397.1"
SAN, KU, EKU, SKI, BC = "2.5.29.17", "2.5.29.15", "2.5.29.37", "2.5.29.14", "2.5.29.19"
START, END = (datetime(year, 1, 1, tzinfo=timezone.utc) for year in (2020, 2030))
OCTETS_OF_300 = bytes.fromhex("0482012c") + b"a" * 300

CA = certificate_pem(
    issue_ca(
        key=CA_KEY,
        subject="App Root Cert",
        organisation="Org",
        path_length=1,
        not_before=YEAR_1975,
        not_after=YEAR_2050,
    )
)


def issue_test_leaf(**fields: Any) -> bytes:
    """Issue a leaf under CA with defaults for the fields not given."""
    defaults: dict[str, Any] = {
        "public_key": LEAF_KEY,
        "subject": "app",
        "not_before": YEAR_1975,
        "not_after": YEAR_2050,
        "ca_cert": CA,
        "ca_key": CA_KEY,
    }
    return issue_leaf(**{**defaults, **fields})


def issue_full_leaf() -> bytes:
    """Issue a leaf that has every field."""
    return issue_test_leaf(
        alt_names=["a.example", "10.0.0.1", "::1", "fe80::1%eth0"],
        server_auth=True,
        client_auth=True,
        extensions=[(f"{ARC}.9", b"info"), (f"{ARC}.4", b"app:custom"), (f"{ARC}.8", b"a" * 300)],
    )


def test_issue_leaf_extensions_match_der() -> None:
    """The standard extensions match; private extensions wrap their content in an OCTET STRING."""
    extensions = read_certificate(issue_full_leaf()).extensions
    assert extensions[KU].hex() == "03020780"
    assert extensions[EKU].hex() == "301406082b0601050507030106082b06010505070302"
    names = (
        b"\x82\x09a.example",
        b"\x87\x04\x0a\0\0\1",
        b"\x87\x10" + bytes(15) + b"\1",
        b"\x82\x0cfe80::1%eth0",
    )
    assert extensions[SAN] == b"\x30\x31" + b"".join(names)
    assert extensions[f"{ARC}.4"] == b"\x04\x0aapp:custom"
    assert extensions[f"{ARC}.8"] == OCTETS_OF_300


def test_issue_leaf_without_options_has_only_key_usage() -> None:
    """Without names, usages and extensions the only extension is key usage."""
    assert list(read_certificate(issue_test_leaf()).extensions) == [KU]
    assert read_certificate(issue_test_leaf(subject="")).subject == ""
    assert read_certificate(issue_test_leaf(client_auth=True)).extensions[EKU].hex() == (
        "300a06082b06010505070302"
    )


def test_issue_leaf_is_deterministic() -> None:
    """Equal input gives equal bytes; another key gives another serial number."""
    assert issue_full_leaf() == issue_full_leaf()
    assert issue_test_leaf(public_key=CA_KEY) != issue_test_leaf()


@needs_shared
def test_issue_ca_matches_agent() -> None:
    """Serial number, extensions and their order match the agent's CA certificate."""
    keys = json.loads(data("dstack/simulator/appkeys.json"))
    agent_certificate = read_certificate(keys["ca_cert"])
    key = P256Key.from_pem(keys["key_provider"]["None"]["key"])
    issued = read_certificate(
        issue_ca(key=key, subject="x", path_length=1, not_before=0, not_after=YEAR_2050)
    )
    assert issued.extensions == agent_certificate.extensions
    assert list(issued.extensions) == list(agent_certificate.extensions) == [KU, SKI, BC]
    assert issued.serial_number == agent_certificate.serial_number
    assert issued.spki_der == agent_certificate.spki_der


def test_issue_intermediate_is_signed_by_issuer() -> None:
    """An intermediate has the issuer's name and signature."""
    der = issue_ca(
        key=LEAF_KEY,
        subject="Dstack App CA",
        organisation="Dstack",
        path_length=0,
        not_before=YEAR_1975,
        not_after=YEAR_2050,
        extensions=[(f"{ARC}.4", b"app:ca")],
        issuer=(CA, CA_KEY),
    )
    found = read_certificate(der)
    assert found.issuer == "CN=App Root Cert,O=Org"
    assert found.subject == "CN=Dstack App CA,O=Dstack"
    # In DER the organisation comes first.
    assert found.subject_der.index(b"Dstack\x31") < found.subject_der.index(b"Dstack App CA")
    assert found.content(f"{ARC}.4") == b"app:ca"
    assert found.extensions[BC].hex() == "30060101ff020100"
    x509.load_der_x509_certificate(der).verify_directly_issued_by(
        x509.load_pem_x509_certificate(CA.encode())
    )


@needs_shared
def test_issue_leaf_copies_issuer_name_bytes() -> None:
    """The issuer of a leaf is the subject of the CA certificate, byte for byte."""
    keys = json.loads(data("dstack/simulator/appkeys.json"))
    key = P256Key.from_pem(keys["key_provider"]["None"]["key"])
    der = issue_test_leaf(ca_cert=keys["ca_cert"], ca_key=key)
    subject = read_certificate(keys["ca_cert"]).subject_der
    assert subject.hex() == (
        "3029310f300d060355040a0c0644737461636b3116301406035504030c0d44737461636b204b4d53204341"
    )
    assert der.count(subject) == 1


@every_case(
    "fields",
    [
        {"subject": "x" * 65},
        {"subject": "\ud800"},
        {"alt_names": ["bücher.example"]},
        {"alt_names": [5]},
        {"not_before": -(2**40)},
        {"not_after": 2**64 - 1},
        {"not_after": 253_402_300_800},
        {"not_before": YEAR_2050 + 1},
        {"extensions": [("9.9.9", b"")]},
        {"extensions": [("1.2.3", b""), ("1.2.3", b"")]},
        {"extensions": [(KU, b"")]},
        {"ca_key": LEAF_KEY},
    ],
)
def test_issue_leaf_of_invalid_field_is_usage_error(fields: dict[str, Any]) -> None:
    """Values that X.509 cannot contain, and a key that is not the issuer's, are rejected."""
    with pytest.raises(UsageError):
        issue_test_leaf(**fields)


def test_issue_leaf_at_limits_succeeds() -> None:
    """64 characters, the years 1950 and 9999, and a validity of one second are accepted."""
    found = read_certificate(
        issue_test_leaf(subject="x" * 64, not_before=-631_152_000, not_after=253_402_300_799)
    )
    assert found.subject == "CN=" + "x" * 64
    assert (found.valid_from.year, found.valid_until.year) == (1950, 9999)
    issue_test_leaf(not_before=5, not_after=5)


@pytest.mark.parametrize(
    "pem", ["", "text", "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"]
)
def test_issue_leaf_under_malformed_ca_fails(pem: str) -> None:
    """A malformed issuer is a FormatError."""
    with raises(FormatError, "syntax"):
        issue_test_leaf(ca_cert=pem)


@given(
    st.text(max_size=70), st.lists(st.text(max_size=20), max_size=3), st.integers(), st.integers()
)
@example("a", ["host1"], 0, 1)
def test_issue_leaf_of_arbitrary_request_reads_back_or_fails(
    subject: str, names: list[str], first: int, last: int
) -> None:
    """Any request gives a certificate that is read back, or a UsageError, as checked before."""
    fields: dict[str, Any] = {"subject": subject, "alt_names": names}
    fields |= {"not_before": first, "not_after": last}
    is_valid = True
    try:
        check_leaf_fields(**fields)
    except UsageError:
        is_valid = False
    try:
        der = issue_test_leaf(**fields)
    except UsageError:
        assert not is_valid
        return
    assert is_valid or first == last  # an empty period is refused, if a requester chooses it
    found = read_certificate(der)
    assert len(found.alt_names) == len(names)


def test_read_certificate_accepts_pem_and_der() -> None:
    """DER, PEM bytes and PEM text give equal certificates; of a chain the first is read."""
    der = issue_full_leaf()
    pem = certificate_pem(der)
    readings = [read_certificate(one) for one in (der, pem, pem.encode(), pem + CA, "\n" + pem)]
    assert {one.der for one in readings} == {der}
    assert len(set(readings)) == 1
    assert readings[0].pem == pem
    assert readings[0] != read_certificate(CA)
    assert readings[0] != der
    assert readings[0].spki_der == LEAF_KEY.spki_der
    assert readings[0].alt_names == ("a.example", "10.0.0.1", "::1", "fe80::1%eth0")
    assert read_certificate(CA).alt_names == ()
    assert f"{readings[0].serial_number:x}" in repr(readings[0])
    assert pickle.loads(pickle.dumps(readings[0])) == readings[0]


def test_extension_content_if_missing_is_none() -> None:
    """A missing extension gives None; content other than one OCTET STRING is an error."""
    certificate = read_certificate(issue_full_leaf())
    assert certificate.content(f"{ARC}.1") is None
    assert certificate.content(f"{ARC}.8") == b"a" * 300
    for oid in (KU, SAN):
        with raises(FormatError, "syntax"):
            certificate.content(oid)


@every_case(
    "value",
    [
        b"",
        b"\x04",
        b"\x04\x02a",
        b"\x04\x01ab",
        b"\x04\x82",
        b"\x04\x84\xff\xff\xff\xff",
        b"\x0c\x00",
    ],
)
def test_extension_content_if_malformed_fails(value: bytes) -> None:
    """A truncated or overlong OCTET STRING is a FormatError."""
    builder = _certificate_builder().add_extension(
        x509.UnrecognizedExtension(x509.ObjectIdentifier(f"{ARC}.8"), value), critical=False
    )
    certificate = _signed(builder)
    with pytest.raises(FormatError):
        certificate.content(f"{ARC}.8")


@pytest.mark.parametrize("date", [b"20500101000000Z", b"20500101000001Z"])
def test_read_certificate_with_year_zero_fails(date: bytes) -> None:
    """X.509 can express the year 0 in either date, Python cannot."""
    der = issue_test_leaf(not_before=YEAR_2050, not_after=YEAR_2050 + 1)
    assert der.count(date) == 1
    with raises(FormatError, "syntax"):
        read_certificate(der.replace(date, b"0000" + date[4:]))


def test_read_certificate_of_other_curve_returns_its_key() -> None:
    """The key of another curve is returned unchanged."""
    private = ec.derive_private_key(7, ec.SECP384R1())
    certificate = _signed(_certificate_builder().public_key(private.public_key()))
    assert certificate.spki_der.hex().startswith("3076301006072a8648ce3d020106052b81040022")


def _certificate_builder() -> x509.CertificateBuilder:
    """Return a builder of a certificate without key, to be completed by the test."""
    return x509.CertificateBuilder(name_of("x"), name_of("x"), None, 1, START, END)


def _signed(builder: x509.CertificateBuilder) -> Certificate:
    if builder._public_key is None:
        builder = builder.public_key(LEAF_KEY.private.public_key())
    signed = builder.sign(CA_KEY.private, SHA256())
    return read_certificate(certificate_pem(signed.public_bytes(Encoding.DER)))
