"""Generate `tests/data/cel`: `python -m tests.event_log.cel.make_cel_vectors`.

The vectors are the log of a simulated TD in each encoding, and the registers of its quote. Firmware
payloads are emptied to keep them small.
"""

from pathlib import Path

import attestkit
from attestkit.event_log.cel import ENCODINGS

FOLDER = Path(__file__).parents[2] / "data" / "cel"


def make_vectors() -> dict[str, bytes]:
    """Return the files by name."""
    with attestkit.open("simulator", seed=bytes(32)) as tee:
        tee.emit_event("model-loaded", b"weights:1")
        log = tee.event_log().trimmed()
        registers = "".join(f"{value.hex()}\n" for value in tee.get_quote(b"").rtmrs)
    files = {f"simulator.{encoding}": log.to_cel(encoding) for encoding in ENCODINGS}
    return files | {"registers.txt": registers.encode()}


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, data in make_vectors().items():
        (FOLDER / name).write_bytes(data)
