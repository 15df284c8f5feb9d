"""A base class for objects with secrets, and functions that wipe secrets in memory."""

import ctypes
from collections.abc import Callable
from typing import NoReturn

from attestkit.errors import UsageError


class Secret:
    """Base class that prevents pickling and copying.

    Subclasses need a `__repr__` without secrets.
    """

    __slots__ = ()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Raise UsageError: a pickle or a copy would duplicate the secret."""
        message = f"{type(self).__name__}: contains a secret, and cannot be pickled or copied"
        raise UsageError(message, reason="not_picklable")


def own_copy(secret: bytes | bytearray) -> bytes:
    """Return a copy of `secret` that is not shared with other code, so that it may be wiped."""
    return bytes(memoryview(secret))  # bytes(secret) would return the same object


def wipe(
    secret: bytes | bytearray,
    # Defaults, because `wipe_field` may run at exit, after the module's globals are cleared.
    *,
    _set: Callable[..., object] = ctypes.memset,
    _pointer: Callable[[bytes], object] = ctypes.c_char_p,
) -> None:
    """Overwrite a secret with zeros in memory.

    `bytes` are immutable by contract: wipe only objects that were created here, are not referenced
    elsewhere and are not used again. CPython shares objects of length 0 and 1, which are not wiped.
    On other interpreters, `bytes` may not be accessible. `_set` and `_pointer` are bound early for
    calls at interpreter exit; do not pass them.
    """
    if isinstance(secret, bytearray):
        secret[:] = bytes(len(secret))
    elif len(secret) > 1:
        _set(_pointer(secret), 0, len(secret))


def wipe_field(
    owner: object, name: str, *, _wipe: Callable[[bytes | bytearray], None] = wipe
) -> None:
    """Wipe the secret in attribute `name` of `owner`, which may be partly initialised.

    A missing attribute is ignored, and one that is None. `_wipe` is bound early for calls at
    interpreter exit; do not pass it.
    """
    if (secret := getattr(owner, name, None)) is not None:
        _wipe(secret)
