"""Epochs of keys: versions of the root keys of a KMS and of an app (dstack 0.5.16 and 0.6.4)."""

from attestkit._sanitize import shown
from attestkit.errors import UsageError


def require_key_epoch_0(epoch: object) -> None:
    """Raise UsageError (`key_epoch`) unless an epoch of a key is 0, or None, which names none.

    Keys of other epochs cannot be derived here, and ignoring the number would return a wrong key.
    """
    if epoch is None or (type(epoch) is int and epoch == 0):
        return
    number = shown(epoch) if type(epoch) is int else f"of type {type(epoch).__name__}"
    raise UsageError(f"key epoch {number} is not available", reason="key_epoch")
