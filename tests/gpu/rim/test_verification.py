"""Verification of RIMs: certificates, dates, cached results, and the verdicts of the samples."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from hashlib import sha384

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import ExtendedKeyUsageOID

from attestkit._crypto.p384 import P384Key
from attestkit.errors import (
    AttestKitError,
    CollateralExpiredError,
    FormatError,
    SignatureError,
)
from attestkit.gpu.rim import verification
from attestkit.gpu.rim.manifest import Rim
from attestkit.gpu.rim.verification import verify_rim
from tests.gpu.rim import samples
from tests.gpu.rim.rims import (
    AUTHORITIES,
    END,
    HASHES,
    NOW,
    SIGNER,
    START,
    CertificateShape,
    Signer,
    certificate,
    chain,
    manifest,
    resource,
    sign,
    signer,
)
from tests.raising import raises
from tests.runner.cases import every_case


def failed_check(error: AttestKitError) -> str:
    """Return the check that an error is about."""
    if isinstance(error, FormatError):
        return "format"
    return "signature" if error.reason == "bad_signature" else "chain"


SECOND = timedelta(seconds=1)
GOOD = sign(manifest())


@pytest.mark.slow
@samples.needs_shared
@every_case("name", samples.EXPECTED["rims"])
def test_verdict_on_sample(name: str) -> None:
    """An authentic RIM is accepted from the first to the last second of its chain, no longer."""
    expected = samples.EXPECTED["rims"][name]
    rim, root = samples.read(name), samples.rim_root()
    first, last = map(samples.at, expected["chain_valid_interval"])
    if not expected["authentic_inside_interval"]:
        for now in (first, last):
            with raises(SignatureError, "bad_signature", "untrusted_root"):
                verify_rim(rim, root, now)
        return
    for now in (first - SECOND, last + SECOND):
        with raises(CollateralExpiredError, "cert_expired"):
            verify_rim(rim, root, now)
    for now in (first, last):
        verified = verify_rim(rim, root, now)
        assert verified.rim.tag_id == expected["tag_id"]
        assert (verified.valid_from, verified.valid_until) == (first, last)
        assert verified.signer == expected["certificates"][0]
        assert len(verified.certificates) == len(expected["certificates"])
        assert verified.rim == Rim.parse(rim)
    for now in (first - SECOND, last + SECOND):  # as above, now from the cache
        with raises(CollateralExpiredError, "cert_expired"):
            verify_rim(rim, root, now)


@samples.needs_shared
@every_case("source", ["driver", "vbios"])
@every_case("case", samples.CASES, ids=lambda case: case["name"])
def test_verdict_on_fabricated_case(case: Mapping[str, str], source: str) -> None:
    """The RIMs of the cases verify, except where the case is about them."""
    folder = f"fabricated/{case['name']}"
    rim = samples.read(f"{folder}/{source}-rim.xml")
    root = samples.rim_root(f"{folder}/rim-root.pem")
    _, is_of_rim, check = (case["failed_check"] or "").rpartition("driver_rim_")
    # In one case the signer of both is expired; in another all roots are of other keys.
    fails = is_of_rim != "" and (source == "driver" or case["name"] == "rim-leaf-expired")
    if case["name"] == "chain-other-root":
        check, fails = "chain", True
    if fails and check in {"format", "chain", "signature"}:
        with pytest.raises(AttestKitError) as caught:
            verify_rim(rim, root, samples.at(case["time"]))
        assert failed_check(caught.value) == check
    else:
        assert verify_rim(rim, root, samples.at(case["time"])).rim.active


def test_rim_of_tests_is_accepted() -> None:
    """The verified RIM has content, certificates and dates."""
    verified = verify_rim(GOOD, signer().root, NOW)
    assert verified.rim.measurements[0].alternatives == HASHES[:1]
    assert verified.certificates == signer().certificates
    assert verified.signer == "test RIM signer"
    assert (verified.valid_from, verified.valid_until) == (START, END)


def test_every_prefix_is_rejected() -> None:
    """A RIM that ends early is malformed."""
    for end in range(0, len(GOOD), 7):
        with raises(FormatError, "truncated", "syntax"):
            verify_rim(GOOD[:end], signer().root, NOW)


# -- certificates ----------------------------------------------------------------------------------

CHAINS: Mapping[str, tuple[Sequence[CertificateShape], str]] = {
    "signer is a CA": ([SIGNER._replace(authority=True), *AUTHORITIES[1:]], "cert_not_authority"),
    "CA is none": (
        [SIGNER, AUTHORITIES[0]._replace(authority=False, path_length=None), *AUTHORITIES[1:]],
        "cert_not_authority",
    ),
    "path too long": (
        [SIGNER, AUTHORITIES[0], AUTHORITIES[1]._replace(path_length=0), AUTHORITIES[2]],
        "cert_not_authority",
    ),
    "unknown critical extension": (
        [
            SIGNER._replace(
                extension=x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\5\0")
            ),
            *AUTHORITIES,
        ],
        "cert_unknown_extension",
    ),
}


@every_case(("shapes", "reason"), CHAINS.values(), ids=CHAINS)
def test_certificates_that_are_no_path_are_refused(
    shapes: Sequence[CertificateShape], reason: str
) -> None:
    """Each certificate may do what it does in the path."""
    by = chain(*shapes)
    with raises(SignatureError, reason) as caught:
        verify_rim(sign(manifest(), by), by.root, NOW)
    assert failed_check(caught.value) == "chain"


def test_two_and_three_certificates_are_accepted() -> None:
    """The number of CAs between signer and root may change."""
    for shapes in ([SIGNER, AUTHORITIES[-1]], [SIGNER, *AUTHORITIES[1:]]):
        by = chain(*shapes)
        assert verify_rim(sign(manifest(), by), by.root, NOW).certificates == by.certificates


def _lists() -> dict[str, tuple[Sequence[bytes], str]]:
    leaf, l3, authority, root = signer().certificates
    other = signer(1).certificates
    return {
        "root left out": ([leaf, l3, authority], "untrusted_root"),
        "CA left out": ([leaf, authority, root], "cert_bad_signature"),
        "L3 and CA swapped": ([leaf, authority, l3, root], "cert_bad_signature"),
        "root first": ([root, leaf, l3, authority], "untrusted_root"),
        "signer twice": ([leaf, leaf, l3, authority, root], "chain_length"),
        "root twice": ([leaf, l3, authority, root, root], "chain_length"),
        "another signer": ([other[0], l3, authority, root], "cert_bad_signature"),
        "signer below another": ([leaf, *other[1:3], root], "untrusted_root"),
        "another one first": ([other[0], leaf, l3, authority, root], "cert_bad_signature"),
        "another one between": ([leaf, other[1], l3, authority, root], "cert_bad_signature"),
        "another one behind": ([leaf, l3, authority, root, other[0]], "untrusted_root"),
        "all of another root": (other, "untrusted_root"),
    }


@every_case("name", _lists())
def test_other_certificates_are_refused(name: str) -> None:
    """The list is the path from the signer to the root: none missing, added, or out of order."""
    certificates, reason = _lists()[name]
    xml = sign(manifest(), certificates=certificates)
    with pytest.raises(SignatureError) as caught:
        verify_rim(xml, signer().root, NOW)
    assert caught.value.reason in {reason, "untrusted_root", "cert_not_authority"}
    assert failed_check(caught.value) == "chain"


def test_signature_of_another_key_is_refused() -> None:
    """The key is that of the verified signer, not any other of the path."""
    by = Signer(P384Key(2), signer().certificates)  # of L3
    with raises(SignatureError, "bad_signature", start="XML signature: ") as caught:
        verify_rim(sign(manifest(), by), signer().root, NOW)
    assert failed_check(caught.value) == "signature"


def test_another_root_certificate_of_the_same_key_is_replaced() -> None:
    """The root's key and name are trusted, and the given certificate takes the place of others."""
    given = certificate(AUTHORITIES[-1], P384Key(4), AUTHORITIES[-1].name, P384Key(4), serial=99)
    verified = verify_rim(GOOD, given, NOW)
    assert verified.certificates == (*signer().certificates[:-1], given)
    renamed = AUTHORITIES[-1]._replace(name="other")
    with raises(SignatureError, "untrusted_root"):
        verify_rim(GOOD, certificate(renamed, P384Key(4), "other", P384Key(4)), NOW)


@pytest.mark.parametrize("at", [20, 100, -1])
def test_altered_root_certificate_is_refused(at: int) -> None:
    """A root that is not the trusted certificate must be signed by the trusted key."""
    root = bytearray(signer().root)
    root[at] ^= 1
    xml = sign(manifest(), certificates=[*signer().certificates[:-1], bytes(root)])
    with pytest.raises((SignatureError, FormatError)):
        verify_rim(xml, signer().root, NOW)


def test_other_signature_algorithm_of_certificates_is_refused() -> None:
    """Certificates are signed by ECDSA with SHA-384 alone."""
    leaf = x509.load_der_x509_certificate(signer().certificates[0])
    old = leaf.tbs_certificate_bytes
    sha256_oid = bytes.fromhex("2a8648ce3d040302")
    assert old.count(bytes.fromhex("2a8648ce3d040303")) == 1
    body = old.replace(bytes.fromhex("2a8648ce3d040303"), sha256_oid)
    value = P384Key(2).private.sign(body, ECDSA(SHA256()))
    bits = b"\0" + value
    inner = body + bytes.fromhex("300a06082a8648ce3d040302") + b"\3" + bytes([len(bits)]) + bits
    der = b"\x30\x82" + len(inner).to_bytes(2, "big") + inner
    with raises(SignatureError, "cert_bad_signature"):
        verify_rim(
            sign(manifest(), certificates=[der, *signer().certificates[1:]]), signer().root, NOW
        )


def test_malformed_root_is_rejected() -> None:
    """A root that is not a certificate is a FormatError."""
    with pytest.raises(FormatError):
        verify_rim(GOOD, b"root", NOW)


@every_case("at", range(4))
def test_each_certificate_must_be_valid(at: int) -> None:
    """The verification time is within the dates of all certificates, also of a kept RIM."""
    shapes = [SIGNER, *AUTHORITIES]
    shapes[at] = shapes[at]._replace(start=START + SECOND, end=END - SECOND)
    by = chain(*shapes)
    xml = sign(manifest(), by)
    for _ in range(2):
        for now in (START, END):
            with raises(CollateralExpiredError, "cert_expired") as caught:
                verify_rim(xml, by.root, now)
            assert failed_check(caught.value) == "chain"
        for now in (START + SECOND, END - SECOND):
            assert verify_rim(xml, by.root, now).valid_from == START + SECOND


def test_expired_signer_is_reported_before_the_signature() -> None:
    """The chain is checked before the signature, so an expired RIM has one error."""
    at = GOOD.index(b"GH100")
    altered = GOOD[:at] + b"GB100" + GOOD[at + 5 :]
    with raises(CollateralExpiredError, "cert_expired"):
        verify_rim(altered, signer().root, END + SECOND)
    with raises(SignatureError, "bad_signature"):
        verify_rim(altered, signer().root, NOW)


# -- kept results ----------------------------------------------------------------------------------


def test_signature_is_verified_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second verification of the same bytes verifies no signature, and has the same result."""
    first = verify_rim(GOOD, signer().root, NOW)
    monkeypatch.setattr(verification, "verify_signature", None)
    assert verify_rim(bytes(bytearray(GOOD)), signer().root, NOW + SECOND) is first


def test_kept_result_is_of_one_root() -> None:
    """A RIM that was verified up to one root is not accepted for another."""
    verify_rim(GOOD, signer().root, NOW)
    with raises(SignatureError, "untrusted_root"):
        verify_rim(GOOD, signer(1).root, NOW)


def test_refusal_is_not_kept() -> None:
    """A RIM that was not valid at one time is verified again."""
    xml = sign(manifest([resource(5, sha384(b"again").digest())]))
    with raises(CollateralExpiredError, "cert_expired"):
        verify_rim(xml, signer().root, END + SECOND)
    assert verify_rim(xml, signer().root, NOW).rim.active == {5}


def test_number_of_kept_results_is_limited() -> None:
    """As many RIMs are kept as documented."""
    assert verification._VERIFIED._size == verification.KEPT_RIMS


def test_key_of_an_ocsp_responder_signs_no_rim() -> None:
    """The issuer of the signer certifies OCSP responders, too, whose keys have that purpose."""
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING])
    for critical, reason in ((True, "cert_unknown_extension"), (False, "cert_not_authority")):
        shape = SIGNER._replace(extension=usage, critical=critical)
        other = chain(shape, *AUTHORITIES, seed=9)
        with raises(SignatureError, reason):
            verify_rim(sign(manifest(), other), other.certificates[-1], NOW)
