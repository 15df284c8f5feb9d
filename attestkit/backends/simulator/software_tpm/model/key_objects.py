"""Primary keys derived from seeds of the hierarchies, and their templates (TPMT_PUBLIC).

Keys are RSA-2048, P-256 and P-384, in transient slots and at persistent handles. Templates are
checked with the codes of a TPM (TPM 2.0 Library, Part 2, section 12.2; Part 3, section 24.1).
"""

import hmac
from functools import lru_cache, partial
from typing import Final, NamedTuple

from attestkit._crypto.hashes import hkdf_sha256, sha256
from attestkit._crypto.key_pairs import EcKeyPair, RsaKeyPair
from attestkit.backends.simulator.software_tpm.model import command_reader
from attestkit.tpm import TpmtPublic, public_area
from attestkit.tpm import algorithms as alg
from attestkit.tpm import response_codes as codes
from attestkit.tpm.handles import FIRST_TRANSIENT, NULL

TRANSIENT_SLOTS: Final = 3  # as libtpms
PERSISTENT_SLOTS: Final = 64

_SALT: Final = b"attestkit/software-tpm/v1"


# Creating an RSA key takes 50 ms, and machines of one seed have the same keys.
_rsa_pair: Final = lru_cache(maxsize=64)(partial(RsaKeyPair, bits=2048))
_ec_pair: Final = lru_cache(maxsize=64)(EcKeyPair)


class PrimaryKey(NamedTuple):
    """A primary key: its hierarchy's handle, public area, seed of the key pair, and password."""

    hierarchy: int
    public: TpmtPublic
    seed: bytes
    origin: bytes  # what the seed was derived from, besides the seed of the hierarchy
    auth: bytes = b""

    @property
    def qualified_name(self) -> bytes:
        """The qualified name (hash and digest), by which quotes identify their signer."""
        return self.public.qualified_name(self.hierarchy)


class PrimaryKeys:
    """Keys of a TPM: loaded and persistent ones, and those that can be created.

    Args:
        seed: Seed of the TPM, 32 bytes.
        handle_offset: Added to the transient handles.
    """

    def __init__(self, seed: bytes, handle_offset: int) -> None:
        self._seed = seed
        first = FIRST_TRANSIENT + handle_offset
        self.slots: range = range(first, first + TRANSIENT_SLOTS)  # transient handles
        self.transient: dict[int, PrimaryKey] = {}
        self.persistent: dict[int, PrimaryKey] = {}
        self.null_seed: bytes = b""  # changes at each reset

    def reset(self, null_seed: bytes) -> None:
        """Forget transient keys, and replace the seed of the null hierarchy, 32 bytes."""
        self.transient.clear()
        self.null_seed = null_seed

    def proof(self, hierarchy: int) -> bytes:
        """Return the secret, 32 bytes, for tickets and contexts of a hierarchy, by its handle."""
        return hkdf_sha256(self._hierarchy_seed(hierarchy), b"proof", 32, _SALT)

    def _hierarchy_seed(self, hierarchy: int) -> bytes:
        seed = self.null_seed if hierarchy == NULL else self._seed
        return hkdf_sha256(seed, b"hierarchy/" + command_reader.u32(hierarchy), 32, _SALT)

    def create(self, hierarchy: int, template: TpmtPublic, data: bytes, auth: bytes) -> PrimaryKey:
        """Return the key of a template, not loaded: equal arguments give the same key.

        In the null hierarchy, they do until the next reset.

        Args:
            hierarchy: Handle of the hierarchy.
            template: Public area, as `check_template` accepts it; all of it, with its unique field,
                is a part of the derivation.
            data: The caller's sensitive data, another part of the derivation.
            auth: The key's password.
        """
        origin = b"primary/" + sha256(template.encode()) + sha256(data)
        return self.restore(hierarchy, template, origin, auth)

    def restore(
        self, hierarchy: int, template: TpmtPublic, origin: bytes, auth: bytes
    ) -> PrimaryKey:
        """Return the key of a template, not loaded, whose seed is derived from `origin`.

        Args:
            hierarchy: Handle of the hierarchy, whose seed is the secret of the derivation.
            template: Public area, in which the public key is filled in.
            origin: Label of the derivation, as `PrimaryKey.origin`.
            auth: The key's password.
        """
        seed = hkdf_sha256(self._hierarchy_seed(hierarchy), origin, 32, _SALT)
        if template.type == "rsa":
            public = template._replace(modulus=_rsa_pair(seed).modulus)
        else:
            pair = _ec_pair(seed, template.curve)
            public = template._replace(x=pair.x, y=pair.y)
        return PrimaryKey(hierarchy, public, seed, origin, auth)

    def rsa_pair(self, key: PrimaryKey) -> RsaKeyPair:
        """Return the key pair of an RSA key."""
        return _rsa_pair(key.seed)

    def ec_pair(self, key: PrimaryKey) -> EcKeyPair:
        """Return the key pair of an ECC key."""
        return _ec_pair(key.seed, key.public.curve)

    def require_slot(self) -> int:
        """Return the first free transient handle; TpmResponseError if all are in use."""
        for handle in self.slots:
            if handle not in self.transient:
                return handle
        raise command_reader.TpmResponseError(codes.RC_OBJECT_MEMORY)

    def load(self, key: PrimaryKey) -> int:
        """Put a key into a transient slot; return its handle. TpmResponseError if none is free."""
        handle = self.require_slot()
        self.transient[handle] = key
        return handle

    def mac(self, hierarchy: int, content: bytes) -> bytes:
        """Return the HMAC-SHA-512 of `content`, a ticket or context, by a hierarchy's secret."""
        return hmac.digest(self.proof(hierarchy), content, "sha512")


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
    """A template of a key as read from a command."""

    public: TpmtPublic
    has_kdf: bool = False  # a key derivation, which TpmtPublic does not have


def read_template(reader: command_reader.CommandReader) -> KeyTemplate:
    """Read TPMT_PUBLIC of a template; TpmResponseError if it is malformed or not supported."""
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


def _read_symmetric(reader: command_reader.CommandReader) -> int:
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


def _read_rsa(reader: command_reader.CommandReader, found: TpmtPublic) -> KeyTemplate:
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


def _read_ecc(reader: command_reader.CommandReader, found: TpmtPublic) -> KeyTemplate:
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
    """Raise TpmResponseError unless a TPM accepts the template for a primary key."""
    public = template.public
    code = _template_problem(public)
    if code is None and template.has_kdf:
        code = codes.RC_KDF
    if code is not None:
        raise command_reader.parameter_error(code, _TEMPLATE)
    if public.type == "rsa" and public.exponent not in (0, 65537):
        raise command_reader.TpmResponseError(codes.RC_RANGE)


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
