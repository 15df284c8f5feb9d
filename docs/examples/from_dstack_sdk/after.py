"""The same program with attestkit: also runs without an agent, on the kernel's interfaces."""

import hashlib
import json
from typing import Any

import attestkit


def facts(nonce: bytes) -> dict[str, Any]:
    """Return facts about the app's TEE."""
    with attestkit.open() as tee:
        if "model-loaded" not in [event.name for event in tee.event_log().events]:  # once per boot
            tee.emit_event("model-loaded", b"llama")
        key = tee.keys.derive_compat("wallet/eth", "signing")
        signed = tee.keys.sign(b"hello", "ed25519")
        attestkit.verify_signature(
            signed.public_key, signed.signature, b"hello", algorithm="ed25519"
        )
        # As get_quote() of the SDK. For a verifier's nonce use `attest(nonce=...)`.
        evidence = tee.attest(report_data=nonce, pad=True)
        compose = tee.app_compose.name
    info, quote, log = evidence.app_info, evidence.quote, evidence.event_log
    assert quote is not None, "on SEV-SNP there is a report instead"
    return {
        "key": key.key,
        "signature_chain": list(key.signature_chain),
        "signature": signed.signature,
        "signed_by": signed.public_key,
        "signature_holds": True,  # verify_signature raises otherwise
        "report_data": quote.report_data,
        "rtmrs": list(log.replay()),
        "events": [event.name for event in log.events if event.register == 3],
        "mrtd": quote.mrtd,
        "app_id": info.app_id,
        "compose": compose,
    }


def main() -> None:
    """Print the facts as JSON, with the key's hash instead of the key."""
    found = facts(b"nonce")
    found["key"] = hashlib.sha256(found["key"]).digest()
    print(json.dumps(found, default=bytes.hex, indent=1))


if __name__ == "__main__":
    main()
