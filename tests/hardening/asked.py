"""A few questions to a server, and to the kernel about it."""

from pathlib import Path
from typing import Any

from tests.serve.client import call


def ask(path: str, pid: int) -> dict[str, Any]:
    """Emit an event, ask for a quote and a key on a socket; add what the kernel says of `pid`."""
    return {
        "emitted": call(path, "EmitEvent", {"event": "e", "payload": "00"}).status,
        "quote": call(path, "GetQuote", {"report_data": "12"}).json(),
        "key": call(path, "GetKey", {"path": "a"}).status,
        "status": Path(f"/proc/{pid}/status").read_text(),
    }
