"""Values of the server's options, as people write them: addresses, policies, seeds."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from attestkit._sanitize import without_hex
from attestkit.dstack.host_shared_folder import read_file
from attestkit.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy

__all__ = [
    "HTTP_PORT",
    "OFF",
    "Address",
    "parse_address",
    "read_policy",
    "read_seed",
    "seed_from_hex",
]


def read_policy(option: str, text: str) -> "AppraisalPolicy":
    """Return the policy that an option names: a preset's name, else a TOML file.

    A preset goes before a file of the same name, which `./strict` means.

    Raises:
        ConfigError: The file cannot be read, or is no policy; the text names `option` and file.
    """
    from attestkit.verifier.policy.appraisal_policy import (  # late: others have none
        PRESETS,
        AppraisalPolicy,
    )

    if (preset := PRESETS.get(text)) is not None:
        return preset()
    try:
        return AppraisalPolicy.load(text)
    except ConfigError as error:
        also = ""
        if isinstance(error.__cause__, FileNotFoundError):
            also = f"; nor is that a preset, which are {', '.join(PRESETS)}"
        raise ConfigError(f"{option} {error}{also}") from error


# Where a TCP listener binds, as people write it.

HTTP_PORT: Final = 8090
"""The port of the external listener where nobody says another."""

OFF = "none"
"""What a listener's option says to have none."""


class Address(NamedTuple):
    """Where a TCP listener binds; port 0 is any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Return the address that `text` writes as HOST:PORT, an IPv6 host in square brackets.

    Raises:
        UsageError: It is something else.
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise UsageError("an IPv6 address goes in square brackets")
    if not (host and colon and re.fullmatch(r"[0-9]{1,5}", port) and int(port) < 1 << 16):
        raise UsageError(f"want HOST:PORT with a port of 0 to 65535, or {OFF}")
    return Address(host, int(port))


# Read the seed of a simulated TEE; errors name where it came from, and never the seed.


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
    from attestkit.backends.simulator import state_folder  # who gives no such file need not know it

    try:
        data = read_file(path)
        return state_folder.read_seed(data)
    except UsageError as error:
        text = f"{path}: {error}"
    except ConfigError as error:
        text = str(error)
    name = without_hex(path.name)
    if name != path.name:
        text = f"{text.replace(path.name, name)}; the name of a file is wanted, not the seed"
    raise ConfigError(text)
