"""PCR values as text."""

from attestkit.errors import AttestKitError
from attestkit.event_log import TpmEventLog


def tpm_replay(log: TpmEventLog, bank: str) -> dict[str, str]:
    """Return the replayed PCRs of a bank in hex, or an `error`."""
    try:
        return {f"pcr{pcr}": value.hex() for pcr, value in log.replay(bank).items()}
    except AttestKitError as error:  # unsupported algorithm, or events without this bank's digest
        return {"error": str(error)}
