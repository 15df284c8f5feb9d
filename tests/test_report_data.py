"""Report data is 64 bytes, by the agent's rules, and a likely mistake is warned about."""

import hashlib
import warnings
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.errors import UsageError
from attestkit.report_data import ReportData, ReportDataWarning
from tests.vectors import load, needs_shared

VECTORS = load("report_data.json")
APP_KEYS = load("app_key_attestation.json")


@needs_shared
@pytest.mark.parametrize("case", VECTORS.get("cases", []))
def test_bind(case: dict[str, str]) -> None:
    """Tag, content and algorithm give the published bytes."""
    bound = ReportData.bind(case["tag"], bytes.fromhex(case["content"]), case["algorithm"])
    assert bound.hex() == case["report_data"]


@needs_shared
@pytest.mark.parametrize("case", VECTORS.get("pad64", []))
def test_pad(case: dict[str, str]) -> None:
    """Zeros follow on the right, up to 64 bytes."""
    assert ReportData.from_hex(case["input"]).hex() == case["report_data"]
    data = bytes.fromhex(case["input"].removeprefix("0x"))
    assert ReportData.pad(data).hex() == case["report_data"]


def test_ratls_binding() -> None:
    """A binding is the plain hash over tag, colon and content; SHA-512 unless said."""
    expected = hashlib.sha512(b"ratls-cert:key").digest()
    assert ReportData.bind(ReportData.RATLS_CERT, b"key") == expected
    assert ReportData.bind("ratls-cert", b"key", "") == expected
    assert ReportData.bind(ReportData.APP_DATA, b"key") != expected


@given(st.binary(max_size=64))
def test_pad_keeps_what_it_gets(data: bytes) -> None:
    """The bytes come first, nothing but zeros after them; hashing is left to `bind`."""
    padded = ReportData.pad(data)
    assert len(padded) == ReportData.SIZE == 64
    assert padded[: len(data)] == data
    assert not any(padded[len(data) :])


@pytest.mark.parametrize("size", [65, 66, 128, 4096])
def test_too_long(size: int) -> None:
    """More than 64 bytes are refused with the agent's text, on every way in."""
    with pytest.raises(UsageError, match=r"^Report data is too long$"):
        ReportData.pad(b"x" * size)
    with pytest.raises(UsageError, match=r"^Report data is too long$"):
        ReportData.from_text("x" * size)
    with pytest.raises(UsageError, match=r"^Report data is too long$"):
        ReportData.from_hex("00" * size)


@pytest.mark.parametrize("data", [bytearray(4), memoryview(b"abcd"), "text", None, 5])
def test_only_bytes(data: Any) -> None:
    """What another thread could change, or what is no bytes at all, does not get in."""
    with pytest.raises(UsageError, match=type(data).__name__):
        ReportData.pad(data)
    with pytest.raises(UsageError, match=type(data).__name__):
        ReportData.bind("tag", data)


@pytest.mark.parametrize("size", [0, 4, 63, 65])
def test_raw_wants_64_bytes(size: int) -> None:
    """Without a hash the content must be the report data itself, and the tag does not matter."""
    assert ReportData.bind("any", b"*" * 64, "raw") == b"*" * 64
    with pytest.raises(UsageError, match=r"^invalid content length$"):
        ReportData.bind("", bytes(size), "raw")


@pytest.mark.parametrize("algorithm", ["md5", "SHA512", "RAW", "sha-512", " ", "none"])
def test_unknown_algorithm(algorithm: str) -> None:
    """Another name is refused with the agent's text."""
    with pytest.raises(UsageError, match=r"^invalid hash algorithm$"):
        ReportData.bind("app-data", b"", algorithm)


def test_texts() -> None:
    """Hex may have 0x and either case; text is UTF-8; neither may be something else."""
    assert ReportData.from_hex("") == bytes(64)
    assert (
        ReportData.from_hex("0xABcd") == ReportData.from_hex("abCD") == ReportData.pad(b"\xab\xcd")
    )
    assert ReportData.from_text("é") == ReportData.pad(b"\xc3\xa9")
    for text in ("0", "0x0", "xx", "0xzz", "é"):
        with pytest.raises(UsageError, match="not hex"):
            ReportData.from_hex(text)
    with pytest.raises(UsageError, match="surrogate"):
        ReportData.from_text("\ud800")
    with pytest.raises(UsageError, match="surrogate"):
        ReportData.bind("\ud800", b"")


@pytest.mark.parametrize(
    "data", [b"ab" * 16, b"AB" * 32, b"0x" + b"0123456789abcdef" * 2, b"00" * 20]
)
def test_hex_text_is_warned_about(data: bytes) -> None:
    """Hex digits where bytes were meant: they are taken as they are, and a warning says so."""
    with pytest.warns(ReportDataWarning, match="from_hex") as caught:
        assert ReportData.pad(data) == data.ljust(64, b"\0")
    assert caught[0].filename == __file__


def test_the_warning_comes_once_from_one_place() -> None:
    """A server that is sent such data does not fill its log."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(10):
            ReportData.pad(b"ab" * 32)
    assert len(caught) == 1


@pytest.mark.parametrize(
    "data", [b"ab" * 15, b"ab" * 31 + b"x", b"abc" * 11, b"nonce", bytes(32), b"g" * 32]
)
def test_other_bytes_are_not_warned_about(data: bytes) -> None:
    """Short text, odd text, text with another letter and raw hashes pass in silence."""
    ReportData.pad(data)  # warnings are errors here


@needs_shared
@pytest.mark.parametrize("case", APP_KEYS.get("cases", []))
def test_app_key(case: dict[str, Any]) -> None:
    """An application's key is written as the agent writes it."""
    public = bytes.fromhex(case["public_key"])
    found = ReportData.for_app_key(case["request"]["algorithm"], public)
    assert found.hex() == case["report_data"]
    assert found.rstrip(b"\0").decode() == case["report_data_text"]


@pytest.mark.parametrize("algorithm", ["", "rsa", "secp256k1_prehashed", "ED25519"])
def test_app_key_of_another_algorithm(algorithm: str) -> None:
    """Only the algorithms of signing keys have such a text."""
    with pytest.raises(UsageError, match=r"^Unsupported algorithm$"):
        ReportData.for_app_key(algorithm, bytes(32))


@pytest.mark.parametrize(("algorithm", "size"), [("ed25519", 33), ("secp256k1", 32), ("k256", 65)])
def test_app_key_of_another_size(algorithm: str, size: int) -> None:
    """A key of another size would be another text, so it is refused."""
    with pytest.raises(UsageError, match=str(size)):
        ReportData.for_app_key(algorithm, bytes(size))


@given(st.text(max_size=20), st.binary(max_size=80), st.text(max_size=10))
def test_any_input(text: str, data: bytes, algorithm: str) -> None:
    """Whatever comes in, it is 64 bytes or a UsageError."""
    with suppress(UsageError):
        assert len(ReportData.bind(text, data, algorithm)) == 64
    with suppress(UsageError):
        assert len(ReportData.from_hex(text)) == 64
    with suppress(UsageError):
        assert len(ReportData.from_text(text)) == 64
    with suppress(UsageError):
        assert len(ReportData.for_app_key(algorithm, data)) == 64
