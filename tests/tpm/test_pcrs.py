"""Facts about PCRs: start values and extension."""

import hashlib

import pytest

from attestkit.errors import UsageError
from attestkit.tpm.algorithms import HASH_SIZES
from attestkit.tpm.pcrs import DYNAMIC_PCRS, EVERY_PCR, LOGGED_PCRS, extend, start_value
from tests.runner.cases import every_case


@every_case("size", HASH_SIZES.values())
def test_start_value_depends_on_pcr_and_locality(size: int) -> None:
    """PCR 0 starts with the locality, PCRs 17 to 22 with ones, all others with zeros."""
    for pcr in EVERY_PCR:
        expected = b"\xff" * size if 17 <= pcr <= 22 else bytes(size)
        assert start_value(pcr, size) == expected
        if pcr:
            assert start_value(pcr, size, 3) == expected
    assert start_value(0, size, 3) == bytes(size - 1) + b"\x03"


@every_case("bank", HASH_SIZES)
def test_extend_hashes_value_and_digest(bank: str) -> None:
    """Each digest replaces the value by the hash of both; without a digest it remains."""
    size = HASH_SIZES[bank]
    start, first, second = bytes(size), b"\x01" * size, b"\x02" * size
    assert extend(bank, start, []) == start
    once = hashlib.new(bank, start + first).digest()
    assert extend(bank, start, [first]) == once
    assert extend(bank, start, [first, second]) == hashlib.new(bank, once + second).digest()


def test_extend_unknown_bank_is_refused() -> None:
    """A bank whose hash is not known cannot be extended."""
    with pytest.raises(UsageError) as caught:
        extend("md5", bytes(16), [bytes(16)])
    assert caught.value.reason == "unsupported_algorithm"


def test_logged_pcrs_exclude_those_of_programs() -> None:
    """PCRs that programs extend without a record in the firmware's log need not replay."""
    assert {*range(10), 14} == LOGGED_PCRS
    assert LOGGED_PCRS.isdisjoint({10, 11, 12, 13, 15, 16, 23, *DYNAMIC_PCRS})
