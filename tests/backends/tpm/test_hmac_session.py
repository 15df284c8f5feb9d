"""Salted HMAC sessions: their computations, and their use on swtpm."""

import hashlib
import hmac
import os
from collections.abc import Iterator

import pytest

from attestkit.backends.tpm.client import LoadedKey, TpmClient
from attestkit.backends.tpm.command_channel import TpmError
from attestkit.backends.tpm.frames import ResponseAuthorization, TpmResponse
from attestkit.backends.tpm.hmac_session import (
    SessionCommand,
    command_hash,
    hmac_session,
    session_key,
)
from attestkit.backends.tpm.nv_commands import NvPublic
from attestkit.errors import BackendError, UsageError
from attestkit.tpm.command_codes import NV_READ, NV_WRITE
from attestkit.tpm.handles import ENDORSEMENT, OWNER
from attestkit.tpm.nv_attributes import AUTH_READ, AUTH_WRITE
from attestkit.tpm.reader import encode_number, encode_sized
from tests.backends.tpm.templates import ECC_AK, EK
from tests.machines.software_tpm import needs_swtpm
from tests.raising import raises

INDEX = 0x01500000
SECRET = bytes(range(1, 65))
DATA = os.urandom(2048)
READ = b"\4\0\0\0"  # 1024 bytes from offset 0


def test_command_hash_equals_vector() -> None:
    """The vector of NitroTPM's command: two handles of one name, no parameters."""
    name = bytes(range(68))
    found = command_hash(SessionCommand(0x20000001, (1, 1), (name, name)), "sha512")
    assert found.hex() == (
        "c3869a4e945d90e6688365a59e14d2c5ab3d2b4579261a4a4377fe918d5d3509"
        "33284223b6a569e384124d2bceb2173dac7a4171181efed7a5697d862174f9dc"
    )


def test_session_key_is_kdfa() -> None:
    """The key is one block of KDFa with the label ATH (TPM 2.0 Library, Part 1, section 19)."""
    salt, tpm, caller = b"S" * 32, b"T" * 64, b"C" * 64
    content = b"\0\0\0\1ATH\0" + tpm + caller + b"\0\0\2\0"
    assert session_key(salt, tpm, caller, "sha512") == hmac.digest(salt, content, "sha512")
    content = b"\0\0\0\1ATH\0" + tpm + caller + b"\0\0\1\0"
    assert session_key(salt, tpm, caller, "sha256") == hmac.digest(salt, content, "sha256")
    with raises(UsageError, "unsupported_algorithm"):
        session_key(salt, tpm, caller, "md5")


@pytest.fixture
def endorsement_key(software_tpm: TpmClient) -> Iterator[LoadedKey]:
    """Return the default endorsement key."""
    with software_tpm.primary_key(ENDORSEMENT, EK) as key:
        yield key


@pytest.fixture
def index(software_tpm: TpmClient) -> NvPublic:
    """Return a written NV index that only its password opens."""
    software_tpm.nv_define(
        INDEX, len(DATA), AUTH_READ | AUTH_WRITE, secret=SECRET, name_alg="sha512"
    )
    software_tpm.nv_write(INDEX, DATA, authority=INDEX, secret=SECRET)
    return software_tpm.nv_read_public(INDEX)


def read_command(index: NvPublic, parameters: bytes = READ) -> SessionCommand:
    """Return NV_Read of the index by its own authorization."""
    return SessionCommand(NV_READ, (INDEX, INDEX), (index.name, index.name), parameters)


pytestmark = needs_swtpm


@pytest.mark.parametrize("hash_name", ["sha256", "sha384", "sha512"])
def test_session_authorizes_several_commands(
    software_tpm: TpmClient, endorsement_key: LoadedKey, index: NvPublic, hash_name: str
) -> None:
    """Nonces roll with each command; the session is gone after the block."""
    with hmac_session(software_tpm, endorsement_key, hash_name) as session:
        for _ in range(3):
            response = session.run(read_command(index), SECRET)
            assert response.parameters == encode_sized(DATA[:1024])
        new = os.urandom(16)
        parameters = encode_sized(new) + b"\0\0"
        write = SessionCommand(NV_WRITE, (INDEX, INDEX), (index.name, index.name), parameters)
        session.run(write, SECRET)
        response = session.run(read_command(index), SECRET)
        assert response.parameters == encode_sized(new + DATA[16:1024])
    assert software_tpm.list_handles(0x02000000, 0x02FFFFFF) == ()


def test_password_is_compared_without_trailing_zeros(
    software_tpm: TpmClient, endorsement_key: LoadedKey
) -> None:
    """A random password may end with zero bytes, which the TPM removes.

    It matters if session key and password are longer than a block of the hash.
    """
    secret = bytes(range(1, 39)) + bytes(2)
    software_tpm.nv_define(INDEX, 1024, AUTH_READ | AUTH_WRITE, secret=secret, name_alg="sha512")
    software_tpm.nv_write(INDEX, DATA[:1024], authority=INDEX, secret=secret)
    index = software_tpm.nv_read_public(INDEX)
    with hmac_session(software_tpm, endorsement_key, "sha256") as session:
        assert session.run(read_command(index), secret).parameters == encode_sized(DATA[:1024])


@pytest.mark.parametrize("secret", [b"", SECRET[:-1], SECRET + b"\1", bytes(64)])
def test_wrong_password_is_denied(
    software_tpm: TpmClient, endorsement_key: LoadedKey, index: NvPublic, secret: bytes
) -> None:
    """The TPM refuses an HMAC with another password; the session can still be used."""
    with hmac_session(software_tpm, endorsement_key) as session:
        with raises(TpmError, "tpm_error", part="0x98e") as caught:
            session.run(read_command(index), secret)
        assert caught.value.is_denied
        session.run(read_command(index), SECRET)


def test_name_from_before_the_first_write_is_denied(
    software_tpm: TpmClient, endorsement_key: LoadedKey
) -> None:
    """The name is part of what is authorized, and changes with the first write."""
    software_tpm.nv_define(INDEX, 1024, AUTH_READ | AUTH_WRITE, secret=SECRET, name_alg="sha512")
    early = software_tpm.nv_read_public(INDEX)
    software_tpm.nv_write(INDEX, DATA[:1024], authority=INDEX, secret=SECRET)
    with (
        hmac_session(software_tpm, endorsement_key) as session,
        raises(TpmError, "tpm_error", part="0x98e"),
    ):
        session.run(read_command(early), SECRET)


def test_owner_authorizes_by_its_handle(
    software_tpm: TpmClient, endorsement_key: LoadedKey
) -> None:
    """The name of a permanent handle is the handle; the owner's password is empty here."""
    software_tpm.nv_define(INDEX, 1024)
    software_tpm.nv_write(INDEX, DATA[:1024])
    name = software_tpm.nv_read_public(INDEX).name
    command = SessionCommand(NV_READ, (OWNER, INDEX), (encode_number(OWNER, 4), name), READ)
    with hmac_session(software_tpm, endorsement_key, "sha256") as session:
        assert session.run(command, b"").parameters == encode_sized(DATA[:1024])


class ChangingTpm(TpmClient):
    """A client between which and the TPM someone changes the responses."""

    change: str = ""

    def execute(self, *arguments, **more):  # type: ignore[no-untyped-def] # noqa: ANN002,ANN003,ANN201
        """Return a response that was changed."""
        response: TpmResponse = super().execute(*arguments, **more)
        if not response.authorizations or not response.authorizations[0].hmac:
            return response
        (found,) = response.authorizations
        data = response.parameters
        nonce, attributes, proof = found
        if self.change == "parameters":
            data = data[:-1] + bytes([data[-1] ^ 1])
        if self.change == "nonce":
            nonce = nonce[:-1] + bytes([nonce[-1] ^ 1])
        if self.change == "attributes":
            attributes ^= 2
        if self.change == "hmac":
            proof = proof[:-1] + bytes([proof[-1] ^ 1])
        if self.change == "shorter":
            proof = proof[:-1]
        changed = ResponseAuthorization(nonce, attributes, proof)
        kept = () if self.change == "missing" else (changed,)
        return response._replace(parameters=data, authorizations=kept)


@pytest.mark.parametrize(
    "change", ["parameters", "nonce", "attributes", "hmac", "shorter", "missing"]
)
def test_changed_response_is_refused(
    software_tpm: TpmClient, endorsement_key: LoadedKey, index: NvPublic, change: str
) -> None:
    """Parameters, nonce, attributes and HMAC of a response are authenticated."""
    between = ChangingTpm(software_tpm.transport, seconds=60)
    with hmac_session(between, endorsement_key) as session:
        session.run(read_command(index), SECRET)
        between.change = change
        with raises(BackendError, "malformed_response", part="HMAC session"):
            session.run(read_command(index), SECRET)


def test_salt_needs_an_rsa_key(software_tpm: TpmClient) -> None:
    """A salt is encrypted to an RSA key; others are a mistake of the caller."""
    with (
        software_tpm.primary_key(ENDORSEMENT, ECC_AK) as key,
        raises(UsageError, "unsupported_algorithm"),
        hmac_session(software_tpm, key),
    ):
        pass


def test_session_is_random(
    software_tpm: TpmClient, endorsement_key: LoadedKey, index: NvPublic
) -> None:
    """Salt and nonces come from the given source, in the sizes of their hashes."""
    sizes: list[int] = []

    def random(size: int) -> bytes:
        sizes.append(size)
        return hashlib.shake_256(bytes(sizes)).digest(size)

    with hmac_session(software_tpm, endorsement_key, random=random) as session:
        session.run(read_command(index), SECRET)
    assert sizes == [32, 64, 64]
