"""Azure's guests in the JSON of Confidential Containers (`az-snp-vtpm`, `az-tdx-vtpm`).

Generation 0 has arrays of numbers and no version; generations 1 and 2 have base64url and hex. In
generation 2, the user data of the HCL report are the report data (vtpm.md, section 6.7).
"""

import hmac
from base64 import urlsafe_b64encode
from typing import Any, Final

from attestkit._crypto.pem import split_der_or_pem, split_pem
from attestkit._crypto.x509.amd_extension import read_amd_extension
from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit._formats.compact_jws import from_base64url
from attestkit._formats.strict_json import number_field, string
from attestkit.attestation.azure import HclReport
from attestkit.attestation.coco.quote_fields import (
    bare_signature_of,
    bytes_of_array,
    bytes_of_hex,
    member,
    quoted_values,
    read_quote,
    report_data_of,
)
from attestkit.attestation.snp import SnpCertificates
from attestkit.attestation.wire.evidence_parts import AzureSnp, AzureTdx, Evidence, Stack
from attestkit.errors import FormatError, UsageError

_BOUND: Final = 2  # generation in which the paravisor's user data are the report data


def read_fields(fields: dict[str, Any]) -> Evidence:
    """Return the evidence in a decoded document.

    Raises:
        FormatError: If a member is missing or malformed, or the generation is unknown.
    """
    if "version" not in fields:
        return _read_first(fields)
    version = number_field(fields, "version", 32)
    if version not in {1, _BOUND}:
        raise FormatError(f"version: unsupported: {version}", reason="unsupported_version")
    quote = read_quote(fields.get("tpm_quote"), bytes_of_hex, bare_signature=True)
    report = member(fields, "hcl_report", bytes_of_base64url)
    stack = Stack(report_data_of(quote), (), "")
    if version == _BOUND:
        _check_bound(report, stack.report_data)
    if _is_tdx(fields):
        td_quote = member(fields, "td_quote", bytes_of_base64url)
        return Evidence(AzureTdx(report, quote, td_quote), stack)
    return Evidence(AzureSnp(report, quote, (member(fields, "vcek", bytes_of_base64url),)), stack)


def _read_first(fields: dict[str, Any]) -> Evidence:
    """Return evidence of generation 0; that of SEV-SNP has other names than that of TDX."""
    if _is_tdx(fields):
        quote = read_quote(fields.get("tpm_quote"), bytes_of_array, bare_signature=True)
        report = member(fields, "hcl_report", bytes_of_array)
        td_quote = member(fields, "td_quote", bytes_of_array)
        return Evidence(AzureTdx(report, quote, td_quote), Stack(report_data_of(quote), (), ""))
    quote = read_quote(fields.get("quote"), bytes_of_array, bare_signature=True)
    report = member(fields, "report", bytes_of_array)
    chain = tuple(split_pem(string(fields, "vcek")))
    return Evidence(AzureSnp(report, quote, chain), Stack(report_data_of(quote), (), ""))


def _is_tdx(fields: dict[str, Any]) -> bool:
    """Return whether the evidence is of a TD, not of an SEV-SNP guest."""
    kinds = [name for name in ("td_quote", "vcek") if name in fields]
    if len(kinds) != 1:
        problem = "both" if kinds else "neither"
        raise FormatError(f"td_quote and vcek: {problem} present", reason="inconsistent")
    return kinds == ["td_quote"]


def _check_bound(report: bytes, report_data: bytes) -> None:
    """Check what generation 2 states: the user data of the HCL report are the report data."""
    user_data = HclReport.parse(report).content.user_data or bytes(len(report_data))
    if not hmac.compare_digest(user_data, report_data):
        message = "version 2, but the user data of the HCL report are not the report data"
        raise FormatError(message, reason="inconsistent")


def build_fields(platform: AzureSnp | AzureTdx, report_data: bytes) -> dict[str, Any]:
    """Return the document of generation 2, or 1 if the user data are not the report data.

    Raises:
        UsageError: If the format cannot represent the quote, the HCL report is malformed, or the
            VCEK is missing.
    """
    quote = platform.vtpm_quote
    try:
        user_data = HclReport.parse(platform.hcl_report).content.user_data
    except FormatError as error:
        raise UsageError(f"encoding coco: {error}", reason="wrong_value") from error
    fields: dict[str, Any] = {
        "version": _BOUND if user_data == report_data else 1,
        "tpm_quote": {
            "signature": bare_signature_of(quote).hex(),
            "message": quote.message.hex(),
            "pcrs": [value.hex() for value in quoted_values(quote)],
        },
        "hcl_report": _to_base64url(platform.hcl_report),
    }
    if isinstance(platform, AzureTdx):
        return fields | {"td_quote": _to_base64url(platform.td_quote)}
    return fields | {"vcek": _to_base64url(_find_vcek(platform.cert_chain))}


def _find_vcek(chain: tuple[bytes, ...]) -> bytes:
    """Return the certificate of the chip's key, in DER."""
    try:
        for der in (der for blob in chain for der in _certificates(blob)):
            key = read_amd_extension(read_path_certificate(der).extensions)
            if key is not None and key.kind == "VCEK":
                return der
    except FormatError as error:
        raise UsageError(f"encoding coco: certificates: {error}", reason="wrong_value") from error
    message = "encoding coco: the evidence has no VCEK certificate; use cbor"
    raise UsageError(message, reason="not_applicable")


def _certificates(blob: bytes) -> list[bytes]:
    """Return the certificates in DER, PEM or a host's table."""
    if blob[:1] == b"\x30" or blob.lstrip().startswith(b"-----BEGIN"):
        return split_der_or_pem(blob, "certificate")
    found = SnpCertificates.parse(blob).vcek
    return [] if found is None else [found]


def bytes_of_base64url(value: object, what: str) -> bytes:
    """Decode base64url, padded or not."""
    if value is None:
        raise FormatError(f"{what}: missing", reason="missing")
    if not isinstance(value, str):
        raise FormatError(f"{what}: must be a string", reason="wrong_type")
    bare = value.rstrip("=")
    if len(value) - len(bare) not in {0, -len(bare) % 4}:
        raise FormatError(f"{what}: wrong padding", reason="encoding")
    return from_base64url(bare, what)


def _to_base64url(data: bytes) -> str:
    """Return padded base64url, as the reference attester writes it."""
    return urlsafe_b64encode(data).decode("ascii")
