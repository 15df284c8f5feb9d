"""What lies between the maker's signature and the relying party's rules: history, image, identity.

Each step is given a parcel whose signatures hold. It returns what it found and a sentence for
people, or raises.
"""

import hmac
from typing import TYPE_CHECKING, NamedTuple

from attestkit.attestation import Attestation
from attestkit.attestation.launch.mr_config import MrConfig
from attestkit.attestation.launch.os_image import verified_hash
from attestkit.attestation.launch.vm_config import VmConfig
from attestkit.attestation.wire.evidence_parts import GcpTdx, NitroEnclave, NitroTpm, SevSnp
from attestkit.errors import (
    FormatError,
    PolicyError,
    ReplayError,
    UnsupportedError,
    VerificationError,
)
from attestkit.event_log.event import Event
from attestkit.quote import Quote, TdQuoteBody
from attestkit.report_data import ReportData
from attestkit.verifier.config_id import has_document, sealed_configuration
from attestkit.verifier.result import Claims

if TYPE_CHECKING:
    from attestkit.attestation import AppInfo
    from attestkit.snp_report import SnpReport

__all__ = ["Parcel", "app_info", "claims", "fresh", "history", "os_image", "reported_data"]

_IDENTITY = {"app_id": 20, "compose_hash": 32, "instance_id": 20}  # bytes, where not empty
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
    "tee_tcb_svn2",
    "mr_service_td",
)
_SNP_ATTRIBUTES = (
    "family_id",
    "image_id",
    "id_key_digest",
    "author_key_digest",
    "report_id",
    "report_id_ma",
    "chip_id",
)


class Parcel(NamedTuple):
    """Evidence that is being judged; either of the two may be missing, not both."""

    attestation: Attestation | None  # None: a bare quote
    quote: Quote | None  # None: a platform without quotes

    @classmethod
    def of(cls, attestation: Attestation) -> "Parcel":
        """Wrap an attestation of a platform that can be judged here.

        Raises:
            FormatError: Its quote is malformed, or not a TD's.
            UnsupportedError: Its platform rests on a vTPM.
        """
        if isinstance(attestation.evidence.platform, (GcpTdx, NitroTpm)):
            raise UnsupportedError(
                f"evidence of {attestation.platform} is not verified: quotes of its vTPM are not "
                "supported yet"
            )
        quote = attestation.quote
        if quote is not None and not isinstance(quote.body, TdQuoteBody):
            raise FormatError(
                f"the quote in {attestation.platform} evidence is an SGX enclave's, not a TD's",
                reason="tee_type",
            )
        return cls(attestation, quote)

    @property
    def platform(self) -> str:
        """The platform's name; of a bare quote by its TEE type."""
        if self.attestation is not None:
            return self.attestation.platform
        assert self.quote is not None
        return "dstack-tdx" if isinstance(self.quote.body, TdQuoteBody) else "sgx"


def reported_data(parcel: Parcel, signed: bytes) -> None:
    """Hold what the evidence says it was asked for to what the platform signed.

    Raises:
        VerificationError: They differ.
    """
    if parcel.attestation is None:
        return
    stack = parcel.attestation.evidence.stack
    if stack.report_data_payload is not None:
        bound = ReportData.bind(ReportData.APP_DATA, stack.report_data_payload.encode())
        if not hmac.compare_digest(bound, stack.report_data):
            raise VerificationError(
                "report_data does not match report_data_payload", reason="report_data_mismatch"
            )
    if not hmac.compare_digest(signed, stack.report_data):
        raise VerificationError(
            f"the evidence says it is about {stack.report_data.hex()}, but the platform signed "
            f"{signed.hex()}",
            reason="report_data_mismatch",
        )


def history(parcel: Parcel) -> tuple[tuple[int, ...], str]:
    """Hold the log to the registers; return the RTMRs it explains.

    A log shortened for a certificate explains RTMR3 alone.

    Raises:
        ReplayError: A register is not the replay, or the runtime events are not those of the log.
        VerificationError: An event could mean something other than what was measured.
    """
    attestation, quote = parcel
    if attestation is None:
        return (), "replay was left out: a bare quote has no log"
    if quote is None:
        return (), f"replay was left out: nothing measures events on {attestation.platform}"
    log = attestation.event_log
    registers = log.explained_registers()
    try:
        log.check(quote, registers)
        _same_events(attestation.runtime_events, log.runtime)
    except ReplayError as error:
        error.reason = "rtmr_mismatch"
        raise
    except VerificationError as error:
        error.reason = "event"
        raise
    if 0 in registers:
        return registers, f"the log's {len(log.events)} events replay to RTMR0 to RTMR3"
    return registers, (
        f"the log's runtime events replay to RTMR3; it is shortened, so RTMR0 to RTMR2 stand for "
        f"themselves ({len(log.events)} events)"
    )


def _same_events(told: tuple[Event, ...], measured: tuple[Event, ...]) -> None:
    """Refuse events beside the log, from which identity is read, that are not those in it."""
    # Not their digests: a log that was stripped and not read again has none.
    if told is not measured and _meanings(told) != _meanings(measured):
        raise ReplayError(
            "the runtime events beside the log are not the log's: nothing measured them"
        )


def _meanings(events: tuple[Event, ...]) -> list[tuple[str, bytes, int]]:
    return [(event.name, event.payload, event.version) for event in events]


def os_image(parcel: Parcel) -> tuple[bytes, str]:
    """Return the hash of the OS image whose measurements the registers hold; empty if untold.

    Raises:
        VerificationError: The registers are not those of the image that the evidence names, or an
            enclave runs in debug mode.
        FormatError: The configuration is malformed.
    """
    attestation = parcel.attestation
    if attestation is None:
        return b"", "the OS image was left out: a bare quote names none"
    platform = attestation.evidence.platform
    config = VmConfig.parse(attestation.config)
    if isinstance(platform, SevSnp) and config.find("sev_snp_measurement") is None:
        return b"", "the OS image was left out: the evidence has no measurement of it"
    try:
        if isinstance(platform, NitroEnclave) and not config.os_image_hash:
            _check_not_debug(attestation)
            return b"", "the OS image was left out: the evidence names none"
        found = verified_hash(attestation.evidence, quote=parcel.quote)
    except UnsupportedError as error:
        return b"", f"the OS image was left out: {error}"
    except VerificationError as error:
        error.reason = error.reason or "os_image"
        raise
    return found, f"the registers are those of OS image {found.hex()}"


def _check_not_debug(attestation: Attestation) -> None:
    document = attestation.nitro_document
    if document is not None and not any(document.pcr(0) + document.pcr(1) + document.pcr(2)):
        raise VerificationError("the enclave runs in debug mode: its PCRs are zero")


def app_info(parcel: Parcel, device: bytes, image_hash: bytes) -> "tuple[AppInfo | None, str]":
    """Return who the app is, as far as something vouches for it.

    Args:
        parcel: Evidence whose history holds.
        device: What names the device, authenticated.
        image_hash: The OS image's, verified; empty if it could not be.

    Raises:
        ReplayError: The sealed configuration contradicts the evidence.
        VerificationError: The same, or a field of the identity has another size than its own.
        FormatError: A document is malformed.
    """
    attestation, quote = parcel
    if attestation is None:
        return None, "a bare quote does not name its app"
    platform = attestation.evidence.platform
    if isinstance(platform, SevSnp):
        if not platform.mr_config:
            return None, "the evidence has no configuration document, so it does not name its app"
        MrConfig.parse(platform.mr_config).check_lengths()
    info = attestation.app_info(device=device)._replace(os_image_hash=image_hash)
    if isinstance(platform, NitroEnclave):
        # Its events are words of the agent that nothing measures; the image is all there is.
        info = info._replace(
            app_id=b"",
            compose_hash=image_hash,
            instance_id=b"",
            key_provider_info=b"",
            init_script_hashes=None,
        )
        return info, "an enclave's image is its only identity: its app id was left out"
    _check_sizes(info)
    sealed = ""
    if quote is not None and isinstance(quote.body, TdQuoteBody):
        sealed = sealed_configuration(quote.body.mr_config_id, info, attestation.config)
    if not info.app_id:
        return info, f"the evidence names no app: it has no boot events up to system-ready{sealed}"
    return info, f"the app is {info.app_id.hex()}, compose hash {info.compose_hash.hex()}{sealed}"


def _check_sizes(info: "AppInfo") -> None:
    for name, size in _IDENTITY.items():
        value: bytes = getattr(info, name)
        if value and len(value) != size:
            raise VerificationError(
                f"{name} has {len(value)} bytes, not {size}: no agent measures such an identity",
                reason="identity",
            )


def claims(
    parcel: Parcel, report_data: bytes, registers: tuple[int, ...], image_hash: bytes
) -> Claims:
    """Return the fields of evidence that passed the steps before."""
    named, attributes = _fields(parcel)
    attestation = parcel.attestation
    events = attestation.runtime_events if attestation is not None and registers else ()
    return Claims(
        platform=parcel.platform,
        report_data=report_data,
        registers=named,
        attributes=attributes,
        events=events,
        event_registers=registers,
        os_image_hash=image_hash,
        has_mr_config=_has_mr_config(parcel),
    )


def _has_mr_config(parcel: Parcel) -> bool:
    attestation, quote = parcel
    if attestation is None or quote is None or not isinstance(quote.body, TdQuoteBody):
        return False
    return has_document(quote.body.mr_config_id, attestation.config)


_Fields = tuple[tuple[str, bytes], ...]


def _fields(parcel: Parcel) -> tuple[_Fields, _Fields]:
    """Return registers and attributes, by the names that their platform gives them."""
    attestation, quote = parcel
    if quote is not None:
        return _quoted(quote)
    assert attestation is not None
    if (report := attestation.snp_report) is not None:
        return _reported(report)
    document = attestation.nitro_document
    assert document is not None
    return tuple((f"pcr{index}", value) for index, value in sorted(document.pcrs.items())), ()


def _quoted(quote: Quote) -> tuple[_Fields, _Fields]:
    body = quote.body
    if isinstance(body, TdQuoteBody):
        rtmrs = (body.rtmr0, body.rtmr1, body.rtmr2, body.rtmr3)
        named = (("mrtd", body.mr_td), *((f"rtmr{n}", rtmr) for n, rtmr in enumerate(rtmrs)))
        found = ((name, getattr(body, name)) for name in _TD_ATTRIBUTES)
        return named, tuple((name, value) for name, value in found if value is not None)
    return (
        (("mrenclave", body.mr_enclave), ("mrsigner", body.mr_signer)),
        (
            ("attributes", body.attributes),
            ("isv_prod_id", body.isv_prod_id.to_bytes(2, "little")),
            ("isv_svn", body.isv_svn.to_bytes(2, "little")),
        ),
    )


def _reported(report: "SnpReport") -> tuple[_Fields, _Fields]:
    numbers = (
        ("policy", report.policy.to_bytes(8, "little")),
        ("platform_info", report.platform_info.to_bytes(8, "little")),
        ("guest_svn", report.guest_svn.to_bytes(4, "little")),
    )
    plain = tuple((name, getattr(report, name)) for name in _SNP_ATTRIBUTES)
    return (
        (("measurement", report.measurement), ("host_data", report.host_data)),
        (*numbers, *plain),
    )


def fresh(signed: bytes, wanted: bytes | None) -> str:
    """Return what is to be said of the report data; refuse another than was wanted."""
    if wanted is None:
        return "freshness was not checked: any report data was accepted"
    if not hmac.compare_digest(signed.ljust(len(wanted), b"\0"), wanted):
        raise PolicyError(
            f"the report data is {signed.hex()}, not {wanted.hex()}: the evidence was made for "
            "another request; ask for new evidence over this request's report data",
            reason="report_data",
        )
    return "the report data is the expected one"
