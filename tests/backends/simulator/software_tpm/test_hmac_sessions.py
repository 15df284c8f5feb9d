"""HMAC sessions of the model, used by the client of `backends.tpm` and by hand."""

import hashlib
import hmac
from struct import pack

import pytest

from attestkit._crypto.public_key import rsa_oaep_encrypt
from attestkit.backends.simulator.software_tpm import TpmModel
from attestkit.backends.simulator.software_tpm.in_process import InProcessTransport
from attestkit.backends.tpm.client import TpmClient
from attestkit.backends.tpm.command_channel import TpmError
from attestkit.backends.tpm.hmac_session import SessionCommand, hmac_session
from attestkit.tpm.handles import ENDORSEMENT
from tests.backends.simulator.software_tpm.command_frames import (
    INDEX,
    OWNER,
    authorized,
    code_of,
    digests,
    frame,
    handle_of,
    handles,
    new_model,
    nv_define,
    nv_public,
    sized,
    start_session,
)
from tests.backends.tpm.templates import EK
from tests.raising import raises
from tests.runner.cases import every_case

PASSWORD = bytes(range(1, 65))
NV_READ = 0x14E


def prepared() -> tuple[TpmModel, TpmClient]:
    """Return a TPM with a written index that only its password opens."""
    model = new_model()
    client = TpmClient(InProcessTransport(model))
    client.nv_define(INDEX, 16, 0x00040004, secret=PASSWORD, name_alg="sha512")
    client.nv_write(INDEX, b"0123456789abcdef", authority=INDEX, secret=PASSWORD)
    return model, client


@pytest.mark.parametrize("hash_name", ["sha256", "sha512"])
def test_salted_session_authorizes(hash_name: str) -> None:
    """A session reads the index repeatedly; the responses' HMACs are valid."""
    _, client = prepared()
    name = client.nv_read_public(INDEX).name
    key = client.create_primary(ENDORSEMENT, EK)
    command = SessionCommand(NV_READ, (INDEX, INDEX), (name, name), b"\0\4\0\2")
    with hmac_session(client, key, hash_name) as session:
        for _ in range(3):
            assert session.run(command, PASSWORD).parameters == b"\0\4" + b"2345"
        with raises(TpmError, "tpm_error", part="0x98e"):
            session.run(command, PASSWORD[:-1])
        assert session.run(command, PASSWORD).parameters == b"\0\4" + b"2345"


def test_name_before_the_first_write_is_wrong() -> None:
    """The HMAC is over the name, which changes with the first write."""
    client = TpmClient(InProcessTransport(new_model()))
    client.nv_define(INDEX, 16, 0x00040004, secret=PASSWORD, name_alg="sha512")
    name = client.nv_read_public(INDEX).name
    client.nv_write(INDEX, b"0123456789abcdef", authority=INDEX, secret=PASSWORD)
    key = client.create_primary(ENDORSEMENT, EK)
    command = SessionCommand(NV_READ, (INDEX, INDEX), (name, name), b"\0\4\0\2")
    with hmac_session(client, key) as session, raises(TpmError, "tpm_error", part="0x98e"):
        session.run(command, PASSWORD)


def test_wrong_salt_is_refused() -> None:
    """A salt that another key or label encrypted is refused as a value of parameter 2."""
    model, client = prepared()
    key = client.create_primary(ENDORSEMENT, EK)
    command = start_session(key=key.handle, salt=bytes(256))
    assert code_of(model.execute(command)) == 0x2C4
    assert code_of(model.execute(start_session(key=key.handle, salt=bytes(255)))) == 0x2C4


@every_case(("size", "code"), [(0, 0), (32, 0), (33, 0x2C4), (190, 0x2C4)])
def test_salt_is_at_most_a_digest(size: int, code: int) -> None:
    """A salt is no longer than a digest of the key's name."""
    model, client = prepared()
    key = client.create_primary(ENDORSEMENT, EK)
    salt = rsa_oaep_encrypt(key.public.spki, bytes(size), "sha256", b"SECRET\0")
    assert code_of(model.execute(start_session(key=key.handle, salt=salt))) == code


class RawSession:
    """An HMAC session with SHA-256 and without a salt, by hand."""

    def __init__(self, model: TpmModel, *, bind: int = 0x40000007, secret: bytes = b"") -> None:
        self.model = model
        nonce = bytes(range(32))
        response = model.execute(start_session(bind=bind, nonce=nonce))
        self.handle = handle_of(response)
        self.nonce = response[16:]
        assert len(self.nonce) == 32
        content = pack(">I", 1) + b"ATH\0" + self.nonce + nonce + pack(">I", 256)
        self.key = hmac.digest(secret, content, "sha256") if secret else b""

    def run(
        self, code: int, names: bytes, body: bytes, secret: bytes = b"", *, attributes: int = 1
    ) -> bytes:
        """Run a command whose handles are its names; check the response's HMAC."""
        caller = b"\7" * 32
        hashed = hashlib.sha256(pack(">I", code) + names + body).digest()
        flags = bytes([attributes])
        proof = hmac.digest(self.key + secret, hashed + caller + self.nonce + flags, "sha256")
        entry = handles(self.handle) + sized(caller) + flags + sized(proof)
        response = self.model.execute(authorized(code, names, body, handles(len(entry)) + entry))
        if not code_of(response):
            self.nonce = response[16:48]
            hashed = hashlib.sha256(bytes(4) + pack(">I", code)).digest()
            wanted = hmac.digest(self.key + secret, hashed + self.nonce + caller + flags, "sha256")
            assert response[-32:] == wanted
        return response


def test_session_of_an_entity_without_password() -> None:
    """PCR_Extend by a session; the nonces change with each command."""
    session = RawSession(new_model())
    body = digests((0x0B, bytes(32)))
    nonces = set()
    for _ in range(3):
        assert code_of(session.run(0x182, handles(8), body)) == 0
        nonces.add(session.nonce)
    assert len(nonces) == 3


def test_used_nonce_is_refused() -> None:
    """A command cannot be repeated: the TPM's nonce has changed."""
    session = RawSession(new_model())
    old = session.nonce
    assert code_of(session.run(0x182, handles(8), digests((0x0B, bytes(32))))) == 0
    session.nonce = old
    assert code_of(session.run(0x182, handles(8), digests((0x0B, bytes(32))))) == 0x9A2


def test_session_ends_without_continue() -> None:
    """A session whose last command does not continue is flushed, after a success only."""
    session = RawSession(new_model())
    body = digests((0x0B, bytes(32)))
    assert code_of(session.run(0x182, handles(17), body, attributes=0)) == 0x907
    assert code_of(session.run(0x182, handles(8), body, attributes=0)) == 0
    assert code_of(session.model.execute(frame(0x165, handles(session.handle)))) == 0x1CB


def test_bound_session_has_the_entity_s_password() -> None:
    """The key of a bound session comes from the password, which is not in HMACs of that entity."""
    model = new_model()
    secret = b"secret"
    model.execute(nv_define(nv_public(attributes=0x02060006), secret=secret))
    model.execute(authorized(0x137, handles(OWNER, INDEX), sized(bytes(8)) + b"\0\0"))
    public = model.execute(frame(0x169, handles(INDEX)))
    name = public[-34:]
    session = RawSession(model, bind=INDEX, secret=secret)
    body = b"\0\0\0\0"
    caller = b"\7" * 32

    def read(auth: bytes) -> bytes:
        hashed = hashlib.sha256(pack(">I", NV_READ) + name + name + body).digest()
        proof = hmac.digest(session.key + auth, hashed + caller + session.nonce + b"\1", "sha256")
        entry = handles(session.handle) + sized(caller) + b"\1" + sized(proof)
        return model.execute(
            authorized(NV_READ, handles(INDEX, INDEX), body, handles(len(entry)) + entry)
        )

    assert code_of(read(secret)) == 0x9A2
    assert code_of(read(b"")) == 0
