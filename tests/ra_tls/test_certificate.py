"""Certificates carry evidence about their own key: made as agents make them, read with distrust."""

import gzip
import hashlib
import json
import pickle
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

import cbor2
import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit import ra_tls
from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.x509.app_certificates import certificate_pem, issue_leaf, read_certificate
from attestkit.attestation import AppInfo, Attestation
from attestkit.attestation.wire.evidence_parts import Evidence, NitroEnclave, NitroTpm, SevSnp, Tdx
from attestkit.errors import AttestKitError, ConfigError, FormatError, UsageError, VerificationError
from attestkit.keys import AppKeys
from attestkit.ra_tls.certificate import _event_log_text
from attestkit.report_data import ReportData
from tests.attestation.samples import FIXTURE, STACK, mutations, refused
from tests.vectors import data, load, needs_shared

VECTORS: dict[str, Any] = load("ratls.json")
NOW = 1_700_000_000.5
DAY = 86_400
KEYS = AppKeys.from_seed(b"\1" * 32)
KEY = P256Key.from_scalar(b"\7" * 32)
OCTETS = bytes(range(32))


def attest(report_data: bytes) -> Attestation:
    """Return the captured evidence with its report data replaced."""
    return Attestation.from_bytes(FIXTURE).with_report_data(report_data)


def issue(**changes: Any) -> ra_tls.Issued:
    """Issue a certificate of the test's authority."""
    assert KEYS.ca_key is not None
    fields: dict[str, Any] = {
        "subject": "app",
        "attest": attest,
        "ca_cert": KEYS.ca_cert,
        "ca_key": KEYS.ca_key,
        "now": lambda: NOW,
        "random": lambda size: OCTETS[:size],
    }
    return ra_tls.issue(**(fields | changes))


def leaf(**changes: Any) -> x509.Certificate:
    """Issue a certificate and read it with another library."""
    return x509.load_pem_x509_certificate(issue(**changes).certificate_chain[0].encode())


def with_extensions(extensions: Iterable[tuple[str, bytes]], key: P256Key = KEY) -> bytes:
    """Return a certificate for `key` with these private extensions."""
    assert KEYS.ca_key is not None
    return issue_leaf(
        public_key=key,
        subject="",
        not_before=0,
        not_after=DAY,
        extensions=extensions,
        ca_cert=KEYS.ca_cert,
        ca_key=KEYS.ca_key,
    )


def bound(key: P256Key = KEY) -> Attestation:
    """Return evidence about a key."""
    return attest(ReportData.bind("ratls-cert", key.spki_der))


def full_log() -> str:
    """Return the capture's log as older agents wrote it."""
    return Attestation.from_bytes(FIXTURE).event_log.to_json()


def compressed(plain: bytes) -> bytes:
    """Return the compressed form of an event log."""
    return b"ELGZv1" + gzip.compress(plain, mtime=0)


def oids(certificate: x509.Certificate) -> list[str]:
    """Return the extensions in their order."""
    return [extension.oid.dotted_string for extension in certificate.extensions]


@needs_shared
@pytest.mark.parametrize("row", VECTORS.get("oids", []), ids=lambda row: row["name"])
def test_the_arc_is_pinned(row: dict[str, str]) -> None:
    """Names and numbers of the extensions are the listed ones, and stand so in certificates."""
    oid = getattr(ra_tls, f"OID_{row['name'].upper()}")
    assert oid == row["oid"]
    assert bytes.fromhex(row["der"]) in with_extensions([(oid, b"x")])


@needs_shared
@pytest.mark.parametrize("row", VECTORS.get("extension_values", []), ids=lambda row: row["name"])
def test_extension_values_are_pinned(row: dict[str, Any]) -> None:
    """Contents are wrapped in an OCTET STRING of their own, byte for byte."""
    if "content" in row:
        content = bytes.fromhex(row["content"])
    else:
        content = Attestation.from_bytes(FIXTURE).stripped().to_bytes()
        assert len(content) == row["content_length"]
        assert hashlib.sha256(content).hexdigest() == row["content_sha256"]
    certificate = read_certificate(with_extensions([(ra_tls.OID_ATTESTATION, content)]))
    value = certificate.extensions[ra_tls.OID_ATTESTATION]
    assert certificate.content(ra_tls.OID_ATTESTATION) == content
    if "extn_value" in row:
        assert value.hex() == row["extn_value"]
    else:
        assert value.hex().startswith(row["extn_value_prefix"])
        assert hashlib.sha256(value).hexdigest() == row["extn_value_sha256"]


@needs_shared
def test_report_data_is_pinned() -> None:
    """The evidence is asked for over the listed hash of the key."""
    row, asked = VECTORS["report_data"], []

    class Key(P256Key):
        """A key whose public half is the listed one."""

        spki_der = bytes.fromhex(row["spki_der"])

    def attest_and_note(report_data: bytes) -> Attestation:
        asked.append(report_data.hex())
        return attest(report_data)

    issue(key=Key.from_scalar(b"\7" * 32), attest=attest_and_note)
    assert asked == [row["report_data"]]


@needs_shared
def test_a_full_certificate_is_read_back() -> None:
    """Evidence, app info and usage are in the certificate, and `read` returns the evidence."""
    issued = issue(usage_ra_tls=True, with_app_info=True, server_auth=True, client_auth=True)
    assert issued.certificate_chain[1] == KEYS.ca_cert
    key = P256Key.from_pem(issued.key_pem)
    for form in (issued.certificate_chain[0], issued.certificate_chain[0].encode()):
        assert ra_tls.read(form) == bound(key).stripped()
    certificate = read_certificate(issued.certificate_chain[0])
    assert ra_tls.read(certificate.der) == bound(key).stripped()
    assert certificate.spki_der == key.spki_der
    assert certificate.content(ra_tls.OID_CERT_USAGE) == b"app:custom"
    app_info = certificate.content(ra_tls.OID_APP_INFO)
    assert app_info is not None
    assert AppInfo.from_msgpack(app_info) == Attestation.from_bytes(FIXTURE).app_info()
    assert certificate.content(ra_tls.OID_ATTESTATION) == bound(key).stripped().to_bytes()


@needs_shared
def test_the_profile_is_the_agents() -> None:
    """Names, serial, validity, usages and the order of extensions are as documented."""
    found = leaf(
        key=KEY,
        alt_names=["a.example", "10.0.0.1", "::1"],
        server_auth=True,
        client_auth=True,
        usage_ra_tls=True,
        with_app_info=True,
    )
    serial = hashlib.sha256(b"\4" + KEY.public_point).digest()[:20]
    assert found.serial_number == int.from_bytes(serial, "big") & (1 << 159) - 1
    assert found.subject.rfc4514_string() == "CN=app"
    assert found.not_valid_before_utc == datetime(1975, 1, 1, tzinfo=timezone.utc)
    until = datetime.fromtimestamp(int(NOW), timezone.utc) + timedelta(days=3650)
    assert found.not_valid_after_utc == until
    own = [ra_tls.OID_APP_INFO, ra_tls.OID_CERT_USAGE, ra_tls.OID_ATTESTATION]
    assert oids(found) == ["2.5.29.17", "2.5.29.15", "2.5.29.37", *own]
    assert [extension.critical for extension in found.extensions] == [
        oid == "2.5.29.15" for oid in oids(found)
    ]
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["a.example"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.1", "::1"]
    usages = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usages) == [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    authority = x509.load_pem_x509_certificate(KEYS.ca_cert.encode())
    found.verify_directly_issued_by(authority)


@needs_shared
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, []),
        ({"usage_ra_tls": True}, [ra_tls.OID_ATTESTATION]),
        ({"with_app_info": True}, [ra_tls.OID_APP_INFO]),
        ({"client_auth": True}, ["2.5.29.37"]),
        ({"alt_names": ["x"]}, ["2.5.29.17"]),
    ],
)
def test_only_what_is_asked_for_goes_in(fields: dict[str, Any], expected: Sequence[str]) -> None:
    """Besides key usage and the usage text there is nothing that was not asked for."""
    assert set(oids(leaf(**fields))) == {"2.5.29.15", ra_tls.OID_CERT_USAGE, *expected}


@needs_shared
def test_evidence_is_needed_in_any_case() -> None:
    """Without evidence there is no certificate, even one that would not carry it."""

    def refuse(_: bytes) -> Attestation:
        raise VerificationError("no evidence today")

    with pytest.raises(VerificationError, match="no evidence today"):
        issue(attest=refuse)


@needs_shared
@pytest.mark.parametrize(
    ("first", "last"), [(0, 0), (None, None), (DAY, 0), (0, 2 * DAY + 157_766_400), (DAY, 2 * DAY)]
)
def test_zero_means_unset(first: int | None, last: int | None) -> None:
    """Each end of the validity is the default if it is 0 or None, by itself."""
    found = leaf(not_before=first, not_after=last)
    assert found.not_valid_before_utc.timestamp() == (first or 157_766_400)
    assert found.not_valid_after_utc.timestamp() == (last or int(NOW) + 3650 * DAY)


@needs_shared
@pytest.mark.parametrize(
    "fields",
    [
        {"not_before": 5, "not_after": 5},
        {"not_before": 6, "not_after": 5},
        {"not_after": 2**64 - 1},
        {"not_before": 2**63},
        {"not_after": 5},  # before 1975, where it would start
        {"subject": "x" * 65},
        {"alt_names": ["ü"]},
        {"ca_key": KEY},
    ],
)
def test_what_no_certificate_can_say_is_refused(fields: dict[str, Any]) -> None:
    """Wrong times, names and authorities are the caller's mistake."""
    with pytest.raises(UsageError):
        issue(**fields)
    if fields.get("not_before") in (5, 6):
        with pytest.raises(UsageError, match=r"^not_before must be earlier than not_after$"):
            issue(**fields)


@needs_shared
@pytest.mark.parametrize("now", [-1.0, -2.0e8, -1.0e10])
def test_a_clock_before_1970_is_named(now: float) -> None:
    """It is not the caller's mistake, who need not know when a certificate ends."""
    for fields in ({}, {"not_before": NOW}):
        with pytest.raises(ConfigError, match=f"^the clock says {int(now)} seconds since 1970, "):
            issue(now=lambda: now, **fields)
    end = int(NOW)
    assert leaf(now=lambda: now, not_after=end).not_valid_after_utc.timestamp() == end


@needs_shared
def test_a_new_key_comes_from_the_random_bytes() -> None:
    """The same bytes give the same key, others another; a key handed in is used."""
    one, again, other = issue(), issue(), issue(random=lambda size: bytes(size - 1) + b"\1")
    assert one == again
    assert one.key_pem != other.key_pem
    assert P256Key.from_pem(issue(key=KEY).key_pem) == KEY


@needs_shared
def test_the_key_is_not_shown() -> None:
    """What is printed of an issued key holds no secret."""
    issued = issue()
    assert "PRIVATE" not in repr(issued)
    assert "PRIVATE" not in str([issued])


@needs_shared
def test_older_certificates_are_read() -> None:
    """A quote and an event log apart are evidence, whether the log is compressed or not."""
    quote = bound().quote
    assert quote is not None
    log = full_log().encode()
    for content in (log, compressed(log)):
        der = with_extensions([(ra_tls.OID_TDX_QUOTE, quote.raw), (ra_tls.OID_EVENT_LOG, content)])
        found = ra_tls.read(der)
        assert found.quote == quote
        assert found.event_log == bound().event_log
        assert found.app_info().app_id == bound().app_info().app_id
        assert found.config == ""


@needs_shared
def test_the_new_extension_wins() -> None:
    """Where both kinds are present, the older one is not even looked at."""
    own = [(ra_tls.OID_TDX_QUOTE, b"x"), (ra_tls.OID_ATTESTATION, bound().to_bytes())]
    assert ra_tls.read(with_extensions(own)) == bound()


@needs_shared
def test_the_compressed_log_of_the_vectors() -> None:
    """The listed stream opens to the listed text."""
    row = VECTORS["gzip_event_log"]
    assert bytes.fromhex(row["magic"]) == b"ELGZv1"
    plain = bytes.fromhex(row["plain"]).decode()
    assert _event_log_text(bytes.fromhex(row["example"])) == plain
    assert _event_log_text(compressed(plain.encode())) == plain
    assert row["max_decompressed"] == 16_384


def test_compressed_logs_are_limited() -> None:
    """16 KiB are taken and a byte more is not, however small it is compressed."""
    assert len(_event_log_text(compressed(b" " * 16_384))) == 16_384
    for size in (16_385, 50_000_000):
        with pytest.raises(FormatError) as caught:
            _event_log_text(compressed(b" " * size))
        assert str(caught.value) == "event log extension too large (>16384 bytes)"


@pytest.mark.parametrize(
    "content",
    [
        b"ELGZv1",
        b"ELGZv1x",
        compressed(b"[]")[:-1],
        compressed(b"[]") + b"\0",
        compressed(b"[]") + gzip.compress(b"[]", mtime=0),
        compressed(b"[]")[:-8] + bytes(8),
        compressed(b"\xff"),
        b"\xff",
    ],
)
def test_other_logs_are_refused(content: bytes) -> None:
    """One whole gzip stream of UTF-8, or plain UTF-8; anything else is a FormatError."""
    with pytest.raises(FormatError):
        _event_log_text(content)


@needs_shared
@pytest.mark.parametrize(
    ("extensions", "error", "text"),
    [
        ([], VerificationError, "RA-TLS attestation extension missing"),
        (
            [(ra_tls.OID_EVENT_LOG, b"[]")],
            VerificationError,
            "RA-TLS attestation extension missing",
        ),
        ([(ra_tls.OID_TDX_QUOTE, b"")], VerificationError, "TDX event log missing"),
        ([(ra_tls.OID_ATTESTATION, b"")], FormatError, "Empty attestation bytes"),
        ([(ra_tls.OID_ATTESTATION, b"\1")], FormatError, "Unknown attestation wire format"),
        ([(ra_tls.OID_ATTESTATION, FIXTURE)], VerificationError, "report data mismatch"),
    ],
)
def test_certificates_without_good_evidence_are_refused(
    extensions: list[tuple[str, bytes]], error: type[AttestKitError], text: str
) -> None:
    """Missing, malformed and foreign evidence is refused with its text."""
    with pytest.raises(error) as caught:
        ra_tls.read(with_extensions(extensions))
    assert str(caught.value) == text


@needs_shared
def test_evidence_of_another_key_is_refused() -> None:
    """Evidence copied from one certificate into another, whole or in its unsigned half, fails."""
    other = P256Key.from_scalar(b"\x08" * 32)
    copied = with_extensions([(ra_tls.OID_ATTESTATION, bound().to_bytes())], other)
    with pytest.raises(VerificationError, match=r"^report data mismatch$"):
        ra_tls.read(copied)
    platform, stack = bound().evidence
    claimed = stack._replace(report_data=ReportData.bind("ratls-cert", other.spki_der))
    half = Attestation(Evidence(platform, claimed)).to_bytes()
    with pytest.raises(VerificationError, match=r"^report data mismatch$"):
        ra_tls.read(with_extensions([(ra_tls.OID_ATTESTATION, half)], other))


@needs_shared
def test_other_platforms_are_bound_too() -> None:
    """An SNP report's own report data counts, not what stands beside the report."""
    guest = Attestation.from_bytes(data("dstack/dstack-attest/sev_snp_attestation.bin"))
    right = ReportData.bind("ratls-cert", KEY.spki_der)
    good = guest.with_report_data(right)
    assert ra_tls.read(with_extensions([(ra_tls.OID_ATTESTATION, good.to_bytes())])) == good
    platform, stack = good.evidence
    other = SevSnp(*platform).with_report_data(bytes(64))
    wrong = Attestation(Evidence(other, stack)).to_bytes()
    with pytest.raises(VerificationError, match=r"^report data mismatch$"):
        ra_tls.read(with_extensions([(ra_tls.OID_ATTESTATION, wrong)]))


@needs_shared
@pytest.mark.parametrize("kind", [NitroEnclave, NitroTpm])
def test_nitro_documents_are_bound_too(kind: type[NitroEnclave | NitroTpm]) -> None:
    """The user data that Nitro signed counts, not what stands beside the document."""
    right = ReportData.bind("ratls-cert", KEY.spki_der)

    def certified(user_data: bytes) -> bytes:
        payload = cbor2.dumps({"module_id": "m", "pcrs": {}, "user_data": user_data})
        platform = kind(cbor2.dumps([b"", {}, payload, b""]))
        evidence = Attestation(Evidence(platform, STACK._replace(report_data=right)))
        return with_extensions([(ra_tls.OID_ATTESTATION, evidence.to_bytes())])

    assert ra_tls.read(certified(right)).report_data == right
    for other in (bytes(64), b"", right[:-1]):
        with pytest.raises(VerificationError, match=r"^report data mismatch$"):
            ra_tls.read(certified(other))


@needs_shared
def test_an_extension_twice_is_refused() -> None:
    """Two of a kind could be read differently by two readers."""
    third = f"{ra_tls.OID_ATTESTATION[:-1]}3"
    own = [(ra_tls.OID_ATTESTATION, bound().to_bytes()), (third, b"")]
    der = with_extensions(own)
    tail = bytes.fromhex("060a2b0601040183e73d01")
    doubled = der.replace(tail + b"\3", tail + b"\x08")
    assert doubled != der
    with pytest.raises(FormatError):
        ra_tls.read(doubled)


@needs_shared
@pytest.mark.parametrize("form", [b"", b"x", "", "-----BEGIN CERTIFICATE-----", b"\xff" * 50])
def test_what_is_no_certificate_is_refused(form: bytes | str) -> None:
    """Anything else is a FormatError."""
    with pytest.raises(FormatError):
        ra_tls.read(form)


@needs_shared
def test_the_first_of_a_chain_is_read() -> None:
    """A whole chain in PEM may be handed in."""
    chain = "".join(issue(usage_ra_tls=True, key=KEY).certificate_chain)
    assert ra_tls.read(chain) == bound().stripped()
    assert Tdx(*ra_tls.read(chain).evidence.platform).event_log


def certificate() -> bytes:
    """Return a certificate with evidence, or nothing where the capture is missing."""
    own = [(ra_tls.OID_ATTESTATION, bound().stripped().to_bytes())] if FIXTURE else []
    return with_extensions(own)


@settings(deadline=None)  # machines are busy
@given(mutations(certificate()) | st.binary(max_size=50))
def test_mutated_certificates_raise_only_our_errors(der: bytes) -> None:
    """A certificate with a few bytes changed is read or refused."""
    refused(ra_tls.read, der)


@needs_shared
def test_a_certificate_cut_anywhere_is_refused() -> None:
    """No prefix of a certificate is one."""
    der = certificate()
    for size in range(0, len(der), 13):
        with pytest.raises(FormatError):
            ra_tls.read(der[:size])
    assert ra_tls.read(certificate_pem(der)) == bound().stripped()


@needs_shared
def test_the_clock_and_chance_are_the_systems() -> None:
    """Unless they are handed in: the certificate ends ten years from now, each key is another."""
    assert KEYS.ca_key is not None
    ours = [
        ra_tls.issue(subject="app", attest=attest, ca_cert=KEYS.ca_cert, ca_key=KEYS.ca_key)
        for _ in range(2)
    ]
    assert ours[0].key_pem != ours[1].key_pem
    last = x509.load_pem_x509_certificate(ours[0].certificate_chain[0].encode())
    until = last.not_valid_after_utc - datetime.now(timezone.utc)
    assert timedelta(3649) < until < timedelta(3651)


def test_issued_pickles() -> None:
    """Key and chain go through pickle, for worker processes; so does the JSON of app info."""
    issued = issue(key=KEY)
    assert pickle.loads(pickle.dumps(issued)) == issued
    assert json.loads(json.dumps(bound().app_info().to_dict()))["app_id"] != ""
