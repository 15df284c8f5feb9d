"""The chip properties in AMD's certificates are read field by field, in AMD's encodings only."""

from collections.abc import Mapping

import pytest

from attestkit._crypto.pem import split_pem
from attestkit._crypto.x509.amd_extension import AmdExtension, read_amd_extension
from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit.errors import FormatError
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import data, needs_shared

PREFIX = "1.3.6.1.4.1.3704.1."
CHIP = bytes(range(64))
GOOD = {
    "1": b"\x02\x01\x00",
    "2": b"\x16\x08Milan-B0",
    "3.1": b"\x02\x01\x04",
    "3.2": b"\x02\x01\x00",
    "3.3": b"\x02\x01\x17",
    "3.4": b"\x02\x01\x00",
    "3.8": b"\x02\x02\x00\xd5",
    "4": CHIP,
}


def read_extensions(own: Mapping[str, bytes]) -> AmdExtension | None:
    """Read extensions, given by the suffix of their OID below AMD's prefix."""
    return read_amd_extension({PREFIX + suffix: value for suffix, value in own.items()})


def valid_without(*suffixes: str) -> dict[str, bytes]:
    """Return the valid extensions except for some."""
    return {suffix: value for suffix, value in GOOD.items() if suffix not in suffixes}


@needs_shared
@pytest.mark.parametrize(
    ("name", "product", "levels", "size"),
    [
        ("virtee-sev/vcek_milan.der", "Milan", (3, 0, 8, 115, None), 64),
        ("go-sev-guest/vcek.testcer", "Milan", (2, 0, 5, 68, None), 64),
        ("dstack/sev_snp_vcek.pem", "Milan", (4, 0, 23, 213, None), 64),
        ("virtee-sev/vcek_turin.der", "Turin", None, 8),
    ],
)
def test_amd_extension_of_chip_certificates_matches_report(
    name: str, product: str, levels: tuple[int | None, ...] | None, size: int
) -> None:
    """The fields match those of the report of the same chip."""
    content = data(f"snp/{name}")
    der = split_pem(content.decode())[0] if content.startswith(b"--") else content
    found = read_amd_extension(read_path_certificate(der).extensions)
    assert found is not None
    assert (found.kind, found.product, found.provider) == ("VCEK", product, "")
    assert len(found.hardware_id) == size
    if levels is None:
        assert found.fmc is not None
    else:
        assert (found.boot_loader, found.tee, found.snp, found.microcode, found.fmc) == levels


@needs_shared
def test_amd_extension_of_other_certificates_fails() -> None:
    """Other certificates have none of AMD's extensions."""
    for der in split_pem(data("snp/go-sev-guest/ask_ark_milan.pem").decode()):
        assert read_amd_extension(read_path_certificate(der).extensions) is None
    assert read_amd_extension({"1.3.6.1.4.1.3704.10.4": CHIP, "2.5.29.19": b""}) is None


def test_amd_extension_hardware_id_encodings() -> None:
    """64 or 8 bytes, directly or inside an OCTET STRING."""
    for raw in (CHIP, CHIP[:8]):
        for value in (raw, bytes([4, len(raw)]) + raw):
            found = read_extensions({**GOOD, "4": value})
            assert found is not None
            assert found.hardware_id == raw


def test_amd_extension_of_vlek_has_provider() -> None:
    """A VLEK has a provider instead of a chip."""
    found = read_extensions({**valid_without("4"), "2": b"\x16\x05Milan", "5": b"\x16\x03aws"})
    assert found is not None
    assert (found.kind, found.product, found.provider) == ("VLEK", "Milan", "aws")
    assert found.hardware_id == b""


@every_case(
    ("own", "reason", "subject"),
    [
        (valid_without("3.1"), "missing", f"{PREFIX}3.1:"),
        (valid_without("2"), "missing", f"{PREFIX}2:"),
        (valid_without("4"), "inconsistent", "AMD extensions:"),
        ({**GOOD, "5": b"\x16\x03aws"}, "inconsistent", "AMD extensions:"),
        ({**GOOD, "3.4": b"\x02\x01\x01"}, "wrong_value", f"{PREFIX}3.4:"),
        ({**GOOD, "3.3": b"\x02\x02\x01\x00"}, "wrong_value", f"{PREFIX}3.3:"),
        ({**GOOD, "3.3": b"\x02\x01\x17\x00"}, "trailing_data", "DER:"),
        ({**GOOD, "2": b"\x0c\x05Milan"}, "wrong_type", "DER:"),
        ({**GOOD, "2": b"\x16\x01\n"}, "wrong_value", f"{PREFIX}2:"),
        ({**GOOD, "2": b"\x16\x41" + b"M" * 65}, "wrong_value", f"{PREFIX}2:"),
        ({**GOOD, "4": CHIP[:63]}, "wrong_size", f"{PREFIX}4:"),
        ({**GOOD, "4": bytes(66)}, "wrong_type", "DER:"),
    ],
)
def test_amd_extension_if_invalid_fails_naming_field(
    own: Mapping[str, bytes], reason: str, subject: str
) -> None:
    """Each violated rule is named."""
    with raises(FormatError, reason) as caught:
        read_extensions(own)
    assert caught.value.message.removeprefix("AMD extension ").startswith(subject)
