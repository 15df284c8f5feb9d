"""What registers hold, as text."""

from attestkit.errors import AttestKitError
from attestkit.event_log import TpmEventLog

__all__ = ["tpm_replay"]


def tpm_replay(log: TpmEventLog, bank: str) -> dict[str, str]:
    """Return the PCRs of a bank in hex, or under `error` why they cannot be had."""
    try:
        return {f"pcr{pcr}": value.hex() for pcr, value in log.replay(bank).items()}
    except AttestKitError as error:  # a bank without a hash here, or with records it lacks
        return {"error": str(error)}
