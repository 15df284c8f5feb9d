"""PCRs of a PC: their number and use, their values at start, and their extension.

TCG PC Client Platform Firmware Profile, section 3.3.4. The selections in a quote are in
`pcr_selection`.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from attestkit.tpm.algorithms import hash_function

PCR_COUNT: Final = 24
EVERY_PCR: Final = tuple(range(PCR_COUNT))

FIRMWARE_PCRS: Final = frozenset(range(8))
"""PCRs that only firmware and boot loaders extend, each time with a record in the log."""

INIT_DATA_PCR: Final = 8
"""PCR of init-data in confidential containers, and of boot loaders such as GRUB."""

IMA_PCR: Final = 10
"""PCR that IMA extends by default (CONFIG_IMA_MEASURE_PCR_IDX of Linux)."""

EVENT_PCR: Final = 14
"""PCR of dstack's runtime events; shim measures its keys there before them."""

LOGGED_PCRS: Final = FIRMWARE_PCRS | {INIT_DATA_PCR, 9, EVENT_PCR}
"""PCRs that firmware, boot loaders and shim extend with a record in the firmware's log.

Programs of the system extend PCRs 10 to 13, 15, 16 and 23 without a record there (systemd-pcrphase,
IMA, applications), so those may be further than the log.
"""

DYNAMIC_PCRS: Final = range(17, 23)
"""PCRs of a dynamic launch; their bytes are 0xFF until there is one."""


@lru_cache(maxsize=256)
def start_value(pcr: int, size: int, startup_locality: int = 0) -> bytes:
    """Return the value of a PCR after the TPM's start.

    Args:
        pcr: Number of the PCR.
        size: Size of the bank's digests in bytes.
        startup_locality: Locality of TPM2_Startup, which is the last byte of PCR 0.
    """
    if pcr in DYNAMIC_PCRS:
        return b"\xff" * size
    return (startup_locality if pcr == 0 else 0).to_bytes(size, "big")


def extend(bank: str, value: bytes, digests: Iterable[bytes]) -> bytes:
    """Return the value of a PCR after digests of its bank extended it, in their order.

    Args:
        bank: Hash of the bank, such as "sha256".
        value: Value before the first digest.
        digests: Digests; may be empty.

    Raises:
        UsageError: If the hash is unknown.
    """
    digest_of = hash_function(bank)
    for digest in digests:
        value = digest_of(value + digest)
    return value


def format_pcrs(found: Iterable[tuple[str, int]]) -> str:
    """Return PCRs as text such as `sha256 PCRs 0-9, 14`; `found` has pairs ("sha256", 14)."""
    return _format_sorted(tuple(sorted(found)))


@lru_cache(maxsize=64)  # evidence of one machine has the same PCRs
def _format_sorted(found: tuple[tuple[str, int], ...]) -> str:
    banks: dict[str, list[int]] = {}
    for bank, index in found:
        banks.setdefault(bank, []).append(index)
    return " and ".join(f"{bank} PCRs {_ranges(indices)}" for bank, indices in banks.items())


def _ranges(indices: list[int]) -> str:
    """Return `indices`, ascending numbers, as text with ranges, such as `0-9, 14`."""
    ranges: list[list[int]] = []
    for index in indices:
        if ranges and index == ranges[-1][1] + 1:
            ranges[-1][1] = index
        else:
            ranges.append([index, index])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in ranges)
