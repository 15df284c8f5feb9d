"""Simulated guests and KMSs for tests of the boot with a KMS."""

import attestkit
from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from attestkit.kms import SimulatedKms
from attestkit.testing.tee import SEED

__all__ = ["EVENTS", "PREFIX", "SEED", "guest", "kms_of", "names"]

PREFIX = [
    "system-preparing",
    "app-id",
    "compose-hash",
    "gpu-policy-hash",
    "instance-id",
    "boot-mr-done",
]
EVENTS = [*PREFIX, "os-image-hash", "key-provider", "storage-fs", "system-ready"]


def kms_of(guests: bytes, **options: object) -> SimulatedKms:
    """Return a running KMS that verifies the evidence of guests of the same seed."""
    with attestkit.open("simulator", seed=guests) as tee:
        return SimulatedKms(tee.verifier(), **{"seed": guests, **options})  # type: ignore[arg-type]


def guest(**options: object) -> Attester[Simulator]:
    """Return a guest whose firmware has booted, and whose app has not."""
    return Attester(Simulator(**{"seed": SEED, "kms_boot": True, **options}))  # type: ignore[arg-type]


def names(tee: Attester[Simulator]) -> list[str]:
    """Return the names of the runtime events."""
    return [event.name for event in tee.event_log().runtime]
