"""No bit of what is signed can be changed: every flip is refused, by parsing or by verifying."""

from itertools import product

import pytest

from attestkit.errors import AttestKitError
from attestkit.quote import Quote
from tests.backends.simulator.simulated_cases import flip
from tests.verifier.dcap.dcap_samples import COLLATERAL, DCAP, NOW, RAW, changed, td

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


ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256
FIELD = 0xFFFFFFFF00000001000000000000000000000000FFFFFFFFFFFFFFFFFFFFFFFF
EDGES = (0, 1, 2, ORDER - 1, ORDER, ORDER + 1, FIELD, FIELD + 1, 2**256 - 1)


def forged(signature: bytes) -> list[bytes]:
    """Return signatures that careless ECDSA has taken: of numbers at an edge, beside real ones."""
    r, s = signature[:32], signature[32:]
    edges = [edge.to_bytes(32, "big") for edge in EDGES]
    pairs = [*product(edges, edges), *((r, edge) for edge in edges), *((edge, s) for edge in edges)]
    return [*(b"".join(pair) for pair in pairs), s + r, r + r, s + s]


@pytest.mark.parametrize("region", ["signature", "qe report signature"])
def test_signatures_of_edge_values(region: str) -> None:
    """dcap-qvl's own ECDSA is not among Wycheproof's vectors, whose commonest traps these are."""
    start, end = REGIONS[region]
    for signature in forged(RAW[start:end]):
        assert not accepted(RAW[:start] + signature + RAW[end:]), signature.hex()


@pytest.mark.parametrize("field", ["tcb_info_signature", "qe_identity_signature"])
def test_signatures_of_edge_values_over_the_bodies(field: str) -> None:
    """The same of what Intel signs."""
    for signature in forged(getattr(COLLATERAL, field)):
        with pytest.raises(AttestKitError):
            DCAP.authenticate(Quote.parse(RAW), changed(**{field: signature}), NOW)
