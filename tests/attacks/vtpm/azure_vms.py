"""Evidence of a victim's VM at Azure, and the policy that pins it, for attempts."""

from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from typing import Any, Final

from attestkit.attestation.azure import HclReport, HclReportType
from attestkit.attestation.wire.evidence_parts import AzureSnp, AzureTdx, VtpmQuote
from attestkit.errors import AttestKitError, FormatError
from attestkit.report_data import ReportData
from attestkit.tpm import TpmsAttest, TpmtSignature
from attestkit.verifier import AppraisalPolicy, AttestationResult
from tests.attacks.attempts import Kind, Surfaces
from tests.verifier.platforms import amd, azure
from tests.verifier.platforms.test_azure_policy import (
    BOUND,
    ID_KEY,
    ID_KEY_DIGEST,
    MEASUREMENT,
    NONCE,
    pinned,
)

KINDS: Final = ("snp", "tdx")
OTHER: Final = "AK of the attacker's VM"
OLDER: Final = ReportData.for_nonce(b"the nonce of an earlier session")
VMPL: Final = 0x030  # offsets in the SEV-SNP report
SIGNING_KEY: Final = 0x048
POLICY: Final = 0x008
SEPT_VE_DISABLE: Final = (1 << 28).to_bytes(8, "little")


def policy_of(kind: str) -> AppraisalPolicy:
    """Return a policy that pins the victim's paravisor and its guest's PCRs."""
    return pinned(
        kind,
        paravisor_measurement=[MEASUREMENT[kind]],
        secure_boot=True,
        console_enabled=False,
        require_joins=["hardware_to_ak"],
        pcrs={"sha256:7": azure.PCRS["sha256", 7]},
    )


def check(
    platform: AzureSnp | AzureTdx, policy: AppraisalPolicy | None = None
) -> AttestationResult:
    """Verify evidence for the nonce, under the victim's policy by default.

    The report data beside the quote are those that it is over, as an attacker would state them.
    """
    kind = "snp" if isinstance(platform, AzureSnp) else "tdx"
    stated = BOUND
    with suppress(FormatError):
        stated = TpmsAttest.parse(platform.vtpm_quote.message).extra_data[:64].ljust(64, b"\0")
    evidence = azure.attestation(platform, stated).to_bytes("cbor")
    verifier = azure.verifier(platform, policy=policy or policy_of(kind))
    return verifier.verify(evidence, nonce=NONCE)


def evidence_of(
    kind: str,
    runtime: bytes | None = None,
    quote: VtpmQuote | None = None,
    offsets: dict[int, bytes] | None = None,
    **fields: bytes,
) -> Any:
    """Return evidence of a VM whose paravisor is the pinned one."""
    runtime = azure.runtime(BOUND) if runtime is None else runtime
    quote = azure.quote(BOUND) if quote is None else quote
    if kind == "snp":
        return azure.snp(runtime, {ID_KEY_DIGEST: ID_KEY} | (offsets or {}), quote)
    body: Any = {"mrtd": MEASUREMENT["tdx"]} | fields
    return azure.tdx(runtime, vtpm_quote=quote, **body)


@cache
def genuine(kind: str) -> Any:
    """Return the victim's evidence, which is accepted."""
    found = evidence_of(kind)
    result = check(found)
    assert result.fresh
    assert result.claims.platform == f"azure-{kind}"
    return found


def with_report(found: Any, runtime: bytes) -> Any:
    """Return evidence with other runtime data beside the same hardware report."""
    kind: HclReportType = "snp" if isinstance(found, AzureSnp) else "tdx"
    hardware = HclReport.parse(found.hcl_report).hardware_report
    return found._replace(hcl_report=HclReport.create(kind, hardware, runtime).encode(2600))


def with_quote(kind: str, **parts: Any) -> Any:
    """Return the victim's evidence with other parts of the TPM's quote."""
    found = genuine(kind)
    return found._replace(vtpm_quote=found.vtpm_quote._replace(**parts))


def both(
    attacks: Surfaces,
    attack: Kind,
    name: str,
    make: Callable[[str], Any],
    error: type[AttestKitError],
    *reasons: str,
) -> None:
    """Add an attempt for each kind of hardware."""

    def run(kind: str) -> object:
        genuine(kind)
        return check(make(kind))

    for kind in KINDS:
        attacks.add(attack, f"azure-{kind}: {name}", partial(run, kind), error, *reasons)


def sign(message: bytes) -> bytes:
    """Return a signature of the victim's key, over what the attacker chose."""
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.hashes import SHA256

    raw = amd.rsa_key("AK").sign(message, PKCS1v15(), SHA256())
    assert TpmsAttest.parse(genuine("snp").vtpm_quote.message)
    return TpmtSignature("rsassa", "sha256", raw).encode()
