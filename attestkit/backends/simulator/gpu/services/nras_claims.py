"""Claims of a simulated NRAS about a device (nvidia-gpu.md, section 5.3)."""

from typing import Any, Final

from attestkit.errors import AttestKitError
from attestkit.gpu.device.device_chain import DeviceChain
from attestkit.gpu.device.report import Report

_MANUFACTURER: Final = "5703"
_FAR: Final = "9999-12-31T23:59:59Z"
_RIM_CHECKS: Final = ("fetched", "schema-validated", "signature-verified", "measurements-available")
# Code of the service by the reason of the first check that fails.
_CODES: Final = {
    "nonce": (4010, "NONCE_NOT_MATCHING", "The nonce is not that of the evidence"),
    "report_signature": (4013, "SIGNATURE_INVALID", "The signature of the report is not valid"),
    "device_chain": (4007, "CERT_CHAIN_INVALID", "The certificate chain is not valid"),
    "device_ocsp": (4014, "CERT_REVOKED", "A certificate of the chain is not in good state"),
    "driver_rim_signature": (5013, "RIM_SIGNATURE_INVALID", "A RIM has no valid signature"),
    "vbios_rim_signature": (5013, "RIM_SIGNATURE_INVALID", "A RIM has no valid signature"),
}
_OTHER: Final = (4015, "EVIDENCE_INVALID", "The evidence is not valid")


def device_claims(
    report: Report, chain: DeviceChain, version: str, *, matches: bool
) -> dict[str, Any]:
    """Return the claims about a device whose evidence is authentic.

    Args:
        report: Its report.
        chain: Its certificates.
        version: "2.0" or "3.0".
        matches: Whether its measurements are those of the RIMs.
    """
    is_switch = report.kind == "switch"
    prefix = f"x-nvidia-{'switch' if is_switch else 'gpu'}-"
    bios = "bios" if is_switch else "vbios"
    claims: dict[str, Any] = {
        "measres": "success" if matches else "fail",
        "hwmodel": chain.chip.name if version == "2.0" else chain.hardware_model,
        "ueid": chain.ueid,
        "oemid": None if is_switch else _MANUFACTURER,
        "eat_nonce": report.nonce.hex(),
        f"{prefix}{bios}-version": report.vbios_version,
        f"{prefix}arch-check": True,
        f"{prefix}attestation-report-parsed": True,
        f"{prefix}attestation-report-nonce-match": True,
        f"{prefix}attestation-report-signature-verified": True,
        f"{prefix}{bios}-index-no-conflict": True,
        "x-nvidia-attestation-warning": None,
    }
    if matches:
        claims |= {"secboot": True, "dbgstat": "disabled"}
    if not is_switch:
        claims[f"{prefix}driver-version"] = report.driver_version
    rims = (f"{bios}-rim",) if is_switch else ("driver-rim", f"{bios}-rim")
    for rim in rims:
        claims |= {f"{prefix}{rim}-{check}": True for check in _RIM_CHECKS}
    return claims | _certificate_claims(prefix, rims, version)


def _certificate_claims(prefix: str, rims: tuple[str, ...], version: str) -> dict[str, Any]:
    report = "attestation-report"
    if version == "2.0":
        claims: dict[str, Any] = {f"{prefix}{rim}-cert-validated": True for rim in rims}
        return claims | {f"{prefix}{report}-cert-chain-validated": True}
    chain = {
        "x-nvidia-cert-status": "valid",
        "x-nvidia-cert-ocsp-status": "good",
        "x-nvidia-cert-expiration-date": _FAR,
        "x-nvidia-cert-revocation-reason": None,
    }
    claims = {f"{prefix}{name}-cert-chain": chain for name in (report, *rims)}
    claims |= {f"{prefix}{rim}-version-match": True for rim in rims}
    return claims | {f"{prefix}{report}-cert-chain-fwid-match": True}


def error_claims(error: AttestKitError) -> dict[str, Any]:
    """Return the claims about a device whose evidence is not valid."""
    code, message, description = _CODES.get(error.reason, _OTHER)
    details = {
        "code": code,
        "message": message,
        "description": description,
        "fieldName": None,
        "httpStatus": 400,
    }
    return {"x-nvidia-error-details": details}
