"""What AMD's certificates say of a chip is read field by field, and only in AMD's forms."""

import json
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit._crypto.pem import split_pem
from attestkit._crypto.x509.amd_extension import AmdExtension, read_amd_extension
from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit.errors import FormatError
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


def read(own: Mapping[str, bytes]) -> AmdExtension | None:
    """Read extensions by what continues AMD's prefix."""
    return read_amd_extension({PREFIX + suffix: value for suffix, value in own.items()})


def without(*suffixes: str) -> dict[str, bytes]:
    """Return the good extensions without some."""
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
def test_certificates_of_chips(
    name: str, product: str, levels: tuple[int | None, ...] | None, size: int
) -> None:
    """The fields are those of the report beside it."""
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
def test_certificates_of_authorities() -> None:
    """Those of others have none of AMD's extensions."""
    for der in split_pem(data("snp/go-sev-guest/ask_ark_milan.pem").decode()):
        assert read_amd_extension(read_path_certificate(der).extensions) is None
    assert read_amd_extension({"1.3.6.1.4.1.3704.10.4": CHIP, "2.5.29.19": b""}) is None


def test_the_forms_of_a_hardware_id() -> None:
    """64 bytes or 8, or the same inside an OCTET STRING."""
    for raw in (CHIP, CHIP[:8]):
        for value in (raw, bytes([4, len(raw)]) + raw):
            found = read({**GOOD, "4": value})
            assert found is not None
            assert found.hardware_id == raw


def test_a_provider() -> None:
    """A VLEK has a provider in place of a chip."""
    found = read({**without("4"), "2": b"\x16\x05Milan", "5": b"\x16\x03aws"})
    assert found is not None
    assert (found.kind, found.product, found.provider) == ("VLEK", "Milan", "aws")
    assert found.hardware_id == b""


@pytest.mark.parametrize(
    ("own", "text"),
    [
        (without("3.1"), "3.1 is missing"),
        (without("3.8"), "3.8 is missing"),
        (without("2"), "2 is missing"),
        (without("4"), "neither"),
        ({**GOOD, "5": b"\x16\x03aws"}, "neither"),
        ({**GOOD, "3.4": b"\x02\x01\x01"}, "3.4 is not zero"),
        ({**GOOD, "3.3": b"\x02\x02\x01\x00"}, "3.3 is 256"),
        ({**GOOD, "3.3": b"\x02\x01\xff"}, "3.3 is -1"),
        ({**GOOD, "3.3": b"\x04\x01\x17"}, "DER tag"),
        ({**GOOD, "3.3": b"\x02\x01\x17\x00"}, "behind"),
        ({**GOOD, "2": b"\x0c\x05Milan"}, "DER tag"),
        ({**GOOD, "2": b"\x16\x00"}, "1 to 64 ASCII"),
        ({**GOOD, "2": b"\x16\x01\n"}, "1 to 64 ASCII"),
        ({**GOOD, "2": b"\x16\x01\xe9"}, "1 to 64 ASCII"),
        ({**GOOD, "2": b"\x16\x41" + b"M" * 65}, "1 to 64 ASCII"),
        ({**GOOD, "4": CHIP[:63]}, "64 or 8 bytes"),
        ({**GOOD, "4": b""}, "64 or 8 bytes"),
        ({**GOOD, "4": bytes(66)}, "DER tag"),
    ],
)
def test_extensions_that_are_none(own: Mapping[str, bytes], text: str) -> None:
    """Each broken rule is named."""
    with pytest.raises(FormatError, match=text):
        read(own)


@given(st.dictionaries(st.sampled_from([*GOOD, "3.9", "5"]), st.binary(max_size=70)))
def test_any_bytes(own: dict[str, bytes]) -> None:
    """Whatever they hold, they are read or refused with our error."""
    for one in (own, {**GOOD, **own}):
        try:
            found = read(one)
        except FormatError:
            continue
        json.dumps(None if found is None else found.product)
