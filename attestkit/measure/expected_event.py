"""Events that a boot is expected to extend into registers, and what confirms them."""

from collections.abc import Iterable
from typing import Final, Literal, NamedTuple, TypeAlias

from attestkit import _native

Basis = Literal["hardware", "published", "independent", "source"]
"""What confirms the rule by which a value is computed, strongest first.

- `hardware`: registers that hardware signed.
- `published`: values that others captured in a live guest and published.
- `independent`: another program computes the same.
- `source`: only the source code of firmware, VMM or kernel was read.
"""

BootEvents: TypeAlias = "tuple[ExpectedEvent, ...]"

_STRONGEST_FIRST: Final[tuple[Basis, ...]] = ("hardware", "published", "independent", "source")


class ExpectedEvent(NamedTuple):
    """One event that a boot extends into a register.

    Attributes:
        register: 0 to 3, of RTMR0 to RTMR3.
        name: Short name, such as `td-hob` or `acpi-tables`.
        event_type: TCG event type.
        digest: SHA-384; None if it has to be taken from the event log.
        basis: What confirms the rule.
    """

    register: int
    name: str
    event_type: int
    digest: bytes | None
    basis: Basis


def replay(events: Iterable[ExpectedEvent], register: int) -> bytes | None:
    """Return the value of a register after its events; None if one has no digest."""
    digests = [event.digest for event in events if event.register == register]
    known = [digest for digest in digests if digest is not None]
    if len(known) < len(digests):
        return None
    return _native.replay(bytes([register] * len(known)), b"".join(known))[register]


def weakest(bases: Iterable[Basis]) -> Basis:
    """Return the weakest basis; `hardware` for none."""
    ranks = [_STRONGEST_FIRST.index(basis) for basis in bases]
    return _STRONGEST_FIRST[max(ranks, default=0)]
