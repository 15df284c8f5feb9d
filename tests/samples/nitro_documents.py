"""Unsigned Nitro documents: well-formed, with the fields that a test needs."""

from typing import Any, Final

import cbor2

MODULE: Final = "i-0123456789abcdef0-tpm0123456789abcdef"


def payload(*, tpm: bool = False, **changes: object) -> dict[str, Any]:
    """Return the fields of a document; the value `...` removes a field."""
    fields: dict[str, Any] = {
        "module_id": MODULE,
        "digest": "SHA384",
        "timestamp": 1_700_000_000_000,
        "nitrotpm_pcrs" if tpm else "pcrs": {},
        "certificate": b"leaf",
        "cabundle": [b"root", b"issuer"],
        **changes,
    }
    return {name: value for name, value in fields.items() if value is not ...}


def document(*, tpm: bool = False, **changes: object) -> bytes:
    """Return a COSE_Sign1 structure around a payload; its signature is empty."""
    return cbor2.dumps([b"", {}, cbor2.dumps(payload(tpm=tpm, **changes)), b""])
