"""What all objects with a secret in them have in common, and how a secret's bytes are wiped."""

import ctypes
from collections.abc import Callable
from typing import NoReturn

from attestkit.errors import UsageError

__all__ = ["Secret", "own_copy", "wipe", "wipe_field"]


class Secret:
    """A base without fields: no pickle, no copy. A subclass writes a `__repr__` without secrets."""

    __slots__ = ()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refuse, so that a secret does not get into a file or a queue by accident."""
        raise UsageError(f"a {type(self).__name__} holds a secret and does not pickle")


def own_copy(secret: bytes | bytearray) -> bytes:
    """Return bytes that nobody else has, so that they may be wiped."""
    return bytes(memoryview(secret))  # bytes() of bytes would be the same object


def wipe(
    secret: bytes | bytearray,
    # Kept here: `wipe_field` may run when this module's names are gone.
    *,
    _set: Callable[..., object] = ctypes.memset,
    _pointer: Callable[[bytes], object] = ctypes.c_char_p,
) -> None:
    """Write zeros over a secret, where it is.

    Bytes are not meant to change: only those may be wiped that were made here, whose last user is
    done, and that no other name leads to. CPython has one object for each single byte and for none,
    which stay. Elsewhere than in CPython bytes may be out of reach.
    """
    if isinstance(secret, bytearray):
        secret[:] = bytes(len(secret))
    elif len(secret) > 1:
        _set(_pointer(secret), 0, len(secret))


def wipe_field(
    owner: object, name: str, *, _wipe: Callable[[bytes | bytearray], None] = wipe
) -> None:
    """Wipe what a field holds, if its owner got as far as to have it."""
    if (secret := getattr(owner, name, None)) is not None:
        _wipe(secret)
