"""Parts of the evidence of each platform, as on the wire.

The values are unchanged, so that encoding restores the same bytes: a stripped digest is empty here,
although `Attestation.event_log` has the recomputed one. Fields have the names and the order of the
wire format (guest agent evidence, version 1).
"""

from typing import NamedTuple

from attestkit.errors import FormatError, UsageError
from attestkit.event_log.event import ACPI_DATA, WireEvent
from attestkit.event_log.event_types import ACPI_CONFIG, RUNTIME_EVENT_TYPE
from attestkit.quote import Quote, TdQuoteBody

__all__ = [
    "PLATFORM_NAMES",
    "TPM_PLATFORMS",
    "Evidence",
    "GcpTdx",
    "NitroEnclave",
    "NitroTpm",
    "PcrValue",
    "Platform",
    "RuntimeEvent",
    "SevSnp",
    "Stack",
    "Tdx",
    "TpmEvent",
    "TpmQuote",
    "is_acpi_data",
    "td_body",
]

TPM_PLATFORMS = ("dstack", "gcp", "nitroenclave", "aws-ec2")  # SCALE indices 0 to 3


class RuntimeEvent(NamedTuple):
    """A runtime event."""

    event: str
    payload: bytes
    version: int = 1  # 1 or 2


class PcrValue(NamedTuple):
    """A quoted PCR of a TPM."""

    number: int  # `index` on the wire; tuples have a method of that name
    algorithm: str
    value: bytes


class TpmEvent(NamedTuple):
    """An event of a TPM event log: its PCR and SHA-256 digest."""

    pcr_index: int
    digest: bytes


class TpmQuote(NamedTuple):
    """A TPM quote that accompanies a TDX quote."""

    message: bytes  # TPMS_ATTEST
    signature: bytes  # TPMT_SIGNATURE
    pcr_values: tuple[PcrValue, ...]
    ak_cert: bytes  # DER
    platform: str  # one of TPM_PLATFORMS
    event_log: tuple[TpmEvent, ...]


class Tdx(NamedTuple):
    """Intel TDX under QEMU."""

    quote: bytes
    event_log: tuple[WireEvent, ...]

    def with_report_data(self, report_data: bytes) -> "Tdx":
        """Return a copy with other report data in the quote, whose signature is then invalid."""
        return self._replace(quote=_patched_quote(self.quote, report_data))

    def stripped(self) -> "Tdx":
        """Return the form for certificates: events of RTMR3 and of the ACPI tables."""
        kept = [event for event in self.event_log if event.imr == 3 or is_acpi_data(event)]
        return self._replace(event_log=tuple([_stripped(event) for event in kept]))


class GcpTdx(NamedTuple):
    """Intel TDX on Google Cloud, with a TPM."""

    quote: bytes
    event_log: tuple[WireEvent, ...]
    tpm_quote: TpmQuote

    def with_report_data(self, report_data: bytes) -> "GcpTdx":
        """Return a copy with other report data in the quote, whose signature is then invalid."""
        return self._replace(quote=_patched_quote(self.quote, report_data))

    def stripped(self) -> "GcpTdx":
        """Return the form for certificates: events of RTMR3."""
        kept = [_stripped(event) for event in self.event_log if event.imr == 3]
        return self._replace(event_log=tuple(kept))


class NitroEnclave(NamedTuple):
    """An AWS Nitro Enclave."""

    nsm_quote: bytes  # COSE_Sign1

    def with_report_data(self, report_data: bytes) -> "NitroEnclave":
        """Return `self`: the report data is inside of the signed document."""
        del report_data
        return self

    def stripped(self) -> "NitroEnclave":
        """Return `self`: there is nothing to strip."""
        return self


class SevSnp(NamedTuple):
    """AMD SEV-SNP."""

    report: bytes  # 1184 bytes
    cert_chain: tuple[bytes, ...]  # ASK and VCEK (DER or PEM), one certificate table, or empty
    mr_config: str  # JSON document whose hash is HOST_DATA

    def with_report_data(self, report_data: bytes) -> "SevSnp":
        """Return a copy with other report data in the report, whose signature is then invalid."""
        if len(self.report) < 0x90:
            message = f"SEV-SNP report: too short for report data: {len(self.report)} bytes"
            raise UsageError(message, reason="wrong_size")
        return self._replace(report=_patched(self.report, 0x50, report_data))

    def stripped(self) -> "SevSnp":
        """Return `self`: there is nothing to strip."""
        return self


class NitroTpm(NamedTuple):
    """AWS EC2 with a NitroTPM."""

    attestation_doc: bytes  # COSE_Sign1

    def with_report_data(self, report_data: bytes) -> "NitroTpm":
        """Return `self`: the report data is inside of the signed document."""
        del report_data
        return self

    def stripped(self) -> "NitroTpm":
        """Return `self`: there is nothing to strip."""
        return self


Platform = Tdx | GcpTdx | NitroEnclave | SevSnp | NitroTpm

PLATFORM_NAMES: dict[type[Platform], str] = {
    Tdx: "dstack-tdx",
    GcpTdx: "dstack-gcp-tdx",
    NitroEnclave: "dstack-nitro-enclave",
    SevSnp: "dstack-amd-sev-snp",
    NitroTpm: "dstack-aws-nitro-tpm",
}


class Stack(NamedTuple):
    """Claims of the software stack, not signed by the platform."""

    report_data: bytes  # 64 bytes
    runtime_events: tuple[RuntimeEvent, ...]
    config: str
    report_data_payload: str | None = None  # only in evidence of a pod (`dstack-pod`)


class Evidence(NamedTuple):
    """Decoded evidence: the part of the platform, and the part of the software stack."""

    platform: Platform
    stack: Stack

    def has_v2_event(self) -> bool:
        """Return whether an event has version 2, which SCALE cannot represent."""
        events = self.platform.event_log if isinstance(self.platform, (Tdx, GcpTdx)) else ()
        versions = [event.version for event in self.stack.runtime_events]
        return any(version != 1 for version in (*versions, *(event.version for event in events)))


def td_body(quote: bytes | Quote) -> TdQuoteBody:
    """Return the TD report body of a quote, raw or parsed.

    Raises:
        FormatError: If the quote is malformed, or of an SGX enclave.
    """
    body = (quote if isinstance(quote, Quote) else Quote.parse(quote)).body
    if not isinstance(body, TdQuoteBody):
        raise FormatError("quote: of an SGX enclave, not of a TD", reason="wrong_type")
    return body


def is_acpi_data(event: WireEvent) -> bool:
    """Return whether an event measures an ACPI table; its payload is never stripped."""
    return (event.event_type, event.imr, event.event_payload) == (ACPI_CONFIG, 0, ACPI_DATA)


def _stripped(event: WireEvent) -> WireEvent:
    """Return the form of an event for certificates.

    The digest of a runtime event is removed, because it can be recomputed; in version 2 it stays,
    because verifiers compare it with the preimage. The payload of other events is removed.
    """
    is_runtime = event.event_type == RUNTIME_EVENT_TYPE
    if is_acpi_data(event) or (is_runtime and event.version == 2):
        return event
    return event._replace(digest=b"") if is_runtime else event._replace(event_payload=b"")


def _patched(data: bytes, at: int, report_data: bytes) -> bytes:
    return data[:at] + report_data + data[at + 64 :]


def _patched_quote(quote: bytes, report_data: bytes) -> bytes:
    # Quotes of version 5 have a body descriptor of 6 bytes.
    at = 574 if quote[:2] == b"\5\0" else 568
    if len(quote) < at + 64:
        message = f"quote: too short for report data: {len(quote)} bytes"
        raise UsageError(message, reason="wrong_size")
    return _patched(quote, at, report_data)
