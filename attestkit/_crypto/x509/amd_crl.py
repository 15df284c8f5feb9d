"""CRLs of AMD's roots (ARK), as the key distribution service has them for each product line.

AMD publishes a list for VCEKs and one for VLEKs (`/vcek/v1/<product>/crl` and `/vlek/v1/...`), both
signed by the ARK and with its name, in "Versioned Chip Endorsement Key (VCEK) Certificate and KDS
Interface Specification" (57230).
"""

from typing import Final, NamedTuple

from attestkit._crypto.pem import CRL_LABEL, split_der_or_pem
from attestkit._crypto.x509.crl import Crl, SignedCrl, read_crl_content, read_signed_crl
from attestkit.errors import FormatError

MAX_CRL_SIZE: Final = 262_144
"""Bytes of a CRL; a list without entries has under 1,000, an entry about 35."""

_MAX_CRLS: Final = 32  # in one file: two for each product line are needed


class AmdCrl(NamedTuple):
    """A parsed CRL, whose signature `check_crl_signature` verifies."""

    envelope: SignedCrl
    content: Crl


def read_amd_crls(data: bytes) -> tuple[AmdCrl, ...]:
    """Parse a CRL in DER, or one or more in PEM ("X509 CRL").

    Raises:
        FormatError: If a CRL is malformed or exceeds 262,144 bytes, or there are more than 32.
    """
    if len(data) > 2 * MAX_CRL_SIZE * _MAX_CRLS:
        raise FormatError(f"CRLs: {len(data)} bytes, too many", reason="too_large")
    found = split_der_or_pem(data, "CRL", (CRL_LABEL,))
    if len(found) > _MAX_CRLS:
        raise FormatError(f"CRLs: {len(found)}, at most {_MAX_CRLS}", reason="too_many")
    return tuple(map(_read, found))


def _read(der: bytes) -> AmdCrl:
    if len(der) > MAX_CRL_SIZE:
        raise FormatError(f"CRL: {len(der)} bytes, at most {MAX_CRL_SIZE}", reason="too_large")
    try:
        return AmdCrl(read_signed_crl(der), read_crl_content(der))
    except FormatError as error:
        message = f"malformed CRL: {error.message}"
        raise FormatError(message, offset=error.offset, reason=error.reason) from error
