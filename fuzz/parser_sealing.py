"""Targets: what is sealed to an application."""

import json
from typing import Final

from attestkit._crypto.ed25519 import x25519_public_key
from attestkit.errors import FormatError, VerificationError
from attestkit.kms.sealed_env import Epochs, open_env, seal_env
from fuzz.parser_contract import ParserTarget, obeys, short

_SECRET: Final = bytes(range(32))
_EPOCHS: Final = Epochs(2, 7)
_VARIABLES: Final = [("NAME", "value"), ("OTHER", "")]


def _sealed_env(raw: bytes) -> dict[str, str]:
    return open_env(raw, _SECRET)


def sealed_env_samples() -> list[bytes]:
    """Return an environment in each form, and envelopes that are refused."""
    public = x25519_public_key(_SECRET)
    envelope = seal_env(_VARIABLES, public, epochs=_EPOCHS)
    other = json.dumps({**json.loads(envelope), "root_epoch": 3})
    legacy = seal_env(_VARIABLES, public)
    texts = (envelope, other, legacy, '{"version":1}')
    return [*(text.encode() for text in texts), bytes.fromhex(legacy)]


def targets() -> list[ParserTarget]:
    """Return the targets of this file."""
    sealed_env = obeys(_sealed_env, FormatError, VerificationError)
    return [ParserTarget("sealed_env", sealed_env, short(sealed_env_samples), "json.dict")]
