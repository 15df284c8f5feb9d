"""A quote with the PCR values and logs that belong to it.

PCRs may be extended between the commands, as IMA does in PCR 10 whenever a program starts. So the
quote comes first, then the values, then the logs; if the digest of the values is not the quoted
one, all steps are repeated.
"""

import hmac
from collections.abc import Callable
from typing import Final, NamedTuple

from attestkit.attestation.wire.evidence_parts import PcrValue, VtpmQuote
from attestkit.backends.tpm.client import PcrValues, TpmClient
from attestkit.backends.tpm.tpm_logs import TpmLogs
from attestkit.backends.tpm.transports import reading
from attestkit.errors import BackendError, UnsupportedError
from attestkit.tpm import PcrSelection, TpmsAttest, TpmtSignature, pcr_digest

ATTEMPTS: Final = 5


class CollectedQuote(NamedTuple):
    """A quote whose digest is that of the values."""

    message: bytes  # TPMS_ATTEST
    signature: bytes  # TPMT_SIGNATURE
    quote: TpmsAttest
    values: PcrValues
    logs: TpmLogs

    @property
    def pcr_values(self) -> tuple[PcrValue, ...]:
        """The values in the order of the quote's selection."""
        return tuple(
            PcrValue(pcr, one.bank, self.values[one.bank, pcr])
            for one in self.quote.selections
            for pcr in one.pcrs
        )

    def to_vtpm_quote(
        self, ak_public: bytes = b"", ak_certificates: tuple[bytes, ...] = ()
    ) -> VtpmQuote:
        """Return the part of evidence, with the attestation key or its certificates (DER)."""
        return VtpmQuote(
            self.message,
            self.signature,
            self.pcr_values,
            ak_public,
            ak_certificates,
            self.logs.boot_log,
            self.logs.ima_log,
        )


def collect_quote(
    client: TpmClient,
    key: int,
    qualifying_data: bytes,
    selections: tuple[PcrSelection, ...],
    *,
    read_logs: Callable[[], TpmLogs] = TpmLogs,
) -> CollectedQuote:
    """Return a quote with values and logs that were read after it.

    Args:
        client: The TPM; other threads wait.
        key: Handle of an attestation key.
        qualifying_data: Bytes for the quote, at most 34 to be portable.
        selections: The PCRs.
        read_logs: Returns the logs.

    Raises:
        UnsupportedError: If a selected bank is not allocated.
        TpmError: If the TPM answers with an error.
        BackendError: If the quote is malformed or not over the requested data, or a PCR is extended
            during each of five attempts; otherwise as for `TpmClient.execute`.
    """
    with client.lock:
        for _ in range(ATTEMPTS):
            message, signature = client.quote(key, qualifying_data, selections)
            values = client.pcr_read(selections)
            logs = read_logs()
            with reading(client.path):
                quote = TpmsAttest.parse(message)
                _check_quote(client.path, quote, qualifying_data, selections)
                hash_name = TpmtSignature.parse(signature).hash_name
                found = pcr_digest(quote.selections, values, hash_name)
            if hmac.compare_digest(found, quote.pcr_digest):
                return CollectedQuote(message, signature, quote, values, logs)
    raise _always_extended(client.path)


def _always_extended(path: str) -> BackendError:
    text = (
        f"{path}: PCRs were extended during each of {ATTEMPTS} attempts to quote them; retry when "
        "fewer programs start, or leave out PCR 10"
    )
    return BackendError(text, reason="register_conflict", path=path)


def _check_quote(
    path: str, quote: TpmsAttest, data: bytes, selections: tuple[PcrSelection, ...]
) -> None:
    """Check that a quote is over the requested data and PCRs."""
    if not hmac.compare_digest(quote.extra_data, data):
        text = f"{path}: the quote is over other qualifying data than requested"
        raise BackendError(text, reason="wrong_report_data", path=path)
    quoted = {one.bank: one.pcrs for one in quote.selections}
    for one in selections:
        if one.pcrs and not quoted.get(one.bank):
            text = f"{path}: the PCR bank {one.bank} is not allocated; use another bank"
            raise UnsupportedError(text, reason="feature")
    requested = [(one.bank, one.pcrs) for one in selections]
    if [(one.bank, one.pcrs) for one in quote.selections] != requested:
        text = f"{path}: the quote is over other PCRs than requested"
        raise BackendError(text, reason="malformed_response", path=path)
