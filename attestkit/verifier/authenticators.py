"""The makers' roots, or the one root that takes their place: who vouches for which platform.

Each platform's authenticator is made when it is first needed and lives as long as its Verifier;
what they cache is theirs, so nothing is ever shared between two trust anchors.
"""

from binascii import Error as Base64Error
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from attestkit._crypto.pem import split_pem
from attestkit._crypto.x509.app_certificates import read_certificate
from attestkit.attestation.wire.evidence_parts import NitroEnclave, SevSnp
from attestkit.collateral import Collateral
from attestkit.errors import CollateralError, FormatError, UsageError
from attestkit.quote import Quote
from attestkit.verifier.evidence_checks import Parcel
from attestkit.verifier.result import Authenticated, TcbStatus

if TYPE_CHECKING:
    from attestkit.verifier.dcap.authenticate import Dcap
    from attestkit.verifier.platforms.nitro import Nitro
    from attestkit.verifier.platforms.snp import Snp

__all__ = ["Makers"]


class Makers:
    """Intel, AMD and AWS, each by its own root or all by one that was handed in."""

    def __init__(
        self, trust_anchor: bytes | str | None, snp_certificates: Sequence[bytes] = ()
    ) -> None:
        """Take the root, DER or PEM, None for the makers' own, and certificates of AMD's.

        Raises:
            UsageError: It is not one certificate.
        """
        self.trust_anchor: bytes | None = (
            None if trust_anchor is None else _one_certificate(trust_anchor)
        )
        self.snp_certificates: tuple[bytes, ...] = tuple(snp_certificates)
        self._dcap: Dcap | None = None
        self._snp: Snp | None = None
        self._nitro: Nitro | None = None

    def authenticate(
        self, parcel: Parcel, collateral: Collateral | None, now: datetime, *, details: bool
    ) -> Authenticated:
        """Return what the platform's maker vouches for.

        Raises:
            VerificationError: It does not.
            CollateralError: Intel's word is needed, and missing or malformed.
        """
        if (quote := parcel.quote) is not None:
            if collateral is None:
                raise CollateralError(
                    "a quote of Intel's needs collateral: hand it in, or name a PCCS to fetch it"
                )
            seconds = int(now.timestamp())
            return self._intel().authenticate(quote, collateral, seconds, details=details)
        assert parcel.attestation is not None
        platform = parcel.attestation.evidence.platform
        if isinstance(platform, SevSnp):
            return self._amd().authenticate(platform, now)
        assert isinstance(platform, NitroEnclave)
        return self._aws().authenticate(platform.nsm_quote, now)

    def vouch(self, quote: Quote, pck_certificate_chain: str | None, now: datetime) -> None:
        """Check of a quote of Intel's what needs no collateral; see `Dcap.vouch`."""
        self._intel().vouch(quote, pck_certificate_chain, int(now.timestamp()))

    def genuine(self, parcel: Parcel) -> bool:
        """Tell whether the root in use for the parcel's platform has the maker's own key."""
        if parcel.quote is not None:
            return self._intel().genuine
        assert parcel.attestation is not None
        platform = parcel.attestation.evidence.platform
        return (self._amd() if isinstance(platform, SevSnp) else self._aws()).genuine

    def explain(self, authenticated: Authenticated, quote: Quote, collateral: Collateral) -> str:
        """Return a sentence on what an outdated platform lacks; empty if it is up to date."""
        if authenticated.status in {None, TcbStatus.UP_TO_DATE}:
            return ""
        from attestkit.verifier.dcap.tcb_levels import shortfall  # late: few need it

        return shortfall(collateral, quote)

    # Two threads may each make one at first: either is as good.

    def _intel(self) -> "Dcap":
        if self._dcap is None:
            from attestkit.verifier.dcap.authenticate import (
                Dcap,  # late: an extra, and slow to import
            )

            self._dcap = Dcap(self.trust_anchor)
        return self._dcap

    def _amd(self) -> "Snp":
        if self._snp is None:
            from attestkit.verifier.platforms.snp import Snp  # late: most evidence is Intel's

            self._snp = Snp(self.trust_anchor, certificates=self.snp_certificates)
        return self._snp

    def _aws(self) -> "Nitro":
        if self._nitro is None:
            from attestkit.verifier.platforms.nitro import Nitro  # late: the same

            self._nitro = Nitro(self.trust_anchor)
        return self._nitro


def _one_certificate(given: bytes | str) -> bytes:
    """Return the DER of a root in DER or PEM."""
    if not isinstance(given, (bytes, str)):
        raise UsageError(f"a trust anchor is bytes or text, not {type(given).__name__}")
    try:
        if isinstance(given, str) or given.lstrip().startswith(b"-----"):
            text = given if isinstance(given, str) else given.decode("ascii")
            certificates = split_pem(text)
        else:
            certificates = [given]
        if len(certificates) != 1:
            raise UsageError(f"a trust anchor is one certificate, not {len(certificates)}")
        read_certificate(certificates[0])
    except (FormatError, UnicodeDecodeError, Base64Error) as error:
        raise UsageError(f"the trust anchor is no certificate: {error}") from error
    return certificates[0]
