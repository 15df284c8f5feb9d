"""Where a TCP listener binds, as people write it."""

import re
from typing import Final, NamedTuple

from attestkit.errors import UsageError

__all__ = ["HTTP_PORT", "OFF", "Address", "parse_address"]

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
