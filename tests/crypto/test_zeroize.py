"""Secrets are wiped when their keys are released, at any time."""

from collections.abc import Callable
from typing import Any

import pytest

from attestkit._crypto import ecdsa, ed25519, zeroize
from attestkit._crypto.ecdsa import K256Key, P256Key
from attestkit._crypto.ed25519 import Ed25519Key
from attestkit._crypto.zeroize import own_copy

OCTETS = bytes(range(32))


@pytest.mark.parametrize("make", [K256Key, P256Key.from_scalar, Ed25519Key])
def test_key_released_at_interpreter_exit_is_wiped(
    make: Callable[[bytes], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At interpreter exit module globals may be None already."""
    key = make(own_copy(OCTETS))
    [held] = [
        value
        for name in ("_secret", "_scalar")
        if isinstance(value := getattr(key, name, None), bytes | bytearray)
    ]
    assert any(held)
    with monkeypatch.context() as patch:
        for module in (ecdsa, ed25519, zeroize):
            for name in ("contextlib", "ctypes", "wipe", "wipe_field"):
                patch.setattr(module, name, None, raising=False)
        key.__del__()
    assert not any(held)


@pytest.mark.parametrize("kind", [K256Key, P256Key, Ed25519Key])
def test_key_not_constructed_is_released_silently(
    kind: type[K256Key | P256Key | Ed25519Key],
) -> None:
    """An object whose constructor failed is released without an error."""
    kind.__new__(kind).__del__()
