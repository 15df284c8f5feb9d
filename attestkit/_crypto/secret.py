"""What all objects with a secret in them have in common."""

from typing import NoReturn

from attestkit.errors import UsageError

__all__ = ["Secret"]


class Secret:
    """A base without fields: no pickle, no copy. A subclass writes a `__repr__` without secrets."""

    __slots__ = ()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refuse, so that a secret does not get into a file or a queue by accident."""
        raise UsageError(f"a {type(self).__name__} holds a secret and does not pickle")
