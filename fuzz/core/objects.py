"""Make Python's objects of files, for memcheck: `python -m fuzz.core.objects FILE...`.

The part of the core that talks to Python cannot run without it. Before the files there may be a
mistake to make, by which a test shows that it sees such a thing: overread, or leak.
"""

import ctypes
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from attestkit import _native
from attestkit.attestation.wire.evidence_parts import (
    Tdx,
    decode_cmw_td,
    decode_msgpack_td,
    decode_scale_td,
)
from attestkit.errors import AttestKitError
from attestkit.event_log import Event, EventLog, TpmEventLog
from attestkit.quote import Quote

TIMES = 5


def overread() -> None:
    """Tell the core that ten bytes are a hundred."""
    native: Any = _native
    native.lib.ak_sha384(bytes(10), 100, native.ffi.new("uint8_t[48]"))


def leak() -> None:
    """Lose bytes that the core made. Tuples are taken from a list of old ones, and tell nothing."""
    text = EventLog([Event(0, 4, bytes(48), "", bytes(4))]).to_json()
    for _ in range(TIMES):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(_native.agent_json_walk(text)[0]))


def read(data: bytes) -> None:
    """Give it to every reader, and let go of what it makes."""
    for reader in (Quote.parse, EventLog.from_ccel, EventLog.from_json, TpmEventLog.parse):
        with suppress(AttestKitError):
            found = reader(data)
            if isinstance(found, Quote):
                _ = found.header, found.body, found.rtmrs if found.tee_type else None
            elif isinstance(found, EventLog):
                found.replay(), found.events, found.warnings
    with suppress(AttestKitError):
        Quote.parse_many([data, data])
    with suppress(AttestKitError):
        EventLog.from_json(data.decode("latin-1"))
    _native.read_pck_certificate(data)
    for canonical in (True, False):
        with suppress(AttestKitError):
            _native.cbor_check(data, 0, canonical=canonical)
    collection = decode_cmw_td(data)
    for evidence in (decode_scale_td(data), decode_msgpack_td(data), collection and collection[0]):
        if evidence is not None and isinstance(evidence.platform, Tdx):
            with suppress(AttestKitError):
                EventLog.from_wire(evidence.platform.event_log)
    _native.unhex(data)
    _native.unhex(data.decode("latin-1"))


def main() -> int:
    """Return 0."""
    mistakes = {"overread": overread, "leak": leak}
    for word in sys.argv[1:]:
        if word in mistakes:
            mistakes[word]()
            continue
        data = Path(word).read_bytes()
        for _ in range(TIMES):
            read(data)
    print(_native.CORE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
