"""Report data is 64 bytes by the agent's rules, with a warning for a likely mistake."""

import hashlib
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.errors import UsageError
from attestkit.report_data import ReportData, ReportDataWarning, gpu_nonce
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped
from tests.vectors import load, needs_shared

if TYPE_CHECKING:
    from collections.abc import Callable

VECTORS = load("report_data.json")
APP_KEYS = load("app_key_attestation.json")


@needs_shared
@every_case("case", VECTORS.get("cases", []))
def test_bind_matches_vector(case: dict[str, str]) -> None:
    """Tag, content and algorithm give the published bytes."""
    bound = ReportData.bind(case["tag"], bytes.fromhex(case["content"]), case["algorithm"])
    assert bound.hex() == case["report_data"]


@needs_shared
@pytest.mark.parametrize("case", VECTORS.get("pad64", []))
def test_pad_matches_vector(case: dict[str, str]) -> None:
    """Data is zero-padded on the right to 64 bytes."""
    assert ReportData.from_hex(case["input"]).hex() == case["report_data"]
    data = bytes.fromhex(case["input"].removeprefix("0x"))
    assert ReportData.pad(data).hex() == case["report_data"]


def test_bind_is_hash_of_tag_and_content() -> None:
    """A binding is the hash over tag, colon and content; the default is SHA-512."""
    expected = hashlib.sha512(b"ratls-cert:key").digest()
    assert ReportData.bind(ReportData.RATLS_CERT, b"key") == expected
    assert ReportData.bind("ratls-cert", b"key", "") == expected
    assert ReportData.bind(ReportData.APP_DATA, b"key") != expected


@given(st.binary(min_size=8, max_size=64))
def test_nonce_has_tag_of_its_own(nonce: bytes) -> None:
    """A nonce is bound by SHA-512 over its own tag, unlike every other binding."""
    bound = ReportData.for_nonce(nonce)
    assert bound == hashlib.sha512(b"nonce:" + nonce).digest()
    assert bound != ReportData.pad(nonce)
    for tag in (ReportData.RATLS_CERT, ReportData.APP_DATA, ReportData.KMS_ROOT_CA):
        assert bound != ReportData.bind(tag, nonce)


@given(st.binary(min_size=8, max_size=64), st.binary(max_size=100))
def test_nonce_and_key_have_tag_of_their_own(nonce: bytes, spki: bytes) -> None:
    """A nonce and a TPM's key are bound by their hashes, so neither can borrow of the other."""
    bound = ReportData.for_nonce_and_ak(nonce, spki)
    content = hashlib.sha256(nonce).digest() + hashlib.sha256(spki).digest()
    assert bound == hashlib.sha512(b"nonce+ak:" + content).digest()
    assert bound != ReportData.for_nonce(content)
    with raises(UsageError, "wrong_size"):
        ReportData.for_nonce_and_ak(bytes(7), spki)
    with raises(UsageError, "wrong_type"):
        ReportData.for_nonce_and_ak(nonce, untyped(None))


def test_for_nonce_and_gpu_binds_both_hashes() -> None:
    """Nonce and evidence of GPUs are hashed under a tag of their own, and the GPUs' nonce too."""
    nonce, evidence = bytes(range(32)), b"[]"
    content = hashlib.sha256(nonce).digest() + hashlib.sha256(evidence).digest()
    bound = ReportData.for_nonce_and_gpu(nonce, evidence)
    assert bound == hashlib.sha512(b"nonce+gpu:" + content).digest()
    assert gpu_nonce(nonce) == hashlib.sha256(b"attestkit-gpu-nonce:" + nonce).digest()
    for wrong in (bytes(7), bytes(65)):
        with pytest.raises(UsageError):
            ReportData.for_nonce_and_gpu(wrong, evidence)
        with pytest.raises(UsageError):
            gpu_nonce(wrong)
    with pytest.raises(UsageError):
        ReportData.for_nonce_and_gpu(nonce, untyped("[]"))


def test_gpus_and_key_have_tag_of_their_own() -> None:
    """Report data of GPUs with a TPM's key are not those of a nonce that a challenger chose."""
    bound = ReportData.for_nonce_and_gpu(bytes(32), b"[]")
    found = ReportData.for_gpu_and_ak(bound, b"key")
    content = hashlib.sha256(bound).digest() + hashlib.sha256(b"key").digest()
    assert found == hashlib.sha512(b"nonce+gpu+ak:" + content).digest()
    assert found != ReportData.for_nonce_and_ak(bound, b"key")
    with raises(UsageError, "wrong_size"):
        ReportData.for_gpu_and_ak(bound[:63], b"key")
    with raises(UsageError, "wrong_type"):
        ReportData.for_gpu_and_ak(bound, untyped(None))


APP_KEY = ("ed25519", bytes(32)), ("secp256k1", bytes(33))


@given(st.binary(min_size=8, max_size=64))
def test_nonce_is_bound_unlike_every_key(nonce: bytes) -> None:
    """A nonce is hashed with another prefix than each binding; a `dip1` binding is plain text.

    So the only nonces with the report data of a key are collisions of SHA-512.
    """
    tags = (ReportData.RATLS_CERT, ReportData.APP_DATA, ReportData.KMS_ROOT_CA)
    for tag in tags:
        assert not f"{tag}:".startswith(f"{ReportData.NONCE}:")
        assert not f"{ReportData.NONCE}:".startswith(f"{tag}:")
    for binding in (ReportData.for_app_key(*key) for key in APP_KEY):
        assert binding.startswith(b"dip1::")
        assert binding.isascii()
        assert binding != ReportData.for_nonce(nonce)
        assert binding != ReportData.for_nonce(binding)


@given(st.binary(max_size=64))
def test_pad_keeps_data_and_appends_zeros(data: bytes) -> None:
    """The data come first, followed by zeros only."""
    padded = ReportData.pad(data)
    assert len(padded) == ReportData.SIZE == 64
    assert padded[: len(data)] == data
    assert not any(padded[len(data) :])


@every_case("size", [65, 66, 128, 4096])
def test_report_data_over_64_bytes_fails(size: int) -> None:
    """More than 64 bytes are rejected with the agent's text by every constructor."""
    inputs: list[tuple[Callable[[Any], bytes], str | bytes]] = [
        (ReportData.pad, b"x" * size),
        (ReportData.from_text, "x" * size),
        (ReportData.from_hex, "00" * size),
    ]
    for make, data in inputs:
        with raises(UsageError, "too_large") as caught:
            make(data)
        assert str(caught.value) == "Report data is too long"


@every_case("data", [bytearray(4), memoryview(b"abcd"), "text", None, 5])
def test_report_data_of_other_type_is_usage_error(data: Any) -> None:
    """Mutable buffers and other types are rejected."""
    with raises(UsageError, "wrong_type"):
        ReportData.pad(data)
    with raises(UsageError, "wrong_type"):
        ReportData.bind("tag", data)


@every_case("size", [0, 4, 63, 65])
def test_bind_raw_requires_64_bytes(size: int) -> None:
    """With algorithm "raw" the content is the report data, and the tag is ignored."""
    assert ReportData.bind("any", b"*" * 64, "raw") == b"*" * 64
    with raises(UsageError, "wrong_size") as caught:
        ReportData.bind("", bytes(size), "raw")
    assert str(caught.value) == "invalid content length"


@every_case("algorithm", ["md5", "SHA512", "RAW", "sha-512", " ", "none"])
def test_bind_with_unknown_algorithm_fails(algorithm: str) -> None:
    """An unknown name is rejected with the agent's text."""
    with pytest.raises(UsageError) as caught:
        ReportData.bind("app-data", b"", algorithm)
    assert str(caught.value) == "invalid hash algorithm"


def test_from_hex_and_from_text_validate_text() -> None:
    """Hex may have the prefix 0x and either case; text is UTF-8."""
    assert ReportData.from_hex("") == bytes(64)
    assert (
        ReportData.from_hex("0xABcd") == ReportData.from_hex("abCD") == ReportData.pad(b"\xab\xcd")
    )
    assert ReportData.from_text("é") == ReportData.pad(b"\xc3\xa9")
    for text in ("0", "0x0", "xx", "0xzz", "é"):
        with raises(UsageError, "encoding"):
            ReportData.from_hex(text)
    with raises(UsageError, "encoding"):
        ReportData.from_text("\ud800")
    with raises(UsageError, "encoding"):
        ReportData.bind("\ud800", b"")


@every_case("data", [b"ab" * 16, b"AB" * 32, b"0x" + b"0123456789abcdef" * 2, b"00" * 20])
def test_pad_of_hex_text_warns(data: bytes) -> None:
    """Hex digits are used as bytes, with a warning that names `from_hex`."""
    with pytest.warns(ReportDataWarning, match="from_hex") as caught:
        assert ReportData.pad(data) == data.ljust(64, b"\0")
    assert caught[0].filename == __file__


def test_pad_warning_is_shown_once_per_location() -> None:
    """Repeated data do not fill a server's log."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(10):
            ReportData.pad(b"ab" * 32)
    assert len(caught) == 1


@every_case("data", [b"ab" * 15, b"ab" * 31 + b"x", b"abc" * 11, b"nonce", bytes(32), b"g" * 32])
def test_pad_of_other_bytes_does_not_warn(data: bytes) -> None:
    """Short text, odd lengths, other letters and raw hashes cause no warning."""
    ReportData.pad(data)  # warnings are errors in tests


@needs_shared
@pytest.mark.parametrize("case", APP_KEYS.get("cases", []))
def test_for_app_key_matches_agent(case: dict[str, Any]) -> None:
    """The text of an application's key matches the agent's."""
    public = bytes.fromhex(case["public_key"])
    found = ReportData.for_app_key(case["request"]["algorithm"], public)
    assert found.hex() == case["report_data"]
    assert found.rstrip(b"\0").decode() == case["report_data_text"]


@every_case("algorithm", ["", "rsa", "secp256k1_prehashed", "ED25519"])
def test_for_app_key_with_other_algorithm_fails(algorithm: str) -> None:
    """Only algorithms of signing keys are accepted."""
    with raises(UsageError, "unsupported_algorithm") as caught:
        ReportData.for_app_key(algorithm, bytes(32))
    wanted = f"algorithm: unsupported: '{algorithm}'; use ed25519 or secp256k1 or k256"
    assert str(caught.value) == wanted


@pytest.mark.parametrize(("algorithm", "size"), [("ed25519", 33), ("secp256k1", 32), ("k256", 65)])
def test_for_app_key_of_wrong_size_fails(algorithm: str, size: int) -> None:
    """A key has the size of its algorithm."""
    with raises(UsageError, "wrong_size"):
        ReportData.for_app_key(algorithm, bytes(size))


@given(st.text(max_size=20), st.binary(max_size=80), st.text(max_size=10))
def test_report_data_of_arbitrary_input_is_64_bytes_or_usage_error(
    text: str, data: bytes, algorithm: str
) -> None:
    """Any input gives 64 bytes or a UsageError."""
    with suppress(UsageError):
        assert len(ReportData.bind(text, data, algorithm)) == 64
    with suppress(UsageError):
        assert len(ReportData.from_hex(text)) == 64
    with suppress(UsageError):
        assert len(ReportData.from_text(text)) == 64
    with suppress(UsageError):
        assert len(ReportData.for_app_key(algorithm, data)) == 64
