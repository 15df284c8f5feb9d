"""A small app for a TEE: it stamps documents with an attested key.

`Notary` runs in the TEE. `believe` and `check_stamp` are for its customers.
"""

import time
from collections.abc import Callable

from nacl.signing import SigningKey

from attestkit import AttestationResult, Attester, ReportData, Verifier, verify_signature
from attestkit.errors import BackendBusyError

TAG = "example-notary"
RULES = b"stamp whatever is asked for"
NONCE = 32  # bytes; fixed size, so the boundary between nonce and key is unambiguous
PATIENCE = (0.1, 0.5, 2.0)  # successive waits for a busy device, in seconds


class Notary:
    """Notary that stamps documents.

    Its rules are measured before it derives the key, so every stamp implies the rules.
    """

    def __init__(self, tee: Attester, wait: Callable[[float], object] = time.sleep) -> None:
        self._tee, self._wait = tee, wait
        if not any(event.name == "notary-rules" for event in tee.event_log().events):
            tee.emit_event("notary-rules", RULES)
        self._key = SigningKey(tee.keys.derive("notary", "ed25519").key)

    @property
    def public_key(self) -> bytes:
        """Public key of the stamps, 32 bytes."""
        return self._key.verify_key.encode()

    def introduce(self, nonce: bytes) -> bytes:
        """Return evidence over a customer's nonce and the public key; retry a busy device.

        Raises:
            ValueError: If the nonce has another size.
            BackendBusyError: If the device stays busy.
        """
        if len(nonce) != NONCE:
            raise ValueError(f"the nonce is {NONCE} bytes")
        report_data = ReportData.bind(TAG, nonce + self.public_key)
        for pause in PATIENCE:
            try:
                return self._tee.attest(report_data=report_data).to_bytes()
            except BackendBusyError:
                self._wait(pause)
        return self._tee.attest(report_data=report_data).to_bytes()

    def stamp(self, document: bytes) -> bytes:
        """Return the stamp of a document, 64 bytes."""
        return self._key.sign(f"{TAG}-stamp:".encode() + document).signature


def believe(
    evidence: bytes, public_key: bytes, nonce: bytes, verifier: Verifier
) -> AttestationResult:
    """Verify a notary's introduction under a policy that pins its app; return the result.

    Raises:
        ValueError: If the nonce or the key has another size.
        AttestKitError: If the evidence is rejected.
    """
    if len(nonce) != NONCE or len(public_key) != 32:
        raise ValueError(f"nonce and public key are {NONCE} and 32 bytes")
    return verifier.verify(evidence, report_data=ReportData.bind(TAG, nonce + public_key))


def check_stamp(document: bytes, stamp: bytes, public_key: bytes) -> None:
    """Check that the notary of an accepted result has stamped a document.

    Raises:
        SignatureError: If the stamp is not valid.
    """
    stamped = f"{TAG}-stamp:".encode() + document
    verify_signature(public_key, stamp, stamped, algorithm="ed25519")
