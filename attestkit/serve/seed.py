"""Read the seed of a simulated TEE; errors name where it came from, and never the seed."""

from pathlib import Path

from attestkit._shown import without_hex
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
        ConfigError: It cannot be read or is neither. A name that looks like a seed is not shown.
    """
    from attestkit.backends.simulator import state  # who gives no such file need not know it

    try:
        data = read_file(path)
        return state.read_seed(data)
    except UsageError as error:
        text = f"{path}: {error}"
    except ConfigError as error:
        text = str(error)
    name = without_hex(path.name)
    if name != path.name:
        text = f"{text.replace(path.name, name)}; the name of a file is wanted, not the seed"
    raise ConfigError(text)
