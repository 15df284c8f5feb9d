"""A small app: one side proves what it is, the other lets in whoever it believes."""

import os
from collections.abc import Callable

import attestkit
from attestkit.errors import AttestKitError, BackendBusyError

__all__ = ["Door", "prove"]


def prove(tee: attestkit.Attester, challenge: bytes, attempts: int = 3) -> bytes:
    """Return evidence over a challenge; a device that is busy is asked again."""
    for _ in range(attempts - 1):
        try:
            return tee.attest(challenge).to_bytes()
        except BackendBusyError:
            continue
    return tee.attest(challenge).to_bytes()


class Door:
    """Lets in whose evidence a verifier accepts."""

    def __init__(
        self, verifier: attestkit.Verifier, random: Callable[[int], bytes] = os.urandom
    ) -> None:
        self._verifier = verifier
        self._random = random
        self._challenge: bytes | None = None

    def challenge(self) -> bytes:
        """Return what the next evidence must be about."""
        self._challenge = self._random(32)
        return self._challenge

    def let_in(self, evidence: bytes) -> str:
        """Return "welcome", or why not; a challenge is good for one try."""
        challenge, self._challenge = self._challenge, None
        if challenge is None:
            return "nobody asked"
        try:
            self._verifier.verify(evidence, report_data=challenge)
        except AttestKitError as error:
            return f"{type(error).__name__}: {error}"
        return "welcome"
