"""Faults of simulated GPUs by name: altered evidence, endorsements and services.

docs/guides/testing/scenarios.md lists them. A fault of a device applies to the first one; faults of
RIMs apply to the driver RIM unless the name says otherwise.
"""

from datetime import timedelta
from functools import partial
from typing import Final

from attestkit._sanitize import near, shown
from attestkit.backends.simulator.gpu import deviations as change
from attestkit.backends.simulator.gpu.deviations import GpuFault, OcspFault
from attestkit.backends.simulator.gpu.gpu_reports import PROTECTED_GPUS
from attestkit.backends.simulator.scenarios.config import Scenario
from attestkit.backends.simulator.scenarios.named_case import GPU_PREFIX, Cases, NamedCase
from attestkit.errors import UsageError
from attestkit.gpu.architectures import NVDEC_INDEX
from attestkit.gpu.device import opaque_data as fields

_RESOURCE: Final = (
    b'<ds:Object><ns0:Resource active="True" alternatives="1" index="25" name="Measurement_25" '
    b'size="48" type="Measurement" ns2:Hash0="' + b"ee" * 48 + b'"></ns0:Resource></ds:Object>'
)
_SIGNATURE_END: Final = b"</ds:Signature>"
_DAY: Final = timedelta(days=1)
_OCSP: Final = partial(OcspFault, "brom")

_REPORTS: Final[dict[str, GpuFault]] = {
    "nonce-other": GpuFault("nonce", "the report has another nonce", change.other_nonce),
    "signature-bit": GpuFault(
        "report_signature",
        "one bit of the report's signature is flipped",
        report=change.flip_signature,
    ),
    "signature-r-zero": GpuFault(
        "report_signature", "r of the report's signature is zero", report=change.zero_r
    ),
    "signature-other-key": GpuFault(
        "report_signature", "another device signed the report", other_key=True
    ),
    "fwid-other": GpuFault(
        "fwid",
        "the report has another FWID than the leaf",
        partial(change.set_field, fields.FWID, bytes(48)),
    ),
    "fwid-absent": GpuFault(
        "fwid",
        "the report has no FWID, as those of old drivers",
        partial(change.set_field, fields.FWID, None),
    ),
    "blocks-41": GpuFault("format", "the report has 41 measurements", change.cut_blocks),
    "blocks-order": GpuFault(
        "format", "the first two measurements are exchanged", change.exchange_blocks
    ),
    "block-type-raw": GpuFault(
        "format", "the measurements are raw values, not digests", change.make_raw
    ),
    "header-request-code": GpuFault(
        "format", "the request is another SPDM request", partial(change.set_request_code, 0xE1)
    ),
    "header-response-code": GpuFault(
        "format", "the response is another SPDM response", partial(change.set_response_code, 0x61)
    ),
    "trailing-byte": GpuFault(
        "format", "a byte follows the signature of the report", report=lambda report: report + b"\1"
    ),
    "opaque-unknown-type": GpuFault(
        None,
        "the report has an opaque field of unknown type",
        partial(change.add_field, 200, b"\1\2\3\4"),
    ),
    "opaque-twice": GpuFault(
        "format",
        "the report has an opaque field twice",
        partial(change.add_field, fields.NVDEC0_STATUS, fields.OFF),
    ),
    "opaque-version": GpuFault(
        "format",
        "the opaque data have an unknown version",
        partial(change.add_field, fields.OPAQUE_VERSION, b"\2\0"),
    ),
    "measurement-25": GpuFault(
        "measurements",
        "a measurement is not in the driver RIM",
        partial(change.set_measurement, 25),
    ),
    "measurement-9": GpuFault(
        "measurements", "a measurement is not in the VBIOS RIM", partial(change.set_measurement, 9)
    ),
    "measurement-35": GpuFault(
        "measurements",
        "measurement 35 differs, with NVDEC0 on",
        partial(change.set_measurement, NVDEC_INDEX),
    ),
    "measurement-35-nvdec-off": GpuFault(
        None, "measurement 35 differs, with NVDEC0 off", change.measurement_without_nvdec
    ),
    "measurement-inactive": GpuFault(
        None, "a measurement differs that no RIM has", partial(change.set_measurement, 50)
    ),
}

_CHAINS: Final[dict[str, GpuFault]] = {
    "device-key-other": GpuFault(
        "device_key",
        "the DICE extension has the key of another device",
        other_device_key=True,
        only=True,
    ),
    "chain-other-root": GpuFault(
        "device_chain", "the chain ends at another root", other_root="device"
    ),
    "chain-order": GpuFault(
        "device_chain", "two certificates are exchanged", chain=change.exchange_certificates
    ),
    "chain-without-root": GpuFault(
        None, "the chain has no root certificate", chain=lambda chain: chain[:-1]
    ),
    "chain-nul-padding": GpuFault(None, "NUL bytes follow the PEM text of the chain", padding=16),
}

_RIMS: Final[dict[str, GpuFault]] = {
    "alternatives": GpuFault(
        None, "the RIM has two hashes for each measurement", driver_rim=change.add_alternatives
    ),
    "rim-driver-version": GpuFault(
        "driver_rim_identity",
        "the driver RIM is of another version",
        driver_rim=change.other_version,
    ),
    "rim-vbios-version": GpuFault(
        "vbios_rim_identity", "the VBIOS RIM is of another version", vbios_rim=change.other_version
    ),
    "rim-product-gb100": GpuFault(
        "driver_rim_identity",
        "the driver RIM is of another product",
        driver_rim=change.other_product,
        only=True,
    ),
    "rim-index-in-both": GpuFault(
        "measurements",
        "both RIMs have the same measurement",
        vbios_rim=partial(change.activate, 25),
    ),
    "rim-none-active": GpuFault(
        "measurements",
        "no measurement is active",
        driver_rim=change.deactivate,
        vbios_rim=change.deactivate,
    ),
    "rim-altered": GpuFault(
        "driver_rim_signature",
        "the RIM was altered after it was signed",
        rim_file=partial(change.edit, b'active="False"', b'active="True"'),
    ),
    "rim-other-root": GpuFault(
        "driver_rim_chain", "the RIM's chain ends at another root", other_root="rim"
    ),
    "rim-leaf-swapped": GpuFault(
        "driver_rim_signature",
        "the RIM has the certificate of another signer",
        rim_signer="swapped",
    ),
    "rim-leaf-expired": GpuFault(
        "driver_rim_chain", "the certificate of the RIM signer ended in 2024", rim_signer="expired"
    ),
    "rim-resource-in-ds-object": GpuFault(
        "driver_rim_format",
        "a changed measurement is in the signature element, which is not signed",
        partial(change.set_measurement, 25),
        rim_file=partial(change.edit, _SIGNATURE_END, _RESOURCE + _SIGNATURE_END),
    ),
    "rim-comment": GpuFault(
        "driver_rim_format",
        "the RIM has a comment, which is not signed",
        rim_file=partial(change.edit, b"<ns0:Payload>", b"<!-- comment --><ns0:Payload>"),
    ),
    "rim-doctype": GpuFault(
        "driver_rim_format",
        "the RIM has a document type with an entity",
        rim_file=lambda rim: b'<!DOCTYPE SoftwareIdentity [<!ENTITY a "b">]>' + rim,
    ),
    "rim-short-hash": GpuFault(
        "driver_rim_format", "a hash of the RIM has 47 bytes", driver_rim=change.shorten_hash
    ),
}

_OCSP_ANSWERS: Final[dict[str, GpuFault]] = {
    "ocsp-brom-revoked": GpuFault(
        "device_ocsp",
        "the device's certificate is revoked",
        ocsp=_OCSP(status="revoked", reason="key_compromise"),
    ),
    "ocsp-rim-leaf-hold": GpuFault(
        "driver_rim_ocsp",
        "the certificate of the RIM signer is on hold",
        ocsp=OcspFault("rim_signer", "revoked", "certificate_hold"),
    ),
    "ocsp-brom-unknown": GpuFault(
        "device_ocsp",
        "the responder does not know the device's certificate",
        ocsp=_OCSP(status="unknown"),
    ),
    "ocsp-stale": GpuFault(
        "device_ocsp", "the OCSP answer ended two days ago", ocsp=_OCSP(shift=-3 * _DAY)
    ),
    "ocsp-future": GpuFault(
        "device_ocsp", "the OCSP answer begins in two days", ocsp=_OCSP(shift=2 * _DAY)
    ),
    "ocsp-responder-no-eku": GpuFault(
        "device_ocsp", "the responder may not sign OCSP answers", ocsp=_OCSP(may_sign=False)
    ),
    "ocsp-about-another": GpuFault(
        "device_ocsp", "the answer is about another certificate", ocsp=_OCSP(about_other=True)
    ),
    "ocsp-by-leaf": GpuFault(
        "device_ocsp", "the device's own leaf signed the answer", ocsp=_OCSP(by_leaf=True)
    ),
    "ocsp-signature-bit": GpuFault(
        "device_ocsp", "the signature of the answer is not valid", ocsp=_OCSP(altered=True)
    ),
    "ocsp-nonce-missing": GpuFault(
        "device_ocsp", "the answer lacks the nonce of the request", ocsp=_OCSP(nonce="missing")
    ),
    "ocsp-nonce-other": GpuFault(
        "device_ocsp", "the answer has another nonce", ocsp=_OCSP(nonce="other")
    ),
}

_TOKENS: Final[dict[str, GpuFault]] = {
    "nras-result-false": GpuFault("nras_result", "NRAS refuses the evidence", nras="result-false"),
    "nras-signature": GpuFault(
        "nras_signature", "a token's signature is not valid", nras="signature"
    ),
    "nras-digest": GpuFault(
        "nras_digest", "the overall token has another digest of a device token", nras="digest"
    ),
    "nras-nonce": GpuFault("nras_nonce", "the tokens have another nonce", nras="nonce"),
    "nras-expired": GpuFault("nras_time", "the tokens ended an hour ago", nras="expired"),
    "nras-device-absent": GpuFault(
        "nras_digest", "a device token is missing", nras="device-absent"
    ),
    "nras-device-added": GpuFault(
        "nras_digest", "a device token is not in the overall token", nras="device-added"
    ),
    "nras-kid-unknown": GpuFault(
        "nras_key", "the tokens name a key that is not in the key set", nras="kid-unknown"
    ),
}

_MACHINES: Final[dict[str, GpuFault]] = {
    "switch-missing": GpuFault(
        "topology",
        "one of the switches sends no evidence",
        machine="switch-missing",
        gpus=PROTECTED_GPUS,
        only=True,
    ),
    "device-twice": GpuFault(
        "topology", "two entries are of the same device", machine="device-twice", gpus=2
    ),
    "spt-with-mpt": GpuFault(
        "modes",
        "one GPU is passed through alone, the others with their peers",
        machine="spt-with-mpt",
        architecture="BLACKWELL",
        gpus=2,
        only=True,
    ),
    "nonces-mixed": GpuFault(
        "nonce", "the reports have different nonces", machine="nonces-mixed", gpus=2
    ),
}

GPU_FAULTS: Final[dict[str, GpuFault]] = {
    **_REPORTS,
    **_CHAINS,
    **_RIMS,
    **_OCSP_ANSWERS,
    **_TOKENS,
    **_MACHINES,
}
"""All faults by name."""

GPU_SCENARIOS: Final[Cases] = {
    f"{GPU_PREFIX}{name}": NamedCase(
        "gpu", fault.check or "UpToDate", fault.text, Scenario(gpu_fault=name)
    )
    for name, fault in GPU_FAULTS.items()
}
"""A scenario for each fault, by name: `GPU_PREFIX` and the fault's name."""


def find_gpu_fault(name: str) -> GpuFault:
    """Return the fault `name`, a key of `GPU_FAULTS` such as "nonce-other".

    Raises:
        UsageError: If the name is unknown; the text suggests similar names.
    """
    found = GPU_FAULTS.get(name)
    if found is None:
        text = f"unknown fault of GPUs {shown(name)}{near(name, GPU_FAULTS)}"
        raise UsageError(f"{text}; see docs/guides/testing/scenarios.md", reason="unknown_name")
    return found
