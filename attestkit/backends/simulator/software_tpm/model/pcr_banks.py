"""PCRs in several banks, as of a PC (TCG PC Client Platform TPM Profile, section 4.6)."""

from collections.abc import Iterable
from typing import Final

from attestkit.backends.simulator.software_tpm.model.command_reader import Selection
from attestkit.errors import UsageError
from attestkit.tpm.algorithms import compute_digest, hash_size
from attestkit.tpm.pcrs import PCR_COUNT

MAX_DIGESTS: Final = 8  # of a TPML_DIGEST, so of one PCR_Read
DEBUG_PCR: Final = 16
APPLICATION_PCR: Final = 23
# PCRs of a dynamic launch: extended at localities 1 to 4 only, start as ones.
DYNAMIC_PCRS: Final = range(17, 23)
_NOT_COUNTED: Final = (DEBUG_PCR, 21, 22, APPLICATION_PCR)


class PcrBanks:
    """Values of 24 PCRs in each bank.

    Args:
        banks: Names of their hashes, such as "sha256".
        startup_locality: Locality of TPM2_Startup (0 or 3), or 4 for an H-CRTM: the start value of
            PCR 0.

    Raises:
        UsageError: If no bank is given, a hash is unknown, or the locality is not 0, 3 or 4.
    """

    def __init__(self, banks: Iterable[str], startup_locality: int = 0) -> None:
        if startup_locality not in (0, 3, 4):
            message = f"startup locality: must be 0, 3 or 4, not {startup_locality}"
            raise UsageError(message, reason="out_of_range")
        self.locality = startup_locality
        self.values: dict[str, list[bytes]] = {name: [] for name in banks}
        if not self.values:
            raise UsageError("PCR banks: at least one is needed", reason="missing")
        self.updates: int = 0
        self.reset_all()

    def reset_all(self) -> None:
        """Set all PCRs to the values after a reset of the TPM."""
        for name in self.values:
            size = hash_size(name)
            zeros, ones = bytes(size), b"\xff" * size
            values = [ones if pcr in DYNAMIC_PCRS else zeros for pcr in range(PCR_COUNT)]
            values[0] = self.locality.to_bytes(size, "big")
            self.values[name] = values
        # libtpms counts the 20 PCRs that count and are set at startup.
        self.updates = PCR_COUNT - len(_NOT_COUNTED)

    def get(self, bank: str, pcr: int) -> bytes:
        """Return the value of a PCR; UsageError if bank or PCR is unknown."""
        values = self.values.get(bank)
        if values is None:
            message = f"PCR bank: {bank!r} is not one of {', '.join(self.values)}"
            raise UsageError(message, reason="unknown_name")
        if not 0 <= pcr < PCR_COUNT:
            raise UsageError(f"PCR: must be 0 to {PCR_COUNT - 1}, not {pcr}", reason="out_of_range")
        return values[pcr]

    def extend(self, pcr: int, bank: str, digest: bytes) -> None:
        """Extend a PCR of a bank; an absent bank is ignored, as by a TPM."""
        if values := self.values.get(bank):
            values[pcr] = compute_digest(bank, values[pcr] + digest)
            if pcr not in _NOT_COUNTED:
                self.updates += 1

    def reset(self, pcr: int) -> None:
        """Set a PCR to zeros in all banks."""
        for bank, values in self.values.items():
            values[pcr] = bytes(hash_size(bank))

    def filter(self, selections: list[Selection]) -> list[Selection]:
        """Return the selections without PCRs of absent banks."""
        return [(bank, bits if bank in self.values else 0) for bank, bits in selections]

    def read(self, selections: list[Selection], most: int) -> tuple[list[Selection], list[bytes]]:
        """Return the first selected PCRs, at most `most`, as a selection and values."""
        found: list[Selection] = []
        values: list[bytes] = []
        for bank, bits in self.filter(selections):
            got = 0
            for pcr in range(PCR_COUNT):
                if bits >> pcr & 1 and len(values) < most:
                    got |= 1 << pcr
                    values.append(self.values[bank][pcr])
            found.append((bank, got))
        return found, values

    def digest(self, selections: list[Selection], hash_name: str) -> bytes:
        """Return the digest of all selected values."""
        _, values = self.read(selections, len(selections) * PCR_COUNT)
        return compute_digest(hash_name, b"".join(values))
