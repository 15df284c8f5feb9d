"""Attestation: evidence as an attester sends it to a verifier or relying party.

It contains the signed part (TDX quote, SEV-SNP report or Nitro document), the event log, the
runtime events and the VM configuration. This package decodes and encodes evidence; the verifier
appraises it.
"""

from collections.abc import Mapping
from operator import itemgetter
from typing import TYPE_CHECKING, Final

from attestkit._argument_checks import require_bytes, require_size, wrong_type
from attestkit.attestation import app_info as _app_info
from attestkit.attestation import encodings
from attestkit.attestation.app_info import AppInfo
from attestkit.attestation.encodings import Enclosed, Encoding
from attestkit.attestation.launch.vm_config import choose_config
from attestkit.attestation.nitro import NitroDocument, read_nitro_document
from attestkit.attestation.tdx import WireLog
from attestkit.attestation.wire import agent_response
from attestkit.attestation.wire import evidence_parts as parts
from attestkit.attestation.wire.evidence_parts import Evidence
from attestkit.attestation.wire.scale import MAX_ITEMS
from attestkit.errors import FormatError, UsageError
from attestkit.event_log import Event, EventLog, Rtmrs
from attestkit.event_log.event import RUNTIME_REGISTER, WireEvent, event_from_wire
from attestkit.event_log.runtime_events import RUNTIME_EVENT_TYPE
from attestkit.quote import Quote
from attestkit.snp_report import SnpReport, parse_snp_report

if TYPE_CHECKING:
    from attestkit._outcomes.reasons import FormatReason
    from attestkit.attestation.azure import HclReport
    from attestkit.collateral import Collateral
    from attestkit.gpu.evidence import GpuEvidence

__all__ = ["MAX_SIZE", "AppInfo", "Attestation", "Encoding"]

MAX_SIZE: Final = 10_485_760
"""Largest size of encoded evidence in bytes (10 MiB)."""

_NO_LOG: Final = WireLog()
# Name, payload and version of an Event, which are the fields of a RuntimeEvent; and its digest.
_CONTENT: Final = itemgetter(3, 4, 5)
_DIGEST: Final = itemgetter(2)


class Attestation:
    """Evidence of one TEE. Immutable; equality ignores the encoding and enclosed collateral."""

    __slots__ = (
        *("_collateral", "_encoding", "_event_log", "_evidence", "_gpu", "_quote"),
        "_runtime_events",
    )

    def __init__(
        self,
        evidence: Evidence,
        encoding: Encoding | None = None,
        collateral: bytes | None = None,
        gpu_evidence: bytes | None = None,
    ) -> None:
        """Create an attestation from decoded evidence.

        Args:
            evidence: The decoded evidence.
            encoding: Encoding in which it was received; None for new evidence.
            collateral: JSON (`Collateral.to_json`) from the same CMW, not parsed; None without.
            gpu_evidence: JSON (`GpuEvidence.raw`) from the same CMW, not parsed; None without.
        """
        self._evidence = evidence
        self._collateral = collateral
        self._gpu = gpu_evidence
        self._encoding: Encoding | None = encoding
        self._quote: Quote | None = None
        self._event_log: EventLog | None = None
        self._runtime_events: tuple[Event, ...] | None = None

    @classmethod
    def from_bytes(cls, data: bytes) -> "Attestation":
        """Decode evidence of at most 10 MiB in any `Encoding`.

        Quote, report, enclosed collateral and GPU evidence are parsed on first access.

        Raises:
            UsageError: If `data` is not `bytes`.
            FormatError: If `data` is malformed, too large, or in an unknown encoding.
        """
        require_bytes("evidence", data)
        if not data:
            raise FormatError("Empty attestation bytes", reason="missing")
        if len(data) > MAX_SIZE:
            message = f"attestation bytes too large: {len(data)} > {MAX_SIZE}"
            raise FormatError(message, reason="too_large")
        return cls(*encodings.decode(data))

    @classmethod
    def from_agent_response(cls, response: str | bytes | Mapping[str, object]) -> "Attestation":
        """Decode the response of a guest agent to Attest, GetQuote, TdxQuote or RawQuote.

        Args:
            response: JSON text or the parsed object; byte strings are hex. The member `attestation`
                is used if present, and its VM configuration must be that of `vm_config`, if any;
                otherwise the evidence is built from `quote`, `event_log` and `vm_config`.

        Raises:
            FormatError: If the response or its evidence is malformed, or over 32 MiB.
        """
        fields = agent_response.parse_response(response)
        if (data := agent_response.decode_attestation(fields)) is not None:
            return cls.from_bytes(data).with_vm_config(agent_response.vm_config_of(fields))
        return cls(agent_response.parse_quote_response(fields))

    @classmethod
    def from_quote_and_log(cls, quote: bytes, event_log: str, config: str = "") -> "Attestation":
        """Build evidence from a raw TDX quote and its event log, which are not compared.

        Args:
            quote: The quote, binary.
            event_log: JSON array of events, as guest agents return it.
            config: VM configuration, JSON text; empty if unknown.

        Raises:
            FormatError: If quote or event log is malformed, or the quote is of an SGX enclave.
            UsageError: If `quote` is not `bytes`, or `event_log` is neither text nor bytes.
        """
        return cls(agent_response.parse_quote_and_log(quote, event_log, config))

    @classmethod
    def for_tdx(
        cls,
        quote: Quote,
        event_log: EventLog,
        config: str = "",
        report_data: bytes | None = None,
        *,
        known: WireLog = _NO_LOG,
    ) -> "Attestation":
        """Build evidence of a TD.

        Args:
            quote: The TD quote.
            event_log: Log with the runtime events; it should replay to the RTMRs of the quote,
                which is not checked here.
            config: VM configuration, JSON text; empty if unknown.
            report_data: Report data, 64 bytes; None takes it from the quote.
            known: Wire form of this log or of its first events, to be reused.

        Raises:
            UsageError: If `report_data` is not 64 bytes.
        """
        if report_data is None:
            report_data = quote.report_data
        require_size("report data", report_data, 64)
        _, events, runtime = known.extend_to(event_log)
        found = cls(
            Evidence(parts.Tdx(quote.raw, events), parts.Stack(report_data, runtime, config))
        )
        found._quote, found._event_log = quote, event_log
        if all(event.digest for event in event_log.runtime):
            found._runtime_events = event_log.runtime
        return found

    def to_bytes(self, encoding: Encoding | None = None) -> bytes:
        """Encode the evidence.

        Args:
            encoding: One of `Encoding`; None for the encoding in which the evidence was received.
                The default of new evidence is `cbor` if it has collateral or GPU evidence, or its
                platform is not one of dstack's, `v1` if an event has digest version 2, else `v0`.
                Only `cbor` and `json` include collateral and GPU evidence.

        Raises:
            UsageError: If the encoding is unknown or cannot represent the evidence, or the evidence
                exceeds a limit of decoders (10 MiB, 65,536 events).
        """
        chosen = encoding or self._encoding or self._default_encoding()
        known = tuple(encodings.ENCODE)  # a tuple: `chosen` may be unhashable
        if chosen not in known:
            message = f"encoding: unknown: {ascii(chosen)[:64]}; use one of {', '.join(known)}"
            raise UsageError(message, reason="unknown_name")
        if (count := len(self._wire_events())) > MAX_ITEMS:
            raise UsageError(f"evidence: {count} events, at most {MAX_ITEMS}", reason="too_many")
        encoded = encodings.ENCODE[chosen](self._evidence, Enclosed(self._collateral, self._gpu))
        if len(encoded) > MAX_SIZE:
            raise UsageError(
                f"evidence: {len(encoded)} bytes, at most {MAX_SIZE}", reason="too_large"
            )
        return encoded

    @property
    def evidence(self) -> Evidence:
        """The decoded evidence; all fields have the values that were received."""
        return self._evidence

    @property
    def encoding(self) -> Encoding | None:
        """The encoding in which the evidence was received; None for new evidence."""
        return self._encoding

    @property
    def platform(self) -> str:
        """Name of the platform, such as `dstack-tdx`: one of `evidence_parts.PLATFORM_NAMES`."""
        return parts.PLATFORM_NAMES[type(self._evidence.platform)]

    @property
    def quote(self) -> Quote | None:
        """The TDX quote; None on other platforms. Raises FormatError if it is malformed.

        Untrusted evidence may have a quote of an SGX enclave in its place.
        """
        platform = self._evidence.platform
        if self._quote is None:
            if isinstance(platform, (parts.Tdx, parts.GcpTdx)):
                self._quote = Quote.parse(platform.quote)
            elif isinstance(platform, parts.AzureTdx):
                self._quote = Quote.parse(platform.td_quote)
        return self._quote

    @property
    def snp_report(self) -> SnpReport | None:
        """The SEV-SNP report; None on other platforms. Raises FormatError if it is malformed."""
        report = parts.snp_report_of(self._evidence.platform)
        return None if report is None else parse_snp_report(report)

    @property
    def hcl_report(self) -> "HclReport | None":
        """The HCL report of Azure; None on other platforms. Raises FormatError if malformed."""
        platform = self._evidence.platform
        if not isinstance(platform, (parts.AzureSnp, parts.AzureTdx)):
            return None
        from attestkit.attestation.azure import HclReport  # lazy: only for this platform

        return HclReport.parse(platform.hcl_report)

    @property
    def nitro_document(self) -> NitroDocument | None:
        """The AWS Nitro document; None on other platforms. Raises FormatError if malformed."""
        platform = self._evidence.platform
        if isinstance(platform, parts.NitroEnclave):
            return read_nitro_document(platform.nsm_quote, tpm=False)
        if isinstance(platform, parts.NitroTpm):
            return read_nitro_document(platform.attestation_doc, tpm=True)
        return None

    @property
    def is_bare(self) -> bool:
        """Whether the evidence has neither runtime events nor a VM configuration."""
        stack = self._evidence.stack
        return not stack.runtime_events and not stack.config

    @property
    def event_log(self) -> EventLog:
        """Event log of a TD, with recomputed digests of runtime events; empty on other platforms.

        Azure's TDs have none: their firmware log, of a TPM, is in `evidence`. Raises FormatError if
        an event is malformed.
        """
        if self._event_log is None:
            self._event_log = EventLog.from_wire(self._wire_events())
        return self._event_log

    @property
    def runtime_events(self) -> tuple[Event, ...]:
        """Runtime events of any platform; they contain the identity of the application.

        Raises FormatError if one is malformed.
        """
        if self._runtime_events is None:
            stated = self._evidence.stack.runtime_events
            logged = self._event_log.runtime if self._event_log is not None else ()
            # Usually they equal those of the log; reuse its digests then. A stripped log has none.
            same = tuple(map(_CONTENT, logged)) == stated
            if not same or not all(map(_DIGEST, logged)):
                logged = tuple([_runtime_event(event, at) for at, event in enumerate(stated)])
            self._runtime_events = logged
        return self._runtime_events

    @property
    def report_data(self) -> bytes:
        """The report data (64 bytes) beside the signed evidence; verifiers compare the two."""
        return self._evidence.stack.report_data

    @property
    def config(self) -> str:
        """The VM configuration: JSON text or empty."""
        return self._evidence.stack.config

    @property
    def enclosed_collateral(self) -> "Collateral | None":
        """The collateral that a CMW contains beside the evidence; None if it contains none.

        The sender of the evidence chose it, so verifiers ignore it. To use it, pass it to
        `Verifier(collateral=...)`, which verifies its signatures and dates.

        Raises FormatError if it is malformed.
        """
        if self._collateral is None:
            return None
        from attestkit.collateral import Collateral  # lazy: evidence rarely includes collateral
        from attestkit.errors import CollateralError

        try:
            return Collateral.from_json(self._collateral)
        except CollateralError as error:
            reason: FormatReason = "too_large" if error.reason == "too_large" else "wrong_value"
            text = str(error).removeprefix("collateral: ")
            raise FormatError(f"collateral: {text}", reason=reason) from error

    def with_collateral(self, collateral: "Collateral | None") -> "Attestation":
        """Return a copy with other collateral beside the evidence, or without (None).

        The encodings `cbor` and `json` include it. It is not part of the evidence: neither equality
        nor the appraisal depends on it.

        Raises:
            UsageError: If `collateral` is not a `Collateral`.
        """
        if collateral is None:
            return Attestation(self._evidence, self._encoding, None, self._gpu)
        from attestkit.collateral import Collateral  # lazy: evidence rarely includes collateral

        if not isinstance(collateral, Collateral):
            raise wrong_type("collateral", "a Collateral", collateral)
        return Attestation(self._evidence, self._encoding, collateral.to_json().encode(), self._gpu)

    @property
    def gpu_evidence(self) -> "GpuEvidence | None":
        """The evidence of GPUs that a CMW contains beside that of the CPU; None without.

        Raises FormatError if it is malformed.
        """
        if self._gpu is None:
            return None
        from attestkit.gpu.evidence import GpuEvidence  # lazy: only with GPUs

        return GpuEvidence.from_json(self._gpu)

    def with_gpu_evidence(self, gpu_evidence: "GpuEvidence | None") -> "Attestation":
        """Return a copy with other evidence of GPUs beside that of the CPU, or without (None).

        The encodings `cbor` and `json` include it.
        """
        raw = None if gpu_evidence is None else gpu_evidence.raw
        return Attestation(self._evidence, self._encoding, self._collateral, raw)

    def with_vm_config(self, vm_config: str) -> "Attestation":
        """Return evidence with the VM configuration that was received beside it.

        Args:
            vm_config: JSON text, used if the evidence has none; empty if none was received.

        Raises:
            FormatError: If the evidence has another VM configuration, or one is malformed. Numbers
                are compared by value, and members in any order.
        """
        platform, stack = self._evidence
        chosen = choose_config(stack.config, vm_config)
        if chosen == stack.config:
            return self
        evidence = Evidence(platform, stack._replace(config=chosen))
        return Attestation(evidence, self._encoding, self._collateral, self._gpu)

    @property
    def app_info(self) -> AppInfo:
        """Identity of the app, not verified; raises the same errors as `read_app_info`."""
        return self.read_app_info()

    @property
    def registers(self) -> Rtmrs | None:
        """RTMR0 to RTMR3 in the quote, 48 bytes each; None on a platform without RTMRs.

        Raises FormatError if the quote is malformed, UsageError if it is of an SGX enclave.
        """
        return None if self.quote is None else self.quote.rtmrs

    def read_app_info(
        self, *, boottime: bool = False, key_time: bool = False, device: bytes = b""
    ) -> AppInfo:
        """Return the identity of the application, from runtime events or the mr_config document.

        They are not compared with the registers of a TD. On platforms that measure no app (Azure, a
        TPM alone, SEV-SNP on Google Cloud) all fields are empty.

        Args:
            boottime: Ignore all events after dstack's event `boot-mr-done`, and leave the key
                provider empty, as at a guest's key request.
            key_time: Read the identity from the events before `boot-mr-done`, as a KMS does, whose
                guests have no event `system-ready` yet.
            device: Verified identity of the device, such as a PPID; empty if not verified. Its
                SHA-256, also that of no bytes, is `device_id`. Ignored on SEV-SNP.

        Raises:
            FormatError: If quote, report, events or configuration are malformed, or a quote is of
                an SGX enclave.
            ReplayError: If HOST_DATA is not the hash of the mr_config document, or the events do
                not replay to PCR 14 of a NitroTPM.
        """
        events = self._runtime_events
        digests = None if events is None else list(map(_DIGEST, events))
        parsed = _app_info.ParsedParts(self._quote, digests)
        return _app_info.read_app_info(
            self._evidence, boottime=boottime, key_time=key_time, device=device, parsed=parsed
        )

    def stripped(self) -> "Attestation":
        """Return a smaller copy, in the same encoding, for embedding in a certificate.

        On TDX, the event log keeps only the RTMR3 events (without fields that can be recomputed)
        and, except on Google Cloud, the events that measure ACPI tables. Beside a quote of a TPM,
        the logs of firmware and IMA are removed. Runtime events, report data and configuration are
        kept; collateral and evidence of GPUs are removed.

        If the report data contain the hash of the evidence of GPUs, the copy alone fails the
        verification (reason `report_data`): pass that evidence to `Verifier.verify` as `gpu`.
        """
        platform = parts.stripped(self._evidence.platform)
        return Attestation(self._evidence._replace(platform=platform), self._encoding)

    def with_report_data(self, report_data: bytes) -> "Attestation":
        """Return a copy with other report data, also in the quote or SEV-SNP report.

        Its signature is then not valid: use it only for tests and simulation. On Nitro and Azure,
        and for a TPM alone, only the report data beside the signed part are replaced.

        Raises:
            UsageError: If `report_data` is not 64 bytes, or the quote or report is too short.
        """
        require_size("report data", report_data, 64)
        platform, stack = self._evidence
        replaced = Evidence(
            parts.with_report_data(platform, report_data), stack._replace(report_data=report_data)
        )
        return Attestation(replaced, self._encoding, self._collateral, self._gpu)

    def _default_encoding(self) -> Encoding:
        if (self._collateral or self._gpu) is not None or not parts.is_of_dstack(
            self._evidence.platform
        ):
            return "cbor"
        return "v1" if self._evidence.has_v2_event() else "v0"

    def _wire_events(self) -> tuple[WireEvent, ...]:
        platform = self._evidence.platform
        return platform.event_log if isinstance(platform, (parts.Tdx, parts.GcpTdx)) else ()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Attestation):
            return NotImplemented
        # Named tuples of different platforms can be equal, so compare the platforms too.
        same = self.platform == other.platform and self._evidence == other.evidence
        return same and self._gpu == other._gpu

    def __hash__(self) -> int:
        return hash((self.platform, self._evidence))

    def __reduce__(self) -> tuple[object, ...]:
        return Attestation, (self._evidence, self._encoding, self._collateral, self._gpu)

    def __repr__(self) -> str:
        events = len(self._wire_events())
        return f"<Attestation {self.platform}, {self._encoding or 'new'}, {events} events>"


def _runtime_event(event: parts.RuntimeEvent, index: int) -> Event:
    payload, version = event.payload, event.version
    wire = WireEvent(RUNTIME_REGISTER, RUNTIME_EVENT_TYPE, b"", event.event, payload, version)
    return event_from_wire(wire, index)
