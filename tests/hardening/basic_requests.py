"""A few requests to a server, and the kernel's view of its process."""

from pathlib import Path
from typing import Any

from tests.serve.client import call


def ask(path: str, pid: int) -> dict[str, Any]:
    """Emit an event, get a quote, evidence and a key; add the kernel's data on `pid`."""
    return {
        "emitted": call(path, "EmitEvent", {"event": "e", "payload": "00"}).status,
        "quote": call(path, "GetQuote", {"report_data": "12"}).json(),
        "evidence": call(path, "Attest", {"report_data": "12"}).status,
        "key": call(path, "GetKey", {"path": "a"}).status,
        "status": Path(f"/proc/{pid}/status").read_text(),
    }
