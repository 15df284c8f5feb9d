"""The fields of a PCK certificate that `read_pck_certificate` reads."""

from typing import NamedTuple


class PckCertificateFields(NamedTuple):
    """A PCK certificate in the layout that Intel writes, not verified.

    `read_pck_certificate` returns None for every other layout, which may be valid: a general X.509
    reader decides then. Values are in the order of the DER. Neither the signature is verified, nor
    whether the point is on the curve.
    """

    serial: bytes
    """Serial number: positive, big-endian without leading zeros, 1 to 20 bytes."""
    issuer: bytes
    """Name of the Platform CA or of the Processor CA in DER, 114 or 115 bytes."""
    subject: bytes
    """Name in DER, 114 bytes, always that of `Intel SGX PCK Certificate`."""
    not_before: int
    """First valid second in Unix time, from 1950 to 9999."""
    not_after: int
    """Last valid second in Unix time, from 1950 to 9999."""
    point: bytes
    """Public key: a P-256 point in uncompressed form, 65 bytes, of which the first is 4."""
    tbs: bytes
    """The signed part, tbsCertificate, in DER."""
    signature: bytes
    """ECDSA signature with SHA-256: a SEQUENCE of r and s in DER, both positive."""
    ppid: bytes
    """16 bytes."""
    components: bytes
    """SVNs of the 16 TCB components, a byte each."""
    pcesvn: int
    """0 to 65535."""
    cpusvn: bytes
    """16 bytes."""
    pceid: bytes
    """2 bytes."""
    fmspc: bytes
    """6 bytes."""
    sgx_type: int
    """0 standard, 1 scalable, 2 scalable with integrity."""
    instance_id: bytes | None
    """16 bytes; None in a certificate with five entries in its SGX extension, as the flags."""
    dynamic_platform: bool | None
    cached_keys: bool | None
    smt_enabled: bool | None
