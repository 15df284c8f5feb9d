"""Sealed environments of other implementations open here, and ours open there."""

import asyncio
import json
from base64 import b64decode, b64encode
from typing import Final

import pytest

from attestkit._crypto.ed25519 import x25519_public_key
from attestkit.kms.sealed_env import Epochs, open_env, seal_env
from tests.clients.js_sealing import call_javascript, sealing_node

pytestmark = pytest.mark.slow

SECRET: Final = bytes(range(1, 33))
PUBLIC: Final = x25519_public_key(SECRET)
VARIABLES: Final = [("TOKEN", "s3cret"), ("EMPTY", ""), ("TEXT", 'é🚀\n"')]
EPOCHS: Final = Epochs(2, 7)
INFO: Final = b"dstack-sealed-env-v1:2:7"
PLAINTEXT: Final = json.dumps(
    {"env": [{"key": name, "value": value} for name, value in VARIABLES]}
).encode()


def envelope(enc: bytes, ciphertext: bytes) -> str:
    """Return the envelope of what another implementation sealed."""
    parts = {"enc": b64encode(enc).decode(), "ciphertext": b64encode(ciphertext).decode()}
    return json.dumps({"version": 1, "root_epoch": 2, "app_epoch": 7, **parts})


def our_parts() -> tuple[bytes, bytes]:
    """Return the encapsulated key and the ciphertext of our envelope."""
    fields = json.loads(seal_env(VARIABLES, PUBLIC, epochs=EPOCHS))
    return b64decode(fields["enc"]), b64decode(fields["ciphertext"])


def check_plaintext(plaintext: bytes) -> None:
    """Check the text that another implementation opened."""
    assert json.loads(plaintext) == json.loads(PLAINTEXT)


def test_pyhpke_and_attestkit_open_each_other() -> None:
    """The Python HPKE opens ours, and we open its envelope."""
    pyhpke = pytest.importorskip("pyhpke")
    suite = pyhpke.CipherSuite.new(
        pyhpke.KEMId.DHKEM_X25519_HKDF_SHA256, pyhpke.KDFId.HKDF_SHA256, pyhpke.AEADId.AES256_GCM
    )
    enc, ciphertext = our_parts()
    recipient = suite.kem.deserialize_private_key(SECRET)
    check_plaintext(suite.create_recipient_context(enc, recipient, INFO).open(ciphertext))
    enc, sender = suite.create_sender_context(suite.kem.deserialize_public_key(PUBLIC), INFO)
    theirs = envelope(enc, sender.seal(PLAINTEXT))
    assert open_env(theirs, SECRET, epochs=EPOCHS) == dict(VARIABLES)


def test_javascript_and_attestkit_open_each_other() -> None:
    """@hpke/core opens ours and refuses it under another info, and we open its envelope."""
    node = sealing_node()
    enc, ciphertext = our_parts()
    parts = (enc.hex(), ciphertext.hex())
    opened, refused, sealed = call_javascript(
        node,
        ("hpkeOpen", SECRET.hex(), INFO.hex(), *parts),
        ("hpkeOpen", SECRET.hex(), INFO[:-1].hex(), *parts),
        ("hpkeSeal", PUBLIC.hex(), INFO.hex(), PLAINTEXT.hex()),
    )
    assert opened is not None
    check_plaintext(bytes.fromhex(opened))
    assert refused is None
    assert sealed is not None
    found = bytes.fromhex(sealed)
    assert open_env(envelope(found[:32], found[32:]), SECRET, epochs=EPOCHS) == dict(VARIABLES)


def test_environment_of_javascript_sdk_opens() -> None:
    """`open_env` opens the result of `encryptEnvVars` of @phala/dstack-sdk, in text and bytes."""
    variables = [{"key": name, "value": value} for name, value in VARIABLES]
    (sealed,) = call_javascript(sealing_node(), ("encryptEnvVars", PUBLIC.hex(), variables))
    assert sealed is not None
    assert open_env(sealed, SECRET) == dict(VARIABLES)
    assert open_env(bytes.fromhex(sealed), SECRET) == dict(VARIABLES)


def test_environment_of_python_sdk_opens() -> None:
    """`open_env` opens the result of `encrypt_env_vars` of dstack_sdk."""
    sdk = pytest.importorskip("dstack_sdk.encrypt_env_vars")
    variables = [sdk.EnvVar(key=name, value=value) for name, value in VARIABLES]
    sealed = asyncio.run(sdk.encrypt_env_vars(variables, PUBLIC.hex()))
    assert open_env(sealed, SECRET) == dict(VARIABLES)
