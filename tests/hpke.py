"""Whether the installed release of cryptography has HPKE, which sealed environments need."""

from typing import Final

import pytest

from attestkit._crypto.ed25519 import x25519_public_key
from attestkit._crypto.hpke import hpke_seal
from attestkit.errors import UnsupportedError


def _find_reason() -> str:
    """Return why HPKE is missing; empty if it is there."""
    try:
        hpke_seal(x25519_public_key(bytes(range(32))), b"", b"")
    except UnsupportedError as error:
        return str(error)
    return ""


_REASON: Final = _find_reason()
needs_hpke = pytest.mark.skipif(bool(_REASON), reason=_REASON or "there is HPKE")
"""Skips a test with the oldest releases of cryptography that are allowed."""
