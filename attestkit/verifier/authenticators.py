"""Select the authenticator and the trust anchor for each platform.

The authenticator of a platform is created at first use and belongs to one Verifier; its caches are
never shared between trust anchors.
"""

from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from attestkit._argument_checks import normalize_blobs, wrong_type
from attestkit._crypto.pem import split_der_or_pem
from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit._system.fork_safety import unlocked_property
from attestkit.attestation import Attestation
from attestkit.attestation.nitro import is_nitro_document
from attestkit.attestation.wire.evidence_parts import (
    AzureSnp,
    AzureTdx,
    GcpSnp,
    GcpTdx,
    GoTpmTools,
    NitroEnclave,
    NitroTpm,
    Platform,
    SevSnp,
    Tpm,
    snp_report_of,
)
from attestkit.collateral import Collateral
from attestkit.errors import FormatError, SignatureError, UsageError
from attestkit.quote import Quote
from attestkit.simulated_roots import SimulatedRoots
from attestkit.verifier.claims import ANOTHER_ROOT, Authenticated, TcbStatus
from attestkit.verifier.evidence.checks import ParsedEvidence
from attestkit.verifier.platforms.tdx import FetchNeededError, authenticate_quote

if TYPE_CHECKING:
    from attestkit.collateral.responses import Getter
    from attestkit.verifier.dcap.engine import Dcap
    from attestkit.verifier.platforms.azure import AzureAuthenticator
    from attestkit.verifier.platforms.gcp import GcpAuthenticator
    from attestkit.verifier.platforms.nitro import Nitro
    from attestkit.verifier.platforms.snp.authenticator import Snp
    from attestkit.verifier.platforms.vtpm.ak_chain import AkChains


class AkSettings(NamedTuple):
    """Roots and certificates for attestation keys (AK) of TPMs; `fetch` allows to fetch more."""

    roots: tuple[bytes, ...] = ()
    certificates: tuple[bytes, ...] = ()  # of CAs, and CRLs
    fetch: bool = False
    getter: "Getter | None" = None  # None: an HTTP client of the standard library

    @classmethod
    def of(cls, roots: Sequence[bytes], certificates: Sequence[bytes]) -> "AkSettings":
        """Return settings with these arguments `ak_roots` and `ak_certificates` of a `Verifier`.

        Raises:
            UsageError: If one is not a collection of bytes.
        """
        return cls(
            normalize_blobs("ak_roots", roots), normalize_blobs("ak_certificates", certificates)
        )


class Authenticators:
    """Authenticators of all platforms, under the vendors' roots or one trust anchor."""

    def __init__(
        self,
        trust_anchor: bytes | str | SimulatedRoots | None,
        snp_certificates: Sequence[bytes] = (),
        ak_settings: AkSettings = AkSettings(),  # noqa: B008 - immutable
        amd_crls: Sequence[bytes] = (),
    ) -> None:
        """Set the trust anchor and the certificates of SEV-SNP keys and TPM keys.

        Args:
            trust_anchor: Certificate in DER or PEM, or the roots of a simulated machine; None uses
                the vendors' roots.
            snp_certificates: VCEK, VLEK, ASK or ASVK certificates: DER, PEM, or the certificate
                table of a host's kernel.
            ak_settings: Certificates of TPM keys.
            amd_crls: CRLs of AMD's roots, DER or PEM.

        Raises:
            UsageError: If `trust_anchor` is not a single certificate, or another certificate or CRL
                is malformed.
        """
        nitro: bytes | None = None
        if isinstance(trust_anchor, SimulatedRoots):
            nitro, trust_anchor = trust_anchor.nitro, trust_anchor.platform
        self.trust_anchor: bytes | None = (
            None if trust_anchor is None else _single_certificate(trust_anchor)
        )
        self._nitro_anchor = self.trust_anchor if nitro is None else _single_certificate(nitro)
        self.snp_certificates: tuple[bytes, ...] = normalize_blobs(
            "snp_certificates", snp_certificates
        )
        self.ak_settings = ak_settings
        if ak_settings.roots or ak_settings.certificates:
            _ = self.ak_chains  # reports malformed ones at once
        self.amd_crls: tuple[bytes, ...] = normalize_blobs("amd_crls", amd_crls)
        if self.snp_certificates or self.amd_crls:
            _ = self._amd  # as above

    def for_bundle(
        self, amd_crls: Sequence[bytes], ak_certificates: Sequence[bytes]
    ) -> "Authenticators":
        """Return authenticators that use CRLs and certificates of an evidence bundle, too.

        They fetch nothing, and share the caches of this object. The bundle's CRLs are used only for
        issuers without a CRL in the arguments of this object. Malformed CRLs and certificates are
        reported when evidence needs them.

        Args:
            amd_crls: CRLs of AMD's roots in the bundle, DER or PEM.
            ak_certificates: Its certificates of CAs and CRLs for TPM keys, DER or PEM.
        """
        return _BundleAuthenticators(self, amd_crls, ak_certificates)

    def fetched_ak_certificates(self) -> tuple[bytes, ...]:
        """Return certificates and CRLs of TPM keys fetched and verified in the last hour.

        Each is DER or PEM.
        """
        return self.ak_chains.fetched() if self.ak_settings.fetch else ()

    def authenticate(
        self,
        parsed: ParsedEvidence,
        collateral: Collateral | None,
        now: datetime,
        *,
        fetch: bool = True,
        trusted_aks: Collection[bytes] = (),
    ) -> Authenticated:
        """Verify the vendor's signatures, and return what they cover.

        On a platform with a TPM, the hardware's evidence is verified first, then the TPM's quote,
        then that both are of one machine.

        Args:
            parsed: The evidence.
            collateral: Collateral of an SGX or TDX quote; None for other evidence.
            now: Time of the verification, with a time zone.
            fetch: Whether requests for certificates of TPM keys may be sent.
            trusted_aks: Keys of TPMs that the policy trusts: the SHA-256 of their
                SubjectPublicKeyInfo, or that itself in DER.

        Raises:
            FormatError: If a part of the evidence is malformed.
            VerificationError: If a signature or certificate chain is not valid.
            CollateralError: If collateral is required, but missing or malformed; a FetchNeededError
                if a request is needed, and `fetch` is false.
        """
        attestation = parsed.attestation
        before = _allow_fetch if fetch else _refuse_fetch
        if attestation is not None and isinstance(attestation.evidence.platform, (Tpm, GoTpmTools)):
            return self._authenticate_tpm(attestation, trusted_aks, now, before)
        if attestation is not None and isinstance(attestation.evidence.platform, NitroTpm):
            # lazy: only for this platform
            from attestkit.verifier.platforms.nitro_tpm import authenticate_nitro_tpm

            return authenticate_nitro_tpm(self._aws, attestation, now)
        hardware = self.authenticate_hardware(parsed, collateral, now)
        return self.authenticate_tpm_quote(parsed, hardware, now, fetch=fetch)

    def authenticate_tpm_quote(
        self, parsed: ParsedEvidence, hardware: Authenticated, now: datetime, *, fetch: bool = True
    ) -> Authenticated:
        """Verify the TPM's quote of a VM on Azure or Google Cloud, beside its hardware evidence.

        Return the content of both; `hardware` for evidence without such a quote.

        Args:
            parsed: The evidence.
            hardware: Authentic content of the evidence's TDX quote or SEV-SNP report.
            now: Time of the verification, with a time zone.
            fetch: Whether requests for certificates of TPM keys may be sent.

        Raises:
            FormatError: If a part of the evidence is malformed.
            VerificationError: If a signature or certificate chain is not valid.
            CollateralError: If a certificate is missing or cannot be fetched.
        """
        attestation, before = parsed.attestation, _allow_fetch if fetch else _refuse_fetch
        if isinstance(platform := parsed.wire_platform, (AzureSnp, AzureTdx)):
            # Of generations 0 to 2 of CoCo's format, the reader checks what only 2 states.
            stated = attestation is None or attestation.encoding != "coco"
            return self._azure.authenticate(
                platform, hardware, now, parsed.quote, before, states_user_data=stated
            )
        if attestation is not None and isinstance(platform, (GcpTdx, GcpSnp)):
            return self._google.authenticate(attestation, hardware, now, before)
        return hardware

    def authenticate_hardware(
        self, parsed: ParsedEvidence, collateral: Collateral | None, now: datetime
    ) -> Authenticated:
        """Verify an SGX or TDX quote, SEV-SNP report or Nitro document; return its content.

        Args:
            parsed: The evidence.
            collateral: Collateral of an SGX or TDX quote; None for other evidence.
            now: Time of the verification, with a time zone.

        Raises:
            CollateralError: If there is a quote, but no `collateral` (`missing`).
            AttestKitError: If the evidence is not authentic.
        """
        if (quote := parsed.quote) is not None:
            nested = isinstance(parsed.wire_platform, AzureTdx)
            return authenticate_quote(self._intel, quote, collateral, now, behind_paravisor=nested)
        assert parsed.attestation is not None
        platform = parsed.attestation.evidence.platform
        if (report := _snp_evidence(platform)) is not None:
            return self._amd.authenticate(report, now)
        assert isinstance(platform, NitroEnclave)
        return self._aws.authenticate(platform.nsm_quote, now)

    def _authenticate_tpm(
        self,
        attestation: Attestation,
        trusted_aks: Collection[bytes],
        now: datetime,
        before_fetch: Callable[[], object],
    ) -> Authenticated:
        """Verify the quotes of a TPM without hardware evidence; return their content.

        Args:
            attestation: Evidence of platform `tpm` or `go-tpm-tools`.
            trusted_aks: Keys of TPMs that the policy trusts: SHA-256 of their SubjectPublicKeyInfo,
                or that itself in DER.
            now: Time of the verification, with a time zone.
            before_fetch: Function that is called before each request for a certificate.

        Raises:
            AttestKitError: If the evidence is not authentic.
        """
        # lazy: only for these platforms
        from attestkit.verifier.platforms.tpm import authenticate_go_tpm_tools, authenticate_tpm
        from attestkit.verifier.platforms.vtpm.attestation_key import AkTrust

        trust = AkTrust(self.ak_chains, trusted_aks, now, before_fetch)
        platform, stack = attestation.evidence
        if isinstance(platform, GoTpmTools):
            return authenticate_go_tpm_tools(platform.message, trust)
        assert isinstance(platform, Tpm)
        if _has_nitro_document(platform):
            # lazy: only for a TPM of AWS
            from attestkit.verifier.platforms import nitro_tpm

            self._require_root_of_aws()
            return nitro_tpm.authenticate_quote_with_document(
                self._aws, platform, stack.report_data, now
            )
        return authenticate_tpm(platform, stack.report_data, trust)

    def _require_root_of_aws(self) -> None:
        """Check that AWS's root is among `ak_roots`, if there are any.

        Raises:
            SignatureError: If it is not (`untrusted_root`).
        """
        roots = self.ak_chains.others
        if roots and all(root.spki != self._aws.root_key for _, root in roots):
            message = f"NitroTPM document: AWS's root is not among ak_roots; {ANOTHER_ROOT}"
            raise SignatureError(message, reason="untrusted_root")

    def precheck(self, quote: Quote, pck_certificate_chain: str | None, now: datetime) -> None:
        """Run the checks of a quote that need no collateral; errors are those of `Dcap.precheck`.

        Args:
            quote: Quote of a TD or an SGX enclave.
            pck_certificate_chain: PCK certificate chain in PEM for a quote that contains none, or
                None.
            now: Time of the verification, with a time zone.
        """
        self._intel.precheck(quote, pck_certificate_chain, int(now.timestamp()))

    def genuine(self, parsed: ParsedEvidence) -> bool:
        """Return whether the root for this evidence has the key of the vendor's root.

        Roots in `ak_roots` count as vendors' roots. A simulated TPM's certificates are recognised
        by their names instead; see `Authenticated.simulated`.
        """
        if parsed.quote is not None:
            return self._intel.genuine
        assert parsed.attestation is not None
        platform = parsed.wire_platform
        if isinstance(platform, (Tpm, GoTpmTools)) and not _has_nitro_document(platform):
            return bool(self.ak_settings.roots) or self.ak_chains.genuine
        if isinstance(platform, Tpm):
            return self._aws.genuine
        has_report = snp_report_of(parsed.attestation.evidence.platform) is not None
        return (self._amd if has_report else self._aws).genuine

    def explain(self, authenticated: Authenticated, quote: Quote, collateral: Collateral) -> str:
        """Return a sentence on the outdated component of the platform of a quote.

        Empty if the TCB status is UpToDate or missing.
        """
        if authenticated.status in {None, TcbStatus.UP_TO_DATE}:
            return ""
        return self._intel.explain(quote, collateral)

    # Two threads may each create one at first; either can be used.

    @unlocked_property
    def _intel(self) -> "Dcap":
        from attestkit.verifier.dcap.engine import Dcap  # lazy: only for SGX and TDX

        return Dcap(self.trust_anchor)

    @unlocked_property
    def _amd(self) -> "Snp":
        from attestkit.verifier.platforms.snp.authenticator import Snp  # lazy: only for SEV-SNP

        return Snp(
            self.trust_anchor,
            certificates=self.snp_certificates,
            crls=self.amd_crls,
        )

    @unlocked_property
    def _azure(self) -> "AzureAuthenticator":
        from attestkit.verifier.platforms.azure import AzureAuthenticator  # lazy: only for Azure

        return AzureAuthenticator(self.ak_chains, self.trust_anchor)

    @unlocked_property
    def _aws(self) -> "Nitro":
        from attestkit.verifier.platforms.nitro import Nitro  # lazy: only for Nitro

        return Nitro(self._nitro_anchor)

    @unlocked_property
    def _google(self) -> "GcpAuthenticator":
        from attestkit.verifier.platforms.gcp import GcpAuthenticator  # lazy: only for Google Cloud

        return GcpAuthenticator(self.ak_chains)

    @unlocked_property
    def ak_chains(self) -> "AkChains":
        """Verifier of certificate chains of TPM keys, under Google's roots or the trust anchor."""
        from attestkit.verifier.platforms.vtpm.ak_chain import AkChains  # lazy: only with a TPM

        roots, certificates, fetch, getter = self.ak_settings
        fetcher = None
        if fetch:
            from attestkit.collateral.issuer_fetcher import IssuerFetcher  # lazy: only for fetching

            fetcher = IssuerFetcher(getter)
        return AkChains(self.trust_anchor, roots=roots, certificates=certificates, fetcher=fetcher)


class _BundleAuthenticators(Authenticators):
    """Authenticators of an evidence bundle: those of a verifier, with what the bundle adds."""

    def __init__(
        self, base: Authenticators, amd_crls: Sequence[bytes], ak_certificates: Sequence[bytes]
    ) -> None:
        # Not the constructor of the base class, which parses its arguments.
        self.trust_anchor, self.snp_certificates = base.trust_anchor, base.snp_certificates
        self.ak_settings, self.amd_crls = base.ak_settings, base.amd_crls
        self._base = base
        self._bundled_crls, self._bundled_certificates = amd_crls, ak_certificates

    @unlocked_property
    def _intel(self) -> "Dcap":
        return self._base._intel  # noqa: SLF001 - of the base class

    @unlocked_property
    def _amd(self) -> "Snp":
        return self._base._amd.with_bundled_crls(self._bundled_crls)  # noqa: SLF001 - as above

    @unlocked_property
    def _aws(self) -> "Nitro":
        return self._base._aws  # noqa: SLF001 - of the base class

    @unlocked_property
    def ak_chains(self) -> "AkChains":
        """As in the base class, with the certificates and CRLs of the bundle."""
        return self._base.ak_chains.with_bundled(self._bundled_certificates)


def _allow_fetch() -> None:
    """Do nothing: the default for `before_fetch`, which allows every request."""


def _refuse_fetch() -> None:
    message = "AK certificate: its issuers must be fetched, but fetch is false; pass fetch=True"
    raise FetchNeededError(message, reason="fetch_needed")


def _snp_evidence(platform: Platform) -> SevSnp | None:
    """Return the SEV-SNP report of a platform, with its certificates; None without one."""
    if isinstance(platform, AzureSnp):
        from attestkit.verifier.platforms.azure import snp_evidence_of  # lazy: only for Azure

        return snp_evidence_of(platform)
    if isinstance(platform, GcpSnp):
        return SevSnp(platform.report, platform.cert_chain, "")
    return platform if isinstance(platform, SevSnp) else None


def _has_nitro_document(platform: Platform) -> bool:
    """Return whether evidence has a NitroTPM document in place of certificates of the TPM's key."""
    if not isinstance(platform, Tpm) or len(platform.vtpm_quote.ak_certificates) != 1:
        return False
    return is_nitro_document(platform.vtpm_quote.ak_certificates[0])


def _single_certificate(certificate: bytes | str) -> bytes:
    """Return the DER of a single certificate in DER or PEM."""
    if not isinstance(certificate, (bytes, str)):
        raise wrong_type("trust anchor", "bytes or str", certificate)
    data = certificate.encode("ascii", "replace") if isinstance(certificate, str) else certificate
    try:
        certificates = split_der_or_pem(data, "certificate")
        if len(certificates) != 1:
            message = f"trust anchor: must be 1 certificate, not {len(certificates)}"
            raise UsageError(message, reason="wrong_size")
        read_path_certificate(certificates[0])
    except FormatError as error:
        message = f"trust anchor: must be a valid certificate: {error}"
        raise UsageError(message, reason="wrong_value") from error
    return certificates[0]
