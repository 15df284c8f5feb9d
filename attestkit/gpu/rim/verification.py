"""Verification of a reference integrity manifest (RIM): certificates and XML signature.

The path of NVIDIA's signers has four certificates: the signer, two CAs and the root. `cryptography`
rejects them, because dates before 2050 are written as GeneralizedTime.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final, NamedTuple

from attestkit._crypto.hashes import sha256
from attestkit._crypto.x509.cert_path import (
    NamedCertificate,
    PathCertificate,
    check_path,
    check_times,
)
from attestkit._crypto.x509.names import COMMON_NAME, read_name
from attestkit._crypto.x509.path_rules import check_trusted_root, p384_rules, read_kept_certificate
from attestkit._system.bounded_cache import BoundedCache
from attestkit.errors import FormatError, SignatureError
from attestkit.gpu.rim.document import read_document
from attestkit.gpu.rim.manifest import Rim, read_manifest, read_signed_manifest
from attestkit.gpu.rim.xml_signature import verify_signature

_EXTENDED_KEY_USAGE: Final = "2.5.29.37"
_RULES: Final = p384_rules(256)
_SIGNER: Final = "RIM signer"
_ROOT: Final = "RIM root"
KEPT_RIMS: Final = 64
"""Maximum number of verified RIMs that are kept; each takes about 130 kB with its document."""


class RimPath(NamedTuple):
    """A certificate path from the signer of a RIM to the trusted root."""

    certificates: tuple[PathCertificate, ...]  # signer first, trusted root last

    @property
    def spki(self) -> bytes:
        """The signer's key: SubjectPublicKeyInfo in DER."""
        return self.certificates[0].spki

    def check_time(self, now: datetime) -> None:
        """Check that all certificates are valid at `now`, an aware datetime.

        Raises:
            CollateralExpiredError: If a certificate is not (`cert_expired`).
        """
        check_times(_named(self.certificates), now)


def verify_rim_path(certificates: Sequence[bytes], root: bytes, now: datetime) -> RimPath:
    """Verify the certificates of a RIM, from its signer up to the trusted root.

    Revocation is not checked.

    Args:
        certificates: DER, signer first, root last.
        root: The trusted root in DER. The last of `certificates` must be the same, or have its
            name and key and a signature by that key.
        now: An aware datetime.

    Raises:
        FormatError: If a certificate is malformed.
        SignatureError: If the path is not valid, or has certificates that are not part of it.
        CollateralExpiredError: If a certificate is not valid at `now`.
    """
    anchor = read_kept_certificate(root)
    *below, last = [read_kept_certificate(der) for der in certificates]
    named = ("RIM certificates: the last one", last)
    check_trusted_root(named, ("the trusted RIM root", anchor), _RULES)
    path = (*below, anchor)
    if len({one.spki for one in path}) != len(path):
        message = "RIM certificates: keys must be unique"
        raise SignatureError(message, reason="chain_length")
    check_path(_named(path), now, _RULES)
    if _EXTENDED_KEY_USAGE in path[0].extensions:
        # Such as an OCSP responder, which the signer's issuer certifies, too.
        message = f"{_SIGNER}: must not have an extended key usage"
        raise SignatureError(message, reason="cert_not_authority")
    return RimPath(path)


def common_name(certificate: PathCertificate) -> str:
    """Return the subject's common name; empty if it has none, or is malformed."""
    try:
        return read_name(certificate.subject).get(COMMON_NAME, "")
    except FormatError:
        return ""


def _named(path: Sequence[PathCertificate]) -> tuple[NamedCertificate, ...]:
    between = [f"RIM CA {number}" for number in range(1, len(path) - 1)]
    return tuple(zip((_SIGNER, *between, _ROOT), path, strict=True))


class VerifiedRim(NamedTuple):
    """A manifest whose signature and certificate path are valid; its hash, signer and validity."""

    rim: Rim  # read from the bytes that are signed
    path: RimPath
    sha256: bytes  # of the document
    signer: str  # common name
    valid_from: datetime  # the first time at which all certificates are valid
    valid_until: datetime  # the last one

    @property
    def certificates(self) -> tuple[bytes, ...]:
        """The certificates in DER: the signer's, those of CAs, and the trusted root."""
        return tuple(one.der for one in self.path.certificates)


def verify_rim(rim_bytes: bytes, root: bytes, now: datetime) -> VerifiedRim:
    """Verify certificates and signature of a RIM, and return the content that is signed.

    Revocation is not checked. The checks that do not depend on the time are cached for the last 64
    RIMs.

    Args:
        rim_bytes: The XML document, at most 512 KiB.
        root: The trusted root in DER.
        now: An aware datetime.

    Raises:
        FormatError: If the document, one of its certificates or `root` is malformed.
        CollateralExpiredError: If a certificate is not valid at `now`.
        SignatureError: If the certificate path or the signature (`bad_signature`) is not valid.
    """
    key = rim_bytes, root  # Python keeps the hash of a bytes object
    if (known := _VERIFIED.find(key)) is not None:
        if not known.valid_from <= now <= known.valid_until:
            known.path.check_time(now)
        return known
    found = _verify(rim_bytes, root, now)
    _VERIFIED.put(key, found)
    return found


def _verify(rim_bytes: bytes, root: bytes, now: datetime) -> VerifiedRim:
    document, signature, _ = read_signed_manifest(rim_bytes)
    path = verify_rim_path(signature.certificates, root, now)
    signed = verify_signature(document, signature, path.spki)
    # Parsed again, so that only what is signed is used.
    certificates = tuple(one.der for one in path.certificates)
    return VerifiedRim(
        rim=read_manifest(read_document(signed), certificates),
        path=path,
        sha256=sha256(rim_bytes),
        signer=common_name(path.certificates[0]),
        valid_from=max(one.valid_from for one in path.certificates),
        valid_until=min(one.valid_until for one in path.certificates),
    )


_VERIFIED: Final = BoundedCache[tuple[bytes, bytes], VerifiedRim](KEPT_RIMS)  # by document and root
