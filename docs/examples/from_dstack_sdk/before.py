"""A small program with the dstack SDK: an event, a key, a signature, a quote with its log."""

import hashlib
import json
from typing import Any

from dstack_sdk import DstackClient


def facts(nonce: bytes) -> dict[str, Any]:
    """Return facts about the app's TEE."""
    client = DstackClient()
    with client:  # `as` would return the asynchronous client
        before = client.get_quote(b"before").decode_event_log()
        if "model-loaded" not in [event.event for event in before]:  # once per boot
            client.emit_event("model-loaded", "llama")
        key = client.get_key("wallet/eth", "signing")
        signed = client.sign("ed25519", b"hello")
        quote = client.get_quote(nonce)
        info = client.info()
        valid = client.verify(
            "ed25519", b"hello", signed.decode_signature(), signed.decode_public_key()
        ).valid
    return {
        "key": key.decode_key(),
        "signature_chain": key.decode_signature_chain(),
        "signature": signed.decode_signature(),
        "signed_by": signed.decode_public_key(),
        "signature_holds": valid,
        "report_data": bytes.fromhex(quote.report_data),
        "rtmrs": [bytes.fromhex(value) for value in quote.replay_rtmrs().values()],
        "events": [event.event for event in quote.decode_event_log() if event.imr == 3],
        "mrtd": bytes.fromhex(info.tcb_info.mrtd),
        "app_id": bytes.fromhex(info.app_id),
        "compose": json.loads(info.tcb_info.app_compose)["name"],
    }


def main() -> None:
    """Print the facts as JSON, with the key's hash instead of the key."""
    found = facts(b"nonce")
    found["key"] = hashlib.sha256(found["key"]).digest()
    print(json.dumps(found, default=bytes.hex, indent=1))


if __name__ == "__main__":
    main()
