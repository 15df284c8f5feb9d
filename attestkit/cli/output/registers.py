"""PCR values as text."""

from attestkit.errors import AttestKitError
from attestkit.event_log import TpmEventLog
from attestkit.event_log.ima import ImaLog


def tpm_replay(log: TpmEventLog, bank: str) -> dict[str, str]:
    """Return the replayed PCRs of a bank in hex, or an `error`."""
    try:
        return {f"pcr{pcr}": value.hex() for pcr, value in log.replay(bank).items()}
    except AttestKitError as error:  # unsupported algorithm, or events without this bank's digest
        return {"error": str(error)}


def ima_replay(log: ImaLog, bank: str) -> dict[str, str]:
    """Return the PCRs, in hex, that all records of an IMA log lead to in a bank."""
    return {f"pcr{pcr}": log.replay(bank, pcr).hex() for pcr in log.pcrs}
