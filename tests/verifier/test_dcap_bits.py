"""No bit of what is signed can be changed: every flip is refused, by parsing or by verifying."""

import pytest

from attestkit.errors import AttestKitError
from attestkit.quote import Quote
from tests.backends.simulated_cases import flip
from tests.verifier.dcap_samples import COLLATERAL, DCAP, NOW, RAW, changed, td

# Offsets of simulated-pki.md, 9.4, for version 4; version 5 with a TD 1.5 body has 70 more.
REGIONS = {
    "signed": (0, 632),
    "signature": (636, 700),
    "attestation key": (700, 764),
    "qe report": (770, 1154),
    "qe report signature": (1154, 1218),
    "qe auth data": (1220, 1252),
}
V5 = td(tee_tcb_svn2=bytes([7, 1, 3]) + bytes(13))


def accepted(raw: bytes) -> bool:
    """Tell whether the quote passes."""
    try:
        DCAP.authenticate(Quote.parse(raw), COLLATERAL, NOW)
    except AttestKitError:
        return False
    return True


def survivors(raw: bytes, start: int, end: int, bits: list[int]) -> list[tuple[int, int]]:
    """Return offset and bit of each flip that is accepted."""
    return [
        (offset, bit)
        for offset in range(start, end)
        for bit in (bits or [offset * 5 % 8])
        if accepted(flip(raw, offset, bit))
    ]


@pytest.mark.parametrize("region", REGIONS)
def test_a_bit_of_each_byte(region: str) -> None:
    """One bit of every byte of the region, another one from byte to byte."""
    assert accepted(RAW)
    assert survivors(RAW, *REGIONS[region], []) == []


@pytest.mark.slow
@pytest.mark.parametrize("region", REGIONS)
def test_every_bit(region: str) -> None:
    """Every bit of the region."""
    assert survivors(RAW, *REGIONS[region], list(range(8))) == []


@pytest.mark.slow
@pytest.mark.parametrize("region", REGIONS)
def test_every_bit_of_version_5(region: str) -> None:
    """Every bit of the region, with a TD 1.5 body."""
    start, end = REGIONS[region]
    start, end = (start + 70 if start else 0), end + 70
    assert accepted(V5)
    assert survivors(V5, start, end, list(range(8))) == []


@pytest.mark.parametrize("field", ["tcb_info", "qe_identity"])
def test_the_signatures_of_the_bodies(field: str) -> None:
    """One bit of every byte of the signatures over TCB info and QE identity."""
    name = f"{field}_signature"
    signature = getattr(COLLATERAL, name)
    for offset in range(64):
        other = changed(**{name: flip(signature, offset, offset % 8)})
        with pytest.raises(AttestKitError):
            DCAP.authenticate(Quote.parse(RAW), other, NOW)
