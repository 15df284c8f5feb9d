"""Parts of the evidence of each platform, as on the wire.

The values are unchanged, so that encoding restores the same bytes: a digest that the sender removed
is empty here, although `Attestation.event_log` has the recomputed digest. Fields have the names and
the order of the wire format (guest agent evidence, version 1).
"""

from collections.abc import Callable
from typing import NamedTuple

from attestkit._native import evidence_decoders
from attestkit.errors import FormatError, UsageError
from attestkit.event_log.event import ACPI_DATA, WireEvent
from attestkit.event_log.event_types import ACPI_CONFIG, RUNTIME_EVENT_TYPE
from attestkit.quote import Quote, TdQuoteBody

TPM_PLATFORMS = ("dstack", "gcp", "nitroenclave", "aws-ec2")  # SCALE indices 0 to 3


class RuntimeEvent(NamedTuple):
    """A runtime event as in evidence: name, payload and digest version, without the digest."""

    event: str
    payload: bytes
    version: int = 1  # 1 or 2


class PcrValue(NamedTuple):
    """A quoted PCR of a TPM: number, hash of its bank, value."""

    number: int  # `index` on the wire; tuples have a method of that name
    algorithm: str  # such as sha256
    value: bytes


class TpmEventDigest(NamedTuple):
    """An event of a TPM event log: its PCR and SHA-256 digest."""

    pcr_index: int
    digest: bytes


class TpmQuote(NamedTuple):
    """A TPM quote that accompanies a TDX quote, with PCR values, AK certificate and events."""

    message: bytes  # TPMS_ATTEST
    signature: bytes  # TPMT_SIGNATURE
    pcr_values: tuple[PcrValue, ...]
    ak_cert: bytes  # DER
    platform: str  # one of TPM_PLATFORMS
    event_log: tuple[TpmEventDigest, ...]


class Tdx(NamedTuple):
    """Evidence of Intel TDX under QEMU."""

    quote: bytes  # TDX quote
    event_log: tuple[WireEvent, ...]


class GcpTdx(NamedTuple):
    """Evidence of Intel TDX on Google Cloud, with a TPM."""

    quote: bytes  # TDX quote
    event_log: tuple[WireEvent, ...]  # of the RTMRs
    tpm_quote: TpmQuote  # quote of the vTPM, which has the PCRs with the runtime events


class NitroEnclave(NamedTuple):
    """Evidence of an AWS Nitro Enclave."""

    nsm_quote: bytes  # COSE_Sign1


class SevSnp(NamedTuple):
    """Evidence of AMD SEV-SNP."""

    report: bytes  # 1184 bytes
    cert_chain: tuple[bytes, ...]  # ASK and VCEK (DER or PEM), one certificate table, or empty
    mr_config: str  # JSON document whose hash is HOST_DATA


class NitroTpm(NamedTuple):
    """Evidence of an AWS EC2 instance with a NitroTPM."""

    attestation_doc: bytes  # COSE_Sign1


class VtpmQuote(NamedTuple):
    """A quote of a TPM with its key and logs, on platforms that dstack's formats do not define."""

    message: bytes  # TPMS_ATTEST
    signature: bytes  # TPMT_SIGNATURE
    pcr_values: tuple[PcrValue, ...]  # in the order of the quote's selection
    ak_public: bytes = b""  # TPMT_PUBLIC, or DER SubjectPublicKeyInfo; empty: the HCL report has it
    # DER, leaf first; may be empty. Or the NitroTPM document whose public_key is the key.
    ak_certificates: tuple[bytes, ...] = ()
    boot_log: bytes = b""  # event log of the firmware, binary_bios_measurements; may be empty
    ima_log: bytes = b""  # binary_runtime_measurements of any bank; may be empty


class GcpSnp(NamedTuple):
    """Evidence of AMD SEV-SNP on Google Cloud: the TPM's quote is over the report's SHA-256."""

    report: bytes  # 1184 bytes
    cert_chain: tuple[bytes, ...]  # as of SevSnp
    vtpm_quote: VtpmQuote


class AzureSnp(NamedTuple):
    """Evidence of AMD SEV-SNP behind a paravisor that provides a TPM: Azure."""

    hcl_report: bytes  # as in NV index 0x01400001, may be zero-padded
    vtpm_quote: VtpmQuote
    cert_chain: tuple[bytes, ...]  # VCEK, and ASK or a whole chain; as of SevSnp


class AzureTdx(NamedTuple):
    """Evidence of Intel TDX behind a paravisor that provides a TPM: Azure."""

    hcl_report: bytes  # as in NV index 0x01400001, may be zero-padded
    vtpm_quote: VtpmQuote
    td_quote: bytes  # TDX quote


class Tpm(NamedTuple):
    """Evidence of a TPM, without hardware evidence of a TEE."""

    vtpm_quote: VtpmQuote


class GoTpmTools(NamedTuple):
    """Evidence as a message `attest.Attestation` of google/go-tpm-tools, proto/attest.proto."""

    message: bytes  # protobuf


Platform = (
    Tdx
    | GcpTdx
    | NitroEnclave
    | SevSnp
    | NitroTpm
    | GcpSnp
    | AzureSnp
    | AzureTdx
    | Tpm
    | GoTpmTools
)

PLATFORM_NAMES: dict[type[Platform], str] = {
    Tdx: "dstack-tdx",
    GcpTdx: "dstack-gcp-tdx",
    NitroEnclave: "dstack-nitro-enclave",
    SevSnp: "dstack-amd-sev-snp",
    NitroTpm: "dstack-aws-nitro-tpm",
    GcpSnp: "gcp-snp",
    # The format; only a verifier that knows the paravisor calls them azure-snp and azure-tdx.
    AzureSnp: "hcl-snp",
    AzureTdx: "hcl-tdx",
    Tpm: "tpm",
    GoTpmTools: "go-tpm-tools",
}
"""Names of the platforms; those of dstack's formats begin with `dstack-`."""


def is_of_dstack(platform: Platform) -> bool:
    """Return whether dstack's formats define a platform; others exist as CMW collections only."""
    return PLATFORM_NAMES[type(platform)].startswith("dstack-")


def not_of_dstack(encoding: str, platform: Platform) -> UsageError:
    """Return the error of `encoding` for a platform that dstack's formats do not define."""
    name = PLATFORM_NAMES[type(platform)]
    message = f"encoding: {encoding} cannot represent {name} evidence; use cbor or json"
    return UsageError(message, reason="not_applicable")


class Stack(NamedTuple):
    """Claims of the software stack, not signed: report data, runtime events, VM configuration."""

    report_data: bytes  # 64 bytes
    runtime_events: tuple[RuntimeEvent, ...]
    config: str  # VM configuration, JSON text; empty if unknown
    report_data_payload: str | None = None  # only in evidence of a pod (`dstack-pod`)


class Evidence(NamedTuple):
    """Decoded evidence: data of the platform, and data of the software stack."""

    platform: Platform
    stack: Stack

    def has_v2_event(self) -> bool:
        """Return whether an event has digest version 2, which SCALE cannot represent."""
        events = self.platform.event_log if isinstance(self.platform, (Tdx, GcpTdx)) else ()
        versions = [event.version for event in self.stack.runtime_events]
        return any(version != 1 for version in (*versions, *(event.version for event in events)))


decode_scale_td: Callable[[bytes], Evidence | None]
decode_msgpack_td: Callable[[bytes], Evidence | None]
decode_cmw_td: Callable[[bytes], tuple[Evidence, bytes | None] | None]
decode_scale_td, decode_msgpack_td, decode_cmw_td = evidence_decoders(
    Evidence, Tdx, Stack, WireEvent, RuntimeEvent
)
"""Decode evidence of a TD in the layout of guest agents, which is nearly all there is.

That of a CMW is a pair of the evidence and the enclosed collateral, if there is some. They return
None for all other evidence, and for all that is malformed. Without the compiled core they always
return None.
"""


def snp_report_of(platform: Platform) -> bytes | None:
    """Return the SEV-SNP report of a platform, not parsed; None if it has none.

    On Azure it is in the HCL report, after a header of 32 bytes.
    """
    if isinstance(platform, AzureSnp):
        return platform.hcl_report[32:1216]
    return platform.report if isinstance(platform, (SevSnp, GcpSnp)) else None


def td_body(quote: bytes | Quote) -> TdQuoteBody:
    """Return the TD report body of a quote, raw or parsed.

    Raises:
        FormatError: If the quote is malformed, or of an SGX enclave.
    """
    body = (quote if isinstance(quote, Quote) else Quote.parse(quote)).body
    if not isinstance(body, TdQuoteBody):
        raise FormatError("quote: must be of a TD, not of an SGX enclave", reason="wrong_type")
    return body


def is_acpi_data(event: WireEvent) -> bool:
    """Return whether an event measures an ACPI table; its payload is never removed."""
    return (event.event_type, event.imr, event.event_payload) == (ACPI_CONFIG, 0, ACPI_DATA)


def stripped(platform: Platform) -> Platform:
    """Return a smaller copy for a certificate, in which the log of a TD has fewer events.

    It keeps the RTMR3 events and, on a platform without TPM, the events that measure ACPI tables.
    The logs of a `VtpmQuote` are removed, so its PCR values cannot be replayed.
    """
    if isinstance(platform, (GcpSnp, AzureSnp, AzureTdx, Tpm)):
        return platform._replace(vtpm_quote=platform.vtpm_quote._replace(boot_log=b"", ima_log=b""))
    if not isinstance(platform, (Tdx, GcpTdx)):
        return platform
    with_acpi = isinstance(platform, Tdx)
    kept = [e for e in platform.event_log if e.imr == 3 or (with_acpi and is_acpi_data(e))]
    return platform._replace(event_log=tuple([_stripped_event(event) for event in kept]))


def _stripped_event(event: WireEvent) -> WireEvent:
    """Return a smaller copy of an event for a certificate; ACPI events are kept as they are.

    The digest of a runtime event is removed, because it can be recomputed. It is kept in a
    version 2 event, because verifiers compare it with the hash of the event's content. The
    payload of all other events is removed.
    """
    is_runtime = event.event_type == RUNTIME_EVENT_TYPE
    if is_acpi_data(event) or (is_runtime and event.version == 2):
        return event
    return event._replace(digest=b"") if is_runtime else event._replace(event_payload=b"")


def with_report_data(platform: Platform, report_data: bytes) -> Platform:
    """Return a copy with other report data in quote or report, whose signature is then invalid.

    `report_data` has 64 bytes. On Nitro and Azure, and for a TPM alone, the report data are inside
    a signed document or a TPM's quote; the platform is then returned unchanged.

    Raises:
        UsageError: If the quote or report is too short to contain report data.
    """
    if isinstance(platform, (SevSnp, GcpSnp)):
        return platform._replace(
            report=_patched("SEV-SNP report", platform.report, 0x50, report_data)
        )
    if isinstance(platform, (Tdx, GcpTdx)):
        # Quotes of version 5 have a body descriptor of 6 bytes.
        at = 574 if platform.quote[:2] == b"\5\0" else 568
        return platform._replace(quote=_patched("quote", platform.quote, at, report_data))
    return platform


def _patched(subject: str, data: bytes, at: int, report_data: bytes) -> bytes:
    if len(data) < at + 64:
        raise UsageError(f"{subject}: too short: {len(data)} bytes", reason="wrong_size")
    return data[:at] + report_data + data[at + 64 :]
