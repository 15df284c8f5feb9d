"""Who signed an SEV-SNP report, and whether its guest is one that may be believed at all.

The rules are those of attestation-format.md, section 9. Reports that a cloud provider's key (VLEK)
signed are taken too.
"""

import hmac
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from attestkit._crypto.p384 import p384_verify
from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit._crypto.x509.vendor_roots import AMD_ROOTS
from attestkit.attestation.launch.mr_config import host_data
from attestkit.attestation.wire.evidence_parts import SevSnp
from attestkit.errors import (
    FormatError,
    PolicyError,
    ReplayError,
    SignatureError,
    UsageError,
)
from attestkit.snp_report import SnpReport
from attestkit.verifier.platforms.snp_chain import (
    Endorsement,
    Signer,
    find_signer,
    read_endorsements,
)
from attestkit.verifier.result import Authenticated, Tcb, TcbStatus

__all__ = ["Snp"]

_MAX_CERTIFICATES: Final = 8  # in the evidence; two are needed

_POLICY_STEP: Final = (
    "the report is from VMPL 0, the guest allows neither debugging nor a migration agent, and the "
    "platform has what its policy asks for"
)
# Reason and text of each rule; what may not be, by the bit of the guest's policy that allows it.
_VMPL: Final = ("vmpl", "the report is not from VMPL 0; only the software there may ask for it")
_MASKED: Final = (
    "chip_key_masked",
    "the host masks the chip's key (MASK_CHIP_KEY), so its reports prove nothing",
)
_FORBIDDEN: Final = (
    (19, "debug", "the guest's policy allows debugging (bit 19); launch it without"),
    (18, "migration_agent", "the guest's policy allows a migration agent (bit 18); launch without"),
)
# What a bit of the policy asks of a bit of the platform's information, where it has this value.
_REQUIRED: Final = (
    (16, 0, 0, "smt", "the guest's policy forbids SMT, which is on; switch it off on the host"),
    (23, 3, 1, "rapl", "the guest's policy wants RAPL off, which is on; switch it off on the host"),
    (
        24,
        4,
        1,
        "ciphertext_hiding",
        "the guest's policy wants ciphertext hiding, which is off; switch it on on the host",
    ),
)


class Snp:
    """AMD's word on SEV-SNP guests, or that of a root handed in."""

    def __init__(
        self, trust_anchor: bytes | None = None, *, certificates: Sequence[bytes] = ()
    ) -> None:
        """Take the root that is trusted, and certificates for evidence that has none.

        Args:
            trust_anchor: DER; None is AMD's root of each product line.
            certificates: VCEK, VLEK, ASK and ASVK of any number of machines, in any order: DER,
                PEM, or the certificate table of a host's kernel. They come before the evidence's.

        Raises:
            FormatError: one of them is malformed.
        """
        self._anchor = None if trust_anchor is None else read_path_certificate(trust_anchor)
        self._endorsements = read_endorsements(certificates)

    @property
    def genuine(self) -> bool:
        """Whether the root that is trusted has the key of one of AMD's."""
        if self._anchor is None:
            return True
        return any(
            self._anchor.spki == read_path_certificate(root).spki for root in AMD_ROOTS.values()
        )

    def authenticate(self, platform: SevSnp, now: datetime) -> Authenticated:
        """Return what AMD vouches for in the evidence of an SEV-SNP guest.

        Args:
            platform: the report, and with it certificates and the configuration document.
            now: an aware datetime.

        Raises:
            FormatError: the report breaks its format.
            CollateralError: a certificate is missing; the text says which, and where AMD has it.
            CollateralExpiredError: a certificate is not valid at `now`.
            SignatureError: report or certificates are not signed as they should be.
            PolicyError: the report is true, and its guest can be looked into or is at odds with
                its platform; the reason is vmpl, debug, migration_agent, chip_key_masked, smt,
                rapl or ciphertext_hiding.
            ReplayError: HOST_DATA is not the hash of the configuration document.
            UnsupportedError: the processor is not known, or its root is not built in.
            UsageError: `now` is naive.
        """
        if now.tzinfo is None:
            raise UsageError("the time of a verification is an aware datetime")
        report = SnpReport.parse(platform.report)
        endorsements = (*self._endorsements, *_came_along(platform.cert_chain))
        signer = find_signer(report, endorsements, self._anchor, now)
        _check_signature(report, signer)
        signed = _signed_steps(report, signer)
        _check_policy(report, signed)
        host = _check_host_data(report, platform.mr_config, signed)
        steps = (*signed, _POLICY_STEP, host, _status_step(report))
        return _authenticated(report, signer, steps)


def _came_along(cert_chain: Sequence[bytes]) -> tuple[Endorsement, ...]:
    """Read the certificates in evidence, the host's word until a path to the root holds."""
    try:
        return read_endorsements(cert_chain, limit=_MAX_CERTIFICATES)
    except FormatError as error:
        raise SignatureError(
            f"the certificates in the evidence are malformed: {error}", reason="cert_malformed"
        ) from error


def _check_signature(report: SnpReport, signer: Signer) -> None:
    try:
        p384_verify(signer.spki, report.signature, report.signed_region)
    except SignatureError as error:
        raise SignatureError(
            f"the report's signature: {error}", reason="report_bad_signature"
        ) from error


def _signed_steps(report: SnpReport, signer: Signer) -> tuple[str, ...]:
    kind = signer.key.kind
    if kind == "VLEK":
        whose = f"the VLEK is the cloud provider {signer.key.provider}'s, not this chip's alone"
    elif any(report.chip_id):
        whose = "the VCEK is that of the chip in the report"
    else:
        whose = "the chip id is hidden by the host, so it was not compared with the VCEK's"
    return (
        f"the {kind}'s certificates lead to {signer.root} and are valid",
        "revocation was not looked at: no CRL was consulted",
        f"{whose}, for the reported TCB of a {signer.product} processor",
        f"the report's signature holds (ECDSA P-384, SHA-384, {kind})",
    )


def _check_policy(report: SnpReport, steps: tuple[str, ...]) -> None:
    """Refuse a guest that others may look into, and a platform that is not what it asked for."""
    policy, platform = report.policy, report.platform_info
    rules = [(report.vmpl != 0, *_VMPL), (report.chip_key_masked, *_MASKED)]
    for bit, reason, text in _FORBIDDEN:
        rules.append((bool(policy >> bit & 1), reason, text))
    for bit, info, value, reason, text in _REQUIRED:
        asked, is_so = policy >> bit & 1 == value, platform >> info & 1 == value
        rules.append((asked and not is_so, reason, text))
    for broken, reason, text in rules:
        if broken:
            raise PolicyError(text, reason=reason, steps=steps)


def _check_host_data(report: SnpReport, mr_config: str, steps: tuple[str, ...]) -> str:
    """Hold HOST_DATA to the configuration document, if there is one; return a sentence."""
    if not mr_config:
        return "HOST_DATA was not compared: the evidence has no configuration document"
    expected = host_data(mr_config)
    if not hmac.compare_digest(report.host_data, expected):
        raise ReplayError(
            f"amd sev-snp HOST_DATA mismatch, quoted: {report.host_data.hex()}, "
            f"expected: {expected.hex()}",
            reason="host_data_mismatch",
            steps=steps,
        )
    return "HOST_DATA is the hash of the configuration document"


def _differing(report: SnpReport) -> list[str]:
    """Return which of the report's TCB versions are not the reported one."""
    others = ("current", "committed", "launch")
    return [name for name in others if getattr(report, f"{name}_tcb") != report.reported_tcb]


def _status_step(report: SnpReport) -> str:
    if not (found := _differing(report)):
        return "current, committed and launch TCB are the reported one"
    return f"OutOfDate: of the TCB versions, {', '.join(found)} differ from the reported one"


def _authenticated(report: SnpReport, signer: Signer, steps: tuple[str, ...]) -> Authenticated:
    levels = report.tcb("reported", signer.product)._asdict()
    return Authenticated(
        status=TcbStatus.OUT_OF_DATE if _differing(report) else TcbStatus.UP_TO_DATE,
        advisory_ids=(),
        report_data=report.report_data,
        device=b"",
        tcb=Tcb(components=tuple((name, n) for name, n in levels.items() if n is not None)),
        chain=signer.chain,
        steps=steps,
    )
