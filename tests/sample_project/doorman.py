"""Small app: one side attests itself, the other admits verified evidence."""

import os
from collections.abc import Callable

import attestkit
from attestkit.errors import AttestKitError, BackendBusyError


def prove(tee: attestkit.Attester, challenge: bytes, attempts: int = 3) -> bytes:
    """Return evidence over a challenge; a busy device is tried again."""
    for _ in range(attempts - 1):
        try:
            return tee.attest(report_data=challenge, pad=True).to_bytes()
        except BackendBusyError:
            continue
    return tee.attest(report_data=challenge, pad=True).to_bytes()


class Door:
    """Admits clients whose evidence a verifier accepts."""

    def __init__(
        self, verifier: attestkit.Verifier, random: Callable[[int], bytes] = os.urandom
    ) -> None:
        self._verifier = verifier
        self._random = random
        self._challenge: bytes | None = None

    def challenge(self) -> bytes:
        """Return the report data of the next evidence."""
        self._challenge = self._random(32)
        return self._challenge

    def let_in(self, evidence: bytes) -> str:
        """Return "welcome" or the reason of a refusal; a challenge is valid for one attempt."""
        challenge, self._challenge = self._challenge, None
        if challenge is None:
            return "no challenge"
        try:
            self._verifier.verify(evidence, report_data=challenge)
        except AttestKitError as error:
            return f"{type(error).__name__}: {error}"
        return "welcome"
