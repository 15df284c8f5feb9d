"""Secrets are wiped when their keys go, whenever that is."""

from collections.abc import Callable
from typing import Any

import pytest

from attestkit._crypto import ecdsa, ed25519, zeroize
from attestkit._crypto.ecdsa import K256Key, P256Key
from attestkit._crypto.ed25519 import Ed25519Key
from attestkit._crypto.zeroize import own_copy

OCTETS = bytes(range(32))


@pytest.mark.parametrize("make", [K256Key, P256Key.from_scalar, Ed25519Key])
def test_the_end_of_the_interpreter_wipes_too(
    make: Callable[[bytes], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that goes with it goes when the names of modules are gone: they are None then."""
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
def test_what_never_was_a_key_has_nothing_to_wipe(
    kind: type[K256Key | P256Key | Ed25519Key],
) -> None:
    """Its end is quiet, too."""
    kind.__new__(kind).__del__()
