"""What evidence consists of, per platform, exactly as it goes over the wire.

These values keep what came in, so that it goes out again byte for byte: a digest that was stripped
stays empty here, although `Attestation.event_log` shows the recomputed one. Field names are those
of the wire format (guest-agent evidence version 1), in its order.
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
    """One event of the runtime log, from which an app's identity is read."""

    event: str
    payload: bytes
    version: int = 1  # 1 or 2


class PcrValue(NamedTuple):
    """One quoted PCR of a TPM."""

    number: int  # `index` on the wire, which is a method of every tuple
    algorithm: str
    value: bytes


class TpmEvent(NamedTuple):
    """One event of a TPM's log: its PCR and SHA-256 digest."""

    pcr_index: int
    digest: bytes


class TpmQuote(NamedTuple):
    """A quote of a TPM beside a TDX quote."""

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
        """Return a copy whose quote shows `report_data`, and whose signature is therefore void."""
        return self._replace(quote=_patched_quote(self.quote, report_data))

    def stripped(self) -> "Tdx":
        """Return what certificates carry: RTMR3's events, and those that measure ACPI tables."""
        kept = [event for event in self.event_log if event.imr == 3 or is_acpi_data(event)]
        return self._replace(event_log=tuple([_stripped(event) for event in kept]))


class GcpTdx(NamedTuple):
    """Intel TDX at Google, with a TPM."""

    quote: bytes
    event_log: tuple[WireEvent, ...]
    tpm_quote: TpmQuote

    def with_report_data(self, report_data: bytes) -> "GcpTdx":
        """Return a copy whose quote shows `report_data`, and whose signature is therefore void."""
        return self._replace(quote=_patched_quote(self.quote, report_data))

    def stripped(self) -> "GcpTdx":
        """Return what certificates carry: RTMR3's events."""
        kept = [_stripped(event) for event in self.event_log if event.imr == 3]
        return self._replace(event_log=tuple(kept))


class NitroEnclave(NamedTuple):
    """An AWS Nitro Enclave."""

    nsm_quote: bytes  # COSE_Sign1

    def with_report_data(self, report_data: bytes) -> "NitroEnclave":
        """Return itself: the document is signed as a whole and is left alone."""
        del report_data
        return self

    def stripped(self) -> "NitroEnclave":
        """Return itself: there is nothing to strip."""
        return self


class SevSnp(NamedTuple):
    """AMD SEV-SNP."""

    report: bytes  # 1184 bytes
    cert_chain: tuple[bytes, ...]  # ASK and VCEK, DER or PEM; or one kernel table; or none
    mr_config: str  # the JSON document whose hash is HOST_DATA

    def with_report_data(self, report_data: bytes) -> "SevSnp":
        """Return a copy whose report shows `report_data`, and whose signature is therefore void."""
        if len(self.report) < 0x90:
            raise UsageError("the report is too short to hold report data")
        return self._replace(report=_patched(self.report, 0x50, report_data))

    def stripped(self) -> "SevSnp":
        """Return itself: there is nothing to strip."""
        return self


class NitroTpm(NamedTuple):
    """AWS EC2 with a NitroTPM."""

    attestation_doc: bytes  # COSE_Sign1

    def with_report_data(self, report_data: bytes) -> "NitroTpm":
        """Return itself: the document is signed as a whole and is left alone."""
        del report_data
        return self

    def stripped(self) -> "NitroTpm":
        """Return itself: there is nothing to strip."""
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
    """What the software above the platform says; `report_data_payload` only in a pod's evidence."""

    report_data: bytes  # 64 bytes
    runtime_events: tuple[RuntimeEvent, ...]
    config: str
    report_data_payload: str | None = None


class Evidence(NamedTuple):
    """Both halves: what the platform signed, and the stack above it."""

    platform: Platform
    stack: Stack

    def has_v2_event(self) -> bool:
        """Tell whether any event needs its version on the wire, which SCALE has no place for."""
        events = self.platform.event_log if isinstance(self.platform, (Tdx, GcpTdx)) else ()
        versions = [event.version for event in self.stack.runtime_events]
        return any(version != 1 for version in (*versions, *(event.version for event in events)))


def td_body(quote: bytes | Quote) -> TdQuoteBody:
    """Return what a quote, raw or parsed, says of its TD.

    Raises:
        FormatError: It is malformed, or an SGX enclave's.
    """
    body = (quote if isinstance(quote, Quote) else Quote.parse(quote)).body
    if not isinstance(body, TdQuoteBody):
        raise FormatError("the quote is not a TD's")
    return body


def is_acpi_data(event: WireEvent) -> bool:
    """Tell the three events that measure the ACPI tables, whose payload is always kept."""
    return (event.event_type, event.imr, event.event_payload) == (ACPI_CONFIG, 0, ACPI_DATA)


def _stripped(event: WireEvent) -> WireEvent:
    """Return the form in which certificates carry an event.

    A runtime event loses its digest, which follows from the rest; in version 2 it stays, because
    verifiers compare it with the preimage. Other events lose their payload.
    """
    is_runtime = event.event_type == RUNTIME_EVENT_TYPE
    if is_acpi_data(event) or (is_runtime and event.version == 2):
        return event
    return event._replace(digest=b"") if is_runtime else event._replace(event_payload=b"")


def _patched(data: bytes, at: int, report_data: bytes) -> bytes:
    return data[:at] + report_data + data[at + 64 :]


def _patched_quote(quote: bytes, report_data: bytes) -> bytes:
    # Version 5 has 6 bytes more before the body.
    at = 574 if quote[:2] == b"\5\0" else 568
    if len(quote) < at + 64:
        raise UsageError("the quote is too short to hold report data")
    return _patched(quote, at, report_data)
