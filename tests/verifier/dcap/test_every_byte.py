"""A bit flipped in any byte of evidence or collateral: same answer from warm and cold engines.

Continuous integration takes some of the bytes, `make test ARGS="-m slow"` all.
"""

from dataclasses import fields, replace
from functools import cache
from typing import Final, NamedTuple

import pytest

from attestkit.collateral import Collateral
from attestkit.verifier.claims import Authenticated
from attestkit.verifier.dcap.engine import Dcap
from tests.backends.simulator.simulated_cases import flip_bit
from tests.thorough import limited
from tests.vectors import needs_shared
from tests.verifier.dcap.caches.test_caches import outcome
from tests.verifier.dcap.dcap_samples import (
    COLLATERAL,
    NOW,
    PKI,
    RAW,
    ROOT,
    create_td_quote,
    load_hardware_quote,
    remove_pck_chain,
)

pytestmark = pytest.mark.slow


class Sample(NamedTuple):
    """A quote that is accepted with its collateral."""

    raw: bytes
    collateral: Collateral
    root: bytes | None = ROOT
    now: int = NOW

    def outcome(self, dcap: Dcap) -> object:
        """Return the outcome of an engine."""
        return outcome(dcap, self.raw, self.collateral, self.now)

    def flip(self, part: str, offset: int) -> "Sample":
        """Return the sample with a bit flipped in a byte of the quote or of a collateral field."""
        bit = offset % 8
        if part == "quote":
            return self._replace(raw=flip_bit(self.raw, offset, bit))
        value = getattr(self.collateral, part)
        if isinstance(value, str):
            value = flip_bit(value.encode(), offset, bit).decode("latin-1")
        else:
            value = flip_bit(value, offset, bit)
        return self._replace(collateral=replace(self.collateral, **{part: value}))


@cache
def load_sample(name: str) -> Sample:
    """Return the sample of that name."""
    if name == "sgx-v3":
        quote, collateral = load_hardware_quote("sgx_quote")
        return Sample(quote.raw, collateral, None, 1752000000)
    if name == "tdx-v5":
        return Sample(create_td_quote(tee_tcb_svn2=bytes([7, 1, 3]) + bytes(13)), COLLATERAL)
    if name == "chain in collateral":
        chain = PKI.platform().pck_chain
        return Sample(remove_pck_chain(RAW), replace(COLLATERAL, pck_certificate_chain=chain))
    return Sample(RAW, COLLATERAL)


FIELDS: Final = [
    field.name for field in fields(Collateral) if field.name != "pck_certificate_chain"
]
PARTS: Final = [
    *(("tdx-v4", part) for part in ("quote", *FIELDS)),
    ("tdx-v5", "quote"),
    *(("chain in collateral", part) for part in ("quote", "pck_certificate_chain")),
    *(pytest.param("sgx-v3", part, marks=needs_shared) for part in ("quote", *FIELDS)),
]


# Encrypted PPID and SVNs of certification data of type 3: unsigned, and not used.
UNSIGNED: Final = {("chain in collateral", "quote"): range(1258, 1662)}


@pytest.mark.parametrize(("name", "part"), PARTS)
def test_flipped_byte_has_same_outcome_warm_and_cold(name: str, part: str) -> None:
    """A byte is rejected alike, or has no influence; the caches keep nothing that was rejected."""
    sample = load_sample(name)
    warm = Dcap(sample.root)
    accepted = sample.outcome(warm)
    assert isinstance(accepted, Authenticated)
    data = sample.raw if part == "quote" else getattr(sample.collateral, part)
    without_influence = []
    offsets = limited(range(len(data)))
    for offset in offsets:
        altered = sample.flip(part, offset)
        found = altered.outcome(warm)
        assert found == altered.outcome(Dcap(sample.root)), offset
        if isinstance(found, Authenticated):
            assert found == accepted, offset
            without_influence.append(offset)
    unsigned = UNSIGNED.get((name, part), range(0))
    assert without_influence == [offset for offset in offsets if offset in unsigned]
    assert sample.outcome(warm) == accepted
