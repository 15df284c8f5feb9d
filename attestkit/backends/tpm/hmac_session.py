"""HMAC sessions with a salt that only the TPM can decrypt (TPM 2.0 Library, Part 1, section 19).

The caller proves knowledge of the password of an NV index or key without sending it, and the
response is authenticated.
"""

import hashlib
import hmac
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from attestkit._crypto.public_key import rsa_oaep_encrypt
from attestkit.backends.tpm.client import LoadedKey, TpmClient
from attestkit.backends.tpm.command_channel import ParameterReader
from attestkit.backends.tpm.frames import CONTINUE_SESSION, Authorization, TpmResponse
from attestkit.backends.tpm.transports import reading
from attestkit.errors import BackendError, UsageError
from attestkit.tpm.algorithms import hash_size
from attestkit.tpm.reader import encode_number

_SALT_LABEL: Final = b"SECRET\0"
_KEY_LABEL: Final = b"ATH\0"
_LARGEST_NONCE: Final = 64

RandomBytes = Callable[[int], bytes]


class SessionCommand(NamedTuple):
    """A command whose first handle is authorized by an `HmacSession`."""

    code: int
    handles: tuple[int, ...]
    names: tuple[bytes, ...]  # of the handles; of a permanent handle the handle itself
    parameters: bytes = b""
    seconds: float | None = None  # time limit; None: that of the client


class SessionSecrets(NamedTuple):
    """Secrets and handle of a new session."""

    handle: int  # of the session, from TPM2_StartAuthSession
    key: bytes  # session key, for the HMACs
    nonce_tpm: bytes  # the TPM's latest nonce


class HmacSession:
    """An HMAC session. Create it with `hmac_session`; use it from one thread."""

    def __init__(
        self, client: TpmClient, secrets: SessionSecrets, hash_name: str, random: RandomBytes
    ) -> None:
        self._client = client
        handle, self._key, self._nonce_tpm = secrets
        self.handle: int = handle
        self._hash = hash_name
        self._random = random

    def run(
        self, command: SessionCommand, secret: bytes, *, check_response: bool = True
    ) -> TpmResponse:
        """Send a command that the session authorizes, and check the HMAC of its response.

        Args:
            command: The command.
            secret: Password of its first handle.
            check_response: Whether the response must have a valid HMAC. Without, no further command
                can be sent in the session.

        Raises:
            TpmError: If the TPM answers with an error, such as for a wrong password (`is_denied`).
            BackendError: If the HMAC of the response is not valid, or as for `TpmClient.execute`.
        """
        secret = secret.rstrip(b"\0")  # as the TPM does (Part 1, section 19.6.5)
        nonce = self._random(hash_size(self._hash))
        hashed = command_hash(command, self._hash)
        proof = self._hmac(secret, hashed, nonce, self._nonce_tpm, CONTINUE_SESSION)
        response = self._client.execute(
            command.code,
            command.handles,
            command.parameters,
            [Authorization(self.handle, nonce, CONTINUE_SESSION, proof)],
            seconds=command.seconds,
        )
        if check_response:
            self._check(command, response, secret, nonce)
        return response

    def _check(
        self, command: SessionCommand, response: TpmResponse, secret: bytes, nonce: bytes
    ) -> None:
        """Check the HMAC of a response, and store the TPM's new nonce.

        Args:
            command: The command.
            response: Its response.
            secret: Password of the command's first handle.
            nonce: The caller's nonce in the command.

        Raises:
            BackendError: If the HMAC is missing or not valid.
        """
        if len(response.authorizations) != 1:
            raise self._bad_response("a response without authorization")
        found = response.authorizations[0]
        content = encode_number(response.code, 4) + encode_number(command.code, 4)
        hashed = hashlib.new(self._hash, content + response.parameters).digest()
        wanted = self._hmac(secret, hashed, found.nonce, nonce, found.attributes)
        if not hmac.compare_digest(found.hmac, wanted):
            raise self._bad_response("the HMAC of a response is not valid")
        self._nonce_tpm = found.nonce

    def _hmac(
        self, secret: bytes, hashed: bytes, newer: bytes, older: bytes, attributes: int
    ) -> bytes:
        """Return the HMAC of a command or response (Part 1, section 19.6).

        Args:
            secret: Password of the authorized object.
            hashed: cpHash of the command, or rpHash of the response.
            newer: Nonce of the sender.
            older: Last nonce of the receiver.
            attributes: Attributes of the session.
        """
        content = hashed + newer + older + bytes([attributes])
        return hmac.digest(self._key + secret, content, self._hash)

    def _bad_response(self, problem: str) -> BackendError:
        text = f"{self._client.path}: HMAC session: {problem}; another process may interfere"
        return BackendError(text, reason="malformed_response", path=self._client.path)


@contextmanager
def hmac_session(
    client: TpmClient,
    salt_key: LoadedKey,
    hash_name: str = "sha512",
    *,
    random: RandomBytes = os.urandom,
) -> Iterator[HmacSession]:
    """Context manager: start a session, yield it as an `HmacSession`, and end it on exit.

    Args:
        client: The TPM.
        salt_key: A loaded RSA key that decrypts, such as an endorsement key.
        hash_name: Hash of the session.
        random: Returns the given number of random bytes.

    Raises:
        UsageError: If the key is not an RSA key, or a hash is unknown.
        TpmError: If the TPM answers with an error.
        BackendError: As for `TpmClient.execute`.
    """
    if salt_key.public.type != "rsa":
        message = f"HMAC session: salt_key must be RSA, not {salt_key.public.type}"
        raise UsageError(message, reason="unsupported_algorithm")
    key_hash = salt_key.public.name_alg
    salt, nonce = random(hash_size(key_hash)), random(hash_size(hash_name))
    encrypted = rsa_oaep_encrypt(salt_key.public.spki, salt, key_hash, _SALT_LABEL)
    response = client.start_auth_session(salt_key.handle, nonce, encrypted, hash_name)
    handle = response.handle
    assert handle is not None  # StartAuthSession returns one
    with client.flushed(handle):
        reader = ParameterReader(response, "StartAuthSession")
        with reading(client.path):
            nonce_tpm = reader.sized("nonceTPM", _LARGEST_NONCE)
            reader.end()
        key = session_key(salt, nonce_tpm, nonce, hash_name)
        yield HmacSession(client, SessionSecrets(handle, key, nonce_tpm), hash_name, random)


def session_key(salt: bytes, nonce_tpm: bytes, nonce_caller: bytes, hash_name: str) -> bytes:
    """Return the key of a session, as long as a digest (KDFa: Part 1, 11.4.10 and 19.6.8).

    Args:
        salt: The decrypted salt.
        nonce_tpm: First nonce of the TPM.
        nonce_caller: First nonce of the caller.
        hash_name: Hash of the session, such as "sha512".

    Raises:
        UsageError: If the hash is unknown.
    """
    bits = encode_number(8 * hash_size(hash_name), 4)
    content = encode_number(1, 4) + _KEY_LABEL + nonce_tpm + nonce_caller + bits
    return hmac.digest(salt, content, hash_name)


def command_hash(command: SessionCommand, hash_name: str) -> bytes:
    """Return cpHash: the digest of a command's code, names and parameters (Part 1, section 18.7).

    Raises:
        UsageError: If the hash is unknown.
    """
    hash_size(hash_name)  # raises for an unknown hash
    content = encode_number(command.code, 4) + b"".join(command.names) + command.parameters
    return hashlib.new(hash_name, content).digest()
