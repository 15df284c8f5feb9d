"""The agent's JSON and hex in plain Python: what agent_json.c and hex.c do.

The plain reader of the agent's JSON is `event_log.agent_json`, so this one leaves all to it.
"""

import binascii
from typing import Literal

__all__ = ["agent_json_walk", "hexlify", "unhex"]


def agent_json_walk(data: bytes | str) -> Literal["left"]:
    """Leave every text to the parser in `event_log.agent_json`."""
    del data
    return "left"


def unhex(text: bytes | str) -> bytes | None:
    """Return the bytes of hex digits in either case, or None where it is not hex alone."""
    try:
        return binascii.unhexlify(text)
    except ValueError:
        return None


def hexlify(data: bytes) -> bytes:
    """Return the hex digits of bytes, in lower case."""
    return binascii.hexlify(data)
