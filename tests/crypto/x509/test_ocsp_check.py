"""A certificate is good only by an answer about it that its issuer's responder signed."""

import base64
import json
import pickle
import re
from datetime import datetime, timedelta, timezone
from functools import cache
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from attestkit._crypto.pem import split_pem
from attestkit._crypto.x509.ocsp import check as ocsp_check
from attestkit._crypto.x509.ocsp.answer_writer import write_ocsp_error
from attestkit._crypto.x509.ocsp.check import (
    CLOCK_SKEW,
    MAX_CHECKED,
    KeptStatuses,
    OcspStatus,
)
from attestkit.errors import (
    AttestKitError,
    CollateralError,
    CollateralExpiredError,
    FormatError,
    SignatureError,
)
from tests.pki.ocsp_pki import (
    AUTHORITY,
    DAY,
    END_ENTITY,
    NOW,
    SIGNING,
    answer_about,
    builder_about,
    certificate_of,
    check_ocsp,
    der,
    issuer_certificate,
    key_of,
    responder_certificate,
    responder_of,
    subject_certificate,
)
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import HAVE_SHARED, SHARED, data, needs_shared

HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
VECTORS: dict[str, dict[str, Any]] = (
    json.loads(data("gpu/expected.json"))["ocsp"] if HAVE_SHARED else {}
)
CASES: list[dict[str, Any]] = json.loads(data("gpu/fabricated/cases.json")) if HAVE_SHARED else []
REAL_RIMS = {
    "driver_rim": "NV_GPU_DRIVER_GH100_550.90.07",
    "vbios_rim": "NV_GPU_VBIOS_1010_0200_882_96009F0001",
}


def check(*answers: bytes, now: datetime = NOW + HOUR, **options: Any) -> OcspStatus:
    """Return the status of the subject by the answers."""
    subject, issuer = der(subject_certificate()), der(issuer_certificate())
    return check_ocsp(answers, subject, issuer, now, **options)


@cache
def rim_certificates(path: str) -> list[bytes]:
    """Return the certificates of a RIM, the signer first."""
    found = re.findall(rb"X509Certificate>([^<]+)<", data(path))
    return [base64.b64decode(b"".join(text.split())) for text in found]


@cache
def real_chains() -> dict[str, list[bytes]]:
    """Return the chains of the real case by their names in the vectors."""
    chains = {name: rim_certificates(f"gpu/rims/{rim}.xml") for name, rim in REAL_RIMS.items()}
    return {"device": split_pem(data("gpu/reports/hopper-550.90.07/chain.pem").decode()), **chains}


REAL = [
    (path, name, at)
    for path, vector in VECTORS.items()
    for about in vector["about"]
    for name, at in re.findall(r"(\w+)\[(\d)\]", about)
]


@needs_shared
@pytest.mark.parametrize(("path", "name", "at"), REAL)
def test_check_ocsp_real_answer_is_good_for_its_certificate_alone(
    path: str, name: str, at: str
) -> None:
    """NVIDIA's answers hold for their day and for the certificates that the vectors name."""
    chain, index = real_chains()[name], int(at)
    start = datetime.fromisoformat(VECTORS[path]["this_update"].replace("Z", "+00:00"))
    answers = [data(f"gpu/{path}")]
    assert VECTORS[path]["verdict"] == "good at this_update+1h"
    found = check_ocsp(answers, chain[index], chain[index + 1], start + HOUR)
    assert found == OcspStatus("good", None, None, start, start + DAY)
    with raises(CollateralExpiredError, "ocsp_expired"):
        check_ocsp(answers, chain[index], chain[index + 1], start + 2 * DAY)
    with raises(CollateralExpiredError, "ocsp_not_yet_valid"):
        check_ocsp(answers, chain[index], chain[index + 1], start - HOUR)
    others = [(n, i) for n in real_chains() for i in range(len(real_chains()[n]) - 1)]
    for other, place in others:
        certificates = real_chains()[other]
        if f"{other}[{place}]" not in VECTORS[path]["about"]:
            with raises(CollateralError, "missing"):
                check_ocsp(answers, certificates[place], certificates[place + 1], start + HOUR)


@pytest.mark.slow
@needs_shared
@pytest.mark.parametrize("path", [*VECTORS][:1])
def test_check_ocsp_any_changed_byte_of_real_answer_is_refused(path: str) -> None:
    """A change of any byte of an answer, signature and certificate included, is refused."""
    answer, chain = data(f"gpu/{path}"), real_chains()["device"]
    now = datetime(2025, 8, 21, 7, tzinfo=timezone.utc)
    assert check_ocsp([answer], chain[3], chain[4], now).status == "good"
    for at in range(len(answer)):
        altered = answer[:at] + bytes([answer[at] ^ 1]) + answer[at + 1 :]
        with pytest.raises(AttestKitError):
            check_ocsp([altered], chain[3], chain[4], now)


EXPECTED = {
    "ocsp-brom-revoked": {1: "revoked"},
    "ocsp-rim-leaf-hold": {0: "hold"},
    "ocsp-stale": {1: "ocsp_expired"},
    "ocsp-responder-no-eku": {1: "ocsp_responder"},
    "ocsp-about-another": {1: "missing"},
}


def _outcome(answers: list[bytes], certificate: bytes, issuer: bytes, now: datetime) -> str:
    try:
        return check_ocsp(answers, certificate, issuer, now).status
    except AttestKitError as error:
        return error.reason


@needs_shared
@every_case("name", [case["name"] for case in CASES if case["name"] != "blocks-41"])
def test_check_ocsp_fabricated_cases_have_expected_outcome(name: str) -> None:
    """Of the fabricated cases only those about OCSP have a certificate that is not good."""
    case = next(each for each in CASES if each["name"] == name)
    folder = f"gpu/fabricated/{name}"
    now = datetime.fromisoformat(case["time"].replace("Z", "+00:00"))
    device = split_pem(data(f"{folder}/chain.pem").decode().rstrip("\0"))
    # In two cases the root is another one, or missing: the answer about its child is not theirs.
    top = (
        [] if name == "chain-other-root" else split_pem(data(f"{folder}/device-root.pem").decode())
    )
    device = device[:4] + (top or device[4:])

    answers = [path.read_bytes() for path in sorted((SHARED / "data" / folder / "ocsp").iterdir())]
    # Nothing is known of the RIM's root if the RIM is not authentic.
    rims = [] if name in {"rim-other-root", "rim-leaf-expired"} else ["driver-rim", "vbios-rim"]
    found = {at: _outcome(answers, device[at], device[at + 1], now) for at in (1, 2, 3)}
    for rim in rims:
        chain = rim_certificates(f"{folder}/{rim}.xml")
        found[0] = _outcome(answers, chain[0], chain[1], now)
        assert {_outcome(answers, chain[at], chain[at + 1], now) for at in (1, 2)} == {"good"}
    assert {at: status for at, status in found.items() if status != "good"} == EXPECTED.get(
        name, {}
    )


@every_case(
    ("status", "reason", "expected"),
    [
        ("good", None, "good"),
        ("revoked", None, "revoked"),
        ("revoked", "key_compromise", "revoked"),
        ("revoked", "remove_from_crl", "revoked"),
        ("revoked", "certificate_hold", "hold"),
    ],
)
def test_check_ocsp_returns_status_and_reason(
    status: str, reason: str | None, expected: str
) -> None:
    """A hold is distinguished from other revocations."""
    found = check(answer_about(status=status, reason=reason, revoked_at=NOW - DAY))
    revoked = status == "revoked"
    stated = (reason or "unspecified") if revoked else None
    assert (found.status, found.reason) == (expected, stated)
    assert found.revoked_at == (NOW - DAY if revoked else None)
    assert (found.this_update, found.next_update) == (NOW, NOW + DAY)


def test_check_ocsp_unknown_certificate_is_refused() -> None:
    """A responder that does not know the certificate proves nothing."""
    with raises(SignatureError, "ocsp_unknown"):
        check(answer_about(status="unknown"))


def test_check_ocsp_dates_with_skew() -> None:
    """The answer holds from thisUpdate to nextUpdate, with five minutes for other clocks."""
    answer, second = answer_about(), timedelta(seconds=1)
    for now in (NOW - CLOCK_SKEW, NOW, NOW + DAY, NOW + DAY + CLOCK_SKEW):
        assert check(answer, now=now).status == "good"
    with raises(CollateralExpiredError, "ocsp_not_yet_valid"):
        check(answer, now=NOW - CLOCK_SKEW - second)
    with raises(CollateralExpiredError, "ocsp_expired"):
        check(answer, now=NOW + DAY + CLOCK_SKEW + second)
    with raises(CollateralExpiredError, "ocsp_expired"):
        check(answer_about(validity=-DAY))
    with raises(CollateralExpiredError, "ocsp_expired"):
        check(answer_about(validity=-second), now=NOW)  # within the skew at both ends


def test_check_ocsp_at_ends_of_calendar() -> None:
    """Times at the first and last day of the calendar do not overflow."""
    first = datetime(1, 1, 1, tzinfo=timezone.utc)
    last = datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone.utc)
    assert check(answer_about(validity=last - NOW)).status == "good"
    with raises(CollateralExpiredError, "ocsp_not_yet_valid"):
        check(answer_about(this_update=last, validity=timedelta(0)))
    with raises(CollateralExpiredError, "cert_expired"):
        check(answer_about(), now=first)


def test_check_ocsp_maximum_age() -> None:
    """An answer that is still valid may be too old for the caller."""
    assert check(answer_about(), now=NOW + DAY + HOUR, grace=HOUR).status == "good"
    assert check(answer_about(), grace=timedelta.max).status == "good"
    with raises(CollateralExpiredError, "ocsp_expired"):
        check(answer_about(), now=NOW + DAY + HOUR + CLOCK_SKEW + MINUTE, grace=HOUR)
    assert check(answer_about(), max_age=HOUR).status == "good"
    with raises(CollateralExpiredError, "ocsp_expired"):
        check(answer_about(), max_age=HOUR - timedelta(seconds=1))


def test_check_ocsp_of_several_answers_newest_or_revocation_counts() -> None:
    """A revocation counts, whatever was said before or after; a hold only until a newer answer."""
    good, later = answer_about(), answer_about(this_update=NOW + timedelta(minutes=30))
    hold = answer_about(status="revoked", reason="certificate_hold")
    revoked = answer_about(status="revoked", reason="key_compromise")
    for order in ((good, later), (later, good)):
        assert check(*order).this_update == NOW + timedelta(minutes=30)
    assert check(hold, later).status == "good"
    assert check(later, revoked).status == "revoked"
    stale = answer_about(this_update=NOW - 30 * DAY)
    assert check(stale, good).status == "good"
    forged = bytearray(later)
    forged[-1] ^= 1  # of the certificate's signature
    assert check(bytes(forged), good).status == "good"
    with pytest.raises(SignatureError):
        check(bytes(forged))


def test_kept_status_is_that_of_a_new_check_at_every_time() -> None:
    """A kept status holds exactly as long as its answer, the responder, age and grace allow."""
    second, until = timedelta(seconds=1), NOW + HOUR
    short = certificate_of(
        "responder", "issuer", usages=SIGNING, extensions=(END_ENTITY,), until=until
    )
    subject, issuer = der(subject_certificate()), der(issuer_certificate())
    ends = (NOW - CLOCK_SKEW, NOW, until, NOW + DAY + CLOCK_SKEW, NOW + DAY + HOUR + CLOCK_SKEW)
    times = [end + step for end in ends for step in (-second, timedelta(), second)]
    for answer in (answer_about(), answer_about(responder=responder_of(short))):
        kept = KeptStatuses([answer])
        for options in ({}, {"max_age": HOUR}, {"grace": HOUR}, {"grace": timedelta.max}, {}):
            for now in (NOW + MINUTE, *times, *reversed(times)):
                try:
                    expected: object = check(answer, now=now, **options)
                except CollateralExpiredError as error:
                    with raises(CollateralExpiredError, error.reason):
                        kept.check(subject, issuer, now, **options)
                else:
                    assert kept.check(subject, issuer, now, **options) == expected


def test_kept_status_of_several_answers_changes_with_the_time() -> None:
    """A newer answer counts as soon as it is valid, so such a status is not kept."""
    good = answer_about(this_update=NOW - DAY, validity=3 * DAY)
    revoked = answer_about(this_update=NOW + DAY, status="revoked", reason="key_compromise")
    subject, issuer = der(subject_certificate()), der(issuer_certificate())
    kept = KeptStatuses([good, revoked])
    found = [kept.check(subject, issuer, NOW + hours * HOUR).status for hours in (1, 25, 1)]
    assert found == ["good", "revoked", "good"]


def test_kept_statuses_are_limited_and_not_pickled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of kept statuses is limited; a copy has the answers alone."""
    subject, issuer = der(subject_certificate()), der(issuer_certificate())
    kept = KeptStatuses([answer_about()])
    monkeypatch.setattr(ocsp_check, "MAX_ANSWERS", 2)
    for hours in range(2, 7):
        kept.check(subject, issuer, NOW + HOUR, max_age=hours * HOUR)
        assert 1 <= len(kept._kept) <= 2
    copied = pickle.loads(pickle.dumps(kept))
    assert copied._kept == {}
    assert copied.check(subject, issuer, NOW + HOUR).status == "good"


def test_kept_status_is_of_one_issuer() -> None:
    """A kept status of a certificate is not used for the same certificate of another issuer."""
    subject, now = der(subject_certificate()), NOW + HOUR
    kept = KeptStatuses([answer_about()])
    assert kept.check(subject, der(issuer_certificate()), now).status == "good"
    with raises(CollateralError, "missing"):
        kept.check(subject, der(issuer_certificate("other")), now)


def test_kept_statuses_keep_no_refusal() -> None:
    """A certificate that the responder does not know, or whose answer is forged, stays refused."""
    subject, issuer = der(subject_certificate()), der(issuer_certificate())
    forged = bytearray(answer_about())
    forged[-1] ^= 1
    for answer in (answer_about(status="unknown"), bytes(forged)):
        kept = KeptStatuses([answer])
        for _ in range(2):
            with pytest.raises(SignatureError):
                kept.check(subject, issuer, NOW + HOUR)


def test_check_ocsp_malformed_answer_is_named_if_none_else_is_about_the_certificate() -> None:
    """A malformed answer, or an error of the responder, does not hide a good one."""
    good, error, junk = answer_about(), write_ocsp_error("unauthorized"), b"\x30\0"
    assert check(junk, error, good).status == "good"
    with raises(CollateralError, "fetch_failed"):
        check(error)
    with raises(FormatError, "truncated"):
        check(junk)
    with raises(CollateralError, "missing"):
        check(answer_about(serial=5))
    with raises(CollateralError, "missing"):
        check()


def test_check_ocsp_of_malformed_certificates_raises_format_error() -> None:
    """The certificates are read, too."""
    with raises(FormatError, "truncated"):
        check_ocsp([], b"", der(issuer_certificate()), NOW)
    with raises(FormatError, "truncated"):
        check_ocsp([], der(subject_certificate()), b"", NOW)


def test_check_ocsp_of_other_issuer_with_same_serial_number_is_missing() -> None:
    """An answer about a certificate of another issuer is not about this one."""
    other = der(issuer_certificate("other"))
    with raises(CollateralError, "missing"):
        check_ocsp([answer_about()], der(subject_certificate()), other, NOW)


ANY_USAGE = (ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE, ExtendedKeyUsageOID.CLIENT_AUTH)
CRITICAL = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\0")


@every_case(
    ("certificate", "key"),
    [
        pytest.param(certificate_of("responder", "issuer"), "responder", id="no usage"),
        pytest.param(
            certificate_of("responder", "issuer", usages=ANY_USAGE), "responder", id="other usage"
        ),
        pytest.param(
            certificate_of("responder", "issuer", usages=SIGNING, extensions=(AUTHORITY,)),
            "responder",
            id="CA",
        ),
        pytest.param(
            certificate_of("responder", "issuer", usages=SIGNING, signer="responder"),
            "responder",
            id="not signed by the issuer",
        ),
        pytest.param(
            certificate_of("responder", "other", usages=SIGNING, signer="issuer"),
            "responder",
            id="of another issuer",
        ),
        pytest.param(
            certificate_of("responder", "issuer", usages=SIGNING, algorithm=SHA256),
            "responder",
            id="SHA-256",
        ),
        pytest.param(
            certificate_of("responder", "issuer", usages=SIGNING, extensions=(CRITICAL,)),
            "responder",
            id="unknown critical extension",
        ),
        pytest.param(issuer_certificate(), "issuer", id="the issuer"),
        pytest.param(subject_certificate(), "subject", id="the certificate itself"),
    ],
)
def test_check_ocsp_of_other_responder_is_refused(certificate: x509.Certificate, key: str) -> None:
    """Only an end-entity certificate of the issuer, for OCSP alone, may sign answers."""
    with raises(SignatureError, "ocsp_responder"):
        check(answer_about(responder=responder_of(certificate, key)))


def test_check_ocsp_usage_no_check_as_of_real_responders_is_accepted() -> None:
    """NVIDIA's older responders have the OID of OCSPNoCheck as a second usage."""
    usages = (*SIGNING, x509.ObjectIdentifier("1.3.6.1.5.5.7.48.1.5"))
    certificate = certificate_of("responder", "issuer", usages=usages, extensions=(END_ENTITY,))
    assert check(answer_about(responder=responder_of(certificate))).status == "good"


def test_check_ocsp_responder_with_extension_no_check_is_accepted() -> None:
    """A responder's certificate may have OCSPNoCheck as the extension that RFC 6960 defines."""
    extensions = (x509.OCSPNoCheck(), END_ENTITY)
    certificate = certificate_of("responder", "issuer", usages=SIGNING, extensions=extensions)
    assert check(answer_about(responder=responder_of(certificate))).status == "good"


def test_check_ocsp_of_expired_responder_is_refused() -> None:
    """The responder's certificate must be valid, without any skew."""
    certificate = certificate_of("responder", "issuer", usages=SIGNING, until=NOW)
    answer = answer_about(responder=responder_of(certificate))
    assert check(answer, now=NOW).status == "good"
    with raises(CollateralExpiredError, "cert_expired"):
        check(answer, now=NOW + timedelta(seconds=1))


def test_check_ocsp_signed_with_other_key_is_refused() -> None:
    """The signature must be that of the responder's key."""
    with raises(SignatureError, "ocsp_bad_signature"):
        check(answer_about(responder=responder_of(key="other")))


def test_check_ocsp_of_builder_by_name_and_by_hash() -> None:
    """Answers of `cryptography` are accepted; with another name, key or hash they are not."""
    for encoding in ocsp.OCSPResponderEncoding:
        builder = builder_about().certificates([responder_certificate()])
        builder = builder.responder_id(encoding, responder_certificate())
        signed = builder.sign(key_of("responder"), SHA384())
        assert check(signed.public_bytes(Encoding.DER)).status == "good"
        other = certificate_of("another", "issuer", usages=SIGNING)
        builder = builder_about().certificates([responder_certificate()])
        signed = builder.responder_id(encoding, other).sign(key_of("another"), SHA384())
        with raises(SignatureError, "ocsp_responder"):
            check(signed.public_bytes(Encoding.DER))
        builder = builder_about().certificates([responder_certificate()])
        builder = builder.responder_id(encoding, responder_certificate())
        signed = builder.sign(key_of("responder"), SHA256())
        with raises(SignatureError, "ocsp_bad_signature"):
            check(signed.public_bytes(Encoding.DER))


def test_check_ocsp_verifies_the_newest_answers_about_a_certificate() -> None:
    """However many answers are about a certificate, few signatures are verified."""
    forged = responder_of(key="other")
    newer = [answer_about(responder=forged, this_update=NOW + n * MINUTE) for n in range(1, 41)]
    assert check(*newer[: MAX_CHECKED - 1], answer_about()).status == "good"
    with raises(SignatureError, "ocsp_bad_signature"):
        check(*newer, answer_about())
