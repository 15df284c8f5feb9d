"""HMAC sessions (TPM 2.0 Library, Part 1, section 19): keys, nonces, handles, saved contexts."""

import hmac
from typing import Final, NamedTuple

from attestkit.backends.simulator.software_tpm.model import command_reader
from attestkit.tpm.algorithms import compute_digest, hash_size
from attestkit.tpm.handles import FIRST_HMAC_SESSION, FIRST_POLICY_SESSION
from attestkit.tpm.response_codes import RC_HANDLE, RC_SESSION_HANDLES, RC_SESSION_MEMORY

MOST_LOADED: Final = 3  # MAX_LOADED_SESSIONS of libtpms
MOST_ACTIVE: Final = 64  # MAX_ACTIVE_SESSIONS of libtpms
SMALLEST_NONCE: Final = 16

CONTINUE: Final = 1 << 0


class SimulatedSession:
    """An HMAC session of the simulated TPM."""

    __slots__ = ("bound", "hash_name", "key", "nonce_tpm")

    def __init__(self, hash_name: str, key: bytes, nonce_tpm: bytes, bound: bytes | None) -> None:
        self.hash_name: str = hash_name
        self.key: bytes = key
        self.nonce_tpm: bytes = nonce_tpm
        self.bound: bytes | None = bound  # name and password of the object of `bind`

    def mac(self, auth: bytes, parts: tuple[bytes, ...]) -> bytes:
        """Return the HMAC of `parts`, joined, with the session key and the password `auth`."""
        return hmac.digest(self.key + auth, b"".join(parts), self.hash_name)


class Sessions:
    """HMAC sessions of the simulated TPM by their handles: at most 3 loaded, 64 in all.

    Args:
        handle_offset: Added to the handles, so that those of two TPMs differ.
    """

    def __init__(self, handle_offset: int) -> None:
        first = FIRST_HMAC_SESSION + handle_offset
        self.handles: range = range(first, first + MOST_ACTIVE)
        self.loaded: dict[int, SimulatedSession] = {}
        self.saved: dict[int, tuple[int, SimulatedSession]] = {}  # with the context's number

    def is_session(self, handle: int) -> bool:
        """Return whether a handle can be of an HMAC or policy session, whether it exists or not."""
        return handle in self.handles or handle - FIRST_POLICY_SESSION in range(MOST_ACTIVE)

    def clear(self) -> None:
        """End all sessions."""
        self.loaded.clear()
        self.saved.clear()

    def start(self, session: SimulatedSession) -> int:
        """Add a session; return its handle. TpmResponseError if there are too many."""
        if len(self.loaded) >= MOST_LOADED:
            raise command_reader.TpmResponseError(RC_SESSION_MEMORY)
        for handle in self.handles:
            if handle not in self.loaded and handle not in self.saved:
                self.loaded[handle] = session
                return handle
        raise command_reader.TpmResponseError(RC_SESSION_HANDLES)

    def save(self, handle: int, number: int) -> None:
        """Unload the loaded session `handle`; `number` is that of the context with its state."""
        self.saved[handle] = number, self.loaded.pop(handle)

    def load(self, handle: int, number: int) -> None:
        """Load the saved session `handle` again, from the context `number`.

        Raises:
            TpmResponseError: If that is not the last context in which the session was saved, or too
                many sessions are loaded.
        """
        found = self.saved.get(handle)
        if found is None or found[0] != number:
            raise command_reader.parameter_error(RC_HANDLE, 1)
        if len(self.loaded) >= MOST_LOADED:
            raise command_reader.TpmResponseError(RC_SESSION_MEMORY)
        self.loaded[handle] = self.saved.pop(handle)[1]

    def flush(self, handle: int) -> None:
        """End a session; `handle` may have the type of HMAC or of policy sessions.

        Raises:
            TpmResponseError: If the session does not exist.
        """
        handle = FIRST_HMAC_SESSION | handle & 0xFFFFFF
        if self.loaded.pop(handle, None) is None and self.saved.pop(handle, None) is None:
            raise command_reader.parameter_error(RC_HANDLE, 1)


class SessionStart(NamedTuple):
    """Values that both sides agree on when a session starts."""

    hash_name: str
    secret: bytes  # password of `bind`, and salt
    nonce_tpm: bytes
    nonce_caller: bytes

    def derive_key(self) -> bytes:
        """Return the session key (Part 1, 19.6.8); empty without a secret."""
        size = hash_size(self.hash_name)
        if not self.secret:
            return b""
        return kdf_a(
            self.hash_name, self.secret, b"ATH\0", self.nonce_tpm + self.nonce_caller, 8 * size
        )


def kdf_a(hash_name: str, key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    """Return KDFa (Part 1, 11.4.10.2), `bits` / 8 bytes, at most a digest of the hash `hash_name`.

    Args:
        hash_name: Hash of the HMAC, such as "sha256".
        key: Key of the HMAC.
        label: Label, which must end with a zero byte.
        context: contextU and contextV, joined.
        bits: Size of the result in bits.
    """
    content = command_reader.u32(1) + label + context + command_reader.u32(bits)
    return hmac.digest(key, content, hash_name)[: bits // 8]


def kdf_e(hash_name: str, shared: bytes, context: bytes) -> bytes:
    """Return KDFe (Part 1, 11.4.10.3) for a salt, one digest of the hash `hash_name`.

    `shared` is the x coordinate of the shared point; `context` those of both public keys, joined.
    """
    return compute_digest(hash_name, command_reader.u32(1) + shared + b"SECRET\0" + context)
