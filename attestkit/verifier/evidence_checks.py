"""Verification steps between signatures and policy: event log and app identity.

Each step takes evidence whose signatures are valid. It returns the verified values and a
VerificationStep, or raises an exception.
"""

import hmac
from operator import attrgetter
from types import EllipsisType
from typing import TYPE_CHECKING, Final, NamedTuple

from attestkit._reasons import VerificationStep
from attestkit.attestation import Attestation
from attestkit.attestation.launch.mr_config import MrConfig
from attestkit.attestation.wire.evidence_parts import (
    AzureSnp,
    AzureTdx,
    GcpSnp,
    GoTpmTools,
    NitroEnclave,
    NitroTpm,
    Platform,
    SevSnp,
    Tpm,
)
from attestkit.errors import (
    FormatError,
    PolicyError,
    ReplayError,
    UsageError,
    VerificationError,
)
from attestkit.event_log.event import Event
from attestkit.quote import Quote, TdQuoteBody, quoting_enclave_svn
from attestkit.report_data import ReportData
from attestkit.verifier.boot_identity import check_boot_events, check_sizes
from attestkit.verifier.config_id import has_document, sealed_configuration
from attestkit.verifier.os_image import VerifiedImage
from attestkit.verifier.platforms.snp.claims import Fields, launch_claims, report_claims
from attestkit.verifier.result import Authenticated, BoundTo, Claims, caution, passed, skipped

if TYPE_CHECKING:
    from attestkit.attestation import AppInfo

_TD_REGISTERS = ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3")
_TD_ATTRIBUTES = (
    "td_attributes",
    "xfam",
    "mr_seam",
    "mr_signer_seam",
    "seam_attributes",
    "mr_config_id",
    "mr_owner",
    "mr_owner_config",
    "tee_tcb_svn",
)
_TD_15_ATTRIBUTES = ("tee_tcb_svn2", "mr_service_td")  # TDX 1.5
_td_registers = attrgetter(*_TD_REGISTERS)
_td_attributes = attrgetter(*_TD_ATTRIBUTES)
_td_15_attributes = attrgetter(*_TD_15_ATTRIBUTES)


_PARAVISOR: Final = (AzureSnp, AzureTdx)


class ParsedEvidence(NamedTuple):
    """Parsed evidence: an attestation, a quote, or both."""

    attestation: Attestation | None  # None: a bare quote
    quote: Quote | None  # None: a platform without quotes

    @classmethod
    def of(cls, attestation: Attestation) -> "ParsedEvidence":
        """Return the evidence of an attestation.

        Raises:
            FormatError: If its quote is malformed or not of a TD, or its HCL report is malformed or
                of other hardware.
        """
        platform = attestation.evidence.platform
        if isinstance(platform, _PARAVISOR):
            from attestkit.verifier.platforms.azure import read_azure_report  # lazy: only for Azure

            read_azure_report(platform)
        quote = attestation.quote
        if quote is not None and not isinstance(quote.body, TdQuoteBody):
            message = f"{attestation.platform} evidence: the quote must be of a TD"
            raise FormatError(message, reason="tee_type")
        return cls(attestation, quote)

    @property
    def wire_platform(self) -> Platform | None:
        """The platform's part of the evidence; None for a bare quote."""
        return None if self.attestation is None else self.attestation.evidence.platform

    @property
    def platform(self) -> str:
        """Name of the platform; the TEE type of a bare quote determines it."""
        if self.attestation is not None:
            return self.attestation.platform
        assert self.quote is not None
        return "dstack-tdx" if isinstance(self.quote.body, TdQuoteBody) else "sgx"


class ExpectedReportData(NamedTuple):
    """Report data that evidence must have, and the nonce that it contains, if any."""

    value: bytes | None  # 64 bytes; None accepts any
    bound_to: BoundTo | None  # None if `value` is None or empty
    nonce: bytes | None = None

    @classmethod
    def of(
        cls, nonce: bytes | None, report_data: bytes | EllipsisType | None
    ) -> "ExpectedReportData":
        """Return the expected report data for exactly one of two arguments of `Verifier.verify`.

        Args:
            nonce: 8 to 64 bytes, or None.
            report_data: Report data, zero-padded to 64 bytes; all zeros bind to nothing. None
                accepts any report data; `...` means that the argument was not given.

        Raises:
            UsageError: If none or both are given, or one has another type or size.
        """
        if nonce is None and report_data is ...:
            raise UsageError(
                "nonce: missing; without one, pass report_data, or report_data=None to accept any",
                reason="missing",
            )
        if nonce is not None and report_data is not ...:
            raise UsageError("nonce and report_data: give exactly one", reason="conflict")
        if nonce is not None:
            return cls(ReportData.for_nonce(nonce), "nonce", nonce)
        if report_data is None or report_data is ...:
            return cls(None, None)
        value = ReportData.pad(report_data)
        return cls(value, "report_data" if any(value) else None)


def check_quoted_report_data(parsed: ParsedEvidence, signed: bytes) -> None:
    """Compare the report data in the evidence with the signed report data.

    Raises:
        VerificationError: If they differ.
    """
    if parsed.attestation is None:
        return
    stack = parsed.attestation.evidence.stack
    if stack.report_data_payload is not None:
        bound = ReportData.bind(ReportData.APP_DATA, stack.report_data_payload.encode())
        if not hmac.compare_digest(bound, stack.report_data):
            message = "evidence: report_data is not the hash of report_data_payload"
            raise VerificationError(message, reason="report_data_mismatch")
    if not hmac.compare_digest(signed, stack.report_data):
        raise VerificationError(
            f"evidence: report_data is {stack.report_data.hex()}, but the platform signed "
            f"{signed.hex()}",
            reason="report_data_mismatch",
        )


def replay_event_log(parsed: ParsedEvidence) -> tuple[tuple[int, ...], VerificationStep]:
    """Replay the event log; return the RTMRs that it covers.

    A log shortened for a certificate covers RTMR3 only. The log of a NitroTPM's guest is its
    runtime events, which cover PCR 14 and no RTMR.

    Raises:
        ReplayError: If a register does not match the replay, or the evidence's list of runtime
            events does not match the log.
        VerificationError: If an event's digest does not match its name and payload.
    """
    attestation, quote = parsed
    if attestation is None:
        return (), skipped("event_log", "replay was left out: a bare quote has no log")
    if isinstance(attestation.evidence.platform, NitroTpm):
        # lazy: only for this platform
        from attestkit.verifier.platforms.nitro_tpm import replay_runtime_events

        return (), replay_runtime_events(attestation)
    if quote is None:
        text = f"replay was left out: nothing measures events on {attestation.platform}"
        return (), skipped("event_log", text)
    log = attestation.event_log
    registers = log.explained_registers()
    log.check(quote, registers)
    _check_same_events(attestation.runtime_events, log.runtime)
    if 0 in registers:
        text = f"the log's {len(log.events)} events replay to RTMR0 to RTMR3"
        return registers, passed("event_log", text)
    text = (
        f"the log's runtime events replay to RTMR3; it is shortened, so RTMR0 to RTMR2 were "
        f"not replayed ({len(log.events)} events)"
    )
    return registers, caution("event_log", text)


def _check_same_events(listed: tuple[Event, ...], measured: tuple[Event, ...]) -> None:
    """Check that the evidence's list of runtime events, which names the app, matches the log."""
    # Digests are not compared: a log shortened for a certificate has none.
    if listed is not measured and _contents(listed) != _contents(measured):
        message = "evidence: runtime_events are not those of the event log"
        raise ReplayError(message, reason="rtmr_mismatch")


def _contents(events: tuple[Event, ...]) -> list[tuple[str, bytes, int]]:
    return [(event.name, event.payload, event.version) for event in events]


def app_info(
    parsed: ParsedEvidence, device: bytes, image_hash: bytes
) -> "tuple[AppInfo | None, tuple[VerificationStep, ...]]":
    """Return the identity of the app; unauthenticated fields are empty.

    Args:
        parsed: Evidence whose event log replays.
        device: Device identifier, authenticated.
        image_hash: Hash of the OS image, verified; empty if not verifiable.

    Raises:
        ReplayError: If the sealed configuration contradicts the evidence.
        VerificationError: As ReplayError, or if a field of the identity has the wrong size, or two
            boot events name it.
        FormatError: If a document is malformed.
    """
    attestation, quote = parsed
    if attestation is None:
        return None, _without_app("a bare quote does not name its app")
    if reason := _nameless(attestation):
        return None, _without_app(reason)
    platform = attestation.evidence.platform
    if isinstance(platform, SevSnp):
        MrConfig.parse(platform.mr_config).check_lengths()
    info = attestation.read_app_info(device=device)
    if info.os_image_hash != image_hash:
        info = info._replace(os_image_hash=image_hash)
    if isinstance(platform, NitroEnclave):
        # Its events come from the agent and are not measured; only the image is.
        info = info._replace(
            app_id=b"",
            compose_hash=image_hash,
            instance_id=b"",
            key_provider_info=b"",
            init_script_hashes=None,
        )
        text = "an enclave's image is its only identity: its app id was left out"
        return info, _without_app(text)
    check_boot_events(attestation.runtime_events)
    check_sizes(info)
    sealed = None
    if quote is not None and isinstance(quote.body, TdQuoteBody):
        sealed = sealed_configuration(quote.body.mr_config_id, info, attestation.config)
    if info.app_id:
        text = f"the app is {info.app_id.hex()}, compose hash {info.compose_hash.hex()}"
        steps: tuple[VerificationStep, ...] = (passed("app", text),)
    else:
        steps = _without_app("the evidence names no app: it has no boot events up to system-ready")
    return info, steps if sealed is None else (*steps, sealed)


def _nameless(attestation: Attestation) -> str:
    """Return why evidence does not name its app; empty if it may."""
    platform = attestation.evidence.platform
    if isinstance(platform, SevSnp) and not platform.mr_config:
        return "the evidence has no configuration document, so it does not name its app"
    if isinstance(platform, _PARAVISOR):
        return "behind a paravisor, evidence does not name its app"
    if isinstance(platform, GcpSnp):
        return "nothing measures the app of an SEV-SNP guest of Google"
    if isinstance(platform, (Tpm, GoTpmTools)):
        return "evidence of a TPM does not name its app"
    if isinstance(platform, NitroTpm) and attestation.is_bare:
        return "a bare document does not name its app"
    return ""


def _without_app(text: str) -> tuple[VerificationStep, ...]:
    return (skipped("app", text),)


def claims(
    parsed: ParsedEvidence,
    authenticated: Authenticated | None,
    registers: tuple[int, ...],
    image: VerifiedImage,
) -> Claims:
    """Return the authenticated fields of evidence that passed the previous steps.

    They are not authentic if `authenticated` is None, which is for display only.
    """
    named, attributes = _fields(parsed)
    report_data, vtpm = b"", None
    proven: Fields = ()
    if authenticated is not None:
        report_data, vtpm = authenticated.report_data, authenticated.vtpm
        proven = authenticated.attributes
    if vtpm is not None:
        named = (*named, *vtpm.registers())
    attestation = parsed.attestation
    replayed = registers or (attestation is not None and _measures_events_in_pcr(attestation))
    events = attestation.runtime_events if attestation is not None and replayed else ()
    return Claims(
        platform=parsed.platform,
        report_data=report_data,
        registers=named,
        attributes=(*attributes, *proven, *verified_launch(parsed, image.hash)),
        events=events,
        event_registers=registers,
        os_image_hash=image.hash,
        has_mr_config=_has_mr_config(parsed),
        measurement_version=image.measurement_version,
        acpi_tables_verified=image.acpi_tables,
        os_image_version=image.version,
        os_image_is_dev=image.is_dev,
        vtpm=vtpm,
    )


def _measures_events_in_pcr(attestation: Attestation) -> bool:
    """Return whether the platform measures runtime events in a PCR, which then replays."""
    return isinstance(attestation.evidence.platform, NitroTpm) and not attestation.is_bare


def verified_launch(parsed: ParsedEvidence, image_hash: bytes) -> Fields:
    """Return the launch parameters of an SEV-SNP guest; empty unless its OS image is verified."""
    attestation = parsed.attestation
    if attestation is None or not isinstance(attestation.evidence.platform, SevSnp):
        return ()
    return launch_claims(attestation.config) if image_hash else ()


def _has_mr_config(parsed: ParsedEvidence) -> bool:
    attestation, quote = parsed
    if attestation is None or quote is None or not isinstance(quote.body, TdQuoteBody):
        return False
    return has_document(quote.body.mr_config_id, attestation.config)


def _fields(parsed: ParsedEvidence) -> tuple[Fields, Fields]:
    """Return registers and attributes, each as a pair of name and value.

    The names are those of the platform, such as mrtd for TDX and pcr0 for an enclave. The PCRs of a
    TPM are not among them.
    """
    attestation, quote = parsed
    if quote is not None:
        named, attributes = _quoted(quote)
        if isinstance(parsed.wire_platform, AzureTdx):  # RTMRs are zero, and measure nothing
            named = tuple([(name, value) for name, value in named if name == "mrtd"])
        return named, attributes
    assert attestation is not None
    if (report := attestation.snp_report) is not None:
        return report_claims(report)
    if not isinstance(attestation.evidence.platform, NitroEnclave):
        return (), ()
    document = attestation.nitro_document
    assert document is not None
    return tuple((f"pcr{index}", value) for index, value in sorted(document.pcrs.items())), ()


def _quoted(quote: Quote) -> tuple[Fields, Fields]:
    body = quote.body
    if isinstance(body, TdQuoteBody):
        named = tuple(zip(_TD_REGISTERS, _td_registers(body), strict=True))
        found = zip(_TD_ATTRIBUTES, _td_attributes(body), strict=True)
        if body.tee_tcb_svn2 is None:
            return named, (*found, *_enclave_svns(quote))
        newer = zip(_TD_15_ATTRIBUTES, _td_15_attributes(body), strict=True)
        return named, (*found, *newer, *_enclave_svns(quote))
    attributes = (
        ("attributes", body.attributes),
        ("isv_prod_id", body.isv_prod_id.to_bytes(2, "little")),
        ("isv_svn", body.isv_svn.to_bytes(2, "little")),
        *_enclave_svns(quote),
    )
    return (("mrenclave", body.mr_enclave), ("mrsigner", body.mr_signer)), attributes


def check_report_data(signed: bytes, expected: ExpectedReportData) -> VerificationStep:
    """Check the report data, if expected."""
    value, bound_to, _ = expected
    if value is None:
        text = "freshness was not checked: any report data was accepted"
        return skipped("report_data", text)
    if not hmac.compare_digest(signed.ljust(len(value), b"\0"), value):
        what = "this nonce" if bound_to == "nonce" else "this report data"
        raise PolicyError(
            f"report data: {signed.hex()}, must be {value.hex()}; request new evidence with {what}",
            reason="report_data",
        )
    if bound_to is None:
        text = "the report data is empty, as expected, which binds the evidence to nothing"
        return caution("report_data", text)
    text = "the report data is the expected one"
    if bound_to == "nonce":
        text = "the evidence is bound to the expected nonce"
    return passed("report_data", text)


def _enclave_svns(quote: Quote) -> tuple[tuple[str, bytes], ...]:
    """Return the SVN of the quoting enclave, and those in the header of a version 3 quote."""
    found = ("qe_svn", quoting_enclave_svn(quote))
    if quote.version != 3:
        return (found,)
    header = quote.header
    svns = {"header_qe_svn": header.qe_svn or 0, "header_pce_svn": header.pce_svn or 0}
    return (found, *((name, svn.to_bytes(2, "little")) for name, svn in svns.items()))
