"""JSON of Confidential Containers: Azure's guests, TPMs alone, and the TPM quote in both.

Azure's guests (`az-snp-vtpm`, `az-tdx-vtpm`): generation 0 has arrays of numbers and no version;
generations 1 and 2 have base64url and hex. In generation 2, the user data of the HCL report are the
report data. A TPM alone (`tpm`) has its public key beside the quote.
"""

import hmac
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable
from typing import Any, Final

from attestkit._crypto.pem import split_der_or_pem, split_pem
from attestkit._crypto.x509.amd_extension import read_amd_extension
from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit._formats import strict_json
from attestkit._formats.binary_layout import Cursor
from attestkit._formats.compact_jws import from_base64url
from attestkit._formats.strict_json import from_base64, from_hex, number_field, string
from attestkit.attestation.azure import HclReport
from attestkit.attestation.snp import SnpCertificates
from attestkit.attestation.wire.evidence_parts import (
    AzureSnp,
    AzureTdx,
    Evidence,
    PcrValue,
    Stack,
    Tpm,
    VtpmQuote,
)
from attestkit.errors import FormatError, UsageError
from attestkit.tpm import TpmsAttest, TpmtPublic, TpmtSignature

BANK: Final = "sha256"
PCRS: Final = 24
PCR_SIZE: Final = 32
REPORT_DATA_SIZE: Final = 64

_MAX_SIGNATURE: Final = 512  # bytes: RSA-4096
_MAX_MESSAGE: Final = 1024  # bytes of a TPMS_ATTEST
_MAX_FIELD: Final = 1 << 16  # items of an array of numbers: over every part

ReadBytes = Callable[[object, str], bytes]
"""Decode a byte string from its JSON value; FormatErrors begin with the text, its name."""


def read_quote(
    value: object, read: ReadBytes, *, bare_signature: bool, ak_public: bytes = b""
) -> VtpmQuote:
    """Decode the quote's object: `signature`, `message` and 24 `pcrs` of the SHA-256 bank.

    Args:
        value: The JSON value.
        read: Decodes its byte strings; arguments: JSON value, and its name in errors.
        bare_signature: Whether the signature is that of RSASSA with SHA-256 alone, not a
            TPMT_SIGNATURE.
        ak_public: `VtpmQuote.ak_public` of the result, which the JSON value does not contain.

    Raises:
        FormatError: If a member is missing or malformed.
    """
    if not isinstance(value, dict):
        raise strict_json.wrong_json_type("quote", "an object", value)
    signature, message = (
        read(value.get("signature"), "signature"),
        read(value.get("message"), "message"),
    )
    if len(message) > _MAX_MESSAGE:
        raise FormatError(f"message: over {_MAX_MESSAGE} bytes", reason="too_large")
    listed = value.get("pcrs")
    if not isinstance(listed, list) or len(listed) != PCRS:
        raise FormatError(f"pcrs: must be an array of {PCRS} values", reason="wrong_size")
    values = [read(item, "pcrs") for item in listed]
    return _quote(message, signature, values, bare_signature=bare_signature, ak_public=ak_public)


def read_bincode_quote(data: bytes) -> VtpmQuote:
    """Decode `data`, a quote with 24 PCR values as kinvolk's library stores it, in bincode.

    Raises:
        FormatError: If it is malformed, or does not have 24 values of 32 bytes.
    """
    reader = _Bincode(data)
    signature = reader.blob(_MAX_SIGNATURE)
    message = reader.blob(_MAX_MESSAGE)
    start = reader.at
    if (count := reader.u64()) != PCRS:
        raise reader.error(f"{count} PCR values, must be {PCRS}", "wrong_size", start)
    values = [reader.take(PCR_SIZE) for _ in range(PCRS)]
    reader.finish("bincode")
    return _quote(message, signature, values, bare_signature=True, ak_public=b"")


def _quote(
    message: bytes, signature: bytes, values: list[bytes], *, bare_signature: bool, ak_public: bytes
) -> VtpmQuote:
    if not signature or len(signature) > _MAX_SIGNATURE:
        raise FormatError(f"signature: must have 1 to {_MAX_SIGNATURE} bytes", reason="wrong_size")
    if any(len(one) != PCR_SIZE for one in values):
        raise FormatError(f"pcrs: must have {PCR_SIZE} bytes each", reason="wrong_size")
    if bare_signature:
        signature = TpmtSignature("rsassa", BANK, signature).encode()
    pcrs = tuple([PcrValue(number, BANK, one) for number, one in enumerate(values)])
    return VtpmQuote(message, signature, pcrs, ak_public)


def report_data_of(quote: VtpmQuote) -> bytes:
    """Return the report data: the qualifying data of a quote, zero-padded to 64 bytes.

    Raises:
        FormatError: If the quote's message is malformed, or the qualifying data are longer.
    """
    extra = TpmsAttest.parse(quote.message).extra_data
    if len(extra) > REPORT_DATA_SIZE:
        message = f"TPM quote: {len(extra)} bytes of qualifying data, at most {REPORT_DATA_SIZE}"
        raise FormatError(message, reason="wrong_size")
    return extra.ljust(REPORT_DATA_SIZE, b"\0")


def quoted_values(quote: VtpmQuote) -> list[bytes]:
    """Return the values of PCRs 0 to 23 of the SHA-256 bank, in order.

    Raises:
        UsageError: If the quote has other PCRs or another bank.
    """
    found = {(one.algorithm, one.number): one.value for one in quote.pcr_values}
    wanted = [(BANK, number) for number in range(PCRS)]
    if len(quote.pcr_values) != PCRS or found.keys() != {*wanted}:
        message = "encoding coco: the quote must be of PCRs 0 to 23 of the SHA-256 bank; use cbor"
        raise UsageError(message, reason="not_applicable")
    return [found[one] for one in wanted]


def bare_signature_of(quote: VtpmQuote) -> bytes:
    """Return the RSA signature without its TPMT_SIGNATURE.

    Raises:
        UsageError: If it is not RSASSA with SHA-256, or malformed.
    """
    try:
        found = TpmtSignature.parse(quote.signature)
    except FormatError as error:
        raise UsageError(f"encoding coco: {error}", reason="wrong_value") from error
    if (found.algorithm, found.hash_name) != ("rsassa", BANK):
        message = "encoding coco: the quote must be signed by RSASSA with SHA-256; use cbor"
        raise UsageError(message, reason="not_applicable")
    return found.signature


def bytes_of_hex(value: object, what: str) -> bytes:
    """Decode a JSON value, a hex string; `what` is its name in the error.

    Raises:
        FormatError: If it is null, not a string, or not hex.
    """
    return from_hex(value, what)


def bytes_of_array(value: object, what: str) -> bytes:
    """Decode a JSON value, an array of numbers 0 to 255; `what` is its name in the error.

    Raises:
        FormatError: If it is null, not such an array, or has more than 65,536 items.
    """
    if value is None:
        raise FormatError(f"{what}: missing", reason="missing")
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise FormatError(f"{what}: must be an array of numbers", reason="wrong_type")
    if len(value) > _MAX_FIELD:
        raise FormatError(f"{what}: {len(value)} numbers, at most {_MAX_FIELD}", reason="too_many")
    try:
        return bytes(value)
    except ValueError as error:
        raise FormatError(f"{what}: numbers must be 0 to 255", reason="wrong_value") from error


def member(fields: dict[str, Any], name: str, read: ReadBytes) -> bytes:
    """Decode with `read` the member `name` of a JSON object's members.

    Raises:
        FormatError: If it is missing, empty, or not valid for `read`.
    """
    if not (found := read(fields.get(name), name)):
        raise FormatError(f"{name}: empty", reason="missing")
    return found


class _Bincode(Cursor):
    """Reader of Rust's bincode: numbers of 64 bits, little-endian."""

    __slots__ = ()
    CODEC = "bincode"

    def u64(self) -> int:
        """Read a number."""
        return int.from_bytes(self.take(8), "little")

    def blob(self, most: int) -> bytes:
        """Read a length, at most `most`, and that many bytes."""
        start = self.at
        if (size := self.u64()) > most:
            raise self.error(f"{size} bytes, at most {most}", "too_large", start)
        return self.take(size)


_SEQUENCE: Final = b"\x30"  # first byte of a SubjectPublicKeyInfo, never of a TPMT_PUBLIC


def read_generic_tpm(fields: dict[str, Any]) -> Evidence:
    """Return the evidence of a TPM alone in the members of a JSON document.

    Raises:
        FormatError: If a member is missing or malformed.
    """
    key = member(fields, "ak_public", from_base64)
    quote = read_quote(fields.get("tpm_quote"), _bytes, bare_signature=False, ak_public=key)
    return Evidence(Tpm(quote), Stack(report_data_of(quote), (), ""))


def _bytes(value: object, what: str) -> bytes:
    """Decode a PCR value (`what` is "pcrs") from hex, any other member from standard base64.

    `value` is the JSON value, and `what` its name in errors.
    """
    return from_hex(value, what, PCR_SIZE) if what == "pcrs" else from_base64(value, what)


def build_generic_tpm(platform: Tpm) -> dict[str, Any]:
    """Return the members of the JSON document of a TPM alone.

    Raises:
        UsageError: If the quote is not of PCRs 0 to 23 of the SHA-256 bank, or the key is missing
            or malformed.
    """
    quote = platform.vtpm_quote
    return {
        "ak_public": b64encode(_spki(quote.ak_public)).decode(),
        "tpm_quote": {
            "signature": b64encode(quote.signature).decode(),
            "message": b64encode(quote.message).decode(),
            "pcrs": [value.hex() for value in quoted_values(quote)],
        },
    }


def _spki(key: bytes) -> bytes:
    if key[:1] == _SEQUENCE:
        return key
    try:
        return TpmtPublic.parse(key).spki
    except FormatError as error:
        raise UsageError(f"encoding coco: {error}", reason="wrong_value") from error


_BOUND: Final = 2  # generation in which the paravisor's user data are the report data


def read_azure(fields: dict[str, Any]) -> Evidence:
    """Return the evidence of an Azure guest in the members of a JSON document.

    Raises:
        FormatError: If a member is missing or malformed, or the generation is unknown.
    """
    if "version" not in fields:
        return _read_first(fields)
    version = number_field(fields, "version", 32)
    if version not in {1, _BOUND}:
        raise FormatError(f"version: must be 1 or 2, not {version}", reason="unsupported_version")
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
    """Return evidence of generation 0 from the members of its document.

    They have other names on SEV-SNP than on TDX.
    """
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
    """Return whether a document is of a TD: it has `td_quote`; one of SEV-SNP has `vcek`.

    Raises:
        FormatError: If it has both members or neither.
    """
    kinds = [name for name in ("td_quote", "vcek") if name in fields]
    if len(kinds) != 1:
        problem = "both" if kinds else "neither"
        raise FormatError(f"td_quote, vcek: {problem} present, not one", reason="inconsistent")
    return kinds == ["td_quote"]


def _check_bound(report: bytes, report_data: bytes) -> None:
    """Check that the user data of the HCL report are the report data, as generation 2 states."""
    user_data = HclReport.parse(report).content.user_data or bytes(len(report_data))
    if not hmac.compare_digest(user_data, report_data):
        message = "version: 2, but the user data of the HCL report are not the report data"
        raise FormatError(message, reason="inconsistent")


def build_azure(platform: AzureSnp | AzureTdx, report_data: bytes) -> dict[str, Any]:
    """Return the document's members: generation 2, or 1 if the user data are not the report data.

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
    """Return the VCEK certificate in DER; raise UsageError if `chain` has none."""
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
    """Return the certificates in `blob` in DER.

    It is one certificate in DER, certificates in PEM, or a host's certificate table, of which only
    the VCEK is returned.
    """
    if blob[:1] == b"\x30" or blob.lstrip().startswith(b"-----BEGIN"):
        return split_der_or_pem(blob, "certificate")
    found = SnpCertificates.parse(blob).vcek
    return [] if found is None else [found]


def bytes_of_base64url(value: object, what: str) -> bytes:
    """Decode a JSON value in base64url, padded or not; `what` is its name in the error.

    Raises:
        FormatError: If it is null, not a string, or not base64url.
    """
    if value is None:
        raise FormatError(f"{what}: missing", reason="missing")
    if not isinstance(value, str):
        raise strict_json.wrong_json_type(what, "a string", value)
    bare = value.rstrip("=")
    if len(value) - len(bare) not in {0, -len(bare) % 4}:
        raise FormatError(f"{what}: wrong padding", reason="encoding")
    return from_base64url(bare, what)


def _to_base64url(data: bytes) -> str:
    """Return `data` in padded base64url, as the reference attester writes it."""
    return urlsafe_b64encode(data).decode("ascii")
