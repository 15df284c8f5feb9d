"""Signatures of a TPM: TPMT_SIGNATURE (TPM 2.0 Library, Part 2, section 11.3.4)."""

from typing import Final, NamedTuple

from attestkit._crypto.der import SEQUENCE, encode_element, encode_integer
from attestkit.errors import UsageError
from attestkit.tpm.algorithms import CURVE_SIZES, HASH_IDS, SIGNATURE_IDS, SIGNATURE_NAMES
from attestkit.tpm.reader import TpmReader, encode_sized

_LARGEST_RSA: Final = 512  # bytes: RSA-4096
_LARGEST_NUMBER: Final = 48  # bytes of r and s: P-384


class TpmtSignature(NamedTuple):
    """A signature with its algorithms."""

    algorithm: str  # "rsassa", "rsapss" or "ecdsa"
    hash_name: str  # "sha1", "sha256", "sha384" or "sha512"
    signature: bytes = b""  # RSA: 1 to 512 bytes
    r: bytes = b""  # ECDSA: 1 to 48 bytes, big-endian, as received
    s: bytes = b""  # ECDSA: 1 to 48 bytes, big-endian, as received

    @classmethod
    def parse(cls, data: bytes) -> "TpmtSignature":
        """Parse a signature; no bytes may follow it.

        Raises:
            FormatError: If the signature is malformed, or of another algorithm.
            UsageError: If `data` is not `bytes`.
        """
        reader = TpmReader(data, "TPMT_SIGNATURE")
        algorithm = SIGNATURE_NAMES.get(number := reader.u16())
        if algorithm is None:
            raise reader.error(f"unsupported algorithm 0x{number:04x}", "unsupported_algorithm", 0)
        hash_name = reader.hash_name("signature")
        if algorithm == "ecdsa":
            r, s = _read_number(reader, "r"), _read_number(reader, "s")
            found = cls(algorithm, hash_name, r=r, s=s)
        else:
            found = cls(algorithm, hash_name, _read_bytes(reader, "signature", _LARGEST_RSA))
        reader.end()
        return found

    def encode(self) -> bytes:
        """Return the TPMT_SIGNATURE.

        Raises:
            UsageError: If an algorithm is unknown.
        """
        if self.algorithm not in SIGNATURE_IDS or self.hash_name not in HASH_IDS:
            message = f"TPMT_SIGNATURE: unknown algorithm {self.algorithm!r}, {self.hash_name!r}"
            raise UsageError(message, reason="unsupported_algorithm")
        ids = SIGNATURE_IDS[self.algorithm], HASH_IDS[self.hash_name]
        head = b"".join(number.to_bytes(2, "big") for number in ids)
        if self.algorithm == "ecdsa":
            return head + encode_sized(self.r) + encode_sized(self.s)
        return head + encode_sized(self.signature)

    @property
    def der(self) -> bytes:
        """The ECDSA signature as DER: `SEQUENCE { r, s }` (RFC 3279, section 2.2.3).

        Raises:
            UsageError: If the signature is not ECDSA.
        """
        if self.algorithm != "ecdsa":
            message = f"TPMT_SIGNATURE: must be ECDSA, not {self.algorithm}"
            raise UsageError(message, reason="not_applicable")
        numbers = [encode_integer(int.from_bytes(number, "big")) for number in (self.r, self.s)]
        return encode_element(SEQUENCE, b"".join(numbers))

    def fits_curve(self, curve: str) -> bool:
        """Return whether r and s are no longer than the numbers of `curve`, "p256" or "p384"."""
        return self.algorithm == "ecdsa" and max(len(self.r), len(self.s)) <= CURVE_SIZES[curve]


def _read_bytes(reader: TpmReader, field: str, largest: int) -> bytes:
    start = reader.at
    found = reader.sized(field, largest)
    if not found:
        raise reader.error(f"{field} must not be empty", "missing", start)
    return found


def _read_number(reader: TpmReader, field: str) -> bytes:
    """Read r or s. A TPM may leave out leading zeros."""
    return _read_bytes(reader, field, _LARGEST_NUMBER)
