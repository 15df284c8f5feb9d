"""Evidence of a simulated paravisor: HCL reports in signed hardware reports, and TPM quotes."""

from collections.abc import Mapping
from hashlib import sha384
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256, SHA384

from attestkit._crypto.hashes import sha256
from attestkit.attestation import Attestation
from attestkit.attestation.azure import HclReport
from attestkit.attestation.wire.evidence_parts import (
    AzureSnp,
    AzureTdx,
    Evidence,
    PcrValue,
    Stack,
    VtpmQuote,
)
from attestkit.backends.simulator.pki.quoting_enclave import TdBody
from attestkit.tpm import PcrSelection, TpmsAttest, TpmtSignature, pcr_digest
from attestkit.verifier import Verifier
from attestkit.verifier.claims import Authenticated
from attestkit.verifier.examination import Examination
from tests.attestation.hcl import jwk, runtime_json
from tests.verifier.platforms import amd, intel

REPORT_DATA: Final = bytes(range(64))
ALL: Final = (PcrSelection("sha256", tuple(range(24))),)
PCRS: Final = {("sha256", number): sha256(bytes([number])) for number in range(24)}
HCL_SIZE: Final = 2600


def ak_modulus(name: str = "AK") -> bytes:
    """Return the modulus of an attestation key."""
    return amd.rsa_key(name).public_key().public_numbers().n.to_bytes(256, "big")


def runtime(user_data: bytes | None = REPORT_DATA, name: str = "AK", **members: object) -> bytes:
    """Return runtime data with an attestation key and user data."""
    text = None if user_data is None else user_data.hex().upper()
    return runtime_json(jwk(modulus=ak_modulus(name)), user_data=text, **members)


def quote(
    extra: bytes = REPORT_DATA,
    *,
    name: str = "AK",
    selections: tuple[PcrSelection, ...] = ALL,
    pcrs: Mapping[tuple[str, int], bytes] = PCRS,
    hash_name: str = "sha256",
    **parts: Any,
) -> VtpmQuote:
    """Return a quote that the attestation key signed."""
    wanted = [(one.bank, number) for one in selections for number in one.pcrs]
    digest = pcr_digest(selections, {one: pcrs[one] for one in wanted}, hash_name)
    signer = b"\0\x0b" + bytes(32)
    message = TpmsAttest(signer, extra, 5000, 3, 1, True, 7, selections, digest).encode()
    algorithm = SHA256() if hash_name == "sha256" else SHA384()
    signature = amd.rsa_key(name).sign(message, PKCS1v15(), algorithm)
    values = tuple([PcrValue(number, bank, pcrs[bank, number]) for bank, number in wanted])
    signed = TpmtSignature("rsassa", hash_name, signature).encode()
    return VtpmQuote(message, signed, values)._replace(**parts)


def snp(
    runtime_data: bytes | None = None,
    changes: Mapping[int, bytes] | None = None,
    vtpm_quote: VtpmQuote | None = None,
) -> AzureSnp:
    """Return evidence whose SEV-SNP report has other bytes at some offsets."""
    data = runtime() if runtime_data is None else runtime_data
    raw = amd.report({0x50: sha256(data) + bytes(32)} | dict(changes or {}))
    report = HclReport.create("snp", raw, data).encode(HCL_SIZE)
    return AzureSnp(report, vtpm_quote or quote(), (amd.vcek(), amd.ask()))


def td_report(body: TdBody) -> bytes:
    """Return a TD report of TDX 1.0 with the fields of a body; its MAC is not valid."""
    raw, fields = bytearray(1024), body.td10()
    raw[0] = 0x81
    raw[128:192] = fields[520:584]
    raw[256:264] = (0x1FF).to_bytes(8, "little")
    raw[264:384] = fields[:120]
    raw[512:912] = fields[120:520]
    raw[32:80] = sha384(raw[256:495]).digest()
    raw[80:128] = sha384(raw[512:]).digest()
    return bytes(raw)


def tdx(
    runtime_data: bytes | None = None,
    quoted: Mapping[str, bytes] | None = None,
    vtpm_quote: VtpmQuote | None = None,
    **fields: bytes,
) -> AzureTdx:
    """Return evidence of a TD with these fields; `quoted` replaces fields in the quote only.

    As at Azure, the TD has no attribute.
    """
    data = runtime() if runtime_data is None else runtime_data
    defaults = {"report_data": sha256(data) + bytes(32), "td_attributes": bytes(8)}
    body = TdBody(**(defaults | fields))
    report = HclReport.create("tdx", td_report(body), data).encode(HCL_SIZE)
    signed = intel.ENCLAVE.quote(body._replace(**(quoted or {})).td10())
    return AzureTdx(report, vtpm_quote or quote(), signed)


def attestation(platform: AzureSnp | AzureTdx, report_data: bytes = REPORT_DATA) -> Attestation:
    """Return evidence with this report data beside the quote."""
    return Attestation(Evidence(platform, Stack(report_data, (), "")))


def verifier(platform: AzureSnp | AzureTdx, **options: Any) -> Verifier:
    """Return a verifier that trusts the simulated root of the platform's hardware."""
    if isinstance(platform, AzureTdx):
        return intel.verifier(**options)
    defaults: dict[str, Any] = {"trust_anchor": amd.ark(), "clock": lambda: amd.NOW}
    return Verifier(**(defaults | options))


def examine(
    platform: AzureSnp | AzureTdx, report_data: bytes = REPORT_DATA, **options: Any
) -> Examination:
    """Return the examination of evidence before its first step."""
    return verifier(platform, **options).examine(attestation(platform, report_data))


def authenticate(
    platform: AzureSnp | AzureTdx, report_data: bytes = REPORT_DATA, **options: Any
) -> Authenticated:
    """Verify all signatures of evidence."""
    return examine(platform, report_data, **options).authenticate()
