"""RA-TLS certificates carry evidence bound to their key: issued like the agents', read strictly."""

import gzip
import hashlib
import pickle
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from attestkit import ra_tls
from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.x509.app_certificates import issue_leaf, read_certificate
from attestkit.attestation import AppInfo, Attestation
from attestkit.attestation.wire.evidence_parts import (
    Evidence,
    NitroEnclave,
    NitroTpm,
    SevSnp,
    with_report_data,
)
from attestkit.errors import AttestKitError, ConfigError, FormatError, UsageError, VerificationError
from attestkit.keys import AppKeys
from attestkit.ra_tls.certificate import _event_log_text
from attestkit.report_data import ReportData
from tests.attestation.samples import FIXTURE, STACK
from tests.raising import raises
from tests.runner.cases import every_case
from tests.samples.nitro_documents import document
from tests.vectors import data, load, needs_shared

VECTORS: dict[str, Any] = load("ratls.json")
NOW = 1_700_000_000.5
DAY = 86_400
KEYS = AppKeys.from_seed(b"\1" * 32)
KEY = P256Key.from_scalar(b"\7" * 32)
OCTETS = bytes(range(32))


def attest(report_data: bytes) -> Attestation:
    """Return the captured evidence with other report data."""
    return Attestation.from_bytes(FIXTURE).with_report_data(report_data)


def issue_test(**changes: Any) -> ra_tls.Issued:
    """Issue a certificate of the test's CA."""
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


def issue_and_parse(**changes: Any) -> x509.Certificate:
    """Issue a certificate and read it with `cryptography`."""
    return x509.load_pem_x509_certificate(issue_test(**changes).certificate_chain[0].encode())


def make_certificate(extensions: Iterable[tuple[str, bytes]], key: P256Key = KEY) -> bytes:
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


def bound_evidence(key: P256Key = KEY) -> Attestation:
    """Return evidence bound to a key."""
    return attest(report_data=ReportData.bind("ratls-cert", key.spki_der))


def full_log() -> str:
    """Return the capture's log in the format of older agents."""
    return Attestation.from_bytes(FIXTURE).event_log.to_json()


def compress(plain: bytes) -> bytes:
    """Return the compressed encoding of an event log."""
    return b"ELGZv1" + gzip.compress(plain, mtime=0)


def oids_of(certificate: x509.Certificate) -> list[str]:
    """Return the extension OIDs in order."""
    return [extension.oid.dotted_string for extension in certificate.extensions]


@needs_shared
@pytest.mark.parametrize("row", VECTORS.get("oids", []), ids=lambda row: row["name"])
def test_extension_oids_match_vectors(row: dict[str, str]) -> None:
    """Names and OIDs of the extensions match, and are used in certificates."""
    oid = getattr(ra_tls, f"OID_{row['name'].upper()}")
    assert oid == row["oid"]
    assert bytes.fromhex(row["der"]) in make_certificate([(oid, b"x")])


@needs_shared
@pytest.mark.parametrize("row", VECTORS.get("extension_values", []), ids=lambda row: row["name"])
def test_extension_values_match_vectors(row: dict[str, Any]) -> None:
    """Contents are wrapped in an OCTET STRING, byte for byte."""
    if "content" in row:
        content = bytes.fromhex(row["content"])
    else:
        content = Attestation.from_bytes(FIXTURE).stripped().to_bytes()
        assert len(content) == row["content_length"]
        assert hashlib.sha256(content).hexdigest() == row["content_sha256"]
    certificate = read_certificate(make_certificate([(ra_tls.OID_ATTESTATION, content)]))
    value = certificate.extensions[ra_tls.OID_ATTESTATION]
    assert certificate.content(ra_tls.OID_ATTESTATION) == content
    if "extn_value" in row:
        assert value.hex() == row["extn_value"]
    else:
        assert value.hex().startswith(row["extn_value_prefix"])
        assert hashlib.sha256(value).hexdigest() == row["extn_value_sha256"]


@needs_shared
def test_report_data_of_key_matches_vector() -> None:
    """Evidence is requested for the expected hash of the key."""
    row, requested = VECTORS["report_data"], []

    class FixedKey(P256Key):
        """A key with the public half of the vector."""

        spki_der = bytes.fromhex(row["spki_der"])

    def attest_and_record(*, report_data: bytes) -> Attestation:
        requested.append(report_data.hex())
        return attest(report_data=report_data)

    issue_test(key=FixedKey.from_scalar(b"\7" * 32), attest=attest_and_record)
    assert requested == [row["report_data"]]


@needs_shared
def test_certificate_with_all_fields_round_trips() -> None:
    """The certificate contains evidence, app info and usage, and `read` returns the evidence."""
    issued = issue_test(usage_ra_tls=True, with_app_info=True, server_auth=True, client_auth=True)
    assert issued.certificate_chain[1] == KEYS.ca_cert
    key = P256Key.from_pem(issued.key_pem)
    for form in (issued.certificate_chain[0], issued.certificate_chain[0].encode()):
        assert ra_tls.read(form) == bound_evidence(key).stripped()
    certificate = read_certificate(issued.certificate_chain[0])
    assert ra_tls.read(certificate.der) == bound_evidence(key).stripped()
    assert certificate.spki_der == key.spki_der
    assert certificate.content(ra_tls.OID_CERT_USAGE) == b"app:custom"
    app_info = certificate.content(ra_tls.OID_APP_INFO)
    assert app_info is not None
    assert AppInfo.from_msgpack(app_info) == Attestation.from_bytes(FIXTURE).app_info
    assert certificate.content(ra_tls.OID_ATTESTATION) == bound_evidence(key).stripped().to_bytes()


@needs_shared
def test_certificate_profile_matches_agent() -> None:
    """Names, serial, usages and the order of extensions are the agent's; it lives an hour."""
    found = issue_and_parse(
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
    now = datetime.fromtimestamp(int(NOW), timezone.utc)
    assert found.not_valid_before_utc == now - timedelta(minutes=5)
    assert found.not_valid_after_utc == now + timedelta(hours=1)
    own = [ra_tls.OID_APP_INFO, ra_tls.OID_CERT_USAGE, ra_tls.OID_ATTESTATION]
    assert oids_of(found) == ["2.5.29.17", "2.5.29.15", "2.5.29.37", *own]
    assert [extension.critical for extension in found.extensions] == [
        oid == "2.5.29.15" for oid in oids_of(found)
    ]
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["a.example"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.1", "::1"]
    usages = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usages) == [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    authority = x509.load_pem_x509_certificate(KEYS.ca_cert.encode())
    found.verify_directly_issued_by(authority)


@needs_shared
def test_issue_without_evidence_fails() -> None:
    """Without evidence no certificate is issued, even one that would not contain it."""

    def fail_to_attest(**_: bytes) -> Attestation:
        raise error

    error = VerificationError("no evidence today", reason="no_evidence")
    with raises(VerificationError, "no_evidence") as caught:
        issue_test(attest=fail_to_attest)
    assert caught.value is error


@needs_shared
@pytest.mark.parametrize(
    "fields",
    [
        {"not_before": 5, "not_after": 5},
        {"not_before": 6, "not_after": 5},
        {"not_after": 5},  # before 1975, the start
    ],
)
def test_issue_of_empty_validity_is_usage_error(fields: dict[str, Any]) -> None:
    """The start must be before the end."""
    with raises(UsageError, "conflict", text="not_before must be earlier than not_after"):
        issue_test(**fields)


@needs_shared
@pytest.mark.parametrize("name", ["not_before", "not_after"])
def test_issue_with_time_outside_x509_is_usage_error(name: str) -> None:
    """A time after 9999 fails before the platform is used; the last second of 9999 does not."""

    def fail_to_attest(**_: bytes) -> Attestation:
        raise AssertionError

    for seconds in (253_402_300_800, 1 << 64):
        with raises(UsageError, "out_of_range", part=name):
            issue_test(**{name: seconds}, attest=fail_to_attest)
    last = issue_and_parse(not_after=253_402_300_799)
    assert last.not_valid_after_utc.timestamp() == 253_402_300_799


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({"subject": "x" * 65}, "too_large"), ({"alt_names": ["a", "b\xfccher"]}, "encoding")],
)
def test_issue_with_name_outside_x509_is_usage_error(fields: dict[str, Any], reason: str) -> None:
    """A name that X.509 cannot express fails before the platform is used."""

    def fail_to_attest(**_: bytes) -> Attestation:
        raise AssertionError

    with raises(UsageError, reason):
        issue_test(**fields, attest=fail_to_attest)


@needs_shared
@pytest.mark.parametrize("encoding", [None, "v0", "v1"])
@pytest.mark.parametrize(("array", "first"), [(None, 0x89), (9, 0x99), (8, 0x98)])
def test_issue_for_each_generation_of_agents(encoding: Any, array: Any, first: int) -> None:
    """IssueCert has V1 evidence, GetTlsKey V0; app info is a map, and was an array before 0.6."""
    issued = issue_test(
        key=KEY, usage_ra_tls=True, with_app_info=True, encoding=encoding, app_info_array=array
    )
    certificate = read_certificate(issued.certificate_chain[0])
    evidence, app_info = [
        certificate.content(oid) or b"" for oid in (ra_tls.OID_ATTESTATION, ra_tls.OID_APP_INFO)
    ]
    assert evidence == bound_evidence().stripped().to_bytes(encoding)
    assert Attestation.from_bytes(evidence).encoding == (encoding or "v0")
    assert app_info[0] == first
    found, expected = AppInfo.from_msgpack(app_info), bound_evidence().app_info
    assert found[:-1] == expected[:-1]
    assert found.init_script_hashes == (None if array == 8 else expected.init_script_hashes)
    assert ra_tls.read(certificate.der) == bound_evidence().stripped()


@needs_shared
@pytest.mark.parametrize("row", load("guest_v1.json").get("app_info", []), ids=lambda r: r["name"])
def test_app_info_extension_has_bytes_of_vectors(row: dict[str, Any]) -> None:
    """The value of the extension is an octet string of the map, in DER."""
    content = AppInfo.from_dict(row["fields"]).to_msgpack()
    parsed = x509.load_der_x509_certificate(make_certificate([(ra_tls.OID_APP_INFO, content)]))
    [found] = [one for one in parsed.extensions if one.oid.dotted_string == ra_tls.OID_APP_INFO]
    assert isinstance(found.value, x509.UnrecognizedExtension)
    assert found.value.value.hex() == row["extn_value"]


@every_case("array", [0, 7, 10, True, "8"])
def test_issue_with_other_app_info_array_is_usage_error(array: Any) -> None:
    """No agent wrote an array of another size; the platform is not used."""
    with raises(UsageError, "wrong_value", part="app_info_array"):
        issue_test(app_info_array=array)


@needs_shared
@pytest.mark.parametrize("now", [-1.0, -2.0e8, -1.0e10])
def test_issue_with_clock_before_1970_is_config_error(now: float) -> None:
    """A wrong clock is not a usage error, because the caller gave no time."""
    for fields in ({}, {"not_before": NOW}):
        with raises(ConfigError, "clock"):
            issue_test(now=lambda: now, **fields)
    end = int(NOW)
    assert issue_and_parse(now=lambda: now, not_after=end).not_valid_after_utc.timestamp() == end


@needs_shared
def test_issue_key_depends_on_random_bytes() -> None:
    """Equal bytes give equal keys; a key given as an argument is used."""
    one, again, other = (
        issue_test(),
        issue_test(),
        issue_test(random=lambda size: bytes(size - 1) + b"\1"),
    )
    assert one[:2] == again[:2]
    assert one.key_pem != other.key_pem
    assert P256Key.from_pem(issue_test(key=KEY).key_pem) == KEY


@needs_shared
def test_issued_repr_contains_no_key() -> None:
    """The repr of an issued key contains no secret."""
    issued = issue_test()
    assert "PRIVATE" not in repr(issued)
    assert "PRIVATE" not in str([issued])


@needs_shared
def test_read_of_older_certificate_returns_evidence() -> None:
    """A separate quote and event log are evidence, compressed or not."""
    quote = bound_evidence().quote
    assert quote is not None
    log = full_log().encode()
    for content in (log, compress(log)):
        der = make_certificate([(ra_tls.OID_TDX_QUOTE, quote.raw), (ra_tls.OID_EVENT_LOG, content)])
        found = ra_tls.read(der)
        assert found.quote == quote
        assert found.event_log == bound_evidence().event_log
        assert found.app_info.app_id == bound_evidence().app_info.app_id
        assert found.config == ""


@needs_shared
def test_read_prefers_new_extension() -> None:
    """If both kinds are present, the older one is ignored."""
    own = [(ra_tls.OID_TDX_QUOTE, b"x"), (ra_tls.OID_ATTESTATION, bound_evidence().to_bytes())]
    assert ra_tls.read(make_certificate(own)) == bound_evidence()


@needs_shared
def test_compressed_log_matches_vector() -> None:
    """The stream decompresses to the expected text."""
    row = VECTORS["gzip_event_log"]
    assert bytes.fromhex(row["magic"]) == b"ELGZv1"
    plain = bytes.fromhex(row["plain"]).decode()
    assert _event_log_text(bytes.fromhex(row["example"])) == plain
    assert _event_log_text(compress(plain.encode())) == plain
    assert row["max_decompressed"] == 16_384


def test_compressed_log_over_16_kib_fails() -> None:
    """A log has at most 16 KiB after decompression."""
    assert len(_event_log_text(compress(b" " * 16_384))) == 16_384
    for size in (16_385, 5_000_000):
        with raises(FormatError, "too_large") as caught:
            _event_log_text(compress(b" " * size))
        assert str(caught.value) == "event log extension too large (>16384 bytes)"


@every_case(
    ("content", "reason"),
    [
        (b"ELGZv1", "truncated"),
        (b"ELGZv1x", "truncated"),
        (compress(b"[]")[:-1], "truncated"),
        (compress(b"[]") + b"\0", "trailing_data"),
        (compress(b"[]") + gzip.compress(b"[]", mtime=0), "trailing_data"),
        (compress(b"[]")[:-8] + bytes(8), "syntax"),
        (compress(b"\xff"), "encoding"),
        (b"\xff", "encoding"),
    ],
)
def test_event_log_of_other_encoding_fails(content: bytes, reason: str) -> None:
    """A log is one complete gzip stream of UTF-8, or plain UTF-8."""
    with raises(FormatError, reason):
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
def test_read_with_invalid_evidence_fails(
    extensions: list[tuple[str, bytes]], error: type[AttestKitError], text: str
) -> None:
    """Missing, malformed and foreign evidence is rejected with its text."""
    with pytest.raises(error) as caught:
        ra_tls.read(make_certificate(extensions))
    assert str(caught.value) == text


@needs_shared
def test_read_with_evidence_of_other_key_fails() -> None:
    """Evidence of another certificate is rejected, also with a changed unsigned part."""
    other = P256Key.from_scalar(b"\x08" * 32)
    copied = make_certificate([(ra_tls.OID_ATTESTATION, bound_evidence().to_bytes())], other)
    with raises(VerificationError, "report_data"):
        ra_tls.read(copied)
    platform, stack = bound_evidence().evidence
    claimed = stack._replace(report_data=ReportData.bind("ratls-cert", other.spki_der))
    half = Attestation(Evidence(platform, claimed)).to_bytes()
    with raises(VerificationError, "report_data"):
        ra_tls.read(make_certificate([(ra_tls.OID_ATTESTATION, half)], other))


@needs_shared
def test_read_checks_binding_of_snp_report() -> None:
    """The signed report data is compared, not the copy beside the report."""
    guest = Attestation.from_bytes(data("dstack/dstack-attest/sev_snp_attestation.bin"))
    right = ReportData.bind("ratls-cert", KEY.spki_der)
    good = guest.with_report_data(right)
    assert ra_tls.read(make_certificate([(ra_tls.OID_ATTESTATION, good.to_bytes())])) == good
    platform, stack = good.evidence
    other = with_report_data(SevSnp(*platform), bytes(64))
    wrong = Attestation(Evidence(other, stack)).to_bytes()
    with raises(VerificationError, "report_data"):
        ra_tls.read(make_certificate([(ra_tls.OID_ATTESTATION, wrong)]))


@needs_shared
@pytest.mark.parametrize("kind", [NitroEnclave, NitroTpm])
def test_read_checks_binding_of_nitro_document(kind: type[NitroEnclave | NitroTpm]) -> None:
    """The signed user data is compared, not the copy beside the document."""
    right = ReportData.bind("ratls-cert", KEY.spki_der)

    def certify(user_data: bytes) -> bytes:
        platform = kind(document(tpm=kind is NitroTpm, user_data=user_data))
        evidence = Attestation(Evidence(platform, STACK._replace(report_data=right)))
        return make_certificate([(ra_tls.OID_ATTESTATION, evidence.to_bytes())])

    assert ra_tls.read(certify(right)).report_data == right
    for other in (bytes(64), b"", right[:-1]):
        with raises(VerificationError, "report_data"):
            ra_tls.read(certify(other))


@needs_shared
def test_read_with_duplicate_extension_fails() -> None:
    """Readers could disagree about which of two extensions counts."""
    third = f"{ra_tls.OID_ATTESTATION[:-1]}3"
    own = [(ra_tls.OID_ATTESTATION, bound_evidence().to_bytes()), (third, b"")]
    der = make_certificate(own)
    tail = bytes.fromhex("060a2b0601040183e73d01")
    doubled = der.replace(tail + b"\3", tail + b"\x08")
    assert doubled != der
    with pytest.raises(FormatError):
        ra_tls.read(doubled)


@needs_shared
@pytest.mark.parametrize("form", [b"", b"x", "", "-----BEGIN CERTIFICATE-----", b"\xff" * 50])
def test_read_of_other_input_fails(form: bytes | str) -> None:
    """Anything but a certificate raises FormatError."""
    with pytest.raises(FormatError):
        ra_tls.read(form)


@needs_shared
def test_issue_defaults_to_system_clock_and_randomness() -> None:
    """By default the certificate is valid for an hour, and each key is new."""
    assert KEYS.ca_key is not None
    issued_by_default = [
        ra_tls.issue(subject="app", attest=attest, ca_cert=KEYS.ca_cert, ca_key=KEYS.ca_key)
        for _ in range(2)
    ]
    assert issued_by_default[0].key_pem != issued_by_default[1].key_pem
    last = x509.load_pem_x509_certificate(issued_by_default[0].certificate_chain[0].encode())
    until = last.not_valid_after_utc - datetime.now(timezone.utc)
    assert timedelta(minutes=55) < until <= timedelta(hours=1)


@needs_shared
def test_issued_pickles() -> None:
    """Key and chain can be pickled for worker processes, which do not renew them."""
    issued = issue_test(key=KEY)
    assert issued.renew is not None
    assert pickle.loads(pickle.dumps(issued)) == issued._replace(renew=None)
