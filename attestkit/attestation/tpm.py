"""Event logs in evidence with a TPM, whose replay gives the PCR values."""

from typing import NamedTuple

from attestkit.attestation.wire import evidence_parts as parts
from attestkit.tpm.pcrs import INIT_DATA_PCR


class PcrLogs(NamedTuple):
    """Event logs of firmware and of IMA for the PCRs of a TPM; empty if the evidence has none."""

    boot_log: bytes = b""  # of the firmware, binary_bios_measurements
    ima_log: bytes = b""  # binary_runtime_measurements
    extended_later: tuple[int, ...] = ()  # PCRs that the platform extends without a record


def find_pcr_logs(platform: parts.Platform | None) -> PcrLogs | None:
    """Return the logs in the evidence of a platform; None for platforms without them.

    Raises:
        FormatError: If a message of go-tpm-tools is malformed.
    """
    if isinstance(platform, parts.GoTpmTools):
        from attestkit.attestation.go_tpm_tools import GoTpmToolsMessage  # lazy: only for these

        return PcrLogs(GoTpmToolsMessage.parse(platform.message).event_log)
    if isinstance(platform, (parts.Tpm, parts.GcpSnp, parts.AzureSnp, parts.AzureTdx)):
        quote = platform.vtpm_quote
        later = (INIT_DATA_PCR,) if isinstance(platform, (parts.AzureSnp, parts.AzureTdx)) else ()
        return PcrLogs(quote.boot_log, quote.ima_log, later)
    return None
