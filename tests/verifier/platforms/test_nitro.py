"""A Nitro document is believed if an enclave's key signed it, and AWS that key, not long ago."""

import pickle
from collections.abc import Callable
from datetime import datetime, timedelta, timezone

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit._crypto.x509.vendor_roots import AMD_ROOTS, AWS_ROOT
from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import NitroEnclave
from attestkit.errors import (
    AttestKitError,
    CollateralExpiredError,
    FormatError,
    SignatureError,
    UnsupportedError,
    UsageError,
    VerificationError,
)
from attestkit.verifier.platforms.nitro import Nitro
from tests.attestation.samples import mutations
from tests.vectors import data, needs_shared
from tests.verifier.platforms import aws

CAPTURES = {
    "nitro_attestation": datetime(2025, 12, 25, 16, 4, 19, 346_000, tzinfo=timezone.utc),
    "nitro_attestation_dbg": datetime(2025, 12, 25, 8, 20, 46, 577_000, tzinfo=timezone.utc),
}

GOOD = aws.document()


def captured(name: str = "nitro_attestation") -> bytes:
    """Return the document in a capture of dstack."""
    platform = Attestation.from_bytes(data(f"dstack/dstack-attest/{name}.bin")).evidence.platform
    assert isinstance(platform, NitroEnclave)
    return platform.nsm_quote


def refusal(document: bytes, now: datetime = aws.NOW) -> VerificationError:
    """Return with what a document of the stand-in is refused."""
    with pytest.raises(VerificationError) as caught:
        Nitro(aws.root()).authenticate(document, now)
    assert caught.value.reason
    return caught.value


def with_chain(*bundle: bytes, leaf: bytes | None = None) -> bytes:
    """Return a document with other certificates."""
    return aws.document(aws.payload(cabundle=list(bundle), certificate=leaf or aws.leaf()))


@needs_shared
@pytest.mark.parametrize("name", CAPTURES)
def test_captures_at_their_time(name: str) -> None:
    """Documents of AWS lead to AWS's root; that an enclave is in debug mode is said."""
    document = captured(name)
    found = Nitro().authenticate(document, CAPTURES[name])
    assert found.status is None
    assert found.device == b"i"
    stack = Attestation.from_bytes(data(f"dstack/dstack-attest/{name}.bin")).evidence.stack
    assert found.report_data == stack.report_data
    assert found.chain[-1] == AWS_ROOT
    assert len(found.chain) == 5
    told = " / ".join(found.steps)
    assert ("debug mode" in told) == name.endswith("_dbg")
    assert "revocation was not looked at" in told


@needs_shared
@pytest.mark.parametrize("every", [23, pytest.param(1, marks=pytest.mark.slow)])
def test_every_byte_of_a_document_counts(every: int) -> None:
    """A changed byte anywhere ends it, the signature's and the certificates' among them."""
    document, nitro = captured(), Nitro()
    for at in range(0, len(document), every):
        tampered = document[:at] + bytes([document[at] ^ 1]) + document[at + 1 :]
        with pytest.raises((FormatError, VerificationError)):
            nitro.authenticate(tampered, CAPTURES["nitro_attestation"])


@needs_shared
def test_a_capture_at_another_time() -> None:
    """An hour later it is too old, five minutes earlier too new, and its certificate ends too."""
    document, made, second = captured(), CAPTURES["nitro_attestation"], timedelta(seconds=1)
    for now in (made + timedelta(hours=1), made):
        Nitro().authenticate(document, now)
    for now, reason in (
        (made + timedelta(hours=1) + second, "document_expired"),
        (made - 4 * second, "cert_expired"),  # the enclave's was issued three seconds before
        (made + timedelta(hours=4), "cert_expired"),
    ):
        with pytest.raises(VerificationError) as caught:
            Nitro().authenticate(document, now)
        assert caught.value.reason == reason


def test_the_age_of_a_document() -> None:
    """At most an hour old, at most five minutes ahead."""
    document = aws.document()
    for seconds in (-300, 0, 3600):
        Nitro(aws.root()).authenticate(document, aws.NOW + timedelta(seconds=seconds))
    for seconds in (-301, 3601):
        refused = refusal(document, aws.NOW + timedelta(seconds=seconds))
        assert type(refused) is VerificationError
        assert refused.reason == "document_expired"
        assert "ask the enclave for a new one" in str(refused)


def test_the_stand_in() -> None:
    """A made document leads to a made root, with and without the tag, and to no other."""
    found = Nitro(aws.root()).authenticate(aws.document(), aws.NOW)
    assert found.report_data == bytes(range(64))
    assert found.chain == (aws.leaf(), *reversed(aws.chain()))
    assert Nitro(aws.root()).authenticate(b"\xd2" + aws.document(), aws.NOW) == found
    with pytest.raises(SignatureError) as caught:
        Nitro().authenticate(aws.document(), aws.NOW)
    assert caught.value.reason == "untrusted_root"


def test_whose_root() -> None:
    """AWS's key is genuine whoever hands it in."""
    assert Nitro().genuine
    assert Nitro(AWS_ROOT).genuine
    assert not Nitro(aws.root()).genuine
    assert not Nitro(AMD_ROOTS["Milan"]).genuine
    with pytest.raises(FormatError):
        Nitro(b"no certificate")


def test_the_root_in_the_bundle_does_not_count() -> None:
    """Whatever stands at its place, the root is the verifier's own."""
    _, region, zone = aws.chain()
    found = Nitro(aws.root()).authenticate(with_chain(b"anything", region, zone), aws.NOW)
    assert found.chain[-1] == aws.root()
    own = aws.certificate("region", "root", signed_by="somebody else", path_length=1)
    assert refusal(with_chain(aws.root(), own, zone)).reason == "untrusted_root"
    direct = aws.certificate("enclave", "root", authority=False)
    Nitro(aws.root()).authenticate(with_chain(b"anything", leaf=direct), aws.NOW)


@pytest.mark.parametrize(
    ("bundle", "reason"),
    [
        (lambda root, region, zone: (root, zone, region), "untrusted_root"),
        (lambda root, _, zone: (root, zone), "untrusted_root"),
        (lambda root, region, _: (root, region), "cert_bad_signature"),
        (
            lambda root, region, _: (
                root,
                region,
                aws.certificate("zone", "region", usage="crl_sign"),
            ),
            "cert_not_authority",
        ),
        (
            lambda root, region, _: (
                root,
                region,
                aws.certificate("zone", "region", authority=False),
            ),
            "cert_not_authority",
        ),
        (
            lambda root, _, zone: (root, aws.certificate("region", "root", path_length=0), zone),
            "cert_not_authority",
        ),
        (
            lambda root, region, _: (
                root,
                region,
                aws.certificate("zone", "region", valid_until=aws.NOW - timedelta(seconds=1)),
            ),
            "cert_expired",
        ),
        (
            lambda root, region, _: (
                root,
                region,
                aws.certificate("zone", "region", extension=x509.PolicyConstraints(0, None)),
            ),
            "cert_unknown_extension",
        ),
        (
            lambda root, region, _: (
                root,
                region,
                aws.certificate("zone", "region", algorithm=SHA256),
            ),
            "cert_bad_signature",
        ),
        (lambda root, region, _: (root, region, b"zone"), "cert_malformed"),
    ],
)
def test_bundles_that_do_not_hold(
    bundle: Callable[[bytes, bytes, bytes], tuple[bytes, ...]], reason: str
) -> None:
    """Order, authority, length of the path, dates, extensions and algorithms all count."""
    assert refusal(with_chain(*bundle(*aws.chain()))).reason == reason


def test_certificates_that_may_not_sign() -> None:
    """An authority, one whose usage is another, and a key on another curve sign no documents."""
    for leaf in (
        aws.certificate("enclave", "zone"),
        aws.certificate("enclave", "zone", authority=False, usage="key_agreement"),
    ):
        refused = refusal(with_chain(*aws.chain(), leaf=leaf))
        assert refused.reason == "cert_not_authority"
    leaf = aws.certificate("enclave", "zone", authority=False, curve=ec.SECP256R1)
    refused = refusal(with_chain(*aws.chain(), leaf=leaf))
    assert (refused.reason, "not P-384" in str(refused)) == ("document_bad_signature", True)
    late = aws.certificate("enclave", "zone", authority=False, valid_until=aws.NOW - aws.DAY / 2)
    assert isinstance(refusal(with_chain(*aws.chain(), leaf=late)), CollateralExpiredError)


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (lambda: aws.document(protected=cbor2.dumps({1: -7})), "document_algorithm"),
        (lambda: aws.document(protected=cbor2.dumps({})), "document_algorithm"),
        (lambda: aws.document(protected=b""), "document_algorithm"),
        (lambda: aws.document(protected=cbor2.dumps({1: "ES384"})), "document_algorithm"),
        (lambda: aws.document(unprotected={1: -35}), "document_algorithm"),
        (lambda: aws.document(unprotected={2: [1]}), "document_algorithm"),
        (
            lambda: aws.document(protected=cbor2.dumps({1: -35, 2: [1, 4]})),
            "document_critical_header",
        ),
        (lambda: aws.document(protected=cbor2.dumps({1: -35, 2: []})), "document_critical_header"),
        (lambda: aws.document(protected=cbor2.dumps({1: -35, 2: 1})), "document_critical_header"),
        (lambda: aws.document(signer=aws.key("another")), "document_bad_signature"),
        (lambda: aws.document(algorithm=SHA256), "document_bad_signature"),
        (
            lambda: cbor2.dumps([*cbor2.loads(aws.document())[:3], bytes(96)]),
            "document_bad_signature",
        ),
        (lambda: cbor2.dumps([*cbor2.loads(aws.document())[:3], b"r"]), "document_bad_signature"),
    ],
)
def test_signatures_that_do_not_hold(document: Callable[[], bytes], reason: str) -> None:
    """The algorithm is ES384, told where it is signed; nothing unknown is critical."""
    refused = refusal(document())
    assert isinstance(refused, SignatureError)
    assert refused.reason == reason


def test_headers_that_are_fine() -> None:
    """`alg` may be called critical; others may be there if they are not."""
    for protected, unprotected in (
        ({1: -35, 2: [1]}, {}),
        ({1: -35, 3: "text/plain"}, {}),
        ({1: -35}, {4: b"key", "x": 1}),
    ):
        document = aws.document(protected=cbor2.dumps(protected), unprotected=unprotected)
        Nitro(aws.root()).authenticate(document, aws.NOW)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"module_id": ""}, "module_id"),
        ({"digest": "SHA256"}, "digest"),
        ({"digest": ...}, "digest"),
        ({"timestamp": ...}, "timestamp"),
        ({"timestamp": 0}, "timestamp"),
        ({"timestamp": 1 << 63}, "timestamp"),
        ({"pcrs": {0: bytes(48), 1: bytes(48)}}, "no PCR 2"),
        ({"pcrs": {n: bytes(48) for n in range(33)}}, "beside 0 to 31"),
        ({"pcrs": {n: bytes(48) for n in (-1, 0, 1, 2)}}, "beside 0 to 31"),
        ({"user_data": bytes(513)}, "user_data"),
        ({"nonce": bytes(513)}, "nonce"),
        ({"public_key": bytes(1025)}, "public_key"),
        ({"certificate": ...}, "1 to 1024 bytes"),
        ({"certificate": bytes(1025)}, "1 to 1024 bytes"),
        ({"cabundle": ...}, "1 to 10 certificates"),
        ({"cabundle": []}, "1 to 10 certificates"),
        ({"cabundle": [b"x"] * 11}, "1 to 10 certificates"),
        ({"cabundle": [b"", b"x"]}, "1 to 1024 bytes"),
    ],
)
def test_limits_of_a_document(changes: dict[str, object], text: str) -> None:
    """Fields are as AWS describes them."""
    with pytest.raises(FormatError, match=text):
        Nitro(aws.root()).authenticate(aws.document(aws.payload(**changes)), aws.NOW)


def test_fields_that_may_be_full() -> None:
    """The caller's three may be as long as AWS allows, or not there."""
    full = aws.payload(user_data=bytes(512), nonce=bytes(512), public_key=bytes(1024))
    assert Nitro(aws.root()).authenticate(aws.document(full), aws.NOW).report_data == bytes(512)
    bare = aws.payload(user_data=..., nonce=..., public_key=...)
    assert Nitro(aws.root()).authenticate(aws.document(bare), aws.NOW).report_data == b""


def test_shapes_that_are_none() -> None:
    """Bytes behind the document, another tag, and the document of a NitroTPM are refused."""
    nitro = Nitro(aws.root())
    for document in (
        aws.document() + b"\0",
        b"\xd3" + aws.document(),
        b"\xd2\xd2" + aws.document(),
    ):
        with pytest.raises(FormatError):
            nitro.authenticate(document, aws.NOW)
    for changes in ({"pcrs": ...}, {}):
        fields = aws.payload(nitrotpm_pcrs={n: bytes(48) for n in range(3)}, **changes)
        with pytest.raises(UnsupportedError, match="NitroTPM"):
            nitro.authenticate(aws.document(fields), aws.NOW)
    with pytest.raises(UsageError, match="aware"):
        nitro.authenticate(aws.document(), datetime.fromisoformat("2026-08-01"))


def test_it_pickles() -> None:
    """A verifier goes to another process."""
    nitro = pickle.loads(pickle.dumps(Nitro(aws.root())))
    assert nitro.authenticate(aws.document(), aws.NOW).device == b"i"


@settings(deadline=None)  # machines are busy
@given(st.binary(max_size=80) | mutations(GOOD))
def test_any_bytes(document: bytes) -> None:
    """Whatever comes, only our errors come out, or what was signed in another spelling of CBOR."""
    try:
        found = Nitro(aws.root()).authenticate(document, aws.NOW)
    except AttestKitError:
        return
    assert found == Nitro(aws.root()).authenticate(GOOD, aws.NOW)
