"""Hashes and HKDF give the published values; unknown names and sizes are rejected."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit._crypto import hashes
from attestkit.errors import UsageError
from tests.raising import raises
from tests.runner.cases import every_case

# Keccak team, KeccakKAT.zip: the empty message.
KECCAK_EMPTY = {
    "keccak256": "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470",
    "keccak384": (
        "2c23146a63a29acf99e73b88f8c24eaa7dc60aa771780ccc006afbfa8fe2479b"
        "2dd2b21362337441ac12b515911957ff"
    ),
    "keccak512": (
        "0eab42de4c3ceb9235fc91acffe746b29c29a8c366b7c60e4e67c466f36a4304"
        "c00fa9caf9d87976ba469bcbe06713b435f091ef2769fb160cdab33d3670680e"
    ),
}
HASHLIB = ("sha256", "sha384", "sha512", "sha3-256", "sha3-384", "sha3-512")


@given(st.binary(max_size=300))
def test_digest_by_name_equals_hashlib(data: bytes) -> None:
    """Each SHA-2 and SHA-3 name means the hash of that name in hashlib."""
    for name in HASHLIB:
        expected = hashlib.new(name.replace("-", "_"), data).digest()
        assert hashes.digest(name, data) == expected
    assert hashes.sha256(data) == hashes.digest("sha256", data)
    assert hashes.sha384(data) == hashes.digest("sha384", data)
    assert hashes.sha512(data) == hashes.digest("sha512", data)


@pytest.mark.parametrize("name", KECCAK_EMPTY)
def test_digest_of_keccak_differs_from_sha3(name: str) -> None:
    """Keccak has its original padding, which gives another digest than SHA-3."""
    assert hashes.digest(name, b"").hex() == KECCAK_EMPTY[name]
    assert hashes.digest(name, b"") != hashes.digest(name.replace("keccak", "sha3-"), b"")


def test_keccak256_equals_named_digest() -> None:
    """`keccak256` is the digest of that name."""
    assert hashes.keccak256(b"abc") == hashes.digest("keccak256", b"abc")


@every_case("name", ["", "md5", "SHA256", "sha-256", "raw", "sha3_256", "sha256 "])
def test_digest_of_unknown_name_fails(name: str) -> None:
    """Names are case-sensitive, and the error has the agent's text."""
    with raises(UsageError, "unsupported_algorithm", text="invalid hash algorithm"):
        hashes.digest(name, b"")


def test_algorithms_lists_every_digest() -> None:
    """`ALGORITHMS` contains the names that `digest` accepts."""
    assert set(hashes.ALGORITHMS) == {*HASHLIB, *KECCAK_EMPTY}


def test_hkdf_matches_rfc5869() -> None:
    """The first case of RFC 5869, appendix A."""
    salt, info = bytes(range(13)), bytes(range(0xF0, 0xFA))
    assert hashes.hkdf_sha256(b"\x0b" * 22, info, 42, salt).hex() == (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )


def test_hkdf_output_is_prefix_up_to_8160_bytes() -> None:
    """A shorter output is a prefix of a longer one; more than 8160 bytes are rejected."""
    longest = hashes.hkdf_sha256(b"k", b"i", 8160, b"s")
    assert len(longest) == 8160
    for length in (0, 1, 31, 32, 33, 64, 65):
        assert hashes.hkdf_sha256(b"k", b"i", length, b"s") == longest[:length]
    for length in (-1, 8161):
        with raises(UsageError, "out_of_range"):
            hashes.hkdf_sha256(b"k", b"i", length, b"s")
