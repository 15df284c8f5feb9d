"""Evidence of a TPM alone, and the policy that lists its key, for attempts."""

from datetime import datetime, timezone
from functools import cache
from typing import Any, Final

from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.hashes import sha256
from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import Evidence, PcrValue, Stack, Tpm
from attestkit.report_data import ReportData
from attestkit.verifier import AppraisalPolicy, AttestationResult, Verifier
from tests.verifier.platforms.vtpm.made_tpm import (
    KEY,
    SPKI,
    authority,
    certificates,
    pcrs_of,
    sign_quote,
    vtpm_quote,
)
from tests.verifier.platforms.vtpm.test_pcr_logs import boot_log, extended

NOW: Final = datetime(2026, 12, 1, tzinfo=timezone.utc)
NONCE: Final = b"a nonce of the relying party"
BOUND: Final = ReportData.for_nonce(NONCE)
OTHER: Final = P256Key.from_scalar(b"\x33" * 32)
POLICY: Final = b"secure boot policy"
PCRS: Final = pcrs_of(pcr7=extended("sha256", 7, POLICY))
LOG: Final = boot_log((7, POLICY))
ROOT: Final = authority()[0].der


def policy_of(**rules: Any) -> AppraisalPolicy:
    """Return a policy that pins the TPM's key and PCR 7."""
    pins: dict[str, Any] = {"trusted_aks": [SPKI], "pcrs": {"sha256:7": PCRS[7].value}} | rules
    platforms = ("tpm", "go-tpm-tools")
    return AppraisalPolicy.default().replace(platforms=platforms, **pins)


def check(
    platform: Tpm, policy: AppraisalPolicy | None = None, *, now: datetime = NOW, **options: Any
) -> AttestationResult:
    """Verify evidence of a TPM for the nonce."""
    evidence = Attestation(Evidence(platform, Stack(BOUND, (), ""))).to_bytes("cbor")
    verifier = Verifier(policy=policy or policy_of(), **options)
    return verifier.verify(evidence, nonce=NONCE, now=now)


@cache
def genuine() -> Tpm:
    """Return evidence of the listed TPM, which is accepted."""
    found = Tpm(vtpm_quote(sha256(BOUND), PCRS)._replace(boot_log=LOG))
    result = check(found)
    assert result.fresh
    assert result.claims.vtpm is not None
    assert result.claims.vtpm.replayed == (("sha256", 7),)
    return found


@cache
def certified() -> Tpm:
    """Return evidence whose key a certificate certifies, which is accepted."""
    found = altered(ak_certificates=certificates())
    assert check_certified(found).fresh
    return found


def check_certified(
    platform: Tpm, now: datetime = NOW, roots: tuple[bytes, ...] = (ROOT,), **options: Any
) -> AttestationResult:
    """Verify evidence of a key that is not listed, under a root for keys of TPMs."""
    return check(platform, policy_of(trusted_aks=None), now=now, ak_roots=roots, **options)


def altered(**parts: Any) -> Tpm:
    """Return the genuine evidence with other parts."""
    return Tpm(genuine().vtpm_quote._replace(**parts))


def quoted(extra: bytes, pcrs: tuple[PcrValue, ...] = PCRS, key: P256Key = KEY) -> dict[str, Any]:
    """Return the parts of a quote."""
    return dict(
        zip(("message", "signature", "pcr_values"), sign_quote(extra, pcrs, key), strict=True)
    )
