"""Public keys of a TPM: TPMT_PUBLIC (TPM 2.0 Library, Part 2, section 12.2.4), and their names.

A hierarchy makes the same primary key of a template every time.
"""

from typing import Final, NamedTuple

from attestkit._crypto.der import BIT_STRING, SEQUENCE, encode_element
from attestkit._crypto.public_key import encode_rsa_spki
from attestkit.errors import FormatError, SignatureError, UsageError
from attestkit.tpm import algorithms as alg
from attestkit.tpm.reader import TpmReader, encode_number, encode_sized

FIXED_TPM: Final = 1 << 1
FIXED_PARENT: Final = 1 << 4
SENSITIVE_DATA_ORIGIN: Final = 1 << 5
USER_WITH_AUTH: Final = 1 << 6
ADMIN_WITH_POLICY: Final = 1 << 7
NO_DA: Final = 1 << 10
RESTRICTED: Final = 1 << 16
DECRYPT: Final = 1 << 17
SIGN: Final = 1 << 18

_RESERVED_BITS: Final = 0xFFF0_F009  # not in TPMA_OBJECT up to version 1.83 of the library
TYPE_NAMES: Final = {alg.ALG_RSA: "rsa", alg.ALG_ECC: "ecc"}
_TYPE_IDS: Final = {name: number for number, name in TYPE_NAMES.items()}
RSA_SCHEMES: Final = {
    alg.ALG_RSASSA: "rsassa",
    alg.ALG_RSAES: "rsaes",
    alg.ALG_RSAPSS: "rsapss",
    alg.ALG_OAEP: "oaep",
}
_ECC_SCHEMES: Final = {alg.ALG_ECDSA: "ecdsa"}
_SCHEME_IDS: Final = {name: number for number, name in (RSA_SCHEMES | _ECC_SCHEMES).items()}
_RSA_BITS: Final = (1024, 2048, 3072, 4096)
_AES_BITS: Final = (128, 192, 256)

# AlgorithmIdentifier of SubjectPublicKeyInfo: RFC 5480, section 2.1.1.
_EC_ALGORITHMS: Final = {
    "p256": bytes.fromhex("301306072a8648ce3d020106082a8648ce3d030107"),
    "p384": bytes.fromhex("301006072a8648ce3d020106052b81040022"),
}

_REQUIRED: Final = (
    (RESTRICTED, "restricted"),
    (SIGN, "sign"),
    (FIXED_TPM, "fixedTPM"),
    (SENSITIVE_DATA_ORIGIN, "sensitiveDataOrigin"),
)


class TpmtPublic(NamedTuple):
    """A public key with its attributes, or a template, whose key is empty or zeros."""

    type: str  # "rsa" or "ecc"
    name_alg: str  # hash of its name
    attributes: int  # TPMA_OBJECT
    policy: bytes = b""  # authPolicy: empty, or a digest of name_alg
    symmetric: int = 0  # bits of AES in CFB mode of a storage key; 0: none
    scheme: str = ""  # "rsassa", "rsapss", "rsaes", "oaep" or "ecdsa"; empty: none
    scheme_hash: str = ""  # empty with "rsaes" or without a scheme
    bits: int = 0  # RSA: 1024, 2048, 3072 or 4096
    exponent: int = 0  # RSA, as on the wire: 0 is 65537
    modulus: bytes = b""  # RSA: empty, or bits / 8 bytes
    curve: str = ""  # ECC: "p256" or "p384"
    x: bytes = b""  # ECC: at most 32 or 48 bytes
    y: bytes = b""  # ECC: at most 32 or 48 bytes

    @classmethod
    def parse(cls, data: bytes) -> "TpmtPublic":
        """Parse `data`, an encoded TPMT_PUBLIC; no bytes may follow it.

        Raises:
            FormatError: If the public area is malformed, or has an unsupported algorithm.
            UsageError: If `data` is not `bytes`.
        """
        reader = TpmReader(data, "TPMT_PUBLIC")
        kind = TYPE_NAMES.get(number := reader.u16())
        if kind is None:
            problem = f"type must be RSA or ECC, not 0x{number:04x}"
            raise reader.error(problem, "unsupported_algorithm", 0)
        name_alg = reader.hash_name("nameAlg")
        attributes = reader.u32()
        if reserved := attributes & _RESERVED_BITS:
            problem = f"reserved attributes must be 0, not 0x{reserved:08x}"
            raise reader.error(problem, "wrong_value", 4)
        policy = _read_digest(reader, name_alg)
        symmetric = _read_symmetric(reader)
        is_rsa = kind == "rsa"
        scheme, scheme_hash = _read_scheme(reader, RSA_SCHEMES if is_rsa else _ECC_SCHEMES)
        found = cls(kind, name_alg, attributes, policy, symmetric, scheme, scheme_hash)
        found = _read_rsa(reader, found) if is_rsa else _read_ecc(reader, found)
        reader.end()
        return found

    def encode(self) -> bytes:
        """Return the TPMT_PUBLIC.

        Raises:
            UsageError: If the type, an algorithm or the curve is unknown, or a field does not fit
                in its size on the wire.
        """
        if self.type not in _TYPE_IDS:
            message = f"TPMT_PUBLIC: type must be rsa or ecc, not {self.type!r}"
            raise UsageError(message, reason="wrong_value")
        parts = [
            _u16(_TYPE_IDS[self.type]),
            _hash_id(self.name_alg),
            encode_number(self.attributes, 4),
            encode_sized(self.policy),
            self._encode_symmetric(),
            self._encode_scheme(),
            self._encode_key(),
        ]
        return b"".join(parts)

    @property
    def name(self) -> bytes:
        """The name of the key: identifier of nameAlg (2 bytes), and digest of the public area.

        Raises:
            UsageError: As `encode`.
        """
        return _hash_id(self.name_alg) + alg.compute_digest(self.name_alg, self.encode())

    def qualified_name(self, hierarchy: int) -> bytes:
        """Return the qualified name of this key, if it is a primary key of `hierarchy`.

        Quotes of the key have it as `qualified_signer`. `hierarchy` is a handle, such as
        0x4000000B (endorsement).

        Raises:
            UsageError: As `encode`.
        """
        content = encode_number(hierarchy, 4) + self.name
        return _hash_id(self.name_alg) + alg.compute_digest(self.name_alg, content)

    @property
    def public_exponent(self) -> int:
        """The RSA exponent, 65537 if the public area has 0."""
        return self.exponent or 65537

    @property
    def has_key(self) -> bool:
        """Whether this contains a public key; False for a template."""
        return any(self.modulus) or any(self.x)

    @property
    def spki(self) -> bytes:
        """The key as SubjectPublicKeyInfo in DER.

        Raises:
            FormatError: If this is a template without a key.
        """
        if not self.has_key:
            raise FormatError("TPMT_PUBLIC: template without a key", reason="missing")
        if self.type == "rsa":
            return encode_rsa_spki(self.modulus, self.public_exponent)
        size = alg.CURVE_SIZES[self.curve]
        point = b"\x04" + self.x.rjust(size, b"\0") + self.y.rjust(size, b"\0")
        key = encode_element(BIT_STRING, b"\0" + point)
        return encode_element(SEQUENCE, _EC_ALGORITHMS[self.curve] + key)

    def require_attestation_key(self) -> None:
        """Check that the key signs only data that the TPM made, and cannot leave the TPM.

        Raises:
            SignatureError: If it is not restricted, does not sign, may leave the TPM, was not
                generated by the TPM, or decrypts (`ak_attributes`).
        """
        missing = [name for bit, name in _REQUIRED if not self.attributes & bit]
        problem = f"lacks {', '.join(missing)}" if missing else ""
        if self.attributes & DECRYPT:
            problem += f"{' and ' if problem else ''}has decrypt"
        if problem:
            raise SignatureError(
                f"attestation key: attributes 0x{self.attributes:08x}: {problem}; use a "
                "restricted signing key that the TPM generated",
                reason="ak_attributes",
            )

    def _encode_symmetric(self) -> bytes:
        if not self.symmetric:
            return _u16(alg.ALG_NULL)
        return _u16(alg.ALG_AES) + _u16(self.symmetric) + _u16(alg.ALG_CFB)

    def _encode_scheme(self) -> bytes:
        if not self.scheme:
            return _u16(alg.ALG_NULL)
        if self.scheme not in _SCHEME_IDS:
            message = f"TPMT_PUBLIC: unknown scheme {self.scheme!r}"
            raise UsageError(message, reason="unsupported_algorithm")
        number = _u16(_SCHEME_IDS[self.scheme])
        return number if self.scheme == "rsaes" else number + _hash_id(self.scheme_hash)

    def _encode_key(self) -> bytes:
        if self.type == "rsa":
            return _u16(self.bits) + encode_number(self.exponent, 4) + encode_sized(self.modulus)
        if self.curve not in alg.CURVE_IDS:
            message = f"TPMT_PUBLIC: unknown curve {self.curve!r}"
            raise UsageError(message, reason="unsupported_algorithm")
        head = _u16(alg.CURVE_IDS[self.curve]) + _u16(alg.ALG_NULL)  # without a key derivation
        return head + encode_sized(self.x) + encode_sized(self.y)


def _read_digest(reader: TpmReader, name_alg: str) -> bytes:
    start = reader.at
    policy = reader.sized("authPolicy", alg.hash_size(name_alg))
    if len(policy) not in (0, alg.hash_size(name_alg)):
        problem = (
            f"authPolicy must be empty or have {alg.hash_size(name_alg)} bytes, not {len(policy)}"
        )
        raise reader.error(problem, "wrong_size", start)
    return policy


def _read_symmetric(reader: TpmReader) -> int:
    start = reader.at
    if (number := reader.u16()) == alg.ALG_NULL:
        return 0
    if number != alg.ALG_AES:
        problem = f"unsupported symmetric algorithm 0x{number:04x}"
        raise reader.error(problem, "unsupported_algorithm", start)
    bits, mode = reader.u16(), reader.u16()
    if bits not in _AES_BITS or mode != alg.ALG_CFB:
        problem = f"unsupported AES: {bits} bits, mode 0x{mode:04x}"
        raise reader.error(problem, "unsupported_algorithm", start)
    return bits


def _read_scheme(reader: TpmReader, names: dict[int, str]) -> tuple[str, str]:
    """Read a scheme; return its name, such as "rsassa", and that of its hash, or empty strings.

    `names` has the names of the supported schemes by their identifiers.
    """
    start = reader.at
    if (number := reader.u16()) == alg.ALG_NULL:
        return "", ""
    if number not in names:
        raise reader.error(f"unsupported scheme 0x{number:04x}", "unsupported_algorithm", start)
    return names[number], "" if number == alg.ALG_RSAES else reader.hash_name("scheme")


def _read_rsa(reader: TpmReader, found: TpmtPublic) -> TpmtPublic:
    start = reader.at
    bits = reader.u16()
    if bits not in _RSA_BITS:
        problem = f"RSA keys of {bits} bits are not supported"
        raise reader.error(problem, "unsupported_algorithm", start)
    exponent = reader.u32()
    start = reader.at
    modulus = reader.sized("modulus", bits // 8)
    if len(modulus) not in (0, bits // 8):
        problem = f"modulus must be empty or have {bits // 8} bytes, not {len(modulus)}"
        raise reader.error(problem, "wrong_size", start)
    return found._replace(bits=bits, exponent=exponent, modulus=modulus)


def _read_ecc(reader: TpmReader, found: TpmtPublic) -> TpmtPublic:
    start = reader.at
    curve = alg.CURVE_NAMES.get(number := reader.u16())
    if curve is None:
        raise reader.error(f"unsupported curve 0x{number:04x}", "unsupported_algorithm", start)
    start = reader.at
    if (kdf := reader.u16()) != alg.ALG_NULL:
        problem = f"unsupported key derivation 0x{kdf:04x}"
        raise reader.error(problem, "unsupported_algorithm", start)
    size = alg.CURVE_SIZES[curve]
    return found._replace(curve=curve, x=reader.sized("x", size), y=reader.sized("y", size))


def _u16(number: int) -> bytes:
    return encode_number(number, 2)


def _hash_id(name: str) -> bytes:
    alg.hash_size(name)  # raises for an unknown hash
    return _u16(alg.HASH_IDS[name])


_BOUND_TO_TPM: Final = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | RESTRICTED

RSA_AK: Final = TpmtPublic(
    "rsa",
    "sha256",
    _BOUND_TO_TPM | USER_WITH_AUTH | NO_DA | SIGN,
    scheme="rsassa",
    scheme_hash="sha256",
    bits=2048,
)
"""RSA attestation key, as of Azure and Confidential Containers."""

ECC_AK: Final = TpmtPublic(
    "ecc",
    "sha256",
    _BOUND_TO_TPM | USER_WITH_AUTH | SIGN,
    scheme="ecdsa",
    scheme_hash="sha256",
    curve="p256",
)
"""ECC attestation key, as of Google."""

_EK_POLICY: Final = bytes.fromhex(
    "837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa"  # TPM2_PolicySecret
)

RSA_EK: Final = TpmtPublic(
    "rsa",
    "sha256",
    _BOUND_TO_TPM | ADMIN_WITH_POLICY | DECRYPT,
    policy=_EK_POLICY,
    symmetric=128,
    bits=2048,
    modulus=bytes(256),
)
"""Default endorsement key: RSA-2048, template L-1 of TCG's EK profile."""

ECC_EK: Final = TpmtPublic(
    "ecc",
    "sha256",
    _BOUND_TO_TPM | ADMIN_WITH_POLICY | DECRYPT,
    policy=_EK_POLICY,
    symmetric=128,
    curve="p256",
    x=bytes(32),
    y=bytes(32),
)
"""Default endorsement key: P-256, template L-2 of TCG's EK profile."""

RSA_SRK: Final = TpmtPublic(
    "rsa",
    "sha256",
    _BOUND_TO_TPM | USER_WITH_AUTH | NO_DA | DECRYPT,
    symmetric=128,
    bits=2048,
    modulus=bytes(256),
)
"""Storage root key: RSA-2048, template H-1 of TCG's provisioning guidance."""
