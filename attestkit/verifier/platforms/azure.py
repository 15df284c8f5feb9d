"""Authentication of Azure's evidence: what a paravisor adds to the hardware's evidence.

The hardware report in the HCL report is over the runtime data, which have the TPM's key; the TPM's
quote has the report data. This proves a paravisor of any origin: only a policy that identifies it
makes the evidence Azure's (docs/guides/platforms/azure.md).

The hardware's evidence is verified before binding, quote and user data, as on all platforms: what a
binding compares is then authentic. If both are wrong, the error is that of the hardware.
"""

import hmac
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Final

from attestkit._crypto.public_key import load_verification_key
from attestkit._crypto.x509.ak_certificates.path import AK_USAGE, EK_USAGE, name_of
from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit._crypto.x509.vendor_roots import azure_authorities, azure_root
from attestkit._outcomes.steps import VerificationStep, passed, skipped
from attestkit.attestation.azure import HclReport
from attestkit.attestation.wire.evidence_parts import AzureSnp, AzureTdx, SevSnp, VtpmQuote, td_body
from attestkit.errors import (
    CollateralError,
    FormatError,
    ReplayError,
    SignatureError,
    VerificationError,
)
from attestkit.quote import Quote, TdQuoteBody
from attestkit.snp_report import parse_snp_report
from attestkit.td_report import TdReport
from attestkit.verifier.claims import Authenticated
from attestkit.verifier.platforms.tdx import FetchNeededError
from attestkit.verifier.platforms.vtpm.ak_chain import AkChains, read_evidence_certificate
from attestkit.verifier.platforms.vtpm.attestation_key import AttestationKey, read_attestation_key
from attestkit.verifier.platforms.vtpm.quote import ALL_PCRS, VerifiedQuote

_REPORT_DATA_SIZE: Final = 64
_SCHEME: Final = ("rsassa", "sha256")  # of the paravisor's attestation key
_USAGES: Final = frozenset({EK_USAGE, AK_USAGE})

# Fields of a TD report that the quote repeats: both of the body, and of TDX 1.5.
_REPEATED: Final = (
    *("tee_tcb_svn", "mr_seam", "mr_signer_seam", "seam_attributes", "td_attributes", "xfam"),
    *("mrtd", "mr_config_id", "mr_owner", "mr_owner_config", "rtmr0", "rtmr1", "rtmr2", "rtmr3"),
    "report_data",
)
_REPEATED_15: Final = ("tee_tcb_svn2", "mr_service_td")

_JOINED: Final = passed(
    "hardware_to_ak",
    "the hardware report commits to the attestation key, which signed the TPM quote",
)

Steps = tuple[VerificationStep, ...]


# A verification reads the report several times.
_parse_report = lru_cache(maxsize=8)(HclReport.parse)


def read_azure_report(platform: AzureSnp | AzureTdx) -> HclReport:
    """Return the HCL report of evidence.

    Raises:
        FormatError: If the HCL report is malformed, or its hardware report is not of the platform:
            SEV-SNP or TDX.
    """
    report = _parse_report(platform.hcl_report)
    wanted = "snp" if isinstance(platform, AzureSnp) else "tdx"
    if report.report_type != wanted:
        message = f"HCL report: must have a report of {wanted}, not {report.report_type}"
        raise FormatError(message, reason="inconsistent")
    return report


def snp_evidence_of(platform: AzureSnp) -> SevSnp:
    """Return the SEV-SNP report in the HCL report of Azure's evidence, with its certificates.

    Raises:
        FormatError: If the HCL report is malformed.
        SignatureError: If the report is signed with a cloud provider's key (`signing_key`), which
            Azure does not use.
    """
    raw = read_azure_report(platform).hardware_report
    if parse_snp_report(raw).signing_key != "VCEK":
        message = "SEV-SNP report: signed with a VLEK; behind Azure's paravisor it must be a VCEK"
        raise SignatureError(message, reason="signing_key")
    return SevSnp(raw, platform.cert_chain, "")


class AzureAuthenticator:
    """Authenticator of evidence of Azure's paravisor, under Azure's root for TPM certificates."""

    def __init__(self, chains: AkChains, trust_anchor: bytes | None = None) -> None:
        """Set the roots for AK certificates, which are optional in the evidence.

        Args:
            chains: Verification of certificates, with further roots.
            trust_anchor: Certificate in DER that replaces Azure's root; None keeps it.

        Raises:
            FormatError: If a certificate is malformed.
        """
        name = "Azure's root" if trust_anchor is None else "the trust anchor"
        root = azure_root() if trust_anchor is None else trust_anchor
        self._chains = chains
        self._roots = ((name, read_path_certificate(root)), *chains.others)

    def authenticate(
        self,
        platform: AzureSnp | AzureTdx,
        hardware: Authenticated,
        now: datetime,
        quote: Quote | None = None,
        before_fetch: Callable[[], object] = lambda: None,
        *,
        states_user_data: bool = True,
    ) -> Authenticated:
        """Verify HCL report and TPM quote beside the hardware's evidence; return their content.

        Args:
            platform: Azure's part of the evidence; its logs are not checked here.
            hardware: Verified content of the SEV-SNP report or TD quote in it.
            now: Time of the verification, with a time zone.
            quote: The TD quote, if it is parsed already.
            before_fetch: Function that is called before each request for a certificate.
            states_user_data: Whether user data, if there are some, must be the report data; in
                CoCo's generations 0 and 1 they need not.

        Raises:
            FormatError: If a part is malformed.
            VerificationError: If a binding (`hcl_binding`), the quote, its PCRs (`pcr_selection`,
                `pcr_digest`) or the stated user data (`hcl_user_data`) are not the expected ones.
            SignatureError: If a signature is not valid, or a certificate or public area is not of
                the HCL report's attestation key (`ak_mismatch`).
            ReplayError: If an RTMR is not zero (`rtmr_mismatch`).
            FetchNeededError: If `before_fetch` raises it.
        """
        report = read_azure_report(platform)
        steps = [_check_binding(report, platform, hardware, quote)]
        # HOST_DATA are zero, and no document of a paravisor is hashed.
        proven = tuple([step for step in hardware.steps if step.check != "host_data"])
        evidence = platform.vtpm_quote
        try:
            verified, extra = _verify_tpm(report, evidence, steps, is_stated=states_user_data)
            certificate, subject = self._check_certificate(evidence, verified, now, before_fetch)
        except VerificationError as error:
            error.steps = (*steps, *proven, *error.steps)
            raise
        facts = verified.facts("hardware_report", ("hardware_to_ak",), _details(report, subject))
        steps += [*proven, _JOINED, *certificate]
        return hardware._replace(report_data=extra, steps=tuple(steps), vtpm=facts)

    def _check_certificate(
        self,
        evidence: VtpmQuote,
        verified: VerifiedQuote,
        now: datetime,
        before_fetch: Callable[[], object],
    ) -> tuple[Steps, str]:
        """Verify the AK certificate; return its step, and the name in it.

        A certificate is optional, because the hardware report certifies the key. It is reported as
        not verified if its path or CRLs are missing or not valid now, or if it leads to another
        root. A certificate that is revoked, malformed or not valid for another reason, or for a key
        other than the HCL report's, is an error.

        Args:
            evidence: The TPM's part of the evidence, with the certificates.
            verified: The quote, verified by the key of the HCL report.
            now: Time of the verification, with a time zone.
            before_fetch: Function that is called before each request for a certificate.

        Returns:
            The step, and the certificate's name; empty without a verified certificate.
        """
        if not evidence.ak_certificates:
            text = "the evidence has no AK certificate; the hardware report certifies the key"
            return (skipped("ak_certificate", text),), ""
        leaf, *others = evidence.ak_certificates
        spki = read_evidence_certificate("AK certificate", leaf).spki
        if load_verification_key(spki).spki != verified.key.spki:
            message = "AK certificate: must be of the attestation key of the HCL report"
            raise SignatureError(message, reason="ak_mismatch")
        try:
            found = self._chains.verify(
                leaf,
                self._roots,
                now,
                beside=(*others, *azure_authorities()),
                usages=_USAGES,
                before_fetch=before_fetch,
            )
        except FetchNeededError:
            raise
        except (CollateralError, SignatureError) as error:
            if isinstance(error, SignatureError) and error.reason != "untrusted_root":
                raise
            text = f"the AK certificate was not verified: {error}"
            return (skipped("ak_certificate", text),), ""
        # The common name, such as ID.TrustedVM.Azure.windows.net.
        return found.steps, name_of(found.path.leaf).strip("'")


def _check_binding(
    report: HclReport, platform: AzureSnp | AzureTdx, hardware: Authenticated, quote: Quote | None
) -> VerificationStep:
    """Check that the hardware report is over the runtime data; a TD's must also match its quote.

    Args:
        report: The HCL report, with hardware report and runtime data.
        platform: Azure's part of the evidence.
        hardware: Verified content of the SEV-SNP report or TD quote.
        quote: The TD quote, if it is parsed already; None: that of `platform`, if there is one.

    Raises:
        VerificationError: If they do not match (`hcl_binding`).
        ReplayError: If an RTMR is not zero (`rtmr_mismatch`).
    """
    if isinstance(platform, AzureTdx):
        body = td_body(platform.td_quote if quote is None else quote)
        _check_td_report(TdReport.parse(report.hardware_report), body, hardware.steps)
    if not report.binds(hardware.report_data):
        raise VerificationError(
            f"HCL report: the hardware's report data must be the SHA-256 of the runtime data, "
            f"{report.report_data.hex()}, not {hardware.report_data.hex()}",
            reason="hcl_binding",
            steps=hardware.steps,
        )
    kind = "SEV-SNP report" if report.report_type == "snp" else "TD quote"
    text = f"the {kind} is over the runtime data of the HCL report (version {report.version})"
    return passed("hcl_report", text)


def _check_td_report(report: TdReport, body: TdQuoteBody, steps: Steps) -> None:
    """Compare the TD report with the TD quote made from it, and require RTMRs of zero.

    The paravisor measures the guest's boot into PCRs instead. An RTMR with a value would need a log
    that explains it, which no evidence has.
    """
    repeated = _REPEATED if body.tee_tcb_svn2 is None else (*_REPEATED, *_REPEATED_15)
    for name in repeated:
        if not hmac.compare_digest(getattr(report, name), getattr(body, name)):
            raise VerificationError(
                f"HCL report: {name} of the TD report is {getattr(report, name).hex()}, of the TD "
                f"quote {getattr(body, name).hex()}; request a quote of this TD report",
                reason="hcl_binding",
                steps=steps,
            )
    for name in ("rtmr0", "rtmr1", "rtmr2", "rtmr3"):
        if any(getattr(body, name)):
            raise ReplayError(
                f"{name}: must be zero behind a paravisor, because no log explains it, not "
                f"{getattr(body, name).hex()}",
                reason="rtmr_mismatch",
                steps=steps,
            )


def _verify_quote(report: HclReport, evidence: VtpmQuote) -> VerifiedQuote:
    """Verify the TPM's quote by the key of the HCL report."""
    key = load_verification_key(report.content.attestation_key.spki)
    if evidence.ak_public:
        stated = read_attestation_key(evidence.ak_public, ())
        if stated.spki != key.spki:
            message = "attestation key: the public area must be that of the HCL report's key"
            raise SignatureError(message, reason="ak_mismatch")
    return AttestationKey(key.spki, _SCHEME).verify_quote(evidence, (ALL_PCRS,))


def _verify_tpm(
    report: HclReport, evidence: VtpmQuote, steps: list[VerificationStep], *, is_stated: bool
) -> tuple[VerifiedQuote, bytes]:
    """Verify the TPM's quote and the user data of the HCL report.

    Args:
        report: The HCL report, with the TPM's key and the user data.
        evidence: The TPM's part of the evidence.
        steps: List to which the steps are appended.
        is_stated: Whether user data, if there are some, must be the report data.

    Returns:
        The verified quote, and its report data, 64 bytes.
    """
    verified = _verify_quote(report, evidence)
    steps += [_key_step(report), *verified.steps]
    report_data = _report_data(verified)
    steps.append(_check_user_data(report, report_data, is_stated=is_stated))
    return verified, report_data


def _key_step(report: HclReport) -> VerificationStep:
    bits = 8 * len(report.content.attestation_key.modulus)
    text = f"the runtime data of the HCL report have the attestation key (RSA, {bits} bits)"
    return passed("attestation_key", text)


def _details(report: HclReport, subject: str) -> tuple[tuple[str, str], ...]:
    """Return names and values of the VM configuration in an HCL report.

    They include `ak_certificate_name`, with the value `subject`, if that is not empty.
    """
    named = (("ak_certificate_name", subject),) if subject else ()
    return (*report.content.configuration, *named)


def _report_data(verified: VerifiedQuote) -> bytes:
    """Return the qualifying data of the quote, zero-padded to 64 bytes."""
    extra = verified.attest.extra_data
    if len(extra) > _REPORT_DATA_SIZE:
        raise VerificationError(
            f"TPM quote: qualifying data must be at most {_REPORT_DATA_SIZE} bytes, not "
            f"{len(extra)}; request a quote over the report data",
            reason="tpm_qualifying_data",
        )
    return extra.ljust(_REPORT_DATA_SIZE, b"\0")


def _check_user_data(report: HclReport, report_data: bytes, *, is_stated: bool) -> VerificationStep:
    """Compare user data of the HCL report with `report_data`, the 64 bytes that the TPM signed.

    A difference is an error if `is_stated`: the format then requires user data of this request.
    Otherwise, and without user data, the step is skipped: the hardware report may be older than the
    TPM's quote.
    """
    user_data = report.content.user_data
    older = "the hardware report may be older than the TPM quote, which alone has the report data"
    if user_data is None or (not any(user_data) and any(report_data)):
        return skipped("user_data", f"the HCL report has no user data, so {older}")
    if hmac.compare_digest(user_data, report_data):
        return passed("user_data", "the paravisor received the report data as user data")
    if not is_stated:
        text = f"the user data of the HCL report are those of another request, so {older}"
        return skipped("user_data", text)
    raise VerificationError(
        f"HCL report: user data must be the report data {report_data.hex()}, not "
        f"{user_data.hex()}; request an HCL report after the user data are written",
        reason="hcl_user_data",
    )
