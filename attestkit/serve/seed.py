"""Read the seed of a simulated TEE; errors name where it came from, and never the seed."""

from pathlib import Path

from attestkit.backends.host_shared import read_file
from attestkit.errors import ConfigError, UsageError

__all__ = ["read_seed", "seed_from_hex"]


def seed_from_hex(text: str, source: str) -> bytes:
    """Return the 32 bytes that 64 hex digits stand for; errors name `source`, never the seed.

    Raises:
        ConfigError: It is something else.
    """
    try:
        seed = bytes.fromhex(text[2:] if text[:2] in {"0x", "0X"} else text)
    except ValueError:
        raise ConfigError(f"{source}: not hex") from None  # the cause would show a digit of it
    if len(seed) != 32:
        raise ConfigError(f"{source}: {len(seed)} bytes, want 32 (64 hex digits)")
    return seed


def read_seed(path: Path) -> bytes:
    """Return the seed in the file `path`: 32 raw bytes, or 64 hex digits and a line end.

    Raises:
        ConfigError: It cannot be read or is neither.
    """
    from attestkit.backends.simulator import state  # who gives no such file need not know it

    data = read_file(path)
    try:
        return state.read_seed(data)
    except UsageError as error:
        raise ConfigError(f"{path}: {error}") from error
