"""Values of the server's options: addresses, appraisal policies, and seeds."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from attestkit._sanitize import without_hex
from attestkit.dstack.host_shared_folder import read_file
from attestkit.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from attestkit._outcomes.reasons import ConfigReason
    from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy


@contextmanager
def prefix_errors(prefix: str) -> Iterator[None]:
    """Context manager: put `prefix` before the text of a ConfigError or UsageError raised in it."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{prefix} {error}", reason=error.reason) from error
    except UsageError as error:
        raise UsageError(f"{prefix} {error}", reason=error.reason) from error


def read_policy(option: str, text: str) -> "AppraisalPolicy":
    """Return the appraisal policy that `text` names: a preset, else the path of a TOML file.

    For a file that has the name of a preset, such as strict, the path is `./strict`. Errors begin
    with `option`, the name of the option.

    Raises:
        ConfigError: If the file cannot be read or is invalid.
    """
    from attestkit.verifier.policy.appraisal_policy import PRESETS, AppraisalPolicy  # lazy

    if (preset := PRESETS.get(text)) is not None:
        return preset()
    try:
        return AppraisalPolicy.load(text)
    except ConfigError as error:
        presets = ""
        if isinstance(error.__cause__, FileNotFoundError):
            presets = f"; the presets are {', '.join(PRESETS)}"
        raise ConfigError(f"{option} {error}{presets}", reason=error.reason) from error


# TCP addresses of listeners.

HTTP_PORT: Final = 8090
"""Default port of the external listener."""

OFF = "none"
"""Value of a listener's option that turns the listener off."""


class Address(NamedTuple):
    """Address of a TCP listener; port 0 selects a free port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Return the address in `text`, which is HOST:PORT with an IPv6 host in square brackets.

    Raises:
        UsageError: If `text` is not such an address.
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise UsageError("an IPv6 address must be in square brackets", reason="wrong_value")
    if not (host and colon and re.fullmatch(r"[0-9]{1,5}", port) and int(port) < 1 << 16):
        problem = f"must be HOST:PORT with a port of 0 to 65535, or {OFF}"
        raise UsageError(problem, reason="wrong_value")
    return Address(host, int(port))


# Reading of the simulator's seed; errors name its source, and never show the seed.


def seed_from_hex(text: str, source: str) -> bytes:
    """Return the 32 bytes of `text`, 64 hex digits with or without `0x`; errors name `source`.

    Raises:
        ConfigError: If `text` is malformed.
    """
    try:
        seed = bytes.fromhex(text[2:] if text[:2] in {"0x", "0X"} else text)
    except ValueError:
        # Without the cause, which shows a digit of the seed.
        raise ConfigError(f"{source}: not valid hex; give 64 digits", reason="encoding") from None
    if len(seed) != 32:
        problem = f"{source}: must be 32 bytes (64 hex digits), not {len(seed)} bytes"
        raise ConfigError(problem, reason="wrong_size")
    return seed


def read_seed(path: Path) -> bytes:
    """Return the seed in the file `path`: 32 raw bytes, or 64 hex digits and a line end.

    Raises:
        ConfigError: If the file cannot be read or is malformed. A name that looks like a seed is
            not shown.
    """
    from attestkit.backends.simulator import soft_td  # lazy: only with a seed file

    reason: ConfigReason
    try:
        data = read_file(path)
        return soft_td.read_seed(data)
    except UsageError as error:
        text, reason = f"{path}: {error}", "wrong_size"
    except ConfigError as error:
        text, reason = str(error), error.reason
    name = without_hex(path.name)
    if name != path.name:
        text = f"{text.replace(path.name, name)}; give the name of a file, not the seed"
    raise ConfigError(text, reason=reason)
