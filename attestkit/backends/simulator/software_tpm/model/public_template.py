"""Templates of keys: TPMT_PUBLIC of a command, with the checks and codes of a TPM.

TPM 2.0 Library, Part 2, section 12.2; Part 3, section 24.1. Keys are RSA-2048, P-256 and P-384.
"""

from typing import Final, NamedTuple

from attestkit.backends.simulator.software_tpm.model.command_reader import (
    CommandReader,
    TpmResponseError,
    parameter_error,
)
from attestkit.tpm import TpmtPublic, public_area
from attestkit.tpm import algorithms as alg
from attestkit.tpm import response_codes as codes

ENCRYPTED_DUPLICATION: Final = 1 << 11
ST_CLEAR: Final = 1 << 2
_RESERVED: Final = 0xFFF0F309
_LARGEST_RSA: Final = 384  # MAX_RSA_KEY_BYTES of libtpms
_LARGEST_COORDINATE: Final = 80  # MAX_ECC_KEY_BYTES of libtpms
_KDFS: Final = (0x07, 0x20, 0x21, 0x22)  # with a hash; no primary key here has one
_AES_BITS: Final = (128, 256)
_AES_MODES: Final = range(0x40, 0x45)
_SIGNING: Final = ("rsassa", "rsapss", "ecdsa")
_DECRYPTING: Final = ("rsaes", "oaep")
_TEMPLATE: Final = 2  # number of the parameter


class KeyTemplate(NamedTuple):
    """A template as it was read."""

    public: TpmtPublic
    has_kdf: bool = False  # a key derivation, which TpmtPublic does not have


def read_template(reader: CommandReader) -> KeyTemplate:
    """Read TPMT_PUBLIC of a template."""
    kind = public_area.TYPE_NAMES.get(reader.u16())
    if kind is None:
        raise reader.error(codes.RC_TYPE)
    name_alg = reader.hash_name()
    attributes = reader.u32()
    if attributes & _RESERVED:
        raise reader.error(codes.RC_RESERVED_BITS)
    policy = reader.sized(alg.LARGEST_DIGEST)
    found = TpmtPublic(kind, name_alg, attributes, policy, symmetric=_read_symmetric(reader))
    return _read_rsa(reader, found) if kind == "rsa" else _read_ecc(reader, found)


def _read_symmetric(reader: CommandReader) -> int:
    algorithm = reader.u16()
    if algorithm == alg.ALG_NULL:
        return 0
    if algorithm != alg.ALG_AES:
        raise reader.error(codes.RC_SYMMETRIC)
    bits = reader.u16()
    if bits not in _AES_BITS:
        raise reader.error(codes.RC_VALUE)
    mode = reader.u16()
    if mode not in _AES_MODES:
        raise reader.error(codes.RC_MODE)
    if mode != alg.ALG_CFB:  # a TPM also has the others, which no storage key uses
        raise reader.error(codes.RC_SYMMETRIC)
    return bits


def _read_rsa(reader: CommandReader, found: TpmtPublic) -> KeyTemplate:
    scheme, scheme_hash = reader.u16(), ""
    if scheme != alg.ALG_NULL and scheme not in public_area.RSA_SCHEMES:
        raise reader.error(codes.RC_VALUE)
    if scheme not in (alg.ALG_NULL, alg.ALG_RSAES):
        scheme_hash = reader.hash_name()
    bits = reader.u16()
    if bits != 2048:
        raise reader.error(codes.RC_VALUE)
    exponent = reader.u32()
    modulus = reader.sized(_LARGEST_RSA)
    name = public_area.RSA_SCHEMES.get(scheme, "")
    public = found._replace(
        scheme=name, scheme_hash=scheme_hash, bits=bits, exponent=exponent, modulus=modulus
    )
    return KeyTemplate(public)


def _read_ecc(reader: CommandReader, found: TpmtPublic) -> KeyTemplate:
    scheme, scheme_hash = reader.u16(), ""
    if scheme not in (alg.ALG_NULL, alg.ALG_ECDSA):
        raise reader.error(codes.RC_SCHEME)
    if scheme == alg.ALG_ECDSA:
        scheme_hash = reader.hash_name()
    curve = alg.CURVE_NAMES.get(reader.u16())
    if curve is None:
        raise reader.error(codes.RC_CURVE)
    kdf = reader.u16()
    if kdf in _KDFS:
        reader.hash_name()
    elif kdf != alg.ALG_NULL:
        raise reader.error(codes.RC_KDF)
    x, y = reader.sized(_LARGEST_COORDINATE), reader.sized(_LARGEST_COORDINATE)
    name = "ecdsa" if scheme == alg.ALG_ECDSA else ""
    public = found._replace(scheme=name, scheme_hash=scheme_hash, curve=curve, x=x, y=y)
    return KeyTemplate(public, has_kdf=kdf != alg.ALG_NULL)


def check_template(template: KeyTemplate) -> None:
    """Check a template of a primary key whose sensitive data is the TPM's."""
    public = template.public
    code = _template_problem(public)
    if code is None and template.has_kdf:
        code = codes.RC_KDF
    if code is not None:
        raise parameter_error(code, _TEMPLATE)
    if public.type == "rsa" and public.exponent not in (0, 65537):
        raise TpmResponseError(codes.RC_RANGE)


def _template_problem(template: TpmtPublic) -> int | None:
    attributes = template.attributes
    if not attributes & public_area.SENSITIVE_DATA_ORIGIN:
        return codes.RC_ATTRIBUTES
    if len(template.policy) not in (0, alg.hash_size(template.name_alg)):
        return codes.RC_SIZE
    if bool(attributes & public_area.FIXED_TPM) != bool(attributes & public_area.FIXED_PARENT):
        return codes.RC_ATTRIBUTES
    signs, decrypts = bool(attributes & public_area.SIGN), bool(attributes & public_area.DECRYPT)
    if signs == decrypts and (attributes & public_area.RESTRICTED or not signs):
        return codes.RC_ATTRIBUTES
    if attributes & public_area.FIXED_TPM and attributes & ENCRYPTED_DUPLICATION:
        return codes.RC_ATTRIBUTES
    return _scheme_problem(template, signs=signs, decrypts=decrypts)


def _scheme_problem(template: TpmtPublic, *, signs: bool, decrypts: bool) -> int | None:
    restricted = bool(template.attributes & public_area.RESTRICTED)
    scheme = template.scheme
    storage = restricted and decrypts
    if not scheme:
        if restricted and signs:
            return codes.RC_SCHEME
    elif (
        storage
        or (signs and decrypts)
        or (signs and scheme not in _SIGNING)
        or (decrypts and scheme not in _DECRYPTING)
    ):
        return codes.RC_SCHEME
    return codes.RC_SYMMETRIC if bool(template.symmetric) != storage else None
