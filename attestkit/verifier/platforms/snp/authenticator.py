"""Authentication and revocation of an SEV-SNP attestation report, and checks of the guest policy.

Reports signed by a cloud provider's key (VLEK) are authenticated too; the policy decides which
providers it accepts.

AMD publishes CRLs at its key distribution service; nothing is fetched here. A CRL is used if its
issuer is the root of the path, which must have signed it. Its entries are serial numbers of
certificates of the product line, without the names of issuers, so each certificate of the path is
looked up.
"""

import hmac
from collections.abc import Iterable, Sequence
from copy import copy
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from attestkit._argument_checks import name_argument
from attestkit._crypto.p384 import P384PublicKey
from attestkit._crypto.x509.cert_path import VENDOR_RULES, read_path_certificate
from attestkit._crypto.x509.crl import AmdCrl, check_crl_signature, read_amd_crls
from attestkit._crypto.x509.vendor_roots import AMD_ROOTS
from attestkit._outcomes.steps import StepOutcome, VerificationStep, caution, passed, skipped
from attestkit._system.bounded_cache import BoundedCache
from attestkit.attestation.launch.mr_config import host_data
from attestkit.attestation.wire.evidence_parts import SevSnp
from attestkit.errors import (
    CollateralExpiredError,
    FormatError,
    PolicyError,
    ReplayError,
    SignatureError,
)
from attestkit.snp_report import SnpReport, SnpTcb, parse_snp_report
from attestkit.verifier.chain_cache import ChainCache, root_key
from attestkit.verifier.claims import NO_REVOCATION, Authenticated, Tcb, TcbStatus
from attestkit.verifier.platforms.snp.chain import (
    KDS,
    Endorsement,
    Signer,
    find_signer,
    read_endorsements,
)

if TYPE_CHECKING:
    from attestkit._outcomes.reasons import PolicyReason

_SIGNED: Final = 256  # pairs of CRL and root
_TCBS: Final = ("reported_tcb", "current_tcb", "committed_tcb", "launch_tcb")
_CHIPS: Final = 1024  # in caches, with about 10 kB each
_LARGEST_KEPT: Final = 12_288  # bytes of certificates that are kept parsed; a table has about 6,000
_MAX_CERTIFICATES: Final = 8  # in the evidence, of which two are needed
_POLICY_STEP: Final = passed(
    "guest_policy",
    "the report is from VMPL 0, the guest policy allows neither debugging nor a migration agent, "
    "and the platform meets the guest policy",
)


class SnpRevocation:
    """Revocation check by given CRLs of AMD's roots. Thread-safe."""

    def __init__(self, crls: Iterable[bytes] = ()) -> None:
        """Parse CRLs: each item is DER, or PEM with one or more.

        Raises:
            FormatError: If a CRL is malformed.
        """
        self._groups: tuple[tuple[AmdCrl, ...], ...] = (_all_crls(crls),)
        self._signed = BoundedCache[tuple[bytes, bytes], bool](_SIGNED)

    def with_bundled(self, crls: Iterable[bytes]) -> "SnpRevocation":
        """Return a check that also uses the CRLs of an evidence bundle; it shares the cache.

        CRLs of the bundle are used only for roots of which the verifier has none, because the
        creator of the bundle can choose older ones.

        Raises:
            FormatError: If a CRL is malformed.
        """
        found = copy(self)
        found._groups = (*self._groups, _all_crls(crls))  # noqa: SLF001 - of this class
        return found

    def check(self, signer: Signer, now: datetime) -> VerificationStep:
        """Check the certificates of a signer by the CRLs; the step is skipped if there are none.

        Raises:
            SignatureError: If a certificate is revoked (`cert_revoked`), no CRL is of the path's
                root (`crl_missing`), or a CRL is not signed by that root (`crl_bad_signature`).
            CollateralExpiredError: If a CRL is not valid at `now` (`crl_expired`).
        """
        if not any(self._groups):
            return NO_REVOCATION
        root_name, root = signer.path[-1]
        of_root = (
            [crl for crl in group if crl.envelope.issuer == root.subject] for group in self._groups
        )
        used = next(filter(None, of_root), [])
        if not used:
            message = f"CRL of {root_name}: missing among those given; get it from {_url(signer)}"
            raise SignatureError(message, reason="crl_missing")
        for crl in used:
            self._check_list(crl, signer, now)
        numbers = ", ".join(str(crl.content.number) for crl in used)
        text = f"none of the certificates is revoked by CRL number {numbers} of {root_name}"
        return passed("revocation", text)

    def _check_list(self, crl: AmdCrl, signer: Signer, now: datetime) -> None:
        root_name, root = signer.path[-1]
        what = f"CRL of {root_name}"

        def verify() -> bool:
            check_crl_signature(crl.envelope, root, VENDOR_RULES, what)
            return True

        self._signed.get((crl.envelope.der, root.der), verify)
        for name, certificate in signer.path:
            if certificate.serial in crl.content.serial_numbers:
                message = (
                    f"{name} certificate: revoked: serial number {certificate.serial:#x} is in the "
                    f"{what}; get a certificate of a newer issuer, or do not trust this platform"
                )
                raise SignatureError(message, reason="cert_revoked")
        if not crl.content.is_current(now):
            message = f"{what} {crl.content.validity(now)}; get the current one from {_url(signer)}"
            raise CollateralExpiredError(message, reason="crl_expired")


def _all_crls(crls: Iterable[bytes]) -> tuple[AmdCrl, ...]:
    return tuple([crl for data in crls for crl in read_amd_crls(data)])


def _url(signer: Signer) -> str:
    return f"{KDS}/{signer.key.kind.lower()}/v1/{signer.product}/crl"


class Snp:
    """Authenticator of SEV-SNP reports under AMD's roots or a trust anchor."""

    def __init__(
        self,
        trust_anchor: bytes | None = None,
        *,
        certificates: Sequence[bytes] = (),
        crls: Sequence[bytes] = (),
    ) -> None:
        """Set the trust anchor, certificates for evidence without them, and CRLs.

        Args:
            trust_anchor: Certificate in DER; None is AMD's root of each product line.
            certificates: VCEK, VLEK, ASK and ASVK of any number of machines, in any order: DER,
                PEM, or the certificate table of a host's kernel. They take precedence over the
                certificates in the evidence.
            crls: CRLs of AMD's roots, in DER or PEM. If there are any, one of the path's root is
                required.

        Raises:
            FormatError: If the anchor is malformed.
            UsageError: If a certificate or CRL is malformed.
        """
        self._anchor = None if trust_anchor is None else read_path_certificate(trust_anchor)
        self._endorsements = name_argument(
            "snp_certificates", lambda: read_endorsements(certificates)
        )
        self._revocation = name_argument("amd_crls", lambda: SnpRevocation(crls))
        self._cache = ChainCache(2 * _CHIPS)
        # The same for the same bytes: keys of valid paths, and certificates of authentic evidence.
        self._keys = BoundedCache[bytes, P384PublicKey](_CHIPS)
        self._parsed = BoundedCache[tuple[bytes, ...], tuple[Endorsement, ...]](_CHIPS)

    def with_bundled_crls(self, crls: Sequence[bytes]) -> "Snp":
        """Return an authenticator that uses CRLs of an evidence bundle; it shares the caches.

        They are used only for roots of which the constructor's `crls` have none.

        Raises:
            FormatError: If a CRL is malformed.
        """
        if not crls:
            return self
        found = copy(self)
        found._revocation = self._revocation.with_bundled(crls)  # noqa: SLF001 - of this class
        return found

    @property
    def genuine(self) -> bool:
        """Whether the trust anchor has the key of one of AMD's roots."""
        return self._anchor is None or self._anchor.spki in map(root_key, AMD_ROOTS.values())

    def authenticate(self, platform: SevSnp, now: datetime) -> Authenticated:
        """Verify the evidence of an SEV-SNP guest, and return its signed content.

        Args:
            platform: Report, certificates and configuration document.
            now: Time of the verification, with a time zone.

        Raises:
            FormatError: If the report is malformed.
            CollateralError: If a certificate is missing; the message gives its name and AMD's URL.
            CollateralExpiredError: If a certificate or CRL is not valid at `now`.
            SignatureError: If the signature or certificate path is not valid, or a certificate is
                revoked.
            PolicyError: If the guest policy allows the host to read the guest, or the platform does
                not meet the guest policy: vmpl, debug, migration_agent, chip_key_masked, smt, rapl
                or ciphertext_hiding.
            ReplayError: If HOST_DATA is not the hash of the configuration document.
            UnsupportedError: If the processor is not known, or its root is not built in.
        """
        report = parse_snp_report(platform.report)
        chain = tuple(platform.cert_chain)
        found = self._parsed.find(chain)
        if found is None:
            found = _evidence_certificates(chain)
        endorsements = (*self._endorsements, *found)
        signer = find_signer(report, endorsements, self._anchor, now, self._cache.check_issued)
        revocation = self._revocation.check(signer, now)
        self._check_signature(report, signer)
        if sum(map(len, chain)) <= _LARGEST_KEPT:
            self._parsed.get(chain, lambda: found)
        signed = _signed_steps(report, signer, revocation)
        _check_policy(report, signed)
        host = _check_host_data(report, platform.mr_config, signed)
        steps = (*signed, _POLICY_STEP, host, _status_step(report))
        return _authenticated(report, signer, steps)

    def _check_signature(self, report: SnpReport, signer: Signer) -> None:
        spki = signer.spki
        try:
            key = self._keys.get(spki, lambda: P384PublicKey(spki))
            key.verify(report.signature, report.signed_region)
        except SignatureError as error:
            message = f"SEV-SNP report: {error}"
            raise SignatureError(message, reason="report_bad_signature") from error


def _evidence_certificates(cert_chain: Sequence[bytes]) -> tuple[Endorsement, ...]:
    """Decode the certificates in the evidence, which are not authenticated.

    Args:
        cert_chain: Items of DER, PEM, or the certificate table of a host's kernel.

    Raises:
        SignatureError: If one is malformed, or there are too many.
    """
    try:
        return read_endorsements(cert_chain, limit=_MAX_CERTIFICATES)
    except FormatError as error:
        message = f"certificates in the evidence: malformed: {error}"
        raise SignatureError(message, reason="cert_malformed") from error


def _signed_steps(
    report: SnpReport, signer: Signer, revocation: VerificationStep
) -> tuple[VerificationStep, ...]:
    kind = signer.key.kind
    chip: StepOutcome = "passed"
    if kind == "VLEK":
        whose = f"the VLEK is the cloud provider {signer.key.provider}'s, not this chip's alone"
    elif any(report.chip_id):
        whose = "the VCEK is that of the chip in the report"
    else:
        chip = "skipped"
        whose = "the chip id is hidden by the host, so it was not compared with the VCEK's"
    return (
        passed("certificates", f"the {kind}'s certificates lead to {signer.root} and are valid"),
        revocation,
        VerificationStep(
            "chip", chip, f"{whose}, for the reported TCB of a {signer.product} processor"
        ),
        passed("signature", f"the report's signature is valid (ECDSA P-384, SHA-384, {kind})"),
    )


def _check_policy(report: SnpReport, steps: tuple[VerificationStep, ...]) -> None:
    """Check the guest policy: it must not expose the guest, and the platform must meet it.

    Args:
        report: The report, whose signature is valid.
        steps: Steps that passed before; an error has them.

    Raises:
        PolicyError: With one of the reasons of `Snp.authenticate`, such as debug or smt.
    """
    policy, platform = report.policy, report.platform_info
    # Whether the rule is broken, its reason and text.
    rules: tuple[tuple[object, PolicyReason, str], ...] = (
        (report.vmpl, "vmpl", "SEV-SNP report: must be from VMPL 0; request it at VMPL 0"),
        (
            report.chip_key_masked,
            "chip_key_masked",
            "SEV-SNP report: the host masks the chip key; clear MASK_CHIP_KEY on the host",
        ),
        (policy >> 19 & 1, "debug", "guest policy: allows debugging (bit 19); launch without it"),
        (
            policy >> 18 & 1,
            "migration_agent",
            "guest policy: allows a migration agent (bit 18); launch the guest without it",
        ),
        (
            ~policy >> 16 & platform & 1,
            "smt",
            "guest policy: forbids SMT, but SMT is on; disable it on the host",
        ),
        (
            policy >> 23 & ~platform >> 3 & 1,
            "rapl",
            "guest policy: forbids RAPL, but RAPL is on; disable it on the host",
        ),
        (
            policy >> 24 & ~platform >> 4 & 1,
            "ciphertext_hiding",
            "guest policy: requires ciphertext hiding, but it is off; enable it on the host",
        ),
    )
    for broken, reason, text in rules:
        if broken:
            raise PolicyError(text, reason=reason, steps=steps)


def _check_host_data(
    report: SnpReport, mr_config: str, steps: tuple[VerificationStep, ...]
) -> VerificationStep:
    """Check that HOST_DATA is the hash of the mr_config document.

    Args:
        report: The report, whose signature is valid.
        mr_config: The document, JSON text; if it is empty, the step is skipped.
        steps: Steps that passed before; an error has them.

    Raises:
        ReplayError: If the hash differs (`host_data_mismatch`).
    """
    if not mr_config:
        text = "HOST_DATA was not compared: the evidence has no configuration document"
        return skipped("host_data", text)
    expected = host_data(mr_config)
    if not hmac.compare_digest(report.host_data, expected):
        raise ReplayError(
            f"amd sev-snp HOST_DATA mismatch, quoted: {report.host_data.hex()}, "
            f"expected: {expected.hex()}",
            reason="host_data_mismatch",
            steps=steps,
        )
    return passed("host_data", "HOST_DATA is the hash of the configuration document")


def _status_step(report: SnpReport) -> VerificationStep:
    others = ("current", "committed", "launch")
    found = [name for name in others if getattr(report, f"{name}_tcb") != report.reported_tcb]
    if not found:
        return passed("tcb", "current, committed and launch TCB are equal to the reported one")
    return caution(
        "tcb",
        f"OutOfDate: of the TCB versions, {', '.join(found)} differ from the reported one",
    )


def _certified(signer: Signer) -> tuple[tuple[str, bytes], ...]:
    """Return the claims' attributes, names and values, that the signing key's certificate states.

    They are `vlek_provider`, the provider's name in ASCII; nothing for a VCEK.
    """
    provider = signer.key.provider
    return (("vlek_provider", provider.encode("ascii")),) if provider else ()


def _components(tcb: bytes, product: str) -> tuple[tuple[str, int], ...]:
    """Return name and SVN of each component that a TCB version has on a product.

    Args:
        tcb: TCB version of the report, 8 bytes.
        product: Milan, Genoa, Turin or Venice.
    """
    levels = SnpTcb.parse(tcb, product)._asdict()
    return tuple((name, n) for name, n in levels.items() if n is not None)


@lru_cache(maxsize=256)  # chips of one fleet have few TCBs
def _tcb_of(reported: bytes, current: bytes, committed: bytes, launch: bytes, product: str) -> Tcb:
    is_same = reported == current == committed == launch
    return Tcb(
        status=TcbStatus.UP_TO_DATE if is_same else TcbStatus.OUT_OF_DATE,
        components=_components(reported, product),
        current=_components(current, product),
        committed=_components(committed, product),
        launch=_components(launch, product),
        product=product,
    )


def _authenticated(
    report: SnpReport, signer: Signer, steps: tuple[VerificationStep, ...]
) -> Authenticated:
    tcb = _tcb_of(*[getattr(report, name) for name in _TCBS], signer.product)
    return Authenticated(
        report_data=report.report_data,
        tcb=tcb,
        chain=signer.chain,
        steps=steps,
        attributes=_certified(signer),
    )
