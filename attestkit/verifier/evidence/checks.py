"""Checks between signatures and policy: report data, event log, app identity, TPM beside hardware.

Each step takes evidence whose signatures are valid. It returns the verified values and a
VerificationStep, or raises an exception.

The quote of Google's TPM is over the hardware's evidence, but nothing in that evidence names the
TPM: without more, both could be of different VMs (docs/guides/platforms/google.md). attestkit's
attester therefore binds a nonce together with the TPM's key.
"""

import hmac
from dataclasses import replace
from types import EllipsisType
from typing import TYPE_CHECKING, Final, NamedTuple

from attestkit._outcomes.steps import VerificationStep, caution, passed, skipped
from attestkit.attestation import Attestation
from attestkit.attestation.launch.mr_config import MrConfig
from attestkit.attestation.wire.evidence_parts import (
    AzureSnp,
    AzureTdx,
    GcpSnp,
    GcpTdx,
    GoTpmTools,
    NitroEnclave,
    NitroTpm,
    Platform,
    SevSnp,
    Tpm,
)
from attestkit.errors import FormatError, PolicyError, ReplayError, UsageError, VerificationError
from attestkit.event_log.event import Event
from attestkit.quote import Quote, TdQuoteBody
from attestkit.report_data import ReportData
from attestkit.verifier.app_identity import (
    check_boot_events,
    check_key_time_events,
    check_sizes,
    require_kms,
    sealed_configuration,
    sealed_for_kms,
)
from attestkit.verifier.claims import VtpmFacts
from attestkit.verifier.result import BoundTo

if TYPE_CHECKING:
    from attestkit.attestation import AppInfo

_PARAVISOR: Final = (AzureSnp, AzureTdx)


class ParsedEvidence(NamedTuple):
    """Parsed evidence: an attestation with the quote in it, if any, or a bare quote."""

    attestation: Attestation | None  # None: a bare quote
    quote: Quote | None  # None: a platform without quotes

    @classmethod
    def of(cls, attestation: Attestation) -> "ParsedEvidence":
        """Return the evidence of an attestation.

        Raises:
            FormatError: If the quote is malformed or not of a TD, or the HCL report is malformed or
                has the report of hardware other than the platform's.
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


class KeyRequest(NamedTuple):
    """Request for keys or a certificate, for which a KMS verifies evidence."""

    # SubjectPublicKeyInfo of the KMS's root CA in DER, which is the app's key provider. None: the
    # guest is a KMS itself, whose keys are of another provider.
    ca_spki: bytes | None
    boottime: bool = False  # registers up to `boot-mr-done`, and no key provider


class ExpectedReportData(NamedTuple):
    """Report data that evidence must have, and the nonce that it contains, if any."""

    value: bytes | None  # 64 bytes; None accepts any
    bound_to: BoundTo | None  # None if `value` is None or empty
    nonce: bytes | None = None
    commits_to_gpus: bool = False  # whether `value` is that of `ReportData.for_nonce_and_gpu`

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
            UsageError: If none or both are given, or one has the wrong type or size.
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
    """Compare the report data stated in the evidence with `signed`, those that are signed.

    Raises:
        VerificationError: If report data differ, or are not the hash of the evidence's payload.
    """
    if parsed.attestation is None:
        return
    stack = parsed.attestation.evidence.stack
    if stack.report_data_payload is not None:
        bound = ReportData.bind(ReportData.APP_DATA, stack.report_data_payload.encode())
        if not hmac.compare_digest(bound, stack.report_data):
            message = "evidence: report_data must be the hash of report_data_payload"
            raise VerificationError(message, reason="report_data_mismatch")
    if not hmac.compare_digest(signed, stack.report_data):
        raise VerificationError(
            f"evidence: report_data must be what the platform signed, {signed.hex()}, not "
            f"{stack.report_data.hex()}",
            reason="report_data_mismatch",
        )


def replay_event_log(
    parsed: ParsedEvidence,
) -> tuple[tuple[int, ...], tuple[VerificationStep, ...]]:
    """Replay the event log; return the RTMRs that it covers, and the step of the result.

    A log shortened for a certificate covers RTMR3 only. The authenticator of a NitroTPM has
    replayed its runtime events, which cover PCR 14 and no RTMR, so they have no step here.

    Raises:
        ReplayError: If a register does not match the replay, or the evidence's list of runtime
            events does not match the log.
        VerificationError: If a runtime event is malformed, see `EventLog.check_events`.
    """
    attestation, quote = parsed
    if attestation is None:
        return (), (skipped("event_log", "replay was left out: a bare quote has no log"),)
    if isinstance(attestation.evidence.platform, NitroTpm):
        return (), ()
    if quote is None:
        text = f"replay was left out: nothing measures events on {attestation.platform}"
        return (), (skipped("event_log", text),)
    log = attestation.event_log
    registers = log.explained_registers()
    log.check(quote, registers)
    _check_same_events(attestation.runtime_events, log.runtime)
    if 0 in registers:
        text = f"the log's {len(log.events)} events replay to RTMR0 to RTMR3"
        return registers, (passed("event_log", text),)
    text = (
        f"the log's runtime events replay to RTMR3; it is shortened, so RTMR0 to RTMR2 were "
        f"not replayed ({len(log.events)} events)"
    )
    return registers, (caution("event_log", text),)


def _check_same_events(listed: tuple[Event, ...], measured: tuple[Event, ...]) -> None:
    """Check that the evidence's list of runtime events, which names the app, matches the log.

    Args:
        listed: Runtime events of that list.
        measured: Runtime events of the replayed log.

    Raises:
        ReplayError: If names or payloads differ.
    """
    # Digests are not compared: a log shortened for a certificate has none.
    if listed is not measured and _contents(listed) != _contents(measured):
        message = "evidence: runtime_events must be those of the event log"
        raise ReplayError(message, reason="rtmr_mismatch")


def _contents(events: tuple[Event, ...]) -> list[tuple[str, bytes, int]]:
    return [(event.name, event.payload, event.version) for event in events]


def app_info(
    parsed: ParsedEvidence, device: bytes, image_hash: bytes
) -> "tuple[AppInfo | None, tuple[VerificationStep, ...]]":
    """Return the identity of the app, and the steps; None if the evidence names no app.

    Fields of the identity that are not authenticated are empty.

    Args:
        parsed: Evidence whose event log replays.
        device: Authenticated device identifier, such as the PPID of Intel; may be empty.
        image_hash: Verified `os_image_hash`, 32 bytes; empty if not verifiable.

    Raises:
        ReplayError: If HOST_DATA or a PCR contradicts the rest of the evidence.
        VerificationError: If a field has the wrong size, two boot events name it, or the
            configuration in MR_CONFIG_ID is not that of the app.
        FormatError: If an mr_config document or the VM configuration is malformed.
    """
    attestation, quote = parsed
    if attestation is None or _nameless(attestation):
        return None, _without_app(_nameless(attestation))
    platform = attestation.evidence.platform
    if isinstance(platform, SevSnp):
        MrConfig.parse(platform.mr_config).check_lengths()
    info = attestation.read_app_info(device=device)
    info = _with_image(info, platform, image_hash)
    if isinstance(platform, NitroEnclave):
        text = "an enclave's image is its only identity: its app id was left out"
        return _enclave_identity(info, image_hash), _without_app(text)
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


def _with_image(info: "AppInfo", platform: Platform, image_hash: bytes) -> "AppInfo":
    """Return an identity with the verified hash of its OS image, or without one if it is empty.

    At Google mr_system is a hash of the image's hash, and is empty without a verified one.
    """
    info = info._replace(os_image_hash=image_hash)
    if isinstance(platform, GcpTdx) and not image_hash:
        return info._replace(mr_system=b"")
    return info


def key_time_app_info(
    parsed: ParsedEvidence, device: bytes, image_hash: bytes, request: KeyRequest
) -> "tuple[AppInfo, tuple[VerificationStep, ...]]":
    """Return the identity of an app that requests keys from a KMS, and the steps.

    Args:
        parsed: Evidence whose event log replays.
        device: Authenticated device identifier, such as the PPID of Intel; may be empty.
        image_hash: Verified `os_image_hash`, 32 bytes; empty if not verifiable.
        request: The request for keys.

    Raises:
        ReplayError: If HOST_DATA or a PCR contradicts the rest of the evidence.
        VerificationError: If the evidence does not name its app, an event that does is repeated or
            of the wrong size, `boot-mr-done` is missing or late, or the configuration in
            MR_CONFIG_ID or HOST_DATA is not of this app and key provider.
        FormatError: If an mr_config document or the VM configuration is malformed.
    """
    attestation, quote = parsed
    if attestation is None or _nameless(attestation):
        raise _no_identity(_nameless(attestation))
    platform, spki = attestation.evidence.platform, request.ca_spki
    if isinstance(platform, NitroEnclave):
        raise _no_identity("nothing measures the app id of a Nitro enclave")
    if isinstance(platform, SevSnp):
        document = MrConfig.parse(platform.mr_config)
        document.check_lengths()
        if spki is not None:
            require_kms(document, spki)
    else:
        check_key_time_events(attestation.runtime_events)
    info = attestation.read_app_info(boottime=request.boottime, key_time=True, device=device)
    info = _with_image(info, platform, image_hash)
    check_sizes(info)
    if not info.app_id:
        raise _no_identity("the evidence names no app; request it from a guest that has booted one")
    text = f"the app is {info.app_id.hex()}, compose hash {info.compose_hash.hex()}, at key time"
    steps = (passed("app", text),)
    if quote is None or not isinstance(quote.body, TdQuoteBody):
        return info, steps
    config_id, config = quote.body.mr_config_id, attestation.config
    if spki is not None:
        sealed = sealed_for_kms(config_id, info, config, spki)
    else:
        sealed = sealed_configuration(config_id, info, config)
    return info, steps if sealed is None else (*steps, sealed)


def _no_identity(reason: str) -> VerificationError:
    return VerificationError(f"identity: {reason}", reason="identity")


def _enclave_identity(info: "AppInfo", image_hash: bytes) -> "AppInfo":
    """Return the identity of an enclave, of which only the image is measured.

    Args:
        info: Identity from the events of the agent, which are not measured.
        image_hash: Verified hash of the image, 32 bytes, which becomes the compose hash; may be
            empty.
    """
    return info._replace(
        app_id=b"",
        compose_hash=image_hash,
        instance_id=b"",
        key_provider_info=b"",
        init_script_hashes=None,
    )


_NAMELESS: Final = {
    **dict.fromkeys(_PARAVISOR, "behind a paravisor, evidence does not name its app"),
    GcpSnp: "nothing measures the app of an SEV-SNP guest of Google",
    **dict.fromkeys((Tpm, GoTpmTools), "evidence of a TPM does not name its app"),
}


def _nameless(attestation: Attestation | None) -> str:
    """Return why evidence of this kind does not name its app; empty if it can name one.

    Args:
        attestation: The evidence; None: a bare quote.
    """
    if attestation is None:
        return "a bare quote does not name its app"
    platform = attestation.evidence.platform
    if isinstance(platform, SevSnp) and not platform.mr_config:
        return "the evidence has no configuration document, so it does not name its app"
    if isinstance(platform, NitroTpm) and attestation.is_bare:
        return "a bare document does not name its app"
    return _NAMELESS.get(type(platform), "")


def _without_app(text: str) -> tuple[VerificationStep, ...]:
    return (skipped("app", text),)


def check_report_data(signed: bytes, expected: ExpectedReportData) -> VerificationStep:
    """Check signed report data, and return the step; it is skipped if any value is accepted.

    Raises:
        PolicyError: If the report data are not the expected ones.
    """
    value, bound_to = expected.value, expected.bound_to
    if value is None:
        text = "freshness was not checked: any report data was accepted"
        return skipped("report_data", text)
    if not has_report_data(signed, expected):
        what = "this nonce" if bound_to == "nonce" else "this report data"
        raise PolicyError(
            f"report data: must be {value.hex()}, not {signed.hex()}; request new evidence with "
            f"{what}",
            reason="report_data",
        )
    if bound_to is None:
        text = "the report data is empty, as expected, which binds the evidence to nothing"
        return caution("report_data", text)
    text = "the report data is the expected one"
    if bound_to == "nonce":
        text = "the evidence is bound to the expected nonce"
    return passed("report_data", text)


def has_report_data(signed: bytes, expected: ExpectedReportData) -> bool:
    """Return whether signed report data are the expected ones, or any are accepted."""
    value = expected.value
    return value is None or hmac.compare_digest(signed.ljust(len(value), b"\0"), value)


class HardwareJoin(NamedTuple):
    """Expected report data, facts of the TPM, and steps, as `join_hardware` returns them."""

    expected: ExpectedReportData  # with the report data that bind the key, if the evidence has them
    vtpm: VtpmFacts | None  # with the join, if it holds
    steps: tuple[VerificationStep, ...]  # hardware_to_ak; empty where it is decided elsewhere


def join_hardware(
    expected: ExpectedReportData, signed: bytes, vtpm: VtpmFacts | None
) -> HardwareJoin:
    """Check whether the hardware's report data are over the TPM's key, too.

    This applies if the TPM's quote is over the hardware's evidence, but nothing else shows that the
    TPM's key is of the same VM. Report data over nonce and key show it. They then become the
    expected ones in the result, and its step passes. With report data over the nonce alone, the
    step is skipped.

    Args:
        expected: Report data that the caller expects.
        signed: Report data of the hardware's evidence.
        vtpm: Verified facts of the TPM; None without one.
    """
    if vtpm is None or vtpm.joins != ("ak_to_hardware",):
        return HardwareJoin(expected, vtpm, ())
    if expected.nonce is not None:
        bound = _with_key(expected, expected.nonce, vtpm.attestation_key)
        if hmac.compare_digest(signed, bound):
            text = "the hardware's evidence is over the nonce and the TPM's key"
            return HardwareJoin(
                expected._replace(value=bound),
                replace(vtpm, joins=("hardware_to_ak", *vtpm.joins)),
                (passed("hardware_to_ak", text),),
            )
    text = (
        "the hardware's evidence does not name the TPM's key, so the TPM could be another "
        "VM's that relays this evidence"
    )
    return HardwareJoin(expected, vtpm, (skipped("hardware_to_ak", text),))


def _with_key(expected: ExpectedReportData, nonce: bytes, spki: bytes) -> bytes:
    """Return the report data over the TPM's key, the nonce, and the GPU evidence if expected.

    Args:
        expected: Report data without the TPM's key.
        nonce: Nonce of the verifier, 8 to 64 bytes.
        spki: The TPM's key as SubjectPublicKeyInfo in DER.
    """
    if expected.commits_to_gpus and expected.value is not None:
        return ReportData.for_gpu_and_ak(expected.value, spki)
    return ReportData.for_nonce_and_ak(nonce, spki)
