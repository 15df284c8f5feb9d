"""Tests of integrity: each bit flipped in signed data is rejected by parser or verifier."""

from itertools import product

import pytest

from attestkit.errors import AttestKitError
from attestkit.quote import Quote
from tests.backends.simulator.simulated_cases import flip_bit
from tests.runner.cases import every_case
from tests.verifier.dcap.dcap_samples import (
    COLLATERAL,
    DCAP,
    NOW,
    RAW,
    create_td_quote,
    replace_collateral,
)

# Offsets of version 4; a version 5 TD 1.5 body has 70 bytes more.
REGIONS = {
    "signed": (0, 632),
    "signature": (636, 700),
    "attestation key": (700, 764),
    "qe report": (770, 1154),
    "qe report signature": (1154, 1218),
    "qe auth data": (1220, 1252),
}
V5 = create_td_quote(tee_tcb_svn2=bytes([7, 1, 3]) + bytes(13))


def is_accepted(raw: bytes) -> bool:
    """Return whether the quote passes."""
    try:
        DCAP.authenticate(Quote.parse(raw), COLLATERAL, NOW)
    except AttestKitError:
        return False
    return True


def find_accepted_flips(raw: bytes, start: int, end: int, bits: list[int]) -> list[tuple[int, int]]:
    """Return offset and bit of each accepted flip."""
    return [
        (offset, bit)
        for offset in range(start, end)
        for bit in (bits or [offset * 5 % 8])
        if is_accepted(flip_bit(raw, offset, bit))
    ]


@every_case("region", REGIONS)
def test_quote_one_flipped_bit_per_byte_is_rejected(region: str) -> None:
    """One bit flipped in any byte of the region is rejected."""
    assert is_accepted(RAW)
    assert find_accepted_flips(RAW, *REGIONS[region], []) == []


@pytest.mark.slow
@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize(("raw", "longer"), [(RAW, 0), (V5, 70)], ids=["v4", "v5"])
def test_quote_every_flipped_bit_is_rejected(raw: bytes, longer: int, region: str) -> None:
    """Any flipped bit of the region is rejected, also with the longer body of a TD 1.5."""
    start, end = REGIONS[region]
    start, end = (start + longer if start else 0), end + longer
    assert is_accepted(raw)
    assert find_accepted_flips(raw, start, end, list(range(8))) == []


@pytest.mark.parametrize("field", ["tcb_info", "qe_identity"])
def test_collateral_signature_one_flipped_bit_per_byte_is_rejected(field: str) -> None:
    """One bit flipped in any byte of the signatures of TCB info and QE identity is rejected."""
    name = f"{field}_signature"
    signature = getattr(COLLATERAL, name)
    for offset in range(64):
        altered = replace_collateral(**{name: flip_bit(signature, offset, offset % 8)})
        with pytest.raises(AttestKitError):
            DCAP.authenticate(Quote.parse(RAW), altered, NOW)


ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256
FIELD = 0xFFFFFFFF00000001000000000000000000000000FFFFFFFFFFFFFFFFFFFFFFFF
EDGES = (0, 1, 2, ORDER - 1, ORDER, ORDER + 1, FIELD, FIELD + 1, 2**256 - 1)


def forge_signatures(signature: bytes) -> list[bytes]:
    """Return signatures with edge values for r, s or both, and with r and s exchanged."""
    r, s = signature[:32], signature[32:]
    edges = [edge.to_bytes(32, "big") for edge in EDGES]
    pairs = [*product(edges, edges), *((r, edge) for edge in edges), *((edge, s) for edge in edges)]
    return [*(b"".join(pair) for pair in pairs), s + r, r + r, s + s]


@pytest.mark.parametrize("region", ["signature", "qe report signature"])
def test_quote_signature_with_edge_values_is_rejected(region: str) -> None:
    """Signatures of QE report and quote with edge values are rejected."""
    start, end = REGIONS[region]
    for signature in forge_signatures(RAW[start:end]):
        assert not is_accepted(RAW[:start] + signature + RAW[end:]), signature.hex()


@pytest.mark.parametrize("field", ["tcb_info_signature", "qe_identity_signature"])
def test_collateral_signature_with_edge_values_is_rejected(field: str) -> None:
    """Signatures of TCB info and QE identity with edge values are rejected."""
    for signature in forge_signatures(getattr(COLLATERAL, field)):
        with pytest.raises(AttestKitError):
            DCAP.authenticate(Quote.parse(RAW), replace_collateral(**{field: signature}), NOW)
