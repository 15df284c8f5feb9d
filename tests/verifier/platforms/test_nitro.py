"""Tests of Nitro documents: signature, certificate chain, age and format."""

import pickle
from datetime import datetime, timedelta, timezone
from typing import Any

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from attestkit._crypto.x509 import cert_path
from attestkit._crypto.x509.cert_path import NamedCertificate
from attestkit._crypto.x509.vendor_roots import AMD_ROOTS, AWS_ROOT
from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import NitroEnclave
from attestkit.errors import (
    CollateralExpiredError,
    FormatError,
    SignatureError,
    VerificationError,
)
from attestkit.verifier import chain_cache
from attestkit.verifier.platforms.nitro import Nitro
from tests.raising import raises
from tests.runner.cases import every_case
from tests.thorough import limited
from tests.vectors import data, needs_shared
from tests.verifier.platforms import aws

CAPTURES = {
    "nitro_attestation": datetime(2025, 12, 25, 16, 4, 19, 346_000, tzinfo=timezone.utc),
    "nitro_attestation_dbg": datetime(2025, 12, 25, 8, 20, 46, 577_000, tzinfo=timezone.utc),
}


def load_capture(name: str = "nitro_attestation") -> bytes:
    """Return the document in a capture of dstack."""
    platform = Attestation.from_bytes(data(f"dstack/dstack-attest/{name}.bin")).evidence.platform
    assert isinstance(platform, NitroEnclave)
    return platform.nsm_quote


def get_rejection(document: bytes, now: datetime = aws.NOW) -> VerificationError:
    """Return the error for a rejected document of the simulated PKI."""
    with pytest.raises(VerificationError) as caught:
        Nitro(aws.root()).authenticate(document, now)
    assert caught.value.reason
    return caught.value


def replace_chain(*bundle: bytes, leaf: bytes | None = None) -> bytes:
    """Return a document with other certificates."""
    return aws.document(aws.payload(cabundle=list(bundle), certificate=leaf or aws.leaf()))


@needs_shared
@pytest.mark.parametrize("name", CAPTURES)
def test_nitro_authenticates_captures_at_their_time(name: str) -> None:
    """Captured AWS documents verify under AWS's root, and debug mode is reported."""
    document = load_capture(name)
    found = Nitro().authenticate(document, CAPTURES[name])
    assert found.status is None
    assert found.device == b"i"
    stack = Attestation.from_bytes(data(f"dstack/dstack-attest/{name}.bin")).evidence.stack
    assert found.report_data == stack.report_data
    assert found.chain[-1] == AWS_ROOT
    assert len(found.chain) == 5
    steps = " / ".join(map(str, found.steps))
    assert ("debug mode" in steps) == name.endswith("_dbg")
    assert "revocation was not checked" in steps


@needs_shared
@pytest.mark.parametrize("every", [23, pytest.param(1, marks=pytest.mark.slow)])
def test_nitro_document_with_changed_byte_is_rejected(every: int) -> None:
    """A byte changed anywhere in the document is rejected."""
    document, nitro = load_capture(), Nitro()
    for offset in limited(range(0, len(document), every)):
        tampered = document[:offset] + bytes([document[offset] ^ 1]) + document[offset + 1 :]
        with pytest.raises((FormatError, VerificationError)):
            nitro.authenticate(tampered, CAPTURES["nitro_attestation"])


@needs_shared
def test_nitro_capture_outside_validity_is_rejected() -> None:
    """A document is valid for an hour, and only while its certificates are."""
    document, created, second = load_capture(), CAPTURES["nitro_attestation"], timedelta(seconds=1)
    for now in (created + timedelta(hours=1), created):
        Nitro().authenticate(document, now)
    for now, reason in (
        (created + timedelta(hours=1) + second, "document_expired"),
        # The enclave's certificate was issued three seconds before.
        (created - 4 * second, "cert_expired"),
        (created + timedelta(hours=4), "document_expired"),
    ):
        with pytest.raises(VerificationError) as caught:
            Nitro().authenticate(document, now)
        assert caught.value.reason == reason


def test_nitro_document_age_limits() -> None:
    """A document may be up to an hour old, and up to five minutes ahead."""
    document = aws.document()
    for seconds in (-300, 0, 3600):
        Nitro(aws.root()).authenticate(document, aws.NOW + timedelta(seconds=seconds))
    for seconds in (-301, 3601):
        error = get_rejection(document, aws.NOW + timedelta(seconds=seconds))
        assert type(error) is VerificationError
        assert error.reason == "document_expired"


def test_nitro_authenticates_simulated_document() -> None:
    """A simulated document, tagged or not, verifies under the simulated root only."""
    found = Nitro(aws.root()).authenticate(aws.document(), aws.NOW)
    assert found.report_data == bytes(range(64))
    assert found.chain == (aws.leaf(), *reversed(aws.chain()))
    assert Nitro(aws.root()).authenticate(b"\xd2" + aws.document(), aws.NOW) == found
    with raises(SignatureError, "untrusted_root"):
        Nitro().authenticate(aws.document(), aws.NOW)


def test_nitro_genuine_only_with_aws_root() -> None:
    """`genuine` is true for AWS's root only, passed or by default."""
    assert Nitro().genuine
    assert Nitro(AWS_ROOT).genuine
    assert not Nitro(aws.root()).genuine
    assert not Nitro(AMD_ROOTS["Milan"]).genuine
    with pytest.raises(FormatError):
        Nitro(b"no certificate")


def test_nitro_ignores_root_in_bundle() -> None:
    """The root in `cabundle` is ignored in favour of the trust anchor."""
    _, region, zone = aws.chain()
    found = Nitro(aws.root()).authenticate(replace_chain(b"anything", region, zone), aws.NOW)
    assert found.chain[-1] == aws.root()
    own = aws.certificate("region", "root", signed_by="somebody else", path_length=1)
    assert get_rejection(replace_chain(aws.root(), own, zone)).reason == "untrusted_root"
    direct = aws.certificate("enclave", "root", authority=False)
    Nitro(aws.root()).authenticate(replace_chain(b"anything", leaf=direct), aws.NOW)


def test_nitro_invalid_bundle_is_rejected() -> None:
    """Order, missing CAs, and the path length of the region are checked."""
    root, region, zone = aws.chain()
    limited = aws.certificate("region", "root", path_length=0)
    for bundle, reason in (
        ((root, zone, region), "untrusted_root"),
        ((root, zone), "untrusted_root"),
        ((root, region), "cert_bad_signature"),
        ((root, limited, zone), "cert_not_authority"),
        ((root, region, b"zone"), "cert_malformed"),
    ):
        assert get_rejection(replace_chain(*bundle)).reason == reason


@every_case(
    ("changes", "reason"),
    [
        ({"usage": "crl_sign"}, "cert_not_authority"),
        ({"authority": False}, "cert_not_authority"),
        ({"valid_until": aws.NOW - timedelta(seconds=1)}, "cert_expired"),
        ({"extension": x509.PolicyConstraints(0, None)}, "cert_unknown_extension"),
        ({"algorithm": SHA256}, "cert_bad_signature"),
    ],
)
def test_nitro_invalid_ca_certificate_is_rejected(changes: dict[str, Any], reason: str) -> None:
    """CA flag, key usage, validity, extensions and algorithm of a CA are checked."""
    root, region, _ = aws.chain()
    zone = aws.certificate("zone", "region", **changes)
    assert get_rejection(replace_chain(root, region, zone)).reason == reason


def test_nitro_leaf_must_be_valid_signing_certificate() -> None:
    """CA certificates, other key usages and other curves must not sign documents."""
    for leaf in (
        aws.certificate("enclave", "zone"),
        aws.certificate("enclave", "zone", authority=False, usage="key_agreement"),
    ):
        error = get_rejection(replace_chain(*aws.chain(), leaf=leaf))
        assert error.reason == "cert_not_authority"
    leaf = aws.certificate("enclave", "zone", authority=False, curve=ec.SECP256R1)
    error = get_rejection(replace_chain(*aws.chain(), leaf=leaf))
    assert (error.reason, "must be P-384" in str(error)) == ("document_bad_signature", True)
    expired = aws.certificate("enclave", "zone", authority=False, valid_until=aws.NOW - aws.DAY / 2)
    assert isinstance(
        get_rejection(replace_chain(*aws.chain(), leaf=expired)), CollateralExpiredError
    )


@every_case(
    ("changes", "reason"),
    [
        ({"protected": cbor2.dumps({1: -7})}, "document_algorithm"),
        ({"protected": cbor2.dumps({1: "ES384"})}, "document_algorithm"),
        ({"unprotected": {1: -35}}, "document_algorithm"),
        ({"protected": cbor2.dumps({1: -35, 2: [1, 4]})}, "document_critical_header"),
        ({"protected": cbor2.dumps({1: -35, 2: []})}, "document_critical_header"),
        ({"signer": aws.key("another", ec.SECP384R1)}, "document_bad_signature"),
        ({"algorithm": SHA256}, "document_bad_signature"),
        ({"signature": bytes(96)}, "document_bad_signature"),
        ({"signature": b"r"}, "document_bad_signature"),
    ],
)
def test_nitro_invalid_signature_or_header_is_rejected(
    changes: dict[str, Any], reason: str
) -> None:
    """The algorithm is ES384 in the protected header, and no unknown header is critical."""
    error = get_rejection(aws.document(**changes))
    assert isinstance(error, SignatureError)
    assert error.reason == reason


def test_nitro_accepts_uncritical_headers() -> None:
    """`alg` may be marked critical, and other headers may be present if they are not."""
    for protected, unprotected in (
        ({1: -35, 2: [1]}, {}),
        ({1: -35, 3: "text/plain"}, {}),
        ({1: -35}, {4: b"key", "x": 1}),
    ):
        document = aws.document(protected=cbor2.dumps(protected), unprotected=unprotected)
        Nitro(aws.root()).authenticate(document, aws.NOW)


@every_case(
    ("changes", "reason", "subject"),
    [
        ({"module_id": ""}, "wrong_size", "module_id"),
        ({"digest": "SHA256"}, "unsupported_algorithm", "digest"),
        ({"timestamp": ...}, "missing", "timestamp"),
        ({"timestamp": 1 << 63}, "wrong_value", "timestamp"),
        ({"pcrs": {0: bytes(48), 1: bytes(48)}}, "missing", "PCR 2"),
        ({"pcrs": {n: bytes(48) for n in range(33)}}, "wrong_value", "PCR"),
        ({"pcrs": {n: bytes(48) for n in (-1, 0, 1, 2)}}, "wrong_value", "PCR"),
        ({"timestamp": 0}, "wrong_value", "timestamp"),
        ({"user_data": bytes(513)}, "too_large", "user_data"),
        ({"nonce": bytes(513)}, "too_large", "nonce"),
        ({"public_key": bytes(1025)}, "too_large", "public_key"),
        ({"certificate": ...}, "missing", "certificate"),
        ({"certificate": bytes(1025)}, "wrong_size", "certificate"),
        ({"cabundle": ...}, "missing", "cabundle"),
        ({"cabundle": [b"x"] * 17}, "wrong_size", "cabundle"),
        ({"cabundle": [b"", b"x"]}, "wrong_size", "cabundle[0]"),
    ],
)
def test_nitro_field_outside_limits_raises_format_error(
    changes: dict[str, object], reason: str, subject: str
) -> None:
    """Fields must be within the limits of AWS's specification."""
    with raises(FormatError, reason, part=subject):
        Nitro(aws.root()).authenticate(aws.document(aws.payload(**changes)), aws.NOW)


def test_nitro_optional_fields_at_their_limits() -> None:
    """`user_data`, `nonce` and `public_key` may have their largest size, or be absent."""
    full = aws.payload(user_data=bytes(512), nonce=bytes(512), public_key=bytes(1024))
    assert Nitro(aws.root()).authenticate(aws.document(full), aws.NOW).report_data == bytes(512)
    bare = aws.payload(user_data=..., nonce=..., public_key=...)
    assert Nitro(aws.root()).authenticate(aws.document(bare), aws.NOW).report_data == b""


def test_nitro_malformed_document_is_rejected() -> None:
    """Trailing bytes, other tags, and NitroTPM documents are rejected."""
    nitro = Nitro(aws.root())
    for document in (
        aws.document() + b"\0",
        b"\xd3" + aws.document(),
        b"\xd2\xd2" + aws.document(),
    ):
        with pytest.raises(FormatError):
            nitro.authenticate(document, aws.NOW)
    for changes, reason in (({"pcrs": ...}, "wrong_type"), ({}, "inconsistent")):
        fields = aws.payload(nitrotpm_pcrs={n: bytes(48) for n in range(3)}, **changes)
        with raises(FormatError, reason):
            nitro.authenticate(aws.document(fields), aws.NOW)


def test_nitro_pickle_round_trip() -> None:
    """An unpickled authenticator returns the same result."""
    nitro = pickle.loads(pickle.dumps(Nitro(aws.root())))
    assert nitro.authenticate(aws.document(), aws.NOW).device == b"i"


def test_nitro_signatures_of_known_certificates_are_verified_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A further document of an instance needs its own signature only; dates are checked again."""
    found: list[str] = []
    check = cert_path.check_issued

    def record(named: NamedCertificate, *rest: Any) -> None:
        check(named, *rest)
        found.append(named[0])

    monkeypatch.setattr(chain_cache, "check_issued", record)
    nitro, document = Nitro(aws.root()), aws.document(aws.payload())
    for _ in range(2):
        nitro.authenticate(document, aws.NOW)
    assert len(found) == 3
    late = aws.NOW + timedelta(days=20_000)
    again = aws.document(aws.payload(timestamp=int(late.timestamp() * 1000)))
    with raises(CollateralExpiredError, "cert_expired"):
        nitro.authenticate(again, late)
