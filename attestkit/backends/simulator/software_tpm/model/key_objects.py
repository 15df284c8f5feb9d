"""Primary keys derived from seeds of the hierarchies; transient slots and persistent handles."""

import hmac
from functools import lru_cache, partial
from typing import Final, NamedTuple

from attestkit._crypto.hashes import hkdf_sha256, sha256
from attestkit._crypto.key_pairs import EcKeyPair, RsaKeyPair
from attestkit.backends.simulator.software_tpm.model.command_reader import TpmResponseError, u32
from attestkit.tpm import TpmtPublic
from attestkit.tpm.handles import FIRST_TRANSIENT, NULL
from attestkit.tpm.response_codes import RC_OBJECT_MEMORY

TRANSIENT_SLOTS: Final = 3  # as libtpms
PERSISTENT_SLOTS: Final = 64

_SALT: Final = b"attestkit/software-tpm/v1"


# Creating an RSA key takes 50 ms, and machines of one seed have the same keys.
_rsa_pair: Final = lru_cache(maxsize=64)(partial(RsaKeyPair, bits=2048))
_ec_pair: Final = lru_cache(maxsize=64)(EcKeyPair)


class PrimaryKey(NamedTuple):
    """A primary key: its public area, and the seed of its key pair."""

    hierarchy: int
    public: TpmtPublic
    seed: bytes
    origin: bytes  # what the seed was derived from, besides the seed of the hierarchy
    auth: bytes = b""

    @property
    def qualified_name(self) -> bytes:
        """The qualified name, which is the signer of quotes."""
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
        """Forget transient keys, and replace the seed of the null hierarchy."""
        self.transient.clear()
        self.null_seed = null_seed

    def proof(self, hierarchy: int) -> bytes:
        """Return the secret of a hierarchy for its tickets and contexts, 32 bytes."""
        return hkdf_sha256(self._hierarchy_seed(hierarchy), b"proof", 32, _SALT)

    def _hierarchy_seed(self, hierarchy: int) -> bytes:
        seed = self.null_seed if hierarchy == NULL else self._seed
        return hkdf_sha256(seed, b"hierarchy/" + u32(hierarchy), 32, _SALT)

    def create(self, hierarchy: int, template: TpmtPublic, data: bytes, auth: bytes) -> PrimaryKey:
        """Return the key of a template: the same each time.

        Args:
            hierarchy: Handle of the hierarchy.
            template: Public area, whose unique field is a part of the derivation.
            data: The caller's sensitive data, another part.
            auth: The key's password.
        """
        origin = b"primary/" + sha256(template.encode()) + sha256(data)
        return self.restore(hierarchy, template, origin, auth)

    def restore(
        self, hierarchy: int, template: TpmtPublic, origin: bytes, auth: bytes
    ) -> PrimaryKey:
        """Return the key of a known origin, with its public area completed."""
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
        """Return the first free transient handle."""
        for handle in self.slots:
            if handle not in self.transient:
                return handle
        raise TpmResponseError(RC_OBJECT_MEMORY)

    def load(self, key: PrimaryKey) -> int:
        """Put a key into a transient slot; return its handle."""
        handle = self.require_slot()
        self.transient[handle] = key
        return handle

    def mac(self, hierarchy: int, content: bytes) -> bytes:
        """Return the HMAC-SHA-512 of a ticket or context with the secret of a hierarchy."""
        return hmac.digest(self.proof(hierarchy), content, "sha512")
