"""Verification of a reference integrity manifest (RIM): certificates and XML signature."""

from datetime import datetime
from typing import Final, NamedTuple

from attestkit._crypto.hashes import sha256
from attestkit._system.bounded_cache import BoundedCache
from attestkit.gpu.rim.document import read_document
from attestkit.gpu.rim.manifest import Rim, read_manifest, read_signed_manifest
from attestkit.gpu.rim.rim_path import RimPath, common_name, verify_rim_path
from attestkit.gpu.rim.xml_signature import verify_signature

KEPT_RIMS: Final = 64
"""Maximum number of verified RIMs that are kept; each takes about 130 kB with its document."""


class VerifiedRim(NamedTuple):
    """A manifest whose signature and certificate path are valid."""

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
    """Verify certificates and signature of a RIM, and read what is signed.

    Revocation is not checked. What does not depend on the time is verified once: the last 64 RIMs
    are kept.

    Args:
        rim_bytes: The XML document, at most 512 KiB.
        root: The trusted root in DER.
        now: An aware datetime.

    Raises:
        FormatError: If the document, one of its certificates or `root` is malformed.
        CollateralExpiredError: If a certificate is not valid at `now`.
        SignatureError: If the path is not valid, or the signature (`bad_signature`).
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
