"""Quotes of a TPM as signed: TPMS_ATTEST and TPMT_SIGNATURE.

TPM 2.0 Library, Part 2, sections 10.12.12 and 11.3.4.
"""

from struct import Struct
from typing import Final, NamedTuple

from attestkit._crypto.der import SEQUENCE, encode_element, encode_integer
from attestkit.errors import UsageError
from attestkit.tpm.algorithms import (
    CURVE_SIZES,
    HASH_IDS,
    LARGEST_DIGEST,
    SIGNATURE_IDS,
    SIGNATURE_NAMES,
)
from attestkit.tpm.pcr_selection import PcrSelection, encode_selections, read_selections
from attestkit.tpm.reader import TpmReader, encode_number, encode_sized

MAGIC: Final = 0xFF544347  # TPM_GENERATED_VALUE: the TPM itself made the structure
QUOTE: Final = 0x8018  # TPM_ST_ATTEST_QUOTE
LARGEST_NAME: Final = 66  # bytes: a hash algorithm and a SHA-512
LARGEST_EXTRA_DATA: Final = 66  # bytes: TPM2B_DATA holds a TPMT_HA
_DIGEST_SIZES: Final = (20, 32, 48, 64)

_HEAD: Final = Struct(">IH")  # magic number and type
_CLOCK: Final = Struct(">QIIBQ")  # TPMS_CLOCK_INFO (its `safe` is 0 or 1), and firmware version

SIMULATED_FIRMWARE: Final = int.from_bytes(b"SIMULATE", "big")
"""Firmware version of the simulated TPM; swtpm behind a simulated guest has its own."""


class TpmsAttest(NamedTuple):
    """The signed content of a quote (TPMS_ATTEST); attestations of other kinds are refused."""

    qualified_signer: bytes  # qualified name of the signing key, at most 66 bytes
    extra_data: bytes  # the caller's qualifying data, at most 66 bytes
    clock_ms: int  # milliseconds that the TPM has run since it was last cleared
    reset_count: int  # resets of the TPM since it was last cleared
    restart_count: int  # shutdowns and dynamic launches since the last reset
    safe: bool  # whether the clock did not go back
    firmware_version: int  # 8 bytes
    selections: tuple[PcrSelection, ...]
    pcr_digest: bytes  # by the hash of the signature: 20 (SHA-1), 32, 48 or 64 bytes

    @property
    def is_simulated(self) -> bool:
        """Whether the firmware version is that of attestkit's simulated TPM."""
        return self.firmware_version == SIMULATED_FIRMWARE

    @classmethod
    def parse(cls, data: bytes) -> "TpmsAttest":
        """Parse `data`, an encoded TPMS_ATTEST; no bytes may follow it.

        Raises:
            FormatError: If the quote is malformed: `unrecognized` without the TPM's magic number,
                `wrong_type` for an attestation of another kind.
            UsageError: If `data` is not `bytes`.
        """
        reader = TpmReader(data, "TPMS_ATTEST")
        magic, kind = reader.unpack(_HEAD)
        if magic != MAGIC:
            problem = f"magic number must be 0x{MAGIC:08x}, not 0x{magic:08x}"
            raise reader.error(problem, "unrecognized", 0)
        if kind != QUOTE:
            problem = f"must be a quote (0x{QUOTE:04x}), not an attestation of type 0x{kind:04x}"
            raise reader.error(problem, "wrong_type", 4)
        signer = reader.sized("qualifiedSigner", LARGEST_NAME)
        extra_data = reader.sized("extraData", LARGEST_EXTRA_DATA)
        start = reader.at
        clock, resets, restarts, safe, version = reader.unpack(_CLOCK)
        if safe > 1:
            raise reader.error(f"safe must be 0 or 1, not {safe}", "wrong_value", start + 16)
        selections = read_selections(reader)
        digest = _read_digest(reader)
        reader.end()
        counts = clock, resets, restarts, bool(safe), version
        return cls(signer, extra_data, *counts, selections, digest)

    def encode(self) -> bytes:
        """Return the TPMS_ATTEST.

        Raises:
            UsageError: If a selection is invalid, or a field does not fit in its size on the wire.
        """
        return b"".join(
            (
                MAGIC.to_bytes(4, "big"),
                QUOTE.to_bytes(2, "big"),
                encode_sized(self.qualified_signer),
                encode_sized(self.extra_data),
                encode_number(self.clock_ms, 8),
                encode_number(self.reset_count, 4),
                encode_number(self.restart_count, 4),
                bytes([self.safe]),
                encode_number(self.firmware_version, 8),
                encode_selections(self.selections),
                encode_sized(self.pcr_digest),
            )
        )


def _read_digest(reader: TpmReader) -> bytes:
    start = reader.at
    digest = reader.sized("pcrDigest", LARGEST_DIGEST)
    if len(digest) not in _DIGEST_SIZES:
        problem = f"pcrDigest must have 20, 32, 48 or 64 bytes, not {len(digest)}"
        raise reader.error(problem, "wrong_size", start)
    return digest


_LARGEST_RSA: Final = 512  # bytes: RSA-4096
_LARGEST_NUMBER: Final = 48  # bytes of r and s: P-384


class TpmtSignature(NamedTuple):
    """A TPM's signature (TPMT_SIGNATURE): RSA in `signature`, ECDSA in `r` and `s`."""

    algorithm: str  # "rsassa", "rsapss" or "ecdsa"
    hash_name: str  # "sha1", "sha256", "sha384" or "sha512"
    signature: bytes = b""  # RSA: 1 to 512 bytes
    r: bytes = b""  # ECDSA: 1 to 48 bytes, big-endian, as received
    s: bytes = b""  # ECDSA: 1 to 48 bytes, big-endian, as received

    @classmethod
    def parse(cls, data: bytes) -> "TpmtSignature":
        """Parse `data`, an encoded TPMT_SIGNATURE; no bytes may follow it.

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
            # A TPM may leave out leading zeros.
            r, s = (_read_bytes(reader, number, _LARGEST_NUMBER) for number in "rs")
            found = cls(algorithm, hash_name, r=r, s=s)
        else:
            found = cls(algorithm, hash_name, _read_bytes(reader, "signature", _LARGEST_RSA))
        reader.end()
        return found

    def encode(self) -> bytes:
        """Return the TPMT_SIGNATURE.

        Raises:
            UsageError: If an algorithm is unknown, or a field has over 65,535 bytes.
        """
        if self.algorithm not in SIGNATURE_IDS or self.hash_name not in HASH_IDS:
            message = f"TPMT_SIGNATURE: unsupported: {self.algorithm!r} with {self.hash_name!r}"
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
        """Return whether r and s are no longer than the numbers of `curve`, "p256" or "p384".

        False for an RSA signature.
        """
        return self.algorithm == "ecdsa" and max(len(self.r), len(self.s)) <= CURVE_SIZES[curve]


def _read_bytes(reader: TpmReader, field: str, largest: int) -> bytes:
    start = reader.at
    found = reader.sized(field, largest)
    if not found:
        raise reader.error(f"{field} must not be empty", "missing", start)
    return found
