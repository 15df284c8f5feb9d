"""Claims of evidence: the authenticated fields, by the names that each platform uses.

Numbers are little-endian, as in quotes and reports.
"""

from operator import attrgetter
from typing import Final

from attestkit.attestation.launch.os_image import read_snp_launch
from attestkit.attestation.launch.snp import canonical_cpu_type
from attestkit.attestation.launch.vm_config import VmConfig
from attestkit.attestation.wire.evidence_parts import AzureTdx, NitroEnclave, NitroTpm, SevSnp
from attestkit.quote import Quote, TdQuoteBody, quoting_enclave_svn
from attestkit.snp_report import SnpReport
from attestkit.verifier.app_identity import has_document
from attestkit.verifier.claims import Authenticated, Claims
from attestkit.verifier.evidence.checks import ParsedEvidence
from attestkit.verifier.os_image import VerifiedImage

Fields = tuple[tuple[str, bytes], ...]
"""Registers or attributes: pairs of name and value."""

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
# Bytes of each attribute in the report: ATTESTATION_REPORT, as parsed by `snp_report`.
_SNP_ATTRIBUTES: Final = {
    "report_version": slice(0x000, 0x004),
    "policy": slice(0x008, 0x010),
    "platform_info": slice(0x040, 0x048),
    "guest_svn": slice(0x004, 0x008),
    "vmpl": slice(0x030, 0x034),
    "key_info": slice(0x048, 0x04C),
    "launch_mit_vector": slice(0x1F8, 0x200),
    "current_mit_vector": slice(0x200, 0x208),
    "family_id": slice(0x010, 0x020),
    "image_id": slice(0x020, 0x030),
    "id_key_digest": slice(0x0E0, 0x110),
    "report_id": slice(0x140, 0x160),
    "report_id_ma": slice(0x160, 0x180),
    "chip_id": slice(0x1A0, 0x1E0),
    "current_tcb": slice(0x038, 0x040),
    "reported_tcb": slice(0x180, 0x188),
    "committed_tcb": slice(0x1E0, 0x1E8),
    "launch_tcb": slice(0x1F0, 0x1F8),
    "author_key_digest": slice(0x110, 0x140),
    # Build, minor and major in the report.
    "current_version": slice(0x1EA, 0x1E7, -1),
    "committed_version": slice(0x1EE, 0x1EB, -1),
    "cpuid": slice(0x188, 0x18B),
}
_td_registers = attrgetter(*_TD_REGISTERS)
_td_attributes = attrgetter(*_TD_ATTRIBUTES)
_td_15_attributes = attrgetter(*_TD_15_ATTRIBUTES)


def collect_claims(
    parsed: ParsedEvidence,
    authenticated: Authenticated | None,
    registers: tuple[int, ...],
    image: VerifiedImage,
) -> Claims:
    """Return the claims of evidence that passed the steps before the policy.

    Args:
        parsed: The evidence.
        authenticated: Vendor-signed content of the evidence. None: the claims are not verified, and
            for display only.
        registers: Numbers of the RTMRs to which the event log replays.
        image: Outcome of the verification of the OS image.

    Raises:
        FormatError: If the VM configuration is malformed.
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
    # A NitroTPM measures runtime events in a PCR, which then replays.
    in_pcr = isinstance(parsed.wire_platform, NitroTpm)
    has_events = attestation is not None and (registers or (in_pcr and not attestation.is_bare))
    events = attestation.runtime_events if attestation is not None and has_events else ()
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


def verified_launch(parsed: ParsedEvidence, image_hash: bytes) -> Fields:
    """Return names and values of an SEV-SNP guest's launch parameters; empty on other platforms.

    They are `sev_features`, `vcpus` and `vcpu_type`.

    Args:
        parsed: The evidence.
        image_hash: Verified `os_image_hash`; if it is empty, so is the result.

    Raises:
        FormatError: If the VM configuration is malformed.
    """
    attestation = parsed.attestation
    if attestation is None or not isinstance(attestation.evidence.platform, SevSnp):
        return ()
    return _launched(attestation.config) if image_hash else ()


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
    """Return names and values (2 bytes, little-endian) of the SVNs of the quoting enclave and PCE.

    They are that of the QE report and, in a quote of version 3, those of the header.
    """
    found = ("qe_svn", quoting_enclave_svn(quote))
    if quote.version != 3:
        return (found,)
    header = quote.header
    svns = {"header_qe_svn": header.qe_svn or 0, "header_pce_svn": header.pce_svn or 0}
    return (found, *((name, svn.to_bytes(2, "little")) for name, svn in svns.items()))


def report_claims(report: SnpReport) -> tuple[Fields, Fields]:
    """Return registers and attributes of an SEV-SNP report.

    `current_version` and `committed_version` of the firmware are major, minor and build, one byte
    each; `cpuid` is family, model and stepping of the processor, zero before version 3.
    `author_key_digest` is zero unless AUTHOR_KEY_EN is set. `report_version` shows whether the
    report has the fields that versions added: `cpuid` in 3, the mitigation vectors in 5.
    """
    raw = report.raw
    attributes = {name: raw[where] for name, where in _SNP_ATTRIBUTES.items()}
    if not report.author_key_enabled:
        attributes["author_key_digest"] = bytes(48)
    registers = (("measurement", report.measurement), ("host_data", report.host_data))
    return registers, tuple(attributes.items())


def _launched(config: str) -> Fields:
    """Return the launch parameters in a VM configuration, which the launch measurement confirms.

    `sev_features` has 8 bytes, `vcpus` 4. `vcpu_type` is QEMU's name of a CPU in ASCII; CPU types
    with the same measurement have one name.

    Args:
        config: The VM configuration, JSON text.

    Raises:
        FormatError: If the configuration is malformed.
    """
    launch = read_snp_launch(VmConfig.parse(config))
    return (
        ("sev_features", launch.guest_features.to_bytes(8, "little")),
        ("vcpus", launch.vcpus.to_bytes(4, "little")),
        ("vcpu_type", canonical_cpu_type(launch.vcpu_type).encode()),
    )
