"""Templates of keys: TPMT_PUBLIC of a command, with the checks and codes of a TPM.

TPM 2.0 Library, Part 2, section 12.2; Part 3, section 24.1. Keys are RSA-2048, P-256 and P-384.
"""

from typing import Final, NamedTuple

from attestkit.backends.simulator.software_tpm.model.command_reader import CommandReader
from attestkit.backends.simulator.software_tpm.model.response_error import (
    TpmResponseError,
    parameter_error,
)
from attestkit.tpm import TpmtPublic
from attestkit.tpm.algorithms import (
    ALG_AES,
    ALG_CFB,
    ALG_ECC,
    ALG_ECDSA,
    ALG_NULL,
    ALG_OAEP,
    ALG_RSA,
    ALG_RSAES,
    ALG_RSAPSS,
    ALG_RSASSA,
    CURVE_NAMES,
    LARGEST_DIGEST,
    hash_size,
)
from attestkit.tpm.public_area import (
    DECRYPT,
    FIXED_PARENT,
    FIXED_TPM,
    RESTRICTED,
    SENSITIVE_DATA_ORIGIN,
    SIGN,
)
from attestkit.tpm.response_codes import (
    RC_ATTRIBUTES,
    RC_CURVE,
    RC_KDF,
    RC_MODE,
    RC_RANGE,
    RC_RESERVED_BITS,
    RC_SCHEME,
    RC_SIZE,
    RC_SYMMETRIC,
    RC_TYPE,
    RC_VALUE,
)

ENCRYPTED_DUPLICATION: Final = 1 << 11
ST_CLEAR: Final = 1 << 2
_RESERVED: Final = 0xFFF0F309
_LARGEST_RSA: Final = 384  # MAX_RSA_KEY_BYTES of libtpms
_LARGEST_COORDINATE: Final = 80  # MAX_ECC_KEY_BYTES of libtpms
_KDFS: Final = (0x07, 0x20, 0x21, 0x22)  # with a hash; no primary key here has one
_AES_BITS: Final = (128, 256)
_AES_MODES: Final = range(0x40, 0x45)
_RSA_SCHEMES: Final = {
    ALG_RSASSA: "rsassa",
    ALG_RSAES: "rsaes",
    ALG_RSAPSS: "rsapss",
    ALG_OAEP: "oaep",
}
_SIGNING: Final = ("rsassa", "rsapss", "ecdsa")
_DECRYPTING: Final = ("rsaes", "oaep")
_TEMPLATE: Final = 2  # number of the parameter


class KeyTemplate(NamedTuple):
    """A template as it was read."""

    public: TpmtPublic
    has_kdf: bool = False  # a key derivation, which TpmtPublic does not have


def read_template(reader: CommandReader) -> KeyTemplate:
    """Read TPMT_PUBLIC of a template."""
    kinds = {ALG_RSA: "rsa", ALG_ECC: "ecc"}
    kind = kinds.get(reader.u16())
    if kind is None:
        raise reader.error(RC_TYPE)
    name_alg = reader.hash_name()
    attributes = reader.u32()
    if attributes & _RESERVED:
        raise reader.error(RC_RESERVED_BITS)
    policy = reader.sized(LARGEST_DIGEST)
    found = TpmtPublic(kind, name_alg, attributes, policy, symmetric=_read_symmetric(reader))
    return _read_rsa(reader, found) if kind == "rsa" else _read_ecc(reader, found)


def _read_symmetric(reader: CommandReader) -> int:
    algorithm = reader.u16()
    if algorithm == ALG_NULL:
        return 0
    if algorithm != ALG_AES:
        raise reader.error(RC_SYMMETRIC)
    bits = reader.u16()
    if bits not in _AES_BITS:
        raise reader.error(RC_VALUE)
    mode = reader.u16()
    if mode not in _AES_MODES:
        raise reader.error(RC_MODE)
    if mode != ALG_CFB:  # a TPM also has the others, which no storage key uses
        raise reader.error(RC_SYMMETRIC)
    return bits


def _read_rsa(reader: CommandReader, found: TpmtPublic) -> KeyTemplate:
    scheme, scheme_hash = reader.u16(), ""
    if scheme != ALG_NULL and scheme not in _RSA_SCHEMES:
        raise reader.error(RC_VALUE)
    if scheme not in (ALG_NULL, ALG_RSAES):
        scheme_hash = reader.hash_name()
    bits = reader.u16()
    if bits != 2048:
        raise reader.error(RC_VALUE)
    exponent = reader.u32()
    modulus = reader.sized(_LARGEST_RSA)
    name = _RSA_SCHEMES.get(scheme, "")
    public = found._replace(
        scheme=name, scheme_hash=scheme_hash, bits=bits, exponent=exponent, modulus=modulus
    )
    return KeyTemplate(public)


def _read_ecc(reader: CommandReader, found: TpmtPublic) -> KeyTemplate:
    scheme, scheme_hash = reader.u16(), ""
    if scheme not in (ALG_NULL, ALG_ECDSA):
        raise reader.error(RC_SCHEME)
    if scheme == ALG_ECDSA:
        scheme_hash = reader.hash_name()
    curve = CURVE_NAMES.get(reader.u16())
    if curve is None:
        raise reader.error(RC_CURVE)
    kdf = reader.u16()
    if kdf in _KDFS:
        reader.hash_name()
    elif kdf != ALG_NULL:
        raise reader.error(RC_KDF)
    x, y = reader.sized(_LARGEST_COORDINATE), reader.sized(_LARGEST_COORDINATE)
    name = "ecdsa" if scheme == ALG_ECDSA else ""
    public = found._replace(scheme=name, scheme_hash=scheme_hash, curve=curve, x=x, y=y)
    return KeyTemplate(public, has_kdf=kdf != ALG_NULL)


def check_template(template: KeyTemplate) -> None:
    """Check a template of a primary key whose sensitive data is the TPM's."""
    public = template.public
    code = _template_problem(public)
    if code is None and template.has_kdf:
        code = RC_KDF
    if code is not None:
        raise parameter_error(code, _TEMPLATE)
    if public.type == "rsa" and public.exponent not in (0, 65537):
        raise TpmResponseError(RC_RANGE)


def _template_problem(template: TpmtPublic) -> int | None:
    attributes = template.attributes
    if not attributes & SENSITIVE_DATA_ORIGIN:
        return RC_ATTRIBUTES
    if len(template.policy) not in (0, hash_size(template.name_alg)):
        return RC_SIZE
    if bool(attributes & FIXED_TPM) != bool(attributes & FIXED_PARENT):
        return RC_ATTRIBUTES
    signs, decrypts = bool(attributes & SIGN), bool(attributes & DECRYPT)
    if signs == decrypts and (attributes & RESTRICTED or not signs):
        return RC_ATTRIBUTES
    if attributes & FIXED_TPM and attributes & ENCRYPTED_DUPLICATION:
        return RC_ATTRIBUTES
    return _scheme_problem(template, signs=signs, decrypts=decrypts)


def _scheme_problem(template: TpmtPublic, *, signs: bool, decrypts: bool) -> int | None:
    restricted = bool(template.attributes & RESTRICTED)
    scheme = template.scheme
    storage = restricted and decrypts
    if not scheme:
        if restricted and signs:
            return RC_SCHEME
    elif (
        storage
        or (signs and decrypts)
        or (signs and scheme not in _SIGNING)
        or (decrypts and scheme not in _DECRYPTING)
    ):
        return RC_SCHEME
    return RC_SYMMETRIC if bool(template.symmetric) != storage else None
