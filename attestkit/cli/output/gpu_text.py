"""Content of GPU evidence, reports, manifests and endorsements as plain values, for `show`.

Nothing is verified.
"""

from typing import TYPE_CHECKING, Any, Final

from attestkit._sanitize import printable
from attestkit.errors import AttestKitError, FormatError
from attestkit.gpu.device.device_chain import read_device_chain
from attestkit.gpu.device.report import Report
from attestkit.gpu.rim.manifest import Rim

if TYPE_CHECKING:
    from attestkit.gpu.endorsements import GpuEndorsements
    from attestkit.gpu.evidence import DeviceEvidence, GpuEvidence

_OF_CHAIN: Final = ("chip", "hardware_model", "device_serial", "ueid")
_OF_REPORT: Final = ("driver_version", "vbios_version", "nonce", "protected_pcie", "feature")


def describe_gpu_report(report: Report) -> dict[str, Any]:
    """Return the fields of a GPU's or switch's report by name, ready for JSON; bytes are hex."""
    return {
        "device": report.kind,
        "nonce": report.nonce.hex(),
        "driver_version": _text(report.driver_version),
        "vbios_version": _text(report.vbios_version),
        "project": _text(report.project),
        "project_sku": _text(report.project_sku),
        "chip_sku": _text(report.chip_sku),
        "chip_info": _text(report.chip_info),
        "fwid": None if report.fwid is None else report.fwid.hex(),
        "nvdec0": report.nvdec0,
        "protected_pcie": report.protected_pcie,
        "feature": report.feature,
        "opaque_version": report.opaque_version,
        "pdi": None if report.pdi is None else report.pdi.hex(),
        "switch_pdis": [pdi.hex() for pdi in report.switch_pdis],
        "gpu_pdis": [pdi.hex() for pdi in report.gpu_pdis],
        "measurements": [value.hex() for value in report.measurements],
    }


def _text(value: str | None) -> str | None:
    return None if value is None else printable(value)


def describe_gpu_evidence(evidence: "GpuEvidence") -> dict[str, Any]:
    """Return an object whose `devices` are those of the evidence, each as `describe_device`."""
    return {"devices": list(map(describe_device, evidence.devices))}


def describe_device(device: "DeviceEvidence") -> dict[str, Any]:
    """Return the fields of a device's certificates and report by name, ready for JSON.

    Fields of a malformed part are None, and `error` has the reason; it is None without an error.
    """
    found: dict[str, Any] = {"arch": device.architecture, **dict.fromkeys(_OF_CHAIN)}
    errors = []
    try:
        chain = read_device_chain(device.certificates)
        values = (chain.chip.name, chain.hardware_model, chain.device_serial, chain.ueid)
        found |= zip(_OF_CHAIN, map(printable, values), strict=True)
    except AttestKitError as error:
        errors.append(str(error))
    fields: dict[str, Any] = {}
    try:
        fields = describe_gpu_report(Report.parse(device.report, strip_nul=True))
    except FormatError as error:
        errors.append(str(error))
    shown = {name: fields.get(name) for name in _OF_REPORT}
    return {**found, **shown, "error": "; ".join(errors) or None}


def describe_rim(rim: Rim) -> dict[str, Any]:
    """Return the fields of a manifest by name, with its active measurements and certificates.

    A measurement has `index`, `name`, and the number of its accepted values, `alternatives`.
    """
    from attestkit.cli.output.certificate_text import describe_certificate  # lazy: loads X.509

    return {
        "name": printable(rim.name),
        "tag_id": rim.tag_id,
        "version": printable(rim.version),
        "product": printable(rim.product),
        "edition": printable(rim.edition),
        "measurements": [
            {"index": index, "name": printable(one.name), "alternatives": len(one.alternatives)}
            for index, one in sorted(rim.measurements.items())
            if one.active
        ],
        "certificates": [describe_certificate(der) for der in rim.certificates],
    }


def describe_gpu_endorsements(endorsements: "GpuEndorsements") -> dict[str, Any]:
    """Return what the endorsements contain, ready for JSON.

    The members are `rims` (identifier, version and product of each manifest; if it is malformed,
    `version` is the error), `ocsp_answers` (their number), and `has_nras_keys` (whether there are
    keys of NVIDIA's service).
    """
    rims = []
    for identifier, data in endorsements.rims.items():
        try:
            rim = Rim.parse(data)
            found = {"version": printable(rim.version), "product": printable(rim.product)}
        except FormatError as error:
            found = {"version": str(error), "product": ""}
        rims.append({"identifier": printable(identifier), **found})
    return {
        "rims": rims,
        "ocsp_answers": len(endorsements.ocsp),
        "has_nras_keys": endorsements.jwks is not None,
    }
