"""Claims of evidence: the authenticated fields, by the names that each platform uses."""

from operator import attrgetter

from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import AzureTdx, NitroEnclave, NitroTpm, SevSnp
from attestkit.quote import Quote, TdQuoteBody, quoting_enclave_svn
from attestkit.verifier.claims import Authenticated, Claims
from attestkit.verifier.config_id import has_document
from attestkit.verifier.evidence.checks import ParsedEvidence
from attestkit.verifier.os_image import VerifiedImage
from attestkit.verifier.platforms.snp.claims import Fields, launch_claims, report_claims

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


def claims(
    parsed: ParsedEvidence,
    authenticated: Authenticated | None,
    registers: tuple[int, ...],
    image: VerifiedImage,
) -> Claims:
    """Return the authenticated fields of evidence that passed the previous steps.

    With `authenticated` None, they are unverified values for display.
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


def _enclave_svns(quote: Quote) -> tuple[tuple[str, bytes], ...]:
    """Return the SVN of the quoting enclave, and those in the header of a version 3 quote."""
    found = ("qe_svn", quoting_enclave_svn(quote))
    if quote.version != 3:
        return (found,)
    header = quote.header
    svns = {"header_qe_svn": header.qe_svn or 0, "header_pce_svn": header.pce_svn or 0}
    return (found, *((name, svn.to_bytes(2, "little")) for name, svn in svns.items()))
